"""Free energies along collective variables, from energies alone: set up, run the rounds, weigh, judge."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from molgen.checkpoint import BEST, STATE
from molgen.cvdiffusion.sampler import Sampler
from molgen.cvdiffusion.train import train_sampler
from molgen.cvdiffusion.walls import Wall
from molgen.errors import InputError, check_output
from molgen.files import read_summary
from molgen.potentials.base import Potential
from molgen.reweight.ensemble import Ensemble
from molgen.run import Run
from molgen.structures import check_positions
from molgen.threads import one_thread
from molgen.units import energy_unit, shown
from molgen.variables import CV
from molgen.workflows.ensemble_run import finished_run
from molgen.workflows.fes_identity import identity
from molgen.workflows.fes_outcome import outcome
from molgen.workflows.fes_output import CONTROLLER, tell, write_results
from molgen.workflows.fes_pretrained import save_pretrained
from molgen.workflows.fes_problem import Prior, Problem, coordinates_of
from molgen.workflows.fes_rounds import OnRound, converged, judge
from molgen.workflows.fes_settings import FesSettings, default_settings, flattened
from molgen.workflows.fes_system import System


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
    progress: OnRound = lambda figures: None,
) -> Ensemble:
    """Sample the Boltzmann distribution of a molecule, pushed along collective variables.

    A diffusion learns from energies alone to end in exp(-(E + V)/kT), V a well-tempered bias (WT-ASBS, arXiv
    2510.11923); every sample carries the exact weight of its whole trajectory, so averages hold however good the
    diffusion became. Look at `ensemble.verdict`, of averages over all samples, and at what an estimate says of itself.

    Args:
        potential: energies of the molecule, or a `System`.
        cvs: one to three collective variables, as text ("phi 1"; see `molgen.variables.parse`) or built.
        temperature: K.
        starts: (S, N, 3) or (N, 3) Angstrom, ase.Atoms or a list of these, a structure in each known basin; of a bare
            potential, a `System` has its own.
        ranges: (low, high) of each variable in A and rad; None where it is periodic or follows from walls.
        walls: "distance 0 4 < 3.3", or built; they belong to the target.
        settings: of the method; None: `default_settings` for the coordinates that suit the molecule.
        seed: the same seed gives the same samples.
        out: folder for fes.dat, COLVAR, HILLS, weights.npz, samples, pictures and summary.json.
        overwrite: replace an earlier run in `out`. resume: continue one, with the result of an uninterrupted run.
        units: of energies in files and pictures for people, "kcal/mol" or "kJ/mol".
        log: called with lines for people; without `out`, also with the verdict on the surface and what it may lack.
            progress: called with the figures of each round.

    Returns:
        Samples with their weights; `.free_energy(a, b)`, `.fes(names)`, `.expectation(f)` take collective variables by
        name.

    Raises:
        InputError: a variable, range, wall, start or setting that cannot be used.
        CalculatorError: the starts have no energy, or most samples of a round were rejected.
    """
    system = _system(potential, starts)
    return run_fes(
        system, cvs, temperature, ranges=ranges, walls=walls,
        settings=settings or default_settings(coordinates_of(system, "auto", cvs)), seed=seed, out=out,
        overwrite=overwrite, resume=resume, units=units, log=log, progress=progress,
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
    progress: OnRound = lambda figures: None,
) -> tuple[Ensemble, dict[str, Any]]:
    """`sample_cv`, and the summary of the run; `described`: what the settings cannot say (files, calculator)."""
    energy_unit(units)
    check_output(out, overwrite=overwrite, resume=resume)
    system = _system(potential, starts)
    cvs = [cvs] if isinstance(cvs, (str, CV)) else cvs
    walls = [walls] if isinstance(walls, (str, Wall)) else walls
    problem = Problem.of(system, cvs, temperature, ranges, walls, settings, prior=prior)
    recorded = {
        "walls": [_wall_text(w) for w in problem.walls],
        "axes": [asdict(axis) for axis in problem.bias.axes], "temperature": temperature, "units": units,
        **flattened(asdict(settings)), **(described or {}),
    }  # fmt: skip
    run, earlier, opened = None, 0.0, 0.0
    if out is not None:
        recorded = {**identity(problem, Path(out) if resume else None), **recorded}
        known = (read_summary(Path(out)) or {}).get("wall_seconds") if resume else None
        earlier, opened = float(known or 0.0), time.monotonic()
        variables = [*problem.cvs, *(wall.cv for wall in problem.walls)]
        reads = [name for cv in variables for name in cv.references]
        run = Run(out, "fes", recorded, seed=seed, overwrite=overwrite, resume=resume, reads=reads)
        if (finished := finished_run(run)) is not None:
            log(f"{run.directory} is finished: nothing to resume")
            return finished
    with tempfile.TemporaryDirectory() as scratch, run or nullcontext(), one_thread(len(system.numbers)):
        folder = Path(scratch) if run is None else run.directory
        sampler = problem.sampler(seed, log, judge)
        if run is not None:
            for name in (STATE, BEST):  # the first output: what is left of a run to be replaced goes before training
                run.path(name)

        def wall_seconds() -> float:
            """Of the whole run: a summary knows of a process that ended, the state of one that was killed, too."""
            return round(max(earlier, float(sampler.seconds_before.sum())) + time.monotonic() - opened, 3)

        def look(s: Sampler) -> bool:
            if run is not None:
                run.record(wall_seconds=wall_seconds())  # of a run that is interrupted before it has ended
            return _look(s, settings, progress)

        train_sampler(
            sampler, folder, learning_rate=settings.learning_rate, resume=run is not None and run.resumed, stop=look
        )
        prepared, rounds = sampler.seconds.tolist()
        seconds, begin = {"start": prepared, "rounds": rounds}, time.monotonic()
        found = outcome(
            sampler, settings.samples, settings.fine, system.topology, paths=settings.paths, repair=settings.repair,
            log=log,
        )  # fmt: skip
        seconds["samples"] = time.monotonic() - begin
        more, unknown = ({}, []) if prior is None else prior.report(found.ensemble, run, units)
        if run is None:
            tell(found, log, more, unknown)
            return found.ensemble, more
        run.path(CONTROLLER)
        save_pretrained(folder / CONTROLLER, problem, sampler, found.kernels)
        more = {**more, "wall_seconds": wall_seconds()}
        summary = write_results(run, found, sampler, units, seconds, problem.notes, more, unknown)
        shutil.rmtree(folder / STATE, ignore_errors=True)  # tens of megabytes that only a run to be resumed needs
        return found.ensemble, summary


def _look(sampler: Sampler, settings: FesSettings, progress: OnRound) -> bool:
    """Between rounds: show how it goes, and say whether to stop."""
    if sampler.records:
        progress(sampler.records[-1])
    return settings.stop and converged(sampler)


def _system(potential: Potential | System, starts: Any) -> System:
    if isinstance(potential, System):
        if starts is not None:
            raise InputError("given beside a System, which has its own", where="starts", remedy="leave it out")
        return potential
    if not isinstance(potential, Potential):
        remedy = 'molgen.system_from_files("start.xyz") makes a System'
        if hasattr(potential, "get_property"):
            remedy = "molgen.potentials.ase.AsePotential(calculator, numbers) makes a Potential of an ASE calculator"
        raise InputError(
            f"{potential!r} is no potential", where="sample_cv", expected="a molgen Potential, or a System",
            remedy=remedy,
        )  # fmt: skip
    return System(potential, _structures(starts, potential))


def _structures(starts: Any, potential: Potential) -> np.ndarray:
    parts = [starts] if isinstance(starts, Atoms) else starts
    if isinstance(parts, (list, tuple)) and all(isinstance(part, Atoms) for part in parts):
        for k, part in enumerate(parts):
            if not np.array_equal(part.numbers, potential.numbers):
                raise InputError(
                    f"{part.get_chemical_formula()}, or its atoms in another order", where=f"starts, structure {k}",
                    expected=f"atomic numbers {potential.numbers.tolist()}",
                )  # fmt: skip
        parts = [part.positions for part in parts]
    given = np.asarray([] if parts is None else parts, dtype=float)
    given = given[None] if given.ndim == 2 else given
    atoms = len(potential.numbers)
    if given.ndim != 3 or given.shape[1:] != (atoms, 3) or not len(given):
        raise InputError(
            f"starting structures of shape {given.shape}", where="starts", expected=f"(S, {atoms}, 3) in Angstrom",
            remedy="give one structure for each basin that you know of",
        )  # fmt: skip
    for k, start in enumerate(given):
        check_positions(start, f"starts, structure {k}")
    return given


def _wall_text(wall: Wall) -> str:
    limit = wall.limit * shown(wall.cv.unit)[0]  # as `parse_wall` reads it
    return f"{wall.cv.definition} {'<' if wall.above else '>'} {limit:g} k={wall.stiffness:g}"
