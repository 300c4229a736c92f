"""Is this the transition state of this reaction? One imaginary mode, and the wells on its two sides are R and P."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from molgen.errors import CalculatorError, InputError
from molgen.geometry.align import rmsd
from molgen.geometry.bonds import TOLERANCE, distance_matrix, radius_sums
from molgen.potentials.base import Potential
from molgen.saddle.descent import irc, kick, relax
from molgen.saddle.modes import Modes, counted, normal_modes
from molgen.saddle.refine import Refinement, refine

Verdict = Literal["intended", "half", "unintended", "not_a_saddle"]

IMAGINARY = -50.0  # 1/cm; softer imaginary modes are finite-difference noise of free rotors, and are not counted
CLEAR = 0.25  # Angstrom by which a pair's distance must differ as well, for a bond made or broken to count
IRC_STEPS = 150
SLIDE = 0.3  # Angstrom, norm of the step off a saddle of higher order


@dataclass(frozen=True, eq=False)
class Verification:
    """What was found on both sides of a candidate transition state.

    Attributes:
        verdict: "intended": one imaginary mode below -50 1/cm, R on one side and P on the other; "half": only one of
            them found; "unintended": neither; "not_a_saddle": no imaginary mode or several.
        reason: the finding in words.
        modes: normal modes at the candidate.
        path_positions: (F, N, 3) Angstrom, from the well on R's side over the transition state to the one on P's; where
            that is undecided, in the order found. None without a descent.
        path_energies: (F,) eV.
        ts_index: frame of the transition state.
        gradient_calls: gradients spent, relaxing R or P (if that was needed) included.
    """

    verdict: Verdict
    reason: str
    modes: Modes
    path_positions: np.ndarray | None = None
    path_energies: np.ndarray | None = None
    ts_index: int | None = None
    gradient_calls: int = 0

    @property
    def imaginary_frequency_cm(self) -> float:
        """Lowest frequency, 1/cm, negative if imaginary."""
        return float(self.modes.frequencies_cm[0])

    @property
    def mode(self) -> np.ndarray:
        """(N, 3) Cartesian displacement of the lowest mode, unit norm."""
        return self.modes.vectors[0]

    @property
    def barriers(self) -> tuple[float, float] | None:
        """Forward and reverse barrier in eV, from the wells found; without zero-point energy."""
        if self.path_energies is None or self.ts_index is None:
            return None
        top = self.path_energies[self.ts_index]
        return float(top - self.path_energies[0]), float(top - self.path_energies[-1])


def verify(
    potential: Potential,
    positions: np.ndarray,
    reactant: np.ndarray,
    product: np.ndarray,
    *,
    method: Literal["quick", "irc", "none"] = "quick",
    fmax: float = 0.1,
    max_calls: int = 150,
    modes: Modes | None = None,
) -> Verification:
    """Check a refined geometry against the reaction it is meant for.

    Wells are compared with R and P by connectivity, atom by atom (not by stereochemistry or conformation); if R and P
    themselves have the same connectivity, by RMSD. A well that fits neither is compared with R and P relaxed on this
    potential, where they may be other molecules than on the one they come from.

    Args:
        potential: energies and forces.
        positions: (N, 3) Angstrom, a stationary point.
        reactant, product: (N, 3) Angstrom, same atom order, any frame.
        method: how to go down: "quick" (displacement and minimisation), "irc" (mass-weighted steepest descent, then
            minimisation), or "none" (count the imaginary modes only; a saddle is then reported as "half").
        fmax: eV/Angstrom, force at which a well counts as reached.
        max_calls: gradient calls for each descent, at most.
        modes: normal modes at `positions`, if known.

    Raises:
        InputError: unknown method.
        CalculatorError: the calculator failed; `gradient_calls` of the error has the calls spent.
    """
    if method not in ("quick", "irc", "none"):
        raise InputError(f"unknown method {method!r}", where="verify", expected='"quick", "irc" or "none"')
    before = potential.calls
    x, reactant, product = (np.asarray(a, dtype=float) for a in (positions, reactant, product))
    with counted(potential):
        modes = normal_modes(potential, x) if modes is None else modes
        imaginary = int((modes.frequencies_cm < IMAGINARY).sum())
        if imaginary != 1:
            found = f"{imaginary} imaginary modes" if imaginary else "no imaginary mode"
            return Verification(
                "not_a_saddle", f"{found} below {IMAGINARY:.0f} 1/cm", modes, gradient_calls=potential.calls - before
            )
        if method == "none":
            reason = "one imaginary mode; the wells on its sides were not looked for"
            return Verification("half", reason, modes, gradient_calls=potential.calls - before)
        sides = [_descend(potential, x, modes, sign, method, fmax, max_calls) for sign in (1, -1)]
        wells = [side[-1][1] for side in sides]
        fits = _compare(potential, wells, reactant, product, fmax, max_calls)
    verdict, swap, reason = _judge(fits)
    down, up = (sides[1], sides[0]) if swap else (sides[0], sides[1])
    frames = [*reversed(down), (modes.energy, x), *up]
    return Verification(
        verdict,
        reason,
        modes,
        np.array([f[1] for f in frames]),
        np.array([f[0] for f in frames]),
        len(down),
        potential.calls - before,
    )


def settle(
    potential: Potential,
    saddle: Refinement,
    reactant: np.ndarray,
    product: np.ndarray,
    *,
    method: Literal["quick", "irc", "none"] = "quick",
) -> tuple[Refinement, Verification]:
    """Verify a refined geometry; one of higher order, where symmetric guesses end, slides off along its second mode.

    Args:
        saddle: converged. reactant, product, method: see :func:`verify`.

    Returns:
        Where it settled (`gradient_calls` includes those of the slide), and what was found there.

    Raises:
        CalculatorError: the calculator failed.
    """
    checked = verify(potential, saddle.positions, reactant, product, method=method)
    if checked.verdict != "not_a_saddle" or checked.modes.frequencies_cm[1] > IMAGINARY:
        return saddle, checked
    start = saddle.positions + SLIDE * checked.modes.vectors[1]
    slid = refine(potential, start, direction=checked.modes.vectors[0])
    calls = saddle.gradient_calls + slid.gradient_calls
    if not slid.converged:
        return replace(saddle, gradient_calls=calls), checked
    return replace(slid, gradient_calls=calls), verify(potential, slid.positions, reactant, product, method=method)


def _descend(potential, x, modes, sign, method, fmax, max_calls) -> list[tuple[float, np.ndarray]]:
    """(energy, positions) from beside the saddle to the well on side `sign`."""
    if method == "quick":
        return relax(potential, kick(x, modes, sign), fmax=fmax, max_calls=max_calls, hessian=modes.hessian).path
    path, hessian = irc(potential, x, modes, sign, max_steps=IRC_STEPS, least_force=fmax)
    return path + relax(potential, path[-1][1], fmax=fmax, max_calls=max_calls, hessian=hessian).path[1:]


def bonding_differences(numbers, a: np.ndarray, b: np.ndarray) -> int:
    """Number of pairs bonded in one of two geometries (N, 3) only, where that is not a matter of a little distance."""
    excess_a, excess_b = (distance_matrix(x) - radius_sums(numbers) - TOLERANCE for x in (a, b))
    differ = ((excess_a < 0) != (excess_b < 0)) & (np.abs(excess_a - excess_b) > CLEAR)
    return int(np.triu(differ, 1).sum())


def _compare(potential, wells, reactant, product, fmax, max_calls) -> list[tuple[bool, bool]]:
    """For each well: is it R, is it P."""
    numbers = potential.numbers
    if not bonding_differences(numbers, reactant, product):
        fits = []
        for well in wells:
            to_r, to_p = (float(rmsd(torch.tensor(well), torch.tensor(end))) for end in (reactant, product))
            fits.append((to_r < to_p, to_p < to_r))
        return fits

    def fit(ends):
        return [tuple(not bonding_differences(numbers, well, end) for end in ends) for well in wells]

    fits = fit((reactant, product))
    ends = [reactant, product]
    for side in (0, 1):
        lost = any(not any(f) for f in fits)
        if lost and not any(f[side] for f in fits):
            # an end that this potential cannot describe keeps the geometry it was given in
            with contextlib.suppress(CalculatorError):
                ends[side] = relax(potential, ends[side], fmax=fmax, max_calls=max_calls).positions
    relaxed = fit(ends) if bonding_differences(numbers, *ends) else fits
    return [(a[0] or b[0], a[1] or b[1]) for a, b in zip(fits, relaxed, strict=True)]


def _judge(fits: list[tuple[bool, bool]]) -> tuple[Verdict, bool, str]:
    """Verdict, whether the first well is on P's side, and the finding in words."""
    (first_r, first_p), (second_r, second_p) = fits
    if first_r and second_p:
        return "intended", False, "the wells on its sides are reactant and product"
    if first_p and second_r:
        return "intended", True, "the wells on its sides are reactant and product"
    if first_r or second_r or first_p or second_p:
        both = (first_r and second_r) or (first_p and second_p)
        found = "reactant" if first_r or second_r else "product"
        other = f"the {found} too" if both else "another molecule"
        return "half", not (first_r or second_p), f"one well is the {found}, the other {other}"
    return "unintended", False, "neither well is the reactant or the product"
