"""What the two wells of a saddle are: the reactant and the product that were given, or something else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from molgen.errors import CalculatorError
from molgen.geometry.bonds import (
    BondChanges,
    bond_graph,
    bond_names,
    bonding_changes,
    bonding_differences,
    distance_matrix,
    molecule_key,
)
from molgen.geometry.chirality import NONE_OPEN, OpenStereo, stereo_differences
from molgen.geometry.shape import shape_distance, shape_rmsd
from molgen.potentials.base import Potential
from molgen.saddle.descent import DESCENT_CALLS, relax

SaddleVerdict = Literal["intended", "half", "unintended", "not_a_saddle"]

OTHER = "another molecule"
CONFORMER = "another conformer"
FEW = 4  # bonds that differ from an end, up to which a well is described by them
SHAPE = 0.5  # Angstrom, see shape_distance: a well further than this from a conformer is another one
SHAPE_FMAX = 0.01  # eV/Angstrom; torsions are soft, and a well that is not reached looks like another conformer
LEAST_BARRIER = 0.02  # eV; below it the saddle is a ripple


class Judgement(NamedTuple):
    """What a saddle is, by the two wells that lie beside it.

    Attributes:
        verdict: see :class:`Verification`. swapped: whether the first well is on P's side. reason: in words.
        stereo: which end is another stereoisomer than was given, in words; empty if none.
        known: of verdict "half": "reactant" or "product", the end that one well is, where the other may be an
            intermediate: another molecule, or of conformers one that is nearer to the other end; else empty.
        unstable: ends, "reactant" or "product", of which the well is what they relax to on this potential, which is
            another molecule, in words.
    """

    verdict: SaddleVerdict
    swapped: bool
    reason: str
    stereo: str = ""
    known: str = ""
    unstable: Mapping[str, str] = MappingProxyType({})


def judge_wells(
    potential: Potential,
    wells: list[np.ndarray],
    drops: list[float],
    reactant: np.ndarray,
    product: np.ndarray,
    *,
    open_stereo: OpenStereo = NONE_OPEN,
    fmax: float = 0.1,
    max_calls: int = DESCENT_CALLS,
) -> Judgement:
    """Which of reactant and product the two wells of a saddle are.

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
            names[k] = CONFORMER
    found = _judge(fits, names)
    if conformers:
        return _between(found, potential.numbers, wells, fits, names, (reactant, product))
    ends = {"reactant": reactant, "product": product}
    stereo, unstable = _other_than_given(potential.numbers, wells, fits, ends)
    but, taken = [], []
    for (end, units), free in zip(stereo.items(), open_stereo, strict=True):
        if other := [unit for unit in units if unit not in free]:
            but.append(f"another stereoisomer of the {end} than was given ({', '.join(other)})")
        elif units:
            taken.append(f"; the {end} is another isomer than was built, as its SMILES leaves {', '.join(units)} open")
    differs = " and ".join(but)
    but += [f"the {end} relaxes to {what}" for end, what in unstable.items()]
    reason = f"{found.reason}, but {' and '.join(but)}" if but else found.reason
    return found._replace(reason=reason + "".join(taken), stereo=differs, unstable=unstable)


def _between(found: Judgement, numbers, wells, fits, names, ends: tuple[np.ndarray, np.ndarray]) -> Judgement:
    """The judgement of a saddle between conformers, where one well is an end and the other a conformer on the way."""
    others = [x for x, fit, name in zip(wells, fits, names, strict=True) if not any(fit) and name == CONFORMER]
    if found.verdict != "half" or not others:
        return found
    at = 0 if any(fit[0] for fit in fits) else 1  # the end that the other well is
    bonds, far = bond_graph(numbers, ends[at]), ends[1 - at]
    nearer = shape_rmsd(numbers, bonds, others[0], far) < shape_rmsd(numbers, bonds, ends[at], far)
    return found._replace(known=("reactant", "product")[at]) if nearer else found


def _other_than_given(numbers, wells, fits, ends: dict[str, np.ndarray]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Where wells that are an end are another stereoisomer of it, and which are what it relaxes to: {"reactant":
    ["C3"], "product": []} and {"reactant": "another molecule"}."""
    stereo: dict[str, list[str]] = {name: [] for name in ends}
    unstable: dict[str, str] = {}
    for well, fit in zip(wells, fits, strict=True):
        for (name, end), fits_it in zip(ends.items(), fit, strict=True):
            if fits_it and bonding_differences(numbers, end, well):
                unstable.setdefault(name, _name(numbers, well, ends))
            elif fits_it and not stereo[name]:
                stereo[name] = stereo_differences(numbers, end, well)
    return stereo, unstable


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
    either = [(a[0] or b[0], a[1] or b[1]) for a, b in zip(fits, relaxed, strict=True)]
    changed = bonding_changes(numbers, reactant, product)
    return [_nearer(x, reactant, product, changed) if all(f) else f for x, f in zip(wells, either, strict=True)]


def _nearer(well: np.ndarray, reactant: np.ndarray, product: np.ndarray, changed: BondChanges) -> tuple[bool, bool]:
    """Which end a well is that might be either: that of the more alike lengths of the bonds that change."""
    pairs = np.array([*changed.broken, *changed.formed], dtype=np.int64).reshape(-1, 2).T
    here, *ends = (distance_matrix(x)[pairs[0], pairs[1]] for x in (well, reactant, product))
    one, other = (float(np.abs(here - end).sum()) for end in ends)
    return one <= other, other < one


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
