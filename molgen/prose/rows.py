"""Some ranks of a layout, with all that the flow looks up for them and does not depend on positions; made once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from molgen.prose.layout import Layout


@dataclass(frozen=True, eq=False)
class Rows:
    """K ranks, ascending. Names in `_at` are indices into these K, of the rows that have something.

    Attributes:
        ranks: (K,). a, b, c: (K,) ranks of the reference atoms, 0 for none. centre: (K,) of phi, radians.
        scale, log_scale, ideal, has_line: (K, 3) of the layout. after: (K, 1) all but the first atom.
        low, high: (K, 3) limits. closes_at: (C,) what closes a ring. mate_at: (M,) what keeps one within reach; mate:
            (M,) the ring's other end; gap: (M, 2) see :class:`molgen.prose.limits.Limits`.
        near, hops: (K, NEIGHBOURS) see :class:`Layout`. used: (U,) the atoms among `near`, `near_at` (K, NEIGHBOURS)
            indices into them; slots: for each neighbour, the rows that have it.
        broad_at: (R,) rows of broad dihedrals, `rotors` (R,) which ones, `folds` (R,). narrow_at: of narrow ones.
        attached: (K,) where among the heavy atoms C stands.
    """

    ranks: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    centre: Tensor
    scale: Tensor
    log_scale: Tensor
    ideal: Tensor
    has_line: Tensor
    after: Tensor
    low: Tensor
    high: Tensor
    closes_at: Tensor
    mate_at: Tensor
    mate: Tensor
    gap: Tensor
    near: Tensor
    hops: Tensor
    used: Tensor
    near_at: Tensor
    slots: list[Tensor]
    broad_at: Tensor
    rotors: Tensor
    folds: Tensor
    narrow_at: Tensor
    attached: Tensor

    @staticmethod
    def of(layout: Layout, ranks: range) -> Rows:
        """The rows of consecutive ranks, made once a layout."""
        if ranks not in layout.rows:
            layout.rows[ranks] = Rows.at(layout, torch.arange(ranks.start, ranks.stop, device=layout.device))
        return layout.rows[ranks]

    @staticmethod
    def narrow(layout: Layout) -> Rows:
        """Those of all narrow dihedrals."""
        if "narrow" not in layout.rows:
            layout.rows["narrow"] = Rows.at(layout, layout.narrow)
        return layout.rows["narrow"]

    @staticmethod
    def at(layout: Layout, ranks: Tensor) -> Rows:
        """Those of any ranks (K,), ascending; not kept."""
        limits = layout.limits
        a, b, c = (index[ranks] for index in layout.references)
        mate_at = torch.nonzero(limits.mate[ranks] >= 0)[:, 0]
        near, hops = layout.near[ranks], layout.near_bonds[ranks]
        used, near_at = near.unique(return_inverse=True)
        broad_at = torch.nonzero(layout.rotor_of[ranks] >= 0)[:, 0]
        rotors = layout.rotor_of[ranks[broad_at]]
        return Rows(
            ranks=ranks,
            a=a,
            b=b,
            c=c,
            centre=layout.centre[ranks],
            scale=layout.scale[ranks],
            log_scale=layout.log_scale[ranks],
            ideal=layout.ideal[ranks],
            has_line=layout.has_line[ranks],
            after=(ranks > 0)[:, None],
            low=limits.low[ranks],
            high=limits.high[ranks],
            closes_at=torch.nonzero(limits.closes[ranks])[:, 0],
            mate_at=mate_at,
            mate=limits.mate[ranks[mate_at]],
            gap=limits.gap[ranks[mate_at]],
            near=near,
            hops=hops,
            used=used,
            near_at=near_at,
            slots=[torch.nonzero(column)[:, 0] for column in (hops > 0).T],
            broad_at=broad_at,
            rotors=rotors,
            folds=layout.folds[rotors],
            narrow_at=torch.nonzero(layout.has_line[ranks, 2])[:, 0],
            attached=torch.searchsorted(layout.heavy, c.contiguous()),
        )
