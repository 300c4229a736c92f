"""Physical constants and conversions; for the whole package (CODATA 2014, via ase.units).

Inside molgen: Angstrom, eV, amu, femtosecond, kelvin (ASE's conventions). People read kcal/mol or kJ/mol.
"""

import math

from ase import units as _u

from molgen.errors import InputError

KCAL_MOL = _u.kcal / _u.mol  # eV per kcal/mol
KJ_MOL = _u.kJ / _u.mol  # eV per kJ/mol
HARTREE = _u.Hartree  # eV
BOHR = _u.Bohr  # Angstrom
NM = _u.nm  # Angstrom
KB = _u.kB  # eV/K
ONE_4PI_EPS0 = 138.93545764438198  # kJ/mol nm / e^2, as in OpenMM
COULOMB = ONE_4PI_EPS0 * KJ_MOL * NM  # eV Angstrom / e^2
PLANCK = _u._hplanck * _u.J * _u.s  # eV times the unit of time in which eV, Angstrom and amu cohere
# sqrt(eV / (amu Angstrom^2)) as a wavenumber in cm^-1: nu = WAVENUMBER * sqrt(eigenvalue of the mass-weighted Hessian)
WAVENUMBER = (_u._e / (_u._amu * 1e-20)) ** 0.5 / (2 * math.pi * _u._c * 100)
ENERGY_UNITS = {"kJ/mol": KJ_MOL, "kcal/mol": KCAL_MOL}  # eV a unit, of energies for people


def energy_unit(name: str) -> float:
    """eV a unit of `name`, one of `ENERGY_UNITS`.

    Raises:
        InputError: another name.
    """
    if not isinstance(name, str) or name not in ENERGY_UNITS:
        raise InputError(f"unknown unit {name!r}", where="--units", expected=" or ".join(ENERGY_UNITS))
    return ENERGY_UNITS[name]


def shown(unit: str) -> tuple[float, str]:
    """Factor to, and name of, the unit in which people write values of a variable in `unit`: degrees for rad."""
    return (180 / math.pi, "degrees") if unit == "rad" else (1.0, unit)


def shown_value(value: float, unit: str, form: str = ".2f") -> str:
    """A value of a collective variable in `unit` for people: angles in degrees, with a digit less."""
    factor, name = shown(unit)
    return f"{value * factor:{'.1f' if factor != 1.0 else form}} {name}".rstrip()


def kcal(energy_ev: float) -> float:
    """eV -> kcal/mol."""
    return energy_ev / KCAL_MOL
