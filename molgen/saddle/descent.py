"""From a saddle down to the wells on both sides: a quick descent, or the intrinsic reaction coordinate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np

from molgen.errors import MolgenError
from molgen.geometry.model_hessian import lindh_hessian
from molgen.potentials.base import Potential
from molgen.saddle.modes import Modes, gradient, internal_basis, masses
from molgen.saddle.optimize import Search, bofill_update, stationary_point

DROP = 0.02  # eV, drop in energy aimed at by the first displacement off the saddle
KICK = (0.05, 0.3)  # Angstrom, its least and largest norm
HALVINGS = 4  # displacements tried along a soft mode
TRUST = (0.15, 0.3)  # Angstrom; short steps keep a descent in the valley it started in
SOFTEST = 0.5  # eV/Angstrom^2, least curvature of the Hessian a descent starts from
DESCENT_CALLS = 150  # gradient calls of a descent, at most
LOWER = 1e-4  # eV, by which a well is lower than a stationary point beside it
STRIDE = 0.1  # Angstrom amu^(1/2), arc length of an IRC step

Path = list[tuple[float, np.ndarray]]


class Flat(MolgenError):
    """Beside what should be a saddle the energy does not fall."""


def kick(positions: np.ndarray, modes: Modes, sign: int, scale: float = 1.0) -> np.ndarray:
    """`positions` (N, 3) moved along the imaginary mode to side `sign` (+1 or -1), far enough to be off the saddle;
    `scale`: a share of that."""
    mode = modes.vectors[0]
    curvature = mode.ravel() @ modes.hessian @ mode.ravel()
    return positions + sign * scale * np.clip(np.sqrt(2 * DROP / max(-curvature, 1e-3)), *KICK) * mode


def off_saddle(potential: Potential, positions: np.ndarray, modes: Modes, sign: int, scale: float = 1.0) -> np.ndarray:
    """As :func:`kick`, half as far, and so on, where the mode is so soft that all of it would lead uphill.

    Raises:
        Flat: the energy falls nowhere. CalculatorError: the calculator failed.
    """
    mode = modes.vectors[0].ravel()
    for part in scale * 0.5 ** np.arange(HALVINGS):
        start = kick(positions, modes, sign, float(part))
        if -(mode @ modes.hessian @ mode) * KICK[1] ** 2 > 2 * DROP:  # stiff enough for the quadratic surface
            return start
        if gradient(potential, start)[0] < modes.energy:
            return start
    raise Flat("the energy does not fall along its mode", where="descent")


def falling(path: Path) -> Path:
    """The points of a path that lie no higher than those before them: a minimisation may take a short step up."""
    lowest, kept = np.inf, []
    for energy, x in path:
        if not energy > lowest:
            lowest = energy
            kept.append((energy, x))
    return kept


def relax(
    potential: Potential,
    positions: np.ndarray,
    *,
    fmax: float,
    max_calls: int,
    hessian: np.ndarray | None = None,
    stop: Callable[[Search], bool] | None = None,
) -> Search:
    """Minimise `positions`; `hessian` (3N, 3N), if known, is used with all its curvatures made positive."""
    if hessian is None:
        hessian = lindh_hessian(potential.numbers, positions) + np.eye(positions.size)
    else:
        values, vectors = np.linalg.eigh(hessian)
        hessian = (vectors * np.maximum(np.abs(values), SOFTEST)) @ vectors.T
    trust, max_trust = TRUST
    return stationary_point(
        potential,
        positions,
        hessian,
        order=0,
        fmax=fmax,
        max_calls=max_calls,
        trust=trust,
        max_trust=max_trust,
        stop=stop,
    )


def fallen_off(
    potential: Potential, positions: np.ndarray, modes: Modes, *, fmax: float, max_calls: int
) -> Search | None:
    """What a stationary point with an imaginary mode falls to: the lower of what both sides of the mode relax to.

    None where there is no such mode, or nothing is lower by `LOWER`.

    Args:
        positions: (N, 3) Angstrom. modes: there. fmax, max_calls: eV/Angstrom and gradient calls, of each relaxation.

    Raises:
        CalculatorError: the calculator failed.
    """
    best: Search | None = None
    for sign in (1, -1) if modes.imaginary else ():
        with suppress(Flat):
            start = off_saddle(potential, positions, modes, sign)
            found = relax(potential, start, fmax=fmax, max_calls=max_calls, hessian=modes.hessian)
            if found.energy < (modes.energy - LOWER if best is None else best.energy):
                best = found
    return best


def irc(
    potential: Potential, positions: np.ndarray, modes: Modes, sign: int, *, max_steps: int, least_force: float
) -> tuple[Path, np.ndarray]:
    """Steepest descent in mass-weighted coordinates from a saddle, by local quadratic approximation.

    Page & McIver, J. Chem. Phys. 88, 922 (1988): on the local quadratic surface the path is known in closed form; one
    gradient a step, the Hessian updated by Bofill's formula. Ends where the energy stops falling or the largest force
    on an atom is below `least_force` (eV/Angstrom), at the latest after `max_steps`.

    Returns:
        (energy, positions) of each point after the saddle, and the Hessian (3N, 3N) at the last of them.
    """
    shape, root = positions.shape, np.sqrt(np.repeat(masses(potential.numbers), 3))
    hessian = modes.hessian / np.outer(root, root)
    x = off_saddle(potential, positions, modes, sign)
    energy, slope = gradient(potential, x)
    path = [(energy, x)]
    for _ in range(max_steps):
        if np.linalg.norm(slope, axis=1).max() < least_force:
            break
        basis = internal_basis(x, masses(potential.numbers))
        values, vectors = np.linalg.eigh(basis.T @ hessian @ basis)
        vectors = basis @ vectors
        step = vectors @ _quadratic_descent(values, (slope.ravel() / root) @ vectors, STRIDE)
        ahead, steeper = gradient(potential, x + (step / root).reshape(shape))
        hessian = bofill_update(hessian, step, (steeper - slope).ravel() / root)
        if ahead > energy:
            break
        x, energy, slope = x + (step / root).reshape(shape), ahead, steeper
        path.append((energy, x))
    return path, hessian * np.outer(root, root)


def _quadratic_descent(values: np.ndarray, slopes: np.ndarray, length: float) -> np.ndarray:
    """Displacement (M,) along the steepest-descent path of a quadratic surface, `length` from its start."""

    def at(t: float) -> np.ndarray:
        small = np.abs(values * t) < 1e-6
        safe = np.where(small, 1.0, values)
        return slopes * np.where(small, -t, np.expm1(np.clip(-values * t, -50, 50)) / safe)

    low, high = 0.0, length / max(float(np.linalg.norm(slopes)), 1e-9)
    for _ in range(60):  # the path may end in the quadratic surface's minimum before `length`
        if np.linalg.norm(at(high)) >= length:
            break
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(at(middle)) < length else (low, middle)
    return at(low)
