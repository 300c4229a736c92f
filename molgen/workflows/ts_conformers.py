"""Conformers of reactant and product that lie lower than the wells beside the saddle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from molgen.geometry.align import among
from molgen.geometry.bonds import bonding_differences
from molgen.geometry.chirality import stereo_differences
from molgen.saddle.descent import relax
from molgen.workflows.reaction_tools import FAILURES
from molgen.workflows.ts_lower import FAILED_LATER
from molgen.workflows.ts_result import Candidate, Conformer

if TYPE_CHECKING:
    from molgen.workflows.ts_search import TSSearch

LIMITS = {"fmax": 0.03, "max_calls": 100}  # eV/Angstrom and gradient calls of a relaxation
LEAST = 0.005  # eV; what lies lower by less is as low


def lower_conformers(search: TSSearch, best: Candidate) -> dict[str, Conformer]:
    """The lowest conformer found of each side in one piece that is lower than the well of `best` there.

    Relaxed are the side as it was given and, of a SMILES, the conformers of the lowest force-field energy; the wells of
    other saddles count, too. All are of the same stereoisomer. That there is none lower still is not proven.
    """
    found: dict[str, Conformer] = {}
    numbers, reaction = search.reaction.numbers, search.reaction
    for k, (side, part) in enumerate(
        (("reactant", reaction.reactant_fragments), ("product", reaction.product_fragments))
    ):
        if part.any() or best.path_positions is None or best.path_energies is None:
            continue
        well = Conformer(best.path_positions[-k], float(best.path_energies[-k]))
        known = [well, *_wells(search, best, k)]
        for start in (reaction.pairs[0][k], *reaction.lowest[k]):
            search.progress("relaxing conformers", k, 2)
            if search.out_of_time() or among([c.positions for c in known], start):
                continue
            try:
                relaxed = relax(search.potential, start, **LIMITS)
            except FAILURES:
                search.rejections[FAILED_LATER] += 1
                continue
            known.append(Conformer(relaxed.positions, relaxed.energy))
        for other in sorted(known, key=lambda conformer: conformer.energy):
            if other.energy > well.energy - LEAST:
                break
            here, there = well.positions, other.positions
            if not (bonding_differences(numbers, here, there) or stereo_differences(numbers, here, there)):
                found[side] = other
                break
    return found


def _wells(search: TSSearch, best: Candidate, k: int) -> list[Conformer]:
    """Those of the other intended saddles, of the reactant (k = 0) or the product (1)."""
    return [
        Conformer(other.path_positions[-k], float(other.path_energies[-k]))
        for other in search.relaxed
        if other is not best and other.verdict == "intended" and other.path_positions is not None
        and other.path_energies is not None
    ]  # fmt: skip
