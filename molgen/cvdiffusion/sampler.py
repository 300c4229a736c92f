"""Rounds of sampling and learning: draw trajectories, pay for their energies, push the bias, replay, learn.

The controller learns the score of the biased target, noised by r, from samples x_1 of the buffer: with x_r = x_1 + z
sqrt(r), the regression target is

    -c a(x_1) + (1 - c) (x_1 - x_r)/r,    a = grad (E + V + walls)/kT,   c = s^2 / (s^2 + r),

a mix of the adjoint (Adjoint Sampling, arXiv 2504.11713) and the denoising target that has no variance for a Gaussian
of width s. Samples are replayed with probability ~ w^beta, w their path weights under the present bias, and with their
present bias gradients (WT-ASBS, arXiv 2510.11923, replays stale ones).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from molgen.cvdiffusion.controller import Controller
from molgen.cvdiffusion.correct import correction
from molgen.cvdiffusion.noising import Schedule, fit_variances, simulate
from molgen.cvdiffusion.target import Batch, Target
from molgen.errors import CalculatorError
from molgen.rng import generator, sample_seed

TRAJECTORIES, KERNELS, REPLAY, FINAL, PATHS, NAMES = 0, 1, 2, 3, 4, 5  # streams of random numbers
FITTED = 2000  # samples that kernel variances are fitted on
FREE = ("no geometry", "atoms too close", "other handedness")  # reasons of rejection that cost no energy
LEAST_ACCEPTED = 0.1  # share of a round
LEAST_ESS = 0.3  # of the replayed buffer
Judge = Callable[["Sampler", Batch], dict[str, Any]]  # the figures of a round from its draws


@dataclass(frozen=True)
class SamplerSettings:
    """How to sample.

    Attributes:
        rounds: of `draws` trajectories each; `draws * rounds` energies in all, beside pretraining.
        learn: gradient steps a round, of `batch` samples. pretrain: steps on the starting frames.
        memory: rounds the buffer holds.
        deposit: kT of bias a round. freeze: share of the rounds after which the bias rests.
        corrections: of the bias by the path weights once it has stopped growing (`molgen.cvdiffusion.correct`), a
            twelfth of the rounds apart.
        refit: rounds between fits of the kernel variances.
        beta: exponent of the replay weights, None: as large as leaves `LEAST_ESS`; 0 replays evenly.
        width: s, Angstrom. adjoint: only the adjoint target (c = 1 wherever its variance is finite).
    """

    rounds: int = 150
    draws: int = 192
    learn: int = 60
    batch: int = 256
    pretrain: int = 1500
    memory: int = 16
    deposit: float = 4.0
    freeze: float = 0.65
    corrections: int = 0
    refit: int = 6
    beta: float | None = None
    width: float = 0.05
    adjoint: bool = False


@dataclass(frozen=True, eq=False)
class Lesson:
    """A batch to learn from: noised points (B, M, c), r (B,), regression targets (B, M, c)."""

    noised: Tensor
    residual: Tensor
    wanted: Tensor


def lesson_loss(model: torch.nn.Module, lesson: Lesson, width: float) -> dict[str, Tensor]:
    """Mean squared error a coordinate, in units of the score of a Gaussian of `width`."""
    error = model(lesson.residual, lesson.noised) - lesson.wanted
    return {"loss": (error.square().mean((1, 2)) * (lesson.residual + width**2)).mean()}


class Sampler:
    """The state of a run beside the network and its optimiser, and the rounds that change it.

    Args:
        controller: holds the averaged weights; trajectories are drawn with it.
        frames: starting geometries evaluated by `target`, e.g. of a short simulation in each known basin.
        fixed_kernels: keep the kernels of a Gaussian target. judge: figures of a round, for `records`.
        weigh: normalised weights from log-weights, for corrections of the bias.
        calls_before: calls of the potential that are not this run's. prepared: seconds that the frames took.

    Attributes:
        history: the draws of every round under the resting bias.
        variances: (steps,) or (steps, M, c) of the forward kernels.
        seconds_before: (2,) `seconds` of the processes that this one continues, as far as they saved them.
    """

    def __init__(
        self,
        target: Target,
        controller: Controller,
        schedule: Schedule,
        settings: SamplerSettings,
        frames: Batch,
        *,
        seed: int = 0,
        fixed_kernels: bool = False,
        judge: Judge | None = None,
        weigh: Callable[[np.ndarray], np.ndarray] = softmax,
        calls_before: int = 0,
        prepared: float = 0.0,
    ):
        self.target, self.controller, self.schedule, self.settings = target, controller, schedule, settings
        self.frames, self.seed = frames, seed
        self.fixed_kernels, self.judge, self.weigh = fixed_kernels, judge, weigh
        self.variances = schedule.variances(self.width)
        self.number = 0  # of the next round; round 0 is pretraining
        self.history: list[Batch] = []
        self.drawn: list[Batch] = []
        self.records: list[dict[str, Any]] = []
        self.calls_before = calls_before
        self.seconds_before, self._prepared, self._begin = np.zeros(2), prepared, time.monotonic()

    @property
    def width(self) -> float:
        """s of the target mix, Angstrom."""
        return self.target.space.width or self.settings.width

    @property
    def steps(self) -> int:
        """Gradient steps of a whole run."""
        s = self.settings
        return s.pretrain + s.rounds * s.learn

    @property
    def frozen_from(self) -> int:
        """Number of the first round that deposits nothing."""
        return 1 + round(self.settings.freeze * self.settings.rounds)

    @property
    def _corrects(self) -> bool:
        """Whether this round corrects the bias."""
        every = max(1, round(self.settings.rounds / 12))
        number, rest = divmod(self.number - self.frozen_from, every)
        return rest == 0 and 0 <= number < self.settings.corrections and self.settings.deposit > 0

    @property
    def energies_used(self) -> int:
        """Evaluations asked of the potential, those for the starting frames included."""
        return self.target.potential.calls - self.calls_before

    @property
    def seconds(self) -> np.ndarray:
        """(2,) before the rounds, and since."""
        return self.seconds_before + [self._prepared, time.monotonic() - self._begin]

    def epoch(self, average: Mapping[str, Tensor]) -> Iterator[Lesson]:
        """One round with the averaged weights: everything but the learning, which is the caller's."""
        self.controller.load_state_dict(dict(average))
        self.controller.eval()
        if self.number == 0:
            yield from self._lessons(self.frames, np.zeros(len(self.frames)), self.settings.pretrain)
        else:
            self._draw()
            replayed = self.replayed()
            log_w = self.target.log_weights(replayed)
            if self._corrects:
                self.target.bias.correct(*correction(self.target.bias, replayed.cvs, self.weigh(log_w)))
                log_w = self.target.log_weights(replayed)
            if not self.fixed_kernels and (self.number - 1) % self.settings.refit == 0:
                self._fit(replayed, log_w)
            yield from self._lessons(replayed, log_w, self.settings.learn)
        self.number += 1
        if self.number == 1 and not self.fixed_kernels:
            self._fit(self.frames, np.zeros(len(self.frames)))

    def _draw(self) -> None:
        s = self.settings
        found = simulate(
            self.controller, self.schedule, self.variances, self.target.space, s.draws, self.seed, TRAJECTORIES,
            self.number,
        )  # fmt: skip
        earlier = self.target.rejections.copy()
        batch = self.target.evaluate(found.points, found.log_path, self.number)
        accepted = batch.accepted
        costly = s.draws - accepted.sum() - sum(self.target.rejections[reason] - earlier[reason] for reason in FREE)
        if costly > 0.5 * s.draws or accepted.sum() < LEAST_ACCEPTED * s.draws:
            calculator = "a calculator that converges: check charge and spin first"
            remedies = ["walls that keep the molecule together", "more or better starting structures"]
            paid = {reason: count for reason, count in self.target.rejections.items() if reason not in FREE}
            failed = costly > 0.5 * s.draws and max(paid, key=lambda reason: paid[reason]) == "no energy"
            remedies.insert(0 if failed else 2, calculator)
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.target.rejections.most_common())
            self.target.rejections.clear()
            self.target.rejections.update(earlier)  # a resume draws this round again, and counts it then
            raise CalculatorError(
                f"{s.draws - accepted.sum()} of {s.draws} samples were rejected ({reasons} so far)",
                where=f"round {self.number}",
                expected=f"an energy for half of those asked for, and for {LEAST_ACCEPTED:.0%} of all",
                remedy=f"give {remedies[0]}; then {remedies[1]}, or {remedies[2]}",
            )
        self.drawn = [*self.drawn, batch][-s.memory :]
        if self.number >= self.frozen_from:
            self.history.append(batch)
        if self.number < self.frozen_from and s.deposit:
            self.target.bias.add(batch.cvs[accepted], s.deposit * self.target.kt)
        if self.judge is not None:
            self.records.append(self.judge(self, batch))

    def replayed(self) -> Batch:
        """What there is to learn from: the accepted draws of the last rounds."""
        joined = Batch.join(self.drawn)
        return joined.take(joined.accepted)

    def _fit(self, batch: Batch, log_w: np.ndarray) -> None:
        rng = generator(self.seed, KERNELS, self.number)
        weights = tempered(log_w, self.settings.beta)
        chosen = rng.choice(len(weights), min(FITTED, 4 * len(weights)), p=weights)
        self.variances = fit_variances(
            self.controller, self.schedule, self.target.space, batch.points[chosen],
            np.full(len(chosen), 1 / len(chosen)), sample_seed(self.seed, KERNELS, self.number),
        )  # fmt: skip

    def _lessons(self, batch: Batch, log_w: np.ndarray, count: int) -> Iterator[Lesson]:
        s, rng = self.settings, generator(self.seed, REPLAY, self.number)
        weights = tempered(log_w, s.beta)
        space, width = self.target.space, self.width
        points, slope = space.centred(torch.from_numpy(batch.points)).numpy(), self.target.slope(batch)
        low, high = np.log(self.schedule.end**2), np.log(self.schedule.start)
        for _ in range(count):
            chosen = rng.choice(len(weights), s.batch, p=weights)
            x, a = space.moved(points[chosen], slope[chosen], rng)
            r = np.exp(rng.uniform(low, high, (s.batch, 1, 1)))
            z = space.centred(torch.from_numpy(rng.standard_normal(x.shape))).numpy()
            c = width**2 / (width**2 + r)
            wanted = -a if s.adjoint else -c * a - (1 - c) * z / np.sqrt(r)
            yield Lesson(*(torch.from_numpy(part).float() for part in (x + z * np.sqrt(r), r[:, 0, 0], wanted)))

    def state(self) -> dict[str, np.ndarray]:
        """Everything that a resumed run needs, by name."""
        arrays = {f"bias.{key}": value for key, value in self.target.bias.state().items()}
        arrays |= {"variances": self.variances, "number": np.array(self.number)}
        earlier = [batch for batch in self.drawn if batch.round[0] < self.frozen_from]  # the history has the others
        for name, parts in (("drawn", earlier), ("history", self.history)):
            if parts:
                arrays |= {f"{name}.{key}": value for key, value in vars(Batch.join(parts)).items()}
        reasons = sorted(self.target.rejections)
        arrays["rejections"] = np.array([self.target.rejections[reason] for reason in reasons], dtype=np.int64)
        for name, value in (("reasons", reasons), ("records", self.records)):
            arrays[name] = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy()
        return arrays | {"calls": np.array(self.energies_used), "seconds": self.seconds}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from `state`."""

        def under(name: str) -> dict[str, np.ndarray]:
            return {key.removeprefix(f"{name}."): v for key, v in arrays.items() if key.startswith(f"{name}.")}

        self.target.bias.load_state(under("bias"))
        self.variances, self.number = arrays["variances"], int(arrays["number"])
        self.history = _rounds(under("history"))
        self.drawn = [*_rounds(under("drawn")), *self.history][-self.settings.memory :]
        reasons, self.records = (json.loads(bytes(arrays[name])) for name in ("reasons", "records"))
        self.target.rejections.clear()
        self.target.rejections.update(dict(zip(reasons, map(int, arrays["rejections"]), strict=True)))
        self.calls_before = self.target.potential.calls - int(arrays["calls"])
        self.seconds_before = np.array(arrays.get("seconds", np.zeros(2)))  # states had none before


def tempered(log_w: np.ndarray, beta: float | None) -> np.ndarray:
    """Probabilities (n,) ~ w^beta; beta None: the largest up to 1 that keeps an effective share of `LEAST_ESS`."""
    log_w = log_w - log_w.max()
    exponent = 1.0 if beta is None else beta
    while True:
        weights = np.exp(exponent * log_w)
        weights /= weights.sum()
        if beta is not None or exponent < 1e-3 or 1 / (weights**2).sum() >= LEAST_ESS * len(weights):
            return weights
        exponent *= 0.85


def _rounds(arrays: Mapping[str, np.ndarray]) -> list[Batch]:
    if not arrays:
        return []
    joined = Batch(**arrays)
    return [joined.take(joined.round == number) for number in np.unique(joined.round)]
