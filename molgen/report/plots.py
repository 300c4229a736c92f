"""How every picture is drawn, without a display and returned as PNG bytes; and the energy profile of a reaction."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

INK, CURVE, ACCENT, QUIET = "#1f2933", "#2563a8", "#c2410c", "#7b8794"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
LEAST_RANGE = 1.0  # in the unit of the energies; the axis of a flat path is no finer
TITLE_LENGTH = 50  # characters that fit above the axes; an atom-mapped SMILES is longer
ALIKE = 0.5  # kcal/mol, beyond which both ends of an intermediate get a figure
LABEL_WIDTH = 0.25  # of the path; what a label at an end may cover


def figure_png(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    layout: Any = "constrained",
    *,
    font_size: float = 9,
) -> bytes:
    """The figure that `draw` fills, without pyplot: it holds no state, needs no display and leaves the backend alone.

    Args:
        size: (width, height), inches. layout: as of `matplotlib.figure.Figure`. font_size: points.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "font.size": font_size}):
        figure = Figure(figsize=size, dpi=150, layout=layout)
        draw(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    return stream.getvalue()


def heading(figure: Figure, title: str, subtitle: str, color: str = INK) -> Text:
    """Title and subtitle, left-aligned above everything."""
    lines = "\n".join(line for line in (title, subtitle) if line)
    return figure.suptitle(lines, x=0.01, ha="left", fontsize=10, color=color)


def barrier_profile(
    coordinate: ArrayLike,
    energies: ArrayLike,
    ts_index: int | Sequence[int],
    *,
    title: str,
    subtitle: str = "",
    labels: tuple[str, str] = ("reactant", "product"),
    between: Mapping[tuple[int, int], str] | None = None,
) -> bytes:
    """Energy along a path through a transition state, or several.

    Args:
        coordinate: (M,) path length, Angstrom amu^1/2 or Angstrom; increasing.
        energies: (M,) kcal/mol relative to the first point.
        ts_index: which point is the transition state, or which points are.
        labels: names of the two ends. between: names of points in between, by the indices of where one step ends and
            the next begins.
    """
    tops = [ts_index] if isinstance(ts_index, int) else list(ts_index)
    s, e = np.asarray(coordinate, dtype=float), np.asarray(energies, dtype=float)
    low, high = min(e.min(), 0.0), max(e.max(), 0.0)
    room = max(high - low, LEAST_RANGE)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=QUIET, lw=0.6, ls=":")
        axes.plot(s, e, color=CURVE, lw=1.8, marker="o", ms=2.5, zorder=2)
        axes.plot(s[tops], e[tops], "o", color=ACCENT, ms=8, zorder=3)

        def label(text: str, x: float, y: float, up: float, **style: Any) -> None:
            axes.annotate(text, (x, y), (0, up), textcoords="offset points", **style)

        for k, top in enumerate(tops, start=1):
            name = "TS" if len(tops) == 1 else f"TS {k}"
            label(f"{name}\n{_number(e[top])}", s[top], e[top], 10, ha="center", color=ACCENT, weight="bold")
        for (one, other), name in (between or {}).items():
            levels = [e[one], e[other]][: 1 + (abs(e[one] - e[other]) > ALIKE)]
            middle = (s[one] + s[other]) / 2
            told = " / ".join(_number(level, sign="+") for level in levels)
            label(f"{name}\n{told}", middle, _lowest_near(s, e, middle), -28, ha="center")
        label(labels[0], s[0], min(_lowest_near(s, e, s[0]), 0.0), -16, ha="left")
        label(f"{labels[1]}\n{_number(e[-1], sign='+')}", s[-1], _lowest_near(s, e, s[-1]), -28, ha="right")
        axes.set_xlabel("path length, Å")
        axes.set_ylabel(f"energy relative to {labels[0]}, kcal/mol")
        axes.set_ylim(low - 0.22 * room, low + 1.2 * room)
        axes.margins(x=0.06)
        axes.spines[["top", "right"]].set_visible(False)
        shown = title if len(title) <= TITLE_LENGTH else f"{title[: TITLE_LENGTH - 1]}…"
        axes.set_title(shown, loc="left", fontsize=11, weight="bold", pad=20 if subtitle else 8, parse_math=False)
        if subtitle:
            axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=QUIET)
        figure.tight_layout()

    return figure_png(draw, (6.4, 4.2), None, font_size=10)


def _lowest_near(s: np.ndarray, e: np.ndarray, end: float) -> float:
    """Lowest energy of the curve where a label at this end of it is written."""
    width = LABEL_WIDTH * (s[-1] - s[0])
    return float(np.interp(np.linspace(max(end - width, s[0]), min(end + width, s[-1]), 50), s, e).min())


def _number(value: float, sign: str = "") -> str:
    """One decimal, a typographic minus, and no sign of zero."""
    value = round(value, 1) + 0.0
    return f"{value:{sign if value else ''}.1f}".replace("-", "−")
