"""One narrow coordinate given those before it: an affine spline of a normal variate, within a window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from molgen.flow.splines import rational_quadratic

_FARTHEST = 38.0  # widths: beyond, the normal distribution is zero in double precision
_LEAST = 1e-300  # of a window that is empty: what is drawn from it lies beyond the limits and weighs nothing
_NORM = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Conditional:
    """An affine spline of a normal variate within a window: its share there is renormalised, so densities are exact.

    Attributes:
        parameters: (B, K, 2 + splines). below, share: (B, K) of the unlimited variate, below the window and within it,
            double precision; side: (B, K) 1, or -1 where they are those of the mirrored variate, whose window lies in
            the lower half (in the upper one, differences from 1 would be rounding errors).
    """

    parameters: Tensor
    below: Tensor
    share: Tensor
    side: Tensor

    @classmethod
    def of(cls, parameters: Tensor, low: Tensor, high: Tensor) -> Conditional:
        """With limits low, high (B, K). A centre beyond them, of atoms beside a clash, is moved onto the nearer one."""
        shift = torch.minimum(torch.maximum(parameters[..., 0], low), high)
        parameters = torch.cat([shift[..., None], parameters[..., 1:]], -1)
        least, most = (_affine_spline(edge, parameters)[0].double() for edge in (low, high))
        upper = least > 0
        below = torch.special.ndtr(torch.where(upper, -most, least))
        share = torch.special.ndtr(torch.where(upper, -least, most)) - below
        return cls(parameters, below, share.clamp(min=_LEAST), torch.where(upper, -1.0, 1.0).double())

    def log_density(self, z: Tensor) -> Tensor:
        """(B, K) at z (B, K)."""
        y, log_slope = _affine_spline(z, self.parameters)
        return log_slope - 0.5 * y.square() - _NORM - self.share.log()

    def sample(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The z (B, K) below which the share u (B, K) lies, and its log-density, double precision."""
        u = torch.where(self.side > 0, u, 1 - u)
        y = (self.side * torch.special.ndtri(self.below + u * self.share)).clamp(-_FARTHEST, _FARTHEST)
        z, log_slope = _affine_spline(y.to(self.parameters.dtype), self.parameters, inverse=True)
        return z, -log_slope - 0.5 * y.square() - _NORM - self.share.log()


def _affine_spline(x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Spline of (x - shift) / scale (B, K), and its log-derivative."""
    shift, log_scale = parameters[..., 0], 1.5 * torch.tanh(parameters[..., 1] / 1.5)
    if inverse:
        y, log_slope = rational_quadratic(x, parameters[..., 2:], inverse=True)
        return y * log_scale.exp() + shift, log_slope + log_scale
    y, log_slope = rational_quadratic((x - shift) * (-log_scale).exp(), parameters[..., 2:])
    return y, log_slope - log_scale
