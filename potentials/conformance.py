"""Does a potential keep the protocol? Run this against every new one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from molgen.errors import CalculatorError


@dataclass(frozen=True)
class Conformance:
    """Largest deviations found, each in units of the tolerance it was allowed (so at most 1)."""

    finite_difference: float
    batch: float
    nan_sample: float
    invariance: float | None


def check_potential(
    potential, positions, *, invariant: bool = True, step=1e-3, energy_tolerance=1e-6, force_tolerance=1e-4
) -> Conformance:
    """Check that `potential` keeps the protocol of `molgen.potentials.base` at positions (B, N, 3), B >= 2.

    Shapes and float64; one call counted for each evaluation; `energy` as in `energy_and_forces`; forces equal to
    central finite differences of the energy (displacement `step`, Angstrom, of every coordinate: 6BN energies); a
    batch equal to its samples one at a time; a NaN sample failing with a reason and leaving the others as they were;
    and, if `invariant`, a rotated and shifted molecule with the same energy and turned forces.

    Args:
        energy_tolerance: eV. Loosen both tolerances for single-precision potentials.
        force_tolerance: relative to the largest force, or to 1 eV/Angstrom if that is more.

    Raises:
        CalculatorError: naming every rule that was broken, with numbers.
    """
    positions = np.asarray(positions, dtype=float)
    batch, atoms, _ = positions.shape
    faults: list[str] = []

    def require(kept, fault: str) -> None:
        if not kept:
            faults.append(fault)

    def evaluate(x, evaluations: int):
        before = potential.calls
        energy, forces = potential.energy_and_forces(x)
        counted = potential.calls - before
        require(counted == evaluations, f"calls: {counted} counted for {evaluations} evaluations")
        for name, array, shape in (("energies", energy, (len(x),)), ("forces", forces, x.shape)):
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float64:
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                faults.append(f"shapes: {name} are {found}, expected float64 {shape}")
                raise _failed(potential, faults)  # nothing below can be compared
        return energy, forces

    def require_equal(found, expected, fault: str) -> float:
        """Compare two (energies, forces); the deviation in tolerances, infinite where one is NaN."""
        energy_error = np.abs(found[0] - expected[0]).max() / energy_tolerance
        force_error = np.abs(found[1] - expected[1]).max() / (scale * force_tolerance)
        deviation = float(np.nan_to_num(np.maximum(energy_error, force_error), nan=np.inf))
        require(deviation <= 1, f"{fault}, by {deviation:.3g} times the tolerance")
        return deviation

    energy, forces = reference = evaluate(positions, batch)
    if not (np.isfinite(energy).all() and np.isfinite(forces).all()):
        raise _failed(potential, [f"usable positions needed, but samples failed: {potential.failures}"])
    scale = max(1.0, np.abs(forces).max())
    evaluate(positions[:0], 0)
    require_equal((potential.energy(positions), forces), reference, "energy: energy() is not energy_and_forces()[0]")

    shifts = step * np.eye(3 * atoms).reshape(-1, atoms, 3)
    around = positions[:, None, None] + np.stack([shifts, -shifts])  # (B, 2, 3N, N, 3)
    plus, minus = np.moveaxis(potential.energy(around.reshape(-1, atoms, 3)).reshape(batch, 2, -1), 1, 0)
    numeric = ((minus - plus) / (2 * step)).reshape(forces.shape)
    error = np.nan_to_num(np.abs(forces - numeric), nan=np.inf)
    worst = sample, atom, axis = np.unravel_index(error.argmax(), error.shape)
    finite_difference = float(error[worst] / (scale * force_tolerance))
    require(
        finite_difference <= 1,
        f"forces: sample {sample}, atom {atom}, {'xyz'[axis]}: force {forces[worst]:.6g}, "
        f"-dE/dx by finite differences {numeric[worst]:.6g} eV/A",
    )

    single = [evaluate(x[None], 1) for x in positions]
    alone = tuple(np.concatenate(parts) for parts in zip(*single, strict=True))
    batched = require_equal(alone, reference, "batch: a sample depends on its batch")

    got = evaluate(np.insert(positions, 1, np.nan, axis=0), batch)
    require(
        np.isnan(got[0][1]) and np.isnan(got[1][1]).all(),
        f"NaN: a NaN sample has energy {got[0][1]}, expected NaN energy and forces",
    )
    require(
        list(potential.failures) == [1] and potential.failures[1],
        f"NaN: failures are {potential.failures}, expected a reason for sample 1 alone",
    )
    others = tuple(np.delete(part, 1, axis=0) for part in got)
    nan_sample = require_equal(others, reference, "NaN: a NaN sample changes the others of its batch")

    invariance = None
    if invariant:
        from scipy.spatial.transform import Rotation

        turn = Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix().T
        moved = evaluate(positions @ turn + [1.0, -2.0, 3.0], batch)
        invariance = require_equal(moved, (energy, forces @ turn), "invariance: rotation and translation matter")
    if faults:
        raise _failed(potential, faults)
    return Conformance(finite_difference, batched, nan_sample, invariance)


def _failed(potential, faults: list[str]) -> CalculatorError:
    return CalculatorError(
        "\n    ".join(["the potential does not keep the protocol", *faults]),
        where=type(potential).__name__,
        remedy="see molgen.potentials.base for the protocol",
    )
