"""The input layer: what users have becomes one reaction; each fault is a clear error."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from scipy.spatial.transform import Rotation
from ts_cases import molfile

from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, compare_bonds
from molgen.io import load_reaction, write_extxyz
from molgen.structures import formula, read_side

_WATER = "3\nwater\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"


_METHOXY = [[0, 0, 0], [1.37, 0, 0], [1.75, 1.02, 0], [1.75, -0.51, 0.88], [1.75, -0.51, -0.88]]
_HYDROXYMETHYL = [[0, 0, 0], [1.37, 0, 0], [-0.35, 0.9, 0], [1.95, -0.4, 0.85], [1.95, -0.4, -0.85]]


def _vinyl_alcohol():
    """Vinyl alcohol from acetaldehyde's isomer SMILES, by RDKit; numbers in RDKit's order C C O H H H H."""
    return _embedded("C=CO"), _embedded("CC=O")


def _embedded(smiles):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=3) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    return Atoms([a.GetSymbol() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())


def _changes(reaction):
    return compare_bonds(
        bond_graph(reaction.numbers, reaction.reactant), bond_graph(reaction.numbers, reaction.product)
    )


def _file(folder, text, name="r.xyz"):
    (folder / name).write_text(text)
    return folder / name


def test_files_in_another_order_and_frame(tmp_path):
    reactant, product = _vinyl_alcohol()
    order = np.random.default_rng(0).permutation(7)
    turned = product[order]
    turned.positions = turned.positions @ Rotation.from_euler("xyz", [0.4, 1.9, -2.2]).as_matrix().T + 7.0
    write(tmp_path / "enol.xyz", reactant)
    write(tmp_path / "keto.xyz", turned, format="xyz")
    reaction, notes = load_reaction(tmp_path / "enol.xyz", str(tmp_path / "keto.xyz"))
    changes = _changes(reaction)
    assert (len(changes.broken), len(changes.formed)) == (1, 1)
    assert reaction.name == "enol -> keto"
    assert (reaction.charge, reaction.spin) == (0, 0)
    np.testing.assert_allclose(reaction.reactant, reactant.positions, atol=1e-6)  # never moved
    assert any("re-ordered" in n and "elements are in another order" in n for n in notes)
    assert any(n.startswith("bonds broken: O2-H") for n in notes)


def test_a_radical_nobody_asked_for_is_pointed_out():
    reactant, product = Atoms("OCH3", _METHOXY), Atoms("OCH3", _HYDROXYMETHYL)
    warnings = [note for note in load_reaction(reactant, product)[1] if "odd number of electrons" in note]
    assert warnings == ["warning: an odd number of electrons at charge 0: a radical, unless --charge is another"]
    for options in ({"spin": 1}, {"charge": -1}):
        assert not any("odd number" in note for note in load_reaction(reactant, product, **options)[1])


def test_consistent_order_is_kept_to_the_letter():
    reactant, product = _vinyl_alcohol()
    first, _ = load_reaction(reactant, product)
    again, notes = load_reaction(reactant, Atoms(first.numbers, first.product))
    assert np.array_equal(again.product, first.product)
    assert "the given atom order is kept" in notes


def test_a_given_order_that_breaks_more_bonds_is_replaced_and_said_so():
    reactant, product = _vinyl_alcohol()
    good, _ = load_reaction(reactant, product)
    swapped = good.product.copy()
    on_oxygen = next(h for h in range(7) if reactant.numbers[h] == 1 and reactant.get_distance(2, h) < 1.2)
    other = next(h for h in range(7) if reactant.numbers[h] == 1 and reactant.get_distance(1, h) < 1.2)
    swapped[[on_oxygen, other]] = swapped[[other, on_oxygen]]
    mixed = Atoms(good.numbers, swapped)
    reaction, notes = load_reaction(reactant, mixed)
    assert _changes(reaction).count == 2
    assert any("the given order changes 4 bonds, this mapping 2" in n for n in notes)
    blind, _ = load_reaction(reactant, mixed, map_atoms=False)
    assert np.array_equal(blind.product, swapped)


def test_product_in_several_files(tmp_path):
    write(tmp_path / "a.xyz", molecule("C2H4"))
    write(tmp_path / "b.xyz", molecule("H2"))  # on top of ethene: their placement means nothing
    for product in ([tmp_path / "a.xyz", tmp_path / "b.xyz"], [molecule("H2"), molecule("C2H4")]):
        reaction, _ = load_reaction(molecule("C2H6"), product)
        changes = _changes(reaction)
        assert (len(changes.broken), len(changes.formed)) == (2, 1)
        assert sorted(np.bincount(reaction.product_fragments)) == [2, 6]
        assert reaction.reactant_fragments.max() == 0


def test_extxyz_columns_last_frame_and_other_formats(tmp_path):
    reactant, product = _vinyl_alcohol()
    far = product.copy()
    far.positions *= 1.05
    far.set_array("spin_density", np.arange(7.0))
    write(tmp_path / "p.extxyz", [far, product])
    lines = (tmp_path / "p.extxyz").read_text().splitlines()
    # columns in another order, as other programs write them
    body = [" ".join([*row.split()[1:4], row.split()[0]]) for row in lines[2:9]]
    _file(tmp_path, "\n".join(["7", "Properties=pos:R:3:species:S:1", *body]) + "\n", "columns.xyz")
    write(tmp_path / "p.pdb", product)
    _, notes = load_reaction(reactant, tmp_path / "p.extxyz")
    assert any("the last of 2 frames is used" in n for n in notes)
    numbers, _ = load_reaction(reactant, tmp_path / "columns.xyz")
    assert sorted(numbers.numbers) == sorted(product.numbers)
    from_pdb, _ = load_reaction(reactant, tmp_path / "p.pdb")
    assert _changes(from_pdb).count == 2


def test_atomic_numbers_lower_case_and_blank_lines_are_read(tmp_path):
    text = "3\n\n8 0 0 0.12\nh 0 0.76 -0.48\nH 0 -0.76 -0.48 0.1 extra\n\n\n"
    dissociated = Atoms("OHH", [[0, 0, 0], [0, 0, 0.97], [0, 5, 0]])
    reaction, _ = load_reaction(_file(tmp_path, text), dissociated, charge=0)
    assert reaction.numbers.tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    ("smiles", "broken", "formed", "fragments"),
    [
        ("C=CO>>CC=O", 1, 1, (1, 1)),
        ("C=CC=C.C=C>>C1CCC=CC1", 0, 2, (2, 1)),
        ("[CH2:1]=[CH:2][OH:3]>>[CH3:1][CH:2]=[O:3]", 1, 1, (1, 1)),
        ("C1=CCC1>>C=CC=C", 1, 0, (1, 1)),
    ],
)
def test_reaction_smiles(smiles, broken, formed, fragments):
    reaction, _ = load_reaction(smiles=smiles)
    changes = _changes(reaction)
    assert (len(changes.broken), len(changes.formed)) == (broken, formed)
    assert (reaction.reactant_fragments.max() + 1, reaction.product_fragments.max() + 1) == fragments


def test_mapped_smiles_keep_their_map_and_their_charge():
    # by the map a [1,3] shift: carbon 3 binds 6, where the search would prefer the [3,3] shift
    claisen = "[CH2:1]=[CH:2][CH2:3][O:4][CH:5]=[CH2:6]>>[CH2:1]=[CH:2][CH2:3][CH2:6][CH:5]=[O:4]"
    changes = _changes(load_reaction(smiles=claisen)[0])
    assert (changes.broken, changes.formed) == (((2, 3),), ((2, 5),))
    substitution, _ = load_reaction(smiles="[Cl-:1].[CH3:2][Br:3]>>[Br-:3].[CH3:2][Cl:1]")
    assert substitution.charge == -1
    full = "[C:1]([O:2][H:6])([H:3])([H:4])[H:5]>>[C:1](=[O:2])([H:3])[H:4].[H:5][H:6]"
    changes = _changes(load_reaction(smiles=full)[0])
    reaction = load_reaction(smiles=full)[0]
    assert reaction.numbers.tolist() == [6, 8, 1, 1, 1, 1]  # the order of the reactant SMILES
    assert changes.formed == ((2, 5),)


def test_claisen_without_a_map_is_the_sigmatropic_3_3_shift():
    """The [1,3] shift changes as few bonds; its ring of four is the less likely transition state."""
    changes = _changes(load_reaction(smiles="C=CCOC=C>>C=CCCC=O")[0])
    assert (changes.broken, changes.formed) == (((2, 3),), ((0, 5),))


@pytest.mark.parametrize(
    "smiles",
    [
        "C=CC.C=C>>C=CCCC",  # ene, not an insertion into a C-H bond
        "CC(=O)OCC>>CC(=O)O.C=C",  # pyrolysis of an ester by its carbonyl oxygen
        "CC=O.C=CO>>CC(O)CC=O",  # aldol: the enol's own hydrogen moves
    ],
)
def test_hydrogen_goes_by_a_ring_of_six_rather_than_of_four(smiles):
    reaction, _ = load_reaction(smiles=smiles)
    before, after = (bond_graph(reaction.numbers, x) for x in (reaction.reactant, reaction.product))
    either = before | after
    for i, j in compare_bonds(before, after).formed:
        alone = either.copy()
        alone[i, j] = alone[j, i] = False
        within = np.linalg.matrix_power(np.eye(len(alone)) + alone, 4)[i, j]  # walks of up to four bonds
        assert not within, f"atoms {i} and {j} are bonded across a ring of five or less"


@pytest.mark.parametrize("alcohol", ["C", "c1ccccc1", "C=C"])
def test_an_ester_is_hydrolysed_at_its_acyl_carbon(alcohol):
    """By a ring of four, where the alkyl carbon would offer one of six, but by its front; nor at an aryl or a vinyl."""
    changes = _changes(load_reaction(smiles=f"CC(=O)O{alcohol}.O>>CC(=O)O.O{alcohol}")[0])
    assert changes.broken[0] == (1, 3) and len(changes.broken) == len(changes.formed) == 2


def test_stereo_of_smiles_survives():
    from molgen.geometry.chirality import signed_volumes

    volumes = []
    for mark in ("@", "@@"):
        text = f"[F:1][C{mark}:2]([Cl:3])([Br:4])[O:5][H:6]>>[F:1][C:2]([Cl:3])=[O:5].[Br:4][H:6]"
        reaction, _ = load_reaction(smiles=text)
        volumes.append(signed_volumes(reaction.reactant, [[0, 2, 3, 4]]).item())
    assert volumes[0] * volumes[1] < 0


def test_spin_and_charge():
    methyl, oh = molecule("CH3"), molecule("OH")
    separate = molecule("CH3OH")
    assert load_reaction([methyl, oh], separate)[0].spin == 0  # 18 electrons
    assert load_reaction([methyl, oh], separate, spin=2)[0].spin == 2
    assert load_reaction([methyl, oh], separate, charge=1)[0].spin == 1


def test_conformational_change_is_allowed_and_noted():
    ethanol = molecule("CH3CH2OH")
    turned = ethanol.copy()
    h = next(k for k in range(9) if ethanol.numbers[k] == 1 and ethanol.get_distance(2, k) < 1.1)
    c = next(k for k in range(9) if ethanol.numbers[k] == 6 and ethanol.get_distance(2, k) < 1.6)
    far = next(k for k in range(9) if ethanol.numbers[k] == 6 and k != c)
    turned.set_dihedral(far, c, 2, h, ethanol.get_dihedral(far, c, 2, h) + 100, indices=[h])
    _, notes = load_reaction(ethanol, turned)
    assert "no bond changes: a conformational change" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.xyz: the file is empty"),
        ("\n \n", "r.xyz: the file is empty"),
        ("hello\n", "r.xyz, line 1: 'hello' is not a number of atoms"),
        ("4\n" + _WATER[2:], "r.xyz, line 1: 4 atoms announced, 3 found"),
        (_WATER.replace("O 0", "Xq 0"), "r.xyz, line 3: unknown element 'Xq'"),
        (_WATER.replace("O 0 0 0.12", "O 0 0"), "r.xyz, line 3: 'O 0 0' is not an atom"),
        (_WATER.replace("0.12", "nan"), "r.xyz, atom 0: a coordinate is nan"),
        (_WATER.replace("0.12", "-inf"), "r.xyz, atom 0: a coordinate is -inf"),
        (_WATER.replace("-0.76", "0.70"), r"atoms 1 and 2 coincide \(0.06 Angstrom apart\)"),
        ("1\n\nHe 0 0 0\n", "one atom cannot react"),
    ],
)
def test_faulty_files(tmp_path, text, message):
    product = Atoms("He") if "He" in text else molecule("H2O")
    with pytest.raises(InputError, match=message) as caught:
        load_reaction(_file(tmp_path, text), product)
    assert caught.value.where is not None
    assert caught.value.expected is not None
    assert caught.value.exit_code == 2


def _grid(count):
    return Atoms("He" * count, [[2.5 * (k % 10), 2.5 * (k // 10 % 10), 2.5 * (k // 100)] for k in range(count)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reactant": "nowhere.xyz", "product": molecule("H2O")}, "nowhere.xyz: no such file"),
        ({"reactant": ".", "product": molecule("H2O")}, ".: is a folder"),
        ({"reactant": molecule("H2O")}, "product: nothing given"),
        ({"reactant": [], "product": molecule("H2O")}, "reactant: nothing given"),
        ({"reactant": 3, "product": molecule("H2O")}, "reactant: cannot read a int"),
        ({"reactant": molecule("C2H6"), "product": molecule("C2H4")}, "reactant is C2H6, product is C2H4"),
        ({"reactant": _grid(500), "product": _grid(500)}, "500 atoms\n.*at most 150 atoms"),
        ({"reactant": [_grid(100), _grid(100)], "product": _grid(100)}, "200 atoms\n.*at most 150 atoms"),
        ({"reactant": Atoms("XH2", molecule("H2O").positions), "product": molecule("H2O")}, "unknown element '0'"),
        ({"reactant": molecule("C2H6"), "product": molecule("C2H6")[::-1]}, "are the same structure"),
        ({"reactant": molecule("C2H6"), "product": molecule("C2H6")[::-1], "map_atoms": False}, "in another order"),
        (
            {"reactant": molecule("C2H6"), "product": molecule("C2H6"), "spin": 1},
            r"18 electrons \(C2H6, charge 0\)",
        ),
        ({"reactant": Atoms(), "product": molecule("H2O")}, "holds no atoms"),
        ({"smiles": "CCO>>CC=O"}, "reactant is C2H6O, product is C2H4O"),
        ({"smiles": "CCO"}, "not a reaction SMILES"),
        ({"smiles": "C1CC>>CCC"}, "reactant C1CC: not a valid SMILES"),
        ({"smiles": "CCO>[Pd]>CC=O"}, r"agents \(\[Pd\]\) are not supported"),
        ({"smiles": "C*>>*C"}, "dummy atom"),
        ({"smiles": "[CH3:1][OH:1]>>C=O.[H][H]"}, "used twice"),
        ({"smiles": "[CH3:1][NH2:2]>>[CH3:2][NH2:1]"}, "changes its element"),
        ({"smiles": "C=CO>>CC=O", "charge": 1}, "the formal charges are 0"),
        ({"smiles": "C=CO>>CC=O", "reactant": "r.xyz"}, "both files and SMILES"),
        ({"reactant": molecule("H2O"), "product": molecule("H2O"), "charge": 10}, "charge 10 leaves 0 electrons"),
    ],
)
def test_faulty_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        load_reaction(**arguments)
    assert caught.value.where is not None
    assert caught.value.expected is not None


def test_what_a_source_says_besides_atoms(tmp_path):
    """Charge, isotopes, constraints; a comment in another encoding."""
    ammonium = molecule("NH3")
    ammonium.append("H")
    ammonium.positions[-1] = [0, 0, 1.1]
    lines = [f"{s} {x:.5f} {y:.5f} {z:.5f}" for s, (x, y, z) in zip(ammonium.symbols, ammonium.positions, strict=True)]
    path = tmp_path / "r.xyz"
    path.write_bytes("\n".join(["5", "\xe9nergie en \xc5, charge=+1", *lines]).replace("H", "D", 1).encode("latin-1"))
    side = read_side(path, "reactant")
    assert side.charge == 1 and any("isotopes weigh as much" in note for note in side.notes)
    assert list(side.numbers) == [7, 1, 1, 1, 1]
    path.write_text("\n".join(["5", "charge=-0.83", *lines]))
    assert read_side(path, "reactant").charge is None, "a partial charge"
    ammonium.info["charge"] = 1
    assert not read_side(ammonium, "reactant").notes and read_side(ammonium, "reactant").charge == 1
    for told, charge in ((np.float64(-2.0), -2), (0.5, None), (np.nan, None), ("1", None)):
        ammonium.info["charge"] = told
        assert read_side(ammonium, "reactant").charge == charge
    ammonium.set_constraint(FixAtoms([0]))
    assert read_side(ammonium, "reactant").notes == ("warning: reactant: its constraints are ignored, all atoms move",)


def test_unreadable_formats(tmp_path):
    _file(tmp_path, "nonsense", "r.pdb")
    (tmp_path / "r.xyz").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="r.pdb: (cannot be read|holds no atoms)"):
        load_reaction(tmp_path / "r.pdb", molecule("H2O"))
    with pytest.raises(InputError, match="r.xyz: is not text"):
        load_reaction(tmp_path / "r.xyz", molecule("H2O"))


def test_written_frames_read_back_and_faults_leave_nothing(tmp_path):
    frames = [molecule("H2O"), molecule("H2O")]
    frames[0].info |= {"verdict": "intended", "barrier_kcal": 12.5, "confidence": float("nan")}
    path = write_extxyz(tmp_path / "out" / "ts.xyz", frames)
    back = read(path, ":", format="extxyz")
    assert len(back) == 2
    np.testing.assert_allclose(back[0].positions, frames[0].positions, atol=1e-7)
    assert back[0].info["verdict"] == "intended"
    assert back[0].info["barrier_kcal"] == 12.5
    assert "confidence" not in back[0].info
    assert "confidence" in frames[0].info  # the caller's Atoms are not touched
    frames[1].positions[0, 0] = np.inf
    with pytest.raises(InputError, match="ts.xyz, frame 1: a coordinate is not finite"):
        write_extxyz(tmp_path / "bad" / "ts.xyz", frames)
    assert not (tmp_path / "bad").exists()


def test_formula_is_hill():
    assert formula([8, 1, 6, 1, 6, 1, 17]) == "C2H3ClO"


def test_mdl_files_have_the_charge(tmp_path):
    sides = molfile(tmp_path / "r.sdf", "[NH3+]CCC[NH3+]"), molfile(tmp_path / "p.mol", "CC([NH3+])C[NH3+]")
    reaction, notes = load_reaction(*sides)
    assert reaction.charge == 2 and any("charge +2, as" in note for note in notes)
    other, notes = load_reaction(*sides, charge=0)
    assert other.charge == 0 and any("charge +0 as asked, though" in note for note in notes)
    parts = [[molfile(tmp_path / f"{text}.sdf", text) for text in side] for side in (("[OH-]", "CF"), ("CO", "[F-]"))]
    assert load_reaction(*parts)[0].charge == -1
    neutral = molfile(tmp_path / "n.sdf", "CCC[NH2]"), molfile(tmp_path / "m.sdf", "CC(N)C")
    assert load_reaction(*neutral)[0].charge == 0
    with pytest.raises(InputError, match=r"--charge: formal charges differ: \+0 in .*n.sdf, \+1 in"):
        load_reaction(neutral[0], molfile(tmp_path / "x.sdf", "CCC[NH2+]"))


def test_an_mdl_file_of_several_molecules_is_no_side(tmp_path):
    with pytest.raises(InputError, match=r"two.sdf: holds 2 molecules(?s:.*)a.sdf,b.sdf"):
        load_reaction(molfile(tmp_path / "two.sdf", "C=CC=C", "C=C"), molfile(tmp_path / "p.sdf", "C1CCC=CC1"))
