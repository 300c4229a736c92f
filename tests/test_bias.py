"""The well-tempered bias against direct sums of Gaussians and a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from molgen.cvdiffusion.bias import Axis, WellTemperedBias
from molgen.cvdiffusion.correct import correction
from molgen.errors import InputError
from molgen.units import KB
from molgen.workflows.fes_output import _cap_reached

PHI = Axis("phi 1", "rad", -np.pi, np.pi, 36, 2 * np.pi)
DISTANCE = Axis("distance 0 4", "A", 2.0, 6.0, 20, None)
RG = Axis("rg", "A", 3.0, 5.0, 10, None)
AXES, WIDTHS = (PHI, DISTANCE, RG), (0.35, 0.4, 0.4)  # spacing of half a width, the coarsest allowed
T, GAMMA = 300.0, 8.0
KT = KB * T


def bias(dims: int = 2, **options) -> WellTemperedBias:
    return WellTemperedBias(AXES[:dims], WIDTHS[:dims], **{"gamma": GAMMA, "temperature": T, **options})


def points(n: int, dims: int, seed: int) -> np.ndarray:
    low, high = np.array([a.low for a in AXES[:dims]]), np.array([a.high for a in AXES[:dims]])
    return np.random.default_rng(seed).uniform(low, high, (n, dims))


def gaussians(at: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """exp(-(s - c)^2 / 2 w^2) of every point and centre (B, H), the nearest image along phi."""
    d = at[:, None] - centres[None]
    d[..., 0] = (d[..., 0] + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-((d / np.array(WIDTHS[: at.shape[1]])) ** 2).sum(-1) / 2)


def direct(b: WellTemperedBias, at: np.ndarray) -> np.ndarray:
    return gaussians(at, b.hills.centres) @ b.hills.heights


def nodes(b: WellTemperedBias) -> np.ndarray:
    return np.stack([m.ravel() for m in np.meshgrid(*(a.nodes for a in b.axes), indexing="ij")], axis=1)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_bias_is_the_sum_of_its_hills(dims):
    b = bias(dims)
    b.add(points(1, dims, 0), 0.1)
    height = b.hills.heights[0]
    assert height == pytest.approx(0.1)
    at = points(20000, dims, 1)
    worst = np.abs(b.evaluate(at)[0] - direct(b, at)).max() / height
    assert 0.4 * dims / 2**4 / 128 < worst < 1.3 * dims / 2**4 / 128  # 3/384 (spacing/width)^4 along each axis
    b.add(points(60, dims, 2), 0.5)
    exact = direct(b, nodes(b))
    assert b.evaluate(nodes(b))[0] == pytest.approx(exact, abs=1e-12)
    assert b.values.ravel() == pytest.approx(exact, abs=1e-12)
    assert np.abs(b.evaluate(at)[0] - direct(b, at)).max() < 2e-3 * b.hills.heights.sum()


def test_error_falls_with_the_fourth_power_of_the_spacing():
    errors, at = [], np.linspace(-1, 1, 5001)[:, None]
    for bins in (36, 72, 144):
        b = WellTemperedBias([Axis("phi", "rad", -np.pi, np.pi, bins, 2 * np.pi)], [0.35], GAMMA, T)
        b.add([[0.3]], 1.0)
        errors.append(np.abs(b.evaluate(at)[0] - np.exp(-(((at[:, 0] - 0.3) / 0.35) ** 2) / 2)).max())
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.3) and errors[1] / errors[2] == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_gradient_is_that_of_the_value(dims):
    b = bias(dims)
    b.add(points(40, dims, 3), 1.0)
    at = points(500, dims, 4)
    gradient = b.evaluate(at)[1]
    exact = np.stack([(direct(b, at + e) - direct(b, at - e)) / 2e-5 for e in 1e-5 * np.eye(dims)], axis=1)
    for d, e in enumerate(1e-5 * np.eye(dims)):
        found = (b.evaluate(at + e)[0] - b.evaluate(at - e)[0]) / 2e-5
        assert gradient[:, d] == pytest.approx(found, abs=1e-7)
    assert np.abs(gradient - exact).max() < 0.02 * np.abs(exact).max()


def test_gradient_does_not_jump_at_nodes():
    b = bias(2)
    b.add(points(50, 2, 5), 1.0)
    inner = nodes(b)
    inner = inner[(inner[:, 1] > 2) & (inner[:, 1] < 6)]
    inner[:, 1] += np.random.default_rng(0).choice([0.0, 0.07], len(inner))  # on nodes, and on edges between them
    scale = np.abs(b.evaluate(inner)[1]).max()
    value, gradient = b.evaluate(inner)
    for step in np.array([[1e-12, 0], [0, 1e-12], [1e-12, 1e-12]]):
        for sign in (-1, 1):
            v, g = b.evaluate(inner + sign * step)
            assert np.abs(v - value).max() < 1e-10 * scale and np.abs(g - gradient).max() < 1e-10 * scale


def test_period_wraps():
    b, moved = bias(2), bias(2)
    centres = points(30, 2, 6)
    centres[:10, 0] = np.pi - 0.05  # next to the seam
    b.add(centres, 1.0)
    moved.add(centres + [4 * np.pi, 0], 1.0)
    assert moved.hills.centres == pytest.approx(b.hills.centres, abs=1e-12)
    at = points(200, 2, 7)
    for turn in (-6 * np.pi, 2 * np.pi):
        for one, other in zip(b.evaluate(at), b.evaluate(at + [turn, 0]), strict=True):
            assert other == pytest.approx(one, abs=1e-11)
    seam = [np.column_stack([np.full(5, x), np.linspace(2, 6, 5)]) for x in (-np.pi, np.pi, -np.pi + 1e-13)]
    left, right, inside = (b.evaluate(s) for s in seam)
    assert left[0] == pytest.approx(right[0], abs=1e-12) and left[1] == pytest.approx(right[1], abs=1e-11)
    assert left[1] == pytest.approx(inside[1], abs=1e-11)
    assert left[0].max() > 0.1
    assert (b.hills.centres[:, 0] >= -np.pi).all() and (b.hills.centres[:, 0] < np.pi).all()


def test_beyond_the_edges():
    b = bias(2)
    b.add(points(50, 2, 8), 1.0)
    x = np.linspace(-3, 3, 7)
    for edge, beyond in ((2.0, 1.0), (6.0, 7.0), (6.0, np.inf), (2.0, -np.inf)):
        on = b.evaluate(np.column_stack([x, np.full(7, edge)]))
        out = b.evaluate(np.column_stack([x, np.full(7, beyond)]))
        assert np.array_equal(on[0], out[0]) and np.array_equal(on[1][:, 0], out[1][:, 0])
        assert (out[1][:, 1] == 0).all() and np.isfinite(on[1]).all() and (on[1][:, 1] != 0).all()
    v, g = b.evaluate([[np.nan, 4.0], [0.0, np.nan], [np.inf, 4.0], [0.0, 4.0]])
    assert np.isnan(v[:3]).all() and np.isnan(g[:3]).all() and np.isfinite(v[3]) and np.isfinite(g[3]).all()
    assert b.evaluate(np.zeros((0, 2)))[1].shape == (0, 2)
    assert not bias(2).evaluate(points(5, 2, 0))[0].any()


def test_tempering_is_sequential():
    b = bias(2)
    centres = points(80, 2, 9)
    centres[40:] = centres[:40] + 0.01
    b.add(centres, 4.0)
    heights = np.zeros(80)
    for i in range(80):
        v = gaussians(centres[i : i + 1], centres[:i]) @ heights[:i]
        heights[i] = 4.0 / 80 * np.exp(-v[0] / (KT * (GAMMA - 1)))
    assert b.hills.heights == pytest.approx(heights, rel=1e-12)
    assert heights.min() < 0.8 * heights.max()


def test_rounds_see_each_other_through_the_grid():
    one, many = bias(2), bias(2)
    centres = points(40, 2, 10)
    one.add(centres, 2.0)
    for centre in centres:
        many.add(centre[None], 2.0 / 40)
    assert many.hills.heights == pytest.approx(one.hills.heights, rel=2e-3)
    assert not one.hills.round.any() and many.hills.round.tolist() == list(range(40)) and many.rounds == 40
    assert one.hills.centres.shape == (40, 2)


def test_batches_beyond_one_go_on_where_the_last_ended():
    b = bias(1)
    centres = points(700, 1, 11)
    b.add(centres, 2.0)
    assert len(b.hills.heights) == 700 and not b.hills.round.any()
    assert b.hills.centres == pytest.approx(centres, abs=0)
    assert b.values == pytest.approx(direct(b, nodes(b)), abs=1e-12)
    late = gaussians(centres[600:601], centres[:600]) @ b.hills.heights[:600]
    assert b.hills.heights[600] == pytest.approx(2.0 / 700 * np.exp(-late[0] / (KT * (GAMMA - 1))), rel=2e-3)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_height_is_shared(count):
    b = bias(2, gamma=1e9)  # hardly any tempering
    b.add(np.tile([[0.2, 4.0]], (count, 1)), 0.3)
    assert b.hills.heights.sum() == pytest.approx(0.3, rel=1e-6)
    assert b.evaluate([[0.2, 4.0]])[0][0] == pytest.approx(0.3, rel=2e-3)


def test_cap():
    b = bias(1, cap=0.05)
    b.add(np.full((100, 1), PHI.nodes[10]), 1.0)
    top = b.evaluate([[PHI.nodes[10]]])[0][0]
    assert 0.05 <= top < 0.05 + 0.01 and 4 < len(b.hills.heights) < 10
    before = b.state()
    b.add(np.full((3, 1), PHI.nodes[10]), 1.0)
    assert np.array_equal(b.state()["grid"], before["grid"]) and b.rounds == 2 and b.skipped == 0
    b.add([[2.0]], 1.0)
    assert b.hills.round[-1] == 2


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_batch_that_lies_at_the_cap_adds_nothing(dims):
    b, place = bias(dims, cap=0.05), points(1, dims, 0)
    b.add(np.repeat(place, 100, axis=0), 1.0)
    before = b.state()
    b.add(np.repeat(place, 3, axis=0), 1.0)
    assert np.array_equal(b.state()["grid"], before["grid"]) and b.rounds == 2


def test_unusable_centres_are_skipped():
    b, clean = bias(2), bias(2)
    good = [[0.0, 2.0], [1.0, 6.0]]  # the ends of the grid count
    bad = [[np.nan, 4.0], [0.0, 1.9999], [0.0, 6.1], [np.inf, 4.0], [0.0, -np.inf]]
    b.add(good[:1] + bad + good[1:], 0.7)
    clean.add(good, 0.2)  # 0.1 a hill in either
    assert b.skipped == 5 and clean.skipped == 0
    assert b.values == pytest.approx(clean.values, rel=1e-12) and b.hills.centres.tolist() == good
    b.add(np.zeros((0, 2)), 1.0)
    b.add(bad, 1.0)
    assert b.skipped == 10 and b.rounds == 3 and len(b.hills.heights) == 2 and np.isfinite(b.values).all()


def test_resume_is_bitwise():
    whole, resumed = bias(2), bias(2)
    for seed in range(4):
        if seed == 2:
            resumed.load_state({key: array.copy() for key, array in whole.state().items()})
        for b in (whole, resumed)[: 1 if seed < 2 else 2]:
            b.add(np.concatenate([points(50, 2, seed), [[0.0, 9.0]]]), 0.5)
    one, other = whole.state(), resumed.state()
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
    assert (whole.skipped, whole.rounds) == (resumed.skipped, resumed.rounds) == (4, 4)
    at = points(50, 2, 99)
    assert np.array_equal(whole.evaluate(at)[1], resumed.evaluate(at)[1])
    one["grid"][:] = 0
    assert whole.values.any()  # a copy


def test_foreign_states_are_refused():
    b, other = bias(2), bias(2, gamma=5.0)
    b.add(points(5, 2, 0), 1.0)
    with pytest.raises(InputError, match="another bias"):
        other.load_state(b.state())
    with pytest.raises(InputError, match="another bias"):
        bias(3).load_state(b.state())
    with pytest.raises(InputError, match="no grid, round"):
        bias(2).load_state({key: a for key, a in b.state().items() if key not in ("grid", "round")})
    assert not other.values.any()


def test_free_energy_of_a_converged_bias():
    axis = Axis("x", "A", -2.0, 2.0, 80)
    b = WellTemperedBias([axis], [0.1], 5.0, T)
    x, rng = axis.nodes, np.random.default_rng(0)
    well = 0.15 * (x**2 - 1) ** 2
    for _ in range(1500):
        p = np.exp(-(well + b.values) / KT)
        b.add(rng.choice(x, 20, p=p / p.sum())[:, None], 0.01)
    inside = np.abs(x) < 1.3
    error = (b.free_energy() - well)[inside]
    assert b.free_energy().min() == 0 and np.std(error) < 0.3 * KT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, "bias factor 1.0"),
        ({"gamma": np.inf}, "bias factor"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"cap": 0.0}, "cap 0.0"),
        ({"axes": ()}, "0 axes"),
        ({"axes": (PHI,) * 4, "widths": [0.4] * 4}, "4 axes"),
        ({"widths": [0.4]}, "1 hill widths"),
        ({"widths": [0.4, 0.0]}, "hill width 0.0"),
        ({"widths": [0.4, np.nan]}, "hill width nan"),
        ({"axes": (PHI, Axis("d", "A", 3.0, 3.0, 10, None))}, "axis 'd'.*range"),
        ({"axes": (PHI, Axis("d", "A", 3.0, np.inf, 10, None))}, "axis 'd'.*range"),
        ({"axes": (Axis("phi", "rad", 0.0, np.pi, 36, 2 * np.pi), DISTANCE)}, "axis 'phi'.*period"),
        ({"axes": (PHI, Axis("d", "A", 2.0, 6.0, 19, None))}, "(?s)axis 'd'.*too coarse for the hill width.*20 bins"),
        ({"axes": (PHI, Axis("d", "A", 2.0, 6.0, 0, None))}, "(?s)axis 'd'.*too coarse for the hill width.*20 bins"),
    ],
)
def test_unusable_settings(options, message):
    with pytest.raises(InputError, match=message):
        WellTemperedBias(**{"axes": (PHI, DISTANCE), "widths": [0.4, 0.4], "gamma": GAMMA, "temperature": T, **options})


def test_unusable_calls():
    b = bias(2)
    for centres in (np.zeros(2), np.zeros((4, 3))):
        with pytest.raises(InputError, match="centres of shape"):
            b.add(centres, 1.0)
        with pytest.raises(InputError, match="points of shape"):
            b.evaluate(centres)
    for height in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="hill height"):
            b.add(points(3, 2, 0), height)
    assert b.rounds == 0


@pytest.mark.parametrize("dims", [1, 2])
def test_path_weights_correct_a_lopsided_bias(dims: int):
    """Off by 2 kT from well to well, noisy weights: two corrections bring it to the well-tempered limit, as hills."""
    axes = [Axis("x", "A", -2.0, 2.0, 160), Axis("t", "rad", -np.pi, np.pi, 64, 2 * np.pi)][:dims]
    b = WellTemperedBias(axes, [0.1, 0.4][:dims], 12.0, T)
    rng, at = np.random.default_rng([3, dims]), np.meshgrid(*[axis.nodes for axis in axes], indexing="ij")
    free = 8 * (at[0] ** 2 - 1) ** 2 + (np.cos(at[1]) if dims == 2 else 0)
    ideal, low = -(1 - 1 / b.gamma) * free, free - free.min() < 9
    start = np.stack([a.ravel() for a in at], 1)
    steps = np.array([axis.spacing for axis in axes]) / b.widths
    lopsided = (ideal + 1.0 * at[0] - ideal.min()).ravel()
    b.correct(start, KT * lopsided * np.prod(steps) / (2 * np.pi) ** (dims / 2))

    def off() -> float:
        return float(np.std((b.values / KT - ideal)[low]))

    errors = [off()]
    for _ in range(2):
        p = np.exp(-(free + b.values / KT)).ravel()
        s = start[rng.choice(len(start), 4000, p=p / p.sum())]
        b.correct(*correction(b, s, softmax(0.7 * rng.standard_normal(4000))))
        errors.append(off())
    assert errors[0] > 0.8 and errors[2] < 0.3
    assert (b.hills.heights < 0).any() and b.rounds == 3 and b.hills.round.max() == 2
    some = start[:: len(start) // 50]
    gauss = np.ones((len(some), len(b.hills.heights)))
    for d, axis in enumerate(axes):
        gauss *= np.exp(-((axis.difference(some[:, None, d], b.hills.centres[None, :, d]) / b.widths[d]) ** 2) / 2)
    assert b.evaluate(some)[0] == pytest.approx(gauss @ b.hills.heights, abs=2e-3 * np.abs(b.hills.heights).sum())


def test_nothing_to_correct_by():
    b = bias(1)
    centres, heights = correction(b, np.zeros((40, 1)), (np.arange(40) == 0).astype(float))
    assert centres.shape == (0, 1) and heights.shape == (0,)


def test_a_bias_that_has_grown_to_its_cap_is_known():
    low = bias(1, cap=KT * 5)
    low.add(points(4, 1, 0), 0.01)
    assert _cap_reached(low) is None and _cap_reached(bias(1)) is None
    for seed in range(60):
        low.add(points(64, 1, seed), 20 * KT)
    assert _cap_reached(low) == pytest.approx(5)
