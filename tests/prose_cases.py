"""Small real data to train Prose on: conformations of an untrained flow, with their energies."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from molgen.data.md import MDSet, save_md
from molgen.data.peptide import build_peptide
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow

SMALL = {
    "width": 24, "head": 16, "channels": 8, "encoder_layers": 2, "scalars": 16, "vectors": 8, "pair": 8, "heads": 4,
    "layers": 2, "radial": 6,
}  # fmt: skip
KELVINS = (310.0, 380.0)


def small_flow(seed: int = 0, dtype: torch.dtype = torch.float32) -> ProseFlow:
    """An untrained flow of few parameters."""
    torch.manual_seed(seed)
    return ProseFlow(SMALL).to(dtype).eval()


@cache
def md_set(sequence: str, cap: str | None = None, frames: int = 24, seed: int = 0) -> MDSet:
    """`frames` samples at 310 and 380 K."""
    peptide = build_peptide(sequence, cap)
    flow, potential = small_flow(), peptide.potential("Reference")
    x = np.stack([propose(flow, Layout.of(peptide), frames, t, seed + k)[0] for k, t in enumerate(KELVINS)])
    return MDSet(
        sequence=sequence,
        cap=cap,
        temperatures=np.array(KELVINS),
        positions=x.astype(np.float32),
        energies=np.stack([potential.energy(part) for part in x]),
        names=peptide.labels,
        bonds=peptide.bonds,
        flow="untrained",  # so cis peptide bonds have no start to blame
    )


def write_md(folder: Path, item: MDSet, name: str | None = None) -> Path:
    """`folder`/SEQ.npz."""
    folder.mkdir(exist_ok=True)
    return save_md(folder / f"{name or item.sequence}.npz", item)
