"""Handedness: exact volumes, symmetry operations, and molecules made by hand."""

import numpy as np
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from molgen.geometry.bonds import bond_graph
from molgen.geometry.chirality import (
    inverted_centres,
    signed_volumes,
    tetrahedral_quadruples,
    wrong_handedness,
)

_UNIT = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


def _chfclbr():
    """Bromochlorofluoromethane, its carbon first."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    return np.array([6, 1, 9, 17, 35]), np.vstack([[0, 0, 0], corners * [[1.09], [1.36], [1.76], [1.94]]])


def test_volume_of_a_known_tetrahedron():
    assert signed_volumes(_UNIT, [[0, 1, 2, 3]]).item() == 1 / 6
    assert signed_volumes(_UNIT, [[0, 2, 1, 3]]).item() == -1 / 6
    assert signed_volumes(np.stack([_UNIT, -_UNIT]), [[0, 1, 2, 3]]).tolist() == [[1 / 6], [-1 / 6]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_volumes_survive_rotation_and_change_sign_on_reflection(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(6, 3))
    quadruples = np.array([[0, 1, 2, 3], [5, 2, 4, 1]])
    volume = signed_volumes(points, quadruples)
    moved = points @ Rotation.random(rng=rng).as_matrix().T + rng.normal(size=3)
    np.testing.assert_allclose(signed_volumes(moved, quadruples), volume, atol=1e-12)
    np.testing.assert_allclose(signed_volumes(moved * [1, 1, -1], quadruples), -volume, atol=1e-12)


def test_quadruples_are_the_neighbours_of_four_coordinate_atoms():
    atoms = molecule("CH3CONH2")
    bonds = bond_graph(atoms.numbers, atoms.positions)
    (quadruple,) = tetrahedral_quadruples(bonds)  # the methyl carbon only
    (centre,) = [c for c in range(len(atoms)) if bonds[c].sum() == 4]
    assert quadruple.tolist() == np.flatnonzero(bonds[centre]).tolist()
    water = molecule("H2O")
    assert tetrahedral_quadruples(bond_graph(water.numbers, water.positions)).shape == (0, 4)


def test_enantiomer_is_wrong_and_a_rotated_copy_is_not():
    numbers, x = _chfclbr()
    quadruples = tetrahedral_quadruples(bond_graph(numbers, x))
    turned = x @ Rotation.from_euler("xyz", [1.0, 2.0, 3.0]).as_matrix().T + 4.0
    rng = np.random.default_rng(0)
    assert not wrong_handedness(turned + 0.05 * rng.normal(size=x.shape), x, quadruples)
    assert wrong_handedness(-turned + 0.05 * rng.normal(size=x.shape), x, quadruples)
    assert wrong_handedness(-turned, x)  # by RMSD alone


def test_one_inverted_centre_of_a_larger_molecule_is_found():
    atoms = molecule("C3H8")
    bonds = bond_graph(atoms.numbers, atoms.positions)
    quadruples = tetrahedral_quadruples(bonds)
    middle = next(c for c in range(11) if (atoms.numbers[bonds[c]] == 6).sum() == 2)
    a, b = [k for k in np.flatnonzero(bonds[middle]) if atoms.numbers[k] == 1]
    swapped = atoms.positions.copy()
    swapped[[a, b]] = swapped[[b, a]]
    assert inverted_centres(swapped, atoms.positions, quadruples).sum() == 1
    assert wrong_handedness(swapped, atoms.positions, quadruples)


def test_flat_centres_and_planar_molecules_have_no_handedness():
    numbers, x = _chfclbr()
    quadruples = tetrahedral_quadruples(bond_graph(numbers, x))
    flat = x.copy()
    flat[1:, 2] *= 0.1  # a square-planar centre on its way through inversion
    assert not inverted_centres(flat, -x, quadruples).any()
    benzene = molecule("C6H6").positions
    assert not wrong_handedness(-benzene, benzene)
