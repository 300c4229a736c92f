"""Potentials made of potentials: sums, biases, restraints (to a reference geometry: `analytic.Harmonic`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from molgen.errors import InputError
from molgen.potentials.base import Potential


class SumPotential(Potential):
    """The sum of potentials of one molecule; a sample fails if any term does, with every term's reason.

    `calls` counts samples here and, separately, in each term. Numbers, charge and spin are the first term's.
    """

    def __init__(self, *terms: Potential):
        if not terms:
            raise InputError("no terms", where="SumPotential", expected="at least one potential")
        super().__init__(terms[0].numbers, terms[0].charge, terms[0].spin)
        self.terms = terms
        for i, term in enumerate(terms):
            if len(term.numbers) != len(self.numbers):
                raise InputError(
                    f"term {i} ({type(term).__name__}) has {len(term.numbers)} atoms, term 0 {len(self.numbers)}",
                    where="SumPotential",
                    expected="potentials of one molecule",
                )

    def _evaluate(self, positions, forces):
        total, total_forces = np.zeros(len(positions)), np.zeros(positions.shape) if forces else None
        for term in self.terms:
            if total_forces is None:
                total += term.energy(positions)
            else:
                energy, force = term.energy_and_forces(positions)
                total += energy
                total_forces += force
            for i, reason in term.failures.items():
                self.failures[i] = "; ".join(filter(None, (self.failures.get(i), f"{type(term).__name__}: {reason}")))
        return total, total_forces


class BiasPotential(Potential):
    """An energy given as a function with its gradient, to be added to a potential with `SumPotential`.

    Args:
        function: positions (B, N, 3) -> energies (B,) in eV and gradients dU/dx (B, N, 3) in eV/Angstrom (not forces).
        numbers: (N,) atomic numbers.
    """

    def __init__(self, function: Callable, numbers):
        super().__init__(numbers)
        self.function = function

    def _evaluate(self, positions, forces):
        energy, gradient = map(np.asarray, self.function(positions))
        if energy.shape != positions.shape[:1] or gradient.shape != positions.shape:
            raise InputError(
                f"bias returned shapes {energy.shape} and {gradient.shape}",
                where="BiasPotential",
                expected=f"energies {positions.shape[:1]} and gradients {positions.shape}",
            )
        return energy, -gradient


class DistanceRestraint(Potential):
    """U = 1/2 sum_p k_p (|x_i - x_j| - d_p)^2 over pairs p = (i, j).

    Args:
        pairs: (P, 2) atom indices.
        distances: d, Angstrom, a number or (P,).
        stiffness: k, eV/Angstrom^2, a number or (P,).
        numbers: (N,) atomic numbers.
        strongest_pull: eV/Angstrom, with which a pair is drawn together at most; further apart U is linear.
    """

    def __init__(self, pairs, distances, stiffness, numbers, strongest_pull: float = np.inf):
        super().__init__(numbers)
        self.pairs = np.asarray(pairs, dtype=int).reshape(-1, 2)
        if not ((self.pairs >= 0) & (self.pairs < len(self.numbers))).all() or (np.ptp(self.pairs, axis=1) == 0).any():
            raise InputError(
                f"pairs {self.pairs.tolist()}",
                where="DistanceRestraint",
                expected=f"pairs of two different atoms, 0 to {len(self.numbers) - 1}",
            )
        self.distances, self.stiffness, self.strongest_pull = distances, stiffness, strongest_pull
        one_hot = np.eye(len(self.numbers))
        self._incidence = one_hot[self.pairs[:, 0]] - one_hot[self.pairs[:, 1]]  # (P, N): x_i - x_j of each pair

    def _evaluate(self, positions, forces):
        apart = self._incidence @ positions
        length = np.linalg.norm(apart, axis=-1)
        stretch = length - self.distances
        force = np.minimum(self.stiffness * stretch, self.strongest_pull)
        energy = (force * (stretch - 0.5 * force / self.stiffness)).sum(-1)
        if not forces:
            return energy, None
        pull = (force / length)[..., None] * apart
        return energy, -self._incidence.T @ pull
