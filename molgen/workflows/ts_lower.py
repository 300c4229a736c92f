"""Once a saddle is proven: whether another one of the same reaction lies lower."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from molgen.data.reactions import Pair
from molgen.geometry.align import among
from molgen.geometry.bonds import bond_graph, bonding_changes
from molgen.geometry.rotamers import rotamers
from molgen.saddle.modes import gradient
from molgen.saddle.restrain import as_made, half_made, relaxation_calls
from molgen.workflows.reaction_tools import FAILURES
from molgen.workflows.ts_result import Candidate

if TYPE_CHECKING:
    from molgen.workflows.ts_search import TSSearch

Start = tuple[np.ndarray, Pair]  # (N, 3) Angstrom, and the sides whose bonds are half made there
TURNED = 8  # rotamers of the saddle, and of each side in one piece, at most
MARGIN = 0.2  # eV; what lies further above the saddle, relaxed likewise, leads to no lower one
SPENT = 3  # times the calls of one refinement, after which no further one is relaxed; rotamers of the saddle: half
REFINED = 5  # of all of these, the lowest
FAILED_LATER = "calculator failed after a saddle was proven"  # among the rejections: nothing asked for is lost


def lower_starts(search: TSSearch, best: Candidate, tried: list[np.ndarray]) -> list[Start]:
    """Where lower saddles than `best` may lie, the most promising first.

    The saddle turned about its single bonds is relaxed with the bonds that change held as they are; at first also each
    side that is one piece, in all its conformers, turned likewise and as the isomers that are left open, with them held
    half made. The energies tell which are worth a refinement: an attack from the front lies far above one from behind.

    Args:
        tried: positions of what earlier calls returned; empty at first.
    """
    numbers, reaction, given = search.reaction.numbers, search.reaction, search.reaction.pairs[0]
    sides = [bond_graph(numbers, x) for x in given]
    changes = bonding_changes(numbers, *given)
    reacting = sorted({atom for pair in (*changes.broken, *changes.formed) for atom in pair})
    shapes: list[list[Start]] = []
    for end, part in enumerate((reaction.reactant_fragments, reaction.product_fragments)):
        if not part.any() and not tried:
            turned = rotamers(numbers, given[end], sides[end], TURNED, reacting)
            pairs = [*(reaction.isomers if end else ()), *reaction.pairs]
            shapes.append([*((ends[end], ends) for ends in pairs), *((x, given) for x in turned)])
    of_sides = [start for alike in zip_longest(*shapes) for start in alike if start is not None]
    saddle, before, most = best.atoms.positions, search.potential.calls, SPENT * search.max_calls
    of_saddle = [(x, given) for x in rotamers(numbers, saddle, sides[0] | sides[1], TURNED, reacting)]
    relaxed = _relaxed(search, as_made, saddle, of_saddle, before + most // 2)
    relaxed += _relaxed(search, half_made, saddle, of_sides, before + most)
    chosen: list[Start] = []
    for above, start in sorted(relaxed, key=lambda entry: entry[0]):
        places = [*tried, *(x for x, _ in chosen)]
        if above < MARGIN and len(chosen) < REFINED and not among(places, start[0]):
            chosen.append(start)
    return chosen


def _relaxed(
    search: TSSearch, hold: Callable[..., np.ndarray], saddle: np.ndarray, starts: list[Start], last: int
) -> list[tuple[float, Start]]:
    """Where `starts` relax to by `hold`, other than the saddle does, until `last` calls are spent; with the eV above
    the saddle relaxed likewise."""
    calls = min(search.max_calls, relaxation_calls(len(saddle)))
    found: list[tuple[float, Start]] = []
    least, there = math.inf, []  # of the saddle
    for k, (start, ends) in enumerate([(saddle, search.reaction.pairs[0]), *starts] if starts else []):
        search.progress("turning single bonds", k, len(starts))
        if search.out_of_time() or search.potential.calls > last:
            break
        try:
            x = hold(search.potential, start, *ends, calls)
            energy = gradient(search.potential, x)[0]
        except FAILURES:
            search.rejections[FAILED_LATER] += 1
            continue
        if k == 0:
            least, there = energy, [x]
        elif not among(there, x):
            found.append((energy - least, (x, ends)))
    return found
