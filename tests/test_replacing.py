"""Commands that shall replace or continue an earlier run and are refused: it stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fes_cases import run_wells
from test_tsmodel import built_in
from typer.testing import CliRunner

from molgen.cli import main
from molgen.data.reactions import save_npz
from molgen.errors import InputError
from molgen.run import Run
from molgen.workflows.fes_problem import Problem

runner = CliRunner()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(folder: Path, command: str, *files: str) -> dict[Path, bytes]:
    """A finished run with `files` in `folder`; what it wrote."""
    with Run(folder, command, {}) as run:
        for name in files:
            run.write_text(name, "days of work")
    return contents(folder)


@pytest.fixture
def smiles(tmp_path: Path) -> Path:
    path = tmp_path / "m.smi"
    path.write_text("Cl\n")
    return path


@pytest.mark.parametrize("way", ["--overwrite", "--resume"])
def test_reactions_without_an_end(tmp_path: Path, smiles: Path, way: str) -> None:
    before = finished(tmp_path / "rx", "data reactions", "reactions.npz", "attempts.jsonl")
    refused = runner.invoke(
        main.app, ["data", "reactions", str(smiles), "--guess", "sqrt", "--out", str(tmp_path / "rx"), way]
    )
    assert refused.exit_code == 2 and "nothing says when to stop" in refused.stderr
    assert contents(tmp_path / "rx") == before


def test_dynamics_at_temperatures_that_the_flow_does_not_know(tmp_path: Path) -> None:
    before = finished(tmp_path, "data md", "AG.npz")
    options = ["--time", "1ps", "--temperatures", "300,400", "--flow", "prose", "--out", str(tmp_path), "--overwrite"]
    refused = runner.invoke(main.app, ["data", "md", "AG", *options])
    assert refused.exit_code == 2 and "the flow does not know 300 K" in refused.stderr
    assert contents(tmp_path) == before


def test_the_set_that_is_excluded_is_not_replaced(tmp_path: Path, smiles: Path) -> None:
    out = tmp_path / "rx"
    with Run(out, "data reactions", {}) as run:
        save_npz(run.path("reactions.npz"), [replace(built_in()[0], name="1")], ["train"])
    before = contents(out)
    options = ["--exclude", f"{out}/reactions.npz:train", "--guess", "sqrt", "--attempts", "1", "--workers", "1"]
    refused = runner.invoke(main.app, ["data", "reactions", str(smiles), *options, "--out", str(out), "--overwrite"])
    assert refused.exit_code == 2 and "lies in it, and would be removed" in " ".join(refused.stderr.split())
    assert contents(out) == before


def test_free_energies_whose_start_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable(*_: object) -> None:
        raise InputError("no frame of the short simulation can be used")

    before = finished(tmp_path, "fes", "fes.dat")
    monkeypatch.setattr(Problem, "sampler", unusable)
    with pytest.raises(InputError, match="no frame"):
        run_wells(out=tmp_path, overwrite=True)
    assert contents(tmp_path) == before
