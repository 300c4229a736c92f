"""From reactant and product to a transition state that has been checked: guess, refine, verify, rank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from molgen.device import resolve_device
from molgen.errors import InputError, check_counts, check_given, check_output, check_paths, check_temperature
from molgen.io import load_reaction
from molgen.potentials.ase import EMBEDDED, level_name, with_solvent
from molgen.potentials.base import Potential
from molgen.saddle import calls_allowed
from molgen.threads import one_thread
from molgen.workflows.ts_correction import DEFAULT_CORRECTION, fitting_correction
from molgen.workflows.ts_job import Draw, TSJob
from molgen.workflows.ts_result import TSResult
from molgen.workflows.ts_search import Method
from molgen.workflows.ts_setup import model_for, potential_for


def find_ts(
    reactant: Any = None,
    product: Any = None,
    *,
    smiles: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
    samples: int = 8,
    refine: bool = True,
    calculator: Any = "gfn2",
    calculator_kwargs: Mapping[str, Any] | None = None,
    solvent: str | None = None,
    temperature: float | None = None,
    verify: str = "quick",
    max_calls: int | None = None,
    time_budget: float | None = None,
    follow: int = 2,
    lower: bool = True,
    out: str | Path | None = None,
    overwrite: bool = False,
    weights: str | Path = "tsgen",
    correction: str | None = DEFAULT_CORRECTION,
    steps: int | None = None,
    map_atoms: bool = True,
    seed: int = 0,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TSResult:
    """Find a transition state between two structures and check it.

    The model proposes, the calculator disposes: every distinct guess is refined to a saddle, its modes counted, and
    both sides followed down to see which molecules they are. When no guess of the model leads to the intended saddle,
    or the weights do not know an element, guesses without a model are tried as well: the sqrt-distance guess, and both
    sides relaxed by the calculator with the bonds that change held half made, or where one side becomes the other. Once
    a saddle is proven, the search goes on for lower ones of the same reaction.

    Args:
        reactant, product: path (xyz, extxyz, pdb, sdf), ase.Atoms, or a list of these, one a fragment. Any atom
            order, frame and placement. smiles: "reactant>>product" instead.
        charge: e; default what the input says (SMILES, sdf and mol files, `charge=` in the comment of an xyz file,
            `info["charge"]` of Atoms), else 0. spin: unpaired electrons; default the fewest possible.
        samples: guesses drawn. refine: False keeps the raw guesses (then nothing is verified).
        calculator: "gfn2", "gfn1", "module:Class", an ASE calculator, or a molgen Potential; calculator_kwargs: for
            "module:Class". solvent: implicit, of xTB, such as "water"; None for the gas phase.
        temperature: K, of Gibbs energies and rates of the best candidate (`result.thermochemistry`); None for none.
        verify: "quick" (modes, then descents), "irc" (intrinsic reaction coordinate), "none".
        max_calls: gradient calls of one refinement, at most; default 100, 8 an atom for more than 21 atoms. As many
            again for a few that end near a saddle, where none was proven.
        time_budget: s; no further guess is refined after that, the first always is. What is left is counted in
            `result.rejections`.
        follow: where one step of several is found, search on from the intermediate, so many times at most
            (`result.mechanism`), each with the options of the first search.
        lower: once a saddle is proven, look for lower ones: what guesses are left, rotamers of the saddle and of sides
            in one piece, and isomers of the product that its SMILES leaves open; and for lower conformers of both sides
            than the wells beside it (`result.conformers`).
        out: folder for ts.xyz, guesses.xyz, path.xyz, ts_corrected.xyz, barrier.png, summary.json, manifest.json, and
            mechanism.xyz, mechanism.png and a folder a search where the search went on. overwrite: replace a run there.
        weights: name or folder. steps: flow steps; default the weights' own. device, dtype: of the model.
        correction: weights that carry the verified saddle, or without one the guess, to the level of their training set
            (`result.corrected`), name or folder; None for none; used where they read gradients of this calculator.
        log: called with lines for people; progress: called with (stage, done, total).

    Returns:
        TSResult, whatever the verdict: look at `result.verified`.

    Raises:
        InputError: unusable input or options. CalculatorError: the calculator failed on every guess.
    """
    check_counts(
        samples=(samples, 1), steps=(steps, 1), max_calls=(max_calls, 1), seed=(seed, 0), charge=(charge, None),
        spin=(spin, 0), follow=(follow, 0),
    )  # fmt: skip
    check_given(samples=samples, follow=follow, weights=weights)
    check_output(out, overwrite=overwrite)
    check_paths(weights=weights, correction=correction)
    _check_options(verify, dtype, time_budget)
    if temperature is not None:
        _check_temperature(temperature, refine and verify != "none")
    begun, device = time.monotonic(), str(resolve_device(device))
    reaction, notes = load_reaction(reactant, product, smiles=smiles, charge=charge, spin=spin, map_atoms=map_atoms)
    kwargs = with_solvent(calculator, calculator_kwargs, solvent)
    potential = potential_for(calculator, kwargs, reaction.numbers, reaction.charge, reaction.spin)
    level = level_name(calculator, kwargs)
    model = model_for(weights, reaction, device, dtype, level, notes)
    corrector, unfit = fitting_correction(correction or "none", reaction, calculator, kwargs, device, dtype)
    if unfit and correction not in (DEFAULT_CORRECTION, "none", None):
        notes.append(f"warning: {correction} {unfit}: nothing is corrected")
    elif corrector is not None and corrector.without_gain:
        notes.append(f"warning: {correction} did not help where it was validated ({corrector.without_gain})")
    for note in notes:
        log(note)
    calls_each = max_calls or calls_allowed(len(reaction))
    settings = {
        "reactant": None if reactant is None else str(reactant), "product": None if product is None else str(product),
        "smiles": smiles, "charge": reaction.charge,
        "spin": reaction.spin, "samples": samples, "refine": refine, "calculator": str(calculator),
        "calculator_kwargs": kwargs, "temperature": temperature, "verify": verify, "weights": str(weights),
        "correction": str(correction), "steps": steps, "max_calls": calls_each,
        "time_budget": time_budget, "follow": follow, "lower": lower, "map_atoms": map_atoms, "folder": str(Path.cwd()),
    }  # fmt: skip
    given = [x for side in (reactant, product) for x in (side if isinstance(side, (list, tuple)) else [side])]

    def part(numbers: np.ndarray, charge: int, spin: int) -> Potential | None:
        """The calculator of some of the atoms; None where it may have been told atoms, charge or spin for good."""
        xtb = isinstance(calculator, str) and calculator.lower() in EMBEDDED
        told = reaction.charge or reaction.spin or charge or spin or isinstance(calculator, Potential)
        return None if told and not xtb else potential_for(calculator, kwargs, numbers, charge, spin)

    job = TSJob(
        potential=potential, part=part, calculator=calculator, level=level, model=model,
        draw=Draw(samples, steps, seed), method=cast(Method, verify) if refine else None, max_calls=calls_each,
        begun=begun, deadline=math.inf if time_budget is None else begun + time_budget, follow=follow,
        lower=lower,
        temperature=temperature, in_solution="solvent" in kwargs, notes=notes, log=log, progress=progress,
        run_options={"settings": settings, "seed": seed, "device": device, "overwrite": overwrite, "reads": given},
    )  # fmt: skip
    with one_thread(len(reaction)):
        return job.run(reaction, corrector, None if out is None else Path(out))


def _check_options(verify: Any, dtype: Any, time_budget: Any) -> None:
    """Refuse what is none of the choices.

    Raises:
        InputError: names the option.
    """
    if verify not in get_args(Method):
        raise InputError(f"unknown method {verify!r}", where="--verify", expected=", ".join(get_args(Method)))
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"{dtype!r} given", where="dtype", expected="torch.float32 or torch.float64")
    if time_budget is not None and not (isinstance(time_budget, (int, float)) and time_budget > 0):
        raise InputError(f"{time_budget!r} given", where="--time-budget", expected="a duration above 0, in seconds")


def _check_temperature(temperature: Any, verifies: bool) -> None:
    """Refuse a temperature that is none, or one beside a saddle that nobody checks.

    Raises:
        InputError: names `--temperature`.
    """
    check_temperature(temperature)
    if not verifies:
        raise InputError(
            "Gibbs energies of a saddle that is not verified", where="--temperature", expected="--verify quick or irc",
            remedy="leave out --verify none and --no-refine, or the temperature",
        )  # fmt: skip
