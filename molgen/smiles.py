"""Geometries from a reaction SMILES, atom-mapped or plain: RDKit's distance geometry, relaxed by MMFF94 (or UFF)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph
from molgen.geometry.chirality import signed_volumes, stereo_name

_CONFORMERS = 12
_SHAPED = 4  # conformers that follow the other side of the reaction
_TRIES = 30  # of the embedding of one of these; where the shape fits none succeeds, and 380 take 3 s for 38 atoms
_NEAR = 3.2  # Angstrom, between atoms that are to be bonded
_GAP = 10.0  # Angstrom between the fragments of a side
_STRETCHED = 0.12  # Angstrom; MMFF94 knows no N2 or CO2, and makes their bonds single ones, 0.2 to 0.4 longer


@dataclass(frozen=True, eq=False)
class SmilesSide:
    """One side of a reaction SMILES in three dimensions.

    Attributes:
        numbers: (N,) atomic numbers, explicit hydrogens included.
        conformers: (K, N, 3) Angstrom, lowest force-field energy first.
        labels: (N,) atom-map numbers, 0 where there is none.
        charge: sum of the formal charges.
        notes: for the user.
        canonical: RDKit's canonical SMILES, stereo labels and all but without atom-map numbers.
        bonds: (N, N) boolean, those that are written.
        fragments: RDKit molecule of each fragment, and the indices of its atoms.
        unpaired: electrons that are written so, on its radicals.
        open_stereo: atoms of the stereocentres, one each, and of the double bonds, two, that the SMILES leaves open.
    """

    numbers: np.ndarray
    conformers: np.ndarray
    labels: np.ndarray
    charge: int
    notes: tuple[str, ...]
    canonical: str
    bonds: np.ndarray
    fragments: tuple[tuple[Any, tuple[int, ...]], ...] = ()
    unpaired: int = 0
    open_stereo: tuple[tuple[int, ...], ...] = ()

    def left_open(self, order: np.ndarray) -> frozenset[str]:
        """Names of `open_stereo` where atom k is called `order[k]` (N,)."""
        return frozenset(stereo_name(self.numbers[np.argsort(order)], order[list(unit)]) for unit in self.open_stereo)


def embed_reaction(smiles: str, seed: int = 0) -> tuple[SmilesSide, SmilesSide]:
    """Both sides of "reactant>>product" (fragments joined by dots) with hydrogens and coordinates; stereo labels are
    kept.

    Raises:
        InputError: not a reaction, not valid, agents between the arrows, or no geometry could be built.
    """
    parts = smiles.strip().split(">")
    if len(parts) != 3 or not parts[0] or not parts[2]:
        raise InputError(
            "not a reaction SMILES",
            where=f"--smiles {smiles}",
            expected="reactant>>product",
            remedy="C=CO>>CC=O, for one",
        )
    if parts[1]:
        raise InputError(
            f"agents ({parts[1]}) are not supported",
            where=f"--smiles {smiles}",
            expected="reactant>>product",
            remedy="put catalysts that take part on both sides, and leave the others out",
        )
    reactant, product = (
        embed_molecule(part, f"--smiles, {side} {part}", seed)
        for part, side in ((parts[0], "reactant"), (parts[2], "product"))
    )
    return reactant, product


def embed_molecule(smiles: str, where: str, seed: int = 0) -> SmilesSide:
    """One molecule, or several joined by dots, with hydrogens and coordinates; stereo labels are kept.

    Args:
        where: the origin of `smiles`, for messages.

    Raises:
        InputError: not a valid SMILES, a repeated atom-map number, or no geometry could be built.
    """
    from rdkit import Chem

    options = Chem.SmilesParserParams()
    options.removeHs = False
    molecule = _quietly(Chem.MolFromSmiles, smiles, options)
    if molecule is None:
        raise InputError(
            "not a valid SMILES", where=where, expected="balanced brackets, closed rings, possible valences"
        )
    molecule = Chem.AddHs(molecule)
    labels = np.array([atom.GetAtomMapNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    used = labels[labels > 0]
    if len(set(used.tolist())) != len(used):
        raise InputError("an atom-map number is used twice", where=where, expected="each number once on each side")
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()], dtype=np.int64)
    if (numbers == 0).any():
        raise InputError("a dummy atom (*) has no element", where=where, expected="a complete molecule")
    open_stereo = _left_open(molecule)
    notes, edge = _unwritten(molecule, open_stereo, where), 0.0
    indices: list[tuple[int, ...]] = []
    parts = list(zip(Chem.GetMolFrags(molecule, asMols=True, fragsMolAtomMapping=indices), indices, strict=True))
    conformers = np.zeros((_CONFORMERS, len(numbers), 3))
    for fragment, members in parts:
        positions, relaxed = _conformers(fragment, where, seed)
        if not relaxed:
            notes.append(f"{where}: no force field covers {Chem.MolToSmiles(fragment)}; its geometry is only embedded")
        radius = float(np.abs(positions).max())
        positions = positions + np.array([edge + radius, 0.0, 0.0])
        edge += 2 * radius + _GAP
        for k in range(_CONFORMERS):
            conformers[k, list(members)] = positions[k % len(positions)]
    charge = int(Chem.GetFormalCharge(molecule))
    unpaired, told = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()), tuple(notes)
    about = _canonical(molecule), _bonds(molecule), tuple(parts), unpaired, tuple(open_stereo)
    return SmilesSide(numbers, conformers, labels, charge, told, *about)


def shaped_like(side: SmilesSide, positions: np.ndarray, parts: np.ndarray, seed: int = 0) -> SmilesSide:
    """The side with conformers more, whose heavy atoms were embedded as they lie on the other side, then relaxed.

    A diene that closes to a ring is s-cis there, which conformers of its own hardly are. Where a fragment cannot be
    embedded so, it stays as it is.

    Args:
        positions: (N, 3) Angstrom, of the same atoms on the other side. parts: (N,) its fragments; a fragment of this
            side follows the one that most of its heavy atoms come from.
    """
    from rdkit.Chem import AllChem
    from rdkit.Geometry import Point3D

    options = AllChem.ETKDGv3()
    options.randomSeed, options.ignoreSmoothingFailures, options.useRandomCoords = seed + 1, True, True
    options.maxIterations = _TRIES
    found = np.repeat(side.conformers[:1], _SHAPED, axis=0)
    for fragment, members in side.fragments:
        heavy = [k for k, index in enumerate(members) if side.numbers[index] > 1]
        origin = parts[[members[k] for k in heavy]]
        heavy = [k for k, part in zip(heavy, origin, strict=True) if part == np.bincount(origin).argmax()]
        if len(heavy) < 4:  # no torsion to follow
            continue
        molecule = type(fragment)(fragment)
        options.SetCoordMap({k: Point3D(*map(float, positions[members[k]])) for k in heavy})
        try:
            made = list(_quietly(AllChem.EmbedMultipleConfs, molecule, _SHAPED, options))
        except RuntimeError:  # of RDKit's minimiser, where the shape asked for is none of this molecule's
            made = []
        x = _sound(side, fragment, members, _relaxed(molecule, made)[0]) if made else []
        if len(x):
            centre = side.conformers[0][list(members)].mean(axis=0)
            found[:, list(members)] = x[np.arange(_SHAPED) % len(x)] + centre
    return replace(side, conformers=np.concatenate([side.conformers, found]))


def reaching(side: SmilesSide, pairs: np.ndarray, seed: int = 0) -> SmilesSide:
    """The side with conformers more, in which atoms that are bonded on the other side lie near each other, where they
    are of one fragment: without them a chain that closes to a ring is stretched out on both sides.

    Args:
        pairs: (P, 2) atoms that are bonded on the other side only.
    """
    from rdkit import DistanceGeometry
    from rdkit.Chem import AllChem

    found, reached = np.repeat(side.conformers[:1], _CONFORMERS, axis=0), False
    for fragment, members in side.fragments:
        at = {atom: k for k, atom in enumerate(members)}
        inside = [(at[int(i)], at[int(j)]) for i, j in pairs if int(i) in at and int(j) in at]
        if not inside:
            continue
        bounds = _quietly(AllChem.GetMoleculeBoundsMatrix, fragment)
        for low, high in map(sorted, inside):  # RDKit: upper bounds above the diagonal, lower ones below it
            bounds[low, high] = min(bounds[low, high], max(_NEAR, bounds[high, low]))
        if not DistanceGeometry.DoTriangleSmoothing(bounds):
            continue
        options, molecule = AllChem.ETKDGv3(), type(fragment)(fragment)
        options.randomSeed, options.useRandomCoords = seed + 1, True
        options.SetBoundsMat(bounds)
        made = list(_quietly(AllChem.EmbedMultipleConfs, molecule, _CONFORMERS, options))
        x = _sound(side, fragment, members, _relaxed(molecule, made)[0]) if made else []
        if len(x):
            centre, reached = side.conformers[0][list(members)].mean(axis=0), True
            found[:, list(members)] = x[np.arange(_CONFORMERS) % len(x)] + centre
    return replace(side, conformers=np.concatenate([side.conformers, found])) if reached else side


def same_handed(side: SmilesSide, centres: np.ndarray, hands: np.ndarray, where: str, seed: int = 0) -> SmilesSide:
    """The side embedded anew where a stereocentre that its SMILES leaves open has not the hand that is asked for.

    Args:
        centres: (Q, 5) atoms: a centre and its four neighbours. hands: (Q,) signs of the neighbours' volume.
    """
    from rdkit import Chem

    conformers, fragments = side.conformers.copy(), []
    for fragment, members in side.fragments:
        at = {atom: k for k, atom in enumerate(members)}
        own = [(at[c[0]], [at[a] for a in c[1:]], hand) for c, hand in zip(centres, hands, strict=True) if c[0] in at]
        own = [c for c in own if fragment.GetAtomWithIdx(c[0]).GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED]
        molecule, x = Chem.Mol(fragment), side.conformers[:, list(members)]
        tags = [Chem.ChiralType.CHI_TETRAHEDRAL_CW] * len(own)
        for _ in range(2):  # what the first tags come to tells which to turn
            if not any((np.sign(signed_volumes(x, [near])) != hand).any() for _, near, hand in own):
                break
            for k, (centre, near, hand) in enumerate(own):
                set_before = molecule.GetAtomWithIdx(centre).GetChiralTag() == tags[k]
                if set_before and np.sign(signed_volumes(x[0], [near]))[0] != hand:
                    tags[k] = Chem.ChiralType.CHI_TETRAHEDRAL_CCW
                molecule.GetAtomWithIdx(centre).SetChiralTag(tags[k])
            try:
                made = _conformers(molecule, where, seed)[0]
            except InputError:  # such hands do not go together, as in a small bicycle
                molecule, x = Chem.Mol(fragment), side.conformers[:, list(members)]
                break
            x = made[np.arange(_CONFORMERS) % len(made)] + side.conformers[0][list(members)].mean(axis=0)
        conformers[:, list(members)] = x
        fragments.append((molecule, members))
    return replace(side, conformers=conformers, fragments=tuple(fragments))


def _sound(side: SmilesSide, fragment, members: tuple[int, ...], conformers: np.ndarray) -> np.ndarray:
    """Those of the conformers (K, n, 3) of a fragment that have its stereochemistry and bonds: one shaped like the
    other side may have that side's bonds."""
    numbers, bonds = side.numbers[list(members)], side.bonds[np.ix_(members, members)]
    kept = [_as_written(fragment, x) and np.array_equal(bond_graph(numbers, x), bonds) for x in conformers]
    return conformers[kept]


def _as_written(molecule, positions: np.ndarray) -> bool:
    """Whether a conformer (n, 3) has the handedness and the double bonds that the SMILES says."""
    from rdkit import Chem

    written, built = Chem.Mol(molecule), Chem.Mol(molecule)
    built.RemoveAllConformers()
    conformer = Chem.Conformer(len(positions))
    conformer.SetPositions(np.ascontiguousarray(positions, dtype=float))
    built.AddConformer(conformer, assignId=True)
    Chem.AssignStereochemistry(written, cleanIt=True, force=True)
    Chem.AssignStereochemistryFrom3D(built, replaceExistingTags=True)
    open_bonds = (Chem.BondStereo.STEREONONE, Chem.BondStereo.STEREOANY)
    bonds = ((a.GetStereo(), b.GetStereo()) for a, b in zip(written.GetBonds(), built.GetBonds(), strict=True))
    names = (
        [atom.GetPropsAsDict(True, True).get("_CIPCode") for atom in mol.GetAtoms()] for mol in (written, built)
    )  # fmt: skip
    hands = zip(*names, strict=True)
    return all(a in open_bonds or a == b for a, b in bonds) and all(a in (None, b) for a, b in hands)


def _bonds(molecule) -> np.ndarray:
    """(N, N) boolean, those that are written."""
    from rdkit import Chem

    return Chem.GetAdjacencyMatrix(molecule).astype(bool)


def _canonical(molecule) -> str:
    from rdkit import Chem

    bare = Chem.Mol(molecule)
    for atom in bare.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(_quietly(Chem.RemoveHs, bare))


def _unwritten(molecule, open_stereo: list[tuple[int, ...]], where: str) -> list[str]:
    """Notes on what a SMILES leaves open, where one of several molecules is built, and on what it says in vain."""
    notes = []
    for atoms, what, how in ((2, "double bond", "/ and \\"), (1, "stereocentre", "@ and @@")):
        if left := sum(len(unit) == atoms for unit in open_stereo):
            plural = "s" if left > 1 else ""
            notes.append(f"warning: {where}: {left} {what}{plural} left open: one isomer is built; say which by {how}")
    if any(atom.GetIsotope() for atom in molecule.GetAtoms()):
        notes.append(f"warning: {where}: isotopes weigh as much as the common ones here, so frequencies are not theirs")
    return notes


def _left_open(molecule) -> list[tuple[int, ...]]:
    """Atoms of the stereocentres and double bonds that RDKit finds and the SMILES does not say."""
    from rdkit import Chem

    def linear(atom) -> bool:  # as in an azide or an isocyanate, where nothing is cis or trans
        return sum(bond.GetBondTypeAsDouble() >= 2 for bond in atom.GetBonds()) > 1

    found, left = _quietly(Chem.FindPotentialStereo, molecule), []
    for stereo in found:
        if stereo.specified != Chem.StereoSpecified.Unspecified:
            continue
        if stereo.type == Chem.StereoType.Atom_Tetrahedral:
            left.append((stereo.centeredOn,))
        elif stereo.type == Chem.StereoType.Bond_Double:
            bond = molecule.GetBondWithIdx(stereo.centeredOn)
            if not (linear(bond.GetBeginAtom()) or linear(bond.GetEndAtom())):
                left.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
    return left


def _conformers(molecule, where: str, seed: int) -> tuple[np.ndarray, bool]:
    """(K, n, 3) centred conformers of one fragment, lowest energy first, and whether a force field relaxed them. Those
    without the bonds that are written, which UFF makes of a phosphorane, are left out where others have them.

    Source: ETKDGv3 (Wang et al., J. Chem. Inf. Model. 60, 2044 (2020)); MMFF94 (Halgren, J. Comput. Chem. 17, 490
        (1996)).
    """
    from rdkit.Chem import AllChem

    if molecule.GetNumAtoms() == 1:
        return np.zeros((1, 1, 3)), True
    options = AllChem.ETKDGv3()
    options.randomSeed = seed + 1  # RDKit takes k times the seed for conformer k: all are the same with 0
    made = list(_quietly(AllChem.EmbedMultipleConfs, molecule, _CONFORMERS, options))
    if not made:
        options.useRandomCoords = True
        made = list(_quietly(AllChem.EmbedMultipleConfs, molecule, _CONFORMERS, options))
    if not made:
        raise InputError("no geometry could be built", where=where, remedy="give the two sides as xyz files")
    positions, relaxed = _relaxed(molecule, made)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    sound = [x for x in positions if np.array_equal(bond_graph(numbers, x), _bonds(molecule))]
    return (np.array(sound) if sound else positions), relaxed


def _relaxed(molecule, made: list[int]) -> tuple[np.ndarray, bool]:
    """As `_conformers`, of conformers that are embedded."""
    from rdkit.Chem import AllChem

    embedded = _positions(molecule, made)
    fields = (
        (AllChem.MMFFHasAllMoleculeParams, AllChem.MMFFOptimizeMoleculeConfs),
        (AllChem.UFFHasAllMoleculeParams, AllChem.UFFOptimizeMoleculeConfs),
    )
    optimise = next((optimise for knows, optimise in fields if _quietly(knows, molecule)), None)
    outcome = _quietly(optimise, molecule, maxIters=2000) if optimise else []
    energies = [energy for _, energy in outcome] or [0.0] * len(made)
    positions = _positions(molecule, made)
    multiple = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds() if b.GetBondTypeAsDouble() > 1]
    begin, end = np.array(multiple, dtype=int).reshape(-1, 2).T
    before, after = (np.linalg.norm(x[:, begin] - x[:, end], axis=-1) for x in (embedded, positions))
    if (after - before > _STRETCHED).any():
        positions = embedded
    positions -= positions.mean(axis=1, keepdims=True)
    return positions[np.argsort(energies, kind="stable")], bool(outcome)


def _positions(molecule, conformers: list[int]) -> np.ndarray:
    """(K, n, 3) Angstrom."""
    return np.array([molecule.GetConformer(k).GetPositions() for k in conformers])


def _quietly(function, *args, **kwargs):
    """Call RDKit without its log on stderr; what went wrong is said by the error that follows."""
    from rdkit import rdBase

    with rdBase.BlockLogs():
        return function(*args, **kwargs)
