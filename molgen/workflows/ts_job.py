"""The searches of one call of `find_ts`: of the whole reaction, then of what is left after one step of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from molgen.data.reactions import Reaction
from molgen.errors import CalculatorError
from molgen.geometry.bonds import bond_graph, overlapping
from molgen.potentials.base import Potential
from molgen.run import Run
from molgen.saddle.thermochemistry import ReactionThermochemistry
from molgen.tsgen import Generator
from molgen.tsgen.correction_model import Correction
from molgen.workflows.ts_conformers import lower_conformers
from molgen.workflows.ts_correction import CorrectedTS, correct_guess, correct_saddle
from molgen.workflows.ts_mechanism import corrected_steps, followed
from molgen.workflows.ts_output import write_result
from molgen.workflows.ts_result import Candidate, Conformer, TSResult
from molgen.workflows.ts_search import Method, TSSearch
from molgen.workflows.ts_thermo import Maker, reaction_thermochemistry
from molgen.workflows.ts_without import barrierless, unstable_sides

# 1/cm: every vibration of bonds to hydrogen with other nonmetals is stiffer, that of Te-H by 1.6 times. Hartree for eV
# makes frequencies 5.2 times too low, Hartree/Bohr 7.2 times: those of O-H and C-H are below it then.
SOFTEST = 1200.0
NONMETALS = (5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53)
PHYSICS_TRIES = 4  # sqrt-distance guesses, at least, until one leads to the intended saddle
Thermo = Callable[[TSSearch, Candidate, Mapping[str, Conformer]], ReactionThermochemistry | None]


@dataclass(frozen=True)
class Draw:
    """How guesses are drawn from the model: samples, flow steps (None: the weights' own) and seed."""

    samples: int
    steps: int | None
    seed: int


@dataclass(eq=False, kw_only=True)
class TSJob:
    """What all searches of one call share. Attributes not named here: see :func:`molgen.find_ts`.

    Attributes:
        potential: of all atoms, which stay the same from search to search. part: makes one of some of the atoms.
        method: how saddles are verified; None: guesses are not refined.
        max_calls: of one refinement. begun, deadline: on the clock of `time.monotonic`.
        level: of the calculator, in words. in_solution: whether Gibbs energies are of 1 mol/L.
        run_options: of :class:`molgen.run.Run`, with the settings that are recorded.
        lost: calls of searches that failed.
    """

    potential: Potential
    part: Maker
    model: Generator | None
    draw: Draw
    method: Method | None
    max_calls: int
    deadline: float
    follow: int
    lower: bool
    level: str
    temperature: float | None
    in_solution: bool
    notes: list[str]
    run_options: Mapping[str, Any]
    calculator: Any
    log: Callable[[str], None]
    progress: Callable[[str, int, int], None]
    begun: float
    lost: int = 0

    def run(self, reaction: Reaction, corrector: Correction | None, folder: Path | None) -> TSResult:
        """Search, and go on from the intermediate that was found, if one was; all written to `folder` if there is one.

        Raises:
            CalculatorError: the calculator failed on every guess of the first search.
        """
        with self._opened(folder) as run:
            result = self._search(reaction, corrector, run)  # written before it goes on: that may be cut short
            result.mechanism = followed(result, partial(self._search_gap, run), self.follow)
            if result.mechanism is not None and result.mechanism.complete:
                result.corrected = None  # the guess of one step, which it is not
                if corrector is not None:
                    correct = partial(correct_saddle, corrector)
                    result.mechanism = corrected_steps(
                        result.mechanism, lambda part, saddle: correct(part, self.potential, saddle)
                    )
            if result.mechanism is not None or self.lost:
                further = result.mechanism.searches[1:] if result.mechanism is not None else []
                result.gradient_calls += sum(search.gradient_calls for search in further) + self.lost
                result.seconds = time.monotonic() - self.begun
                _write(run, result, final=True)
        return result

    def _opened(self, folder: Path | None, within: bool = False) -> AbstractContextManager[Run | None]:
        return nullcontext() if folder is None else Run(folder, "ts", **self.run_options, within=within)

    def _new(self, reaction: Reaction) -> tuple[TSSearch, TSResult]:
        every_end = self.temperature is not None
        search = TSSearch(
            reaction, self.potential, self.method, self.progress, self.max_calls, self.deadline, every_end
        )
        result = TSResult([], reaction, self.notes, [], checkpoint_hash=self.model.hash if self.model else None)
        result.level = self.level
        return search, result

    def _search(self, reaction: Reaction, corrector: Correction | None, run: Run | None) -> TSResult:
        """One search; how things stand is written after every step.

        Raises:
            CalculatorError: the calculator failed on every guess.
        """
        since, (search, result) = time.monotonic(), self._new(reaction)
        for _ in stages(search, result, self.model, self.draw, corrector, self._thermo(), self.log, self.lower):
            search.report(result)
            result.seconds = time.monotonic() - since
            _write(run, result, final=False)
        if all(candidate.verdict == "failed" for candidate in result.candidates):
            raise CalculatorError(
                f"failed on every guess: {result.best.reason}",
                where=f"calculator {self.calculator!r}",
                remedy="check --charge and --spin, or choose another --calculator",
            )
        if (doubt := unit_doubt(result)) and doubt not in self.notes:
            self.notes.append(doubt)
            self.log(doubt)
        _write(run, result, final=True)
        return result

    def _search_gap(self, first: Run | None, gap: Reaction, number: int) -> TSResult | None:
        """Search what is left of a reaction, in a folder within that of the first search.

        None where there is no time, or the calculator failed.
        """
        if time.monotonic() > self.deadline:
            return None
        self.log(f"search {number + 1}: what is left of the reaction")
        before, (search, result) = self.potential.calls, self._new(gap)
        if (fall := barrierless(search)) is not None:  # pieces that fall together need no saddle
            result.barrierless_side, result.barrierless = fall
            search.report(result)
            return result
        asked = self.potential.calls - before
        try:
            with self._opened(first and first.path(f"search-{number + 1}"), within=True) as run:
                result = self._search(gap, None, run)
        except CalculatorError as error:
            self.log(f"warning: {error}")
            self.lost += self.potential.calls - before
            return None
        result.gradient_calls += asked
        return result

    def _thermo(self) -> Thermo | None:
        if self.temperature is None:
            return None
        return partial(
            reaction_thermochemistry, temperature=self.temperature, make=self.part, in_solution=self.in_solution
        )


def unit_doubt(result: TSResult) -> str:
    """A warning where no vibration of the best saddle is as stiff as those of its bonds to hydrogen; else empty.

    Hydrogens that react do not count, nor do those of metals or between two atoms.
    """
    modes, reaction = result.best.modes, result.reaction
    if modes is None or not len(modes.frequencies_cm) or modes.frequencies_cm[-1] > SOFTEST:
        return ""
    numbers = reaction.numbers
    here, *ends = (bond_graph(numbers, x) for x in (result.best.atoms.positions, reaction.reactant, reaction.product))
    kept = (numbers == 1) & (here.sum(0) == 1) & np.all([end == here for end in ends], axis=(0, 1))
    if not here[kept][:, np.isin(numbers, NONMETALS)].any():
        return ""
    return (
        f"warning: no vibration of the saddle is above {SOFTEST:.0f} cm-1, as those of bonds to hydrogen are: "
        "are the calculator's energies in eV and its forces in eV/Angstrom, as ASE has them, and not in Hartree?"
    )


def _write(run: Run | None, result: TSResult, final: bool) -> None:
    if run is not None:
        write_result(run, result, final)


def stages(
    search: TSSearch,
    result: TSResult,
    model: Generator | None,
    draw: Draw,
    corrector: Correction | None,
    thermo: Thermo | None,
    log: Callable[[str], None],
    lower: bool,
) -> Iterator[None]:
    """The guesses of the model one by one, physics where these do not do, the correction; yields after each.

    Args:
        result: gets the correction. thermo: of the best candidate. lower: look for lower saddles than the first
            proven, and for lower conformers of both sides.
    """

    def wanting() -> bool:
        return not search.succeeded() and search.best_verdict() != "unverified"

    if model is not None:
        search.propose_tsgen(model, draw.samples, draw.steps or model.steps, draw.seed)
        yield
        while search.advance():
            yield
        while wanting() and search.go_on():
            yield
        if search.verifies and search.best_verdict() == "intended":
            search.best_with_relaxed_ends()  # may show that none is
    if wanting() and not search.out_of_time():
        if model is not None:
            saddle = "the intended saddle" if search.verifies else "a saddle"
            log(f"no guess of the model leads to {saddle}: trying guesses without it too")
        search.propose_physics(draw.samples if search.method is None else max(draw.samples, PHYSICS_TRIES), draw.seed)
        yield
        while not search.succeeded() and (search.advance() or search.go_on()):
            yield
        if search.verifies:
            search.best_with_relaxed_ends()  # may show that one is
    if lower and search.succeeded() and search.reaction.bonds_change and not search.out_of_time():
        log("a saddle is proven: looking for lower ones (--no-lower: do not)")
        while search.propose_lower():
            yield
            while search.advance():
                yield
    if search.verifies:
        best = search.best_with_relaxed_ends()
        search.relax_other_ends()
        result.unstable = best.unstable
        if lower and search.reaction.bonds_change and best.verdict == "intended":
            result.conformers = lower_conformers(search, best)
        if best.verdict != "intended" and not search.out_of_time():
            search.progress("looking for a reason", 0, 1)
            result.unstable, fall = unstable_sides(search), barrierless(search)
            result.barrierless_side, result.barrierless = fall or ("", None)
        if corrector is not None:
            result.corrected = _corrected(corrector, search, best)
        if thermo is not None:
            result.thermochemistry = thermo(search, best, result.conformers)
        yield


def _corrected(corrector: Correction, search: TSSearch, best: Candidate) -> CorrectedTS | None:
    """The intended saddle on the level of the training set, or without one TS-GEN's first guess, where there is any."""
    if best.verdict == "intended":
        guess = search.guesses[best.sample].positions if best.source == "TS-GEN" else None
        return correct_saddle(corrector, search.reaction, search.potential, best.atoms.positions, guess)
    sound = (guess for guess in search.guesses if not overlapping(search.reaction.numbers, guess.positions))
    first = next(sound, None)
    if first is None or first.source != "TS-GEN":
        return None
    return correct_guess(corrector, search.reaction, search.potential, first.positions)
