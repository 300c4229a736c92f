"""One seed; an independent generator per sample index, so results do not depend on batch size or order."""

from __future__ import annotations

import numpy as np
import torch


def sample_seed(seed: int, *index: int) -> int:
    """A 63-bit seed for sample `index` under `seed` (NumPy SeedSequence, any number of indices)."""
    return int(np.random.SeedSequence([seed, *index]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *index: int) -> np.random.Generator:
    """NumPy generator for sample `index` under `seed`."""
    return np.random.default_rng(np.random.SeedSequence([seed, *index]))


def torch_generator(seed: int, *index: int) -> torch.Generator:
    """CPU torch generator for sample `index` under `seed`; draw on the CPU, then move, so devices agree."""
    return torch.Generator().manual_seed(sample_seed(seed, *index))
