"""Physical constants and conversions; for the whole package (CODATA 2014, via ase.units).

Inside molgen: Angstrom, eV, amu, femtosecond, kelvin (ASE's conventions). People read kcal/mol or kJ/mol.
"""

from ase import units as _u

from molgen.errors import InputError

KCAL_MOL = _u.kcal / _u.mol  # eV per kcal/mol
KJ_MOL = _u.kJ / _u.mol  # eV per kJ/mol
HARTREE = _u.Hartree  # eV
BOHR = _u.Bohr  # Angstrom
NM = _u.nm  # Angstrom
KB = _u.kB  # eV/K
COULOMB = 14.3996454  # eV Angstrom / e^2
PLANCK = _u._hplanck * _u.J * _u.s  # eV times the unit of time in which eV, Angstrom and amu cohere
# sqrt(eV / (amu Angstrom^2)) as a wavenumber in cm^-1: nu = WAVENUMBER * sqrt(eigenvalue of the mass-weighted Hessian)
WAVENUMBER = (_u._e / (_u._amu * 1e-20)) ** 0.5 / (2 * 3.141592653589793 * _u._c * 100)
ENERGY_UNITS = {"kJ/mol": KJ_MOL, "kcal/mol": KCAL_MOL}  # eV a unit, of energies for people


def energy_unit(name: str) -> float:
    """eV a unit of `name`, one of `ENERGY_UNITS`.

    Raises:
        InputError: another name.
    """
    if name not in ENERGY_UNITS:
        raise InputError(f"unknown unit {name!r}", where="--units", expected=" or ".join(ENERGY_UNITS))
    return ENERGY_UNITS[name]


def kcal(energy_ev: float) -> float:
    """eV -> kcal/mol."""
    return energy_ev / KCAL_MOL
