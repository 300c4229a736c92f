"""`molgen fes`: what it prints and writes, its exit codes, options from a file, and bad input by its text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from molgen.cli import fes, main
from molgen.cli.fes import report
from molgen.cli.fes_toml import typed
from molgen.cvdiffusion import start, target
from molgen.data.peptide import build_peptide
from molgen.data.start import start_structure
from molgen.workflows import fes_settings

runner = CliRunner()
FEW = ["--rounds", "4", "--draws", "16", "--learn", "1", "-n", "30"]
TORSION = "torsion 4 6 8 14"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line does not offer, small: starting simulation, pretraining, the network."""

    def small(coordinates: str) -> fes_settings.FesSettings:
        usual = usually(coordinates)
        few = replace(usual.sampler, pretrain=8, batch=16)
        frames = 16 if coordinates == "cartesian" else 100  # enough to whiten by
        return replace(usual, sampler=few, frames=frames, hidden=16, fine=1)

    usually = fes_settings.default_settings
    monkeypatch.setattr(fes_settings, "default_settings", small)
    monkeypatch.setattr(start, "SETTLE", 2)
    monkeypatch.setattr(start, "RELAX", 10)


@pytest.fixture
def hcn(tmp_path: Path) -> Path:
    """HCN, bent, for an angle to have a gradient."""
    path = tmp_path / "hcn.xyz"
    path.write_text("3\nbent\nH -0.95 0.45 0.0\nC 0.0 0.0 0.0\nN 1.15 0.0 0.0\n")
    return path


@pytest.fixture(scope="module")
def dipeptide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alanine dipeptide with all hydrogens."""
    from openmm import app, unit

    peptide = build_peptide("A", "ace-nme")
    path = tmp_path_factory.mktemp("pdb") / "ala.pdb"
    with path.open("w") as stream:
        app.PDBFile.writeFile(peptide.topology, start_structure(peptide, 0) * unit.angstrom, stream)
    return path


@pytest.fixture
def molgen(tmp_path: Path) -> Callable[..., Result]:
    """`molgen fes ... --out tmp_path/out`."""

    def run(*arguments: Any) -> Result:
        return runner.invoke(main.app, ["fes", *map(str, arguments), "--out", str(tmp_path / "out")])

    return run


DISTANCE = ["--cv", "distance 0 1", "--range", "0.7 1.8"]


def test_report_and_files(molgen: Callable[..., Result], hcn: Path, tmp_path: Path) -> None:
    result = molgen("--xyz", hcn, *DISTANCE, *FEW, "--wall", "distance 1 2 < 1.6")
    assert result.exit_code in (0, 3), result.stderr
    lines = {line[:16].strip(): line[17:] for line in result.stdout.splitlines()}
    assert "refused above 0.7)" in lines["verdict"] and "under the bias" in lines["ESS"] and "4 rounds" in lines["cost"]
    assert (
        re.search("fine up to 0.3|not comparable", lines["without weights"]) and str(tmp_path / "out") in lines["files"]
    )
    assert "the deepest, at (" in lines["basin 0"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"fes.dat", "COLVAR", "HILLS", "weights.npz", "samples.xyz", "fes.png", "summary.json"} <= written
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert manifest["xyz"] == [str(hcn)] and manifest["calculator"] == "gfn2" and manifest["sampler.rounds"] == 4
    assert manifest["walls"][0] == "distance 1 2 < 1.6 k=20"
    warned = "not to be trusted" in " ".join(result.stderr.split())
    assert warned == (result.exit_code == 3)
    again = molgen("--xyz", hcn, *DISTANCE, *FEW, "--wall", "distance 1 2 < 1.6", "--resume")
    assert again.exit_code == result.exit_code and again.stdout == result.stdout and "nothing to resume" in again.stderr
    other = molgen("--xyz", hcn, *DISTANCE, *FEW[2:], "--rounds", 5, "--wall", "distance 1 2 < 1.6", "--resume")
    assert other.exit_code == 2 and "'sampler.rounds' was 4 and is now 5" in other.stderr
    assert molgen("--xyz", hcn, *DISTANCE, *FEW).exit_code == 2  # not over the earlier run unasked


def test_options_of_a_file_and_of_the_command_line(molgen: Callable[..., Result], hcn: Path, tmp_path: Path) -> None:
    """An angle and a hill width in degrees; the file's folder is where its paths begin; options win."""
    (tmp_path / "run.toml").write_text(
        'xyz = "hcn.xyz"\ncv = ["angle 0 1 2", "distance 1 2"]\nrange = ["90 175", "0.9 1.6"]\nhill-width = [6, 0.1]\n'
        "temperature = 320\ngamma = 9\nrounds = 900\ndraws = 16\nlearn = 1\nsamples = 25\nstop = false\n"
        'repair = "never"\n'
        'units = "kJ/mol"\n'
        "json = true\n"
    )
    result = molgen(tmp_path / "run.toml", "--rounds", 4, "-T", 310)
    assert result.exit_code in (0, 3), result.stderr
    summary = json.loads(result.stdout)
    assert summary["rounds"] == 4 and summary["units"] == "kJ/mol" and summary["weights"]["n"] == 25 + 16
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert settings["gamma"] == 9.0
    assert settings["temperature"] == 310.0 and settings["xyz"] == [str(tmp_path / "hcn.xyz")]
    assert settings["widths"] == pytest.approx([np.pi / 30, 0.1])
    assert [settings["axes"][0][end] for end in ("low", "high")] == pytest.approx([np.pi / 2, np.radians(175)])
    text = (tmp_path / "out" / "fes.dat").read_text()
    assert text.startswith("#! FIELDS angle_0_1_2 distance_1_2 file.free error")


def test_files_in_variables_count_from_the_folder_of_the_toml(hcn: Path, tmp_path: Path, monkeypatch) -> None:
    """Of a file with its own label and a wall; a path that begins at the root stays; run from another folder."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "ref.xyz").write_bytes(hcn.read_bytes())
    (tmp_path / "run.toml").write_text(
        f'xyz = "hcn.xyz"\ncv = ["r = rmsd ref.xyz [0,1,2]", "distance 1 2"]\nrange = ["-0.1 0.8", "0.9 1.6"]\n'
        f'wall = ["rmsd {tmp_path / "ref.xyz"} < 0.7", "rmsd = distance 0 1 < 3"]\n'
    )
    monkeypatch.chdir(tmp_path / "sub")
    result = runner.invoke(main.app, ["fes", "../run.toml", "--forecast"])
    assert result.exit_code == 0 and "grid: r -0.1 to 0.8 A" in result.stdout, result.stderr
    (tmp_path / "ref.xyz").unlink()
    missing = runner.invoke(main.app, ["fes", "../run.toml", "--forecast"])
    assert missing.exit_code == 2 and "../ref.xyz cannot be read" in missing.stderr.replace("\n", " "), missing.stderr


def test_a_radical_needs_no_spin(molgen: Callable[..., Result], hcn: Path, tmp_path: Path) -> None:
    """The fewest unpaired electrons are the default, as in `molgen ts`."""
    for options, warned in (([], True), (["--spin", 1], False)):  # most often a charge was left out
        result = molgen("--xyz", hcn, *DISTANCE, "--charge", 1, "--forecast", *options)
        assert result.exit_code == 0, result.stderr
        assert ("a radical, unless --charge is another" in " ".join(result.stderr.split())) is warned
    (tmp_path / "run.toml").write_text(
        'xyz = "hcn.xyz"\ncharge = 1\nspin = 2\ncv = "distance 0 1"\nrange = "0.7 1.8"\n'
    )
    refused = molgen(tmp_path / "run.toml", "--forecast")
    assert refused.exit_code == 2 and "--spin: 13 electrons" in refused.stderr


def test_report_of_barriers_gaps_and_a_far_histogram(tmp_path: Path) -> None:
    """What a summary says of them, in words."""
    estimate = {"value": 3.25, "error": 0.125, "khat": 0.3, "reliable": True, "unit": "kcal/mol"}
    poor = {**estimate, "value": 2.0, "khat": 0.9, "reliable": False}
    weights = {"ess": 0.1, "khat": 0.4, "n": 100, "threshold": 0.5}
    summary = {
        "gate": {"khat_biased": 0.3, "limit": 0.7, "passed": True}, "weights": weights, "weights_biased": weights,
        "verdict": "warn",
        "verdict_unbiased": "biased", "axes": ["rad"],
        "disagreement_kt": {"histogram": 0.8, "bias": 1.9, "limit": 0.5}, "results": [],
        "rejections": {"atoms too close": 3}, "weight_zero": 2,
        "barriers": [{"basins": [0, 1], "place": math.pi / 9, "samples": 9, "forward": estimate, "reverse": poor}],
        "missing": ["2 parts of the surface are joined by no sample"], "wall_seconds": 3.0, "energy_calls": 7,
        "rounds": 2,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text('{"files": []}')
    text = report(summary, tmp_path)
    assert (
        "histogram off by 0.8 kT (fine up to 0.5): the weights repair much" in text and "or try --repair always" in text
    )
    assert "barrier 0 to 1   3.25 +- 0.12 kcal/mol, top of the profile, at 20.0 degrees" in text
    assert "barrier 1 to 0   2 +- 0.12 kcal/mol (not reliable: k-hat 0.90, fine up to 0.7)" in text
    own = report({**summary, "barrier": {"forward": estimate, "reverse": poor, "place": 0.5}}, tmp_path)
    assert "barrier forward  3.25 +- 0.12 kcal/mol" in own
    chains = {
        "particles": 400,
        "moves": 22,
        "ancestors": 350,
        "halves": 0.21,
        "shift": 0.42,
        "memory": 0.34,
        "limit": 0.3,
        "forgot": 0.5,
        "used": True,
    }
    mended = report({**summary, "repair": chains}, tmp_path)
    refused = report({**summary, "gate": {**summary["gate"], "passed": False}}, tmp_path)
    assert "try --repair always" not in mended + refused
    assert "400 chains of 22 moves from 350 samples; their halves differ by 0.21 kT (fine up to 0.3)" in mended
    assert "0.42 kT from the weights' surface (fine up to 0.6)" in mended and "repair failed" not in mended
    assert "they remember 34% of where they began (fine up to 50%)" in mended
    assert "weight zero      2 of 100 samples" in text and "rejected         3 x atoms too close, of all" in text
    assert "repair failed    by sequential" in report({**summary, "repair": {**chains, "used": False}}, tmp_path)
    assert (
        "repaired" not in text and "missing?         2 parts" in text and "without bias     biased; k-hat 0.4" in text
    )
    quiet = report({**summary, "disagreement_kt": {"histogram": 0.2, "bias": 1.9, "limit": 0.5}}, tmp_path)
    empty = report({**summary, "disagreement_kt": {"histogram": None, "bias": None, "limit": 0.5}}, tmp_path)
    assert "without weights  not comparable: too few bins" in empty
    assert "reached its cap" not in text
    assert "bias             reached its cap of 23 kT: what lies" in report({**summary, "cap_kt": 23.0}, tmp_path)
    assert "repair much" not in quiet and "histogram off by 0.2 kT (fine up to 0.5); the bias alone" in quiet


@pytest.mark.parametrize(("line", "texts"), [
    ("round = 4", ["unknown key 'round'", "rounds", "run.toml"]),
    ("rounds = 4.5", ["rounds = 4.5", "a value like 200"]),
    ("rounds = 0", ["rounds = 0", "at least 4"]),
    ("draws = 2", ["draws = 2", "at least 16"]),
    ("samples = 0", ["samples = 0", "at least 1"]),
    ("temperature = true", ["temperature = True", "300.0"]),
    ('hill-width = "wide"', ["hill_width = 'wide'", "0.1, or a list"]),
    ("cv = 3", ["cv = 3", "a list of texts"]),
    ("range = [0.7, 1.8]", ["range = [0.7, 1.8]", '"0.7 1.8", or a list of such texts']),
    ('forecast = "yes"', ["forecast = 'yes'", "a value like false"]),
    ("out = 3", ["out = 3", "a path"]),
    ("rounds = = 4", ["is not TOML"]),
])  # fmt: skip
def test_bad_file(line: str, texts: list[str], hcn: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(line)
    options = [*(["--xyz", str(hcn)]), *(DISTANCE if "cv" not in line and "range" not in line else [])]
    result = runner.invoke(main.app, ["fes", str(tmp_path / "run.toml"), *options])
    assert result.exit_code == 2 and all(text in result.stderr for text in texts), result.stderr


def test_a_file_that_is_not_there(molgen: Callable[..., Result], tmp_path: Path) -> None:
    result = molgen(tmp_path / "nowhere.toml")
    assert result.exit_code == 2 and "nowhere.toml: cannot be read" in result.stderr


@pytest.mark.parametrize("wall", ["d < 1.6", "distance 0 1 < 1.6", "distance 1 0 < 1.6"])
def test_a_wall_knows_the_variable_by_label_and_by_definition(
    molgen: Callable[..., Result], hcn: Path, wall: str
) -> None:
    result = molgen("--xyz", hcn, "--cv", "d = distance 0 1", "--wall", wall, "--forecast")
    assert result.exit_code == 0 and " to 1.9 A; 2 walls" in result.stdout, result.stderr


def test_force_field_and_controller_count_from_the_file_where_they_lie_there(tmp_path: Path) -> None:
    (tmp_path / "mine.xml").touch()
    for text, expected in (("mine.xml", str(tmp_path / "mine.xml")), ("ala2", "ala2")):
        assert typed("forcefield", text, None, tmp_path / "run.toml") == [expected]
        assert typed("pretrained", text, None, tmp_path / "run.toml") == expected


def test_estimate_writes_nothing(molgen: Callable[..., Result], hcn: Path, tmp_path: Path) -> None:
    result = molgen("--xyz", hcn, *DISTANCE, "--forecast", "--rounds", 10, "--draws", 20, "-n", 100)
    assert result.exit_code == 0, result.stderr
    assert (
        result.stdout.startswith(f"{10 * 20 + 100 + 5 * 16} energies at ")
        and "; learning and drawing: " in result.stdout
    )
    assert "in all; up to as many energies again if the weights need repair" in result.stdout
    assert "grid: distance 0 1 0.7 to 1.8 A; 2 walls; 1 starting structure" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"hcn.xyz"}
    told = molgen("--xyz", hcn, *DISTANCE, "--forecast", "--rounds", 10, "--draws", 20, "-n", 100, "--json")
    assert [line[:5] for line in json.loads(told.stdout)["forecast"]] == ["380 e", "grid:"]


def test_a_surface_from_a_handful_of_samples_is_not_trusted(molgen: Callable[..., Result], hcn: Path) -> None:
    """k-hat under the bias may be fine: that is not what the molecule does without it."""
    result = molgen("--xyz", hcn, *DISTANCE, *FEW[:-1], 20, "--paths", 1, "--repair", "never", "--json")
    summary = json.loads(result.stdout)
    effective = summary["weights"]["ess"] * summary["weights"]["n"]
    assert effective < 25 and result.exit_code == 3 and summary["verdict"] in ("biased", "failed")
    assert f"rests on {effective:.0f} effective samples, fewer than 25; try" in result.stderr


@pytest.mark.parametrize(("khat", "why"), [
    (0.9, "k-hat of the path weights is above 0.7: the"),
    (None, "k-hat of the path weights is none, from so few weights: the"),
    (0.47, "the path weights leave 13 effective samples under the bias, fewer than 25: the"),
])  # fmt: skip
def test_what_the_gate_refused_for(
    khat: float | None, why: str, molgen: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = {"khat_biased": khat, "limit": 0.7, "passed": False}
    weights = {"ess": 0.24, "n": 56}
    summary = {"status": "gate_failed", "gate": gate, "weights": weights, "weights_biased": weights, "repair": None}
    monkeypatch.setattr(fes, "run", lambda options: (summary, tmp_path))
    result = molgen("--json")
    assert result.exit_code == 3 and why in " ".join(result.stderr.split()), result.stderr


def test_openmm(
    molgen: Callable[..., Result], dipeptide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a controller draws that has hardly learned is taken as it is, clashes and all."""
    monkeypatch.setattr(target, "CLASH", 0.05)
    options = ["--pdb", dipeptide, "--cv", TORSION, "--rounds", 4, "--draws", 32, "--learn", 2, "-n", 40, "--json"]
    result = molgen(*options, "--platform", "CPU")
    assert result.exit_code in (0, 3), result.stderr
    summary = json.loads(result.stdout)
    assert "other handedness" not in summary["rejections"]
    assert summary["rounds"] == 4 and (summary["gate"]["passed"] and not summary["unknown"]) == (result.exit_code == 0)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"topology.pdb", "samples.xtc", "weights.npz", "fes.png"} <= written and "samples.xyz" not in written
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert settings["forcefield"] == ["amber14/protein.ff14SB.xml"] and settings["solvent"] == "obc2"
    text = (tmp_path / "out" / "fes.dat").read_text()
    assert "#! SET periodic_torsion_4_6_8_14 true" in text
    assert "#! SET min_torsion_4_6_8_14 -pi\n#! SET max_torsion_4_6_8_14 pi\n" in text  # else PLUMED refuses the grid


def test_bad_openmm_input(molgen: Callable[..., Result], dipeptide: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pdb"
    kept = [line for line in dipeptide.read_text().splitlines() if not line.rstrip().endswith(" H")]
    bare.write_text("\n".join(kept) + "\n")
    for options, texts in (
        (["--pdb", bare], ["force field amber14", "add hydrogens"]),
        (["--pdb", dipeptide, "--solvent", "water"], ["unknown solvent 'water'", "obc2"]),
        (["--pdb", dipeptide, "--forcefield", "mine.xml"], ["mine.xml"]),
        (["--pdb", dipeptide, "--platform", "Abacus"], ["no OpenMM platform 'Abacus'"]),
        (["--pdb", tmp_path / "none.pdb"], ["none.pdb: cannot be read"]),
        (["--pdb", dipeptide, "--cv", "phi 0"], ["no residue '0' with phi", "1 (ALA)"]),
        (["--pdb", dipeptide, "--cv", "helicity"], ["'helicity': it has no gradient"]),
        (["--pdb", dipeptide, "--width", 0.1], ["--width 0.1", "internal coordinates", "--coordinates cartesian"]),
    ):
        result = molgen(*options, "--cv", TORSION)
        assert result.exit_code == 2 and all(text in result.stderr for text in texts), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["give --xyz or --pdb, one of the two"]),
        (["--xyz", "HCN", "--pdb", "x.pdb"], ["give --xyz or --pdb, one of the two"]),
        (["--xyz", "HCN"], ["no collective variable", "--cv"]),
        (["--xyz", "nowhere.xyz", *DISTANCE], ["nowhere.xyz"]),
        (["--xyz", "HCN", "--cv", "dihedral 0 1 2"], ["no kind of variable 'dihedral'", "torsion I J K L"]),
        (["--xyz", "HCN", "--cv", "distance 0 7"], ["no atom '7'", "atoms 0 to 2"]),
        (["--xyz", "HCN", "--cv", "phi 1"], ["needs residues", "a PDB file"]),
        (["--xyz", "HCN", "--cv", "distance 0 1"], ["its range is not known", "--range"]),
        (["--xyz", "HCN", "--cv", "distance 0 1", "--range", "1 2 3"], ["--range: '1 2 3'", "LOW HIGH"]),
        (["--xyz", "HCN", "--cv", "distance 0 1", "--range", "2 3"], ["starting structures are at 1.0"]),
        (["--xyz", "HCN", *DISTANCE, "--range", "1 2"], ["2 ranges for 1 collective variables"]),
        (["--xyz", "HCN", *DISTANCE, *DISTANCE], ["given twice"]),
        (["--xyz", "HCN", *DISTANCE, "--coordinates", "polar"], ["unknown coordinates 'polar'", "internal"]),
        (["--xyz", "HCN", *DISTANCE, "--coordinates", "internal"], ["internal coordinates", "at least four atoms"]),
        (["--xyz", "HCN", *DISTANCE, "--coordinates", "internal", "--controller", "pair"], ["--controller auto"]),
        (["--xyz", "HCN", *DISTANCE, "--cv", "distance 1 0", "--range", "0.7 1.8"], ["are the same"]),
        (["--xyz", "HCN", *DISTANCE, "--hill-width", "1", "--hill-width", "2"], ["2 hill widths for 1"]),
        (["--xyz", "HCN", *DISTANCE, "--hill-width", "0"], ["hill width 0"]),
        (["--xyz", "HCN", *DISTANCE, "--hill-width", "1e-8"], ["--hill-width", "at most 2e+07"]),
        (["--xyz", "HCN", *DISTANCE, "--platform", "CPU"], ["--xyz: together with --platform"]),
        (["--pdb", "x.pdb", "--cv", TORSION, "--charge", "0"], ["--pdb: together with --charge"]),
        (["--xyz", "HCN", "--cv", "d = distance 0 1", "--wall", "d > 0.7"], ['or --wall "distance 0 1 < ..."']),
        (["--xyz", "HCN", "--cv", "angle 0 1 2", "--wall", "angle 0 1 2 < 175"], ['or --wall "angle 0 1 2 > ..."']),
        (["--xyz", "HCN", *DISTANCE, "--wall", "distance 1 2 < 0.5"], ["start structure is at 1.15 A"]),
        (["--xyz", "HCN", *DISTANCE, "--wall", "distance 1 2 3"], ["wall 'distance 1 2 3'", "cannot be read"]),
        (["--xyz", "HCN", *DISTANCE, "-T", "0"], ["temperature 0 K"]),
        (["--xyz", "HCN", *DISTANCE, "--gamma", "1"], ["gamma = 1", "bias factor above 1"]),
        (["--xyz", "HCN", *DISTANCE, "--cap", "-1"], ["cap = -1 kT"]),
        (["--xyz", "HCN", "--cv", "phi 1"], ["needs residues", "give --pdb instead of --xyz"]),
        (["--xyz", "HCN", *DISTANCE, "--wall", "distnace 0 1 < 3"], ["'distnace'", "in the wall 'distnace 0 1 < 3'"]),
        (["--xyz", "HCN", *DISTANCE, "--width", "0"], ["sampler.width = 0.0"]),
        (["--xyz", "HCN", *DISTANCE, "--controller", "point"], ["unknown controller 'point'"]),
        (["--xyz", "HCN", *DISTANCE, "--repair", "maybe"], ["unknown repair 'maybe'", "auto, always, never"]),
        (["--pretrained", "ala2", "--repair", "maybe"], ["unknown repair 'maybe'", "auto, always, never"]),
        (["--xyz", "HCN", *DISTANCE, "--units", "hartree"], ["unknown unit 'hartree'"]),
        (["--xyz", "HCN", *DISTANCE, "--units", "eV", "--forecast"], ["unknown unit 'eV'"]),
        (["--xyz", "HCN", "--cv", "angle 0 1 2", "--range", "150 90"], ["range 150 to 90"]),
        (
            ["--xyz", "HCN", "--cv", "angle 0 1 2", "--range", "90 179", "--hill-width", "-3"],
            ["width -3", "in degrees"],
        ),
        (["--xyz", "HCN", *DISTANCE, "--calculator", "b3lyp"], ["unknown calculator"]),
        (
            ["--xyz", "HCN", *DISTANCE, "--calculator", "ase.calculators.calculator:Calculator", "--forecast"],
            ["no energy: PropertyNotImplementedError", "check the calculator, charge and spin"],
        ),
        (["--xyz", "HCN", *DISTANCE, "--spin", "1"], ["unpaired"]),
        (["--xyz", "HCN", *DISTANCE, "--rounds", "1"], ["--rounds"]),
        (["--xyz", "HCN", *DISTANCE, "--overwrite", "--resume"], ["exclude each other"]),
    ],
)
def test_bad_arguments(
    arguments: list[str], texts: list[str], molgen: Callable[..., Result], hcn: Path, tmp_path: Path
) -> None:
    result = molgen(*(str(hcn) if a == "HCN" else a for a in arguments))
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert all(text in result.stderr for text in texts), result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_structures_in_another_order(molgen: Callable[..., Result], dipeptide: Path, tmp_path: Path) -> None:
    """Two atoms exchanged in a second PDB file."""
    lines = dipeptide.read_text().splitlines()
    one, other = (next(k for k, line in enumerate(lines) if f" {name} " in line[12:17]) for name in ("CA", "CB"))
    lines[one], lines[other] = lines[other], lines[one]
    (tmp_path / "swapped.pdb").write_text("\n".join(lines) + "\n")
    result = molgen("--pdb", dipeptide, "--pdb", tmp_path / "swapped.pdb", "--cv", TORSION, "--forecast")
    assert result.exit_code == 2 and "is CB of ALA, in" in result.stderr, result.stderr
