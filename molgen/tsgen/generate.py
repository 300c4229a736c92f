"""Guesses of transition states: samples of the flow, averaged over both directions of the reaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from molgen.data.reactions import Reaction
from molgen.flow.solvers import integrate
from molgen.rng import torch_generator
from molgen.tsgen.condition import ReactionBatch, prepare
from molgen.tsgen.ensemble import TSEnsemble, networks_of
from molgen.tsgen.model import TSModel
from molgen.tsgen.network import both_directions, predicted_deviation

STEPS = 2  # on RDB7 (val) the second step lowers the median RMSD from 0.147 to 0.130 A, a third does no more
SIGMA = 0.1  # Angstrom, width of the prior around the sqrt-distance guess, in training too


@dataclass(frozen=True)
class Guesses:
    """K guesses for one reaction of N atoms.

    Attributes:
        positions: (K, N, 3) float64 Angstrom.
        deviation: (K, N) predicted error of each atom's position, Angstrom (root mean square).
    """

    positions: Tensor
    deviation: Tensor


@torch.no_grad()
def flow_samples(
    model: TSModel | TSEnsemble, batch: ReactionBatch, noise: Tensor, steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """End points (B, N, 3) and predicted deviations (B, N) of the flow from `batch.guess + noise`, Angstrom.

    Each prediction is the mean over the reaction and its reverse, which makes the flow exactly symmetric. Of several
    networks the mean of where their flows end; the variance is that of the mixture: the mean of theirs plus what they
    differ by.
    """
    ends, deviations = zip(*(_flow(network, batch, noise, steps) for network in networks_of(model)), strict=True)
    end = torch.stack(ends).mean(0)
    apart = (torch.stack(ends) - end).square().sum(-1).mean(0)
    return end, (torch.stack(deviations).square().mean(0) + apart).sqrt()


def _flow(model: TSModel, batch: ReactionBatch, noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`flow_samples` of one network."""
    directions = batch, batch.swapped()
    last_log_variance = torch.zeros_like(batch.guess[..., 0])

    def endpoint(x: Tensor, t: float) -> Tensor:
        nonlocal last_log_variance
        time = x.new_full((len(x),), t)
        end, last_log_variance = both_directions(lambda direction: model(x, time, direction), directions)
        return end

    x_1 = integrate(endpoint, (batch.guess + noise) * batch.mask[..., None], steps)
    return x_1, predicted_deviation(last_log_variance, batch.mask)


def generate(
    model: TSModel | TSEnsemble,
    reactions: Sequence[Reaction],
    *,
    samples: int = 1,
    steps: int = STEPS,
    sigma: float = SIGMA,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Guesses]:
    """Sample the flow for every reaction.

    The first sample starts from the mode of the prior (no noise): it is deterministic and does not depend on the atom
    order, the frames or the placement of fragments. Sample k > 0 of reaction i draws from its own generator.

    Args:
        reactions: atoms mapped; every element known to the model.
        samples: K, guesses a reaction. steps: of the ODE solver. sigma: width of the prior, Angstrom.
    """
    like = next(model.parameters())
    data = prepare(reactions, model.levels)
    jobs = [(i, k) for k in range(samples) for i in torch.argsort(data.mask.sum(1)).tolist()]
    n = data.numbers.shape[1]
    positions = torch.zeros(len(reactions), samples, n, 3, dtype=torch.float64)
    deviation = torch.zeros(len(reactions), samples, n, dtype=torch.float64)
    model.eval()
    for start in range(0, len(jobs), batch_size):
        rows = jobs[start : start + batch_size]
        batch = data.select(torch.tensor([i for i, _ in rows]))
        m = batch.numbers.shape[1]
        noise = torch.zeros_like(batch.guess)
        for row, (i, k) in enumerate(rows):
            if k:
                atoms = len(reactions[i].numbers)
                noise[row, :atoms] = sigma * torch.randn(atoms, 3, generator=torch_generator(seed, i, k))
        x, error = flow_samples(model, batch.to(like.device, like.dtype), noise.to(like), steps)
        for row, (i, k) in enumerate(rows):
            positions[i, k, :m], deviation[i, k, :m] = x[row].double().cpu(), error[row].double().cpu()
    atoms = [len(reaction.numbers) for reaction in reactions]
    return [Guesses(positions[i, :, :a], deviation[i, :, :a]) for i, a in enumerate(atoms)]
