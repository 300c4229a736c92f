"""The straight path of flow matching (optimal transport between paired samples; Lipman 2023, arXiv 2210.02747)."""

from __future__ import annotations

import torch
from torch import Tensor


def straight_path(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t x_1 for x (B, ...) and t (B,)."""
    return torch.lerp(x_0, x_1, t.view(-1, *[1] * (x_0.ndim - 1)))


def velocity(x_t: Tensor, x_1: Tensor, t: float) -> Tensor:
    """The path's velocity (x_1 - x_t) / (1 - t) towards the end point x_1, for t < 1."""
    return (x_1 - x_t) / (1 - t)
