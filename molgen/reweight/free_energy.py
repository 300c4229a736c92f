"""Free energies of weighted samples: surfaces over collective variables, and differences between regions.

A surface is a weighted histogram, F = -kT ln(share of a bin / its size), its lowest bin at zero. It holds whatever
Jacobian the variables bring: two free atoms have F = -2 kT ln r in their distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError, number_pair
from molgen.reweight.estimate import Estimate, bootstrap, delta_error, few_groups, lacking
from molgen.reweight.importance import cleaned, khat, khat_threshold, region_khat
from molgen.units import KB
from molgen.variables import wrapped

FEW = 5  # samples (groups) of a bin, with fewer of which its error would come out two to three times too small
ALIKE = "the same samples lie in both regions"


@dataclass(frozen=True, eq=False)
class CVValues:
    """Values of a collective variable on every sample.

    Attributes:
        name: e.g. "phi 1".
        values: (n,) in `unit`; may be NaN where the weight is zero.
        unit: "A", "rad" or "" for a bare number.
        period: in `unit`, None where not periodic.
    """

    name: str
    values: np.ndarray
    unit: str = ""
    period: float | None = None

    def wrapped(self, low: float) -> np.ndarray:
        """Values (n,), those of a periodic variable moved into [low, low + period)."""
        values = np.asarray(self.values, dtype=float)
        return values if self.period is None else wrapped(values, low, self.period)


@dataclass(frozen=True, eq=False, repr=False)
class FES:
    """Free-energy surface on a grid of one or more collective variables.

    Attributes:
        names, units, periods: of each collective variable.
        edges: bin edges of each, in its unit.
        free_energy: eV, shape of the grid; lowest bin 0, inf where no sample fell.
        error: standard error in eV of -kT ln(share) of each bin, by itself; inf with fewer than 5 samples (groups of
            them); above a k-hat of 0.5 a lower bound, above 0.7 without meaning. For the difference of two regions ask
            `Ensemble.free_energy`, which knows how they vary together.
        probability: share of all weight in each bin; the sum is below 1 by what lies outside the grid.
        counts: samples with a weight above zero in each bin.
        temperature: K.
        khat, reliable: of the weights; with fewer than 25 samples on the grid, or groups of them that count, it is not
            reliable.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    periods: tuple[float | None, ...]
    edges: tuple[np.ndarray, ...]
    free_energy: np.ndarray
    error: np.ndarray
    probability: np.ndarray
    counts: np.ndarray
    temperature: float
    khat: float
    reliable: bool

    def __repr__(self) -> str:
        grid, visited = " x ".join(map(str, self.counts.shape)), np.count_nonzero(self.counts)
        judged = f"{'reliable' if self.reliable else 'not reliable'}: k-hat {self.khat:.2f}"
        return f"FES({', '.join(self.names)}: {visited} of {grid} bins visited, {self.temperature:g} K, {judged})"

    @property
    def kt(self) -> float:
        """Thermal energy, eV."""
        return KB * self.temperature

    @property
    def centres(self) -> tuple[np.ndarray, ...]:
        """Bin centres of each collective variable."""
        return tuple((e[1:] + e[:-1]) / 2 for e in self.edges)


def histogram_fes(
    variables: Sequence[CVValues],
    log_weights: ArrayLike,
    weights: np.ndarray,
    temperature: float,
    *,
    bins: int | Sequence[int] | Sequence[np.ndarray] = 50,
    ranges: Sequence[tuple[float, float] | None] | None = None,
    groups: np.ndarray | None = None,
    replicas: int = 0,
    seed: int = 0,
) -> FES:
    """Free-energy surface by a weighted histogram.

    Args:
        variables: one or more collective variables of n samples.
        log_weights: raw log-weights (n,), for k-hat.
        weights: normalised weights (n,) to count with.
        bins: number of bins for all or for each variable, or the edges of each.
        ranges: (low, high) of each variable in its unit; by default a whole period centred on 0, or the samples' range.
        groups: labels (n,) of draws that depend on each other.
        replicas: of the bootstrap that gives the errors; 0 for the delta method.

    Raises:
        InputError: no variable, edges that do not increase, or no range because no sample has a weight.
    """
    used = weights > 0
    edges = _all_edges(variables, bins, ranges, used)
    shape = tuple(len(e) - 1 for e in edges)
    flat = bin_indices(variables, edges)
    inside = used & (flat >= 0)
    flat, kept = flat[inside], weights[inside]
    size = int(np.prod(shape))
    share = np.bincount(flat, kept, size)
    kt = KB * temperature
    labels = np.arange(len(weights)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if replicas:
        _, spread = bootstrap(
            lambda w: _log_or_nan(np.bincount(flat, w[inside], size)), weights, groups, replicas=replicas, seed=seed
        )
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = _share_error(flat, kept, share, labels[inside], weights, labels) / share
    independent = np.bincount(np.unique(labels[inside] * size + flat) % size, minlength=size)
    known = (independent >= FEW) & ((spread > 0) | (share >= 0.5))  # a weight may be so small that its square is none
    volume = np.ones(shape)
    for axis, e in enumerate(edges):
        volume = volume * np.diff(e).reshape([-1 if a == axis else 1 for a in range(len(edges))])
    with np.errstate(divide="ignore"):
        free = -kt * np.log(share.reshape(shape) / volume)
    if np.isfinite(free).any():
        free = free - free.min()
    k = khat(log_weights)
    return FES(
        names=tuple(v.name for v in variables),
        units=tuple(v.unit for v in variables),
        periods=tuple(v.period for v in variables),
        edges=edges,
        free_energy=free,
        error=np.where(known, kt * spread, np.inf).reshape(shape),
        probability=share.reshape(shape),
        counts=np.bincount(flat, minlength=size).reshape(shape),
        temperature=temperature,
        khat=k,
        reliable=bool(
            share.any()
            and k <= khat_threshold(int(np.isfinite(cleaned(log_weights)).sum()))
            and not few_groups(np.where(inside, weights, 0.0), groups)
        ),
    )


def bin_indices(variables: Sequence[CVValues], edges: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) flat index of the bin of each sample, -1 outside the grid; the last bin is closed, as in np.histogram."""
    flat, inside = 0, True
    for variable, e in zip(variables, edges, strict=True):
        values = variable.wrapped(e[0])
        index = np.searchsorted(e, values, side="right") - 1
        index[values == e[-1]] = len(e) - 2
        inside = inside & (index >= 0) & (index < len(e) - 1) & np.isfinite(values)
        flat = flat * (len(e) - 1) + np.clip(index, 0, len(e) - 2)
    return np.where(inside, flat, -1)


def free_energy_difference(
    in_a: np.ndarray,
    in_b: np.ndarray,
    log_weights: ArrayLike,
    weights: np.ndarray,
    temperature: float,
    *,
    groups: np.ndarray | None = None,
    replicas: int = 0,
    seed: int = 0,
) -> Estimate:
    """F(b) - F(a) = -kT ln(P(b)/P(a)) in eV, with the standard error of the ratio (the two vary together).

    k-hat is the largest of those of all weights and of the weights inside each region: a region with fewer than 25
    samples has no k-hat and is not reliable, nor is one with fewer than 25 groups of samples that count. Regions may
    overlap; fewer than 25 samples in one of them alone are too few as well, and the error is NaN where there is none,
    for the rest of a region that no sample met may have a share of 3/n.

    Args:
        in_a, in_b: boolean (n,), which samples lie in each region.
        replicas: of the bootstrap that gives the error; 0 for the delta method.
    """
    log_w, kt = cleaned(log_weights), KB * temperature
    share_a, share_b = weights[in_a].sum(), weights[in_b].sum()
    parts = (log_w, log_w[in_a], log_w[in_b])
    shapes = [khat(parts[0]), *map(region_khat, parts[1:])]
    limits = [khat_threshold(int(np.isfinite(part).sum())) for part in parts]
    apart = in_a != in_b
    few = any(few_groups(np.where(part, weights, 0.0), groups) for part in (in_a, in_b, apart))
    if not share_a or not share_b:
        value = np.nan if share_a == share_b else (np.inf if share_a else -np.inf)
        return Estimate(value, np.inf, np.inf, False, "eV", "a region without samples")
    if replicas:
        _, error = bootstrap(
            lambda w: _log_or_nan(w[in_b].sum()) - _log_or_nan(w[in_a].sum()),
            weights,
            groups,
            replicas=replicas,
            seed=seed,
        )
    else:
        error = delta_error(weights * (in_b / share_b - in_a / share_a), groups)
    alike = not weights[apart].any()
    value, error = kt * np.log(share_a / share_b), np.nan if alike else kt * error
    why = ALIKE if alike else lacking(shapes, limits, few=few, known=bool(np.isfinite(error)))
    return Estimate(float(value), float(error), max(shapes), not why, "eV", why)


def _all_edges(variables: Sequence[CVValues], bins: Any, ranges: Any, used: np.ndarray) -> tuple[np.ndarray, ...]:
    """Edges (bins + 1,) for each variable, from `bins` and `ranges` of `histogram_fes`; `used` (n,): with a weight."""
    if not variables:
        raise InputError("no collective variable", where="fes", expected="one or more")
    one = len(variables) == 1  # its edges and its range may be given as they are
    alone = one and np.ndim(bins) == 1 and len(bins) > 2 and all(np.ndim(edge) == 0 for edge in bins)
    many = [bins] * len(variables) if bins is None or np.isscalar(bins) or alone else list(bins)
    if np.isscalar(ranges) or (one and ranges is not None and all(map(np.isscalar, ranges))):
        ranges = [ranges]
    limits = [None] * len(variables) if ranges is None else list(ranges)
    if not len(many) == len(limits) == len(variables):
        raise InputError(
            f"{len(many)} bins and {len(limits)} ranges for {len(variables)} collective variables",
            where="fes",
            expected="one for each variable",
        )
    return tuple(_edges(*each, used) for each in zip(variables, many, limits, strict=True))


def _edges(variable: CVValues, bins: Any, limits: Any, used: np.ndarray) -> np.ndarray:
    if np.ndim(bins):
        edges = np.asarray(bins, dtype=float)
    else:
        if not (isinstance(bins, (int, float, np.integer, np.floating)) and float(bins).is_integer() and bins >= 1):
            raise InputError(f"bins = {bins!r}", where=variable.name, expected="a whole number, 1 or more, or edges")
        if limits is None and variable.period is not None:
            limits = (-variable.period / 2, variable.period / 2)
        if limits is None:
            values = np.asarray(variable.values, dtype=float)[used]
            values = values[np.isfinite(values)]
            if not len(values):
                raise InputError("no sample has a weight, so there is no range", where=variable.name, remedy="give one")
            low, high = float(values.min()), float(values.max())
            limits = (low, high) if high > low else (low - 0.5, high + 0.5)
        edges = np.linspace(*number_pair(limits, f"range of {variable.name}"), int(bins) + 1)
    if variable.period is not None and edges[-1] - edges[0] > variable.period * (1 + 1e-9):
        raise InputError(
            f"bins from {edges[0]:g} to {edges[-1]:g} {variable.unit}, more than a whole turn", where=variable.name,
            expected=f"at most {variable.period:.4g} {variable.unit}",
        )  # fmt: skip
    if len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise InputError(
            f"bin edges {edges} do not increase", where=variable.name, expected="low < high, 1 bin or more"
        )
    return edges


def _share_error(flat, kept, share, labels, all_weights, all_labels) -> np.ndarray:
    """Delta-method error of each bin's share: sum_g (P_gb - p_b W_g)^2 G/(G-1), P_gb the weight of group g in bin b."""
    group = np.bincount(all_labels, all_weights)
    if len(group) < 2:
        return np.full(len(share), np.nan)
    cells, inverse = np.unique(labels * len(share) + flat, return_inverse=True)
    in_cell = np.bincount(inverse, kept, len(cells)) if len(cells) else np.zeros(0)
    bin_of, group_of = cells % len(share), cells // len(share)
    squares = np.bincount(bin_of, in_cell**2, len(share))
    cross = np.bincount(bin_of, in_cell * group[group_of], len(share))
    variance = squares - 2 * share * cross + share**2 * (group**2).sum()
    return np.sqrt(np.maximum(variance, 0.0) * len(group) / (len(group) - 1))


def _log_or_nan(share) -> np.ndarray:
    with np.errstate(divide="ignore"):
        logs = np.log(share)
    return np.where(np.isfinite(logs), logs, np.nan)
