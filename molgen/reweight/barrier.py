"""Free-energy barriers along a reaction coordinate: tops of a smooth curve (`molgen.reweight.profile`).

`find_barrier` gives them in a form that does not depend on the scale of the coordinate. With the basins s < s*
(reactant) and s > s* (product), the rate of transition-state theory through the surface s* is

    k = <|ds/dt| delta(s - s*)> / (2 P(s < s*)) = sqrt(kT/2 pi) <|D s| delta(s - s*)> / P(s < s*),

|D s|^2 = sum_i |ds/dx_i|^2 / m_i, and the barrier is what Eyring's k = (kT/h) exp(-A/kT) makes of it:

    A(s*) = F(s*) - F_R,   F(s) = -kT ln <l delta(s - s*)>,   F_R = -kT ln P(s < s*),   l = h |D s| / sqrt(2 pi kT):

minus kT ln of the density on the surface, made a bare number by the thermal wavelength l of s, over the partition
function of the basin (Dietschreit, Diestler, Hulm, Ochsenfeld, Gomez-Bombarelli, J. Chem. Phys. 157 (2022) 084113). s*
is where A is largest (variational). Nuclei are classical; recrossing and tunnelling are left out.

`profile_barrier` gives what is read off a profile F(x) = -kT ln p(x): its top above its two minima, which ignores the
width of the wells; for their populations use `Ensemble.free_energy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from molgen.errors import InputError, number_pair
from molgen.reweight.estimate import Estimate, bootstrapped, few_groups, lacking
from molgen.reweight.free_energy import CVValues
from molgen.reweight.importance import cleaned, khat_threshold, region_khat
from molgen.reweight.profile import FINE, SmoothDensity
from molgen.units import KB, PLANCK

SIDES = ("forward", "reverse", "reaction", "mean")
STRAYS, LEAST_STRAYS = 1e-3, 3  # of the samples at each end: one far away would spread the knots over the emptiness
FAR, LOST = 5.0, 0.2  # errors beyond which a redraw counts as no farther; share without a height that is too many
GAP, RINGS, MOVES = "no sample on the top", "the smooth curve overshoots the samples", "finer knots change the curve"
NO_TOP = "no top between the two places: the profile is highest at one of them"
KNOTS = 20  # intervals of the spline in `limits`, by default 0 to 1
FINER, APART = 2, 3.0  # halvings of all knot intervals; errors of what they change by which it is more than noise
COARSE, HIGH = 24, 1.0  # intervals of a first look at all basins; kT that a top between two is above either
WINDOW = 1.5  # intervals on each side of the top, in which replicas look for it and its k-hat is that of the samples


@dataclass(frozen=True)
class Barrier:
    """A barrier between two basins, eV.

    Attributes:
        forward, reverse: above the basins below and above the surface. reaction: F(product) - F(reactant).
        mean: of forward and reverse.
        place: s*. samples: with a weight, around it.
    """

    forward: Estimate
    reverse: Estimate
    reaction: Estimate
    mean: Estimate
    place: float
    samples: int


def find_barrier(
    s: np.ndarray,
    slopes: np.ndarray,
    log_weights: np.ndarray,
    weights: np.ndarray,
    temperature: float,
    *,
    near: float,
    limits: tuple[float, float] = (0.0, 1.0),
    knots: int = KNOTS,
    groups: np.ndarray | None = None,
    replicas: int = 200,
    seed: int = 0,
) -> Barrier:
    """The highest surface between the basins on both sides of `near`.

    Errors are those of a bootstrap of everything, the curve and s* included. k-hat is the largest of those of the two
    basins and of the samples around the top; values are inf where nothing lies there.

    Args:
        s: (n,) reaction coordinate; may be NaN where the weight is zero.
        slopes: (n,) |D s|, in the unit of s per Angstrom sqrt(amu).
        log_weights: (n,) raw. weights: (n,) normalised, to average with.
        near: s of the saddle. limits: of the curve, in s. knots: intervals of its spline.
        groups: (n,) labels of samples that depend on each other.

    Raises:
        InputError: no weight on one side of the barrier.
    """
    kt = KB * temperature
    used = (weights > 0) & np.isfinite(s)
    s = np.where(used, s, np.nan)
    for name, side in (("below", s < near), ("above", s > near)):
        if not side.any():
            raise InputError(f"no sample with a weight {name} s = {near:.2f}", where="barrier", expected="both basins")
    lengths = np.where(used, slopes, 0.0) * PLANCK / np.sqrt(2 * np.pi * kt)
    density = SmoothDensity.of(s, weights * lengths, limits, knots)
    surface = -density.log_density()
    middle = int(np.clip(np.searchsorted(density.centres, near), FINE, len(surface) - FINE))
    left, right = int(np.argmin(surface[:middle])), middle + int(np.argmin(surface[middle:]))
    first = left + int(np.argmax(surface[left : right + 1]))
    around = slice(max(left, first - round(WINDOW * FINE)), min(right, first + round(WINDOW * FINE)) + 1)

    def figures(w: np.ndarray) -> np.ndarray:
        level = density.log_density(w * lengths)
        place, height = _summit(density.centres[around], -level[around])
        if density.rings(w * lengths, level, around):
            return np.array([np.nan, np.nan, np.nan, place])
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array([height, *-np.log([w[s < place].sum(), w[s >= place].sum()]), place])

    place = figures(weights)[-1]
    top = np.abs(s - place) <= WINDOW * FINE * density.step[0]
    heights = _heights(figures, kt)
    values, (_, errors, lost) = heights(weights), _spread(heights, weights, groups, replicas, seed)
    why = RINGS if np.isnan(values).any() else _losing(lost.max())
    parts = [top, s < place, s >= place]
    return _barrier(np.where(np.isnan(values), np.inf, values), errors, place, parts, log_weights, weights, groups, why)


def profile_barrier(
    variable: CVValues,
    log_weights: np.ndarray,
    weights: np.ndarray,
    temperature: float,
    *,
    between: tuple[float, float],
    limits: tuple[float, float] | None = None,
    width: float | None = None,
    groups: np.ndarray | None = None,
    replicas: int = 200,
    seed: int = 0,
) -> Barrier:
    """The top of the profile F(x) = -kT ln p(x) between two places, above its lowest points on both sides.

    Depends on the scale of the variable, unlike `find_barrier`. The curve is refined where a well is narrow, and
    everywhere while that moves a height by more than `APART` errors. Errors are those of a bootstrap of everything, and
    of what finer knots still change; not reliable where they change too much, nor where the curve is highest at one of
    the places, which then lie on one slope. Heights are those of the curve less the bias that the bootstrap finds: of a
    noisy curve the highest point is too high. k-hat is the largest of those of the samples around the top and the
    minima; values are inf where nothing lies on the top.

    Args:
        variable: of n samples. log_weights: (n,) raw. weights: (n,) normalised.
        between: a place in each basin, low < high, in the unit of the variable; not reliable without a top between.
        limits: of the curve: the two basins and nothing else; None: as far as the next tops beyond them that are
            `HIGH` kT above both of their sides, at most a whole period around the middle, or the range of the samples
            with a weight, a thousandth left out at each end.
        width: between knots of the spline to begin with; None: a fifteenth of `limits`.
        groups: (n,) labels of samples that depend on each other.

    Raises:
        InputError: places that are not in order within the limits, limits beyond a period, or no sample with a weight
            in them.
    """
    where = f"barrier along {variable.name!r}"
    a, b = number_pair(between, f"{where}, between")
    low, high = _limits(variable, weights, a, b) if limits is None else number_pair(limits, f"{where}, limits")
    if variable.period is not None and high - low > variable.period * (1 + 1e-9):
        raise InputError(
            f"limits {low:g} to {high:g}, more than a whole turn", where=where,
            expected=f"at most {variable.period:.4g} {variable.unit}",
        )  # fmt: skip
    fitting, width = width is None, (high - low) / 15 if width is None else width
    if not low <= a < b <= high or not width > 0:
        raise InputError(
            f"between {a:g} and {b:g}, where samples reach from {low:g} to {high:g}" if limits is None and width > 0
            else f"between {a:g} and {b:g} on {low:g} to {high:g}, {width:g} wide", where=where,
            expected="low <= first < second <= high, a width above 0",
        )  # fmt: skip
    if limits is None:
        low, high = _alone(variable.wrapped(low), weights, (low, high), (a, b))
        width = (high - low) / 15 if fitting else width
    x, intervals = variable.wrapped(low), max(4, round((high - low) / width))
    density = SmoothDensity.of(x, weights, _occupied(x[weights > 0], low, high, a, b), intervals)
    if not ((density.centres >= a) & (density.centres <= b)).any():
        raise InputError(f"{a:g} and {b:g} are less than a step apart", where=where, expected="a place in each basin")
    finer = density.refined(x, groups)
    density = density if finer.rings() and not density.rings() else finer
    values, errors, places, why = _settled(density, x, (a, b), weights, KB * temperature, groups, replicas, seed)
    parts = [np.abs(x - spot) <= WINDOW * (high - low) / intervals for spot in places]
    if not np.isfinite(values).all():
        values, why = np.full(4, np.inf), RINGS if density.rings() else GAP
    return _barrier(values, errors, places[0], parts, log_weights, weights, groups, why)


def _alone(
    x: np.ndarray, weights: np.ndarray, limits: tuple[float, float], between: tuple[float, float]
) -> tuple[float, float]:
    """Those of `limits` that hold the two basins and no other."""
    density = SmoothDensity.of(x, weights, _occupied(x[weights > 0], *limits, *between), COARSE)
    free, centres = -density.log_density(), density.centres
    ends = []
    for start, step, limit in zip(between, (-1, 1), limits, strict=True):
        way = np.flatnonzero(centres <= start)[::-1] if step < 0 else np.flatnonzero(centres >= start)
        lowest, top = np.inf, None
        for k in way:
            lowest = min(lowest, free[k])
            if top is None or free[k] > free[top]:
                top = k if free[k] > lowest + HIGH else None
            elif free[k] < free[top] - HIGH:
                limit = float(centres[top])
                break
        ends.append(limit)
    return ends[0], ends[1]


def _occupied(x: np.ndarray, low: float, high: float, a: float, b: float) -> tuple[float, float]:
    """Limits without what lies beyond the samples, where a density that ends in a step would make the curve ring, and
    without their `STRAYS`: a curve that begins at a lone sample has nothing to hold it in a redraw without that."""
    first, last = _ends(x[(x >= low) & (x <= high)])
    return (low, high) if np.isnan(first) else (max(low, min(first, a)), min(high, max(last, b)))


def _ends(x: np.ndarray) -> tuple[float, float]:
    """Range of samples (n,) without `STRAYS`, `LEAST_STRAYS` or more, at each end; NaN of none."""
    if not len(x):
        return np.nan, np.nan
    out = min(max(LEAST_STRAYS, int(STRAYS * len(x))), (len(x) - 1) // 2)
    ordered = np.sort(x)
    return float(ordered[out]), float(ordered[-1 - out])


def _settled(
    curve: SmoothDensity,
    x: np.ndarray,
    between: tuple[float, float],
    weights: np.ndarray,
    kt: float,
    groups: np.ndarray | None,
    replicas: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, list[float], str]:
    """Heights (4,) of a curve so fine that a finer one agrees, their errors, its top and minima, what they lack."""

    def drawn(parts: list[SmoothDensity]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Of heights and of the last less the first (P + 1, 4): values, bias, error; share of redraws without any."""

        def statistic(w: np.ndarray) -> np.ndarray:
            rows = [_heights(lambda v, part=part: _profile_figures(part, between, v), kt)(w) for part in parts]
            with np.errstate(invalid="ignore"):
                return np.array([*rows, rows[-1] - rows[0]])

        def whole(w: np.ndarray) -> np.ndarray:
            drawn = statistic(w)  # beside a gap at the top the minima mean nothing either
            return np.where(np.isfinite(drawn).all(1, keepdims=True), drawn, np.nan)

        found = statistic(weights)
        middle, error, lost = _spread(whole, weights, groups, replicas, seed)
        return found, middle - found, error, float(lost[0].max())

    for step in range(FINER + 1):
        finer = curve.halved(x)
        found, bias, error, lost = drawn([curve] if finer is None else [curve, finer])
        moved, noise = found[-1] - bias[-1], error[-1]
        known = finer is not None and bool(np.isfinite([found[1], error[1], noise]).all())
        agree = not known or bool((np.abs(moved) <= APART * noise).all())
        if finer is None or agree or step == FINER:
            break
        curve = finer
    # of what the finer curve moves, the noise is in the error already
    more = np.maximum(moved**2 - noise**2, 0.0) if known else np.zeros(4)
    place = _profile_figures(curve, between, weights)[-1]
    free, centres = -curve.log_density(), curve.centres
    wells = [float(centres[side][free[side].argmin()]) if side.any() else place
             for side in (centres < place, centres >= place)]  # fmt: skip
    values = found[0] - np.where(np.isfinite(bias[0]), bias[0], 0.0)
    inner = centres[(centres >= between[0]) & (centres <= between[1])]
    why = NO_TOP if place in (inner[0], inner[-1]) else _losing(lost) if agree else MOVES
    return values, np.sqrt(error[0] ** 2 + more), [place, *wells], why


def _spread(
    statistic: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    groups: np.ndarray | None,
    replicas: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median, standard error and the share that is not finite of `replicas` redraws of a statistic, each of its shape.

    A redraw beyond `FAR` errors counts as one at that distance: one curve in a hundred may run away, unseen by `rings`,
    and would be all that a mean and a variance show. NaN as in `bootstrap`.
    """
    table, count = bootstrapped(statistic, weights, groups, replicas=replicas, seed=seed)
    finite = np.isfinite(table)
    enough = (finite.sum(0) >= max(2, replicas / 2)) & (count > 1)
    kept = np.where(finite | ~enough, np.where(enough, table, 0.0), np.nan)
    low, middle, high = np.nanquantile(kept, (0.1587, 0.5, 0.8413), axis=0)
    reach = FAR * (high - low) / 2
    error = np.nanstd(np.clip(kept, middle - reach, middle + reach), axis=0, ddof=1)
    error *= np.sqrt(count / max(count - 1, 1))
    unknown = np.where(enough, 0.0, np.nan)
    return middle + unknown, error + unknown, 1 - finite.mean(0)


def _losing(lost: float) -> str:
    """What a height lacks of which this share of the redraws tells nothing, in words."""
    return f"{lost:.0%} of the redraws for its error have no such height" if lost > LOST else ""


def _profile_figures(curve: SmoothDensity, between: tuple[float, float], weights: np.ndarray) -> np.ndarray:
    """Of a profile: top, left and right minimum, kT, and the place of the top; a top at an end has no minimum beside
    it, but infinity."""
    free, centres = -curve.log_density(weights), curve.centres
    if curve.rings(weights, -free):
        return np.array([np.nan, np.nan, np.nan, centres[np.argmax(free)]])
    inner = (centres >= between[0]) & (centres <= between[1])
    place, height = _summit(centres[inner], free[inner])
    wells = (free[centres < place].min(initial=np.inf), free[centres >= place].min(initial=np.inf))
    return np.array([height, *wells, place])


def _limits(variable: CVValues, weights: np.ndarray, a: float, b: float) -> tuple[float, float]:
    """A whole period around the middle of a and b, or the range of the samples without `STRAYS`, widened to a and b if
    samples lie beyond."""
    if variable.period is not None:
        return (a + b - variable.period) / 2, (a + b + variable.period) / 2
    seen = np.asarray(variable.values, dtype=float)[weights > 0]
    if not len(seen):
        return np.nan, np.nan
    low, high = _ends(seen)
    return float(max(seen.min(), min(low, a))), float(min(seen.max(), max(high, b)))


def _heights(figures: Callable[[np.ndarray], np.ndarray], kt: float) -> Callable[[np.ndarray], np.ndarray]:
    """Of weights, forward, reverse, reaction and mean (4,), eV, from `figures`: top, left, right in kT, and s*."""

    def heights(w: np.ndarray) -> np.ndarray:
        top, left, right, _ = figures(w)
        with np.errstate(invalid="ignore"):
            return kt * np.array([top - left, top - right, right - left, top - (left + right) / 2])

    return heights


def _barrier(
    values: np.ndarray,
    errors: np.ndarray,
    place: float,
    parts: list[np.ndarray],
    log_weights: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray | None,
    lacks: str = "",
) -> Barrier:
    """Of heights (4,), eV; `parts` (n,): samples whose k-hats and numbers count, the top's first; `lacks`: what else
    makes them not reliable, in words."""
    log_w, used = cleaned(log_weights), weights > 0
    tails = [log_w[part & used] for part in parts]
    shapes, limits = [region_khat(tail) for tail in tails], [khat_threshold(len(tail)) for tail in tails]
    few = any(few_groups(np.where(part, weights, 0.0), groups) for part in parts)
    errors, estimates = np.where(np.isfinite(values), errors, np.inf), []
    for value, error in zip(values, errors, strict=True):
        why = lacking(shapes, limits, few=few, known=bool(np.isfinite([error, values[0]]).all()))
        why = why or lacks
        estimates.append(Estimate(float(value), float(error), float(max(shapes)), not why, "eV", why))
    return Barrier(*estimates, place=float(place), samples=int((parts[0] & used).sum()))


def _summit(centres: np.ndarray, free: np.ndarray) -> tuple[float, float]:
    """Place and height of the highest point, by the parabola through it and its neighbours; inf where it is unknown."""
    if not np.isfinite(free).all():
        return float(centres[~np.isfinite(free)].mean()), np.inf
    at = int(np.argmax(free))
    if not 0 < at < len(free) - 1:
        return float(centres[at]), float(free[at])
    curve, slope, height = np.polyfit(centres[at - 1 : at + 2] - centres[at], free[at - 1 : at + 2], 2)
    shift = -slope / (2 * curve) if curve < 0 else 0.0
    return float(centres[at] + shift), float(height + slope * shift / 2)
