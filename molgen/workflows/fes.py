"""Free energies along collective variables, from energies alone: set up, run the rounds, weigh, judge."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from molgen.cvdiffusion.bias import WellTemperedBias
from molgen.cvdiffusion.controller import Controller, ControllerConfig, build_controller
from molgen.cvdiffusion.cvs import CV, check_start, evaluate, parse_cv
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import Sampler
from molgen.cvdiffusion.start import starting_frames
from molgen.cvdiffusion.target import Batch, Target, closest_allowed
from molgen.cvdiffusion.train import train_sampler
from molgen.cvdiffusion.walls import Wall, check_walls, parse_wall
from molgen.errors import CalculatorError, InputError
from molgen.potentials.base import Potential
from molgen.potentials.composite import BiasPotential, SumPotential
from molgen.report.ensemble_plots import UNITS
from molgen.reweight.ensemble import Ensemble
from molgen.rng import generator, sample_seed
from molgen.run import Run
from molgen.units import KB
from molgen.workflows.fes_estimate import Progress, converged, judge, outcome
from molgen.workflows.fes_grid import axis_of
from molgen.workflows.fes_output import check_names, write_results
from molgen.workflows.fes_settings import FesSettings, check_settings, flattened
from molgen.workflows.fes_system import System
from molgen.workflows.peptide_output import finished_run

FRAMES, START = 1, 2  # streams of random numbers beside those of the sampler
FLOOR = 6.0  # eV below the lowest starting frame: no product, but a hole of the potential
STEPS_A_FRAME = 5  # energies that a starting frame costs, about
LARGE = 30  # atoms from which the trunk is the default controller


class Prior(Protocol):
    """What is known of a reaction before its run (see `molgen.workflows.fes_from_ts`)."""

    @property
    def frames(self) -> np.ndarray:
        """(S, N, 3) Angstrom, where the short simulations begin, under the filled bias."""
        ...

    def fill(self, bias: WellTemperedBias) -> None:
        """Give the fresh bias its first hills."""
        ...

    def report(self, ensemble: Ensemble, run: Run | None) -> dict[str, Any]:
        """Entries for the summary."""
        ...


def sample_cv(
    potential: Potential | System,
    cvs: Sequence[CV | str],
    temperature: float = 300.0,
    *,
    starts: Any = None,
    ranges: Sequence[tuple[float, float] | None] | None = None,
    walls: Sequence[Wall | str] = (),
    settings: FesSettings | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    units: str = "kcal/mol",
    log: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda figures: None,
) -> Ensemble:
    """Sample the Boltzmann distribution of a molecule, pushed along collective variables.

    A diffusion learns from energies alone to end in exp(-(E + V)/kT), V a well-tempered bias (WT-ASBS, arXiv
    2510.11923); every sample carries the exact weight of its whole trajectory, so averages hold however good the
    diffusion became. Look at `ensemble.verdict`.

    Args:
        potential: energies of the molecule, or a `System`.
        cvs: one to three collective variables, as text ("torsion 4 6 8 14"; see `molgen.cvdiffusion.cvs`) or built.
        temperature: K.
        starts: (S, N, 3) or (N, 3) Angstrom, a structure in each known basin; needed with a bare potential.
        ranges: (low, high) of each variable in A and rad; None where it is periodic or follows from walls.
        walls: "distance 0 4 < 3.3", or built; they belong to the target.
        settings: of the method.
        seed: the same seed gives the same samples.
        out: folder for fes.dat, COLVAR, HILLS, weights.npz, samples, pictures and summary.json.
        overwrite: replace an earlier run in `out`. resume: continue one, with the result of an uninterrupted run.
        units: of energies in files and pictures for people, "kcal/mol" or "kJ/mol".
        log: called with lines for people. progress: called with the figures of each round.

    Returns:
        Samples with their weights; `.free_energy(a, b)`, `.fes(names)`, `.expectation(f)` take collective variables by
        name.

    Raises:
        InputError: a variable, range, wall, start or setting that cannot be used.
        CalculatorError: the starts have no energy, or most samples of a round were rejected.
    """
    return run_fes(
        potential, cvs, temperature, starts=starts, ranges=ranges, walls=walls, settings=settings or FesSettings(),
        seed=seed, out=out, overwrite=overwrite, resume=resume, units=units, log=log, progress=progress,
    )[0]  # fmt: skip


def run_fes(
    potential: Potential | System,
    cvs: Sequence[CV | str],
    temperature: float,
    *,
    starts: Any = None,
    ranges: Sequence[tuple[float, float] | None] | None = None,
    walls: Sequence[Wall | str] = (),
    settings: FesSettings,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    units: str = "kcal/mol",
    described: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
    log: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda figures: None,
) -> tuple[Ensemble, dict[str, Any]]:
    """`sample_cv`, and the summary of the run; `described`: what the settings cannot say (files, calculator)."""
    if units not in UNITS:
        raise InputError(f"unknown unit {units!r}", where="--units", expected=" or ".join(UNITS))
    system = potential if isinstance(potential, System) else System(potential, _structures(starts, potential))
    problem = replace(Problem.of(system, cvs, temperature, ranges, walls, settings), prior=prior)
    recorded = {
        "cvs": [cv.name for cv in problem.cvs], "walls": [_wall_text(w) for w in problem.walls],
        "axes": [asdict(axis) for axis in problem.bias.axes], "temperature": temperature, "units": units,
        **flattened(asdict(settings)), **(described or {}),
    }  # fmt: skip
    run = None
    if out is not None:
        run = Run(out, "fes", recorded, seed=seed, overwrite=overwrite, resume=resume)
        if (finished := finished_run(run)) is not None:
            log(f"{run.directory} is finished: nothing to resume")
            return finished
    with tempfile.TemporaryDirectory() as scratch, run or nullcontext():
        folder = Path(scratch) if run is None else run.directory
        if run is not None:
            for name in ("state", "best"):
                run.path(name)
        begin = time.monotonic()
        sampler = problem.sampler(seed, log)
        seconds = {"start": time.monotonic() - begin}
        train_sampler(
            sampler, folder, learning_rate=settings.learning_rate, resume=run is not None and run.resumed,
            stop=lambda s: _look(s, settings, progress),
        )  # fmt: skip
        seconds["rounds"] = time.monotonic() - begin - seconds["start"]
        found = outcome(sampler, settings.samples, settings.fine, system.topology)
        seconds["samples"] = time.monotonic() - begin - sum(seconds.values())
        more = {} if prior is None else prior.report(found.ensemble, run)
        if run is None:
            return found.ensemble, more
        return found.ensemble, write_results(run, found, sampler, units, seconds, problem.notes, more)


def forecast(
    system: System,
    cvs: Sequence[CV | str],
    temperature: float,
    *,
    ranges: Sequence[tuple[float, float] | None] | None,
    walls: Sequence[Wall | str],
    settings: FesSettings,
) -> str:
    """What a run will cost, in words: energies, seconds an energy, minutes in all; from a few energies measured now."""
    problem = Problem.of(system, cvs, temperature, ranges, walls, settings)
    s, starts = settings.sampler, np.repeat(system.starts[:1], 8, axis=0)
    system.potential.energy_and_forces(starts[:1])
    begin = time.monotonic()
    energies, _ = system.potential.energy_and_forces(starts)
    each = (time.monotonic() - begin) / len(starts)
    if not np.isfinite(energies).all():
        raise CalculatorError("the starting structure has no energy", where="starting structure 0")
    count = s.rounds * s.draws + settings.samples
    starting = STEPS_A_FRAME * settings.frames
    minutes = (count + starting) * each / 60
    axes = ", ".join(f"{axis.name} {axis.low:.3g} to {axis.high:.3g} {axis.unit}" for axis in problem.bias.axes)
    return (
        f"{count + starting} energies at {1000 * each:.1f} ms: {minutes:.0f} min, and about as long again to learn\n"
        f"grid: {axes}; {len(problem.walls)} walls; {len(system.starts)} starting structures"
    )


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything checked and built that a run needs before its first energy."""

    system: System
    cvs: list[CV]
    walls: list[Wall]
    bias: WellTemperedBias
    temperature: float
    settings: FesSettings
    notes: list[str]
    prior: Prior | None = None

    @classmethod
    def of(
        cls,
        system: System,
        cvs: Sequence[CV | str],
        temperature: float,
        ranges: Sequence[tuple[float, float] | None] | None,
        walls: Sequence[Wall | str],
        settings: FesSettings,
    ) -> Problem:
        """Check the input.

        Raises:
            InputError: what cannot be used, and why.
        """
        if not temperature > 0:
            raise InputError(f"temperature {temperature:g} K", where="--temperature", expected="above 0 K")
        atoms = len(system.numbers)
        variables = [parse_cv(cv, atoms) if isinstance(cv, str) else cv for cv in cvs]
        if not 1 <= len(variables) <= 3:
            raise InputError(f"{len(variables)} collective variables", where="--cv", expected="one to three")
        check_settings(settings, len(system.starts), atoms)
        if len({cv.name for cv in variables}) < len(variables):
            raise InputError("a collective variable is given twice", where="--cv", expected="different ones")
        built = [parse_wall(wall, atoms) if isinstance(wall, str) else wall for wall in walls]
        for start in system.starts:
            check_start([*variables, *(w.cv for w in built)], start)
            check_walls(built, start)
        limits = list(ranges) if ranges is not None else [None] * len(variables)
        if len(limits) != len(variables):
            raise InputError(
                f"{len(limits)} ranges for {len(variables)} collective variables", where="--range",
                expected="one for each, or none",
            )  # fmt: skip
        widths = settings.widths or (None,) * len(variables)
        if len(widths) != len(variables):
            raise InputError(
                f"{len(widths)} hill widths for {len(variables)} collective variables", where="--hill-width",
                expected="one for each",
            )  # fmt: skip
        values = evaluate(variables, system.starts)[0]
        axes, chosen, fences = [], [], []
        for d, (cv, limit, width) in enumerate(zip(variables, limits, widths, strict=True)):
            axis, used, fence = axis_of(cv, limit, built, width, settings.bins, values[:, d], system.numbers)
            axes.append(axis)
            chosen.append(used)
            fences += fence
        bias = WellTemperedBias(axes, chosen, settings.gamma, temperature, cap=settings.cap * KB * temperature)
        check_names(bias)
        return cls(system, variables, built + fences, bias, temperature, settings, [])

    def sampler(self, seed: int, log: Callable[[str], None]) -> Sampler:
        """The sampler after its starting frames, which cost energies."""
        system, s, spent = self.system, self.settings, self.system.potential.calls
        fixed = self._singled_out()
        symmetry = system.exchangeable(fixed)
        centres, hands = system.stereocentres()
        odd = not len(centres) and self._odd()  # with a centre the mirror image is known for what it is
        target = Target(
            system.potential, self.cvs, self.walls, self.bias, self.temperature, closest_allowed(system.numbers),
            centres, hands,
        )  # fmt: skip
        log("a short simulation of each starting structure")
        potential, starts = system.potential, system.starts
        if self.prior is not None:
            self.prior.fill(self.bias)
            potential, starts = SumPotential(potential, BiasPotential(self._push, system.numbers)), self.prior.frames
        positions = starting_frames(
            potential, self.walls, starts, self.temperature, s.frames, sample_seed(seed, FRAMES)
        )
        frames = target.evaluate(positions, np.zeros(len(positions)), 0)
        frames = frames.take(frames.accepted)
        if not len(frames):
            raise InputError("no frame of the short simulation can be used", where="starting structures")
        target.rejections.clear()
        target.floor = float(frames.energies.min()) - FLOOR
        spread = self._spread(frames)
        schedule = replace(s.schedule, spread=spread)
        controller = self._controller(schedule, odd, symmetry, sample_seed(seed, START))
        still = [cv.name for cv, values in zip(self.cvs, frames.cvs.T, strict=True) if np.ptp(values) < 1e-6]
        for name in still:
            self.notes.append(f"{name} does not move in the starting simulation: is it constant by construction?")
            log(self.notes[-1])
        sampler = Sampler(
            target, controller, schedule, s.sampler, frames,
            symmetry=symmetry, mirror=not odd, seed=seed, fixed_kernels=s.fixed_kernels, judge=judge,
        )  # fmt: skip
        sampler.calls_before = spent
        return sampler

    def _push(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (B,) eV and gradient (B, N, 3) eV/A of the bias."""
        values, slopes = evaluate(self.cvs, positions)
        energy, push = self.bias.evaluate(values)
        return energy, np.einsum("bd,bdna->bna", push, slopes)

    def _singled_out(self) -> set[int]:
        """Atoms that a collective variable or a wall depends on."""
        slopes = evaluate([*self.cvs, *(wall.cv for wall in self.walls)], self._shaken())[1]
        return set(map(int, np.flatnonzero(~(np.abs(slopes).max((0, 1, 3)) == 0))))

    def _shaken(self) -> np.ndarray:
        """The starts without their symmetry, at which a variable may hide what it depends on."""
        return self.system.starts + 0.05 * generator(0).standard_normal(self.system.starts.shape)

    def _odd(self) -> bool:
        """Whether a reflection changes a collective variable or a wall (a torsion: yes)."""
        variables = [*self.cvs, *(wall.cv for wall in self.walls)]
        here, there = (evaluate(variables, sign * self._shaken())[0] for sign in (1, -1))
        return len(self.system.numbers) > 1 and not np.abs(here - there).max() <= 1e-6

    def _spread(self, frames: Batch) -> float:
        """Variance of a coordinate over the frames, Angstrom^2: the size of the molecule."""
        x = frames.positions
        if x.shape[1] == 1:
            return max(float(x.var(0).mean()), 1.0)
        x = x - x.mean(1, keepdims=True)
        return float((x**2).sum((1, 2)).mean() / (3 * x.shape[1] - 3))

    def _controller(self, schedule: Schedule, odd: bool, symmetry: list[list[int]], seed: int) -> Controller:
        s, numbers = self.settings, self.system.numbers
        kind = s.controller
        if kind == "auto":
            kind = "point" if len(numbers) == 1 else ("pair" if len(numbers) <= LARGE else "trunk")
        labels = np.arange(len(numbers))
        for group in symmetry:
            labels[group] = min(group)
        quadruples: tuple[tuple[int, ...], ...] = ()
        if odd and kind == "pair":
            quadruples = tuple(tuple(map(int, q)) for q in self.system.chains())
        config = ControllerConfig(
            kind, tuple(map(int, labels)), spread=schedule.spread, width=s.sampler.width, least=schedule.end,
            most=schedule.start**0.5, hidden=s.hidden, quadruples=quadruples, odd=8 if odd and kind == "trunk" else 0,
        )  # fmt: skip
        torch.manual_seed(seed)
        return build_controller(config)


def _look(sampler: Sampler, settings: FesSettings, progress: Progress) -> bool:
    """Between rounds: show how it goes, and say whether to stop."""
    if sampler.records:
        progress(sampler.records[-1])
    return settings.stop and converged(sampler)


def _structures(starts: Any, potential: Potential) -> np.ndarray:
    given = np.asarray([] if starts is None else starts, dtype=float)
    given = given[None] if given.ndim == 2 else given
    atoms = len(potential.numbers)
    if given.ndim != 3 or given.shape[1:] != (atoms, 3) or not len(given) or not np.isfinite(given).all():
        raise InputError(
            f"starting structures of shape {given.shape}", where="starts", expected=f"(S, {atoms}, 3) in Angstrom",
            remedy="give one structure for each basin that you know of",
        )  # fmt: skip
    return given


def _wall_text(wall: Wall) -> str:
    return f"{wall.cv.name} {'<' if wall.above else '>'} {wall.limit:g} k={wall.stiffness:g}"
