"""The filter that keeps excluded reactions out, whatever their atom order and direction; duplicates; valence rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from molgen.data.duplicates import KnownSaddles
from molgen.data.elementary import (
    applied,
    neighbours_allowed,
    product_geometry,
    propose_step,
    step_kind,
    step_text,
    unpaired_valence,
)
from molgen.data.exclusion import excluded_keys, keys_of, reaction_key, reaction_keys, smiles_key, split_spec
from molgen.data.mapped_smiles import reaction_smiles
from molgen.data.reactions import Reaction, save_npz
from molgen.errors import InputError
from molgen.geometry.bonds import BondChanges, bond_graph, compare_bonds, fragments, molecule_key
from molgen.smiles import embed_molecule

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def claisen() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers and both ends of the Claisen rearrangement, atoms in one order."""
    r, p = (read(EXAMPLES / "claisen" / f"{side}.xyz") for side in ("reactant", "product"))
    from molgen.geometry.mapping import map_atoms

    order = map_atoms(r.numbers, r.positions, p.numbers, p.positions).permutation
    return r.numbers.astype(np.int64), r.positions, p.positions[order]


Z, R, P = claisen()


def molecule(smiles: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, connectivity and positions."""
    side = embed_molecule(smiles, "test")
    return side.numbers, bond_graph(side.numbers, side.conformers[0]), side.conformers[0]


def as_reaction(z, r, p, name="0") -> Reaction:
    parts = (fragments(bond_graph(z, x)) for x in (p, r))
    return Reaction(z, r, p, *parts, name=name, ts=(r + p) / 2)


@given(st.permutations(range(len(Z))), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_reaction_has_one_key_in_any_order_and_direction(order, backwards):
    order = np.array(order)
    r, p = (P, R) if backwards else (R, P)
    assert reaction_keys(Z[order], r[order], p[order]) == reaction_keys(Z, R, P)


def test_the_mapping_plays_no_part_but_the_molecules_do():
    rng = np.random.default_rng(0)
    hydrogens = np.flatnonzero(Z == 1)
    other = np.arange(len(Z))
    other[hydrogens] = rng.permutation(hydrogens)
    assert reaction_keys(Z, R, P[other]) == reaction_keys(Z, R, P)
    assert not reaction_keys(Z, R, R) & reaction_keys(Z, R, P)
    assert not reaction_keys(Z, R, P, charge=1) & reaction_keys(Z, R, P)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("C1CC1.C1CC1", "C1CCCCC1"),  # refinement of colours alone cannot tell them apart
        ("CC(C)C", "CCCC"),
        ("C=CO", "CC=O"),
        ("OCC=C", "CC(=O)C"),
    ],
)
def test_different_molecules_have_different_keys(a, b):
    (za, graph_a, _), (zb, graph_b, _) = molecule(a), molecule(b)
    assert molecule_key(za, graph_a) != molecule_key(zb, graph_b)


def test_a_bond_at_the_limit_is_excluded_either_way():
    z = np.array([6, 6])
    near = np.array([[0, 0, 0], [1.85, 0, 0]])  # bonded at a tolerance of 0.4, not at 0.3
    far, bonded = near * 3, near / 1.2
    assert reaction_keys(z, near, far) & reaction_keys(z, bonded, far)


def test_keys_of_mapped_smiles_and_of_geometries_agree():
    graphs = bond_graph(Z, R), bond_graph(Z, P)
    text = reaction_smiles(Z, *graphs)
    assert smiles_key(text) == reaction_key(Z, *graphs)
    forwards, backwards = text.split(">>")
    assert smiles_key(f"{backwards}>>{forwards}") == smiles_key(text)
    assert smiles_key("C>>nonsense") is None and smiles_key("C") is None


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [("[CH3+]", 1), ("C[CH+]C", 1), ("C=C[CH2+]", 1), ("C[C+]=O", 1), ("C[NH3+]", 1), ("CC(=O)[O-]", -1), ("CO", 0),
     ("[NH3+]CC(=O)[O-]", 0)],
)  # fmt: skip
def test_mapped_smiles_have_the_charge_of_the_molecule(smiles, charge):
    side = embed_molecule(smiles, smiles)
    graph = bond_graph(side.numbers, side.conformers[0])
    written = reaction_smiles(side.numbers, graph, graph, charge).split(">>")[0]
    assert Chem.GetFormalCharge(Chem.MolFromSmiles(written, sanitize=False)) == charge == side.charge


def test_sets_are_excluded_by_split_with_their_smiles(tmp_path):
    path = tmp_path / "set.npz"
    graphs = bond_graph(Z, R), bond_graph(Z, P)
    reactions = [as_reaction(Z, R, P), as_reaction(Z, R, R)]
    ethanol = "[C:1]([H:4])([H:5])([H:6])[O:2][H:3]>>[C:1]([H:4])[O:2][H:3].[H:5][H:6]"
    save_npz(path, reactions, ["test", "train"], {"smiles": [ethanol, "unreadable"]})
    keys = excluded_keys([f"{path}:test"])
    assert keys == keys_of(reactions[:1]) | {smiles_key(ethanol)}
    assert reaction_key(Z, *graphs) in keys
    assert excluded_keys([str(path)]) > keys and excluded_keys([]) == frozenset()
    assert split_spec("a/b.npz:test,val") == ("a/b.npz", ["test", "val"]) and split_spec("c:d.npz") == ("c:d.npz", [])
    with pytest.raises(InputError, match="no reaction of split 'tset'"):
        excluded_keys([f"{path}:tset"])
    with pytest.raises(InputError, match="no such file"):
        excluded_keys([str(tmp_path / "none.npz")])


def test_one_saddle_is_known_in_any_order_direction_and_handedness():
    graphs = bond_graph(Z, R), bond_graph(Z, P)
    ts = (R + P) / 2 - (R + P).mean(0) / 2
    order = np.random.default_rng(1).permutation(len(Z))
    known = KnownSaddles()
    assert known.add("k", 0.0, Z, ts, *graphs)
    moved = [g[np.ix_(order, order)] for g in graphs[::-1]]
    assert not known.add("k", 1e-3, Z[order], -ts[order] + 3.0, *moved)
    assert known.add("k", 0.1, Z, ts, *graphs)  # another energy
    assert known.add("k", 0.0, Z, 1.2 * ts, *graphs)  # another geometry
    assert known.add("other", 0.0, Z, ts, *graphs)
    assert len(known) == 4 and known.reactions == 2


@pytest.mark.parametrize(
    ("smiles", "unpaired"),
    [
        ("C", 0), ("C=C", 0), ("C#C", 0), ("c1ccccc1", 0), ("O=C=O", 0), ("[C-]#[O+]", 0), ("C#N", 0),
        ("[C-]#[NH+]", 0), ("[CH2]", 2), ("[NH3+][O-]", 2), ("[CH2]C[CH2]", 2), ("C[NH3+]", 1),
    ],
)  # fmt: skip
def test_valence_left_over(smiles, unpaired):
    from rdkit import Chem

    options = Chem.SmilesParserParams()
    options.removeHs = False
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles, options))
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    assert unpaired_valence(numbers, Chem.GetAdjacencyMatrix(mol) > 0) == unpaired


@pytest.mark.parametrize("smiles", ["C=CCO", "C1CC1C=O", "CC(=O)N", "C=C.C=CC=C", "C[Si](C)(C)Cl"])
def test_proposed_steps_obey_the_rules(smiles):
    z, bonds, x = molecule(smiles)
    seen = set()
    for k in range(40):
        step = propose_step(z, bonds, x, np.random.default_rng(k))
        if step is None:  # a saturated molecule has few
            continue
        assert len(step.broken) <= 2 and len(step.formed) <= 2
        after = applied(bonds, step)
        assert compare_bonds(bonds, after) == step
        assert neighbours_allowed(z, bonds, after) and unpaired_valence(z, after) <= unpaired_valence(z, bonds) + 2
        seen.add(step)
    assert len(seen) > 4
    assert propose_step(z, bonds, x, np.random.default_rng(7)) == propose_step(z, bonds, x, np.random.default_rng(7))


def test_bonds_of_unknown_elements_stay():
    z, bonds, x = molecule("C[Se]CC=O")
    for k in range(40):
        step = propose_step(z, bonds, x, np.random.default_rng(k))
        assert step is None or not any(z[i] == 34 for pair in (*step.broken, *step.formed) for i in pair)


def test_nothing_can_be_proposed_for_a_noble_gas_pair():
    z = np.array([2, 2])
    assert propose_step(z, np.zeros((2, 2), bool), np.array([[0, 0, 0], [3.0, 0, 0]]), np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("smiles", "broken", "formed", "kind", "text"),
    [
        ("C1CC=C1", ((0, 1),), (), "ring opening", "break C0-C1"),
        ("C=CC=C", (), ((0, 3),), "ring closure", "form C0-C3"),
        ("C=C.C=C", (), ((0, 2), (1, 3)), "cycloaddition", "form C0-C2 C1-C3"),
        ("C=CO", ((2, 6),), ((0, 6),), "hydrogen shift", "break O2-H6; form C0-H6"),
        ("CC", ((0, 1),), (), "fragmentation", "break C0-C1"),
    ],
)
def test_kinds_of_steps(smiles, broken, formed, kind, text):
    z, bonds, x = molecule(smiles)
    step = BondChanges(broken, formed)
    assert step_kind(z, bonds, step) == kind and step_text(z, step) == text
    made = bond_graph(z, product_geometry(z, bonds, x, step))
    assert all(made[i, j] for i, j in formed) and not any(made[i, j] for i, j in broken)
