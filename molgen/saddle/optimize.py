"""Trust-region quasi-Newton search for a minimum or a first-order saddle, in Cartesian coordinates.

Used in place of sella's (order 1, Cartesian): from DFT transition states it needs 23 gradient calls where sella needs
34, as it starts from a model Hessian (docs/benchmarks.md, validation reactions, GFN2-xTB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from molgen.errors import CalculatorError
from molgen.potentials.base import Potential
from molgen.saddle.modes import gradient, internal_basis

LEAST_TRUST = 0.02  # Angstrom, norm over all atoms
NOISE = 1e-4  # eV; energy changes below this do not judge a step
# actual over predicted energy change of a step, by order: outside (low, high) the trust radius shrinks, within the last
# pair it may grow
RATIOS = ((0.25, np.inf, (0.75, np.inf)), (-1.0, 3.0, (0.5, 2.0)))
CURVED = 1e-2  # eV/Angstrom^2, the least curvature after which a Newton step is trusted as it is


@dataclass
class Search:
    """State and result of a search.

    Attributes:
        positions: (N, 3) Angstrom.
        energy: eV.
        gradient: (N, 3) eV/Angstrom.
        hessian: (3N, 3N) quasi-Newton estimate, eV/Angstrom^2.
        converged: gradient below the limit; for a saddle, also one negative curvature (estimated), no more.
        path: (energy, positions) of every accepted point, the start first.
    """

    positions: np.ndarray
    energy: float
    gradient: np.ndarray
    hessian: np.ndarray
    converged: bool = False
    path: list[tuple[float, np.ndarray]] = field(default_factory=list)

    @property
    def fmax(self) -> float:
        """Largest force on an atom, eV/Angstrom."""
        return float(np.linalg.norm(self.gradient, axis=1).max())

    def move(self, positions: np.ndarray, energy: float, gradient: np.ndarray) -> None:
        """Accept a point."""
        self.positions, self.energy, self.gradient = positions, energy, gradient
        self.path.append((energy, positions))


def stationary_point(
    potential: Potential,
    positions: np.ndarray,
    hessian: np.ndarray,
    *,
    order: int,
    fmax: float,
    max_calls: int,
    trust: float = 0.2,
    max_trust: float = 0.3,
    free: bool = True,
    start: tuple[float, np.ndarray] | None = None,
    stop: Callable[[Search], bool] | None = None,
) -> Search:
    """Walk from `positions` to a minimum (`order` 0) or a first-order saddle (`order` 1).

    Newton steps within a trust radius, for a saddle on the image surface, where the gradient along the lowest mode is
    reversed (Smith, Theor. Chim. Acta 77, 89 (1990); Helgaker, Chem. Phys. Lett. 182, 503 (1991)). Hessian updates by
    BFGS for a minimum, by Bofill, J. Comput. Chem. 15, 1 (1994) for a saddle.

    Args:
        potential: energies and forces.
        positions: (N, 3) Angstrom.
        hessian: (3N, 3N) estimate to start from, eV/Angstrom^2.
        order: 0 or 1.
        fmax: stop when no atom feels a larger force, eV/Angstrom.
        max_calls: gradient calls at most.
        trust, max_trust: first and largest step length (norm over all atoms), Angstrom.
        free: the energy does not change when the molecule moves or turns as a whole, so such motion is left out; False
            for an external field or a surface.
        start: energy and gradient at `positions` if already known.
        stop: further reason to stop, asked before every step, also after one that failed.

    Raises:
        CalculatorError: a gradient call failed at the start or, after shorter steps were tried, on the way.
    """
    x = np.array(positions, dtype=float)
    last_call = potential.calls + max_calls
    energy, slope = gradient(potential, x) if start is None else start
    search = Search(x, energy, slope, np.array(hessian), path=[(energy, x)])
    while True:
        basis = internal_basis(search.positions) if free else np.eye(x.size)
        values, vectors = np.linalg.eigh(basis.T @ search.hessian @ basis)
        vectors = basis @ vectors
        search.converged = bool(search.fmax < fmax and (order == 0 or (values[0] < 0 and (values[1:2] >= 0).all())))
        if search.converged or potential.calls >= last_call or (stop is not None and stop(search)):
            return search
        slopes = search.gradient.ravel() @ vectors
        step = image_step(values, slopes, 0 if order else None, trust)
        predicted = slopes @ step + values @ step**2 / 2
        move = (vectors @ step).reshape(x.shape)
        length = float(np.linalg.norm(step))
        try:
            energy, slope = gradient(potential, search.positions + move)
        except CalculatorError:
            if length <= LEAST_TRUST:
                raise
            trust = max(length / 4, LEAST_TRUST)
            continue
        update = bofill_update if order else bfgs_update
        search.hessian = update(search.hessian, move.ravel(), (slope - search.gradient).ravel())
        actual = energy - search.energy
        ratio = actual / predicted if abs(predicted) > NOISE else 1.0
        low, high, best = RATIOS[order]
        if not low < ratio < high:
            trust = max(min(trust, length) / 2, LEAST_TRUST)
        elif best[0] < ratio < best[1] and length > 0.8 * trust:
            trust = min(1.5 * trust, max_trust)
        # a descent takes no step up, unless steps are as short as they get
        if order or actual < NOISE or length <= LEAST_TRUST:
            search.move(search.positions + move, energy, slope)


def image_step(values: np.ndarray, slopes: np.ndarray, climb: int | None, radius: float) -> np.ndarray:
    """Step (M,) in the eigenbasis of the Hessian, no longer than `radius`: down along all modes but `climb`.

    Args:
        values, slopes: (M,) curvatures and gradient components.
        climb: index of the mode to go up along, or None.
        radius: Angstrom.
    """
    h, f = values.copy(), slopes.copy()
    if climb is not None:
        h[climb], f[climb] = -h[climb], -f[climb]
    if h.min() > CURVED:
        step = -f / h
        if np.linalg.norm(step) <= radius:
            return step
    low = max(0.0, CURVED - h.min())
    high = low + np.linalg.norm(f) / radius + CURVED
    for _ in range(50):
        shift = (low + high) / 2
        if np.linalg.norm(f / (h + shift)) > radius:
            low = shift
        else:
            high = shift
    return -f / (h + high)


def bfgs_update(hessian: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """BFGS, which keeps the estimate positive; Bofill's where the curvature along the step is negative."""
    if change @ step < 1e-8:
        return bofill_update(hessian, step, change)
    old = hessian @ step
    if old @ step < 1e-8:
        return bofill_update(hessian, step, change)
    return hessian + np.outer(change, change) / (change @ step) - np.outer(old, old) / (old @ step)


def bofill_update(hessian: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Symmetric rank-one and Powell updates mixed by Bofill's weight; (3N, 3N) from step and gradient change (3N,)."""
    error = change - hessian @ step
    along, square, size = error @ step, error @ error, step @ step
    if square < 1e-20:
        return hessian
    powell = (np.outer(error, step) + np.outer(step, error)) / size - along * np.outer(step, step) / size**2
    # weight * error error^T / along, with the weight's factor `along` cancelled so that nothing is divided by it
    rank_one = along / (square * size) * np.outer(error, error)
    return hessian + rank_one + (1 - along**2 / (square * size)) * powell
