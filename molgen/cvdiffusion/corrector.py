"""Sequential Monte Carlo along the trajectories of a controller whose weights are too uneven to be trusted.

The same kernels as without; on the way, where the noise has become small, the energy of the denoised geometry m(x) =
x + r f(r, x) foretells the weight that a trajectory is heading for, and trajectories are resampled by it (twisted
sequential Monte Carlo, the Feynman-Kac corrector; Wu et al., arXiv 2306.17775). Whatever is foretold is taken back
later, so weights stay exact. It costs an energy a look and a trajectory, and trajectories share ancestors afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from molgen.cvdiffusion.noising import Schedule, evaluated, simulate
from molgen.cvdiffusion.sampler import FINAL, Sampler
from molgen.cvdiffusion.target import Batch
from molgen.rng import generator

LOOKS = (64.0, 16.0, 4.0, 1.0)  # r in units of width^2 where energies are asked for
FLOOR = 30.0  # nats below the best: a trajectory that looks hopeless keeps a chance
RESAMPLE = 0.5  # effective share below which trajectories are resampled
STREAM = 1_000_000  # of random numbers, beside the numbers of plain draws


def corrected_draws(
    sampler: Sampler, schedule: Schedule, variances: np.ndarray, count: int
) -> tuple[Batch, np.ndarray]:
    """`count` samples with exact weights for the target, and the ancestor (count,) each descends from.

    Args:
        schedule, variances: of the trajectories, see `molgen.cvdiffusion.noising.simulate`.
    """
    target = sampler.target
    width = sampler.settings.width
    looks = {int(np.abs(np.log(schedule.residual[:-1] / (share * width**2))).argmin()) for share in LOOKS}
    rng = generator(sampler.seed, FINAL, STREAM)
    ancestors = np.arange(count)

    def interfere(k: int, x: Tensor, log_path: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal ancestors
        if k not in looks:
            return x, log_path
        r = float(schedule.residual[k])
        ahead = x + r * evaluated(sampler.controller, r, x)
        seen = target.evaluate(ahead.numpy(), np.zeros(count), sampler.number)
        promise = target.log_weights(seen)
        promise = np.maximum(promise, promise.max() - FLOOR) if np.isfinite(promise).any() else np.zeros(count)
        log_w = log_path.numpy() + promise
        mean = np.logaddexp.reduce(log_w) - np.log(count)
        weights = np.exp(log_w - mean) / count
        if 1 / (weights**2).sum() >= RESAMPLE * count:
            return x, log_path
        points = (rng.random() + np.arange(count)) / count
        chosen = np.minimum(np.searchsorted(np.cumsum(weights), points), count - 1)
        ancestors = ancestors[chosen]
        return x[chosen], torch.from_numpy(mean - promise[chosen])

    found = simulate(
        sampler.controller, schedule, variances, sampler.atoms, count, sampler.seed, FINAL, STREAM, interfere=interfere
    )
    return target.evaluate(found.positions, found.log_path, sampler.number), ancestors
