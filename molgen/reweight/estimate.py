"""Weighted means with a standard error and a k-hat.

Standard errors are those of the delta method for self-normalised weights,

    var <f> = G/(G-1) sum_g ( sum_(i in g) w_i (f_i - <f>) )^2,   sum w = 1,

where draws of one group g (a block of MD frames, one seed, one resampled ancestor) may depend on each other and groups
do not; without groups each draw is its own (Owen, Monte Carlo theory, methods and examples, ch. 9). `bootstrap` draws
the groups anew and needs no derivative. Neither knows of tails that were never drawn: k-hat does. Above a k-hat of 0.5
the variance is infinite and both are lower bounds of the error; above 0.7 they say nothing. k-hat in turn knows nothing
of groups (after a resampling all weights are alike), so that these are counted: `few_groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError, check_counts
from molgen.reweight.importance import (
    FINITE_VARIANCE,
    LEAST_DRAWS,
    RELIABLE_KHAT,
    Verdict,
    cleaned,
    function_khat,
    khat_threshold,
)
from molgen.rng import generator

FEW_GROUPS = 100  # effective groups below which errors are rough; below LEAST_DRAWS they mean nothing
FEW = f"fewer than {LEAST_DRAWS} independent samples"
CONSTANT = "never varies in the samples"
NO_KHAT = "too few samples to tell k-hat"
REFUSED = "the weights of the whole run are refused"
SAME = 1e-9  # of the range of values, within which they are one
ROUNDING = 1e-12  # of the largest value, within which all are one
REDRAWS = 1979  # stream of the bootstrap; that of the bare seed is default_rng(seed), by which people make samples
DIRECTED = 3.0  # standard errors; the resultant of angles that have no mean direction is as long in 1 % of cases


@dataclass(frozen=True)
class Estimate:
    """A number, or an array of them, that says how far to trust it.

    Attributes:
        value: the estimate.
        error: its standard error (68 % for a normal distribution); inf or NaN where there is none.
        khat: k-hat of the weights behind it: above 0.5, where their variance is infinite, `error` is a lower bound
            (several times too small at worst), above 0.7 it says nothing.
        reliable: k-hat is within the threshold for the number of draws, and the ensemble may be believed.
        unit: "eV", "A", "rad" or "" for a bare number.
        why: what a value that is not reliable lacks, in words.
    """

    value: Any
    error: Any
    khat: Any
    reliable: bool
    unit: str = ""
    why: str = ""

    def scaled(self, factor: float, unit: str) -> Estimate:
        """The estimate in another unit, one `unit` being 1/factor of the old."""
        return replace(self, value=self.value * factor, error=self.error * abs(factor), unit=unit)

    def __str__(self) -> str:
        if np.ndim(self.value):
            text = f"{self.value} ± {self.error} {self.unit}".rstrip()
        else:
            shape = ".5g"
            if 1e-6 < self.error < np.inf:  # two digits of the error, and as many decimals of the value
                shape = f".{int(max(1 - np.floor(np.log10(self.error)), 0))}f"
            text = f"{self.value:{shape}} ± {self.error:{shape}} {self.unit}".rstrip()
        said = doubt(float(np.max(self.khat)), self.reliable, self.why)
        return f"{text} ({said})" if said else text


def doubt(khat: float | None, reliable: bool, why: str = "") -> str:
    """What an estimate lacks, in words; nothing of one that lacks nothing; `khat` is None or inf where unknown."""
    if reliable:
        found = khat is not None and khat > FINITE_VARIANCE
        return f"error a lower bound: k-hat {khat:.2f}" if found else ""
    return f"not reliable: {why or lacking([np.inf if khat is None else khat], [RELIABLE_KHAT]) or FEW}"


def lacking(shapes: Iterable[float], limits: Iterable[float], *, few: bool = False, known: bool = True) -> str:
    """Why an estimate is not reliable, in words; nothing if it is.

    Args:
        shapes: k-hats of the weights behind it, inf where unknown. limits: what each may be. few: fewer than 25
            independent samples make it up. known: it has a value and a standard error.
    """
    for khat, limit in zip(shapes, limits, strict=True):
        if not khat <= limit:
            return f"k-hat {khat:.2f}, fine up to {limit:.2g}" if np.isfinite(khat) else NO_KHAT
    return FEW if few else "" if known else "no standard error"


def check_values(values: ArrayLike, weights: np.ndarray, name: str = "values") -> np.ndarray:
    """`values` as real numbers (n,) or (n, k), a row a weight, finite wherever the weight is above zero.

    Raises:
        InputError: otherwise.
    """
    expected = f"({len(weights)},) or ({len(weights)}, k), a number or a row of them a sample"
    if np.iscomplexobj(values):  # numpy would drop the imaginary part and only warn
        raise InputError(f"{name}: complex numbers", expected=expected, remedy="give .real and .imag, a column each")
    try:
        values = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not numbers ({error})", expected=expected) from error
    if values.ndim not in (1, 2) or len(values) != len(weights) or not values.size:
        raise InputError(f"{name} of shape {values.shape}", expected=expected)
    bad = (weights > 0) & ~np.isfinite(values if values.ndim == 1 else values.sum(1))
    if bad.any():
        raise InputError(
            f"{name}: {int(bad.sum())} are not finite where the weight is above zero",
            where=f"sample {int(np.argmax(bad))}",
            expected="finite values",
        )
    return values


def group_sums(terms: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Sum of `terms` (n, ...) over each group, (G, ...); `terms` itself without groups."""
    if groups is None:
        return terms
    labels, inverse = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(labels), *terms.shape[1:]))
    np.add.at(sums, inverse, terms)
    return sums


def effective_groups(terms: np.ndarray, groups: np.ndarray | None) -> float:
    """Kish's effective number of groups, (sum |t|)^2 / sum t^2 with t the sum of a group's terms; 0 if all are zero.

    Args:
        terms: (n,), weights or influences on an estimate, on any scale. groups: labels (n,).
    """
    sums = np.abs(group_sums(terms, groups))
    squares = float((sums**2).sum())
    return float(sums.sum()) ** 2 / squares if squares else 0.0


def few_groups(terms: np.ndarray, groups: np.ndarray | None) -> bool:
    """Whether fewer than 25 groups of draws hold all of the weight, or of the influence on an estimate; without groups,
    whether fewer samples do.

    Copies and descendants of a few draws have neither a tail nor a spread that could tell what the few missed.
    """
    count = np.count_nonzero(terms) if groups is None else effective_groups(terms, groups)
    return bool(0 < count < LEAST_DRAWS)


def verdict_by_groups(weights: np.ndarray, groups: np.ndarray) -> Verdict:
    """What the number of groups allows: "biased" with fewer than 25 effective ones, "warn" with fewer than 100.

    A handful of draws, however often they are there or however many their descendants, is a handful of samples. k-hat
    cannot see that: weights that were just resampled are alike.

    Args:
        weights: (n,), on any scale. groups: labels (n,).
    """
    effective = effective_groups(weights, groups)
    if effective < LEAST_DRAWS:
        return "biased"
    return "warn" if effective < FEW_GROUPS else "reliable"


def delta_error(influence: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Standard error (...) of an estimate from the influence (n, ...) of each draw on it; NaN for a single group."""
    sums = group_sums(np.asarray(influence, dtype=float), groups)
    count = len(sums)
    if count < 2:
        return np.full(sums.shape[1:], np.nan)[()]
    return np.sqrt(count / (count - 1) * (sums**2).sum(0))


def descent_error(weights: np.ndarray, groups: np.ndarray, ancestors: int) -> np.ndarray:
    """Standard error of ln Z of particles that were resampled on the way: sqrt(m/(m-1) sum_a (W_a - 1/m)^2), W_a the
    share of the weight that ancestor a's descendants have, zero where it has none (Chan and Lai, Ann. Stat. 41 (2013)
    2877; Lee and Whiteley, Biometrika 105 (2018) 609). A lower bound where few ancestors are left.

    Args:
        weights: (n,) normalised. groups: (n,) which ancestor each descends from. ancestors: m, all that there were.
    """
    shares, left = np.zeros(ancestors), group_sums(weights, groups)
    shares[: len(left)] = left
    return delta_error(shares - 1 / ancestors)


def weighted_mean(
    values: ArrayLike,
    log_weights: ArrayLike,
    weights: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    circular: bool = False,
    unit: str = "",
    meant: bool = False,
) -> Estimate:
    """Self-normalised mean of values (n,) or (n, k), with delta-method errors and function-specific k-hat.

    One is not reliable where fewer than 25 samples, or groups, have another value than the most common one. Where none
    has, its error is NaN: what was not met in n samples may have a share of 3/n.

    Args:
        values: may be anything, also NaN, where the weight is zero.
        log_weights: raw log-weights (n,), for k-hat.
        weights: the normalised (n,) weights to average with, raw or smoothed.
        groups: labels (n,) of draws that depend on each other; a mean that fewer than 25 make up is not reliable.
        circular: `values` are angles in radians; the mean direction, in (-pi, pi]. It is not reliable where the mean
            resultant is shorter than three of its standard errors, for then there may be none.
        meant: a constant other than zero is one by construction, and its error is zero.

    Raises:
        InputError: `values` has another length, or is not finite where the weight is above zero.
    """
    values, used = check_values(values, weights), weights > 0
    if not used.any():
        nothing = np.full(values.shape[1:], np.nan)[()]
        return Estimate(nothing, nothing, np.inf, False, unit, NO_KHAT)
    table = np.where(used[:, None], values.reshape(len(values), -1), 0.0)
    if circular:
        mean, linear = _directions(table, weights)
    else:
        mean = weights @ table
        linear = table
    centre = weights @ linear
    influence = weights[:, None] * (linear - centre)
    error = delta_error(influence, groups)
    apart = [_unlike(column, used) for column in table.T]
    rare = [np.where(other, weights, 0.0) for other in apart]
    few = any(few_groups(terms, groups) for terms in (weights, *influence.T, *rare))
    constant = [not other.any() and not (meant and table[used, k].any()) for k, other in enumerate(apart)]
    shape = np.array([function_khat(log_weights, column) for column in linear.T])
    threshold = khat_threshold(int(np.isfinite(cleaned(log_weights)).sum()))
    why = lacking(shape, [threshold] * len(shape), few=few, known=bool(np.isfinite(error).all()))
    error, why = np.where(constant, np.nan, error), why or (CONSTANT if any(constant) else "")
    if circular and not why and not _directed(table - mean, weights, groups):
        why = "the angles have no clear mean direction"
    if values.ndim == 1:
        return Estimate(float(mean[0]), float(error[0]), float(shape[0]), not why, unit, why)
    return Estimate(mean, error, shape, not why, unit, why)


def bootstrapped(
    statistic: Callable[[np.ndarray], ArrayLike],
    weights: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    replicas: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, int]:
    """What `bootstrap` sums up: statistic(weights (n,)) of each draw (R, ...), and the number G of groups.

    R is `replicas` less the draws that got no weight.
    """
    check_counts(replicas=(replicas, 2))
    index = np.arange(len(weights)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(index.max()) + 1
    rng, results = generator(seed, REDRAWS), []
    for _ in range(replicas):
        replica = weights * rng.multinomial(count, np.full(count, 1 / count))[index]
        if replica.sum() > 0:
            results.append(np.asarray(statistic(replica / replica.sum()), dtype=float))
    return np.array(results), count


def bootstrap(
    statistic: Callable[[np.ndarray], ArrayLike],
    weights: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    replicas: int = 200,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of statistic(weights (n,)) over `replicas` draws of the groups with replacement.

    The mean lies as far from the statistic as this from the truth.

    A replica multiplies the weight of each draw by the number of times its group was drawn, and normalises; smoothing
    is not repeated. Replicas where the statistic is not finite (an emptied region) are left out; NaN if more than half
    are, or for a single group. Of G groups replicas have (G-1)/G of the variance, which is made good.
    """
    table, count = bootstrapped(statistic, weights, groups, replicas=replicas, seed=seed)
    if len(table) < 2 or count < 2:
        unknown = np.full(np.shape(statistic(weights)), np.nan)[()]
        return unknown, unknown
    finite = np.isfinite(table)
    enough = finite.sum(0) >= max(2, replicas / 2)
    kept = finite.sum(0).clip(2)
    filled = np.where(finite, table, 0.0)
    mean = filled.sum(0) / kept
    spread = np.sqrt((np.where(finite, table - mean, 0.0) ** 2).sum(0) / (kept - 1) * count / (count - 1))
    return np.where(enough, mean, np.nan)[()], np.where(enough, spread, np.nan)[()]


def autocorrelation_time(series: ArrayLike, angle: bool = False) -> float:
    """Frames an independent sample costs in a stationary series: 1 + 2 sum_t rho(t), at least 1.

    The sum ends where Geyer's sums of neighbouring pairs, made monotone, reach zero (initial monotone sequence; Geyer,
    Stat. Sci. 7 (1992) 473), so n / time is the effective number of frames. A series that never left a basin gives the
    time within that basin: too small, and nothing in the series can tell.

    Args:
        series: (n,) or (n, k), equally spaced in time; columns are pooled by their variance.
        angle: values are angles in radians, taken as unit vectors.

    Raises:
        InputError: fewer than 4 frames, or a value that is not finite.
    """
    x = np.asarray(series, dtype=float)
    x = x.reshape(len(x), -1)
    if len(x) < 4 or not np.isfinite(x).all():
        raise InputError(
            f"{len(x)} frames, {int((~np.isfinite(x)).sum())} values not finite",
            where="autocorrelation_time",
            expected="at least 4 frames, all finite",
        )
    if angle:
        x = np.concatenate([np.cos(x), np.sin(x)], axis=1)
    n, scale = len(x), np.abs(x).max()
    x = x - x.mean(0)
    spectrum = np.abs(np.fft.rfft(x, 2 * n, axis=0)) ** 2
    covariance = np.fft.irfft(spectrum, axis=0)[:n].sum(1)
    if covariance[0] <= n * (4 * np.finfo(float).eps * scale) ** 2:
        return float(n)  # it never moved: one sample
    rho = covariance / covariance[0]
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(1)
    end = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
    return float(np.clip(2 * np.minimum.accumulate(pairs[:end]).sum() - 1, 1.0, n))


def blocks(count: int, length: float) -> np.ndarray:
    """Group labels (count,) of consecutive frames in blocks of at least `length`, for errors of correlated series.

    Blocks of several autocorrelation times are nearly independent; at least two are made.
    """
    return np.arange(count) * max(2, int(count / max(length, 1.0))) // max(count, 1)


def _unlike(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Which samples (n,) of those that are `used` have another value than the most common one, but for rounding."""
    ordered = np.sort(values[used])
    spread = ordered[-1] - ordered[0]
    if spread <= ROUNDING * np.abs(ordered).max():
        return np.zeros(len(values), dtype=bool)
    width = SAME * spread
    alike = np.searchsorted(ordered, ordered + width, side="right") - np.arange(len(ordered))
    low = ordered[int(np.argmax(alike))]
    return used & ((values < low) | (values > low + width))


def _directions(angles: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean directions (k,) of angles (n, k), and the linear terms (n, k) whose mean moves them."""
    resultant = weights @ np.exp(1j * angles)
    mean = np.angle(resultant)
    return mean, np.sin(angles - mean) / np.maximum(np.abs(resultant), np.finfo(float).tiny)


def _directed(turned: np.ndarray, weights: np.ndarray, groups: np.ndarray | None) -> bool:
    """Whether angles (n, k) about their mean directions have one, each column."""
    along, across = np.cos(turned), np.sin(turned)
    length = weights @ along
    noise = [delta_error(weights[:, None] * (part - weights @ part), groups) for part in (along, across)]
    return bool((length > DIRECTED * np.maximum(*noise)).all())
