"""A small untrained flow: its first guess, the force field's own, samples GG at 600 K well and at 310 K badly."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from molgen.checkpoint import save_checkpoint
from molgen.data.peptide import Peptide
from molgen.potentials.base import Potential
from molgen.prose.evaluate import log_densities
from molgen.prose.layout import Layout
from molgen.prose.model import ProseConfig, ProseFlow
from molgen.prose.weights import Proposal
from molgen.units import KB

TINY = ProseConfig(
    width=16, head=8, channels=4, encoder_layers=1, scalars=16, vectors=4, pair=8, heads=2, layers=1, radial=4
)
RANGE = {"temperatures": [300.0, 600.0], "lengths": [2, 4]}


@cache
def tiny_flow() -> Proposal:
    """The same flow at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = ProseFlow(TINY).eval()
    return Proposal(flow, "untrained", {"model": "prose", "config": flow.describe(), **RANGE})


def tiny_weights(folder: Path) -> Path:
    """A checkpoint of it."""
    flow = tiny_flow()
    save_checkpoint(folder, flow.model.state_dict(), flow.config)
    return folder


class FlowPotential(Potential):
    """E = -kT ln q of the tiny flow at one temperature: there the flow is exact."""

    def __init__(self, peptide: Peptide, temperature: float):
        super().__init__(peptide.numbers)
        self.layout, self.temperature = Layout.of(peptide), temperature

    def _evaluate(self, positions, forces):
        log_q = log_densities(tiny_flow().model, self.layout, positions, self.temperature)
        return -KB * self.temperature * log_q, None


class Wrong(FlowPotential):
    """The same at 400 K, NaN for every so many-th sample of a call, the first included."""

    def __init__(self, peptide: Peptide, every: int):
        super().__init__(peptide, 400.0)
        self.every = every

    def _evaluate(self, positions, forces):
        energy, _ = super()._evaluate(positions, forces)
        energy[:: self.every] = np.nan
        return energy, None
