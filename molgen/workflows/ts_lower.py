"""Once a saddle is proven: whether another one of the same reaction lies lower."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from molgen.geometry.align import rmsds_of
from molgen.geometry.bonds import bond_graph, bonding_changes
from molgen.geometry.rotamers import rotamers
from molgen.saddle.modes import gradient
from molgen.saddle.restrain import half_made, relaxation_calls
from molgen.workflows.reaction_tools import FAILURES
from molgen.workflows.ts_result import Candidate

if TYPE_CHECKING:
    from molgen.workflows.ts_search import TSSearch

TURNED = 8  # rotamers of the saddle, and of each side in one piece, at most
MARGIN = 0.2  # eV; a rotamer that lies further above the saddle, relaxed likewise, leads to no lower one
SPENT = 3  # times the calls of one refinement, after which no further one is relaxed
REFINED = 5  # of all of these, the lowest
FAILED_LATER = "calculator failed after a saddle was proven"  # among the rejections: nothing asked for is lost
ALIKE = 0.1  # Angstrom RMSD: relaxed to the same place, or to its mirror image


def lower_starts(search: TSSearch, best: Candidate) -> list[np.ndarray]:
    """Where lower saddles than `best` may lie, the most promising first: (N, 3) Angstrom each.

    The saddle, and each side that is one piece, in all its conformers and turned about its single bonds, are relaxed
    with the bonds that change held half made. The energies tell which are worth a refinement: an attack from the front
    lies far above one from behind.
    """
    numbers, reaction = search.reaction.numbers, search.reaction
    sides = [bond_graph(numbers, x) for x in (reaction.reactant, reaction.product)]
    changes = bonding_changes(numbers, reaction.reactant, reaction.product)
    reacting = sorted({atom for pair in (*changes.broken, *changes.formed) for atom in pair})
    shapes = [rotamers(numbers, best.atoms.positions, sides[0] | sides[1], TURNED, reacting)]
    for end, part in enumerate((reaction.reactant_fragments, reaction.product_fragments)):
        if not part.any():
            turned = rotamers(numbers, reaction.pairs[0][end], sides[end], TURNED, reacting)
            shapes.append([*(ends[end] for ends in reaction.pairs), *turned])
    turned = [x for alike in zip_longest(*shapes) for x in alike if x is not None]
    if not turned:
        return []
    relaxed, before, least = [], search.potential.calls, math.inf
    for k, start in enumerate([best.atoms.positions, *turned]):
        search.progress("turning single bonds", k, len(turned))
        if search.out_of_time() or search.potential.calls - before > SPENT * search.max_calls:
            break
        calls = min(search.max_calls, relaxation_calls(len(numbers)))
        try:
            x = half_made(search.potential, start, reaction.reactant, reaction.product, calls)
            energy = gradient(search.potential, x)[0]
        except FAILURES:
            search.rejections[FAILED_LATER] += 1
            continue
        if k == 0:
            least = energy + MARGIN
        elif energy < least:
            relaxed.append((energy, x))
    chosen: list[np.ndarray] = []
    for _, x in sorted(relaxed, key=lambda entry: entry[0]):
        alike = chosen and (rmsds_of(np.array([x, -x])[:, None], np.array(chosen)) < ALIKE).any()
        if len(chosen) < REFINED and not alike:
            chosen.append(x)
    return chosen
