"""GFN1-xTB and GFN2-xTB through tblite (Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 2019, 15, 1652).

Every SCF starts cold and converges to accuracy 0.01. Measured on 60 transition states of 10 to 20 atoms (4 to 6 ms a
gradient): against tblite's default accuracy 1 this takes no longer, and force errors fall from 1.6e-4 (median; 8e-4 at
most) to 1e-6 eV/A, which a finite-difference Hessian needs. Restarting from the previous density would save 20 to 30 %
along an optimisation, but makes a result depend on the samples before it and such a Hessian 20 times noisier.

In a solvent by ALPB (Ehlert, Stahn, Spicher, Grimme, J. Chem. Theory Comput. 2021, 17, 4250), at about the same price:
the energy then holds the free energy of solvation at 298 K, from a gas to a solution of the same concentration. The
grid of its surface does not turn with the molecule: of four molecules in four solvents, turned 40 ways, energies differ
by 3 meV and forces by 0.01 eV/A at most.
"""

from __future__ import annotations

import numpy as np

from molgen.errors import CalculatorError, InputError
from molgen.potentials.base import SamplewisePotential
from molgen.structures import check_electrons
from molgen.threads import one_thread
from molgen.units import BOHR, HARTREE

METHODS = ("GFN2-xTB", "GFN1-xTB")
# What both have ALPB parameters for; tblite knows other spellings of some, such as h2o or dichloromethane.
SOLVENTS = (
    "acetone", "acetonitrile", "aniline", "benzaldehyde", "benzene", "ch2cl2", "chcl3", "cs2", "dioxane", "dmf",
    "dmso", "ethanol", "ether", "ethylacetate", "furan", "hexadecane", "hexane", "methanol", "nitromethane", "octanol",
    "phenol", "thf", "toluene", "water", "woctanol",
)  # fmt: skip
HEAVIEST = 86  # Rn, the last element of both parametrisations
ACCURACY = 0.01
# Damping of the SCF's mixer and its cycles, each tried where the one before did not converge. tblite's own, 0.4 for 250
# cycles, oscillates along many a reaction of anions and radicals (80 of 470 gradients of CN- + CH2O). Of 48 such
# geometries these give 46, with the lowest energy that any setting found, in a seventh of the time that failing took;
# of 150 distorted transition states of neutral molecules all converge with the first, in 25 cycles.
MIXING = ((0.4, 50), (0.3, 100), (0.2, 150), (0.1, 200))


class XtbPotential(SamplewisePotential):
    """GFN-xTB of one molecule, in the gas phase or in an implicit solvent.

    Args:
        numbers: (N,) atomic numbers, 1 to 86.
        charge: total charge, e.
        spin: number of unpaired electrons; GFN-xTB fills orbitals accordingly but has no spin-polarisation energy.
        method: "GFN2-xTB" or "GFN1-xTB".
        solvent: by name, see SOLVENTS; None for the gas phase.

    Raises:
        InputError: an element without parameters, an impossible electron count, or an unknown method or solvent.
    """

    def __init__(self, numbers, charge: int = 0, spin: int = 0, method: str = METHODS[0], solvent: str | None = None):
        super().__init__(numbers, charge, spin)
        if method not in METHODS:
            raise InputError(f"unknown method {method!r}", where="XtbPotential", expected=" or ".join(METHODS))
        for atom in np.flatnonzero((self.numbers < 1) | (self.numbers > HEAVIEST)):
            raise InputError(
                f"atom {atom} has atomic number {self.numbers[atom]}, which {method} has no parameters for",
                where="XtbPotential",
                expected=f"1 (H) to {HEAVIEST} (Rn)",
                remedy='give another calculator: --calculator "module:Class"',
            )
        check_electrons(self.numbers, self.charge, self.spin)
        self.method, self.solvent = method, solvent
        self._calculator = None
        if solvent is not None:
            self._check_solvent()

    def atomic_charges(self, positions: np.ndarray) -> np.ndarray:
        """Mulliken charges (N,), e, at positions (N, 3), Angstrom.

        Raises:
            CalculatorError: the SCF did not converge.
        """
        try:
            return np.asarray(self._singlepoint(np.asarray(positions, dtype=float))["charges"])
        except RuntimeError as error:
            raise CalculatorError(str(error), where=self.method) from error

    def _evaluate_one(self, positions, forces):
        result = self._singlepoint(positions)
        return result["energy"] * HARTREE, -result["gradient"] * (HARTREE / BOHR)

    def _singlepoint(self, positions):
        kept, self._calculator = self._calculator, None  # of an earlier sample; one that failed is not used again
        with one_thread(len(positions)):
            for k, mixing in enumerate(MIXING):
                calculator = kept if kept is not None and k == 0 else self._build(positions, *mixing)
                calculator.update(positions / BOHR)
                try:
                    result = calculator.singlepoint()
                    break
                except RuntimeError:
                    if k == len(MIXING) - 1:
                        raise
        if k == 0 and np.isfinite(result["energy"]) and np.isfinite(result["gradient"]).all():
            self._calculator = calculator
        return result

    def _build(self, positions, damping, cycles):
        from tblite.interface import Calculator

        calculator = Calculator(self.method, self.numbers, positions / BOHR, self.charge, self.spin)
        calculator.set("verbosity", 0)
        calculator.set("accuracy", ACCURACY)
        calculator.set("mixer-damping", damping)
        calculator.set("max-iter", cycles)
        if self.solvent is not None:
            calculator.add("alpb-solvation", self.solvent)
        return calculator

    def _check_solvent(self):
        try:
            self._build(np.arange(3.0 * len(self.numbers)).reshape(-1, 3), *MIXING[0])
        except (RuntimeError, AttributeError, ValueError) as error:
            raise InputError(
                f"unknown solvent {self.solvent!r}", where=self.method, expected=f"one of {', '.join(SOLVENTS)}"
            ) from error

    def __getstate__(self):
        return self.__dict__ | {"_calculator": None}  # tblite's handle lives in this process only
