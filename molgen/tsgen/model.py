"""TS-GEN's network: the end point x_1 of the flow from x_t, reactant and product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from molgen.tsgen.condition import MAX_HOPS, RADII, ReactionBatch, pair_distances
from molgen.tsgen.network import EndPointNetwork

PAIR_FEATURES = 2 * (MAX_HOPS + 1) + 2 + 2 + 8
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"scalars": 96, "vectors": 32, "pair": 64, "layers": 5},
    "base": {"scalars": 128, "vectors": 48, "pair": 96, "layers": 8},
}


class TSModel(EndPointNetwork):
    """Predicts the transition state (and its uncertainty) from a point x_t on the path prior -> transition state.

    Args:
        elements: atomic numbers the model knows.
        levels: electronic-structure methods it can guess transition states of, the first unless told; () for one.
        trunk: sizes of the shared trunk, see :class:`TrunkConfig`.
    """

    radii: Tensor
    log_centres: Tensor

    def __init__(self, elements: Sequence[int], levels: Sequence[str] = (), **trunk):
        super().__init__(
            elements, geometries=3, vector_inputs=2, pair_inputs=PAIR_FEATURES, conditions=len(levels), **trunk
        )
        self.levels = tuple(levels)
        self.config = {"elements": self.elements, **({"levels": list(levels)} if levels else {}), **trunk}
        self.register_buffer("radii", RADII, persistent=False)
        self.register_buffer("log_centres", torch.linspace(-1.0, 1.0, 8), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, batch: ReactionBatch) -> tuple[Tensor, Tensor]:
        """End point (B, N, 3), Angstrom, and log-variance (B, N) of each atom, from x_t (B, N, 3) and t (B,)."""
        mask = batch.mask
        r, p = batch.reactant, batch.product
        scalars, vectors, _ = self.trunk(
            self.node_features(batch, x_t.dtype),
            [x_t, r, p],
            mask,
            geometry_masks=[None, *batch.same_fragment],
            pair_features=self.pair_features(batch),
            vector_features=torch.stack([r - x_t, p - x_t], dim=-1),
            condition=self._condition(batch).to(x_t.dtype) if self.levels else None,
            time=t,
        )
        return self.end_point(x_t, scalars, vectors, mask)

    def _condition(self, batch: ReactionBatch) -> Tensor:
        level = batch.numbers.new_zeros(len(batch)) if batch.level is None else batch.level
        return F.one_hot(level, len(self.levels))

    def pair_features(self, batch: ReactionBatch) -> Tensor:
        """(B, N, N, PAIR_FEATURES): hops, soft bond orders, one fragment or two, log(d_R / d_P)."""
        (same_r, same_p), dtype = batch.same_fragment, batch.reactant.dtype
        d_r, d_p = pair_distances(batch.reactant), pair_distances(batch.product)
        radii = self.radii[batch.numbers]
        contact = radii[:, :, None] + radii[:, None, :]
        bond_r = torch.sigmoid(12 * (1.3 - d_r / contact)) * same_r
        bond_p = torch.sigmoid(12 * (1.3 - d_p / contact)) * same_p
        ratio = torch.log((d_r + 0.1) / (d_p + 0.1))
        bumps = (
            torch.exp((-8 * (ratio[..., None] - self.log_centres).square()).clamp(min=-30.0))
            * (same_r & same_p)[..., None]
        )
        hops = F.one_hot(batch.hops.long(), MAX_HOPS + 1).flatten(-2).to(dtype)
        flags = torch.stack([bond_r, bond_p, same_r.to(dtype), same_p.to(dtype)], dim=-1)
        return torch.cat([hops, flags, bumps], dim=-1)
