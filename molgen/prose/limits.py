"""Where a coordinate may lie, given those before it: bonds and angles of the molecule, rings that close.

The conditionals of the flow are those within these windows alone, renormalised, so its density stays exact. A window
may depend on what is placed, never on what comes later: an atom whose place decides whether a ring can close is kept
within reach of the ring's other end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from molgen.geometry.internal import ZMatrix, angle, dihedral, wrapped_angle
from molgen.prose.validity import LONGEST, SHORTEST

if TYPE_CHECKING:
    from molgen.prose.rows import Rows

# Widest of 12,900 frames at 600 K of 129 peptides: an angle whose own spring has 0.51 eV, planes bent by 0.85 rad
# (hydrogens: 1.15).
BEND = 1.3  # sqrt(eV): an angle off its ideal, in units in which its spring has 1/2 eV
TWIST, TWIST_H = 1.1, 2.0  # radians: a plane bent, by a heavy atom and by a hydrogen
INVERSION = math.pi / 3  # siblings stand at 120 degrees to either side; 60 degrees on, a tetrahedral centre is flat
_EDGE = 1e-5  # Angstrom, radians: rounding


@dataclass(frozen=True, eq=False)
class Limits:
    """Windows of one layout, by rank.

    Attributes:
        low, high: (N, 3) of r, theta (r2 where a ring closes) and phi minus its centre; infinite where there is no
            such coordinate, or phi is broad.
        closes: (N,) whether an atom closes a ring.
        mate: (N,) the placed atom from which the gap to be closed is measured, or -1: a ring's last atom but the one
            that closes it has one, unless its phi is broad. gap: (N, 2) the least and the most of it, Angstrom: what
            ideal bonds bridge at an angle within its limits.
    """

    low: Tensor
    high: Tensor
    closes: Tensor
    mate: Tensor
    gap: Tensor

    @classmethod
    def of(
        cls,
        z: ZMatrix,
        ideal: np.ndarray,
        unit: np.ndarray,
        corner: dict[int, tuple[float, float]],
        hydrogen: np.ndarray,
    ) -> Limits:
        """From the force field.

        Args:
            ideal: (N, 2) r, and theta or, where a ring closes, r2. unit: (N,) of theta.
            corner: of each atom that closes a ring, the ideal angle B-X-C and its unit, radians.
            hydrogen: (N,) which atoms are hydrogens.
        """
        n, rank = len(z), np.arange(len(z))
        low, high = np.full((n, 3), -math.inf), np.full((n, 3), math.inf)
        low[1:, 0], high[1:, 0] = SHORTEST * ideal[1:, 0], LONGEST * ideal[1:, 0]
        bends, closes = ~z.closes & (rank > 1), z.closes
        low[bends, 1], high[bends, 1] = np.clip(
            ideal[bends, 1] + BEND * unit[bends] * np.array([[-1], [1]]), 0, math.pi
        )
        low[closes, 1], high[closes, 1] = SHORTEST * ideal[closes, 1], LONGEST * ideal[closes, 1]
        narrow = (z.fold == 0) & (rank > 2)
        plane = np.where(hydrogen, TWIST_H, TWIST)
        most = np.where(np.abs(np.sin(z.centre)) > 0.1, INVERSION, plane)[narrow]
        low[narrow, 2], high[narrow, 2] = -most, most
        mate, gap = np.full(n, -1), np.zeros((n, 2))
        for k, (theta, width) in corner.items():
            end, last = sorted(z.references[k, 1:])
            if narrow[last]:
                bent = np.clip(theta + BEND * width * np.array([-1, 1]), 0, math.pi)
                mate[last], gap[last] = (
                    end,
                    np.sqrt(ideal[k, 0] ** 2 + ideal[k, 1] ** 2 - 2 * ideal[k, 0] * ideal[k, 1] * np.cos(bent)),
                )
        return cls(*(torch.from_numpy(value) for value in (low, high, z.closes, mate, gap)))


def windows(rows: Rows, x: Tensor, q: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Least and most (B, K) of r (`kind` 0), theta or r2 (1), phi minus its centre (2) of the atoms of `rows`.

    Where a ring cannot be closed any more, the window of theta is a point, or that of r is empty (least above most).

    Args:
        x: (B, N, 3) positions by rank; only ranks below an atom's own matter. q: (B, K, 3) coordinates of these atoms,
            of which those before `kind` matter.
    """
    low, high = (side[:, kind].to(x.dtype).repeat(len(x), 1) for side in (rows.low, rows.high))
    if kind < 2 and len(at := rows.closes_at):
        apart, r = (x[:, rows.b[at]] - x[:, rows.c[at]]).norm(dim=-1), q[:, at, 0]
        if kind == 0:
            low[:, at] = torch.maximum(low[:, at], apart - rows.high[at, 1].to(x.dtype))
        else:
            low[:, at] = torch.maximum(low[:, at], (apart - r).abs())
            high[:, at] = torch.minimum(high[:, at], apart + r)
    if kind > 0 and len(at := rows.mate_at):
        a, b, c, mate = (x[:, index] for index in (rows.a[at], rows.b[at], rows.c[at], rows.mate))
        distance, turn = (mate - c).norm(dim=-1), angle(b, c, mate)
        gap, r = rows.gap.to(x.dtype), q[:, at, 0]
        if kind == 1:  # in the plane of the ring, where the gap is least
            square = (r.square() + distance.square())[..., None] - gap.square()
            least, most = torch.arccos((square / (2 * r * distance)[..., None]).clamp(-1, 1)).unbind(-1)
            least, most = (turn + least).clamp(max=math.pi), (turn + most).clamp(max=math.pi)
        else:
            theta = q[:, at, 1]
            square = r.square() + distance.square() - 2 * r * distance * theta.cos() * turn.cos()
            cosine = (square - gap[:, 1].square()) / (2 * r * distance * theta.sin() * turn.sin())
            half = torch.arccos(cosine.clamp(-1, 1))
            middle = wrapped_angle(dihedral(a, b, c, mate) - rows.centre[at].to(x.dtype))
            least, most = middle - half, middle + half
        # where both cannot be had, a ring that closes matters more
        common = torch.maximum(low[:, at], least), torch.minimum(high[:, at], most)
        some = common[0] < common[1]
        low[:, at], high[:, at] = torch.where(some, common[0], least), torch.where(some, common[1], most)
    return low, high


def within(rows: Rows, x: Tensor, q: Tensor) -> Tensor:
    """(B,) whether coordinates q (B, N, 3) of positions x (B, N, 3) lie in the windows of `rows`, which are all."""
    inside = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for kind in range(3):
        low, high = windows(rows, x, q, kind)
        value = q[..., kind]
        inside = inside & ((value >= low - _EDGE) & (value <= high + _EDGE)).all(1)
    return inside
