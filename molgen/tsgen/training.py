"""How TS-GEN is trained: batches of alike sizes, points on the straight path, the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from molgen.geometry.align import rmsd
from molgen.train.losses import aligned_rmsd_loss, log_variance_loss, pair_distance_loss
from molgen.tsgen.condition import ReactionBatch


@dataclass(frozen=True)
class FlowSettings:
    """The path of the flow and the noise of training.

    Attributes:
        sigma: width of the prior around the interpolation guess, Angstrom.
        end_noise: Gaussian noise on reactant and product in training, Angstrom (regularises).
        batch_size: reactions a step.
    """

    sigma: float = 0.1
    end_noise: float = 0.02
    batch_size: int = 64


def epoch(data: ReactionBatch, batch_size: int, generator: torch.Generator) -> Iterator[ReactionBatch]:
    """Batches of similar molecule sizes (little padding) in random order."""
    sizes = data.mask.sum(1)
    key = sizes + torch.rand(len(data), generator=generator) * 1.5
    chunks = torch.argsort(key).split(batch_size)
    for k in torch.randperm(len(chunks), generator=generator).tolist():
        yield data.select(chunks[k])


def flow_loss(model: nn.Module, batch: ReactionBatch, generator: torch.Generator, flow: FlowSettings) -> dict[str, Tensor]:
    """Conditional flow matching with endpoint prediction (Lipman 2023; TS-GEN, arXiv 2507.10530, with another prior).

    x_0 = interpolation guess + sigma noise, x_t = (1 - t) x_0 + t x_1. The loss compares end points: RMSD after
    superposition, pair distances (reacting and short ones weigh more), and the likelihood of the predicted variances.
    Half the batch sees reactant and product exchanged. Reflections need no augmentation: the network is O(3)-equivariant.
    """
    assert batch.ts is not None
    device = batch.guess.device
    b, n = batch.numbers.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    batch = batch.swapped((torch.rand(b, generator=generator) < 0.5).to(device))
    mask = batch.mask
    m = mask[..., None]
    noisy = replace(
        batch,
        reactant=(batch.reactant + flow.end_noise * draw(b, n, 3)) * m,
        product=(batch.product + flow.end_noise * draw(b, n, 3)) * m,
    )
    # most of the work is at the start of the path, where the guess is worst
    t = torch.rand(b, generator=generator).to(device) ** 2
    x_0 = (batch.guess + flow.sigma * draw(b, n, 3)) * m
    x_t = torch.lerp(x_0, batch.ts, t[:, None, None])
    predicted, log_variance = model(x_t, t, noisy)
    deviation, square = aligned_rmsd_loss(predicted, batch.ts, mask)
    pair = pair_distance_loss(predicted, batch.ts, pair_weights(batch))
    nll = log_variance_loss(square, log_variance, mask)
    loss = (deviation + 0.5 * pair + 0.01 * nll).mean()
    return {"loss": loss, "rmsd": deviation.mean(), "pair": pair.mean(), "nll": nll.mean()}


def pair_weights(batch: ReactionBatch) -> Tensor:
    """(B, N, N) weights 1 + 2 |d_R - d_P| of the real pairs, doubled below 2 A in the transition state."""
    assert batch.ts is not None
    n = batch.numbers.shape[1]
    same = (batch.r_frag[:, :, None] == batch.r_frag[:, None, :]) & (batch.p_frag[:, :, None] == batch.p_frag[:, None, :])
    change = (torch.cdist(batch.reactant, batch.reactant) - torch.cdist(batch.product, batch.product)).abs()
    weight = 1 + 2 * torch.where(same, change, 0.5).clamp(max=2.0)
    weight = weight * torch.where(torch.cdist(batch.ts, batch.ts) < 2.0, 2.0, 1.0)
    pair = batch.mask[:, :, None] & batch.mask[:, None, :]
    return weight * (pair & ~torch.eye(n, dtype=torch.bool, device=weight.device))


@torch.no_grad()
def validation_figures(model: nn.Module, data: ReactionBatch, batch_size: int = 64) -> dict[str, float]:
    """One-step error from the noiseless guess, averaged over both directions; "score" is the mean RMSD."""
    assert data.ts is not None
    values = []
    for index in torch.argsort(data.mask.sum(1)).split(batch_size):
        batch = data.select(index)
        t = batch.guess.new_zeros(len(batch))
        both = (model(batch.guess, t, batch)[0] + model(batch.guess, t, batch.swapped())[0]) / 2
        values.append(rmsd(both, batch.ts, batch.mask))
    value = torch.cat(values)
    return {"score": float(value.mean()), "val_rmsd_mean": float(value.mean()), "val_rmsd_median": float(value.median())}
