"""Reactions of several steps: searches that go on from the intermediate where an earlier one ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from molgen.data.reactions import Reaction
from molgen.geometry.bonds import bond_graph, bonding_differences, fragments
from molgen.saddle.restrain import Fall
from molgen.saddle.thermochemistry import ReactionThermochemistry
from molgen.units import kcal
from molgen.workflows.ts_correction import CorrectedTS
from molgen.workflows.ts_result import Candidate, TSResult

_UNNAMED = ("", "")


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a mechanism.

    Attributes:
        ends: what lies on its sides, such as ("reactant", "intermediate 1").
        saddle: the candidate that joins them; None where one becomes the other without a barrier, or nobody knows how.
        path_positions: (M, N, 3) Angstrom, from the first end to the second; path_energies: (M,) eV, nan if unknown.
        search: which search found it, from 0; None: nobody knows how its ends become each other.
        thermochemistry: of its saddle and the wells beside it, where a temperature was given.
        corrected: its saddle carried to the level of the training set, where there are weights for that.
    """

    ends: tuple[str, str]
    saddle: Candidate | None
    path_positions: np.ndarray
    path_energies: np.ndarray
    search: int | None
    thermochemistry: ReactionThermochemistry | None = None
    corrected: CorrectedTS | None = None

    @property
    def barriers_kcal(self) -> tuple[float, float] | None:
        """There and back, kcal/mol, above its own ends; of a step without a saddle None."""
        if self.saddle is None or self.saddle.ts_index is None:
            return None
        top, ends = self.path_energies[self.saddle.ts_index], self.path_energies[[0, -1]]
        return float(kcal(top - ends[0])), float(kcal(top - ends[1]))

    def summary(self) -> dict[str, Any]:
        """The figures `summary.json` lists."""
        barriers = self.barriers_kcal or (None, None)
        told = {
            "ends": list(self.ends), "search": self.search,
            "barrier_forward_kcal": barriers[0], "barrier_reverse_kcal": barriers[1],
            "imaginary_frequency_cm": self.saddle.imaginary_frequency_cm if self.saddle else None,
        }  # fmt: skip
        if self.thermochemistry is not None:
            told["thermochemistry"] = self.thermochemistry.summary()
        if self.corrected is not None:
            told["corrected"] = self.corrected.summary()
        return told


@dataclass(frozen=True, eq=False)
class Mechanism:
    """Steps from the reactant to the product.

    Attributes:
        steps: in order. searches: what each search found, the first that of the whole reaction; one without candidates
            where pieces fall together, so that no saddle was looked for.
    """

    steps: list[Step]
    searches: list[TSResult]

    @property
    def complete(self) -> bool:
        """Whether every step is known."""
        return all(step.search is not None for step in self.steps)

    @property
    def highest_kcal(self) -> float:
        """The highest point of all steps above the reactant's end of the first, kcal/mol; nan where one is unknown."""
        if not self.complete:
            return float("nan")
        highest = max(float(step.path_energies.max()) for step in self.steps)
        return kcal(highest - float(self.steps[0].path_energies[0]))

    @property
    def highest_gibbs_kcal(self) -> float:
        """The highest Gibbs energy of all saddles above the reactant's well beside the first, kcal/mol; nan without a
        temperature, where a step is unknown or the first has no saddle, or pieces apart lie above all saddles."""
        first = self.steps[0].thermochemistry
        gibbs = [step.thermochemistry.saddle.gibbs for step in self.steps if step.thermochemistry is not None]
        saddles = [step.path_energies.max() for step in self.steps if step.saddle is not None]
        if first is None or not self.complete or len(gibbs) < len(saddles):
            return float("nan")
        if max(step.path_energies.max() for step in self.steps) > max(saddles):
            return float("nan")
        return kcal(max(gibbs) - first.reactant.gibbs)

    def summary(self) -> dict[str, Any]:
        """The figures `summary.json` lists."""
        steps = [step.summary() for step in self.steps]
        told = {"complete": self.complete, "highest_kcal": self.highest_kcal, "steps": steps}
        if any(step.thermochemistry is not None for step in self.steps):
            told["highest_gibbs_kcal"] = self.highest_gibbs_kcal
        return told


def corrected_steps(mechanism: Mechanism, correct: Callable[[Reaction, np.ndarray], CorrectedTS]) -> Mechanism:
    """The mechanism with the saddle of every step corrected; `correct`: of a step's reaction and its saddle (N, 3)."""
    whole, steps = mechanism.searches[0].reaction, []
    for step in mechanism.steps:
        if step.saddle is not None:
            reactant, product = step.path_positions[0], step.path_positions[-1]
            parts = [fragments(bond_graph(whole.numbers, x)) for x in (product, reactant)]
            reaction = Reaction(whole.numbers, reactant, product, *parts, charge=whole.charge, spin=whole.spin)
            step = replace(step, corrected=correct(reaction, step.saddle.atoms.positions))
        steps.append(step)
    return replace(mechanism, steps=steps)


def followed(first: TSResult, search: Callable[[Reaction, int], TSResult | None], most: int) -> Mechanism | None:
    """The mechanism that begins with what a first search found; None where that is one step, or nothing to go on from.

    A saddle that joins one side of a gap to another molecule, or to a conformer on the way, leaves a smaller gap, which
    is searched next.

    Args:
        search: of the reaction that is left, with the number of the search, from 1; None where it failed.
        most: how often.
    """
    way, searches = _Way(first.reaction), [first]
    way.add(first, 0)
    while most and way.gap is not None and (way.before or way.after) and len(searches) <= most:
        found = search(way.gap, len(searches))
        if found is None:
            break
        searches.append(found)
        if not way.add(found, len(searches) - 1):
            break
    steps = way.steps()
    return Mechanism(steps, searches) if len(searches) > 1 and len(steps) > 1 else None


class _Way:
    """Steps known from the reactant on, and back from the product, and the gap between them."""

    def __init__(self, reaction: Reaction):
        self.before: list[Step] = []
        self.after: list[Step] = []
        self.gap: Reaction | None = reaction

    def add(self, result: TSResult, search: int) -> bool:
        """Narrow or close the gap by what a search of it found; whether it did."""
        gap = self.gap
        assert gap is not None
        if result.barrierless is not None and (self.before or self.after):
            self.before.append(_fall(result.barrierless, result.barrierless_side, search))
            self.gap = None
            return True
        best = result.best
        if best.verdict == "intended":
            self.before.append(_step(result, search))
            self.gap = None
        elif best.known and best.path_positions is not None:
            new = best.path_positions[-1 if best.known == "reactant" else 0]
            reacts = gap.bonds_change  # conformers come nearer anyway
            if reacts and any(not bonding_differences(gap.numbers, new, state) for state in self._states(gap)):
                return False  # round in a circle
            part = fragments(bond_graph(gap.numbers, new))
            if best.known == "reactant":
                self.before.append(_step(result, search))
                left_open = frozenset(), gap.open_stereo[1]
            else:
                self.after.insert(0, _step(result, search))
                left_open = gap.open_stereo[0], frozenset()
            end = {best.known: new, f"{best.known}_fragments": part}
            self.gap = replace(gap, **end, name="", conformers=(), isomers=(), lowest=((), ()), open_stereo=left_open)
        else:
            return False
        return True

    def steps(self) -> list[Step]:
        """All in order, named, the gap among them."""
        steps = [*self.before, *self.after]
        if (gap := self.gap) is not None:
            unknown = Step(_UNNAMED, None, np.stack([gap.reactant, gap.product]), np.full(2, np.nan), None)
            steps.insert(len(self.before), unknown)
        names = ["reactant", *(f"intermediate {k}" for k in range(1, len(steps))), "product"]
        return [replace(step, ends=(names[k], names[k + 1])) for k, step in enumerate(steps)]

    def _states(self, gap: Reaction) -> list[np.ndarray]:
        known = [step.path_positions[end] for step in [*self.before, *self.after] for end in (0, -1)]
        return [gap.reactant, gap.product, *known]


def _fall(fall: Fall, side: str, search: int) -> Step:
    """The step of a gap whose pieces on `side` fall to the other."""
    path, energies = np.stack([fall.apart, fall.together]), np.array(fall.energies)
    forward = slice(None) if side == "reactant" else slice(None, None, -1)
    return Step(_UNNAMED, None, path[forward], energies[forward], search)


def _step(result: TSResult, search: int) -> Step:
    saddle = result.best
    assert saddle.path_positions is not None and saddle.path_energies is not None
    return Step(_UNNAMED, saddle, saddle.path_positions, saddle.path_energies, search, result.thermochemistry)
