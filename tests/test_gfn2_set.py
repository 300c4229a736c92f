"""The reactions in data/sets: what the engine says of them holds, and none is one of the test set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from molgen.data.exclusion import excluded_keys, reaction_keys
from molgen.data.reactions import Reaction, load_npz, read_column
from molgen.potentials.xtb import XtbPotential

PATH = Path(__file__).parent.parent / "data/sets/gfn2_reactions.npz"


@pytest.fixture(scope="module")
def reactions() -> list[Reaction]:
    return load_npz(PATH)


def test_ten_thousand_reactions(reactions: list[Reaction]) -> None:
    assert len(reactions) >= 10_000 and {r.level for r in reactions} == {"GFN2-xTB"}
    assert {r.name for r in load_npz(PATH, "train")}.isdisjoint(r.name for r in load_npz(PATH, "val"))
    assert len({r.name for r in reactions}) == len(reactions)


@pytest.mark.parametrize("row", [7, 3001, 5555, 8009, 10_100])
def test_a_row_is_what_gfn2_says(row: int, reactions: list[Reaction]) -> None:
    """Energies to float32's rounding of the positions, and a transition state without forces between two wells."""
    r, energies = reactions[row], read_column(PATH, "energies")[row]
    potential = XtbPotential(r.numbers, r.charge, r.spin)
    assert r.ts is not None
    found, forces = potential.energy_and_forces(np.stack([r.reactant, r.ts, r.product]))
    assert found == pytest.approx(energies, abs=2e-3)
    assert np.linalg.norm(forces[1], axis=1).max() < 0.03, "eV/A"
    assert found[1] > found[0] and found[1] > found[2]


def test_no_reaction_of_validation_or_test(reactions: list[Reaction], shared: Path) -> None:
    held = excluded_keys([f"{shared / 'data/rdb7_ts.npz'}:test,val"])
    for r in reactions[::25]:
        assert not reaction_keys(r.numbers, r.reactant, r.product, r.charge) & held, r.name
