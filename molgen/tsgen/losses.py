"""Losses of TS-GEN and its correction on predicted geometries."""

from __future__ import annotations

import torch
from torch import Tensor

from molgen.geometry.align import superpose
from molgen.tsgen.condition import pair_distances


def aligned_rmsd_loss(predicted: Tensor, true: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """RMSD (B,) after superposition, and the squared error (B, N) of each atom, Angstrom^2.

    The rotation is held fixed in the gradient, which is exact: it is the minimiser (envelope theorem). The root makes
    each reaction count linearly, so a few hopeless ones do not drown the rest.
    """
    weights = mask.to(predicted.dtype)
    with torch.no_grad():
        target = superpose(true, predicted, weights)
    square = (predicted - target).square().sum(-1) * weights
    return (square.sum(1) / weights.sum(1) + 1e-6).sqrt(), square


def pair_distance_loss(predicted: Tensor, true: Tensor, weight: Tensor, delta: float = 0.05) -> Tensor:
    """Weighted mean Huber loss (B,) of pair distances, Angstrom; `weight` (B, N, N) is zero off the real pairs."""
    error = (pair_distances(predicted) - pair_distances(true)).abs()
    huber = torch.where(error < delta, 0.5 * error.square() / delta, error - 0.5 * delta)
    return (huber * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)


def log_variance_loss(square: Tensor, log_variance: Tensor, mask: Tensor) -> Tensor:
    """Mean Gaussian negative log-likelihood (B,) of per-atom errors (3 components); no gradient to the errors."""
    nll = 0.5 * (square.detach() * torch.exp(-log_variance) + 3 * log_variance)
    return (nll * mask).sum(1) / mask.sum(1)
