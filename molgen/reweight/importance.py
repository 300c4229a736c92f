"""Importance weights: the one routine for them, whichever model proposed the samples.

A log-weight is ln w = -E/kT - ln q, up to a constant, of a sample drawn from q; (n,) float64. Anything not finite (an
energy that overflowed, a proposal density of zero) is a weight of zero: it counts in n and in every figure below.

Pareto-smoothed importance sampling (PSIS) and k-hat: Vehtari, Simpson, Gelman, Yao, Gabry, J. Mach. Learn. Res. 25
(2024) 72, arXiv 1507.02646. k-hat is the shape of a generalised Pareto distribution fitted to the largest weights:
moments of the weights exist up to order 1/k, so the variance is infinite above 0.5 and the mean above 1; smoothed
estimates are usable up to 0.7, their standard errors lower bounds above 0.5. Neither k-hat nor the effective sample
size (ESS) can see a mode that q never visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError

LEAST_DRAWS = 25  # fewer positive weights have no tail to fit (PSIS takes a fifth of them, and needs 5)
FINITE_VARIANCE = 0.5  # k-hat up to which weights have a variance; above it a standard error is a lower bound
RELIABLE_KHAT = 0.7  # Vehtari et al. 2024: above it no practical number of samples helps
UNDERFLOW = 700.0  # exp(-700) is the least a double can hold; log-weights that far below the largest are zero
EQUAL = 1e-2  # spread of ln w of weights above zero below which they are equal but for single precision: no tail
TOP_SHARE = 0.002  # of the weights, the largest, which Prose (arXiv 2508.18175) drops
FLAT = 1e-9  # spread of ln w below which a tail is a single value with rounding

Verdict = Literal["reliable", "warn", "biased", "failed"]
VERDICTS: tuple[Verdict, ...] = ("reliable", "warn", "biased", "failed")  # from best to worst


@dataclass(frozen=True)
class WeightDiagnostics:
    """What the log-weights of n draws say about the estimates made from them.

    Attributes:
        n: draws, weights of zero included.
        finite: draws with a weight above zero.
        ess: Kish's effective sample size (sum w)^2 / (n sum w^2), a share of n; nothing clipped, smoothed or dropped.
        ess_psis: the same of the smoothed weights.
        khat: shape of the generalised Pareto tail; inf where it cannot be estimated, 0 where the tail is one value.
        max_weight: largest normalised weight.
        log_z: ln of the mean weight, the ratio of partition functions; -inf when no weight is above zero.
        log_z_error: its standard error by the delta method, sqrt((1/ess - 1) / (n - 1)); above a k-hat of 0.5 a lower
            bound, above 0.7 it says nothing.
        threshold: min(1 - 1/log10(finite), 0.7), the k-hat up to which `finite` draws suffice.
    """

    n: int
    finite: int
    ess: float
    ess_psis: float
    khat: float
    max_weight: float
    log_z: float
    log_z_error: float
    threshold: float


def cleaned(log_weights: ArrayLike) -> np.ndarray:
    """Log-weights (n,) float64 with everything not finite set to -inf, a weight of zero.

    Raises:
        InputError: not one-dimensional, or empty.
    """
    log_w = np.array(log_weights, dtype=float)
    if log_w.ndim != 1 or not len(log_w):
        raise InputError(f"log-weights of shape {log_w.shape}", expected="one number a sample, (n,) with n >= 1")
    log_w[~np.isfinite(log_w)] = -np.inf
    return log_w


def normalised(log_weights: ArrayLike) -> np.ndarray:
    """Weights (n,) that sum to 1; all zero when no weight is above zero."""
    log_w = cleaned(log_weights)
    top = log_w.max()
    if top == -np.inf:
        return np.zeros(len(log_w))
    weights = np.exp(log_w - top)
    return weights / weights.sum()


def kish(log_weights: ArrayLike) -> float:
    """Kish's effective sample size as a share of all n draws, 0 to 1."""
    weights = normalised(log_weights)
    squares = float((weights**2).sum())
    return 1 / (len(weights) * squares) if squares else 0.0


def psis(log_weights: ArrayLike) -> np.ndarray:
    """Pareto-smoothed log-weights (n,), on the scale they came in.

    The largest weights become quantiles of the fitted tail, none above the largest raw weight. Unchanged where no tail
    can be fitted.
    """
    return _smoothed(cleaned(log_weights))[0]


def tail_length(log_weights: ArrayLike) -> int:
    """How many of the largest weights the generalised Pareto distribution was fitted to; 0 where there was no fit."""
    return _smoothed(cleaned(log_weights))[2]


def khat(log_weights: ArrayLike) -> float:
    """Shape of the generalised Pareto distribution of the largest weights; inf where it cannot be estimated."""
    return _smoothed(cleaned(log_weights))[1]


def region_khat(log_weights: ArrayLike) -> float:
    """`khat` of the samples of a region; inf for fewer than 25 with a weight, however equal: their number is chance."""
    return khat(log_weights) if np.isfinite(log_weights).sum() >= LEAST_DRAWS else np.inf


def function_khat(log_weights: ArrayLike, values: ArrayLike) -> float:
    """k-hat of the self-normalised mean of f: the larger of the tails of w and of |f - m| w, m the weighted median.

    Vehtari et al. 2024 look at |f| w; measured from the median it does not depend on the zero of f. The draws below and
    above m may differ in scale (r^2 of a broad proposal: a plateau above, a few larger terms below), and one Pareto
    distribution fitted across both then has a shape of neither: the larger shape of the two sides counts, if it is
    less. Where f differs from m in fewer than 25 draws it has no tail, and k-hat is that of w.

    Args:
        log_weights: (n,).
        values: f, (n,); may be anything where the weight is zero.
    """
    log_w = cleaned(log_weights)
    values = np.where(np.isfinite(log_w), np.asarray(values, dtype=float), 0.0)
    weights = normalised(psis(log_w))
    if not weights.any():
        return np.inf
    order = np.argsort(values)
    median = values[order][np.searchsorted(np.cumsum(weights[order]), 0.5)]
    with np.errstate(divide="ignore"):
        terms = log_w + np.log(np.abs(values - median))
    both = khat(terms)
    apart = max(khat(np.where(side, terms, -np.inf)) for side in (values < median, values > median))
    shape = min(both, apart)  # a side of fewer than 25 draws has no shape of its own: inf
    return max(khat(log_w), shape) if np.isfinite(shape) else khat(log_w)


def khat_threshold(draws: int) -> float:
    """The k-hat up to which `draws` suffice, min(1 - 1/log10(draws), 0.7), at least 0 (Vehtari et al. 2024)."""
    return float(min(max(1 - 1 / np.log10(draws), 0.0), RELIABLE_KHAT)) if draws > 1 else 0.0


def diagnose(log_weights: ArrayLike) -> WeightDiagnostics:
    """Effective sample sizes, k-hat, largest weight and ln Z of log-weights (n,)."""
    log_w = cleaned(log_weights)
    n, finite, ess = len(log_w), int(np.isfinite(log_w).sum()), kish(log_w)
    smooth, shape, _ = _smoothed(log_w)
    return WeightDiagnostics(
        n=n,
        finite=finite,
        ess=ess,
        ess_psis=kish(smooth),
        khat=shape,
        max_weight=float(normalised(log_w).max()),
        log_z=float(np.logaddexp.reduce(log_w) - np.log(n)),
        log_z_error=float(np.sqrt(max(1 / ess - 1, 0.0) / (n - 1))) if ess and n > 1 else np.inf,
        threshold=khat_threshold(finite),
    )


def verdict(diagnostics: WeightDiagnostics) -> Verdict:
    """Whether to believe the weights.

    "reliable" up to the threshold; "warn" between it and 0.7 (more samples would help); "biased" from 0.7 to 1: may
    not be called unbiased, nor with fewer than 25 effective samples of uneven weights, which a single weight may carry;
    "failed" above 1, or where k-hat cannot be estimated.
    """
    if not diagnostics.khat <= 1:
        return "failed"
    if diagnostics.khat > RELIABLE_KHAT or few_effective(diagnostics):
        return "biased"
    return "warn" if diagnostics.khat > diagnostics.threshold else "reliable"


def few_effective(diagnostics: WeightDiagnostics) -> bool:
    """Whether uneven weights leave fewer than 25 effective samples (Kish); equal ones (k-hat 0) are what they are."""
    return diagnostics.khat != 0 and diagnostics.ess * diagnostics.n < LEAST_DRAWS


def worst(*verdicts: Verdict) -> Verdict:
    """The worst of several verdicts, which is what they come to together."""
    return max(verdicts, key=VERDICTS.index)


def worst_weights(*found: WeightDiagnostics | None) -> WeightDiagnostics | None:
    """Of several the diagnostics whose k-hat is furthest above, or least below, its threshold; None if all are."""
    return max((one for one in found if one is not None), key=lambda one: one.khat - one.threshold, default=None)


def truncate(log_weights: ArrayLike) -> np.ndarray:
    """Log-weights with every weight cut at mean * sqrt(n) (Ionides, J. Comput. Graph. Stat. 17 (2008) 295).

    Consistent, of finite variance, biased at finite n: for training, not for estimates.
    """
    log_w = cleaned(log_weights)
    n = len(log_w)
    return np.minimum(log_w, np.logaddexp.reduce(log_w) - 0.5 * np.log(n))


def drop_top(log_weights: ArrayLike, share: float = TOP_SHARE) -> np.ndarray:
    """Log-weights with the largest round(share * n) set to zero weight: biased, for comparison with Prose only.

    Raises:
        InputError: `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"share {share}", where="drop_top", expected="a number from 0 to below 1")
    log_w = cleaned(log_weights)
    dropped = round(share * len(log_w))
    if dropped:
        log_w[np.argsort(log_w, kind="stable")[-dropped:]] = -np.inf
    return log_w


def mixture_log_weights(log_target: ArrayLike, log_q: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """Log-weights (n,) of draws pooled from K proposals: ln p - ln sum_k (n_k / n) q_k, each at the draw.

    The balance heuristic, or deterministic mixture (Veach and Guibas 1995; Owen and Zhou 2000): a proposal that covers
    little does no harm where another covers it.

    Args:
        log_target: unnormalised ln p of each draw, (n,), e.g. -E/kT.
        log_q: (K, n), ln q_k of every draw, whichever proposal it came from.
        counts: (K,) draws from each proposal.

    Raises:
        InputError: the shapes do not agree, or the counts do not sum to n.
    """
    log_p, log_q, counts = np.asarray(log_target, float), np.asarray(log_q, float), np.asarray(counts)
    if log_q.shape != (len(counts), len(log_p)) or counts.sum() != len(log_p):
        raise InputError(
            f"{len(log_p)} targets, proposal densities of shape {log_q.shape}, {counts.sum()} draws counted",
            where="mixture_log_weights",
            expected="(n,) targets, (K, n) densities and K counts that sum to n",
        )
    with np.errstate(divide="ignore"):
        log_share = np.log(counts / len(log_p))
    densities = np.where(np.isnan(log_q), -np.inf, log_q) + log_share[:, None]
    return cleaned(log_p - np.logaddexp.reduce(densities, axis=0))


def group_factors(groups: Sequence[ArrayLike]) -> np.ndarray:
    """ln of the factors (K,) that pool K groups of draws by the quality of their proposals.

    Each group's mean weight is an estimate of one and the same Z, so any mean of the groups is right whose factors do
    not depend on the draws; the least variance has each count by n times ESS. The ESS are those of smoothed weights,
    which a single large weight moves least: a group must not count less because it met a rare sample. Factors average
    to 1 over all draws, so ln Z is still the ln of the mean weight. For groups whose densities are known at each
    other's draws, `mixture_log_weights` is better.

    Args:
        groups: log-weights of each group, (n_k,), all on one scale.
    """
    counts = np.array([len(np.atleast_1d(group)) for group in groups])
    ess = np.array([kish(psis(group)) for group in groups])
    if not ess.any():
        return np.zeros(len(ess))
    with np.errstate(divide="ignore"):
        return np.log(ess) - np.log(counts @ ess / counts.sum())


def forward_ess(log_weights: ArrayLike, log_z: float | None = None) -> float:
    """Effective sample size of the proposal as a share of n, seen from independent samples of the target (e.g. MD).

    1 / E_q[(w/Z)^2] = 1 / E_p[w/Z] = Z / E_p[w]. Unlike Kish's it drops when q misses a mode that the samples visit.

    Args:
        log_weights: ln p - ln q (m,) at samples of the target, not of q; +inf, q being zero there, gives 0.
        log_z: ln Z from samples of q (`WeightDiagnostics.log_z`); by default from the same samples, Z = 1 / E_p[1/w].
    """
    log_w = np.asarray(log_weights, dtype=float)
    if not len(log_w) or np.isnan(log_w).any():
        raise InputError("log-weights are missing or NaN", where="forward_ess", expected="one number a target sample")
    if np.isposinf(log_w).any():
        return 0.0
    log_m = np.log(len(log_w))
    if log_z is None:
        log_z = float(log_m - np.logaddexp.reduce(-log_w))
    return float(np.exp(min(log_z - np.logaddexp.reduce(log_w) + log_m, 0.0)))


def _smoothed(log_w: np.ndarray) -> tuple[np.ndarray, float, int]:
    """Smoothed log-weights, k-hat and length of the fitted tail (0: none) of cleaned log-weights."""
    n, top = len(log_w), log_w.max()
    if n > 1 and log_w.min() == top > -np.inf:
        return log_w, 0.0, 0  # one value (of MD, or of a resampling) has no tail, however few they are
    positive = log_w > top - UNDERFLOW
    if positive.sum() < LEAST_DRAWS:
        return log_w, np.inf, 0
    length = int(min(n / 5, 3 * n**0.5))  # of the tail (Vehtari et al. 2024)
    if positive.sum() <= length:  # it would reach into the zeros, which say nothing about its shape
        smooth = log_w.copy()
        smooth[positive], shape, tail = _smoothed(log_w[positive])
        return smooth, shape, tail
    ordered = np.sort(log_w)
    if top - log_w[positive].min() < EQUAL:
        return log_w, 0.0, 0
    tail = min(length, int((ordered > ordered[-length - 1] + FLAT).sum()))  # ties with the cutoff are no tail either
    if tail == 0 or (tail >= 5 and top - ordered[-tail] < FLAT):
        return log_w, 0.0, 0
    if tail < 5:
        return log_w, np.inf, 0
    from arviz_stats.base.array import array_stats  # seconds to import

    # `psislw` takes negative log-weights, and 3 sqrt(n / r_eff) draws for the tail.
    r_eff = 1.0 if tail == length else 9 * n / (tail + 0.5) ** 2
    smooth, shape = array_stats.psislw(-log_w, r_eff)  # pyright: ignore[reportArgumentType]
    if not np.isfinite(smooth[positive]).all():
        return log_w, float(shape) if np.isfinite(shape) else np.inf, 0
    kept = int(np.flatnonzero(log_w == ordered[-tail - 1])[0])  # below the tail, so only arviz's normalisation moved it
    return smooth + (log_w[kept] - smooth[kept]), float(shape), tail
