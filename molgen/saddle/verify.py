"""Is this the transition state of this reaction? One imaginary mode, and the wells on its two sides are R and P."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import (
    TOLERANCE,
    BondChanges,
    bond_graph,
    bond_names,
    compare_bonds,
    distance_matrix,
    molecule_key,
    radius_sums,
)
from molgen.geometry.chirality import stereo_differences
from molgen.geometry.shape import shape_distance
from molgen.potentials.base import Potential
from molgen.saddle.descent import DESCENT_CALLS, irc, kick, relax
from molgen.saddle.modes import IMAGINARY, Modes, normal_modes
from molgen.saddle.refine import Refinement, refine
from molgen.saddle.relabel import relabelling

SaddleVerdict = Literal["intended", "half", "unintended", "not_a_saddle"]

OTHER = "another molecule"
FEW = 4  # bonds that differ from an end, up to which a well is described by them
# Angstrom, and a share of the sum of covalent radii, by which a pair's distance must differ as well for a bond made or
# broken to count: 0.25, of H2 0.155, which tells it from linear H3
CLEAR, CLEAR_SHARE = 0.25, 0.25
# 1/cm; 2,927i is the stiffest of the 10,304 verified reactions in data/sets. Beyond, the gradient has a kink: two
# states cross, as where a double bond is turned without unpairing its electrons; or the calculator's units are wrong.
STIFFEST = 3500.0
SHAPE = 0.5  # Angstrom, see shape_distance: a well further than this from a conformer is another one
SHAPE_FMAX = 0.01  # eV/Angstrom; torsions are soft, and a well that is not reached looks like another conformer
LEAST_BARRIER = 0.02  # eV; below it the saddle is a ripple
FINEST = 2e-4  # eV/Angstrom, the smallest force that a descent is followed to
IRC_STEPS, IRC_FMAX = 150, 0.1  # where the path of steepest descent ends (eV/Angstrom) and a minimisation goes on
NUDGE = 0.15  # share of the displacement off a saddle, where all of it led to one end on both sides
SLIDE = 0.3  # Angstrom, norm of the step off a saddle of higher order


class Judgement(NamedTuple):
    """What the two wells of a saddle make of it.

    Attributes:
        verdict: see :class:`Verification`. swapped: whether the first well is on P's side. reason: in words.
        stereo: which end is another stereoisomer than was given, in words; empty if none.
        known: of verdict "half": "reactant" or "product", the end that one well is, where the other is another
            molecule, an intermediate it may be; else empty.
    """

    verdict: SaddleVerdict
    swapped: bool
    reason: str
    stereo: str = ""
    known: str = ""


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
        known: see :class:`Judgement`; the path begins there if it is the reactant, and ends there if the product.
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
    order: np.ndarray | None = None

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
    max_calls: int = DESCENT_CALLS,
    modes: Modes | None = None,
) -> Verification:
    """Check a refined geometry against the reaction it is meant for.

    Wells are compared with R and P by connectivity, atom by atom; other stereoisomers are named, and conformations
    play no part. If R and P
    themselves have the same connectivity, by shape as well: no atom further than 0.5 Angstrom, or half of what tells R
    and P apart, from where it belongs; wells are then followed down to 0.01 eV/Angstrom, and one less than
    LEAST_BARRIER below the saddle does not count. A well that fits neither is compared with R and P relaxed on this
    potential, where they may be other molecules, or conformers, than on the one they come from.

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
        CalculatorError: the calculator failed.
    """
    if method not in ("quick", "irc", "none"):
        raise InputError(f"unknown method {method!r}", where="verify", expected='"quick", "irc" or "none"')
    before = potential.calls
    x, reactant, product = (np.asarray(a, dtype=float) for a in (positions, reactant, product))
    modes = normal_modes(potential, x) if modes is None else modes
    if modes.imaginary != 1:
        found = f"{modes.imaginary} imaginary modes" if modes.imaginary else "no imaginary mode"
        return Verification("not_a_saddle", found, modes, gradient_calls=potential.calls - before)
    if modes.frequencies_cm[0] < -STIFFEST:
        found = (
            f"a mode of {-modes.frequencies_cm[0]:.0f}i cm-1 is no motion of nuclei: two electronic states cross, or"
        )
        found += " the calculator's units are wrong"
        return Verification("not_a_saddle", found, modes, gradient_calls=potential.calls - before)
    if method == "none":
        reason = "one imaginary mode; the wells on its sides were not looked for"
        return Verification("half", reason, modes, gradient_calls=potential.calls - before)
    reacts = bonding_differences(potential.numbers, reactant, product) > 0
    least = fmax if reacts else min(fmax, SHAPE_FMAX)
    for scale in (1.0, NUDGE):
        sides = [_descend(potential, x, modes, sign, method, least, max_calls, scale) for sign in (1, -1)]
        wells, drops = [side[-1][1] for side in sides], [modes.energy - side[-1][0] for side in sides]
        judged = judge_wells(potential, wells, drops, reactant, product, fmax=fmax, max_calls=max_calls)
        both = judged.verdict == "half" and not bonding_differences(potential.numbers, *wells)
        if not (both and reacts and method == "quick"):
            break  # else one end lies on both sides: the displacement may have leapt over a low barrier
    order = None
    if reacts and judged.verdict in ("half", "unintended"):
        order = relabelling(potential.numbers, wells, reactant, product)
    if order is not None:
        x, modes = x[order], modes.relabelled(order)
        sides = [[(energy, y[order]) for energy, y in side] for side in sides]
        wells = [side[-1][1] for side in sides]
        judged = judge_wells(potential, wells, drops, reactant, product, fmax=fmax, max_calls=max_calls)
    down, up = (sides[1], sides[0]) if judged.swapped else (sides[0], sides[1])
    frames = [*reversed(down), (modes.energy, x), *up]
    return Verification(
        judged.verdict,
        judged.reason,
        modes,
        np.array([f[1] for f in frames]),
        np.array([f[0] for f in frames]),
        len(down),
        potential.calls - before,
        judged.stereo,
        judged.known,
        order,
    )


def judge_wells(
    potential: Potential,
    wells: list[np.ndarray],
    drops: list[float],
    reactant: np.ndarray,
    product: np.ndarray,
    *,
    fmax: float = 0.1,
    max_calls: int = DESCENT_CALLS,
) -> Judgement:
    """What the two wells of a saddle make of it.

    Args:
        wells: (N, 3) Angstrom each. drops: eV, how far each lies below the saddle. Others: see :func:`verify`.
    """
    conformers = not bonding_differences(potential.numbers, reactant, product)
    fmax = min(fmax, SHAPE_FMAX) if conformers else fmax
    fits = _compare(potential, wells, reactant, product, conformers, fmax, max_calls)
    names = [_name(potential.numbers, well, {"reactant": reactant, "product": product}) for well in wells]
    for k in (0, 1) if conformers else ():
        if drops[k] < LEAST_BARRIER:
            fits[k], names[k] = (False, False), f"less than {LEAST_BARRIER} eV below the saddle"
        elif not bonding_differences(potential.numbers, wells[k], reactant):
            names[k] = "another conformer"
    stereo = "" if conformers else _other_stereo(potential.numbers, wells, fits, reactant, product)
    found = _judge(fits, names)
    return found._replace(reason=f"{found.reason}, but {stereo}", stereo=stereo) if stereo else found


def _other_stereo(numbers, wells, fits, reactant: np.ndarray, product: np.ndarray) -> str:
    """In words, which wells are another stereoisomer of the end they are."""
    found = {}
    for well, fit in zip(wells, fits, strict=True):
        for name, end, fits_it in zip(("reactant", "product"), (reactant, product), fit, strict=True):
            where = stereo_differences(numbers, end, well) if fits_it else []
            if where:
                found.setdefault(name, f"another stereoisomer of the {name} than was given ({', '.join(where)})")
    return " and ".join(found.values())


def settle(
    potential: Potential,
    saddle: Refinement,
    reactant: np.ndarray,
    product: np.ndarray,
    *,
    method: Literal["quick", "irc", "none"] = "quick",
    max_calls: int = 100,
) -> tuple[Refinement, Verification]:
    """Verify a refined geometry; one of higher order, where symmetric guesses end, slides off along its second mode.

    Args:
        saddle: converged. reactant, product, method: see :func:`verify`.
        max_calls: gradient calls for the search after the slide, and at least `DESCENT_CALLS` for a descent, at most.

    Returns:
        Where it settled (`gradient_calls` includes those of the slide), and what was found there; both in the order
        of atoms in which it joins R and P.

    Raises:
        CalculatorError: the calculator failed.
    """
    options: dict[str, Any] = {"method": method, "max_calls": max(DESCENT_CALLS, max_calls)}
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


def _descend(potential, x, modes, sign, method, fmax, max_calls, scale) -> list[tuple[float, np.ndarray]]:
    """(energy, positions) from beside the saddle, `scale` times as far off as usual, to the well on side `sign`, there
    with forces below `fmax`."""
    if method == "quick":
        return _fallen(potential, kick(x, modes, sign, scale), modes, fmax, max_calls, modes.hessian)
    path, hessian = irc(potential, x, modes, sign, max_steps=IRC_STEPS, least_force=max(fmax, IRC_FMAX))
    return path + _fallen(potential, path[-1][1], modes, fmax, max_calls, hessian)[1:]


def _fallen(potential, start, modes, fmax, max_calls, hessian) -> list[tuple[float, np.ndarray]]:
    """The path of a minimisation. Beside a soft saddle forces are small before anything has fallen: one that ends less
    than `LEAST_BARRIER` below it goes on to smaller forces."""
    before, path = potential.calls, [(np.nan, start)]
    while True:
        left = max_calls - (potential.calls - before)
        found = relax(potential, path[-1][1], fmax=fmax, max_calls=left, hessian=hessian)
        path = path[:-1] + found.path
        fmax /= 5
        if not found.converged or modes.energy - path[-1][0] >= LEAST_BARRIER or fmax < FINEST or left < 2:
            return path


def bonding_changes(numbers, before: np.ndarray, after: np.ndarray) -> BondChanges:
    """Pairs bonded in one of two geometries (N, 3) only, where that is not a matter of a little distance."""
    first, second = (distance_matrix(x) - radius_sums(numbers) - TOLERANCE for x in (before, after))
    clear = np.abs(first - second) > np.minimum(CLEAR, CLEAR_SHARE * radius_sums(numbers))
    return compare_bonds((first < 0) & clear, (second < 0) & clear)


def bonding_differences(numbers, a: np.ndarray, b: np.ndarray) -> int:
    """Number of :func:`bonding_changes` between two geometries (N, 3)."""
    return bonding_changes(numbers, a, b).count


def _compare(potential, wells, reactant, product, conformers, fmax, max_calls) -> list[tuple[bool, bool]]:
    """For each well: is it R, is it P. `conformers`: R and P have the same bonds."""
    numbers = potential.numbers

    def fit(ends):
        same = [tuple(not bonding_differences(numbers, well, end) for end in ends) for well in wells]
        if not conformers:
            return same
        bonds = bond_graph(numbers, reactant)
        # where nothing but hydrogens of one atom changed places (an umbrella, a methyl group), they are told apart
        exchange = shape_distance(numbers, bonds, *ends) > SHAPE
        limit = min(SHAPE, shape_distance(numbers, bonds, *ends, exchange=exchange) / 2)
        near = [
            [shape_distance(numbers, bonds, end, well, exchange=exchange) < limit for end in ends] for well in wells
        ]
        return [(a and c, b and d) for (a, b), (c, d) in zip(same, near, strict=True)]

    fits = fit((reactant, product))
    ends = [reactant, product]
    for side in (0, 1):
        lost = any(not any(f) for f in fits)
        if lost and not any(f[side] for f in fits):
            # an end that this potential cannot describe keeps the geometry it was given in
            with contextlib.suppress(CalculatorError):
                ends[side] = relax(potential, ends[side], fmax=fmax, max_calls=max_calls).positions
    relaxed = fit(ends) if conformers or bonding_differences(numbers, *ends) else fits
    return [(a[0] or b[0], a[1] or b[1]) for a, b in zip(fits, relaxed, strict=True)]


def _name(numbers, well: np.ndarray, ends: dict[str, np.ndarray]) -> str:
    """What to call a well that is none of the ends, whose atoms are told apart."""

    def key(x: np.ndarray) -> str:
        return molecule_key(numbers, bond_graph(numbers, x))

    same = [end for end, x in ends.items() if key(x) == key(well)]
    if same:
        molecule = "same molecule" if len(same) == 2 else "".join(same)
        return f"the {molecule} with atoms of one element exchanged"
    changes = {end: bonding_changes(numbers, x, well) for end, x in ends.items()}
    end, nearest = min(changes.items(), key=lambda item: item[1].count)
    if not 0 < nearest.count <= FEW:
        return OTHER
    parts = ((nearest.formed, "formed"), (nearest.broken, "broken"))
    return f"{OTHER} (the {end} with {' and '.join(f'{bond_names(numbers, p)} {how}' for p, how in parts if p)})"


def _judge(fits: list[tuple[bool, bool]], names: list[str]) -> Judgement:
    """By what the wells fit; `names` says what one is that fits neither end."""
    (first_r, first_p), (second_r, second_p) = fits
    if first_r and second_p:
        return Judgement("intended", False, "the wells on its sides are reactant and product")
    if first_p and second_r:
        return Judgement("intended", True, "the wells on its sides are reactant and product")
    if first_r or second_r or first_p or second_p:
        both = (first_r and second_r) or (first_p and second_p)
        found = "reactant" if first_r or second_r else "product"
        other = f"the {found} too" if both else names[1 if first_r or first_p else 0]
        known = found if other.startswith(OTHER) else ""
        reason = f"one well is the {found}, the other {other}"
        return Judgement("half", not (first_r or second_p), reason, known=known)
    reason = "neither well is the reactant or the product"
    if {*names} != {OTHER}:
        reason += f": one is {names[0]}, the other {names[1] if names[1] != names[0] else 'too'}"
    return Judgement("unintended", False, reason)
