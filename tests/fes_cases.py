"""Model systems for the CV-biased sampler, small enough for a second or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molgen.cvdiffusion.bias import Axis, WellTemperedBias
from molgen.cvdiffusion.controller import ControllerConfig, build_controller
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import Sampler, SamplerSettings
from molgen.cvdiffusion.space import CartesianSpace
from molgen.cvdiffusion.target import Target, closest_allowed
from molgen.cvdiffusion.walls import Wall
from molgen.potentials.analytic import DoubleWell, Harmonic
from molgen.potentials.base import Potential
from molgen.reweight.ensemble import Ensemble
from molgen.variables import CV, custom, distance
from molgen.workflows import fes
from molgen.workflows.fes import FesSettings, sample_cv
from molgen.workflows.fes_outcome import outcome
from molgen.workflows.fes_surfaces import surfaces

T = 300.0
START = [[[-1.0, 0.0, 0.0]]]
X = custom("x", lambda p: p[:, 0, 0], "A")
RANGE = (-2.2, 2.2)
TINY = FesSettings(
    sampler=SamplerSettings(rounds=6, draws=32, learn=3, batch=32, pretrain=12, width=0.15, refit=2),
    schedule=Schedule(start=25.0, steps=8), samples=60, frames=30, hidden=16, stop=False, repair="never",
)  # fmt: skip

SQUARE = 1.6 * np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.1, 0.2, 1]])


def wells() -> DoubleWell:
    """Two wells 10 kT deep, the left one deeper by 4 kT."""
    return DoubleWell(barrier=0.25, tilt=0.05)


def run_wells(**options: Any) -> Any:
    """`run_fes` of the double well, tiny unless told otherwise: (ensemble, summary)."""
    from molgen.workflows.fes import run_fes

    given: dict[str, Any] = {"cvs": [X], "temperature": T, "starts": START, "ranges": [RANGE], "settings": TINY}
    given |= options
    return run_fes(given.pop("potential", None) or wells(), **given)


class Faulty(DoubleWell):
    """The double well with a NaN for every so many-th sample of a call that is larger than one."""

    def __init__(self, every: int):
        super().__init__(barrier=0.25, tilt=0.05)
        self.every = every

    def _evaluate(self, positions, forces):
        energy, force = super()._evaluate(positions, forces)
        if len(positions) > 1:
            energy[:: self.every] = np.nan
        return energy, force


def four_atoms(potential: Potential | None = None, hills: int = 20) -> Target:
    """Four atoms on springs, a bias on one distance, a wall on another."""
    axis = Axis("distance 0 1", "A", 0.5, 3.0, 60)
    bias = WellTemperedBias([axis], [0.12], 8.0, T)
    if hills:
        bias.add(np.random.default_rng(0).uniform(1.2, 2.0, (hills, 1)), 0.4)
    wall = Wall(distance(0, 2), 1.6, True, 3.0)
    potential = potential or Harmonic(SQUARE, 4.0, [6, 6, 8, 1])
    least = closest_allowed(potential.numbers)
    return Target(potential, [distance(0, 1)], [wall], bias, T, least, CartesianSpace(4))


def tiny_sampler(target: Target, calls_before: int = 0, **settings: Any):
    """A sampler of four atoms before its first round."""
    frames = SQUARE + 0.1 * np.random.default_rng(1).standard_normal((40, 4, 3))
    batch = target.evaluate(frames, np.zeros(40), 0)
    chosen = replace(SamplerSettings(rounds=6, draws=16, learn=2, batch=16, pretrain=3), **settings)
    torch.manual_seed(0)
    controller = build_controller(ControllerConfig("pair", (6, 6, 8, 1), hidden=16))
    frames = batch.take(batch.accepted)
    return Sampler(target, controller, Schedule(steps=8), chosen, frames, calls_before=calls_before)


def read_plumed(path: Path) -> dict[str, np.ndarray]:
    """Columns of a PLUMED file by name."""
    from molgen.cvdiffusion.plumed import read_table

    fields, _, rows = read_table(path)
    return dict(zip(fields, rows.T, strict=True))


def constant(name: str = "still") -> CV:
    """A variable that never moves."""
    return custom(name, lambda p: 0 * p[:, 0, 0] + 1.0, "A")


SMALL = FesSettings(
    sampler=SamplerSettings(rounds=36, draws=112, learn=28, pretrain=250, width=0.15, batch=192),
    schedule=Schedule(start=25.0, steps=24), samples=1000, frames=100, hidden=64, stop=False, repair="never",
)  # fmt: skip


def sampled(settings: FesSettings, starts: list) -> tuple[Ensemble, Sampler]:
    """A whole run on the double well, and its sampler."""
    kept: list[Sampler] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fes, "outcome", lambda sampler, *a, **k: (kept.append(sampler), outcome(sampler, *a, **k))[1])
        ensemble = sample_cv(wells(), [X], T, starts=starts, ranges=[RANGE], settings=settings)
    return ensemble, kept[0]


def sides(ensemble: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    x, top = ensemble.positions[:, 0, 0], wells().stationary_points()[1]
    return x < top, x >= top


def histogram_difference(ensemble: Ensemble, sampler: Sampler) -> float:
    """F(right) - F(left), kT, by the histogram that takes the samples to be those of the biased target."""
    histogram = surfaces(ensemble, sampler).histogram
    right = histogram.centres[0] > wells().stationary_points()[1]
    return float(np.log(histogram.probability[~right].sum() / histogram.probability[right].sum()))
