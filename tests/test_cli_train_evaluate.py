"""`molgen train ts` and `molgen evaluate ts` on reactions written for the purpose, with transition states we chose."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from ts_cases import noise_weights, sides
from typer.testing import CliRunner, Result

from molgen.checkpoint import SHIPPED, load_checkpoint
from molgen.cli import main
from molgen.cli.common import seconds_of
from molgen.data.reactions import Reaction, save_npz
from molgen.errors import InputError
from molgen.io import load_reaction
from molgen.train.loop import TrainSettings
from molgen.tsgen.condition import prepare
from molgen.tsgen.training import flow_loss

KEYS = ("n", "rmsd_median", "rmsd_mean", "rmsd_reflect_median", "dmae_mean", "wrong_handedness", "seconds_per_guess")
NAMES = ("hcn", "formaldehyde", "vinyl_alcohol", "malonaldehyde", "cyclobutene", "diels_alder")
MIRROR = np.array([1.0, 1.0, -1.0])
runner = CliRunner()


def sqrt_distance_guess(reaction: Reaction) -> np.ndarray:
    return prepare([reaction]).guess[0].double().numpy()


@pytest.fixture(scope="module")
def reactions() -> list[Reaction]:
    """Twelve: six examples and their reverses; the transition states are sqrt-distance guesses."""
    forward = [replace(load_reaction(*sides(name))[0], name=name) for name in NAMES]
    known = [replace(r, ts=sqrt_distance_guess(r)) for r in forward]
    return [*known, *(replace(r.reversed, name=f"{r.name} back") for r in known)]


@pytest.fixture(scope="module")
def data(reactions: list[Reaction], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine to learn from and three to validate on, in splits with other names than RDB7's."""
    path = tmp_path_factory.mktemp("data") / "reactions.npz"
    rng = np.random.default_rng(0)
    noisy = [replace(r, ts=r.ts + rng.normal(0, 0.05, r.ts.shape)) for r in reactions if r.ts is not None]
    save_npz(path, noisy, ["learn"] * 9 + ["hold out"] * 3)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose first sample is the sqrt-distance guess."""
    return noise_weights(tmp_path_factory.mktemp("noise"))


def evaluate(*arguments: Any) -> Result:
    return runner.invoke(main.app, ["evaluate", "ts", *map(str, arguments)])


def figures(*arguments: Any) -> dict[str, Any]:
    result = evaluate(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# evaluate


@pytest.mark.filterwarnings("error::UserWarning")
def test_perfect_guesses(reactions: list[Reaction], weights: Path, tmp_path: Path) -> None:
    """Transition states that are the guesses: no error but float32's; the midpoint is not as lucky."""
    save_npz(tmp_path / "perfect.npz", reactions, "only")
    found = figures("--data", tmp_path / "perfect.npz", "--split", "only", "--weights", weights)
    assert found.keys() >= set(KEYS) and found["n"] == 12
    assert all(found[key] < 1e-4 for key in KEYS[1:6])
    assert found["seconds_per_guess"] > 0
    assert found["baselines"]["sqrt_distance"]["rmsd_mean"] < 1e-4 < found["baselines"]["midpoint"]["rmsd_mean"]


def test_errors_of_known_size(reactions: list[Reaction], weights: Path, tmp_path: Path) -> None:
    """Noise added to each transition state; RMSD and D-MAE once more, by SciPy and by loops."""
    rng = np.random.default_rng(1)
    moved, expected, distances = [], [], []
    for r in reactions:
        assert r.ts is not None
        noisy = (r.ts + rng.normal(0, 0.2, r.ts.shape)).astype(np.float32).astype(float)
        moved.append(replace(r, ts=Rotation.random(None, rng).apply(noisy) + 3.0))
        a, b = r.ts - r.ts.mean(0), noisy - noisy.mean(0)
        expected.append(Rotation.align_vectors(b, a)[1] / np.sqrt(len(r)))
        pairs = list(itertools.combinations(range(len(r)), 2))
        distances.append(np.mean([abs(np.linalg.norm(a[i] - a[j]) - np.linalg.norm(b[i] - b[j])) for i, j in pairs]))
    save_npz(tmp_path / "noisy.npz", moved, "x")
    found = figures("--data", tmp_path / "noisy.npz", "--weights", weights, "--batch-size", 5)
    assert found["per_reaction"]["rmsd"] == pytest.approx(expected, abs=1e-4)
    assert found["rmsd_mean"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert found["rmsd_median"] == pytest.approx(np.median(expected), abs=1e-4)
    assert found["dmae_mean"] == pytest.approx(np.mean(distances), abs=1e-4)
    assert found["rmsd_reflect_median"] <= found["rmsd_median"] + 1e-6


def test_mirror_images_are_wrong_though_their_distances_are_right(
    reactions: list[Reaction], weights: Path, tmp_path: Path
) -> None:
    """Only a reflection brings them together; achiral guesses are their own mirror images."""
    save_npz(tmp_path / "m.npz", [replace(r, ts=r.ts * MIRROR) for r in reactions if r.ts is not None], "x")
    found = figures("--data", tmp_path / "m.npz", "--weights", weights)
    errors = found["per_reaction"]
    assert max(errors["rmsd_reflect"]) < 1e-4 and max(errors["dmae"]) < 1e-4
    chiral = [rmsd > 0.1 for rmsd in errors["rmsd"]]
    assert 0 < sum(chiral) < len(chiral)
    for name, is_chiral, wrong in zip(errors["name"], chiral, errors["wrong_handedness"], strict=True):
        assert bool(wrong) == is_chiral, name
    assert found["wrong_handedness"] == pytest.approx(sum(chiral) / 12)


def test_splits_are_taken_by_any_name(data: Path, weights: Path) -> None:
    counts = {s: figures("--data", data, "--weights", weights, *s)["n"] for s in ((), ("--split", "hold out"))}
    assert counts == {(): 12, ("--split", "hold out"): 3}
    assert figures("--data", data, "--weights", weights, "--single-product")["n"] < 12


def test_table_shows_the_baselines_beside_the_model(data: Path, weights: Path) -> None:
    result = evaluate("--data", data, "--weights", weights)
    assert result.exit_code == 0
    head, *rows, last = result.stdout.splitlines()
    assert head.split() == ["TS-GEN", "sqrt-distance", "midpoint"]
    table = {row[:26].strip(): row[26:].split() for row in rows}
    assert set(table) >= {"RMSD median, A", "RMSD mean, A", "D-MAE mean, A", "wrong handedness"}
    assert table["RMSD mean, A"][0] == table["RMSD mean, A"][1], "this model is the sqrt-distance guess"
    assert last.startswith("12 reactions, ")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--split", "test"], ["no reaction of split 'test'", "'hold out' (3)", "'learn' (9)"]),
        (["--weights", "nowhere"], ["no such checkpoint folder"]),
        (["--device", "tpu"], ["unknown device"]),
    ],
)
def test_evaluate_refuses(arguments: Sequence[str], texts: Sequence[str], data: Path) -> None:
    refused(evaluate("--data", data, *arguments), texts)


def test_evaluate_refuses_files(tmp_path: Path, weights: Path) -> None:
    refused(evaluate("--data", tmp_path / "nowhere.npz"), ["nowhere.npz: no such file", "an npz of reactions"])
    (tmp_path / "text.npz").write_text("no zip")
    refused(evaluate("--data", tmp_path / "text.npz"), ["text.npz: not an npz file"])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    refused(evaluate("--data", tmp_path / "other.npz"), ["missing keys: id, split"])


def test_evaluate_refuses_reactions_it_cannot_judge(reactions: list[Reaction], weights: Path, tmp_path: Path) -> None:
    save_npz(tmp_path / "unknown.npz", [chlorinated(reactions[2])], "x")
    refused(
        evaluate("--data", tmp_path / "unknown.npz", "--weights", weights),
        [
            "unknown.npz, reaction with chlorine: atomic numbers [17] are not among those of the weights",
            "remove these reactions",
        ],
    )
    save_npz(tmp_path / "open.npz", [replace(reactions[0], ts=None)], "x")
    refused(
        evaluate("--data", tmp_path / "open.npz", "--weights", weights),
        ["open.npz, reaction hcn: no transition state to compare with", "expected: a known one", "remedy: remove it"],
    )
    save_npz(tmp_path / "empty.npz", [], "x")
    for option in ([], ["--split", "test"]):
        refused(
            evaluate("--data", tmp_path / "empty.npz", "--weights", weights, *option), ["empty.npz: ", "one at least"]
        )
    save_npz(tmp_path / "two.npz", [reactions[0]], "x")
    one = evaluate("--data", tmp_path / "two.npz", "--weights", weights)
    assert one.exit_code == 0 and one.stderr.startswith("1 reaction, ") and "\n1 reaction, " in one.stdout


# train


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Callable[..., Result]:
    """`molgen train ts` on the twelve reactions, writing to tmp_path/out unless told otherwise."""

    def run(*arguments: Any, out: str = "out") -> Result:
        given = [str(a) for a in arguments]
        if "--data" not in given:
            given += ["--data", str(data)]
        for option, split in (("--train-split", "learn"), ("--val-split", "hold out")):
            given += [] if option in given else [option, split]
        given += ["--out", str(tmp_path / out), "--batch-size", "4"]
        return runner.invoke(main.app, ["train", "ts", *given])

    return run


def test_training_makes_weights_that_molgen_ts_uses(train: Callable[..., Result], tmp_path: Path) -> None:
    done = train("--steps", 5, "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["status"] == "ok" and summary["results"][0]["step"] == 5
    assert "9 training and 3 validation reactions" in done.stderr
    best = load_checkpoint(tmp_path / "out" / "best")
    assert best.config["model"] == "tsgen" and best.config["config"]["elements"] == [1, 6, 7, 8]
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 5 and lines[-1]["val_rmsd_mean"] == pytest.approx(summary["results"][0]["score"])

    hcn = [str(files[0]) for files in sides("hcn")]
    weights = ["--weights", str(tmp_path / "out" / "best")]
    used = runner.invoke(main.app, ["ts", *hcn, *weights, "--no-refine", "--json", "--out", str(tmp_path / "ts")])
    assert used.exit_code == 0, used.stderr
    assert json.loads(used.stdout)["checkpoint_hash"] == best.hash
    assert train("--init", tmp_path / "out" / "best", "--steps", 1, out="further").exit_code == 0
    assert train("--init", "tsgen", "--steps", 1, out="tuned").exit_code == 0
    seen, further, tuned = (load_checkpoint(tmp_path / k / "best").config["atoms"] for k in ("out", "further", "tuned"))
    shipped = load_checkpoint(SHIPPED / "tsgen").config["atoms"]  # what they knew, the further trained know
    assert further == seen and tuned == [min(shipped[0], seen[0]), max(shipped[1], seen[1])]


def test_interrupted_and_resumed_is_the_same_to_the_bit(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the fifth of eight steps; every step is saved, as the clock would do every other minute."""
    monkeypatch.setattr("molgen.tsgen.training.TrainSettings", functools.partial(TrainSettings, checkpoint_seconds=0.0))
    assert train("--steps", 8, out="whole").exit_code == 0
    steps = itertools.count(1)

    def interrupted(*arguments: Any) -> Any:
        if next(steps) == 5:
            raise KeyboardInterrupt
        return flow_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("molgen.tsgen.training.flow_loss", interrupted)
        stopped = train("--steps", 8)
    assert stopped.exit_code == 130
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "interrupted"
    assert load_checkpoint(tmp_path / "out" / "state").config["counters"]["step"] == 4
    again = train("--steps", 8)
    assert again.exit_code == 2 and "the output folder is not empty" in again.stderr
    resumed = train("--steps", 8, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    for part in ("state", "best"):
        assert load_checkpoint(tmp_path / "out" / part).hash == load_checkpoint(tmp_path / "whole" / part).hash


def test_a_longer_time_budget_continues(train: Callable[..., Result], tmp_path: Path) -> None:
    assert train("--time-budget", "1s").exit_code == 0
    first = load_checkpoint(tmp_path / "out" / "state").config["counters"]
    assert train("--time-budget", "2s", "--resume").exit_code == 0
    second = load_checkpoint(tmp_path / "out" / "state").config["counters"]
    assert second["step"] > first["step"] and second["elapsed"] >= 2.0
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and {first["step"], second["step"]} <= set(steps)


def test_resume_with_other_settings_is_refused(train: Callable[..., Result]) -> None:
    assert train("--steps", 1).exit_code == 0
    refused(train("--steps", 2, "--resume"), ["cannot resume: 'steps' was 1 and is now 2"])
    refused(train("--steps", 1, "--resume", "--seed", 5), ["cannot resume: 'seed' was 0 and is now 5"])


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--data", "nowhere.npz"], ["nowhere.npz: no such file"]),
        (["--train-split", "train"], ["no reaction of split 'train'", "'learn' (9)"]),
        (["--val-split", "val"], ["no reaction of split 'val'"]),
        (["--config", "huge"], ["--config: no model size 'huge'", "small or base"]),
        (["--init", "nowhere"], ["no such checkpoint folder"]),
        (["--init", "tsgen", "--dropout", "0.5"], ["--dropout: 0.5 given beside --init tsgen"]),
        (["--steps", "1", "--time-budget", "1h"], ["--time-budget: 1h given beside --steps 1"]),
        (["--time-budget", "soon"], ["--time-budget: 'soon' is not a duration", "1h30m"]),
        (["--time-budget", "0s"], ["no time given"]),
    ],
)
def test_train_refuses(
    arguments: Sequence[str], texts: Sequence[str], train: Callable[..., Result], tmp_path: Path
) -> None:
    refused(train(*arguments), texts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_learning_rate_is_above_zero(rate: str, train: Callable[..., Result], tmp_path: Path) -> None:
    refused(
        train("--steps", 1, "--learning-rate", rate), [f"--learning-rate: learning rate {float(rate):g}", "above 0"]
    )
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverged_says_so(train: Callable[..., Result], tmp_path: Path) -> None:
    result = train("--steps", 3, "--learning-rate", "1e30")
    assert result.exit_code == 3 and "the training diverged" in result.stderr and "lower one" in result.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "failed"


def test_resume_on_other_data_is_refused(
    reactions: list[Reaction], train: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "set.npz"
    save_npz(path, reactions, ["learn"] * 9 + ["hold out"] * 3)
    assert train("--data", path, "--steps", 1).exit_code == 0
    moved = [replace(r, ts=r.ts + 0.01 * r.reactant) for r in reactions if r.ts is not None]
    save_npz(path, moved, ["learn"] * 9 + ["hold out"] * 3)
    refused(
        train("--data", path, "--steps", 1, "--resume"), ["cannot resume: the files of the data have other contents"]
    )


def test_what_validates_is_not_learned_from(
    reactions: list[Reaction], train: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "leak.npz"
    copies = [replace(reactions[9], name="under another name"), reactions[10].reversed]
    save_npz(path, [*reactions, *copies], ["learn"] * 9 + ["hold out"] * 3 + ["learn"] * 2)
    refused(train("--data", path, "--train-split", "hold out"), ["all training reactions are validation reactions too"])
    result = train("--data", path, "--steps", 1)
    assert result.exit_code == 0 and "5 training reactions left out" in result.stderr
    assert "6 training and 3 validation reactions" in result.stderr, "three of the nine are their reverses"


def test_train_refuses_elements_the_model_will_not_know(
    reactions: list[Reaction], train: Callable[..., Result], weights: Path, tmp_path: Path
) -> None:
    """In the validation split alone, or anywhere when training goes on from weights without them."""
    path = tmp_path / "chlorine.npz"
    save_npz(path, [*reactions[:3], chlorinated(reactions[2])], ["learn"] * 3 + ["hold out"])
    text = "reaction with chlorine: atomic numbers [17] are not among those of"
    refused(train("--data", path), [f"{text} the training split", "remove these reactions"])
    save_npz(path, [*reactions[:3], chlorinated(reactions[2])], ["hold out"] * 3 + ["learn"])
    refused(train("--data", path, "--init", weights), [f"{text} {weights}", "leave out --init"])
    assert not (tmp_path / "out").exists()


def test_train_refuses_reactions_without_a_transition_state(
    reactions: list[Reaction], train: Callable[..., Result], tmp_path: Path
) -> None:
    path = tmp_path / "open.npz"
    save_npz(path, [*reactions[:2], replace(reactions[2], ts=None)], ["learn", "hold out", "learn"])
    refused(train("--data", path), [f"{path}, reaction vinyl_alcohol: no transition state to learn from"])
    save_npz(
        path, [*reactions[:2], replace(reactions[2], ts=0 * reactions[2].reactant)], ["learn", "hold out", "learn"]
    )
    refused(train("--data", path), ["reaction vinyl_alcohol: two atoms of the transition state within 0.3 Angstrom"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1d", 86400),
        ("45", 45),
        ("0.5h", 1800),
        ("5min", 300),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2 weeks", "h", "-3m", "1h x"])
def test_no_durations(text: str) -> None:
    with pytest.raises(InputError, match="not a duration"):
        seconds_of(text)


def chlorinated(reaction: Reaction) -> Reaction:
    """One hydrogen's number made chlorine's; nobody looks at the geometry."""
    numbers = reaction.numbers.copy()
    numbers[np.flatnonzero(numbers == 1)[0]] = 17
    return replace(reaction, numbers=numbers, name="with chlorine")


def refused(result: Result, texts: Sequence[str]) -> None:
    assert result.exit_code == 2, result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
