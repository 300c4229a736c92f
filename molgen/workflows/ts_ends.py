"""The wells beside a saddle, from which its barriers are measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from molgen.data.reactions import Reaction
from molgen.geometry.bonds import bonding_differences
from molgen.geometry.symmetry import is_symmetric
from molgen.potentials.base import Potential
from molgen.saddle.descent import Path, fallen_off, falling, relax
from molgen.saddle.judge import LEAST_BARRIER, judge_wells
from molgen.saddle.modes import Modes, normal_modes
from molgen.units import kcal
from molgen.workflows.reaction_tools import FAILURES, cause, failure
from molgen.workflows.ts_result import Candidate

if TYPE_CHECKING:
    from molgen.workflows.ts_search import TSSearch

END_FMAX, END_CALLS = 0.01, 200  # eV/Angstrom and gradient calls of a relaxation
LIMITS = {"fmax": END_FMAX, "max_calls": END_CALLS}
FALLS = 3  # times that an end which is no minimum falls further, at most


def relax_ends(search: TSSearch, candidate: Candidate) -> None:
    """Relax the ends of a candidate's path tightly, and measure its barriers from there: verification stops as soon as
    it knows which wells they are.

    Where one goes on to another molecule, and of conformers always, the candidate is judged anew by these ends.
    """
    if candidate.path_positions is None or candidate.path_energies is None or candidate.ts_index is None:
        return
    before, conformers = search.potential.calls, not search.reaction.bonds_change  # these may become others
    changed = conformers
    x, energy = list(candidate.path_positions), list(candidate.path_energies)
    top, wells = energy[candidate.ts_index], [x[0], x[-1]]  # as they were judged
    for end in (0, -1):
        search.progress("relaxing the ends", -end, 2)
        downhill = _downhill(search, candidate, x[end], energy[end])
        if not downhill:
            continue
        if conformers or _is_other(search.reaction, x[end], downhill[-1][1]):
            changed, wells[end] = True, downhill[-1][1]
        if end == 0:
            x, energy = [p for _, p in downhill[::-1]] + x, [e for e, _ in downhill[::-1]] + energy
            candidate.ts_index += len(downhill)
        else:
            x, energy = x + [p for _, p in downhill], energy + [e for e, _ in downhill]
    if changed:
        x, energy = _judge_again(search, candidate, x, energy, wells)
    candidate.barrier_forward_kcal, candidate.barrier_reverse_kcal = (kcal(top - energy[end]) for end in (0, -1))
    candidate.path_positions, candidate.path_energies = np.array(x), np.array(energy)
    if top - max(energy[0], energy[-1]) < LEAST_BARRIER:
        candidate.reason += f"; less than {LEAST_BARRIER} eV above one of its wells, it is hardly a barrier"
    search.finish(candidate, before - candidate.gradient_calls)


def _is_other(reaction: Reaction, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether an end (N, 3) has other bonds than before, or has become a side: for that a bond may pass the length up
    to which it counts by too little to have changed by itself. What was a side remains one then."""
    numbers, sides = reaction.numbers, (reaction.reactant, reaction.product)
    was, now = ([not bonding_differences(numbers, side, x) for side in sides] for x in (before, after))
    return any(b and not a for a, b in zip(was, now, strict=True)) or bonding_differences(numbers, before, after) > 0


def _downhill(search: TSSearch, candidate: Candidate, x: np.ndarray, energy: float) -> Path:
    """The way from an end (N, 3) down to a minimum, without the end itself; empty where it is one.

    A descent keeps the symmetry it has, and may end where an imaginary mode would break it: ends that look symmetric
    are asked for their modes. What was found before the calculator failed stays, and the failure is counted.
    """
    path: Path = [(energy, x)]
    try:
        well = relax(search.potential, x, **LIMITS)
        if well.energy < energy:
            path += falling(well.path)[1:]
        for _ in range(FALLS):
            here = path[-1][1]
            if not (search.every_end or is_symmetric(search.reaction.numbers, here)):
                break
            lower = fallen_off(search.potential, here, search.well_modes(here), **LIMITS)
            if lower is None:
                break
            path += [point for point in falling(lower.path) if point[0] < path[-1][0]]
    except FAILURES as error:
        search.rejections[failure(error)] += 1
        candidate.reason += f"; relaxing an end failed ({cause(error)})"
    return path[1:]


def minimum(potential: Potential, x: np.ndarray) -> tuple[np.ndarray, Modes]:
    """What a geometry (N, 3), Angstrom, relaxes to, and its modes by central differences; off a place with an imaginary
    mode it falls on.

    Raises:
        CalculatorError: the calculator failed.
    """
    x = relax(potential, x, **LIMITS).positions if len(x) > 1 else x
    modes = normal_modes(potential, x, central=True, saddle=False)
    for _ in range(FALLS):
        lower = fallen_off(potential, x, modes, **LIMITS)
        if lower is None:
            break
        x = lower.positions
        modes = normal_modes(potential, x, central=True, saddle=False)
    return x, modes


def _judge_again(
    search: TSSearch, candidate: Candidate, x: list[np.ndarray], energy: list[float], wells: list[np.ndarray]
) -> tuple[list[np.ndarray], list[float]]:
    """The path, from reactant to product, of a candidate of which one of the `wells` at its ends has become another
    molecule on relaxing."""
    assert candidate.ts_index is not None
    drops = [energy[candidate.ts_index] - energy[end] for end in (0, -1)]
    failed = candidate.reason.partition("; relaxing an end failed")
    reaction = search.reaction
    judged = judge_wells(
        search.potential, wells, drops, reaction.reactant, reaction.product, open_stereo=reaction.open_stereo
    )
    candidate.verdict, candidate.stereo, candidate.known = judged.verdict, judged.stereo, judged.known
    candidate.unstable = dict(judged.unstable)
    candidate.reason = judged.reason + failed[1] + failed[2]
    if judged.swapped:
        x, energy, candidate.ts_index = x[::-1], energy[::-1], len(x) - 1 - candidate.ts_index
    return x, energy
