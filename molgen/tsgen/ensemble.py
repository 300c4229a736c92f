"""Several TS-GEN networks as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from molgen.errors import InputError
from molgen.tsgen.model import TSModel


class TSEnsemble(nn.Module):
    """Networks whose flows are averaged where they end (deep ensembles: Lakshminarayanan, 2017).

    Each follows a flow of its own: where they disagree early, their mean would be a geometry that none was trained on.

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


def networks_of(model: TSModel | TSEnsemble) -> list[TSModel]:
    """The networks of a model, one or several."""
    return model.networks if isinstance(model, TSEnsemble) else [model]
