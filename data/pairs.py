"""The same reactions at two levels: a set and its twin from `molgen data reactions --relevel`."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from molgen.data.reactions import Reaction, load_npz, read_column
from molgen.errors import InputError


@dataclass(frozen=True, eq=False)
class LevelPair:
    """One reaction at two levels, atoms in one order.

    Attributes:
        source: as in the set. twin: re-optimised at another level; of a failed search where it ended.
        verdict: of the twin: "intended", "half", "unintended" or "not found".
        verified: the twin is a transition state that joins the same reactant and product.
    """

    source: Reaction
    twin: Reaction
    verdict: str
    verified: bool


def load_pairs(source: str | os.PathLike, twin: str | os.PathLike, split: str | None = None) -> list[LevelPair]:
    """All pairs of a set and its twin, failures included, in the twin's order; or those of one split.

    Raises:
        InputError: no such file or split, or a twin of another set.
    """
    index, verdicts, verified = (read_column(twin, key) for key in ("index", "verdict", "verified"))
    if split is not None:
        kept = read_column(twin, "split").astype(str) == split
        index, verdicts, verified = (column[kept] if len(column) else column for column in (index, verdicts, verified))
    sources, twins = load_npz(source), load_npz(twin, split)
    if not len(index) == len(verdicts) == len(verified) == len(twins):
        raise InputError(
            "has no `index`, `verdict` and `verified` of every reaction",
            where=str(twin),
            expected="the reactions.npz of molgen data reactions --relevel",
        )
    pairs = []
    for row, verdict, sound, reaction in zip(index.tolist(), verdicts.tolist(), verified.tolist(), twins, strict=True):
        if not 0 <= row < len(sources) or not np.array_equal(sources[row].numbers, reaction.numbers):
            raise InputError(
                f"is not the twin of {source}: reaction {reaction.name} does not have the atoms of row {row}",
                where=str(twin),
                expected="the set it was made from",
            )
        pairs.append(LevelPair(sources[row], reaction, verdict, sound))
    return pairs
