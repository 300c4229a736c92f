"""What a user has, made into a Reaction: any atom order, any frame, fragments anywhere; xyz files written safely."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from molgen.data.reactions import Pair, Reaction
from molgen.errors import InputError
from molgen.files import write_atomic
from molgen.geometry.align import rmsds_of
from molgen.geometry.bonds import atom_classes, bond_graph, bond_names, compare_bonds, distance_matrix, fragments
from molgen.geometry.chirality import NONE_OPEN, OpenStereo, signed_volumes, stereo_differences, tetrahedral_quadruples
from molgen.geometry.mapping import Mapping, given_mapping
from molgen.geometry.mapping import map_atoms as find_mapping
from molgen.smiles import SmilesSide, embed_reaction, reaching, same_handed, shaped_like
from molgen.structures import MAX_ATOMS, Structure, checked_spin, formula, read_side, total_charge

_DEGENERATE = 0.2  # Angstrom; sides closer than this after re-ordering are one molecule: the order tells what reacts
_MOST_CHANGES = 6  # bonds that one step changes; an order that changes more is not meant, but scrambled
_SAY_WHICH = "where atoms of a kind change places, say which: atom-mapped SMILES, or files in one atom order"
_SAY_TURN = "a turn or a flip without bonds needs files of both sides, in one atom order; else number what reacts"
_PAIRS = 3  # pairs of conformers of a SMILES that guesses begin from
_AGAIN = 1e6  # added to the unlikeness of a conformer that was taken before
_SAME_SHAPE = 0.1  # largest difference of the logarithm of a distance between conformers of one shape
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
        if not isinstance(smiles, str):
            raise InputError(f"{smiles!r} given", where="--smiles", expected='a text, "reactant>>product"')
        if reactant is not None or product is not None:
            raise InputError("both files and SMILES given", where="--smiles", expected="one or the other")
        if not map_atoms:
            raise InputError(
                "SMILES have no order of atoms to keep", where="--no-map", expected="structure files",
                remedy="number the atoms in the SMILES, or leave it out",
            )  # fmt: skip
        r, p, mapping, charge, conformers, unpaired, open_stereo = _from_smiles(smiles, charge)
        name, told = smiles, []
    else:
        if reactant is None or product is None:
            missing = "reactant" if reactant is None else "product"
            raise InputError("nothing given", where=missing, expected="a reactant and a product, or --smiles r>>p")
        r, p = read_side(reactant, "reactant"), read_side(product, "product")
        _check_pair(r, p)
        charge, told = total_charge(charge, (r, p))
        conformers, unpaired, open_stereo = [], {}, NONE_OPEN
        mapping = _choose_mapping(r, p, map_atoms)
        name = f"{_label(reactant, 'reactant')} -> {_label(product, 'product')}"
    notes = [*r.notes, *p.notes, *told]
    asked, spin = spin, checked_spin(r.numbers, charge, spin)
    if spin and asked is None:
        radical = "a radical, of one unpaired electron"
        doubt = f"warning: an odd number of electrons at charge {charge}: a radical, unless --charge is another"
        notes.append(doubt if smiles is None else radical)  # a SMILES has said it
    notes += [
        f"the {side} is written with {count} unpaired electrons, but {spin} are assumed: --spin {count} keeps them"
        for side, count in unpaired.items() if asked is None and count > spin
    ]  # fmt: skip
    if not mapping.bond_changes and mapping.displacement < _SAME:
        if not (bond_graph(r.numbers, r.positions).any() or bond_graph(p.numbers, p.positions).any()):
            raise InputError(
                "no two atoms are bonded on either side", where=f"{r.where} and {p.where}",
                expected="coordinates in Angstrom", remedy="convert them if they are in Bohr or nm",
            )  # fmt: skip
        raise InputError(
            f"reactant and product are the same structure (RMSD {mapping.displacement:.3f} Angstrom, same bonds)",
            where=f"{r.where} and {p.where}",
            expected="two different minima",
            remedy=_SAY_WHICH,
        )
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
        charge=charge,
        spin=spin,
        name=name,
        conformers=tuple(conformers),
        open_stereo=open_stereo,
    )
    return reaction, notes


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


def _check_pair(r: Structure, p: Structure) -> None:
    if not np.array_equal(np.sort(r.numbers), np.sort(p.numbers)):
        raise InputError(
            f"reactant is {formula(r.numbers)}, product is {formula(p.numbers)}",
            where=f"{r.where} and {p.where}",
            expected="the same atoms on both sides",
            remedy="add the missing fragment (a side may be several files), or the missing hydrogens",
        )
    if len(r.numbers) < 2:
        raise InputError("one atom cannot react", where=r.where, expected=f"2 to {MAX_ATOMS} atoms")


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


class _Written(NamedTuple):
    """What a reaction SMILES says: both sides, their mapping, the charge, further conformers of both in the reactant's
    order of atoms, the unpaired electrons on each side, and the stereo it leaves open, likewise in that order."""

    reactant: Structure
    product: Structure
    mapping: Mapping
    charge: int
    conformers: list[Pair]
    unpaired: dict[str, int]
    open_stereo: OpenStereo


def _from_smiles(smiles: str, charge: int | None) -> _Written:
    r, p = embed_reaction(smiles)
    where = f"--smiles {smiles}"
    if r.charge != p.charge or charge not in (None, r.charge):
        asked = "" if charge is None else f", --charge is {charge}"
        raise InputError(
            f"the formal charges are {r.charge} (reactant) and {p.charge} (product){asked}",
            where=where,
            expected="one charge on both sides, and the same as --charge where that is given",
        )
    structures = [
        Structure(side.numbers, side.conformers[0], f"--smiles, {name}", side.notes)
        for side, name in ((r, "reactant"), (p, "product"))
    ]
    for structure in structures:
        read_side(Atoms(structure.numbers, structure.positions), structure.where)  # size, coincidence
    _check_pair(*structures)
    pinned = _pinned(r, p, where)
    first = find_mapping(r.numbers, r.conformers[0], p.numbers, p.conformers[0], pinned=pinned).permutation
    back = np.argsort(first)
    p = _same_handed(r, p, first, where)
    r = _same_handed(p, r, back, where)
    pair, *others = _most_alike(*_likened(r, p, first, back), first)
    structures = [replace(structure, positions=x) for structure, x in zip(structures, pair, strict=True)]
    mapping = find_mapping(r.numbers, pair[0], p.numbers, pair[1], pinned=pinned)
    if not mapping.bond_changes and (r.canonical == p.canonical or mapping.inverted):
        told = "the same molecule" if r.canonical == p.canonical else "mirror images in one or more centres"
        raise InputError(
            f"reactant and product are {told}, and nothing says which bonds break", where=where,
            expected="a reaction", remedy=_SAY_TURN if (pinned >= 0).any() else _SAY_WHICH,
        )  # fmt: skip
    reactant, product = (
        replace(built, notes=built.notes + _misread(side, built))
        for side, built in zip((r, p), structures, strict=True)
    )
    further = _further(reactant, product, mapping, others, pinned)
    unpaired = {"reactant": r.unpaired, "product": p.unpaired}
    left_open = r.left_open(np.arange(len(r.numbers))), p.left_open(np.argsort(mapping.permutation))
    return _Written(reactant, product, mapping, r.charge, further, unpaired, left_open)


def _further(r: Structure, p: Structure, mapping: Mapping, pairs: list[Pair], pinned: np.ndarray) -> list[Pair]:
    """Those of the pairs that are the same reaction of the same stereoisomers, products in the reactant's order."""
    found = []
    for x, y in pairs:
        other = find_mapping(r.numbers, x, p.numbers, y, pinned=pinned)
        same = (other.bond_changes, other.inverted) == (mapping.bond_changes, mapping.inverted)
        if same and not (
            stereo_differences(r.numbers, r.positions, x) or stereo_differences(p.numbers, p.positions, y)
        ):
            found.append((x, y[other.permutation]))
    return found


def _likened(r: SmilesSide, p: SmilesSide, first: np.ndarray, back: np.ndarray) -> tuple[SmilesSide, SmilesSide]:
    """Both sides with conformers more: with what is to be bonded close by, and shaped like the other side."""
    after = p.bonds[np.ix_(first, first)]
    formed, broken = (np.argwhere(np.triu(changed)) for changed in (after & ~r.bonds, r.bonds & ~after))
    parts = [fragments(side.bonds) for side in (r, p)]
    own, r, p = len(r.conformers), reaching(r, formed), reaching(p, first[broken])
    shapes_r, shapes_p = r.conformers[::own], p.conformers[::own]  # the lowest, and the first of those that reach
    for shape in shapes_p:
        r = shaped_like(r, shape[first], parts[1][first])
    for shape in shapes_r:
        p = shaped_like(p, shape[back], parts[0][back])
    return r, p


def _misread(side: SmilesSide, built: Structure) -> tuple[str, ...]:
    """A note where the geometry of a SMILES has other bonds than were written."""
    written = compare_bonds(side.bonds, bond_graph(built.numbers, built.positions))
    faults = [f"{bond_names(built.numbers, pairs)} {how}" for pairs, how in (
        (written.broken, "too long for a bond"), (written.formed, "as close as bonded atoms")) if pairs]  # fmt: skip
    return (f"warning: {built.where}: its geometry has {'; '.join(faults)}",) if faults else ()


def _pinned(r: SmilesSide, p: SmilesSide, where: str) -> np.ndarray:
    """(N,) product atom of each reactant atom that bears an atom-map number, -1 elsewhere."""
    place = {int(label): k for k, label in enumerate(p.labels) if label}
    lone = sorted({int(label) for label in r.labels if label} ^ set(place))
    if lone:
        raise InputError(
            f"atom-map number {lone[0]} is on one side only", where=where, expected="each number once on each side",
            remedy="number that atom on the other side too, or leave it without",
        )  # fmt: skip
    pinned = np.array([place.get(int(label), -1) for label in r.labels], dtype=np.int64)
    if (r.numbers != p.numbers[pinned])[pinned >= 0].any():
        raise InputError("an atom-map number changes its element", where=where, expected="the same atom on both sides")
    return pinned


def _most_alike(r: SmilesSide, p: SmilesSide, permutation: np.ndarray) -> list[Pair]:
    """Pairs of conformers (N, 3) of both sides whose distances within fragments are most alike, best first, of heavy
    atoms and of those that react; by their ratios, so that how near those are counts for more than where a distant
    group points. As far as there are others, no two pairs have a conformer in common."""
    before, after = (np.log(distance_matrix(side.conformers) + np.eye(len(side.numbers))) for side in (r, p))
    after = after[:, permutation][:, :, permutation]
    label_r = fragments(bond_graph(r.numbers, r.conformers[0]))
    label_p = fragments(bond_graph(p.numbers, p.conformers[0]))[permutation]
    matters = (r.numbers > 1) | (r.bonds != p.bonds[np.ix_(permutation, permutation)]).any(1)
    together = (label_r[:, None] == label_r) & (label_p[:, None] == label_p) & matters & matters[:, None]
    apart = np.stack([(((after - x) ** 2) * together).sum(axis=(1, 2)) for x in before])
    groups = [np.flatnonzero(row) for row in np.unique(together, axis=0) if row.any()]
    found: list[Pair] = []
    while len(found) < _PAIRS and np.isfinite(apart.min()):
        one, other = divmod(int(apart.argmin()), apart.shape[1])
        a, b = (_shaped_alike(x[:, matters][:, :, matters], at) for x, at in ((before, one), (after, other)))
        found.append(_same_hand(r.conformers[a], p.conformers[b], permutation, groups))
        apart[a] += _AGAIN
        apart[:, b] += _AGAIN
        apart[np.ix_(a, b)] = np.inf
    return found


def _shaped_alike(log_distances: np.ndarray, one: int) -> np.ndarray:
    """Which (K,) of the conformers, by their log-distances (K, M, M), are that one, its mirror image, or nearly so."""
    return np.abs(log_distances - log_distances[one]).max((1, 2)) < _SAME_SHAPE


def _same_hand(r: np.ndarray, p: np.ndarray, permutation: np.ndarray, groups: list[np.ndarray]) -> Pair:
    """Of conformers (K, N, 3) that are one shape a side, the two that lie on each other best: distances do not tell a
    shape from its mirror image. Groups of atoms stay together on both sides."""
    moved = sum(len(g) * rmsds_of(r[:, None, g], p[None][:, :, permutation[g]]) ** 2 for g in groups)
    one, other = divmod(int(np.argmin(moved)), len(p))
    return r[one], p[other]


def _same_handed(r: SmilesSide, p: SmilesSide, permutation: np.ndarray, where: str) -> SmilesSide:
    """Side p with the hands of r where its SMILES leaves them open, of stereocentres that do not react."""
    after = p.bonds[np.ix_(permutation, permutation)]
    shared = r.bonds & after
    classes = [np.array(atom_classes(r.numbers, bonds)[-1]) for bonds in (r.bonds, after)]
    near = tetrahedral_quadruples(shared)
    kept = np.array([any(len(set(of[q])) == 4 for of in classes) for q in near], dtype=bool)
    centres = np.concatenate([np.flatnonzero(shared.sum(1) == 4)[:, None], near], axis=1)[kept]
    hands = np.sign(signed_volumes(r.conformers[0], near[kept]))
    return same_handed(p, permutation[centres], hands, where)


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
