"""`molgen peptide`: what it prints and writes, its exit codes, and bad input by its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peptide_cases import FlowPotential, tiny_weights
from typer.testing import CliRunner, Result

from molgen.checkpoint import SHIPPED, TENSORS_FILE
from molgen.cli import fes_report, main
from molgen.cli import peptide as command
from molgen.data.peptide import Peptide
from molgen.reweight.importance import diagnose
from molgen.workflows import peptide_output

FILES = {"topology.pdb", "samples.xtc", "weights.npz", "ramachandran.png", "weights.png", "summary.json"}
runner = CliRunner()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_weights(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def molgen(weights: Path, tmp_path: Path) -> Callable[..., Result]:
    """`molgen peptide ...` with an untrained flow, writing to tmp_path/out."""

    def run(*arguments: Any) -> Result:
        given = [str(a) for a in arguments]
        options = [] if "--weights" in given else ["--weights", str(weights)]
        return runner.invoke(main.app, ["peptide", *given, *options, "--out", str(tmp_path / "out")])

    return run


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peptide, "potential", lambda self, platform="auto", workers=1: FlowPotential(self, 400.0))


def test_report_and_files(molgen: Callable[..., Result], tmp_path: Path, exact: None) -> None:
    asked = ["--observable", "phi 1", "--observable", "distance 0 5"]
    result = molgen("GG", "-n", 60, "-T", 400, *asked, "--units", "kcal/mol")
    assert result.exit_code == 0, result.stderr
    lines = {line[:20].strip(): line[21:] for line in result.stdout.splitlines()}
    assert lines["peptide"] == "GG, 17 atoms, 400 K" and lines["verdict"] == "reliable" and lines["samples"] == "60"
    assert "% raw" in lines["ESS"] and "fine up to" in lines["k-hat"]
    assert lines["potential energy"].endswith("kcal/mol") and "degrees" in lines["phi 1"]
    assert lines["distance 0 5"].endswith(" A") and " +- " in lines["distance 0 5"]
    assert "of 6" in lines["drawn again"] and "samples a second" in lines["cost"]
    assert all(name in lines["files"] for name in FILES)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"manifest.json"}
    assert "positions" not in np.load(tmp_path / "out" / "weights.npz")


def test_untrustworthy_weights_are_exit_3(molgen: Callable[..., Result], tmp_path: Path) -> None:
    """The ensemble is there all the same; --json leaves nothing else on stdout."""
    result = molgen("GG", "-n", 60, "-T", 310, "--json", "--save-float64")
    assert result.exit_code == 3, result.stderr
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "gate_failed" and summary["verdict"] in ("biased", "failed")
    assert "not Boltzmann averages; try --finetune 4 or --smc" in result.stderr
    assert FILES <= {path.name for path in (tmp_path / "out").iterdir()}
    assert np.load(tmp_path / "out" / "weights.npz")["positions"].shape == (60, 17, 3)


def test_the_advice_is_what_was_not_tried_or_still_gains(tmp_path: Path) -> None:
    told = {
        "prose_compat": False,
        "verdict": "biased",
        "smc": None,
        "weights": {"khat": 0.9, "threshold": 0.66, "n": 1000},
    }
    rising, falling = ([{"kept": k == best} for k in range(3)] for best in (2, 1))
    for finetuning, smc, expected in (
        ([], None, "try --finetune 4 or --smc"),
        (rising, None, f"try --weights {tmp_path / 'adapter'} --finetune 4 --out NEW or --smc"),
        (falling, None, "try --smc"),
        (falling, {"ess_of_ancestors": 0.2}, "neither finetuning nor --smc"),
        (falling, {"ess_of_ancestors": 0.011}, "try -n 5000"),
    ):
        assert command._advice({**told, "finetuning": finetuning, "smc": smc}, tmp_path).endswith(
            expected + (" has repaired that" if "neither" in expected else "")
        )


def test_few_effective_samples_ask_for_more(tmp_path: Path) -> None:
    weights = {"khat": 0.3, "threshold": 0.4, "n": 60, "ess": 0.2}
    told = {"prose_compat": False, "verdict": "biased", "smc": None, "finetuning": [], "weights": weights}
    assert command._advice(told, tmp_path) == "12 effective samples are too few: give -n 300 or more"
    told["weights"] = {**weights, "khat": 0.64}  # above its threshold, and no reason to refuse
    assert command._advice(told, tmp_path) == "12 effective samples are too few: give -n 300 or more"
    told["weights"] = {**weights, "khat": None}  # hardly a weight that counts
    assert command._advice(told, tmp_path).endswith("try --finetune 4 or --smc")


def test_everything_that_a_verdict_rests_on_is_said() -> None:
    rng = np.random.default_rng(1)
    for spread, n, texts in (
        (1.7, 100, ["effective samples, fine from 25", "k-hat"]),
        (1.0, 30, ["effective samples"]),
    ):
        found = diagnose(spread * rng.standard_normal(n))
        said = peptide_output._refused(found)
        assert all(text in said for text in texts), (said, found)
    assert peptide_output._refused(diagnose(np.full(30, -np.inf))) == "too few weights for a k-hat"


def test_smc_is_reported(tmp_path: Path) -> None:
    """From a summary and a manifest alone, as those of a finished run."""
    (tmp_path / "manifest.json").write_text('{"files": []}')
    weights = {"n": 9, "ess": 0.5, "ess_psis": 0.5, "khat": None, "threshold": 0.2, "max_weight": 0.2}
    summary = {
        "sequence": "AG", "cap": "ace-nme", "atoms": 30, "temperature": 310.0, "prose_compat": True,
        "verdict": "biased", "why": ["k-hat 0.9, fine up to 0.7", "descends from 3 effective ancestors of 9"],
        "weights": weights, "smc": {
            "hot_temperature": 600.0, "hot_weights": {"khat": 0.61}, "unique_ancestors": 7, "ess_of_ancestors": 0.3,
        },
        "finetuning": [
            {"ess": 0.01, "ess_psis": 0.02, "khat": 0.9, "kept": False},
            {"ess": 0.2, "ess_psis": 0.21, "khat": 0.4, "kept": True},
        ], "results": [],
        "proposals": 12, "redrawn": {"contact": 3}, "rejections": {"non-finite energy": 2},
        "samples_per_second": None, "energies_per_second": None, "energy_calls": 77,
    }  # fmt: skip
    lines = command.report(summary, tmp_path).splitlines()
    assert "AG, ace-nme, 30 atoms" in lines[0] and "the largest weights were dropped" in lines[1]
    assert lines[1].endswith("): k-hat 0.9, fine up to 0.7; descends from 3 effective ancestors of 9")
    assert "none, too few weights" in lines[4] and "600 K, k-hat 0.61 there" in lines[5]
    assert "30.00% by ancestor" in lines[3] and "7 of 9 proposals" in lines[6]
    assert "after 1 round  " in lines[8] and "20.00% raw, 21.00% with smoothed weights, k-hat 0.4, kept" in lines[8]
    assert "3 x contact (25.00% of 12)" in lines[9] and "2 x non-finite energy" in lines[10]
    assert lines[11].endswith("77 energies")


def test_an_error_that_is_a_lower_bound_is_reported_as_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": []}')
    weights = {"n": 900, "ess": 0.5, "ess_psis": 0.5, "khat": 0.4, "threshold": 0.66, "max_weight": 0.2}
    row = {"name": "rg", "value": 4.5, "error": 0.01, "unit": "A", "reliable": True}
    summary = {
        "sequence": "AG", "cap": None, "atoms": 30, "temperature": 310.0, "prose_compat": False, "weights": weights,
        "verdict": "reliable", "why": [], "smc": None, "finetuning": [], "proposals": 12, "redrawn": {},
        "rejections": {}, "samples_per_second": None, "energies_per_second": None, "energy_calls": 77,
    }  # fmt: skip
    for khat, said in ((0.58, "4.5 +- 0.01 A   (error a lower bound: k-hat 0.58)"), (0.4, "4.5 +- 0.01 A")):
        report = command.report({**summary, "results": [{**row, "khat": khat}]}, tmp_path)
        assert report.splitlines()[5].endswith(said)
    long = {**row, "name": "distance resid 0 ; resid 1", "khat": 0.4}  # 26 characters
    lines = command.report({**summary, "results": [long]}, tmp_path).splitlines()
    assert [line[28:][:3] for line in lines[:8]] == ["AG,", "rel", "900", "50.", "0.4", "4.5", "non", "77 "]
    surface = {"value": 4.5, "error": 0.01, "unit": "kJ/mol", "khat": 0.58, "reliable": True}
    assert fes_report._estimated(surface) == "4.5 +- 0.01 kJ/mol (error a lower bound: k-hat 0.58)"
    assert fes_report._estimated({**surface, "khat": 0.3}) == "4.5 +- 0.01 kJ/mol"


def test_an_earlier_run_is_not_overwritten_unasked(molgen: Callable[..., Result], tmp_path: Path, exact: None) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    refused = molgen("GG", "-n", 5)
    assert refused.exit_code == 2 and "the output folder is not empty" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["GG", "-n", "0"], ["--samples: 0 given", "at least 1"]),
        (["AXG"], ["unknown residue 'X' at position 2", "sequence 'AXG'"]),
        (["ag"], ["unknown residue 'a' at position 1", "write A"]),
        (["G"], ["one residue with both termini charged", "--cap ace-nme"]),
        (["GG", "-T", "900"], ["-T: 900 K lies outside", "300 to 600 K"]),
        (["GG", "--cap", "boc"], ["unknown cap 'boc'"]),
        (["GG", "--platform", "Abacus"], ["no OpenMM platform 'Abacus'"]),
        (["GG", "--workers", "many"], ["--workers: 'many' given", "a whole number, at least 1"]),
        (["GG", "--observable", "phi 9"], ["phi 9", "1 (GLY)"]),
        (["GG", "--units", "hartree"], ["unknown unit 'hartree'"]),
        (["GG", "--device", "tpu"], ["--device"]),
        (["GG", "--weights", "nowhere"], ["nowhere: no such checkpoint folder"]),
        (["GG", "--overwrite", "--resume"], ["exclude each other"]),
    ],
)
def test_bad_arguments(arguments: list[str], texts: list[str], molgen: Callable[..., Result], tmp_path: Path) -> None:
    result = molgen(*arguments)
    assert result.exit_code == 2, result.stderr
    assert all(text in result.stderr for text in texts), result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_truncated_weights(molgen: Callable[..., Result], tmp_path: Path) -> None:
    folder = tiny_weights(tmp_path / "weights")
    data = (folder / TENSORS_FILE).read_bytes()
    (folder / TENSORS_FILE).write_bytes(data[:-100])
    result = molgen("GG", "--weights", folder)
    assert result.exit_code == 2 and "truncated" in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.skipif(not (SHIPPED / "prose").is_dir(), reason="no shipped weights")
def test_shipped_weights_sample_a_dipeptide(molgen: Callable[..., Result]) -> None:
    result = molgen("AG", "-n", 400, "--weights", "prose", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["verdict"] in ("reliable", "warn") and summary["weights"]["ess"] > 0.15
    assert summary["validity"]["wrong_chirality"] == summary["validity"]["broken_topology"] == 0


def test_so_few_samples_that_nothing_can_be_said_is_not_a_fault_of_the_weights(molgen: Callable[..., Result]) -> None:
    result = molgen("GG", "-n", 9, "-T", 310)
    assert result.exit_code == 3 and "k-hat                none, too few weights" in result.stdout
    assert "9 samples are too few to judge the weights: give -n 1000 or more" in " ".join(result.stderr.split())
