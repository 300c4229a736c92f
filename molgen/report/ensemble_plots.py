"""Pictures of weighted ensembles: Ramachandran plots and the tail of the weights. PNG bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError
from molgen.report.plots import ACCENT, CURVE, INK, QUIET, figure_png, heading
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import CVValues, histogram_fes
from molgen.reweight.importance import WeightDiagnostics, cleaned, diagnose, psis, tail_length, verdict
from molgen.units import energy_unit
from molgen.variables import backbone_torsions, torsion, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

TOPS = {"kJ/mol": 20.0, "kcal/mol": 5.0}  # of the colour scale
MAP, EMPTY = "YlGnBu_r", "#e4e7eb"  # grey: the palest colour of the maps is a value
DEGREES = (-180, -90, 0, 90, 180)
BINS = 36  # of each torsion
MOST_ROWS = 6  # of Ramachandran plots, before a second block of columns
# Ramachandran plots, inches: a square panel, the gap after it, and what the words around the panels need
PANEL, GAP, LABELS, HEAD, FOOT, BAR = 1.55, 0.3, 0.8, 0.78, 0.24, 0.85
LEAST_SPAN = 0.1  # of an axis of log-weights
FAR = 25.0  # a weight of e^-25 of the mean adds nothing: how far below it a histogram of log-weights goes


def ramachandran(ensemble: Ensemble, *, unit: str = "kJ/mol", title: str = "", ancestors: float | None = None) -> bytes:
    """Free energy over (phi, psi) as sampled and as reweighted; one row a residue.

    The residue that lacks phi (the first) and the one that lacks psi (the last) share a panel: psi of one over phi of
    the other. Residues count from 0, as in observables. Each panel is zero at its own minimum.

    Args:
        ensemble: with a topology that has at least one phi and one psi.
        unit: "kJ/mol" or "kcal/mol".
        ancestors: effective ones of the samples, a share, where several descend from one.

    Raises:
        InputError: no topology, or no pair of torsions.
    """
    rows = _torsion_pairs(ensemble)
    flat = np.where(np.isfinite(ensemble.positions).all((1, 2)), 0.0, -np.inf)
    columns = [("as sampled", flat), ("reweighted", None)]
    blocks = -(-len(rows) // MOST_ROWS)
    depth = -(-len(rows) // blocks)
    across = LABELS + len(columns) * (PANEL + GAP)  # of a block
    width, height = blocks * across + BAR, HEAD + depth * (PANEL + GAP) + FOOT

    def draw(figure: Figure) -> None:
        picture = None
        for at, (label, phi, psi) in enumerate(rows):
            block, row = divmod(at, depth)
            lowest = row == depth - 1 or at == len(rows) - 1
            for column, (column_title, log_weights) in enumerate(columns):
                left = block * across + LABELS + column * (PANEL + GAP)
                top = HEAD + row * (PANEL + GAP)
                axes = figure.add_axes(_box(left, top, PANEL, PANEL, width, height))
                picture = _ramachandran_panel(axes, ensemble, log_weights, phi, psi, unit)
                axes.tick_params(labelbottom=lowest, labelleft=column == 0, labelsize=7, length=2)
                axes.set_xlabel("φ, degrees" if lowest else "")
                axes.set_ylabel(f"{label}\nψ, degrees" if column == 0 else "")
                axes.set_title(column_title if row == 0 else "", fontsize=9)
        assert picture is not None
        tall = min(depth * (PANEL + GAP) - GAP, 2 * PANEL)
        place = figure.add_axes(_box(blocks * across + 0.05, HEAD, 0.14, tall, width, height), label="<colorbar>")
        figure.colorbar(picture, cax=place, extend="max").set_label(f"free energy, {unit}")
        head = _weights_heading(figure, title, ensemble.diagnostics, ensemble.verdict, ancestors)
        head.set_y(1 - 0.08 / height)

    return figure_png(draw, (width, height), None)


def weights(
    log_weights: ArrayLike, *, title: str = "", judged: str | None = None, ancestors: float | None = None
) -> bytes:
    """Histogram of the log-weights, and their tail with the generalised Pareto distribution fitted to it.

    Args:
        log_weights: (n,) raw.
        judged: the verdict to print, where it is not that of the weights alone. ancestors: as of :func:`ramachandran`.
    """
    log_w = cleaned(log_weights)
    found = diagnose(log_w)
    finite = np.sort(log_w[np.isfinite(log_w)])

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        if len(finite):
            _weight_histogram(left, finite - found.log_z)
            _weight_tail(right, log_w, finite, found)
        else:
            for axes in (left, right):
                axes.text(0.5, 0.5, "no weight above zero", ha="center", color=ACCENT, transform=axes.transAxes)
                axes.set(xticks=[], yticks=[])
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        _weights_heading(figure, title, found, judged or verdict(found), ancestors)

    return figure_png(draw, (8.4, 3.8))


def _box(left: float, top: float, width: float, height: float, across: float, down: float):
    """Inches from the upper left corner of a figure -> (left, bottom, width, height) as shares of it."""
    return left / across, 1 - (top + height) / down, width / across, height / down


def _torsion_pairs(ensemble: Ensemble) -> list[tuple[str, Any, Any]]:
    """(label, atoms of phi, atoms of psi) of each panel; the residues at the ends last."""
    if ensemble.topology is None:
        raise InputError("this ensemble has no topology", where="Ramachandran plot", expected="a peptide")
    angles = backbone_torsions(ensemble.topology)
    phi, psi = angles["phi"], angles["psi"]

    def name(residue: int) -> str:
        assert ensemble.topology is not None
        return f"{ensemble.topology.residue(residue).name} {residue}"

    pairs = [(name(r), phi[r], psi[r]) for r in phi if r in psi]
    only_phi, only_psi = [r for r in phi if r not in psi], [r for r in psi if r not in phi]
    for last, first in zip(only_phi, only_psi, strict=False):
        pairs.append((f"φ {name(last)}, ψ {name(first)}", phi[last], psi[first]))
    if not pairs:
        raise InputError(
            "no residue with phi and none with psi", where="Ramachandran plot", expected="2 residues or more"
        )
    return pairs


def _ramachandran_panel(axes: Axes, ensemble: Ensemble, log_weights, phi, psi, unit: str):
    measured = [values(torsion(*atoms), ensemble.positions) for atoms in (phi, psi)]
    cvs = [CVValues("", angles, "rad", 2 * np.pi) for angles in measured]
    shares = ensemble.weights
    if log_weights is not None:
        shares = np.isfinite(log_weights) / max(np.isfinite(log_weights).sum(), 1)
    fes = histogram_fes(cvs, ensemble.log_weights, shares, ensemble.temperature, bins=BINS)
    energy, top = energy_unit(unit), TOPS[unit]
    surface = np.ma.masked_invalid(fes.free_energy / energy)
    edges = [np.degrees(e) for e in fes.edges]
    axes.set_facecolor(EMPTY)
    picture = axes.pcolormesh(edges[0], edges[1], surface.T, cmap=MAP, vmin=0, vmax=top, rasterized=True)
    axes.set(xlim=(-180, 180), ylim=(-180, 180), xticks=DEGREES, yticks=DEGREES)
    return picture


def _weight_histogram(axes: Axes, relative: np.ndarray) -> None:
    """Log-weights over their mean weight; what lies far below counts into the first bin."""
    from matplotlib.ticker import MaxNLocator

    low, high = max(np.quantile(relative, 0.001), -FAR), relative.max()
    span = max(high - low, LEAST_SPAN)
    edges = np.linspace(high - 1.02 * span, high + 0.02 * span, 61)
    axes.hist(np.clip(relative, edges[0], None), edges, color=CURVE, alpha=0.85)
    axes.axvline(0, color=ACCENT, lw=1, ls="--")
    place = {"va": "top", "ha": "right" if edges.mean() < 0 else "left", "transform": axes.get_xaxis_transform()}
    axes.text(0, 1, " mean weight ", color=ACCENT, fontsize=8, **place)
    below = int((relative < edges[0]).sum())
    if below:
        note = f"first bin: {below:,} at {edges[1]:.0f} or less"
        axes.text(edges[2], 0.9, note, fontsize=8, transform=axes.get_xaxis_transform())  # beside the bar
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="ln(w / mean weight)", ylabel="samples")


def _weight_tail(axes: Axes, log_w: np.ndarray, finite: np.ndarray, found: WeightDiagnostics) -> None:
    """Share of samples above a weight, with the fitted tail over it; double logarithmic."""
    shares = (len(finite) - np.arange(len(finite)) - 0.5) / found.n
    shown = shares <= max(0.2, 50 / found.n)
    ratio = finite - found.log_z
    axes.plot(ratio[shown], shares[shown], "o", ms=2.5, color=CURVE, label="weights", rasterized=True)
    tail = tail_length(log_w)
    if tail:
        smooth = np.sort(psis(log_w)[np.argsort(log_w)[-tail:]]) - found.log_z
        free = smooth < ratio[-1] - 1e-9  # the largest are cut at the largest raw weight
        label = f"generalised Pareto, k-hat {found.khat:.2f}\n({tail} largest weights)"
        axes.plot(smooth[free], shares[-tail:][free], color=ACCENT, lw=1.8, label=label)
        axes.axvline(ratio[-tail], color=QUIET, lw=0.8, ls=":")
    axes.set_yscale("log")
    middle, span = np.mean(axes.get_xlim()), max(np.ptp(axes.get_xlim()), LEAST_SPAN)
    axes.set_xlim(middle - span / 2, middle + span / 2)
    axes.set(xlabel="ln(w / mean weight)", ylabel="share of samples with a larger weight")
    axes.legend(fontsize=8, loc="lower left", edgecolor="none", framealpha=1, borderaxespad=0.2)


def _weights_heading(
    figure: Figure, title: str, found: WeightDiagnostics, judged: str, ancestors: float | None
) -> Text:
    shape = f"k-hat {found.khat:.2f}" if np.isfinite(found.khat) else "too few weights for a k-hat"
    share = f"{100 * found.ess:.3g} %" if ancestors is None else f"{100 * ancestors:.3g} % by ancestor"
    line = f"ESS {share} of {found.n:,} samples, {shape}: {judged}"
    return heading(figure, title, line, INK if judged == "reliable" else ACCENT)
