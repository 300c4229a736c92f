"""What `molgen fes` leaves in its output folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from ase import Atoms

from molgen.cvdiffusion.bias import WellTemperedBias
from molgen.cvdiffusion.plumed import COLUMNS, colvar_text, fes_text, field_name, hills_text
from molgen.cvdiffusion.sampler import Sampler
from molgen.io import write_extxyz
from molgen.report import ensemble_plots, fes_plots
from molgen.reweight.barrier import Barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.estimate import doubt
from molgen.reweight.importance import LEAST_DRAWS, RELIABLE_KHAT
from molgen.run import Run
from molgen.units import KJ_MOL, energy_unit
from molgen.workflows.ensemble_run import ensemble_hash
from molgen.workflows.fes_basins import Basin
from molgen.workflows.fes_outcome import Outcome
from molgen.workflows.fes_surfaces import DISAGREE, FORGOT, Surfaces

CONTROLLER = "controller"
MOST_FRAMES = 2000  # frames in samples.xyz, drawn by weight; all samples are in weights.npz
LABELLED = 6  # basins named in the picture
AT_CAP = 0.98  # of the cap; where the bias counts as grown to it


def write_results(
    run: Run,
    outcome: Outcome,
    sampler: Sampler,
    units: str,
    seconds: Mapping[str, float],
    notes: list[str],
    more: Mapping[str, Any] | None = None,
    unknown: Sequence[str] = (),
) -> dict[str, Any]:
    """Write surfaces, samples, pictures and the summary, which is returned.

    Args:
        more: further entries. unknown: what was to be found and could not be, which fails the gate.
    """
    ensemble, found = outcome.ensemble, outcome.surfaces
    fes, target = found.path, sampler.target
    for name, free, error in (
        ("fes.dat", fes.free_energy, fes.error),
        ("fes_histogram.dat", found.histogram.free_energy, found.histogram.error),
        ("fes_bias.dat", found.bias, None),
    ):
        run.write_text(name, fes_text(fes.names, fes.units, fes.periods, fes.centres, free, error))
    good = np.isfinite(ensemble.log_weights)
    values = np.stack([cv.values for cv in ensemble.cvs.values()], 1)
    columns = (
        target.bias.evaluate(values[good])[0] / KJ_MOL,
        ensemble.energies[good] / KJ_MOL,
        ensemble.log_weights[good] - ensemble.log_weights.max(),
    )
    extra = dict(zip(COLUMNS, columns, strict=True))
    run.write_text("COLVAR", colvar_text(fes.names, fes.units, fes.periods, values[good], extra))
    run.write_text("HILLS", hills_text(target.bias))
    ensemble.save(run)
    drawn = ensemble.resample(min(MOST_FRAMES, len(ensemble)), seed=run.seed)
    if ensemble.topology is None:
        frames = [Atoms(ensemble.numbers, x, info={"energy": e}) for x, e in
                  zip(drawn.positions, drawn.energies, strict=True)]  # fmt: skip
        write_extxyz(run.path("samples.xyz"), frames)
    _write_pictures(run, ensemble, found, sampler, drawn, units)
    energy, tried = energy_unit(units), found.repair or found.tried
    unknown = [*unknown, *_few(found)]
    figures = {
        "verdict": found.verdict,
        "verdict_unbiased": ensemble.verdict,
        "axes": list(fes.units),
        "variables": [
            {"name": name, "unit": unit, "period": period}
            for name, unit, period in zip(fes.names, fes.units, fes.periods, strict=True)
        ],
        "temperature": ensemble.temperature,
        "gate": {"khat_biased": found.biased.khat, "limit": RELIABLE_KHAT, "passed": found.passed},
        "weights": asdict(ensemble.diagnostics),
        "weights_biased": asdict(found.biased),
        "disagreement_kt": {**found.disagreement, "limit": found.limit},
        "repair": tried and {**asdict(tried), "limit": DISAGREE, "forgot": FORGOT, "used": tried is found.repair},
        "energy_calls": sampler.energies_used,
        "rejections": dict(target.rejections),
        "weight_zero": sum(ensemble.validity.values()),
        "rounds": len(sampler.records),
        "steps": [sampler.schedule.steps, outcome.kernels[0].steps],
        "bias_skipped": target.bias.skipped,
        "cap_kt": _cap_reached(target.bias),
        "seconds": dict(seconds),
        "notes": notes,
        "missing": _missing(found, more, unknown),
        "unknown": list(unknown),
        "barriers": [_barrier_row(*row, energy, units) for row in _profiled(found, more) if _known(row[2])],
        "ensemble_hash": ensemble_hash(ensemble),
        "units": units,
        **(more or {}),
    }
    run.write_json("rounds.json", sampler.records)
    return run.finish(
        "ok" if found.passed and not unknown else "gate_failed",
        results=[_row(basin, energy, units, number) for number, basin in enumerate(found.basins)],
        **figures,
    )


def tell(
    outcome: Outcome, log: Callable[[str], None], more: Mapping[str, Any] | None = None, unknown: Sequence[str] = ()
) -> None:
    """Log what the summary of a run without a folder would say that the ensemble does not; see `write_results`."""
    found = outcome.surfaces
    off = found.disagreement["histogram"]
    apart = f"{off:.2f} kT off" if np.isfinite(off) else "not comparable"
    apart = "" if found.agree else f", the histogram {apart}"
    log(f"the surface is {found.verdict}: k-hat {found.biased.khat:.2f} under the bias{apart}")
    for text in _missing(found, more, [*unknown, *_few(found)]):
        log(f"missing? {text}")


def _few(found: Surfaces) -> list[str]:
    """That the samples are too few without the bias, in words; nothing where they are enough."""
    few = f"the surface without the bias rests on {found.effective:.0f} effective samples, fewer than {LEAST_DRAWS}"
    return [] if found.enough else [few]


def _missing(found: Surfaces, more: Mapping[str, Any] | None, unknown: Sequence[str]) -> list[str]:
    """What the surface may lack, in words."""
    return [*found.missing, *_dropped(_profiled(found, more)), *unknown]


def _profiled(found: Surfaces, more: Mapping[str, Any] | None) -> list[tuple[int, int, Barrier]]:
    """Barriers of the profile; none beside that of a path: its progress piles up at the ends, where no depth is."""
    return [] if "barrier" in (more or {}) else found.barriers


def _cap_reached(bias: WellTemperedBias) -> float | None:
    """The cap of the bias, kT, where it has grown that high: barriers above it were not crossed, unless by chance."""
    if bias.cap is None or bias.values.max() < AT_CAP * bias.cap:
        return None
    return bias.cap / bias.kt


def _row(basin: Basin, energy: float, units: str, number: int) -> dict[str, Any]:
    found = basin.free_energy.scaled(1 / energy, units)
    return {
        "name": f"basin {number}", "minimum": list(basin.minimum), "share": basin.share, "samples": basin.samples,
        **asdict(found),
    }  # fmt: skip


def _known(barrier: Barrier) -> bool:
    """Whether both heights are positive and have an error; others are ripples between basins that noise made."""
    sides = (barrier.forward, barrier.reverse)
    return all(np.isfinite(side.error) and side.value > side.error for side in sides)


def _dropped(barriers: Sequence[tuple[int, int, Barrier]]) -> list[str]:
    """Which barriers are not `_known`, and why, in words."""
    notes = []
    for one, other, barrier in barriers:
        if not _known(barrier):
            sides = (barrier.forward, barrier.reverse)
            lacks = [side.why for side in sides if not np.isfinite(side.error) and side.why]
            why = lacks[0] if lacks else "its height is no more than its error"
            notes.append(f"the barrier between basins {one} and {other}: {why}")
    return notes


def _barrier_row(one: int, other: int, barrier: Barrier, energy: float, units: str) -> dict[str, Any]:
    named = {"forward": barrier.forward, "reverse": barrier.reverse}
    rows = {name: asdict(estimate.scaled(1 / energy, units)) for name, estimate in named.items()}
    return {"basins": [one, other], "place": barrier.place, "samples": barrier.samples, **rows}


def _write_pictures(
    run: Run, ensemble: Ensemble, found: Surfaces, sampler: Sampler, drawn: Ensemble, units: str
) -> None:
    fes, energy, good = found.path, energy_unit(units), found.passed and found.enough
    labels = [(basin.minimum, _label(basin, energy)) for basin in found.basins[:LABELLED] if basin.share > 1e-12]
    khats = (found.biased.khat, ensemble.diagnostics.khat)
    biased, unbiased = (f"{khat:.2f}" if np.isfinite(khat) else "none" for khat in khats)
    judged = f"{found.verdict}: k-hat {biased} under the bias, {unbiased} without it"
    judged += "" if found.repair is None else "; repaired by sequential Monte Carlo"
    told = [f"{name} {value:.2f}" for name, value in found.disagreement.items() if np.isfinite(value)]
    apart = ", ".join(told) or "not comparable (too few bins)"
    subtitle = f"{judged}\ndifference to path weights, kT: {apart}"
    if len(fes.edges) < 3:
        picture = fes_plots.surface(
            fes, {"histogram": found.histogram.free_energy, "bias": found.bias}, labels,
            np.stack([cv.wrapped(e[0]) for cv, e in zip(drawn.cvs.values(), fes.edges, strict=True)], 1),
            unit=units, title=f"free energy, {ensemble.temperature:g} K", subtitle=subtitle, good=good,
        )  # fmt: skip
        run.write_bytes("fes.png", picture)
    else:
        for name, edges in zip(fes.names, fes.edges, strict=True):
            plain = fes_plots.surface(
                ensemble.fes(name, bins=[edges]), {}, [], np.zeros((0, 1)), unit=units,
                title=f"{name}, {ensemble.temperature:g} K", subtitle=judged, good=good,
            )  # fmt: skip
            run.write_bytes(f"fes_{field_name(name)}.png", plain)
    if sampler.records:
        run.write_bytes("convergence.png", fes_plots.convergence(sampler.records, sampler.frozen_from))
    run.write_bytes("weights.png", ensemble_plots.weights(ensemble.log_weights, judged=ensemble.verdict))


def _label(basin: Basin, energy: float) -> str:
    found = basin.free_energy
    if found.value == 0 and found.error == 0:
        return "0"
    error = f" ± {found.error / energy:.2f}" if np.isfinite(found.error) else ""
    doubtful = doubt(found.khat, found.reliable)
    said = "" if not doubtful else " or more" if found.reliable else ", not reliable"
    return f"{found.value / energy:.2f}{error}{said}"
