"""What the rounds of a CV-biased run say: final draws, the weighted ensemble, three surfaces side by side, basins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from molgen.cvdiffusion.bias import Axis
from molgen.cvdiffusion.noising import Schedule, averaged, fit_variances, simulate
from molgen.cvdiffusion.sampler import FINAL, NAMES, PATHS, Sampler, tempered
from molgen.cvdiffusion.target import Batch
from molgen.reweight.barrier import Barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import FES, CVValues, histogram_fes
from molgen.reweight.importance import (
    LEAST_DRAWS,
    RELIABLE_KHAT,
    Verdict,
    WeightDiagnostics,
    diagnose,
    few_effective,
    group_factors,
    kish,
    normalised,
    psis,
    verdict,
    worst,
)
from molgen.rng import generator, sample_seed
from molgen.workflows.fes_basins import LOW, Basin, barriers, basins, untold, unvisited, walled
from molgen.workflows.fes_repair import Chains, Repair, chains_from, moved

if TYPE_CHECKING:
    import mdtraj

OnRound = Callable[[dict[str, Any]], None]
Kernels = tuple[Schedule, np.ndarray]  # times of the final trajectories, variances of their steps
CHUNK = 500  # trajectories drawn at a time
PARTS = 4  # groups of rounds under the resting bias, which count by their own effective sizes
RESTS = 0.2  # kT: the surface rests when no bin below `LOW` moves by more between snapshots
SNAPSHOTS = 20  # snapshots of the surface in a whole run
FORGOT = 0.5  # correlation of the variables where chains began and ended, up to which they count as moved
DISAGREE = 0.3  # root mean square between two estimates that passes, kT; see docs/benchmarks.md, a spoilt controller
EVEN, DISAGREE_EVEN = 0.5, 1.0  # k-hat up to which weights have a variance (Vehtari et al. 2024), and may move more
MEAN_EXISTS = 1.0  # k-hat above which the weights have no mean
FEWEST_BINS = 4  # bins that two surfaces must share to be compared


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Three estimates of one surface on the same bins, and what they agree on.

    Attributes:
        path: with path weights, the one to use. histogram: samples taken to be those of the biased target, reweighted
            by the bias alone. bias: (shape of the bins) eV, from the bias itself; minimum 0.
        biased: diagnostics of the weights for the biased target, which decide whether to believe `path`.
        effective: samples without the bias, as Kish counts them.
        disagreement: root mean square difference to `path` where it is below 8 kT, kT, by name, beyond its errors.
        basins: deepest first; none for three variables.
        barriers: between neighbouring basins, by their places; of one variable only.
        missing: what the surface may lack, in words.
        repair: where `path` is from sequential Monte Carlo instead of the path weights, which did not do (`biased`).
        tried: a repair that did not pass, so that `path` is the weights' all the same.
    """

    path: FES
    histogram: FES
    bias: np.ndarray
    biased: WeightDiagnostics
    effective: float
    disagreement: dict[str, float]
    basins: list[Basin]
    barriers: list[tuple[int, int, Barrier]]
    missing: list[str]
    repair: Repair | None = None
    tried: Repair | None = None

    @property
    def limit(self) -> float:
        """kT that the weights may move the histogram by: `DISAGREE`, more where they are even."""
        return DISAGREE_EVEN if self.biased.khat <= EVEN else DISAGREE

    @property
    def agree(self) -> bool:
        """Whether the weights have little to repair: the histogram without them is within `limit`."""
        return self.disagreement["histogram"] <= self.limit

    @property
    def enough(self) -> bool:
        """Whether what the molecule does without the bias rests on `LEAST_DRAWS` effective samples."""
        return self.effective >= LEAST_DRAWS

    @property
    def passed(self) -> bool:
        """The gate: k-hat of the weights for the biased target is at most 0.7, and they are enough; or their mean
        exists, and chains that began from many different samples came to rest not far from where the weights had them.

        Chains keep the populations of what they do not leave, so where k-hat refuses the weights they must have
        forgotten where they began.
        """
        if self.repair is None:
            return bool(self.biased.khat <= RELIABLE_KHAT and not few_effective(self.biased))
        rest = self.repair.halves <= DISAGREE and self.repair.shift <= 2 * DISAGREE
        sound = self.biased.khat <= RELIABLE_KHAT or self.repair.memory <= FORGOT
        return bool(
            self.biased.khat < MEAN_EXISTS and rest and sound and self.repair.ancestors >= self.repair.particles / 2
        )

    @property
    def verdict(self) -> Verdict:
        """See `molgen.reweight.importance.verdict`; "warn" at best where the weights alone did not do."""
        if self.repair is not None and self.enough:
            return "warn" if self.passed else "biased" if self.biased.khat < MEAN_EXISTS else "failed"
        # k-hat sees no region that samples reach too rarely; a histogram that the weights must move far hints at it,
        # and too few samples can show neither
        return worst(verdict(self.biased), "biased" if not self.enough else "reliable" if self.agree else "warn")


def judge(sampler: Sampler, batch: Batch) -> dict[str, Any]:
    """Figures of a round: how good its weights are, how far the bias has grown, energies so far."""
    found = diagnose(sampler.target.log_weights(batch))
    plain = diagnose(sampler.target.log_weights(batch, biased=False))
    return {
        "round": int(batch.round[0]),
        "energies": int(sampler.energies_used),
        "accepted": int(batch.accepted.sum()),
        "ess": found.ess,
        "khat": found.khat,
        "log_z": found.log_z,
        "ess_unbiased": plain.ess,
        "khat_unbiased": plain.khat,
        "bias": float(np.max(sampler.target.bias.values)) / sampler.target.kt,
        "moved": _moved(sampler),
    }


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
    begin = chains_from(sampler, draws, sampler.energies_used) if found.biased.khat < MEAN_EXISTS else None
    if begin is None:  # such a repair could not pass (`Surfaces.passed`)
        uneven = MEAN_EXISTS <= found.biased.khat < np.inf
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
    apart = {"histogram": _apart(new.path.free_energy, found.histogram.free_energy, low, error=new.path.error) / kt}
    return ensemble, replace(
        new,
        histogram=found.histogram,
        biased=found.biased,
        disagreement={**new.disagreement, **apart},
        repair=replace(
            repair,
            halves=_apart(one, other, low, new.path.counts) / kt,
            shift=_apart(new.path.free_energy, found.path.free_energy, low, new.path.counts) / kt,
        ),
    )


def surfaces(ensemble: Ensemble, sampler: Sampler) -> Surfaces:
    """The three estimates on bins of a hill's width, and the basins of the path-weighted one."""
    target, bias = sampler.target, sampler.target.bias
    edges = [_edges(a, w) for a, w in zip(bias.axes, bias.widths, strict=True)]
    variables = list(ensemble.cvs.values())
    values = np.stack([cv.values for cv in variables], 1)
    good = np.isfinite(values).all(1)
    push = np.full(len(values), -np.inf)
    push[good] = bias.evaluate(values[good])[0] / target.kt
    biased = np.where(good, ensemble.log_weights - np.where(good, push, 0.0), -np.inf)
    path = histogram_fes(
        variables, ensemble.log_weights, ensemble.weights, target.temperature, bins=edges, groups=ensemble.groups
    )
    histogram = histogram_fes(variables, push, normalised(push), target.temperature, bins=edges)
    centres = np.stack(np.meshgrid(*path.centres, indexing="ij"), -1).reshape(-1, len(edges))
    depth = -bias.gamma / (bias.gamma - 1) * bias.evaluate(centres)[0].reshape(path.free_energy.shape)
    low = path.free_energy < LOW * target.kt
    others = {"histogram": histogram.free_energy, "bias": depth}
    found = basins(ensemble, path) if len(edges) < 3 else []
    return Surfaces(
        path=path,
        histogram=histogram,
        bias=depth - depth.min(),
        biased=diagnose(biased),
        effective=kish(ensemble.log_weights) * len(ensemble),
        disagreement={
            name: _apart(path.free_energy, other, low, error=path.error) / target.kt for name, other in others.items()
        },
        basins=found,
        barriers=barriers(ensemble, path, found),
        missing=unvisited(path, walled(path, target.cvs, target.walls))
        + (untold(ensemble, path) if len(edges) < 3 else []),
    )


def _edges(axis: Axis, width: float) -> np.ndarray:
    """Edges of bins a hill wide; around a circle the first centre is where the axis begins, as in PLUMED's grids."""
    edges = np.linspace(axis.low, axis.high, max(6, round((axis.high - axis.low) / width)) + 1)
    return edges if axis.period is None else edges - (edges[1] - edges[0]) / 2


def converged(sampler: Sampler) -> bool:
    """Whether the last three snapshots of the surface under the resting bias differ by less than 0.2 kT, k-hat < 0.7.

    A snapshot is the path-weighted surface of everything since the bias rests, every twentieth of the run.
    """
    moves = [record["moved"] for record in sampler.records if record.get("moved") is not None]
    if len(moves) < 3 or sampler.records[-1]["moved"] is None or max(moves[-3:]) >= RESTS:
        return False
    return bool(diagnose(sampler.target.log_weights(Batch.join(sampler.history))).khat < RELIABLE_KHAT)


def _moved(sampler: Sampler) -> float | None:
    """The largest difference, kT, below `LOW` of a snapshot and the one before, `LOW` where they share no bin; None if
    this round is not one."""
    every, frozen = max(1, sampler.settings.rounds // SNAPSHOTS), sampler.history
    if len(frozen) < 2 * every or len(frozen) % every:
        return None
    later, earlier = (_snapshot(sampler, Batch.join(part)) for part in (frozen, frozen[:-every]))
    low = np.isfinite(later) & np.isfinite(earlier) & (later < LOW)
    return float(np.abs(later[low] - earlier[low]).max()) if low.any() else LOW


def _snapshot(sampler: Sampler, batch: Batch) -> np.ndarray:
    """The surface in kT over coarse bins; 0 at its minimum."""
    bias = sampler.target.bias
    weights = normalised(psis(sampler.target.log_weights(batch, biased=False)))
    edges = [np.linspace(a.low, a.high, max(6, round((a.high - a.low) / (2 * w)) + 1))
             for a, w in zip(bias.axes, bias.widths, strict=True)]  # fmt: skip
    share = np.histogramdd(_wrapped(bias, batch.cvs), edges, weights=weights)[0]
    with np.errstate(divide="ignore"):
        free = -np.log(share)
    return free - free.min()


def _wrapped(bias: Any, cvs: np.ndarray) -> np.ndarray:
    """Values (n, D) moved into the ranges of the periodic axes."""
    return np.stack([axis.wrapped(cvs[:, d]) for d, axis in enumerate(bias.axes)], 1)


def _apart(
    one: np.ndarray,
    other: np.ndarray,
    where: np.ndarray,
    counts: np.ndarray | None = None,
    error: np.ndarray | None = None,
) -> float:
    """Root mean square difference where both are known, up to a constant; a bin counts once, or by its samples.

    `error`: of `one`, whose square is left out of the mean; bins where it is unknown do not count.
    """
    noise = np.zeros_like(one) if error is None else error
    both = where & np.isfinite(one) & np.isfinite(other) & np.isfinite(noise)
    if both.sum() < FEWEST_BINS:  # the constant alone would make few bins agree
        return float("inf")
    difference, weights = one[both] - other[both], None if counts is None else counts[both]
    mean = np.average(difference, weights=weights)
    square = np.average((difference - mean) ** 2 - noise[both] ** 2, weights=weights)
    return float(np.sqrt(max(square, 0.0)))
