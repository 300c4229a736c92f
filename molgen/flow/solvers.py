"""Integrate a flow whose network predicts the end point."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from molgen.flow.interpolant import velocity


def integrate(endpoint: Callable[[Tensor, float], Tensor], x_0: Tensor, steps: int) -> Tensor:
    """Carry x_0 (B, ...) from t = 0 to t = 1 in uniform steps of Heun's method; the last is the end point itself.

    At t = 1 the velocity (x_1 - x_t) / (1 - t) is 0/0, so the last step is Euler's, which lands on endpoint(x, t).
    Calls `endpoint` 2 * steps - 1 times; exact for any number of steps if `endpoint` is constant.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    x, h = x_0, 1 / steps
    for k in range(steps - 1):
        t = k * h
        v = velocity(x, endpoint(x, t), t)
        ahead = x + h * v
        x = x + h / 2 * (v + velocity(ahead, endpoint(ahead, t + h), t + h))
    return endpoint(x, 1 - h)
