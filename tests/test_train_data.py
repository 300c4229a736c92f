"""What `molgen train` says of its data and of what it learned: no validation, files twice, no gain."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_tsmodel import built_in
from ts_cases import sides
from typer.testing import CliRunner

from molgen import find_ts
from molgen.cli import main
from molgen.data.geometries import check_geometries
from molgen.data.reactions import Reaction, load_npz, save_npz

runner = CliRunner()
SET = Path(__file__).parent.parent / "data/sets/gfn2_reactions.npz"


def train(*arguments):
    return runner.invoke(main.app, ["train", "ts", *map(str, arguments), "--batch-size", "4"])


@pytest.fixture(scope="module")
def reactions() -> list[Reaction]:
    """Six: two reactions, three transition states each."""
    rng = np.random.default_rng(0)
    return [replace(r, ts=r.ts + rng.normal(0, 0.03, r.ts.shape)) for r in built_in()[:2] * 3 if r.ts is not None]


def test_a_set_without_validation_names_what_works(reactions, tmp_path):
    path = tmp_path / "set.npz"
    save_npz(path, reactions, "train")
    command = ("--data", path, "--steps", 1, "--out", tmp_path / "out")
    refused = train(*command)
    assert refused.exit_code == 2 and "no reaction of split 'val'" in refused.stderr
    option = shlex.split(refused.stderr.partition("remedy: add ")[2].partition(" (")[0])
    assert option == ["--val-share", "0.1"]
    done = train(*command, *option)
    assert done.exit_code == 0 and "5 training and 1 validation reactions" in done.stderr
    refused = train(*command, "--val-split", "train", "--out", tmp_path / "other")
    assert "all training reactions are validation reactions too" in refused.stderr
    assert "another --val-split, or --val-share 0.1" in refused.stderr
    for given, text in (
        (("--val-share", 0.5, "--val-split", "val"), "--val-share: given beside --val-split"),
        (("--val-share", 1), "--val-share: 1 given"),
    ):
        refused = train(*command, *given, "--out", tmp_path / "other")
        assert refused.exit_code == 2 and text in refused.stderr


def test_one_reaction_cannot_teach_and_validate(reactions, tmp_path):
    path = tmp_path / "set.npz"
    save_npz(path, reactions[:1], "train")
    assert "make more reactions" in train("--data", path, "--out", tmp_path / "out").stderr
    assert "1 reaction to learn from" in train("--data", path, "--val-share", 0.5, "--out", tmp_path / "out").stderr
    both = tmp_path / "both.npz"
    save_npz(both, reactions[1:3], ["train", "val"])
    done = train("--data", both, "--data", path, "--steps", 1, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "2 training and 1 validation reactions" in done.stderr


def test_a_reaction_of_two_files_counts_once(reactions, tmp_path):
    path, again = tmp_path / "set.npz", tmp_path / "again.npz"
    save_npz(path, reactions, ["train"] * 4 + ["val"] * 2)
    save_npz(again, [reactions[0].reversed, reactions[1]], "train")
    done = train("--data", path, "--data", path, "--data", again, "--steps", 1, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "4 training and 2 validation reactions" in done.stderr
    said = " ".join(done.stderr.split())
    assert f"4 training reactions of {path} also in an earlier --data, counted once" in said
    assert f"2 training reactions of {again} also in an earlier --data" in said


def test_weights_are_validated_before_they_are_trained(reactions, tmp_path):
    path = tmp_path / "set.npz"
    save_npz(path, reactions, ["train"] * 4 + ["val"] * 2)
    assert train("--data", path, "--steps", 2, "--out", tmp_path / "a").exit_code == 0
    score = json.loads((tmp_path / "a" / "best" / "config.json").read_text())["validation"]["score"]
    again = train("--data", path, "--steps", 1, "--init", tmp_path / "a" / "best", "--out", tmp_path / "b")
    assert f"{tmp_path / 'a' / 'best'}: validation RMSD median" in " ".join(again.stderr.split())
    told = again.stderr.partition("best: validation")[2].partition("mean ")[2]
    assert float(told.split()[0]) == pytest.approx(score, abs=1e-3)


def test_a_correction_without_gain_is_not_recommended(reactions, tmp_path):
    """After one step it is what it was at random; weights that halve the error are used without a warning."""
    path, out = tmp_path / "set.npz", tmp_path / "out"
    save_npz(path, [reactions[0], reactions[2]], ["train", "val"])
    made = runner.invoke(main.app, ["data", "searches", str(path), "--workers", "1", "--out", str(tmp_path / "se")])
    assert made.exit_code == 0, made.stderr
    command = ["--data", path, "--searches", tmp_path / "se" / "searches.npz", "--steps", 1, "--out", out]
    done = runner.invoke(main.app, ["train", "correction", *map(str, command)])
    assert done.exit_code == 0 and "use it" not in done.stdout
    assert "the correction does not help (validation RMSD" in " ".join(done.stderr.split())
    ends = [str(files[0]) for files in sides("hcn")]
    for before, warns in ((0.1, True), (1e3, False)):
        config = out / "best" / "config.json"
        figures = {"val_saddle_before": before, "val_saddle_median": 0.1}
        config.write_text(json.dumps({**json.loads(config.read_text()), "validation": figures}))
        found = find_ts(*ends, correction=str(out / "best"), samples=1)
        assert found.corrected is not None
        assert any("did not help where it was validated" in note for note in found.notes) == warns


def test_weights_no_better_than_what_they_began_with_are_not_recommended(reactions, tmp_path):
    """One step at a learning rate far too high; a resumed run compares with the same weights."""
    path, out = tmp_path / "set.npz", tmp_path / "b"
    save_npz(path, reactions, ["train"] * 4 + ["val"] * 2)
    first = train("--data", path, "--steps", 1, "--out", tmp_path / "a")
    assert "the sqrt-distance guess, which needs no weights" in " ".join(first.stderr.split())  # it has learned nothing
    again = ("--data", path, "--init", tmp_path / "a" / "best", "--learning-rate", 2, "--steps", 3, "--out", out)
    for option in ((), ("--resume",)):
        worse = train(*again, *option)
        assert worse.exit_code == 0 and "use it" not in worse.stdout, worse.stderr
        assert "the training does not help (mean validation RMSD" in " ".join(worse.stderr.split())
        (told,) = json.loads((out / "summary.json").read_text())["results"]
        assert str(tmp_path / "a" / "best") in told["without_gain"]


def test_sets_in_other_units_or_orders_are_noticed(reactions, tmp_path):
    path = tmp_path / "set.npz"
    bohr = [replace(r, reactant=r.reactant * 1.89, product=r.product * 1.89, ts=r.ts * 1.89) for r in reactions]
    save_npz(path, bohr, ["train"] * 4 + ["val"] * 2)
    for command in (("train", "ts", "--steps", "1", "--out", str(tmp_path / "out")), ("evaluate", "ts")):
        refused = runner.invoke(main.app, [*command, "--data", str(path)])
        assert refused.exit_code == 2 and "no two atoms are bonded on either side" in refused.stderr
    large = next(r for r in load_npz(SET) if len(r) > 12)
    shuffled = np.random.default_rng(0).permutation(len(large))
    heard = []
    check_geometries([large, replace(large, product=large.product[shuffled], name="odd")], path, heard.append)
    assert len(heard) == 1 and "1 of 2 reactions change more than 8 bonds, such as reaction odd" in heard[0]
