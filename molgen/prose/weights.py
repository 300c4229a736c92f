"""Find and load a trained flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from molgen.checkpoint import load_weights
from molgen.prose.model import ProseFlow

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
    model, checkpoint = load_weights(weights, "prose", ProseFlow)
    return Proposal(model.to(device, dtype).eval(), checkpoint.hash, checkpoint.config)
