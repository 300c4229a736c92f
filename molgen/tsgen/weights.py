"""Find and load trained generators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from molgen.checkpoint import load_checkpoint
from molgen.errors import CheckpointError
from molgen.tsgen.generate import STEPS
from molgen.tsgen.model import TSModel

SHIPPED = Path(__file__).parent.parent / "weights"
DEFAULT = "tsgen"


@dataclass(frozen=True)
class Generator:
    """A trained TS-GEN.

    Attributes:
        model: the network, in eval mode.
        hash: SHA-256 of the weights.
        config: what the checkpoint says of itself: training recipe, validation figures, confidence calibration.
    """

    model: TSModel
    hash: str
    config: dict

    @property
    def steps(self) -> int:
        """Solver steps these weights say, or the default."""
        return int(self.config.get("sampling", {}).get("steps", STEPS))


def load_model(
    weights: str | Path = DEFAULT, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Generator:
    """Load shipped weights by name, or a checkpoint folder by path.

    Raises:
        CheckpointError: no such weights, damaged, or not TS-GEN's.
    """
    folder = SHIPPED / weights if isinstance(weights, str) and (SHIPPED / weights).is_dir() else Path(weights)
    checkpoint = load_checkpoint(folder)
    if checkpoint.config.get("model") != "tsgen":
        raise CheckpointError(
            f"holds a model of kind {checkpoint.config.get('model')!r}",
            where=str(folder),
            expected="'tsgen'",
            remedy="give the folder of a TS-GEN checkpoint to --weights",
        )
    model = TSModel(**checkpoint.config["config"])
    try:
        model.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        raise CheckpointError(f"tensors do not fit the configuration ({error})", where=str(folder)) from error
    return Generator(model.to(device, dtype).eval(), checkpoint.hash, checkpoint.config)
