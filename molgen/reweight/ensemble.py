"""Weighted samples of a Boltzmann distribution, and what can be estimated from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError, check_counts, check_temperature
from molgen.reweight import storage
from molgen.reweight.barrier import SIDES, Barrier, profile_barrier
from molgen.reweight.estimate import (
    FEW,
    REFUSED,
    Estimate,
    check_values,
    delta_error,
    descent_error,
    effective_groups,
    lacking,
    verdict_by_groups,
    weighted_mean,
)
from molgen.reweight.free_energy import FES, CVValues, free_energy_difference, histogram_fes
from molgen.reweight.importance import (
    TOP_SHARE,
    Verdict,
    WeightDiagnostics,
    cleaned,
    diagnose,
    drop_top,
    few_effective,
    normalised,
    psis,
    verdict,
    worst,
    worst_weights,
)
from molgen.reweight.merging import indexed, merged, taken
from molgen.reweight.regions import boxed_region, written_region
from molgen.rng import generator
from molgen.structures import checked_numbers

if TYPE_CHECKING:
    import mdtraj

    from molgen.variables import CV

_Doubtful = TypeVar("_Doubtful", Estimate, FES, Barrier)
# A collective variable: by name or text, with its values, or as a function
Variable: TypeAlias = "str | CVValues | CV"
# A region: boolean mask (n,), callable giving one, {"phi 1": (low, high)} in A and rad, or text in A and degrees
Region = np.ndarray | Callable[[Any], ArrayLike] | Mapping[str, tuple[float, float]] | str


@dataclass(frozen=True, eq=False, repr=False)
class Ensemble:
    """n samples with their weights; estimates use Pareto-smoothed weights and leave no sample out.

    Wherever a function of the samples is asked for, it is called with the mdtraj `trajectory` (nm!) if there is a
    topology, and with `positions` (n, N, 3) Angstrom if not.

    Attributes:
        positions: (n, N, 3) Angstrom, float64.
        log_weights: (n,) raw, ln w = -E/kT - ln q on one scale; what is not finite is a weight of zero. Zeros for MD.
        energies: (n,) eV.
        temperature: K.
        numbers: atomic numbers (N,).
        topology: mdtraj's, None for systems without residues.
        log_q: (n,) log density of the proposal, where known.
        cvs: collective variables attached by name, besides those that can be written.
        groups: labels (n,) of samples that depend on each other (see `molgen.reweight.estimate`); None if none do.
            Their number limits the verdict (`molgen.reweight.estimate.verdict_by_groups`).
        validity: reason -> number of samples, e.g. {"non-finite energy": 3}.
        at_best: the verdict is never better: of what k-hat of these weights cannot see, such as weights dropped or
            proposals refused on the way. Where it is "biased" or "failed", no estimate is reliable.
        smoothed: whether estimates use Pareto-smoothed weights.
        resampled_by: diagnostics of the weights by which samples were resampled, None if they were not: no estimate is
            better than these allow, although the samples themselves weigh alike.
        ancestors: how many first particles there were, where groups are their descendants (of `smc.climb`); else None.

    Raises:
        InputError: shapes that do not agree, no sample, or a temperature that is not positive.
    """

    positions: np.ndarray
    log_weights: np.ndarray
    energies: np.ndarray
    temperature: float
    numbers: np.ndarray
    topology: mdtraj.Topology | None = None
    log_q: np.ndarray | None = None
    cvs: Mapping[str, CVValues] = field(default_factory=dict)
    groups: np.ndarray | None = None
    validity: Mapping[str, int] = field(default_factory=dict)
    at_best: Verdict = "reliable"
    smoothed: bool = True
    resampled_by: WeightDiagnostics | None = None
    ancestors: int | None = None

    def __post_init__(self):
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("positions", np.asarray(self.positions, dtype=float))
        keep("log_weights", cleaned(self.log_weights))
        keep("energies", np.asarray(self.energies, dtype=float))
        keep("numbers", checked_numbers(self.numbers, "Ensemble"))
        keep("cvs", dict(self.cvs))
        keep("validity", dict(self.validity))
        n, atoms = len(self.log_weights), len(self.numbers)
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "positions": (self.positions.shape, (n, atoms, 3)),
            "energies": (self.energies.shape, (n,)),
        }
        for name in ("log_q", "groups"):
            if getattr(self, name) is not None:
                keep(name, np.asarray(getattr(self, name)))
                shapes[name] = (getattr(self, name).shape, (n,))
        shapes |= {f"collective variable {name!r}": (np.shape(cv.values), (n,)) for name, cv in self.cvs.items()}
        if self.topology is not None:
            shapes["topology"] = ((self.topology.n_atoms,), (atoms,))
        for name, (shape, expected) in shapes.items():
            if shape != expected:
                raise InputError(
                    f"{name} of shape {shape}", where="Ensemble", expected=f"{expected}: {n} samples, {atoms} atoms"
                )
        check_temperature(self.temperature, "Ensemble")

    def __len__(self) -> int:
        return len(self.log_weights)

    def __repr__(self) -> str:
        size = f"{len(self)} samples of {len(self.numbers)} atoms, {self.temperature:g} K"
        judged = f"{self.verdict}: k-hat {self.diagnostics.khat:.2f}, ESS {self.diagnostics.ess:.1%}"
        if self.groups is not None:
            judged += f", {effective_groups(normalised(self.log_weights), self.groups):.0f} effective groups"
        return f"Ensemble({size}, {judged})"

    @cached_property
    def diagnostics(self) -> WeightDiagnostics:
        """Of the raw log-weights; only the error of ln Z knows of groups, and of ancestors without descendants."""
        found, weights = diagnose(self.log_weights), normalised(self.log_weights)
        if self.groups is None:
            return found
        if self.ancestors is None:
            error = delta_error(weights - 1 / len(self), self.groups)
        else:
            error = descent_error(weights, self.groups, self.ancestors)
        return replace(found, log_z_error=float(error) if found.ess else np.inf)

    @property
    def verdict(self) -> Verdict:
        """ "reliable", "warn", "biased" or "failed": what the weights (`molgen.reweight.importance.verdict`), the
        number of groups and `at_best` allow."""
        return worst(verdict(self.diagnostics), self._allowed)

    @cached_property
    def _allowed(self) -> Verdict:
        """The best that `at_best` and the groups allow."""
        if self.groups is None or self.resampled_by is not None:  # as few as were asked for, of what `at_best` judged
            return self.at_best
        return worst(self.at_best, verdict_by_groups(normalised(self.log_weights), self.groups))

    @cached_property
    def weights(self) -> np.ndarray:
        """Normalised weights (n,) that estimates use: Pareto-smoothed, or as they are after `without_top`."""
        return normalised(psis(self.log_weights) if self.smoothed else self.log_weights)

    @cached_property
    def trajectory(self) -> mdtraj.Trajectory:
        """The samples as an mdtraj trajectory: nanometre, float32, `unitcell` absent.

        Raises:
            InputError: the ensemble has no topology.
        """
        import mdtraj

        if self.topology is None:
            raise InputError("this ensemble has no topology", remedy="use `positions` (n, N, 3) in Angstrom")
        return mdtraj.Trajectory((self.positions / 10).astype(np.float32), self.topology)

    def cv(self, what: str | CV) -> CVValues:
        """The attached variable of that name, that of a text, "phi 1", or of a function (`molgen.variables.custom`).

        Raises:
            InputError: none exists (lists what does).
        """
        if isinstance(what, str) and what in self.cvs:
            return self.cvs[what]
        from molgen.variables import CV, Molecule, parse_cv, values  # torch, which weights alone do not need

        if not isinstance(what, (str, CV)):
            raise InputError(
                f"{what!r}", where="collective variable", expected='a name, such as "phi 1", or the variable'
            )
        try:
            found = what if isinstance(what, CV) else parse_cv(what, Molecule(self.numbers, self.topology))
        except InputError as error:
            if self.cvs:
                error.add_note(f"attached collective variables: {', '.join(self.cvs)}")
            raise
        return CVValues(found.name, values(found, self.positions), found.unit, found.period)

    def expectation(self, what: Variable | ArrayLike | Callable[[Any], ArrayLike]) -> Estimate:
        """Boltzmann average with its standard error and k-hat.

        Of what never varies in the samples the error is NaN, for it may be rare; but numbers that are given, all alike
        and not zero, are a constant.

        Args:
            what: a collective variable (periodic ones: mean direction), values (n,) or (n, k), or a function that gives
                them from the trajectory or the positions. Shares: best as booleans.

        Raises:
            InputError: no such variable, or values of the wrong shape or not finite at a sample that has a weight.
        """
        if isinstance(what, (str, CVValues)) or hasattr(what, "function"):
            variable = what if isinstance(what, CVValues) else self.cv(cast("str | CV", what))
            turn = 1.0 if variable.period is None else 2 * np.pi / variable.period
            estimate = self._mean(variable.values * turn, circular=variable.period is not None, unit=variable.unit)
            return estimate.scaled(1 / turn, variable.unit)
        given = not callable(what) and str(getattr(what, "dtype", "")) != "bool"
        return self._mean(self._call(what) if callable(what) else cast(ArrayLike, what), meant=given)

    def free_energy(self, region_a: Region, region_b: Region, *, replicas: int = 0, seed: int = 0) -> Estimate:
        """F(b) - F(a) = -kT ln(P(b)/P(a)) in eV, with its standard error and k-hat.

        Args:
            region_a, region_b: boolean mask (n,); a function that gives one; a box {"phi 1": (low, high)} in A and rad;
                or text such as "phi 1 in (-180, 0)" in A and degrees (see `molgen.reweight.regions`).
            replicas: of the bootstrap that gives the error; 0 for the delta method.
        """
        return self.doubted(free_energy_difference(
            self.region(region_a), self.region(region_b), self.log_weights, self.weights, self.temperature,
            groups=self.groups, replicas=replicas, seed=seed,
        ))  # fmt: skip

    def region(self, region: Region) -> np.ndarray:
        """Which samples (n,) lie in `region`, boolean."""
        if isinstance(region, str):
            return written_region(region, self._known)
        if isinstance(region, Mapping):
            return boxed_region(region, self._known)
        mask = np.asarray(self._call(region) if callable(region) else region)
        if mask.shape != (len(self),) or mask.dtype != bool:
            raise InputError(
                f"a mask of shape {mask.shape} and type {mask.dtype}", where="region", expected=f"({len(self)},) bool"
            )
        return mask

    def fes(
        self, cvs: Variable | Sequence[Variable], bins: Any = 50, *,
        ranges: Any = None, replicas: int = 0, seed: int = 0,
    ) -> FES:  # fmt: skip
        """Free-energy surface over one or more collective variables.

        Args:
            bins: number of bins for all or for each, or the edges of each.
            ranges, replicas, seed: as of `molgen.reweight.free_energy.histogram_fes`.
        """
        named = [cvs] if isinstance(cvs, str) or not isinstance(cvs, Sequence) else cvs
        return self.doubted(histogram_fes(
            [self._known(cv) for cv in named], self.log_weights, self.weights, self.temperature, bins=bins,
            ranges=ranges, groups=self.groups, replicas=replicas, seed=seed,
        ))  # fmt: skip

    def barrier(
        self,
        cv: Variable,
        between: tuple[float, float],
        *,
        limits: tuple[float, float] | None = None,
        width: float | None = None,
        replicas: int = 200,
        seed: int = 0,
    ) -> Barrier:
        """Top of the profile along one variable above its minima on both sides, eV (`molgen.reweight.barrier`).

        Args:
            between: a place in each basin, low < high, in its unit.
            limits: of the profile, the two basins and nothing else; None: as far as the tops to the next ones.
            width: between knots of the smooth curve to begin with; None: a fifteenth of the limits.
            replicas: of the bootstrap that gives the errors.

        Raises:
            InputError: no such variable, places that are not in order within the limits, or limits beyond a period.
        """
        return self.doubted(profile_barrier(
            self._known(cv), self.log_weights, self.weights, self.temperature, between=between, limits=limits,
            width=width, groups=self.groups, replicas=replicas, seed=seed,
        ))  # fmt: skip

    def resample(self, count: int, seed: int = 0) -> Ensemble:
        """`count` samples of equal weight, drawn with replacement by weight.

        Copies of one sample share a group, so errors stay honest, and neither the verdict nor k-hat is ever better than
        that of the weights drawn by. Adds noise: never estimate from these what the weighted samples can give.

        Raises:
            InputError: no sample has a weight, or count < 1.
        """
        check_counts("Ensemble.resample", count=(count, 1))
        if not self.weights.any():
            raise InputError("no sample has a weight", where="Ensemble.resample", expected="one or more to draw from")
        chosen = np.sort(generator(seed).choice(len(self), size=count, p=self.weights))
        drawn = taken(self, chosen)
        groups = chosen if self.groups is None else self.groups[chosen]
        judged = {"at_best": self.verdict, "resampled_by": worst_weights(self.diagnostics, self.resampled_by)}
        return replace(drawn, log_weights=np.zeros(count), groups=groups, ancestors=None, **judged)

    def without_top(self, share: float = TOP_SHARE) -> Ensemble:
        """The ensemble with the largest weights dropped and the rest not smoothed, as Prose reports. Biased."""
        return replace(self, log_weights=drop_top(self.log_weights, share), at_best="biased", smoothed=False)

    def __getitem__(self, index: Any) -> Ensemble:
        """The samples at `index` (slice, mask or indices), weights and all; `validity` stays that of the whole.

        One that is there twice counts as one for errors and the verdict. Raises InputError where none is left.
        """
        return indexed(self, index)

    @classmethod
    def merge(cls, ensembles: Iterable[Ensemble]) -> Self:
        """All samples in one ensemble, log-weights as they are: right when each is ln w = -E/kT - ln q of normalised q.

        For draws of proposals whose densities are known at each other's draws, `mixture_log_weights` is better. Groups
        of different ensembles are different, but one draw that several have (of one flow under one seed) is one group;
        collective variables stay where all have them. The verdict is never better than with each draw once.

        Raises:
            InputError: no ensemble, molecules or temperatures differ, or weighted samples beside those that count alike
                (of molecular dynamics, or resampled): their log-weights, zeros, are on a scale of their own.
        """
        return cast(Self, merged(ensembles))

    def save(self, to: str | Path | storage.Paths, *, positions: bool = False) -> list[Path]:
        """Write `topology.pdb`, `samples.xtc` and `weights.npz`, each whole or not at all; returns their paths.

        The xtc rounds positions to 0.01 A, which moves the energy of a dipeptide by 2 kJ/mol (standard deviation; 6 at
        most in 100 frames). `weights.npz` holds the exact ones on request, and always where there is no topology (then
        it is the only file).

        Args:
            to: a folder, not that of a run, or a `molgen.run.Run`.
            positions: keep the float64 positions in `weights.npz` too.
        """
        return storage.save(self, to, positions)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The ensemble that `save` wrote; positions exact where `weights.npz` has them, else those of the xtc.

        Raises:
            InputError: a file is missing, damaged, or belongs to other samples.
        """
        return cls(**storage.load(folder))

    def _known(self, cv: Variable) -> CVValues:
        """A collective variable by name or as it is, with a value wherever there is a weight.

        Raises:
            InputError: no such variable, of another number of samples, or not finite where the weight is above zero.
        """
        variable = cv if isinstance(cv, CVValues) else self.cv(cv)
        check_values(variable.values, self.weights, variable.name)
        return variable

    def _mean(self, values: ArrayLike, **options: Any) -> Estimate:
        return self.doubted(weighted_mean(values, self.log_weights, self.weights, self.groups, **options))

    def doubted(self, found: _Doubtful) -> _Doubtful:
        """An estimate from these samples, which is not reliable if the ensemble cannot be."""
        if isinstance(found, Barrier):
            return replace(found, **{side: self.doubted(getattr(found, side)) for side in SIDES})
        refused = [verdict in ("biased", "failed") for verdict in (self.at_best, self._allowed)]
        few = refused[1] or few_effective(self.diagnostics)
        by, why = self.resampled_by, REFUSED if refused[0] else FEW if few else ""
        if by is not None:
            why = why or lacking([by.khat], [by.threshold])
            found = replace(found, khat=np.maximum(found.khat, by.khat)[()])
        if not why or (why == FEW and getattr(found, "why", "")):  # its own reason says more
            return found
        return replace(found, reliable=False, **({"why": why} if isinstance(found, Estimate) else {}))

    def _call(self, function: Callable[[Any], ArrayLike]) -> np.ndarray:
        given = "positions (n, N, 3), Angstrom" if self.topology is None else "an mdtraj trajectory, nm"
        try:
            return np.asarray(function(self.positions if self.topology is None else self.trajectory))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{type(error).__name__}: {error}", where="the function of the samples",
                expected=f"one that takes {given}",
            ) from error  # fmt: skip
