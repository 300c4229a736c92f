"""Finished controllers: written by every run whose molecule and variables can be named, drawn from again at will."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molgen.checkpoint import CONFIG_FILE, SHIPPED, load_checkpoint, save_checkpoint
from molgen.cvdiffusion.controller import build_controller
from molgen.cvdiffusion.internal import InternalSpace
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import Sampler, SamplerSettings
from molgen.cvdiffusion.space import CartesianSpace
from molgen.errors import InputError, check_counts, check_output, check_path
from molgen.reweight.ensemble import Ensemble
from molgen.rng import generator, sample_seed
from molgen.run import Run
from molgen.threads import one_thread
from molgen.workflows.ensemble_run import finished_run
from molgen.workflows.fes_outcome import Kernels, outcome
from molgen.workflows.fes_output import CONTROLLER, tell, write_results
from molgen.workflows.fes_problem import Problem
from molgen.workflows.fes_settings import FesSettings, check_repair
from molgen.workflows.fes_system import system_from_source

PREFIX = "fes-"  # prefix of the names of shipped controllers among the weights
PRETRAINED = 10_000_019  # stream of random numbers


def save_pretrained(directory: Path, problem: Problem, sampler: Sampler, kernels: Kernels) -> None:
    """Write all that `load_pretrained` needs; of a run whose potential or variables have no text, the network alone."""
    space, config = sampler.target.space, {"model": "cvdiffusion", "config": sampler.controller.describe()}
    tensors = {f"net.{name}": tensor for name, tensor in sampler.controller.state_dict().items()}
    if problem.texts is not None and problem.system.source is not None:
        schedule, variances = kernels
        arrays = {f"bias.{name}": array for name, array in sampler.target.bias.state().items()}
        variables = [*problem.cvs, *(wall.cv for wall in problem.walls)]
        references = {name: frames for cv in variables for name, frames in cv.references.items()}
        arrays |= {f"reference.{k}": frames for k, frames in enumerate(references.values())}
        arrays |= {"variances": variances, "starts": problem.system.starts, "numbers": problem.system.numbers}
        tensors |= {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        if isinstance(space, InternalSpace):
            tensors |= {"space.mean": space.mean, "space.unwhiten": space.unwhiten}
        elif isinstance(space, CartesianSpace):
            config["space"] = {"symmetry": space.symmetry, "mirror": space.mirror}
        config |= {
            "schedule": asdict(schedule), "source": problem.system.source, "cvs": problem.texts[0],
            "walls": problem.texts[1], "ranges": [[axis.low, axis.high] for axis in problem.bias.axes],
            "references": list(references),
            "temperature": problem.temperature, "settings": asdict(problem.settings),
            "floor": sampler.target.floor, "seed": sampler.seed, "energies": sampler.energies_used,
        }  # fmt: skip
    save_checkpoint(directory, tensors, config)


def load_pretrained(name: str | Path, seed: int = 0) -> tuple[Problem, Sampler, Kernels, str]:
    """A finished controller ready to draw from, the kernels to draw with, and the hash of its weights.

    Args:
        name: of a shipped one ("ala2", "sn2"), the folder of a finished `molgen fes` run, or its controller folder.

    Raises:
        InputError: no such controller, or it was written by a run that cannot be named.
        CheckpointError: a file is damaged.
    """
    folder = find_pretrained(name)
    stored = load_checkpoint(folder)
    c, tensors = stored.config, stored.tensors
    if c.get("model") != "cvdiffusion" or "source" not in c:
        raise InputError(
            "holds a network, but not what it was trained for", where=str(folder),
            expected="the controller of a run by molgen fes with --xyz or --pdb and variables given as text",
        )  # fmt: skip
    given = c["settings"]
    settings = FesSettings(**{
        **given, "cap": np.inf if given["cap"] is None else given["cap"],  # JSON has no infinity
        "sampler": SamplerSettings(**given["sampler"]), "schedule": Schedule(**given["schedule"]),
        "widths": tuple(given["widths"]) if given["widths"] else None,
    })  # fmt: skip
    system = system_from_source(c["source"], tensors["numbers"].numpy(), tensors["starts"].numpy())
    ranges = [tuple(r) if r else None for r in c["ranges"]]
    references = {name: tensors[f"reference.{k}"].numpy() for k, name in enumerate(c.get("references", []))}
    problem = Problem.of(system, c["cvs"], c["temperature"], ranges, c["walls"], settings, references)
    problem.bias.load_state({key[5:]: tensors[key].numpy() for key in tensors if key.startswith("bias.")})
    space = (
        CartesianSpace(len(system.numbers), **c["space"]) if "space" in c
        else InternalSpace(problem.zmatrix(), tensors["space.mean"], tensors["space.unwhiten"])
    )  # fmt: skip
    floor = c["floor"] if c["floor"] is not None else -np.inf
    controller = build_controller(c["config"])
    controller.load_state_dict({key[4:]: value for key, value in tensors.items() if key.startswith("net.")})
    points = space.points(system.starts, generator(seed))
    frames = problem.target(space, floor).evaluate(points, np.zeros(len(points)), 0)
    # not the streams of the run: with its seed they would give its own samples again
    fresh, schedule = sample_seed(seed, PRETRAINED), Schedule(**c["schedule"])
    sampler = Sampler(
        problem.target(space, floor), controller.eval(), schedule, settings.sampler, frames, seed=fresh,
        calls_before=system.potential.calls,
    )  # fmt: skip
    return problem, sampler, (schedule, tensors["variances"].numpy()), stored.hash


def find_pretrained(name: str | Path) -> Path:
    """The checkpoint folder that `name` means (see `load_pretrained`)."""
    check_path(name, "--pretrained")
    shipped = {path.name.removeprefix(PREFIX): path for path in sorted(SHIPPED.glob(f"{PREFIX}*"))}
    own = next((f for f in (Path(name) / CONTROLLER, Path(name)) if (f / CONFIG_FILE).exists()), None)
    if own is not None and str(name) in shipped:
        raise InputError(
            f"{name} is a run here, and the name of a shipped controller", where="--pretrained",
            expected="one of the two", remedy=f"write ./{name} for yours; for the shipped one, {shipped[str(name)]}",
        )  # fmt: skip
    if found := own or shipped.get(str(name)):
        return found
    raise InputError(
        f"no controller {str(name)!r}", where="--pretrained",
        expected=f"one of {', '.join(shipped) or 'none shipped'}, or the folder of a finished molgen fes run",
    )  # fmt: skip


def sample_pretrained(
    name: str | Path,
    samples: int | None = None,
    *,
    paths: int | None = None,
    repair: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    units: str = "kcal/mol",
    log: Callable[[str], None] = lambda message: None,
) -> tuple[Ensemble, dict[str, Any]]:
    """New weighted samples from a finished controller, without learning; the summary is empty without `out`.

    Args:
        name: see `load_pretrained`. samples: None: half as many as its run drew at the end. paths: None: as many as its
            run took. paths, repair: see `FesSettings`.
        seed: of the samples.
        out, overwrite, resume, units, log: as in `molgen.sample_cv`.

    Returns:
        the ensemble, and the summary of the run.

    Raises:
        InputError: no such controller, or `out` holds it.
    """
    check_repair(repair)
    check_counts(samples=(samples, 1), paths=(paths, 1))
    check_output(out, overwrite=overwrite, resume=resume)
    folder = find_pretrained(name).resolve()
    if out is not None and Path(out).resolve() in (folder, *folder.parents):
        raise InputError(
            "holds the controller that is to be drawn from", where=f"--out {out}", expected="another folder",
            remedy="choose another --out",
        )  # fmt: skip
    problem, sampler, kernels, digest = load_pretrained(name, seed)
    count = max(1, problem.settings.samples // 2) if samples is None else samples
    paths = problem.settings.paths if paths is None else paths
    run = None
    if out is not None:
        recorded = {
            "pretrained": str(name), "hash": digest, "samples": count, "paths": paths, "units": units, "repair": repair,
        }  # fmt: skip
        run = Run(out, "fes", recorded, seed=seed, overwrite=overwrite, resume=resume)
        if (finished := finished_run(run)) is not None:
            log(f"{run.directory} is finished: nothing to resume")
            return finished
    log(f"{count} samples of {', '.join(problem.texts[0] if problem.texts else [])} at {problem.temperature:g} K")
    begin = time.monotonic()
    with run or nullcontext(), one_thread(len(problem.system.numbers)):
        found = outcome(sampler, count, 1, problem.system.topology, kernels, paths=paths, repair=repair, log=log)
        if run is None:
            tell(found, log)
            return found.ensemble, {}
        seconds = {"samples": time.monotonic() - begin}
        return found.ensemble, write_results(run, found, sampler, units, seconds, problem.notes)
