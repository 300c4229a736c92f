"""What a user has, made into a Reaction: any atom order, any frame, fragments anywhere; xyz files written safely."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.files import write_atomic
from molgen.geometry.bonds import bond_graph, bond_names, fragments
from molgen.geometry.chirality import stereo_differences
from molgen.geometry.mapping import Mapping, given_mapping
from molgen.geometry.mapping import map_atoms as find_mapping
from molgen.smiles_reaction import SAY_WHICH, Sides, read_reaction_smiles
from molgen.structures import Structure, check_pair, checked_spin, doubt_of_charge, read_side, total_charge

_DEGENERATE = 0.2  # Angstrom; sides closer than this after re-ordering are one molecule: the order tells what reacts
_MOST_CHANGES = 6  # bonds that one step changes; an order that changes more is not meant, but scrambled
_SAME = 0.05  # Angstrom; sides that differ by less, with the same bonds, are one structure


def load_reaction(
    reactant: Any = None,
    product: Any = None,
    *,
    smiles: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
    map_atoms: bool = True,
) -> tuple[Reaction, list[str]]:
    """A Reaction from whatever describes its two sides, and notes on what was decided on the way.

    The product comes out in the reactant's atom order. A given order with the same elements is kept unless another
    mapping changes fewer bonds, or as few and inverts fewer tetrahedral centres; atom-map numbers in SMILES are always
    kept, and what bears none is mapped around them.

    Args:
        reactant, product: each a path (xyz, extxyz, pdb, sdf, mol, ...), ase.Atoms, or a list of these, one a fragment.
        smiles: "reactant>>product" instead of both, atom-mapped or plain.
        charge: total charge, e; None: what the input says (SMILES, sdf and mol files, `charge=` in the comment of an
            xyz file, `info["charge"]` of Atoms), else 0.
        spin: number of unpaired electrons; None for the lowest that the electron count allows.
        map_atoms: False to trust the given order blindly.

    Raises:
        InputError: unreadable or impossible input (says where, what was expected and what to do).
    """
    if smiles is not None:
        _refuse_beside_smiles(smiles, reactant, product, map_atoms)
        sides, name = read_reaction_smiles(smiles, charge), smiles
    else:
        sides = _from_files(reactant, product, charge, map_atoms)
        name = f"{_label(reactant, 'reactant')} -> {_label(product, 'product')}"
    r, p, mapping = sides.reactant, sides.product, sides.mapping
    spin, doubts = _electrons(sides, spin, smiles is not None)
    _refuse_same(r, p, mapping)
    notes = [*r.notes, *p.notes, *sides.notes, *doubts]
    notes += _describe(r, p, mapping, asked=map_atoms and smiles is None)
    loose = [side.where for side in (r, p) if not bond_graph(side.numbers, side.positions).any()]
    if len(loose) == 1 and len(r.numbers) > 2:
        notes.append(f"warning: {loose[0]}: no two atoms are bonded: are its coordinates in Angstrom?")
    positions = p.positions[mapping.permutation]
    reaction = Reaction(
        numbers=r.numbers,
        reactant=r.positions,
        product=positions,
        product_fragments=fragments(bond_graph(r.numbers, positions)),
        reactant_fragments=fragments(bond_graph(r.numbers, r.positions)),
        charge=sides.charge,
        spin=spin,
        name=name,
        conformers=tuple(sides.conformers),
        open_stereo=sides.open_stereo,
        isomers=tuple(sides.isomers),
        lowest=sides.lowest,
    )
    return reaction, notes


def _refuse_beside_smiles(smiles: Any, reactant: Any, product: Any, map_atoms: bool) -> None:
    """Refuse what is no text, and what is given beside it and would not count."""
    if not isinstance(smiles, str):
        raise InputError(f"{smiles!r} given", where="--smiles", expected='a text, "reactant>>product"')
    if reactant is not None or product is not None:
        raise InputError("both files and SMILES given", where="--smiles", expected="one or the other")
    if not map_atoms:
        raise InputError(
            "SMILES have no order of atoms to keep", where="--no-map", expected="structure files",
            remedy="number the atoms in the SMILES, or leave it out",
        )  # fmt: skip


def _from_files(reactant: Any, product: Any, charge: int | None, map_atoms: bool) -> Sides:
    """The sides from files or Atoms; `charge`, `map_atoms`: as of :func:`load_reaction`."""
    if reactant is None or product is None:
        missing = "reactant" if reactant is None else "product"
        raise InputError("nothing given", where=missing, expected="a reactant and a product, or --smiles r>>p")
    r, p = read_side(reactant, "reactant"), read_side(product, "product")
    check_pair(r, p)
    charge, notes = total_charge(charge, (r, p))
    return Sides(r, p, _choose_mapping(r, p, map_atoms), charge, notes, conformers=[], isomers=[], unpaired={})


def _electrons(sides: Sides, asked: int | None, written: bool) -> tuple[int, list[str]]:
    """Unpaired electrons, as asked or the fewest possible, and notes where these were not said.

    Args:
        written: by a SMILES, whose formal charges leave no doubt of the number of electrons.
    """
    spin, notes = checked_spin(sides.reactant.numbers, sides.charge, asked), []
    if asked is not None:
        return spin, notes
    if doubt := doubt_of_charge(sides.charge, spin, asked):
        notes += ["a radical, of one unpaired electron"] if written else doubt
    notes += [
        f"the {side} is written with {count} unpaired electrons, but {spin} are assumed: --spin {count} keeps them"
        for side, count in sides.unpaired.items() if count > spin
    ]  # fmt: skip
    return spin, notes


def _refuse_same(r: Structure, p: Structure, mapping: Mapping) -> None:
    """Refuse two sides that are one structure."""
    if mapping.bond_changes or mapping.displacement >= _SAME:
        return
    if not (bond_graph(r.numbers, r.positions).any() or bond_graph(p.numbers, p.positions).any()):
        raise InputError(
            "no two atoms are bonded on either side", where=f"{r.where} and {p.where}",
            expected="coordinates in Angstrom", remedy="convert them if they are in Bohr or nm",
        )  # fmt: skip
    raise InputError(
        f"reactant and product are the same structure (RMSD {mapping.displacement:.3f} Angstrom, same bonds)",
        where=f"{r.where} and {p.where}",
        expected="two different minima",
        remedy=SAY_WHICH,
    )


def write_extxyz(path: str | os.PathLike, frames: Iterable[Atoms]) -> Path:
    """Write `frames` with their `info` as extxyz; the file appears whole or not at all.

    An `info` entry that is not finite (an energy nobody knows) is left out; an absent key says the same and reads back.

    Raises:
        InputError: a coordinate is not finite, or the file cannot be written.
    """
    from ase.io.extxyz import write_xyz

    clean = []
    for k, frame in enumerate(frames):
        if not np.isfinite(frame.positions).all():
            raise InputError("a coordinate is not finite", where=f"{path}, frame {k}", expected="finite Angstrom")
        frame = frame.copy()  # without the calculator: only `info` is written
        frame.info = {key: value for key, value in frame.info.items() if not _is_nonfinite(value)}
        clean.append(frame)
    text = io.StringIO()
    write_xyz(text, clean)
    return write_atomic(Path(path), text.getvalue())


def _is_nonfinite(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and not math.isfinite(value))


def _choose_mapping(r: Structure, p: Structure, search: bool) -> Mapping:
    """The given order if it stands up to the best mapping, else that one."""
    given = given_mapping(r.numbers, r.positions, p.numbers, p.positions)
    if not search:
        if given is None:
            raise InputError(
                "the atoms of the product are in another order",
                where=p.where,
                expected="the reactant's order, since atom mapping is off",
                remedy="leave out --no-map, or order the files alike",
            )
        return given
    best = find_mapping(r.numbers, r.positions, p.numbers, p.positions)
    if given is None:
        return best
    if 0 < given.bond_changes <= _MOST_CHANGES and not best.bond_changes and _degenerate(r, p, best):
        return given  # a reaction into itself, such as a proton transfer: only the given order tells what reacts
    if not best.bond_changes and best.displacement < _SAME:
        return _conformers(r, p, given) or best
    # a tetrahedral centre turns its handedness by a bond broken and another formed, not without
    effort = [(m.bond_changes + 2 * m.inverted, m.inverted) for m in (given, best)]
    return given if effort[0] <= effort[1] else best


def _conformers(r: Structure, p: Structure, given: Mapping) -> Mapping | None:
    """The mapping by which one structure in two orders of atoms is a change into itself without bonds, such as the flip
    of a ring: the given one, or that of the heavy atoms in the order given. None where neither is."""
    heavy = np.where(r.numbers > 1, np.arange(len(r.numbers)), -1)
    for order in (lambda: given, lambda: find_mapping(r.numbers, r.positions, p.numbers, p.positions, pinned=heavy)):
        found = order()
        if not (found.bond_changes or found.inverted) and found.displacement >= _SAME:
            return found
    return None


def _degenerate(r: Structure, p: Structure, best: Mapping) -> bool:
    """Whether both sides are one molecule, or mirror images, by the best mapping."""
    if best.displacement < _DEGENERATE:
        return True
    mirrored = find_mapping(r.numbers, r.positions, p.numbers, -p.positions)
    return not mirrored.bond_changes and mirrored.displacement < _DEGENERATE


def _describe(r: Structure, p: Structure, mapping: Mapping, asked: bool) -> list[str]:
    """Notes on the mapping for people; atoms are counted from 0 in the reactant's order."""
    notes = []
    if asked and mapping.changed:
        given = given_mapping(r.numbers, r.positions, p.numbers, p.positions)
        if given is None:
            why = "the elements are in another order"
        elif given.bond_changes > mapping.bond_changes:
            why = f"the given order changes {given.bond_changes} bonds, this mapping {mapping.bond_changes}"
        else:
            why = f"the given order inverts {given.inverted} tetrahedral centres, this mapping {mapping.inverted}"
        certain = "" if mapping.exact else "; a heuristic mapping: check it"
        notes.append(f"product atoms re-ordered to the reactant's order ({why}{certain})")
    elif asked:
        notes.append("the given atom order is kept")
    if mapping.bond_changes:
        names = [bond_names(r.numbers, pairs) for pairs in (mapping.bonds_broken, mapping.bonds_formed)]
        notes.append(f"bonds broken: {names[0]}; formed: {names[1]}")
    else:
        turned = ", ".join(stereo_differences(r.numbers, r.positions, p.positions[mapping.permutation]))
        notes.append(f"no bond changes: {f'another stereoisomer ({turned})' if turned else 'a conformational change'}")
    return notes


def _label(source: Any, side: str) -> str:
    """A short name of a side, for tables and titles."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).stem
    if isinstance(source, Atoms):
        return side
    return "+".join(_label(part, side) for part in source)
