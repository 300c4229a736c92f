"""Handedness of a geometry: signed volumes of tetrahedral centres, mirror images, stereoisomers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols

from molgen.geometry.align import rmsd
from molgen.geometry.bonds import bond_graph, distance_matrix, radius_sums
from molgen.geometry.labelled import isomorphisms, labelled_graph

# A tetrahedral carbon's normalised volume is 0.51 (unit vectors to the neighbours); below half of it a centre is too
# flat, as in an umbrella inversion, for its handedness to mean anything.
_FLAT = 0.25
# Of the sum of covalent radii. C=C has 0.88, C=N 0.86, N=N 0.88; an amide's C-N 0.93, a diene's middle bond 0.95.
_DOUBLE = 0.92
_STRAIGHT = 0.25  # sine of the angle at a double bond below which there is no cis and trans
_TURNED = 0.5  # cosine of a torsion; cis above it, trans below its negative
_PYRAMIDS = (15, 16, 33, 34, 52)  # elements that keep their hand with three neighbours

OpenStereo = tuple[frozenset[str], frozenset[str]]  # of reactant and product, named as by `stereo_name`
NONE_OPEN: OpenStereo = (frozenset(), frozenset())


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

    Of all ways to lay equivalent atoms of one upon the other it is that of the fewest differences, so a centre between
    two equal neighbours counts where others depend on it: *cis* and *trans* on a ring are told apart. Centres are atoms
    with four neighbours, and S, Se, Te, P and As with three; no two alone-standing hydrogens, or halogens, on them.
    Amide bonds and others that turn count as single; allenes and hindered rotors are not looked at.
    """
    a, b = (np.asarray(x, dtype=float) for x in (positions_a, positions_b))
    numbers = np.asarray(numbers)
    bonds = bond_graph(numbers, a) & bond_graph(numbers, b)
    units = [*_centres(numbers, bonds), *_double_bonds(numbers, bonds, a, b)]
    found = [unit for unit in units if _differs(a, b, unit, np.arange(len(numbers)))]
    for images in _symmetries(numbers, bonds) if found else ():
        other = [unit for unit in units if _differs(a, b, unit, images)]
        found = min(found, other, key=len)
        if not found:
            break
    return [stereo_name(numbers, unit.atoms) for unit in found]


def stereo_name(numbers, atoms: Iterable[int]) -> str:
    """A stereocentre, "C3", or a double bond, "C1=C2", by its atoms."""
    return "=".join(f"{chemical_symbols[int(numbers[k])]}{k}" for k in sorted(atoms))


class _Unit(NamedTuple):
    """What can be one way or the other: a centre and its neighbours, or a double bond and those of both its ends."""

    atoms: tuple[int, ...]
    neighbours: tuple[tuple[int, ...], ...]


def _told_apart(numbers: np.ndarray, bonds: np.ndarray, atoms: np.ndarray) -> bool:
    """Whether no two of `atoms` are of one element with no other neighbour."""
    alone = [int(numbers[k]) for k in atoms if bonds[k].sum() == 1]
    return len(set(alone)) == len(alone)


def _centres(numbers: np.ndarray, bonds: np.ndarray) -> list[_Unit]:
    pyramids = np.isin(numbers, _PYRAMIDS) & (bonds.sum(1) == 3)
    near = {int(k): np.flatnonzero(bonds[k]) for k in np.flatnonzero((bonds.sum(1) == 4) | pyramids)}
    return [_Unit((k,), (tuple(n.tolist()),)) for k, n in near.items() if _told_apart(numbers, bonds, n)]


def _double_bonds(numbers: np.ndarray, bonds: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[_Unit]:
    short = _DOUBLE * radius_sums(numbers)
    double = bonds & (distance_matrix(a) < short) & (distance_matrix(b) < short)
    found = []
    for i, j in combinations(np.flatnonzero(numbers > 1).tolist(), 2):
        others = [np.setdiff1d(np.flatnonzero(bonds[k]), [i, j]) for k in (i, j)]
        if double[i, j] and all(1 <= len(o) <= 2 and _told_apart(numbers, bonds, o) for o in others):
            found.append(_Unit((i, j), tuple(tuple(o.tolist()) for o in others)))
    return found


def _differs(a: np.ndarray, b: np.ndarray, unit: _Unit, images: np.ndarray) -> bool:
    """Whether `unit` is one way in `a`, the other in `b`, atom k of `a` being `images[k]` of `b`. What is too flat or
    half turned is neither."""
    there = [[int(images[k]) for k in near] for near in unit.neighbours]
    if len(unit.atoms) == 1:
        centre = unit.atoms[0]
        values = _handedness(a, centre, unit.neighbours[0]), _handedness(b, int(images[centre]), there[0])
        return values[0] * values[1] < 0 and min(map(abs, values)) > _FLAT
    i, j = unit.atoms
    values = _turn_cosine(a, i, j, unit.neighbours), _turn_cosine(b, int(images[i]), int(images[j]), there)
    return values[0] * values[1] < 0 and min(map(abs, values)) > _TURNED


def _handedness(x: np.ndarray, centre: int, near: Sequence[int]) -> float:
    """Of four neighbours their normalised volume; of three that of the directions to them from the centre, which is
    0.8 to 1 for a pyramid."""
    if len(near) == 4:
        return float(_normalised(x, [list(near)])[0])
    arms = x[list(near)] - x[centre]
    return float(np.linalg.det(arms / np.linalg.norm(arms, axis=1, keepdims=True)))


def _symmetries(numbers: np.ndarray, bonds: np.ndarray) -> Iterator[np.ndarray]:
    """Ways (N,) to lay the molecule upon itself; hydrogens follow the atom they are on."""
    terminal = (numbers == 1) & (bonds.sum(1) == 1)
    skeleton = np.flatnonzero(~terminal)
    hydrogens = [np.flatnonzero(bonds[k] & terminal) for k in skeleton]
    graph = labelled_graph(
        [(int(numbers[k]), len(h)) for k, h in zip(skeleton, hydrogens, strict=True)],
        [(i, j, 0) for i, j in np.argwhere(np.triu(bonds[np.ix_(skeleton, skeleton)])).tolist()],
    )
    for match in isomorphisms(graph, graph):
        images = np.arange(len(numbers))
        for k, image in enumerate(match):
            images[skeleton[k]] = skeleton[image]
            images[hydrogens[k]] = hydrogens[image]
        yield images


def _turn_cosine(x: np.ndarray, i: int, j: int, others: Sequence[Sequence[int]]) -> float:
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
