"""The one potential protocol: energies and forces of a batch of geometries of one molecule.

Units: Angstrom, eV, eV/Angstrom. A sample that cannot be evaluated (SCF failure, crash, non-finite result) comes back
as NaN with its reason in `failures`; it never raises for the whole batch and is never dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from molgen.errors import InputError
from molgen.structures import checked_numbers

COINCIDENT = 1e-3  # Angstrom; two atoms this close are one atom written twice, not chemistry


class Potential(ABC):
    """Energies and forces for `numbers` (N,), `charge` and `spin` (unpaired electrons).

    Attributes:
        numbers: (N,) atomic numbers.
        charge: total charge, e.
        spin: number of unpaired electrons (0 = singlet).
        calls: energy or gradient evaluations so far (one per sample handed to the method; unusable input is not).
        failures: {sample index: reason} of the last call.
    """

    def __init__(self, numbers, charge: int = 0, spin: int = 0):
        self.numbers = checked_numbers(numbers, type(self).__name__)
        if self.numbers.ndim != 1 or not len(self.numbers):
            raise InputError(
                f"atomic numbers have shape {self.numbers.shape}",
                where=type(self).__name__,
                expected="(N,) with N >= 1",
                remedy="pass one atomic number for each atom",
            )
        self.charge, self.spin = int(charge), int(spin)
        self.calls = 0
        self.failures: dict[int, str] = {}

    def energy(self, positions) -> np.ndarray:
        """Energies (B,) in eV of positions (B, N, 3) in Angstrom; NaN where a sample failed."""
        return self._checked(positions, forces=False)[0]

    def energy_and_forces(self, positions) -> tuple[np.ndarray, np.ndarray]:
        """Energies (B,) in eV and forces (B, N, 3) in eV/Angstrom; NaN where a sample failed."""
        energy, forces = self._checked(positions, forces=True)
        assert forces is not None
        return energy, forces

    @abstractmethod
    def _evaluate(self, positions: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies and (if asked) forces of usable positions (B, N, 3); set `self.failures[i]` for a failed sample."""

    def _checked(self, positions, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        positions = _batch_of(positions, len(self.numbers), type(self).__name__)
        energy = np.full(len(positions), np.nan)
        force = np.full(positions.shape, np.nan) if forces else None
        reasons = {int(i): reason for i in _suspects(positions) if (reason := _unusable(positions[i]))}
        usable = np.delete(np.arange(len(positions)), list(reasons))
        self.failures = {}  # from here until `_evaluate` returns: numbered as the samples it is given
        if len(usable):
            self.calls += len(usable)
            energy[usable], given = self._evaluate(positions[usable], forces)
            if force is not None:
                force[usable] = given
        reasons |= {int(usable[i]): reason for i, reason in self.failures.items()}
        finite = np.isfinite(energy) if force is None else np.isfinite(energy) & np.isfinite(force).all((1, 2))
        for i in np.flatnonzero(~finite):
            reasons.setdefault(int(i), f"{type(self).__name__} returned a non-finite energy or force")
        failed = list(reasons)
        energy[failed] = np.nan
        if force is not None:
            force[failed] = np.nan
        self.failures = dict(sorted(reasons.items()))
        return energy, force


class SamplewisePotential(Potential):
    """A potential whose backend knows one geometry at a time; whatever it raises costs that sample only."""

    @abstractmethod
    def _evaluate_one(self, positions: np.ndarray, forces: bool) -> tuple[float, np.ndarray | None]:
        """Energy and (if asked) forces (N, 3) of one geometry (N, 3); raise to report a failure."""

    def _evaluate(self, positions, forces):
        energy = np.full(len(positions), np.nan)
        force = np.full(positions.shape, np.nan) if forces else None
        for i, x in enumerate(positions):
            try:
                value, given = self._evaluate_one(x, forces)
                shape = () if given is None else np.shape(given)
                if forces and shape != x.shape:  # numpy would spread a smaller array over the atoms
                    raise ValueError(f"forces of shape {shape}, expected {x.shape}")
                energy[i] = np.asarray(value, dtype=float).item()  # some calculators give an array of one
            except Exception as error:  # noqa: BLE001  any backend, any error: its reason is kept, the others live
                self.failures[i] = f"{type(error).__name__}: {error}"
                continue
            if force is not None:
                force[i] = given
        return energy, force


def _batch_of(positions, atoms: int, where: str) -> np.ndarray:
    try:
        positions = np.asarray(positions, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"positions are not an array of numbers: {error}", where=where) from None
    if positions.ndim != 3 or positions.shape[1:] != (atoms, 3):
        single = positions.shape == (atoms, 3)
        raise InputError(
            f"positions have shape {positions.shape}",
            where=where,
            expected=f"(B, {atoms}, 3) in Angstrom",
            remedy="add the batch axis: positions[None]" if single else "pass every geometry of this one molecule",
        )
    return positions


def _suspects(positions: np.ndarray) -> np.ndarray:
    """Samples that may be unusable: coincident atoms are neighbours in the sorted x, in y and in z alike."""
    gaps = np.diff(np.sort(positions, axis=1), axis=1)
    near = np.all(np.any(gaps < COINCIDENT, axis=1), axis=1)
    return np.flatnonzero(near | ~np.isfinite(positions).all((1, 2)))


def _unusable(positions: np.ndarray) -> str | None:
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(1))[0])
        return f"coordinate of atom {atom} is not finite"
    i, j = np.triu_indices(len(positions), 1)
    distances = np.linalg.norm(positions[i] - positions[j], axis=1)
    for pair in np.flatnonzero(distances < COINCIDENT)[:1]:
        return f"atoms {i[pair]} and {j[pair]} coincide ({distances[pair]:.1g} A apart)"
    return None
