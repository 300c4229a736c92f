"""`molgen data reactions --relevel`: pairs, verdicts, failures kept, resume equals uninterrupted, CLI, bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from typer.testing import CliRunner

from molgen.cli import main
from molgen.data.pairs import load_pairs
from molgen.data.reactions import Reaction, load_npz, read_column, save_npz
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, fragments
from molgen.potentials.xtb import XtbPotential
from molgen.run import Run
from molgen.saddle import normal_modes
from molgen.saddle.modes import gradient
from molgen.tsgen.training import load_training_data
from molgen.workflows.relevel import level_plan, relevel
from molgen.workflows.relevel_attempt import LevelPlan, Releveling

runner = CliRunner()
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NEAR_SADDLE = np.array([[0.2, 1.1, 0.0], [-0.55, -0.1, 0.0], [0.62, -0.1, 0.0]])
SPLITS = ["train", "test", "train", "val", "train", "train"]


def invoke(*arguments):
    return runner.invoke(main.app, ["data", "reactions", *map(str, arguments), "--relevel"])


def made(reactant, ts, product, name) -> Reaction:
    z = read(EXAMPLES / "hcn" / "reactant.xyz").numbers.astype(np.int64)
    parts = (fragments(bond_graph(z, x)) for x in (product, reactant))
    return Reaction(z, reactant, product, *parts, name=name, ts=ts, level="rough")


@pytest.fixture(scope="module")
def hcn() -> list[Reaction]:
    """HCN -> HNC and back, then a product that is not there, and a transition state that is nothing."""
    r, p = (read(EXAMPLES / "hcn" / f"{side}.xyz").positions for side in ("reactant", "product"))
    apart = r - [[3, 0, 0], [0, 0, 0], [0, 0, 0]]
    good, clash = made(r, NEAR_SADDLE, p, "7"), np.zeros((3, 3))
    unlike = [made(r, NEAR_SADDLE, apart, "11"), made(r, clash, p, "12")]
    keys = ("numbers", "reactant", "product", "product_fragments", "reactant_fragments", "ts")
    other_order = replace(good, name="10", **{key: getattr(good, key)[[1, 0, 2]] for key in keys})  # for validation
    return [good, replace(good, name="8"), good.reversed, other_order, *unlike]


@pytest.fixture(scope="module")
def source(hcn, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "set.npz"
    save_npz(path, hcn, SPLITS, {"smiles": [f"smiles {k}" for k in range(6)]})
    return path


@pytest.fixture(scope="module")
def plan(source) -> LevelPlan:
    return level_plan([source])[0]


@pytest.fixture(scope="module")
def twin(source, tmp_path_factory):
    """The set, by two workers, on the command line: result and file."""
    out = tmp_path_factory.mktemp("twin") / "out"
    return invoke(source, "--out", out, "--workers", 2, "--json"), out / "reactions.npz"


def unworkable(plan: LevelPlan):
    raise AssertionError("nothing was left to do")


def same_file(a: Path, b: Path) -> None:
    with np.load(a) as first, np.load(b) as second:
        assert set(first) == set(second)
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def test_pairs_are_kept_together(source, hcn, twin):
    result, path = twin
    assert result.exit_code == 0, result.stderr
    assert read_column(path, "index").tolist() == [0, 2, 3, 4, 5]  # row 1 is of the test split, which nobody asked for
    assert read_column(path, "split").tolist() == ["train", "train", "val", "train", "train"]
    assert read_column(path, "id").tolist() == [7, 7, 10, 11, 12]
    assert read_column(path, "smiles").tolist() == [f"smiles {k}" for k in (0, 2, 3, 4, 5)]
    assert set(read_column(path, "source_level")) == {"rough"}
    pairs = load_pairs(source, path)
    assert [pair.twin.name for pair in pairs] == [pair.source.name for pair in pairs] == ["7", "7", "10", "11", "12"]
    assert all(pair.twin.level == "GFN2-xTB" and pair.source.level == "rough" for pair in pairs)
    np.testing.assert_array_equal(pairs[1].source.reactant, np.float32(hcn[2].reactant))
    assert [pair.verified for pair in pairs] == [True, True, True, False, False]
    assert len(load_pairs(source, path, "val")) == 1


def test_verified_rows_are_triplets_of_the_level(twin):
    _, path = twin
    energies, forces = read_column(path, "energies"), read_column(path, "fmax")
    for k, reaction in enumerate(load_npz(path)[:3]):
        assert reaction.ts is not None
        potential = XtbPotential(reaction.numbers)
        found = [gradient(potential, x) for x in (reaction.reactant, reaction.ts, reaction.product)]
        np.testing.assert_allclose([energy for energy, _ in found], energies[k], atol=1e-4)
        largest = [np.linalg.norm(slope, axis=1).max() for _, slope in found]
        assert max(largest) < 0.025 and np.abs(largest - forces[k]).max() < 2e-3
        frequencies = normal_modes(potential, reaction.ts).frequencies_cm
        assert (frequencies < -50).sum() == 1
        assert abs(frequencies[0] - read_column(path, "imaginary_cm")[k]) < 20
    barriers = read_column(path, "barrier_kcal")
    np.testing.assert_allclose(barriers[:3], (energies[:3, 1] - energies[:3, 0]) * 23.06055, rtol=1e-4)
    assert barriers[0] != pytest.approx(barriers[1])  # row 1 runs backwards, and stays so
    assert np.all((read_column(path, "rmsd")[:3] > 0.05) & (read_column(path, "rmsd")[:3] < 0.3))


def test_failures_keep_their_row_verdict_and_geometry(twin, hcn):
    result, path = twin
    assert read_column(path, "verdict").tolist() == ["intended"] * 3 + ["half", "not found"]
    reasons, rows = read_column(path, "reason"), load_npz(path)
    assert reasons[3].startswith("one well is the reactant") and reasons[4] == "calculator failed"
    energies = read_column(path, "energies")
    assert np.isfinite(energies[3, :2]).all() and np.isnan(energies[4, 1]) and np.isfinite(energies[4, [0, 2]]).all()
    assert np.isnan(read_column(path, "barrier_kcal")[3:]).all()
    np.testing.assert_allclose(rows[3].ts, rows[0].ts, atol=0.03)  # the saddle that was found
    np.testing.assert_array_equal(rows[4].ts, np.zeros((3, 3)))  # nothing was: the source's
    summary = json.loads(result.stdout)
    assert summary["verdicts"] == {"intended": 3, "half": 1, "unintended": 0, "not found": 1}
    assert summary["rejections"]["calculator failed"] == 1 and summary["verified"] == 3
    assert summary["energy_calls"] > 100 and "5 reactions to re-optimise" in result.stderr


def test_a_search_that_does_not_converge_ends_somewhere(hcn, monkeypatch):
    monkeypatch.setattr("molgen.workflows.relevel_attempt.calls_allowed", lambda atoms: 3)
    record = Releveling(LevelPlan({5: hcn[0]}, {5: "train"}))(5)
    assert (record["outcome"], record["reason"]) == ("not found", "search did not converge")
    assert record["index"] == 5 and record["rmsd"] > 0.01 and record["fmax"][1] > 0.02 and not record["verified"]
    assert record["imaginary_cm"] is None and record["energies"][0] is not None


def test_an_end_that_becomes_another_molecule_is_not_verified(hcn):
    """The set's product has its hydrogen too far off for a bond; on GFN2 it falls to HNC, where the saddle leads."""
    loose = hcn[0].product + [[-0.9, 0, 0], [0, 0, 0], [0, 0, 0]]
    record = Releveling(LevelPlan({0: replace(hcn[0], product=loose)}, {0: "train"}))(0)
    assert record["outcome"] == "intended" and not record["verified"]
    assert record["reason"] == "the product is another molecule than in the source"
    np.testing.assert_allclose(np.ptp(record["p"], axis=0), np.ptp(hcn[0].product, axis=0), atol=0.01)


def test_training_uses_the_verified_rows_only(twin, tmp_path):
    _, path = twin
    train, val = load_training_data(path)
    assert [r.name for r in train] == ["7", "7"] and [r.name for r in val] == ["10"]
    assert len(load_npz(path, "train")) == 4 and len(load_npz(path, "train", verified=True)) == 2
    arguments = ["train", "ts", "--data", path, "--steps", 1, "--batch-size", 2, "--device", "cpu"]
    result = runner.invoke(main.app, [*map(str, arguments), "--out", str(tmp_path / "trained")])
    assert result.exit_code == 0, result.stderr
    with np.load(path) as data:
        arrays = {**data, "verified": np.zeros(5, dtype=bool)}
    np.savez(tmp_path / "none.npz", **arrays)
    with pytest.raises(InputError, match="none of 4 reactions of split 'train' is verified"):
        load_training_data(tmp_path / "none.npz")


def test_resumed_equals_uninterrupted(source, plan, twin, tmp_path):
    """Two workers, and one that was killed and stopped by its time, write the same file."""
    _, whole = twin
    out = tmp_path / "out"
    shutil.copytree(whole.parent, out)
    journal, lines = out / "attempts.jsonl", (whole.parent / "attempts.jsonl").read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[3], lines[0], lines[4][:40]]))  # the last record cut off by a kill
    kept = sorted(json.loads(line)["index"] for line in (lines[3], lines[0]))
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    with Run(out, "data reactions --relevel", settings, resume=True) as run:
        part = relevel(plan, run, workers=1, seconds=-1.0, work=unworkable)
        assert [r["index"] for r in part.records] == kept and part.figures()["asked"] == 5
    assert read_column(out / "reactions.npz", "index").tolist() == kept
    result = invoke(source, "--out", out, "--workers", 1, "--resume")
    assert result.exit_code == 0, result.stderr
    same_file(whole, out / "reactions.npz")
    assert "5 of 5 reactions" in result.stdout and " 60.0%  intended" in result.stdout
    assert "median RMSD of verified transition states" in result.stdout


def test_what_a_resume_refuses(source, twin):
    options = ("--out", twin[1].parent)
    refused = invoke(source, *options, "--resume", "--calculator", "gfn1")
    assert refused.exit_code == 2 and "'calculator' was 'gfn2' and is now 'gfn1'" in " ".join(refused.stderr.split())
    refused = invoke(source, *options)
    assert refused.exit_code == 2 and "output folder is not empty" in refused.stderr


def test_splits_asked_for(source):
    def rows(split):
        return list(level_plan([source], split=split)[0].rows)

    assert rows("test") == [1] and rows("train, test") == [0, 1, 2, 4, 5] and rows("all") == list(range(6))
    assert list(level_plan([source], count=2)[0].rows) == [0, 2]


def test_a_calculator_that_always_fails_is_an_error(source, tmp_path):
    result = invoke(
        source, "--count", 2, "--workers", 1, "--out", tmp_path / "out",
        "--calculator", "ts_cases:Unreliable", "--calculator-kwargs", '{"always": true}',
    )  # fmt: skip
    assert result.exit_code != 0 and "'ts_cases:Unreliable'" in result.stderr
    assert "failed on every attempt" in result.stderr
    assert read_column(tmp_path / "out" / "reactions.npz", "verdict").tolist() == ["not found"] * 2


def test_nothing_verified_is_no_success(source, tmp_path):
    result = invoke(source, "--count", 1, "--workers", 1, "--out", tmp_path / "o", "--calculator", "ts_cases:NoSaddle")
    assert result.exit_code == 3 and "no reaction is verified at this level" in result.stderr
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["status"] == "gate_failed"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--split", "dev"], "--split: no reaction of split 'dev' in"),
        (["--attempts", "5"], "--attempts: has no meaning with --relevel"),
        (["--guess", "sqrt"], "--guess: has no meaning with --relevel"),
        (["--calculator", "dft"], "calculator 'dft': unknown calculator"),
        (["--workers", "0"], "--workers: 0 given"),
        (["--time-budget", "soon"], "'soon' is not a duration"),
    ],
)
def test_bad_options(source, tmp_path, arguments, text):
    result = invoke(source, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.stderr
    assert text in " ".join(result.stderr.split())


def test_bad_sources(source, hcn, tmp_path):
    unknown = tmp_path / "unknown.npz"
    save_npz(unknown, [hcn[0], replace(hcn[0], ts=None)], "train")
    odd = tmp_path / "odd.npz"
    save_npz(odd, hcn, "mine")
    empty = tmp_path / "empty.npz"
    save_npz(empty, [], "train")
    for arguments, text in (
        ([empty], "empty.npz: holds no reactions expected: one at least"),
        ([], "--relevel: nothing given expected: one set of reactions"),
        ([source, source], "expected: one set of reactions"),
        ([tmp_path / "none.npz"], "none.npz: no such file"),
        ([tmp_path / "list.smi"], "expected: one set of reactions"),
        ([unknown], "reaction 1 (id 7): no transition state to start from"),
        ([odd], "no reaction of split 'train' in"),
    ):
        result = invoke(*arguments, "--out", tmp_path / "out")
        assert result.exit_code == 2 and text in " ".join(result.stderr.split()), result.stderr
    without = runner.invoke(main.app, ["data", "reactions", str(source), "--split", "val", "--attempts", "1"])
    assert without.exit_code == 2 and "--split: has no meaning without --relevel" in without.stderr


def test_pairs_of_another_set_are_refused(source, hcn, twin, tmp_path):
    _, path = twin
    other = tmp_path / "other.npz"
    save_npz(other, [replace(r, numbers=r.numbers[::-1]) for r in hcn], SPLITS)
    with pytest.raises(InputError, match="is not the twin of"):
        load_pairs(other, path)
    with pytest.raises(InputError, match="no `index`, `verdict` and `verified`"):
        load_pairs(source, source)
