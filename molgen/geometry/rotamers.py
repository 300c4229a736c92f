"""Structures turned about their single bonds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.transform import Rotation

from molgen.geometry.bonds import distance_matrix, fragments, overlapping, radius_sums

SINGLE = 0.94  # of the sum of covalent radii, shorter than which a bond does not turn: C-C 1.43, an amide's C-N 1.38 A
CROWDED = 1.15  # likewise, what atoms that are not bonded keep apart
STRAIGHT = np.cos(np.radians(170.0))
FLAT = np.radians(350.0)  # sum of the angles at an atom of three neighbours, beyond which it is trigonal
THIRDS, HALVES = (0.0, 120.0, 240.0), (0.0, 180.0)  # degrees; by halves between trigonal atoms: *s-cis* and *s-trans*
ROTORS = 6  # turned at most, the ones nearest to the atoms that react: 728 combinations


class Rotor(NamedTuple):
    """A bond to turn about: atoms `moving` (N,) boolean, `end` among them, about the line from `start` to `end`, by
    one of `turns` (degrees)."""

    start: int
    end: int
    moving: np.ndarray
    turns: tuple[float, ...]

    def turned(self, positions: np.ndarray, degrees: float) -> np.ndarray:
        """(N, 3), the smaller side turned."""
        origin = positions[self.end]
        axis = origin - positions[self.start]
        turn = Rotation.from_rotvec(degrees * axis / np.linalg.norm(axis), degrees=True)
        return np.where(self.moving[:, None], turn.apply(positions - origin) + origin, positions)


def rotors(numbers, positions: np.ndarray, bonds: np.ndarray) -> list[Rotor]:
    """The bonds about which a structure has rotamers: single, in no ring, and neither end a methyl group or the like.

    Args:
        numbers: (N,) atomic numbers. positions: (N, 3) Angstrom. bonds: (N, N) boolean; of a transition state those
            that are made or broken among them, so that a forming ring is one.
    """
    ratio, found = distance_matrix(positions) / radius_sums(numbers), []
    for i, j in np.argwhere(np.triu(bonds)):
        if ratio[i, j] < SINGLE or any(_turns_nothing(numbers, positions, bonds, *ends) for ends in ((i, j), (j, i))):
            continue
        cut = bonds.copy()
        cut[i, j] = cut[j, i] = False
        part = fragments(cut)
        if part[i] != part[j]:
            sides = part == part[i], part == part[j]
            start, end, moving = (i, j, sides[1]) if sides[1].sum() <= sides[0].sum() else (j, i, sides[0])
            turns = HALVES if _conjugated(positions, bonds, i, j) else THIRDS
            found.append(Rotor(int(start), int(end), moving, turns))
    return found


def rotamers(
    numbers, positions: np.ndarray, bonds: np.ndarray, most: int, reacting: Sequence[int] = ()
) -> list[np.ndarray]:
    """At most `most` structures (N, 3), each with some of its rotors turned, without clashes.

    Those with the fewest rotors turned come first, and of these the rotors nearest to the atoms `reacting`.

    Args:
        numbers, positions, bonds: as of :func:`rotors`.
    """
    found, turning = rotors(numbers, positions, bonds), []
    steps = shortest_path(bonds, unweighted=True)
    if len(reacting):
        found.sort(key=lambda rotor: steps[np.ix_([rotor.start, rotor.end], list(reacting))].min())
    found = found[:ROTORS]
    every = product(*(range(len(rotor.turns)) for rotor in found))
    ways = sorted(every, key=lambda way: (np.count_nonzero(way), way[::-1]))
    for way in ways[1:]:
        if len(turning) == most:
            break
        x = np.asarray(positions, dtype=float)
        for rotor, turn in zip(found, way, strict=True):
            x = rotor.turned(x, rotor.turns[turn]) if turn else x
        near = distance_matrix(x) < CROWDED * radius_sums(numbers)
        if not overlapping(numbers, x) and not (near & ~bonds & ~np.eye(len(bonds), dtype=bool)).any():
            turning.append(x)
    return turning


def _turns_nothing(numbers, positions: np.ndarray, bonds: np.ndarray, at: int, other: int) -> bool:
    """Whether turning atom `at` about its bond to `other` gives no other structure: it carries nothing, three alike
    such as the hydrogens of a methyl group, or goes on in a line."""
    carried = [k for k in np.flatnonzero(bonds[at]) if k != other]
    if len(carried) == 1:
        to_carried, to_other = (positions[k] - positions[at] for k in (carried[0], other))
        return bool(to_carried @ to_other < STRAIGHT * np.linalg.norm(to_carried) * np.linalg.norm(to_other))
    alike = len({int(numbers[k]) for k in carried}) == 1 and all(bonds[k].sum() == 1 for k in carried)
    return not carried or (len(carried) == 3 and alike)


def _conjugated(positions: np.ndarray, bonds: np.ndarray, *ends: int) -> bool:
    """Whether a bond joins two trigonal atoms, or one to an atom that carries one more, such as the oxygen of an ester:
    it prefers a plane."""
    flat = [_flat(positions, bonds, k) for k in ends]
    return all(flat) or (any(flat) and any(bonds[k].sum() == 2 for k in ends))


def _flat(positions: np.ndarray, bonds: np.ndarray, at: int) -> bool:
    """Whether an atom has three neighbours in its plane."""
    arms = positions[bonds[at]] - positions[at]
    if len(arms) != 3:
        return False
    arms /= np.linalg.norm(arms, axis=1, keepdims=True)
    angles = np.arccos(np.clip([arms[i] @ arms[j] for i, j in ((0, 1), (0, 2), (1, 2))], -1, 1))
    return bool(angles.sum() > FLAT)
