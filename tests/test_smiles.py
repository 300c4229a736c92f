"""Sides written as SMILES: geometries that are theirs, what is left open is said, and what says nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from molgen.errors import InputError
from molgen.geometry.align import rmsd_of
from molgen.geometry.bonds import bond_graph, bonding_changes
from molgen.io import load_reaction
from molgen.smiles import embed_molecule, shaped_like

# shortest and longest bond between heavy atoms by GFN2-xTB, Angstrom
LENGTHS = {
    "N#N": (1.10, 1.10), "O=C=O": (1.14, 1.14), "[C-]#N": (1.16, 1.20), "[N-]=[N+]=[N-]": (1.16, 1.16),
    "[N-]=[N+]=O": (1.11, 1.20), "[N-]=C=O": (1.17, 1.22), "OO": (1.43, 1.43), "CC": (1.52, 1.52), "C=C": (1.32, 1.32),
}  # fmt: skip


@pytest.mark.parametrize("smiles", LENGTHS)
def test_small_molecules_have_their_bonds(smiles):
    """MMFF94 makes single bonds of those of N2 and CO2, 0.3 Angstrom too long."""
    side = embed_molecule(smiles, smiles)
    heavy = side.bonds & (side.numbers > 1)[:, None] & (side.numbers > 1)
    i, j = np.nonzero(np.triu(heavy))
    found = np.linalg.norm(side.conformers[:, i] - side.conformers[:, j], axis=-1)
    assert found.min() > LENGTHS[smiles][0] - 0.12 and found.max() < LENGTHS[smiles][1] + 0.12
    assert np.array_equal(bond_graph(side.numbers, side.conformers[0]), side.bonds)


def test_conformers_differ():
    """Those of a chain do, in its length; RDKit makes one and the same of all with a seed of 0."""
    x = embed_molecule("CCCCCC(=O)OCC", "here").conformers
    assert np.ptp(np.linalg.norm(x[:, 0] - x[:, 9], axis=1)) > 1.0


@pytest.mark.parametrize(
    "smiles", ["C=C(c1ccccc1)OCC=Cc1ccccc1>>C=CC(c1ccccc1)CC(=O)c1ccccc1", "CC(C)=CCCC(C)CC=O>>CC(=C)C1CCC(C)CC1O"]
)
def test_atoms_that_react_are_near_each_other_on_both_sides(smiles):
    """A long molecule is stretched out otherwise, and no guess between two such conformers is any good."""
    reaction, _ = load_reaction(smiles=smiles)
    changes = bonding_changes(reaction.numbers, reaction.reactant, reaction.product)
    for x, pairs in ((reaction.reactant, changes.formed), (reaction.product, changes.broken)):
        assert all(np.linalg.norm(x[i] - x[j]) < 4.5 for i, j in pairs)


def test_further_conformers_are_of_the_same_reaction():
    """Chair and boat of a Claisen rearrangement, for one: other shapes, the same bonds in one order of atoms."""
    reaction, _ = load_reaction(smiles="C=COC/C=C/C>>O=CC[C@H](C)C=C")
    assert len(reaction.conformers) == 2
    for one, other in zip((reaction.reactant, reaction.product), zip(*reaction.conformers, strict=True), strict=True):
        for x in other:
            assert np.array_equal(bond_graph(reaction.numbers, x), bond_graph(reaction.numbers, one))
            assert rmsd_of(x[reaction.numbers > 1], one[reaction.numbers > 1]) > 0.1
    assert reaction.reversed.conformers[0][0] is reaction.conformers[0][1]


@pytest.mark.parametrize(
    ("smiles", "text"),
    [
        ("CC=CC", "1 double bond left open: one isomer is built; say which by / and"),
        ("CC(F)C(F)C", "2 stereocentres left open: one isomer is built; say which by @ and @@"),
        ("[2H]C", "isotopes weigh as much as the common ones here"),
        ("C/C=C/C", None),
        ("C1=CCCCC1", None),
        ("CN=[N+]=[N-]", None),
        ("CN=C=O", None),
    ],
)
def test_what_a_smiles_leaves_open_is_said(smiles, text):
    notes = embed_molecule(smiles, smiles).notes
    assert notes == () if text is None else text in notes[0] and notes[0].startswith("warning: ")


def test_what_is_open_is_named_in_the_order_of_the_reactant():
    reaction, _ = load_reaction(smiles="NCCC=O>>OC=CCN")  # C1=C2 as the product is written
    assert reaction.open_stereo == (set(), {"C2=C3"})


def test_rdkit_writes_nothing_of_its_own(capfd):
    """Its force fields know no selenoxide."""
    load_reaction(smiles="C[Se](=O)CC>>C=C.C[Se]O")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "smiles", ["C[C+](C)C(C)C>>CC(C)[C+](C)C", "[Cl-].CC[C@H](C)Cl>>[Cl-].CC[C@@H](C)Cl", "C=CC>>CC=C"]
)
def test_a_reaction_into_itself_needs_atom_map_numbers(smiles):
    with pytest.raises(InputError, match="nothing says which bonds break(?s:.*)atom-mapped SMILES"):
        load_reaction(smiles=smiles)


def test_a_turn_with_atom_map_numbers_needs_files():
    smiles = "[CH3:1][N:2]([CH3:3])[CH:4]=[O:5]>>[CH3:3][N:2]([CH3:1])[CH:4]=[O:5]"
    with pytest.raises(InputError, match="needs files of both sides, in one atom order"):
        load_reaction(smiles=smiles)


@pytest.mark.parametrize(("spin", "said"), [(None, True), (0, False), (2, False)])
def test_radicals_that_are_taken_as_a_singlet_are_named(spin, said):
    reaction, notes = load_reaction(smiles="CC>>[CH3].[CH3]", spin=spin)
    assert reaction.spin == (spin or 0)
    assert ("the product is written with 2 unpaired electrons, but 0 are assumed: --spin 2 keeps them" in notes) == said


def test_with_atom_map_numbers_it_is_a_reaction():
    smiles = "[Cl-:1].CC[C@:2]([H])(C)[Cl:3]>>[Cl-:3].CC[C@@:2]([H])(C)[Cl:1]"
    _, notes = load_reaction(smiles=smiles)
    assert any(note.startswith("bonds broken: C") for note in notes)
    _, notes = load_reaction(smiles="C/C=C\\C>>C/C=C/C")
    assert "no bond changes: another stereoisomer (C1=C2)" in notes


def test_other_bonds_than_written_are_named():
    _, notes = load_reaction(smiles="C[Si]1(C)O[Si](C)(C)O1>>C[Si](=O)C.C[Si](=O)C")
    assert any("its geometry has Si1-Si4 as close as bonded atoms" in note for note in notes)


def test_conformers_have_the_bonds_that_are_written_where_some_do():
    """UFF folds a methyl group of an oxaphosphetane onto its oxygen in every other conformer."""
    side = embed_molecule("C1COP1(C)(C)C", "here")
    assert all(np.array_equal(bond_graph(side.numbers, x), side.bonds) for x in side.conformers)


def test_the_lowest_conformers_differ():
    """Of allyl vinyl ether the first of RDKit's are one and the same."""
    reaction, _ = load_reaction(smiles="C=COCC=C>>O=CCCC=C")
    for found in reaction.lowest:
        assert len(found) == 3
        assert min(rmsd_of(sign * a, b) for k, a in enumerate(found) for b in found[:k] for sign in (1, -1)) > 0.1


def mirrored(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, atoms.positions * [1, 1, -1])


def test_the_order_of_files_tells_what_reacts_between_mirror_images():
    """Cl- + 1-chloro-1-fluoroethane: by another order a centre would invert without a bond broken."""
    side = embed_molecule("F[C@H](C)Cl", "reactant")
    molecule = Atoms(side.numbers, side.conformers[0])
    leaving = int(np.flatnonzero(side.numbers == 17)[0])
    carbon = int(np.flatnonzero(side.bonds[leaving])[0])
    out = (molecule.positions[leaving] - molecule.positions[carbon]) / 1.78
    nucleophile = Atoms("Cl", [molecule.positions[carbon] - 3.2 * out])
    reactant = molecule + nucleophile
    product = mirrored(reactant)
    product.positions[[leaving, len(molecule)]] = product.positions[[len(molecule), leaving]]
    reaction, notes = load_reaction(reactant, product, charge=-1)
    assert "the given atom order is kept" in notes
    assert any(
        note.startswith(f"bonds broken: C{carbon}-Cl{leaving}; formed: C{carbon}-Cl{len(molecule)}") for note in notes
    )
    assert np.allclose(reaction.product, product.positions)


def test_a_diene_that_closes_to_a_ring_is_s_cis():
    """Its own conformers are s-trans, from which only trans-cyclohexene can form."""
    reaction, _ = load_reaction(smiles="C=CC=C.C=C>>C1CCC=CC1")
    diene = Atoms(reaction.numbers, reaction.reactant)
    carbons = [k for k in range(len(diene)) if reaction.numbers[k] == 6 and reaction.reactant_fragments[k] == 0]
    assert len(carbons) == 4
    turn = diene.get_dihedral(*carbons)
    assert min(turn, 360 - turn) < 45
    assert np.array_equal(bond_graph(reaction.numbers, reaction.reactant).sum(), 2 * (9 + 5))


@pytest.mark.parametrize(
    ("smiles", "middle"),
    [("C=C/C=C\\C=C>>C1=CC=CCC1", 0), ("C=C/C=C/C=C>>C1=CC=CCC1", 180), ("C=CC=CC=C>>C1=CC=CCC1", 0)],
)
def test_what_is_written_of_a_double_bond_stays_and_what_is_open_follows_the_other_side(smiles, middle):
    reaction, _ = load_reaction(smiles=smiles)
    turn = Atoms(reaction.numbers, reaction.reactant).get_dihedral(1, 2, 3, 4)
    assert min(abs(turn - middle), 360 - abs(turn - middle)) < 20


@pytest.mark.parametrize(
    ("smiles", "bond"),
    [
        ("OC=CC#N>>[C-]#[N+]C=CO", (0, 1, 2)),
        ("[O:1]=[CH:2][CH:3]=[CH:4][O:5][H:6]>>[H:6][O:1][CH:2]=[CH:3][CH:4]=[O:5]", (1, 2, 3, 4)),
    ],
)
def test_double_bonds_left_open_on_both_sides_are_isomers_that_react(smiles, bond):
    """Else one is cis and the other trans, or a hydrogen is to leap between the ends of a trans one."""
    reaction, _ = load_reaction(smiles=smiles)
    sides = [Atoms(reaction.numbers, x) for x in (reaction.reactant, reaction.product)]
    last = (3, 4) if len(bond) == 3 else bond[3:] * 2  # the nitrile's carbon and the isonitrile's nitrogen
    turns = [side.get_dihedral(*bond[:3], at) for side, at in zip(sides, last, strict=True)]
    assert np.ptp(np.cos(np.radians(turns))) < 0.1
    assert len(bond) == 3 or sides[0].get_distance(0, 5) < 2.5


@pytest.mark.parametrize("hand", ["@", "@@"])
def test_conformers_that_follow_the_other_side_keep_their_handedness(hand):
    """Even where that side is the mirror image."""
    side = embed_molecule(f"C=CC=C[C{hand}H](F)O", "test")
    mirrored = side.conformers[0] * [1, 1, -1]
    same = shaped_like(side, mirrored, np.zeros(len(mirrored), int))
    assert len(same.conformers) > len(side.conformers)
    centre = next(
        k for k in range(len(side.numbers)) if set(side.numbers[np.flatnonzero(side.bonds[k])]) == {1, 6, 8, 9}
    )
    corners = np.flatnonzero(side.bonds[centre])
    volumes = [np.linalg.det(x[corners[:3]] - x[corners[3]]) for x in same.conformers]
    assert len(set(np.sign(volumes))) == 1
