"""The trainer: a run stopped anywhere continues to the same bits, bad steps are survived, wrong resumes are refused."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from molgen.checkpoint import load_checkpoint
from molgen.errors import CheckpointError, InputError, TrainingError
from molgen.train.loop import Trainer, TrainSettings

STEPS = 40
LEARN: dict[str, Any] = {"steps": 300, "learning_rate": 4e-2, "ema": 0.98}
CONFIG = {"model": "test", "width": 8}


class Killed(Exception):
    """Stands for a power cut."""


class Regression:
    """y = sin(3 x_0) + x_1, 128 points in 8 batches, with dropout-like noise drawn in the loss."""

    def __init__(self, stop_at: int | None = None, spoil: dict[int, float] | None = None):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(128, 2, generator=generator) * 2 - 1
        self.y = torch.sin(3 * self.x[:, :1]) + self.x[:, 1:]
        self.stop_at, self.spoil, self.calls = stop_at, spoil or {}, 0

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(128, generator=generator).split(16):
            yield self.x[rows], self.y[rows]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if self.calls == self.stop_at:
            raise Killed
        x, y = batch
        noise = 0.01 * torch.randn(x.shape, generator=generator)
        loss = (model(x + noise) - y).square().mean() * self.spoil.get(self.calls, 1.0)
        self.calls += 1
        return {"loss": loss}

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        return {"score": float((model(self.x) - self.y).square().mean().detach())}


def trainer(directory: Path, task: Regression | None = None, config: dict | None = None, **settings: Any) -> Trainer:
    task = task or Regression()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    chosen = TrainSettings(**{"steps": STEPS, "learning_rate": 1e-2, "warmup": 5, "ema": 0.9, **settings})
    return Trainer(model, task.loss, task.epoch, task.validate, chosen, directory, config or dict(CONFIG))


def weights(t: Trainer) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in t.model.state_dict().items()}


def state(directory: Path) -> tuple[str, dict[str, Any]]:
    """Hash of all tensors (weights, averages, moments) and the counters that must agree."""
    checkpoint = load_checkpoint(directory / "state")
    counters = {k: v for k, v in checkpoint.config["counters"].items() if k != "elapsed"}
    return checkpoint.hash, counters


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("uninterrupted")
    trainer(directory, checkpoint_seconds=0.0).run()
    return directory


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_step_and_resumed_is_the_same_to_the_bit(seed: int, tmp_path: Path, uninterrupted: Path) -> None:
    """Twice killed at random steps; every step is checkpointed, as a clock would do now and then."""
    done = 0
    for stop in sorted(random.Random(seed).sample(range(1, STEPS), 2)):
        with pytest.raises(Killed):
            trainer(tmp_path, Regression(stop_at=stop - done), checkpoint_seconds=0.0).run(resume=True)
        done = stop
    final = trainer(tmp_path, checkpoint_seconds=0.0)
    final.run(resume=True)
    assert final.step == STEPS
    assert state(tmp_path) == state(uninterrupted)
    assert load_checkpoint(tmp_path / "best").hash == load_checkpoint(uninterrupted / "best").hash


def test_work_after_the_last_checkpoint_is_done_again(tmp_path: Path, uninterrupted: Path) -> None:
    """The checkpoint on disk is of step 11, the power fails at step 30: the run repeats 12 to 30 and ends the same."""
    with pytest.raises(Killed):
        trainer(tmp_path, Regression(stop_at=11), checkpoint_seconds=0.0).run()
    with pytest.raises(Killed):
        trainer(tmp_path, Regression(stop_at=19), checkpoint_seconds=math.inf).run(resume=True)
    assert load_checkpoint(tmp_path / "state").config["counters"]["step"] == 11
    trainer(tmp_path).run(resume=True)
    assert state(tmp_path) == state(uninterrupted)


def test_ctrl_c_saves_after_the_step_under_way(tmp_path: Path, uninterrupted: Path) -> None:
    class Interrupted(Regression):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            if self.calls == 13:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(model, batch, generator)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Interrupted(), checkpoint_seconds=1e9).run()
    assert signal.getsignal(signal.SIGINT) is handler
    assert state(tmp_path)[1]["step"] == 14
    trainer(tmp_path).run(resume=True)
    assert state(tmp_path) == state(uninterrupted)


def test_the_result_does_not_depend_on_how_often_it_is_saved_or_validated(tmp_path: Path, uninterrupted: Path) -> None:
    trainer(tmp_path, checkpoint_seconds=math.inf, validate_seconds=-1.0).run()
    assert state(tmp_path)[0] == state(uninterrupted)[0]


def test_a_finished_run_resumed_does_nothing_more(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.run()
    before = state(tmp_path)
    task = Regression()
    again = trainer(tmp_path, task)
    again.run(resume=True)
    assert task.calls == 0 and state(tmp_path) == before
    for name, value in weights(first).items():
        assert torch.equal(value, weights(again)[name])


@pytest.mark.parametrize("left", ["", "state/config.json.pending", "state/.model.safetensors.aaaaaaaa.tmp"])
def test_resume_without_a_checkpoint_starts_anew(left: str, tmp_path: Path, uninterrupted: Path) -> None:
    """One that was killed in its first save, too."""
    if left:
        (tmp_path / "state").mkdir()
        (tmp_path / left).write_text("{}")
    trainer(tmp_path).run(resume=True)
    assert state(tmp_path)[0] == state(uninterrupted)[0]


def test_another_seed_is_another_run(tmp_path: Path, uninterrupted: Path) -> None:
    trainer(tmp_path, seed=1).run()
    assert state(tmp_path)[0] != state(uninterrupted)[0]


@pytest.mark.parametrize(
    ("config", "settings", "key"),
    [
        ({"model": "test", "width": 9}, {}, "'width' is 9 but the saved training has 8"),
        (CONFIG, {"learning_rate": 5e-3}, "'learning_rate' is 0.005 but the saved training has 0.01"),
        (CONFIG, {"seed": 7}, "'seed' is 7 but the saved training has 0"),
        (CONFIG, {"steps": 80}, "'steps' is 80 but the saved training has 40"),
    ],
)
def test_resume_with_other_settings_is_refused(
    config: dict, settings: dict, key: str, tmp_path: Path, uninterrupted: Path
) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, Regression(stop_at=3), checkpoint_seconds=0.0).run()
    before = state(tmp_path)
    with pytest.raises(InputError, match=key) as refused:
        trainer(tmp_path, config=config, **settings).run(resume=True)
    assert "choose another --out" in str(refused.value)
    assert state(tmp_path) == before


@pytest.mark.parametrize("damaged", ["state", "best"])
def test_what_to_do_about_a_damaged_training_is_said_and_helps(
    damaged: str, tmp_path: Path, uninterrupted: Path
) -> None:
    """Nobody has a copy of it to install again."""
    trainer(tmp_path).run()
    (tmp_path / damaged / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="truncated(?s:.*)the training then starts from its beginning") as refused:
        trainer(tmp_path).run(resume=True)
    for name in ("state", "best"):
        if f"{tmp_path / name}" in str(refused.value.remedy).split(":")[0]:
            shutil.rmtree(tmp_path / name)
    trainer(tmp_path).run(resume=True)
    assert state(tmp_path) == state(uninterrupted) and load_checkpoint(tmp_path / "best")


def test_longer_budget_may_be_given_on_resume(tmp_path: Path) -> None:
    trainer(tmp_path, steps=None, budget_seconds=0.02).run()
    longer = trainer(tmp_path, steps=None, budget_seconds=0.2)
    longer.run(resume=True)
    assert longer.elapsed >= 0.2
    with pytest.raises(InputError, match="'steps' is 40 but the saved training has None"):
        trainer(tmp_path).run(resume=True)


def test_tuples_in_the_configuration_equal_the_lists_json_makes_of_them(tmp_path: Path) -> None:
    for _ in range(2):
        trainer(tmp_path, config={"elements": (1, 6)}, steps=2).run(resume=True)


def test_no_data_is_an_error(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.epoch = lambda generator: iter(())
    with pytest.raises(InputError, match="no batch"):
        t.run()


def test_how_often_to_save_may_change_on_resume(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(Killed):
        trainer(tmp_path, Regression(stop_at=9), checkpoint_seconds=0.0).run()
    trainer(tmp_path, checkpoint_seconds=50.0, validate_seconds=70.0).run(resume=True)
    assert state(tmp_path) == state(uninterrupted)


def test_a_resumed_run_saves_when_it_is_time_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after its first step, because the part before took longer than the interval."""
    first = trainer(tmp_path, Regression(stop_at=9), checkpoint_seconds=0.0)
    first.elapsed = 500.0
    with pytest.raises(Killed):
        first.run()
    saved, again = [], trainer(tmp_path, checkpoint_seconds=60.0)
    save = again._save
    monkeypatch.setattr(again, "_save", lambda: (saved.append(again.step), save())[1])
    again.run(resume=True)
    assert saved == [STEPS]


def test_it_learns(tmp_path: Path) -> None:
    """The regression is solved to 5 % of the variance, and the model then holds the average that scored."""
    task = Regression()
    t = trainer(tmp_path, task, **LEARN)
    figures = t.run()
    assert figures["score"] < 0.05 * float(task.y.var())
    assert Regression().validate(t.model.eval())["score"] == pytest.approx(figures["score"], rel=1e-6)


def test_best_holds_the_best_average(tmp_path: Path) -> None:
    """The score gets worse after the third validation: `best` stays there, `state` goes on."""
    task = Regression()
    scores = iter([3.0, 2.0, 1.0, *[5.0] * STEPS])
    t = trainer(tmp_path, task, validate_seconds=-1.0)
    t.validate = lambda model: {"score": next(scores)}
    t.run()
    best = load_checkpoint(tmp_path / "best")
    assert best.config["validation"]["score"] == 1.0 and best.config["step"] == 3
    assert best.config["width"] == 8
    assert load_checkpoint(tmp_path / "state").config["counters"]["step"] == STEPS


def test_a_kill_after_a_validation_does_not_lose_the_best(tmp_path: Path) -> None:
    """The state is older than `best`, or there is none."""
    for place, settings in (("none", {"checkpoint_seconds": math.inf}), ("older", {"checkpoint_seconds": -1.0})):
        task = Regression(stop_at=4)
        t = trainer(tmp_path / place, task, validate_seconds=-1.0, **settings)
        scores = iter([0.4, 0.3, 0.2, 0.1])
        t.validate = lambda model, scores=scores: {"score": next(scores)}
        save, saves = t._save, iter([True, False, False, False, False])
        t._save = lambda save=save, saves=saves: save() if next(saves) else None  # type: ignore[method-assign]
        with pytest.raises(Killed):
            t.run()
        assert (tmp_path / place / "state").exists() == (place == "older")
        again = trainer(tmp_path / place)
        again.validate = lambda model: {"score": 0.9}
        again.run(resume=True)
        assert load_checkpoint(tmp_path / place / "best").config["validation"]["score"] == 0.1 == again.best


def test_a_validation_without_a_number_ends_the_training(tmp_path: Path) -> None:
    t = trainer(tmp_path, validate_seconds=-1.0)
    scores = iter([1.0, math.nan])
    t.validate = lambda model: {"score": next(scores)}
    with pytest.raises(TrainingError, match=r"diverged \(its validation has no value after 2 steps; .*best holds"):
        t.run()
    assert load_checkpoint(tmp_path / "best").config["validation"]["score"] == 1.0


def test_by_steps_the_best_weights_do_not_follow_the_clock(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    seen: list[int] = []
    t.validate = lambda model: seen.append(t.step) or {"score": 1.0}  # type: ignore[func-returns-value]
    t.run()
    assert len(seen) in (10, 11) and seen[0] == max(1, STEPS // 10) and seen[-1] == STEPS


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 20])
def test_a_step_without_finite_gradient_is_skipped(bad: float, place: int, tmp_path: Path) -> None:
    """Weights, moments and averages stay finite; the weights do not move in that step; training still works."""
    task = Regression(spoil={place: bad})
    t = trainer(tmp_path, task, **LEARN)
    seen: dict[int, dict[str, Tensor]] = {}
    one_step = t._one_step

    def watched(batch: Any) -> dict[str, float]:
        seen[t.step] = weights(t)
        return one_step(batch)

    t._one_step = watched  # type: ignore[method-assign]
    figures = t.run()
    for name, value in seen[place].items():
        assert torch.equal(value, seen[place + 1][name])
        assert not torch.equal(seen[place + 1][name], seen[place + 2][name])
    for name, value in load_checkpoint(tmp_path / "state").tensors.items():
        assert value.isfinite().all(), name
    assert math.isfinite(t.norm) and figures["score"] < 0.05 * float(task.y.var())


def test_a_broken_batch_is_clipped(tmp_path: Path) -> None:
    """One loss a million times too large neither moves the weights far nor raises the limit for what follows."""
    t = trainer(tmp_path, Regression(spoil={20: 1e6}), **LEARN)
    task = Regression()
    assert t.run()["score"] < 0.05 * float(task.y.var())


def test_average_is_the_exponential_mean_of_the_weights(tmp_path: Path) -> None:
    """Recomputed from the live weights after every step: decay min(ema, (k + 1) / (k + 10))."""
    t = trainer(tmp_path, ema=0.8)
    mean = {k: v.double() for k, v in weights(t).items()}
    one_step = t._one_step

    def watched(batch: Any) -> dict[str, float]:
        figures = one_step(batch)
        decay = min(0.8, (t.step + 1) / (t.step + 10))
        for name, value in weights(t).items():
            mean[name] = decay * mean[name] + (1 - decay) * value
        return figures

    t._one_step = watched  # type: ignore[method-assign]
    t.run()
    live = {k[6:]: v for k, v in load_checkpoint(tmp_path / "state").tensors.items() if k.startswith("model.")}
    for name, value in weights(t).items():
        assert (value - mean[name]).abs().max() < 1e-5
        assert (value - live[name]).abs().max() > 1e-4


def test_learning_rate_warms_up_and_follows_a_cosine(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    rates: list[float] = []
    one_step = t._one_step

    def watched(batch: Any) -> dict[str, float]:
        figures = one_step(batch)
        rates.append(figures["lr"])
        return figures

    t._one_step = watched  # type: ignore[method-assign]
    t.run()
    expected = [
        1e-2 * min(1, (k + 1) / 5) * (0.01 + 0.99 * math.cos(math.pi * k / (2 * STEPS)) ** 2) for k in range(STEPS)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_a_time_budget_counts_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that ticks one second a look: 40 seconds end the run, whether or not it was killed on the way."""
    ticks = iter(range(100_000))
    monkeypatch.setattr("molgen.train.loop.time.monotonic", lambda: float(next(ticks)))
    settings = {"steps": None, "budget_seconds": 40.0, "checkpoint_seconds": 0.5, "validate_seconds": 1e9}
    with pytest.raises(Killed):
        trainer(tmp_path, Regression(stop_at=25), **settings).run()
    t = trainer(tmp_path, **settings)
    t.run(resume=True)
    assert t.elapsed == 40.0 and t.step == 40


@pytest.mark.parametrize("settings", [{"steps": None}, {"budget_seconds": 5.0}])
def test_one_kind_of_budget(settings: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of the two"):
        trainer(tmp_path, **settings)
