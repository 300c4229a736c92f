"""The barrier picture: drawn for whatever a path may look like, with its labels inside and apart from each other."""

from __future__ import annotations

import struct
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from molgen.report.plots import barrier_profile


def hump(top: float, last: float, count: int = 41) -> tuple[np.ndarray, np.ndarray, int]:
    """Coordinate, energies and index of the top of a smooth barrier."""
    s = np.linspace(0, 4, count)
    rise = top * np.sin(np.pi * np.clip(s, 0, 2) / 4) ** 2
    fall = last + (top - last) * np.sin(np.pi * np.clip(4 - s, 0, 2) / 4) ** 2
    return s, np.where(s <= 2, rise, fall), count // 2


CASES = {
    "ordinary": hump(42.0, -12.0),
    "endothermic": hump(73.2, 20.0),
    "product as high as the saddle": hump(30.0, 29.9),
    "very exothermic": hump(3.0, -120.0),
    "thermoneutral": hump(3.8, 0.0),
    "barrierless": (np.array([0.0, 1.0, 2.0]), np.array([0.0, -20.0, -45.0]), 0),
    "two points": (np.array([0.0, 1.0]), np.array([0.0, 12.0]), 1),
    "one point": (np.array([0.0]), np.array([0.0]), 0),
    "flat": (np.linspace(0, 1, 5), np.zeros(5), 2),
    "large numbers": hump(123456.7, -98765.4),
    "tiny numbers": hump(1e-4, -2e-5),
    "saddle near the reactant": (np.array([0, 0.05, 1, 2, 3.0]), np.array([0.0, 0.5, -10, -25, -30]), 1),
    "saddle near the product": (np.array([0, 1, 2, 2.95, 3.0]), np.array([0.0, 9, 20, 30.5, 30]), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_every_path_gives_a_png(case: str) -> None:
    s, energies, top = CASES[case]
    data = barrier_profile(s, energies, top, title="C2H4O → C2H4O", subtitle="intended, imaginary mode 2109i cm⁻¹")
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (960, 630)


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"one point"}))
def test_labels_are_inside_and_do_not_overlap(case: str, drawn: list[Figure]) -> None:
    s, energies, top = CASES[case]
    barrier_profile(s, energies, top, title="C4H6 + C2H4 → C6H10", subtitle="intended, imaginary mode 394i cm⁻¹")
    figure = drawn[0]
    axes: Axes = figure.axes[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    texts = [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, f"{name!r} is cut"
    for (name, box), (other, second) in combinations(boxes, 2):
        assert not box.overlaps(second), f"{name!r} on {other!r}"
    line = np.asarray(axes.lines[1].get_xydata())
    dense = np.linspace(line[0, 0], line[-1, 0], 2000)
    curve = axes.transData.transform(np.column_stack([dense, np.interp(dense, *line.T)]))
    for label in labels:
        box = label.get_window_extent(renderer)
        inside = (curve > [box.x0, box.y0]).all(1) & (curve < [box.x1, box.y1]).all(1)
        assert not inside.any(), f"the curve runs through {label.get_text()!r}"
    assert len(labels) == 3
    assert axes.yaxis.get_offset_text().get_text() == "", "an exponent above the axis is easily missed"


def test_a_title_longer_than_the_picture_is_cut(drawn: list[Figure]) -> None:
    s, energies, top = CASES["ordinary"]
    barrier_profile(s, energies, top, title="C6H10: " + "[CH2:1]=[CH:2][CH2:3]$" * 6)
    figure = drawn[0]
    title = figure.axes[0]._left_title  # type: ignore[attr-defined]
    assert title.get_text().endswith("…")
    assert title.get_window_extent(FigureCanvasAgg(figure).get_renderer()).x1 <= figure.bbox.x1


def test_a_product_as_high_as_the_reactant_has_no_sign(drawn: list[Figure]) -> None:
    s, energies, top = hump(28.6, 0.01)
    barrier_profile(s, energies, top, title="C6H10")
    assert "product\n0.0" in [text.get_text() for text in drawn[0].axes[0].texts]


def test_labels_say_what_was_found(drawn: list[Figure]) -> None:
    s, energies, top = CASES["endothermic"]
    barrier_profile(s, energies, top, title="HCN → CHN", labels=("HCN", "HNC"))
    axes = drawn[0].axes[0]
    said = [text.get_text() for text in axes.texts]
    assert "TS\n73.2" in said and "HCN" in said and "HNC\n+20.0" in said
    assert axes.get_ylabel() == "energy relative to HCN, kcal/mol"
    line = np.asarray(axes.lines[1].get_xydata())
    assert np.allclose(line, np.column_stack([s, energies]))


def test_the_backend_of_a_notebook_stays() -> None:
    code = (
        "import sys, matplotlib; matplotlib.use('svg'); from molgen.report.plots import barrier_profile; "
        "barrier_profile([0, 1, 2], [0, 5, 1], 1, title='H2'); "
        "assert matplotlib.get_backend() == 'svg' and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
