"""Langevin dynamics of many walkers at once, for the references that samplers are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

MASS = 12.0  # amu of every atom: masses leave the distribution alone
FRICTION = 0.02  # 1/fs
ACCELERATION = 9.648533e-3  # eV/(A amu) in A/fs^2


def baoab(
    forces: Callable[[np.ndarray], np.ndarray], x: np.ndarray, kt: float, step: float, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Positions (W, N, 3), step after step, without end (BAOAB; Leimkuhler and Matthews 2013).

    Args:
        forces: (W, N, 3) Angstrom -> (W, N, 3) eV/Angstrom; NaN stops that walker for a step.
        step: fs.
    """
    decay, kick = np.exp(-FRICTION * step), np.sqrt(kt / MASS * ACCELERATION)
    v = kick * rng.standard_normal(x.shape)
    force = np.nan_to_num(forces(x))
    while True:
        v = v + 0.5 * step * force / MASS * ACCELERATION
        x = x + 0.5 * step * v
        v = decay * v + kick * np.sqrt(1 - decay**2) * rng.standard_normal(v.shape)
        x = x + 0.5 * step * v
        force = forces(x)
        lost = ~np.isfinite(force).all((1, 2))
        force[lost], v[lost] = 0.0, 0.0
        v = v + 0.5 * step * force / MASS * ACCELERATION
        yield x
