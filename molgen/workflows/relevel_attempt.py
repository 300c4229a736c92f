"""One known reaction at another level: its transition state and both ends re-optimised, and what the saddle joins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from molgen.data.reactions import Reaction
from molgen.errors import CalculatorError, InputError
from molgen.geometry.align import rmsd_of
from molgen.geometry.bonds import bonding_differences
from molgen.potentials.base import Potential
from molgen.saddle import Verification, calls_allowed, refine
from molgen.saddle.verify import settle
from molgen.workflows.reaction_tools import FAILURES, Potentials, cause, centred, failure, relaxed_end, stage

LEVEL_VERDICTS = ("intended", "half", "unintended", "not found")
SIDES = ("r", "ts", "p")


@dataclass(frozen=True, eq=False)
class LevelPlan:
    """What all reactions of a run share; sent to every worker.

    Attributes:
        reactions: by their row in the source set, those to be done with a transition state each. splits, smiles:
            likewise; smiles are empty where the source has none.
        calculator, calculator_kwargs: as of `molgen ts`. rows: to be done, rising.
    """

    reactions: Mapping[int, Reaction]
    splits: Mapping[int, str]
    smiles: Mapping[int, str] = field(default_factory=dict)
    calculator: str = "gfn2"
    calculator_kwargs: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[int] = ()


class Releveling:
    """Re-optimises the reactions of a plan; `releveling(row)` depends on the plan and the row alone."""

    def __init__(self, plan: LevelPlan):
        torch.set_num_threads(1)
        self.plan = plan
        self._potentials = Potentials(plan.calculator, plan.calculator_kwargs)

    def __call__(self, row: int) -> dict[str, Any]:
        """The record of the reaction in row `row`, whatever became of it; geometries are where the searches ended."""
        begin = time.monotonic()
        reaction = self.plan.reactions[row]
        record = unfound(row, reaction, "not tried")
        calls: dict[str, int] = {}
        try:
            potential = self._potentials(reaction.numbers, reaction.charge, reaction.spin)
        except (CalculatorError, InputError) as error:
            record |= {"reason": failure(error), "cause": cause(error)}
        else:
            try:
                checked = _find_saddle(potential, reaction, record, calls)
            except FAILURES as error:
                checked = None
                record |= {"reason": failure(error), "cause": cause(error)}
            with stage("ends", potential, calls):
                _relax_ends(potential, reaction, checked, record)
        return {**record, "calls": calls, "seconds": round(time.monotonic() - begin, 3)}


def unfound(row: int, reaction: Reaction, reason: str) -> dict[str, Any]:
    """The record of a reaction nothing is known of: the source's geometries, no energies."""
    assert reaction.ts is not None
    geometries = (reaction.reactant, reaction.ts, reaction.product)
    return {
        "index": row, "outcome": "not found", "reason": reason, "verified": False,
        **{side: centred(x) for side, x in zip(SIDES, geometries, strict=True)},
        "energies": [None] * 3, "fmax": [None] * 3, "imaginary_cm": None, "rmsd": 0.0,
    }  # fmt: skip


def _find_saddle(
    potential: Potential, reaction: Reaction, record: dict[str, Any], calls: dict[str, int]
) -> Verification | None:
    """Climb from the source's transition state and see what lies on both sides; None where the search did not end."""
    assert reaction.ts is not None
    ends = reaction.reactant, reaction.product
    with stage("saddle", potential, calls):
        most = calls_allowed(len(reaction))
        saddle = refine(potential, reaction.ts, reactant=ends[0], product=ends[1], max_calls=most)
    _place(record, 1, saddle.positions, saddle.energy, saddle.fmax)
    record |= {"rmsd": round(rmsd_of(saddle.positions, reaction.ts), 5), "reason": "search did not converge"}
    if not saddle.converged:
        return None
    with stage("verification", potential, calls):
        settled, checked = settle(potential, saddle, *ends, max_calls=most)
    _place(record, 1, settled.positions, settled.energy, settled.fmax)
    record |= {
        "rmsd": round(rmsd_of(settled.positions, reaction.ts), 5),
        "imaginary_cm": round(checked.imaginary_frequency_cm, 1),
    }
    if checked.verdict == "not_a_saddle":
        record["reason"] = "not a first-order saddle"
        return None
    record |= {"outcome": checked.verdict, "reason": checked.reason}
    return checked


def _relax_ends(potential: Potential, reaction: Reaction, checked: Verification | None, record: dict[str, Any]) -> None:
    """Relax reactant and product from the source's geometries; of an intended saddle, the wells where these differ.

    The triplet is `verified` where both ends, too, are still the molecules they are in the source. An end the
    calculator fails on keeps the source's geometry.
    """
    path = checked.path_positions if checked is not None and checked.verdict == "intended" else None
    same = []
    for side, start, frame in ((0, reaction.reactant, 0), (2, reaction.product, -1)):
        try:
            found = relaxed_end(potential, start)
            if path is not None and bonding_differences(reaction.numbers, found.positions, path[frame]):
                found = relaxed_end(potential, path[frame])
        except FAILURES as error:
            record.setdefault("cause", cause(error))
            if path is not None:
                record["reason"] = f"{failure(error)} on the {'product' if side else 'reactant'}"
            same.append(False)
            continue
        _place(record, side, found.positions, found.energy, found.fmax)
        same.append(not bonding_differences(reaction.numbers, found.positions, start))
        if path is not None and not same[-1]:
            record["reason"] = f"the {'product' if side else 'reactant'} is another molecule than in the source"
    record["verified"] = path is not None and all(same)


def _place(record: dict[str, Any], side: int, positions: np.ndarray, energy: float, fmax: float) -> None:
    record[SIDES[side]] = centred(positions)
    record["energies"][side], record["fmax"][side] = round(energy, 6), round(fmax, 4)
