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
STEP = 0.03  # Angstrom, of the first leapfrog; adapted


@dataclass(frozen=True)
class Repair:
    """How it went.

    Attributes:
        particles: chains. moves: of each, the second half recorded. ancestors: different draws they began from.
        acceptance: mean, of the recorded moves. energies: evaluations.
        halves: root mean square difference, kT, of the surfaces of two halves of the recorded moves, bins counting by
            their samples, which tells whether the chains had come to rest; NaN until it is known.
        shift: likewise of their surface and that of the weights: chains too slow to mend much seem to rest as well.
    """

    particles: int
    moves: int
    ancestors: int
    acceptance: float
    energies: int
    halves: float = float("nan")
    shift: float = 0.0


def moved(sampler: Sampler, draws: Batch, budget: float) -> tuple[list[Batch], np.ndarray, Repair]:
    """The recorded states of all chains.

    Args:
        draws: weighted by their paths. budget: about how many energies it may take.

    Returns:
        a batch a recorded move, whose path weights make every state count alike under the bias; the draw (m,) that each
        chain began from; how it went.
    """
    target, m = sampler.target, min(PARTICLES, len(draws))
    seed = sample_seed(sampler.seed, REPAIR)
    weights = normalised(psis(target.log_weights(draws)))
    chosen = resampled_indices(weights, float(generator(seed).random()), m)
    moves = max(LEAST_MOVES, round(budget / (m * (LEAPFROG + 0.5))))
    counted, calls = Counter(target.rejections), target.potential.calls

    def densities(points: np.ndarray) -> Ends:
        batch = target.evaluate(points, np.zeros(len(points)), sampler.number)
        log_p, slope = target.log_weights(batch), -target.gradient(batch)
        return Ends(log_p, log_p, slope, slope)

    first = start(densities, draws.points[chosen])
    options = {"moves": moves, "adapt": moves // 2, "leapfrog": LEAPFROG, "step": STEP, "seed": seed}
    states, rates = [], []
    for number, (reached, rate) in enumerate(chains(first, densities, 1.0, **options)):
        if number >= moves // 2:
            batch = target.evaluate(reached.positions, np.zeros(m), sampler.number)
            log_path = batch.log_path - target.log_weights(batch)  # equal weights under the bias
            states.append(replace(batch, log_path=np.where(batch.accepted, log_path, 0.0)))
            rates.append(rate)
    target.rejections = counted
    used = target.potential.calls - calls
    return states, chosen, Repair(m, moves, len(np.unique(chosen)), float(np.mean(rates)), used)
