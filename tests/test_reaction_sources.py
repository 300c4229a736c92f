"""Sources of `molgen data reactions`: every molecule of a file, charges and spins where files tell them."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write
from ts_cases import molfile

from molgen.data.reactions import Reaction, save_npz
from molgen.data.sources import all_molecules, read_molecules
from molgen.errors import InputError
from molgen.workflows.reaction_attempt import Attempts, Plan
from molgen.workflows.reactions import plan_of

NAMES = ("CH3CH2OH", "C2H4", "CH3CHO")


def test_all_molecules_of_an_xyz_file(tmp_path):
    path = tmp_path / "three.xyz"
    write(path, [molecule(name) for name in NAMES], format="extxyz")
    found = all_molecules([path])
    assert [m.name for m in found] == [f"three.xyz:{k}" for k in (1, 2, 3)]
    for have, name in zip(found, NAMES, strict=True):
        assert have.numbers.tolist() == molecule(name).numbers.tolist()
        np.testing.assert_allclose(have.positions, molecule(name).positions, atol=1e-6)
    assert {m.charge for m in read_molecules(path, charge=-2)} == {-2}


def test_of_a_trajectory_the_last_frame_counts(tmp_path):
    """One molecule, as the file always gave."""
    before, after = molecule("CH3CHO"), molecule("CH3CHO")
    before.rattle(0.02, seed=1)
    for name in ("path.xyz", "path.traj"):
        write(tmp_path / name, [before, after])
        (found,) = read_molecules(tmp_path / name)
        np.testing.assert_allclose(found.positions, after.positions, atol=1e-6)


def test_all_molecules_of_an_sdf_file_with_their_charges(tmp_path):
    found = all_molecules([molfile(tmp_path / "three.sdf", "CC[O-]", "C=C", "C[NH3+]")])
    assert [(m.name, len(m.numbers), m.charge) for m in found] == [
        ("three.sdf:1", 8, -1), ("three.sdf:2", 6, 0), ("three.sdf:3", 8, 1),
    ]  # fmt: skip
    assert [m.name for m in read_molecules(molfile(tmp_path / "one.sdf", "CC=O"))] == ["one"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{first}nonsense\n\n\nnor this\n$$$$\n", "bad.sdf, molecule 2: cannot be read"),
        ("", "bad.sdf: is empty or cannot be read"),
        ("hello\n", "bad.sdf, molecule 1: cannot be read"),
    ],
)
def test_a_damaged_sdf_file_names_the_molecule(tmp_path, content, text):
    first = molfile(tmp_path / "good.sdf", "CC=O").read_text()
    (tmp_path / "bad.sdf").write_text(content.format(first=first))
    with pytest.raises(InputError, match=text):
        read_molecules(tmp_path / "bad.sdf")


def test_a_clash_names_the_molecule(tmp_path):
    write(tmp_path / "two.xyz", [molecule("C2H4"), Atoms("HH", [[0, 0, 0], [0, 0, 0.1]]), molecule("C2H6")])
    with pytest.raises(InputError, match="two.xyz, molecule 2.*coincide"):
        read_molecules(tmp_path / "two.xyz")


def test_options_that_would_do_nothing_are_refused(tmp_path):
    smiles, structure, known = tmp_path / "ion.smi", tmp_path / "one.xyz", tmp_path / "set.npz"
    smiles.write_text("CC[O-] eth\n")
    write(structure, molecule("CH3CHO"))
    z, x, part = molecule("CH3CHO").numbers, molecule("CH3CHO").positions, np.zeros(7, int)
    save_npz(known, [Reaction(z, x, x, part, part, ts=x)], "train")
    for paths, options, text in (
        ([smiles], {"charge": 1}, "--charge: 1 has no effect: .smi files tell it themselves"),
        ([smiles, known], {"charge": 0}, "--charge: 0 has no effect: .npz, .smi"),
        ([molfile(tmp_path / "one.sdf", "CC=O")], {"charge": 1}, "--charge"),
        ([known], {"spin": 2}, "--spin: 2 has no effect: .npz"),
    ):
        with pytest.raises(InputError, match=text):
            all_molecules(paths, **options)
    assert [m.charge for m in all_molecules([structure, smiles], charge=-2)] == [-2, -1]
    assert [m.spin for m in all_molecules([structure, known, smiles], spin=2)] == [2, 2]


@pytest.mark.parametrize("header", ["SMILES", "smiles Name", "Canonical_SMILES\tID"])
def test_a_header_of_a_list_is_passed_over(tmp_path, header):
    path, said = tmp_path / "list.smi", []
    path.write_text(f"# written by a tool\n{header}\nCCO ethanol\nC=C\n")
    assert [m.name for m in read_molecules(path, log=said.append)] == ["list.smi:3:ethanol", "list.smi:4:C=C"]
    assert said == [f"{path}, line 2: {header!r} is taken for a header"]
    path.write_text(f"{header}\nCCO ethanol\nSMILES\n")
    with pytest.raises(InputError, match=r"list\.smi, line 3: SMILES"):
        read_molecules(path)


def test_a_molecule_the_calculator_cannot_describe(tmp_path):
    """Named before the run begins; an attempt that meets one ends with an outcome, and its worker lives."""
    path = tmp_path / "fr.smi"
    path.write_text("CC=C\nCC=C[Fr] francium\n")
    with pytest.raises(InputError, match="fr.smi:2:francium: atom 3 has atomic number 87, which GFN2-xTB has no"):
        plan_of([path], [], guess="sqrt")
    attempt = Attempts(Plan(read_molecules(path)[1:], frozenset(), guesses=("sqrt",)))
    assert {attempt(k)["outcome"] for k in range(4)} >= {"calculator failed"}
