"""From a guess to a first-order saddle of the potential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from molgen.geometry.align import superpose
from molgen.geometry.bonds import bond_graph, bond_orders, distance_matrix, fragments
from molgen.geometry.model_hessian import STIFFEN, lindh_hessian
from molgen.potentials.base import Potential
from molgen.saddle.modes import gradient, internal_basis, relabelled_hessian
from molgen.saddle.optimize import Search, bofill_update, stationary_point

SOFTEN = 20.0  # eV/Angstrom^2 added to the model Hessian when the bonding change is turned into a motion
BONDING = 0.3  # largest change of bond order that is still no bond made or broken
PROBE = 0.02  # Angstrom, displacement of the atom that moves most


def calls_allowed(atoms: int) -> int:
    """Gradient calls of one refinement where none are named: 100, and 8 an atom beyond the sizes 100 was tested on."""
    return 100 if atoms <= 21 else 8 * atoms


@dataclass(frozen=True, eq=False)
class Refinement:
    """A refined geometry; `converged` says whether it is a stationary point with negative lowest curvature (estimated).

    Attributes:
        positions: (N, 3) Angstrom.
        energy: eV.
        fmax: largest force on an atom, eV/Angstrom.
        converged: forces below the limit within the calls allowed.
        gradient_calls: gradients spent.
        hessian: (3N, 3N) quasi-Newton estimate at the end, eV/Angstrom^2.
    """

    positions: np.ndarray
    energy: float
    fmax: float
    converged: bool
    gradient_calls: int
    hessian: np.ndarray

    def relabelled(self, order: np.ndarray | None) -> Refinement:
        """With atom k what was atom `order[k]` (N,); the same where `order` is None."""
        if order is None:
            return self
        hessian = relabelled_hessian(self.hessian, order)
        return replace(self, positions=self.positions[order], hessian=hessian)


def refine(
    potential: Potential,
    positions: np.ndarray,
    *,
    direction: np.ndarray | None = None,
    reactant: np.ndarray | None = None,
    product: np.ndarray | None = None,
    fmax: float = 0.02,
    max_calls: int = 100,
    stop: Callable[[Search], bool] | None = None,
) -> Refinement:
    """Optimise `positions` to a first-order saddle.

    The search starts from Lindh's model Hessian; one more gradient, displaced along the reaction, corrects its
    curvature there.

    Args:
        potential: energies and forces.
        positions: (N, 3) Angstrom, the guess.
        direction: (N, 3) motion that turns reactant into product at the guess.
        reactant, product: (N, 3) Angstrom, from which the direction is made when it is not given. Without either, the
            search finds the mode to climb by itself.
        fmax: eV/Angstrom, largest force on an atom of a converged geometry.
        max_calls: gradient calls at most.
        stop: further reason to stop, asked after every step; the geometry then has not converged.

    Raises:
        CalculatorError: the calculator failed.
    """
    before = potential.calls
    x = np.array(positions, dtype=float)
    start = gradient(potential, x)
    model = lindh_hessian(potential.numbers, x)
    if direction is None and reactant is not None and product is not None:
        direction = reaction_direction(potential.numbers, x, reactant, product, model)
    hessian = model + STIFFEN * np.eye(x.size)
    if direction is not None and max_calls > 1:
        probe = PROBE / np.abs(direction).max() * np.reshape(direction, x.shape)
        change = gradient(potential, x + probe)[1] - start[1]
        hessian = bofill_update(hessian, probe.ravel(), change.ravel())
    search = stationary_point(
        potential,
        x,
        hessian,
        order=1,
        fmax=fmax,
        max_calls=max_calls - (potential.calls - before),
        start=start,
        stop=stop,
    )
    calls = potential.calls - before
    return Refinement(search.positions, search.energy, search.fmax, search.converged, calls, search.hessian)


def reaction_direction(
    numbers, positions: np.ndarray, reactant: np.ndarray, product: np.ndarray, model: np.ndarray | None = None
) -> np.ndarray | None:
    """Motion (N, 3), unit norm, at `positions` that makes and breaks the bonds of reactant -> product.

    Each pair is pushed by its change of bond order (at most 1); the push becomes a motion through the model Hessian, so
    that stiff parts follow. On 73 DFT transition states of RDB7 (val) its overlap with the lowest mode of the GFN2-xTB
    Hessian is 0.85 (mean); that of the superposed Cartesian difference P - R is 0.62.

    Args:
        numbers: (N,) atomic numbers.
        positions, reactant, product: (N, 3) Angstrom, each in any frame.
        model: (3N, 3N) model Hessian at `positions`, made here if None.

    Returns:
        The motion; that of the Cartesian difference, each fragment superposed by itself, when no bond is made or broken
        (conformers); None when reactant and product are the same.
    """
    x = np.asarray(positions, dtype=float)
    change = _orders(numbers, product) - _orders(numbers, reactant)
    if np.abs(change).max() < BONDING:
        motion = _superposed_difference(x, reactant, product, fragments(bond_graph(numbers, reactant)))
    else:
        model = lindh_hessian(numbers, x) if model is None else model
        motion = _yielding_motion(x, np.clip(change, -1, 1), model)
    norm = np.linalg.norm(motion)
    return motion / norm if norm > 1e-6 else None


def _superposed_difference(x: np.ndarray, reactant: np.ndarray, product: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Product minus reactant (N, 3), each fragment (`part`, (N,)) superposed on `x` by itself: where fragments lie to
    each other means nothing."""
    motion = np.zeros_like(x)
    for atoms in (part == k for k in np.unique(part)):
        ends = [torch.tensor(np.asarray(end, dtype=float)[atoms]) for end in (reactant, product)]
        before, after = (superpose(end, torch.tensor(x[atoms])) for end in ends)
        motion[atoms] = (after - before).numpy()
    return motion


def _yielding_motion(x: np.ndarray, push: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Motion (N, 3) in which atoms at `x`, held by the Hessian `model`, follow a push (N, N) together of each pair."""
    away = (x[:, None] - x[None]) / np.maximum(distance_matrix(x), 1e-6)[..., None]
    force = -(push[..., None] * away).sum(1).ravel()
    basis = internal_basis(x)
    inner = basis.T @ model @ basis
    motion = basis @ np.linalg.solve(inner + SOFTEN * np.eye(len(inner)), basis.T @ force)
    return motion.reshape(x.shape)


def mode_overlap(refinement: Refinement, numbers, reactant: np.ndarray, product: np.ndarray) -> float:
    """|cosine| between the lowest mode of the search's last Hessian and the motion from reactant to product.

    0 when reactant and product are the same. Arrays as for :func:`reaction_direction`.
    """
    wanted = reaction_direction(numbers, refinement.positions, reactant, product)
    if wanted is None:
        return 0.0
    return abs(float(np.linalg.eigh(refinement.hessian)[1][:, 0] @ wanted.ravel()))


def _orders(numbers, positions: np.ndarray) -> np.ndarray:
    """Bond orders within fragments; between fragments the placement means nothing."""
    part = fragments(bond_graph(numbers, positions))
    return bond_orders(numbers, positions) * (part[:, None] == part)
