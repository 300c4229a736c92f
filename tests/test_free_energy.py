"""Free-energy surfaces against quadrature, and correlated series against processes of known autocorrelation."""

from __future__ import annotations

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.potentials.analytic import DoubleWell, MuellerBrown
from molgen.reweight.estimate import autocorrelation_time, blocks, bootstrap, delta_error, weighted_mean
from molgen.reweight.free_energy import FES, CVValues, free_energy_difference, histogram_fes
from molgen.reweight.importance import normalised
from molgen.units import KB

T = 300.0
KT = KB * T


def surface(cvs, log_weights, **options) -> FES:
    return histogram_fes(cvs, log_weights, normalised(log_weights), T, **options)


def normal_sample(n: int, seed: int, width: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    """Draws of N(0, width^2) weighted to N(0, 1)."""
    x = width * np.random.default_rng(seed).standard_normal(n)
    return x, -(x**2) / 2 + x**2 / (2 * width**2)


def test_double_well_surface():
    well = DoubleWell(barrier=0.1, tilt=0.02)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.8, 1.8, 40000)
    log_w = -well._along(x) / KT
    found = surface([CVValues("x", x, "A")], log_w, bins=60)
    (centres,) = found.centres
    exact = well._along(centres)
    low = exact - exact.min() < 8 * KT
    deviation = found.free_energy - exact
    assert np.std(deviation[low]) < 0.08 * KT
    assert (found.error[low] < 0.1 * KT).all() and found.counts.sum() == 40000
    assert found.probability.sum() == pytest.approx(1) and found.free_energy.min() == 0
    assert (found.names, found.units, found.periods, found.kt) == (("x",), ("A",), (None,), pytest.approx(KT))
    assert found.reliable


def test_mueller_brown_surface_in_two_dimensions():
    system, rng = MuellerBrown(), np.random.default_rng(1)
    xy = rng.uniform([-1.5, -0.4], [1.2, 2.0], (200000, 2))
    log_w = -system.surface(*xy.T) / KT
    cvs = [CVValues("x", xy[:, 0]), CVValues("y", xy[:, 1])]
    found = surface(cvs, log_w, bins=(54, 48), ranges=[(-1.5, 1.2), (-0.4, 2.0)])
    exact = system.surface(*np.meshgrid(*found.centres, indexing="ij"))
    low = exact - exact.min() < 5 * KT
    assert found.free_energy.shape == (54, 48)
    assert repr(found).startswith("FES(x, y: ") and "of 54 x 48 bins visited, 300 K, reliable: k-hat" in repr(found)
    assert np.std((found.free_energy - exact)[low]) < 0.2 * KT
    marginal = surface(cvs[:1], log_w, bins=54, ranges=[(-1.5, 1.2)])
    exact = system.free_energy(marginal.centres[0], T)
    low = exact - exact.min() < 5 * KT
    assert np.std((marginal.free_energy - exact)[low]) < 0.05 * KT


@pytest.mark.parametrize("replicas", [0, 100])
def test_errors_of_bins_cover(replicas):
    edges = np.array([-2.0, -1.0, 0.0, 0.5, 1.5])
    from scipy.stats import norm

    exact = -KT * np.log(np.diff(norm.cdf(edges)))
    inside = []
    for seed in range(60 if replicas else 250):
        x, log_w = normal_sample(400, seed)
        found = surface([CVValues("x", x)], log_w, bins=[edges], replicas=replicas, seed=seed)
        inside.append((-KT * np.log(found.probability) - exact) / found.error)
    assert np.mean(np.abs(inside) < 1) == pytest.approx(0.683, abs=0.07)
    assert np.mean(np.abs(inside) < 2) == pytest.approx(0.954, abs=0.035)


@pytest.mark.parametrize("replicas", [0, 50])
def test_bins_of_fewer_than_five_samples_have_no_error(replicas):
    """Or of fewer than five groups of them; a sample without a weight is none."""
    x = np.repeat([0.5, 1.5, 2.5, 3.5], [4, 5, 5, 200])
    log_w = np.where(np.arange(214) == 9, -np.inf, 0.0)
    cv, options = CVValues("x", x), {"bins": 4, "ranges": (0, 4), "replicas": replicas}
    alone = surface([cv], log_w, **options)
    assert alone.counts.tolist() == [4, 5, 4, 200] and np.isfinite(alone.error).tolist() == [False, True, False, True]
    pairs = surface([cv], log_w, groups=np.arange(214) // 2, **options)
    assert np.isfinite(pairs.error).tolist() == [False, False, False, True] and np.isfinite(pairs.free_energy).all()


def test_errors_of_bins_that_have_one_cover():
    """Weights that vary within the bins too: with those of one to four samples they would be off by 1.18 errors."""
    from scipy.stats import norm

    edges, off = np.linspace(-4, 4, 41), []
    exact = -KT * np.log(np.diff(norm.cdf(edges)))
    for seed in range(100):
        x, noise = np.random.default_rng(seed).standard_normal((2, 300))
        found = surface([CVValues("x", x)], 0.8 * noise, bins=[edges])
        known = np.isfinite(found.error)
        off += list((-KT * np.log(found.probability[known]) - exact[known]) / found.error[known])
    assert np.sqrt(np.mean(np.square(off))) < 1.14


def test_bin_errors_are_those_of_brute_force_influence():
    x, log_w = normal_sample(300, 0)
    w, groups = normalised(log_w), np.random.default_rng(0).integers(0, 40, 300)
    found = surface([CVValues("x", x)], log_w, bins=6, groups=groups)
    (edges,) = found.edges
    for b in range(6):
        inside = (x >= edges[b]) & ((x < edges[b + 1]) | (b == 5))
        p = w[inside].sum()
        assert found.error[b] == pytest.approx(KT * delta_error(w * (inside - p), groups) / p)
        assert found.counts[b] == inside.sum() and found.probability[b] == pytest.approx(p)


def test_periodic_grid_takes_every_angle():
    """Angles a turn away, and on the seam, count in the same bins; numpy agrees on the rest."""
    rng = np.random.default_rng(2)
    angle = rng.uniform(-np.pi, np.pi, 5000)
    angle[:4] = [-np.pi, np.pi, np.nextafter(np.pi, 0), np.nextafter(-np.pi, -4)]
    log_w = np.cos(angle)
    cv = CVValues("t", angle, "rad", 2 * np.pi)
    found = surface([cv], log_w, bins=36)
    assert found.edges[0][0] == -np.pi and found.edges[0][-1] == pytest.approx(np.pi)
    assert found.counts.sum() == 5000 and found.probability.sum() == pytest.approx(1)
    turned = CVValues("t", angle[4:] + 2 * np.pi * rng.integers(-3, 4, 4996), "rad", 2 * np.pi)
    plain = surface([CVValues("t", angle[4:])], log_w[4:], bins=[found.edges[0]])
    assert surface([turned], log_w[4:], bins=36).probability == pytest.approx(plain.probability, abs=1e-3)
    expected = np.histogram(angle[4:], bins=found.edges[0], weights=normalised(log_w[4:]))[0]
    assert plain.probability == pytest.approx(expected)
    shifted = surface([turned], log_w[4:], bins=36, ranges=[(0.0, 2 * np.pi)])
    assert shifted.probability == pytest.approx(np.roll(expected, 18), abs=1e-3)
    window = surface([turned], log_w[4:], bins=9, ranges=[(np.pi / 2, np.pi)])
    assert window.probability == pytest.approx(expected[27:], abs=1e-3)


def test_empty_bins_and_samples_outside():
    x = np.array([0.1, 0.2, 0.7, 5.0, np.nan])
    log_w = np.array([0.0, 0.0, 0.0, 0.0, -np.inf])
    found = surface([CVValues("x", x)], log_w, bins=4, ranges=[(0.0, 1.0)])
    assert found.counts.tolist() == [2, 0, 1, 0]
    assert found.probability.tolist() == [0.5, 0, 0.25, 0]
    assert found.free_energy == pytest.approx([0, np.inf, KT * np.log(2), np.inf])
    assert np.isinf(found.error).all(), "none has five samples"
    assert not found.reliable


@pytest.mark.parametrize(("inside", "reliable"), [(0, False), (24, False), (25, True)])
def test_a_grid_that_hardly_a_sample_met_is_not_reliable(inside: int, reliable: bool):
    x = np.repeat([0.5, 7.0], [inside, 1000])
    assert surface([CVValues("x", x)], np.zeros(len(x)), bins=4, ranges=(0, 4)).reliable == reliable


def test_unequal_bins_are_densities():
    x = np.random.default_rng(0).uniform(0, 1, 100000)
    found = surface([CVValues("x", x)], np.zeros(100000), bins=[np.array([0, 0.1, 0.5, 1.0])])
    assert found.free_energy == pytest.approx(0, abs=0.05 * KT)


def test_a_constant_variable_and_no_weights():
    flat = surface([CVValues("x", np.full(50, 3.0))], np.zeros(50), bins=5)
    assert flat.counts.sum() == 50 and flat.edges[0][0] < 3 < flat.edges[0][-1]
    with pytest.raises(InputError, match="no sample has a weight"):
        surface([CVValues("x", np.ones(5))], np.full(5, np.nan))
    dead = surface([CVValues("x", np.ones(5))], np.full(5, np.nan), bins=2, ranges=[(0, 2)])
    assert np.isinf(dead.free_energy).all() and not dead.reliable


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bins": (3, 4)}, "2 bins and 1 ranges for 1"),
        ({"ranges": [(1.0, 0.0)]}, "do not increase"),
        ({"bins": 0}, "bins = 0"),
        ({"bins": 2.5}, "bins = 2.5"),
        ({"bins": "auto"}, "bins = 'auto'"),
        ({"bins": None}, "bins = None"),
        ({"ranges": "0 1"}, "range of x: '0 1' given"),
        ({"ranges": [(4,)]}, r"range of x: \(4,\) given"),
        ({"bins": [np.array([0.0, 0.0, 1.0])]}, "do not increase"),
    ],
)
def test_bad_grids(options, match):
    with pytest.raises(InputError, match=match):
        surface([CVValues("x", np.arange(5.0))], np.zeros(5), **options)
    with pytest.raises(InputError, match="no collective variable"):
        surface([], np.zeros(5))


def test_a_weight_whose_square_is_none_has_no_error():
    x = np.repeat(np.arange(6.0), 5)
    found = surface([CVValues("x", x)], np.where(x == 5, -450.0, 0.0), bins=6)
    assert np.isinf(found.error[-1]) and np.isfinite(found.free_energy[-1]) and np.isfinite(found.error[:-1]).all()


def test_difference_by_hand():
    w = np.array([1.0, 2.0, 3.0, 4.0])
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 0, 0, 1], bool)
    found = free_energy_difference(a, b, np.log(w), w / 10, T)
    assert found.value == pytest.approx(-KT * np.log(4 / 3))
    terms = np.array([-1 / 3, -2 / 3, 0, 1])
    assert found.error == pytest.approx(KT * np.sqrt(4 / 3 * (terms**2).sum()))
    one_group = free_energy_difference(a, b, np.log(w), w / 10, T, groups=np.zeros(4))
    assert np.isnan(one_group.error)


def test_khat_of_a_region():
    """A heavy tail inside region b alone makes the difference unreliable, though b holds little weight."""
    rng = np.random.default_rng(3)
    log_w = np.zeros(20000)
    b = np.arange(20000) < 1000
    log_w[b] = -12 - 1.2 * np.log(rng.random(1000))
    found = free_energy_difference(~b, b, log_w, normalised(log_w), T)
    assert found.khat > 0.9 and not found.reliable
    half = ~b & (np.arange(20000) % 2 == 0)
    assert free_energy_difference(half, ~b & ~half, log_w, normalised(log_w), T).reliable


def test_a_region_of_few_equal_weights_is_not_reliable():
    """Of dynamics, say: nothing is wrong with the weights, but the number of samples is chance."""
    log_w = np.zeros(1000)
    for count, reliable in ((8, False), (24, False), (25, True)):
        b = np.arange(1000) < count
        found = free_energy_difference(~b, b, log_w, normalised(log_w), T)
        assert found.reliable == reliable and np.isinf(found.khat) != reliable


def test_a_bootstrap_of_two_needs_both():
    statistic = iter((1.0, np.nan, 3.0, 5.0))
    weights = np.full(10, 0.1)
    assert np.isnan(bootstrap(lambda w: next(statistic), weights, None, replicas=2)).all()
    mean, _ = bootstrap(lambda w: next(statistic), weights, None, replicas=2)
    assert mean == 4.0


def test_bootstrap_agrees_with_the_delta_method():
    x, log_w = normal_sample(2000, 4)
    w = normalised(log_w)
    groups = np.arange(2000) // 5
    for labels in (None, groups):
        delta = weighted_mean(x, log_w, w, labels).error
        assert bootstrap(lambda u: u @ x, w, labels, replicas=400)[1] == pytest.approx(delta, rel=0.15)
    assert np.array_equal(bootstrap(lambda u: u @ x, w), bootstrap(lambda u: u @ x, w))
    assert np.isnan(bootstrap(lambda u: np.nan, w, replicas=10)).all()
    assert np.isnan(bootstrap(lambda u: u @ x, w, np.zeros(len(x)), replicas=10)).all(), "one group has no spread"
    for few in (-1, 1):
        with pytest.raises(InputError, match="replicas"):
            bootstrap(lambda u: u @ x, w, replicas=few)


def test_a_bootstrap_does_not_repeat_the_numbers_that_samples_were_drawn_with():
    x = np.random.default_rng(0).uniform(size=16_000)
    w = np.full(len(x), 1 / len(x))
    delta = weighted_mean(x < 0.3, np.zeros(len(x)), w).error
    assert bootstrap(lambda u: u @ (x < 0.3), w, replicas=100, seed=0)[1] == pytest.approx(delta, rel=0.25)


def ar1(n: int, phi: float, seed: int) -> np.ndarray:
    """Stationary AR(1) series of unit variance; 1 + 2 sum rho = (1 + phi) / (1 - phi)."""
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).standard_normal(n) * np.sqrt(1 - phi**2)
    noise[0] /= np.sqrt(1 - phi**2)
    return np.asarray(lfilter([1.0], [1.0, -phi], noise))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.98])
def test_autocorrelation_time_of_an_autoregression(phi):
    exact = (1 + phi) / (1 - phi)
    found = [autocorrelation_time(ar1(50000, phi, seed)) for seed in range(5)]
    assert np.mean(found) == pytest.approx(exact, rel=0.08)
    both = np.stack([ar1(50000, phi, 8), ar1(50000, phi, 9)], axis=1)
    assert autocorrelation_time(both) == pytest.approx(exact, rel=0.15)


def test_autocorrelation_time_of_angles():
    """A two-state torsion that flips with probability p a step: 1 / p - 1, on either side of the seam."""
    p = 0.02
    state = np.cumsum(np.random.default_rng(5).random(100000) < p) % 2
    angle = np.where(state, np.pi - 0.1, -np.pi + 0.9)
    assert autocorrelation_time(angle, angle=True) == pytest.approx(1 / p - 1, rel=0.15)


def test_autocorrelation_time_at_the_ends():
    assert autocorrelation_time(np.full(100, 3.3)) == 100
    assert autocorrelation_time(1e-9 * ar1(50000, 0.9, 0)) == pytest.approx(autocorrelation_time(ar1(50000, 0.9, 0)))
    assert autocorrelation_time(np.arange(100) % 2) == 1.0  # anticorrelated: not better than independent
    for bad in (np.zeros(3), [1.0, np.nan, 2.0, 3.0, 4.0]):
        with pytest.raises(InputError, match="at least 4 frames"):
            autocorrelation_time(bad)


def test_block_errors_of_a_correlated_series_cover():
    inside = []
    for seed in range(300):
        x = ar1(2000, 0.8, seed)
        groups = blocks(2000, 5 * autocorrelation_time(x))
        found = weighted_mean(x, np.zeros(2000), np.full(2000, 1 / 2000), groups)
        inside.append(abs(found.value) / found.error)
    assert np.mean(np.array(inside) < 1) == pytest.approx(0.683, abs=0.08)
    assert np.mean(np.array(inside) < 2) == pytest.approx(0.954, abs=0.04)


def test_blocks():
    labels, sizes = np.unique(blocks(1003, 10.0), return_counts=True)
    assert len(labels) == 100 and sizes.min() >= 10 and (np.diff(blocks(1003, 10.0)) >= 0).all()
    assert len(np.unique(blocks(10, 100.0))) == 2
    assert np.array_equal(blocks(5, 1.0), np.arange(5))
