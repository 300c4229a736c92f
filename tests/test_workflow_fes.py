"""Free-energy runs: killed and resumed, refused by name, what they write; basins on surfaces that are known."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fes_cases import RANGE, SQUARE, START, TINY, Faulty, T, X, constant, read_plumed, run_wells, wells
from test_plumed_files import sum_hills

from molgen.checkpoint import load_checkpoint
from molgen.cvdiffusion.controller import build_controller
from molgen.cvdiffusion.plumed import read_table
from molgen.errors import InputError
from molgen.potentials.composite import DistanceRestraint
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import CVValues
from molgen.units import KB, KJ_MOL
from molgen.variables import custom, rmsd, torsion
from molgen.workflows import fes
from molgen.workflows.fes import sample_cv
from molgen.workflows.fes_basins import basins
from molgen.workflows.fes_problem import Problem
from molgen.workflows.fes_system import System

FILES = {
    "manifest.json", "summary.json", "fes.dat", "fes_histogram.dat", "fes_bias.dat", "COLVAR", "HILLS", "weights.npz",
    "samples.xyz", "fes.png", "convergence.png", "weights.png", "rounds.json", "controller", "best",
}  # fmt: skip

# One process that has imported everything forks the runs, kills them with signal 9, and lets the last one finish.
NURSERY = """
import json, os, random, signal, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from fes_cases import TINY, run_wells
from molgen.checkpoint import load_checkpoint
from molgen.cvdiffusion import start
from molgen.workflows import fes, fes_output
torch.set_num_threads(1)
start.SETTLE, start.RELAX, fes_output._write_pictures = 1, 5, lambda *given: None  # quick
fes.train_sampler = partial(fes.train_sampler, save_seconds=0.0)
settings = replace(TINY, sampler=replace(TINY.sampler, rounds=24, learn=2), frames=6)
folder, draw = Path(sys.argv[2]), random.Random(int(sys.argv[3]))

def forked(out, resume):
    child = os.fork()
    if child == 0:
        run_wells(out=out, settings=settings, resume=resume)
        os._exit(0)
    return child

def written(path):
    return path.stat().st_mtime_ns if path.exists() else 0

def ended(child, out, kind):
    assert os.waitpid(child, 0)[1] == kind, out

ended(forked(folder / "whole", False), "whole", 0)
out, kills = folder / "out", []
for death in range(5):
    watched = out / ("state/model.safetensors" if death else "manifest.json")
    before = written(watched)
    child = forked(out, death > 0)
    while written(watched) == before:
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.015 if death else 0.1))  # also between the two files of a state
    os.kill(child, signal.SIGKILL)
    ended(child, out, signal.SIGKILL)
    started = (out / "state/config.json").exists()
    kills.append(load_checkpoint(out / "state").config["counters"]["step"] if started else 0)
ended(forked(out, True), "resumed", 0)
found = [json.loads((folder / name / "summary.json").read_text()) for name in ("whole", "out")]
print(json.dumps({"hashes": [s["ensemble_hash"] for s in found], "kills": kills,
                  "calls": [s["energy_calls"] for s in found], "rejections": [s["rejections"] for s in found]}))
"""


def test_killed_five_times_and_resumed_it_is_the_same_ensemble(tmp_path: Path):
    """A real signal 9 at random moments; a state is written after every round."""
    command = [sys.executable, "-c", NURSERY, str(Path(__file__).parent), str(tmp_path), "7"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["hashes"][0] == found["hashes"][1] and found["calls"][0] == found["calls"][1]
    assert found["rejections"][0] == found["rejections"][1]
    assert sorted(found["kills"]) == found["kills"] and len(set(found["kills"][1:])) == 4  # each further on
    loaded = [Ensemble.load(tmp_path / name) for name in ("whole", "out")]
    assert np.array_equal(loaded[0].log_weights, loaded[1].log_weights)
    records = [json.loads((tmp_path / name / "rounds.json").read_text()) for name in ("whole", "out")]
    assert records[0] == records[1] and len(records[0]) == 24


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ensemble, dict]:
    """A tiny run and its folder; 10 % of its energies fail."""
    out = tmp_path_factory.mktemp("wells") / "out"
    return (out, *run_wells(potential=Faulty(10), out=out, described={"note": "a double well"}))


def test_files(finished: tuple[Path, Ensemble, dict]):
    out, ensemble, summary = finished
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "manifest.json").read_text())["settings"]["note"] == "a double well"
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["status"] in ("ok", "gate_failed") and summary["gate"]["passed"] == (summary["status"] == "ok")
    for name in ("fes.png", "convergence.png", "weights.png"):
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (out / name).stat().st_size > 5000
    again = Ensemble.load(out)
    assert np.array_equal(again.positions, ensemble.positions) and again.cvs["x"].unit == "A"
    assert np.array_equal(again.log_weights, ensemble.log_weights)


def test_failed_energies_are_counted_and_the_run_goes_on(finished: tuple[Path, Ensemble, dict]):
    _, ensemble, summary = finished
    assert summary["rejections"] == {"no energy": 6 * 4 + 6} and summary["rounds"] == 6
    assert dict(ensemble.validity) == {"rejected": np.isneginf(ensemble.log_weights).sum()}
    assert (
        summary["energy_calls"] > 6 * 32 + 60 and np.isnan(ensemble.energies[np.isneginf(ensemble.log_weights)]).all()
    )


def test_surfaces_read_back(finished: tuple[Path, Ensemble, dict]):
    out, ensemble, _ = finished
    edges = np.linspace(*RANGE, 45)
    expected = ensemble.fes("x", bins=[edges])
    for name, free, error in (("fes.dat", expected.free_energy, expected.error),):
        fields, sets, rows = read_table(out / name)
        assert fields == ["x", "file.free", "error"] and sets["units_energy"] == "kJ/mol" and sets["unit_x"] == "A"
        assert rows[:, 0] == pytest.approx(expected.centres[0])
        assert rows[:, 1] * KJ_MOL == pytest.approx(free, abs=1e-9) and rows[:, 2] * KJ_MOL == pytest.approx(error)
    histogram = read_plumed(out / "fes_histogram.dat")["file.free"]
    assert len(histogram) == 44 and histogram.min() == 0 and not np.allclose(histogram, rows[:, 1])


def test_the_verdict_warns_where_the_weights_repair_much(finished: tuple[Path, Ensemble, dict]):
    """Of this tiny run: k-hat alone would judge otherwise where the histogram is far off."""
    _, ensemble, summary = finished
    apart = summary["disagreement_kt"]
    order = ["reliable", "warn", "biased", "failed"]
    near = apart["histogram"] is not None and apart["histogram"] <= apart["limit"]  # of too few known bins nothing is
    least = "reliable" if near else "warn"
    assert order.index(summary["verdict"]) >= order.index(least) and apart["limit"] == 0.3
    assert summary["verdict_unbiased"] == ensemble.verdict
    # the verdict that is printed and the gate that is the exit code are one judgement
    assert (summary["verdict"] in ("biased", "failed")) == (summary["status"] == "gate_failed")
    assert summary["barriers"] == [] or set(summary["barriers"][0]) == {
        "basins", "place", "samples", "forward", "reverse",
    }  # fmt: skip
    assert isinstance(summary["missing"], list)


def test_hills_sum_up_to_the_surface_of_the_bias(finished: tuple[Path, Ensemble, dict]):
    out, _, _ = finished
    columns = read_plumed(out / "fes_bias.dat")
    free = sum_hills((out / "HILLS").read_text(), [columns["x"]])
    assert columns["file.free"] == pytest.approx(free - free.min(), abs=2e-3 * np.ptp(free))
    assert np.ptp(free) > 0.5 and columns["file.free"].min() == 0


def test_colvar_has_every_accepted_sample(finished: tuple[Path, Ensemble, dict]):
    out, ensemble, _ = finished
    columns, good = read_plumed(out / "COLVAR"), np.isfinite(ensemble.log_weights)
    assert len(columns["x"]) == good.sum() < len(ensemble)
    assert columns["x"] == pytest.approx(ensemble.positions[good, 0, 0])
    assert columns["energy"] * KJ_MOL == pytest.approx(wells().energy(ensemble.positions[good]))
    difference = ensemble.log_weights[good] - ensemble.log_weights.max()
    assert columns["logweight"] == pytest.approx(difference, rel=1e-10) and columns["bias"].max() > 0


def test_the_network_that_is_left_is_the_averaged_one(finished: tuple[Path, Ensemble, dict]):
    """The rest of what draws again is in tests/test_fes_pretrained.py: this run's potential has no name."""
    checkpoint = load_checkpoint(finished[0] / "controller")
    net = {key.removeprefix("net."): tensor for key, tensor in checkpoint.tensors.items()}
    build_controller(checkpoint.config["config"]).load_state_dict(net)
    best = load_checkpoint(finished[0] / "best").tensors
    assert best.keys() == net.keys() and all(torch.equal(best[k], v) for k, v in net.items())


def test_a_finished_run_is_read_again(finished: tuple[Path, Ensemble, dict], monkeypatch: pytest.MonkeyPatch):
    out, ensemble, summary = finished
    monkeypatch.setattr(fes, "train_sampler", None)
    said: list[str] = []
    again, same = run_wells(potential=Faulty(10), out=out, described={"note": "a double well"}, resume=True,
                            log=said.append)  # fmt: skip
    assert same == summary and np.array_equal(again.positions, ensemble.positions) and "is finished" in said[0]


@pytest.mark.parametrize(("options", "key"), [
    ({"temperature": 310.0}, "'temperature' was 300.0 and is now 310.0"),
    ({"settings": replace(TINY, gamma=7.0)}, "'gamma' was 12.0 and is now 7.0"),
    ({"settings": replace(TINY, sampler=replace(TINY.sampler, learn=4))}, "'sampler.learn' was 3 and is now 4"),
    ({"settings": replace(TINY, schedule=replace(TINY.schedule, steps=9))}, "'schedule.steps' was 8 and is now 9"),
    ({"ranges": [(-2.2, 2.3)]}, "'walls' was ['x < 2.2 k=20'"),
    ({"seed": 1}, "'seed' was 0 and is now 1"),
])  # fmt: skip
def test_resume_with_other_settings_is_refused(options: dict, key: str, finished: tuple[Path, Ensemble, dict]):
    given = {"potential": Faulty(10), "out": finished[0], "described": {"note": "a double well"}, "resume": True}
    with pytest.raises(InputError) as error:
        run_wells(**given, **options)
    assert key in str(error.value)
    assert json.loads((finished[0] / "summary.json").read_text()) == finished[2]


def test_an_earlier_run_is_replaced_only_if_asked(finished: tuple[Path, Ensemble, dict], tmp_path: Path):
    with pytest.raises(InputError, match="not empty"):
        run_wells(out=finished[0])
    (tmp_path / "out").mkdir()
    first = run_wells(out=tmp_path / "out")[1]
    (tmp_path / "out" / "mine.txt").write_text("precious")
    second = run_wells(out=tmp_path / "out", overwrite=True)[1]
    assert first["ensemble_hash"] == second["ensemble_hash"] and (tmp_path / "out" / "mine.txt").exists()
    assert first["energy_calls"] == second["energy_calls"]


def test_without_a_folder_it_is_the_same_ensemble_and_a_potential_may_be_used_twice():
    potential = wells()
    seen: list[list[dict]] = [[], []]
    said: list[str] = []
    first, second = (
        sample_cv(potential, [X], T, starts=START, ranges=[RANGE], settings=TINY, progress=rows.append, log=said.append)
        for rows in seen
    )  # fmt: skip
    assert np.array_equal(first.log_weights, second.log_weights)
    assert sum(line.startswith("missing? the surface without the bias rests on") for line in said) == 2
    assert sum(line.startswith(f"the surface is {first.at_best}: k-hat ") for line in said) == 2
    assert seen[0] == seen[1] and [row["round"] for row in seen[0]][-1] >= 5
    other = sample_cv(potential, [X], T, starts=START, ranges=[RANGE], settings=TINY, seed=1)
    assert not np.array_equal(first.log_weights, other.log_weights)


def test_a_variable_that_never_moves_gets_a_note(tmp_path: Path):
    said: list[str] = []
    _, summary = run_wells(cvs=[constant()], ranges=[(0.0, 2.0)], out=tmp_path / "out", log=said.append)
    note = "still does not move in the starting simulation: is it constant by construction?"
    assert summary["notes"] == [note] and note in said and (tmp_path / "out" / "fes.png").exists()


BAD = [
    ({"temperature": 0.0}, ["temperature 0 K", "above 0 K"]),
    ({"temperature": -5.0}, ["temperature -5 K"]),
    ({"temperature": float("nan")}, ["temperature nan K"]),
    ({"ranges": [(-0.5, 2.0)]}, ["starting structures are at -1", "grid of 'x', -0.5 to 2", "widen --range"]),
    ({"ranges": [(2.0, -2.0)]}, ["range 2 to -2", "low < high"]),
    ({"ranges": [(-2.0, float("inf"))]}, ["range -2 to inf", "finite"]),
    ({"ranges": None}, ["collective variable 'x'", "its range is not known", "--range"]),
    ({"ranges": [RANGE, RANGE]}, ["2 ranges for 1 collective variables"]),
    ({"settings": replace(TINY, bins=20)}, ["grid too coarse", "bins suffice"]),
    ({"settings": replace(TINY, widths=(0.1, 0.1))}, ["2 hill widths for 1"]),
    ({"settings": replace(TINY, widths=(0.0,))}, ["hill width 0", "above 0, in A"]),
    ({"settings": replace(TINY, widths=(float("nan"),))}, ["hill width nan"]),
    ({"settings": replace(TINY, gamma=1.0)}, ["gamma = 1", "bias factor above 1"]),
    ({"settings": replace(TINY, cap=0.0)}, ["cap = 0 kT"]),
    ({"settings": replace(TINY, samples=0)}, ["samples = 0", "at least 1"]),
    ({"settings": replace(TINY, paths=0)}, ["paths = 0", "at least 1"]),
    ({"settings": replace(TINY, sampler=replace(TINY.sampler, rounds=0))}, ["sampler.rounds = 0"]),
    ({"settings": replace(TINY, sampler=replace(TINY.sampler, width=0.0))}, ["sampler.width = 0.0", "above 0"]),
    ({"settings": replace(TINY, frames=0)}, ["frames = 0"]),
    ({"settings": replace(TINY, controller="pair")}, ["unknown controller 'pair'", "auto, point"]),
    ({"cvs": []}, ["0 collective variables", "one to three"]),
    ({"cvs": [X, X], "ranges": None}, ["given twice"]),
    ({"cvs": [custom("bias", X.function, "A")]}, ["two fields of one name", "bias"]),
    ({"cvs": [custom("...", X.function, "A")]}, ["named '...'", "letters or digits"]),
    ({"starts": None}, ["starting structures of shape", "(S, 1, 3)"]),
    ({"starts": [[[np.nan, 0, 0]]]}, ["starts, structure 0, atom 0: a coordinate is nan"]),
    ({"units": "hartree"}, ["unknown unit 'hartree'", "kcal/mol"]),
]


@pytest.mark.parametrize(("options", "texts"), BAD, ids=[" ".join(t) for _, t in BAD])
def test_bad_input_costs_nothing(options: dict, texts: list[str], tmp_path: Path):
    potential = wells()
    with pytest.raises(InputError) as error:
        run_wells(potential=potential, out=tmp_path / "out", **options)
    assert all(text in str(error.value) for text in texts), str(error.value)
    assert potential.calls == 0 and not (tmp_path / "out").exists()


ATOMS = [6, 6, 8, 1]


def cage() -> DistanceRestraint:
    """Four atoms that keep their distances."""
    pairs = np.array(np.triu_indices(4, 1)).T
    distances = np.linalg.norm(SQUARE[pairs[:, 0]] - SQUARE[pairs[:, 1]], axis=1)
    return DistanceRestraint(pairs, distances, 3.0, ATOMS)


def test_walls_that_exclude_the_start():
    with pytest.raises(InputError, match=r"wall 'distance 0 2' < 0.5 A: the start structure is at 1.6 A"):
        sample_cv(cage(), ["distance 0 1"], T, starts=SQUARE, ranges=[(0.8, 2.4)], walls=["distance 0 2 < 0.5"])


def test_a_picture_of_a_variable_with_a_path_in_its_name(tmp_path: Path):
    cvs = [custom(name, lambda p, d=d: p[:, 0, d], "A") for d, name in enumerate(("rmsd ../../x/ref.xyz", "y", "z"))]
    settings = replace(TINY, widths=(0.4, 0.4, 0.4))
    run_wells(cvs=cvs, ranges=[RANGE] * 3, settings=settings, out=tmp_path / "out")
    assert (tmp_path / "out" / "fes_rmsd_.._.._x_ref.xyz.png").exists()


@pytest.mark.parametrize("dims", [2, 3])
def test_several_variables_of_a_molecule(dims: int, tmp_path: Path):
    cvs = ["distance 0 1", "torsion 1 0 2 3", "d = distance 0 2 - distance 1 3"][:dims]
    settings = replace(TINY, sampler=replace(TINY.sampler, width=0.05), schedule=replace(TINY.schedule, start=36.0))
    ensemble, summary = fes.run_fes(
        cage(), cvs, T, starts=SQUARE, ranges=[(0.8, 2.4), None, (-2.0, 2.0)][:dims], settings=settings,
        out=tmp_path / "out",
    )  # fmt: skip
    fields, sets, rows = read_table(tmp_path / "out" / "fes.dat")
    assert fields[:dims] == ["distance_0_1", "torsion_1_0_2_3", "d"][:dims]
    assert sets["periodic_torsion_1_0_2_3"] == "true" and rows.shape == (16 * 31 * (40 if dims > 2 else 1), dims + 2)
    pictures = {path.name for path in (tmp_path / "out").glob("fes*.png")}
    assert pictures == ({"fes.png"} if dims == 2 else {"fes_distance_0_1.png", "fes_torsion_1_0_2_3.png", "fes_d.png"})
    assert ensemble.cvs["torsion 1 0 2 3"].period == 2 * np.pi and bool(summary["results"]) == (dims == 2)
    x = ensemble.positions[np.isfinite(ensemble.log_weights)]
    assert x.mean(1) == pytest.approx(np.zeros((len(x), 3)), abs=1e-9)
    distances = np.linalg.norm(x[:, 0] - x[:, 1], axis=1)
    assert read_plumed(tmp_path / "out" / "COLVAR")["distance_0_1"] == pytest.approx(distances)


def flat_methanol() -> np.ndarray:
    """C, O, H on O, three H on C: the torsion 2 1 0 3 is 0, at which its mirror image is the same."""
    return np.array([[0, 0, 0], [1.41, 0, 0], [1.73, 0.89, 0], [-0.36, 1.03, 0],
                     [-0.36, -0.51, 0.89], [-0.36, -0.51, -0.89]])  # fmt: skip


def test_symmetry_of_the_start_hides_nothing():
    """A torsion of 0 is odd all the same; an RMSD of 0 has no gradient and yet depends on all atoms."""
    system = System(DistanceRestraint([[0, 1]], 1.4, 1.0, [6, 8, 1, 1, 1, 1]), flat_methanol()[None])
    turned = Problem.of(system, [torsion(2, 1, 0, 3)], T, None, [], TINY)
    assert turned._odd() and turned._singled_out() == {0, 1, 2, 3} and system.exchangeable([0, 1, 2, 3]) == [[4, 5]]
    far = Problem.of(system, ["distance 0 1"], T, [(1.0, 2.0)], [], TINY)
    assert not far._odd() and far._singled_out() == {0, 1} and system.exchangeable([0, 1]) == [[3, 4, 5]]
    deviation = Problem.of(system, [rmsd(flat_methanol())], T, [(-0.1, 2.0)], [], TINY)
    assert deviation._singled_out() == set(range(6))


KT = KB * T


def ensemble_on(values: np.ndarray, free: np.ndarray, period: float | None, repeat: int = 30) -> Ensemble:
    """`repeat` samples at each of `values` (n, D), weighted as by the free energy `free` (n,) in kT."""
    values, log_w = np.repeat(values, repeat, axis=0), -np.repeat(free, repeat)
    names = ["a", "b"][: values.shape[1]]
    cvs = {name: CVValues(name, values[:, d], "rad", period) for d, name in enumerate(names)}
    return Ensemble(np.zeros((len(log_w), 1, 3)), log_w, np.zeros(len(log_w)), T, np.array([1]), cvs=cvs)


EDGES = np.linspace(-np.pi, np.pi, 37)
ANGLES = (EDGES[1:] + EDGES[:-1]) / 2


def test_a_basin_across_the_period_is_one():
    free = 3 + 3 * np.cos(ANGLES)  # minimum at +-pi
    around, cut = (ensemble_on(ANGLES[:, None], free, period) for period in (2 * np.pi, None))
    found = basins(around, around.fes("a", bins=[EDGES]))
    assert len(found) == 1 and found[0].share == pytest.approx(1) and abs(found[0].minimum[0]) == ANGLES[-1]
    assert found[0].free_energy.value == 0 and found[0].samples == 36 * 30
    found = basins(cut, cut.fes("a", bins=[EDGES]))
    assert len(found) == 2 and [b.share for b in found] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(("barrier", "count"), [(0.6, 1), (2.0, 2)])
def test_shallow_basins_are_merged(barrier: float, count: int):
    """Two wells, 1 kT apart, `barrier` above the higher one."""
    free = np.interp(ANGLES, [-np.pi, -1.5, 0, 1.5, np.pi], [6, 0, 1 + barrier, 1, 7])
    ensemble = ensemble_on(ANGLES[:, None], free, None)
    found = basins(ensemble, ensemble.fes("a", bins=[EDGES]))
    assert len(found) == count and found[0].minimum[0] == pytest.approx(-1.5, abs=0.1)
    assert sum(b.share for b in found) == pytest.approx(1)
    if count == 2:
        p = np.exp(-free)
        expected = -np.log(p[ANGLES > 0.01].sum() / p[ANGLES < 0.01].sum())
        assert found[1].free_energy.value / KT == pytest.approx(expected, abs=0.3)
        assert found[1].minimum[0] == pytest.approx(1.5, abs=0.1)


def test_three_wells_in_two_dimensions_one_of_them_a_stray():
    """Wells around a corner of the torus and in its middle; a lone sample far off is no basin."""
    a, b = (m.ravel() for m in np.meshgrid(ANGLES, ANGLES, indexing="ij"))
    free = 4 - 2 * np.cos(a - np.pi) * np.cos(b / 2) ** 2 + 0.5 * np.cos(a)
    free = np.minimum(6 * (2 + np.cos(a) + np.cos(b)), 1 + 6 * (2 - np.cos(a) - np.cos(b)))
    keep = (free < 8) | ((a == a[18 * 36]) & (b == b[0]))
    ensemble = ensemble_on(np.stack([a, b], 1)[keep], free[keep], 2 * np.pi, repeat=3)
    found = basins(ensemble, ensemble.fes(["a", "b"], bins=[EDGES, EDGES]))
    assert len(found) == 2
    assert np.abs(found[0].minimum).tolist() == pytest.approx([ANGLES[-1]] * 2)
    assert np.abs(found[1].minimum).tolist() == pytest.approx([ANGLES[18]] * 2)
    assert found[1].free_energy.value / KT == pytest.approx(1, abs=0.1)
