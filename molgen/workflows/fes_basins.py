"""What a surface is made of: basins, the barriers between them along one variable, and bins that no sample reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label as connected

from molgen.cvdiffusion.walls import Wall
from molgen.reweight.barrier import Barrier, profile_barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.estimate import NO_KHAT, Estimate
from molgen.reweight.free_energy import FES, bin_indices
from molgen.reweight.importance import LEAST_DRAWS
from molgen.units import shown_value
from molgen.variables import CV
from molgen.workflows.fes_grid import is_progress

NARROW = 0.5  # of the bins along one variable: fewer with samples are a run that stayed where it began
WORTH = 1e-3  # of the weight: basins with too few samples that hold less are strays
SHALLOW = 1.0  # kT: a basin with a lower way out belongs to its neighbour
NOISE = 3.0  # standard errors of the way out and the minimum, likewise
UNKNOWN = 1.0  # kT: error of a bin whose samples are too few to tell
REPLICAS = 100  # of the bootstrap
KNOTS = 2.0  # bins between knots of the smooth curve that barriers are read from
LOW = 8.0  # kT above the minimum: lower bins are compared between surfaces, and a surface should not stop beside one
SEEN, EXPECTED = 20, 10.0  # samples: bins of `SEEN` that promise `EXPECTED` in the next, which has none, lack a region


@dataclass(frozen=True)
class Basin:
    """A minimum of the surface and what drains into it.

    Attributes:
        minimum: values of the collective variables there. free_energy: of the basin against the first, eV.
        share: of the weight. samples: with a weight in it.
    """

    minimum: tuple[float, ...]
    free_energy: Estimate
    share: float
    samples: int


def basins(ensemble: Ensemble, fes: FES) -> list[Basin]:
    """Where the surface drains to, bin by bin; basins less than 1 kT deep, or than three times the errors of the bins
    that say so, are merged, with < 25 samples left out.

    The first stays whatever it holds, as the zero of the others; with < 25 samples it is not reliable.
    """
    label, owner, found = _owners(ensemble, fes)
    free = fes.free_energy.reshape(-1)
    centres = np.stack(np.meshgrid(*fes.centres, indexing="ij"), -1).reshape(-1, len(fes.edges))
    rows = []
    for at in found:
        inside = owner == at
        samples = int((inside & (ensemble.weights > 0)).sum())
        if samples < LEAST_DRAWS and rows:
            continue  # `untold`
        lowest = np.where(label.reshape(-1) == at, free, np.inf).argmin()
        enough = samples >= LEAST_DRAWS
        rows.append(
            Basin(
                minimum=tuple(map(float, centres[lowest])),
                free_energy=Estimate(0.0, 0.0, 0.0 if enough else np.inf, enough, "eV", "" if enough else NO_KHAT)
                if at == found[0]
                else ensemble.free_energy(owner == found[0], inside, replicas=REPLICAS),
                share=float(ensemble.weights[inside].sum()),
                samples=samples,
            )
        )  # fmt: skip
    return rows


def untold(ensemble: Ensemble, fes: FES) -> list[str]:
    """How much of the weight lies in basins with too few samples to be told, in words, where it is `WORTH` or more."""
    _, owner, found = _owners(ensemble, fes)
    parts = [(owner == at) & (ensemble.weights > 0) for at in found]
    few = [float(ensemble.weights[part].sum()) for part in parts if part.sum() < LEAST_DRAWS]
    if sum(few) < WORTH:
        return []
    count = "a basin with" if len(few) == 1 else f"{len(few)} basins with"
    have = "has" if len(few) == 1 else "have"
    return [f"{count} {sum(few):.1%} of the weight {have} too few samples to be told (fewer than {LEAST_DRAWS} each)"]


def _owners(ensemble: Ensemble, fes: FES) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Basin of each bin, and of each sample (n,), by the flat index of the minimum; these, of most weight first."""
    label = _drained(fes)
    flat = bin_indices(list(ensemble.cvs.values()), fes.edges)
    owner = np.where(flat >= 0, label.reshape(-1)[flat], -1)
    return label, owner, sorted(
        (int(at) for at in np.unique(label) if at >= 0), key=lambda at: -ensemble.weights[owner == at].sum()
    )  # fmt: skip


def barriers(ensemble: Ensemble, fes: FES, found: Sequence[Basin]) -> list[tuple[int, int, Barrier]]:
    """Of a surface along one variable: between each two neighbouring basins, their places in `found` and the barrier.

    Around a period, the last and the first are neighbours too.
    """
    if len(fes.edges) > 1 or len(found) < 2:
        return []
    edges, period = next(iter(fes.edges)), next(iter(fes.periods))
    variable, width = next(iter(ensemble.cvs.values())), KNOTS * (edges[1] - edges[0])
    order = sorted(range(len(found)), key=lambda k: found[k].minimum[0])
    line = [found[k].minimum[0] for k in order]
    if period is not None:  # once around, with what lies before and after
        order, line = [*order, order[0]], [line[-1] - period, *line, line[0] + period, line[1] + period]
    else:
        line = [edges[0], *line, edges[-1]]
    rows = []
    for k, (one, other) in enumerate(zip(order, order[1:], strict=False), start=1):
        before, low, high, after = line[k - 1 : k + 3]
        first = edges[0] if before == edges[0] else _highest(fes, before, low)
        last = edges[-1] if after == edges[-1] else _highest(fes, high, after)
        rows.append((one, other, profile_barrier(
            variable, ensemble.log_weights, ensemble.weights, ensemble.temperature, between=(low, high),
            limits=(first, last), width=width, groups=ensemble.groups, replicas=REPLICAS,
        )))  # fmt: skip
    return rows


def unvisited(fes: FES, walled: np.ndarray | None = None) -> list[str]:
    """What the surface may lack, in words: most of the range, along one variable; parts that no sample joins; edges
    where it stops although it is low.

    An edge is a bin without a sample beside three in a row, the nearest below `LOW` kT, whose numbers of samples,
    carried on as a line and as a parabola, both promise `EXPECTED` or more, unless it lies behind a wall.

    Args:
        walled: (shape of the grid) see `walled`.
    """
    notes = []
    seen = int((fes.counts > 0).sum())
    if seen < NARROW * fes.counts.size and fes.counts.ndim == 1:
        notes.append(
            f"samples lie in {seen} of {fes.counts.size} bins of the range: the bias has not grown over the rest, or "
            "no path leads there"
        )
    parts = _parts(fes)
    if len(parts) > 1:
        notes.append(
            f"{len(parts)} parts of the surface are joined by no sample (around {_places(fes, parts)}): what lies "
            "between them may be missing"
        )
    if edges := _open_edges(fes, np.zeros(fes.counts.shape, bool) if walled is None else walled):
        count = "a bin without a sample lies" if len(edges) == 1 else f"{len(edges)} bins without a sample lie"
        notes.append(
            f"{count} beside low ones that have many (at {_places(fes, edges[:3])}): "
            "the surface may go on there; start a structure there, let the bias grow longer, or add a wall"
        )
    return notes


def walled(fes: FES, cvs: Sequence[CV], walls: Sequence[Wall]) -> np.ndarray:
    """Bins (shape of the grid) behind a wall on the variable of an axis, or where it has no values."""
    behind = [is_progress(cv) & ((e[1:] <= 0) | (e[:-1] >= 1)) for cv, e in zip(cvs, fes.edges, strict=True)]
    for cv, centres, parts in zip(cvs, fes.centres, behind, strict=True):
        for wall in walls:
            if wall.cv.definition == cv.definition:
                parts |= centres > wall.limit if wall.above else centres < wall.limit
    return np.logical_or.reduce(np.meshgrid(*behind, indexing="ij"))


def _parts(fes: FES) -> list[int]:
    """The lowest bin of each connected part with samples enough for a basin, flat."""
    known = fes.counts > 0
    labels = np.zeros(known.shape, dtype=int)
    connected(known, np.ones([3] * known.ndim), output=labels)
    join = np.arange(labels.max() + 1)
    for axis, period in enumerate(fes.periods):
        if period is not None:
            seam = zip(np.take(labels, 0, axis).ravel(), np.take(labels, -1, axis).ravel(), strict=True)
            for one, other in seam:
                if one and other:
                    join[join == join[one]] = join[other]
    owner = join[labels]
    return [
        int(np.where(owner == part, fes.free_energy, np.inf).argmin())
        for part in np.unique(owner[known])
        if fes.counts[owner == part].sum() >= LEAST_DRAWS
    ]


def _open_edges(fes: FES, walled: np.ndarray) -> list[int]:
    """Bins without a sample where many were to be expected, flat, most first."""
    with np.errstate(divide="ignore"):
        seen = np.where(fes.counts >= SEEN, np.log(fes.counts), np.nan)
    low = np.where(fes.free_energy < LOW * fes.kt, 0.0, np.nan)
    promised = np.full(seen.shape, -np.inf)
    for axis, period in enumerate(fes.periods):
        for step in (-1, 1):
            one, two, three = (_shifted(seen, k * step, axis, period is not None) for k in (1, 2, 3))
            onward = np.minimum(3 * one - 3 * two + three, 2 * one - two)
            promised = np.fmax(promised, onward + _shifted(low, step, axis, period is not None))
    promised = np.where((fes.counts == 0) & ~walled, promised, -np.inf).reshape(-1)
    return [int(at) for at in np.argsort(-promised) if promised[at] >= np.log(EXPECTED)]


def _shifted(values: np.ndarray, by: int, axis: int, around: bool) -> np.ndarray:
    """The values `by` bins further along an axis; NaN beyond its ends."""
    moved = np.roll(values, -by, axis)
    if not around:
        beyond = [slice(None)] * values.ndim
        beyond[axis] = slice(-by, None) if by > 0 else slice(None, -by)
        moved[tuple(beyond)] = np.nan
    return moved


def _places(fes: FES, flat: Sequence[int]) -> str:
    """Centres of bins, for people, angles in degrees."""
    texts = []
    for at in flat:
        index = np.unravel_index(at, fes.free_energy.shape)
        place = [shown_value(c[i], unit) for c, i, unit in zip(fes.centres, index, fes.units, strict=True)]
        texts.append(f"({', '.join(place)})")
    return ", ".join(texts)


def _highest(fes: FES, low: float, high: float) -> float:
    """Where between two places, which may lie a period away, the surface of one variable is highest."""
    centres, period = fes.centres[0], fes.periods[0]
    turns = (-1, 0, 1) if period is not None else (0,)
    many = np.concatenate([centres + k * (period or 0.0) for k in turns])
    free = np.tile(fes.free_energy, len(turns))
    inside = (many >= low) & (many <= high)
    return float(many[inside][np.argmax(free[inside])]) if inside.any() else (low + high) / 2


def _drained(fes: FES) -> np.ndarray:
    """Basin of each bin (shape of the grid), the flat index of its minimum; -1 where there is no sample.

    Bins are flooded from below: one without a lower neighbour starts a basin, one between two joins the deeper, and
    merges them where the shallower is less than `SHALLOW` kT deep, or no deeper than noise.
    """
    shape, free = fes.free_energy.shape, fes.free_energy.reshape(-1) / fes.kt
    error = fes.error.reshape(-1) / fes.kt
    error = np.where(np.isfinite(error), error, UNKNOWN)
    label = np.full(free.shape, -1)
    root: dict[int, int] = {}

    def top(basin: int) -> int:
        while root[basin] != basin:
            basin = root[basin]
        return basin

    for at in np.argsort(free, kind="stable"):
        if not np.isfinite(free[at]):
            break
        near = {top(label[n]) for n in _neighbours(at, shape, fes.periods) if label[n] >= 0}
        if not near:
            root[int(at)] = int(at)
            label[at] = at
            continue
        deepest = min(near, key=lambda basin: free[basin])
        label[at] = deepest
        for other in near - {deepest}:
            if free[at] - free[other] < max(SHALLOW, NOISE * np.hypot(error[at], error[other])):
                root[other] = deepest
    return np.array([top(basin) if basin >= 0 else -1 for basin in label]).reshape(shape)


def _neighbours(at: int, shape: tuple[int, ...], periods: tuple[float | None, ...]) -> list[int]:
    index = np.array(np.unravel_index(at, shape))
    found = []
    for axis, (size, period) in enumerate(zip(shape, periods, strict=True)):
        for step in (-1, 1):
            moved = index.copy()
            moved[axis] += step
            if period is not None:
                moved[axis] %= size
            if 0 <= moved[axis] < size:
                found.append(int(np.ravel_multi_index(tuple(moved), shape)))
    return found
