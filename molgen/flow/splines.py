"""One-dimensional densities with exact inverses: rational-quadratic splines on the line, log-linear on the circle.

Rational-quadratic splines after Durkan et al., Neural Spline Flows, NeurIPS 2019 (eqs 4 to 8).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BOUND = 4.0
BINS = 8
SPLINE_PARAMETERS = 3 * BINS - 1
_MIN_BIN, _MIN_SLOPE = 1e-2, 1e-2
_SLOPE_ONE = math.log(math.expm1(1 - _MIN_SLOPE))


def rational_quadratic(x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A monotone spline on [-4, 4], the identity outside.

    Args:
        x: (...). parameters: (..., SPLINE_PARAMETERS), unbounded; zeros give the identity.

    Returns:
        y (...) and log |dy/dx| (...), of the inverse where asked.
    """
    widths, heights, slopes = parameters.split([BINS, BINS, BINS - 1], dim=-1)
    xs, ys = _knots(widths), _knots(heights)
    slope = F.pad(_MIN_SLOPE + F.softplus(slopes + _SLOPE_ONE), (1, 1), value=1.0)
    inside = x.abs() < BOUND
    clamped = x.clamp(-BOUND, BOUND)
    edges = ys if inverse else xs
    k = (clamped[..., None] >= edges[..., 1:-1]).sum(-1, keepdim=True)
    both = torch.cat([k, k + 1], -1)
    (x0, x1), (y0, y1), (d0, d1) = (t.gather(-1, both).unbind(-1) for t in (xs, ys, slope))
    width, height = x1 - x0, y1 - y0
    s = height / width
    if inverse:
        rise = clamped - y0
        curve = d0 + d1 - 2 * s
        a = height * (s - d0) + rise * curve
        b = height * d0 - rise * curve
        c = -s * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp(min=0).sqrt())
        y = x0 + t * width
    else:
        t = (clamped - x0) / width
        y = y0 + height * (s * t * t + d0 * t * (1 - t)) / (s + (d0 + d1 - 2 * s) * t * (1 - t))
    denominator = s + (d0 + d1 - 2 * s) * t * (1 - t)
    slope_here = s * s * (d1 * t * t + 2 * s * t * (1 - t) + d0 * (1 - t) * (1 - t)) / denominator.square()
    log_slope = torch.log(slope_here)
    if inverse:
        log_slope = -log_slope
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def _knots(logits: Tensor) -> Tensor:
    share = _MIN_BIN + (1 - _MIN_BIN * BINS) * torch.softmax(logits, dim=-1)
    inner = 2 * BOUND * torch.cumsum(share[..., :-1], dim=-1) - BOUND
    return F.pad(F.pad(inner, (1, 0), value=-BOUND), (0, 1), value=BOUND)


def circular_log_density(phi: Tensor, heights: Tensor) -> Tensor:
    """Log-density (...) at angles phi (...) in [-pi, pi), log-linear between equidistant knots, the first at -pi.

    Args:
        heights: (..., G) unnormalised log-density at the knots.
    """
    g = heights.shape[-1]
    position = (phi + math.pi) * (g / (2 * math.pi))
    k = position.floor().nan_to_num(0.0).clamp(0, g - 1)
    t = position - k
    k = k.long()[..., None]
    left = heights.gather(-1, k)[..., 0]
    right = heights.gather(-1, (k + 1) % g)[..., 0]
    return left + t * (right - left) - torch.logsumexp(_log_masses(heights), -1)


def circular_quantile(u: Tensor, heights: Tensor) -> Tensor:
    """The angle (...) below which the share u (...) of the density of :func:`circular_log_density` lies."""
    g = heights.shape[-1]
    mass = torch.softmax(_log_masses(heights), -1)
    above = mass.cumsum(-1)
    k = (u[..., None] * above[..., -1:] >= above).sum(-1, keepdim=True).clamp(max=g - 1)
    here = mass.gather(-1, k)[..., 0]
    share = ((u * above[..., -1] - (above.gather(-1, k)[..., 0] - here)) / here).clamp(0, 1)
    slope = (torch.roll(heights, -1, -1) - heights).gather(-1, k)[..., 0]
    flat = slope.abs() < 1e-6
    safe = torch.where(flat, 1.0, slope)
    # the tail that is left may not overflow: log(1 + share (e^slope - 1)) / slope, from the larger end
    rising = torch.log1p(share * torch.expm1(safe.clamp(max=30.0)))
    steep = safe + torch.log(share + (1 - share) * torch.exp(-safe.clamp(min=0.0)))
    t = torch.where(flat, share, torch.where(safe > 0, steep, rising) / safe)
    return (k[..., 0] + t.clamp(0, 1)) * (2 * math.pi / g) - math.pi


def _log_masses(heights: Tensor) -> Tensor:
    """(..., G) log-mass of the segment that begins at each knot."""
    right = torch.roll(heights, -1, -1)
    top, drop = torch.maximum(heights, right), (right - heights).abs()
    small = drop < 1e-3
    safe = torch.where(small, 1.0, drop)
    mean = torch.where(small, -drop / 2, torch.log(-torch.expm1(-safe) / safe))
    return top + mean + math.log(2 * math.pi / heights.shape[-1])
