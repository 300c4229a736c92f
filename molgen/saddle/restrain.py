"""Guesses by the calculator alone: a structure relaxed while the bonds that change are held half made."""

from __future__ import annotations

import numpy as np

from molgen.geometry.bonds import bond_graph, compare_bonds, radius_sums
from molgen.potentials.base import Potential
from molgen.potentials.composite import DistanceRestraint, SumPotential
from molgen.saddle.descent import relax

HALF_MADE, HALF_MADE_H = 1.45, 1.25  # length over the sum of covalent radii: C-C 2.2, C-H 1.34 Angstrom
STIFFNESS = 40.0  # eV/Angstrom^2
FMAX, MAX_CALLS = 0.1, 60  # eV/Angstrom, gradient calls


def half_made(
    potential: Potential, positions: np.ndarray, reactant: np.ndarray, product: np.ndarray, max_calls: int = MAX_CALLS
) -> np.ndarray:
    """`positions` relaxed with every bond that is made or broken held at the length it has in many a transition state.

    Unlike an interpolation it needs no likeness of the two sides: a side by itself is a start, in whatever
    conformation, and which of its equivalent hydrogens is which does not matter.

    Args:
        potential: of the N atoms. positions, reactant, product: (N, 3) Angstrom. max_calls: gradients at most.

    Returns:
        (N, 3) Angstrom; `positions` as they are where no bond changes.

    Raises:
        CalculatorError: the calculator failed.
    """
    numbers = potential.numbers
    changes = compare_bonds(bond_graph(numbers, reactant), bond_graph(numbers, product))
    if not changes.count:
        return positions
    pairs = np.array([*changes.broken, *changes.formed])
    i, j = pairs.T
    with_hydrogen = (numbers[i] == 1) | (numbers[j] == 1)
    lengths = np.where(with_hydrogen, HALF_MADE_H, HALF_MADE) * radius_sums(numbers)[i, j]
    held = SumPotential(potential, DistanceRestraint(pairs, lengths, STIFFNESS, numbers))
    return relax(held, np.asarray(positions, dtype=float), fmax=FMAX, max_calls=max_calls).positions
