"""`molgen ts`: what it writes and prints, its exit codes, and every bad input by its text."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from ts_cases import EXPECTED, noise_weights, sides
from typer.testing import CliRunner, Result

from molgen.checkpoint import TENSORS_FILE
from molgen.cli import main
from molgen.cli.ts_report import beside
from molgen.workflows.ts_many import side_of

RESULT_KEYS = {
    "verdict", "confidence", "barrier_forward_kcal", "barrier_reverse_kcal", "imaginary_frequency_cm", "gradient_calls",
}  # fmt: skip
INPUTS = {"reactant.xyz", "product.xyz"}
OF_A_SADDLE = {"path.xyz", "modes.molden", "barrier.png"}
FILES = {"ts.xyz", "guesses.xyz", "summary.json", "manifest.json"} | INPUTS | OF_A_SADDLE
HCN = [str(files[0]) for files in sides("hcn")]
runner = CliRunner()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Guesses: the sqrt-distance guess, then the same with noise."""
    return noise_weights(tmp_path_factory.mktemp("noise"))


@pytest.fixture
def molgen(weights: Path, tmp_path: Path) -> Callable[..., Result]:
    """`molgen ts ...` with the noise weights, writing to tmp_path/out."""

    def run(*arguments: Any) -> Result:
        given = [str(a) for a in arguments]
        options = [] if "--weights" in given else ["--weights", str(weights)]
        return runner.invoke(main.app, ["ts", *given, *options, "--out", str(tmp_path / "out")])

    return run


def frames(path: Path) -> list[Atoms]:
    found = read(path, index=":")
    assert isinstance(found, list)
    return found


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def whole(folder: Path) -> bool:
    """No temporary file is left, and what is there can be read."""
    names = {path.name for path in folder.iterdir()}
    for path in folder.glob("*.xyz"):
        frames(path)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    return names <= FILES


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A full run with the shipped weights."""
    out = tmp_path_factory.mktemp("full") / "out"
    return runner.invoke(main.app, ["ts", *HCN, "--samples", "3", "--out", str(out)]), out


def test_full_run_prints_what_a_chemist_wants(full: tuple[Result, Path]) -> None:
    result, out = full
    assert result.exit_code in (0, 4), result.stderr
    lines = {line[:21].strip(): line[21:] for line in result.stdout.splitlines()}
    assert lines["verdict"].startswith("intended")
    forward, back = (float(word) for word in lines["barrier"].split() if word[0].isdigit())
    assert forward == pytest.approx(EXPECTED["hcn"]["barrier_forward_kcal"], abs=0.3)
    assert back == pytest.approx(EXPECTED["hcn"]["barrier_reverse_kcal"], abs=0.3)
    assert "kcal/mol forward" in lines["barrier"]
    mode = lines["imaginary frequency"]
    assert mode.endswith("i cm-1") and float(mode.split("i")[0]) == pytest.approx(1426, abs=30)
    assert "gradient calls" in lines["cost"] and lines["cost"].endswith(" s")
    assert str(out) in lines["files"] and all(name in lines["files"] for name in FILES)
    assert "bonds broken: H0-C1; formed: H0-N2" in result.stderr


def test_full_run_leaves_whole_files(full: tuple[Result, Path]) -> None:
    _, out = full
    assert {path.name for path in out.iterdir()} == FILES
    summary = json.loads((out / "summary.json").read_text())
    saddles, guesses, path = (frames(out / name) for name in ("ts.xyz", "guesses.xyz", "path.xyz"))
    results = summary["results"]
    assert len(saddles) == len(results) and len(guesses) >= 3
    for atoms, entry in zip(saddles, results, strict=True):
        assert entry.keys() >= RESULT_KEYS
        assert atoms.info["verdict"] == entry["verdict"]
        if entry["energy"] is not None:  # a guess that was not refined has none
            assert atoms.get_potential_energy() == pytest.approx(entry["energy"], abs=1e-6)
    best = results[0]
    assert best["verdict"] == "intended" and best["gradient_calls"] > 0
    assert best["barrier_forward_kcal"] == pytest.approx(EXPECTED["hcn"]["barrier_forward_kcal"], abs=0.3)
    assert saddles[0].info["barrier_forward_kcal"] == pytest.approx(best["barrier_forward_kcal"], abs=1e-6)
    assert best["imaginary_frequency_cm"] < 0
    energies = np.array([atoms.get_potential_energy() for atoms in path])
    assert 0 < energies.argmax() < len(path) - 1 and energies.max() == pytest.approx(best["energy"], abs=1e-6)
    relative = [atoms.info["relative_kcal"] for atoms in path]
    assert relative[0] == 0 and max(relative) == pytest.approx(best["barrier_forward_kcal"], abs=1e-3)
    width, height = png_size(out / "barrier.png")
    assert 600 <= width <= 2400 and 400 <= height <= 1800


def test_full_run_summary_says_how_it_went(full: tuple[Result, Path]) -> None:
    _, out = full
    summary = json.loads((out / "summary.json").read_text())
    assert summary["command"] == "ts" and summary["status"] in ("ok", "partial") and summary["seed"] == 0
    assert summary["energy_calls"] >= sum(entry["gradient_calls"] for entry in summary["results"])
    assert sum(summary["validity"].values()) == len(summary["results"]) and summary["checkpoint_hash"] is None
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["reactant"] == HCN[0] and manifest["settings"]["samples"] == 3


def test_json_is_the_only_thing_on_stdout(molgen: Callable[..., Result], tmp_path: Path) -> None:
    result = molgen(*HCN, "--samples", 1, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_no_refine_keeps_the_guesses(molgen: Callable[..., Result], tmp_path: Path) -> None:
    result = molgen(*HCN, "--samples", 2, "--no-refine")
    assert result.exit_code == 0 and "unverified: not refined" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - OF_A_SADDLE
    for a, b in zip(frames(tmp_path / "out" / "ts.xyz"), frames(tmp_path / "out" / "guesses.xyz"), strict=True):
        assert np.allclose(a.positions, b.positions)


def test_fragments_joined_by_commas(molgen: Callable[..., Result]) -> None:
    reactant, product = sides("formaldehyde")
    result = molgen(reactant[0], ",".join(map(str, product)), "--no-refine", "--samples", 1)
    assert result.exit_code == 0 and "formed: H2-H3" in result.stderr


def test_smiles(molgen: Callable[..., Result]) -> None:
    result = molgen("--smiles", "C#N>>[C-]#[NH+]", "--samples", 1, "--json")
    assert result.exit_code == 0
    best = json.loads(result.stdout)["results"][0]
    assert best["barrier_forward_kcal"] == pytest.approx(EXPECTED["hcn"]["barrier_forward_kcal"], abs=0.3)


def test_nothing_verified_is_exit_3(molgen: Callable[..., Result], tmp_path: Path) -> None:
    """A surface of springs; the class and its arguments come by name."""
    result = molgen(
        *HCN, "--calculator", "ts_cases:NoSaddle", "--calculator-kwargs", '{"stiffness": 4.0}', "--samples", 1
    )
    assert result.exit_code == 3 and result.stdout.startswith("verdict              not a saddle: ")
    said = " ".join(result.stderr.split())
    assert "the reactant is no minimum of this calculator: relaxed, it becomes another molecule" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "gate_failed" and whole(tmp_path / "out")


def test_where_no_reason_is_seen_advice_is_given(molgen: Callable[..., Result]) -> None:
    result = molgen(*HCN, "--samples", 1, "--max-calls", 3)
    said = " ".join(result.stderr.split())
    assert result.exit_code == 3 and "may take several steps, or" in said, "there is no path.xyz to look at"


def test_a_guess_lost_to_the_calculator_is_exit_4(molgen: Callable[..., Result], tmp_path: Path) -> None:
    """The very first gradient fails, so the first guess is lost."""
    result = molgen(
        *HCN, "--calculator", "ts_cases:Unreliable", "--calculator-kwargs", '{"fail_at": [1]}', "--samples", 3
    )
    assert result.exit_code == 4, result.stderr
    assert result.stdout.startswith("verdict              intended") and "1 x calculator failed" in result.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "partial" and summary["results"][-1]["verdict"] == "failed"


def test_every_guess_lost_to_the_calculator_is_exit_2(molgen: Callable[..., Result], tmp_path: Path) -> None:
    result = molgen(*HCN, "--calculator", "ts_cases:Unreliable", "--calculator-kwargs", '{"always": true}')
    assert result.exit_code == 2 and result.stdout == ""
    assert "failed on every guess" in result.stderr and "SCF not converged" in result.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "failed"
    assert whole(tmp_path / "out")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_exit_130_and_keeps_partial_results(sent: signal.Signals, weights: Path, tmp_path: Path) -> None:
    """Sent when the calculator hangs in a later guess and the first one has been verified."""
    common = ["ts", *HCN, "--weights", str(weights), "--no-lower"]
    once = runner.invoke(main.app, [*common, "--samples", "1", "--out", str(tmp_path / "once"), "--json"])
    calls = json.loads(once.stdout)["energy_calls"]
    out, marker = tmp_path / "out", tmp_path / "marker"
    kwargs = json.dumps({"wait_at": calls + 1, "marker": str(marker)})
    # background jobs of a shell start with SIGINT ignored, and so would this process
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", start + "from molgen.cli.main import main; main()", *common, "--samples", "3"]
    command += ["--out", str(out), "--calculator", "ts_cases:Unreliable", "--calculator-kwargs", kwargs]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        deadline = time.monotonic() + 300
        while not marker.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(sent)
        try:
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.kill()  # a hung process must not hang the suite
    assert process.returncode == 130, stderr
    assert stdout == "" and "interrupted; what was finished is kept" in stderr and "Traceback" not in stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["results"][0]["verdict"] == "intended" == frames(out / "ts.xyz")[0].info["verdict"]
    assert len(frames(out / "guesses.xyz")) == 3 and whole(out)


def test_an_earlier_run_is_not_overwritten_unasked(molgen: Callable[..., Result], tmp_path: Path) -> None:
    assert molgen(*HCN, "--no-refine", "--samples", 1).exit_code == 0
    (tmp_path / "out" / "mine.txt").write_text("kept")
    before = (tmp_path / "out" / "ts.xyz").read_text()
    refused = molgen(*HCN, "--no-refine", "--samples", 2)
    assert refused.exit_code == 2 and "the output folder is not empty" in refused.stderr
    assert "--overwrite" in refused.stderr and (tmp_path / "out" / "ts.xyz").read_text() == before
    assert molgen(*HCN, "--no-refine", "--samples", 2, "--overwrite").exit_code == 0
    assert len(frames(tmp_path / "out" / "ts.xyz")) == 2 and (tmp_path / "out" / "mine.txt").read_text() == "kept"


# Bad input: one broken file at a time, the other is HCN's. The text must name the place and the fault.

XYZ = {
    "empty": ("", ["the file is empty", "expected: the reactant as an xyz file"]),
    "nan": ("3\n\nH 0 0 nan\nC 0 0 1.07\nN 0 0 2.22\n", ["atom 0: a coordinate is nan", "finite Angstrom"]),
    "coincident": (
        "3\n\nH 0 0 0\nC 0 0 1.07\nN 0 0 1.0701\n",
        ["atoms 1 and 2 coincide (0.00 Angstrom apart)", "check for a duplicated atom"],
    ),
    "composition": (
        "4\n\nH 0 0 0\nC 0 0 1.07\nN 0 0 2.22\nO 0 0 3.5\n",
        ["reactant is CHNO, product is CHN", "the same atoms on both sides", "add the missing fragment"],
    ),
    "element": ("3\n\nH 0 0 0\nXx 0 0 1.07\nN 0 0 2.22\n", ["line 4: unknown element 'Xx'"]),
    "cut short": ("5\n\nH 0 0 0\nC 0 0 1.07\nN 0 0 2.22\n", ["line 1: 5 atoms announced, 3 found"]),
    "500 atoms": (
        "500\n\n" + "".join(f"C {k % 8 * 1.5} {k // 8 % 8 * 1.5} {k // 64 * 1.5}\n" for k in range(500)),
        ["500 atoms", "expected: at most", "cut the system down"],
    ),
    "words": ("HCN\nis a gas\n", ["line 1: 'HCN' is not a number of atoms"]),
}


@pytest.mark.parametrize("fault", XYZ)
def test_bad_files(fault: str, molgen: Callable[..., Result], tmp_path: Path) -> None:
    content, texts = XYZ[fault]
    bad = tmp_path / "bad.xyz"
    bad.write_text(content)
    refused(molgen(bad, HCN[1]), tmp_path, [str(bad), *texts])


def test_one_atom(molgen: Callable[..., Result], tmp_path: Path) -> None:
    for name, height in (("a.xyz", 0.0), ("b.xyz", 1.0)):
        (tmp_path / name).write_text(f"1\n\nH 0 0 {height}\n")
    refused(molgen(tmp_path / "a.xyz", tmp_path / "b.xyz"), tmp_path, ["a.xyz: one atom cannot react"])


def test_identical_ends(molgen: Callable[..., Result], tmp_path: Path) -> None:
    """Also when one of them is turned and its atoms are in another order."""
    turned = read(HCN[0])
    assert isinstance(turned, Atoms)
    turned = turned[[1, 2, 0]]
    turned.rotate(70, (1, 2, 3))
    turned.write(tmp_path / "turned.xyz")
    texts = [
        "reactant and product are the same structure",
        "expected: two different minima",
        "remedy: where atoms of a kind",
    ]
    refused(molgen(HCN[0], HCN[0]), tmp_path, texts)
    refused(molgen(HCN[0], tmp_path / "turned.xyz"), tmp_path, texts)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["nowhere.xyz", HCN[1]], ["nowhere.xyz: no such file", "expected: the reactant as an xyz file"]),
        ([HCN[0]], ["product: nothing given", "--smiles"]),
        ([*HCN, "--spin", "1"], ["14 electrons (CHN, charge 0) cannot have 1 unpaired", "even number", "--charge"]),
        ([*HCN, "--charge", "1", "--spin", "0"], ["13 electrons (CHN, charge 1) cannot have 0 unpaired", "odd number"]),
        ([*HCN, "--charge", "99"], ["charge 99 leaves -85 electrons"]),
        ([*HCN, "--calculator", "gfn3"], ["calculator 'gfn3': unknown calculator", "gfn2, gfn1", "module:Class"]),
        ([*HCN, "--calculator", "nowhere:Emt"], ["cannot import module 'nowhere'", "install the package"]),
        ([*HCN, "--calculator", "ase.calculators.emt:Emt"], ["has no class 'Emt'", "EMT", "spelling and capitals"]),
        ([*HCN, "--calculator", "ase.calculators.emt:EMT", "--calculator-kwargs", "{nope"], ["is not a JSON object"]),
        ([*HCN, "--calculator", "ase.calculators.emt:EMT", "--calculator-kwargs", "[1]"], ["is not a JSON object"]),
        (
            [*HCN, "--calculator", "ts_cases:NoSaddle", "--calculator-kwargs", '{"hardness": 1}'],
            ["NoSaddle(hardness=1) raised TypeError", "--calculator-kwargs"],
        ),
        ([*HCN, "--calculator-kwargs", '{"accuracy": 1}'], ["takes the argument solvent alone"]),
        ([*HCN, "--samples", "0"], ["--samples", "0"]),
        ([*HCN, "--verify", "slowly"], ["--verify: unknown method 'slowly'", "quick, irc, none"]),
        ([*HCN, "--weights", "nowhere"], ["nowhere: no such checkpoint folder", "molgen doctor"]),
        ([*HCN, "--smiles", "C#N>>[C-]#[NH+]"], ["both files and SMILES given"]),
        (["--smiles", "C#N"], ["C#N"]),
        ([*HCN, "--device", "tpu"], ["unknown device 'tpu'"]),
    ],
)
def test_bad_arguments(
    arguments: Sequence[str], texts: Sequence[str], molgen: Callable[..., Result], tmp_path: Path
) -> None:
    refused(molgen(*arguments), tmp_path, texts)


def test_truncated_weights(molgen: Callable[..., Result], tmp_path: Path) -> None:
    folder = noise_weights(tmp_path / "weights")
    data = (folder / TENSORS_FILE).read_bytes()
    (folder / TENSORS_FILE).write_bytes(data[:-100])
    texts = [f"truncated: {len(data) - 100} bytes", f"expected: {len(data)} bytes", "download the checkpoint again"]
    refused(molgen(*HCN, "--weights", folder), tmp_path, texts)


def test_altered_weights(molgen: Callable[..., Result], tmp_path: Path) -> None:
    folder = noise_weights(tmp_path / "weights")
    data = bytearray((folder / TENSORS_FILE).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS_FILE).write_bytes(bytes(data))
    refused(molgen(*HCN, "--weights", folder), tmp_path, ["wrong hash: SHA-256 ", "download the checkpoint again"])


def test_weights_of_another_model(molgen: Callable[..., Result], tmp_path: Path) -> None:
    import torch

    from molgen.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "weights", {"w": torch.zeros(2)}, {"model": "prose"})
    refused(molgen(*HCN, "--weights", tmp_path / "weights"), tmp_path, ["holds a model of kind 'prose'", "'tsgen'"])


def test_element_outside_the_weights_is_a_warning(molgen: Callable[..., Result]) -> None:
    reactant, product = sides("cl_ch3cl")
    result = molgen(reactant[0], product[0], "--charge", "-1")
    assert result.exit_code == 0
    assert "warning: the weights do not know Cl: using the sqrt-distance guess and physics only" in result.stderr
    assert "guess                sqrt-distance" in result.stdout


def refused(result: Result, tmp_path: Path, texts: Sequence[str]) -> None:
    """Exit 2 with every text in the message, no traceback, nothing on stdout, nothing written."""
    assert result.exit_code == 2, result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_comma_may_be_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p,1.xyz").touch()
    assert side_of("p,1.xyz") == "p,1.xyz" and side_of("p, 1.xyz") == ["p", "1.xyz"]
    assert side_of(",".join(["a.xyz"] * 99)) == ["a.xyz"] * 99, "longer than any file name"


def test_where_the_search_goes_on_from_one_step(tmp_path: Path) -> None:
    def told(known: str, charge: int, spin: int = 0, calculator: str = "gfn2", solvent=None, way=None) -> str:
        best, reaction = SimpleNamespace(known=known), SimpleNamespace(charge=charge, spin=spin)
        return beside(SimpleNamespace(best=best, reaction=reaction, mechanism=way), tmp_path, calculator, solvent)

    files = [tmp_path / name for name in ("reactant.xyz", "intermediate.xyz", "product.xyz")]
    assert told("reactant", -1).endswith(f"go on with molgen ts {files[1]} {files[2]} --charge -1)")
    assert told("product", 0).endswith(f"go on with molgen ts {files[0]} {files[1]})")
    assert told("product", 0, 2, "gfn1").endswith(" --spin 2 --calculator gfn1)")
    assert told("reactant", 0, solvent="water").endswith(" --solvent water)") and "in vain" in told(
        "reactant", 0, way=1
    )
    assert told("", 0) == ""
    (tmp_path / "path.xyz").touch()
    assert told("", 0) == " (path.xyz shows what lies beside the best saddle)"
