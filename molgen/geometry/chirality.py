"""Handedness of a geometry: signed volumes of tetrahedral centres, mirror images, stereoisomers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from ase.data import chemical_symbols

from molgen.geometry.align import rmsd
from molgen.geometry.bonds import atom_classes, bond_graph, distance_matrix, radius_sums

# A tetrahedral carbon's normalised volume is 0.51 (unit vectors to the neighbours); below half of it a centre is too
# flat, as in an umbrella inversion, for its handedness to mean anything.
_FLAT = 0.25
# Of the sum of covalent radii. C=C has 0.88, C=N 0.86, N=N 0.88; an amide's C-N 0.93, a diene's middle bond 0.95.
_DOUBLE = 0.92
_STRAIGHT = 0.25  # sine of the angle at a double bond below which there is no cis and trans
_TURNED = 0.5  # cosine of a torsion; cis above it, trans below its negative


def tetrahedral_quadruples(bonds: np.ndarray) -> np.ndarray:
    """(Q, 4) neighbours, ascending, of every atom with exactly four neighbours in `bonds` (N, N).

    Intersect two connectivities first (`bonds_a & bonds_b`) for the centres that both sides share.
    """
    centres = np.flatnonzero(np.asarray(bonds).sum(axis=1) == 4)
    return np.array([np.flatnonzero(bonds[c]) for c in centres], dtype=np.int64).reshape(-1, 4)


def signed_volumes(positions, quadruples) -> np.ndarray:
    """(..., Q) signed volumes, Angstrom^3, of the tetrahedra a, b, c, d of each quadruple: (b-a) . ((c-a) x (d-a)) / 6.

    Args:
        positions: (..., N, 3) Angstrom.
        quadruples: (Q, 4) atom indices.

    The sign changes under reflection and under exchange of two atoms, and under nothing else.
    """
    corners = np.asarray(positions, dtype=float)[..., np.asarray(quadruples), :]
    return np.linalg.det(corners[..., 1:, :] - corners[..., :1, :]) / 6.0


def substituted_centres(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(Q, 5) of every atom with four neighbours in either connectivity (N, N), three of them in both.

    The three neighbours kept, ascending, the one that leaves and the one that enters.
    """
    four = (before.sum(axis=1) == 4) & (after.sum(axis=1) == 4) & ((before & after).sum(axis=1) == 3)
    rows = [
        [
            *np.flatnonzero(before[c] & after[c]),
            *np.flatnonzero(before[c] & ~after[c]),
            *np.flatnonzero(after[c] & ~before[c]),
        ]
        for c in np.flatnonzero(four)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def inverted_centres(positions_a, positions_b, quadruples, quadruples_b=None) -> np.ndarray:
    """(Q,) whether a centre has opposite handedness in two geometries; a centre flat in either does not count.

    `quadruples_b` (Q, 4): its corners in the second geometry, where one is another atom.
    """
    a = _normalised(positions_a, quadruples)
    b = _normalised(positions_b, quadruples if quadruples_b is None else quadruples_b)
    return (a * b < 0) & (np.abs(a) > _FLAT) & (np.abs(b) > _FLAT)


def wrong_handedness(pred, true, quadruples=None) -> bool:
    """Whether `pred` (N, 3) has the wrong handedness for `true` (N, 3), atoms in the same order.

    It has if its mirror image fits much better than itself: RMSD with reflection below half of the RMSD by proper
    rotation, and by more than 0.1 Angstrom; or if any tetrahedral centre among `quadruples` (Q, 4) is inverted
    (signed volumes of opposite sign, both at least half of an ideal tetrahedron's).
    """
    a, b = (torch.from_numpy(np.array(x, dtype=float)) for x in (pred, true))  # copied: may be read-only
    proper, either = float(rmsd(a, b)), float(rmsd(a, b, reflect=True))
    if either < 0.5 * proper and proper - either > 0.1:
        return True
    return quadruples is not None and len(quadruples) > 0 and bool(inverted_centres(pred, true, quadruples).any())


def stereo_differences(numbers, positions_a, positions_b) -> list[str]:
    """Stereocentres ("C3") and double bonds ("C1=C2") that differ between two geometries (N, 3) of the same bonds.

    Atoms are told apart by what they are bonded to, however far, but not by their number: a centre with two equal
    neighbours has no handedness. Amide bonds and others that turn count as single.
    """
    a, b = (np.asarray(x, dtype=float) for x in (positions_a, positions_b))
    bonds = bond_graph(numbers, a) & bond_graph(numbers, b)
    colours = atom_classes(numbers, bonds)[-1]

    def different(atoms: np.ndarray) -> bool:
        return len({colours[k] for k in atoms}) == len(atoms)

    def name(k: int) -> str:
        return f"{chemical_symbols[int(numbers[k])]}{k}"

    centres = [k for k in np.flatnonzero(bonds.sum(1) == 4).tolist() if different(np.flatnonzero(bonds[k]))]
    corners = np.array([np.flatnonzero(bonds[k]) for k in centres], dtype=np.int64).reshape(-1, 4)
    found = [name(k) for k, turned in zip(centres, inverted_centres(a, b, corners), strict=True) if turned]
    short = _DOUBLE * radius_sums(numbers)
    double = bonds & (distance_matrix(a) < short) & (distance_matrix(b) < short)
    for i, j in combinations(np.flatnonzero(np.asarray(numbers) > 1).tolist(), 2):
        others = [np.setdiff1d(np.flatnonzero(bonds[k]), [i, j]) for k in (i, j)]
        if double[i, j] and all(1 <= len(o) <= 2 and different(o) for o in others):
            cosines = [_turn_cosine(x, i, j, others) for x in (a, b)]
            if cosines[0] * cosines[1] < 0 and min(map(abs, cosines)) > _TURNED:
                found.append(f"{name(i)}={name(j)}")
    return found


def _turn_cosine(x: np.ndarray, i: int, j: int, others: Sequence[np.ndarray]) -> float:
    """Cosine of the turn about a bond i-j of what else is bound to i and to j (`others`, one atom or two each).

    The side of two atoms is the difference of their directions, so that it does not matter which comes first, and a
    strained bond that leans towards neither is still told by both. 0 where a side is next to straight.
    """
    axis = (x[j] - x[i]) / np.linalg.norm(x[j] - x[i])
    arms = []
    for centre, ends in zip((i, j), others, strict=True):
        unit = [(x[k] - x[centre]) / np.linalg.norm(x[k] - x[centre]) for k in ends]
        arm = unit[0] - unit[1] if len(unit) == 2 else unit[0]
        arm = arm - (arm @ axis) * axis
        if np.linalg.norm(arm) < _STRAIGHT:
            return 0.0
        arms.append(arm / np.linalg.norm(arm))
    return float(arms[0] @ arms[1])


def _normalised(positions, quadruples) -> np.ndarray:
    """Signed volumes with the four corners moved to unit distance from their mean: 0.51 for any regular tetrahedron."""
    corners = np.asarray(positions, dtype=float)[np.asarray(quadruples)]
    corners = corners - corners.mean(axis=1, keepdims=True)
    corners = corners / np.linalg.norm(corners, axis=-1, keepdims=True)
    return np.linalg.det(corners[:, 1:] - corners[:, :1]) / 6.0
