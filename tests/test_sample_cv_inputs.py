"""What `sample_cv`, `--pretrained` and `--calculator-kwargs` are given: taken as meant, or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read
from fes_cases import TINY
from test_cli_fes import FEW, hcn, molgen, quick  # noqa: F401  fixtures

from molgen import find_ts, sample_cv
from molgen.cvdiffusion.bias import Axis
from molgen.cvdiffusion.walls import Wall, parse_wall
from molgen.errors import InputError
from molgen.potentials.xtb import XtbPotential
from molgen.run import Run
from molgen.variables import Molecule, parse_cv, path_s
from molgen.workflows import fes
from molgen.workflows.fes_grid import axis_of
from molgen.workflows.fes_pretrained import find_pretrained, load_pretrained, sample_pretrained
from molgen.workflows.fes_problem import Problem, coordinates_of
from molgen.workflows.fes_settings import default_settings
from molgen.workflows.fes_system import System, system_from_files, system_from_pdb

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
METHODS = ("gfn1", "gfn2")
QUICK = replace(TINY, coordinates="cartesian", samples=20, repair="never")


def hydrogen() -> XtbPotential:
    return XtbPotential([1, 1])


def sampled(potential: Any, **options: Any) -> Any:
    settings = replace(QUICK, sampler=replace(QUICK.sampler, rounds=1, width=0.05))
    return sample_cv(potential, ["distance 0 1"], 300.0, ranges=[(0.5, 1.2)], settings=settings, **options)


def test_starts_may_be_atoms() -> None:
    apart = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    one, two = sampled(hydrogen(), starts=apart), sampled(hydrogen(), starts=[apart.positions])
    assert np.array_equal(one.positions, two.positions)
    with pytest.raises(InputError, match="starts, structure 1: HF, or its atoms in another order"):
        sampled(hydrogen(), starts=[apart, molecule("HF")])


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}])
def test_options_of_a_folder_need_one(options: dict[str, bool]) -> None:
    named = f"{next(iter(options))}: given without a folder"
    with pytest.raises(InputError, match=named):
        sampled(hydrogen(), starts=np.eye(2, 3), **options)
    with pytest.raises(InputError, match=named):
        sample_pretrained("ala2", 10, **options)
    with pytest.raises(InputError, match="--out: 5 given"):
        sampled(hydrogen(), starts=np.eye(2, 3), out=5)


def test_what_is_no_potential_or_has_starts_already_is_refused() -> None:
    with pytest.raises(InputError, match="'gfn2' is no potential.*(?s:.*)system_from_files"):
        sampled("gfn2", starts=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"is no potential(?s:.*)AsePotential\(calculator, numbers\)"):
        sampled(EMT(), starts=np.zeros((2, 3)))
    with pytest.raises(InputError, match="starts: given beside a System"):
        sampled(System(hydrogen(), np.eye(2, 3)[None]), starts=np.eye(2, 3))
    with pytest.raises(InputError, match="--temperature: temperature '300'"):
        sample_cv(hydrogen(), ["distance 0 1"], "300", starts=np.eye(2, 3))  # type: ignore[arg-type]


def test_numbers_and_settings_of_another_kind_are_named() -> None:
    asked: dict[str, Any] = {"starts": np.eye(2, 3), "settings": QUICK, "ranges": [(0.5, 1.2)]}
    for change, match in (
        ({"starts": np.full((2, 3), np.nan)}, "starts, structure 0, atom 0: a coordinate is nan"),
        ({"settings": "quick"}, "settings: 'quick' given"),
        ({"ranges": ["0.5 1.2"]}, "range of distance 0 1: '0.5 1.2' given"),
        ({"walls": None}, "--wall: None given"),
        ({"cvs": None}, "--cv: None given"),
    ):
        with pytest.raises(InputError, match=match):
            sample_cv(hydrogen(), **({"cvs": ["distance 0 1"]} | asked | change))
    apart = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    for name, value in (("charge", "-1"), ("spin", 0.5)):
        with pytest.raises(InputError, match=f"--{name}: {value!r} given"):
            system_from_files(apart, **{name: value})


def test_a_range_in_degrees_from_python_is_told_apart() -> None:
    bent = molecule("H2O")
    with pytest.raises(InputError, match=r"4584 to 8021 degrees: the starting(?s:.*)from Python: in rad"):
        sample_cv(XtbPotential(bent.numbers), "angle 1 0 2", starts=bent, ranges=[(80, 140)])


@pytest.mark.parametrize("coordinates", ["cartesian", "internal"])
def test_default_settings_have_the_coordinates_asked_for(coordinates: str) -> None:
    assert default_settings(coordinates).coordinates == coordinates
    with pytest.raises(InputError, match="default_settings: 'polar'"):
        default_settings("polar")


@pytest.mark.parametrize("text", ["angle 0 1 2 > 90", "distance 0 1 < 3.3"])
def test_a_recorded_wall_reads_back_as_itself(text: str) -> None:
    wall = parse_wall(text, Molecule(np.ones(4, dtype=int)))
    again = parse_wall(fes._wall_text(wall).split(" k=")[0], Molecule(np.ones(4, dtype=int)))
    assert text in fes._wall_text(wall) and again.limit == pytest.approx(wall.limit, rel=1e-5)


def test_a_run_with_the_name_of_a_shipped_controller_is_ambiguous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_pretrained("sn2")
    (tmp_path / "sn2" / "controller").mkdir(parents=True)
    (tmp_path / "sn2" / "controller" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"sn2 is a run here, and the name of a shipped controller(?s:.*)write \./sn2"):
        find_pretrained("sn2")
    assert find_pretrained("./sn2").resolve() == tmp_path / "sn2" / "controller" and find_pretrained(shipped) == shipped


def test_calculator_kwargs_reach_the_calculator(molgen: Any, hcn: Path, tmp_path: Path) -> None:  # noqa: F811
    kwargs = '{"method": "GFN1-xTB"}'
    options = ["--cv", "distance 0 1", "--range", "0.7 1.8", *FEW, "--repair", "never"]
    named = molgen("--xyz", hcn, *options, "--calculator", "tblite.ase:TBLite", "--calculator-kwargs", kwargs)
    assert named.exit_code in (0, 3), named.stderr
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["calculator_kwargs"] == {
        "method": "GFN1-xTB"
    }
    energies = np.load(tmp_path / "out" / "weights.npz")["energies"]
    gfn1, gfn2 = (system_from_files(hcn, name).potential.energy(read(hcn).positions[None])[0] for name in METHODS)
    assert gfn1 < np.nanmin(energies) < gfn2 - 2, "GFN1-xTB lies lower by 7.6 eV"


def test_two_atoms_are_searched_like_any() -> None:
    result = find_ts(
        Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), Atoms("H2", [[0, 0, 0], [0, 0, 3.0]]), samples=1, correction="none"
    )
    assert not result.verified and result.candidates


def test_coordinates_in_bohr_are_recognised() -> None:
    ends = [molecule("H2O"), molecule("H2O")]
    for atoms in ends:
        atoms.positions /= 0.529177
    ends[1].rotate(30, "x")
    with pytest.raises(InputError, match=r"no two atoms are bonded(?s:.*)Angstrom"):
        find_ts(*ends)


def test_the_package_runs_as_a_module() -> None:
    said = subprocess.run([sys.executable, "-m", "molgen", "--version"], capture_output=True, text=True, check=True)
    assert "molgen" in said.stdout


def test_a_pdb_without_atoms_or_numbers_is_refused(tmp_path: Path) -> None:
    lines = (EXAMPLES / "fes_ala2/ala2.pdb").read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith("ATOM"))
    lines[at] = f"{lines[at][:30]}     nan{lines[at][38:]}"
    for text, match in (("END\n", "cannot be read"), ("\n".join(lines), "x.pdb, atom 0: a coordinate is nan")):
        (tmp_path / "x.pdb").write_text(text)
        with pytest.raises(InputError, match=match):
            system_from_pdb([tmp_path / "x.pdb"], ["amber14/protein.ff14SB.xml"])


def test_coordinates_of_another_world_are_refused() -> None:
    far = Atoms("H2", [[0, 0, 0], [0, 0, 1e7]])
    with pytest.raises(InputError, match=r"atom 1: a coordinate is 1e\+07"):
        find_ts(Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), far)


def test_internal_coordinates_of_a_reaction_name_the_bonds_that_change() -> None:
    """A hydrogen between two oxygens shares no bond with either, and is no fragment."""
    system = system_from_files([EXAMPLES / f"malonaldehyde/{side}.xyz" for side in ("reactant", "product")])
    with pytest.raises(InputError, match="O0-H8, O4-H8: bonded in some starting structures and not in others"):
        coordinates_of(system, "internal", "distance 0 8")


def test_the_range_of_a_path_is_not_that_of_a_sum_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.8\n2\n\nH 0 0 0\nH 0 0 1.4\n")
    monkeypatch.chdir(tmp_path)
    known = Molecule(np.array([1, 1]))

    def axis(text: str) -> Axis:
        return axis_of(parse_cv(text, known), None, [], None, None, np.array([0.5]), known.numbers, 0.026)[0]

    assert (axis("path-s path.xyz").low, axis("s = path-s path.xyz [0,1]").high) == (-0.05, 1.05)
    for text in ("path-s path.xyz - path-z path.xyz", "2*path-s path.xyz"):
        with pytest.raises(InputError, match="its range is not known"):
            axis(text)


def test_a_wall_is_what_was_asked_and_no_more() -> None:
    """No second one on its side, and a grid that holds what lies behind a soft one."""
    known, kt = Molecule(np.array([1, 8, 1])), 0.026

    def grid(text: str, *walls: str, limits: tuple[float, float] | None = None) -> tuple[Axis, list[Wall]]:
        built = [parse_wall(wall, known) for wall in walls]
        start = np.array([1.8 if "angle" in text else 1.0])
        axis, _, fences = axis_of(parse_cv(text, known), limits, built, None, None, start, known.numbers, kt)
        return axis, fences

    axis, fences = grid("angle 0 1 2", "angle 0 1 2 < 120 k=0.5", "angle 0 1 2 > 60 k=0.5")
    behind = 3 * (kt / 0.5) ** 0.5
    assert not fences
    assert (axis.low, axis.high) == pytest.approx((np.pi / 3 - behind, 2 * np.pi / 3 + behind))
    axis, fences = grid("distance 0 1", "distance 0 1 < 2.0")
    assert axis.high == pytest.approx(2.3) and [(fence.above, fence.limit) for fence in fences] == [(False, axis.low)]
    _, fences = grid("distance 0 1", "distance 0 1 < 5.0", limits=(0.5, 2.0))
    assert sorted(fence.limit for fence in fences) == [0.5, 2.0], "a wall beyond the range does not end it"


def test_a_file_of_several_frames_is_taken_at_its_word_aloud(tmp_path: Path) -> None:
    frame = "3\n\nH 0 0 {}\nC 0 0 0\nN 0 0 1.15\n"
    (tmp_path / "two.xyz").write_text(frame.format(-1.0) + frame.format(-1.1))
    system = system_from_files(tmp_path / "two.xyz")
    assert "the last of 2 frames" in system.notes[0] and system.starts[0, 0, 2] == -1.1
    problem = Problem.of(system, ["distance 0 1"], 300.0, [(0.7, 1.8)], [], QUICK)
    assert problem.notes == [*system.notes]
    atoms = [line for line in (EXAMPLES / "fes_ala2/ala2.pdb").read_text().splitlines() if line.startswith("ATOM")]
    models = [line for k in (1, 2) for line in (f"MODEL        {k}", *atoms, "ENDMDL")]
    (tmp_path / "two.pdb").write_text("\n".join([*models, "END", ""]))
    system = system_from_pdb([tmp_path / "two.pdb"], ["amber14/protein.ff14SB.xml"])
    assert "the first of 2 models" in system.notes[0] and len(system.starts) == 1


def test_a_toml_that_is_no_text(tmp_path: Path, molgen) -> None:  # noqa: F811
    (tmp_path / "run.toml").write_bytes(b'cv = "\xff\xfe"\n')
    result = molgen(tmp_path / "run.toml")
    assert result.exit_code == 2 and "run.toml: is not TOML" in result.stderr


def test_one_variable_and_one_wall_need_no_list() -> None:
    potential = XtbPotential([1, 7, 6])
    with pytest.raises(InputError, match="collective variable 'x 0 1': no kind of variable 'x'"):
        sample_cv(potential, "x 0 1", 300.0, starts=np.eye(3))
    with pytest.raises(InputError, match="wall 'd': cannot be read"):
        sample_cv(potential, "distance 0 1", 300.0, starts=np.eye(3), walls="d")


def test_arguments_beside_a_calculator_that_is_built() -> None:
    with pytest.raises(InputError, match="calculator_kwargs: arguments"):
        find_ts(smiles="C#N>>[C-]#[NH+]", calculator=XtbPotential([6, 7, 1]), calculator_kwargs={"method": "GFN1-xTB"})


PEROXIDE = "4\n\nO 0 0.7 0\nO 0 -0.7 0\nH 0.8 0.9 0.4\nH -0.8 -0.9 0.4\n"


def test_internal_coordinates_need_a_torsion_to_be_pushed(tmp_path: Path) -> None:
    (tmp_path / "h2o2.xyz").write_text(PEROXIDE)
    system = system_from_files(tmp_path / "h2o2.xyz")
    path = path_s(system.starts[0] + 0.1 * np.random.default_rng(0).standard_normal((3, 4, 3)))
    wanted: tuple[tuple[list[Any], str], ...] = (
        (["torsion 2 0 1 3"], "internal"), (["distance 0 1"], "cartesian"), ([], "cartesian"), ([path], "cartesian"),
    )  # fmt: skip
    for cvs, kind in wanted:
        assert coordinates_of(system, "auto", cvs) == kind
    for bad in ([None], ["torsion 2 0 1 3", 5]):
        with pytest.raises(InputError, match="is no collective variable"):
            sample_cv(system, bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="None is no wall"):
        sample_cv(system, ["torsion 2 0 1 3"], walls=[None])  # type: ignore[list-item]


def test_a_run_without_a_cap_can_be_drawn_from(hcn: Path, tmp_path: Path) -> None:  # noqa: F811
    settings = replace(QUICK, cap=np.inf, sampler=replace(QUICK.sampler, rounds=1, width=0.05))
    sample_cv(
        system_from_files(hcn), ["distance 0 1"], ranges=[(0.7, 1.8)], settings=settings, out=tmp_path / "endless"
    )
    assert load_pretrained(tmp_path / "endless")[0].settings.cap == np.inf


def test_a_structure_that_a_wall_names_is_not_overwritten(tmp_path: Path) -> None:
    with Run(tmp_path / "out", "fes", {}) as run:
        frames = run.write_text("samples.xyz", "2\n\nH 0 0 0\nH 0 0 0.7\n2\n\nH 0 0 0\nH 0 0 0.9\n")
    with pytest.raises(InputError, match=r"samples\.xyz lies in it"):
        sampled(
            hydrogen(), starts=np.diag([0.0, 0.74])[:, [0, 0, 1]], walls=[f"path-z {frames} < 3"],
            out=tmp_path / "out", overwrite=True,
        )  # fmt: skip
    assert frames.exists()
