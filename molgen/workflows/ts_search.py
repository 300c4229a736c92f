"""Guesses of a transition state and what becomes of each: refined, compared with the others, verified."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from ase import Atoms

from molgen.data.duplicates import SAME_ENERGY, SAME_RMSD
from molgen.data.reactions import Reaction
from molgen.geometry.align import rmsd_of
from molgen.geometry.bonds import overlapping
from molgen.potentials.base import Potential
from molgen.run import Progress
from molgen.saddle import Verification, mode_overlap, refine
from molgen.saddle.modes import Modes, normal_modes
from molgen.saddle.verify import settle
from molgen.tsgen import Generator
from molgen.tsgen.rank import confidence, refined_features
from molgen.workflows.reaction_tools import FAILURES, cause, failure
from molgen.workflows.ts_ends import relax_ends
from molgen.workflows.ts_guesses import Guess, physics_guesses, sqrt_guess, tsgen_guesses
from molgen.workflows.ts_lower import FAILED_LATER, lower_starts
from molgen.workflows.ts_result import OUT_OF_TIME, TIE, VERDICTS, Candidate, TSResult, atoms_of, ranked

SAME_GUESS = 0.05  # Angstrom RMSD: guesses closer than this are refined once
NEARLY = 0.2  # eV/Angstrom, largest force left of a refinement cut short that is worth going on with
ROUNDS = 3  # of rotamers, at most: of the first saddle proven, then of lower ones
FURTHER = 4  # how many of the model's guesses go on, and of the others
Method = Literal["quick", "irc", "none"]


class TSSearch:
    """Guesses waiting to be refined, and the candidates they became.

    Args:
        potential: of the reaction's atoms. method: how saddles are verified; None: guesses are not even refined.
        progress: called with (stage, done, total).
        max_calls: gradient calls of one refinement, at most.
        deadline: on the clock of `time.monotonic`, after which no guess but the first is begun.
        every_end: look at the modes of every well that barriers are measured from, not of symmetric ones alone, and by
            central differences, as Gibbs energies need them.

    Attributes:
        guesses: in the order of drawing. candidates: what the distinct ones became, in that order.
        rejections: reason -> count of guesses that came to nothing.
        sqrt_guess: (N, 3) Angstrom, the sqrt-distance guess.
    """

    def __init__(
        self,
        reaction: Reaction,
        potential: Potential,
        method: Method | None,
        progress: Progress,
        max_calls: int = 100,
        deadline: float = math.inf,
        every_end: bool = False,
    ):
        self.reaction, self.potential, self.progress = reaction, potential, progress
        self.max_calls, self.deadline, self.every_end = max_calls, deadline, every_end
        self.method: Method | None = method
        self.guesses: list[Guess] = []
        self.candidates: list[Candidate] = []
        self.saddles: list[Candidate] = []  # those that a refinement converged to
        self.relaxed: list[Candidate] = []  # the ends of their paths
        self.turned: list[Candidate] = []  # those whose rotamers were proposed
        self.unfinished: list[tuple[float, Candidate, Guess]] = []  # force left, where a refinement was cut short
        self.further = 0  # refinements that went on
        self.ceiling = math.inf  # eV; saddles above it are of no interest any more
        self.rejections: Counter = Counter()
        self.calibration: Mapping[str, Any] = {}
        self._modes: dict[bytes, Modes] = {}
        self.done = 0  # guesses refined or rejected
        self.calls_before = potential.calls  # the user's own Potential may have worked before
        self.other_calls = 0  # of the calculator for some of the atoms
        self.sqrt_guess = sqrt_guess(reaction)

    @property
    def verifies(self) -> bool:
        """Whether saddles are verified, or at most refined."""
        return self.method not in (None, "none")

    def propose_tsgen(self, model: Generator, samples: int, steps: int, seed: int) -> None:
        """Draw guesses from the model."""
        self.calibration = model.config.get("confidence", {})
        self.guesses += tsgen_guesses(model, self.reaction, samples, steps, seed)

    def propose_physics(self, samples: int, seed: int) -> None:
        """Make guesses without a model; searches may go on anew."""
        self.further = 0
        held = self.method is not None and self.reaction.bonds_change
        self.guesses += physics_guesses(self.reaction, samples, seed, held, first=len(self.guesses))

    def advance(self) -> bool:
        """Refine and verify the next distinct guess; False when none is left, or no time."""
        total = len(self.guesses)
        if self.done < total and self.out_of_time():
            self.rejections[OUT_OF_TIME] += total - self.done
            self.done = total
        while self.done < total:
            k = self.done
            self.progress("refining guesses", k, total)
            self.done += 1
            before, earlier = self.potential.calls, [other for other in self.guesses[:k] if not other.raw]
            guess = self.guesses[k]
            if guess.raw:
                try:
                    guess = self.guesses[k] = guess.relaxed(self.potential, self.reaction, self.max_calls)
                except FAILURES as error:
                    self._counted(error)
                    continue
            if any(rmsd_of(guess.positions, other.positions) < SAME_GUESS for other in earlier):
                self.rejections["same guess as an earlier one"] += 1
                continue
            candidate = self._candidate(guess, before)
            if candidate is not None:
                self.candidates.append(candidate)
            self.progress("refining guesses", self.done, total)
            return True
        return False

    def propose_lower(self) -> bool:
        """Guesses of saddles that lie lower than the best; from here on others are passed over. False when this was
        done for the best before, often enough, or there is no time."""
        best = self.best_with_relaxed_ends()
        if best in self.turned or len(self.turned) == ROUNDS or self.out_of_time():
            return False
        assert best.energy is not None
        self.ceiling = best.energy - TIE
        self.turned.append(best)
        tried = [guess.positions for guess in self.guesses if guess.source == "rotamer"]
        for x, ends in lower_starts(self, best, tried):
            self.guesses.append(Guess(x, "rotamer", len(self.guesses), ends))
        return True

    def go_on(self) -> bool:
        """Refine the one further that was cut short nearest to a saddle; False when none is left, or no time."""
        near = sorted((entry for entry in self.unfinished if entry[0] < NEARLY), key=lambda entry: entry[0])
        if not near or self.further == FURTHER or self.out_of_time():
            return False
        _, candidate, guess = near[0]
        self.unfinished.remove(near[0])
        self.rejections -= Counter(["refinement did not converge"])
        self.progress("refining further", self.further, FURTHER)
        self.further += 1
        if not self._carried(candidate, guess, self.potential.calls - candidate.gradient_calls):
            self.candidates.remove(candidate)
        return True

    def out_of_time(self) -> bool:
        """Whether no further guess may be begun."""
        return bool(self.candidates) and time.monotonic() > self.deadline

    def succeeded(self) -> bool:
        """Whether a candidate succeeds."""
        return any(candidate.succeeds for candidate in self.candidates)

    def best_verdict(self) -> str:
        """Of the candidates so far; "failed" without any."""
        return min((c.verdict for c in self.candidates), key=VERDICTS.index, default="failed")

    def well_modes(self, x: np.ndarray) -> Modes:
        """Modes of a well (N, 3), computed once: barriers and Gibbs energies both ask for them.

        Raises:
            CalculatorError: the calculator failed.
        """
        key = x.tobytes()
        if key not in self._modes:
            self._modes[key] = normal_modes(self.potential, x, central=self.every_end, saddle=False)
        return self._modes[key]

    def report(self, result: TSResult) -> None:
        """Put into `result` what has been found so far and what it cost."""
        result.candidates = ranked(self.candidates)
        result.guesses = [self._guess_atoms(guess) for guess in self.guesses if not guess.raw]
        result.gradient_calls = self.potential.calls - self.calls_before + self.other_calls
        result.rejections = self.rejections

    def _guess_atoms(self, guess: Guess) -> Atoms:
        """With source, sample and, where the weights are calibrated, confidence in `info`."""
        atoms = atoms_of(self.reaction, guess.positions)
        atoms.info |= {"source": guess.source, "sample": guess.sample}
        value = confidence(guess.features, self.calibration.get("guess")) if guess.features else None
        if value is not None:
            atoms.info["confidence_guess"] = round(value, 4)
        return atoms

    def _candidate(self, guess: Guess, before: int) -> Candidate | None:
        """The candidate a guess becomes, at the cost of the calls since `before`; None when it is a known saddle."""
        candidate = Candidate(self._guess_atoms(guess), guess.source, guess.sample)
        candidate.confidence = candidate.atoms.info.get("confidence_guess")
        return candidate if self._carried(candidate, guess, before) else None

    def _carried(self, candidate: Candidate, guess: Guess, before: int) -> bool:
        """Carry a candidate to a verdict, a failure of the calculator included; whether it is no known saddle."""
        try:
            is_new = self._refine_and_verify(candidate, guess)
        except FAILURES as error:
            if not self._counted(error):
                return False
            candidate.verdict, candidate.reason, is_new = "failed", cause(error), True
        self.finish(candidate, before)
        return is_new

    def _refine_and_verify(self, candidate: Candidate, guess: Guess) -> bool:
        """Carry a candidate from where it is, its guess at first, to a verdict; whether it is none of the saddles
        already known.

        Raises:
            FAILURES: of the calculator or of its numbers; the candidate keeps what was found before.
        """
        numbers, ends = self.reaction.numbers, (self.reaction.reactant, self.reaction.product)
        if self.method is None:
            candidate.reason = "not refined"
            return True
        start, earlier = candidate.atoms.positions, candidate.refine_calls
        if overlap := overlapping(numbers, start):
            self.rejections["guess with overlapping atoms"] += 1
            candidate.verdict, candidate.reason = "not_a_saddle", f"{overlap} in the guess, so it was not refined"
            candidate.confidence = None
            return True
        between = guess.ends
        saddle = refine(self.potential, start, reactant=between[0], product=between[1], max_calls=self.max_calls)
        candidate.refine_calls = earlier + saddle.gradient_calls
        candidate.atoms.positions, candidate.energy = saddle.positions, saddle.energy
        if not saddle.converged:  # cut short, it says nothing yet of the confidence
            self.rejections["refinement did not converge"] += 1
            candidate.verdict = "not_a_saddle"
            candidate.reason = f"forces still {saddle.fmax:.2f} eV/A after {candidate.refine_calls} gradient calls"
            if not earlier:
                self.unfinished.append((saddle.fmax, candidate, guess))
            return saddle.energy < self.ceiling
        if guess.features is not None:
            overlap = mode_overlap(saddle, numbers, *between)
            extra = refined_features(rmsd_of(saddle.positions, guess.positions), overlap, candidate.refine_calls)
            candidate.confidence = confidence({**guess.features, **extra}, self.calibration.get("refined"))
        if self._known(candidate):
            return False
        if saddle.energy > self.ceiling:
            self.rejections["saddle above the proven one"] += 1
            return False
        self.saddles.append(candidate)
        if self.method == "none":
            candidate.reason = "refined, not verified (--verify none)"
            return True
        settled, checked = settle(
            self.potential, saddle, *ends, open_stereo=self.reaction.open_stereo, method=self.method,
            max_calls=self.max_calls,
        )  # fmt: skip
        candidate.refine_calls = earlier + settled.gradient_calls
        candidate.atoms.positions, candidate.energy = settled.positions, settled.energy
        self._judge(candidate, checked)
        if self.ceiling < math.inf and candidate.succeeds:
            self.ceiling = settled.energy - TIE
        if checked.order is not None:  # the correction reads the guess beside the saddle
            self.guesses[guess.sample] = guess._replace(positions=guess.positions[checked.order])
        return settled is saddle or not self._known(candidate)

    def _counted(self, error: Exception) -> bool:
        """Count a failure; whether it matters: not once a saddle is proven."""
        matters = self.ceiling == math.inf
        self.rejections[failure(error) if matters else FAILED_LATER] += 1
        return matters

    def _known(self, candidate: Candidate) -> bool:
        """Whether an earlier guess led to this saddle, and the calculator did not fail there; counted.

        Atoms keep their labels and handedness: a stereoisomer is another saddle here.
        """
        for known in self.saddles:
            if known is candidate or known.verdict == "failed" or known.energy is None or candidate.energy is None:
                continue
            same_energy = abs(known.energy - candidate.energy) < SAME_ENERGY
            if same_energy and rmsd_of(known.atoms.positions, candidate.atoms.positions) < SAME_RMSD:
                self.rejections["same saddle as an earlier guess"] += 1
                return True
        return False

    def _judge(self, candidate: Candidate, checked: Verification) -> None:
        candidate.verdict, candidate.reason = checked.verdict, checked.reason
        candidate.stereo, candidate.known, candidate.unstable = checked.stereo, checked.known, dict(checked.unstable)
        candidate.imaginary_frequency_cm, candidate.modes = checked.imaginary_frequency_cm, checked.modes
        candidate.path_positions, candidate.path_energies = checked.path_positions, checked.path_energies
        candidate.ts_index = checked.ts_index

    def best_with_relaxed_ends(self) -> Candidate:
        """The best candidate after the ends of its path were relaxed; another one if that showed it to be worse."""
        while (best := ranked(self.candidates)[0]) not in self.relaxed:
            self.relaxed.append(best)
            relax_ends(self, best)
        return best

    def relax_other_ends(self) -> None:
        """Those of the other intended candidates, while there is time: their barriers stand beside the best's."""
        for candidate in ranked(self.candidates):
            if candidate.verdict == "intended" and candidate not in self.relaxed and not self.out_of_time():
                self.relaxed.append(candidate)
                relax_ends(self, candidate)

    def finish(self, candidate: Candidate, calls_before: int) -> Candidate:
        candidate.gradient_calls = self.potential.calls - calls_before
        info = {"verdict": candidate.verdict, "energy": candidate.energy, "confidence": candidate.confidence}
        info |= {
            key: getattr(candidate, key)
            for key in ("imaginary_frequency_cm", "barrier_forward_kcal", "barrier_reverse_kcal")
        }
        candidate.atoms.info.update({key: value for key, value in info.items() if value is not None})
        return candidate
