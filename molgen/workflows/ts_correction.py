"""The saddle of a cheaper level, or the guess, corrected to the level of the training set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from molgen.data.reactions import Reaction
from molgen.errors import CalculatorError
from molgen.potentials.ase import EMBEDDED, level_name
from molgen.potentials.base import Potential
from molgen.saddle.modes import gradient
from molgen.tsgen.correction import corrected
from molgen.tsgen.correction_model import Correction, load_correction

DEFAULT_CORRECTION = "tsgen-gfn2"
GUESS_CORRECTIONS = 2


@dataclass(frozen=True, eq=False)
class CorrectedTS:
    """A transition state as a better level would have it; nothing was calculated there.

    Attributes:
        numbers: (N,) atomic numbers. positions: (N, 3) Angstrom.
        deviation: (N,) predicted error of each atom, Angstrom (root mean square).
        level: that the positions are corrected to. checkpoint_hash: of the weights.
        source: "saddle" of the cheaper level, or "guess", where none was found.
        guess_corrections: of the guess, before it was compared with the saddle; fewer where the calculator failed.
    """

    numbers: np.ndarray
    positions: np.ndarray
    deviation: np.ndarray
    level: str
    source: str
    guess_corrections: int
    checkpoint_hash: str

    @property
    def expected_rmsd(self) -> float:
        """Angstrom, root mean square over the atoms."""
        return float(np.sqrt(np.mean(np.square(self.deviation))))

    @property
    def atoms(self) -> Atoms:
        """With level and expected error in `info`."""
        atoms = Atoms(self.numbers, self.positions)
        atoms.info = {"corrected_to": self.level, "expected_rmsd": round(self.expected_rmsd, 4), "verified": False}
        return atoms

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        keys = ("level", "source", "expected_rmsd", "guess_corrections", "checkpoint_hash")
        return {key: getattr(self, key) for key in keys}


def fitting_correction(
    weights: str,
    reaction: Reaction,
    calculator: Any,
    calculator_kwargs: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Correction | None, str]:
    """The weights that read gradients of this calculator; None and why not, where they do not fit it or the reaction.

    Args:
        weights: shipped weights or checkpoint folder; "none" for none. calculator, calculator_kwargs: as of `find_ts`.

    Raises:
        CheckpointError: no such weights, or damaged.
    """
    if weights == "none":
        return None, ""
    found = load_correction(weights, device, dtype)
    unfit = _unfit(found, reaction, calculator, calculator_kwargs)
    return (None if unfit else found), unfit


def _unfit(found: Correction, reaction: Reaction, calculator: Any, kwargs: Mapping[str, Any] | None) -> str:
    """Why a correction cannot be used, with what can be done about it; "" where it can."""
    reads = found.model.level
    level = level_name(calculator, kwargs)
    if reads != level or not isinstance(calculator, str):
        names = [f"--calculator {name}" for name, embedded in EMBEDDED.items() if embedded == reads]
        return (
            f"reads gradients of {reads}, not of {level}; use {names[0] if names else 'that calculator, by its name'}, "
            "or make searches with yours (molgen data searches) and train a correction on them"
        )
    unknown = sorted(set(reaction.numbers.tolist()) - set(found.model.elements))
    if unknown:
        elements = [", ".join(chemical_symbols[z] for z in numbers) for numbers in (unknown, found.model.elements)]
        return f"does not know {elements[0]} ({elements[1]} were in its training set)"
    fewest, most = found.config.get("atoms", (2, np.inf))
    if not fewest <= len(reaction) <= most:
        return f"was trained on reactions of {fewest} to {most} atoms, not {len(reaction)}"
    return "knows neutral reactions without unpaired electrons only" if reaction.charge or reaction.spin else ""


def correct_saddle(
    correction: Correction,
    reaction: Reaction,
    potential: Potential,
    saddle: np.ndarray,
    guess: np.ndarray | None = None,
) -> CorrectedTS:
    """A saddle of the level the weights read, corrected.

    The guess is corrected twice first, with a gradient call each: a better guess makes a better correction (on
    272 reactions of RDB7 (val) RMSD median / mean 0.104 / 0.191 A instead of 0.111 / 0.199).

    Args:
        potential: of the level the weights read.
        saddle: (N, 3) Angstrom, where the gradient is zero.
        guess: (N, 3) Angstrom, of TS-GEN, that the search began from; None if it began elsewhere.
    """
    start, corrections = guess, 0
    if guess is not None:
        start, _, corrections = _corrected_guess(correction, reaction, potential, guess)
    positions, deviation = corrected(correction.model, reaction, saddle, np.zeros_like(saddle), start)
    return _made(correction, reaction, positions, deviation, "saddle", corrections)


def correct_guess(
    correction: Correction, reaction: Reaction, potential: Potential, guess: np.ndarray
) -> CorrectedTS | None:
    """The guess (N, 3) of TS-GEN, corrected twice: what there is to say when no search has found the saddle.

    Better than where a search that went astray has ended (`benchmarks/correction.py`). None where the calculator fails
    on the guess.
    """
    positions, deviation, corrections = _corrected_guess(correction, reaction, potential, guess)
    return _made(correction, reaction, positions, deviation, "guess", corrections) if corrections else None


def _corrected_guess(
    correction: Correction, reaction: Reaction, potential: Potential, guess: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The guess after at most `GUESS_CORRECTIONS` corrections, its deviation (zero without any), and how many."""
    x, deviation, done = guess, np.zeros(len(guess)), 0
    try:
        while done < GUESS_CORRECTIONS:
            x, deviation = corrected(correction.model, reaction, x, gradient(potential, x)[1], guess)
            done += 1
    except CalculatorError:
        pass  # the result says how many there were
    return x, deviation, done


def _made(
    correction: Correction, reaction: Reaction, x: np.ndarray, deviation: np.ndarray, source: str, corrections: int
) -> CorrectedTS:
    level = str(correction.config.get("level") or "the training set")
    return CorrectedTS(reaction.numbers, x, deviation, level, source, corrections, correction.hash)
