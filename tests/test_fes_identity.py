"""A run is resumed only where variables, structures and energies are still the same, and its seconds count on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from fes_cases import SQUARE, START, TINY, T, run_wells, wells
from test_workflow_fes import ATOMS, cage

from molgen.errors import InputError
from molgen.potentials.analytic import DoubleWell
from molgen.variables import custom
from molgen.workflows import fes
from molgen.workflows.fes import run_fes

SETTINGS = replace(TINY, sampler=replace(TINY.sampler, width=0.05), schedule=replace(TINY.schedule, start=36.0))
CVS = ["d = distance 0 1", "r = rmsd ref.xyz"]
OTHER = np.array([1.0, 1.0, 1.0001]) * SQUARE


def run(folder: Path, cvs: list[str] = CVS, starts: np.ndarray = SQUARE, **options: Any) -> dict:
    given = {"starts": starts, "ranges": [(0.8, 2.4), (-0.1, 1.5)], "settings": SETTINGS, "out": folder / "out"}
    return run_fes(cage(), cvs, T, **(given | options))[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cage")
    write(folder / "ref.xyz", Atoms(ATOMS, SQUARE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run(folder)["ensemble_hash"]


@pytest.mark.parametrize(("change", "key"), [
    ({}, None),
    ({"cvs": ["d = distance 0 2", CVS[1]]}, "collective variables"),
    ({"starts": OTHER}, "starting structures"),
    ({"walls": ["distance 0 3 < 3.3"]}, "variables of walls"),
    ({"reference": OTHER}, "collective variables"),
    ({"starts": SQUARE + 1e-9}, None),
])  # fmt: skip
def test_what_is_no_longer_the_same_is_refused(
    finished: tuple[Path, str], change: dict[str, Any], key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = finished
    monkeypatch.chdir(folder)
    write(folder / "ref.xyz", Atoms(ATOMS, change.pop("reference", SQUARE)))
    if key is None:
        assert run(folder, resume=True, **change)["ensemble_hash"] == expected
        return
    with pytest.raises(InputError, match=f"cannot resume: '{key}' was"):
        run(folder, resume=True, **change)


def test_another_potential_is_refused_and_rounding_is_not(tmp_path: Path) -> None:
    """Also where both have the same energy at the start, the bottom of the well."""

    def x(by: float) -> list:
        return [custom("x", lambda p: p[:, 0, 0] + by, "A")]

    first = run_wells(out=tmp_path / "out", cvs=x(0.0))[1]
    again = run_wells(out=tmp_path / "out", cvs=x(1e-9), resume=True, potential=DoubleWell(0.25 + 1e-9, tilt=0.05))[1]
    assert again["ensemble_hash"] == first["ensemble_hash"]
    for change, key in (
        ({"potential": DoubleWell(barrier=0.3, tilt=0.05)}, "energies"),
        ({"cvs": x(0.1)}, "collective variables"),
    ):
        with pytest.raises(InputError, match=f"cannot resume: '{key}' was"):
            run_wells(**{"out": tmp_path / "out", "cvs": x(0.0), "resume": True, **change})


def test_looking_costs_no_energy_of_the_run(tmp_path: Path) -> None:
    potential = wells()
    summary = run_wells(potential=potential, out=tmp_path / "out")[1]
    assert potential.calls == summary["energy_calls"] + len(START) + 4


def test_the_seconds_before_a_kill_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fes, "train_sampler", partial(fes.train_sampler, save_seconds=0.0))
    rounds = count(1)

    def slow(row: dict) -> None:
        time.sleep(0.4)
        if next(rounds) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_wells(out=tmp_path / "out", progress=slow)
    assert json.loads((tmp_path / "out/summary.json").read_text())["wall_seconds"] > 1.5
    (tmp_path / "out/summary.json").unlink()  # signal 9 leaves none
    _, summary = run_wells(out=tmp_path / "out", resume=True)
    assert summary["seconds"]["rounds"] > 1.1  # three slow rounds were saved
    assert sum(summary["seconds"].values()) <= summary["wall_seconds"] + 0.01
