"""Run directories: never half-written, never silently overwritten, partial results kept."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import molgen
from molgen.errors import InputError, MolgenError
from molgen.files import json_text, read_manifest, read_summary, write_atomic
from molgen.run import Run

SETTINGS = {"samples": 8, "calculator": "gfn2", "reactant": Path("r.xyz"), "fmax": np.float64(0.02)}


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def read(directory, name):
    return json.loads((directory / name).read_text())


def test_summary_has_what_scripts_rely_on(tmp_path):
    with Run(tmp_path / "out", "ts", SETTINGS, seed=5, device="cpu") as run:
        run.write_text("ts.xyz", "3\n")
        run.write_json("modes.json", {"cm": np.array([-1200.5, np.nan]), "n": np.int64(3)})
        run.write_bytes("plots/barrier.png", b"\x89PNG")
        run.record(checkpoint_hash="abc")
        summary = run.finish("ok", [{"verdict": "intended"}], energy_calls=61, rejections={"half": 2})
    out = tmp_path / "out"
    assert summary == read(out, "summary.json")
    assert summary.pop("wall_seconds") >= 0
    assert summary == {
        "status": "ok",
        "command": "ts",
        "molgen_version": molgen.__version__,
        "seed": 5,
        "device": "cpu",
        "checkpoint_hash": "abc",
        "energy_calls": 61,
        "validity": None,
        "rejections": {"half": 2},
        "results": [{"verdict": "intended"}],
    }
    manifest = read(out, "manifest.json")
    assert manifest["settings"] == {"samples": 8, "calculator": "gfn2", "reactant": "r.xyz", "fmax": 0.02}
    assert manifest["files"] == ["ts.xyz", "modes.json", "plots/barrier.png", "summary.json"]
    assert read(out, "modes.json") == {"cm": [-1200.5, None], "n": 3}
    assert listing(out) == ["manifest.json", "modes.json", "plots", "summary.json", "ts.xyz"]


def test_an_earlier_run_may_be_resumed_where_the_command_can(tmp_path):
    with Run(tmp_path, "fes", {}, resume=False):
        pass
    offers = "give --resume to continue it, --overwrite to replace the earlier run, or another --out"
    with pytest.raises(InputError, match=offers):
        Run(tmp_path, "fes", {}, resume=False)
    for command, resume in (("fes", None), ("ts", False)):  # cannot resume; a run of another command
        with pytest.raises(InputError, match="not empty") as refused:
            Run(tmp_path, command, {}, resume=resume)
        assert "--resume" not in str(refused.value)


def test_existing_output_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    message = r"the output folder is not empty\n  expected: an empty or new folder\n  remedy: give another --out"
    with pytest.raises(InputError, match=message):
        Run(tmp_path, "ts", {})
    with pytest.raises(InputError, match="holds files, but no run of molgen"):
        Run(tmp_path, "ts", {}, overwrite=True)
    assert listing(tmp_path) == ["thesis.tex"]


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(InputError, match=r"out: is a file\n  expected: an output folder"):
        Run(tmp_path / "out", "ts", {}, overwrite=True)
    with pytest.raises(InputError, match="cannot write: File name too long"):
        Run(tmp_path / ("x" * 300), "ts", {})


def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path):
    with Run(tmp_path, "ts", {}) as run:
        run.write_text("guesses.xyz", "old")
        run.write_text("checkpoint/model.safetensors", "old")
        run.path("checkpoint")
    (tmp_path / "notes.txt").write_text("mine")
    Run(tmp_path, "ts", {"samples": 2}, overwrite=True).path("ts.xyz")
    assert listing(tmp_path) == ["manifest.json", "notes.txt"]


def test_the_users_files_in_a_run_within_a_run_stay(tmp_path):
    with Run(tmp_path, "ts", {}) as run:
        for number in (2, 3):
            with Run(run.path(f"search-{number}"), "ts", {}) as inner:
                inner.write_text("ts.xyz", "old")
                inner.write_text("checkpoint/model.safetensors", "old")
                inner.path("checkpoint")
    (tmp_path / "search-2" / "notes.txt").write_text("mine")
    Run(tmp_path, "ts", {}, overwrite=True, reads=[tmp_path / "search-2" / "notes.txt"])
    for read in ("search-2", "search-2/ts.xyz", "search-2/manifest.json"):
        with pytest.raises(InputError, match="lies in it, and would be removed"):
            Run(tmp_path, "ts", {}, overwrite=True, reads=[tmp_path / read])
    run = Run(tmp_path, "ts", {}, overwrite=True)
    again = run.path("search-2")
    assert listing(tmp_path) == ["manifest.json", "search-2"] and listing(again) == ["notes.txt"]
    with Run(again, "ts", {}, overwrite=True, within=True) as inner:
        inner.write_text("ts.xyz", "new")
    assert listing(again) == ["manifest.json", "notes.txt", "summary.json", "ts.xyz"]


@pytest.mark.parametrize("error", [InputError("300 K"), MolgenError("no license"), KeyboardInterrupt()])
@pytest.mark.parametrize("way", ["overwrite", "resume"])
def test_an_error_before_the_first_output_leaves_the_earlier_run(tmp_path, way, error):
    with Run(tmp_path, "data md", {}) as run:
        run.write_text("AG.npz", "days of dynamics")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(type(error)), Run(tmp_path, "data md", {}, device="cuda", **{way: True}) as run:
        run.record(checkpoint_hash="abc")
        raise error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(MolgenError, match="after"), Run(tmp_path, "data md", {}, device="cuda", **{way: True}) as run:
        run.path("AG.npz")
        raise MolgenError("after")
    assert (tmp_path / "AG.npz").exists() == (way == "resume")
    assert read(tmp_path, "summary.json")["error"] == "after" and read(tmp_path, "manifest.json")["device"] == "cuda"
    with Run(tmp_path, "data md", {}, **{way: True}):
        pass
    assert read(tmp_path, "summary.json")["status"] == "ok"


def test_overwrite_leaves_what_another_command_made(tmp_path):
    with Run(tmp_path, "data md", {}) as run:
        run.path("AG.npz").write_text("days of dynamics")
    with pytest.raises(InputError, match="holds the output of molgen data md"):
        Run(tmp_path, "train prose", {}, overwrite=True)
    assert (tmp_path / "AG.npz").exists()


def test_overwrite_never_reaches_outside(tmp_path):
    (tmp_path / "precious").write_text("x")
    out = tmp_path / "out"
    Run(out, "ts", {})
    manifest = read(out, "manifest.json") | {"files": ["../precious", ".", str(tmp_path / "precious")]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    Run(out, "ts", {}, overwrite=True).path("ts.xyz")
    assert (tmp_path / "precious").read_text() == "x" and listing(out) == ["manifest.json"]
    for name in ("../precious", "/etc/precious", "."):
        with pytest.raises(ValueError, match="not a path inside the run directory"):
            Run(out, "ts", {}, overwrite=True).path(name)


@pytest.mark.parametrize("way", ["overwrite", "resume"])
def test_what_a_killed_run_left_half_written_goes(tmp_path, way):
    """SIGKILL in the middle of `write_atomic` leaves its temporary file."""
    Run(tmp_path, "train", SETTINGS).path("best")
    Run(tmp_path, "train", SETTINGS, resume=True).path("log[1].csv")
    (tmp_path / "best").mkdir()
    kept = [".notes.abcdefgh.tmp", ".log1.csv.abcdefgh.tmp", ".log[1].csv.tmp"]
    for name in [*kept, ".log[1].csv.abcdefg_.tmp", ".manifest.json.abcdefgh.tmp", "best/.model.12345678.tmp"]:
        (tmp_path / name).write_text("half")
    before = listing(tmp_path)
    with pytest.raises(InputError):
        Run(tmp_path, "ts", SETTINGS, **{way: True})
    assert listing(tmp_path) == [name for name in before if name != ".manifest.json.abcdefgh.tmp"]  # another's run
    Run(tmp_path, "train", SETTINGS, **{way: True}).path("new.csv")
    assert {path.name for path in tmp_path.rglob("*.tmp")} == set(kept)


def test_what_a_run_within_has_half_written_is_left_to_it(tmp_path):
    """It may be another process that writes there."""
    Run(tmp_path, "ts", {}).path("0001")
    Run(tmp_path / "0001", "ts", {}).path("ts.xyz")
    half = tmp_path / "0001" / ".ts.xyz.abcdefgh.tmp"
    half.write_text("half")
    Run(tmp_path, "ts", {}, resume=True)
    assert half.exists()
    Run(tmp_path / "0001", "ts", {}, resume=True)
    assert not half.exists()


def test_resume_continues_and_adds_up(tmp_path):
    with Run(tmp_path, "train", SETTINGS, seed=1) as run:
        run.write_text("log.csv", "1\n")
        run._begin -= 100  # as if it had worked for 100 s
    again = Run(tmp_path, "train", SETTINGS, seed=1, device="cuda", resume=True)
    assert again.resumed and (tmp_path / "log.csv").exists()
    assert 100 <= again.finish("ok")["wall_seconds"] < 200
    assert read(tmp_path, "manifest.json")["files"] == ["log.csv", "summary.json"]


@pytest.mark.parametrize(("change", "message"), [
    ({"settings": SETTINGS | {"samples": 9}}, r"'samples' was 8 and is now 9(.|\n)*remedy: set 'samples' back"),
    ({"settings": SETTINGS | {"charge": 1}}, r"'charge' was None and is now 1"),
    ({"seed": 2}, r"'seed' was 1 and is now 2"),
    ({"command": "ts"}, r"holds the output of molgen train\n.*a run of molgen ts\n  remedy: choose another --out"),
])  # fmt: skip
def test_resume_refuses_changed_settings(tmp_path, change, message):
    Run(tmp_path, "train", SETTINGS, seed=1)
    asked = {"command": "train", "settings": SETTINGS, "seed": 1} | change
    with pytest.raises(InputError, match=message):
        Run(tmp_path, resume=True, **asked)


def test_resume_without_a_run(tmp_path):
    assert not Run(tmp_path / "new", "train", {}, resume=True).resumed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(InputError, match=r"nothing to resume: no manifest\.json"):
        Run(tmp_path / "other", "train", {}, resume=True)
    with pytest.raises(InputError, match=r"exclude each other"):
        Run(tmp_path / "new", "train", {}, resume=True, overwrite=True)


def test_interrupt_keeps_partial_results(tmp_path):
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, "ts", {}) as run:
        run.results.append({"verdict": "intended"})
        run.record(energy_calls=17)
        raise KeyboardInterrupt
    summary = read(tmp_path, "summary.json")
    assert summary["status"] == "interrupted"
    assert summary["results"] == [{"verdict": "intended"}] and summary["energy_calls"] == 17


def test_failure_is_recorded_and_goes_on(tmp_path):
    with pytest.raises(MolgenError, match="SCF"), Run(tmp_path, "ts", {}):
        raise MolgenError("SCF did not converge")
    assert read(tmp_path, "summary.json")["status"] == "failed"
    assert read(tmp_path, "summary.json")["error"] == "SCF did not converge"


def full_disk(monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_disk_full_is_explained_and_leaves_the_old_file(tmp_path, monkeypatch):
    run = Run(tmp_path, "ts", {})
    run.write_text("ts.xyz", "first")
    full_disk(monkeypatch)
    with pytest.raises(InputError, match=r"ts\.xyz: cannot write: no space left(.|\n)*remedy: free some space"):
        run.write_text("ts.xyz", "second")
    assert (tmp_path / "ts.xyz").read_text() == "first"
    assert listing(tmp_path) == ["manifest.json", "ts.xyz"]


def test_the_first_fault_is_reported_when_the_summary_fails_too(tmp_path, monkeypatch):
    with pytest.raises(MolgenError, match="SCF") as caught, Run(tmp_path, "ts", {}):
        full_disk(monkeypatch)
        raise MolgenError("SCF did not converge")
    assert "no space left" in caught.value.__notes__[0]


def test_write_atomic_respects_umask(tmp_path):
    before = os.umask(0o027)
    try:
        assert write_atomic(tmp_path / "a.txt", "a").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_json_refuses_what_is_not_data():
    with pytest.raises(TypeError, match="builtin_function_or_method cannot be written as JSON"):
        json_text({"f": len})


def test_a_run_refused_before_it_wrote_anything_leaves_no_folder(tmp_path):
    for place in (tmp_path / "new", tmp_path):
        with pytest.raises(InputError), Run(place, "ts", {}):
            raise InputError("0 workers")
    assert listing(tmp_path) == []
    with pytest.raises(InputError), Run(tmp_path, "ts", {}) as run:
        run.write_text("ts.xyz", "first")
        raise InputError("the second file is empty")
    assert listing(tmp_path) == ["manifest.json", "summary.json", "ts.xyz"]


HOLDER = """
import sys
from molgen.run import Run
with Run(sys.argv[1], "ts", {}) as run:
    run.write_text("ts.xyz", "first")
    with Run(run.path("search-2"), "ts", {}, within=True):
        print("writing", flush=True)
        sys.stdin.read()
"""


def test_two_runs_cannot_write_into_one_folder(tmp_path, monkeypatch):
    """The lock is the kernel's: it is gone when the process is, and no file of it is left."""
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], **pipes, text=True) as other:
        assert other.stdout.readline() == "writing\n"
        before = listing(out)
        pid = f", pid {other.pid}" if Path("/proc/locks").exists() else ""
        for asked in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match=f"out: another run is writing there{pid}\n"):
                Run(out, "ts", {}, **asked)
        with pytest.raises(InputError, match="link: another run is writing there"):
            Run(link, "ts", {}, resume=True)
        assert listing(out) == before == ["manifest.json", "search-2", "ts.xyz"]
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "fcntl", None)
            assert Run(out, "ts", {}, resume=True).resumed, "no such lock on this platform"
        other.kill()
    with pytest.raises(InputError, match="'seed' was 0") as refused:  # its traceback keeps the run, not the lock
        Run(out, "ts", {}, seed=1, resume=True)
    for _ in range(2):
        with Run(out, "ts", {}, resume=True) as run:
            assert run.resumed and refused


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(handle, how):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Run(tmp_path, "ts", {}) as run:
        run.write_text("ts.xyz", "first")
    assert Run(tmp_path, "ts", {}, resume=True).resumed


def test_what_a_run_left_is_read_back(tmp_path):
    assert read_manifest(tmp_path) is None and read_summary(tmp_path / "nowhere") is None
    with Run(tmp_path / "out", "ts", SETTINGS, seed=5, device="cpu") as run:
        summary = run.finish("ok")
    manifest = read_manifest(tmp_path / "out")
    assert read_summary(tmp_path / "out") == summary and manifest is not None and manifest["seed"] == 5
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("before", ["Run(out", "best.mkdir()", "run.write_text('b.txt'"])
def test_what_a_killed_writer_left_is_gone_with_the_next_run(tmp_path, before):
    """Killed in the middle of a write: of the manifest, of a file in a folder of the run, of an output."""
    killed = f"""
import os
from pathlib import Path
from molgen.files import write_atomic
from molgen.run import Run
out = Path({str(tmp_path / "out")!r})
run = Run(out, "ts", {{}})
run.write_text('a.txt', 'a')
best = run.path('best')
best.mkdir()
write_atomic(best / 'model.safetensors', 'tensors')
run.write_text('b.txt', 'b')
"""
    at = killed.index(next(line for line in killed.splitlines() if before in line))
    killed = f"{killed[:at]}os.replace = lambda *_: os._exit(9)\n{killed[at:]}"
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    out = tmp_path / "out"
    assert len(list(out.rglob(".*.tmp"))) == 1
    begun = (out / "manifest.json").exists()
    (out / ".mine.txt.abcd1234.tmp" if begun else tmp_path / "beside").write_text("not of the run")
    with Run(out, "ts", {}, resume=begun) as run:  # as new where nothing had begun
        run.write_text("b.txt", "b")
    assert [path.name for path in out.rglob(".*.tmp")] == [".mine.txt.abcd1234.tmp"] * begun
