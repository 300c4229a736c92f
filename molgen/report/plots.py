"""Pictures, drawn without a display and returned as PNG bytes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import ArrayLike

INK, CURVE, ACCENT, QUIET = "#1f2933", "#2563a8", "#c2410c", "#7b8794"


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
    top, last = e[ts_index], e[-1]
    low, high = min(e.min(), 0.0), max(e.max(), 1e-6)
    room = high - low
    with plt.rc_context({"font.size": 10, "axes.edgecolor": QUIET, "text.color": INK, "axes.labelcolor": INK}):
        figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
        axes.axhline(0, color=QUIET, lw=0.6, ls=":")
        axes.plot(s, e, color=CURVE, lw=1.8, marker="o", ms=2.5, zorder=2)
        axes.plot(s[ts_index], top, "o", color=ACCENT, ms=8, zorder=3)
        axes.annotate(
            f"TS\n{top:.1f}",
            (s[ts_index], top),
            (0, 10),
            textcoords="offset points",
            ha="center",
            color=ACCENT,
            weight="bold",
        )
        axes.annotate(labels[0], (s[0], 0), (0, -16), textcoords="offset points", ha="left", color=INK)
        axes.annotate(
            f"{labels[1]}\n{last:+.1f}", (s[-1], last), (0, -28), textcoords="offset points", ha="right", color=INK
        )
        axes.set_xlabel("path length, Å")
        axes.set_ylabel(f"energy relative to {labels[0]}, {unit}")
        axes.set_ylim(low - 0.22 * room, high + 0.2 * room)
        axes.margins(x=0.06)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=11, weight="bold", pad=20 if subtitle else 8)
        if subtitle:
            axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=QUIET)
        figure.tight_layout()
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        plt.close(figure)
    return stream.getvalue()
