"""Find and load a trained flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from molgen.checkpoint import load_checkpoint
from molgen.errors import CheckpointError
from molgen.prose.model import ProseFlow

SHIPPED = Path(__file__).parent.parent / "weights"
DEFAULT = "prose"


@dataclass(frozen=True)
class Proposal:
    """A trained Prose.

    Attributes:
        model: the flow, in eval mode.
        hash: SHA-256 of the weights.
        config: what the checkpoint says of itself: training recipe, `temperatures` [lowest, highest] in K and `lengths`
            [shortest, longest] in residues that it was trained on.
    """

    model: ProseFlow
    hash: str
    config: dict


def load_flow(
    weights: str | Path = DEFAULT, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Proposal:
    """Load shipped weights by name, or a checkpoint folder by path.

    Raises:
        CheckpointError: no such weights, damaged, or not Prose's.
    """
    folder = SHIPPED / weights if isinstance(weights, str) and (SHIPPED / weights).is_dir() else Path(weights)
    checkpoint = load_checkpoint(folder)
    if checkpoint.config.get("model") != "prose":
        raise CheckpointError(
            f"holds a model of kind {checkpoint.config.get('model')!r}",
            where=str(folder),
            expected="'prose'",
            remedy="give the folder of a Prose checkpoint to --weights",
        )
    model = ProseFlow(checkpoint.config["config"])
    try:
        model.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        raise CheckpointError(f"tensors do not fit the configuration ({error})", where=str(folder)) from error
    return Proposal(model.to(device, dtype).eval(), checkpoint.hash, checkpoint.config)
