"""Rigid superposition of geometries (Kabsch 1976) and the RMSD built on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_STEADY = 1e-6  # Angstrom^2, the prior of a path's frames


def kabsch(mobile: Tensor, target: Tensor, weights: Tensor | None = None, prior: float = 0.0) -> tuple[Tensor, Tensor]:
    """Proper rotation and translation that bring `mobile` onto `target` with the least weighted square deviation.

    Args:
        mobile, target: (..., N, 3) positions.
        weights: (..., N) non-negative weights; None weighs every atom alike. Padding has weight 0.
        prior: Angstrom^2, pull towards no rotation; decides what one or two atoms, or a line, leave open.

    Returns:
        rotation (..., 3, 3) and translation (..., 3): `mobile @ rotation.mT + translation` lies on `target`.

    Source: Kabsch, Acta Cryst. A32, 922 (1976); determinant correction A34, 827 (1978).
    """
    if weights is None:
        weights = torch.ones(mobile.shape[:-1], dtype=mobile.dtype, device=mobile.device)
    w = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-12))[..., None]
    centre_m, centre_t = (w * mobile).sum(-2, keepdim=True), (w * target).sum(-2, keepdim=True)
    covariance = (w * (target - centre_t)).mT @ (mobile - centre_m)
    covariance = covariance.double() + prior * torch.eye(3, dtype=torch.float64, device=mobile.device)
    u, _, vh = torch.linalg.svd(covariance)
    sign = torch.linalg.det(u @ vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], dim=-1)
    rotation = (u @ vh).to(mobile.dtype)
    translation = centre_t[..., 0, :] - (centre_m @ rotation.mT)[..., 0, :]
    return rotation, translation


def superpose(mobile: Tensor, target: Tensor, weights: Tensor | None = None, prior: float = 0.0) -> Tensor:
    """`mobile` (..., N, 3) after the proper rotation and translation of :func:`kabsch` onto `target`."""
    rotation, translation = kabsch(mobile, target, weights, prior)
    return mobile @ rotation.mT + translation[..., None, :]


def superpose_fragments(mobile: Tensor, target: Tensor, fragments: Tensor) -> Tensor:
    """Superpose each fragment of `mobile` on the same atoms of `target`, one rigid motion a fragment.

    Args:
        mobile, target: (B, N, 3) positions.
        fragments: (B, N) fragment index of each atom, -1 for padding.
    """
    placed = mobile.clone()
    for fragment in range(int(fragments.max()) + 1):
        member = fragments == fragment
        placed = torch.where(member[..., None], superpose(mobile, target, member.to(mobile.dtype)), placed)
    return placed


def chained(path: np.ndarray, at: int = 0) -> np.ndarray:
    """Frames (M, N, 3) of a path, each superposed on its neighbour towards frame `at`, so that nothing tumbles."""
    placed = [torch.from_numpy(np.array(x, dtype=float)) for x in path]
    for k in range(at + 1, len(placed)):
        placed[k] = superpose(placed[k], placed[k - 1], prior=_STEADY)
    for k in range(at - 1, -1, -1):
        placed[k] = superpose(placed[k], placed[k + 1], prior=_STEADY)
    return torch.stack(placed).numpy()


def rmsd_of(a: np.ndarray, b: np.ndarray) -> float:
    """RMSD (Angstrom) of two geometries (N, 3) after superposition by proper rotation, atoms in the given order."""
    return float(rmsds_of(a, b))


def rmsds_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """:func:`rmsd_of` (...,) of pairs of geometries (..., N, 3), whose leading axes are broadcast."""
    first, second = (torch.from_numpy(np.array(x, dtype=float)) for x in np.broadcast_arrays(a, b))
    return rmsd(first, second).numpy()


def among(places: Sequence[np.ndarray], x: np.ndarray, within: float = 0.1) -> bool:
    """Whether `x` (N, 3), Angstrom, or its mirror image is one of `places`, by RMSD."""
    return bool(len(places)) and bool((rmsds_of(np.array([x, -x])[:, None], np.array(places)) < within).any())


def rmsd(a: Tensor, b: Tensor, mask: Tensor | None = None, reflect: bool = False) -> Tensor:
    """Root-mean-square deviation (...,) in Angstrom after superposition, atoms in the given order, 1/N.

    Args:
        a, b: (..., N, 3) positions.
        mask: (..., N) true for real atoms.
        reflect: also try the mirror image of `a` and return the lower value.
    """
    weights = torch.ones(a.shape[:-1], dtype=a.dtype, device=a.device) if mask is None else mask.to(a.dtype)
    square = ((superpose(a, b, weights) - b) ** 2).sum(-1)
    value = ((square * weights).sum(-1) / weights.sum(-1)).sqrt()
    return torch.minimum(value, rmsd(-a, b, mask)) if reflect else value
