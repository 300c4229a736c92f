"""Three estimates of a free-energy surface side by side, and whether they are to be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from molgen.cvdiffusion.bias import Axis
from molgen.cvdiffusion.sampler import Sampler
from molgen.reweight.barrier import Barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import FES, histogram_fes
from molgen.reweight.importance import (
    LEAST_DRAWS,
    RELIABLE_KHAT,
    Verdict,
    WeightDiagnostics,
    diagnose,
    few_effective,
    kish,
    normalised,
    verdict,
    worst,
)
from molgen.workflows.fes_basins import LOW, Basin, barriers, basins, untold, unvisited, walled
from molgen.workflows.fes_repair import Repair

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
    def mean_exists(self) -> bool:
        """Whether the weights for the biased target have a mean, without which no repair can pass."""
        return bool(self.biased.khat < MEAN_EXISTS)

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
        return bool(self.mean_exists and rest and sound and self.repair.ancestors >= self.repair.particles / 2)

    @property
    def verdict(self) -> Verdict:
        """See `molgen.reweight.importance.verdict`; "warn" at best where the weights alone did not do."""
        if self.repair is not None and self.enough:
            return "warn" if self.passed else "biased" if self.mean_exists else "failed"
        # k-hat sees no region that samples reach too rarely; a histogram that the weights must move far hints at it,
        # and too few samples can show neither
        return worst(verdict(self.biased), "biased" if not self.enough else "reliable" if self.agree else "warn")


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
            name: apart(path.free_energy, other, low, error=path.error) / target.kt for name, other in others.items()
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


def apart(
    one: np.ndarray,
    other: np.ndarray,
    where: np.ndarray,
    counts: np.ndarray | None = None,
    error: np.ndarray | None = None,
) -> float:
    """Root mean square difference of two surfaces, up to a constant; a bin where both are known counts once, or by its
    samples.

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
