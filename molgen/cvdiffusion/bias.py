"""Well-tempered bias of one to three collective variables on a C1 grid (Barducci, Bussi, Parrinello 2008).

Phys. Rev. Lett. 100, 020603: a hill at s has height w exp(-V(s) / (kT (gamma - 1))), and V tends to
-(1 - 1/gamma) F. The grid holds values and derivatives of the sum of Gaussians, exact at the nodes, joined by cubic
Hermite pieces: between nodes one Gaussian is off by about D (spacing/width)^4 / 128 of its height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError
from molgen.units import KB
from molgen.variables import wrapped

_BATCH = 256  # hills that see each other exactly before they reach the grid; bounds memory, in 3-D above all


@dataclass(frozen=True)
class Axis:
    """Grid of one collective variable; `WellTemperedBias` checks it.

    Attributes:
        name, unit: e.g. "phi 1" and "rad".
        low, high: ends in `unit`; of a periodic axis one period apart.
        bins: intervals between nodes.
        period: in `unit`, None where not periodic.
    """

    name: str
    unit: str
    low: float
    high: float
    bins: int
    period: float | None = None

    @property
    def spacing(self) -> float:
        """Distance of neighbouring nodes, in `unit`."""
        return (self.high - self.low) / self.bins

    @property
    def nodes(self) -> np.ndarray:
        """Nodes (bins + 1,) with both ends; of a periodic axis (bins,), as its ends are one point."""
        return np.linspace(self.low, self.high, self.bins + 1)[: self.bins + (self.period is None)]

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """a - b, of a periodic axis the nearest image's, within half a period of 0."""
        d = a - b
        return d if self.period is None else d - self.period * np.round(d / self.period)

    def wrapped(self, values: np.ndarray) -> np.ndarray:
        """Values of a periodic axis moved into [low, high); others as they are."""
        return values if self.period is None else wrapped(values, self.low, self.period)


@dataclass(frozen=True, eq=False)
class Hills:
    """Hills in the order they were added.

    Attributes:
        centres: (H, D) in the units of the axes.
        heights: (H,) eV, tempered, without PLUMED's factor gamma / (gamma - 1).
        round: (H,) which call of `add` brought each, from 0.
    """

    centres: np.ndarray
    heights: np.ndarray
    round: np.ndarray


class WellTemperedBias:
    """V(s) in eV, a sum of Gaussian hills that shrink where V has grown.

    Beyond the ends of an axis that is not periodic V keeps the edge's value and its derivative along that axis is 0;
    the sampler keeps the walkers inside with a wall. Hills of a periodic axis act through their nearest image, as in
    PLUMED, so a width should be well below half the period.

    Args:
        axes: one to three.
        widths: (D,) standard deviations of the Gaussians, in the units of the axes.
        gamma: bias factor, above 1.
        temperature: K.
        cap: eV; no hill is added where V has reached it.

    Attributes:
        skipped: centres that were NaN, infinite or off the grid and brought no hill.
        rounds: calls of `add`.

    Raises:
        InputError: gamma <= 1, temperature <= 0, cap <= 0, widths <= 0; no axis or more than three; low >= high, a
            period that is not high - low, or nodes more than half a width apart.
    """

    def __init__(
        self, axes: Sequence[Axis], widths: ArrayLike, gamma: float, temperature: float, cap: float | None = None
    ):
        self.axes = tuple(axes)
        self.widths = np.atleast_1d(np.array(widths, dtype=float))
        self.gamma, self.temperature, self.cap = float(gamma), float(temperature), cap
        self.kt = KB * self.temperature
        self._check()
        for axis, width in zip(self.axes, self.widths, strict=True):
            _check_axis(axis, float(width))
        self.skipped, self.rounds = 0, 0
        self._counts = tuple(len(axis.nodes) for axis in self.axes)
        # Along each axis n values, then n derivatives times the spacing: the 2^D channels are the blocks of one array.
        self._grid = np.zeros([2 * n for n in self._counts])
        self._added = [Hills(np.zeros((0, len(self.axes))), np.zeros(0), np.zeros(0, dtype=np.int64))]

    @property
    def hills(self) -> Hills:
        """All hills so far."""
        if len(self._added) > 1:
            parts = [(h.centres, h.heights, h.round) for h in self._added]
            self._added = [Hills(*(np.concatenate(column) for column in zip(*parts, strict=True)))]
        return self._added[0]

    @property
    def values(self) -> np.ndarray:
        """V on the nodes, eV, of the shape of the grid."""
        return self._grid[tuple(slice(n) for n in self._counts)].copy()

    def free_energy(self) -> np.ndarray:
        """F = -gamma/(gamma - 1) V on the nodes, eV, of the shape of the grid; its minimum is 0."""
        v = self.values
        return self.gamma / (self.gamma - 1) * (v.max() - v)

    def add(self, centres: ArrayLike, height: float) -> None:
        """Deposit M hills one after the other, each of `height` / M tempered by the bias at its centre.

        Up to 256 hills at a time see each other exactly, and all before them through the grid. Skipped centres count
        in M.

        Args:
            centres: (M, D) in the units of the axes; those off the grid or not finite are skipped and counted.
            height: eV, what the hills would add up to without tempering.

        Raises:
            InputError: another shape, or a height that is not above 0.
        """
        s = np.asarray(centres, dtype=float)
        if s.ndim != 2 or s.shape[1] != len(self.axes):
            raise InputError(f"centres of shape {s.shape}", where="bias", expected=f"(M, {len(self.axes)})")
        if not (np.isfinite(height) and height > 0):
            raise InputError(f"hill height {height}", where="bias", expected="eV, above 0")
        keep = np.isfinite(s).all(1)
        for d, axis in enumerate(self.axes):
            if axis.period is None:
                keep &= (s[:, d] >= axis.low) & (s[:, d] <= axis.high)
        self.skipped += int((~keep).sum())
        inside = s[keep]
        for d, axis in enumerate(self.axes):
            inside[:, d] = axis.wrapped(inside[:, d])
        for start in range(0, len(inside), _BATCH):
            self._add_batch(inside[start : start + _BATCH], height / len(s))
        self.rounds += 1

    def correct(self, centres: np.ndarray, heights: np.ndarray) -> None:
        """Add hills at centres (M, D) on the grid with heights (M,) in eV of either sign, as they are."""
        for start in range(0, len(centres), _BATCH):
            self._record(centres[start : start + _BATCH], heights[start : start + _BATCH])
        self.rounds += 1

    def evaluate(self, s: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """V (B,) in eV and dV/ds (B, D) in eV per unit of each axis, at s (B, D).

        NaN where s is NaN, or infinite along a periodic axis.

        Raises:
            InputError: another shape.
        """
        points = np.asarray(s, dtype=float)
        if points.ndim != 2 or points.shape[1] != len(self.axes):
            raise InputError(f"points of shape {points.shape}", where="bias", expected=f"(B, {len(self.axes)})")
        rows, weights, slopes = zip(*(self._basis(axis, points[:, d]) for d, axis in enumerate(self.axes)), strict=True)
        dims = len(self.axes)
        index = tuple(r.reshape(len(r), *(4 if e == d else 1 for e in range(dims))) for d, r in enumerate(rows))
        corners = self._grid[index]  # (B, 4, ..., 4)
        value = _contract(corners, weights)
        gradient = [
            _contract(corners, [slopes[e] if e == d else w for e, w in enumerate(weights)]) for d in range(dims)
        ]
        return value, np.stack(gradient, axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays from which `load_state` resumes bit for bit."""
        hills = self.hills
        return {
            "grid": self._grid.copy(),
            "centres": hills.centres.copy(),
            "heights": hills.heights.copy(),
            "round": hills.round.copy(),
            "counters": np.array([self.rounds, self.skipped], dtype=np.int64),
            "settings": self._settings(),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`, of a bias with the same axes, widths, gamma and temperature.

        Raises:
            InputError: an array is missing, or the state is of another bias; this one is left as it was.
        """
        missing = sorted({"grid", "centres", "heights", "round", "counters", "settings"} - set(state))
        if missing:
            raise InputError(f"no {', '.join(missing)}", where="state of the bias", expected="what state() returned")
        if not np.array_equal(state["settings"], self._settings()) or state["grid"].shape != self._grid.shape:
            raise InputError(
                "it belongs to another bias",
                where="state of the bias",
                expected="the same axes, widths, gamma and temperature",
                remedy="resume with the settings of the first run, or start afresh",
            )
        self._grid = np.array(state["grid"], dtype=float)
        self._added = [
            Hills(
                np.array(state["centres"], dtype=float),
                np.array(state["heights"], dtype=float),
                np.array(state["round"], dtype=np.int64),
            )
        ]
        self.rounds, self.skipped = (int(n) for n in state["counters"])

    def _add_batch(self, s: np.ndarray, height: float) -> None:
        bias, _ = self.evaluate(s)
        pair = np.ones((len(s), len(s)))
        for d, axis in enumerate(self.axes):
            pair *= np.exp(-((axis.difference(s[:, None, d], s[None, :, d]) / self.widths[d]) ** 2) / 2)
        heights = np.zeros(len(s))
        for i in range(len(s)):
            v = bias[i] + heights[:i] @ pair[i, :i]
            if self.cap is None or v < self.cap:
                heights[i] = height * np.exp(-v / (self.kt * (self.gamma - 1)))
        recorded = heights > 0
        self._record(s[recorded], heights[recorded])

    def _record(self, s: np.ndarray, heights: np.ndarray) -> None:
        """Add the Gaussians to the grid and to the hills."""
        if not len(s):  # all of a batch lies at the cap
            return
        product = heights[:, None]
        for d, axis in enumerate(self.axes[:-1]):
            product = (product[:, :, None] * self._profile(axis, s, d)[:, None, :]).reshape(len(s), -1)
        last = self._profile(self.axes[-1], s, len(self.axes) - 1)
        self._grid += (product.T @ last).reshape(self._grid.shape)
        self._added.append(Hills(s, heights, np.full(len(s), self.rounds, dtype=np.int64)))

    def _profile(self, axis: Axis, s: np.ndarray, d: int) -> np.ndarray:
        """Gaussians of the hills s along axis d on its nodes, and their derivatives times the spacing (M, 2 n)."""
        z = axis.difference(axis.nodes[None], s[:, d, None]) / self.widths[d]
        gaussian = np.exp(-(z**2) / 2)
        return np.concatenate([gaussian, -z * gaussian * (axis.spacing / self.widths[d])], axis=1)

    def _basis(self, axis: Axis, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the grid (B, 4), Hermite weights (B, 4) and their derivatives (B, 4) along one axis."""
        n = len(axis.nodes)
        usable = np.isfinite(s) if axis.period is not None else ~np.isnan(s)
        x = axis.wrapped(np.where(usable, s, axis.low))
        u = (np.clip(x, axis.low, axis.high) - axis.low) / axis.spacing
        cell = np.minimum(u.astype(np.int64), axis.bins - 1)
        t = u - cell
        after = (cell + 1) % n
        rows = np.stack([cell, after, n + cell, n + after], axis=1)
        weights = np.stack([(1 + 2 * t) * (1 - t) ** 2, t**2 * (3 - 2 * t), t * (1 - t) ** 2, t**2 * (t - 1)], axis=1)
        slopes = np.stack([6 * t * (t - 1), 6 * t * (1 - t), (1 - t) * (1 - 3 * t), t * (3 * t - 2)], axis=1)
        slopes = slopes / axis.spacing
        slopes[(x < axis.low) | (x > axis.high)] = 0.0
        weights[~usable] = np.nan
        slopes[~usable] = np.nan
        return rows, weights, slopes

    def _settings(self) -> np.ndarray:
        axes = [[a.low, a.high, a.bins, a.period or 0.0] for a in self.axes]
        return np.concatenate([np.ravel(axes), self.widths, [self.gamma, self.temperature]])

    def _check(self) -> None:
        if not 1 <= len(self.axes) <= 3:
            raise InputError(f"{len(self.axes)} axes", where="bias", expected="one to three collective variables")
        if self.widths.shape != (len(self.axes),):
            raise InputError(f"{self.widths.size} hill widths", where="bias", expected=f"{len(self.axes)}, one an axis")
        if not (np.isfinite(self.gamma) and self.gamma > 1):
            raise InputError(f"bias factor {self.gamma}", where="bias", expected="above 1, say 10")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature {self.temperature} K", where="bias", expected="above 0")
        if self.cap is not None and not self.cap > 0:
            raise InputError(f"cap {self.cap} eV", where="bias", expected="above 0, or none")


def _check_axis(axis: Axis, width: float) -> None:
    where = f"axis {axis.name!r}"
    if not (np.isfinite([axis.low, axis.high]).all() and axis.low < axis.high):
        raise InputError(f"range ({axis.low}, {axis.high})", where=where, expected="finite, low < high")
    if not (np.isfinite(width) and width > 0):
        raise InputError(f"hill width {width}", where=where, expected=f"above 0, in {axis.unit or 'its unit'}")
    length = axis.high - axis.low
    if axis.period is not None and abs(length - axis.period) > 1e-9 * abs(axis.period):
        raise InputError(f"range of {length} and period of {axis.period}", where=where, expected="the same length")
    enough = int(np.ceil(2 * length / width - 1e-9))
    if axis.bins < enough:
        raise InputError(
            f"grid too coarse for the hill width: {axis.bins} bins for a width of {width}",
            where=where,
            expected="nodes at most half a width apart",
            remedy=f"{enough} bins suffice",
        )


def _contract(corners: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of corners (B, 4, ..., 4) times the weights (B, 4) of each axis."""
    for w in reversed(weights):
        corners = (corners * w.reshape(len(w), *(1,) * (corners.ndim - 2), 4)).sum(-1)
    return corners
