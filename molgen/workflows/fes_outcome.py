"""What a CV-biased run has found: final draws, the weighted ensemble, its surfaces, a repair where they need one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from molgen.cvdiffusion.noising import Schedule, averaged, fit_variances, simulate
from molgen.cvdiffusion.sampler import FINAL, NAMES, PATHS, Sampler, tempered
from molgen.cvdiffusion.target import Batch
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import CVValues, histogram_fes
from molgen.reweight.importance import group_factors
from molgen.rng import generator, sample_seed
from molgen.workflows.fes_basins import LOW
from molgen.workflows.fes_repair import Chains, chains_from, moved
from molgen.workflows.fes_surfaces import Surfaces, apart, surfaces

if TYPE_CHECKING:
    import mdtraj

Kernels = tuple[Schedule, np.ndarray]  # times of the final trajectories, variances of their steps
CHUNK = 500  # trajectories drawn at a time
PARTS = 4  # groups of rounds under the resting bias, which count by their own effective sizes


def final_draws(
    sampler: Sampler, count: int, fine: int, kernels: Kernels | None = None, paths: int = 1
) -> tuple[Batch, Kernels]:
    """Samples with the finished controller in `fine` times as many steps; and the kernels they were drawn with.

    Args:
        kernels: of a finished run; None: fitted to the samples of the last rounds. paths: see `noising.averaged`.
    """
    schedule, variances = kernels = kernels or _final_kernels(sampler, fine)
    parts = []
    for number, start in enumerate(range(0, count, CHUNK)):
        found = simulate(
            sampler.controller, schedule, variances, sampler.target.space, min(CHUNK, count - start), sampler.seed,
            FINAL, number,
        )  # fmt: skip
        found = averaged(
            sampler.controller, schedule, variances, sampler.target.space, found, paths, sampler.seed, PATHS, number
        )
        parts.append(sampler.target.evaluate(found.points, found.log_path, sampler.number))
    return Batch.join(parts), kernels


def _final_kernels(sampler: Sampler, fine: int) -> Kernels:
    schedule = replace(sampler.schedule, steps=sampler.schedule.steps * fine)
    if sampler.fixed_kernels:
        return schedule, schedule.variances(sampler.width)
    learned = sampler.replayed()
    weights = tempered(sampler.target.log_weights(learned), sampler.settings.beta)
    return schedule, fit_variances(
        sampler.controller, schedule, sampler.target.space, learned.points, weights, sample_seed(sampler.seed, FINAL)
    )


def ensemble_of(sampler: Sampler, draws: Batch, topology: mdtraj.Topology | None = None) -> Ensemble:
    """The final draws and those of the rounds under the resting bias, weighted for the target without bias.

    The rounds, in a few parts, and the final draws count by the effective sizes of their weights under the bias: the
    controller was still learning, and took fewer steps.
    """
    frozen = sampler.history
    cuts = np.linspace(0, len(frozen), min(PARTS, len(frozen)) + 1).astype(int)
    parts = [*(Batch.join(frozen[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)), draws]
    factors = group_factors([sampler.target.log_weights(part) for part in parts])
    return _ensemble(sampler, Batch.join(parts), np.repeat(factors, [len(part) for part in parts]), topology)


def _ensemble(
    sampler: Sampler,
    batch: Batch,
    factors: np.ndarray | float,
    topology: mdtraj.Topology | None,
    groups: np.ndarray | None = None,
) -> Ensemble:
    target, good = sampler.target, batch.accepted
    centre = batch.positions.mean(1, keepdims=True) if batch.positions.shape[1] > 1 else 0.0
    return Ensemble(
        positions=target.space.relabelled(batch.positions - centre, generator(sampler.seed, NAMES)),
        log_weights=target.log_weights(batch, biased=False) + factors,
        energies=batch.energies,
        temperature=target.temperature,
        numbers=target.potential.numbers,
        topology=topology,
        cvs={
            axis.name: CVValues(axis.name, np.where(good, batch.cvs[:, d], np.nan), axis.unit, axis.period)
            for d, axis in enumerate(target.bias.axes)
        },
        validity={"rejected": int((~good).sum())} if not good.all() else {},
        groups=groups,
    )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found: the ensemble, never better than its surfaces; these; the kernels of its final trajectories."""

    ensemble: Ensemble
    surfaces: Surfaces
    kernels: Kernels

    @classmethod
    def of(cls, ensemble: Ensemble, surfaces: Surfaces, kernels: Kernels) -> Outcome:
        """With the verdict of the surfaces as the best that the ensemble's, and any estimate's, may be."""
        judged = replace(ensemble, at_best=surfaces.verdict)
        doubted = replace(
            surfaces,
            path=judged.doubted(surfaces.path),
            basins=[replace(basin, free_energy=judged.doubted(basin.free_energy)) for basin in surfaces.basins],
            barriers=[(one, other, judged.doubted(barrier)) for one, other, barrier in surfaces.barriers],
        )
        return cls(judged, doubted, kernels)


def outcome(
    sampler: Sampler,
    count: int,
    fine: int,
    topology: mdtraj.Topology | None = None,
    kernels: Kernels | None = None,
    *,
    paths: int = 1,
    repair: str = "auto",
    log: Callable[[str], None] = lambda message: None,
) -> Outcome:
    """Draw, weigh and judge; where the weights do not do, give sequential Monte Carlo a try.

    Args:
        kernels, paths: see `final_draws`. repair: see `FesSettings`.
    """
    draws, kernels = final_draws(sampler, count, fine, kernels, paths)
    ensemble = ensemble_of(sampler, draws, topology)
    found = surfaces(ensemble, sampler)
    wanted = repair == "always" and found.verdict != "reliable" or repair == "auto" and not found.passed
    if not wanted:
        return Outcome.of(ensemble, found, kernels)
    why = f"k-hat {found.biased.khat:.2f}, histogram {found.disagreement['histogram']:.2f} kT off"
    begin = chains_from(sampler, draws, sampler.energies_used) if found.mean_exists else None
    if begin is None:  # such a repair could not pass (`Surfaces.passed`)
        uneven = not found.mean_exists and np.isfinite(found.biased.khat)
        lacks = "the weights are too uneven" if uneven else "too few different samples"
        log(f"{why}: {lacks} for sequential Monte Carlo to begin from; the weights stand")
        return Outcome.of(ensemble, found, kernels)
    log(f"{why}: sequential Monte Carlo from the final samples")
    chain, mended = repaired(sampler, draws, found, begin, topology)
    if mended.passed:
        return Outcome.of(chain, mended, kernels)
    log("its chains did not come to rest, or far from the weights: the weights stand")
    return Outcome.of(ensemble, replace(found, tried=mended.repair), kernels)


def repaired(
    sampler: Sampler, draws: Batch, found: Surfaces, begin: Chains, topology: mdtraj.Topology | None = None
) -> tuple[Ensemble, Surfaces]:
    """The ensemble of `fes_repair.moved`, and its surfaces beside the histogram of the draws as they were."""
    states, repair = moved(sampler, draws, begin)

    def ensemble_from(part: list[Batch]) -> Ensemble:
        return _ensemble(sampler, Batch.join(part), 0.0, topology, np.tile(begin.chosen, len(part)))

    ensemble, half = ensemble_from(states), len(states) // 2
    new, kt = surfaces(ensemble, sampler), sampler.target.kt
    low = new.path.free_energy < LOW * kt
    one, other = (
        histogram_fes(list(e.cvs.values()), e.log_weights, e.weights, e.temperature, bins=new.path.edges).free_energy
        for e in map(ensemble_from, (states[:half], states[half:]))
    )
    off = {"histogram": apart(new.path.free_energy, found.histogram.free_energy, low, error=new.path.error) / kt}
    return ensemble, replace(
        new,
        histogram=found.histogram,
        biased=found.biased,
        disagreement={**new.disagreement, **off},
        repair=replace(
            repair,
            halves=apart(one, other, low, new.path.counts) / kt,
            shift=apart(new.path.free_energy, found.path.free_energy, low, new.path.counts) / kt,
        ),
    )
