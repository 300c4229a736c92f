"""Every example, from Python and from the shell; saddles against those found without molgen (examples/expected.json).

They run in a copy, so that the repository stays as it is.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ts_cases import EXAMPLES, EXPECTED

# A boat is as right an answer as the chair of expected.json: its frequency, cm-1, and how much higher its barriers may
# be, kcal/mol.
CONFORMERS = {"claisen": (-388.0, 3.0)}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the example."""
    copy = tmp_path / request.param
    shutil.copytree(EXAMPLES / request.param, copy, ignore=shutil.ignore_patterns("runs"))
    return copy


def check(name: str, best: dict[str, Any]) -> None:
    expected = EXPECTED[name]
    forward, back = (expected[f"barrier_{way}_from_descent_kcal"] for way in ("forward", "reverse"))
    assert best["verdict"] == "intended", best["reason"]
    found = (best["barrier_forward_kcal"], best["barrier_reverse_kcal"])
    if name in CONFORMERS and best["imaginary_frequency_cm"] > expected["imaginary_frequency_cm"] + 60:
        frequency, higher = CONFORMERS[name]
        assert best["imaginary_frequency_cm"] == pytest.approx(frequency, abs=30)
        assert forward - 0.5 < found[0] < forward + higher and back - 3 < found[1] < back + higher
        return
    assert best["imaginary_frequency_cm"] == pytest.approx(expected["imaginary_frequency_cm"], abs=30)
    assert found == (pytest.approx(forward, abs=0.5), pytest.approx(back, abs=0.5))


def test_every_example_is_here() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert folders == {*EXPECTED, "peptide", "fes_hcn", "fes_ala2"}
    assert folders >= {"hcn", "malonaldehyde", "claisen", "diels_alder", "vinyl_alcohol", "cyclobutene"}
    for name, expected in EXPECTED.items():
        files = {"run.py", "run.sh", *expected["reactant"], *expected["product"]}
        assert files <= {path.name for path in (EXAMPLES / name).iterdir()}


@pytest.mark.parametrize("folder", sorted(EXPECTED), indirect=True)
def test_python(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    result = runpy.run_path("run.py")["result"]
    assert capsys.readouterr().out.strip() == str(result)
    check(folder.name, result.best.summary())


def shell(folder: Path, away: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The script of an example, started elsewhere with options passed on."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", str(folder / "run.sh"), *options],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(EXAMPLES.parent)},
        cwd=away,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("folder", sorted(EXPECTED), indirect=True)
def test_shell(folder: Path, tmp_path: Path) -> None:
    """Exit 4 (a guess was lost to the calculator) is no failure."""
    done = shell(folder, tmp_path, "--samples", "2")
    assert done.returncode in (0, 4), done.stderr
    assert "intended" in done.stdout and "barrier" in done.stdout
    summary = json.loads((folder / "runs" / folder.name / "summary.json").read_text())
    check(folder.name, summary["results"][0])
    assert (folder / "runs" / folder.name / "barrier.png").is_file()


@pytest.mark.parametrize("folder", ["peptide"], indirect=True)
def test_peptide(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3 (k-hat) is possible with so few samples."""
    done = shell(folder, tmp_path, "-n", "100")
    assert done.returncode in (0, 3), done.stderr
    assert "phi 2" in done.stdout and (folder / "runs" / "aagy" / "ramachandran.png").is_file()
    text = (folder / "run.py").read_text().replace("n=2000", "n=100")
    (folder / "run.py").write_text(text)
    ensemble = runpy.run_path(str(folder / "run.py"))["ensemble"]
    assert len(ensemble) == 100
    assert capsys.readouterr().out.startswith(ensemble.verdict)
