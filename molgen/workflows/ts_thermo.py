"""Gibbs energies along a reaction with a proven saddle: barriers and rates at a temperature."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from molgen.geometry.bonds import bonding_differences
from molgen.potentials.base import Potential
from molgen.saddle.modes import gradient, normal_modes
from molgen.saddle.thermochemistry import BAR, ReactionThermochemistry, Thermochemistry, molar_pressure, thermochemistry
from molgen.structures import formula, possible_spin
from molgen.workflows.reaction_tools import FAILURES, cause, failure
from molgen.workflows.ts_ends import minimum
from molgen.workflows.ts_lower import FAILED_LATER
from molgen.workflows.ts_result import Candidate, Conformer
from molgen.workflows.ts_search import TSSearch

MOST_PIECES = 4  # of a side that is looked at molecule by molecule
CHARGES = range(-2, 3)  # e, that one of them may have
NOT_APART = "Gibbs energies of molecules apart, which need xTB by its name, or neutral ones without unpaired electrons"
NO_CONFORMER = "Gibbs energies of a lower conformer, which becomes another molecule"
NOT_KEPT = "Gibbs energies of molecules apart, one of which becomes another"
HUND = 0.1  # eV; of states that lie closer the one with the most unpaired electrons, as of O2, where xTB has them alike
MULTIPLETS = ("singlet", "doublet", "triplet", "quartet")
Maker = Callable[[np.ndarray, int, int], Potential | None]  # of (numbers, charge, spin)
Share = tuple[int, int]  # charge and unpaired electrons of a molecule


def reaction_thermochemistry(
    search: TSSearch,
    best: Candidate,
    conformers: Mapping[str, Conformer],
    temperature: float,
    make: Maker,
    in_solution: bool,
) -> ReactionThermochemistry | None:
    """Gibbs energies of a saddle beside the reactant or the product, of the wells there, of lower conformers,
    and of the molecules of these sides each alone.

    Failures of the calculator are counted in the rejections of the search, its calls for single molecules in
    `other_calls`.

    Args:
        best: a candidate with relaxed ends. conformers: by side, lower ones than its wells.
        temperature: K.
        make: a potential of some of the atoms, or None where there is none; counted as a rejection.
        in_solution: of 1 mol/L; else a gas at 1 bar.

    Returns:
        None where nothing was proven, or the calculator failed.
    """
    if not (best.verdict == "intended" or best.known) or best.path_positions is None:
        return None
    reaction = search.reaction
    pressure = molar_pressure(temperature) if in_solution else BAR
    at: dict[str, Any] = {"temperature": temperature, "pressure": pressure}
    x = {"reactant": best.path_positions[0], "saddle": best.atoms.positions, "product": best.path_positions[-1]}
    points, frequency = {}, 0.0
    try:
        for k, (name, geometry) in enumerate(x.items()):
            search.progress("normal modes", k, len(x))
            saddle = name == "saddle"
            modes = normal_modes(search.potential, geometry, central=True) if saddle else search.well_modes(geometry)
            points[name] = thermochemistry(geometry, reaction.numbers, modes, spin=reaction.spin, saddle=saddle, **at)
            frequency = float(modes.frequencies_cm[0]) if saddle else frequency
    except FAILURES as error:
        search.rejections[failure(error)] += 1
        best.reason += f"; no Gibbs energies ({cause(error)})"
        return None
    state = "1 mol/L" if in_solution else "1 bar"
    found = ReactionThermochemistry(temperature, pressure, state, **points, imaginary_frequency_cm=frequency)
    for side, conformer in conformers.items():
        try:
            positions, modes = minimum(search.potential, conformer.positions)
        except FAILURES:
            search.rejections[FAILED_LATER] += 1
            continue
        if bonding_differences(reaction.numbers, conformer.positions, positions):
            search.rejections[NO_CONFORMER] += 1
            continue
        point = thermochemistry(positions, reaction.numbers, modes, spin=reaction.spin, **at)
        found.lowest[side] = found.above([formula(reaction.numbers)], [point])
    for side in ("reactant", "product"):
        given = best.known in ("", side) and side not in best.unstable
        alone = _alone(search, side, x[side], make, at) if given else None
        if alone is not None:
            found.pieces[side] = found.above(*alone)
    return found


def _alone(
    search: TSSearch, side: str, well: np.ndarray, make: Maker, at: Mapping[str, Any]
) -> tuple[list[str], list[Thermochemistry]] | None:
    """Names and figures of the molecules of a side, each relaxed alone from where it is in the well (N, 3).

    Each has the whole charge next to what its atoms have in the well. How unpaired electrons are shared is what has the
    lowest energy, and the most of them where that leaves a choice. None for a side in one piece or in too many; and,
    counted, where there is no potential of a part, a molecule does not stay what it is, or the calculator fails.
    """
    part = getattr(search.reaction, f"{side}_fragments")
    if not 0 < part.max() < MOST_PIECES:
        return None
    search.progress(f"molecules of the {side}", 0, 1)
    numbers = [search.reaction.numbers[part == k] for k in range(part.max() + 1)]
    starts = [well[part == k] for k in range(part.max() + 1)]
    made: dict[tuple[int, Share], tuple[Potential, float]] = {}
    try:
        charges = _charges(search.potential, well, part, search.reaction.charge)
        options = _shares(numbers, charges, search.reaction.spin)
        for k, share in sorted({(k, share) for option in options for k, share in enumerate(option)}):
            if (potential := make(numbers[k], *share)) is not None:
                made[k, share] = potential, gradient(potential, starts[k])[0]
        known = [option for option in options if all((k, share) in made for k, share in enumerate(option))]
        if not known:
            search.rejections[NOT_APART] += 1
            return None
        energies = [sum(made[k, share][1] for k, share in enumerate(option)) for option in known]
        near = [option for option, energy in zip(known, energies, strict=True) if energy < min(energies) + HUND]
        best = max(near, key=lambda option: sum(spin for _, spin in option))
        names, points = [], []
        for k, (charge, spin) in enumerate(best):
            potential = made[k, (charge, spin)][0]
            x, modes = minimum(potential, starts[k])
            if bonding_differences(numbers[k], starts[k], x):
                search.rejections[NOT_KEPT] += 1
                return None
            points.append(thermochemistry(x, numbers[k], modes, spin=spin, **at))
            names.append(_name(numbers[k], charge, spin))
        return names, points
    except FAILURES as error:
        search.rejections[failure(error)] += 1
        return None
    finally:
        search.other_calls += sum(potential.calls for potential, _ in made.values())


def _name(numbers: np.ndarray, charge: int, spin: int) -> str:
    """Such as "CH3Cl", "Cl(-1)" or "O2(triplet)"."""
    told = [f"{charge:+d}"] if charge else []
    told += [MULTIPLETS[spin]] if spin else []
    return formula(numbers) + (f"({', '.join(told)})" if told else "")


def _charges(potential: Potential, well: np.ndarray, part: np.ndarray, charge: int) -> list[int]:
    """Whole charges of the molecules `part` (N,) numbers, e: next to what their atoms have in the well (N, 3), and none
    where the calculator does not say."""
    count = int(part.max()) + 1
    if not hasattr(potential, "atomic_charges"):
        return [0] * count if not charge else []
    told = np.bincount(part, potential.atomic_charges(well), count)
    possible = [option for option in itertools.product(CHARGES, repeat=count) if sum(option) == charge]
    return list(min(possible, key=lambda option: float(np.square(told - option).sum()), default=()))


def _shares(pieces: Sequence[np.ndarray], charges: Sequence[int], spin: int) -> list[tuple[Share, ...]]:
    """Ways to share unpaired electrons among molecules of these atomic numbers and charges: two more than the fewest
    possible at most, that can couple to `spin` (two radicals to a singlet, a triplet and a doublet to a doublet)."""
    possible = [
        [(q, s) for s in range(4) if z.sum() > q and possible_spin(z.sum() - q, s)]
        for z, q in zip(pieces, charges, strict=False)
    ]
    options = itertools.product(*possible) if charges else ()
    return [option for option in options if _couple([s for _, s in option], spin)]


def _couple(spins: Sequence[int], total: int) -> bool:
    """Whether so many unpaired electrons of each molecule can leave `total` of all."""
    return max(2 * max(spins) - sum(spins), 0) <= total <= sum(spins) and (sum(spins) - total) % 2 == 0
