"""Gibbs energies of stationary points from their normal modes, and the rate that transition-state theory gives.

Ideal gas, rigid rotor, and vibrations that turn into free rotors below 100 1/cm (Grimme, Chem. Eur. J. 2012, 18, 9955,
eqs. 3 to 8), by `ase.thermochemistry`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from ase import Atoms, units
from ase.thermochemistry import IdealGasThermo, RRHOMode

from molgen.geometry.symmetry import symmetry_number
from molgen.saddle.modes import Modes
from molgen.units import KB, kcal

TAU = 100.0  # 1/cm, where a mode counts half as a vibration and half as a rotor
BAR = 1e5  # Pa
LITRE = 1e-3  # m^3
COLLISIONS = 1e12  # L/mol/s; no two molecules, ions of opposite charge among them, meet more often


@dataclass(frozen=True)
class Thermochemistry:
    """A stationary point at a temperature; energies in eV.

    Attributes:
        energy: electronic. zero_point: of the vibrations. enthalpy, gibbs: with them and the electronic energy.
        symmetry: rotational symmetry number. imaginary: modes with an imaginary frequency that were taken as real ones.
    """

    energy: float
    zero_point: float
    enthalpy: float
    gibbs: float
    symmetry: int
    imaginary: int


def molar_pressure(temperature: float) -> float:
    """Pa of an ideal gas of 1 mol/L, at kelvin."""
    return units._k * units._Nav * temperature / LITRE


def thermochemistry(
    positions: np.ndarray,
    numbers: np.ndarray,
    modes: Modes,
    temperature: float,
    *,
    spin: int = 0,
    pressure: float = BAR,
    saddle: bool = False,
) -> Thermochemistry:
    """Enthalpy and Gibbs energy of a stationary point, as an ideal gas.

    Args:
        positions: (N, 3) Angstrom. numbers: (N,).
        modes: at this geometry, with its energy.
        temperature: K. spin: unpaired electrons. pressure: Pa.
        saddle: leave out the first mode, the motion over the saddle.
    """
    frequencies = modes.frequencies_cm[1:] if saddle else modes.frequencies_cm
    atoms = Atoms(numbers, positions)
    quanta = np.abs(frequencies) * units.invcm
    linear = len(modes.frequencies_cm) == 3 * len(atoms) - 5
    geometry = "monatomic" if len(atoms) == 1 else "linear" if linear else "nonlinear"
    symmetry = symmetry_number(atoms.numbers, atoms.positions)
    gas = IdealGasThermo(
        list(quanta), geometry, modes.energy, atoms, symmetrynumber=symmetry, spin=spin / 2, vib_selection="all"
    )
    inertia = float(np.mean(atoms.get_moments_of_inertia()))
    with np.errstate(over="ignore"):  # of exp(quantum / kT) near 0 K, which then adds nothing
        enthalpy = gas.get_enthalpy(temperature, verbose=False)
        entropy, _ = gas.get_ideal_entropy(
            temperature, translation=True, rotation=True, electronic=True, geometry=geometry, pressure=pressure,
            symmetrynumber=symmetry,
        )  # fmt: skip
        for quantum in quanta:
            entropy += cast(float, RRHOMode(quantum, inertia, tau=TAU).get_entropy(temperature, contributions=False))
    return Thermochemistry(
        modes.energy, float(quanta.sum() / 2), float(enthalpy), float(enthalpy - temperature * entropy), symmetry,
        int((frequencies < 0).sum()),
    )  # fmt: skip


def wigner(frequency_cm: float, temperature: float) -> float:
    """Tunnelling correction of a rate over a saddle with this imaginary frequency, 1/cm (Wigner 1932): 1 + u^2 / 24."""
    return 1 + (frequency_cm * units.invcm / (KB * temperature)) ** 2 / 24


def eyring(gibbs_barrier: float, temperature: float, frequency_cm: float = 0.0) -> float:
    """Rate constant, 1/s (of two molecules: 1/s at the standard concentration), by transition-state theory.

    Args:
        gibbs_barrier: eV. frequency_cm: imaginary frequency, for :func:`wigner`.
    """
    per_second = units._k * temperature / units._hplanck
    return wigner(frequency_cm, temperature) * per_second * math.exp(min(-gibbs_barrier / (KB * temperature), 600.0))


@dataclass(frozen=True)
class Pieces:
    """A side of several molecules, each relaxed alone; or of one, in a lower conformer than the well.

    Attributes:
        names: such as ["CH3Cl", "F(-1)"]. points: of each.
        barrier_kcal: Gibbs energy of the saddle above them, kcal/mol.
        rate: constant, in `rate_unit`; None where several do not meet as often, so that the saddle decides nothing.
    """

    names: list[str]
    points: list[Thermochemistry]
    barrier_kcal: float
    rate: float | None
    rate_unit: str


@dataclass(frozen=True)
class ReactionThermochemistry:
    """What a barrier is at a temperature.

    Attributes:
        temperature: K. pressure: Pa, of the standard state; standard_state: its name.
        reactant, saddle, product: the wells beside the saddle, and it; eV.
        imaginary_frequency_cm: of the saddle, negative.
        pieces: sides of several molecules, each alone: {"reactant": Pieces}; the wells are complexes of them.
        lowest: sides of one, in a conformer that is lower than the well, likewise.
    """

    temperature: float
    pressure: float
    standard_state: str
    reactant: Thermochemistry
    saddle: Thermochemistry
    product: Thermochemistry
    imaginary_frequency_cm: float
    pieces: dict[str, Pieces] = field(default_factory=dict)
    lowest: dict[str, Pieces] = field(default_factory=dict)

    @property
    def gibbs_forward_kcal(self) -> float:
        """Gibbs energy of the saddle above the reactant's well, kcal/mol."""
        return kcal(self.saddle.gibbs - self.reactant.gibbs)

    @property
    def gibbs_reverse_kcal(self) -> float:
        """Gibbs energy of the saddle above the product's well, kcal/mol."""
        return kcal(self.saddle.gibbs - self.product.gibbs)

    @property
    def rates(self) -> tuple[float, float]:
        """Rate constants from the wells there and back, 1/s: transition-state theory, with `tunnelling`."""
        forward, reverse = (
            eyring(self.saddle.gibbs - well.gibbs, self.temperature, self.imaginary_frequency_cm)
            for well in (self.reactant, self.product)
        )
        return forward, reverse

    def above(self, names: list[str], points: list[Thermochemistry]) -> Pieces:
        """Molecules that each are alone, and how far the saddle lies above them."""
        barrier, order = self.saddle.gibbs - sum(point.gibbs for point in points), len(points) - 1
        rate = eyring(barrier, self.temperature, self.imaginary_frequency_cm)
        rate *= (molar_pressure(self.temperature) / self.pressure) ** order  # of 1 mol/L, not of the standard state
        unit = ("1/s", "L/mol/s")[order] if order < 2 else f"(L/mol)^{order}/s"
        return Pieces(names, points, kcal(barrier), rate if rate < COLLISIONS or not order else None, unit)

    @property
    def tunnelling(self) -> float:
        """Wigner's correction, a factor in all rates."""
        return wigner(self.imaginary_frequency_cm, self.temperature)

    def summary(self) -> dict[str, Any]:
        """The figures `summary.json` lists."""
        rates = self.rates
        return {
            "temperature": self.temperature, "standard_state": self.standard_state,
            "gibbs_forward_kcal": self.gibbs_forward_kcal, "gibbs_reverse_kcal": self.gibbs_reverse_kcal,
            "enthalpy_forward_kcal": kcal(self.saddle.enthalpy - self.reactant.enthalpy),
            "enthalpy_reverse_kcal": kcal(self.saddle.enthalpy - self.product.enthalpy),
            "rate_forward_per_s": rates[0], "rate_reverse_per_s": rates[1], "tunnelling": self.tunnelling,
            "points_ev": {name: asdict(getattr(self, name)) for name in ("reactant", "saddle", "product")},
            "pieces": {side: asdict(pieces) for side, pieces in self.pieces.items()},
            "lowest": {side: asdict(lowest) for side, lowest in self.lowest.items()},
        }  # fmt: skip
