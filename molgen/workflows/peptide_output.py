"""What `molgen peptide` says of an ensemble, and what it leaves in its output folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from molgen.checkpoint import STATE
from molgen.data.peptide import Peptide
from molgen.files import json_text
from molgen.prose.validity import validate
from molgen.report import ensemble_plots
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.estimate import FEW_GROUPS, effective_groups, verdict_by_groups
from molgen.reweight.importance import (
    LEAST_DRAWS,
    WeightDiagnostics,
    diagnose,
    few_effective,
    normalised,
    verdict,
)
from molgen.reweight.smc import Population
from molgen.run import RUN_KEYS, Run
from molgen.units import energy_unit, shown
from molgen.workflows.draws import Draws
from molgen.workflows.ensemble_run import ensemble_hash
from molgen.workflows.finetune import Round

ENERGY = "potential energy"


@dataclass(eq=False)
class Sampled:
    """An ensemble; what the flow drew for it; the particles of the temperature ladder, None without one; its trials."""

    ensemble: Ensemble
    draws: Draws
    population: Population | None = None
    trials: tuple[Draws, ...] = ()


def status(ensemble: Ensemble) -> str:
    """ "ok", or "gate_failed" when k-hat says that estimates are biased or worse."""
    return "gate_failed" if ensemble.verdict in ("biased", "failed") else "ok"


def describe(sampled: Sampled, peptide: Peptide, checkpoint: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Entries of the summary: verdict and why, weights, validity, proposals, cost, finetuning, the ladder, the hash."""
    ensemble, draws, population = sampled.ensemble, sampled.draws, sampled.population
    validity = validate(peptide, ensemble.positions) if population else draws.validity
    parts = [draws, *sampled.trials, *([population] if population else [])]
    sampling, computing = draws.seconds["sampling"], draws.seconds["energies"]
    figures: dict[str, Any] = {
        "sequence": peptide.sequence,
        "cap": peptide.cap,
        "atoms": len(peptide),
        "temperature": ensemble.temperature,
        "checkpoint_hash": checkpoint,
        "verdict": ensemble.verdict,
        "why": reasons(sampled),
        "weights": asdict(ensemble.diagnostics),
        "validity": validity.summary(ensemble.weights if ensemble.weights.any() else None),
        "proposals": draws.proposals,
        "redrawn": draws.redrawn,
        "rejections": dict(ensemble.validity),
        "energy_calls": sum(part.calls for part in parts) + sum(r.energy_calls for r in rounds),
        "samples_per_second": len(draws) / sampling if sampling else None,
        "energies_per_second": draws.calls / computing if computing else None,
        "finetuning": [asdict(r) for r in rounds],
        "smc": None,
        "ensemble_hash": ensemble_hash(ensemble),
    }
    if population is not None:
        hot = diagnose(draws.log_weights)
        figures["smc"] = {
            "hot_temperature": draws.temperature,
            "hot_weights": {**asdict(hot), "verdict": verdict(hot)},
            "trials": [{"temperature": t.temperature, **asdict(diagnose(t.log_weights))} for t in sampled.trials],
            "unique_ancestors": population.unique_ancestors,
            "ess_of_ancestors": ess_of_ancestors(ensemble),
            "stages": [asdict(stage) for stage in population.stages],
        }
    return figures


def reasons(sampled: Sampled) -> list[str]:
    """Why the verdict is not better, in words; nothing of weights that were dropped."""
    found, hot, texts = sampled.ensemble.diagnostics, diagnose(sampled.draws.log_weights), []
    if verdict(found) != "reliable":
        texts.append(_refused(found))
    if sampled.population is not None:
        if verdict(hot) != "reliable":
            texts.append(f"{_refused(hot)}, at {sampled.draws.temperature:g} K")
        ensemble = sampled.ensemble
        share, groups = ess_of_ancestors(ensemble), ensemble.groups
        if (
            share is not None
            and groups is not None
            and verdict_by_groups(normalised(ensemble.log_weights), groups) != "reliable"
        ):
            n, effective = len(ensemble), share * len(ensemble)
            texts.append(f"descends from {effective:.0f} effective ancestors of {n}, fine from {FEW_GROUPS}")
    return texts


def _refused(found: WeightDiagnostics) -> str:
    if not np.isfinite(found.khat):
        return "too few weights for a k-hat"
    texts = [f"{found.ess * found.n:.1f} effective samples, fine from {LEAST_DRAWS}"] if few_effective(found) else []
    texts += [f"k-hat {found.khat:.2f}, fine up to {found.threshold:.2f}"] if found.khat > found.threshold else []
    return "; ".join(texts)


def observed(ensemble: Ensemble, observables: Iterable[str], units: str) -> list[dict[str, Any]]:
    """Mean potential energy and every observable asked for: `name, text, value, error, khat, reliable, unit`.

    Energies in `units`, angles in degrees, lengths in Angstrom. `text` is what was written, `name` its label if it has
    one.
    """
    mean = ensemble.expectation(ensemble.energies).scaled(1 / energy_unit(units), units)
    rows = [{"name": ENERGY, "text": ENERGY, **asdict(mean)}]
    for text in observables:
        variable = ensemble.cv(text)
        found = ensemble.expectation(variable)
        found = found.scaled(*shown(found.unit))
        rows.append({"name": variable.name, "text": text, **asdict(found)})
    return rows


def write_ensemble(
    run: Run,
    ensemble: Ensemble,
    figures: dict[str, Any],
    results: list[dict[str, Any]],
    peptide: Peptide,
    units: str,
    save_float64: bool,
) -> None:
    """Write the ensemble, the pictures and the summary; then drop the work they were made of."""
    title = _title(peptide.sequence, peptide.cap, ensemble.temperature)
    ensemble.save(run, positions=save_float64)
    heading = {"title": title, "ancestors": ess_of_ancestors(ensemble)}
    weights = ensemble_plots.weights(ensemble.log_weights, judged=ensemble.verdict, **heading)
    run.write_bytes("weights.png", weights)
    run.write_bytes("ramachandran.png", ensemble_plots.ramachandran(ensemble, unit=units, **heading))
    run.finish(status(ensemble), results=results, **figures)
    shutil.rmtree(run.directory / STATE, ignore_errors=True)


def _title(sequence: str, cap: str | None, temperature: float) -> str:
    """Of the pictures."""
    return f"{sequence}{f', {cap}' if cap else ''}, {temperature:g} K"


def update_summary(
    run: Run, ensemble: Ensemble, summary: dict[str, Any], observables: Sequence[str], units: str
) -> None:
    """Write the summary of a finished run again if it had other observables, units, or files that they name."""
    rows = observed(ensemble, observables, units)
    if json.loads(json_text(rows)) != summary["results"]:
        figures = {key: value for key, value in summary.items() if key not in RUN_KEYS}
        title = _title(summary["sequence"], summary["cap"], ensemble.temperature)
        picture = ensemble_plots.ramachandran(ensemble, unit=units, title=title, ancestors=ess_of_ancestors(ensemble))
        run.write_bytes("ramachandran.png", picture)
        run.finish(summary["status"], results=rows, **figures)


def ess_of_ancestors(ensemble: Ensemble) -> float | None:
    """Kish's effective sample size of the ancestors, each with the weight of all its descendants; a share of n. None
    where no samples descend from one."""
    if ensemble.groups is None:
        return None
    return effective_groups(normalised(ensemble.log_weights), ensemble.groups) / len(ensemble)
