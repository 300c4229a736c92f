"""Pictures, drawn without a display and returned as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

INK, CURVE, ACCENT, QUIET = "#1f2933", "#2563a8", "#c2410c", "#7b8794"
LEAST_RANGE = 1.0  # in the unit of the energies; the axis of a flat path is no finer
TITLE_LENGTH = 50  # characters that fit above the axes; an atom-mapped SMILES is longer
LABEL_WIDTH = 0.25  # of the path; what a label at an end may cover


def barrier_profile(
    coordinate: ArrayLike,
    energies: ArrayLike,
    ts_index: int,
    *,
    title: str,
    subtitle: str = "",
    labels: tuple[str, str] = ("reactant", "product"),
    unit: str = "kcal/mol",
) -> bytes:
    """Energy along a path through a transition state.

    Args:
        coordinate: (M,) path length, Angstrom amu^1/2 or Angstrom; increasing.
        energies: (M,) relative to the first point, in `unit`.
        ts_index: which point is the transition state.
        labels: names of the two ends.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    s, e = np.asarray(coordinate, dtype=float), np.asarray(energies, dtype=float)
    low, high = min(e.min(), 0.0), max(e.max(), 0.0)
    room = max(high - low, LEAST_RANGE)
    with plt.rc_context({"font.size": 10, "axes.edgecolor": QUIET, "text.color": INK, "axes.labelcolor": INK}):
        figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
        axes.axhline(0, color=QUIET, lw=0.6, ls=":")
        axes.plot(s, e, color=CURVE, lw=1.8, marker="o", ms=2.5, zorder=2)
        axes.plot(s[ts_index], e[ts_index], "o", color=ACCENT, ms=8, zorder=3)

        def label(text: str, x: float, y: float, up: float, **style: Any) -> None:
            axes.annotate(text, (x, y), (0, up), textcoords="offset points", **style)

        label(f"TS\n{_number(e[ts_index])}", s[ts_index], e[ts_index], 10, ha="center", color=ACCENT, weight="bold")
        label(labels[0], s[0], min(_lowest_near(s, e, s[0]), 0.0), -16, ha="left")
        label(f"{labels[1]}\n{_number(e[-1], sign='+')}", s[-1], _lowest_near(s, e, s[-1]), -28, ha="right")
        axes.set_xlabel("path length, Å")
        axes.set_ylabel(f"energy relative to {labels[0]}, {unit}")
        axes.set_ylim(low - 0.22 * room, low + 1.2 * room)
        axes.margins(x=0.06)
        axes.spines[["top", "right"]].set_visible(False)
        if len(title) > TITLE_LENGTH:
            title = f"{title[: TITLE_LENGTH - 1]}…"
        axes.set_title(title, loc="left", fontsize=11, weight="bold", pad=20 if subtitle else 8, parse_math=False)
        if subtitle:
            axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=QUIET)
        figure.tight_layout()
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        plt.close(figure)
    return stream.getvalue()


def _lowest_near(s: np.ndarray, e: np.ndarray, end: float) -> float:
    """Lowest energy of the curve where a label at this end of it is written."""
    width = LABEL_WIDTH * (s[-1] - s[0])
    return float(np.interp(np.linspace(max(end - width, s[0]), min(end + width, s[-1]), 50), s, e).min())


def _number(value: float, sign: str = "") -> str:
    """One decimal, a typographic minus, and no sign of zero."""
    value = round(value, 1) + 0.0
    return f"{value:{sign if value else ''}.1f}".replace("-", "−")
