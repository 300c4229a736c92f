"""xyz files as people have them: blank lines between frames, deuterium, a lattice nobody asked for."""

from pathlib import Path

from molgen.structures import Structure, read_side, xyz_frames

H2 = "2\n{}\nH 0 0 0\n{} 0 0 {}\n"


def parsed(folder: Path, text: str) -> Structure:
    path = folder / "a.xyz"
    path.write_text(text)
    return read_side(path, "reactant")


def test_blank_lines_around_frames_are_passed_over(tmp_path: Path) -> None:
    found = parsed(tmp_path, "\n" + H2.format("", "H", 0.74) + "\n \n" + H2.format("", "H", 0.9) + "\n")
    assert found.positions[1, 2] == 0.9
    assert found.notes == (f"{tmp_path / 'a.xyz'}: the last of 2 frames is used",)
    frames = list(xyz_frames(tmp_path / "a.xyz"))
    assert [x[1, 2] for _, x, _ in frames] == [0.74, 0.9]


def test_deuterium_is_hydrogen(tmp_path: Path) -> None:
    assert parsed(tmp_path, H2.format("", "D", 0.74)).numbers.tolist() == [1, 1]


def test_a_lattice_is_said_to_be_ignored(tmp_path: Path) -> None:
    comment = 'Lattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"'
    assert parsed(tmp_path, H2.format(comment, "H", 0.74)).notes == (
        f"{tmp_path / 'a.xyz'}: periodic boundaries are ignored",
    )
    assert parsed(tmp_path, H2.format("", "H", 0.74)).notes == ()
