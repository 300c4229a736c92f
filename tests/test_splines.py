"""Splines on the line and densities on the circle: inverses, derivatives, normalisation, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from molgen.flow.splines import (
    BOUND,
    SPLINE_PARAMETERS,
    circular_log_density,
    circular_quantile,
    rational_quadratic,
)

SCALES = pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 1e3], ids=["identity", "mild", "strong", "extreme"])
KNOTS = 24


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spline_inputs(scale: float, n: int = 400) -> tuple[Tensor, Tensor]:
    """Points inside and outside of [-4, 4], every one with parameters of its own."""
    return torch.linspace(-6, 6, n, dtype=torch.float64), normal(n, SPLINE_PARAMETERS) * scale


# the line


@SCALES
def test_inverse_undoes_the_spline(scale: float) -> None:
    x, parameters = spline_inputs(scale)
    y, slope = rational_quadratic(x, parameters)
    back, inverse_slope = rational_quadratic(y, parameters, inverse=True)
    assert torch.isfinite(slope).all() and torch.isfinite(inverse_slope).all()
    # where the spline is flat, x is known only as well as y / slope
    assert ((back - x).abs() * slope.clamp(max=0).exp()).max() < 1e-11
    if scale <= 5:
        assert torch.allclose(slope, -inverse_slope, atol=1e-9)
    again, _ = rational_quadratic(back, parameters)
    assert torch.allclose(again, y, atol=1e-11)


@SCALES
@pytest.mark.parametrize("inverse", [False, True])
def test_derivative_is_autograds(scale: float, inverse: bool) -> None:
    x, parameters = spline_inputs(scale)
    x.requires_grad_()
    y, log_slope = rational_quadratic(x, parameters, inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all(), "monotone"
    assert torch.allclose(slope.log(), log_slope, atol=1e-8 if scale <= 5 else 1e-4)


@SCALES
def test_one_spline_rises_everywhere_and_is_the_identity_outside(scale: float) -> None:
    x = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    y, slope = rational_quadratic(x, (normal(SPLINE_PARAMETERS, seed=3) * scale).expand(len(x), -1))
    assert (y.diff() > 0).all()
    outside = x.abs() >= BOUND
    assert torch.equal(y[outside], x[outside]) and not slope[outside].any()
    assert ((y.abs() < BOUND) == (x.abs() < BOUND)).all()
    if scale == 0:
        assert torch.allclose(y, x, atol=1e-12) and slope.abs().max() < 1e-12


def test_spline_gradients_reach_the_parameters() -> None:
    x, parameters = spline_inputs(1.0, 4)  # one outside at either end
    x = x + 0.013  # off the knots
    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, p, inverse=inverse: rational_quadratic(x, p, inverse),  # type: ignore[misc]
            (x.requires_grad_(), parameters.requires_grad_()),
        )


def test_float32_is_finite_at_extremes() -> None:
    x, parameters = spline_inputs(1e3)
    for inverse in (False, True):
        y, slope = rational_quadratic(x.float(), parameters.float(), inverse)
        assert torch.isfinite(y).all() and torch.isfinite(slope).all()


# the circle

HEIGHTS = pytest.mark.parametrize(
    "heights",
    [
        torch.zeros(KNOTS, dtype=torch.float64),
        normal(KNOTS, seed=1),
        normal(KNOTS, seed=2) * 30,
        torch.where(torch.arange(KNOTS) == 5, 0.0, -700.0).double(),
        torch.linspace(0, 5e-4, KNOTS, dtype=torch.float64),
    ],
    ids=["flat", "mild", "strong", "spike", "almost flat"],
)


def masses_up_to(phi: Tensor, heights: Tensor) -> Tensor:
    """Share of the density below each angle, integrated segment by segment: it is log-linear between knots."""
    knots = torch.arange(KNOTS + 1, dtype=torch.float64) * (2 * math.pi / KNOTS) - math.pi
    begins, ends = knots[:-1], torch.minimum(phi[:, None], knots[1:]).clamp(min=knots[:-1])
    inside = torch.minimum(ends, knots[1:] - 1e-12)  # the last angle of a segment is the first of the next
    both = [circular_log_density(p.flatten(), heights.expand(p.numel(), -1)).view(p.shape) for p in (begins, inside)]
    rise = both[1] - both[0]
    growth = torch.where(rise.abs() < 1e-8, 1 + rise / 2, torch.expm1(rise) / rise)
    return ((ends - begins) * both[0].exp() * growth).nan_to_num(0.0).sum(1)


@HEIGHTS
def test_circular_density_integrates_to_one(heights: Tensor) -> None:
    assert float(masses_up_to(torch.tensor([math.pi]).double(), heights)) == pytest.approx(1, abs=1e-8)
    phi = torch.linspace(-math.pi, math.pi, 40001, dtype=torch.float64)
    density = circular_log_density(phi, heights.expand(len(phi), -1)).exp()
    coarse = {-100: 0.5, -20: 2e-2}  # a trapezoid rule is no better than this on peaks
    tolerance = next((t for limit, t in coarse.items() if heights.min() < limit), 1e-6)
    assert float(torch.trapezoid(density, phi)) == pytest.approx(1, abs=tolerance)


@HEIGHTS
def test_circular_density_is_log_linear_between_its_knots(heights: Tensor) -> None:
    knots = torch.arange(KNOTS + 1, dtype=torch.float64) * (2 * math.pi / KNOTS) - math.pi
    at = circular_log_density(knots, heights.expand(len(knots), -1))
    middle = circular_log_density((knots[1:] + knots[:-1]) / 2, heights.expand(KNOTS, -1))
    assert torch.allclose(at[:-1] - at[0], heights - heights[0], atol=1e-9)
    assert torch.allclose(middle, (at[1:] + at[:-1]) / 2, atol=1e-9)
    assert float(at[0]) == pytest.approx(float(at[-1]), abs=1e-9), "periodic"


@HEIGHTS
def test_quantile_inverts_the_cumulative_density(heights: Tensor) -> None:
    """And its derivative is the inverse density."""
    u = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    found = circular_quantile(u, heights.expand(len(u), -1))
    assert (found.diff() > 0).all() and found.abs().max() <= math.pi
    assert (masses_up_to(found, heights) - u).abs().max() < 1e-8

    u = u.requires_grad_()
    (slope,) = torch.autograd.grad(circular_quantile(u, heights.expand(len(u), -1)).sum(), u)
    expected = -circular_log_density(found, heights.expand(len(u), -1))
    assert torch.allclose(slope.log(), expected, atol=1e-7)


@HEIGHTS
def test_quantiles_of_the_ends_are_the_ends(heights: Tensor) -> None:
    ends = circular_quantile(torch.tensor([0.0, 1e-15, 1 - 1e-15, 1.0]).double(), heights.expand(4, -1))
    assert torch.isfinite(ends).all() and (ends.diff() >= 0).all()
    assert ends.abs().max() <= math.pi + 1e-12
    if heights.min() > -20:
        assert torch.allclose(ends[[0, 3]], torch.tensor([-math.pi, math.pi]).double(), atol=1e-12)


def test_turning_the_heights_turns_the_density() -> None:
    heights, turns = normal(KNOTS, seed=4), 7
    phi = torch.linspace(-3.1, 3.1, 100, dtype=torch.float64)
    turned = torch.remainder(phi + turns * 2 * math.pi / KNOTS + math.pi, 2 * math.pi) - math.pi
    assert torch.allclose(
        circular_log_density(phi, heights.expand(100, -1)),
        circular_log_density(turned, heights.roll(turns).expand(100, -1)),
        atol=1e-12,
    )


def test_quantiles_of_random_numbers_are_distributed_as_the_density_says() -> None:
    """Kolmogorov-Smirnov against a cumulative density integrated exactly."""
    heights = normal(KNOTS, seed=5) * 2
    u = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = circular_quantile(u, heights.expand(len(u), -1)).sort().values
    empirical = (torch.arange(len(u)) + 0.5) / len(u)
    assert float((masses_up_to(found, heights) - empirical).abs().max()) < 1.63 / math.sqrt(len(u))  # 1 % level


def test_circular_gradients() -> None:
    heights = normal(6, KNOTS, seed=6).requires_grad_()
    phi = torch.linspace(-3, 3, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(circular_log_density, (phi, heights))
    u = torch.linspace(0.07, 0.93, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(circular_quantile, (u, heights))


def test_gradients_stay_finite_at_extremes() -> None:
    for heights in (normal(8, KNOTS) * 1e3, torch.zeros(8, KNOTS).double(), normal(8, KNOTS) * 1e-9):
        heights.requires_grad_()
        u = torch.linspace(0.01, 0.99, 8, dtype=torch.float64)
        value = circular_log_density(torch.linspace(-3, 3, 8, dtype=torch.float64), heights).sum()
        value = value + circular_quantile(u, heights).sum()
        (gradient,) = torch.autograd.grad(value, heights)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
