"""What a calculator finds with distances held: guesses of saddles, and reactions that have none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from molgen.geometry.bonds import bonding_changes, bonding_differences, distance_matrix, radius_sums
from molgen.potentials.base import Potential
from molgen.potentials.composite import DistanceRestraint, SumPotential
from molgen.saddle.descent import DESCENT_CALLS, relax
from molgen.saddle.judge import LEAST_BARRIER
from molgen.saddle.modes import gradient

HALF_MADE, HALF_MADE_H = 1.45, 1.25  # length over the sum of covalent radii: C-C 2.2, C-H 1.34 Angstrom
HALVINGS = 4  # of the way from reactant to product, to find where the one falls back and the other begins
APART = (1.45, 1.8, 2.2)  # likewise, the steps by which a bond is drawn out: C-C to 3.3 Angstrom
STIFFNESS = 40.0  # eV/Angstrom^2
# eV/Angstrom, what draws atoms together at most: first less than tears bonds, so that a chain folds; then what it takes
PULLS = (2.0, np.inf)
FMAX = 0.1  # eV/Angstrom
FALL_FMAX = 0.005  # eV/Angstrom; pieces so far apart hardly pull


def relaxation_calls(atoms: int) -> int:
    """Gradients that the relaxation of so many atoms with distances held may take: a long chain has to fold first."""
    return max(60, 4 * atoms)


def half_made(
    potential: Potential, positions: np.ndarray, reactant: np.ndarray, product: np.ndarray, max_calls: int | None = None
) -> np.ndarray:
    """`positions` relaxed with every bond that is made or broken held at the length it has in many a transition state.

    Unlike an interpolation it needs no likeness of the two sides: a side by itself is a start, in whatever
    conformation, and which of its equivalent hydrogens is which does not matter.

    Args:
        potential: of the N atoms. positions, reactant, product: (N, 3) Angstrom. max_calls: gradients at most,
            :func:`relaxation_calls` unless given.

    Returns:
        (N, 3) Angstrom; `positions` as they are where no bond changes.

    Raises:
        CalculatorError: the calculator failed.
    """
    pairs, lengths = _on_the_way(potential.numbers, reactant, product, 0.5)
    return _held(potential, positions, pairs, lengths, max_calls) if len(pairs) else positions


def as_made(
    potential: Potential, positions: np.ndarray, reactant: np.ndarray, product: np.ndarray, max_calls: int | None = None
) -> np.ndarray:
    """`positions` relaxed with every bond that is made or broken held at the length it has there.

    Args, Returns, Raises:
        As of :func:`half_made`.
    """
    pairs, _ = _on_the_way(potential.numbers, reactant, product, 0.5)
    lengths = distance_matrix(positions)[pairs[:, 0], pairs[:, 1]]
    return _held(potential, positions, pairs, lengths, max_calls) if len(pairs) else positions


def bisected(
    potential: Potential, positions: np.ndarray, reactant: np.ndarray, product: np.ndarray, max_calls: int | None = None
) -> np.ndarray:
    """`positions` relaxed with the bonds that change held where the reactant ends and the product begins.

    As :func:`half_made`, but how far the bonds are made is found by halving the way: what is held is let go, and the
    side it relaxes to, by its bonds or by most of them, is the one to move away from.

    Args, Returns, Raises:
        As of :func:`half_made`; `max_calls` is for each relaxation.
    """
    numbers, x, (low, high) = potential.numbers, np.asarray(positions, dtype=float), (0.0, 1.0)
    max_calls = max_calls or relaxation_calls(len(numbers))
    if not len(_on_the_way(numbers, reactant, product, 0.5)[0]):
        return x

    def missing(y: np.ndarray) -> tuple[int, int]:
        return bonding_differences(numbers, y, reactant), bonding_differences(numbers, y, product)

    for _ in range(HALVINGS):
        middle = (low + high) / 2
        x = _held(potential, x, *_on_the_way(numbers, reactant, product, middle), max_calls)
        freed = relax(potential, x, fmax=FMAX, max_calls=max_calls, stop=lambda at: 0 in missing(at.positions))
        to_reactant, to_product = missing(freed.positions)
        low, high = (middle, high) if to_reactant <= to_product else (low, middle)
    return _held(potential, x, *_on_the_way(numbers, reactant, product, (low + high) / 2), max_calls)


class Fall(NamedTuple):
    """Pieces that become another side without a barrier.

    Attributes:
        apart, together: (N, 3) Angstrom, the pieces held apart, and what they fall to.
        energies: eV, of these two.
    """

    apart: np.ndarray
    together: np.ndarray
    energies: tuple[float, float]

    @property
    def lost(self) -> float:
        """eV."""
        return self.energies[0] - self.energies[1]


def falls(potential: Potential, start: np.ndarray, here: np.ndarray, there: np.ndarray) -> Fall | None:
    """How the pieces of one side, `here`, become the other without a barrier; None where they do not.

    The bonds that only `there` has are drawn out step by step, those that only `here` has are closed, and the rest
    relaxed. Where a minimisation from there, nothing held, ends in `there`, its path goes down all the way: no saddle
    is on it. On a flat stretch it may stop at once; then it begins nearer, where that is no higher than LEAST_BARRIER.

    Args:
        potential: of the N atoms. start: (N, 3) Angstrom, the pieces side by side: `there` where that is one piece.
        here, there: (N, 3) Angstrom, the two sides.

    Raises:
        CalculatorError: the calculator failed.
    """
    numbers, x = potential.numbers, np.asarray(start, dtype=float)
    changes = bonding_changes(numbers, there, here)
    pairs = np.array([*changes.broken, *changes.formed])
    drawn, ways = np.arange(len(pairs)) < len(changes.broken), []
    for factor in APART:
        x = _held(potential, x, pairs, np.where(drawn, factor, 1.0) * _bond_lengths(numbers, pairs))
        ways.append((gradient(potential, x)[0], x))
    far, apart = ways[-1]
    lowest = far
    for energy, x in ways[::-1]:
        lowest = min(lowest, energy)
        if energy > lowest + LEAST_BARRIER or bonding_differences(numbers, x, here):
            return None
        fall = relax(potential, x, fmax=FALL_FMAX, max_calls=DESCENT_CALLS)
        if not bonding_differences(numbers, fall.positions, there):
            return Fall(apart, fall.positions, (far, fall.energy))
    return None


def _on_the_way(numbers: np.ndarray, reactant: np.ndarray, product: np.ndarray, share: float):
    """The pairs (P, 2) bonded on one side only, and the lengths (P,), Angstrom, to hold them at, `share` of the way
    from reactant to product; all are half made in the middle."""
    changes = bonding_changes(numbers, reactant, product)
    pairs = np.array([*changes.broken, *changes.formed], dtype=np.int64).reshape(-1, 2)
    half = np.where((numbers[pairs] == 1).any(1), HALF_MADE_H, HALF_MADE)
    made = np.where(np.arange(len(pairs)) < len(changes.broken), 1 - share, share)
    return pairs, (1 + 2 * (half - 1) * (1 - made)) * _bond_lengths(numbers, pairs)


def _bond_lengths(numbers: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(P,) sums of covalent radii, Angstrom."""
    return radius_sums(numbers)[pairs[:, 0], pairs[:, 1]]


def _held(
    potential: Potential, x: np.ndarray, pairs: np.ndarray, lengths: np.ndarray, max_calls: int | None = None
) -> np.ndarray:
    """`x` relaxed with the distances of `pairs` (P, 2) held at `lengths` (P,)."""
    x, max_calls = np.asarray(x, dtype=float), max_calls or relaxation_calls(len(potential.numbers))
    for pull in PULLS:
        held = SumPotential(potential, DistanceRestraint(pairs, lengths, STIFFNESS, potential.numbers, pull))
        x = relax(held, x, fmax=FMAX, max_calls=max_calls).positions
    return x
