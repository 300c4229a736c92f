"""What goes to stdout: results alone, whatever a calculator prints, and commands that a shell takes as they stand."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from test_tsmodel import built_in

from molgen.cli import data, train
from molgen.cli.peptide import _advice
from molgen.data.exclusion import excluded_keys
from molgen.data.reactions import Reaction, save_npz
from molgen.errors import InputError
from molgen.pool import WorkerPool
from molgen.potentials.ase import calculator_from_spec
from molgen.run import Run
from molgen.tsgen.training import load_training_data
from molgen.workflows.reactions import plan_of
from molgen.workflows.relevel import level_plan

MODULE = "print('imported')\nfrom test_printing import Loud\n"


class Loud(Calculator):
    """Says whatever it does."""

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self):
        super().__init__()
        sys.stdout.write("made\n")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        sys.stdout.write("asked\n")
        self.results = {"energy": 1.0, "forces": np.zeros((len(self.atoms), 3))}


class LoudWork:
    """Prints as Python does, and as a library does."""

    def __init__(self):
        sys.stdout.write("made\n")

    def __call__(self, number: int) -> int:
        sys.stdout.write("asked\n")
        os.write(1, b"by a library\n")
        return number


def test_what_a_calculator_prints_goes_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loud_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    potential = calculator_from_spec("loud_module:Loud", numbers=[1, 1])
    potential.energy_and_forces(np.array([[[0, 0, 0], [0, 0, 0.7]]]))
    said = capsys.readouterr()
    assert said.out == "" and said.err.split() == ["imported", "made", "asked"]
    sys.stdout.write("a result\n")
    assert capsys.readouterr().out == "a result\n"


def test_what_a_worker_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    pool = WorkerPool(LoudWork, 1)
    assert [answer for _, answer in pool.run([(1,)])] == [1]
    pool.close()
    said = capfd.readouterr()
    assert said.out == "" and all(text in said.err for text in ("made", "asked", "by a library"))


def test_printed_commands_are_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my nice model"
    summary = {"results": [{"best_step": 1, "step": 2, "best_score": 0.1}]}
    run = cast(Run, SimpleNamespace(directory=out))
    train._report(summary, run, False, train._rmsd, "ts R.xyz P.xyz")
    words = shlex.split(capsys.readouterr().out.partition("use it: ")[2])
    assert words == ["molgen", "ts", "R.xyz", "P.xyz", "--weights", str(out / "best")]
    tuned: dict[str, Any] = {"prose_compat": False, "verdict": "biased", "finetuning": [{"kept": True}], "smc": None}
    advice = _advice({**tuned, "weights": {"khat": 0.9, "n": 1000}}, out)
    assert shlex.quote(str(out / "adapter")) in advice
    out.mkdir()
    save_npz(out / "reactions.npz", named(2), ["train", "val"])
    (line,) = data._training(out)
    assert shlex.split(line)[-4:] == ["--data", str(out / "reactions.npz"), "--init", "tsgen"]
    save_npz(out / "alone.npz", named(1), "train")
    with pytest.raises(InputError, match="add a|make more") as refused:
        load_training_data(out / "alone.npz")
    assert shlex.quote(str(out / "alone.npz")) in str(refused.value.remedy)


def named(count: int) -> list[Reaction]:
    return [replace(r, name=str(k)) for k, r in enumerate([r for r in built_in() if r.ts is not None][:count])]


def test_the_suffix_of_a_set_may_be_in_capitals(tmp_path: Path) -> None:
    save_npz(tmp_path / "set.npz", named(2), ["train", "val"])
    capitals = (tmp_path / "set.npz").rename(tmp_path / "SET.NPZ")
    assert [len(part) for part in load_training_data(capitals)] == [1, 1]
    assert level_plan([capitals])[0].rows == [0, 1]
    assert excluded_keys([f"{capitals}:val"]) < excluded_keys([str(capitals)])
    plan, _ = plan_of([capitals], [], guess="sqrt")
    assert plan.excluded == excluded_keys([f"{capitals}:val"]), "the reactions of its other splits"
