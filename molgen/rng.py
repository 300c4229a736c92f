"""One seed; an independent generator per sample index, so results do not depend on batch size or order."""

from __future__ import annotations

import numpy as np
import torch

from molgen.errors import check_seed


def _sequence(seed: int, *index: int) -> np.random.SeedSequence:
    """Source of the bits of sample `index`; an InputError for a seed that is none."""
    check_seed(seed)
    return np.random.SeedSequence([seed, *index])


def sample_seed(seed: int, *index: int) -> int:
    """A 63-bit seed for sample `index` under `seed` (NumPy SeedSequence, any number of indices)."""
    return int(_sequence(seed, *index).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *index: int) -> np.random.Generator:
    """NumPy generator for sample `index` under `seed`; without an index it is that of sample 0."""
    return np.random.default_rng(_sequence(seed, *index))


def torch_generator(seed: int, *index: int) -> torch.Generator:
    """CPU torch generator for sample `index` under `seed`; draw on the CPU, then move, so devices agree."""
    return torch.Generator().manual_seed(sample_seed(seed, *index))
