"""Radial functions of pair distances."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianRadial(nn.Module):
    """`count` Gaussians on [start, stop] Angstrom, centres packed densely where chemistry happens.

    Centres are uniform in log(1 + d), widths follow their spacing.
    Distances beyond `stop` are clamped: far pairs look alike. Input (...,), output (..., count).
    """

    centres: Tensor
    inverse_width: Tensor

    def __init__(self, count: int = 16, start: float = 0.6, stop: float = 6.0):
        super().__init__()
        log_ends = torch.log1p(torch.tensor([start, stop]))
        centres = torch.expm1(torch.linspace(float(log_ends[0]), float(log_ends[1]), count))
        self.stop = stop
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("inverse_width", 1.0 / torch.gradient(centres)[0], persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        z = (distance.clamp(max=self.stop)[..., None] - self.centres) * self.inverse_width
        # the floor keeps denormal numbers, ten times slower to multiply, out of the matrices
        return torch.exp((-0.5 * z * z).clamp(min=-30.0))


class FourierTime(nn.Module):
    """Sine and cosine features (B, features) of a time in [0, 1]; `features` is 2 * count."""

    frequencies: Tensor

    def __init__(self, count: int = 8):
        super().__init__()
        self.features = 2 * count
        self.register_buffer(
            "frequencies", torch.pi * torch.arange(1, count + 1, dtype=torch.float32), persistent=False
        )

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)
