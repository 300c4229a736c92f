"""The noising process, its grid of times, and trajectories of a controlled process that runs it backwards.

A sample x of the target is noised by Brownian motion: after the variance r (Angstrom^2 a coordinate) it is x + N(0, r).
Time is counted by r, from `start` (where the noised target is nearly a Gaussian, the source) down to 0. A controller
f(r, x) that equals the score of the noised target, grad log p_r, turns the process around: this is the memoryless case
of the Schroedinger bridge (Adjoint Sampling, arXiv 2504.11713), in which the corrector vanishes and the backward
kernel is known, not learned. Each step is a Gaussian, so the weight of a whole trajectory is exact at any number of
steps and for any controller:

    log w = -U(x_K)/kT + sum_k log B(x_k | x_{k+1}) - log mu(x_0) - sum_k log F(x_{k+1} | x_k).

Much of its scatter is that of the path taken, not of the sample it ends in; averaging that costs no energy, see
`averaged`.

The coordinates are those of a `molgen.cvdiffusion.space.Space`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from molgen.cvdiffusion.space import Space
from molgen.rng import generator

Score = Callable[[Tensor, Tensor], Tensor]  # (r (B,), x (B, M, c)) float32 -> (B, M, c), 1/Angstrom


@dataclass(frozen=True)
class Schedule:
    """Times of the process.

    Attributes:
        start: variance r at the source, Angstrom^2. end: standard deviation of the last noise, Angstrom; below the
            width of the stiffest bond.
        steps: Gaussian steps from the source to the sample.
        spread: variance of the target's own coordinates, Angstrom^2; the source has `start + spread`.
    """

    start: float = 36.0
    end: float = 0.02
    steps: int = 100
    spread: float = 1.0

    @cached_property
    def residual(self) -> np.ndarray:
        """(steps + 1,) r before each step, and 0: uniform in log r below `spread`, in 1/r above it."""
        low, high = (np.log(r / (r + self.spread)) for r in (self.end**2, self.start))
        share = np.exp(np.linspace(high, low, self.steps))
        return np.append(self.spread * share / (1 - share), 0.0)

    @property
    def removed(self) -> np.ndarray:
        """(steps,) variance of the noise that each step takes away."""
        return -np.diff(self.residual)

    def variances(self, width: float) -> np.ndarray:
        """(steps,) variances of the forward kernels that would be exact for a Gaussian target of `width`, Angstrom."""
        r, left, removed = self.residual[:-1], self.residual[1:], self.removed
        return removed * left / r + (removed / r) ** 2 * r * width**2 / (r + width**2)


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Ends of n trajectories.

    Attributes:
        points: (n, M, c), float64.
        log_path: (n,) the part of log w that does not depend on the target.
    """

    points: np.ndarray
    log_path: np.ndarray


@torch.no_grad()
def simulate(
    score: Score,
    schedule: Schedule,
    variances: np.ndarray,
    space: Space,
    count: int,
    seed: int,
    *stream: int,
) -> Trajectories:
    """Run the controlled process from the source to the sample.

    Args:
        variances: (steps,) or (steps, M, c) of the forward kernels, Angstrom^2.
        count: trajectories; number i depends on (seed, stream, i) only.
    """
    shape = (schedule.steps + 1, *space.shape)
    noise = torch.from_numpy(np.stack([generator(seed, *stream, i).standard_normal(shape) for i in range(count)], 1))
    noise = space.centred(noise)
    kernels, removed = torch.from_numpy(variances), torch.from_numpy(schedule.removed)
    source = torch.as_tensor(space.source(schedule.start, schedule.spread), dtype=torch.float64)
    x = noise[0] * source.sqrt()
    log_path = -space.log_normal(x, source)
    for k in range(schedule.steps):
        drift = removed[k] * _score(score, schedule.residual[k], x)
        jump = noise[k + 1] * kernels[k].sqrt()
        before, x = x, x + drift + jump
        log_path += space.log_normal(before - x, removed[k]) - space.log_normal(jump, kernels[k])
    return Trajectories(x.numpy(), log_path.numpy())


@torch.no_grad()
def averaged(
    score: Score,
    schedule: Schedule,
    variances: np.ndarray,
    space: Space,
    found: Trajectories,
    paths: int,
    seed: int,
    *stream: int,
) -> Trajectories:
    """The same ends with their densities averaged over `paths` paths to each: their own, and others noised from them.

    log w = -U(x)/kT - log mean_j exp(log F(path_j) - log B(path_j | x)). The weights are exact for any number of paths,
    since it could have been any of them that was drawn (the argument of pseudo-marginal samplers, Andrieu and Roberts
    2009; of importance-weighted autoencoders, Burda et al. 2016). With many they become those of the samples alone.

    Args:
        seed, stream: other ones than those of `found`.
    """
    ends, removed = torch.from_numpy(found.points), torch.from_numpy(schedule.removed)
    kernels = torch.from_numpy(variances)
    source = torch.as_tensor(space.source(schedule.start, schedule.spread), dtype=torch.float64)
    draws = [generator(seed, *stream, i) for i in range(len(found.points))]
    log_density = -torch.from_numpy(found.log_path)
    for _ in range(paths - 1):
        noise = torch.from_numpy(np.stack([draw.standard_normal((schedule.steps, *space.shape)) for draw in draws], 1))
        noise, x, other = space.centred(noise), ends, torch.zeros(len(ends), dtype=torch.float64)
        for k in range(schedule.steps - 1, -1, -1):
            back = noise[k] * removed[k].sqrt()
            before = x + back
            jump = x - before - removed[k] * _score(score, schedule.residual[k], before)
            other += space.log_normal(jump, kernels[k]) - space.log_normal(back, removed[k])
            x = before
        log_density = torch.logaddexp(log_density, other + space.log_normal(x, source))
    return Trajectories(found.points, (np.log(paths) - log_density).numpy())


@torch.no_grad()
def fit_variances(
    score: Score, schedule: Schedule, space: Space, samples: np.ndarray, weights: np.ndarray, seed: int
) -> np.ndarray:
    """Variances (steps,) or (steps, M, c) of the forward kernels by maximum likelihood on noised samples of the target.

    Args:
        samples: (n, M, c) points. weights: (n,) normalised.
    """
    x = space.centred(torch.from_numpy(samples))
    noise = torch.Generator().manual_seed(seed)
    w = torch.from_numpy(weights)[:, None, None]
    fitted = []
    for k in range(schedule.steps - 1, -1, -1):
        removed = schedule.removed[k]
        noisy = x + space.centred(torch.randn(x.shape, generator=noise, dtype=x.dtype)) * removed**0.5
        left = x - noisy - removed * _score(score, schedule.residual[k], noisy)
        fitted.append(space.pooled((w * left.square()).sum(0)))
        x = noisy
    return np.stack(fitted[::-1])


def _score(score: Score, residual: float, x: Tensor) -> Tensor:
    """The score (n, M, c) of x in double precision."""
    small = x.float()
    return score(small.new_full((len(x),), residual), small).double()
