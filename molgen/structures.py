"""One side of a reaction, as the user has it (file, files, Atoms), read into numbers and positions and checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import ArrayLike

from molgen.errors import InputError
from molgen.geometry.bonds import TOO_CLOSE, bond_graph, compare_bonds, distance_matrix
from molgen.xyz import atomic_number, charge_of, is_periodic, xyz_frames

MAX_ATOMS = 150
MOLFILES = {".sdf", ".mol"}
XYZ = {".xyz", ".extxyz"}
FAR = 1e5  # Angstrom; a coordinate beyond is no molecule's, and its digits would not do
_GAP = 10.0  # Angstrom between the parts of a side that come from different files


def checked_numbers(numbers: ArrayLike, where: str) -> np.ndarray:
    """Atomic numbers (N,), whole ones.

    Raises:
        InputError: not whole numbers.
    """
    try:
        return np.asarray(numbers, dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise InputError(f"numbers {numbers!r}", where=where, expected="atomic numbers, such as [6, 1, 1]") from error


def possible_spin(electrons: Any, spin: Any) -> Any:
    """Whether `spin` of so many electrons can be unpaired; numbers or arrays."""
    return (0 <= spin) & (spin <= electrons) & ((electrons - spin) % 2 == 0)


def formula(numbers: Iterable[int]) -> str:
    """Hill formula, such as C2H4O."""
    return Formula.from_list([chemical_symbols[int(z)] for z in numbers]).format("hill")


def check_electrons(numbers: Sequence[int] | np.ndarray, charge: int, spin: int) -> None:
    """Refuse a charge that leaves no electron, or a number of unpaired electrons that the others cannot have.

    Raises:
        InputError: names `--charge` or `--spin`.
    """
    electrons = int(np.sum(numbers)) - charge
    if electrons < 1:
        raise InputError(
            f"charge {charge} leaves {electrons} electrons", where="--charge", expected="a possible charge"
        )
    if not possible_spin(electrons, spin):
        raise InputError(
            f"{electrons} electrons ({formula(numbers)}, charge {charge}) cannot have {spin} unpaired",
            where="--spin",
            expected=f"an {'odd' if electrons % 2 else 'even'} number of unpaired electrons",
            remedy="correct --charge or --spin (unpaired electrons, not the multiplicity)",
        )


def checked_spin(numbers: np.ndarray, charge: int, spin: int | None) -> int:
    """Unpaired electrons: as asked if possible; the fewest if None.

    Raises:
        InputError: no electrons left, or a number that this many electrons cannot have.
    """
    asked = (int(numbers.sum()) - charge) % 2 if spin is None else spin
    check_electrons(numbers, charge, asked)
    return int(asked)


def doubt_of_charge(charge: int, spin: int, asked: int | None) -> list[str]:
    """A note for users where an electron is unpaired that nobody asked for: most often a charge was left out."""
    doubt = f"warning: an odd number of electrons at charge {charge}: a radical, unless --charge is another"
    return [doubt] if spin and asked is None else []


@dataclass(frozen=True, eq=False)
class Structure:
    """`numbers` (N,) and `positions` (N, 3), Angstrom, of one side; `where` names its source; `notes` are for users;
    `charge` is what the source says, or the sum of its formal charges, e; None where it has none."""

    numbers: np.ndarray
    positions: np.ndarray
    where: str
    notes: tuple[str, ...] = ()
    charge: int | None = None


def read_side(source: Any, side: str) -> Structure:
    """Read and check one side of a reaction.

    Args:
        source: path (xyz, extxyz, or another format that ASE reads: pdb, sdf, mol, cif, ...), ase.Atoms, or a
            sequence of these, one a fragment; fragments are set apart, whatever their coordinates.
        side: "reactant" or "product", for messages.

    Raises:
        InputError: missing, empty or unreadable file, unknown element, non-finite coordinates, coincident atoms, more
            than 150 atoms.
    """
    parts = list(source) if isinstance(source, Sequence) and not isinstance(source, (str, Atoms)) else [source]
    if not parts:
        raise InputError("nothing given", where=side, expected="a file or ase.Atoms")
    read = [_read_part(part, side) for part in parts]
    for part in read:
        _check(part)
    if len(read) == 1:
        return read[0]
    placed, edge = [], 0.0
    for part in read:
        centred = part.positions - part.positions.mean(axis=0)
        radius = float(np.abs(centred).max())
        placed.append(centred + [edge + radius, 0.0, 0.0])
        edge += 2 * radius + _GAP
    whole = Structure(
        numbers=np.concatenate([part.numbers for part in read]),
        positions=np.concatenate(placed),
        where=" + ".join(part.where for part in read),
        notes=tuple(note for part in read for note in part.notes),
        charge=sum(charges) if (charges := [part.charge for part in read if part.charge is not None]) else None,
    )
    _check_size(len(whole.numbers), whole.where)
    return whole


def _read_part(source: Any, side: str) -> Structure:
    if isinstance(source, Atoms):
        notes = _unbound(side) if source.pbc.any() else ()
        notes += (f"warning: {side}: its constraints are ignored, all atoms move",) if source.constraints else ()
        return _of_atoms(source, f"{side} (ase.Atoms)", notes)
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"cannot read a {type(source).__name__}", where=side, expected="a path, ase.Atoms, or a list of either"
        )
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(what, where=str(path), expected=f"the {side} as an xyz file", remedy="check the path")
    if path.stat().st_size == 0:
        raise InputError("the file is empty", where=str(path), expected=f"the {side} as an xyz file")
    suffix = path.suffix.lower()
    if suffix in MOLFILES:
        records = read_mdl(path)
        if len(records) > 1:
            raise InputError(
                f"holds {len(records)} molecules", where=str(path), expected="one",
                remedy="write a file for each: a.sdf,b.sdf is one side",
            )  # fmt: skip
        return records[0]
    return _read_xyz(path) if suffix in XYZ else _read_with_ase(path)


def _of_atoms(atoms: Atoms, where: str, notes: tuple[str, ...]) -> Structure:
    """With the charge in `info`, where it is a whole number."""
    told = atoms.info.get("charge")
    charge = int(told) if isinstance(told, (int, float, np.number)) and float(told).is_integer() else None
    return Structure(atoms.numbers.astype(np.int64), atoms.positions.astype(float), where, notes, charge)


def _unbound(where: str) -> tuple[str, ...]:
    return (f"{where}: periodic boundaries are ignored",)


def read_mdl(path: Path) -> list[Structure]:
    """The molecules of an MDL file, with their formal charges.

    Raises:
        InputError: empty, unreadable, a record that is no molecule with coordinates, that lacks hydrogens, or is a
            drawing in two dimensions.
    """
    from rdkit import Chem, rdBase

    try:
        with rdBase.BlockLogs():
            records = list(Chem.SDMolSupplier(str(path), sanitize=False, removeHs=False))
    except OSError as error:
        raise InputError("is empty or cannot be read", where=str(path), expected="MDL molecules") from error
    found = []
    for number, record in enumerate(records, start=1):
        where = f"{path}, molecule {number}"
        if record is None or not record.GetNumConformers():
            raise InputError("cannot be read", where=where, expected="an MDL molecule with coordinates")
        where = str(path) if len(records) == 1 else where
        numbers = np.array([atom.GetAtomicNum() for atom in record.GetAtoms()], dtype=np.int64)
        positions = record.GetConformer().GetPositions()
        notes = _as_drawn(record, numbers, positions, where)
        found.append(Structure(numbers, positions, where, notes, int(Chem.GetFormalCharge(record))))
        _check(found[-1])
    if not found:
        raise InputError("holds no molecule", where=str(path), expected="one or more MDL molecules")
    return found


def _as_drawn(record: Any, numbers: np.ndarray, positions: np.ndarray, where: str) -> tuple[str, ...]:
    """Notes on what the bonds of an RDKit molecule say against its geometry.

    Raises:
        InputError: hydrogens are left out, or the geometry is a drawing.
    """
    from rdkit import Chem

    if not record.GetNumBonds():
        return ()
    record.UpdatePropertyCache(strict=False)
    implied = sum(atom.GetNumImplicitHs() for atom in record.GetAtoms())
    if implied > (numbers == 1).sum():  # fewer may be single bonds written for double ones
        raise InputError(
            f"its bonds imply {implied} hydrogens that are not there", where=where,
            expected="every atom, with coordinates", remedy="add the hydrogens in three dimensions, or give --smiles",
        )  # fmt: skip
    drawn = compare_bonds(Chem.GetAdjacencyMatrix(record).astype(bool), bond_graph(numbers, positions))
    if drawn.count and not record.GetConformer().Is3D():
        raise InputError(
            "is a drawing in two dimensions", where=where, expected="coordinates in three, in Angstrom",
            remedy="embed it, or give --smiles",
        )  # fmt: skip
    if drawn.count:
        return (f"warning: {where}: {drawn.count} of its bonds do not agree with its distances, which count here",)
    return ()


def total_charge(given: int | None, sides: Sequence[Structure]) -> tuple[int, list[str]]:
    """The charge that was asked for, else that of the files, else 0; and notes for users.

    Raises:
        InputError: files of different charges, and none asked for.
    """
    told = {side.where: side.charge for side in sides if side.charge is not None}
    if given is None and len(set(told.values())) > 1:
        found = ", ".join(f"{charge:+d} in {where}" for where, charge in told.items())
        raise InputError(f"formal charges differ: {found}", where="--charge", expected="one charge on both sides",
                         remedy="give --charge, or correct the files")  # fmt: skip
    if given is None:
        charge = next(iter(told.values()), 0)
        return charge, [f"charge {charge:+d}, as {' and '.join(told)} have it"] if charge else []
    others = [f"warning: charge {given:+d} as asked, though {where} has {charge:+d}"
              for where, charge in told.items() if charge != given]  # fmt: skip
    return given, others


def read_frames(path: Path) -> list[Atoms]:
    """All structures of a file, those of xyz with the charge their comment names in `info`.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix.lower() in XYZ:
        return [
            Atoms(frame.numbers, frame.positions, info={"charge": charge_of(frame.comment)[0]})
            for frame in xyz_frames(path)
        ]
    from ase.io import read

    try:
        return [frame for frame in read(path, index=":") if isinstance(frame, Atoms)]
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise InputError(
            f"cannot be read ({type(error).__name__}: {error})", where=str(path),
            expected="a structure file that ASE knows", remedy="check the path and the format, or convert it to xyz",
        ) from error  # fmt: skip


def _read_with_ase(path: Path) -> Structure:
    frames = read_frames(path)
    if not frames:
        raise InputError("holds no structure", where=str(path), expected="one molecule")
    notes = _last_of(path, len(frames)) + (_unbound(str(path)) if frames[-1].pbc.any() else ())
    return _of_atoms(frames[-1], str(path), notes)


def _last_of(path: Path, frames: int) -> tuple[str, ...]:
    return (f"{path}: the last of {frames} frames is used",) if frames > 1 else ()


def _read_xyz(path: Path) -> Structure:
    """The last frame of an xyz or extxyz file."""
    frames = list(xyz_frames(path))
    if not frames:
        raise InputError("the file is empty", where=str(path), expected="an xyz file")
    numbers, positions, comment, isotopes = frames[-1]
    notes = _last_of(path, len(frames)) + (_unbound(str(path)) if is_periodic(comment) else ())
    if isotopes:
        notes += (f"warning: {path}: isotopes weigh as much as the common ones here, so frequencies are not theirs",)
    charge, unread = charge_of(comment)
    if unread:
        notes += (f"warning: {path}: {unread!r} in its comment is no whole charge, and counts as none",)
    return Structure(numbers, positions, str(path), notes, charge)


def check_positions(positions: np.ndarray, where: str) -> None:
    """Refuse positions (N, 3), Angstrom, that are not finite, beyond 1e5 or of atoms that coincide.

    Raises:
        InputError: names the atom.
    """
    good = (np.abs(positions) < FAR).all(axis=1)
    if not good.all():
        k = int(np.argmin(good))
        bad = next(float(v) for v in positions[k] if not abs(v) < FAR)
        raise InputError(
            f"a coordinate is {bad:g}", where=f"{where}, atom {k}", expected=f"finite Angstrom, below {FAR:g}"
        )
    distances = distance_matrix(positions) + 1e3 * np.eye(len(positions))
    if len(positions) and distances.min() < TOO_CLOSE:
        i, j = divmod(int(distances.argmin()), len(positions))
        raise InputError(
            f"atoms {i} and {j} coincide ({distances.min():.2f} Angstrom apart)",
            where=where,
            expected=f"no pair closer than {TOO_CLOSE} Angstrom",
            remedy="check for a duplicated atom, a 2-D drawing, or coordinates in other units than Angstrom",
        )


def check_pair(r: Structure, p: Structure) -> None:
    """Refuse sides that are not of the same atoms, or of one atom.

    Raises:
        InputError: names the formulae.
    """
    if not np.array_equal(np.sort(r.numbers), np.sort(p.numbers)):
        raise InputError(
            f"reactant is {formula(r.numbers)}, product is {formula(p.numbers)}",
            where=f"{r.where} and {p.where}",
            expected="the same atoms on both sides",
            remedy="add the missing fragment (a side may be several files), or the missing hydrogens",
        )
    if len(r.numbers) < 2:
        raise InputError("one atom cannot react", where=r.where, expected=f"2 to {MAX_ATOMS} atoms")


def _check(part: Structure) -> None:
    _check_size(len(part.numbers), part.where)
    for k, number in enumerate(part.numbers):
        atomic_number(str(int(number)), f"{part.where}, atom {k}")
    check_positions(part.positions, part.where)


def _check_size(count: int, where: str) -> None:
    if not count:
        raise InputError("holds no atoms", where=where, expected="one molecule")
    if count > MAX_ATOMS:
        raise InputError(
            f"{count} atoms",
            where=where,
            expected=f"at most {MAX_ATOMS} atoms",
            remedy="cut the system down to the reacting part",
        )
