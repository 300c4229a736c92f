"""From reactant and product to a transition state that has been checked: guess, refine, verify, rank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from molgen.data.reactions import Reaction
from molgen.device import resolve_device
from molgen.errors import CalculatorError, InputError, check_counts, check_paths, check_temperature
from molgen.geometry.bonds import overlapping
from molgen.io import load_reaction
from molgen.potentials.ase import EMBEDDED, level_name, with_solvent
from molgen.potentials.base import Potential
from molgen.run import Run
from molgen.saddle import calls_allowed
from molgen.saddle.thermochemistry import ReactionThermochemistry
from molgen.threads import one_thread
from molgen.tsgen import Generator
from molgen.tsgen.correction_model import Correction
from molgen.workflows.ts_correction import (
    DEFAULT_CORRECTION,
    CorrectedTS,
    correct_guess,
    correct_saddle,
    fitting_correction,
)
from molgen.workflows.ts_mechanism import followed
from molgen.workflows.ts_output import write_result
from molgen.workflows.ts_result import Candidate, TSResult
from molgen.workflows.ts_search import Method, TSSearch
from molgen.workflows.ts_setup import model_for, potential_for
from molgen.workflows.ts_thermo import reaction_thermochemistry
from molgen.workflows.ts_without import barrierless, unstable_sides

PHYSICS_TRIES = 4  # sqrt-distance guesses, at least, until one leads to the intended saddle


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
    sides relaxed by the calculator with the bonds that change held half made, or where one side becomes the other.

    Args:
        reactant, product: path (xyz, extxyz, pdb, sdf), ase.Atoms, or a list of these, one a fragment. Any atom
            order, frame and placement. smiles: "reactant>>product" instead.
        charge: e; default the formal charges of SMILES, sdf and mol files, else 0. spin: unpaired electrons; default
            the fewest possible.
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
    check_paths(out=out, weights=weights, correction=correction)
    if weights is None:
        raise InputError("None given", where="--weights", expected="a name or a path")
    if verify not in get_args(Method):
        raise InputError(f"unknown method {verify!r}", where="--verify", expected=", ".join(get_args(Method)))
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"{dtype!r} given", where="dtype", expected="torch.float32 or torch.float64")
    if time_budget is not None and not (isinstance(time_budget, (int, float)) and time_budget > 0):
        raise InputError(f"{time_budget!r} given", where="--time-budget", expected="a duration above 0, in seconds")
    if temperature is not None:
        _check_temperature(temperature, refine and verify != "none")
    begin, device = time.monotonic(), str(resolve_device(device))
    reaction, notes = load_reaction(reactant, product, smiles=smiles, charge=charge, spin=spin, map_atoms=map_atoms)
    calculator_kwargs = with_solvent(calculator, calculator_kwargs, solvent)
    potential = potential_for(calculator, calculator_kwargs, reaction.numbers, reaction.charge, reaction.spin)
    model = model_for(weights, reaction, device, dtype, notes)
    corrector, unfit = fitting_correction(correction or "none", reaction, calculator, calculator_kwargs, device, dtype)
    if unfit and correction not in (DEFAULT_CORRECTION, "none", None):
        notes.append(f"warning: {correction} {unfit}: nothing is corrected")
    elif corrector is not None and corrector.without_gain:
        notes.append(f"warning: {correction} did not help where it was validated ({corrector.without_gain})")
    for note in notes:
        log(note)
    calls_each = max_calls or calls_allowed(len(reaction))
    deadline = math.inf if time_budget is None else begin + time_budget
    settings = {
        "reactant": None if reactant is None else str(reactant), "product": None if product is None else str(product),
        "smiles": smiles, "charge": reaction.charge,
        "spin": reaction.spin, "samples": samples, "refine": refine, "calculator": str(calculator),
        "calculator_kwargs": calculator_kwargs, "temperature": temperature, "verify": verify, "weights": str(weights),
        "correction": str(correction), "steps": steps, "max_calls": calls_each,
        "time_budget": time_budget, "follow": follow, "map_atoms": map_atoms, "folder": str(Path.cwd()),
    }  # fmt: skip

    def part(numbers: np.ndarray, charge: int, spin: int) -> Potential | None:
        """The calculator of some of the atoms; None where it may have been told atoms, charge or spin for good."""
        xtb = isinstance(calculator, str) and calculator.lower() in EMBEDDED
        told = reaction.charge or reaction.spin or charge or spin or isinstance(calculator, Potential)
        return None if told and not xtb else potential_for(calculator, calculator_kwargs, numbers, charge, spin)

    def begun(reaction: Reaction) -> tuple[TSSearch, TSResult]:
        method = cast(Method, verify) if refine else None
        search = TSSearch(reaction, potential, method, progress, calls_each, deadline)
        result = TSResult([], reaction, notes, [], checkpoint_hash=model.hash if model else None)
        result.level = level_name(calculator, calculator_kwargs)
        return search, result

    def look(reaction: Reaction, corrector: Correction | None, write: Callable[[TSResult], None]) -> TSResult:
        """Search; after every step, `write` how things stand."""
        since, search, result = time.monotonic(), *begun(reaction)
        thermo = None
        if temperature is not None:
            thermo = partial(reaction_thermochemistry, search, temperature, part, "solvent" in calculator_kwargs)
        options: dict[str, Any] = {"samples": samples, "steps": steps, "seed": seed, "log": log}
        for _ in _stages(search, result, model, corrector, thermo, **options):
            search.report(result)
            result.seconds = time.monotonic() - since
            write(result)
        if all(candidate.verdict == "failed" for candidate in result.candidates):
            raise CalculatorError(
                f"failed on every guess: {result.best.reason}",
                where=f"calculator {calculator!r}",
                remedy="check --charge and --spin, or choose another --calculator",
            )
        return result

    def searched(reaction: Reaction, corrector: Correction | None, folder: Path | None, most: int) -> TSResult:
        """Search, in a folder of its own if there is one, and go on from what was found."""
        lost: list[int] = []  # calls of searches that failed

        def on(gap: Reaction, number: int) -> TSResult | None:
            if time.monotonic() > deadline:
                return None
            log(f"search {number + 1}: what is left of the reaction")
            before, (search, result) = potential.calls, begun(gap)
            if (fall := barrierless(search)) is not None:  # pieces that fall together need no saddle
                result.barrierless_side, result.barrierless_kcal = fall
                search.report(result)
                return result
            asked = potential.calls - before
            try:
                result = searched(gap, None, None if run is None else run.path(f"search-{number + 1}"), 0)
                result.gradient_calls += asked
                return result
            except CalculatorError as error:
                log(f"warning: {error}")
                lost.append(potential.calls - before)
                return None

        opened = nullcontext() if folder is None else Run(folder, "ts", settings, **of_run)
        with opened as run:
            write = partial(write_result, run) if run is not None else lambda result, final: None
            result = look(reaction, corrector, partial(write, final=False))
            write(result, final=True)  # before it goes on: that may be cut short
            result.mechanism = followed(result, on, most)
            if result.mechanism is not None or lost:
                further = result.mechanism.searches[1:] if result.mechanism is not None else []
                result.gradient_calls += sum(search.gradient_calls for search in further) + sum(lost)
                result.seconds = time.monotonic() - begin
                write(result, final=True)
        return result

    given = [x for side in (reactant, product) for x in (side if isinstance(side, (list, tuple)) else [side])]
    of_run: dict[str, Any] = {"seed": seed, "device": device, "overwrite": overwrite, "reads": given}
    with one_thread(len(reaction)):
        return searched(reaction, corrector, None if out is None else Path(out), follow)


def _stages(
    search: TSSearch,
    result: TSResult,
    model: Generator | None,
    corrector: Correction | None,
    thermo: Callable[[Candidate], ReactionThermochemistry | None] | None,
    *,
    samples: int,
    steps: int | None,
    seed: int,
    log: Callable[[str], None],
) -> Iterator[None]:
    """The guesses of the model one by one, physics where these do not do, the correction; yields after each.

    Args:
        result: gets the correction. thermo: of the best candidate. Others: as of :func:`find_ts`.
    """

    def wanting() -> bool:
        return not search.succeeded() and search.best_verdict() != "unverified"

    if model is not None:
        search.propose_tsgen(model, samples, steps or model.steps, seed)
        yield
        while search.advance():
            yield
        while wanting() and search.go_on():
            yield
        if search.verifies and search.best_verdict() == "intended":
            search.best_with_relaxed_ends()  # may show that none is
    if wanting() and not search.out_of_time():
        if model is not None:
            saddle = "the intended saddle" if search.verifies else "a saddle"
            log(f"no guess of the model leads to {saddle}: trying guesses without it too")
        search.propose_physics(samples if search.method is None else max(samples, PHYSICS_TRIES), seed)
        yield
        while not search.succeeded() and (search.advance() or search.go_on()):
            yield
    if search.verifies:
        best = search.best_with_relaxed_ends()
        search.relax_other_ends()
        result.unstable = best.unstable
        if best.verdict != "intended" and not search.out_of_time():
            search.progress("looking for a reason", 0, 1)
            result.unstable, found = unstable_sides(search), barrierless(search)
            result.barrierless_side, result.barrierless_kcal = found or ("", None)
        if corrector is not None:
            result.corrected = _corrected(corrector, search, best)
        if thermo is not None:
            result.thermochemistry = thermo(best)
        yield


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


def _corrected(corrector: Correction, search: TSSearch, best: Candidate) -> CorrectedTS | None:
    """The intended saddle on the level of the training set, or without one TS-GEN's first guess, where there is any."""
    if best.verdict == "intended":
        guess = search.guesses[best.sample].positions if best.source == "TS-GEN" else None
        return correct_saddle(corrector, search.reaction, search.potential, best.atoms.positions, guess)
    sound = (guess for guess in search.guesses if not overlapping(search.reaction.numbers, guess.positions))
    first = next(sound, None)
    if first is None or first.source != "TS-GEN":
        return None
    return correct_guess(corrector, search.reaction, search.potential, first.positions)
