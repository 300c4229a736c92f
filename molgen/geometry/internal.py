"""Cartesian <-> internal coordinates by a z-matrix, exact and differentiable both ways.

Every atom X after the third has three placed reference atoms A, B, C and the coordinates r = |XC|, theta = angle
B-C-X and phi = dihedral A-B-C-X. An atom that closes a ring may be bonded to two placed atoms, B and C: bilateration
then replaces theta by r2 = |XB|.

The volume element of an atom is r^2 sin(theta), of a bilaterated one r r2 / |BC|, of the first three
r12^2 r23^2 sin(theta) (Parsons et al., J. Comput. Chem. 2005, 26, 1063, for the placement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ZMatrix:
    """The order in which atoms are placed, and from what.

    Attributes:
        order: (N,) atom index of each rank.
        references: (N, 3) ranks of A, B, C; -1 where there is none (the first three atoms).
        closes: (N,) true where r2 = |XB| takes the place of theta.
        fold: (N,) 0 for a narrow dihedral around `centre`, else m: a broad one, of density periodic in 2 pi / m (m
            equal substituents on the centre).
        centre: (N,) radians, where a narrow dihedral lies.
        swaps: (rank to look at, ranks of one substituent, ranks of an equivalent one): hydrogens of a CH2, or the
            methyl groups of valine and leucine, which trade places where the dihedral is on the wrong side.
    """

    order: np.ndarray
    references: np.ndarray
    closes: np.ndarray
    fold: np.ndarray
    centre: np.ndarray
    swaps: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...] = ()

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def rank(self) -> np.ndarray:
        """(N,) rank of each atom index."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(self.order))
        return rank

    @cached_property
    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """The reference ranks A, B, C as (N,) tensors, 0 in place of -1."""
        a, b, c = torch.from_numpy(np.maximum(self.references, 0).T.copy())
        return a, b, c


def angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Angle a-b-c, radians in [0, pi], from positions (..., 3)."""
    first, last = a - b, c - b
    return torch.atan2(torch.linalg.cross(first, last).norm(dim=-1), (first * last).sum(-1))


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral a-b-c-d, radians in (-pi, pi], from positions (..., 3)."""
    axis, first, last = c - b, a - b, d - c
    normal, other = torch.linalg.cross(first, axis), torch.linalg.cross(last, axis)
    y = (torch.linalg.cross(normal, other) * axis).sum(-1) / axis.norm(dim=-1)
    return torch.atan2(y, (normal * other).sum(-1))


def wrapped_angle(radians: Tensor) -> Tensor:
    """The angle in [-pi, pi)."""
    return torch.remainder(radians + math.pi, 2 * math.pi) - math.pi


def to_internal(z: ZMatrix, x: Tensor) -> Tensor:
    """(B, N, 3) by rank: r (Angstrom), theta (radians; r2 where a ring closes) and phi (radians, minus `centre`).

    What the first three atoms lack is 0.

    Args:
        x: (B, N, 3) positions by rank, Angstrom.
    """
    a, b, c = (x[:, index] for index in z.index)
    r = (x - c).norm(dim=-1)
    closes = torch.from_numpy(z.closes).to(x.device)
    second = torch.where(closes, (x - b).norm(dim=-1), angle(b, c, x))
    phi = wrapped_angle(dihedral(a, b, c, x) - torch.from_numpy(z.centre).to(x))
    return torch.where(present(z).to(x.device), torch.stack([r, second, phi], dim=-1), 0.0)


def place(a: Tensor, b: Tensor, c: Tensor, r: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
    """The position X (..., 3) with |XC| = r, angle B-C-X = theta, dihedral A-B-C-X = phi."""
    axis, first = c - b, b - a
    axis = axis / axis.norm(dim=-1, keepdim=True)
    normal = torch.linalg.cross(first, axis)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    third = torch.linalg.cross(normal, axis)
    r, theta, phi = r[..., None], theta[..., None], phi[..., None]
    return c - r * theta.cos() * axis + r * theta.sin() * (phi.cos() * third + phi.sin() * normal)


def closing_angle(r: Tensor, r2: Tensor, distance: Tensor) -> Tensor:
    """The angle B-C-X of a triangle with |XC| = r, |XB| = r2, |BC| = distance; 0 or pi where there is none."""
    return torch.arccos(((r.square() + distance.square() - r2.square()) / (2 * r * distance)).clamp(-1, 1))


def place_rank(z: ZMatrix, i: int, references: Sequence[Tensor], q: Tensor) -> Tensor:
    """Position (B, 3) of the atom of rank i >= 2, from those of its A, B, C and its coordinates q (B, 3)."""
    (a, b, c), (r, second, phi) = references, q.unbind(-1)
    if i == 2:  # it has no A: the first three atoms lie in the plane of z and x
        a, phi = b + b.new_tensor([1.0, 0.0, 0.0]), torch.zeros_like(phi)
    theta = closing_angle(r, second, (b - c).norm(dim=-1)) if z.closes[i] else second
    return place(a, b, c, r, theta, phi + float(z.centre[i]))


def to_cartesian(z: ZMatrix, q: Tensor) -> Tensor:
    """Inverse of :func:`to_internal`: positions (B, N, 3) by rank; the first atom at the origin, the second on z."""
    zero = q.new_zeros(len(q))
    xs = [torch.stack([zero, zero, zero], -1), torch.stack([zero, zero, q[:, 1, 0]], -1)]
    for i in range(2, len(z)):
        xs.append(place_rank(z, i, [xs[k] for k in z.references[i]], q[:, i]))
    return torch.stack(xs, 1)


def log_volume(z: ZMatrix, q: Tensor, x: Tensor) -> Tensor:
    """(B,) log |dx / dq|, rigid motion left out: q (B, N, 3) of :func:`to_internal`, x (B, N, 3) by rank."""
    _, b, c = (x[:, index] for index in z.index)
    r, second = q[..., 0], q[..., 1]
    closes, has = torch.from_numpy(z.closes).to(x.device), present(z).to(x.device)
    distance = torch.where(closes, (b - c).norm(dim=-1), 1.0)
    sine = torch.where(has[:, 1] & ~closes, second.sin(), 1.0)
    per_atom = torch.where(
        closes, r.abs().log() + second.abs().clamp(min=1e-300).log() - distance.log(), 2 * r.log() + sine.log()
    )
    return (per_atom * has[:, 0])[:, 1:].sum(-1)


def present(z: ZMatrix) -> Tensor:
    """(N, 3) which of r, theta, phi an atom has."""
    rank = torch.arange(len(z))
    return torch.stack([rank > 0, rank > 1, rank > 2], -1)
