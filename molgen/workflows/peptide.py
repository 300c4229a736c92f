"""From a sequence and a temperature to an equilibrium ensemble whose weights have been judged."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from molgen.data.peptide import Peptide, build_peptide, residues_of
from molgen.device import resolve_device
from molgen.errors import CalculatorError, InputError, check_counts, check_given, check_output, check_temperature
from molgen.prose.layout import Layout
from molgen.prose.validity import validate
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.importance import TOP_SHARE, diagnose, verdict
from molgen.reweight.smc import Population, between_temperatures, climb, restricted, spring_scale, start
from molgen.rng import sample_seed
from molgen.run import METHOD, Progress, Run
from molgen.units import KB, energy_unit
from molgen.variables import Molecule, parse_cv
from molgen.workflows.draws import DRAWN, Draws, Energies, Store, draw
from molgen.workflows.ensemble_run import finished_run
from molgen.workflows.finetune import Round, finetune_flow
from molgen.workflows.peptide_output import (
    Sampled,
    describe,
    observed,
    update_summary,
    write_ensemble,
)

LONGEST = 12  # residues; beyond, nothing the flow learned on short peptides need hold
MOVES, LEAPFROG = 10, 4  # of the chain at each rung of the temperature ladder
# Where the ladder begins: TRIALS temperatures are tried with TRIAL draws, and the coldest taken that k-hat accepts and
# whose smoothed ESS is nearly the best. A colder start saves rungs, each of MOVES * LEAPFROG gradients a particle.
TRIAL, TRIALS, NEARLY = 1000, 4, 0.75
FINETUNING, TEMPERING, TRYING = 1, 2, 3  # streams of random numbers under one seed, beside that of the samples


def sample_peptide(
    sequence: str,
    n: int = 10_000,
    temperature: float = 310.0,
    *,
    cap: str | None = None,
    weights: str | Path | Proposal = "prose",
    finetune: int = 0,
    smc: bool = False,
    observables: Iterable[str] = (),
    prose_compat: bool = False,
    platform: str = "auto",
    workers: int | str = 1,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    units: str = "kJ/mol",
    save_float64: bool = False,
    log: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda stage, done, total: None,
) -> Ensemble:
    """Sample the Boltzmann distribution of a peptide: ff14SB, GB OBC2 water.

    A flow proposes conformations with their exact densities; energies turn them into weighted samples of the Boltzmann
    distribution; the tail of the weights (k-hat) says whether to believe them. Look at `ensemble.verdict`: "reliable",
    "warn", "biased" or "failed". The distribution is that of the given molecule: proposals of wrong chirality or broken
    topology are drawn again; the summary counts them.

    Args:
        sequence: one-letter codes from N to C, e.g. "AAGY"; see `molgen.data.peptide.build_peptide`.
        n: samples. temperature: K. cap: None (charged termini) or "ace-nme".
        weights: shipped weights, the folder of a checkpoint (finetuned ones too), or a loaded flow.
        finetune: rounds of training on this peptide first (see `molgen.workflows.finetune`).
        smc: propose at a temperature where trials say that the weights can be trusted, then cool by sequential Monte
            Carlo.
        observables: collective variables whose means are reported with the run (see `molgen.variables.parse`).
        prose_compat: drop the largest 0.2 % of the weights, as Prose (arXiv 2508.18175) reports. Biased.
        platform: of OpenMM. workers: processes for energies; "auto" starts a pool where it pays. As with all process
            pools, a script that uses more than one needs `if __name__ == "__main__":`.
        seed: sample i depends on (seed, i) only. device: of the flow.
        out: folder for topology.pdb, samples.xtc, weights.npz, ramachandran.png, weights.png, summary.json.
        overwrite: replace an earlier run in `out`. resume: continue one; the result is that of an uninterrupted run. A
            finished one is read again (positions to 0.01 A, unless `save_float64`), also for other observables or
            units.
        units: of energies in files and pictures for people, "kJ/mol" or "kcal/mol".
        save_float64: keep exact positions in weights.npz.
        log: called with lines for people; progress: called with (stage, done, total).

    Raises:
        InputError: no such residue, cap, observable or platform; n < 1; a temperature outside the trained range; the
            folder cannot be used, or the disk is full (finished pieces are kept for `resume`).
        CheckpointError: no such weights. CalculatorError: hardly a proposal is the molecule, or none has an energy.
    """
    if isinstance(observables, Iterable):
        observables = (observables,) if isinstance(observables, str) else tuple(observables)
    if not isinstance(observables, tuple) or not all(isinstance(text, str) for text in observables):
        raise InputError(
            f"{observables!r} given", where="observables", expected='texts such as "rg" or "phi 1"',
            remedy="for functions: Ensemble.expectation",
        )  # fmt: skip
    _check(n, finetune, workers, units, temperature)
    _check_kinds(n, weights, prose_compat)
    check_output(out, overwrite=overwrite, resume=resume)
    peptide = build_peptide(sequence, cap)
    topology = peptide.mdtraj_topology()
    for text in observables:
        parse_cv(text, Molecule(peptide.numbers, topology), called="observable")
    torch_device = _device(device)
    proposal = weights if isinstance(weights, Proposal) else load_flow(weights)
    notes = _notes(peptide, proposal, temperature)
    for note in notes:
        log(note)
    settings = {
        "sequence": peptide.sequence, "n": n, "temperature": temperature, "cap": peptide.cap,
        "checkpoint": proposal.hash, "finetune": finetune, "smc": smc, "prose_compat": prose_compat,
        "platform": platform, "save_float64": save_float64, METHOD: DRAWN,
    }  # fmt: skip
    with Energies(peptide, platform, workers) as energies, tempfile.TemporaryDirectory() as scratch:
        given = {"seed": seed, "device": str(torch_device), "overwrite": overwrite, "resume": resume}
        run = Run(out, "peptide", settings, **given, reads=[weights]) if out is not None else None
        if run is not None and (finished := finished_run(run)) is not None:
            log(f"{run.directory} is finished: its samples are read again")
            update_summary(run, *finished, observables, units)
            return finished[0]
        with run or nullcontext():
            if run is not None:
                run.record(checkpoint_hash=proposal.hash, notes=notes)
            work = _Work(peptide, energies, Store(run), temperature, seed, torch_device, log, progress)
            rounds: list[Round] = []
            if finetune:
                folder = Path(scratch, "adapter") if run is None else run.path("adapter")
                draws = partial(work.draws, stage="finetuning: sampling")
                proposal, rounds = finetune_flow(
                    proposal, Layout.of(peptide), draws, temperature, finetune, work.store, folder,
                    seed=sample_seed(seed, FINETUNING), scratch=Path(scratch), device=torch_device, log=log,
                    progress=progress,
                )  # fmt: skip
            sampled = work.cooled(proposal, n) if smc else work.weighted(proposal, n)
            if prose_compat:
                sampled.ensemble = sampled.ensemble.without_top()
            if run is not None:
                summary = {
                    **describe(sampled, peptide, proposal.hash, rounds),
                    "prose_compat": prose_compat,
                    "notes": notes,
                }
                results = observed(sampled.ensemble, observables, units)
                write_ensemble(run, sampled.ensemble, summary, results, peptide, units, save_float64)
            return sampled.ensemble


@dataclass(frozen=True, eq=False)
class _Work:
    """What every way of sampling one peptide needs."""

    peptide: Peptide
    energies: Energies
    store: Store
    temperature: float
    seed: int
    device: torch.device
    log: Callable[[str], None]
    progress: Progress

    def draws(
        self,
        proposal: Proposal,
        n: int,
        seed: int,
        name: str,
        temperature: float | None = None,
        stage: str = "sampling",
    ) -> Draws:
        """n draws from a flow, stored as `name`; `stage` is what `progress` is told."""
        flow = proposal.model if self.device.type == "cpu" else copy.deepcopy(proposal.model).to(self.device)
        return draw(
            flow, Layout.of(self.peptide), self.energies, n,
            self.temperature if temperature is None else temperature, seed, self.store, name,
            stage=stage, progress=self.progress,
        )  # fmt: skip

    def weighted(self, proposal: Proposal, n: int) -> Sampled:
        """Importance sampling: as drawn."""
        draws = self.draws(proposal, n, self.seed, "draws")
        ensemble = Ensemble(
            draws.positions, draws.log_weights, draws.energies, self.temperature, self.peptide.numbers,
            topology=self.peptide.mdtraj_topology(), log_q=draws.log_q, validity=draws.rejections,
        )  # fmt: skip
        return Sampled(ensemble, draws)

    def cooled(self, proposal: Proposal, n: int) -> Sampled:
        """Sequential Monte Carlo from where the flow's weights can be trusted."""
        trials = self.trials(proposal, min(n, TRIAL))
        hot = ladder_start(trials)
        draws = self.draws(proposal, n, self.seed, "draws", hot)
        ladder = between_temperatures(self.energies.plan(n * MOVES * LEAPFROG, draws.positions), hot, self.temperature)
        densities = restricted(ladder, lambda positions: validate(self.peptide, positions).valid)
        bonds, stiffness = self.peptide.bonds, self.peptide.parameters.bond_k
        scale = spring_scale(len(self.peptide), bonds, stiffness, self.temperature)
        stored = self.store.get("ladder")
        population = Population.of_arrays(stored) if stored else start(densities, draws.positions, draws.log_weights)

        def keep(reached: Population) -> None:
            self.store.put("ladder", reached.arrays())
            kelvin = 1 / ((1 - reached.b) / hot + reached.b / self.temperature)  # 1/T is linear in b
            self.progress(f"cooling: {kelvin:.0f} K", round(1000 * reached.b), 1000)

        population = climb(
            population, densities, scale, seed=sample_seed(self.seed, TEMPERING), moves=MOVES, leapfrog=LEAPFROG,
            on_stage=keep,
        )  # fmt: skip
        energies = -KB * self.temperature * population.ends.target
        # the final weights were perhaps just resampled, and alike: those they began with say more
        ensemble = Ensemble(
            population.positions, population.log_weights, np.where(np.isfinite(energies), energies, np.nan),
            self.temperature, self.peptide.numbers, topology=self.peptide.mdtraj_topology(),
            groups=population.ancestors, ancestors=len(draws.log_weights), validity=draws.rejections,
            at_best=verdict(diagnose(draws.log_weights)),
        )  # fmt: skip
        return Sampled(ensemble, draws, population, tuple(trials))

    def trials(self, proposal: Proposal, n: int) -> list[Draws]:
        """n draws at each of a few temperatures up to the highest the flow knows, coldest first.

        Raises:
            CalculatorError: hardly a proposal is the molecule, or none has an energy, at any of them.
        """
        hot = max(float(proposal.config.get("temperatures", [self.temperature])[-1]), self.temperature)
        between = np.geomspace(self.temperature, hot, TRIALS + 1)[1:-1].round().tolist()
        kelvins = sorted({kelvin for kelvin in between if self.temperature < kelvin < hot} | {hot})
        seed = sample_seed(self.seed, TRYING)
        found: list[Draws] = []
        for kelvin in kelvins:
            try:
                found.append(self.draws(proposal, n, seed, f"trial-{kelvin:g}", kelvin, "trying temperatures"))
            except CalculatorError as error:  # a temperature that is worth nothing
                if not found and kelvin == kelvins[-1]:
                    raise
                self.log(f"no trial at {kelvin:g} K: {error.what}")
        return found


def ladder_start(trials: Sequence[Draws]) -> float:
    """The coldest temperature (K) of `trials`, coldest first, that is nearly worth the best; the hottest if none is."""
    judged = [diagnose(trial.log_weights) for trial in trials]
    trusted = [found.ess_psis if verdict(found) == "reliable" else 0.0 for found in judged]
    worth = [found > 0 and found >= NEARLY * max(trusted) for found in trusted]
    return trials[worth.index(True) if any(worth) else -1].temperature


def _check(n: int, rounds: int, workers: int | str, units: str, temperature: float) -> None:
    check_given(samples=n, finetune=rounds)
    check_counts(samples=(n, 1), finetune=(rounds, 0), workers=(None if workers == "auto" else workers, 1))
    check_temperature(temperature, "-T")
    energy_unit(units)


def _check_kinds(n: int, weights: str | Path | Proposal, prose_compat: bool) -> None:
    if prose_compat and not round(TOP_SHARE * n):
        raise InputError(
            f"the largest {TOP_SHARE:.1%} of {n} weights are none", where="--prose-compat",
            remedy=f"give -n {math.ceil(1 / TOP_SHARE)} or more",
        )  # fmt: skip
    if not isinstance(weights, (str, Path, Proposal)):
        raise InputError(f"{weights!r} given", where="weights", expected="a name, a folder, or a loaded flow")


def _device(name: str) -> torch.device:
    device = resolve_device(name)
    if device.type not in ("cpu", "cuda"):  # positions are placed in double precision
        raise InputError(f"the flow does not run on {name!r}", where="--device", expected="auto, cpu or cuda")
    return device


def _notes(peptide: Peptide, proposal: Proposal, temperature: float) -> list[str]:
    """Warnings about a peptide the flow has not been trained for.

    Raises:
        InputError: the temperature lies outside the trained range.
    """
    low, high = proposal.config.get("temperatures", (0.0, np.inf))
    if not low <= temperature <= high:
        raise InputError(
            f"{temperature:g} K lies outside what the weights were trained on",
            where="-T",
            expected=f"{low:g} to {high:g} K",
            remedy="choose a temperature in this range, or other --weights",
        )
    length = len(residues_of(peptide.sequence))
    shortest, longest = proposal.config.get("lengths", (1, LONGEST))
    notes = []
    if not shortest <= length <= longest:
        trained = f"{shortest} to {longest} residues" if shortest < longest else f"{shortest} residues"
        notes.append(f"warning: the weights were trained on {trained}, this peptide has {length}: k-hat decides")
    if unknown := proposal.unknown_forms(peptide):
        notes.append(f"warning: the weights were not trained on {unknown}: k-hat decides")
    if tuned := proposal.config.get("finetuned"):
        given = (peptide.sequence, peptide.cap, temperature)
        theirs = (tuned["sequence"], tuned["cap"], tuned["temperature"])
        if given != theirs:
            on = f"{theirs[0]}{f', {theirs[1]}' if theirs[1] else ''} at {theirs[2]:g} K"
            notes.append(f"warning: the weights were finetuned on {on}, and may be worse than 'prose' here")
    return notes
