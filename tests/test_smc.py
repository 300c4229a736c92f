"""Sequential Monte Carlo against exact partition functions and populations, and honest about shared ancestors."""

from __future__ import annotations

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.potentials.analytic import DoubleWell, GaussianMixture, Harmonic
from molgen.potentials.base import Potential
from molgen.reweight.importance import diagnose, kish, normalised
from molgen.reweight.smc import (
    Ends,
    Population,
    between_temperatures,
    climb,
    resampled_indices,
    restricted,
    spring_scale,
    start,
)
from molgen.rng import generator
from molgen.units import KB

RNG = np.random.default_rng(3)
SPRINGS = Harmonic(RNG.normal(size=(2, 3)), RNG.uniform(0.5, 5.0, size=(2, 3)))
WELL = DoubleWell(0.15, 1.0, tilt=0.03, stiffness=2.0)
HOT, COLD = 900.0, 300.0


class Wide:
    """A Gaussian proposal, (n, 1, 3) with standard deviations of its own."""

    def __init__(self, sigma: tuple[float, float, float]):
        self.sigma = np.array(sigma)

    def sample(self, n: int, seed: int) -> np.ndarray:
        return generator(seed).standard_normal((n, 1, 3)) * self.sigma

    def log_density(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = x / self.sigma
        return -0.5 * (z**2).sum((1, 2)) - np.log(self.sigma * np.sqrt(2 * np.pi)).sum(), -z / self.sigma


def hot_population(n: int, seed: int) -> tuple[Population, object]:
    """The double well at HOT by importance sampling from a wide Gaussian."""
    q, densities = Wide((1.2, 0.3, 0.3)), between_temperatures(WELL, HOT, COLD)
    x = q.sample(n, seed)
    return start(densities, x, -WELL.energy(x) / (KB * HOT) - q.log_density(x)[0]), densities


def right(population: Population) -> float:
    """Weighted share of the right well."""
    top = WELL.stationary_points()[1]
    return float(normalised(population.log_weights) @ (population.positions[:, 0, 0] > top))


def exact_right(temperature: float) -> float:
    return 1 / (1 + np.exp(WELL.basin_free_energy_difference(temperature) / (KB * temperature)))


def test_log_z_and_variance_of_a_gaussian_cooled_down():
    n, densities = 4000, between_temperatures(SPRINGS, HOT, COLD)
    population = start(densities, SPRINGS.sample(n, HOT, generator(0)))
    top = climb(population, densities, 0.1, moves=5, resample_below=0.6, seed=1)
    exact = SPRINGS.log_partition(COLD) - SPRINGS.log_partition(HOT)
    assert diagnose(top.log_weights).log_z == pytest.approx(exact, abs=0.1)
    weights = normalised(top.log_weights)
    variance = np.einsum("n,nij->ij", weights, (top.positions - SPRINGS.centre) ** 2)
    assert variance == pytest.approx(SPRINGS.variance(COLD), rel=0.12)
    assert top.b == 1 and len(top.stages) > 3 and any(stage.resampled for stage in top.stages)
    assert top.calls == n * (1 + 5 * len(top.stages))


def test_double_well_from_a_wide_proposal_through_hot_temperatures():
    population, densities = hot_population(6000, 0)
    assert diagnose(population.log_weights).log_z == pytest.approx(WELL.log_partition(HOT), abs=0.08)
    top = climb(population, densities, 0.1, seed=2)
    assert diagnose(top.log_weights).log_z == pytest.approx(WELL.log_partition(COLD), abs=0.1)
    assert right(top) == pytest.approx(exact_right(COLD), abs=0.03)
    assert exact_right(HOT) - exact_right(COLD) > 0.15  # the answer did change on the way


@pytest.mark.parametrize("leapfrog", [1, 4])
def test_mean_weight_is_unbiased_with_a_fixed_ladder(leapfrog):
    """64 small runs: each log Z is far off, their mean weight is not."""
    exact, estimates, told = WELL.log_partition(COLD), [], []
    for seed in range(64):
        population, densities = hot_population(64, 1000 + seed)
        top = climb(
            population, densities, 0.3, ladder=(0.2, 0.5, 1.0), adapt=False, moves=3, leapfrog=leapfrog, seed=seed
        )
        estimates.append(np.exp(diagnose(top.log_weights).log_z - exact))
        told.append(top.log_z_error)
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert 0.01 < error < 0.05 and abs(np.mean(estimates) - 1) < 3 * error
    # what it says of itself, though the last weights may be alike: of 64 values the spread is known to 9 %
    assert np.sqrt(np.mean(np.square(told))) == pytest.approx(np.std(np.log(estimates)), rel=0.35)


@pytest.mark.parametrize("leapfrog", [1, 5])
def test_moves_leave_the_target_alone(leapfrog):
    """Start and target are the same: exact samples stay exact at steps where a wrong acceptance would show."""
    mixture = GaussianMixture(RNG.normal(size=(2, 2, 3)) * 0.3, 0.05, temperature=COLD)
    densities = between_temperatures(mixture, COLD, COLD)
    x = mixture.sample(20_000, generator(7))
    top = climb(start(densities, x), densities, 0.5, ladder=(1.0,), moves=6, leapfrog=leapfrog, adapt=False, seed=4)
    assert 0.2 < top.stages[0].acceptance < 0.9
    assert np.abs(top.positions - x).mean() > 0.05
    flat, covariance = top.positions.reshape(len(x), -1), mixture.covariance()
    spread = np.sqrt(np.diag(covariance))
    assert np.abs(flat.mean(0) - mixture.mean().ravel()).max() < 5 * spread.max() / np.sqrt(len(x))
    assert np.abs(np.cov(flat.T) - covariance).max() < 6 * np.square(spread).max() / np.sqrt(len(x))


def test_chain_forgets_where_it_started():
    densities = between_temperatures(SPRINGS, COLD, COLD)
    far = np.broadcast_to(SPRINGS.centre + 0.3, (2000, 2, 3))
    top = climb(start(densities, far), densities, 0.1, ladder=(1.0,), moves=150, seed=5)
    z = (top.positions - SPRINGS.centre) / np.sqrt(SPRINGS.variance(COLD))
    assert np.abs(z.mean(0)).max() < 0.15 and np.abs(z.std(0) - 1).max() < 0.1
    assert top.stages[0].acceptance == pytest.approx(0.574, abs=0.1)


def test_a_correlated_preconditioner_is_as_exact():
    mixture = GaussianMixture(np.zeros((1, 2, 3)), 0.05, temperature=COLD)
    densities = between_temperatures(mixture, COLD, COLD)
    root = np.array([[0.15, 0.0], [0.12, 0.08]])
    x = mixture.sample(20_000, generator(9))
    top = climb(start(densities, x), densities, root, ladder=(1.0,), moves=6, adapt=False, seed=6)
    assert 0.3 < top.stages[0].acceptance < 0.99
    assert np.abs(np.cov(top.positions.reshape(len(x), -1).T) - 0.05 * np.eye(6)).max() < 0.003


def test_spring_scale_is_the_root_of_the_inverse_laplacian():
    """Two atoms on a spring: the relative displacement has variance kT / k in each direction, up to the small m."""
    root = spring_scale(2, np.array([[0, 1]]), np.array([30.0]), COLD)
    covariance = root @ root.T
    assert covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] == pytest.approx(KB * COLD / 30 * 2 / 2, rel=1e-3)
    assert covariance[0, 1] > 100 * (covariance[0, 0] - covariance[0, 1])


def test_systematic_resampling_draws_floor_or_ceil():
    weights = normalised(RNG.normal(size=500) * 2)
    counts = np.array(
        [np.bincount(resampled_indices(weights, u), minlength=500) for u in np.linspace(0, 1, 200, False)]
    )
    assert ((counts == np.floor(500 * weights)) | (counts == np.ceil(500 * weights))).all()
    assert counts.mean(0) == pytest.approx(500 * weights, abs=0.02)


def test_zero_weights_are_never_drawn():
    assert set(resampled_indices(np.array([0.0, 1.0, 0.0]), 0.0)) == {1}
    assert set(resampled_indices(np.array([0.0, 0.5, 0.5, 0.0]), np.nextafter(1, 0))) == {1, 2}


class Wall(Potential):
    """SPRINGS whose energy is not finite on one side."""

    def __init__(self):
        super().__init__(SPRINGS.numbers)

    def _evaluate(self, positions, forces):
        energy, force = SPRINGS.energy_and_forces(positions)
        energy[positions[:, 0, 0] > SPRINGS.centre[0, 0]] = np.nan
        return energy, force


def test_non_finite_energies_weigh_nothing_and_are_never_entered():
    """A Gaussian cut in half: Z halves, too, and the chain stays on its side."""
    densities = between_temperatures(Wall(), HOT, COLD)
    x = SPRINGS.sample(4000, HOT, generator(11))
    population = start(densities, x)
    assert np.isneginf(population.log_weights).mean() == pytest.approx(0.5, abs=0.03)
    top = climb(population, densities, 0.1, seed=7)
    alive = np.isfinite(top.log_weights)
    assert (top.positions[alive, 0, 0] <= SPRINGS.centre[0, 0]).all()
    exact = SPRINGS.log_partition(COLD) - SPRINGS.log_partition(HOT) + np.log(0.5)
    assert diagnose(top.log_weights).log_z == pytest.approx(exact, abs=0.1)


def test_ancestors_are_counted():
    population, densities = hot_population(2000, 21)
    top = climb(population, densities, 0.1, seed=8)
    counts = [stage.unique_ancestors for stage in top.stages]
    assert counts == sorted(counts, reverse=True) and counts[-1] == top.unique_ancestors < 1500
    assert top.unique_ancestors == len(set(top.ancestors.tolist()))
    assert kish(top.log_weights) > 0.5  # which alone would call them independent
    still = climb(population, densities, 0.1, moves=0, seed=8)
    assert sum(stage.resampled for stage in still.stages) > 1
    assert np.array_equal(still.positions, population.positions[still.ancestors])


def test_resume_from_any_stage_ends_in_the_same_bits():
    population, densities = hot_population(300, 30)
    kept: list[dict[str, np.ndarray]] = []
    top = climb(population, densities, 0.1, seed=9, moves=3, on_stage=lambda p: kept.append(p.arrays()))
    for arrays in (population.arrays(), *kept):
        again = climb(Population.of_arrays(arrays), densities, 0.1, seed=9, moves=3)
        for name, value in top.arrays().items():
            assert np.array_equal(again.arrays()[name], value), name
    other = climb(population, densities, 0.1, seed=10, moves=3)
    assert not np.array_equal(other.positions, top.positions)


@pytest.mark.parametrize("ladder", [(), (0.5, 0.2, 1.0), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0)])
def test_ladders_that_are_none(ladder):
    population, densities = hot_population(20, 1)
    with pytest.raises(InputError, match="ascending numbers above 0, the last one 1"):
        climb(population, densities, 0.1, ladder=ladder)


def test_no_particle_with_a_weight():
    densities = between_temperatures(WELL, HOT, COLD)
    population = start(densities, np.zeros((10, 1, 3)), np.full(10, np.nan))
    with pytest.raises(InputError, match="no particle of 10 has a weight"):
        climb(population, densities, 0.1)


def test_restricted_to_a_region_no_particle_leaves_it_and_its_share_is_exact():
    """The double well right of its top: the mean weight is its partition function, a quadrature of the well's."""
    q, top = Wide((1.2, 0.3, 0.3)), WELL.stationary_points()[1]
    densities = restricted(between_temperatures(WELL, HOT, COLD), lambda x: x[:, 0, 0] > top)
    x = q.sample(4000, 5)
    population = start(densities, x, -WELL.energy(x) / (KB * HOT) - q.log_density(x)[0])
    assert (np.isneginf(population.log_weights) == (x[:, 0, 0] <= top)).all()
    end = climb(population, densities, 0.1, seed=1)
    assert (end.positions[np.isfinite(end.log_weights), 0, 0] > top).all()
    whole, moves = hot_population(4000, 5)
    log_z = diagnose(climb(whole, moves, 0.1, seed=1).log_weights).log_z
    assert diagnose(end.log_weights).log_z == pytest.approx(log_z + np.log(exact_right(COLD)), abs=0.15)


def test_between_temperatures_is_the_boltzmann_density_of_the_temperature_between():
    x = RNG.normal(size=(5, 1, 3))
    ends = between_temperatures(WELL, HOT, COLD)(x)
    energy, forces = WELL.energy_and_forces(x)
    beta = 0.75 / (KB * HOT) + 0.25 / (KB * COLD)
    log_p, slope = ends.at(0.25)
    assert log_p == pytest.approx(-beta * energy) and slope == pytest.approx(beta * forces)
    assert isinstance(ends, Ends)
