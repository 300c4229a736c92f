"""Basins, barriers between them, and regions that no sample reached, on surfaces that are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fes_cases import X

from molgen.errors import InputError
from molgen.reweight.barrier import profile_barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.estimate import Estimate
from molgen.reweight.free_energy import CVValues
from molgen.reweight.profile import SmoothDensity
from molgen.units import KB
from molgen.variables import path_s
from molgen.workflows import fes_output
from molgen.workflows.fes_basins import Basin, barriers, basins, untold, unvisited, walled
from molgen.workflows.fes_surfaces import apart

T = 300.0
KT = KB * T
EDGES = np.linspace(-np.pi, np.pi, 49)


def ensemble_of(values: np.ndarray, free: np.ndarray, period: float | None) -> Ensemble:
    """Samples (n, D) with weights exp(-free)."""
    cvs = {name: CVValues(name, values[:, d], "rad", period) for d, name in zip(range(2), "ab", strict=False)
           if d < values.shape[1]}  # fmt: skip
    return Ensemble(np.zeros((len(free), 1, 3)), -free, np.zeros(len(free)), T, np.array([1]), cvs=cvs)


def on_circle(free, period: float | None, n: int = 20_000, seed: int = 0):
    """An ensemble along one angle, its surface and basins."""
    a = np.random.default_rng([5, seed]).uniform(-np.pi, np.pi, n)
    ensemble = ensemble_of(a[:, None], free(a), period)
    fes = ensemble.fes("a", bins=[EDGES])
    return ensemble, fes, basins(ensemble, fes)


def three_wells(a: np.ndarray) -> np.ndarray:
    """Minima near -2.1, 0 and 2.1, kT; the middle one deepest, tops of different height, the highest at the seam."""
    return 4 * (1 - np.cos(3 * a)) + 1.5 * (1 - np.cos(a))


def test_barriers_around_a_circle_and_on_a_line():
    fine = np.linspace(-np.pi, np.pi, 100_001)
    f = three_wells(fine)
    middle = f[np.abs(fine) < 1.0].min()
    side = f[(fine > 1.2) & (fine < 2.9)].min()
    top, seam = f[(fine > 0) & (fine < 2.0)].max(), f[-1]
    for period, count in ((2 * np.pi, 3), (None, 2)):
        ensemble, fes, found = on_circle(three_wells, period)
        rows = barriers(ensemble, fes, found)
        assert len(found) == 3 and len(rows) == count
        for one, other, barrier in rows:
            ends = [middle if abs(found[k].minimum[0]) < 1 else side for k in (one, other)]
            height = seam if middle not in ends else top
            assert barrier.forward.value / KT == pytest.approx(height - ends[0], abs=0.2)
            assert barrier.reverse.value / KT == pytest.approx(height - ends[1], abs=0.2)
            assert 0.01 < barrier.forward.error / KT < 0.15 and barrier.forward.reliable
        places = sorted(abs(barrier.place) for *_, barrier in rows)
        assert places[0] == pytest.approx(fine[np.argmax(np.where((fine > 0) & (fine < 2), f, 0))], abs=0.1)
    assert barriers(ensemble, fes, found[:1]) == []


@pytest.mark.parametrize(("spread", "said"), [(0.3, True), (3.0, False)])
def test_a_surface_of_a_part_of_the_range_says_so(spread, said):
    a = np.random.default_rng(3).uniform(-spread, spread, 4000)
    notes = unvisited(ensemble_of(a[:, None], np.zeros(4000), None).fes("a", bins=[EDGES]))
    assert any("of 48 bins of the range" in note for note in notes) == said


def test_two_basins_on_a_circle_have_two_barriers():
    ensemble, fes, found = on_circle(lambda a: 3 - 3 * np.cos(2 * a) + (1 - np.cos(a)), 2 * np.pi)
    rows = barriers(ensemble, fes, found)
    assert [(one, other) for one, other, _ in rows] in ([(0, 1), (1, 0)], [(1, 0), (0, 1)])
    heights = [row[2].mean.value / KT for row in rows]
    assert heights[0] == pytest.approx(heights[1], abs=0.2) and heights[0] > 4  # mirror images of one another


def test_the_ensemble_reads_the_same_barrier():
    ensemble, _, _ = on_circle(three_wells, 2 * np.pi)
    cv, between = ensemble.cvs["a"], (-0.1, 2.1)
    mine = ensemble.barrier("a", between, limits=(-1.1, 3.1), width=0.28)
    direct = profile_barrier(
        cv, ensemble.log_weights, ensemble.weights, T, between=between, limits=(-1.1, 3.1), width=0.28
    )
    assert mine == direct
    around = ensemble.barrier("a", between)  # a period around the middle, 1.0
    assert around.forward.value == pytest.approx(mine.forward.value, abs=0.15 * KT)
    line = ensemble_of(np.random.default_rng(1).uniform(-1, 1, (4000, 1)), np.zeros(4000), None)
    assert line.barrier("a", (-0.5, 0.5)).forward.value < 0.3 * KT
    with pytest.raises(InputError, match="low <= first < second"):
        line.barrier("a", (-0.5, 1.5))


def plane(free, keep, walled=None) -> list[str]:
    """What a surface over two angles, sampled where `keep` says, may lack."""
    points = np.random.default_rng(2).uniform(-np.pi, np.pi, (60_000, 2))
    points = points[keep(*points.T)]
    ensemble = ensemble_of(points, free(*points.T), None)
    return unvisited(ensemble.fes(["a", "b"], bins=[np.linspace(-np.pi, np.pi, 25)] * 2), walled)


def test_a_surface_that_stops_at_a_low_place_is_pointed_out():
    """A bowl sampled up to 12 kT lacks nothing; cut off at its side, or in two, it does."""

    def bowl(a, b):
        return 4 * (a**2 + b**2)

    assert plane(bowl, lambda a, b: bowl(a, b) < 12) == []
    cut = plane(bowl, lambda a, b: (bowl(a, b) < 12) & (a < np.pi / 12))
    assert len(cut) == 1 and "beside low ones" in cut[0] and "(22.5 degrees, " in cut[0]
    beyond = np.repeat(np.linspace(-np.pi, np.pi, 25)[1:, None] > np.pi / 8, 24, 1)
    assert plane(bowl, lambda a, b: (bowl(a, b) < 12) & (a < np.pi / 12), beyond) == [], "a wall is there"
    halves = plane(bowl, lambda a, b: (bowl(a, b) < 12) & (np.abs(a) > 0.6))
    assert any("2 parts of the surface are joined by no sample" in note for note in halves)


def test_a_path_does_not_go_on_beyond_its_ends():
    """Progress piles up at 0, below which `path-s` has no values; another variable may have some."""
    structures = np.array([[[0.0, 0, 0], [x, 0, 0]] for x in (1.0, 2.0)])
    s = np.random.default_rng(5).beta(1.0, 3.0, (8_000, 1))
    fes = ensemble_of(s, np.zeros(len(s)), None).fes("a", bins=[np.linspace(-0.05, 1.05, 56)])
    beyond = walled(fes, [path_s(structures)], [])
    assert fes.centres[0][beyond].tolist() == pytest.approx([-0.04, -0.02, 1.02, 1.04])
    assert unvisited(fes, beyond) == [] and not walled(fes, [X], []).any()
    assert len(notes := unvisited(fes)) == 1 and notes[0].startswith("a bin without a sample lies beside low ones")


def test_along_one_variable():
    assert unvisited(on_circle(three_wells, 2 * np.pi)[1]) == []
    a = np.random.default_rng(3).uniform(-np.pi, np.pi, 20_000)
    a = a[np.abs(a - 1.0) > 0.4]
    part = ensemble_of(a[:, None], three_wells(a), 2 * np.pi).fes("a", bins=[EDGES])
    assert all("parts" not in note for note in unvisited(part))  # around the circle it is one part
    part = ensemble_of(a[:, None], three_wells(a), None).fes("a", bins=[EDGES])
    assert any("2 parts" in note for note in unvisited(part))


def test_few_bins_do_not_agree() -> None:
    """Surfaces are compared up to a constant, which alone would make one bin agree, and a failed run look perfect."""
    flat, where = np.zeros(6), np.ones(6, dtype=bool)
    assert apart(flat, flat + 3.0, where) == 0.0
    assert apart(flat, flat + 3.0, np.arange(6) < 3) == np.inf


@pytest.mark.parametrize(
    ("forward", "reverse", "known"),
    [((1.0, 0.1), (2.0, 0.1), True), ((-0.1, 0.05), (2.0, 0.1), False), ((0.1, 0.2), (2.0, 0.1), False),
     ((1.0, float("nan")), (2.0, 0.1), False)],
)  # fmt: skip
def test_ripples_are_no_barriers(forward: tuple, reverse: tuple, known: bool) -> None:
    sides = (Estimate(value, error, 0.1, True, "eV") for value, error in (forward, reverse))
    barrier = SimpleNamespace(**dict(zip(("forward", "reverse"), sides, strict=True)))
    assert fes_output._known(barrier) is known  # type: ignore[arg-type]
    said = fes_output._dropped([(0, 2, barrier)])  # type: ignore[list-item]
    assert len(said) == (not known) and all(text.startswith("the barrier between basins 0 and 2: ") for text in said)
    lost = replace(barrier.forward, error=np.nan, why="no standard error")
    barrier.forward = lost
    assert fes_output._dropped([(0, 2, barrier)])[0].endswith("2: no standard error")  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("khat", "reliable", "label"),
    [(0.3, True, "0.29 ± 0.11"), (0.61, True, "0.29 ± 0.11 or more"), (0.8, False, "0.29 ± 0.11, not reliable")],
)
def test_the_picture_marks_errors_as_the_report_does(khat: float, reliable: bool, label: str) -> None:
    basin = Basin((0.0,), Estimate(0.29, 0.11, khat, reliable, "eV"), 0.4, 900)
    assert fes_output._label(basin, 1.0) == label


def test_a_replica_that_leaves_no_sample_within_the_limits():
    values = np.linspace(0.0, 1.0, 50)
    density = SmoothDensity.of(values, np.where(values < 0.9, 1 / 45, 0.0), (0.0, 0.9), 6)
    assert np.isneginf(density.log_density((values >= 0.95) / 3)).all()


def test_basins_of_a_few_samples_are_not_told_and_said_to_be_there():
    rng = np.random.default_rng(6)
    a = np.concatenate([rng.normal(-2.1, 0.2, 2000), rng.normal(0.0, 0.05, 8), rng.normal(2.0, 0.05, 6)])
    ensemble = ensemble_of(a[:, None], np.zeros(len(a)), 2 * np.pi)
    fes = ensemble.fes("a", bins=[EDGES])
    found = basins(ensemble, fes)
    assert len(found) == 1 and found[0].free_energy.reliable
    assert untold(ensemble, fes) == [
        "2 basins with 0.7% of the weight have too few samples to be told (fewer than 25 each)"
    ]
    few = ensemble_of(a[2000:, None], np.zeros(14), 2 * np.pi)
    fes = few.fes("a", bins=[EDGES])
    assert [basin.free_energy.reliable for basin in basins(few, fes)] == [False]
    assert "100.0% of the weight" in untold(few, fes)[0]
    assert untold(*on_circle(three_wells, 2 * np.pi)[:2]) == []


@pytest.mark.parametrize("n", [8_000, 36_000])
@pytest.mark.parametrize("depth", [0.0, 3.0])
def test_noise_of_sparse_bins_is_no_basin(depth: float, n: int) -> None:
    """A flat surface of two angles, or one with a single minimum, by samples whose weights scatter."""
    rng = np.random.default_rng([7, n])
    x = rng.uniform(-np.pi, np.pi, (n, 2))
    free = depth * (2 - np.cos(x).sum(1)) + 1.3 * rng.standard_normal(n)
    ensemble = ensemble_of(x, free, 2 * np.pi)
    assert len(basins(ensemble, ensemble.fes(["a", "b"], bins=[EDGES[::2], EDGES[::2]]))) == 1
    wells = ensemble_of(x, 4 * (2 - np.cos(2 * x[:, 0]) - np.cos(x[:, 1])) + rng.standard_normal(n), 2 * np.pi)
    assert len(basins(wells, wells.fes(["a", "b"], bins=[EDGES[::2], EDGES[::2]]))) == 2


def test_scatter_of_path_weights_is_no_disagreement() -> None:
    """The same surface twice, once by weights that scatter; and one that is off by more than that."""
    rng = np.random.default_rng(3)
    x, where = rng.uniform(-np.pi, np.pi, (8_000, 2)), np.ones((24, 24), bool)
    even, odd = (ensemble_of(x, np.zeros(len(x)) + s * rng.standard_normal(len(x)), 2 * np.pi) for s in (0.0, 1.3))
    one, other = (e.fes(["a", "b"], bins=[EDGES[::2], EDGES[::2]]) for e in (odd, even))
    plain, beyond = (apart(one.free_energy, other.free_energy, where, error=e) / KT for e in (None, one.error))
    assert plain > 0.3 and beyond < 0.15
    tilted = other.free_energy + KT * np.cos(one.centres[0])[:, None]
    assert apart(one.free_energy, tilted, where, error=one.error) / KT == pytest.approx(0.5**0.5, abs=0.1)


def test_a_top_at_the_end_of_a_profile_is_no_barrier() -> None:
    """A density that rises from its lower end: unknown, and no error that would end a run."""
    x = np.random.default_rng(4).beta(3.0, 1.0, 4_000)
    for between in ((0.0, 0.5), (0.0005, 0.5)):
        found = profile_barrier(
            CVValues("x", x, ""), np.zeros(len(x)), np.full(len(x), 1 / len(x)), T, between=between,
            limits=(0.0, 1.0),
        )  # fmt: skip
        assert not found.forward.reliable and not np.isfinite(found.forward.error)
