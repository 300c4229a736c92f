"""Sequential Monte Carlo from weighted samples of one density to another, through a ladder of densities between them.

The ladder is geometric, ln p_b = (1 - b) ln start + b ln target, 0 <= b <= 1. With both ends Boltzmann densities of
one energy it is a ladder of inverse temperatures (`between_temperatures`), the annealing of Neal, Stat. Comput. 11
(2001) 125. Each stage chooses the next b by the conditional effective sample size (Zhou, Johansen, Aston, J. Comput.
Graph. Stat. 25 (2016) 701), multiplies the weights by p_b'/p_b, resamples systematically when their ESS is low, and
moves every particle by a Markov chain that leaves p_b' invariant (Del Moral, Doucet, Jasra, J. R. Stat. Soc. B 68
(2006) 411). The chain is Hamiltonian Monte Carlo, with a single leapfrog step the Metropolis-adjusted Langevin
algorithm (MALA; Roberts and Tweedie, Bernoulli 2 (1996) 341). Estimates are consistent in the number of particles; with
a fixed ladder and step the mean weight is unbiased for the ratio of partition functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np

from molgen.errors import InputError
from molgen.potentials.base import Potential
from molgen.reweight.estimate import descent_error
from molgen.reweight.importance import cleaned, kish, normalised
from molgen.rng import generator
from molgen.units import KB

LEAST_STEP = 1e-3  # of b, so that a ladder ends
ACCEPTANCE = {True: 0.574, False: 0.651}  # optimal for MALA, and for several leapfrog steps


class Ends(NamedTuple):
    """Both ends of the ladder at n positions: log-densities (n,), -inf where there is none, and gradients (n, N, 3)."""

    start: np.ndarray
    target: np.ndarray
    start_gradient: np.ndarray
    target_gradient: np.ndarray

    def at(self, b: float) -> tuple[np.ndarray, np.ndarray]:
        """ln p_b (n,) and its gradient (n, N, 3)."""
        dead = np.isneginf(self.start) | np.isneginf(self.target)
        with np.errstate(invalid="ignore"):
            log_p = (1 - b) * self.start + b * self.target
        return np.where(dead, -np.inf, log_p), (1 - b) * self.start_gradient + b * self.target_gradient


Densities = Callable[[np.ndarray], Ends]


def between_temperatures(potential: Potential, hot: float, cold: float) -> Densities:
    """Ladder from exp(-E / k hot) to exp(-E / k cold), one gradient call a position."""

    def densities(positions: np.ndarray) -> Ends:
        energy, gradient = _energy(potential, positions)
        a, b = KB * hot, KB * cold
        return Ends(-energy / a, -energy / b, -gradient / a, -gradient / b)

    return densities


def restricted(densities: Densities, inside: Callable[[np.ndarray], np.ndarray]) -> Densities:
    """The same ladder on the positions for which `inside`, (n, N, 3) -> (n,) of bool, is true; no density elsewhere."""

    def within(positions: np.ndarray) -> Ends:
        ends, kept = densities(positions), inside(positions)
        return ends._replace(
            start=np.where(kept, ends.start, -np.inf), target=np.where(kept, ends.target, -np.inf)
        )  # fmt: skip

    return within


@dataclass(frozen=True)
class Stage:
    """One rung: b; ESS before resampling and whether that followed; mean acceptance; step; ancestors left."""

    b: float
    ess: float
    resampled: bool
    acceptance: float
    step: float
    unique_ancestors: int


@dataclass(frozen=True, eq=False)
class Population:
    """Weighted particles at one rung.

    Attributes:
        positions: (n, N, 3) Angstrom.
        log_weights: (n,); the mean weight estimates Z_b / Z of whatever normalisation the first log-weights had, so
            `diagnose(log_weights).log_z` is ln Z throughout.
        ancestors: (n,) index of the first particle each descends from; descendants of one are not independent.
        ends: log-densities and gradients at the positions.
        b: where on the ladder, 1 at the end.
        step: of the chain, in units of the preconditioner; adapted while running.
        calls: positions evaluated so far.
        stages: what happened at each rung.
    """

    positions: np.ndarray
    log_weights: np.ndarray
    ancestors: np.ndarray
    ends: Ends
    b: float = 0.0
    step: float = 0.5
    calls: int = 0
    stages: tuple[Stage, ...] = field(default=())

    @property
    def unique_ancestors(self) -> int:
        """Distinct ancestors of the particles that have a weight: the number of independent samples is no larger."""
        return len(np.unique(self.ancestors[np.isfinite(self.log_weights)]))

    @property
    def log_z_error(self) -> float:
        """Standard error of ln Z, all rungs so far (`molgen.reweight.estimate.descent_error`): the last weights alone
        know nothing of what was resampled before."""
        weights = normalised(self.log_weights)
        return float(descent_error(weights, self.ancestors, len(weights))) if weights.any() else np.inf

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for npz; `of_arrays` reads them back."""
        stages = [[s.b, s.ess, s.resampled, s.acceptance, s.step, s.unique_ancestors] for s in self.stages]
        plain = {name: np.asarray(getattr(self, name)) for name in ("positions", "log_weights", "ancestors")}
        numbers = np.array([self.b, self.step])
        history = np.array(json.dumps(stages))
        return plain | self.ends._asdict() | {"numbers": numbers, "calls": np.array(self.calls), "stages": history}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The population `arrays` came from, to the bit."""
        b, step = (float(v) for v in arrays["numbers"])
        stages = tuple(Stage(*row) for row in json.loads(str(arrays["stages"])))
        ends = Ends(*(arrays[name] for name in Ends._fields))
        x, log_weights, ancestors = (arrays[name] for name in ("positions", "log_weights", "ancestors"))
        return cls(x, log_weights, ancestors, ends, b, step, int(arrays["calls"]), stages)


def start(densities: Densities, positions: np.ndarray, log_weights: np.ndarray | None = None) -> Population:
    """Particles at the foot of the ladder.

    Args:
        positions: (n, N, 3) Angstrom.
        log_weights: (n,), ln start - ln q of particles drawn from q; equal weights when the particles are drawn from
            the start itself.
    """
    x = np.asarray(positions, dtype=float)
    weights = np.zeros(len(x)) if log_weights is None else cleaned(log_weights)
    ends = densities(x)
    dead = np.isneginf(ends.start) | np.isneginf(ends.target)
    return Population(x, np.where(dead, -np.inf, weights), np.arange(len(x)), ends, calls=len(x))


def climb(
    population: Population,
    densities: Densities,
    scale: np.ndarray | float,
    *,
    seed: int = 0,
    moves: int = 10,
    leapfrog: int = 1,
    conditional_ess: float = 0.9,
    resample_below: float = 0.5,
    ladder: Sequence[float] | None = None,
    adapt: bool = True,
    on_stage: Callable[[Population], None] = lambda population: None,
) -> Population:
    """Take particles from where they are on the ladder to its top.

    Resumable: a population handed to `on_stage`, given back later with the same options, goes on to the same end.

    Args:
        population: from `start`, or an earlier `on_stage`.
        scale: lengths in Angstrom that precondition the chain: a number, (N,) an atom, or (N, N), a square root of the
            covariance of displacements (see `spring_scale`).
        moves: transitions of the chain a stage. leapfrog: gradient calls a transition; 1 is MALA.
        conditional_ess: what a step of the ladder keeps of the effective sample size.
        resample_below: ESS, as a share of n, below which particles are resampled.
        ladder: values of b instead of adaptive ones, ascending to 1.
        adapt: adapt the step to the acceptance (0.574 for MALA, 0.651 beyond).
        on_stage: called after every stage.

    Raises:
        InputError: no particle has a weight, or a ladder that does not ascend to 1.
    """
    rungs = None if ladder is None else [float(b) for b in ladder]
    if rungs is not None and (not rungs or sorted(set(rungs)) != rungs or rungs[-1] != 1.0 or rungs[0] <= 0):
        raise InputError(f"ladder {rungs}", where="climb", expected="ascending numbers above 0, the last one 1")
    root = _root(scale, population.positions.shape[1])
    while population.b < 1:
        if not np.isfinite(population.log_weights).any():
            raise InputError(
                f"no particle of {len(population.positions)} has a weight",
                where=f"ladder at b = {population.b:.3g}",
                expected="proposals with finite energies",
            )
        number = len(population.stages)
        b = rungs[number] if rungs else _next(population, conditional_ess)
        population, ess, resampled = _reweighted(population, b, resample_below, seed, number)
        population, acceptance = _moved(population, densities, root, moves, leapfrog, adapt, seed, number)
        stage = Stage(b, ess, resampled, acceptance, population.step, population.unique_ancestors)
        population = replace(population, stages=(*population.stages, stage))
        on_stage(population)
    return population


def chains(
    population: Population,
    densities: Densities,
    scale: np.ndarray | float,
    *,
    moves: int,
    adapt: int,
    leapfrog: int,
    step: float,
    seed: int = 0,
) -> Iterator[tuple[Population, float]]:
    """The particles after each of `moves` transitions that leave the top of the ladder invariant, and the acceptance.

    Args:
        adapt: so many moves adapt the step, which begins with `step`; see `climb` for the others.
    """
    root = _root(scale, population.positions.shape[1])
    population = replace(population, b=1.0, step=step)
    for number in range(moves):
        population, rate = _moved(population, densities, root, 1, leapfrog, number < adapt, seed, number)
        yield population, rate


def spring_scale(atoms: int, pairs: np.ndarray, stiffness: np.ndarray, temperature: float) -> np.ndarray:
    """Preconditioner (N, N) in Angstrom for a molecule held together by springs, the same in every orientation.

    The root of the covariance kT (L + m)^-1 of an elastic network that resists in all directions alike, L its weighted
    graph Laplacian: atoms joined by stiff springs move together, distant ones apart. m, a thousandth of the mean
    diagonal, keeps the molecule in place. After Packwood et al., J. Chem. Phys. 144 (2016) 164109.

    Args:
        pairs: (M, 2) atoms joined by a spring. stiffness: (M,) eV/Angstrom^2. temperature: K.
    """
    laplacian = np.zeros((atoms, atoms))
    for (i, j), k in zip(np.asarray(pairs), np.asarray(stiffness, dtype=float), strict=True):
        laplacian[[i, j], [i, j]] += k
        laplacian[[i, j], [j, i]] -= k
    laplacian[np.diag_indices(atoms)] += 1e-3 * np.trace(laplacian) / atoms
    values, vectors = np.linalg.eigh(laplacian)
    return (vectors * np.sqrt(KB * temperature / values)) @ vectors.T


def resampled_indices(weights: np.ndarray, u: float, count: int | None = None) -> np.ndarray:
    """Systematic resampling: indices (count,) of normalised weights (n,), each drawn floor or ceil of count w times.

    `count`: n by default. u, one uniform number in [0, 1), is all the randomness (Kitagawa 1996; Douc and Cappe 2005).
    """
    edges = np.cumsum(weights)
    edges /= edges[-1]
    last = int(np.flatnonzero(weights)[-1])  # rounding of the sum must not reach a weight of zero
    count = len(weights) if count is None else count
    return np.minimum(np.searchsorted(edges, (np.arange(count) + u) / count, side="right"), last)


def _energy(potential: Potential, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (n,), +inf where not finite, and gradients (n, N, 3), 0 there."""
    energy, forces = potential.energy_and_forces(positions)
    lost = ~(np.isfinite(energy) & np.isfinite(forces).all((1, 2)))
    return np.where(lost, np.inf, energy), np.where(lost[:, None, None], 0.0, -forces)


def _root(scale: np.ndarray | float, atoms: int) -> np.ndarray:
    """(N, N) root of the covariance of displacements."""
    scale = np.asarray(scale, dtype=float)
    return scale if scale.ndim == 2 else np.diag(np.broadcast_to(scale, atoms))


def _gain(ends: Ends) -> np.ndarray:
    """d ln p_b / db (n,), 0 for particles without density."""
    with np.errstate(invalid="ignore"):
        gain = ends.target - ends.start
    return np.where(np.isfinite(gain), gain, 0.0)


def _next(population: Population, conditional_ess: float) -> float:
    """The b at which the conditional ESS (sum W v)^2 / sum W v^2 has dropped to `conditional_ess`, by bisection."""
    weights, gain = normalised(population.log_weights), _gain(population.ends)
    gain = gain - gain[weights > 0].max()

    def kept(delta: float) -> float:
        v = np.exp(np.minimum(delta * gain, 0.0))
        square = float((weights * v * v).sum())
        return float((weights * v).sum()) ** 2 / square if square > 0 else 0.0

    low, high = LEAST_STEP, 1 - population.b
    if high <= low or kept(high) >= conditional_ess:
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) >= conditional_ess else (low, middle)
    return population.b + low


def _reweighted(
    population: Population, b: float, resample_below: float, seed: int, number: int
) -> tuple[Population, float, bool]:
    """The population at b, resampled if need be; its ESS before that."""
    log_w = population.log_weights + (b - population.b) * _gain(population.ends)
    population, ess = replace(population, log_weights=log_w, b=b), kish(log_w)
    if ess >= resample_below:
        return population, ess, False
    chosen = resampled_indices(normalised(log_w), float(generator(seed, number, 0).random()))
    mean = float(np.logaddexp.reduce(log_w) - np.log(len(log_w)))
    drawn = replace(
        population,
        positions=population.positions[chosen],
        log_weights=np.full(len(log_w), mean),
        ancestors=population.ancestors[chosen],
        ends=Ends(*(part[chosen] for part in population.ends)),
    )
    return drawn, ess, True


def _moved(
    population: Population,
    densities: Densities,
    root: np.ndarray,
    moves: int,
    leapfrog: int,
    adapt: bool,
    seed: int,
    number: int,
) -> tuple[Population, float]:
    """The population after `moves` transitions that leave p_b invariant, and their mean acceptance."""
    x, ends, b, step, rates = population.positions, population.ends, population.b, population.step, []
    log_p, slope = ends.at(b)
    alive = np.isfinite(population.log_weights)
    for move in range(moves):
        random = generator(seed, number, 1, move)
        momentum = random.standard_normal(x.shape)
        threshold = np.log(random.random(len(x)))
        before = log_p - 0.5 * (momentum**2).sum((1, 2))
        new_x, new_ends, new_log_p, new_slope = x, ends, log_p, slope
        for _ in range(leapfrog):
            momentum = momentum + 0.5 * step * (root.T @ new_slope)
            new_x = new_x + step * (root @ momentum)
            new_ends = densities(new_x)
            new_log_p, new_slope = new_ends.at(b)
            momentum = momentum + 0.5 * step * (root.T @ new_slope)
        with np.errstate(invalid="ignore", over="ignore"):
            ratio = new_log_p - 0.5 * (momentum**2).sum((1, 2)) - before
        ratio = np.where(np.isnan(ratio), -np.inf, ratio)
        accepted = threshold < ratio
        x, log_p, slope = (
            _chosen(accepted, new, old) for new, old in ((new_x, x), (new_log_p, log_p), (new_slope, slope))
        )
        ends = Ends(*(_chosen(accepted, new, old) for new, old in zip(new_ends, ends, strict=True)))
        rates.append(float(np.exp(np.minimum(ratio[alive], 0.0)).mean()))
        if adapt:
            step = float(np.clip(step * np.exp(rates[-1] - ACCEPTANCE[leapfrog == 1]), 1e-4, 10.0))
    calls = population.calls + moves * leapfrog * len(x)
    return replace(population, positions=x, ends=ends, step=step, calls=calls), float(np.mean(rates or [np.nan]))


def _chosen(mask: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    return np.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new, old)
