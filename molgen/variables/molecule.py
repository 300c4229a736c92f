"""What the text of a collective variable refers to: atoms, residues, structures in files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from molgen.errors import InputError

if TYPE_CHECKING:
    import mdtraj


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule as variables name its parts.

    Attributes:
        numbers: atomic numbers (N,).
        topology: mdtraj's, for residues and selections; None where there is none.
        known: name -> (M, N, 3) Angstrom, instead of any file; None to read files.
    """

    numbers: np.ndarray
    topology: mdtraj.Topology | None = None
    known: Mapping[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def residues(self) -> mdtraj.Topology:
        """The topology.

        Raises:
            InputError: there is none.
        """
        if self.topology is None:
            raise InputError(
                "needs residues, and this molecule has no topology", expected="a PDB file, or a peptide",
                remedy="give --pdb instead of --xyz, or name the atoms by their numbers",
            )  # fmt: skip
        return self.topology

    def atoms(self, words: Sequence[str], count: int | None = None) -> list[int]:
        """The atoms, counted from 0, that `words` are the numbers of; `count` of them, where given.

        Raises:
            InputError: no such atom, or another number of them.
        """
        if count is not None and len(words) != count:
            raise InputError(f"{len(words)} atoms instead of {count}")
        for word in words:
            if not word.isdecimal() or int(word) >= len(self):
                raise InputError(f"no atom {word!r}", expected=f"atoms 0 to {len(self) - 1} (counted from 0)")
        return [int(word) for word in words]

    def selected(self, selection: str) -> list[int]:
        """The atoms of an mdtraj selection.

        Raises:
            InputError: it cannot be read or is empty, or there is no topology.
        """
        topology = self.residues()
        try:
            atoms = topology.select(selection)
        except Exception as error:  # mdtraj's parser raises whatever its grammar runs into
            raise InputError(
                f"selection {selection!r} cannot be read ({_stopped(error)})",
                expected="an mdtraj selection, e.g. 'resid 0 and name CA' (resid counts from 0)",
            ) from error
        if not len(atoms):
            raise InputError(f"selection {selection!r} is empty", expected="one atom or more; resid counts from 0")
        return atoms.tolist()

    def frames(self, name: str) -> np.ndarray:
        """Positions (M, N, 3), Angstrom, of all structures of the file `name`.

        Raises:
            InputError: a file that cannot be read, or structures of other atoms, or in another order.
        """
        if self.known is not None:
            if name not in self.known:
                raise InputError(f"the structures of {name} are not stored", expected=f"one of {[*self.known]}")
            return self.known[name]
        from molgen.structures import read_frames  # which loads ASE

        path = Path(name)
        try:
            frames = read_frames(path)
        except InputError as error:
            line = (error.where or "").removeprefix(str(path)).strip(", ")
            reason = ": ".join(part for part in (line, error.what.removeprefix("cannot be read ").strip("()")) if part)
            raise InputError(
                f"{path} cannot be read ({reason})",
                expected="an xyz file; names count from the current folder, in a TOML file from its own",
                remedy="check the path and the format",
            ) from error
        for k, frame in enumerate(frames):
            if len(frame) != len(self) or not np.isfinite(frame.positions).all():
                finite = "" if len(frame) != len(self) else ", not all of them finite"
                raise InputError(
                    f"{path}, structure {k}, has {len(frame)} atoms{finite}",
                    expected=f"the {len(self)} atoms of the molecule, in its order",
                    remedy="write the file for the whole molecule; choose atoms by [0,1,2]",
                )
            if (other := np.flatnonzero(frame.numbers != self.numbers)).size:
                here, there = (chemical_symbols[numbers[other[0]]] for numbers in (frame.numbers, self.numbers))
                raise InputError(
                    f"{path}, structure {k}: atom {other[0]} is {here}, that of the molecule {there}",
                    expected="the atoms of the molecule, in its order",
                    remedy="write the file in the order of the starting structure",
                )
        return np.array([frame.positions for frame in frames]).reshape(-1, len(self), 3)


def _stopped(error: Exception) -> str:
    """Where a parser stopped, in words: by itself it lists its whole grammar, two thousand characters of it."""
    line = (str(error).strip() or repr(error)).splitlines()[0]
    found = re.search(r", found (.+?) +\(at char (\d+)\)", line)
    return f"unexpected {found[1]} at character {found[2]}" if found else line
