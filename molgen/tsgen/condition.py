"""Reactions as the dense tensors TS-GEN reads: the sqrt-distance guess with both end points superposed on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.geometry.align import superpose
from molgen.geometry.embed import sqrt_distance_guess

MAX_HOPS = 5  # graph distances beyond this are one class
RADII = torch.tensor(covalent_radii, dtype=torch.float32)
BOND_FACTOR = 1.3  # a bond for counting hops: d < 1.3 (r_i + r_j); a model input, not a verdict


@dataclass
class ReactionBatch:
    """B reactions of up to N atoms, one frame each (the guess's), float32 Angstrom.

    Attributes:
        numbers: (B, N) int64 atomic numbers, 0 for padding.
        guess: (B, N, 3) sqrt-distance guess, centred.
        reactant, product: (B, N, 3) end points, each fragment superposed on the guess.
        r_frag, p_frag: (B, N) fragment index, -1 for padding.
        hops: (B, N, N, 2) int8 bonds between the atoms in the reactant and the product, at most MAX_HOPS.
        ts: (B, N, 3) transition state superposed on the guess, or None.
        level: (B,) int64, which of a model's levels the geometries are of; None for the first.
    """

    numbers: Tensor
    guess: Tensor
    reactant: Tensor
    product: Tensor
    r_frag: Tensor
    p_frag: Tensor
    hops: Tensor
    ts: Tensor | None = None
    level: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(B, N) true for real atoms."""
        return self.numbers > 0

    @property
    def same_fragment(self) -> tuple[Tensor, Tensor]:
        """(B, N, N) true for pairs of atoms within one fragment of the reactant, and of the product."""
        same_r, same_p = (frag[:, :, None] == frag[:, None, :] for frag in (self.r_frag, self.p_frag))
        return same_r, same_p

    def __len__(self) -> int:
        return len(self.numbers)

    def swapped(self, which: Tensor | None = None) -> ReactionBatch:
        """Reactant and product exchanged, in the reactions where `which` (B,) is true, or in all."""
        w = torch.ones(len(self), dtype=torch.bool, device=self.numbers.device) if which is None else which
        w1, w2, w3 = w[:, None], w[:, None, None], w[:, None, None, None]
        return replace(
            self,
            reactant=torch.where(w2, self.product, self.reactant),
            product=torch.where(w2, self.reactant, self.product),
            r_frag=torch.where(w1, self.p_frag, self.r_frag),
            p_frag=torch.where(w1, self.r_frag, self.p_frag),
            hops=torch.where(w3, self.hops.flip(-1), self.hops),
        )

    def select(self, index: Tensor, multiple: int = 1) -> ReactionBatch:
        """Rows `index`, cropped to their largest molecule, or to the next `multiple` of atoms."""
        index = index.to(self.numbers.device)
        n = int((self.numbers[index] > 0).sum(1).max())
        n = -(-n // multiple) * multiple
        return self._each(lambda x: x[index][:, :n], lambda hops: hops[index][:, :n, :n], lambda level: level[index])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ReactionBatch:
        """A copy on another device, positions in another precision."""
        return self._each(
            lambda x: x.to(device, dtype if x.is_floating_point() else None),
            lambda h: h.to(device),
            lambda v: v.to(device),
        )

    def _each(
        self, atoms: Callable[[Tensor], Tensor], pairs: Callable[[Tensor], Tensor], rows: Callable[[Tensor], Tensor]
    ) -> ReactionBatch:
        return ReactionBatch(
            *(atoms(x) for x in (self.numbers, self.guess, self.reactant, self.product, self.r_frag, self.p_frag)),
            hops=pairs(self.hops),
            ts=None if self.ts is None else atoms(self.ts),
            level=None if self.level is None else rows(self.level),
        )

    @property
    def true_ts(self) -> Tensor:
        """`ts`, where the caller needs one.

        Raises:
            ValueError: the reactions came without.
        """
        if self.ts is None:
            raise ValueError("these reactions have no transition state")
        return self.ts


def pair_distances(x: Tensor) -> Tensor:
    """Distances (B, N, N) among positions x (B, N, 3), Angstrom; 1e-6 in place of 0, so that gradients stay finite."""
    return ((x[:, None] - x[:, :, None]).square().sum(-1) + 1e-12).sqrt()


def refuse_unknown_elements(
    numbers: Iterable[int], known: Sequence[int], *, where: str, known_to: str, remedy: str
) -> None:
    """See that a model knows all elements of its data.

    Args:
        numbers: atomic numbers in the data at `where`. known: those of the model. known_to: where these come from.
        remedy: what may be done instead of removing the reactions.

    Raises:
        InputError: an element that is not known.
    """
    unknown = sorted(set(numbers) - set(known))
    if unknown:
        raise InputError(
            f"atomic numbers {unknown} are not among those of {known_to}",
            where=where,
            expected=f"atomic numbers {known}",
            remedy=f"remove these reactions, or {remedy}",
        )


def graph_hops(positions: Tensor, numbers: Tensor, fragments: Tensor) -> Tensor:
    """Shortest paths (B, N, N) int8 over covalent-radius bonds within a fragment, MAX_HOPS where farther or none."""
    radii = RADII[numbers]
    same = (fragments[:, :, None] == fragments[:, None, :]) & (numbers > 0)[:, :, None]
    bond = same & (torch.cdist(positions, positions) < BOND_FACTOR * (radii[:, :, None] + radii[:, None, :]))
    step = bond.float()
    reach = torch.eye(numbers.shape[1]).expand_as(step)
    hops = torch.full(step.shape, MAX_HOPS, dtype=torch.int8)
    for k in range(MAX_HOPS):
        hops = torch.where((reach > 0) & (hops > k), k, hops).to(torch.int8)
        reach = ((reach + reach @ step) > 0).float()
    return hops


def prepare(reactions: Sequence[Reaction], levels: Sequence[str] = (), chunk: int = 256) -> ReactionBatch:
    """Pad, superpose and embed reactions; the transition state comes along if every reaction has one.

    Args:
        levels: of the model; a reaction of another level counts as of the first.
    """
    n = max(len(r.numbers) for r in reactions)
    b = len(reactions)
    numbers = np.zeros((b, n), dtype=np.int64)
    frag = {"r": np.full((b, n), -1), "p": np.full((b, n), -1)}
    xyz = {k: np.zeros((b, n, 3)) for k in ("r", "p", "ts")}
    for i, reaction in enumerate(reactions):
        m = len(reaction.numbers)
        numbers[i, :m] = reaction.numbers
        frag["r"][i, :m], frag["p"][i, :m] = reaction.reactant_fragments, reaction.product_fragments
        xyz["r"][i, :m], xyz["p"][i, :m] = reaction.reactant, reaction.product
        if reaction.ts is not None:
            xyz["ts"][i, :m] = reaction.ts
    z, r_frag, p_frag = torch.from_numpy(numbers), torch.from_numpy(frag["r"]), torch.from_numpy(frag["p"])
    r, p, ts = (torch.from_numpy(xyz[k]) for k in ("r", "p", "ts"))
    embedded = [
        sqrt_distance_guess(*part) for part in zip(*(t.split(chunk) for t in (r, p, r_frag, p_frag)), strict=True)
    ]
    guess, reactant, product = (torch.cat(parts).float() for parts in zip(*embedded, strict=True))
    mask = (z > 0)[..., None]
    hops = torch.stack([graph_hops(r, z, r_frag), graph_hops(p, z, p_frag)], dim=-1)
    batch = ReactionBatch(z, guess * mask, reactant * mask, product * mask, r_frag, p_frag, hops)
    if len(levels) > 1:
        batch.level = torch.tensor([levels.index(r.level) if r.level in levels else 0 for r in reactions])
    if all(reaction.ts is not None for reaction in reactions):
        batch.ts = superpose(ts, guess.double(), (z > 0).double()).float() * mask
    return batch
