"""Reactions without a saddle on a calculator's surface: what can be said of them when none was proven."""

from __future__ import annotations

from molgen.geometry.bonds import bonding_differences
from molgen.saddle.descent import relax
from molgen.saddle.judge import OTHER
from molgen.saddle.restrain import Fall, falls, half_made
from molgen.workflows.reaction_tools import FAILURES, failure
from molgen.workflows.ts_ends import END_CALLS, END_FMAX
from molgen.workflows.ts_search import TSSearch


def unstable_sides(search: TSSearch) -> dict[str, str]:
    """Sides in one piece that do not stay what they are when relaxed: {"reactant": "the product"}, for one.

    Calculators that fail are counted in the rejections of the search.
    """
    found, reaction = {}, search.reaction
    ends = {"reactant": reaction.reactant, "product": reaction.product}
    pieces = {"reactant": reaction.reactant_fragments, "product": reaction.product_fragments}
    for name, other in (("reactant", "product"), ("product", "reactant")):
        if pieces[name].any():
            continue
        try:
            x = relax(search.potential, ends[name], fmax=END_FMAX, max_calls=END_CALLS).positions
        except FAILURES as error:
            search.rejections[failure(error)] += 1
            continue
        if bonding_differences(reaction.numbers, x, ends[name]):
            same = not bonding_differences(reaction.numbers, x, ends[other])
            found[name] = f"the {other}" if same else OTHER
    return found


def barrierless(search: TSSearch) -> tuple[str, Fall] | None:
    """The side whose pieces become the other without a barrier, and how; None where neither does."""
    if not search.reaction.bonds_change:
        return None
    reaction = search.reaction
    ends = {"reactant": reaction.reactant, "product": reaction.product}
    several = {"reactant": reaction.reactant_fragments.any(), "product": reaction.product_fragments.any()}
    for side, other in (("reactant", "product"), ("product", "reactant")):
        if not several[side]:
            continue
        try:
            start = ends[other]
            if several[other]:  # pieces anywhere; the guess has them side by side
                start = half_made(search.potential, search.sqrt_guess, reaction.reactant, reaction.product)
            fall = falls(search.potential, start, ends[side], ends[other])
        except FAILURES as error:
            search.rejections[failure(error)] += 1
            continue
        if fall is not None:
            return side, fall
    return None
