"""Molecules to look for reactions of: from lists of SMILES, structure files, or the ends of known reactions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from molgen.data.reactions import Reaction, load_npz, read_column, refuse_published
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, molecule_key
from molgen.smiles import embed_molecule
from molgen.structures import MOLFILES, Structure, checked_spin, read_frames, read_mdl, read_side

SMALLEST = 4  # atoms; smaller fragments of a reaction have next to no reactions of their own
LISTS = {".smi", ".smiles", ".txt"}


@dataclass(frozen=True, eq=False)
class SourceMolecule:
    """A molecule, or several that may react: `numbers` (N,), `positions` (N, 3) Angstrom, charge in e, spin in unpaired
    electrons; `name` tells its source."""

    numbers: np.ndarray
    positions: np.ndarray
    charge: int
    spin: int
    name: str


def read_molecules(
    path: str | os.PathLike,
    charge: int | None = None,
    spin: int | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> list[SourceMolecule]:
    """The molecules of a file, each connectivity once, in the file's order.

    Args:
        path: list of SMILES, one a line (.smi, .txt; a name may follow, lines with # are comments, a header is passed
            over); reaction set (.npz; where it has splits, of the training reactions only); else structures (xyz, sdf,
            ...), all of them.
        charge: e, of structures whose file does not tell; default 0. SMILES, .sdf and .mol have formal charges.
        spin: unpaired electrons, but of reaction sets, which tell; default the fewest.
        log: told of a header.

    Raises:
        InputError: no such file, or content that is not what its suffix says (names the line or molecule).
    """
    path = Path(path)
    refuse_published(path)
    if not path.is_file():
        raise InputError(
            "no such file", where=str(path), expected="SMILES (.smi, .txt), structures (.xyz, .sdf) or reactions (.npz)"
        )
    suffix = path.suffix.lower()
    if suffix == ".npz":
        found = [m for r in load_npz(path, training_split(path)) for m in ends_of(r, path.name)]
    elif suffix in LISTS:
        found = list(_from_list(path, spin, log))
    elif suffix in MOLFILES:
        found = list(_from_molfile(path, spin))
    else:
        found = _from_frames(path, charge, spin)
    unique: dict[str, SourceMolecule] = {}
    for molecule in found:
        unique.setdefault(key_of(molecule), molecule)
    if not unique:
        raise InputError("no molecules in it", where=str(path), expected="at least one")
    return list(unique.values())


def key_of(molecule: SourceMolecule) -> str:
    """The molecule's connectivity as a text, see :func:`molgen.geometry.bonds.molecule_key`."""
    return molecule_key(molecule.numbers, bond_graph(molecule.numbers, molecule.positions), molecule.charge)


def training_split(path: str | os.PathLike) -> str | None:
    """ "train" for a set with several splits that has one of that name; None: all of it may be used."""
    names = set(read_column(path, "split").tolist())
    return "train" if len(names) > 1 and "train" in names else None


def ends_of(reaction: Reaction, origin: str) -> Iterator[SourceMolecule]:
    """Reactant and product; the fragments of a neutral side one by one, as their placement means nothing."""
    sides = (("r", reaction.reactant, reaction.reactant_fragments), ("p", reaction.product, reaction.product_fragments))
    for side, positions, part in sides:
        pieces = int(part.max()) + 1
        for k in range(pieces):
            member = part == k
            numbers = reaction.numbers[member]
            whole = pieces == 1
            if not whole and (reaction.charge or reaction.spin or numbers.sum() % 2 or len(numbers) < SMALLEST):
                continue
            name = f"{origin}:{reaction.name}:{side}" + ("" if whole else str(k + 1))
            yield SourceMolecule(numbers, np.array(positions[member]), reaction.charge, reaction.spin, name)


def _from_list(path: Path, spin: int | None, log: Callable[[str], None]) -> Iterator[SourceMolecule]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError("is not text", where=str(path), expected="SMILES, one a line") from error
    first = True
    for number, line in enumerate(lines, start=1):
        fields = line.split(maxsplit=1)
        if not fields or line.lstrip().startswith("#"):
            continue
        header, first = first and "smiles" in fields[0].lower(), False  # no SMILES has these letters in a row
        if header:
            log(f"{path}, line {number}: {line.strip()!r} is taken for a header")
            continue
        side = embed_molecule(fields[0], f"{path}, line {number}: {fields[0]}")
        name = f"{path.name}:{number}:{fields[-1].strip()}"
        yield _molecule(side.numbers, side.conformers[0], side.charge, spin, name)


def _from_molfile(path: Path, spin: int | None) -> Iterator[SourceMolecule]:
    """Molecules of an MDL file, with their formal charges."""
    records = read_mdl(path)
    for number, record in enumerate(records, start=1):
        name = path.stem if len(records) == 1 else f"{path.name}:{number}"
        yield _molecule(record.numbers, record.positions, record.charge or 0, spin, name)


def _from_frames(path: Path, charge: int | None, spin: int | None) -> list[SourceMolecule]:
    """Molecules of another structure file; of a trajectory, in which one molecule moves, its last frame. Those without
    a charge of their own have `charge`."""

    def charged(side: Structure) -> int:
        return (charge or 0) if side.charge is None else side.charge

    last = read_side(path, "molecule")
    if not last.notes:
        return [_molecule(last.numbers, last.positions, charged(last), spin, path.stem)]
    found: dict[str, SourceMolecule] = {}
    for number, atoms in enumerate(read_frames(path), start=1):
        side = read_side(atoms, f"{path}, molecule {number}")
        molecule = _molecule(side.numbers, side.positions, charged(side), spin, f"{path.name}:{number}")
        found[key_of(molecule)] = molecule
    return list(found.values())


def _molecule(numbers: np.ndarray, positions: np.ndarray, charge: int, spin: int | None, name: str) -> SourceMolecule:
    if len(numbers) < 2:
        raise InputError("one atom cannot react", where=name, expected="a molecule of two atoms or more")
    return SourceMolecule(numbers, positions, charge, checked_spin(numbers, charge, spin), name)


def all_molecules(
    paths: Sequence[str | os.PathLike],
    charge: int | None = None,
    spin: int | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> list[SourceMolecule]:
    """The molecules of several files, each connectivity once.

    Raises:
        InputError: no files, a charge or spin that no file takes, or see :func:`read_molecules`.
    """
    if not paths:
        raise InputError(
            "no molecules given", where="SOURCES", expected="files of SMILES, structures or reactions",
            remedy="molgen data reactions molecules.smi, for one",
        )  # fmt: skip
    suffixes = {Path(path).suffix.lower() for path in paths}
    for option, value, telling in (("--charge", charge, {*LISTS, *MOLFILES, ".npz"}), ("--spin", spin, {".npz"})):
        if value is not None and suffixes <= telling:
            raise InputError(
                f"{value} has no effect: {', '.join(sorted(suffixes))} files tell it themselves",
                where=option,
                expected="a structure file (.xyz, ...)" + (" or SMILES" if option == "--spin" else ""),
                remedy="leave it out" + ("; write the charge into the SMILES: [O-]" if suffixes & LISTS else ""),
            )
    unique: dict[str, SourceMolecule] = {}
    for path in paths:
        for molecule in read_molecules(path, charge, spin, log):
            unique.setdefault(key_of(molecule), molecule)
    return list(unique.values())
