"""Vibrational modes: Hessian by finite differences of the gradient, mass-weighted, rigid motion projected out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ase.data import atomic_masses

from molgen.errors import CalculatorError
from molgen.potentials.base import Potential
from molgen.units import WAVENUMBER

STEP = 0.002  # Angstrom, of the atom that moves most
LINEAR = 0.01  # least rotation over the largest, below which atoms count as collinear
SOFT_STEP = 0.02  # Angstrom, the same along a soft mode
IMAGINARY = -50.0  # 1/cm; softer imaginary modes beside such a one are noise of free rotors, and are not counted
SOFT_IMAGINARY = -10.0  # 1/cm; where there is none, what counts of those that central differences confirm


@dataclass(frozen=True, eq=False)
class Modes:
    """Normal modes of a geometry of N atoms, without translations and rotations.

    Attributes:
        frequencies_cm: (M,) ascending, 1/cm, imaginary ones as negative numbers; M = 3N - 6, or 3N - 5 if linear.
        vectors: (M, N, 3) Cartesian displacements (not mass-weighted), unit norm.
        hessian: (3N, 3N) eV/Angstrom^2, symmetric.
        energy: eV.
        gradient_calls: gradients spent.
    """

    frequencies_cm: np.ndarray
    vectors: np.ndarray
    hessian: np.ndarray
    energy: float
    gradient_calls: int

    @property
    def imaginary(self) -> int:
        """How many modes are imaginary: below -50 1/cm; without any, below -10 (heavy groups that turn)."""
        stiff = int((self.frequencies_cm < IMAGINARY).sum())
        return stiff or int((self.frequencies_cm < SOFT_IMAGINARY).sum())

    def relabelled(self, order: np.ndarray) -> Modes:
        """With atom k what was atom `order[k]` (N,)."""
        return replace(self, vectors=self.vectors[:, order], hessian=relabelled_hessian(self.hessian, order))


def relabelled_hessian(hessian: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`hessian` (3N, 3N) with atom k what was atom `order[k]` (N,)."""
    rows = (3 * np.asarray(order)[:, None] + np.arange(3)).ravel()
    return hessian[np.ix_(rows, rows)]


def masses(numbers) -> np.ndarray:
    """(N,) standard atomic masses, amu."""
    return atomic_masses[np.asarray(numbers)]


def gradient(potential: Potential, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and gradient (N, 3) (eV/Angstrom) of one geometry (N, 3).

    Raises:
        CalculatorError: the calculator failed, with its reason.
    """
    energy, forces = potential.energy_and_forces(np.asarray(positions, dtype=float)[None])
    if potential.failures or not (np.isfinite(energy[0]) and np.isfinite(forces[0]).all()):
        reason = potential.failures.get(0, "energy or forces are not finite")
        raise CalculatorError(f"the calculator failed: {reason}", where="gradient call")
    return float(energy[0]), -forces[0]


def finite_difference_hessian(
    potential: Potential, positions: np.ndarray, *, central: bool = False
) -> tuple[np.ndarray, float]:
    """Hessian (3N, 3N) in eV/Angstrom^2, and the energy in eV, from M + 1 gradient calls (central: 2M + 1) for M modes.

    Displacements run along an orthonormal basis of the internal motions only; the rigid-motion block is set to zero.
    Forward differences leave a cubic term: 1 % of a stiff mode, but enough to turn a soft mode imaginary.

    Raises:
        CalculatorError: a displaced geometry failed.
    """
    x = np.asarray(positions, dtype=float)
    basis = internal_basis(x)
    energy, reference = gradient(potential, x)
    columns = []
    for b in basis.T:
        shift = (STEP * b / np.abs(b).max()).reshape(x.shape)
        size = np.linalg.norm(shift)
        _, plus = gradient(potential, x + shift)
        if central:
            _, minus = gradient(potential, x - shift)
            columns.append((plus - minus).ravel() / (2 * size))
        else:
            columns.append((plus - reference).ravel() / size)
    inner = basis.T @ np.array(columns).reshape(-1, x.size).T  # (-1, ...): a single atom has no modes
    return basis @ (inner + inner.T) @ basis.T / 2, energy


def rigid_motions(positions: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal basis (3N, 6 or 5) of translations and rotations; times sqrt(`weights`) (N,) if given."""
    x = np.asarray(positions, dtype=float)
    w = np.ones(len(x)) if weights is None else weights
    x = x - (w[:, None] * x).sum(0) / w.sum()
    axes = np.eye(3)
    motions = [np.tile(a, (len(x), 1)) for a in axes] + [np.cross(a, x) for a in axes]
    matrix = np.array([(np.sqrt(w)[:, None] * m).ravel() for m in motions]).T
    scale, least = np.linalg.norm(matrix, axis=0), 1e-4
    turning = np.linalg.svd(matrix[:, 3:], compute_uv=False)
    if turning[2] < LINEAR * turning[0]:  # noise about the axis of a line is no rotation
        scale[3:], least = turning[0], LINEAR
    u, s, _ = np.linalg.svd(matrix / np.maximum(scale, 1e-12), full_matrices=False)
    return u[:, s > least]


def internal_basis(positions: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal basis (3N, 3N - 6 or 3N - 5) of what :func:`rigid_motions` leaves."""
    rigid = rigid_motions(positions, weights)
    return np.linalg.svd(rigid, full_matrices=True)[0][:, rigid.shape[1] :]


def normal_modes(potential: Potential, positions: np.ndarray, *, central: bool = False, saddle: bool = True) -> Modes:
    """Frequencies and modes of `positions` (N, 3) in Angstrom.

    Args:
        potential: energies and forces.
        positions: (N, 3) Angstrom, at or near a stationary point (elsewhere rotations mix with vibrations).
        central: central instead of forward differences, at twice the calls. With forward differences, imaginary modes
            are checked by central ones along them (two calls each).
        saddle: an imaginary mode is expected, so a first one below -50 1/cm is not checked.

    Raises:
        CalculatorError: the calculator failed.
    """
    before = potential.calls
    hessian, energy = finite_difference_hessian(potential, positions, central=central)
    if not central:
        hessian = _imaginary_modes_checked(potential, positions, hessian, saddle)
    return modes_of(hessian, potential.numbers, positions, energy, potential.calls - before)


def modes_of(
    hessian: np.ndarray, numbers, positions: np.ndarray, energy: float = float("nan"), gradient_calls: int = 0
) -> Modes:
    """Modes of a Hessian (3N, 3N) already at hand."""
    weights = masses(numbers)
    root = np.sqrt(np.repeat(weights, 3))
    basis = internal_basis(positions, weights)
    values, vectors = np.linalg.eigh(basis.T @ (hessian / np.outer(root, root)) @ basis)
    displacements = (basis @ vectors).T / root
    displacements /= np.linalg.norm(displacements, axis=1, keepdims=True)
    frequencies = np.sign(values) * WAVENUMBER * np.sqrt(np.abs(values))
    return Modes(frequencies, displacements.reshape(len(values), len(weights), 3), hessian, energy, gradient_calls)


def _imaginary_modes_checked(
    potential: Potential, positions: np.ndarray, hessian: np.ndarray, saddle: bool
) -> np.ndarray:
    """`hessian` with central differences put in along each imaginary mode; of a saddle but for a stiff first one."""
    x = np.asarray(positions, dtype=float)
    modes = modes_of(hessian, potential.numbers, x)
    sure = int(saddle and (modes.frequencies_cm[:1] < IMAGINARY).any())
    doubtful = modes.vectors[sure:][modes.frequencies_cm[sure:] < 0].reshape(-1, x.size)
    if not len(doubtful):
        return hessian
    internal = internal_basis(x)
    basis = np.linalg.qr(internal @ (internal.T @ doubtful.T))[0]
    columns = []
    for b in basis.T:
        shift = (SOFT_STEP * b / np.abs(b).max()).reshape(x.shape)
        ahead, behind = (gradient(potential, x + sign * shift)[1] for sign in (1, -1))
        columns.append((ahead - behind).ravel() / (2 * np.linalg.norm(shift)))
    change = internal @ (internal.T @ (np.array(columns).T - hessian @ basis))
    # the smallest symmetric change that gives these products with `basis` (several-vector form of Powell's update)
    within = basis.T @ change
    return hessian + change @ basis.T + basis @ change.T - basis @ ((within + within.T) / 2) @ basis.T
