"""Run the rounds of a sampler under the one trainer: its averages, checkpoints, resume and learning rate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molgen.cvdiffusion.controller import Controller, build_controller
from molgen.cvdiffusion.sampler import Sampler, lesson_loss
from molgen.train.loop import Trainer, TrainSettings

AVERAGE = 0.98  # decay of the averaged weights, a step


class _Companion:
    """The sampler, as the trainer saves it."""

    def __init__(self, sampler: Sampler, stop: Callable[[Sampler], bool]):
        self.sampler, self.stop = sampler, stop

    @property
    def finished(self) -> bool:
        return self.stop(self.sampler)

    def tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(array)) for name, array in self.sampler.state().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.sampler.load_state({name: tensor.numpy() for name, tensor in tensors.items()})


def train_sampler(
    sampler: Sampler,
    directory: Path,
    *,
    learning_rate: float = 1.5e-3,
    resume: bool = False,
    save_seconds: float = 20.0,
    stop: Callable[[Sampler], bool] = lambda sampler: False,
) -> Controller:
    """Run all rounds; returns the averaged controller, which `directory/best` holds as well.

    Args:
        sampler: fresh, or to be restored from `directory/state` if `resume`.
        stop: asked between rounds, whether to end before all rounds are done; also the place to show progress.

    Raises:
        InputError: the saved run has other settings. CalculatorError: most samples of a round were rejected.
    """
    torch.set_flush_denormal(True)
    model = build_controller(sampler.controller.config)
    model.load_state_dict(sampler.controller.state_dict())
    width = sampler.width
    settings = TrainSettings(
        steps=sampler.steps, learning_rate=learning_rate, weight_decay=0.0, warmup=50, ema=AVERAGE, seed=sampler.seed,
        checkpoint_seconds=save_seconds, validate_seconds=float("inf"),
    )  # fmt: skip
    trainer: Trainer
    trainer = Trainer(
        model,
        lambda m, lesson, _: lesson_loss(m, lesson, width),
        lambda _: sampler.epoch(trainer.average),
        lambda _: {"score": 0.0},  # the last weights are the ones to keep
        settings,
        directory,
        {"model": "cvdiffusion", "config": sampler.controller.describe()},
        companion=_Companion(sampler, stop),
    )
    trainer.run(resume)
    sampler.controller.load_state_dict(trainer.average)
    return sampler.controller.eval()
