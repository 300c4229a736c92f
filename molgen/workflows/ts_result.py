"""What the search for a transition state returns: candidates, best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import Atoms

from molgen.data.reactions import Reaction
from molgen.saddle.modes import Modes
from molgen.saddle.restrain import Fall
from molgen.saddle.thermochemistry import ReactionThermochemistry
from molgen.units import kcal
from molgen.workflows.ts_correction import CorrectedTS

if TYPE_CHECKING:
    from molgen.workflows.ts_mechanism import Mechanism

OUT_OF_TIME = "time budget reached"  # among the rejections of a result
TIE = 0.005  # eV; saddles closer than this, mirror images above all, are ranked by confidence
# best first
VERDICTS = ("intended", "half", "unintended", "unverified", "not_a_saddle", "failed")


@dataclass(eq=False)
class Candidate:
    """One guess and what became of it.

    Attributes:
        atoms: the saddle (the guess, if unrefined), energy and verdict in `atoms.info`.
        source: of the guess, "TS-GEN", "sqrt-distance", "restrained", "bisected" or "rotamer". sample: index
            among the guesses.
        verdict: intended (the saddle joins R and P), half (one of them), unintended (neither), not_a_saddle, unverified
            (nobody checked), failed (the calculator did). reason: in words.
        confidence: calibrated probability, before verification, that this is the intended saddle; None without weights.
        energy: eV, of the saddle. imaginary_frequency_cm: signed, negative.
        modes: all normal modes and the Hessian of the saddle, of whatever was verified.
        barrier_forward_kcal, barrier_reverse_kcal: electronic energies above the two ends of the path, relaxed,
            kcal/mol; None where they were not, as those of candidates that are neither the best nor intended.
        path_positions: (M, N, 3) from the reactant's end to the product's; path_energies: (M,) eV; ts_index: the frame
            of the saddle.
        gradient_calls: calculator calls spent on this candidate; refine_calls: those until the saddle.
        stereo: which end of the path is another stereoisomer than was given, in words; empty if none.
        known: of verdict "half": "reactant" or "product", the end of the path that is what was given, where the other
            is another molecule; else empty. unstable: ends that relax to another molecule, which is what lies at that
            end of the path: {"reactant": "another molecule"}.
    """

    atoms: Atoms
    source: str
    sample: int
    verdict: str = "unverified"
    reason: str = ""
    confidence: float | None = None
    energy: float | None = None
    imaginary_frequency_cm: float | None = None
    modes: Modes | None = None
    barrier_forward_kcal: float | None = None
    barrier_reverse_kcal: float | None = None
    path_positions: np.ndarray | None = None
    path_energies: np.ndarray | None = None
    ts_index: int | None = None
    gradient_calls: int = 0
    refine_calls: int = 0
    stereo: str = ""
    known: str = ""
    unstable: dict[str, str] = field(default_factory=dict)

    @property
    def succeeds(self) -> bool:
        """Whether it is intended, and joins the minima and stereoisomers that were given."""
        return self.verdict == "intended" and not self.stereo and not self.unstable

    @property
    def intermediate(self) -> Atoms | None:
        """The other molecule or conformer at the end of its path, where the first or last step was found (`known`)."""
        if not self.known or self.path_positions is None:
            return None
        told = {key: self.atoms.info[key] for key in ("charge",) if key in self.atoms.info}
        return Atoms(self.atoms.numbers, self.path_positions[-1 if self.known == "reactant" else 0], info=told)

    def summary(self) -> dict[str, Any]:
        """The figures `summary.json` lists."""
        keys = (
            "verdict", "confidence", "barrier_forward_kcal", "barrier_reverse_kcal", "imaginary_frequency_cm",
            "gradient_calls", "refine_calls", "source", "sample", "energy", "stereo", "known",
            "unstable", "reason",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys}


def atoms_of(reaction: Reaction, positions: np.ndarray) -> Atoms:
    """Positions (N, 3) as Atoms that name the charge, which molgen reads from `info` and files, if there is one."""
    return Atoms(reaction.numbers, positions, info={"charge": reaction.charge} if reaction.charge else {})


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first: by verdict, the stereoisomers given before others, steps to another molecule before saddles with one
    end on both sides, what was refined before what was not, the lowest of the saddles that are proven to join reactant
    and product, confidence (unknown counts as one half), and order of drawing. Energies rank nothing that is not
    proven: a low one may have slid off the ridge.
    """

    def rank(c: Candidate) -> tuple[int, bool, bool, bool, float, float, int]:
        confidence = 0.5 if c.confidence is None else c.confidence
        energy = round(c.energy / TIE) if c.verdict == "intended" and c.energy is not None else 0
        no_step = c.verdict == "half" and not c.known
        return VERDICTS.index(c.verdict), bool(c.stereo), no_step, c.energy is None, energy, -confidence, c.sample

    return sorted(candidates, key=rank)


class Conformer(NamedTuple):
    """A relaxed conformer: (N, 3) Angstrom, and eV."""

    positions: np.ndarray
    energy: float


@dataclass(eq=False, repr=False)
class TSResult:
    """What :func:`find_ts` found.

    Attributes:
        candidates: distinct saddles, best first.
        reaction: the mapped reaction. notes: what was decided about the input, and warnings.
        guesses: the geometries the refinement started from.
        gradient_calls: all calculator calls, failed candidates included, and those of searches that went on. seconds:
            wall time, model and calculator.
        rejections: reason -> count of guesses that came to nothing. checkpoint_hash: of the weights used, if any.
        corrected: the verified saddle, or without one the first guess, carried to the level of the training set, where
            there are weights for that; of a reaction of several steps each step has its own.
        barrierless_side: the side, "reactant" or "product", whose pieces become the other without a barrier, and
            barrierless: how they do; looked for when no saddle was proven, "" and None where there is
            none. unstable: sides that are no minimum of the calculator, as far as was seen, and what they become:
            {"reactant": "the product"} or "another molecule".
        level: of the calculator, such as "GFN2-xTB". thermochemistry: Gibbs energies of the best candidate, where a
            temperature was given and it is intended, or one step of several (`known`).
        conformers: by side, "reactant" or "product", the lowest that was found, where it is lower than the well of the
            best candidate.
        mechanism: where the best candidate is one step of several, and the search was told to go on.
    """

    candidates: list[Candidate]
    reaction: Reaction
    notes: list[str]
    guesses: list[Atoms]
    gradient_calls: int = 0
    seconds: float = 0.0
    rejections: Counter = field(default_factory=Counter)
    checkpoint_hash: str | None = None
    corrected: CorrectedTS | None = None
    barrierless_side: str = ""
    barrierless: Fall | None = None
    unstable: dict[str, str] = field(default_factory=dict)
    level: str = ""
    thermochemistry: ReactionThermochemistry | None = None
    conformers: dict[str, Conformer] = field(default_factory=dict)
    mechanism: Mechanism | None = None

    @property
    def best(self) -> Candidate:
        """The best-ranked candidate."""
        return self.candidates[0]

    @property
    def verified(self) -> bool:
        """Whether the best candidate is a saddle proven to join this reactant and product; of several steps see
        `mechanism`."""
        return self.best.verdict == "intended"

    @property
    def barriers_from_lowest_kcal(self) -> tuple[float, float] | None:
        """There and back, kcal/mol, from the lowest conformers that were found (`conformers`); None where none is lower
        than the well beside the saddle."""
        best = self.best
        if not self.conformers or best.barrier_forward_kcal is None or best.barrier_reverse_kcal is None:
            return None
        assert best.path_energies is not None
        wells = {"reactant": float(best.path_energies[0]), "product": float(best.path_energies[-1])}
        below = [kcal(wells[side] - self.conformers[side].energy) if side in self.conformers else 0.0 for side in wells]
        return best.barrier_forward_kcal + below[0], best.barrier_reverse_kcal + below[1]

    @property
    def barrierless_kcal(self) -> float | None:
        """What pieces that become the other side without a barrier lose from where they are held apart, kcal/mol."""
        return kcal(self.barrierless.lost) if self.barrierless is not None else None

    @property
    def status(self) -> str:
        """ "ok", "partial" (a calculator failure cost a guess) or "gate_failed" (nothing was verified)."""
        several = self.mechanism is not None and self.mechanism.complete
        if not several and self.best.verdict not in ("intended", "unverified"):
            return "gate_failed"
        return "partial" if self.rejections.get("calculator failed") else "ok"

    def __repr__(self) -> str:
        return f"TSResult({self})"

    def __str__(self) -> str:
        if not self.candidates:
            return "no candidate"
        b, cost = self.best, f"({self.gradient_calls} gradient calls, {self.seconds:.1f} s)"
        if self.mechanism is not None and self.mechanism.complete:
            count, top = len(self.mechanism.steps), self.mechanism.highest_kcal
            return f"intended in {count} steps, {top:.1f} kcal/mol above the reactant at most {cost}"
        barrier = "" if b.barrier_forward_kcal is None else f", barrier {b.barrier_forward_kcal:.1f} kcal/mol forward"
        barrier += "" if b.barrier_reverse_kcal is None else f", {b.barrier_reverse_kcal:.1f} back"
        lowest = b.imaginary_frequency_cm
        mode = "" if lowest is None or lowest > 0 else f", imaginary mode {-lowest:.0f}i cm-1"
        return f"{b.verdict}{barrier}{mode} {cost}"
