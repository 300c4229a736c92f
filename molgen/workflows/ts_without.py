"""Reactions without a saddle on a calculator's surface: what can be said of them when none was proven."""

from __future__ import annotations

from molgen.saddle.descent import relax
from molgen.saddle.restrain import falls_together
from molgen.saddle.verify import OTHER, bonding_differences
from molgen.units import kcal
from molgen.workflows.reaction_tools import FAILURES, failure
from molgen.workflows.ts_search import END_CALLS, END_FMAX, TSSearch


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


def barrierless_kcal(search: TSSearch) -> float | None:
    """kcal/mol that the pieces of a side lose where they fall together into the other, which is one; else None."""
    r, p = search.reaction.reactant_fragments.any(), search.reaction.product_fragments.any()
    if r == p or not search.bonds_change:
        return None
    whole, parts = (search.reaction.product, search.reaction.reactant)[:: 1 if r else -1]
    try:
        lost = falls_together(search.potential, whole, parts)
    except FAILURES as error:
        search.rejections[failure(error)] += 1
        return None
    return None if lost is None else kcal(lost)
