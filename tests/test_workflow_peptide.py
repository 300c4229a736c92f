"""`sample_peptide`: weights against independent energies and densities, interrupted anywhere, honest about faults."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peptide_cases import FlowPotential, Wrong, tiny_flow, tiny_weights

import molgen
from molgen.data.peptide import Peptide, build_peptide
from molgen.errors import CalculatorError, CheckpointError, InputError
from molgen.prose.layout import Layout
from molgen.reweight.importance import normalised
from molgen.units import KB, KJ_MOL, NM
from molgen.workflows import draws, finetune
from molgen.workflows import peptide as workflow
from molgen.workflows.peptide import sample_peptide

sample = partial(sample_peptide, "GG", weights=tiny_flow())


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(draws, "PIECE", 8)


@pytest.fixture
def exact(monkeypatch):
    """A force field whose Boltzmann distribution at 400 K is the flow's, and almost that elsewhere."""
    monkeypatch.setattr(Peptide, "potential", lambda self, platform="auto", workers=1: FlowPotential(self, 400.0))


def openmm_energies(peptide, positions):
    """In eV, by OpenMM's own interface."""
    import openmm

    context = openmm.Context(
        peptide.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    found = []
    for x in positions:
        context.setPositions(x / NM)
        found.append(context.getState(getEnergy=True).getPotentialEnergy()._value * KJ_MOL)
    return np.array(found)


def test_weights_are_boltzmann_factor_over_density():
    ensemble = sample(12, 450.0)
    peptide = build_peptide("GG")
    energies = openmm_energies(peptide, ensemble.positions)
    assert ensemble.energies == pytest.approx(energies, abs=1e-9)
    x = torch.from_numpy(ensemble.positions)
    log_q = tiny_flow().model.log_prob(Layout.of(peptide), x, torch.full((12,), 450.0)).detach().numpy()
    log_q -= ensemble.log_q[0] - log_q[0]
    assert ensemble.log_weights == pytest.approx(-energies / (KB * 450.0) - log_q, abs=2e-3)
    assert ensemble.temperature == 450.0 and ensemble.trajectory.n_frames == 12


def test_sample_depends_on_seed_and_index_alone(small_pieces, exact):
    few, many, other = sample(5, 400.0), sample(20, 400.0), sample(5, 400.0, seed=1)
    # single precision: batches of another size are summed in another order, 2e-5 Angstrom on some processors
    assert many.positions[:5] == pytest.approx(few.positions, abs=2e-4)
    assert np.abs(other.positions - few.positions).max() > 0.1


def test_a_flow_that_is_exact_is_reliable(exact):
    ensemble, summary = run(40, 400.0)
    assert ensemble.verdict == "reliable" and summary["status"] == "ok"
    inside = 40 / summary["proposals"]  # the untrained flow proposes a few that are no molecule
    assert ensemble.diagnostics.ess == pytest.approx(1, abs=1e-3) and inside > 0.9 and not summary["rejections"]
    assert ensemble.diagnostics.log_z == pytest.approx(np.log(inside), abs=1e-3)


def run(n, temperature, **options):
    """An ensemble and the summary of its run, which are left in `out` if one is among `options`."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"weights": tiny_flow(), "out": Path(folder), **options}
        ensemble = sample_peptide("GG", n, temperature, **options)
        return ensemble, json.loads((options["out"] / "summary.json").read_text())


def test_bad_weights_are_written_and_flagged(tmp_path):
    ensemble, summary = run(60, 310.0, out=tmp_path / "out", observables=["phi 1", "rg"], save_float64=True)
    assert ensemble.verdict in ("biased", "failed") and summary["status"] == "gate_failed"
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "topology.pdb", "samples.xtc", "weights.npz", "ramachandran.png", "weights.png", "summary.json",
        "manifest.json",
    }  # fmt: skip
    again = molgen.Ensemble.load(tmp_path / "out")
    assert np.array_equal(again.positions, ensemble.positions)
    assert np.array_equal(again.log_weights, ensemble.log_weights)
    energy, phi, rg = summary["results"]
    assert energy["unit"] == "kJ/mol" and phi["unit"] == "degrees" and rg["unit"] == "A"
    mean = again.weights @ again.energies / KJ_MOL
    assert energy["value"] == pytest.approx(mean) and -180 <= phi["value"] <= 180
    assert summary["energy_calls"] == 60 and summary["samples_per_second"] > 0 < summary["energies_per_second"]
    assert summary["validity"]["wrong_chirality"] == 0 and summary["weights"]["n"] == 60


def test_kcal(tmp_path, exact):
    kilojoule, kilocalorie = (run(10, 400.0, units=unit)[1]["results"][0] for unit in ("kJ/mol", "kcal/mol"))
    assert kilojoule["value"] == pytest.approx(4.184 * kilocalorie["value"]) and kilocalorie["unit"] == "kcal/mol"


def test_dropping_the_largest_weights_is_biased(exact):
    ensemble, summary = run(500, 410.0, prose_compat=True)
    assert np.isneginf(ensemble.log_weights).sum() == 1
    assert summary["verdict"] == "biased" and summary["status"] == "gate_failed" and summary["prose_compat"]


def test_non_finite_energies_have_weight_zero_and_are_counted(monkeypatch):
    monkeypatch.setattr(Peptide, "potential", lambda self, platform, workers: Wrong(self, every=3))
    ensemble, summary = run(30, 400.0)
    lost = np.isnan(ensemble.energies)
    assert summary["rejections"] == {"non-finite energy": lost.sum()} and summary["weights"]["n"] == 30
    assert lost[:25:3].all() and 10 <= lost.sum() <= 12  # every third of a piece; a few were drawn again
    kept = np.flatnonzero(~lost)
    assert np.flatnonzero(np.isfinite(ensemble.log_weights)).tolist() == kept.tolist()
    assert normalised(ensemble.log_weights)[kept] == pytest.approx(1 / len(kept), abs=1e-3)


def test_no_finite_energy_at_all(monkeypatch):
    monkeypatch.setattr(Peptide, "potential", lambda self, platform, workers: Wrong(self, every=1))
    with pytest.raises(CalculatorError, match=r"GG: no sample of 10 has a finite energy \(Wrong returned"):
        sample(10, 400.0)


def test_smc_carries_its_ancestors_and_energies(monkeypatch):
    monkeypatch.setattr(workflow, "MOVES", 3)
    ensemble, summary = run(60, 400.0, smc=True)
    smc = summary["smc"]
    assert [trial["temperature"] for trial in smc["trials"]] == [443.0, 490.0, 542.0, 600.0]
    assert smc["hot_temperature"] in (443.0, 490.0, 542.0, 600.0) and smc["stages"][-1]["b"] == 1
    assert ensemble.groups is not None and smc["unique_ancestors"] == len(set(ensemble.groups.tolist())) < 60
    assert smc["ess_of_ancestors"] < ensemble.diagnostics.ess
    shares = np.bincount(ensemble.groups, normalised(ensemble.log_weights), 60)
    error = np.sqrt(60 / 59) * np.linalg.norm(shares - 1 / 60)
    assert summary["weights"]["log_z_error"] == ensemble.diagnostics.log_z_error == pytest.approx(error)
    assert ensemble.energies == pytest.approx(openmm_energies(build_peptide("GG"), ensemble.positions), abs=1e-9)
    effective = smc["ess_of_ancestors"] * 60
    assert effective < 25 and summary["verdict"] == "biased" and summary["status"] == "gate_failed"
    assert f"descends from {effective:.0f} effective ancestors of 60, fine from 100" in summary["why"]
    assert not any(row["reliable"] for row in summary["results"])
    each = 2 + workflow.TRIALS + workflow.MOVES * workflow.LEAPFROG * len(smc["stages"])
    assert summary["energy_calls"] == 60 * each


def test_the_ladder_begins_at_the_coldest_temperature_that_is_nearly_the_best():
    def trials(*spreads):
        """Draws with Gaussian log-weights: ESS falls with the spread, k-hat rises."""
        noise = np.random.default_rng(0).standard_normal(1000)
        return [SimpleNamespace(temperature=k, log_weights=s * noise) for k, s in enumerate(spreads)]

    assert workflow.ladder_start(trials(3.0, 1.0, 0.9, 0.9)) == 1
    assert workflow.ladder_start(trials(1.5, 1.4, 0.5, 0.4)) == 2
    assert workflow.ladder_start(trials(6.0, 5.0, 4.0, 1.0)) == 3
    assert workflow.ladder_start(trials(9.0, 9.0, 9.0, 9.0)) == 3, "none can be trusted"


def test_trials_lie_between_the_temperature_and_the_hottest(monkeypatch):
    monkeypatch.setattr(workflow, "MOVES", 1)
    assert [t["temperature"] for t in run(20, 599.0, smc=True)[1]["smc"]["trials"]] == [600.0]
    assert [t["temperature"] for t in run(20, 600.0, smc=True)[1]["smc"]["trials"]] == [600.0]


def test_a_trial_that_cannot_be_drawn_is_passed_over(monkeypatch):
    """If all cannot, that is the error."""
    monkeypatch.setattr(workflow, "MOVES", 1)
    real, bad, said = workflow.draw, {490.0, 600.0}, []

    def draw(flow, layout, energies, n, temperature, *rest, **options):
        if temperature in bad:
            raise CalculatorError(f"hardly a proposal at {temperature:g} K")
        return real(flow, layout, energies, n, temperature, *rest, **options)

    monkeypatch.setattr(workflow, "draw", draw)
    summary = run(20, 400.0, smc=True, log=said.append)[1]
    assert [trial["temperature"] for trial in summary["smc"]["trials"]] == [443.0, 542.0]
    assert said[:2] == [f"no trial at {kelvin} K: hardly a proposal at {kelvin} K" for kelvin in (490, 600)]
    bad |= {443.0, 542.0}
    with pytest.raises(CalculatorError, match="hardly a proposal at 600 K"):
        run(20, 400.0, smc=True)


class Killed(BaseException):
    pass


def kill_at_the_next_write(monkeypatch, before: bool) -> None:
    """The process dies at a file in `state`, before or after it is written."""
    real = draws.write_npz

    def write(path, arrays, **options):
        if not before:
            real(path, arrays, **options)
        raise Killed

    monkeypatch.setattr(draws, "write_npz", write)


WAYS = {"plain": ({}, 2), "smc": ({"smc": True}, 12), "finetuned": ({"finetune": 2}, 7)}


@pytest.mark.parametrize("way", WAYS)
def test_killed_everywhere_and_resumed_gives_the_same_ensemble(way, tmp_path, monkeypatch):
    """Killed at its first write, resumed, killed at the next, and so on to the end."""
    monkeypatch.setattr(draws, "PIECE", 16)
    monkeypatch.setattr(workflow, "MOVES", 2)
    monkeypatch.setattr(workflow, "write_ensemble", lambda run, ensemble, summary, *rest: run.finish("ok", **summary))
    quick = partial(finetune.FinetuneSettings, samples=16, passes=1.0, batch=8, patience=2)
    monkeypatch.setattr(finetune, "FinetuneSettings", quick)
    options, least = WAYS[way]
    whole = run(20, 450.0, out=tmp_path / "whole", **options)[1]["ensemble_hash"]
    for death in range(60):
        try:
            with monkeypatch.context() as patch:
                kill_at_the_next_write(patch, before=death % 4 == 0)
                found = run(20, 450.0, out=tmp_path / "out", resume=death > 0, **options)
            break
        except Killed:
            assert "ensemble_hash" not in json.loads((tmp_path / "out" / "summary.json").read_text())
    assert death >= least and found[1]["ensemble_hash"] == whole


def test_kill_9_and_resume(tmp_path, monkeypatch):
    """A real process and a real signal."""
    weights, out = tiny_weights(tmp_path / "weights"), tmp_path / "out"
    script = "import molgen.workflows.draws as d; d.PIECE = 16; from molgen.cli.main import main; main()"
    options = ["peptide", "GG", "-n", "96", "-T", "450", "--weights", str(weights), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", script, *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(out.glob("state/*.npz"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "summary.json").exists()
    monkeypatch.setattr(draws, "PIECE", 16)
    monkeypatch.setattr(workflow, "write_ensemble", lambda run, ensemble, summary, *rest: run.finish("ok", **summary))
    resumed = run(96, 450.0, weights=weights, out=out, resume=True)[1]["ensemble_hash"]
    assert resumed == run(96, 450.0, weights=weights)[1]["ensemble_hash"]


def test_a_finished_run_is_read_again(tmp_path, exact, monkeypatch):
    first, summary = run(12, 400.0, out=tmp_path, save_float64=True)
    monkeypatch.setattr(workflow, "draw", None)  # nothing is drawn
    said = []
    again, same = run(12, 400.0, out=tmp_path, save_float64=True, resume=True, log=said.append)
    assert same == summary and np.array_equal(again.positions, first.positions) and "is finished" in said[0]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    other = run(12, 400.0, out=tmp_path, save_float64=True, resume=True, observables="rg", units="kcal/mol")[1]
    assert [row["name"] for row in other["results"]] == ["potential energy", "rg"]
    assert 4.184 * other["results"][0]["value"] == pytest.approx(summary["results"][0]["value"])
    assert other["results"][1]["value"] == pytest.approx(first.expectation("rg").value)
    labelled = run(12, 400.0, out=tmp_path, save_float64=True, resume=True, observables="size = rg")[1]["results"][1]
    assert (labelled["name"], labelled["text"]) == ("size", "size = rg")
    assert labelled["value"] == other["results"][1]["value"]
    other = run(12, 400.0, out=tmp_path, save_float64=True, resume=True, observables="rg", units="kcal/mol")[1]
    assert other == json.loads((tmp_path / "summary.json").read_text()) and other["status"] == summary["status"]
    assert other["ensemble_hash"] == summary["ensemble_hash"]


def test_a_finished_run_reads_the_files_of_its_observables_again(tmp_path, exact):
    options = {"out": tmp_path / "out", "save_float64": True, "observables": f"rmsd {tmp_path / 'r.xyz'}"}
    x, found = sample(12, 400.0).positions, []
    for frame, resume in ((0, False), (1, True)):
        lines = [f"{z} {a} {b} {c}" for z, (a, b, c) in zip(build_peptide("GG").numbers, x[frame], strict=True)]
        (tmp_path / "r.xyz").write_text("\n".join([str(len(lines)), "", *lines]) + "\n")
        ensemble, summary = run(12, 400.0, resume=resume, **options)
        found.append(summary["results"][1]["value"])
        assert found[-1] == pytest.approx(ensemble.expectation(options["observables"]).value)
    assert abs(found[1] - found[0]) > 1e-6


def test_disk_full_keeps_what_is_finished(tmp_path, exact, small_pieces, monkeypatch):
    options = {"out": tmp_path / "out"}
    whole = run(20, 400.0)[1]["ensemble_hash"]
    pieces, real = tmp_path / "out" / "state", os.fsync

    def fsync(descriptor):
        if len(list(pieces.glob("*.npz"))) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(InputError, match=r"npz: cannot write: no space left(.|\n)*remedy: free some space"):
            run(20, 400.0, **options)
    assert len(list(pieces.glob("draws-*.npz"))) == 2
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run(20, 400.0, resume=True, **options)[1]["ensemble_hash"] == whole


def test_resume_refuses_other_settings(tmp_path, exact):
    run(10, 400.0, out=tmp_path)
    with pytest.raises(InputError, match="cannot resume: 'n' was 10 and is now 11"):
        run(11, 400.0, out=tmp_path, resume=True)


def test_resume_refuses_a_run_of_another_method(tmp_path, exact):
    """One of when broken topology had weight zero: its ladder and its adapter are of another distribution."""
    run(10, 400.0, out=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["settings"]["method"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="cannot resume: an earlier version of molgen"):
        run(10, 400.0, out=tmp_path, resume=True)


@pytest.mark.parametrize(("sequence", "cap", "text"), [
    ("G", "ace-nme", "trained on 2 to 4 residues, this peptide has 1: k-hat decides"),
    ("GGGGGGGGGGGGG", None, "trained on 2 to 4 residues, this peptide has 13: k-hat decides"),
    ("GG[HID]", None, "not trained on [HID]: k-hat decides"),
    ("[HID]GG[HIP]", "ace-nme", "not trained on [HID] and [HIP] and ace-nme caps: k-hat decides"),
    ("GG[HIE]", None, None),
])  # fmt: skip
def test_what_the_flow_was_not_trained_on_is_warned_of(sequence, cap, text):
    said = []
    ensemble = sample_peptide(sequence, 2, 400.0, cap=cap, weights=tiny_flow(), log=said.append)
    assert len(ensemble) == 2 and ensemble.verdict == "failed"
    assert said == [] if text is None else text in said[0]


@pytest.mark.parametrize(("options", "texts"), [
    ({"n": 0}, ["--samples: 0 given", "at least 1"]),
    ({"sequence": "GXG"}, ["unknown residue 'X' at position 2", "GXG"]),
    ({"sequence": ""}, ["the sequence is empty"]),
    ({"sequence": "G"}, ["one residue with both termini charged", "--cap ace-nme"]),
    ({"cap": "boc"}, ["unknown cap 'boc'"]),
    ({"temperature": 250.0}, ["250 K lies outside", "300 to 600 K"]),
    ({"temperature": 601.0}, ["601 K lies outside", "300 to 600 K"]),
    ({"temperature": float("nan")}, ["-T", "temperature nan K"]),
    ({"finetune": -1}, ["--finetune: -1 given"]),
    ({"workers": 0}, ["--workers: 0 given"]),
    ({"workers": True}, ["--workers: True given"]),
    ({"observables": 3}, ["observables: 3 given"]),
    ({"out": 3}, ["--out: 3 given"]),
    ({"units": "hartree"}, ["--units: unknown unit 'hartree'", "kJ/mol or kcal/mol"]),
    ({"device": "cuda:9"}, ["--device: no device 'cuda:9'"]),
    ({"platform": "Abacus"}, ["no OpenMM platform 'Abacus'", "Reference"]),
    ({"observables": ["phi 7"]}, ["phi 7"]),
    ({"observables": ["beauty"]}, ["observable 'beauty': no kind of variable 'beauty'", "distance"]),
    ({"observables": "phi ²"}, ["no residue '²' with phi"]),
    ({"n": 1e2}, ["--samples: 100.0", "a whole number"]),
    ({"temperature": "400"}, ["-T", "a number above 0 K"]),
    ({"sequence": ["G", "G"]}, ["sequence", "text"]),
    ({"seed": -1}, ["--seed: -1 given", "at least 0"]),
    ({"prose_compat": True, "n": 200}, ["--prose-compat: the largest 0.2% of 200 weights are none", "-n 500"]),
    ({"observables": [3]}, ["observables: (3,) given", "Ensemble.expectation"]),
    ({"weights": 3}, ["weights: 3 given", "a name, a folder, or a loaded flow"]),
    ({"out": None, "resume": True}, ["resume: given without a folder"]),
    ({"out": None, "overwrite": True}, ["overwrite: given without a folder"]),
])  # fmt: skip
def test_bad_input(options, texts, tmp_path):
    given = {"sequence": "GG", "n": 10, "temperature": 400.0, "weights": tiny_flow(), "out": tmp_path / "out"}
    with pytest.raises(InputError) as caught:
        sample_peptide(**{**given, **options})
    assert all(text in str(caught.value) for text in texts), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint folder"):
        sample_peptide("GG", 10, 400.0, weights=tmp_path / "nowhere")


def test_pool_pays_for_slow_energies_only():
    assert not draws.pool_pays(5e-5, 10_000, 2) and not draws.pool_pays(1e-2, 10_000, 1)
    assert draws.pool_pays(1e-2, 10_000, 2) and not draws.pool_pays(1e-2, 100, 2)


@pytest.mark.slow
def test_a_pool_gives_the_same_ensemble():
    alone, pooled = (run(20, 450.0, workers=workers)[1]["ensemble_hash"] for workers in (1, 2))
    assert alone == pooled
