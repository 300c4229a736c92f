"""Pictures of ensembles: drawn for whatever comes, showing the numbers they should, nothing cut off."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from molgen.data.peptide import build_peptide
from molgen.errors import InputError
from molgen.report import ensemble_plots, fes_plots
from molgen.reweight import FES, CVValues, Ensemble, normalised
from molgen.reweight.free_energy import histogram_fes
from molgen.units import KB, KCAL_MOL, KJ_MOL
from molgen.variables import backbone_torsions, torsion, values

T = 310.0


def random_peptide(sequence: str, cap: str | None, log_weights: np.ndarray) -> Ensemble:
    peptide = build_peptide(sequence, cap)
    n, atoms = len(log_weights), len(peptide.numbers)
    positions = 3 * np.random.default_rng(0).normal(size=(n, atoms, 3))
    return Ensemble(positions, log_weights, np.zeros(n), T, peptide.numbers, peptide.mdtraj_topology())


def panels(figure: Figure) -> list[Any]:
    """Visible axes, the colour bar left out."""
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


def words(figure: Figure) -> str:
    texts = [text.get_text() for axes in figure.axes for text in [axes.title, axes.xaxis.label, axes.yaxis.label]]
    suptitle = figure.get_suptitle()
    return "\n".join([suptitle, *texts])


def nothing_sticks_out(figure: Figure) -> bool:
    """No word of the figure lies outside it, by more than a hundredth of an inch."""
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    return min(box.x0, box.y0) > -0.01 and box.x1 < size[0] + 0.01 and box.y1 < size[1] + 0.01


def is_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 2000


@pytest.mark.parametrize(
    ("sequence", "cap", "count", "labels"),
    [
        ("AC", None, 2, ["φ CYS 1, ψ ALA 0"]),
        ("A", "ace-nme", 2, ["ALA 1"]),
        ("AHWP", None, 6, ["HIS 1", "TRP 2", "φ PRO 3, ψ ALA 0"]),
        ("ACDEFGHI", None, 14, ["CYS 1", "HIS 6", "φ ILE 7, ψ ALA 0"]),
        ("ACDEFGHIKLMN", "ace-nme", 24, ["ALA 1", "ASN 12"]),
    ],
)
def test_ramachandran_has_a_row_for_every_residue(drawn, sequence, cap, count, labels):
    ensemble = random_peptide(sequence, cap, np.random.default_rng(1).normal(size=60))
    assert is_png(ensemble_plots.ramachandran(ensemble, title=sequence))
    (figure,) = drawn
    assert len(panels(figure)) == count
    for text in [*labels, sequence, "as sampled", "reweighted", "φ, degrees", "free energy, kJ/mol"]:
        assert text in words(figure)
    assert nothing_sticks_out(figure)
    boxes = [axes.get_position() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(box.width * figure.get_figwidth() == pytest.approx(1.55) for box in boxes[:-1])
    assert all(box.height * figure.get_figheight() == pytest.approx(1.55) for box in boxes[:-1])


@pytest.mark.parametrize(("unit", "energy"), [("kJ/mol", KJ_MOL), ("kcal/mol", KCAL_MOL)])
def test_ramachandran_shows_the_free_energy(drawn, unit, energy):
    ensemble = random_peptide("ACD", None, np.random.default_rng(1).normal(size=2000))
    positions = ensemble.positions.copy()
    positions[0] = np.nan
    ensemble = Ensemble(
        positions, np.r_[np.nan, ensemble.log_weights[1:]], ensemble.energies, T, ensemble.numbers, ensemble.topology
    )
    ensemble_plots.ramachandran(ensemble, unit=unit)
    sampled, reweighted = panels(drawn[0])[:2]
    angles = backbone_torsions(build_peptide("ACD").mdtraj_topology())
    pair = np.degrees([values(torsion(*angles[name][1]), positions[1:]) for name in ("phi", "psi")])
    edges = np.linspace(-180, 180, 37)
    for axes, w in ((sampled, np.full(1999, 1 / 1999)), (reweighted, ensemble.weights[1:])):
        share = np.histogram2d(*pair, bins=[edges, edges], weights=w)[0]
        with np.errstate(divide="ignore"):
            expected = -KB * T * np.log(share / share.max()) / energy
        shown = axes.collections[0].get_array().filled(np.inf)
        assert shown.reshape(36, 36) == pytest.approx(expected.T, abs=1e-6)  # phi along x
    assert f"free energy, {unit}" in words(drawn[0])


WEIGHTS = {
    "ordinary": np.random.default_rng(0).normal(size=3000),
    "heavy": -0.9 * np.log(np.random.default_rng(0).random(3000)),
    "hopeless": 300 * np.random.default_rng(0).normal(size=3000),
    "some zero": np.r_[np.random.default_rng(0).normal(size=3000), np.full(500, -np.inf)],
    "few": np.r_[np.random.default_rng(0).normal(size=20), np.full(10, np.nan)],
    "equal": np.zeros(300),
    "one": np.array([3.0]),
    "none": np.full(30, np.nan),
}
VERDICTS = dict(zip(WEIGHTS, "reliable biased failed reliable failed reliable failed failed".split(), strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_of_every_kind(drawn, case):
    assert is_png(ensemble_plots.weights(WEIGHTS[case], title=case))
    (figure,) = drawn
    assert figure.get_suptitle().startswith(f"{case}\nESS ") and figure.get_suptitle().endswith(VERDICTS[case])
    assert nothing_sticks_out(figure)


def test_the_tail_is_the_fitted_pareto(drawn):
    """w = u^-0.4: the share above w is w^-2.5, a straight line of slope -2.5 in these axes."""
    log_w = -0.4 * np.log(np.random.default_rng(2).random(10000))
    ensemble_plots.weights(log_w)
    points, fit, cutoff = drawn[0].axes[1].lines
    shift = np.log(np.exp(log_w).mean())
    x, y = points.get_data()
    for share in (0.1, 0.01):
        at = x[np.argmin(np.abs(y - share))] + shift
        assert np.exp(at) == pytest.approx(np.quantile(np.exp(log_w), 1 - share), rel=0.01)
    x, y = fit.get_data()
    assert y == pytest.approx(np.exp(-2.5 * (x + shift)), rel=0.35)
    assert np.polyfit(x, np.log(y), 1)[0] == pytest.approx(-2.5, abs=0.5)
    assert cutoff.get_xdata()[0] + shift == pytest.approx(np.sort(log_w)[-300])


def test_a_verdict_of_the_caller_is_printed(drawn):
    ensemble_plots.weights(WEIGHTS["ordinary"], judged="biased", ancestors=0.1234)
    assert drawn[0].get_suptitle().endswith("biased") and "ESS 12.3 % by ancestor of " in drawn[0].get_suptitle()
    assert nothing_sticks_out(drawn[0])


def surface(dimensions: int, n: int = 3000) -> FES:
    rng = np.random.default_rng(3)
    cvs = [
        CVValues("phi 1", rng.vonmises(0, 2, n), "rad", 2 * np.pi),
        CVValues("distance 0 5", rng.normal(5, 1, n), "A"),
    ][:dimensions]
    log_w = 0.3 * rng.normal(size=n)
    return histogram_fes(cvs, log_w, normalised(log_w), T, bins=24)


def plain(fes: FES, unit: str = "kJ/mol", **words: str) -> bytes:
    """The surface without other estimates, basins and samples."""
    return fes_plots.surface(fes, {}, [], np.zeros((0, len(fes.edges))), unit=unit, **words)


def test_curve(drawn):
    fes = surface(1)
    assert is_png(plain(fes, title="AA, 310 K", subtitle="path weights"))
    assert nothing_sticks_out(drawn[0])
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("phi 1, degrees", "free energy, kJ/mol")
    x, y = axes.lines[0].get_data()
    known = np.isfinite(fes.free_energy)
    assert (x[0], x[-1], y[0], y[-1]) == pytest.approx((-187.5, 187.5, y[-2], y[1]), nan_ok=True)  # once round
    assert axes.get_xlim() == pytest.approx((-180, 180))
    x, y = x[1:-1], y[1:-1]
    assert x == pytest.approx(np.degrees(fes.centres[0]))
    assert y[known] == pytest.approx(fes.free_energy[known] / KJ_MOL) and np.isnan(y[~known]).all()
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() <= (fes.free_energy + fes.error)[known].max() / KJ_MOL + 1e-9


def test_surface_of_a_run_shows_every_bin(drawn):
    """A lone bin at a top of the path too: it is what a barrier is read from."""
    fes = surface(2, 60)
    basins, samples = [((0.5, 5.0), "0")], np.array([[0.4, 4.9], [0.6, 5.1]])
    assert is_png(fes_plots.surface(fes, {}, basins, samples, unit="kcal/mol", title="free energy, 310 K"))
    assert nothing_sticks_out(drawn[0])
    axes = panels(drawn[0])[0]
    shown = axes.collections[0].get_array().filled(np.inf).reshape(24, 24).T
    known = np.isfinite(fes.free_energy)
    assert shown[known] == pytest.approx(fes.free_energy[known] / KCAL_MOL) and np.isinf(shown[~known]).all()
    assert axes.get_xlim() == pytest.approx((-180, 180))
    dots, minimum = (line.get_xydata() for line in axes.lines)
    assert dots == pytest.approx(samples * [180 / np.pi, 1])
    assert minimum[0] == pytest.approx([np.degrees(0.5), 5.0])


@pytest.mark.parametrize("dimensions", [1, 2])
def test_labels_of_basins_are_apart_and_within_the_axes(drawn, dimensions):
    """Neighbours, one in a corner and one at the seam of a torsion."""
    minima = [(0.5, 5.0), (0.7, 5.2), (-3.0, 7.9), (3.1, 5.2)]
    basins = [(minimum[:dimensions], f"{k}.21 ± 0.05") for k, minimum in enumerate(minima)]
    fes_plots.surface(surface(dimensions), {}, basins, np.zeros((0, dimensions)), unit="kcal/mol")
    axes = drawn[0].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    frame = axes.get_window_extent()
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_curve_of_a_run_shows_lone_points(drawn):
    fes = surface(1, 12)
    assert is_png(fes_plots.surface(fes, {"bias": fes.free_energy}, [], np.zeros((0, 1)), unit="kJ/mol"))
    assert drawn[0].axes[0].lines[0].get_marker() == "o"


def test_surfaces_at_the_ends():
    s = CVValues("s", np.ones(5))
    empty = histogram_fes([s], np.full(5, np.nan), np.zeros(5), T, bins=3, ranges=[(0, 2)])
    assert is_png(plain(empty))
    cvs = [s, CVValues("t", np.ones(5))]
    for w in (np.zeros(5), np.full(5, 0.2)):
        one = histogram_fes(cvs, np.zeros(5), w, T, bins=(1, 3), ranges=[(0, 2), (0, 2)])
        assert is_png(plain(one))


def test_bad_input():
    bare = Ensemble(np.zeros((3, 1, 3)), np.zeros(3), np.zeros(3), T, np.array([1]))
    with pytest.raises(InputError, match="no topology"):
        ensemble_plots.ramachandran(bare)
    with pytest.raises(InputError, match="unknown unit 'eV'.*\n.*kJ/mol or kcal/mol"):
        plain(surface(1), unit="eV")


def test_no_figure_is_left_open():
    ensemble_plots.weights(WEIGHTS["ordinary"])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
