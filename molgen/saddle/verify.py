"""Is this the transition state of this reaction? One imaginary mode, and the wells on its two sides are R and P."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from molgen.errors import InputError
from molgen.geometry.bonds import bonding_differences
from molgen.geometry.chirality import NONE_OPEN, OpenStereo
from molgen.potentials.base import Potential
from molgen.saddle.descent import DESCENT_CALLS, Flat, Path, falling, irc, off_saddle, relax
from molgen.saddle.judge import LEAST_BARRIER, SHAPE_FMAX, Judgement, SaddleVerdict, judge_wells
from molgen.saddle.modes import IMAGINARY, Modes, normal_modes
from molgen.saddle.refine import Refinement, refine
from molgen.saddle.relabel import relabelling

# 1/cm; 2,927i is the stiffest of the 10,304 verified reactions in data/sets. Beyond, the gradient has a kink: two
# states cross, as where a double bond is turned without unpairing its electrons; or the calculator's units are wrong.
STIFFEST = 3500.0
FINEST = 2e-4  # eV/Angstrom, the smallest force that a descent is followed to
IRC_STEPS, IRC_FMAX = 150, 0.1  # where the path of steepest descent ends (eV/Angstrom) and a minimisation goes on
NUDGE = 0.15  # share of the displacement off a saddle, where all of it led to one end on both sides
SLIDE = 0.3  # Angstrom, norm of the step off a saddle of higher order


@dataclass(frozen=True, eq=False)
class Verification:
    """What was found on both sides of a candidate transition state.

    Attributes:
        verdict: "intended": one imaginary mode (`Modes.imaginary`), R on one side and P on the other; "half": only one
            of them found; "unintended": neither; "not_a_saddle": no imaginary mode or several.
        reason: the finding in words.
        modes: normal modes at the candidate.
        path_positions: (F, N, 3) Angstrom, from the well on R's side over the transition state to the one on P's; where
            that is undecided, in the order found. None without a descent.
        path_energies: (F,) eV.
        ts_index: frame of the transition state.
        gradient_calls: gradients spent, relaxing R or P (if that was needed) included.
        stereo: which well is another stereoisomer than was given, in words; empty if none.
        known, unstable: see :class:`Judgement`; the path begins at `known` if it is the reactant, and ends there if it
            is the product.
        order: (N,) the order of the candidate's atoms in which it joins R and P, of equivalent atoms other ones react
            than were given; `modes` and path are in that order. None where it is the order given.
    """

    verdict: SaddleVerdict
    reason: str
    modes: Modes
    path_positions: np.ndarray | None = None
    path_energies: np.ndarray | None = None
    ts_index: int | None = None
    gradient_calls: int = 0
    stereo: str = ""
    known: str = ""
    unstable: Mapping[str, str] = field(default_factory=dict)
    order: np.ndarray | None = None

    @property
    def imaginary_frequency_cm(self) -> float:
        """Lowest frequency, 1/cm, negative if imaginary."""
        return float(self.modes.frequencies_cm[0])

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
    open_stereo: OpenStereo = NONE_OPEN,
    method: Literal["quick", "irc"] = "quick",
    fmax: float = 0.1,
    max_calls: int = DESCENT_CALLS,
    modes: Modes | None = None,
) -> Verification:
    """Check a refined geometry against the reaction it is meant for.

    Wells are compared with R and P by connectivity, atom by atom; other stereoisomers are named, and conformations
    play no part. If R and P themselves have the same connectivity, by shape as well: no atom further than 0.5 Angstrom,
    or half of what tells R and P apart, from where it belongs; wells are then followed down to 0.01 eV/Angstrom, and
    one less than LEAST_BARRIER below the saddle does not count. A well that fits neither is compared with R and P
    relaxed on this potential, where they may be other molecules, or conformers, than on the one they come from.

    Args:
        potential: energies and forces.
        positions: (N, 3) Angstrom, a stationary point.
        reactant, product: (N, 3) Angstrom, same atom order, any frame.
        open_stereo: what may be another stereoisomer on either, see :class:`~molgen.data.reactions.Reaction`.
        method: how to go down: "quick" (displacement and minimisation) or "irc" (mass-weighted steepest descent, then
            minimisation).
        fmax: eV/Angstrom, force at which a well counts as reached.
        max_calls: gradient calls for each descent, at most.
        modes: normal modes at `positions`, if known.

    Raises:
        InputError: unknown method.
        CalculatorError: the calculator failed.
    """
    if method not in ("quick", "irc"):
        raise InputError(f"unknown method {method!r}", where="verify", expected='"quick" or "irc"')
    before = potential.calls
    x, *ends = (np.asarray(a, dtype=float) for a in (positions, reactant, product))
    modes = normal_modes(potential, x) if modes is None else modes
    if fault := _fault_of(modes):
        return Verification("not_a_saddle", fault, modes, gradient_calls=potential.calls - before)
    top = modes.energy

    def judge(sides: list[Path]) -> Judgement:
        wells, drops = [side[-1][1] for side in sides], [top - side[-1][0] for side in sides]
        return judge_wells(potential, wells, drops, *ends, open_stereo=open_stereo, fmax=fmax, max_calls=max_calls)

    reacts = bonding_differences(potential.numbers, *ends) > 0
    descents = _Descents(potential, x, modes, method, fmax if reacts else min(fmax, SHAPE_FMAX), max_calls)
    try:
        sides = descents.both()
        judged = judge(sides)
        if reacts and method == "quick" and judged.verdict == "half" and descents.meet(sides):
            sides = descents.both(NUDGE)  # the displacement may have leapt over a low barrier
            judged = judge(sides)
    except Flat as flat:
        return Verification("not_a_saddle", flat.what, modes, gradient_calls=potential.calls - before)
    order = None
    if reacts and judged.verdict in ("half", "unintended"):
        order = relabelling(potential.numbers, [side[-1][1] for side in sides], *ends)
    if order is not None:
        x, modes = x[order], modes.relabelled(order)
        sides = [[(energy, y[order]) for energy, y in side] for side in sides]
        judged = judge(sides)
    down, up = (sides[1], sides[0]) if judged.swapped else (sides[0], sides[1])
    frames = [*reversed(down), (modes.energy, x), *up]
    return Verification(
        verdict=judged.verdict,
        reason=judged.reason,
        modes=modes,
        path_positions=np.array([y for _, y in frames]),
        path_energies=np.array([energy for energy, _ in frames]),
        ts_index=len(down),
        gradient_calls=potential.calls - before,
        stereo=judged.stereo,
        known=judged.known,
        unstable=judged.unstable,
        order=order,
    )


def _fault_of(modes: Modes) -> str:
    """Why modes are not those of a transition state, in words; empty where they are."""
    if modes.imaginary != 1:
        return f"{modes.imaginary} imaginary modes" if modes.imaginary else "no imaginary mode"
    if modes.frequencies_cm[0] < -STIFFEST:
        mode = f"a mode of {-modes.frequencies_cm[0]:.0f}i cm-1"
        return f"{mode} is no motion of nuclei: two electronic states cross, or the calculator's units are wrong"
    return ""


@dataclass(frozen=True, eq=False)
class _Descents:
    """The ways down from a saddle `x` to the wells on its two sides, where forces are below `fmax`."""

    potential: Potential
    x: np.ndarray
    modes: Modes
    method: Literal["quick", "irc"]
    fmax: float
    max_calls: int

    def both(self, scale: float = 1.0) -> list[Path]:
        """Both sides, from `scale` times as far beside the saddle as usual.

        Raises:
            Flat: the energy does not fall. CalculatorError: the calculator failed.
        """
        return [self._down(sign, scale) for sign in (1, -1)]

    def meet(self, sides: list[Path]) -> bool:
        """Whether both sides end in the same bonds."""
        return not bonding_differences(self.potential.numbers, *(side[-1][1] for side in sides))

    def _down(self, sign: int, scale: float) -> Path:
        if self.method == "quick":
            start = off_saddle(self.potential, self.x, self.modes, sign, scale)
            return self._fallen(start, self.modes.hessian)
        least = max(self.fmax, IRC_FMAX)
        path, hessian = irc(self.potential, self.x, self.modes, sign, max_steps=IRC_STEPS, least_force=least)
        return path + self._fallen(path[-1][1], hessian)[1:]

    def _fallen(self, start: np.ndarray, hessian: np.ndarray) -> Path:
        """The path of a minimisation. Beside a soft saddle forces are small before anything has fallen: one that ends
        less than `LEAST_BARRIER` below it goes on to smaller forces."""
        before, fmax, path = self.potential.calls, self.fmax, [(np.nan, start)]
        while True:
            left = self.max_calls - (self.potential.calls - before)
            found = relax(self.potential, path[-1][1], fmax=fmax, max_calls=left, hessian=hessian)
            path = path[:-1] + falling(found.path)
            fmax /= 5
            if not found.converged or self.modes.energy - path[-1][0] >= LEAST_BARRIER or fmax < FINEST or left < 2:
                return path


def settle(
    potential: Potential,
    saddle: Refinement,
    reactant: np.ndarray,
    product: np.ndarray,
    *,
    open_stereo: OpenStereo = NONE_OPEN,
    method: Literal["quick", "irc"] = "quick",
    max_calls: int = 100,
) -> tuple[Refinement, Verification]:
    """Verify a refined geometry; one of higher order, where symmetric guesses end, slides off along its second mode.

    Args:
        saddle: converged. reactant, product, open_stereo, method: see :func:`verify`.
        max_calls: gradient calls for the search after the slide, and at least `DESCENT_CALLS` for a descent, at most.

    Returns:
        Where it settled (`gradient_calls` includes those of the slide), and what was found there; both in the order
        of atoms in which it joins R and P.

    Raises:
        CalculatorError: the calculator failed.
    """
    options: dict[str, Any] = {"open_stereo": open_stereo, "method": method, "max_calls": max(DESCENT_CALLS, max_calls)}
    checked = verify(potential, saddle.positions, reactant, product, **options)
    if checked.verdict != "not_a_saddle" or (checked.modes.frequencies_cm[1:2] > IMAGINARY).all():
        return saddle.relabelled(checked.order), checked
    start = saddle.positions + SLIDE * checked.modes.vectors[1]
    slid = refine(potential, start, direction=checked.modes.vectors[0], max_calls=max_calls)
    calls = saddle.gradient_calls + slid.gradient_calls
    if not slid.converged:
        return replace(saddle, gradient_calls=calls), checked
    checked = verify(potential, slid.positions, reactant, product, **options)
    return replace(slid, gradient_calls=calls).relabelled(checked.order), checked
