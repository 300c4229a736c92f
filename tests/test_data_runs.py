"""Runs of `molgen data` that go on with less, meet a broken calculator, or tell what of them can be used."""

from __future__ import annotations

import json
import os
import resource
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from test_tsmodel import built_in
from typer.testing import CliRunner

from molgen.cli import main
from molgen.cli.data import _training, _yield
from molgen.data.reactions import read_column, save_npz
from molgen.data.sources import SourceMolecule
from molgen.errors import CalculatorError, InputError
from molgen.run import Run
from molgen.workflows.journal import Journal, carry_out
from molgen.workflows.reaction_attempt import VERIFIED, Plan
from molgen.workflows.reaction_tools import CALCULATOR_FAILED
from molgen.workflows.reactions import find_reactions
from molgen.workflows.search_attempt import OVERLAPPING, SearchPlan
from molgen.workflows.searches import search_all, search_plan

runner = CliRunner()


def invoke(*arguments):
    return runner.invoke(main.app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """HCN -> HNC three times, with a rough transition state; two to learn from, one to validate by."""
    path = tmp_path_factory.mktemp("set") / "set.npz"
    save_npz(path, [replace(built_in()[0], name=str(k)) for k in range(3)], ["train", "val", "train"])
    return path


def test_a_run_resumed_with_less_keeps_what_is_done(source, tmp_path):
    command = ("data", "searches", source, "--workers", 1, "--out", tmp_path / "searches")
    assert invoke(*command).exit_code == 0
    before = (tmp_path / "searches" / "searches.npz").read_bytes()
    result = invoke(*command, "--resume", "--count", 1)
    assert result.exit_code == 0 and "3 of 3 searches" in result.stdout
    assert (tmp_path / "searches" / "searches.npz").read_bytes() == before

    command = ("data", "reactions", source, "--relevel", "--workers", 1, "--out", tmp_path / "twin")
    assert invoke(*command, "--split", "val").exit_code == 0
    assert read_column(tmp_path / "twin" / "reactions.npz", "index").tolist() == [1]
    result = invoke(*command, "--resume", "--count", 1, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["asked"] == 2
    assert read_column(tmp_path / "twin" / "reactions.npz", "index").tolist() == [0, 1]


def test_the_remedy_for_a_split_without_searches_makes_one(source, tmp_path):
    out = tmp_path / "searches"
    made = invoke("data", "searches", source, "--split", "val", "--calculator", "gfn1", "--workers", 1, "--out", out)
    assert made.exit_code == 0, made.stderr
    training = ("train", "correction", "--data", source, "--searches", out / "searches.npz", "--steps", 1)
    refused = invoke(*training, "--out", tmp_path / "trained")
    assert refused.exit_code == 2 and "no point of split 'train'" in refused.stderr
    remedy = shlex.split(refused.stderr.partition("remedy: molgen ")[2])
    assert invoke(*remedy).exit_code == 0
    assert invoke(*training, "--out", tmp_path / "trained").exit_code == 0
    (out / "manifest.json").unlink()  # nothing but the file is known: its level names the calculator
    with np.load(out / "searches.npz") as data:
        arrays = dict(data)
    of_val = {"index": np.ones_like(arrays["index"]), "row": np.ones(1, int), "outcome": np.array(["converged"])}
    np.savez(out / "searches.npz", **{**arrays, **of_val})
    refused = invoke(*training, "--out", tmp_path / "again")
    expected = f"molgen data searches {source} --split train,val --calculator gfn1 --out searches-of-all"
    assert expected in refused.stderr
    lost = {"row": np.arange(3), "outcome": np.array(["guess with overlapping atoms"] * 3)}
    np.savez(out / "searches.npz", **{**arrays, **of_val, **lost})
    refused = invoke(*training, "--out", tmp_path / "again")
    assert "guess with overlapping atoms in all its searches" in refused.stderr and "--resume" not in refused.stderr


def test_a_twin_tells_how_many_rows_can_be_used(source, tmp_path):
    """One product has an atom so far off that it falls to another molecule: intended, and of no use."""
    reaction = built_in()[0]
    loose = replace(reaction, product=reaction.product + [[0, 0, 0], [0, 0, 0], [0.9, 0, 0]])
    save_npz(tmp_path / "set.npz", [reaction, loose], ["train", "val"])
    out = tmp_path / "twin"
    result = invoke("data", "reactions", tmp_path / "set.npz", "--relevel", "--workers", 1, "--out", out)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "50.0% verified: 1 row to train and to judge by" in lines and "100.0% intended" in lines
    assert "of these 1 not verified: the product is another molecule than in the source" in lines
    refused = invoke("train", "ts", "--data", out / "reactions.npz", "--train-split", "val", "--out", tmp_path / "t")
    assert "none of 1 reaction of split 'val' is verified" in refused.stderr
    assert "remedy: choose another split: 'train' (1)" in refused.stderr


class Dead(Calculator):
    """Answers nothing; with `die` it takes its process along."""

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, die: bool = False):
        super().__init__()
        self.die = die

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if self.die:
            os._exit(7)
        raise RuntimeError("no license\nfor this machine")


@pytest.mark.parametrize(("die", "cause"), [(False, "no license for this machine"), (True, "exit code 7")])
def test_a_calculator_broken_from_the_start_ends_the_run_with_its_message(source, die, cause, tmp_path):
    (tmp_path / "m.smi").write_text("C=CO\nCC=O\n")
    broken = ("--calculator", "test_data_runs:Dead", "--calculator-kwargs", json.dumps({"die": die}), "--workers", 1)
    runs = [("reactions", tmp_path / "m.smi", "--guess", "sqrt", "--attempts", 50), ("searches", source)]
    for k, command in enumerate([*runs, ("reactions", source, "--relevel")]):
        out = tmp_path / str(k)
        result = invoke("data", *command, *broken, "--out", out)
        assert result.exit_code == 2, result.stderr
        assert "'test_data_runs:Dead': failed on every attempt, " in result.stderr and cause in result.stderr
        records = [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]
        assert len(records) < 10 and cause in records[-1]["cause"]


def test_a_calculator_that_fails_later_is_not_broken(tmp_path):
    (tmp_path / "m.smi").write_text("C=CO\n")
    options = json.dumps({"fail_at": list(range(2, 10_000, 2))})  # every molecule, no product
    result = invoke(
        "data", "reactions", tmp_path / "m.smi", "--guess", "sqrt", "--attempts", 12, "--workers", 1,
        "--calculator", "ts_cases:Unreliable", "--calculator-kwargs", options, "--out", tmp_path / "out",
    )  # fmt: skip
    records = (tmp_path / "out" / "attempts.jsonl").read_text().splitlines()
    assert result.exit_code in (2, 3) and len(records) == 12
    assert any("RuntimeError: SCF not converged" in record for record in records)


class OneOfThree:
    """A worker whose first attempt finds a reaction; those that are under way beside it fail."""

    def __init__(self, plan: Plan):
        pass

    def __call__(self, index: int) -> dict:
        time.sleep(1.5 if index else 0.5)
        if index:
            return {"attempt": index, "outcome": CALCULATOR_FAILED, "cause": "no SCF", "calls": {}, "seconds": 1.5}
        ends = [[[0, 0, 0], [x, 0, 0], [3.5, 0, 0]] for x in (0.74, 1.2, 2.76)]
        return {
            "attempt": 0, "outcome": "intended", "z": [1, 1, 1], "charge": 0, "spin": 1, "r": ends[0], "ts": ends[1],
            "p": ends[2], "energies": [0.0, 0.4, 0.0], "imaginary_cm": -1000.0, "source": "H3", "guess": "sqrt",
            "step": "x", "kind": "k", "calls": {"saddle": 5}, "seconds": 0.5,
        }  # fmt: skip


def test_attempts_beyond_the_count_that_fail_are_no_error(tmp_path):
    plan = Plan([SourceMolecule(np.array([1, 1, 1]), np.eye(3), 0, 1, "H3")], frozenset(), guesses=("sqrt",))
    with Run(tmp_path / "out", "data reactions", {}) as run:
        search = find_reactions(plan, run, count=1, workers=3, work=OneOfThree)
    assert len(search.found) == 1


class NoAnswer:
    """A worker whose first guess overlaps; the calculator fails on all others."""

    def __init__(self, plan: SearchPlan):
        pass

    def __call__(self, row: int) -> dict:
        found = {"index": row, "split": "val", "points": [], "near_lost": 0, "seconds": 0.1}
        if row == 0:
            return {**found, "outcome": OVERLAPPING, "calls": {"search": 0}}
        return {**found, "outcome": CALCULATOR_FAILED, "cause": "no such executable", "calls": {"search": 1}}


def test_guesses_that_overlap_have_not_asked_the_calculator(tmp_path):
    reactions = dict.fromkeys(range(6), built_in()[0])
    plan = SearchPlan(reactions, dict.fromkeys(reactions, "val"))
    with Run(tmp_path / "out", "data searches", {}) as run, pytest.raises(CalculatorError, match="attempt, 5 of them"):
        search_all(plan, run, digest="", workers=1, work=NoAnswer)


def test_the_report_counts_every_attempt_once(tmp_path):
    """Shares that sum to one, words for one of a thing, and a hint where all that was found is excluded."""
    summary = {
        "kept": 1, "reactions": 1, "attempts": 4, "per_worker_hour": 60.0, "verified": 3, "intended": 1,
        "rejections": {"duplicate": 2, "no barrier": 1},
    }  # fmt: skip
    lines = _yield(summary, tmp_path).splitlines()
    assert lines[0] == "1 transition state of 1 reaction from 4 attempts, 60 an hour and worker"
    assert lines[1].split() == "25.0% verified and new (1 of 1 as intended)".split()
    assert sum(float(line.split("%")[0]) for line in lines[1:]) == 100
    (tmp_path / "m.smi").write_text("C=CO\n")
    command = ("data", "reactions", tmp_path / "m.smi", "--guess", "sqrt", "--workers", 1, "--attempts", 6)
    first = invoke(*command, "--out", tmp_path / "rx")
    assert first.exit_code == 0 and "an hour" not in first.stderr  # a run of seconds has no rate to tell
    journal = tmp_path / "rx" / "attempts.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    only = next(r for r in records if r["outcome"] in VERIFIED)  # the attempt that comes again is of the same reaction
    again = invoke(
        *command[:-1], only["attempt"] + 1, "--exclude", tmp_path / "rx" / "reactions.npz", "--out", tmp_path / "next"
    )
    said = " ".join(again.stderr.split())
    assert again.exit_code == 3 and "of an excluded set: try" in said and "fewer sets in --exclude" in said


def test_a_refused_option_costs_no_earlier_run(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    manifest = {"command": "data searches", "seed": 0, "settings": {}, "files": ["searches.npz"]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "searches.npz").write_text("hours of work")
    result = invoke("data", "searches", source, "--workers", 0, "--overwrite", "--out", out)
    assert result.exit_code == 2 and "--workers: 0 given" in result.stderr
    assert (out / "searches.npz").read_text() == "hours of work"
    for command in (("reactions", source, "--attempts", 1), ("reactions", source, "--relevel")):
        assert invoke("data", *command, "--workers", 0, "--out", tmp_path / "new").exit_code == 2
        assert not (tmp_path / "new").exists()


def test_a_reaction_without_transition_state_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    save_npz(path, [replace(built_in()[0], ts=None)], "train")
    with pytest.raises(InputError, match="no transition state"):
        search_plan(path)


class Here:
    """Does jobs in this process, in place of a pool."""

    def run(self, jobs):
        return (((k,), {"attempt": k, "outcome": "x" * 900}) for (k,) in jobs)

    def close(self) -> None:
        pass


def test_a_full_disk_is_told_and_what_was_done_is_published(tmp_path):
    """A file may grow to so many bytes here: three records of a run of ten."""
    journal, published = Journal(tmp_path / "attempts.jsonl"), []
    journal.open()
    nothing = {"lost": lambda index: {}, "progress": lambda: None}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(InputError, match=r"attempts.jsonl: cannot write"):
            carry_out(Here(), range(10), journal, publish=lambda: published.append(len(journal.finished)), **nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert published == [3]
    again = Journal(tmp_path / "attempts.jsonl")
    again.open()
    again.close()
    assert sorted(again.finished) == [0, 1, 2]


def test_the_training_offered_can_be_carried_out(tmp_path):
    """From the shipped weights where they know the elements, anew where they do not; none where neither does."""
    hcn, *_, large = built_in()
    phosphorus = replace(hcn, numbers=np.where(hcn.numbers == 7, 15, hcn.numbers), name="HCP")
    for sides, ends in (
        ((hcn, large), "--init tsgen"),
        ((phosphorus, phosphorus), "reactions.npz"),
        ((hcn, phosphorus), None),
    ):
        moved = [sides[0], replace(sides[1], ts=1.1 * sides[1].ts)]
        save_npz(tmp_path / "reactions.npz", moved, ["train", "val"])
        offered = _training(tmp_path)
        assert [line.endswith(ends) for line in offered] == ([True] if ends else []), offered
