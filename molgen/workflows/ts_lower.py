"""Once a saddle is proven: whether another one of the same reaction lies lower."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from molgen.geometry.align import rmsds_of
from molgen.geometry.bonds import bond_graph, bonding_changes
from molgen.geometry.rotamers import rotamers
from molgen.saddle.modes import gradient
from molgen.saddle.restrain import as_made, half_made, relaxation_calls
from molgen.workflows.reaction_tools import FAILURES
from molgen.workflows.ts_result import Candidate

if TYPE_CHECKING:
    from molgen.workflows.ts_search import TSSearch

TURNED = 8  # rotamers of the saddle, and of each side in one piece, at most
MARGIN = 0.2  # eV; what lies further above the saddle, relaxed likewise, leads to no lower one
SPENT = 3  # times the calls of one refinement, after which no further one is relaxed; rotamers of the saddle: half
REFINED = 5  # of all of these, the lowest
FAILED_LATER = "calculator failed after a saddle was proven"  # among the rejections: nothing asked for is lost
ALIKE = 0.1  # Angstrom RMSD: relaxed to the same place, or to its mirror image


def lower_starts(search: TSSearch, best: Candidate) -> list[np.ndarray]:
    """Where lower saddles than `best` may lie, the most promising first: (N, 3) Angstrom each.

    The saddle turned about its single bonds is relaxed with the bonds that change held as they are; each side that is
    one piece, in all its conformers and turned likewise, with them held half made. The energies tell which are worth a
    refinement: an attack from the front lies far above one from behind.
    """
    numbers, reaction = search.reaction.numbers, search.reaction
    sides = [bond_graph(numbers, x) for x in (reaction.reactant, reaction.product)]
    changes = bonding_changes(numbers, reaction.reactant, reaction.product)
    reacting = sorted({atom for pair in (*changes.broken, *changes.formed) for atom in pair})
    shapes = []
    for end, part in enumerate((reaction.reactant_fragments, reaction.product_fragments)):
        if not part.any():
            turned = rotamers(numbers, reaction.pairs[0][end], sides[end], TURNED, reacting)
            shapes.append([*(ends[end] for ends in reaction.pairs), *turned])
    of_sides = [x for alike in zip_longest(*shapes) for x in alike if x is not None]
    of_saddle = rotamers(numbers, best.atoms.positions, sides[0] | sides[1], TURNED, reacting)
    saddle, before, most = best.atoms.positions, search.potential.calls, SPENT * search.max_calls
    relaxed = _relaxed(search, as_made, saddle, of_saddle, before + most // 2)
    relaxed += _relaxed(search, half_made, saddle, of_sides, before + most)
    chosen: list[np.ndarray] = []
    for above, x in sorted(relaxed, key=lambda entry: entry[0]):
        if above < MARGIN and len(chosen) < REFINED and not _among(chosen, x):
            chosen.append(x)
    return chosen


def _relaxed(
    search: TSSearch, hold: Callable[..., np.ndarray], saddle: np.ndarray, turned: list[np.ndarray], last: int
) -> list[tuple[float, np.ndarray]]:
    """Where `turned` relaxes to by `hold`, other than the saddle does, until `last` calls are spent: eV above the
    saddle relaxed likewise, and (N, 3) Angstrom."""
    ends, calls = (search.reaction.reactant, search.reaction.product), relaxation_calls(len(saddle))
    found: list[tuple[float, np.ndarray]] = []
    least, there = math.inf, []  # of the saddle
    for k, start in enumerate([saddle, *turned] if turned else []):
        search.progress("turning single bonds", k, len(turned))
        if search.out_of_time() or search.potential.calls > last:
            break
        try:
            x = hold(search.potential, start, *ends, min(search.max_calls, calls))
            energy = gradient(search.potential, x)[0]
        except FAILURES:
            search.rejections[FAILED_LATER] += 1
            continue
        if k == 0:
            least, there = energy, [x]
        elif not _among(there, x):
            found.append((energy - least, x))
    return found


def _among(places: list[np.ndarray], x: np.ndarray) -> bool:
    """Whether `x` (N, 3) or its mirror image is one of `places`."""
    return bool(places) and bool((rmsds_of(np.array([x, -x])[:, None], np.array(places)) < ALIKE).any())
