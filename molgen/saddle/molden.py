"""Normal modes as a Molden file, which Jmol, Avogadro, IQmol and Molden animate.

Format: Schaftenaar and Noordik, J. Comput.-Aided Mol. Des. 14 (2000) 123.
"""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols

from molgen.saddle.modes import Modes
from molgen.units import BOHR


def molden(numbers: np.ndarray, positions: np.ndarray, modes: Modes) -> str:
    """The text of the file: frequencies in 1/cm, imaginary ones negative, and displacements that are not mass-weighted.

    Args:
        numbers: (N,) atomic numbers. positions: (N, 3) Angstrom, where `modes` were computed.
    """
    symbols = [chemical_symbols[z] for z in numbers]
    atoms = zip(symbols, numbers, positions, strict=True)
    lines = ["[Molden Format]", "[Atoms] Angs"]
    lines += [f"{symbol} {k} {z} {_row(x)}" for k, (symbol, z, x) in enumerate(atoms, start=1)]
    lines += ["[FREQ]", *(f"{frequency:.2f}" for frequency in modes.frequencies_cm), "[FR-COORD]"]  # the latter in bohr
    lines += [f"{symbol} {_row(x)}" for symbol, x in zip(symbols, positions / BOHR, strict=True)]
    lines.append("[FR-NORM-COORD]")
    for k, vectors in enumerate(modes.vectors, start=1):
        lines += [f"vibration {k}", *map(_row, vectors)]
    return "\n".join(lines) + "\n"


def _row(x: np.ndarray) -> str:
    return " ".join(f"{value:.8f}" for value in x)
