"""The exact answers of the model systems against independent quadrature, sampling and published figures."""

import numpy as np
import pytest
from scipy import integrate, optimize

from molgen.errors import InputError
from molgen.potentials import check_potential
from molgen.potentials.analytic import DoubleWell, GaussianMixture, Harmonic, MuellerBrown
from molgen.units import KB

RNG = np.random.default_rng(7)
CENTRE = RNG.normal(size=(3, 3))
STIFFNESS = RNG.uniform(0.5, 4.0, size=(3, 3))
FACTORS = RNG.normal(size=(2, 3, 3)) * 0.2
MIXTURE = GaussianMixture(
    means=[[[-0.5, 0.0, 0.2]], [[0.6, 0.3, 0.0]]],
    covariances=FACTORS @ FACTORS.transpose(0, 2, 1) + 0.05 * np.eye(3),
    weights=[1.0, 3.0],
    temperature=400.0,
    log_total=1.5,
)


@pytest.mark.parametrize(
    ("potential", "atoms"),
    [
        (Harmonic(CENTRE, STIFFNESS), 3),
        (DoubleWell(0.15, 0.8, tilt=0.04, stiffness=2.0), 1),
        (MuellerBrown(), 1),
        (MIXTURE, 1),
        (GaussianMixture(RNG.normal(size=(4, 2, 3)), 0.3), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_protocol_and_forces(potential, atoms):
    check_potential(potential, RNG.normal(size=(5, atoms, 3)) * 0.6, invariant=False)


def test_harmonic_partition_function_is_a_product_of_gaussian_integrals():
    kt = KB * 350
    one = [integrate.quad(lambda x, k=k: np.exp(-0.5 * k * x**2 / kt), -9, 9, points=[0])[0] for k in STIFFNESS.flat]
    assert Harmonic(CENTRE, STIFFNESS).log_partition(350) == pytest.approx(np.log(one).sum(), abs=1e-9)


def test_harmonic_samples_have_the_stated_moments():
    potential, count = Harmonic(CENTRE, STIFFNESS), 20_000
    x = potential.sample(count, 350, np.random.default_rng(1))
    energy = potential.energy(x)
    # Var U = 3N/2 (kT)^2
    sigma = KB * 350 * np.sqrt(CENTRE.size / 2 / count)
    assert potential.mean_energy(350) == pytest.approx(4.5 * KB * 350)
    assert abs(energy.mean() - potential.mean_energy(350)) < 4 * sigma
    z = (x - CENTRE) / np.sqrt(potential.variance(350))
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(count) and np.abs((z**2).mean(0) - 1).max() < 4 * np.sqrt(2 / count)


@pytest.mark.parametrize("temperature", [100, 300, 2000])
@pytest.mark.parametrize("tilt", [0.0, 0.05, -0.1])
def test_double_well_against_adaptive_quadrature(temperature, tilt):
    potential, kt = DoubleWell(0.1, 0.8, tilt, stiffness=2.0), KB * temperature
    left, top, right = potential.stationary_points()

    def boltzmann(x):
        return float(np.exp(-potential.energy([[[x, 0, 0]]])[0] / kt))

    z_left = integrate.quad(boltzmann, -3, top, points=[left], epsabs=1e-13)[0]
    z_right = integrate.quad(boltzmann, top, 3, points=[right], epsabs=1e-13)[0]
    assert potential.basin_free_energy_difference(temperature) == pytest.approx(kt * np.log(z_left / z_right), abs=1e-8)
    expected = np.log(z_left + z_right) + np.log(2 * np.pi * kt / 2.0)
    assert potential.log_partition(temperature) == pytest.approx(expected, abs=1e-7)


def test_double_well_stationary_points():
    potential = DoubleWell(0.1, 0.8, 0.05)
    x = np.zeros((3, 1, 3))
    x[:, 0, 0] = potential.stationary_points()
    energy, forces = potential.energy_and_forces(x)
    np.testing.assert_allclose(forces, 0, atol=1e-12)
    assert energy[1] > energy[2] > energy[0]  # positive tilt favours the left
    assert DoubleWell(0.1).energy([[[0.0, 0, 0]]])[0] == pytest.approx(0.1)


def test_double_well_refuses_a_single_well():
    with pytest.raises(InputError, match="tilt 0.2 leaves a single well"):
        DoubleWell(0.1, tilt=0.2)


def test_mueller_brown_stationary_points_are_the_published_ones():
    potential = MuellerBrown(scale=1.0)
    points = np.vstack([potential.MINIMA, potential.SADDLES])
    # Mueller and Brown 1979, table 1, to the digits printed there
    np.testing.assert_allclose(
        points, [[-0.558, 1.442], [0.623, 0.028], [-0.050, 0.467], [-0.822, 0.624], [0.212, 0.293]], atol=6e-4
    )
    energies = potential.surface(*points.T)
    np.testing.assert_allclose(energies, [-146.700, -108.167, -80.768, -40.665, -72.249], atol=1e-3)

    def gradient(xy):
        return -potential.energy_and_forces([[[*xy, 0.0]]])[1][0, 0, :2]

    for i, point in enumerate(points):
        np.testing.assert_allclose(optimize.root(gradient, point, tol=1e-13).x, point, atol=1e-9)
        hessian = [(gradient(point + step) - gradient(point - step)) / 2e-5 for step in 1e-5 * np.eye(2)]
        assert (np.linalg.eigvalsh(hessian) < 0).sum() == (0 if i < 3 else 1)


def test_mueller_brown_free_energies_against_a_cartesian_grid():
    potential, kt, stiffness = MuellerBrown(stiffness=3.0), KB * 300, 3.0
    x, y = np.linspace(-3.5, 3.0, 651), np.linspace(-2.5, 4.5, 701)
    surface = potential.surface(x[:, None], y)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    # The trapezoid rule on a smooth function that vanishes at the border converges exponentially.
    weight = np.exp(-surface / kt) * cell
    transverse = np.sqrt(2 * np.pi * kt / stiffness)
    assert potential.log_partition(300) == pytest.approx(np.log(weight.sum() * transverse), abs=1e-9)
    rows = [250, 310, 400]
    marginal = weight[rows].sum(1) / (x[1] - x[0]) * transverse
    np.testing.assert_allclose(potential.free_energy(x[rows], 300), -kt * np.log(marginal), atol=1e-9)
    reactant = weight[y - x[:, None] > potential.DIVIDE].sum()
    difference = kt * np.log(reactant / (weight.sum() - reactant))
    # Cells on the dividing line belong to both sides: first order in the spacing.
    assert potential.basin_free_energy_difference(300) == pytest.approx(difference, abs=4e-5)


def test_mixture_moments_and_partition_function_against_a_grid():
    axis = np.linspace(-4, 4, 65)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 1, 3)
    weight = np.exp(-MIXTURE.energy(grid) / (KB * 400)) * (axis[1] - axis[0]) ** 3
    assert MIXTURE.log_partition(400) == 1.5 == pytest.approx(np.log(weight.sum()), abs=1e-6)
    probability, flat = weight / weight.sum(), grid[:, 0]
    mean = probability @ flat
    np.testing.assert_allclose(MIXTURE.mean()[0], mean, atol=1e-6)
    np.testing.assert_allclose(MIXTURE.covariance(), (flat - mean).T * probability @ (flat - mean), atol=1e-6)


def test_mixture_samples_follow_it():
    count = 40_000
    x = MIXTURE.sample(count, np.random.default_rng(3))[:, 0]
    sigma = np.sqrt(np.diag(MIXTURE.covariance()) / count)
    assert (np.abs(x.mean(0) - MIXTURE.mean()[0]) < 4 * sigma).all()
    np.testing.assert_allclose(np.cov(x.T), MIXTURE.covariance(), atol=0.01)


def test_mixture_knows_its_partition_function_at_its_own_temperature_only():
    with pytest.raises(InputError, match=r"known at 400.0 K only, asked at 300 K"):
        MIXTURE.log_partition(300)
