"""The one trainer: any model, any loss, by steps or by wall-clock budget, resumable from its own checkpoint.

Everything random in a step follows from (seed, step), and the order of an epoch from (seed, epoch), so a run stopped
anywhere continues as if it had not been. By steps the result is the same to the bit; by wall-clock budget the learning
rate follows the clock.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from molgen.checkpoint import (
    BEST,
    CONFIG_FILE,
    STATE,
    TENSORS_FILE,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from molgen.errors import CheckpointError, InputError, MolgenError, TrainingError
from molgen.files import explained, json_text
from molgen.rng import sample_seed, torch_generator

Log = Callable[[dict[str, Any]], None]
# What a resumed run may set anew. A longer clock is fine because runs by the clock promise no equal bits.
_MAY_CHANGE = ("budget_seconds", "checkpoint_seconds", "validate_seconds", "format", "molgen_version")


def check_learning_rate(rate: float) -> None:
    """Refuse a learning rate that is not above 0.

    Raises:
        InputError: names `--learning-rate`.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"learning rate {rate:g}", where="--learning-rate", expected="above 0, such as 0.002")


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        budget_seconds: stop after this much training time, all resumed parts counted; or
        steps: stop after this many steps (exactly one of the two).
        learning_rate: peak; linear warm-up over `warmup` steps, then half a cosine down to 1 % over the budget.
        weight_decay: decoupled (AdamW). ema: decay of the averaged weights, which are the result.
        checkpoint_seconds: how often to save. validate_seconds: how often to validate; None: every tenth of a time
            budget, or 300 s if that is less; every tenth of a number of steps, so that the best weights do not follow
            the clock.

    Raises:
        InputError: both a budget and steps, or neither; a learning rate that is not above 0.
    """

    budget_seconds: float | None = None
    steps: int | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: int = 200
    ema: float = 0.999
    seed: int = 0
    checkpoint_seconds: float = 120.0
    validate_seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.budget_seconds is None) == (self.steps is None):
            raise InputError("training needs a time budget or a number of steps, one of the two")
        check_learning_rate(self.learning_rate)

    def validation_due(self, step: int, seconds: float) -> bool:
        """Whether to validate after `step`, `seconds` after the last time."""
        if self.validate_seconds is not None:
            return seconds > self.validate_seconds
        if self.steps is not None:
            return step % max(1, self.steps // 10) == 0 and step < self.steps
        return seconds > min(300.0, (self.budget_seconds or math.inf) / 10)


class Companion(Protocol):
    """What changes beside the network in the course of a run, e.g. a replay buffer; saved and restored with it.

    With one, the state is saved between epochs only, and an interrupted epoch is repeated by the resumed run.
    """

    @property
    def finished(self) -> bool:
        """Asked between epochs: whether to stop before the budget is spent."""
        ...

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: dict[str, Tensor]) -> None: ...


class Trainer:
    """Minimise `loss(model, batch, generator)`.

    Args:
        model: trained in place; afterwards it holds the averaged weights.
        loss: returns the losses by name; the one called "loss" is minimised, all are logged.
        epoch: epoch(generator) yields the batches of one pass over the data, in an order drawn from the generator.
        validate: figures of the averaged model, by name; "score" (lower is better) selects what `best` holds.
        directory: training state goes to `directory/state`, the best averaged weights to `directory/best`.
        config: what :func:`molgen.checkpoint.load_checkpoint` shall find beside the weights.
        companion: what else a resumed run needs.
        gradients: gradients(batch) adds those of the loss to `.grad` itself, in place of `loss`; returns the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any, torch.Generator], dict[str, Tensor]],
        epoch: Callable[[torch.Generator], Iterator[Any]],
        validate: Callable[[nn.Module], dict[str, float]],
        settings: TrainSettings,
        directory: Path,
        config: dict,
        companion: Companion | None = None,
        gradients: Callable[[Any], dict[str, Tensor]] | None = None,
    ):
        self.model, self.loss, self.epoch, self.validate = model, loss, epoch, validate
        self.settings, self.directory, self.config = settings, Path(directory), config
        self.companion, self.gradients = companion, gradients
        self.log: Log = lambda figures: None
        decay = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        fused = next(model.parameters()).is_cuda  # one kernel in place of hundreds
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=fused)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step = self.epoch_number = self.batch_number = 0
        self.elapsed, self.best, self.norm = 0.0, math.inf, math.inf

    def run(self, resume: bool = False) -> dict[str, float]:
        """Train to the end of the budget; returns the last validation figures.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved after the step under way.
            TrainingError: it diverged; the best weights so far stay.
            InputError: no data, or a saved run of other settings (its time budget and intervals may differ).
            CheckpointError: the saved run is damaged.
        """
        state = self.directory / STATE
        if resume and any((state / name).exists() for name in (TENSORS_FILE, CONFIG_FILE)):
            self._restore()  # a run killed in its first save has neither, and begins anew
        elif resume:
            self._recall_best()
        with _deferred_interrupt() as interrupted:
            try:
                self._train(interrupted)
            except MolgenError:
                if self.companion is not None and not self.batch_number:  # between epochs, all is whole
                    self._save()
                raise
        figures = self._validate()
        self._save()
        self.model.load_state_dict(self.average)
        return figures

    def run_logged(self, line: str, say: Callable[[str], None], resume: bool = False) -> dict[str, Any]:
        """`run` with all figures in `directory/log.jsonl` and every validation said as `line`, a format of its figures.

        Returns:
            the last validation figures, `best_score` and `best_step`, `step` and `elapsed` seconds.
        """
        path = self.directory / "log.jsonl"

        def record(figures: dict[str, Any]) -> None:
            with explained(path), path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(figures) + "\n")
            if "score" in figures:
                say(line.format(**figures))

        self.log = record
        figures = self.run(resume)
        best_step = load_checkpoint(self.directory / BEST).config["step"]
        return {
            **figures, "best_score": self.best, "best_step": best_step, "step": self.step, "elapsed": self.elapsed,
        }  # fmt: skip

    def _train(self, interrupted: threading.Event) -> None:
        clock = time.monotonic()
        saved = validated = start = self.elapsed
        while self._progress() < 1 and not (self.companion and self.companion.finished):
            order = torch_generator(self.settings.seed, 0, self.epoch_number)
            for k, batch in enumerate(self.epoch(order)):
                if k < self.batch_number:
                    continue  # already done before the resume
                figures = self._one_step(batch)
                self.batch_number = k + 1
                self.elapsed = start + time.monotonic() - clock
                if self.step % 100 == 0:
                    self.log({"step": self.step, "epoch": self.epoch_number, "seconds": self.elapsed, **figures})
                if self.settings.validation_due(self.step, self.elapsed - validated):
                    self._validate()
                    self.elapsed = validated = start + time.monotonic() - clock
                if self.companion is None and self.elapsed - saved > self.settings.checkpoint_seconds:
                    self._save()
                    saved = self.elapsed
                if interrupted.is_set():
                    if self.companion is None:
                        self._save()
                    raise KeyboardInterrupt
                if self._progress() >= 1:
                    break
            else:
                if not self.batch_number:
                    raise InputError("the training data give no batch", expected="at least one sample")
                self.epoch_number, self.batch_number = self.epoch_number + 1, 0
                if self.companion is not None and self.elapsed - saved > self.settings.checkpoint_seconds:
                    self._save()
                    saved = self.elapsed

    def _progress(self) -> float:
        s = self.settings
        return self.step / s.steps if s.steps else self.elapsed / (s.budget_seconds or 1.0)

    def _one_step(self, batch: Any) -> dict[str, float]:
        s = self.settings
        rate = s.learning_rate * min(1.0, (self.step + 1) / s.warmup)
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, self._progress())))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        torch.manual_seed(sample_seed(s.seed, 2, self.step))  # dropout draws from torch's own generator
        self.optimizer.zero_grad(set_to_none=self.gradients is None)
        if self.gradients is None:
            with self._decomposing("the loss has no value"):
                losses = self.loss(self.model, batch, torch_generator(s.seed, 1, self.step))
                losses["loss"].backward()
        else:
            losses = self.gradients(batch)
        # clip at twice the running norm: rare broken batches must not undo a thousand good ones
        limit = 2 * self.norm if math.isfinite(self.norm) else 10.0
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self.step += 1
        if math.isfinite(norm):
            self.norm = min(norm, limit) if math.isinf(self.norm) else 0.98 * self.norm + 0.02 * min(norm, limit)
            self.optimizer.step()
        decay = min(s.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            state = self.model.state_dict()
            old = [v for v in self.average.values() if v.is_floating_point()]
            new = [state[k] for k, v in self.average.items() if v.is_floating_point()]
            torch._foreach_lerp_(old, new, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        return {k: float(v.detach()) for k, v in losses.items()} | {"lr": rate, "grad_norm": norm}

    def _validate(self) -> dict[str, float]:
        live = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        if not all(bool(v.isfinite().all()) for v in self.average.values() if v.is_floating_point()):
            raise self._diverged("weights are not finite")
        with torch.no_grad(), self._decomposing("its validation has no value"):
            figures = self.validate(self.model)
        if math.isnan(figures["score"]):
            raise self._diverged("its validation has no value")
        if figures["score"] <= self.best:
            self.best = figures["score"]
            save_checkpoint(
                self.directory / BEST, self.average, {**self.config, "validation": figures, "step": self.step}
            )
        self.model.load_state_dict(live)
        self.log({"step": self.step, "epoch": self.epoch_number, "seconds": self.elapsed, **figures})
        return figures

    @contextlib.contextmanager
    def _decomposing(self, how: str) -> Iterator[None]:
        """A decomposition (of a superposition) fails on numbers that are none: `how` the training diverged."""
        try:
            yield
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise self._diverged(how) from error

    def _diverged(self, how: str) -> TrainingError:
        kept = "" if math.isinf(self.best) else f"; {self.directory / 'best'} holds the best weights so far"
        return TrainingError(
            f"the training diverged ({how} after {self.step} steps{kept})",
            where=f"--learning-rate {self.settings.learning_rate:g}",
            remedy="start again with a lower one",
        )

    def _save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        if self.companion is not None:
            tensors |= {f"companion.{k}": v for k, v in self.companion.tensors().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        counters = {k: getattr(self, k) for k in ("step", "epoch_number", "batch_number", "elapsed")}
        counters |= {k: v if math.isfinite(v) else None for k, v in (("best", self.best), ("norm", self.norm))}
        config = {**self.config, "settings": asdict(self.settings), "counters": counters}
        save_checkpoint(self.directory / STATE, tensors, config)

    def _restore(self) -> None:
        checkpoint = self._own(STATE)
        saved = {**checkpoint.config.pop("settings"), **checkpoint.config}
        for key, value in json.loads(json_text({**asdict(self.settings), **self.config})).items():
            if key not in _MAY_CHANGE and key in saved and saved[key] != value:
                raise InputError(
                    f"'{key}' is {value!r} but the saved training has {saved[key]!r}",
                    where=str(self.directory / STATE),
                    expected="the settings the run was started with",
                    remedy="repeat them, or choose another --out",
                )
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "companion": {}}
        for name, tensor in checkpoint.tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = tensor
        self.model.load_state_dict(parts["model"])
        if self.companion is not None:
            self.companion.restore(parts["companion"])
        for key, tensor in parts["average"].items():
            self.average[key].copy_(tensor)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for key, value in checkpoint.config["counters"].items():
            setattr(self, key, math.inf if value is None else value)
        self._recall_best()

    def _recall_best(self) -> None:
        """`best` may be younger than the state: what a validation wrote before the run was killed is not to be lost."""
        if (self.directory / BEST / CONFIG_FILE).exists():
            score = (self._own(BEST).config.get("validation") or {}).get("score")
            self.best = self.best if score is None else min(self.best, score)

    def _own(self, name: str) -> Checkpoint:
        """What this training saved as `name`; no copy of it can be had again."""
        state, best = self.directory / STATE, self.directory / BEST
        try:
            return load_checkpoint(self.directory / name)
        except CheckpointError as error:
            remove = state if name == STATE else f"{best} and {state}"
            kept = f"; {best} holds the best weights so far" if name == STATE and best.is_dir() else ""
            remedy = f"remove {remove}: the training then starts from its beginning{kept}"
            raise CheckpointError(error.what, where=error.where, expected=error.expected, remedy=remedy) from error


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets instead of raising, so that a step is never cut in half."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may have handlers
        yield event
        return
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
