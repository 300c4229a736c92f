"""Find and load trained generators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from molgen.checkpoint import load_weights
from molgen.tsgen.ensemble import TSEnsemble
from molgen.tsgen.generate import STEPS
from molgen.tsgen.model import TSModel

DEFAULT = "tsgen"


@dataclass(frozen=True)
class Generator:
    """A trained TS-GEN.

    Attributes:
        model: the network, in eval mode.
        hash: SHA-256 of the weights.
        config: what the checkpoint says of itself: training recipe, validation figures, confidence calibration.
    """

    model: TSModel | TSEnsemble
    hash: str
    config: dict

    @property
    def steps(self) -> int:
        """Solver steps these weights say, or the default."""
        return int(self.config.get("sampling", {}).get("steps", STEPS))

    @property
    def level(self) -> str:
        """Level of the transition states it was trained on last, which guesses are asked of; "" if unknown."""
        return str(self.config.get("level", ""))


def load_model(
    weights: str | Path = DEFAULT, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Generator:
    """Load shipped weights by name, or a checkpoint folder by path.

    Raises:
        CheckpointError: no such weights, damaged, or not TS-GEN's.
    """
    model, checkpoint = load_weights(weights, "tsgen", _built)
    return Generator(model.to(device, dtype).eval(), checkpoint.hash, checkpoint.config)


def _built(config: dict) -> TSModel | TSEnsemble:
    return TSEnsemble(**config) if "members" in config else TSModel(**config)
