"""Find and load a trained flow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from molgen.checkpoint import load_weights
from molgen.data.peptide import CAPS, Peptide
from molgen.errors import InputError
from molgen.prose.model import CONFIGS, ProseFlow

DEFAULT = "prose"


@dataclass(frozen=True)
class Proposal:
    """A trained Prose.

    Attributes:
        model: the flow, in eval mode.
        hash: SHA-256 of the weights.
        config: what the checkpoint says of itself: training recipe, `temperatures` [lowest, highest] in K, `lengths`
            [shortest, longest] in residues and `forms` (of `Peptide`, by default none) that it was trained on.
    """

    model: ProseFlow
    hash: str
    config: dict

    def unknown_forms(self, peptide: Peptide) -> str:
        """The forms of a peptide that the weights were not trained on, in words; "" without any."""
        known = self.config.get("forms", ())
        return " and ".join(f"{form} caps" if form in CAPS else form for form in peptide.forms if form not in known)


def load_flow(weights: str | Path = DEFAULT, dtype: torch.dtype = torch.float32) -> Proposal:
    """Load shipped weights by name, or a checkpoint folder by path, onto the CPU.

    Raises:
        CheckpointError: no such weights, damaged, or not Prose's.
    """
    model, checkpoint = load_weights(weights, "prose", ProseFlow)
    return Proposal(model.to(dtype=dtype).eval(), checkpoint.hash, checkpoint.config)


def make_flow(config: str) -> ProseFlow:
    """An untrained flow of size `config`.

    Raises:
        InputError: no such size.
    """
    if config not in CONFIGS:
        raise InputError(f"no flow of size {config!r}", where="--config", expected=" or ".join(CONFIGS))
    return ProseFlow(CONFIGS[config])


def deepened(model: ProseFlow, layers: int) -> ProseFlow:
    """The same flow, to the bit of its arithmetic, with a trunk of `layers` layers: the new ones begin as identities.

    Raises:
        InputError: the trunk has as many layers already, or more.
    """
    if layers <= model.config.layers:
        raise InputError(
            f"{layers} layers", where="--layers", expected=f"more than the {model.config.layers} there are"
        )
    grown = ProseFlow(replace(model.config, layers=layers))
    grown.load_state_dict(model.state_dict(), strict=False)
    ends = ("pair_out", "update.3", "mix_v", "coefficients")  # what a layer adds comes through these
    for layer in list(grown.trunk.layers)[model.config.layers :]:
        for name in ends:
            for parameter in layer.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
    return grown
