"""The second chance of a run whose path weights have too much to repair: sequential Monte Carlo from its final draws.

They are resampled by their weights, and every one starts a chain of Hamiltonian Monte Carlo that leaves the biased
target invariant, in which barriers are low (resample-move: Gilks and Berzuini, J. R. Stat. Soc. B 63 (2001) 127). All
states of the second half of the chains count (waste-free: Dau and Chopin, J. R. Stat. Soc. B 84 (2022) 114). Consistent
in the number of draws, like the weights themselves, and mends what they lack within the reach of a chain.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from molgen.cvdiffusion.sampler import Sampler
from molgen.cvdiffusion.target import Batch
from molgen.reweight.importance import normalised, psis
from molgen.reweight.smc import Ends, chains, resampled_indices, start
from molgen.rng import generator, sample_seed

REPAIR = 10_000_003  # stream of random numbers
PARTICLES = 400
LEAPFROG = 4  # 8 left more noise on the double well of benchmarks/cv.py, and more particles more of the error
LEAST_MOVES = 8
FEWEST = 20  # chains that a repair needs
STEP = 0.03  # length of the first leapfrog steps, Angstrom; adapted later


@dataclass(frozen=True)
class Repair:
    """How it went.

    Attributes:
        particles: chains. moves: of each, the second half recorded. ancestors: different draws they began from.
        acceptance: mean, of the recorded moves. energies: evaluations.
        halves: root mean square difference, kT, of the surfaces of two halves of the recorded moves, bins counting by
            their samples, which tells whether the chains had come to rest; NaN until it is known.
        shift: likewise of their surface and that of the weights: chains too slow to mend much seem to rest as well.
        memory: correlation of a variable between where the chains began and ended, of the variable that remembers most.
    """

    particles: int
    moves: int
    ancestors: int
    acceptance: float
    energies: int
    halves: float = float("nan")
    shift: float = 0.0
    memory: float = 1.0


@dataclass(frozen=True, eq=False)
class Chains:
    """Where the chains begin: `chosen` (m,) draws, one each; `moves` of each."""

    chosen: np.ndarray
    moves: int


def chains_from(sampler: Sampler, draws: Batch, budget: float) -> Chains | None:
    """Chains from draws resampled by their weights; None if too few of these are different, or can be paid.

    Args:
        draws: weighted by their paths. budget: about how many energies the chains may take.
    """
    each = LEAPFROG + 0.5  # energies a move
    m = min(PARTICLES, len(draws), int(budget / (LEAST_MOVES * each)))
    log_weights = sampler.target.log_weights(draws)
    if m < FEWEST or not np.isfinite(log_weights).any():
        return None
    chance = float(generator(sample_seed(sampler.seed, REPAIR)).random())
    chosen = resampled_indices(normalised(psis(log_weights)), chance, m)
    if len(np.unique(chosen)) < m / 2:
        return None
    return Chains(chosen, max(LEAST_MOVES, round(budget / (m * each))))


def moved(sampler: Sampler, draws: Batch, begin: Chains) -> tuple[list[Batch], Repair]:
    """The recorded states of all chains.

    Returns:
        a batch a recorded move, whose path weights make every state count alike under the bias; how it went.
    """
    target, chosen, moves = sampler.target, begin.chosen, begin.moves
    seed, m = sample_seed(sampler.seed, REPAIR), len(begin.chosen)
    counted, calls = Counter(target.rejections), target.potential.calls

    def densities(points: np.ndarray) -> Ends:
        batch = target.evaluate(points, np.zeros(len(points)), sampler.number)
        log_p, slope = target.log_weights(batch), -target.gradient(batch)
        return Ends(log_p, log_p, slope, slope)

    known = target.log_weights(draws)
    log_z = float(np.logaddexp.reduce(known) - np.log(len(known)))  # the scale of the draws, for `Ensemble.merge`
    first = start(densities, draws.points[chosen])
    options = {"moves": moves, "adapt": moves // 2, "leapfrog": LEAPFROG, "step": STEP, "seed": seed}
    states, rates = [], []
    for number, (reached, rate) in enumerate(chains(first, densities, 1.0, **options)):
        if number >= moves // 2:
            batch = target.evaluate(reached.positions, np.zeros(m), sampler.number)
            log_path = batch.log_path - target.log_weights(batch) + log_z  # equal weights under the bias
            states.append(replace(batch, log_path=np.where(batch.accepted, log_path, 0.0)))
            rates.append(rate)
    target.rejections = counted
    used = target.potential.calls - calls
    memory = max(
        _correlation(draws.cvs[chosen, d], states[-1].cvs[:, d], axis.period) for d, axis in enumerate(target.bias.axes)
    )
    return states, Repair(m, moves, len(np.unique(chosen)), float(np.mean(rates)), used, memory=memory)


def _correlation(before: np.ndarray, after: np.ndarray, period: float | None) -> float:
    """Of two sets (m,) of values of one variable, of a periodic one on the circle; 1 of what does not vary at all."""
    turn = 1.0 if period is None else 2j * np.pi / period
    one, other = (x if period is None else np.exp(turn * x) for x in (before, after))
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((np.abs(one) ** 2).mean() * (np.abs(other) ** 2).mean())
    return float(np.real((np.conj(one) * other).mean()) / scale) if scale > 0 else 1.0
