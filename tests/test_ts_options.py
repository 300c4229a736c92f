"""Options of `molgen ts`: how many gradient calls a refinement may take, and values that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from test_tsmodel import ELEMENTS, SIZES, built_in
from ts_cases import sides
from typer.testing import CliRunner

from molgen import find_ts
from molgen.checkpoint import save_checkpoint
from molgen.cli import main
from molgen.cli.ts_report import more_effort
from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.saddle import calls_allowed
from molgen.tsgen.generate import Guesses
from molgen.tsgen.model import TSModel
from molgen.tsgen.training import make_model, train_tsgen
from molgen.workflows import ts_guesses
from molgen.workflows.ts_result import Candidate

HCN = sides("hcn")


def test_a_refinement_stops_after_the_calls_allowed() -> None:
    result = find_ts(*HCN, samples=2, max_calls=3, correction="none")
    assert result.rejections["refinement did not converge"] == len(result.candidates)
    assert max(candidate.refine_calls for candidate in result.candidates) == 3
    for candidate in result.candidates:  # of searches that were cut short only the guesses are known
        assert candidate.confidence == candidate.atoms.info.get("confidence_guess")


def test_the_advice_names_the_limit_that_was_met(tmp_path: Path) -> None:
    files = [str(path) for side in HCN for path in side]
    result = CliRunner().invoke(main.app, ["ts", *files, "-n", "1", "--max-calls", "3", "--out", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert "ran out of 3 gradient calls, so try --max-calls 9" in " ".join(result.stderr.split())


def test_the_advice_says_on_how_many_guesses_the_calculator_failed() -> None:
    """A licence that is lost is no reason for more samples."""
    result = find_ts(*HCN, samples=1, refine=False)
    lost = Candidate(result.best.atoms, "TS-GEN", 1, verdict="failed", reason="licence lost")
    assert more_effort(result, 100) == ""
    result.candidates.append(lost)
    assert more_effort(result, 100) == "; it failed on 1 of 2 guesses (licence lost)"


def test_when_the_time_is_up_what_was_found_is_the_result(tmp_path: Path) -> None:
    result = find_ts(*HCN, samples=4, max_calls=3, time_budget=1e-6, correction="none", out=tmp_path / "py")
    assert len(result.candidates) == 1 and len(result.guesses) == 4
    assert (
        result.rejections["time budget reached"] == 9
    )  # three of them and the three sides to be relaxed first, in two ways
    files = [str(path) for side in HCN for path in side]
    options = ["--max-calls", "3", "--time-budget", "0.001s", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(main.app, ["ts", *files, "-n", "5", *options])
    assert said.exit_code == 3 and "10 x time budget reached" in said.stdout
    assert "the time was up with 10 guesses left, so try a longer --time-budget" in " ".join(said.stderr.split())


def test_large_reactions_may_take_more_calls() -> None:
    assert [calls_allowed(n) for n in (3, 12, 21, 28)] == [100, 100, 100, 224]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": -1}, "--steps: -1 given.*a whole number, at least 1"),
        ({"samples": 2.5}, "--samples: 2.5 given"),
        ({"follow": -1}, "--follow: -1 given"),
        ({"overwrite": True}, "overwrite: given without a folder"),
        ({"max_calls": 0}, "--max-calls: 0 given"),
        ({"time_budget": 0}, "--time-budget: 0 given.*a duration above 0"),
        ({"charge": 0.5}, "--charge: 0.5 given.*expected: a whole number"),
        ({"spin": 1.5}, "--spin: 1.5 given"),
        ({"seed": -1}, "--seed: -1 given"),
        ({"device": "tpu"}, "--device: unknown device 'tpu'"),
        ({"device": None}, "--device: unknown device None"),
        ({"samples": None}, "--samples: None given"),
        ({"calculator_kwargs": "x"}, "--calculator-kwargs: 'x' given"),
    ],
)
def test_values_without_a_meaning_are_refused(options: dict, text: str) -> None:
    with pytest.raises(InputError, match=f"(?s){text}"):
        find_ts(*HCN, **options)


def test_a_negative_seed_is_bad_input_on_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.app, ["ts", "a.xyz", "b.xyz", "--seed", "-1", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "--seed" in result.stderr


def test_the_device_may_be_left_to_molgen() -> None:
    assert find_ts(*HCN, samples=1, refine=False, device="auto").best.verdict == "unverified"


def test_a_size_beside_weights_is_refused() -> None:
    with pytest.raises(InputError, match="--config: base given beside --init tsgen"):
        make_model([], config="base", init="tsgen")


def test_guesses_are_asked_of_the_level_that_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that know two and went on with one of them; it is said where the calculator is another."""
    asked: list[str] = []
    real = ts_guesses.generate

    def generate(model: TSModel, reactions: list[Reaction], **options: Any) -> list[Guesses]:
        asked.extend(r.level for r in reactions)
        return real(model, reactions, **options)

    monkeypatch.setattr(ts_guesses, "generate", generate)
    model = TSModel(ELEMENTS, levels=["wB97X-D3", "GFN2-xTB"], **SIZES)
    save_checkpoint(tmp_path / "both", model.state_dict(), {"model": "tsgen", "config": model.config})
    for trained, level in ((["GFN2-xTB"], "GFN2-xTB"), (["GFN2-xTB", "wB97X-D3"], "wB97X-D3"), (["PM6"], "wB97X-D3")):
        data = [replace(r, level=name) for r in built_in() for name in trained]
        init, out = str(tmp_path / "both"), tmp_path / "-".join(trained)
        train_tsgen(make_model(data, data, init=init), data, data, out, steps=1, init=init, log=lambda line: None)
        sides = [Atoms(data[0].numbers, x) for x in (data[0].reactant, data[0].product)]
        found = find_ts(*sides, weights=out / "best", refine=False, samples=1)
        assert asked.pop() == level
        said = [note for note in found.notes if note.startswith("guesses are of wB97X-D3")]
        assert len(said) == (level != "GFN2-xTB") and all("the calculator is GFN2-xTB" in note for note in said)
