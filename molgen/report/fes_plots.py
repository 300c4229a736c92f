"""Pictures of a CV-biased run: the surface with its basins, and how the run converged. PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from molgen.report.ensemble_plots import EMPTY, MAP, TOPS
from molgen.report.plots import ACCENT, CURVE, INK, QUIET, figure_png, heading
from molgen.reweight.free_energy import FES, FEW
from molgen.reweight.importance import RELIABLE_KHAT
from molgen.units import energy_unit, shown

MOST_POINTS = 1500  # samples shown
Basins = Sequence[tuple[tuple[float, ...], str]]  # (minimum, label)


def surface(
    fes: FES,
    others: Mapping[str, np.ndarray],
    basins: Basins,
    samples: np.ndarray,
    *,
    unit: str,
    title: str = "",
    subtitle: str = "",
    good: bool = True,
) -> bytes:
    """A free-energy surface of one or two collective variables (of three, the caller draws each by itself).

    Args:
        fes: the path-weighted surface. others: estimates on the same bins, eV, by name (drawn in one dimension).
        basins: (minimum, what is written beside it). samples: (n, D) resampled ones, drawn as points in two dimensions.
        unit: "kcal/mol" or "kJ/mol". good: whether the estimate passed its gate.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if len(fes.edges) == 1:
            _profile(axes, fes, others, basins, unit)
        else:
            _map(figure, axes, fes, basins, samples, unit)
        heading(figure, title, subtitle, INK if good else ACCENT)

    return figure_png(draw, (6.4, 4.6))


def _profile(axes: Any, fes: FES, others: Mapping[str, np.ndarray], basins: Basins, unit: str) -> None:
    """The surface of one variable as a curve with its error."""
    energy, scale = energy_unit(unit), _axis_scale(axes.xaxis, fes, 0)
    bins, centres = _drawn(fes)
    x, free_energy, errors = scale * centres, fes.free_energy[bins], fes.error[bins]
    known = np.isfinite(free_energy)
    values = np.where(known, free_energy / energy, np.nan)
    error = np.where(known & np.isfinite(errors), errors / energy, np.nan)  # no band where it is unknown
    axes.fill_between(x, values - error, values + error, color=CURVE, alpha=0.25, lw=0)
    axes.plot(x, values, color=CURVE, lw=1.8, marker="o", ms=2.5, label="path weights ± standard error")
    lonely = known & ~np.r_[False, known[:-1]] & ~np.r_[known[1:], False]  # the band has no width there
    axes.errorbar(x[lonely], values[lonely], error[lonely], fmt="none", ecolor=CURVE, alpha=0.4, lw=1.2)
    for (name, other), style in zip(others.items(), ("--", ":"), strict=False):
        alike = np.where(known & np.isfinite(other[bins]), other[bins] / energy, np.nan)
        axes.plot(x, alike - np.nanmin(alike), style, color=INK, lw=1.2, label=name)
    high = max(np.nanmax(values, initial=0.0), 1e-3)
    axes.set_ylim(-0.18 * high, 1.05 * high)
    if len(bins) > len(fes.free_energy):
        axes.set_xlim(*(fes.edges[0][[0, -1]] * scale))
    axes.set_ylabel(f"free energy, {unit}")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    minima = [int(np.abs(x - scale * minimum[0]).argmin()) for minimum, _ in basins]
    _labels(axes, [(x[at], values[at]) for at in minima], [label for _, label in basins], (-14, -26, 12, 24),
            color=ACCENT)  # fmt: skip


def _drawn(fes: FES) -> tuple[np.ndarray, np.ndarray]:
    """The bins of one variable in the order of drawing, and where: those that go once round have the last and the first
    again beyond the ends, so that the curve does not stop short of them."""
    bins, x, period = np.arange(len(fes.free_energy)), fes.centres[0], fes.periods[0]
    if not period or not np.isclose(np.ptp(fes.edges[0]), period):
        return bins, x
    return np.r_[bins[-1], bins, bins[0]], np.r_[x[-1] - period, x, x[0] + period]


def _map(figure: Any, axes: Any, fes: FES, basins: Basins, samples: np.ndarray, unit: str) -> None:
    """The surface of two variables as a map with contours."""
    energy, top = energy_unit(unit), TOPS[unit]
    scales = [_axis_scale(axis, fes, at) for at, axis in enumerate((axes.xaxis, axes.yaxis))]
    x, y = (centres * scale for centres, scale in zip(fes.centres, scales, strict=True))
    edges = [e * scale for e, scale in zip(fes.edges, scales, strict=True)]
    values = np.ma.masked_invalid(fes.free_energy / energy)
    # bins of few samples, or with an error above kT, are drawn, but say little, and set no scale
    sure = np.ma.masked_where((fes.counts < FEW) | ~(fes.error < fes.kt), values)
    high = min(float(sure.max()), 4 * top) if sure.count() > 1 else top
    axes.set_facecolor(EMPTY)
    picture = axes.pcolormesh(*edges, values.T, cmap=MAP, vmin=0, vmax=high, rasterized=True)
    if min(values.shape) > 1 and sure.count() > 1:
        axes.contour(x, y, sure.T, levels=np.linspace(0, high, 17)[::2], colors=INK, linewidths=0.4)
    figure.colorbar(picture, ax=axes, pad=0.02, extend="max").set_label(f"free energy, {unit}")
    axes.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
    axes.plot(*(samples[:MOST_POINTS, d] * scales[d] for d in (0, 1)), ".", ms=1.2, color=QUIET, alpha=0.5)
    places = [(minimum[0] * scales[0], minimum[1] * scales[1]) for minimum, _ in basins]
    for place in places:
        axes.plot(*place, "o", ms=5, mfc="none", mec=ACCENT, mew=1.4)
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85}
    _labels(axes, places, [label for _, label in basins], (12, -12, 26, -26, 40, -40), bbox=box)


def _axis_scale(axis: Any, fes: FES, at: int) -> float:
    """Label an axis with a collective variable; the factor to what it shows (degrees, or its own unit)."""
    unit = fes.units[at]
    factor, name = shown(unit)
    axis.set_label_text(f"{fes.names[at]}, {'Å' if name == 'A' else name}" if name else fes.names[at])
    if unit == "rad" and fes.periods[at] is not None:
        from matplotlib.ticker import MultipleLocator

        axis.set_major_locator(MultipleLocator(60 if np.ptp(fes.edges[at]) > 4 else 30))
    return factor


def _labels(axes: Any, places: Sequence[tuple[float, float]], texts: Sequence[str], heights: Sequence[int], **style):
    """Write `texts` within the axes, above or below their `places`, at the first of `heights` (points) that is free."""
    inside, points, taken = axes.get_window_extent(), 72 / axes.figure.dpi, []
    for place, text in zip(places, texts, strict=True):
        label = axes.annotate(text, place, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=8,
                              **style)  # fmt: skip
        tried = []
        for height in heights:
            label.xyann = (0, height)
            box = label.get_window_extent().padded(2)
            outside = not inside.y0 <= box.y0 < box.y1 <= inside.y1
            tried.append((sum(box.overlaps(other) for other in taken) + outside, len(tried), height, box))
        _, _, height, box = min(tried)
        label.xyann = (points * (max(inside.x0 - box.x0, 0) + min(inside.x1 - box.x1, 0)), height)
        taken.append(box)


def convergence(records: Sequence[Mapping[str, Any]], frozen_from: int) -> bytes:
    """Effective sample size, k-hat and height of the bias, round by round, against energies spent."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(3, 1, sharex=True)
        energies = np.array([row["energies"] for row in records], dtype=float)
        rests = next((row["energies"] for row in records if row["round"] >= frozen_from), None)
        for axes, key, other, label in (
            (panels[0], "ess", "ess_unbiased", "ESS, share"),
            (panels[1], "khat", "khat_unbiased", "k-hat"),
            (panels[2], "bias", None, "highest bias, kT"),
        ):
            for name, color, text in ((key, CURVE, "biased target"), (other, QUIET, "without bias")):
                if name is not None:
                    values = np.array([np.nan if row[name] is None else row[name] for row in records], dtype=float)
                    values = np.where(np.isfinite(values), values, np.nan)
                    axes.plot(energies, values, ".", ms=2.5, color=color, alpha=0.5, label=f"{text}, a round")
                    axes.plot(energies, _running(values), color=color, lw=1.5, label=f"{text}, running median")
            if rests is not None:
                axes.axvline(rests, color=ACCENT, lw=0.8, ls="--")
            axes.set_ylabel(label)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        panels[1].axhline(RELIABLE_KHAT, color=QUIET, lw=0.8, ls=":")
        panels[1].set_ylim(0, 2)
        if rests is not None:
            place = panels[2].get_xaxis_transform()
            panels[2].text(rests, 0.05, " the bias rests", color=ACCENT, fontsize=8, transform=place)
        panels[2].set_xlabel("energies")

    return figure_png(draw, (6.4, 5.6))


def _running(values: np.ndarray, width: int = 7) -> np.ndarray:
    """Running median."""
    half = width // 2
    padded = np.pad(values, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return np.array([np.median(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows])
