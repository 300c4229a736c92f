"""A reaction SMILES as two sides mapped on each other, in conformers that are alike: the shape that one needs to react
is often that of the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from ase import Atoms

from molgen.data.reactions import Pair
from molgen.errors import InputError
from molgen.geometry.align import among, rmsds_of
from molgen.geometry.bonds import atom_classes, bond_graph, bond_names, compare_bonds, distance_matrix, fragments
from molgen.geometry.chirality import NONE_OPEN, OpenStereo, signed_volumes, stereo_differences, tetrahedral_quadruples
from molgen.geometry.mapping import Mapping, map_atoms
from molgen.smiles import SmilesSide, embed_reaction, reaching, same_handed, shaped_like
from molgen.structures import Structure, check_pair, read_side

SAY_WHICH = "where atoms of a kind change places, say which: atom-mapped SMILES, or files in one atom order"
_SAY_TURN = "a turn or a flip without bonds needs files of both sides, in one atom order; else number what reacts"
_PAIRS = 3  # pairs of conformers that guesses begin from
_LOWEST = 3  # conformers of either side that may lie lower than these
_ISOMERS = 3  # of the product, beside the one that it is, where that is left open
_AGAIN = 1e6  # added to the unlikeness of a conformer that was taken before
_SAME_SHAPE = 0.1  # largest difference of the logarithm of a distance between conformers of one shape


class Sides(NamedTuple):
    """Both sides of a reaction as they were read.

    Attributes:
        reactant, product: each in its own order of atoms. mapping: of the reactant's atoms onto the product's.
        charge: e. notes: on what was decided of the two together, for the user.
        conformers: further ones of both, the product's in the reactant's order of atoms.
        isomers: likewise, with other isomers of the product.
        lowest: see :class:`~molgen.data.reactions.Reaction`.
        unpaired: electrons that a SMILES says are unpaired, of "reactant" and "product".
        open_stereo: what SMILES leave open, see :class:`~molgen.data.reactions.Reaction`.
    """

    reactant: Structure
    product: Structure
    mapping: Mapping
    charge: int
    notes: list[str]
    conformers: list[Pair]
    isomers: list[Pair]
    unpaired: dict[str, int]
    open_stereo: OpenStereo = NONE_OPEN
    lowest: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]] = ((), ())


def read_reaction_smiles(smiles: str, charge: int | None = None) -> Sides:
    """Both sides of "reactant>>product" with hydrogens and coordinates, mapped on each other.

    Atom-map numbers are kept, and what bears none is mapped around them.

    Args:
        charge: e, that the formal charges have to come to; None for any.

    Raises:
        InputError: not such a SMILES, sides of different atoms or charge, or one molecule on both.
    """
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
    check_pair(*structures)
    pinned = _pinned(r, p, where)
    first = map_atoms(r.numbers, r.conformers[0], p.numbers, p.conformers[0], pinned=pinned).permutation
    back = np.argsort(first)
    p = _same_handed(r, p, first, where)
    r = _same_handed(p, r, back, where)
    pair, *others = _most_alike(*_likened(r, p, first, back), first)
    structures = [replace(structure, positions=x) for structure, x in zip(structures, pair, strict=True)]
    mapping = map_atoms(r.numbers, pair[0], p.numbers, pair[1], pinned=pinned)
    if not mapping.bond_changes and (r.canonical == p.canonical or mapping.inverted):
        told = "the same molecule" if r.canonical == p.canonical else "mirror images in one or more centres"
        raise InputError(
            f"reactant and product are {told}, and nothing says which bonds break", where=where,
            expected="a reaction", remedy=_SAY_TURN if (pinned >= 0).any() else SAY_WHICH,
        )  # fmt: skip
    reactant, product = (
        replace(built, notes=built.notes + _misread(side, built))
        for side, built in zip((r, p), structures, strict=True)
    )
    further = _further(reactant, product, mapping, others, pinned)
    isomers = _isomers(reactant, product, mapping, p, pinned)
    unpaired = {"reactant": r.unpaired, "product": p.unpaired}
    left_open = r.left_open(np.arange(len(r.numbers))), p.left_open(np.argsort(mapping.permutation))
    lowest = _lowest(r, reactant), tuple(x[mapping.permutation] for x in _lowest(p, product))
    return Sides(reactant, product, mapping, r.charge, [], further, isomers, unpaired, left_open, lowest)


def _further(r: Structure, p: Structure, mapping: Mapping, pairs: list[Pair], pinned: np.ndarray) -> list[Pair]:
    """Those of the pairs that are the same reaction of the same stereoisomers, products in the reactant's order."""
    found = []
    for x, y in pairs:
        other = map_atoms(r.numbers, x, p.numbers, y, pinned=pinned)
        same = (other.bond_changes, other.inverted) == (mapping.bond_changes, mapping.inverted)
        if same and not (
            stereo_differences(r.numbers, r.positions, x) or stereo_differences(p.numbers, p.positions, y)
        ):
            found.append((x, y[other.permutation]))
    return found


def _isomers(r: Structure, p: Structure, mapping: Mapping, side: SmilesSide, pinned: np.ndarray) -> list[Pair]:
    """The reactant, and other isomers of the product that its SMILES leaves open, in the reactant's order: those of the
    lowest force-field energy, no mirror images."""
    free, known, found = side.left_open(np.arange(len(side.numbers))), [p.positions], []
    for x in side.conformers if free else ():
        differ = [stereo_differences(p.numbers, old, new) for old in known for new in (x, -x)]
        if len(found) == _ISOMERS or not all(differ) or not free.issuperset(differ[0]):
            continue
        known.append(x)
        other = map_atoms(r.numbers, r.positions, p.numbers, x, pinned=pinned)
        if (other.bond_changes, other.inverted) == (mapping.bond_changes, mapping.inverted):
            found.append((r.positions, x[other.permutation]))
    return found


def _lowest(side: SmilesSide, built: Structure) -> tuple[np.ndarray, ...]:
    """Conformers (N, 3) of the isomer that was built, of the lowest force-field energy, no two alike."""
    found: list[np.ndarray] = []
    for x in side.conformers:
        if len(found) == _LOWEST:
            break
        if not (among(found, x) or stereo_differences(built.numbers, built.positions, x)):
            found.append(x)
    return tuple(found)


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
