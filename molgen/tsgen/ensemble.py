"""Several TS-GEN networks as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from molgen.errors import InputError
from molgen.tsgen.condition import ReactionBatch
from molgen.tsgen.model import TSModel


class TSEnsemble(nn.Module):
    """The mean of several networks' end points, at every step of the flow (deep ensembles: Lakshminarayanan, 2017).

    Args:
        members: configuration of each network. They know the same elements; those that know levels know the same.

    Raises:
        InputError: they do not.
    """

    def __init__(self, members: Sequence[dict[str, Any]]):
        super().__init__()
        self.members = nn.ModuleList(TSModel(**config) for config in members)
        models = self.networks
        self.elements = models[0].elements
        self.levels = next((m.levels for m in models if m.levels), ())
        self.config = {"members": [m.config for m in models]}
        if any(m.elements != self.elements or m.levels not in ((), self.levels) for m in models):
            raise InputError("the networks know different elements or levels", where="TSEnsemble")

    @property
    def networks(self) -> list[TSModel]:
        """The members."""
        return [m for m in self.members if isinstance(m, TSModel)]

    def forward(self, x_t: Tensor, t: Tensor, batch: ReactionBatch) -> tuple[Tensor, Tensor]:
        """End point (B, N, 3), Angstrom, and log-variance (B, N), from x_t (B, N, 3) and t (B,).

        The variance is that of the mixture: the mean of the members' plus what they differ by.
        """
        ends, log_variances = zip(*(member(x_t, t, batch) for member in self.members), strict=True)
        end, many = torch.stack(ends).mean(0), len(ends)
        own = torch.stack(log_variances).logsumexp(0) - math.log(many)
        apart = (torch.stack(ends) - end).square().mean((0, -1))  # a component
        return end, torch.log(own.exp() + apart)
