"""The flow without chemistry: paths, velocities, and the solver against flows that are solved on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from molgen.flow.interpolant import straight_path, velocity
from molgen.flow.solvers import integrate


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_straight_path_begins_and_ends_where_it_should() -> None:
    x_0, x_1 = normal(0, 3, 5, 3), normal(1, 3, 5, 3)
    x_t = straight_path(x_0, x_1, torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64))
    assert torch.equal(x_t[0], x_0[0]) and torch.equal(x_t[2], x_1[2])
    assert torch.allclose(x_t[1], 0.75 * x_0[1] + 0.25 * x_1[1], atol=1e-15)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_velocity_is_the_derivative_of_the_path(t: float) -> None:
    x_0, x_1 = normal(0, 2, 4, 3), normal(1, 2, 4, 3)
    time = torch.full((2,), t, dtype=torch.float64)
    dual = torch.func.jvp(lambda s: straight_path(x_0, x_1, s), (time,), (torch.ones_like(time),))
    x_t, slope = dual[0], dual[1]
    assert torch.allclose(velocity(x_t, x_1, t), slope, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37])
def test_constant_end_point_is_reached_exactly(steps: int) -> None:
    target = normal(2, 4, 6, 3)
    assert torch.equal(integrate(lambda x, t: target, normal(3, 4, 6, 3), steps), target)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_calls_and_times(steps: int) -> None:
    """Heun looks at both ends of a step, Euler's last step at its beginning; never at t = 1."""
    times: list[float] = []

    def endpoint(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return x

    integrate(endpoint, normal(0, 1, 2, 3), steps)
    expected = sorted([k / steps for k in range(steps)] + [k / steps for k in range(1, steps)])
    assert times == pytest.approx(expected)


def test_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        integrate(lambda x, t: x, normal(0, 1, 2, 3), 0)


def orders(errors: list[float]) -> list[float]:
    """Observed orders of convergence when each error has twice the steps of the one before."""
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


def test_second_order_on_a_linear_flow() -> None:
    """dx/dt = A x, so x(1) = exp(A) x(0); its end point is x + (1 - t) A x."""
    a = 0.5 * normal(4, 3, 3)
    x_0 = normal(5, 2, 7, 3)
    exact = x_0 @ torch.linalg.matrix_exp(a).mT
    errors = [
        float((integrate(lambda x, t: x + (1 - t) * x @ a.mT, x_0, steps) - exact).abs().max())
        for steps in (16, 32, 64, 128)
    ]
    assert all(1.9 < order < 2.1 for order in orders(errors)), orders(errors)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_second_order_on_the_exact_flow_between_gaussians(sigma: float) -> None:
    """N(0, 1) to N(m, s^2), unpaired: E[x_1 | x_t] is known, and the flow carries x_0 to m + s x_0."""
    mean = 1.3

    def endpoint(x: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 + (t * sigma) ** 2
        return mean + t * sigma**2 / variance * (x - t * mean)

    x_0 = normal(6, 5, 3, 3)
    errors = [
        float((integrate(endpoint, x_0, steps) - (mean + sigma * x_0)).abs().max()) for steps in (20, 40, 80, 160)
    ]
    assert all(1.7 < order < 2.3 for order in orders(errors)), orders(errors)
    assert errors[-1] < 1e-3
