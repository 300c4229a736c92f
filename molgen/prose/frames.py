"""Conformations to learn from, with all that does not depend on the network computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from molgen.data.md import MDSet
from molgen.data.stereochemistry import turned_bonds
from molgen.geometry.internal import log_volume, to_internal
from molgen.prose.layout import Layout
from molgen.prose.limits import within
from molgen.prose.physics import local_quadratic, scan
from molgen.prose.rows import Rows
from molgen.prose.state import CompleteState
from molgen.prose.zmatrix import canonical

_CHUNK, _GPU_CHUNK = 100, 1000


@dataclass(frozen=True, eq=False)
class Frames:
    """M conformations of one peptide, by rank.

    Attributes:
        given: (M,) which of the conformations it was made from each frame is; others were left out.
        temperature: (M,) K that a frame was sampled at. energies: (M,) eV.
        own: (M,) true for samples of a flow and for forms whose share the start of a simulation decided, which count
            in the energy spread but are no data to imitate.
        share: (M,) how often a frame is picked, relative to others of its temperature.
        x, q: (M, N, 3) positions and internal coordinates. gradient, hessian: of the narrow coordinates.
        scans: (M, R, CHANNELS, KNOTS) float16. volume: (M,).
    """

    layout: Layout
    given: Tensor
    temperature: Tensor
    energies: Tensor
    own: Tensor
    share: Tensor
    x: Tensor
    q: Tensor
    gradient: Tensor
    hessian: Tensor
    scans: Tensor
    volume: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(
        cls,
        layout: Layout,
        positions: np.ndarray,
        energies: np.ndarray,
        temperature: np.ndarray,
        share: np.ndarray | None = None,
        own: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> Frames:
        """From positions (M, N, 3) in Angstrom, energies (M,) in eV, temperatures (M,) in K; `share` and
        `own` (M,), where they are not 1 and false. `layout` is on the CPU, the result on `device`.

        The rare frame of a hot trajectory beyond the flow's limits (an inverted centre), and frames without a finite
        energy, are left out.
        """
        parts: list[list[Tensor]] = [[] for _ in range(7)]
        there = layout.to(device)
        size = _CHUNK if there is layout else _GPU_CHUNK
        for chunk in torch.from_numpy(np.asarray(positions)).split(size):
            x = canonical(layout.z, chunk.double()[:, layout.order])
            q = to_internal(layout.z, x)
            volume = log_volume(layout.z, q, x).float()
            usable = within(Rows.of(layout, range(layout.atoms)), x, q) & volume.isfinite()
            x = x.float().to(device)
            gradient, hessian = local_quadratic(there, x, there.narrow)
            scans = torch.stack([scan(there, rotor, x) for rotor in there.rotors], 1).half()
            for part, value in zip(parts, (x, q.float(), gradient, hessian, scans, volume, usable), strict=True):
                part.append(value.to(device))
        *joined, usable = (torch.cat(part) for part in parts)
        own = np.zeros(len(usable), dtype=bool) if own is None else own
        share = np.ones(len(usable)) if share is None else share
        given = [torch.from_numpy(np.asarray(a)) for a in (temperature, energies, own, share)]
        columns = [(a.float() if a.dtype != torch.bool else a).to(device) for a in given]
        keep = torch.nonzero(usable & columns[1].isfinite())[:, 0]
        return cls(there, keep, *(column[keep] for column in (*columns, *joined)))

    @classmethod
    def of_md(cls, item: MDSet) -> Frames:
        """All frames of a molecular-dynamics set.

        A peptide bond that is cis, not before proline, was so at the start and stays so without moves of a flow: the
        share of that form says nothing, its energies do.
        """
        positions = item.positions.reshape(-1, *item.positions.shape[2:])
        started = None if item.flow else turned_bonds(item.peptide, positions)
        temperature = np.repeat(item.temperatures, item.energies.shape[1])
        return cls.of(Layout.of(item.peptide), positions, item.energies.ravel(), temperature, own=started)

    @classmethod
    def join(cls, parts: Sequence[Frames]) -> Frames:
        """The frames of several sets of one layout."""
        names = [field.name for field in fields(cls) if field.name != "layout"]
        return cls(parts[0].layout, *(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def to(self, device: torch.device | str) -> Frames:
        """The same on another device; indices to pick from stay on the CPU."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return replace(self, **moved)

    @cached_property
    def _kept(self) -> tuple[Tensor, Tensor]:
        """Temperatures and shares on the CPU, where frames are picked."""
        return self.temperature.cpu(), self.share.cpu()

    def at(self, temperature: float) -> Tensor:
        """Indices of the frames of this temperature."""
        return torch.nonzero((self._kept[0] - temperature).abs() < 0.5)[:, 0]

    def temperatures(self) -> list[float]:
        """The temperatures present, ascending."""
        return sorted(set(self._kept[0].tolist()))

    def pick(self, index: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """At most `count` of the frames `index`, by their shares, with replacement."""
        return index[torch.multinomial(self._kept[1][index], min(count, len(index)), True, generator=generator)]

    def state(self, index: Tensor) -> CompleteState:
        """The state of frames `index`, at their own temperatures."""
        index = index.to(self.x.device)
        parts = (self.x, self.q, self.gradient, self.hessian, self.scans, self.volume)
        x, q, gradient, hessian, scans, volume = (part[index].float() for part in parts)
        return CompleteState.from_parts(self.layout, x, q, gradient, hessian, scans, volume, self.temperature[index])
