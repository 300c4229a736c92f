"""ASE on both sides of the protocol: any ASE calculator as a Potential, any Potential as an ASE calculator."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError, all_changes
from ase.data import chemical_symbols

from molgen import errors
from molgen.potentials.base import Potential, SamplewisePotential
from molgen.potentials.xtb import XtbPotential

EMBEDDED = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
_NAMES = f'{", ".join(EMBEDDED)} or "module:Class" of an ASE calculator'
# What keeps a calculator from writing its iterations to stdout, where results and --json go.
QUIET = {"tblite.ase:TBLite": {"verbosity": 0}}


def _stdout_spared() -> contextlib.redirect_stdout:
    """What Python prints within goes to stderr: stdout is for results, with --json for JSON alone."""
    return contextlib.redirect_stdout(sys.stderr)


class AsePotential(SamplewisePotential):
    """Any ASE calculator (energies in eV, forces in eV/Angstrom) as a Potential.

    The calculator sees one `ase.Atoms` with `info["charge"]` and `info["spin"]` (multiplicity, spin + 1, as MLIPs such
    as MACE and UMA read it) and, where nonzero, initial charges and magnetic moments that sum to charge and spin.

    Raises:
        InputError: `calculator` is not an ASE calculator, or `numbers` holds no element.
    """

    def __init__(self, calculator, numbers, charge: int = 0, spin: int = 0):
        super().__init__(numbers, charge, spin)
        if isinstance(calculator, type) or not hasattr(calculator, "get_property"):
            raise errors.InputError(
                f"{calculator!r} is not an ASE calculator",
                where="calculator",
                expected="an instance of a subclass of ase.calculators.calculator.Calculator",
                remedy="create it first: AsePotential(EMT(), ...)" if isinstance(calculator, type) else None,
            )
        if not ((self.numbers > 0) & (self.numbers < len(chemical_symbols))).all():
            raise errors.InputError(f"no such elements: {self.numbers.tolist()}", where="atomic numbers")
        self.calculator = calculator
        self.atoms = Atoms(self.numbers, info={"charge": self.charge, "spin": self.spin + 1}, calculator=calculator)
        # All on the first atom, so that the sums calculators take are exact.
        if self.charge:
            self.atoms.set_initial_charges(np.eye(1, len(self.numbers))[0] * self.charge)
        if self.spin:
            self.atoms.set_initial_magnetic_moments(np.eye(1, len(self.numbers))[0] * self.spin)

    def _evaluate_one(self, positions, forces):
        self.atoms.positions = positions
        try:
            with _stdout_spared():
                given = self.atoms.get_forces() if forces else None
                return self.atoms.get_potential_energy(), given
        except Exception:
            self.calculator.reset()  # nothing half-finished may answer for the next sample
            raise


def calculator_from_spec(
    spec: str, kwargs: dict | None = None, numbers=(), charge: int = 0, spin: int = 0
) -> Potential:
    """The potential a user asked for by name.

    Args:
        spec: "gfn2" or "gfn1" (embedded xTB), or "module:Class", an importable ASE calculator.
        kwargs: the constructor's keyword arguments, of xTB `solvent` alone; they go over those of QUIET.
        numbers: (N,) atomic numbers.
        charge, spin: total charge (e) and number of unpaired electrons.

    Raises:
        InputError: no such module or class, arguments it does not take, or a molecule it cannot describe.
        CalculatorError: the class was found but could not be built.
    """
    kwargs = dict(kwargs or {})
    where = f"calculator {spec!r}"
    if not isinstance(spec, str):
        raise errors.InputError("is no name", where=where, expected=_NAMES)
    if spec.lower() in EMBEDDED:
        if kwargs.keys() - {"solvent"}:
            raise errors.InputError(
                f"takes the argument solvent alone, got {sorted(kwargs)}", where=where,
                remedy='use "tblite.ase:TBLite" to set others',
            )  # fmt: skip
        return XtbPotential(numbers, charge, spin, EMBEDDED[spec.lower()], **kwargs)
    module_name, _, class_name = spec.partition(":")
    if not module_name or not class_name:
        raise errors.InputError(
            "unknown calculator",
            where=where,
            expected=_NAMES,
            remedy='for example --calculator "mace.calculators:MACECalculator"',
        )
    try:
        with _stdout_spared():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise errors.InputError(
            f"cannot import module {module_name!r}: {error}",
            where=where,
            remedy="install the package it belongs to in this environment, or put its folder on PYTHONPATH",
        ) from error
    factory = getattr(module, class_name, None)
    if not callable(factory):
        near = sorted(name for name, value in vars(module).items() if isinstance(value, type) and name[0] != "_")
        raise errors.InputError(
            f"module {module_name!r} has no class {class_name!r}",
            where=where,
            expected=f"one of {', '.join(near[:12]) or 'its classes (it has none)'}",
            remedy="check the spelling and capitals",
        )
    try:
        with _stdout_spared():
            calculator = factory(**{**QUIET.get(spec, {}), **kwargs})
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise errors.CalculatorError(
            f"{class_name}({given}) raised {type(error).__name__}: {error}",
            where=where,
            remedy="check --calculator-kwargs against the calculator's documentation",
        ) from error
    return AsePotential(calculator, numbers, charge, spin)


def level_name(spec: Any, kwargs: Mapping[str, Any] | None = None) -> str:
    """The electronic-structure level that a calculator, or its name, stands for: "GFN2-xTB", or class and arguments."""
    if not isinstance(spec, str):
        return type(spec).__name__
    given = ", ".join(f"{key}={value!r}" for key, value in sorted((kwargs or {}).items()))
    return EMBEDDED.get(spec.lower(), spec.rpartition(":")[2]) + (f"({given})" if given else "")


def with_solvent(calculator: Any, kwargs: Mapping[str, Any] | None, solvent: str | None) -> dict[str, Any]:
    """The arguments of a calculator in this implicit solvent; `kwargs` as they are where `solvent` is None.

    Raises:
        InputError: the calculator is not xTB, whose solvents alone go by this name.
    """
    if not isinstance(kwargs or {}, Mapping):
        raise errors.InputError(f"{kwargs!r} given", where="--calculator-kwargs", expected='names and values, {"k": 1}')
    kwargs = dict(kwargs or {})
    if solvent is None:
        return kwargs
    if not isinstance(calculator, str) or calculator.lower() not in EMBEDDED:
        raise errors.InputError(
            f"{solvent!r} beside the calculator {calculator!r}", where="--solvent", expected=" or ".join(EMBEDDED),
            remedy="set up another calculator's solvent in its own arguments: --calculator-kwargs",
        )  # fmt: skip
    if kwargs.get("solvent", solvent) != solvent:
        raise errors.InputError(
            f"{solvent!r}, beside {kwargs['solvent']!r} in --calculator-kwargs", where="--solvent",
            expected="one solvent", remedy="leave out one of the two",
        )  # fmt: skip
    return kwargs | {"solvent": solvent}


class PotentialCalculator(Calculator):
    """An ASE calculator over a Potential, so that ASE's and sella's algorithms share its protocol and call counter.

    Raises ase's CalculatorError, with the potential's reason, where the sample fails.
    """

    implemented_properties: ClassVar = ["energy", "free_energy", "forces"]

    def __init__(self, potential: Potential):
        super().__init__()
        self.potential = potential

    def calculate(self, atoms=None, properties=("energy", "forces"), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        molecule = self.atoms  # the copy that `super` made
        assert molecule is not None
        if not np.array_equal(molecule.numbers, self.potential.numbers):
            raise errors.InputError(
                f"atoms {molecule.get_chemical_formula()} are not the molecule this potential was built for",
                where="PotentialCalculator",
                expected=f"{Atoms(self.potential.numbers).get_chemical_formula()}, in the same order",
            )
        # Forces always: optimisers ask for both in turn, and this way they cost one call.
        energy, forces = self.potential.energy_and_forces(molecule.positions[None])
        if self.potential.failures:
            raise CalculatorError(self.potential.failures[0])
        self.results = {"energy": float(energy[0]), "free_energy": float(energy[0]), "forces": forces[0]}
