"""Importance weights against closed forms: Gaussians, exact Pareto tails, brute force."""

from __future__ import annotations

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.reweight.importance import (
    WeightDiagnostics,
    diagnose,
    drop_top,
    forward_ess,
    function_khat,
    group_factors,
    khat,
    khat_threshold,
    kish,
    mixture_log_weights,
    normalised,
    psis,
    truncate,
    verdict,
)

LOG_Z = 3.7


def gaussian_log_weights(n: int, width: float, seed: int, log_z: float = LOG_Z) -> tuple[np.ndarray, np.ndarray]:
    """Draws x of N(0, width^2) and their log-weights to exp(log_z) N(0, 1)."""
    x = width * np.random.default_rng(seed).standard_normal(n)
    return x, log_z - x**2 / 2 + x**2 / (2 * width**2) + np.log(width)


def gaussian_ess(width: float) -> float:
    """1 / E_q[(p/q)^2] of N(0, 1) proposed by N(0, width^2): sqrt(2 width^2 - 1) / width^2."""
    return np.sqrt(2 * width**2 - 1) / width**2


@pytest.mark.parametrize("width", [0.9, 1.0, 1.5, 2.0])
def test_gaussian_proposal(width):
    found = diagnose(gaussian_log_weights(40000, width, 1)[1])
    assert (found.n, found.finite) == (40000, 40000)
    assert found.ess == pytest.approx(gaussian_ess(width), rel=0.03)
    assert found.log_z == pytest.approx(LOG_Z, abs=4 * found.log_z_error + 1e-9)
    assert verdict(found) == "reliable"


def test_kish_by_hand_counts_zeros():
    w = np.array([1.0, 2.0, 0.0, 3.0])
    log_w = np.array([0.0, np.log(2), np.nan, np.log(3)])
    assert kish(log_w) == pytest.approx(w.sum() ** 2 / (4 * (w**2).sum()))
    assert normalised(log_w) == pytest.approx(w / 6)
    found = diagnose(log_w)
    assert (found.n, found.finite) == (4, 3)
    assert found.max_weight == pytest.approx(0.5)
    assert found.log_z == pytest.approx(np.log(1.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_a_weight_of_zero(bad):
    log_w = gaussian_log_weights(4000, 1.5, 2)[1]
    half = np.concatenate([log_w, np.full(4000, bad)])
    whole, found = diagnose(log_w), diagnose(half)
    assert found.finite == 4000
    assert found.ess == pytest.approx(whole.ess / 2)
    assert found.log_z == pytest.approx(whole.log_z - np.log(2))
    assert np.isfinite(psis(half)[:4000]).all() and (psis(half)[4000:] == -np.inf).all()


def test_zeros_do_not_shape_the_tail():
    """1 % of weights above zero: fewer than the tail of all draws would hold."""
    tail = 0.4 * np.random.default_rng(3).standard_exponential(100)
    log_w = np.full(10000, -np.inf)
    log_w[:100] = tail
    assert khat(log_w) == khat(tail)
    assert np.array_equal(psis(log_w)[:100], psis(tail))


def test_log_z_error_covers():
    errors = []
    for seed in range(400):
        found = diagnose(gaussian_log_weights(500, 1.6, seed)[1])
        errors.append((found.log_z - LOG_Z) / found.log_z_error)
    assert np.mean(np.abs(errors) < 1) == pytest.approx(0.683, abs=0.07)
    assert np.mean(np.abs(errors) < 2) == pytest.approx(0.954, abs=0.035)


@pytest.mark.parametrize("shape", [0.1, 0.3, 0.5, 0.7, 1.2])
def test_khat_of_pareto_tails(shape):
    """w = u^-k has P(w > t) = t^(-1/k): a generalised Pareto tail of shape k, exactly."""
    found = [khat(-shape * np.log(np.random.default_rng(s).random(10000))) for s in range(30)]
    assert np.mean(found) == pytest.approx(shape, abs=0.06)  # a weak prior pulls towards 0.5


def test_khat_knows_its_sign_and_scale():
    log_w = -0.9 * np.log(np.random.default_rng(0).random(4000))
    assert khat(log_w + 1e4) == pytest.approx(khat(log_w), abs=1e-6)
    assert khat(-log_w) < 0.2 < 0.7 < khat(log_w)  # 1/w is bounded


def test_psis_leaves_the_bulk_and_orders_the_tail():
    log_w = 100 - 0.6 * np.log(np.random.default_rng(4).random(10000))
    smooth, order = psis(log_w), np.argsort(log_w)
    assert smooth[order[:-300]] == pytest.approx(log_w[order[:-300]], abs=1e-9)
    assert not np.allclose(smooth[order[-300:]], log_w[order[-300:]], atol=1e-3)
    assert (np.diff(smooth[order]) >= -1e-9).all()
    assert smooth.max() <= log_w.max() + 1e-9


def test_psis_beats_raw_weights_in_a_heavy_tail():
    """Mean of w = u^-0.6 is 2.5; raw means have infinite variance, smoothed ones a smaller error (Vehtari et al.)."""
    raw, smooth = [], []
    for seed in range(200):
        log_w = -0.6 * np.log(np.random.default_rng(seed).random(2000))
        raw.append(np.exp(log_w).mean())
        smooth.append(np.exp(psis(log_w)).mean())
    rms = [np.sqrt(np.mean((np.array(m) - 2.5) ** 2)) for m in (raw, smooth)]
    assert rms[1] < 0.9 * rms[0]


@pytest.mark.parametrize("log_w", [[0.3], [0.0, 1.0], np.arange(24.0), np.full(500, -np.inf), np.full(500, np.nan)])
def test_too_few_weights_fail(log_w):
    found = diagnose(log_w)
    assert found.khat == np.inf and verdict(found) == "failed"
    assert np.array_equal(psis(log_w), np.where(np.isnan(log_w), -np.inf, log_w))


@pytest.mark.parametrize("n", [2, 10, 30])
def test_equal_weights_have_no_tail(n):
    found = diagnose(np.full(n, -3.5))
    assert (found.khat, verdict(found)) == (0.0, "reliable") and found.ess == pytest.approx(1)


def test_no_weight_at_all():
    found = diagnose(np.full(100, -np.inf))
    assert (found.finite, found.ess, found.ess_psis, found.max_weight) == (0, 0.0, 0.0, 0.0)
    assert found.log_z == -np.inf and found.log_z_error == np.inf
    assert not normalised(np.full(100, -np.inf)).any()


def test_one_sample():
    found = diagnose([0.3])
    assert (found.ess, found.max_weight, found.log_z) == (1.0, 1.0, 0.3)
    assert found.log_z_error == np.inf


@pytest.mark.parametrize("noise", [0.0, 1e-13, 1e-4])
def test_equal_weights_are_perfect(noise):
    log_w = 5 - noise * np.random.default_rng(0).standard_exponential(1000)
    found = diagnose(log_w)
    assert found.khat == 0.0 and verdict(found) == "reliable"
    assert found.ess == pytest.approx(1) and found.ess_psis == pytest.approx(1)
    assert found.log_z == pytest.approx(5, abs=1e-9 + 2 * noise) and found.log_z_error == pytest.approx(0, abs=1e-5)


def test_equal_weights_among_zeros_are_perfect():
    """Weights of zero or one are bounded, whatever the noise of single precision on the ones."""
    log_w = 1e-5 * np.random.default_rng(0).standard_normal(1000)
    log_w[::10] = -np.inf
    assert khat(log_w) == 0.0 and diagnose(log_w).ess_psis == pytest.approx(0.9)


def test_ties_at_the_cutoff():
    plateau = np.zeros(10000)
    plateau[:100] = np.log(2)  # two values: bounded
    assert khat(plateau) == 0.0
    heavy = np.zeros(10000)
    heavy[:200] = 1 - 1.5 * np.log(np.random.default_rng(0).random(200))
    assert 1 < khat(heavy) < 2
    assert (psis(heavy)[200:] == pytest.approx(0, abs=1e-12)) and np.isfinite(psis(heavy)).all()
    lonely = np.zeros(10000)
    lonely[:3] = 20.0, 21.0, 22.0  # a tail of three cannot be fitted, and must not pass
    assert verdict(diagnose(lonely)) == "failed"


def test_one_weight_takes_all():
    found = diagnose(1000 * np.random.default_rng(0).standard_normal(10000))
    assert found.ess == pytest.approx(1e-4, rel=1e-3) and verdict(found) == "failed"


@pytest.mark.parametrize(
    ("shape", "threshold", "expected"),
    [
        (0.55, 0.6, "reliable"),
        (0.65, 0.6, "warn"),
        (0.7, 0.7, "reliable"),
        (0.75, 0.7, "biased"),
        (1.0, 0.7, "biased"),
        (1.01, 0.7, "failed"),
        (np.inf, 0.7, "failed"),
        (np.nan, 0.7, "failed"),
        (-0.3, 0.7, "reliable"),
    ],
)
def test_verdict(shape, threshold, expected):
    found = WeightDiagnostics(100, 100, 0.5, 0.5, shape, 0.1, 0.0, 0.1, threshold)
    assert verdict(found) == expected


def test_threshold():
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(10**4) == 0.7
    assert khat_threshold(1) == khat_threshold(0) == khat_threshold(5) == 0.0


def test_function_khat_sees_the_tail_of_f():
    """Uniform weights, f = u^-0.9: all of the tail is in f."""
    f = np.random.default_rng(5).random(10000) ** -0.9
    log_w = np.zeros(10000)
    assert function_khat(log_w, f) == pytest.approx(0.9, abs=0.15)
    assert function_khat(log_w, -f + 50) == pytest.approx(function_khat(log_w, f), abs=1e-6)
    assert function_khat(log_w, np.full(10000, 7.0)) == khat(log_w)
    log_w[:10], f[:10] = -np.inf, np.nan
    assert np.isfinite(function_khat(log_w, f))


@pytest.mark.parametrize("seed", range(3))
def test_function_khat_of_two_sides_of_different_scale(seed):
    """r^2 of a Gaussian proposed too broad is bounded: a plateau above the median, a few larger terms below it."""
    x = 1.4 * np.random.default_rng(seed).normal(size=(300, 3))
    f = (x**2).sum(1)
    log_w = -0.5 * f * (1 - 1 / 1.4**2)
    assert khat(log_w) < 0
    assert function_khat(log_w, f) < 0.3


def test_truncate():
    log_w = gaussian_log_weights(1000, 3.0, 6)[1]
    w = np.exp(log_w)
    w[0] = 1e9
    assert np.exp(truncate(np.log(w))) == pytest.approx(np.minimum(w, w.mean() * np.sqrt(1000)))


def test_drop_top():
    log_w = np.random.default_rng(7).permutation(1000).astype(float)
    dropped = drop_top(log_w, 0.002)
    assert np.array_equal(dropped == -np.inf, log_w >= 998)
    assert np.array_equal(drop_top(log_w, 0.0), log_w)
    with pytest.raises(InputError, match="share 1.0"):
        drop_top(log_w, 1.0)


def test_mixture_of_proposals_repairs_a_missing_mode():
    """Target N(-3,1)/2 + N(3,1)/2; each proposal covers one mode, the mixture both: every weight is Z."""
    rng = np.random.default_rng(8)
    counts = np.array([300, 700])
    x = np.concatenate([rng.normal(-3, 1, 300), rng.normal(3, 1, 700)])
    log_q = -0.5 * (x - np.array([[-3.0], [3.0]])) ** 2 - 0.5 * np.log(2 * np.pi)
    log_target = LOG_Z + np.logaddexp(*log_q) - np.log(2)
    log_w = mixture_log_weights(log_target, log_q, counts)
    brute = np.exp(log_target) / (0.3 * np.exp(log_q[0]) + 0.7 * np.exp(log_q[1]))
    assert np.exp(log_w) == pytest.approx(brute)
    assert diagnose(log_w).log_z == pytest.approx(LOG_Z, abs=4 * diagnose(log_w).log_z_error)
    assert diagnose(log_w).max_weight < 2 / 600
    assert np.isfinite(mixture_log_weights(log_target, np.stack([log_q[0], np.full(1000, np.nan)]), [500, 500])).all()
    with pytest.raises(InputError, match="1001 draws"):
        mixture_log_weights(log_target, log_q, [300, 701])


def test_groups_count_by_their_quality():
    """A good and a poor proposal: pooled by quality the error is near that of the good draws, and ln Z stays right."""
    errors, log_z = [], []
    for seed in range(200):
        rng = np.random.default_rng([31, seed])
        parts = []
        for noise, n in ((0.2, 300), (2.0, 1500)):
            x = 1.2 * rng.standard_normal(n)
            log_w = LOG_Z - x**2 / 2 + x**2 / 2.88 + np.log(1.2)
            parts.append((x, log_w + noise * rng.standard_normal(n) - noise**2 / 2))
        x, log_w = (np.concatenate(column) for column in zip(*parts, strict=True))
        factors = group_factors([part[1] for part in parts])
        assert factors[0] > 0 > factors[1] and np.exp(factors) @ [300, 1500] == pytest.approx(1800)
        pooled = log_w + np.repeat(factors, [300, 1500])
        means = [normalised(w) @ x**2 for w in (log_w, pooled)]
        errors.append(np.array(means) - 1)
        log_z.append(diagnose(pooled).log_z - LOG_Z)
    plain, weighed = np.std(errors, axis=0)
    assert weighed < 0.6 * plain and abs(np.mean(errors, axis=0)[1]) < 3 * weighed / 200**0.5
    assert abs(np.mean(log_z)) < 3 * np.std(log_z) / 200**0.5 + 1e-3
    assert group_factors([[-np.inf] * 3, [-np.inf]]).tolist() == [0, 0]
    assert np.isneginf(group_factors([np.zeros(30), np.full(30, -np.inf)])[1])


def test_forward_ess():
    """Equals Kish's where the proposal covers the target; sees the mode the proposal misses."""
    width = 1.5
    x = np.random.default_rng(9).standard_normal(40000)
    log_w = LOG_Z - x**2 / 2 + x**2 / (2 * width**2) + np.log(width)
    assert forward_ess(log_w, LOG_Z) == pytest.approx(gaussian_ess(width), rel=0.02)
    assert forward_ess(log_w) == pytest.approx(gaussian_ess(width), rel=0.05)
    assert forward_ess(np.append(log_w, np.inf)) == forward_ess([np.inf]) == 0.0
    with pytest.raises(InputError, match="NaN"):
        forward_ess([np.nan])


@pytest.mark.parametrize("bad", [[], [[1.0, 2.0]]])
def test_shape_is_checked(bad):
    with pytest.raises(InputError, match="one number a sample"):
        diagnose(bad)
