"""Smooth profiles and the barriers read off them, against a double well that is known exactly."""

from __future__ import annotations

from functools import cache
from itertools import count

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.reweight import barrier
from molgen.reweight.barrier import Barrier, find_barrier, profile_barrier
from molgen.reweight.free_energy import CVValues
from molgen.reweight.importance import normalised
from molgen.reweight.profile import SmoothDensity
from molgen.units import KB

T = 300.0
KT = KB * T
LIMITS, EDGES = (-1.5, 1.5), np.linspace(-1.5, 1.5, 31)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
FINE = np.linspace(*LIMITS, 30_001)


def surface(x: np.ndarray) -> np.ndarray:
    """Wells at -1 and 1, kT: the right one 2 kT higher, 20 kT between."""
    return 20 * (x**2 - 1) ** 2 + x


@cache
def heights() -> np.ndarray:
    """Top above the left, the right, both on average; right above left, kT."""
    f = surface(FINE)
    top, left, right = f[np.abs(FINE) < 0.5].max(), f[FINE < 0].min(), f[FINE > 0].min()
    return np.array([top - left, top - right, right - left, top - (left + right) / 2])


def draws(n: int, seed: int, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Evenly drawn x and log-weights with the noise of an imperfect proposal."""
    rng = np.random.default_rng([11, seed])  # not the stream of the bootstrap
    x = rng.uniform(*LIMITS, n)
    return x, -surface(x) + noise * rng.standard_normal(n)


def read(x: np.ndarray, log_w: np.ndarray, **options) -> Barrier:
    given = {"between": (-1.0, 1.0), "limits": LIMITS, "width": 0.25, "replicas": 60, **options}
    period = given.pop("period", None)
    return profile_barrier(CVValues("x", x, "A", period), log_w, normalised(log_w), T, **given)


def of_bins(x: np.ndarray, log_w: np.ndarray) -> float:
    """Highest bin above the mean of the lowest ones, kT."""
    with np.errstate(divide="ignore"):
        f = -np.log(np.histogram(x, EDGES, weights=normalised(log_w))[0])
    return float(f[np.abs(CENTRES) < 0.25].max() - (f[CENTRES < 0].min() + f[CENTRES > 0].min()) / 2)


@cache
def ninety() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and errors (90, 4) of 90 seeds, kT, and what bins say (90,)."""
    values, errors, binned = [], [], []
    for seed in range(90):
        x, log_w = draws(1500, seed)
        found = read(x, log_w)
        parts = (found.forward, found.reverse, found.reaction, found.mean)
        values.append([part.value / KT for part in parts])
        errors.append([part.error / KT for part in parts])
        binned.append(of_bins(x, log_w))
    return np.array(values), np.array(errors), np.array(binned)


def test_the_top_is_not_biased_where_that_of_bins_is():
    """About 12 effective samples a bin: the highest bin is 0.2 kT too high against that of very many samples."""
    values, _, binned = ninety()
    many = of_bins(*draws(2_000_000, 1, noise=0.0))
    scatter = values.std(0, ddof=1) / 90**0.5
    assert (np.abs(values.mean(0) - heights()) < 3 * scatter + 0.03).all() and scatter.max() < 0.04
    assert (binned - many).mean() > 0.12 > 2.5 * np.abs(values.mean(0) - heights())[3]


def test_its_errors_are_those_of_repeated_runs():
    values, errors, _ = ninety()
    assert errors.mean(0) / values.std(0, ddof=1) == pytest.approx(1, abs=0.2)
    inside = np.abs(values - heights()) < errors
    assert inside.mean(0) == pytest.approx(0.68, abs=0.12)
    assert (np.abs(values - heights()) < 2 * errors).mean() > 0.9


def test_place_samples_and_tails():
    x, log_w = draws(4000, 0, noise=0.5)
    found = read(x, log_w)
    assert found.place == pytest.approx(FINE[np.argmax(np.where(np.abs(FINE) < 0.5, surface(FINE), 0))], abs=0.05)
    assert found.forward.reliable and 700 < found.samples < 1300
    heavy = log_w + 3 * np.random.default_rng(1).pareto(1.2, len(x))
    assert not read(x, heavy).forward.reliable
    few = read(x[:200], log_w[:200])
    assert not few.forward.reliable or few.forward.khat < 0.5


def test_across_the_seam_of_a_period():
    """The same well, its top at the ends of the period."""
    x, log_w = draws(6000, 3, noise=0.5)
    turned = np.where(x > 0, x - 1.5, x + 1.5)  # the wells at -0.5 and 0.5, now in the other order
    seam = read(turned, log_w, between=(0.5, 2.5), limits=(0.0, 3.0), period=3.0)
    plain = read(x, log_w)
    assert seam.mean.value == pytest.approx(plain.mean.value, rel=1e-6)
    assert seam.place - 1.5 == pytest.approx(plain.place, abs=1e-6)


def test_a_stray_far_away_leaves_the_barrier_alone():
    x, log_w = draws(20_000, 4, noise=0.3)
    alone = read(x, log_w, limits=None, width=None)
    stray = read(np.append(x, 40.0), np.append(log_w, log_w.max() - 20), limits=None, width=None)
    assert stray.mean.value == pytest.approx(alone.mean.value, abs=0.05 * KT)
    assert alone.mean.value == pytest.approx(heights()[3] * KT, abs=0.5 * KT) and stray.mean.reliable


@pytest.mark.parametrize(("between", "top"), [((-1.0, 1.0), True), ((0.3, 1.0), False), ((-1.0, -0.4), False)])
def test_a_place_on_the_slope_has_no_top_beside_it(between: tuple[float, float], top: bool):
    found = read(*draws(4_000, 3, noise=0.3), between=between)
    assert found.forward.reliable == top and found.forward.why == ("" if top else barrier.SLOPE)


def test_one_group_has_no_error_and_is_not_reliable():
    x, log_w = draws(2_000, 5)
    one = profile_barrier(CVValues("x", x, "A"), log_w, normalised(log_w), T, between=(-1, 1), groups=np.zeros(2_000))
    assert np.isnan(one.forward.error) and not one.forward.reliable


def test_a_top_that_stems_from_a_few_draws_is_not_reliable():
    """Copies around the top: of as many draws as there are copies, or of a dozen."""
    x, log_w = draws(4000, 3, noise=0.3)
    apart = np.arange(len(x))
    assert read(x, log_w, groups=apart).forward.reliable
    assert not read(x, log_w, groups=np.where(np.abs(x) < 0.5, apart % 12, apart)).forward.reliable


def test_density_is_normalised_and_gaps_are_unknown():
    x = np.random.default_rng(0).normal(0, 0.4, 60_000)
    x = x[np.abs(x) < 1.5]
    made = SmoothDensity.of(x, np.full(len(x), 1 / len(x)), LIMITS, 12)
    exact = -(made.centres**2) / 0.32 - np.log(0.4 * (2 * np.pi) ** 0.5)
    middle = np.abs(made.centres) < 1.0
    assert np.abs(made.log_density() - exact)[middle].max() < 0.06
    assert np.exp(made.log_density()) @ made.step == pytest.approx(1, abs=0.01)
    doubled = made.log_density(np.where(x > 0, 2.0, 1.0) / len(x))
    assert (doubled - made.log_density())[made.centres > 0.5] == pytest.approx(np.log(2), abs=0.05)
    apart = SmoothDensity.of(x[np.abs(x) > 0.3], np.ones((np.abs(x) > 0.3).sum()), LIMITS, 12)
    assert np.isneginf(apart.log_density()[np.abs(made.centres) < 0.2]).all()
    assert np.isfinite(apart.log_density()[np.abs(np.abs(made.centres) - 0.6) < 0.2]).all()
    log_w = np.where(np.abs(x) > 0.3, 0.0, -np.inf)
    gap = read(x, log_w)
    assert gap.forward.value == np.inf and not gap.forward.reliable and abs(gap.place) < 0.1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"between": (1.0, -1.0)}, "low <= first < second"),
        ({"between": (-1.0, 2.0)}, "between -1 and 2 on -1.5 to 1.5"),
        ({"limits": None, "between": (-1.0, 9.0)}, "between -1 and 9, where samples reach from -1"),
        ({"width": 0.0}, "a width above 0"),
        ({"between": 5}, "between: 5 given"),
        ({"limits": (4,)}, "limits: "),
        ({"limits": (-4.0, 4.0), "period": 3.0}, "more than a whole turn"),
        ({"limits": (3.0, 5.0), "between": (3.5, 4.0)}, "no sample with a weight between 3 and 5"),
    ],
)
def test_bad_input(options: dict, match: str):
    with pytest.raises(InputError, match=match):
        read(*draws(100, 0), **options)
    with pytest.raises(InputError, match="3 intervals"):
        SmoothDensity.of(np.zeros(3), np.ones(3), LIMITS, 3)


NARROW = np.linspace(-2, 2, 8001)


def bond_and_bowl(centre: float) -> np.ndarray:
    """kT over `NARROW`: a well as narrow as a bond (35 eV/A^2) at `centre`, a broad one at 0.8, a smooth top."""
    bond, bowl = (NARROW - centre) ** 2 * 35 / KT / 40, (NARROW - 0.8) ** 2 / 0.18
    return 20 - 20 * np.exp(-bond) - 19 * np.exp(-bowl) + 2 * NARROW**4


def biased_draws(free: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As a well-tempered run draws: x from exp(-F/12), log-weights with the noise of its paths."""
    rng = np.random.default_rng([12, seed])
    share = np.cumsum(np.exp(-free / 12))
    at = np.searchsorted(share / share[-1], rng.random(n))
    x = NARROW[at] + rng.uniform(-0.5, 0.5, n) * (NARROW[1] - NARROW[0])
    return x, -free[at] * 11 / 12 + 0.6 * rng.standard_normal(n)


def test_wells_narrower_than_a_knot_interval():
    """Wherever they lie between the knots: 0.4 to 1 kT off with errors of 0.05 where knots are even."""
    off = []
    for centre in (-0.8, -0.85, -0.9):
        free = bond_and_bowl(centre)
        inner = (NARROW > centre) & (NARROW < 0.8)
        top = free[inner].max()
        exact = np.array([top - free[NARROW < centre + 0.1].min(), top - free[NARROW > 0.5].min()])
        for seed in range(4):
            for width in (None, 0.2):
                found = read(
                    *biased_draws(free, 12_000, seed), limits=(-2, 2), width=width, between=(centre, 0.8), replicas=30
                )
                assert found.forward.reliable and found.forward.error < 0.4 * KT
                parts, truths = (found.forward, found.reverse, found.reaction), (*exact, exact[0] - exact[1])
                off.append([(part.value / KT - t, part.error / KT) for part, t in zip(parts, truths, strict=True)])
    bias, error = np.moveaxis(np.array(off), -1, 0)
    assert (np.abs(bias.mean(0)) < error.mean(0)).all() and (np.sqrt((bias / error) ** 2).mean(0) < 1.5).all()


def test_knots_are_set_closer_in_the_narrow_well_only():
    x, log_w = biased_draws(bond_and_bowl(-0.85), 12_000, 0)
    even = SmoothDensity.of(x, normalised(log_w), (-2.0, 2.0), 20)
    for groups in (None, np.arange(12_000)):
        made = even.refined(x, groups)
        finer = made.step < 0.9 * even.step[0]
        assert finer[np.abs(made.centres + 0.85).argmin()] and (made.centres[finer] < 0.4).all()
    together = np.repeat(np.arange(12), 1000)[np.argsort(np.argsort(x))]  # what a dozen groups tell may be chance
    assert len(even.refined(x, together).step) <= len(even.refined(x).step)
    assert even.halved(x, np.zeros(20, dtype=bool)) is None


def test_a_barrier_that_finer_knots_still_move_is_not_reliable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("molgen.reweight.profile.HALVINGS", 0)
    monkeypatch.setattr("molgen.reweight.barrier.FINER", 0)
    x, log_w = biased_draws(bond_and_bowl(-0.85), 12_000, 0)
    found = read(x, log_w, limits=(-2, 2), width=0.25, between=(-0.85, 0.8), replicas=30)
    assert not found.forward.reliable and found.reaction.error > 0.25 * KT


def test_replicas_without_a_top_say_nothing_of_the_minima(monkeypatch: pytest.MonkeyPatch):
    x, log_w = draws(4000, 0, noise=0.5)
    plain, figures, calls = read(x, log_w), barrier._profile_figures, count()

    def torn(*given) -> np.ndarray:
        found = figures(*given)
        return np.array([np.inf, 500.0, -300.0, found[3]]) if next(calls) % 5 == 4 else found

    monkeypatch.setattr(barrier, "_profile_figures", torn)
    found = read(x, log_w)
    assert found.reaction.value == pytest.approx(plain.reaction.value, abs=0.1 * KT)
    assert found.reaction.error < 0.2 * KT


def test_a_variable_that_saturates_has_no_height_that_nobody_saw() -> None:
    """Progress along a path piles up at 0 and 1, a step to nothing: the curve rang to hundreds of kT."""
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(side * 6.0, 2.5, 8_000) for side in (-1, 1)])
    s = 1 / (1 + np.exp(-x))
    weights = np.full(len(s), 1 / len(s))
    found = profile_barrier(
        CVValues("s", s), np.zeros(len(s)), weights, 300.0,
        between=(0.0, 1.0), limits=(-0.05, 1.05), width=0.04, replicas=20,
    )  # fmt: skip
    top = -np.log(np.histogram(s, 50, (0, 1), density=True)[0])
    seen = KB * 300.0 * (top[5:-5].max() - top.min())
    for height in (found.forward, found.reverse):
        assert not height.reliable and (np.isinf(height.value) or height.value < 3 * seen)


def test_a_curve_that_overshoots_its_samples_is_seen() -> None:
    x = np.random.default_rng(5).random(4_000) ** 8  # piled up against 0
    weights = np.full(len(x), 1 / len(x))
    beyond = SmoothDensity.of(x, weights, (-0.05, 1.0), 26).refined(x)
    within = SmoothDensity.of(x, weights, (0.0, 1.0), 25)
    assert beyond.rings() and not within.rings()


def test_a_redraw_whose_curve_runs_away_is_not_all_that_the_error_shows() -> None:
    """Two diabatic states, 16 kT between them: one redraw of 200 had its top at 205 kT."""
    free = 25 * (NARROW**2 + 1) - np.sqrt((50 * NARROW) ** 2 + 100)
    middle = 25 - 10.0
    push = np.clip(11 / 12 * (middle + 1 - free), 0, None)
    share = np.cumsum(np.exp(-free - push + (free + push).min()))
    rng = np.random.default_rng(0)
    x = np.interp(rng.random(20_000), share / share[-1], NARROW)
    log_w = np.interp(x, NARROW, push) + 0.6 * rng.standard_normal(len(x))
    found = read(x, log_w, limits=None, width=None, replicas=200).forward
    assert found.reliable and 0.04 * KT < found.error < 0.15 * KT
    assert found.value / KT == pytest.approx(middle - free.min(), abs=0.25)


def test_few_far_redraws_move_neither_median_nor_error_by_much() -> None:
    table, normal = iter([*([300.0] * 6), *([np.nan] * 4)]), np.random.default_rng(1).standard_normal
    middle, error, lost = barrier._spread(lambda w: np.array([next(table, normal()), 1.0]), WEIGHTS, None, 200, 0)
    assert abs(middle[0]) < 0.25 and 0.9 < error[0] < 1.6 and error[1] == 0 and lost == pytest.approx([0.02, 0.0])
    nothing = barrier._spread(lambda w: np.array([np.nan, 1.0]), WEIGHTS, None, 10, 0)
    assert np.isnan(nothing[1][0]) and nothing[2].tolist() == [1.0, 0.0]


WEIGHTS = np.full(60, 1 / 60)


def test_a_curve_does_not_begin_at_a_lone_sample() -> None:
    x = np.append(np.random.default_rng(0).uniform(0.0, 1.0, 2_000), [-0.6, 1.7])
    assert barrier._occupied(x, -2.0, 2.0, 0.2, 0.8) == pytest.approx((0.0, 1.0), abs=0.01)
    assert barrier._occupied(x, -2.0, 2.0, -0.5, 0.8)[0] == -0.5  # a place that was given is kept
    assert barrier._occupied(x[:1], -2.0, 2.0, 0.2, 0.8) == (0.2, 0.8)


@pytest.mark.parametrize(("every", "reliable"), [(12, True), (3, False)])
def test_redraws_whose_curves_ring_are_left_out_and_many_are_said(
    monkeypatch: pytest.MonkeyPatch, every: int, reliable: bool
) -> None:
    """Both kinds of barrier, `every` curve of which rings."""
    x, log_w = draws(4000, 0, noise=0.5)
    calls, rings = count(1), SmoothDensity.rings
    monkeypatch.setattr(
        SmoothDensity, "rings",
        lambda self, w=None, *a: next(calls) % every == 0 if w is not None and (w == 0).any() else rings(self, w, *a),
    )  # fmt: skip
    s, slopes = (x + 1.5) / 3, np.ones(len(x))
    for found in (
        read(x, log_w, replicas=50),
        find_barrier(s, slopes, log_w, normalised(log_w), T, near=0.5, replicas=50),
    ):
        assert found.forward.reliable is reliable and found.forward.error < KT
        assert reliable or "of the redraws for its error have no such height" in found.forward.why
