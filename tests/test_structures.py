"""Files as people have them: blank lines between frames, deuterium, a lattice nobody asked for, drawings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from rdkit import Chem
from rdkit.Chem import AllChem
from rdkit.Geometry import Point3D

from molgen.errors import InputError
from molgen.structures import Structure, read_mdl, read_side, xyz_frames
from molgen.variables import Molecule

H2 = "2\n{}\nH 0 0 0\n{} 0 0 {}\n"


def parsed(folder: Path, text: str) -> Structure:
    path = folder / "a.xyz"
    path.write_text(text)
    return read_side(path, "reactant")


def test_blank_lines_around_frames_are_passed_over(tmp_path: Path) -> None:
    found = parsed(tmp_path, "\n" + H2.format("", "H", 0.74) + "\n \n" + H2.format("", "H", 0.9) + "\n")
    assert found.positions[1, 2] == 0.9
    assert found.notes == (f"{tmp_path / 'a.xyz'}: the last of 2 frames is used",)
    assert [frame.positions[1, 2] for frame in xyz_frames(tmp_path / "a.xyz")] == [0.74, 0.9]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("odd", ["\f", "\x85", "\u2028", "\v"])
def test_odd_characters_in_a_comment_end_no_line(odd: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_bytes((2 * H2.format(f"page 1{odd}page 2", "H", 0.74)).replace("\n", end).encode())
    assert [len(frame.numbers) for frame in xyz_frames(path)] == [2, 2]
    path.write_bytes(f"2{end}{odd}{end}H 0 0 0{end}".encode())
    with pytest.raises(InputError, match=r"2 atoms announced, 1 found"):
        read_side(path, "reactant")


@pytest.mark.parametrize("line", ["H 0.5", "H 0.5 0.1", "H", "H a b c"])
def test_lines_that_are_no_atoms(line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"'{line}' is not an atom") as error:
        parsed(tmp_path, f"2\n\n{line}\nH 0 0 0\n")
    assert error.value.where.endswith("a.xyz, line 3")


def test_deuterium_is_hydrogen(tmp_path: Path) -> None:
    assert parsed(tmp_path, H2.format("", "D", 0.74)).numbers.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (H2.format("", "D", 0.74), True),
        (H2.format("", "t", 0.74), True),
        ("2\nProperties=pos:R:3:species:S:1\n0 0 0 H\n0 0 0.74 D\n", True),
        (H2.format("D conformer", "H", 0.74), False),
        (H2.format("", "D", 0.74) + H2.format("", "H", 0.74), False),
    ],
)
def test_isotopes_are_told_where_atoms_are_some(text: str, warned: bool, tmp_path: Path) -> None:
    assert any("isotopes weigh as much" in note for note in parsed(tmp_path, text).notes) == warned


@pytest.mark.parametrize(("charge", "found"), [(-1, -1), (1.0, 1), (np.int64(2), 2), (0.5, None), (None, None)])
def test_the_charge_of_a_file_of_ase_counts(charge: float | None, found: int | None, tmp_path: Path) -> None:
    path = tmp_path / "a.traj"
    infos: list[dict[str, Any]] = [{"charge": 5}, {} if charge is None else {"charge": charge}]
    frames = [Atoms("OH", [[0, 0, 0], [0, 0, 0.96]], info=info) for info in infos]
    write(path, frames)
    assert read_side(path, "reactant").charge == read_side(frames[-1], "reactant").charge == found


def test_a_lattice_is_said_to_be_ignored(tmp_path: Path) -> None:
    comment = 'Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"'
    assert parsed(tmp_path, H2.format(comment, "H", 0.74)).notes == (
        f"{tmp_path / 'a.xyz'}: periodic boundaries are ignored",
    )
    for told in ("", comment.replace("T T T", "F F F"), comment.replace('"T T T"', "[False, False, False]")):
        assert parsed(tmp_path, H2.format(told, "H", 0.74)).notes == ()
    for told in (comment.replace("T T T", "F F T"), comment.partition(" pbc")[0]):
        assert len(parsed(tmp_path, H2.format(told, "H", 0.74)).notes) == 1


def molecule(smiles: str, flat: bool = False) -> Chem.Mol:
    made = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if flat:
        AllChem.Compute2DCoords(made)
    else:
        AllChem.EmbedMolecule(made, randomSeed=1)
    return made


def test_molfiles_without_hydrogens_or_depth_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mol"
    path.write_text(Chem.MolToMolBlock(Chem.RemoveHs(molecule("C=CCO"))))
    with pytest.raises(InputError, match="a.mol: its bonds imply 6 hydrogens that are not there"):
        read_mdl(path)
    path.write_text(Chem.MolToMolBlock(molecule("C=CCO", flat=True)))
    with pytest.raises(InputError, match="a.mol: is a drawing in two dimensions"):
        read_mdl(path)


@pytest.mark.parametrize("smiles", ["C=CCO", "[CH3]", "[OH-]", "C[N+](=O)[O-]", "[C-]#N", "CS(=O)(=O)C", "[Cl-]"])
def test_molfiles_that_are_whole_are_read(tmp_path: Path, smiles: str) -> None:
    path, made = tmp_path / "a.mol", molecule(smiles)
    path.write_text(Chem.MolToMolBlock(made))
    (found,) = read_mdl(path)
    assert len(found.numbers) == made.GetNumAtoms() and found.notes == ()
    made.GetConformer().SetAtomPosition(0, made.GetConformer().GetAtomPosition(0) + Point3D(0.9, 0.0, 0.0))
    path.write_text(Chem.MolToMolBlock(made))
    (found,) = read_mdl(path)
    assert bool(found.notes) == (made.GetNumAtoms() > 1), "stretched bonds are told"


def test_a_file_of_a_variable_is_read_as_any_structure_is(tmp_path: Path) -> None:
    """Atomic numbers and deuterium, which ASE's reader of xyz does not take."""
    path = tmp_path / "reference.xyz"
    path.write_text("3\n\n8 0 0 0\nD 0 0 0.96\n1 0.93 0 -0.24\n")
    water = Molecule(np.array([8, 1, 1]))
    assert np.array_equal(water.frames(str(path))[0][1], [0, 0, 0.96])
    path.write_text("3\n\n8 0 0 0\nD 0 0\n1 0.93 0 -0.24\n")
    with pytest.raises(InputError, match=r"reference.xyz cannot be read \(line 4: 'D 0 0' is not an atom\)"):
        water.frames(str(path))
