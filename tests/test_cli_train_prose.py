"""`molgen train prose` on a few frames of small peptides."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prose_cases import md_set, small_flow, write_md
from typer.testing import CliRunner, Result

from molgen.checkpoint import load_checkpoint, save_checkpoint
from molgen.cli import main
from molgen.data.md import MDSet
from molgen.data.peptide import build_peptide
from molgen.errors import InputError
from molgen.prose.frames import Frames
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.training import prose_loss
from molgen.prose.weights import load_flow
from molgen.train.loop import TrainSettings
from molgen.workflows import train_prose
from molgen.workflows.train_prose import joined, load_training_data

runner = CliRunner()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GG and AG as zwitterions and G between caps: 16, 12 and 48 frames."""
    folder = tmp_path_factory.mktemp("data")
    for sequence, cap, frames in (("GG", None, 8), ("AG", None, 6), ("G", "ace-nme", 24)):
        write_md(folder, md_set(sequence, cap, frames))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of few parameters, to start from."""
    flow, folder = small_flow(), tmp_path_factory.mktemp("small") / "flow"
    save_checkpoint(folder, flow.state_dict(), {"model": "prose", "config": flow.describe()})
    return folder


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config", "base"], "--config: base given beside --init"),
        (["--own-samples", "5"], "--own-samples: given without --own"),
        (["--val", "AG", "--val-share", "0.1"], "--val-share: given beside --val"),
        (["--time-budget", "1h"], "--time-budget: 1h given beside --steps 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: list[str], text: str, train: Callable[..., Result], tmp_path: Path
) -> None:
    result = train("--steps", 1, *arguments)
    assert result.exit_code == 2 and text in " ".join(result.stderr.split()) and not (tmp_path / "out").exists()


@pytest.fixture
def train(data: Path, small: Path, tmp_path: Path) -> Callable[..., Result]:
    """`molgen train prose` on the three files from small weights, writing to tmp_path/out unless told otherwise."""

    def run(*arguments: Any, out: str = "out") -> Result:
        given = [str(a) for a in arguments]
        for option, value in (("--data", data), ("--init", small), ("--batch-size", 4)):
            given += [] if option in given else [option, str(value)]
        return runner.invoke(main.app, ["train", "prose", *given, "--out", str(tmp_path / out)])

    return run


def test_sequences_without_dynamics_teach_by_energies(train: Callable[..., Result], tmp_path: Path) -> None:
    listed = tmp_path / "own.txt"
    listed.write_text("GA\nAG\nAA # a comment\nGAG\n")
    held = tmp_path / "held.txt"
    held.write_text("GA\n")
    done = train("--own", listed, "--own-samples", 8, "--exclude", held, "--val", "AG", "--steps", 2)
    assert done.exit_code == 0, done.stderr
    assert "2 of 4 sequences" in done.stderr and "samples of 2 sequences" in done.stderr
    assert "4 training and 1 validation sequences" in done.stderr
    listed.write_text("GA\nAG\nGG\n")  # one of the three with dynamics is drawn to validate by
    drawn = train("--own", listed, "--own-samples", 8, "--val-share", 0.1, "--steps", 2, out="drawn")
    assert drawn.exit_code == 0 and "1 of 3 sequences" in drawn.stderr, drawn.stderr
    assert "3 training and 1 validation sequences" in drawn.stderr, "one with dynamics and samples counts once"
    listed.write_text("GA\n")
    assert (
        "no sequence to learn from by energies"
        in train("--own", listed, "--exclude", held, "--val", "AG", "--steps", 2, out="none").stderr
    )
    plain = runner.invoke(
        main.app, ["train", "prose", "--data", str(tmp_path), "--own", str(listed), "--out", str(tmp_path / "plain")]
    )
    assert plain.exit_code == 2 and "--own needs a flow to draw samples from" in plain.stderr
    deep = runner.invoke(
        main.app, ["train", "prose", "--data", str(tmp_path), "--layers", "3", "--out", str(tmp_path / "plain")]
    )
    assert deep.exit_code == 2 and "--layers: given without --init" in deep.stderr


def test_training_makes_weights_that_can_be_used(train: Callable[..., Result], tmp_path: Path) -> None:
    done = train("--steps", 3, "--val", "AG", "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["status"] == "ok" and summary["command"] == "train prose"
    assert summary["results"][0]["step"] == 3 and summary["rejections"] == {"excluded": 0, "unusable": 0}
    assert "2 training and 1 validation sequences" in done.stderr
    best = load_flow(tmp_path / "out" / "best")
    assert best.config["temperatures"] == [310.0, 380.0] and best.config["lengths"] == [1, 2]
    assert best.config["loss"]["frames"] == 4 and best.config["validation"]["score"] == summary["results"][0]["score"]
    _, log_q = propose(best.model, Layout.of(md_set("GG", frames=8).peptide), 2, 310.0, 0)
    assert log_q.shape == (2,)
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3

    further = train("--init", tmp_path / "out" / "best", "--steps", 1, "--val", "AG", out="further")
    assert further.exit_code == 0
    assert re.search(r"best validation forward ESS \d\.\d+, at step \d+ of \d+: ", further.stdout.replace("\n", " "))
    assert f"use it: molgen peptide AAGY --weights {tmp_path / 'further' / 'best'}" in further.stdout


def test_training_that_gains_nothing_is_not_recommended(
    train: Callable[..., Result], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"score": 0.4, "val_nll": 1.0, "val_spread": 2.0, "val_forward": 0.6}
    monkeypatch.setattr("molgen.prose.training.validation_figures", lambda *_: found)
    done = train("--steps", 1, "--val", "AG")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 0 and f"{small}: validation NLL 1.0000" in said
    assert f"warning: the training does not help (forward ESS 0.6000, 0.6000 by {small}" in said
    assert "best validation forward ESS 0.600" in done.stdout and "use it" not in done.stdout


def test_a_new_model_has_the_standard_size(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(data / "G.npz"), "--steps", "1", "--batch-size", "2", "--out", str(tmp_path / "out")]
    for seed, out in ((0, "a"), (0, "b"), (1, "c")):
        arguments[-1] = str(tmp_path / out)
        done = runner.invoke(main.app, ["train", "prose", *arguments, "--seed", str(seed)])
        assert done.exit_code == 0, done.stderr
    hashes = [load_checkpoint(tmp_path / out / "best").hash for out in "abc"]
    assert hashes[0] == hashes[1] != hashes[2], "the seed decides the first weights"
    assert load_flow(tmp_path / "a" / "best").config["config"]["width"] == 96


def test_interrupted_and_resumed_is_the_same_to_the_bit(
    train: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the third of five steps; every step is saved, as the clock would do every other minute."""
    monkeypatch.setattr("molgen.prose.training.TrainSettings", functools.partial(TrainSettings, checkpoint_seconds=0.0))
    assert train("--steps", 5, out="whole").exit_code == 0
    steps = itertools.count(1)

    def interrupted(*arguments: Any) -> Any:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return prose_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("molgen.prose.training.prose_loss", interrupted)
        stopped = train("--steps", 5)
    assert stopped.exit_code == 130
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "interrupted"
    assert load_checkpoint(tmp_path / "out" / "state").config["counters"]["step"] == 2
    again = train("--steps", 5)
    assert again.exit_code == 2 and "the output folder is not empty" in again.stderr
    resumed = train("--steps", 5, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    for part in ("state", "best"):
        assert load_checkpoint(tmp_path / "out" / part).hash == load_checkpoint(tmp_path / "whole" / part).hash
    assert train("--steps", 1, "--overwrite").exit_code == 0
    refused(train("--steps", 2, "--resume"), ["cannot resume: 'steps' was 1 and is now 2"])
    refused(train("--steps", 1, "--resume", "--val", "AG"), ["cannot resume: 'val' was '' and is now 'AG'"])


def test_a_longer_time_budget_continues(train: Callable[..., Result], tmp_path: Path) -> None:
    assert train("--time-budget", "1s").exit_code == 0
    first = load_checkpoint(tmp_path / "out" / "state").config["counters"]
    assert train("--time-budget", "2s", "--resume").exit_code == 0
    second = load_checkpoint(tmp_path / "out" / "state").config["counters"]
    assert second["step"] > first["step"] and second["elapsed"] >= 2.0


# what is learned from


def load(paths: Sequence[Path], **more: Any) -> tuple[set[str], set[str], list[str], list[str]]:
    """Sequences to train on, to validate by, excluded, unusable."""
    found = load_training_data(paths, **({"log": lambda message: None} | more))
    train, val = ({item.layout.peptide.sequence for item in part} for part in (found.train, found.val))
    return train, val, found.excluded, found.unusable


def test_held_out_sequences_are_left_out_and_counted(train: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("# benchmark\nAG *\nYYY\n")
    done = train("--exclude", tmp_path / "held.txt", "--steps", 1, "--json")
    assert done.exit_code == 0, done.stderr
    assert "1 sequence excluded: AG" in done.stderr
    assert json.loads(done.stdout)["rejections"] == {"excluded": 1, "unusable": 0}
    train_set, val, excluded, _ = load([data], exclude=tmp_path / "held.txt")
    assert train_set | val == {"G", "GG"} and excluded == ["AG"]
    refused(
        train("--exclude", tmp_path / "held.txt", "--val", "AG", out="b"), ["--val: AG is excluded", "some of G, GG"]
    )
    (tmp_path / "held.txt").write_text("AG\nGG\nG")
    refused(
        train("--exclude", tmp_path / "held.txt", out="b"), ["nothing to learn from: all that there is is excluded"]
    )


def test_tetrapeptides_that_contain_a_held_out_tripeptide_are_left_out(data: Path, tmp_path: Path) -> None:
    peptide = build_peptide("AGGA")
    nothing = np.zeros((2, 1, len(peptide), 3), dtype=np.float32)
    md = replace(md_set("GG", frames=8), sequence="AGGA", names=peptide.labels, bonds=peptide.bonds)
    write_md(tmp_path / "more", replace(md, positions=nothing, energies=np.zeros((2, 1))))
    (tmp_path / "held.txt").write_text("GGA\nAGG\n")
    assert load([data, tmp_path / "more"], exclude=tmp_path / "held.txt")[2] == ["AGGA"]
    (tmp_path / "held.txt").write_text("AGA\nGA\n")
    assert load([data, tmp_path / "more"], exclude=tmp_path / "held.txt")[2] == []


def test_validation_by_name_by_share_and_of_a_single_sequence(data: Path, tmp_path: Path) -> None:
    assert load([data], val=["AG", "GG"])[:2] == ({"G"}, {"AG", "GG"})
    drawn = [load([data], seed=seed)[1] for seed in (0, 0, *range(1, 5))]
    assert drawn[0] == drawn[1] and all(len(val) == 1 for val in drawn) and len(set(map(frozenset, drawn))) > 1
    assert len(load([data], val_share=0.7)[1]) == 2
    one = load_training_data([data / "G.npz"], val_share=0.25)
    assert [len(one.train[0]), len(one.val[0])] == [36, 12]
    assert one.val[0].temperatures() == one.train[0].temperatures() == [310.0, 380.0]
    whole = load_training_data([data], val=["G"]).val[0]
    last = [frames for t in (310.0, 380.0) for frames in whole.x[whole.at(t)][18:]]
    assert torch.equal(one.val[0].x, torch.stack(last)), "the last of every trajectory"


def test_files_of_one_sequence_stay_together(data: Path, tmp_path: Path) -> None:
    """What validates is not learned from by way of another file."""
    write_md(tmp_path, md_set("AG", frames=6, seed=5), "again")
    for seed in range(3):
        train, val, *_ = load([data, tmp_path / "again.npz"], seed=seed)
        assert not train & val and train | val == {"G", "GG", "AG"}
    found = load_training_data([data, data, tmp_path / "again.npz"], val=["AG"])
    assert (len(found.train), len(found.val)) == (2, 1), "the two files of a sequence are one set"


def test_files_made_ready_by_processes_are_the_same(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load_training_data([data], val=["GG"])
    monkeypatch.setattr(train_prose, "JOBS_A_PROCESS", 1)
    monkeypatch.setattr(train_prose, "cores", lambda: 2)
    seen = []
    found = load_training_data([data], val=["GG"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for one, other in zip((*alone.train, *alone.val), (*found.train, *found.val), strict=True):
        assert one.layout.peptide.sequence == other.layout.peptide.sequence
        assert torch.equal(one.x, other.x) and torch.equal(one.scans, other.scans)
    monkeypatch.setattr(Frames, "of_md", _refuse)
    with pytest.raises(InputError, match="no frames today"):
        load_training_data([data], val=["GG"])


def _refuse(item: MDSet) -> Frames:
    raise InputError("no frames today")


def test_sets_of_one_peptide_are_joined(data: Path, tmp_path: Path) -> None:
    """Its frames meet in one step, whichever file they come from."""
    write_md(tmp_path, md_set("AG", frames=6, seed=5), "again")
    found = load_training_data([data, tmp_path / "again.npz"], val=["GG"]).train
    sizes = {frames.layout.peptide.sequence: len(frames) for frames in joined(found)}
    assert len(found) == 3 and sizes == {"AG": sum(len(f) for f in found if f.layout.peptide.sequence == "AG"), "G": 48}


def test_mirror_images_are_not_learned(train: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    item = md_set("AG", frames=6)
    write_md(tmp_path / "odd", replace(item, positions=-item.positions))
    done = train(
        "--data", data / "GG.npz", "--data", data / "G.npz", "--data", tmp_path / "odd", "--val", "GG", "--steps", 1
    )
    assert done.exit_code == 0, done.stderr
    assert "AG: 12 of 12 frames lie beyond the limits or lack an energy" in done.stderr
    assert "1 training and 1 validation sequences" in done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rejections"] == {"excluded": 0, "unusable": 1}
    refused(train("--data", tmp_path / "odd", out="b"), ["no frames to learn from"])


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--data", "nowhere.npz"], ["nowhere.npz: no such file"]),
        (["--init", "nowhere"], ["no such checkpoint folder"]),
        (["--init", "tsgen"], ["holds a model of kind 'tsgen'", "'prose'"]),
        (["--val", "AG,WW"], ["--val: WW is not in the data", "some of AG, G, GG"]),
        (["--val", "AG,G,GG"], ["nothing to learn from: all that there is is set aside to validate by"]),
        (["--val-share", "1.5"], ["--val-share: 1.5 is no share", "between 0 and 1"]),
        (["--exclude", "nowhere.txt"], ["nowhere.txt: cannot read"]),
        (["--time-budget", "soon"], ["--time-budget: 'soon' is not a duration"]),
        (["--config", "huge"], ["--config: huge given beside --init", "one or the other"]),
        (["--device", "tpu"], ["--device: unknown device 'tpu'"]),
        (["--sequences", 50], ["--sequences: 50 sequences in a batch", "or fewer"]),
    ],
)
def test_train_refuses(
    arguments: Sequence[str], texts: Sequence[str], train: Callable[..., Result], tmp_path: Path
) -> None:
    refused(train(*arguments), texts)
    assert not (tmp_path / "out").exists()


def test_train_refuses_files(train: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no zip")
    refused(train("--data", tmp_path / "text.npz"), ["text.npz: not an npz file"])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    refused(train("--data", tmp_path / "other.npz"), ["missing keys: x, e, names, bonds"])
    (tmp_path / "empty").mkdir()
    refused(train("--data", tmp_path / "empty"), ["no npz file in this folder", "molgen data md"])


def refused(result: Result, texts: Sequence[str]) -> None:
    assert result.exit_code == 2, result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
