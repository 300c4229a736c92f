"""Reactions of several steps: what the search goes on from, what it makes of what it finds, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from typer.testing import CliRunner

from molgen import find_ts
from molgen.cli import main
from molgen.cli.ts_report import report
from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, bonding_differences, fragments
from molgen.saddle.restrain import Fall
from molgen.units import KCAL_MOL, kcal
from molgen.workflows.fes_from_ts import read_path
from molgen.workflows.ts import TSResult
from molgen.workflows.ts_mechanism import Mechanism, followed
from molgen.workflows.ts_output import mechanism_profile
from molgen.workflows.ts_result import Candidate

PHOSGENE = "ClC(Cl)=O>>ClCl.[C-]#[O+]"
# four hydrogens on a line: a state is which neighbours are bonded
STATES = {"|.|": (0.74, 3.0, 0.74), ".|.": (3.0, 0.74, 3.0), "||.": (0.74, 0.74, 3.0), ".||": (3.0, 0.74, 0.74)}
NUMBERS = np.ones(4, dtype=int)


def line(state: str) -> np.ndarray:
    """(4, 3) Angstrom."""
    return np.stack([np.cumsum([0.0, *STATES[state]]), np.zeros(4), np.zeros(4)], axis=1)


def reaction(start: str, end: str) -> Reaction:
    """Between two states."""
    parts = [fragments(bond_graph(NUMBERS, line(state))) for state in (end, start)]
    return Reaction(NUMBERS, line(start), line(end), *parts)


def found(start: str, end: str, energies: tuple[float, float, float], **figures: Any) -> TSResult:
    """A search whose best saddle joins two states."""
    path = np.stack([line(start), (line(start) + line(end)) / 2, line(end)])
    best = Candidate(Atoms(NUMBERS, path[1]), "TS-GEN", 0, ts_index=1, path_positions=path, **figures)
    best.path_energies = np.array(energies)
    return TSResult([best], reaction(start, end), [], [])


def mechanism(first: TSResult, *further: TSResult | None, most: int = 3) -> tuple[Mechanism | None, list[Reaction]]:
    """What is made of these searches, and the gaps they were asked for."""
    gaps: list[Reaction] = []

    def search(gap: Reaction, number: int) -> TSResult | None:
        gaps.append(gap)
        assert number == len(gaps)
        return further[number - 1]

    first.reaction = replace(reaction("|.|", ".|."), open_stereo=(frozenset({"H0"}), frozenset({"H3"})))
    return followed(first, search, most), gaps


def test_steps_from_both_sides_meet() -> None:
    first = found("|.|", "||.", (0.0, 1.0, 0.5), verdict="half", known="reactant")
    second = found(".||", ".|.", (0.3, 0.9, -0.2), verdict="half", known="product")
    third = found("||.", ".||", (0.5, 1.5, 0.3), verdict="intended")
    way, gaps = mechanism(first, second, third)
    assert way is not None and way.complete
    assert [step.ends for step in way.steps] == [
        ("reactant", "intermediate 1"), ("intermediate 1", "intermediate 2"), ("intermediate 2", "product"),
    ]  # fmt: skip
    assert [step.search for step in way.steps] == [0, 2, 1] and way.searches == [first, second, third]
    assert way.highest_kcal == pytest.approx(1.5 / KCAL_MOL)
    assert way.steps[1].barriers_kcal == pytest.approx((1.0 / KCAL_MOL, 1.2 / KCAL_MOL))
    np.testing.assert_array_equal(gaps[0].reactant, line("||."))
    np.testing.assert_array_equal(gaps[1].product, line(".||"))
    assert gaps[0].reactant_fragments.tolist() == [0, 0, 0, 1], "those of the intermediate"
    assert [gap.open_stereo for gap in gaps] == [(set(), {"H3"}), (set(), set())], "the intermediate is what it is"
    assert mechanism_profile(way).startswith(b"\x89PNG")


def test_a_gap_that_stays() -> None:
    first = found("|.|", "||.", (0.0, 1.0, 0.5), verdict="half", known="reactant")
    nothing = found("||.", ".|.", (0.5, 1.0, 0.2), verdict="half")
    assert mechanism(first, None)[0] is None, "nothing was searched, or it failed"
    way, _ = mechanism(first, nothing)
    assert way is not None and not way.complete and len(way.searches) == 2
    assert [step.search for step in way.steps] == [0, None] and way.steps[1].barriers_kcal is None
    assert np.isnan(way.steps[1].path_energies).all() and np.isnan(way.highest_kcal)
    assert way.summary()["complete"] is False and mechanism_profile(way).startswith(b"\x89PNG")
    back = found(".||", ".|.", (0.3, 0.9, -0.2), verdict="half", known="product")
    way, _ = mechanism(back, nothing)
    assert way is not None and [step.search for step in way.steps] == [None, 0] and np.isnan(way.highest_kcal)


def test_a_search_does_not_go_round_in_circles() -> None:
    first = found("|.|", "||.", (0.0, 1.0, 0.5), verdict="half", known="reactant")
    way, gaps = mechanism(first, found("||.", "|.|", (0.5, 1.0, 0.0), verdict="half", known="reactant"))
    assert way is not None and not way.complete and len(way.steps) == 2 and len(gaps) == 1


def test_pieces_that_fall_are_a_step() -> None:
    first = found(".||", ".|.", (0.3, 0.9, -0.2), verdict="half", known="product")
    falls = found("|.|", ".||", (0.0, 1.0, 0.3), verdict="half")
    falls.barrierless_side = "reactant"
    falls.barrierless = Fall(line("|.|"), line(".||"), (0.8, 0.35))
    way, _ = mechanism(first, falls)
    assert way is not None and way.complete and way.steps[0].saddle is None
    assert way.steps[0].path_energies == pytest.approx([0.8, 0.35]), "of its own structures"
    first = found("|.|", "||.", (0.0, 1.0, 0.5), verdict="half", known="reactant")
    falls.barrierless_side = "product"
    way, _ = mechanism(first, falls)
    assert way is not None and way.steps[1].path_energies == pytest.approx([0.35, 0.8])
    assert np.array_equal(way.steps[1].path_positions, np.stack([line(".||"), line("|.|")]))


def test_one_step_is_no_mechanism() -> None:
    assert mechanism(found("|.|", ".|.", (0.0, 1.0, 0.2), verdict="intended"))[0] is None
    assert mechanism(found("|.|", ".|.", (0.0, 1.0, 0.2), verdict="unintended"))[0] is None
    half = found("|.|", "||.", (0.0, 1.0, 0.5), verdict="half", known="reactant")
    assert mechanism(half, most=0)[0] is None
    alone = found("|.|", ".|.", (0.0, 1.0, 0.2), verdict="half")
    alone.barrierless_side, alone.barrierless = "reactant", Fall(line("|.|"), line(".|."), (0.8, 0.35))
    assert mechanism(alone)[0] is None, "one step without a barrier"


def test_phosgene_from_smiles_to_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = CliRunner().invoke(main.app, ["ts", "--smiles", PHOSGENE, "--out", str(out)])
    assert said.exit_code in (0, 4), said.stderr  # whether the SCF converges on every guess is chance
    assert said.stdout.startswith("verdict              intended, in 2 steps")
    assert "step 1               reactant to intermediate 1: barrier " in said.stdout
    assert "go on with" not in said.stderr and "search 2" in said.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] in ("ok", "partial") and summary["mechanism"]["complete"]
    assert [step["search"] for step in summary["mechanism"]["steps"]] == [1, 0]
    inner = json.loads((out / "search-2" / "summary.json").read_text())
    assert inner["status"] in ("ok", "partial") and (out / "search-2" / "manifest.json").exists()
    with pytest.raises(InputError, match=r"best saddle is half(?s:.*)of its steps take .*search-2"):
        read_path(out)
    assert len(read_path(out / "search-2").frames) > 3
    frames = read(out / "mechanism.xyz", ":")
    states = [frame.info["state"] for frame in frames if "state" in frame.info]
    assert states == ["reactant", "transition state", "intermediate 1"] + [
        "intermediate 1",
        "transition state",
        "product",
    ]
    numbers = frames[0].numbers
    assert not bonding_differences(numbers, frames[-1].positions, read(out / "product.xyz").positions)
    energies = [frame.get_potential_energy() for frame in frames]
    assert (max(energies) - energies[0]) / KCAL_MOL == pytest.approx(summary["mechanism"]["highest_kcal"], abs=0.1)
    (out / "search-2" / "notes.txt").write_text("mine")
    again = CliRunner().invoke(
        main.app, ["ts", "--smiles", PHOSGENE, "--follow", "0", "--out", str(out), "--overwrite"]
    )
    assert again.exit_code == 3 and "go on with molgen ts" in " ".join(again.stderr.split())
    assert [path.name for path in (out / "search-2").iterdir()] == ["notes.txt"]
    assert not (out / "mechanism.xyz").exists()
    once_more = CliRunner().invoke(main.app, ["ts", "--smiles", PHOSGENE, "--out", str(out), "--overwrite"])
    assert once_more.exit_code in (0, 4) and {"notes.txt", "ts.xyz"} <= {p.name for p in (out / "search-2").iterdir()}


def test_pieces_that_fall_together_need_no_second_search(tmp_path: Path) -> None:
    result = find_ts(smiles="C=C.B>>CCB", samples=2, correction="none", out=tmp_path / "out")
    assert result.mechanism is not None and result.mechanism.complete
    first, second = result.mechanism.steps
    assert first.saddle is None and first.search == 1 and second.saddle is result.best
    assert result.mechanism.searches[1].candidates == [] and not (tmp_path / "out" / "search-2").exists()
    assert result.mechanism.highest_kcal == 0.0, "the saddle lies below boranes and ethene apart"
    assert (tmp_path / "out" / "mechanism.png").exists()


def test_a_search_that_is_cut_short_leaves_the_first_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "molgen.workflows.ts_job.barrierless", lambda search: interrupted() if not search.guesses else None
    )
    with pytest.raises(KeyboardInterrupt):
        find_ts(smiles="C=C.B>>CCB", samples=2, correction="none", out=tmp_path / "out")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"barrier.png", "intermediate.xyz", "reactant.xyz", "summary.json", "ts.xyz"} <= there


def test_phosgene_from_python() -> None:
    result = find_ts(smiles=PHOSGENE, temperature=298.15)
    assert result.mechanism is not None and result.mechanism.complete and not result.verified
    assert str(result).startswith("intended in 2 steps, ") and result.status in ("ok", "partial")
    first, second = result.mechanism.searches
    assert first is result and result.gradient_calls > second.gradient_calls + 500
    steps = result.mechanism.steps
    gibbs = [step.thermochemistry.saddle.gibbs for step in steps if step.thermochemistry is not None]
    assert len(gibbs) == 2 and steps[0].thermochemistry is second.thermochemistry is not None
    above = kcal(max(gibbs) - second.thermochemistry.reactant.gibbs)
    assert result.mechanism.highest_gibbs_kcal == result.mechanism.summary()["highest_gibbs_kcal"] == above
    assert f"Gibbs {above:.1f}" in report(result, Path("nowhere"))
    steps[1] = replace(steps[1], thermochemistry=None)  # the calculator failed there
    assert np.isnan(result.mechanism.highest_gibbs_kcal)
