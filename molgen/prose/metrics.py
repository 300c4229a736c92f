"""Distances between two samples, each possibly weighted: Wasserstein-2 on a line, on a torus and in a plane; the
Jensen-Shannon divergence of two angles; the slow coordinates that a trajectory defines.

All of them are positive for two finite samples of the same distribution, the more so the fewer the points: a distance
means something only beside its floor, that of two samples of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from molgen.errors import InputError, MolgenError

MOST_POINTS = 10_000  # 10,000 x 10,000 takes 60 s and 5 GB, 10,000 x 2,500 9 s and 1.5 GB (one core)
BINS = 36  # an angle, 10 degrees each


def w2_line(
    a: ArrayLike, b: ArrayLike, weights_a: ArrayLike | None = None, weights_b: ArrayLike | None = None
) -> float:
    """Wasserstein-2 distance of numbers a (n,) and b (m,), exact, in their unit.

    Args:
        weights_a, weights_b: (n,) and (m,), not negative; equal when not given. Points of zero weight may be anything.

    Raises:
        InputError: shapes that do not agree, no weight, or a value with a weight that is not finite.
    """
    import ot

    x, u = _sample(a, weights_a, 1)
    y, v = _sample(b, weights_b, 1)
    return float(np.sqrt(max(ot.wasserstein_1d(x, y, u, v, p=2), 0.0)))


def w2_torus(
    a: ArrayLike, b: ArrayLike, weights_a: ArrayLike | None = None, weights_b: ArrayLike | None = None
) -> float:
    """Wasserstein-2 distance of angles a (n, d) and b (m, d), radians: the square root of the exact transport cost.

    The cost of a pair is the sum over the d angles of the squared difference, wrapped into (-pi, pi]; network simplex.
    The T-W2 of Prose (arXiv 2508.18175) with all phi and psi. Memory: 50 bytes a pair of points.
    """
    return _transport(a, b, weights_a, weights_b, wrapped=True)


def w2(a: ArrayLike, b: ArrayLike, weights_a: ArrayLike | None = None, weights_b: ArrayLike | None = None) -> float:
    """Wasserstein-2 distance of points a (n, d) and b (m, d) in Euclidean space; exact, otherwise as `w2_torus`."""
    return _transport(a, b, weights_a, weights_b, wrapped=False)


def jensen_shannon(
    a: ArrayLike,
    b: ArrayLike,
    weights_a: ArrayLike | None = None,
    weights_b: ArrayLike | None = None,
    bins: int = BINS,
) -> float:
    """Jensen-Shannon divergence in nats, 0 to ln 2, of histograms of angles a (n, d) and b (m, d), `bins` a full turn.

    JS = (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2 (Lin, IEEE Trans. Inf. Theory 37 (1991) 145); no pseudocounts.
    Two samples of n points of one distribution over B occupied bins give about B / 4n.
    """
    x, u = _sample(a, weights_a, 2)
    y, v = _sample(b, weights_b, 2)
    p, q = (_histogram(points, weights, bins) for points, weights in ((x, u), (y, v)))
    mean = (p + q) / 2
    # scipy's jensenshannon is its square root, and nan where rounding makes the sum less than 0
    return max(float(rel_entr(p, mean).sum() + rel_entr(q, mean).sum()) / 2, 0.0)


def slow_coordinates(trajectories: Sequence[ArrayLike], lag: int, dim: int = 2) -> Callable[[ArrayLike], np.ndarray]:
    """The function (n, f) -> (n, dim) from features to the slowest linear combinations (TICA) of trajectories (m, f).

    Each has mean 0 and variance 1 over the trajectories. Source: Perez-Hernandez et al., J. Chem. Phys. 139 (2013)
    015102, as in deeptime, which drops directions with less than 1e-6 of variance.

    Args:
        lag: frames.

    Raises:
        InputError: no trajectory longer than the lag, or fewer than `dim` directions.
    """
    from deeptime.decomposition import TICA

    runs = [np.asarray(t, dtype=float) for t in trajectories]
    if not any(len(t) > lag for t in runs):
        raise InputError(
            f"trajectories of {[len(t) for t in runs]} frames",
            where=f"TICA with a lag of {lag}",
            expected="longer ones",
        )
    estimator = TICA(lagtime=lag, dim=dim, scaling=None)
    model = estimator.fit_from_timeseries([t for t in runs if len(t) > lag]).fetch_model()
    frames = np.concatenate(runs)
    found = np.asarray(model.transform(frames))
    if found.shape[1] < dim:
        raise InputError(f"{found.shape[1]} slow coordinates", where="TICA", expected=f"features with {dim} directions")
    centre, spread = found.mean(0), found.std(0)
    return lambda features: (np.asarray(model.transform(np.asarray(features, dtype=float))) - centre) / spread


def _sample(points: ArrayLike, weights: ArrayLike | None, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Points with a weight, and their weights, which sum to 1."""
    x = np.asarray(points, dtype=float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=float)
    if x.ndim != axes or w.shape != x.shape[:1]:
        raise InputError(f"points of shape {x.shape}, weights of shape {w.shape}", expected="one weight a point")
    if not (w >= 0).all() or not 0 < w.sum() < np.inf:
        raise InputError("the weights do not make a distribution", expected="none negative, some above zero")
    x, w = x[w > 0], w[w > 0]
    if not np.isfinite(x).all():
        raise InputError("a point with a weight is not finite", expected="finite coordinates, or a weight of zero")
    return x, w / w.sum()


def _transport(a: Any, b: Any, weights_a: Any, weights_b: Any, wrapped: bool) -> float:
    import ot

    x, u = _sample(a, weights_a, 2)
    y, v = _sample(b, weights_b, 2)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"points in {x.shape[1]} and in {y.shape[1]} dimensions", expected="the same space")
    if len(x) * len(y) > MOST_POINTS**2:
        raise InputError(
            f"{len(x)} x {len(y)} points", expected=f"at most {MOST_POINTS}^2 pairs", remedy="take a subsample"
        )
    cost = np.zeros((len(x), len(y)))
    for i, j in zip(x.T, y.T, strict=True):
        difference = np.abs(i[:, None] - j)
        if wrapped:
            difference %= 2 * np.pi
            np.minimum(difference, 2 * np.pi - difference, out=difference)
        cost += np.square(difference, out=difference)
    value, log = ot.emd2(u, v, cost, numItermax=100_000_000, log=True)
    if log["warning"]:
        raise MolgenError(f"optimal transport did not finish: {log['warning']}", where=f"{len(x)} x {len(y)} points")
    return float(np.sqrt(max(value, 0.0)))


def _histogram(angles: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """(bins^d,) share of the weight in each cell of the torus."""
    cells = np.floor((angles % (2 * np.pi)) / (2 * np.pi) * bins).astype(np.int64) % bins
    index = np.ravel_multi_index(tuple(cells.T), (bins,) * angles.shape[1])
    return np.bincount(index, weights, minlength=bins ** angles.shape[1])
