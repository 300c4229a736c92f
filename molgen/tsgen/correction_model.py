"""The network that carries a geometry of a cheaper level to the transition state of a better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from molgen.checkpoint import load_weights
from molgen.geometry.align import superpose
from molgen.tsgen.condition import MAX_HOPS, ReactionBatch
from molgen.tsgen.gradient_features import GRADIENT_SCALARS, GRADIENT_VECTORS, gradient_features
from molgen.tsgen.network import EndPointNetwork

KIND = "correction"
WORTH = 0.99  # of the RMSD of saddles, at most, that a correction of use leaves
SIZES = {"scalars": 96, "vectors": 32, "pair": 64, "layers": 4, "dropout": 0.1}


class CorrectionModel(EndPointNetwork):
    """Displacements from a geometry and its gradient to the transition state, with their uncertainty.

    Beside the geometry it sees the guess that the search began from, where there was one: a saddle far from the guess
    may be another reaction's.

    Of reactant and product it sees the bonds, not the geometries: from these a network recalls the transition states
    it was trained on, and then learns nothing from the gradient (measured, docs/benchmarks.md).

    Args:
        elements: atomic numbers the model knows.
        level: of the gradients, such as "GFN2-xTB".
        trunk: sizes of the shared trunk, see :class:`TrunkConfig`.
    """

    def __init__(self, elements: Sequence[int], level: str, **trunk):
        super().__init__(
            elements,
            GRADIENT_SCALARS,
            geometries=2,
            vector_inputs=GRADIENT_VECTORS + 1,
            pair_inputs=2 * (MAX_HOPS + 1) + 2,
            time=False,
            **trunk,
        )
        self.level = level
        self.config = {"elements": self.elements, "level": level, **trunk}
        with torch.no_grad():  # begins near the geometry as it is
            self.displace.weight.mul_(0.1)

    def forward(
        self, x: Tensor, gradient: Tensor, guess: Tensor, has_guess: Tensor, batch: ReactionBatch
    ) -> tuple[Tensor, Tensor]:
        """Transition state (B, N, 3), Angstrom, and log-variance (B, N) of each atom.

        Args:
            x: (B, N, 3) Angstrom. gradient: (B, N, 3) eV/Angstrom, of `level` at x.
            guess: (B, N, 3) Angstrom, in any frame; ignored where `has_guess` (B,) is false.
        """
        mask = batch.mask
        real = mask[:, :, None] & mask[:, None, :]
        apart = (superpose(guess, x, mask.to(x.dtype)) - x) * (mask & has_guess[:, None])[..., None]
        felt, strength = gradient_features(batch.numbers, x, gradient)
        hops = F.one_hot(batch.hops.long(), MAX_HOPS + 1).flatten(-2)
        scalars, vectors, _ = self.trunk(
            torch.cat([self.node_features(batch, x.dtype), strength], dim=-1),
            [x, x + apart],
            mask,
            geometry_masks=[None, real & has_guess[:, None, None]],
            pair_features=torch.cat([hops, torch.stack(batch.same_fragment, dim=-1)], dim=-1).to(x.dtype),
            vector_features=torch.cat([felt, apart[..., None]], dim=-1),
        )
        return self.end_point(x, scalars, vectors, mask)


@dataclass(frozen=True)
class Correction:
    """A trained correction.

    Attributes:
        model: the network, in eval mode. hash: SHA-256 of the weights. config: what the checkpoint says of itself.
    """

    model: CorrectionModel
    hash: str
    config: dict

    @property
    def without_gain(self) -> str | None:
        """In words, that corrected saddles of the validation reactions were no nearer than the saddles; else None."""
        figures = self.config.get("validation") or {}
        before, after = (figures.get(f"val_saddle_{name}") for name in ("before", "median"))
        if before is None or after is None or after < WORTH * before:
            return None
        return f"validation RMSD of saddles, median: {after:.3f} A, without it {before:.3f} A"


def load_correction(
    weights: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Correction:
    """Load shipped weights by name, or a checkpoint folder by path.

    Raises:
        CheckpointError: no such weights, damaged, or not those of a correction.
    """
    model, checkpoint = load_weights(weights, KIND, lambda config: CorrectionModel(**config))
    return Correction(model.to(device, dtype).eval(), checkpoint.hash, checkpoint.config)
