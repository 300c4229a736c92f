"""From the saddle of a cheaper level to an estimate of the transition state at the level of the training set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms

from molgen.data.reactions import Reaction
from molgen.potentials.ase import level_name
from molgen.tsgen.condition import prepare
from molgen.tsgen.correction import correct
from molgen.tsgen.correction_model import Correction, load_correction

DEFAULT_CORRECTION = "none"


@dataclass(frozen=True, eq=False)
class Estimate:
    """A transition state as a better level would have it; nothing was calculated there.

    Attributes:
        numbers: (N,) atomic numbers. positions: (N, 3) Angstrom.
        deviation: (N,) predicted error of each atom, Angstrom (root mean square).
        level: that the positions are an estimate of. checkpoint_hash: of the weights.
    """

    numbers: np.ndarray
    positions: np.ndarray
    deviation: np.ndarray
    level: str
    checkpoint_hash: str

    @property
    def expected_rmsd(self) -> float:
        """Angstrom, root mean square over the atoms."""
        return float(np.sqrt(np.mean(np.square(self.deviation))))

    @property
    def atoms(self) -> Atoms:
        """With level and expected error in `info`."""
        atoms = Atoms(self.numbers, self.positions)
        atoms.info = {"estimate_of": self.level, "expected_rmsd": round(self.expected_rmsd, 4), "verified": False}
        return atoms

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        return {"level": self.level, "expected_rmsd": self.expected_rmsd, "checkpoint_hash": self.checkpoint_hash}


def fitting_correction(
    weights: str,
    reaction: Reaction,
    calculator: Any,
    calculator_kwargs: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Correction | None:
    """The weights that read gradients of this calculator; None where they do not fit the calculator or the reaction.

    Args:
        weights: shipped weights or checkpoint folder; "none" for none. calculator, calculator_kwargs: as of `find_ts`.

    Raises:
        CheckpointError: no such weights, or damaged.
    """
    if weights == "none" or not isinstance(calculator, str):
        return None
    found = load_correction(weights, device, dtype)
    fewest, most = found.config.get("atoms", (2, np.inf))
    fits = (
        found.model.level == level_name(calculator, calculator_kwargs)
        and set(reaction.numbers.tolist()) <= set(found.model.elements)
        and fewest <= len(reaction) <= most
        and not (reaction.charge or reaction.spin)
    )
    return found if fits else None


def estimate(
    correction: Correction, reaction: Reaction, saddle: np.ndarray, guess: np.ndarray | None = None
) -> Estimate:
    """The estimate from a saddle (N, 3), Angstrom, of the level the weights read; its gradient is taken as zero.

    Args:
        guess: (N, 3) Angstrom, of TS-GEN, that the search began from; None if it began elsewhere.
    """
    like = next(correction.model.parameters())
    batch = prepare([reaction]).to(like.device, like.dtype)
    x = torch.as_tensor(np.array(saddle, dtype=float)).to(like)[None]
    start = None if guess is None else torch.as_tensor(np.array(guess, dtype=float)).to(like)[None]
    found, deviation = correct(correction.model, batch, x, torch.zeros_like(x), start)
    return Estimate(
        reaction.numbers, found[0].double().cpu().numpy(), deviation[0].double().cpu().numpy(),
        str(correction.config.get("level", "the training set")), correction.hash,
    )  # fmt: skip
