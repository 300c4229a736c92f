"""Structures that the text of a collective variable names, "rmsd ref.xyz"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from molgen.errors import InputError


@dataclass(frozen=True, eq=False)
class References:
    """Where such structures come from.

    Attributes:
        folder: that file names count from.
        numbers: (N,) atomic numbers of the molecule, to compare; None where they are unknown.
        known: name -> (M, N, 3) Angstrom, instead of any file; None to read files.
    """

    folder: Path = Path()
    numbers: np.ndarray | None = None
    known: Mapping[str, np.ndarray] | None = None

    def frames(self, name: str, atoms: int) -> np.ndarray:
        """Positions (M, N, 3), Angstrom, of all structures of `name`, for a molecule of `atoms` atoms.

        Raises:
            InputError: a file that cannot be read, or structures of other atoms, or in another order.
        """
        if self.known is not None:
            if name not in self.known:
                raise InputError(f"the structures of {name} are not stored", expected=f"one of {[*self.known]}")
            return self.known[name]
        from ase import Atoms
        from ase.io import read

        path = self.folder / name
        try:
            frames = [frame for frame in read(path, index=":") if isinstance(frame, Atoms)]
        except Exception as error:  # ASE's readers raise whatever their parsing meets
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}: {error})",
                expected="an xyz file, relative to the folder of the input",
                remedy="check the path and the format",
            ) from error
        for k, frame in enumerate(frames):
            if len(frame) != atoms or not np.isfinite(frame.positions).all():
                finite = "" if len(frame) != atoms else ", not all of them finite"
                raise InputError(
                    f"{path}, structure {k}, has {len(frame)} atoms{finite}",
                    expected=f"the {atoms} atoms of the molecule, in its order",
                    remedy="write the file for the whole molecule; choose atoms by [0,1,2]",
                )
            if self.numbers is not None and (other := np.flatnonzero(frame.numbers != self.numbers)).size:
                here, there = (chemical_symbols[numbers[other[0]]] for numbers in (frame.numbers, self.numbers))
                raise InputError(
                    f"{path}, structure {k}: atom {other[0]} is {here}, that of the molecule {there}",
                    expected="the atoms of the molecule, in its order",
                    remedy="write the file in the order of the starting structure",
                )
        return np.array([frame.positions for frame in frames]).reshape(-1, atoms, 3)
