"""The command line's contract: streams, exit codes, error texts. Run in-process through typer's runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

import molgen
from molgen.checkpoint import save_checkpoint
from molgen.cli import common, doctor, main
from molgen.errors import CalculatorError, CheckpointError, InputError, MolgenError
from molgen.words import counted

runner = CliRunner()


def failing(error: BaseException) -> typer.Typer:
    """The real app's group and options around one command that raises."""
    app = typer.Typer(cls=common.Group)
    app.callback()(main._options)

    @app.command()
    def work():
        raise error

    return app


@pytest.mark.parametrize(("error", "code", "text"), [
    (InputError("coordinate is NaN", where="r.xyz, atom 3", remedy="mend it"), 2, "r.xyz, atom 3: coordinate is NaN"),
    (CheckpointError("truncated"), 2, "truncated"),
    (CalculatorError("no such calculator"), 2, "no such calculator"),
    (MolgenError("no path [red]found[/red]"), 1, "no path [red]found[/red]"),
    (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
])  # fmt: skip
def test_errors_become_messages_and_exit_codes(error, code, text):
    result = runner.invoke(failing(error), ["work"])
    assert result.exit_code == code
    assert text in result.stderr and result.stdout == ""
    assert "Traceback" not in result.stderr


def test_the_remedy_and_notes_are_shown_on_lines_of_their_own():
    error = InputError("is NaN", where="r.xyz", expected="numbers", remedy="mend it")
    error.add_note("and no summary.json could be written")
    result = runner.invoke(failing(error), ["work"])
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert lines == [
        "error: r.xyz: is NaN",
        "expected: numbers",
        "remedy: mend it",
        "and no summary.json could be written",
    ]


def test_unexpected_errors_advise_debug_and_debug_shows_where():
    app = failing(ZeroDivisionError("division by zero"))
    assert "molgen --debug" in runner.invoke(app, ["work"]).stderr
    result = runner.invoke(app, ["--debug", "work"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "raise error" in result.stderr


@pytest.mark.parametrize("code", [0, 3, 4])
def test_a_command_chooses_its_own_exit_code(code):
    assert runner.invoke(failing(typer.Exit(code)), ["work"]).exit_code == code


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["--seed"]])
def test_usage_errors_exit_with_2(arguments):
    result = runner.invoke(main.app, arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Usage: " in result.stderr


def test_help_and_version():
    text = runner.invoke(main.app, ["--help"]).stdout
    listed = [line.split()[1] for line in text.partition("Commands")[2].splitlines() if line.startswith("│ ")]
    assert [name for name in listed if name in main.COMMANDS] == list(main.COMMANDS)
    for name in main.COMMANDS:
        assert runner.invoke(main.app, [name, "--help"]).exit_code == 0
    assert runner.invoke(main.app, ["--version"]).stdout == f"molgen {molgen.__version__}\n"


def test_json_on_stdout_and_logs_on_stderr(capsys):
    common.log("reading [3] files")
    common.warn("element [Si] is outside the weights")
    common.print_json({"barrier_forward_kcal": float("nan")})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"barrier_forward_kcal": None}
    assert captured.err == "reading [3] files\nwarning: element [Si] is outside the weights\n"


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert common.resolve_device("auto") == common.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(
        InputError, match=r"--device: no device 'cuda:1' on this machine(.|\n)*remedy: give --device cpu"
    ):
        common.resolve_device("cuda:1")
    with pytest.raises(InputError, match=r"--device: unknown device 'gpu'\n  expected: auto, cpu, cuda"):
        common.resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert common.resolve_device("auto") == torch.device("cuda")
    assert common.resolve_device("cuda:0") == torch.device("cuda:0")


def test_dtypes():
    assert common.resolve_dtype("float64") is torch.float64
    with pytest.raises(InputError, match=r"--dtype: unknown precision 'float16'\n  expected: float32 or float64"):
        common.resolve_dtype("float16")


def test_doctor_finds_this_installation_usable():
    result = runner.invoke(main.app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    failed = [check for check in report["checks"] if check["status"] == "fail"]
    assert not failed and report["usable"] and result.exit_code == 0
    names = {check["name"] for check in report["checks"]}
    assert {"molgen", "torch", "tblite", "sella", "cpu", "openmm platforms", "GFN2-xTB", "equivariance"} <= names
    assert all(check["advice"] for check in report["checks"] if check["status"] != "ok")


def test_doctor_reports_damaged_weights_and_goes_on(tmp_path):
    save_checkpoint(tmp_path / "good", {"x": torch.ones(2, 3)}, {})
    save_checkpoint(tmp_path / "bad", {"x": torch.ones(2, 3)}, {})
    with (tmp_path / "bad" / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    bad, good = doctor._weights(tmp_path)
    assert (bad.name, bad.status) == ("bad", "fail") and "wrong hash" in bad.detail and "reinstall" in bad.advice
    assert (good.name, good.status) == ("good", "ok") and good.detail.startswith("6 numbers")
    (none,) = doctor._weights(tmp_path / "nowhere")
    assert none.status == "fail" and "molgen train ts" in none.advice


def test_doctor_says_what_to_install_and_exits_with_3(monkeypatch):
    monkeypatch.setattr(doctor, "_REQUIRED", (("molgen-no-such", "molgen_no_such", "the networks"),))
    monkeypatch.setattr(doctor, "_xtb_forces", lambda: iter([1 / 0]))
    result = runner.invoke(main.app, ["doctor"])
    assert result.exit_code == 3
    assert "FAIL   molgen-no-such   not installed (the networks)" in result.stdout
    assert "-> pip install molgen-no-such" in result.stdout
    assert "FAIL   GFN2-xTB         ZeroDivisionError" in result.stdout and "equivariance" in result.stdout
    assert "molgen is not usable yet" in result.stdout


def test_doctor_sees_wrong_forces(monkeypatch):
    from molgen.potentials.xtb import XtbPotential

    right = XtbPotential.energy_and_forces
    monkeypatch.setattr(
        XtbPotential, "energy_and_forces", lambda self, x: (right(self, x)[0], 1.01 * right(self, x)[1])
    )
    (check,) = doctor._xtb_forces()
    assert check.status == "fail" and check.advice


def test_doctor_sees_broken_equivariance(monkeypatch):
    from molgen.nn.trunk import Trunk

    right = Trunk.forward

    def leaning(self, *args, **kwargs):
        scalars, vectors, odd = right(self, *args, **kwargs)
        return scalars, vectors + 1e-6, odd  # a constant vector does not turn with the molecule

    monkeypatch.setattr(Trunk, "forward", leaning)
    (check,) = doctor._trunk_equivariance()
    assert check.status == "fail" and check.advice


WORK_AND_DIE = """
import os, signal, sys
from molgen.cli import main
from molgen.run import Run

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with it ignored

@main.app.command()
def work(out: str):
    with Run(out, "work", {}) as run:
        run.results.append("first")
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
        signal.pause()

main.main()
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_ctrl_c_and_the_end_of_a_batch_job_keep_partial_results(tmp_path, signal):
    command = [sys.executable, "-c", WORK_AND_DIE, "work", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SIGNAL": signal}, timeout=300)
    assert result.returncode == 130, result.stderr
    assert "interrupted" in result.stderr and "Traceback" not in result.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["results"] == ["first"]


def test_a_log_gets_a_line_of_progress_now_and_then(monkeypatch: pytest.MonkeyPatch):
    lines, now = [], [100.0]
    monkeypatch.setattr(common, "log", lines.append)
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    with common.stages("sampling", every=60) as progress:
        for now[0] in (101.0, 161.0, 170.0, 230.0):
            progress("cooling: 450 K", int(now[0]), 1000)
    assert lines == ["cooling: 450 K (161 of 1000)", "cooling: 450 K (230 of 1000)"]


def test_one_is_no_plural():
    assert [counted(n, "reaction") for n in (0, 1, 2)] == ["0 reactions", "1 reaction", "2 reactions"]
    assert [counted(1, "search"), counted(2, "search"), counted(2, "guess")] == ["1 search", "2 searches", "2 guesses"]


def test_a_report_lists_what_the_run_wrote_and_nothing_else(tmp_path):
    (tmp_path / "mine.xyz").touch()
    for name in ("ts.xyz", "manifest.json"):
        (tmp_path / name).write_text(json.dumps({"files": ["ts.xyz", "state"]}))
    (tmp_path / "state").mkdir()
    assert common.written(tmp_path) == f"{tmp_path}/: manifest.json, ts.xyz"
    assert common.written(tmp_path / "state") == f"{tmp_path}/state/"
