"""What TS-GEN and its correction share: the trunk with a head that moves every atom, and says how surely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molgen.nn.trunk import Trunk, TrunkConfig
from molgen.tsgen.condition import ReactionBatch

BOND_FEATURES = 3  # of an atom: bonds in reactant and product, and by how many these differ
LOG_VARIANCE = (-8.0, 4.0)


def both_directions(
    predict: Callable[[ReactionBatch], tuple[Tensor, Tensor]], directions: tuple[ReactionBatch, ReactionBatch]
) -> tuple[Tensor, Tensor]:
    """The mean of two predictions, for reactions and for their reverse: end points (B, N, 3), log-variances (B, N)."""
    (there, log_there), (back, log_back) = map(predict, directions)
    return (there + back) / 2, torch.logaddexp(log_there, log_back) - torch.log(torch.tensor(2.0))


def predicted_deviation(log_variance: Tensor, mask: Tensor) -> Tensor:
    """Predicted root mean square error (B, N) of each atom's position, Angstrom; the variance is per component."""
    return (3 * log_variance.exp()).sqrt() * mask


class EndPointNetwork(nn.Module):
    """Moves a geometry to a transition state.

    Args:
        elements: atomic numbers the network knows. node_inputs: features of an atom beside its element and bonds.
        trunk: sizes and inputs of the shared trunk, see :class:`TrunkConfig`.
    """

    lookup: Tensor

    def __init__(self, elements: Sequence[int], node_inputs: int = 0, **trunk: Any):
        super().__init__()
        self.elements = sorted(int(z) for z in elements)
        lookup = torch.full((119,), len(self.elements))
        lookup[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("lookup", lookup, persistent=False)
        c = TrunkConfig(node_inputs=len(self.elements) + BOND_FEATURES + node_inputs, **trunk)
        self.trunk = Trunk(c)
        self.gate = nn.Linear(c.scalars, c.vectors)
        self.displace = nn.Linear(c.vectors, 1, bias=False)
        self.log_variance = nn.Sequential(nn.Linear(c.scalars, 32), nn.SiLU(), nn.Linear(32, 1))

    def node_features(self, batch: ReactionBatch, dtype: torch.dtype) -> Tensor:
        """(B, N, elements + `BOND_FEATURES`): the element, one-hot, and the bonds on both sides."""
        element = F.one_hot(self.lookup[batch.numbers], len(self.elements) + 1)[..., :-1].to(dtype)
        bonded = (batch.hops == 1).sum(2).to(dtype)
        changed = (bonded[..., 0] - bonded[..., 1]).abs()[..., None]
        return torch.cat([element, bonded / 4, changed], dim=-1)

    def end_point(self, x: Tensor, scalars: Tensor, vectors: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Where atoms at x (B, N, 3), Angstrom, go, and the log-variance (B, N), by what the trunk says."""
        step = self.displace(vectors * self.gate(scalars)[..., None, :])[..., 0]
        return (x + step) * mask[..., None], self.log_variance(scalars)[..., 0].clamp(*LOG_VARIANCE)
