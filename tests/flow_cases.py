"""A shaken Prose flow of few parameters, real molecules and their densities, for tests of the flow."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from prose_cases import SMALL
from torch import Tensor

from molgen.data.peptide import build_peptide
from molgen.data.start import start_structure
from molgen.prose.generate import sample, uniform
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.rows import Rows
from molgen.prose.state import State

KELVIN = 380.0  # not 400, where the network's own measure of temperature is zero


@cache
def flow_of(scale: float = 0.3, dtype: torch.dtype = torch.float64) -> ProseFlow:
    """Parameters shaken: a fresh network hides faults behind last layers of zero."""
    torch.manual_seed(0)
    flow, generator = ProseFlow(SMALL), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in flow.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.add_((scale * noise / (p.shape[-1] ** 0.5 if p.ndim > 1 else 3)).float())
    return flow.to(dtype).eval()


@cache
def layout_of(molecule: str) -> Layout:
    sequence, _, cap = molecule.partition("/")
    return Layout.of(build_peptide(sequence, cap or None))


class Drawn(NamedTuple):
    noise: Tensor
    x: Tensor
    log_q: Tensor
    kelvin: Tensor


@cache
def drawn(molecule: str, n: int = 8, kelvin: float = KELVIN, scale: float = 0.3) -> Drawn:
    layout = layout_of(molecule)
    noise = torch.stack([uniform(3, i, layout.noise) for i in range(n)])
    temperature = torch.full((n,), kelvin, dtype=torch.float64)
    out = sample(flow_of(scale), layout, noise, temperature)
    return Drawn(noise, out.x, out.log_q, temperature)


@cache
def real(molecule: str) -> Tensor:
    """(2, N, 3) in the peptide's order: embedded and minimised, shaken by 0.03 Angstrom."""
    x = np.stack([start_structure(layout_of(molecule).peptide, seed) for seed in (0, 1)])
    return torch.from_numpy(x + np.random.default_rng(0).normal(0, 0.03, x.shape))


def log_prob(molecule: str, x: Tensor, kelvin: float = KELVIN, flow: ProseFlow | None = None) -> Tensor:
    temperature = torch.full((len(x),), kelvin, dtype=torch.float64)
    with torch.no_grad():
        return (flow or flow_of()).log_prob(layout_of(molecule), x, temperature)


MOLECULES = pytest.mark.parametrize("molecule", ["TP", "DF", "IG", "W/ace-nme"])


def conditionals(layout: Layout, noise: Tensor, block: int = 1) -> tuple[Tensor, Tensor]:
    """(B, N) log-density of each atom's own coordinates, without volume, and x (B, N, 3)."""
    flow, parts = flow_of(), noise.new_zeros(len(noise), layout.atoms)

    def spy(layout: Layout, state: State, h: Tensor, content: Any, rows: Rows, *rest: Any) -> Any:
        steps, part = ProseFlow.place(flow, layout, state, h, content, rows, *rest)
        parts[:, rows.ranks] = part
        return steps, part

    flow.place = spy  # type: ignore[method-assign]
    try:
        out = sample(flow, layout, noise, torch.full((len(noise),), KELVIN).double(), block)
    finally:
        del flow.place
    return parts, out.x


def jacobian(layout: Layout) -> tuple[float, float]:
    """The log-density of one sample, and the same by brute force.

    Every Cartesian coordinate by every random number, by central differences; rigid motion fills up the rest. A label,
    one of m turns of a periodic torsion, has probability 1/m.
    """
    step, n = 1e-5, layout.atoms
    noise = 0.15 + 0.7 * uniform(0, 5, layout.noise).view(n, 4)
    used = torch.zeros(n, 4, dtype=torch.bool)
    used[1, 0] = used[2, :2] = True
    used[3:, :3] = True
    columns = torch.nonzero(used.flatten())[:, 0]
    rows = noise.flatten().repeat(2 * len(columns) + 1, 1)
    for k, column in enumerate(columns.tolist()):
        rows[2 * k, column] += step
        rows[2 * k + 1, column] -= step
    out = sample(flow_of(), layout, rows, torch.full((len(rows),), KELVIN).double())
    x = out.x[-1]
    moved = (out.x[0:-1:2] - out.x[1:-1:2]).flatten(1).T / (2 * step)
    rigid = [torch.eye(3).double().repeat(n, 1)]
    rigid += [torch.linalg.cross(axis.expand(n, 3), x).flatten()[:, None] for axis in torch.eye(3).double()]
    volume = torch.linalg.slogdet(torch.cat([moved, *rigid], 1))[1]
    return float(out.log_q[-1]), -float(volume + layout.folds.double().log().sum())
