"""`molgen data reactions`: resume equals uninterrupted, what is verified, the file it writes, exit codes, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from molgen.cli import main
from molgen.cli.data import _training
from molgen.data.reactions import load_npz, read_column, save_npz
from molgen.data.sources import all_molecules, key_of, read_molecules
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, bond_names, bonding_changes
from molgen.potentials.xtb import XtbPotential
from molgen.run import Run
from molgen.saddle import normal_modes
from molgen.saddle.modes import gradient
from molgen.tsgen.training import load_training_data
from molgen.workflows.journal import read_journal
from molgen.workflows.reaction_attempt import VERIFIED, Attempts, Plan
from molgen.workflows.reaction_set import ReactionSet, splits_by
from molgen.workflows.reactions import find_reactions

runner = CliRunner()
SMILES = "# alcohols and their kin\nC=CO vinyl alcohol\nCC=O\n\nOC=N formimidic acid\n"


def reactions(*arguments):
    return runner.invoke(main.app, ["data", "reactions", *map(str, arguments)])


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "molecules.smi"
    path.write_text(SMILES)
    return path


@pytest.fixture(scope="module")
def plan(listed) -> Plan:
    return Plan(all_molecules([listed]), frozenset(), guesses=("sqrt",))


@pytest.fixture(scope="module")
def records(plan) -> list[dict]:
    """The first attempts of the plan, through JSON, as the journal has them."""
    attempt = Attempts(plan)
    return json.loads(json.dumps([{**attempt(k), "seed": 0} for k in range(12)]))


def quick(records: list[dict], plan: Plan):
    """Known attempts in place of real ones."""
    return partial(_recall, records)


def _recall(records: list[dict], index: int) -> dict:
    return {key: value for key, value in records[index].items() if key != "seed"}


def run_of(plan, records, out, **limits):
    with Run(out, "data reactions", {}, resume=Path(out).exists()) as run:
        return find_reactions(plan, run, work=partial(quick, records), workers=1, **limits)


def test_sources_are_read_once_each(listed, tmp_path):
    found = read_molecules(listed)
    assert [m.name.split(":")[1:] for m in found] == [["2", "vinyl alcohol"], ["3", "CC=O"], ["5", "formimidic acid"]]
    assert len(all_molecules([listed, listed])) == 3 and len({key_of(m) for m in found}) == 3


def test_verified_triplets_are_what_they_claim(records):
    kept = [r for r in records if r["outcome"] in VERIFIED]
    assert len(kept) >= 3 and len({r["outcome"] for r in records}) >= 2
    for record in kept[:3]:
        z = np.array(record["z"])
        potential = XtbPotential(z)
        sides = [np.array(record[side]) for side in ("r", "ts", "p")]
        found = [gradient(potential, x) for x in sides]
        np.testing.assert_allclose([energy for energy, _ in found], record["energies"], atol=1e-4)
        for (_, slope), limit in zip(found, (0.055, 0.025, 0.055), strict=True):
            assert np.linalg.norm(slope, axis=1).max() < limit
        frequencies = normal_modes(potential, sides[1]).frequencies_cm
        assert (frequencies < -50).sum() == 1 and abs(frequencies[0] - record["imaginary_cm"]) < 5
        assert (bond_graph(z, sides[0]) != bond_graph(z, sides[2])).any()
        assert all(record[key] for key in ("source", "step", "kind", "guess"))


def test_what_a_row_says_is_of_its_own_bonds(tmp_path):
    """Saddles that join one side to another molecule than was proposed: the row says what its geometries do."""
    path = tmp_path / "small.smi"
    path.write_text("C=CO vinyl\nCC=O\nOC=O\n")
    attempts = Attempts(Plan(read_molecules(path), frozenset(), guesses=("sqrt",)))
    half = [record for record in map(attempts, (7, 16, 17, 20)) if record["outcome"] == "half"]
    assert half, "of the attempts there are to choose from"
    found = ReactionSet("GFN2-xTB")
    for record in half:
        found.add({**record, "seed": 0})
    found.write(tmp_path / "half.npz")
    step, proposed, verdict = (read_column(tmp_path / "half.npz", key) for key in ("step", "proposed", "verdict"))
    assert set(verdict) == {"half"} and set(proposed) <= {record["step"] for record in half}
    assert (step != proposed).all()
    for told, reaction in zip(step, load_npz(tmp_path / "half.npz", None), strict=True):
        changes = bonding_changes(reaction.numbers, reaction.reactant, reaction.product)
        named = {how: bond_names(reaction.numbers, pairs).replace(",", "") for how, pairs in
                 (("break", changes.broken), ("form", changes.formed)) if pairs}  # fmt: skip
        assert told == "; ".join(f"{how} {bonds}" for how, bonds in named.items())


def test_intended_is_as_proposed(records, tmp_path):
    found = ReactionSet("GFN2-xTB")
    for record in records:
        found.add(record)
    found.write(tmp_path / "set.npz")
    step, proposed, verdict = (read_column(tmp_path / "set.npz", key) for key in ("step", "proposed", "verdict"))
    intended = verdict == "intended"
    assert intended.any() and (step[intended] == proposed[intended]).all()


def test_an_attempt_depends_on_plan_and_number_alone(plan, records):
    again = json.loads(json.dumps(Attempts(plan)(3)))
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in records[3].items() if k not in ("seconds", "seed")
    }


def test_excluded_reactions_are_refused_by_the_attempt_and_by_the_set(plan, records):
    everything = ReactionSet("GFN2-xTB")
    for record in records:
        everything.add(record)
    kept = everything.records[0]
    forbidden = frozenset(everything._keys[:1])
    refusing = Plan(plan.molecules, forbidden, guesses=plan.guesses)
    assert Attempts(refusing)(kept["attempt"])["outcome"] == "excluded"
    last = ReactionSet("GFN2-xTB", forbidden)
    backwards = {**kept, "r": kept["p"], "p": kept["r"]}
    assert [last.add(r) for r in (kept, backwards)] == ["excluded"] * 2 and len(last) == 0


def test_resumed_equals_uninterrupted(plan, records, tmp_path):
    whole = run_of(plan, records, tmp_path / "whole", attempts=12)
    run_of(plan, records, tmp_path / "parts", attempts=5)
    journal = tmp_path / "parts" / "attempts.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[3], *lines[:2], lines[4][:20]]))  # out of order, 2 lost, the last cut short
    parts = run_of(plan, records, tmp_path / "parts", attempts=12)
    assert parts.figures() == {**whole.figures(), "per_worker_hour": parts.figures()["per_worker_hour"]}
    for key in ("id", "split", "z", "r", "ts", "p", "energies", "source", "smiles", "level"):
        a, b = (read_column(tmp_path / name / "reactions.npz", key) for name in ("whole", "parts"))
        np.testing.assert_array_equal(a, b)
    assert len(read_journal(journal)) == 12


def test_two_workers_find_the_same_as_one(plan, records, tmp_path):
    one = ReactionSet("GFN2-xTB")
    for record in records[:6]:
        one.add(record)
    one.write(tmp_path / "one.npz")
    with Run(tmp_path / "two", "data reactions", {}) as run:
        found = find_reactions(plan, run, attempts=6, workers=2)
    assert found.taken == 6 and len(found.found) == len(one) > 0
    with np.load(tmp_path / "one.npz") as alone, np.load(tmp_path / "two" / "reactions.npz") as together:
        assert set(alone) == set(together)
        for key in alone:
            np.testing.assert_array_equal(alone[key], together[key])


def test_an_ase_calculator_end_to_end(listed, tmp_path):
    """tblite's own, for the one that a user brings."""
    result = reactions(
        listed, "--attempts", 8, "--guess", "sqrt", "--workers", 1, "--out", tmp_path / "out", "--json",
        "--calculator", "tblite.ase:TBLite", "--calculator-kwargs", '{"method": "GFN1-xTB", "verbosity": 0}',
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["attempts"] == 8 and summary["kept"] >= 1 and summary["energy_calls"] > 100
    path = tmp_path / "out" / "reactions.npz"
    for reaction, energies in zip(load_npz(path), read_column(path, "energies"), strict=True):
        assert reaction.level == "TBLite(method='GFN1-xTB', verbosity=0)" and reaction.ts is not None
        there = XtbPotential(reaction.numbers, method="GFN1-xTB").energy_and_forces(reaction.ts[None])[0][0]
        assert there == pytest.approx(energies[1], abs=1e-3)


def test_stops_at_a_count_in_order_of_attempts(plan, records, tmp_path):
    search = run_of(plan, records, tmp_path / "out", count=2)
    assert len(search.found) == 2 and search.taken == search.found.records[-1]["attempt"] + 1
    assert run_of(plan, records, tmp_path / "out", count=2).taken == search.taken
    more = run_of(plan, records, tmp_path / "out", seconds=0.0, attempts=12)
    assert more.taken >= search.taken


def test_a_count_alone_ends_where_nothing_new_comes(plan, records, tmp_path, monkeypatch):
    monkeypatch.setattr("molgen.workflows.reactions.PATIENCE", 70)
    last = next(k for k, r in enumerate(records) if r["outcome"] in VERIFIED)
    barren = [*records[: last + 1], *({"attempt": k, "outcome": "no step found"} for k in range(last + 1, 200))]
    search = run_of(plan, barren, tmp_path / "out", count=9)
    assert search.exhausted and search.taken == last + 1 + 70 and len(search.found) >= 1
    again = run_of(plan, barren, tmp_path / "out", count=9)
    assert again.taken == search.taken and again.journal.fresh == 0
    assert run_of(plan, barren, tmp_path / "out", count=9, attempts=150).taken == 150
    monkeypatch.setattr("molgen.workflows.reactions.PATIENCE_EACH", 30)
    assert run_of(plan, barren, tmp_path / "each", count=9).taken == last + 1 + 90


def test_a_run_without_yield_fails_and_offers_no_training(tmp_path):
    (tmp_path / "hcl.smi").write_text("Cl\n")
    options = (tmp_path / "hcl.smi", "--guess", "sqrt", "--workers", 1, "--out", tmp_path / "out")
    result = reactions(*options, "--attempts", 2)
    assert result.exit_code == 3, result.stderr
    assert "train on it" not in result.stdout and "no reaction was found" in " ".join(result.stderr.split())
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "gate_failed"
    result = reactions(*options, "--resume", "--count", 3, "--json")
    assert result.exit_code == 3 and json.loads(result.stdout)["attempts"] == 200
    assert "200 attempts in a row without a new reaction, at 0 of 3" in " ".join(result.stderr.split())


def test_training_is_offered_where_rows_can_validate(plan, records, tmp_path):
    for name, kept in (("one", 1), ("more", 3)):
        search = run_of(plan, records, tmp_path / name, count=kept)
        assert bool(_training(tmp_path / name)) == (search.found.reactions > 1)


def test_the_file_trains(plan, records, tmp_path):
    search = run_of(plan, records, tmp_path / "out", attempts=12)
    path = tmp_path / "out" / "reactions.npz"
    train, val = load_training_data(path)
    assert len(train) + len(val) == len(search.found) and train and val
    assert all(r.level == "GFN2-xTB" and r.ts is not None for r in (*train, *val))
    moved = [replace(r, ts=r.ts + 0.01 * r.reactant) for r in train if r.ts is not None]
    save_npz(tmp_path / "more.npz", moved, "train")
    more, held = load_training_data(path, more=[tmp_path / "more.npz"])
    assert len(more) == 2 * len(train) and len(held) == len(val), "further files train, and do not validate"
    barriers, energies = read_column(path, "barrier_kcal"), read_column(path, "energies")
    np.testing.assert_allclose(barriers, (energies[:, 1] - energies[:, 0]) * 23.06055, rtol=1e-4)
    smiles = read_column(path, "smiles")
    assert len(smiles) == len(load_npz(path)) and all(">>" in text and ":1]" in text for text in smiles)
    assert read_column(path, "imaginary_cm").max() < -50 and read_column(path, "no such key").size == 0


def test_no_reaction_is_in_both_splits():
    keys = [f"{k % 60}" for k in range(300)]
    drawn = splits_by(keys)
    assert len(set(zip(keys, drawn, strict=True))) == 60 and 0 < drawn.count("val") < 60
    assert splits_by(["a", "b"]).count("val") == 1 and splits_by(["a"]) == ["train"] and splits_by([]) == []


def test_of_a_split_set_only_training_reactions_are_sources(plan, records, tmp_path):
    run_of(plan, records, tmp_path / "out", attempts=12)
    made = load_npz(tmp_path / "out" / "reactions.npz")
    save_npz(tmp_path / "set.npz", made[:2], ["train", "test"])
    molecules = read_molecules(tmp_path / "set.npz")
    assert {m.name.split(":")[1] for m in molecules} == {made[0].name}
    result = reactions(tmp_path / "set.npz", "--attempts", 1, "--guess", "sqrt", "--out", tmp_path / "next")
    assert result.exit_code in (0, 3), result.stderr  # one attempt may find nothing
    assert "0 keys" not in result.stderr  # the test reaction is excluded unasked


@pytest.mark.slow
def test_killed_and_resumed_on_the_command_line(listed, tmp_path):
    code = "from molgen.cli.main import main; main()"
    command = [sys.executable, "-c", code, "data", "reactions", str(listed), "--guess", "sqrt"]
    command += ["--workers", "1", "--attempts", "12", "--seed", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--out", str(tmp_path / "a")], env=environment, stderr=subprocess.DEVNULL)
    journal = tmp_path / "a" / "attempts.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and 3 <= journal.read_bytes().count(b"\n") < 12
    result = runner.invoke(main.app, [*command[3:], "--out", str(tmp_path / "a"), "--resume", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["attempts"] == 12
    assert runner.invoke(main.app, [*command[3:], "--out", str(tmp_path / "b")]).exit_code == 0
    for key in ("id", "r", "ts", "p", "energies"):
        np.testing.assert_array_equal(*(read_column(tmp_path / name / "reactions.npz", key) for name in "ab"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "nothing says when to stop"),
        (["--attempts", "1", "--workers", "0"], "--workers: 0 given"),
        (["--time-budget", "soon"], "'soon' is not a duration"),
        (["--attempts", "1", "--guess", "oracle"], "--guess: unknown guess 'oracle' expected: tsgen, sqrt, both"),
        (["--attempts", "1", "--calculator", "dft"], "calculator 'dft': unknown calculator"),
        (["--attempts", "1", "--calculator-kwargs", "[1]"], "'[1]' is not a JSON object"),
        (["--attempts", "1", "--exclude", "none.npz:test"], "none.npz: no such file"),
        (["--attempts", "1", "--weights", "nowhere"], "nowhere"),
    ],
)
def test_bad_options(listed, tmp_path, arguments, text):
    guess = () if "--guess" in arguments or "--weights" in arguments else ("--guess", "sqrt")
    result = reactions(listed, *arguments, *guess, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.stderr
    assert text in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.smi", None, "none.smi: no such file"),
        ("bad.smi", "CC\nC(C\n", "bad.smi, line 2: C(C: not a valid SMILES"),
        ("empty.smi", "# nothing\n", "empty.smi: no molecules in it"),
        ("atom.smi", "[Ar]\n", "one atom cannot react"),
        ("bad.npz", "x", "bad.npz: not an npz file"),
        ("bad.xyz", "2\n\nH 0 0 0\n", "2 atoms announced, 1 found"),
    ],
)
def test_bad_sources(tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_text(content)
    result = reactions(tmp_path / name, "--attempts", 1, "--guess", "sqrt", "--out", tmp_path / "out")
    assert result.exit_code == 2, result.stderr
    assert text in " ".join(result.stderr.split())


def test_no_sources_and_a_damaged_journal(plan, records, tmp_path):
    assert "no molecules given" in reactions("--attempts", 1, "--out", tmp_path / "x").stderr
    journal = tmp_path / "attempts.jsonl"
    journal.write_text('{"attempt": 0, "outcome": "half"}\nnonsense\n')
    with pytest.raises(InputError, match="line 2: not the record of an attempt"):
        read_journal(journal)
