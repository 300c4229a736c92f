"""Collective variables and walls: gradients against finite differences, symmetry, what people write, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from scipy.spatial.transform import Rotation

from molgen.cvdiffusion.walls import Wall, check_walls, parse_wall, wall_energy
from molgen.errors import InputError
from molgen.geometry.chirality import signed_volumes
from molgen.variables import (
    Molecule,
    angle,
    check_start,
    coordination,
    custom,
    distance,
    linear,
    parse_cv,
    path_s,
    path_z,
    rmsd,
    torsion,
    values,
    values_and_gradients,
    volume,
)
from molgen.variables.parse import KINDS as WRITTEN

N = 7
HYDROGENS = np.ones(N, dtype=int)
BARE, PAIR = Molecule(HYDROGENS), Molecule(HYDROGENS[:2])
RESIDUES = {"phi", "psi", "rg", "end-to-end", "helicity"}  # tests/test_variables_of_residues.py
RNG = np.random.default_rng(5)
GRID = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)], dtype=float)[:N] * 1.6
SAMPLES = GRID + 0.25 * RNG.standard_normal((6, N, 3))
PATH = GRID + np.linspace(0, 1, 11)[:, None, None] * RNG.standard_normal((N, 3))

KINDS = {
    "distance": distance(0, 4),
    "angle": angle(0, 1, 2),
    "torsion": torsion(0, 1, 3, 6),
    "volume": volume(0, 1, 3, 6),
    "coordination": coordination([0, 1], [2, 3, 5], 1.8),
    "coordination 3 7": coordination([0, 1], [2, 3, 5], 1.8, 3, 7),
    "linear": linear([distance(0, 4), distance(1, 5), angle(0, 1, 2)], [0.5, -1, 2]),
    "rmsd": rmsd(GRID),
    "rmsd of some": rmsd(GRID, [0, 2, 5, 6]),
    "path-s": path_s(PATH),
    "path-s of some": path_s(PATH, [1, 2, 4, 5, 6], rate=0.7),
    "path-z": path_z(PATH),
    "custom": custom("cos", lambda x: torsion(0, 1, 3, 6).function(x).cos()),
}


def numerical(energy, positions: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences (B, N, 3) of energy (B, N, 3) -> (B,)."""
    found = np.empty_like(positions)
    for index in np.ndindex(*positions.shape[1:]):
        shift = np.zeros(positions.shape[1:])
        shift[index] = step
        found[(slice(None), *index)] = (energy(positions + shift) - energy(positions - shift)) / (2 * step)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    found, gradients = values_and_gradients([KINDS[kind]], SAMPLES)
    expected = numerical(lambda x: values(KINDS[kind], x), SAMPLES)
    assert found.shape == (6, 1) and gradients.shape == (6, 1, N, 3)
    assert found.dtype == gradients.dtype == np.float64
    assert np.abs(gradients[:, 0] - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_rigid_motion_changes_nothing_and_turns_the_gradient(kind):
    turn = Rotation.from_rotvec([0.7, -1.9, 0.4]).as_matrix()
    found, gradients = values_and_gradients([KINDS[kind]], SAMPLES)
    moved, turned = values_and_gradients([KINDS[kind]], SAMPLES @ turn.T + [3.0, -20.0, 7.0])
    assert moved == pytest.approx(found, abs=1e-10)
    assert turned == pytest.approx(gradients @ turn.T, abs=1e-8)
    assert gradients.sum(2) == pytest.approx(0, abs=1e-10)


def test_values_of_simple_shapes():
    corner = np.array([[[1.0, 0, 0], [0, 0, 0], [0, 2.0, 0], [0, 2.0, -1.5]]])
    assert values(distance(0, 2), corner) == pytest.approx(math.sqrt(5))
    assert values(angle(0, 1, 2), corner) == pytest.approx(math.pi / 2)
    assert values(coordination([0], [1, 2], 1.0), corner) == pytest.approx(0.5 + 1 / (1 + 5**3))


def test_volume_is_that_of_stereocentres_and_knows_the_hand():
    x = RNG.standard_normal((5, N, 3))
    exact = signed_volumes(x, np.array([[0, 1, 3, 6]]))[:, 0]
    assert values(volume(0, 1, 3, 6), x) == pytest.approx(exact)
    assert values(volume(0, 1, 3, 6), x * [1, 1, -1]) == pytest.approx(-exact)


def test_torsion_turns_its_sign_in_the_mirror_and_is_never_minus_pi():
    x = np.random.default_rng(1).standard_normal((200, 4, 3))
    assert values(torsion(0, 1, 2, 3), x * [1, 1, -1]) == pytest.approx(-values(torsion(0, 1, 2, 3), x))
    trans = np.array([[[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [-1, 1, 0]]])
    both = values(torsion(0, 1, 2, 3), np.concatenate([trans, trans * [1, 1, -1], trans[:, ::-1]]))
    assert both.tolist() == [math.pi] * 3  # never -pi


@pytest.mark.parametrize(("n", "m"), [(6, 12), (6, 10), (3, 7), (8, 12)])
def test_coordination_is_smooth_at_its_radius(n, m):
    r = np.array([0.5, 1.3, 1.8, 1.8 * (1 + 1e-9), 2.5, 300.0])
    x = np.zeros((len(r), 2, 3))
    x[:, 1, 0] = r
    found, gradients = values_and_gradients([coordination([0], [1], 1.8, n, m)], x)
    apart = [0, 1, 4, 5]
    u = r[apart] / 1.8
    assert found[apart, 0] == pytest.approx((1 - u**n) / (1 - u**m), rel=1e-12)
    assert found[2:4, 0] == pytest.approx(n / m)
    assert gradients[2:4, 0, 1, 0] == pytest.approx(n * (n - m) / (2 * m) / 1.8)


def test_path_runs_from_nought_to_one():
    fine = GRID + np.linspace(0, 1, 51)[:, None, None] * (PATH[-1] - PATH[0])
    s, z = values_and_gradients([path_s(PATH), path_z(PATH)], fine)[0].T
    assert s[0] == pytest.approx(0, abs=0.02) and s[-1] == pytest.approx(1, abs=0.02)
    assert (np.diff(s) > 0).all() and s[25] == pytest.approx(0.5, abs=0.02)
    aside = PATH[5] + 0.3 * RNG.standard_normal((N, 3))
    assert np.ptp(z) < values(path_z(PATH), aside[None])[0] - z.max()


def test_rmsd_is_zero_with_a_finite_gradient_at_the_reference_and_not_for_the_mirror_image():
    moved = GRID @ Rotation.from_rotvec([2.1, 0.3, -0.8]).as_matrix().T + 4
    found, gradients = values_and_gradients(
        [rmsd(GRID)], np.stack([GRID, moved, GRID * [1, 1, -1] + 1e-3 * SAMPLES[0]])
    )
    assert found[:2] == pytest.approx(0, abs=1e-12) and found[2] > 0.1
    assert np.isfinite(gradients).all()
    check_start([rmsd(GRID)], moved)


def test_a_sample_without_gradient_is_nan_and_leaves_the_others_alone():
    x = SAMPLES.copy()
    x[1, :4] = [[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]]  # a line
    x[2, 4] = x[2, 0]
    x[3, 6, 1] = np.inf
    x[4, :3] = np.outer([0.1, 1.3, 2.1], [0.3, 0.7, 0.1])  # a line up to rounding
    variables = [torsion(0, 1, 2, 3), angle(0, 1, 2), distance(0, 4), rmsd(GRID)]
    found, gradients = values_and_gradients(variables, x)
    nan = np.isnan(found)
    assert nan[:, 0].tolist() == [False, True, False, True, True, False]
    assert nan[[1, 3], 1].all() and not nan[[0, 2, 5], 1].any()
    assert nan[:, 2].tolist() == [False, False, True, True, False, False]
    assert nan[:, 3].tolist() == [False, False, False, True, False, False]
    assert (np.isnan(gradients).all((2, 3)) == nan).all() and (np.isnan(gradients).any((2, 3)) == nan).all()
    assert np.isnan(values_and_gradients(variables, x[:1] * [1e200, 1, 1])[0]).all()
    clean, slopes = values_and_gradients(variables, SAMPLES)
    assert (found[[0, 5]] == clean[[0, 5]]).all() and gradients[[0, 5]] == pytest.approx(slopes[[0, 5]], abs=1e-14)
    assert values_and_gradients([], x)[0].shape == (6, 0) and values_and_gradients(variables, x[:0])[1].shape == (
        0,
        4,
        N,
        3,
    )


def test_functions_that_are_no_variable_are_refused():
    for measure in (values, lambda cv, x: values_and_gradients([cv], x)):
        with pytest.raises(InputError, match=r"'bad'.*returns shape(?s:.*)expected: \(6,\)"):
            measure(custom("bad", lambda x: x[:, 0]), SAMPLES)
    with pytest.raises(InputError, match="'steps'.*no gradient"):
        values_and_gradients([custom("steps", lambda x: x[:, 0, 0].round().detach())], SAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_values_without_gradients_are_the_same(kind):
    x = np.concatenate([SAMPLES, SAMPLES[:2]])
    x[6, 0, 0], x[7, 3, 2] = np.nan, 1e9
    assert values(KINDS[kind], x) == pytest.approx(values_and_gradients([KINDS[kind]], x)[0][:, 0], nan_ok=True)
    assert np.isnan(values(KINDS[kind], x)[6:]).all() and values(KINDS[kind], x[:0]).shape == (0,)
    many = np.tile(SAMPLES, (1000, 1, 1))  # more than are computed at once
    assert values(KINDS[kind], many) == pytest.approx(np.tile(values(KINDS[kind], SAMPLES), 1000))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with structures in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ref.xyz", Atoms("H7", GRID))
    write(tmp_path / "path.xyz", [Atoms("H7", frame) for frame in PATH])
    write(tmp_path / "small.xyz", Atoms("H2", GRID[:2]))
    write(tmp_path / "same.xyz", [Atoms("H7", GRID)] * 3)
    (tmp_path / "bad.xyz").write_text("no structure\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected", "name", "unit"),
    [
        ("distance 0 4", distance(0, 4), "distance 0 4", "A"),
        ("  Angle  0 1   2 ", angle(0, 1, 2), "Angle 0 1 2", "rad"),
        ("torsion 0 1 3 6", torsion(0, 1, 3, 6), "torsion 0 1 3 6", "rad"),
        ("volume 0 1 3 6", volume(0, 1, 3, 6), "volume 0 1 3 6", "A^3"),
        ("coordination 0,1 2,3,5 r0=1.8", KINDS["coordination"], "coordination 0,1 2,3,5 r0=1.8", ""),
        ("c = coordination 0,1 2,3,5 m=7 r0=1.8 n=3", KINDS["coordination 3 7"], "c", ""),
        ("rmsd ref.xyz", KINDS["rmsd"], "rmsd ref.xyz", "A"),
        ("near=rmsd ref.xyz [0, 2,5,6]", KINDS["rmsd of some"], "near", "A"),
        ("rmsd ref.xyz 0,2,5,6", KINDS["rmsd of some"], "rmsd ref.xyz 0,2,5,6", "A"),
        ("path-s path.xyz", KINDS["path-s"], "path-s path.xyz", ""),
        ("path-z path.xyz", KINDS["path-z"], "path-z path.xyz", ""),
        ("rc = distance 0 4 - distance 0 5", linear([distance(0, 4), distance(0, 5)], [1, -1]), "rc", "A"),
        ("- distance 0 4", linear([distance(0, 4)], [-1]), "- distance 0 4", "A"),
        (
            "0.5*distance 0 4 - distance 1 5 + 2 * angle 0 1 2",
            KINDS["linear"],
            "0.5*distance 0 4 - distance 1 5 + 2 * angle 0 1 2",
            "",
        ),
    ],
)
def test_what_people_write(text, expected, name, unit, folder):
    found = parse_cv(text, Molecule(HYDROGENS))
    assert (found.name, found.unit, found.period) == (name, unit, expected.period)
    assert values(found, SAMPLES) == pytest.approx(values(expected, SAMPLES), abs=1e-6)  # xyz files are rounded
    assert found.bends == expected.bends


def test_a_sign_in_the_name_of_a_folder(folder):
    (folder / "my - dir").mkdir()
    (folder / "my - dir" / "ref + 1.xyz").write_bytes((folder / "ref.xyz").read_bytes())
    name = "rmsd my - dir/ref + 1.xyz"
    for text, expected in (
        (name, KINDS["rmsd"]),
        (f"{name} [0,2,5,6]", KINDS["rmsd of some"]),
        (f"distance 0 4 - 2*{name} + distance 0 5", None),
    ):
        found = values(parse_cv(text, Molecule(HYDROGENS)), SAMPLES)
        if expected is None:
            parts = [values(cv, SAMPLES) for cv in (distance(0, 4), KINDS["rmsd"], distance(0, 5))]
            assert found == pytest.approx(parts[0] - 2 * parts[1] + parts[2], abs=1e-6)
        else:
            assert found == pytest.approx(values(expected, SAMPLES), abs=1e-6)


def test_names_of_sums():
    assert KINDS["linear"].name == "0.5*distance 0 4 - distance 1 5 + 2*angle 0 1 2"
    assert parse_cv("angle 0 1 2 - angle 2 3 4", BARE).unit == "rad"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a variable is missing(?s:.*)expected: distance I J.*; angle"),
        ("rc = ", "a variable is missing(?s:.*)remedy: "),
        ("phi_2", "needs residues(?s:.*)a PDB file"),
        ("phase 2", "no kind of variable 'phase'(?s:.*)torsion I J K L; volume I J K L; coordination.*path-z FILE"),
        ("distance 0 4 + 3", "no kind of variable '3'"),
        ("distance 0 4 5", "3 atoms instead of 2(?s:.*)expected: distance I J"),
        ("torsion 0 1 2", "3 atoms instead of 4(?s:.*)count from 0"),
        ("angle 0 1 7", "no atom '7'(?s:.*)expected: atoms 0 to 6"),
        ("distance -1 4", "no atom '-1'(?s:.*)0 to 6"),
        ("distance 4 4", "atoms 4 4 repeat(?s:.*)expected: different atoms"),
        ("coordination 0,1 1,2 r0=2", "repeat"),
        ("coordination 0,1 2", "cannot read '0,1 2'(?s:.*)r0=R"),
        ("coordination 0 1 r0=2 q=3", "cannot read"),
        ("coordination 0 1 r0=2 r0=3", "cannot read"),
        ("coordination 0 1 r0=two", "could not convert(?s:.*)a number r0"),
        ("coordination 0 1 r0=-2", "r0=-2.0(?s:.*)above 0"),
        ("coordination 0 1 r0=2 n=6 m=6", "n=6 m=6(?s:.*)n < m"),
        ("coordination 0, 1 r0=2", "no atom ''"),
        ("rmsd", "no file given(?s:.*)rmsd FILE"),
        ("rmsd none.xyz", "none.xyz cannot be read(?s:.*)remedy: check the path"),
        ("path-s bad.xyz", "bad.xyz cannot be read"),
        ("rmsd small.xyz", "small.xyz, structure 0, has 2 atoms(?s:.*)the 7 atoms of the molecule"),
        ("rmsd path.xyz", "holds 11 structures(?s:.*)expected: one"),
        ("rmsd ref.xyz [0,9]", "no atom '9'"),
        ("rmsd ref.xyz [0]", "1 atoms to superpose"),
        ("path-s ref.xyz", "a path of 1 structures(?s:.*)at least 2"),
        ("path-z same.xyz", "neighbours of the path are the same"),
        ("torsion 0 1 3 6 - distance 0 4", "'torsion 0 1 3 6' is periodic"),
    ],
)
def test_what_cannot_be_read(text, message, folder):
    with pytest.raises(InputError, match=message) as caught:
        parse_cv(text, Molecule(HYDROGENS))
    error = caught.value
    assert error.where == f"collective variable {text!r}" and error.expected and error.remedy


def test_sums_need_a_coefficient_each():
    for variables, coefficients in (([], []), ([distance(0, 1)], [1.0, 2.0]), ([distance(0, 1)], [math.nan])):
        with pytest.raises(InputError, match="one number for each"):
            linear(variables, coefficients)
    with pytest.raises(InputError, match="at least one atom"):
        coordination([], [1], 2.0)


def test_a_start_on_a_line_is_refused():
    check_start(list(KINDS.values()), SAMPLES[0])
    x = SAMPLES[0].copy()
    x[:3] = [[0, 0, 0], [1, 0, 0], [2, math.tan(math.radians(0.5)), 0]]
    for cv in (angle(0, 1, 2), torsion(0, 1, 2, 3), parse_cv("a = distance 0 4 + angle 0 1 2", BARE)):
        with pytest.raises(InputError, match="angle 0 1 2 is 179.50 degrees(?s:.*)expected: 1 to 179") as caught:
            check_start([distance(0, 1), cv], x)
        assert repr(cv.name) in str(caught.value)
    x[2, 1] = math.tan(math.radians(1.5))
    check_start([angle(0, 1, 2), torsion(0, 1, 2, 3)], x)
    x[4] = x[0]
    with pytest.raises(InputError, match="'distance 0 4'.*not finite"):
        check_start([distance(0, 4)], x)
    with pytest.raises(InputError, match="'steep'.*2.0e[+]04/A"):
        check_start([custom("steep", lambda x: 2e4 * x[:, 0, 0])], x)


def test_start_refuses_what_depends_on_orientation_or_place():
    for name, function in (("height", lambda x: x[:, 0, 2] - x[:, 3, 2]), ("place", lambda x: x[:, 0].norm(dim=-1))):
        with pytest.raises(InputError, match=f"'{name}'.*after it is turned and moved"):
            check_start([distance(0, 1), custom(name, function, "A")], SAMPLES[0])
    check_start([custom("single", lambda x: (x[:, 0] - x[:, 3]).float().norm(dim=-1), "A")], SAMPLES[0])


def test_walls_as_people_write_them(folder):
    wall = parse_wall("rc = distance 0 4 - distance 0 5 < 3.3", BARE)
    assert (wall.cv.name, wall.limit, wall.above, wall.stiffness) == ("rc", 3.3, True, 20.0)
    wall = parse_wall("angle 0 1 2 > -1.2e2 k=7", BARE)
    assert (wall.limit, wall.above, wall.stiffness) == (pytest.approx(math.radians(-120)), False, 7.0)
    assert parse_wall("angle 0 1 2>90", BARE).stiffness == 5.0
    wall = parse_wall("coordination 0 1 r0=1.8 < 0.5 k = 3", BARE)
    assert (wall.limit, wall.stiffness, wall.cv.name) == (0.5, 3.0, "coordination 0 1 r0=1.8")
    assert parse_wall("path-z path.xyz < 0.2", Molecule(HYDROGENS)).stiffness == 20.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read(?s:.*)CV < LIMIT"),
        ("distance 0 4", "cannot be read"),
        ("distance 0 4 < far", "cannot be read"),
        ("distance 0 4 < 3 4", "cannot be read"),
        ("distance 0 4 < 3 k=hard", "cannot be read(?s:.*)remedy: write for example"),
        ("distance 0 4 < nan", "expected: a finite limit"),
        ("distance 0 4 < 3 k=0", "a finite k above 0"),
        ("distance 0 9 < 3", "no atom '9'"),
        ("< 3", "a variable is missing"),
        ("torsion 0 1 3 6 > -120", "a wall on a periodic variable has no side(?s:.*)cosine"),
    ],
)
def test_walls_that_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message):
        parse_wall(text, BARE)


def test_wall_energies_and_gradients():
    texts = ("distance 0 4 < 1.3", "distance 0 1 > 1.9 k=3", "angle 0 1 2 < 60", "coordination 0 1 r0=1.8 > 0.9")
    walls = [parse_wall(text, BARE) for text in texts]
    energy, gradient = wall_energy(walls, SAMPLES)
    assert energy.shape == (6,) and (energy > 0).all()
    expected = numerical(lambda x: wall_energy(walls, x)[0], SAMPLES)
    assert np.abs(gradient - expected).max() < 1e-6 * np.abs(expected).max()
    pair = np.array([[[0.0, 0, 0], [0, 0, 2.5]], [[0, 0, 0], [0, 0, 1.9]]])
    energy, gradient = wall_energy([Wall(distance(0, 1), 2.0, True, 20.0)], pair)
    assert energy == pytest.approx([2.5, 0]) and gradient[0, 1] == pytest.approx([0, 0, 10]) and not gradient[1].any()
    energy, gradient = wall_energy([], SAMPLES)
    assert not energy.any() and gradient.shape == SAMPLES.shape and not gradient.any()
    assert np.isnan(wall_energy([Wall(distance(0, 1), 2.0, True, 20.0)], np.zeros((1, 2, 3)))[0]).all()


def test_a_start_beyond_a_wall_is_refused():
    pair = np.array([[0.0, 0, 0], [0, 0, 2.5]])
    check_walls([parse_wall("distance 0 1 < 2.4", PAIR), parse_wall("distance 0 1 > 2", PAIR)], pair)  # 0.1 eV up
    with pytest.raises(InputError, match=r"'distance 0 1' > 3 A: .*at 2.5 A, 2.50 eV(?s:.*)0.26 eV"):
        check_walls([parse_wall("distance 0 1 > 3", PAIR)], pair)
    corner = np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0]])
    with pytest.raises(InputError, match="'angle 0 1 2' < 60 degrees: .*at 90 degrees"):
        check_walls([parse_wall("angle 0 1 2 < 60", Molecule(HYDROGENS[:3]))], corner)
    with pytest.raises(InputError, match="at nan"):
        check_walls([parse_wall("distance 0 1 < 3", PAIR)], np.zeros((2, 3)))


def test_every_kind_is_covered_by_the_gradient_test():
    assert {kind.split(" ")[0] for kind in KINDS} >= set(WRITTEN) - RESIDUES
    assert all(torch.isfinite(cv.function(torch.tensor(SAMPLES))).all() for cv in KINDS.values())


def test_references_in_another_order_of_elements(folder: Path):
    numbers = np.array([1, 1, 8, 1, 1, 1, 1])
    for text in ("rmsd ref.xyz", "path-s path.xyz"):
        with pytest.raises(InputError, match="atom 2 is H, that of the molecule O"):
            parse_cv(text, Molecule(numbers))
    parse_cv("rmsd ref.xyz", Molecule(HYDROGENS))
    known = Molecule(HYDROGENS, known={"gone.xyz": GRID[None]})
    assert values(parse_cv("rmsd gone.xyz", known), GRID[None]) == pytest.approx([0.0], abs=1e-6)
    with pytest.raises(InputError, match="structures of ref.xyz are not stored"):
        parse_cv("rmsd ref.xyz", known)
