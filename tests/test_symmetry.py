"""Rotational symmetry numbers against those of the point groups."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation

from molgen.geometry.symmetry import is_symmetric, symmetry_number

NUMBERS = {
    "HCN": 1, "CH3OH": 1, "CH3CHO": 1, "H2": 2, "CO2": 2, "C2H2": 2, "H2O": 2, "H2CO": 2, "O3": 2, "H2O2": 2,
    "cyclobutene": 2, "trans-butane": 2, "NH3": 3, "CH3Cl": 3, "C3H4_C3v": 3, "isobutane": 3, "C2H4": 4, "C3H4_D2d": 4,
    "cyclobutane": 4, "C2H6": 6, "BF3": 6, "CH4": 12, "CCl4": 12, "C6H6": 12,
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_of_known_molecules_however_turned_shuffled_and_shaken(name: str) -> None:
    atoms, rng = molecule(name), np.random.default_rng(0)
    assert symmetry_number(atoms.numbers, atoms.positions) == NUMBERS[name]
    for _ in range(5):
        order = rng.permutation(len(atoms))
        x = Rotation.random(random_state=rng).apply(atoms.positions[order] + [1.0, 2.0, 3.0])
        x += 0.01 * rng.normal(size=x.shape)
        assert symmetry_number(atoms.numbers[order], x) == NUMBERS[name]


def test_of_an_octahedron_an_atom_and_molecules_that_are_almost_symmetric() -> None:
    octahedron = np.concatenate([np.zeros((1, 3)), 1.56 * np.eye(3), -1.56 * np.eye(3)])
    assert symmetry_number(np.array([16] + [9] * 6), octahedron) == 24
    assert symmetry_number(np.array([18]), np.zeros((1, 3))) == 1
    methane = molecule("CH4")
    methane.numbers[1] = 9  # CH3F: three
    assert symmetry_number(methane.numbers, methane.positions) == 3
    stretched = molecule("CH4")
    stretched.positions[1] *= 1.3
    assert symmetry_number(stretched.numbers, stretched.positions) == 3
    line = Atoms("NNO", [[0, 0, 0], [0, 0, 1.13], [0, 0, 2.32]])
    assert symmetry_number(line.numbers, line.positions) == 1
    mirror_images = Atoms("CHFClBr", [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert symmetry_number(mirror_images.numbers, mirror_images.positions) == 1
    assert not is_symmetric(mirror_images.numbers, mirror_images.positions)


@pytest.mark.parametrize("name", ["HCN", "H2O2", "CH3OH", "CH3CHO", "NH3", "isobutane", "C6H6", "CH4"])
def test_symmetry_of_any_kind(name: str) -> None:
    """C1h and C2 as well as higher ones; a little noise is none, and one atom moved is the end of it."""
    atoms, rng = molecule(name), np.random.default_rng(1)
    assert is_symmetric(atoms.numbers, atoms.positions + 0.01 * rng.normal(size=atoms.positions.shape))
    if len(atoms) > 3:
        assert not is_symmetric(atoms.numbers, atoms.positions + 0.3 * rng.normal(size=atoms.positions.shape))
