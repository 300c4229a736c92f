"""Finished controllers: saved by a run, drawn from again, refused where they are not what they should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fes_cases import TINY, X, run_wells
from typer.testing import CliRunner

from molgen.cli import main
from molgen.errors import InputError
from molgen.reweight.importance import diagnose
from molgen.variables import values_and_gradients
from molgen.workflows.fes import run_fes
from molgen.workflows.fes_outcome import ensemble_of, final_draws, outcome
from molgen.workflows.fes_pretrained import find_pretrained, load_pretrained, sample_pretrained
from molgen.workflows.fes_settings import default_settings
from molgen.workflows.fes_system import system_from_files, system_from_pdb

ROOT = Path(__file__).parent.parent
FEW = replace(TINY.sampler, rounds=4, width=0.05)
CASES = {
    "cartesian": (["distance 0 1"], [(0.7, 1.8)]),
    "internal": (["torsion 4 6 8 14", "torsion 6 8 14 16"], None),
}


@pytest.fixture(scope="module", params=CASES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A tiny run with GFN2-xTB or a force field, and the log-weights of its final samples."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = replace(default_settings(request.param), sampler=FEW, frames=120, hidden=16, samples=40, fine=1,
                       repair="never")  # fmt: skip
    cvs, ranges = CASES[request.param]
    if request.param == "cartesian":
        (folder / "hcn.xyz").write_text("3\nbent\nH -0.95 0.45 0.0\nC 0.0 0.0 0.0\nN 1.15 0.0 0.0\n")
        system = system_from_files([folder / "hcn.xyz"], "gfn2", None, 0, 0)
    else:
        system = system_from_pdb([ROOT / "examples/fes_ala2/ala2.pdb"], ["amber14/protein.ff14SB.xml"])
    ensemble, _ = run_fes(system, cvs, 300.0, ranges=ranges, settings=settings, out=folder / "run", seed=3)
    return folder / "run", ensemble.log_weights[-40:]


def test_its_final_samples_could_be_drawn_again(finished: tuple[Path, np.ndarray]):
    """By the streams of the run; asked for samples under the same seed it draws new ones."""
    folder, log_weights = finished
    problem, sampler, kernels, _ = load_pretrained(folder, 3)
    sampler.seed = 3
    ensemble = outcome(sampler, 40, 1, problem.system.topology, kernels, paths=4, repair="never").ensemble
    both = np.isfinite(log_weights) & np.isfinite(ensemble.log_weights)
    assert len(ensemble) == 40 and (np.isfinite(log_weights) == np.isfinite(ensemble.log_weights)).all()
    # but for the factor by which the final draws count beside those of the rounds
    assert np.ptp(ensemble.log_weights[both] - log_weights[both]) < 1e-6
    for place, seed in ((folder, 3), (folder / "controller", 4)):
        other, _ = sample_pretrained(place, 30, repair="never", seed=seed)
        apart = np.abs(other.positions[:, None] - ensemble.positions[None]).max((2, 3))
        assert len(other) == 30 and apart.min() > 1e-6, "none of them has been drawn before"
    one, more = (sample_pretrained(folder, 30, paths=k, repair="never", seed=4)[0] for k in (1, 6))
    kept = np.isfinite(one.log_weights)
    assert np.array_equal(one.positions, more.positions) and np.array_equal(kept, np.isfinite(more.log_weights))
    assert np.abs(one.log_weights[kept] - more.log_weights[kept]).max() > 1e-3


def test_no_samples_are_refused():
    with pytest.raises(InputError, match="--samples: 0 given"):
        sample_pretrained("ala2", 0)


def test_command_line(finished: tuple[Path, np.ndarray], tmp_path: Path):
    folder, _ = finished
    arguments = [
        "fes",
        "--pretrained",
        str(folder),
        "-n",
        "60",
        "--paths",
        "2",
        "--repair",
        "never",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code in (0, 3), result.stderr
    summary = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["paths"] == 2
    assert summary["rounds"] == 0 and summary["weights"]["n"] == 60 and summary["energy_calls"] <= 60
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"fes.dat", "fes.png", "weights.npz"} <= written and "convergence.png" not in written
    for given in (["--cv", "distance 0 1"], ["-T", "300"], ["--rounds", "9"]):  # nothing may be ignored in silence
        clash = CliRunner().invoke(main.app, [*arguments, *given])
        name = "--temperature" if given[0] == "-T" else given[0]
        assert clash.exit_code == 2 and f"together with {name}" in clash.stderr


@pytest.mark.parametrize("place", ["", "..", "controller"])
def test_the_controller_is_not_written_over(finished: tuple[Path, np.ndarray], place: str):
    folder, _ = finished
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(InputError, match="holds the controller that is to be drawn from"):
        sample_pretrained(folder, 10, out=folder / place, overwrite=True)
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_run_that_cannot_be_named_is_refused(tmp_path: Path):
    run_wells(out=tmp_path / "run", cvs=[X])
    with pytest.raises(InputError, match="not what it was trained for"):
        load_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="no controller 'ala3'"):
        find_pretrained("ala3")


@pytest.mark.parametrize(("name", "atoms"), [("ala2", 22), ("sn2", 6)])
def test_shipped_controllers_draw_reliable_samples(name: str, atoms: int):
    """What they are for: samples that pass the gate, without any learning."""
    problem, sampler, kernels, _ = load_pretrained(name, seed=11)
    draws, _ = final_draws(sampler, 300, 1, kernels)
    biased = diagnose(sampler.target.log_weights(draws))
    assert len(problem.system.numbers) == atoms and draws.accepted.mean() > 0.9
    assert biased.ess > 0.01 and biased.khat < 1.0  # of 300: the gate itself needs thousands


def test_names_of_equal_hydrogens_are_as_likely_as_any():
    """The process keeps to some: their wells held 0.65, 0.19 and 0.15 of the weight instead of a third each."""
    problem, sampler, kernels, _ = load_pretrained("ala2", seed=3)
    draws, _ = final_draws(sampler, 400, 1, kernels)
    one, again = (ensemble_of(sampler, draws, problem.system.topology) for _ in range(2))
    assert np.array_equal(one.positions, again.positions)
    assert np.array_equal(one.energies, draws.energies, equal_nan=True)
    good = draws.accepted
    values = values_and_gradients(problem.cvs, one.positions[good])[0]
    assert np.abs(np.angle(np.exp(1j * (values - draws.cvs[good])))).max() < 1e-6
    energies = sampler.target.potential.energy(one.positions[good][:40])
    assert energies == pytest.approx(draws.energies[good][:40], abs=1e-4)
    even = 0.0
    for quadruple in ("6 4 1 0", "6 8 10 11", "14 16 18 19"):
        turns = one.cv(f"torsion {quadruple}").wrapped(-np.pi)
        shares = np.histogram(np.angle(np.exp(1j * (turns - np.pi / 3))), np.linspace(-np.pi, np.pi, 4))[0] / len(one)
        even = max(even, np.abs(shares - 1 / 3).max())
    assert even < 0.1  # three standard errors of a share of 400


def test_ranges_and_references_come_with_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A torsion from 0 to 360 degrees, and a reference that is another molecule where the controller is used."""
    water = "4\n\nO 0 0 0\nO 1.45 0 0\nH -0.3 0.9 0\nH 1.75 0.3 0.85\n"
    (tmp_path / "start.xyz").write_text(water)
    (tmp_path / "ref.xyz").write_text(water)
    settings = replace(default_settings("cartesian"), sampler=FEW, frames=60, hidden=16, samples=40, fine=1,
                       repair="never")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cvs, ranges = ["torsion 2 0 1 3", "rmsd ref.xyz"], [(0.0, 2 * np.pi), (-0.1, 2.0)]
    system = system_from_files(["start.xyz"], "gfn2", None, 0, 0)
    run_fes(system, cvs, 300.0, ranges=ranges, settings=settings, out="run", seed=3)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "ref.xyz").write_text("2\n\nH 0 0 0\nH 0 0 1\n")
    monkeypatch.chdir(tmp_path / "else")
    problem = load_pretrained(tmp_path / "run")[0]
    assert [axis.low for axis in problem.bias.axes] == pytest.approx([0.0, -0.1])
    assert values_and_gradients(problem.cvs, system.starts)[0][0, 1] == pytest.approx(0.0, abs=1e-6)
