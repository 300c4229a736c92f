"""TS-GEN's network: the end point x_1 of the flow from x_t, reactant and product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molgen.nn.trunk import Trunk, TrunkConfig
from molgen.tsgen.condition import MAX_HOPS, RADII, ReactionBatch, pair_distances

PAIR_FEATURES = 2 * (MAX_HOPS + 1) + 2 + 2 + 8
CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"scalars": 96, "vectors": 32, "pair": 64, "layers": 5},
    "base": {"scalars": 128, "vectors": 48, "pair": 96, "layers": 8},
}


class TSModel(nn.Module):
    """Predicts the transition state (and its uncertainty) from a point x_t on the path prior -> transition state.

    Args:
        elements: atomic numbers the model knows.
        levels: electronic-structure methods it can guess transition states of, the first unless told; () for one.
        trunk: sizes of the shared trunk, see :class:`TrunkConfig`.
    """

    lookup: Tensor
    radii: Tensor
    log_centres: Tensor

    def __init__(self, elements: Sequence[int], levels: Sequence[str] = (), **trunk):
        super().__init__()
        self.elements = sorted(int(z) for z in elements)
        self.levels = tuple(levels)
        self.config = {"elements": self.elements, **({"levels": list(levels)} if levels else {}), **trunk}
        lookup = torch.full((119,), len(self.elements))
        lookup[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("lookup", lookup, persistent=False)
        self.register_buffer("radii", RADII, persistent=False)
        self.register_buffer("log_centres", torch.linspace(-1.0, 1.0, 8), persistent=False)
        c = TrunkConfig(
            geometries=3,
            vector_inputs=2,
            node_inputs=len(self.elements) + 3,
            pair_inputs=PAIR_FEATURES,
            conditions=len(self.levels),
            **trunk,
        )
        self.trunk = Trunk(c)
        self.gate = nn.Linear(c.scalars, c.vectors)
        self.displace = nn.Linear(c.vectors, 1, bias=False)
        self.log_variance = nn.Sequential(nn.Linear(c.scalars, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x_t: Tensor, t: Tensor, batch: ReactionBatch) -> tuple[Tensor, Tensor]:
        """End point (B, N, 3), Angstrom, and log-variance (B, N) of each atom, from x_t (B, N, 3) and t (B,)."""
        mask = batch.mask
        r, p = batch.reactant, batch.product
        same_r = batch.r_frag[:, :, None] == batch.r_frag[:, None, :]
        same_p = batch.p_frag[:, :, None] == batch.p_frag[:, None, :]
        element = self.lookup[batch.numbers]
        bonded = (batch.hops == 1).sum(2).to(x_t.dtype)
        changed = (bonded[..., 0] - bonded[..., 1]).abs()[..., None]
        nodes = torch.cat([F.one_hot(element, len(self.elements) + 1)[..., :-1], bonded / 4, changed], dim=-1)
        scalars, vectors, _ = self.trunk(
            nodes.to(x_t.dtype),
            [x_t, r, p],
            mask,
            geometry_masks=[None, same_r, same_p],
            pair_features=self.pair_features(r, p, same_r, same_p, batch),
            vector_features=torch.stack([r - x_t, p - x_t], dim=-1),
            condition=self._condition(batch).to(x_t.dtype) if self.levels else None,
            time=t,
        )
        step = self.displace(vectors * self.gate(scalars)[..., None, :])[..., 0]
        return (x_t + step) * mask[..., None], self.log_variance(scalars)[..., 0].clamp(-8, 4)

    def _condition(self, batch: ReactionBatch) -> Tensor:
        level = batch.numbers.new_zeros(len(batch)) if batch.level is None else batch.level
        return F.one_hot(level, len(self.levels))

    def pair_features(self, r: Tensor, p: Tensor, same_r: Tensor, same_p: Tensor, batch: ReactionBatch) -> Tensor:
        """(B, N, N, PAIR_FEATURES): hops, soft bond orders, one fragment or two, log(d_R / d_P)."""
        d_r, d_p = pair_distances(r), pair_distances(p)
        radii = self.radii[batch.numbers]
        contact = radii[:, :, None] + radii[:, None, :]
        bond_r = torch.sigmoid(12 * (1.3 - d_r / contact)) * same_r
        bond_p = torch.sigmoid(12 * (1.3 - d_p / contact)) * same_p
        ratio = torch.log((d_r + 0.1) / (d_p + 0.1))
        bumps = (
            torch.exp((-8 * (ratio[..., None] - self.log_centres).square()).clamp(min=-30.0))
            * (same_r & same_p)[..., None]
        )
        hops = F.one_hot(batch.hops.long(), MAX_HOPS + 1).flatten(-2).to(r.dtype)
        flags = torch.stack([bond_r, bond_p, same_r.to(r.dtype), same_p.to(r.dtype)], dim=-1)
        return torch.cat([hops, flags, bumps], dim=-1)
