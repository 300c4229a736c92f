"""What a free-energy run will cost, from a few energies, gradient steps and trajectories measured now."""

from __future__ import annotations

import time

import numpy as np
import torch

from molgen.cvdiffusion.bias import Axis
from molgen.cvdiffusion.noising import simulate
from molgen.cvdiffusion.sampler import FITTED, Sampler, lesson_loss
from molgen.errors import CalculatorError
from molgen.rng import generator
from molgen.threads import one_thread
from molgen.units import shown
from molgen.words import counted
from molgen.workflows.fes_problem import Problem
from molgen.workflows.fes_settings import FesSettings

STEPS_A_FRAME = 5  # energies, about, that a starting frame costs
ENERGIES, STEPS, TRAJECTORIES = 8, 8, 128  # how many of each are measured


def forecast(problem: Problem) -> str:
    """What a run will cost, in words: energies, seconds an energy, minutes to learn and in all."""
    system, settings = problem.system, problem.settings
    # not the same structure again and again: an ASE calculator would answer from its cache
    starts = system.starts[:1] + 0.01 * generator(0).standard_normal((ENERGIES, *system.starts.shape[1:]))
    with one_thread(len(system.numbers)):
        system.potential.energy_and_forces(starts[:1])
        begin = time.monotonic()
        energies, _ = system.potential.energy_and_forces(starts)
        each = (time.monotonic() - begin) / len(starts)
        if not np.isfinite(energies).all():
            reason = next(iter(system.potential.failures.values()), "not finite")
            raise CalculatorError(
                f"the starting structure has no energy: {reason}", where="starting structure 0",
                remedy="relax the structure, or check the calculator, charge and spin",
            )  # fmt: skip
        learning = _seconds_to_learn(problem.rehearsal(), settings)
    s = settings.sampler
    count = s.rounds * s.draws + settings.samples + STEPS_A_FRAME * settings.frames
    more = "" if settings.repair == "never" else "; up to as many energies again if the weights need repair"
    axes = ", ".join(f"{axis.name} {_range(axis)}" for axis in problem.bias.axes)
    return (
        f"{count} energies at {1000 * each:.1f} ms: {_duration(count * each)}; learning and drawing: "
        f"{_duration(learning)}; {_duration(count * each + learning)} in all{more}\n"
        f"grid: {axes}; {counted(len(problem.walls), 'wall')}; {counted(len(system.starts), 'starting structure')}"
    )


def _seconds_to_learn(sampler: Sampler, settings: FesSettings) -> float:
    """Of all gradient steps, and of all trajectories: drawn, fitted on, and those that densities are averaged over."""
    model, s = sampler.controller, sampler.settings
    optimiser, begin = torch.optim.AdamW(model.parameters()), time.monotonic()
    for k, lesson in zip(range(STEPS + 1), sampler.epoch(model.state_dict()), strict=False):
        optimiser.zero_grad()
        lesson_loss(model, lesson, sampler.width)["loss"].backward()
        optimiser.step()
        if k == 0:  # the first one warms up
            begin = time.monotonic()
    step, begin = (time.monotonic() - begin) / STEPS, time.monotonic()
    count = min(TRAJECTORIES, s.draws)
    simulate(model.eval(), sampler.schedule, sampler.variances, sampler.target.space, count, 0, 0)
    trajectory = (time.monotonic() - begin) / count
    drawn = s.rounds * s.draws + settings.samples * settings.fine * settings.paths
    fitted = (s.rounds / s.refit) * FITTED + s.memory * s.draws * settings.fine
    return sampler.steps * step + (drawn + fitted) * trajectory


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _range(axis: Axis) -> str:
    """Limits of a variable in words, angles in degrees."""
    scale, unit = shown(axis.unit)
    return f"{scale * axis.low:.3g} to {scale * axis.high:.3g} {unit}".rstrip()
