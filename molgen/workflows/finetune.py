"""Finetuning of the flow on one peptide from its own samples and their energies.

Each round draws samples from the flow as it is, pools them with those of all earlier rounds under balance-heuristic
weights, and trains on the pool: weighted likelihood, spread of ln q + E/kT, and a penalty for forgetting what the
earlier flows proposed, each per degree of freedom. The next round's draws are new to the flow they judge; when they
show no progress, the flow before is the result.

After the self-refinement of Prose (arXiv 2508.18175, section 4.3) and the energy-variance loss of Richter et al.,
NeurIPS 2020; pooling after Cornuet et al., Scand. J. Stat. 39 (2012) 798 (adaptive multiple importance sampling).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molgen.checkpoint import save_checkpoint
from molgen.errors import InputError
from molgen.prose.evaluate import log_densities
from molgen.prose.frames import Frames
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.training import spread_loss
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.importance import diagnose, khat, mixture_log_weights, normalised, truncate
from molgen.rng import sample_seed
from molgen.train.loop import Trainer, TrainSettings
from molgen.units import KB
from molgen.workflows.draws import Draws, Progress, Store

# draws(flow, n, seed, name) -> n draws with their energies, stored under that name
Draw = Callable[[Proposal, int, int, str], Draws]


@dataclass(frozen=True)
class FinetuneSettings:
    """How to finetune.

    Attributes:
        samples: drawn a round. steps, batch, learning_rate: of the training of a round.
        likelihood, spread, teacher: weights of the three losses. huber: where the spread turns linear, kT.
        tempered: k-hat above which the weights are tempered to `tame`; 1 is where their mean ceases to exist.
        patience: rounds without progress before it ends.
    """

    samples: int = 20_000
    steps: int = 250
    batch: int = 128
    learning_rate: float = 5e-4
    likelihood: float = 0.5
    spread: float = 0.5
    teacher: float = 0.05
    huber: float = 4.0
    tempered: float = 1.0
    tame: float = 0.7
    patience: int = 1


@dataclass(frozen=True)
class Round:
    """One round: k-hat and ESS of fresh draws of the flow it began with; the exponent its weights were tempered with;
    losses of its training; energies evaluated."""

    khat: float
    ess: float
    ess_psis: float
    exponent: float
    losses: dict[str, float]
    energy_calls: int


def finetune_flow(
    proposal: Proposal,
    layout: Layout,
    draws: Draw,
    temperature: float,
    rounds: int,
    store: Store,
    folder: Path,
    *,
    seed: int,
    scratch: Path,
    settings: FinetuneSettings | None = None,
    log: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Proposal, list[Round]]:
    """Train a flow on its own samples of one peptide at one temperature.

    Args:
        proposal: the flow to start from; not changed. draws: see `Draw`.
        rounds: at most this many. store: draws, densities and training states are kept there for a resume.
        folder: receives the finetuned flow, a checkpoint that `load_flow` reads. scratch: for training states when
            the store keeps nothing.

    Returns:
        the best flow, judged by fresh draws (the given one if none was better), and a record of each round.

    Raises:
        CalculatorError: no draw is valid and has a finite energy.
    """
    s = settings or FinetuneSettings()
    flows, pool, record = [proposal], _Pool(layout, temperature), []
    best, best_score, waited = 0, -math.inf, 0
    for number in range(rounds + 1):
        fresh = draws(flows[-1], s.samples, sample_seed(seed, number), f"round{number}")
        found = diagnose(fresh.log_weights)
        score = _score(found.ess_psis, found.khat)
        log(f"finetuning round {number}: ESS {found.ess:.4f}, PSIS {found.ess_psis:.4f}, k-hat {found.khat:.2f}")
        if score > best_score:
            best, best_score, waited = number, score, 0
        else:
            waited += 1
        last = number == rounds or waited > s.patience
        exponent, losses = 1.0, {}
        if not last:
            pool.add(flows, fresh, store, number)
            log_weights = pool.log_weights()
            shape = khat(log_weights)
            exponent = min(1.0, s.tame / shape) if shape > s.tempered and math.isfinite(shape) else 1.0
            trained, losses = _train(
                flows[-1], pool.frames(), truncate(exponent * log_weights), layout, temperature, s,
                (store.path(f"training{number}") or scratch / f"training{number}"), sample_seed(seed, number, 1),
                lambda step, number=number: progress(f"finetuning: training, round {number + 1}", step, s.steps),
            )  # fmt: skip
            flows.append(trained)
        record.append(Round(found.khat, found.ess, found.ess_psis, exponent, losses, fresh.calls))
        if last:
            break
    config = {**proposal.config, "finetuned": _describe(layout, temperature, proposal, best, record, s)}
    save_checkpoint(folder, flows[best].model.state_dict(), config)
    return load_flow(folder), record


def _score(ess: float, shape: float) -> float:
    """Larger is better: effective sample size, discounted where k-hat says that it cannot be trusted."""
    return math.log(max(ess, 1e-12)) - 2 * max(min(shape, 10.0) - 0.7, 0.0)


class _Pool:
    """The draws of all rounds, with the density of every flow at every draw."""

    def __init__(self, layout: Layout, temperature: float):
        self.layout, self.temperature = layout, temperature
        self.rounds: list[Draws] = []
        self.log_q: list[list[np.ndarray]] = []  # [flow][round]
        self._frames: list[tuple[np.ndarray, Frames]] = []

    def add(self, flows: Sequence[Proposal], fresh: Draws, store: Store, number: int) -> None:
        """Add the draws of the last of `flows`."""
        densities = store.get(f"densities{number}")
        if densities is None:
            densities = {}
            for k, flow in enumerate(flows[:-1]):
                densities[f"earlier{k}"] = self._density(flow.model, fresh)
            for k, draws in enumerate(self.rounds):
                densities[f"new{k}"] = self._density(flows[-1].model, draws)
            store.put(f"densities{number}", densities)
        self.rounds.append(fresh)
        for k, row in enumerate(self.log_q):
            row.append(densities[f"earlier{k}"])
        self.log_q.append([*(densities[f"new{k}"] for k in range(number)), fresh.log_q])
        usable = np.flatnonzero(np.isfinite(fresh.log_weights))
        # the index travels in place of the temperature, because frames may be left out
        frames = Frames.of(self.layout, fresh.positions[usable], fresh.energies[usable], np.arange(len(usable)))
        kept = usable[frames.temperature.long().numpy()]
        frames = replace(frames, temperature=torch.full_like(frames.temperature, self.temperature))
        self._frames.append((kept, frames))

    def log_weights(self) -> np.ndarray:
        """Balance-heuristic log-weights of the frames; the draws without weight are counted among those of a flow."""
        energies = np.concatenate([draws.energies for draws in self.rounds])
        log_q = np.stack([np.concatenate(row) for row in self.log_q])
        usable = np.concatenate([np.isfinite(draws.log_weights) for draws in self.rounds])
        log_p = np.where(usable, -energies / (KB * self.temperature), -np.inf)
        counts = [len(draws) for draws in self.rounds]
        every = mixture_log_weights(log_p, np.where(usable, log_q, 0.0), counts)
        starts = np.cumsum([0, *counts[:-1]])
        return every[np.concatenate([kept + at for (kept, _), at in zip(self._frames, starts, strict=True)])]

    def frames(self) -> Frames:
        """All usable draws: valid conformations with a finite energy."""
        return Frames.join([frames for _, frames in self._frames])

    def _density(self, model: ProseFlow, draws: Draws) -> np.ndarray:
        usable, log_q = np.isfinite(draws.log_weights), np.full(len(draws), -np.inf)
        log_q[usable] = log_densities(model, self.layout, draws.positions[usable], self.temperature)
        return log_q


def _train(
    proposal: Proposal,
    frames: Frames,
    log_weights: np.ndarray,
    layout: Layout,
    temperature: float,
    s: FinetuneSettings,
    directory: Path,
    seed: int,
    report: Callable[[int], None],
) -> tuple[Proposal, dict[str, float]]:
    """A copy of the flow, trained on weighted frames.

    Half of a batch is drawn by weight, which makes its mean the weighted mean without the noise of weighting, half
    evenly. The likelihood is that of the first half, the penalty that of the second; the spread is of both.
    """
    if len(frames) < 2:
        raise InputError("fewer than two usable draws to finetune on", where=layout.peptide.sequence)
    model = copy.deepcopy(proposal.model).train()
    weights = torch.from_numpy(normalised(log_weights))
    dof, kt, half = 3 * layout.atoms - 6, KB * temperature, s.batch // 2

    def loss(model: ProseFlow, index: Tensor, _: torch.Generator) -> dict[str, Tensor]:
        state = frames.state(index)
        log_q = model.log_density(layout, state) - state.log_volume
        parts = {
            "likelihood": -log_q[:half].mean() / dof,
            "teacher": -log_q[half:].mean() / dof,
            "spread": spread_loss(log_q, frames.energies[index], kt, s.huber) / dof,
        }
        total = s.likelihood * parts["likelihood"] + s.teacher * parts["teacher"] + s.spread * parts["spread"]
        return {"loss": total, **parts}

    done = 0

    def epoch(generator: torch.Generator) -> Iterator[Tensor]:
        nonlocal done
        for _ in range(50):
            by_weight = torch.multinomial(weights, half, replacement=True, generator=generator)
            yield torch.cat([by_weight, torch.randint(len(frames), (half,), generator=generator)])
            done += 1
            report(done)

    def validate(model: ProseFlow) -> dict[str, float]:
        index = torch.multinomial(weights, 4 * s.batch, replacement=True, generator=torch.Generator().manual_seed(seed))
        state = frames.state(index)
        log_q = model.log_density(layout, state) - state.log_volume
        return {"score": -float(log_q.mean()) / dof}

    trainer = Trainer(
        model, loss, epoch, validate,  # type: ignore[arg-type]
        TrainSettings(
            steps=s.steps, learning_rate=s.learning_rate, warmup=20, weight_decay=0.0, ema=0.99, seed=seed,
            checkpoint_seconds=60.0, validate_seconds=math.inf,
        ),
        directory,
        {"model": "prose", "config": model.describe()},
    )  # fmt: skip
    figures = trainer.run(resume=True)
    return Proposal(model.eval(), "", proposal.config), {"nll": figures["score"]}


def _describe(
    layout: Layout, temperature: float, proposal: Proposal, best: int, record: Sequence[Round], s: FinetuneSettings
) -> dict:
    peptide = layout.peptide
    return {
        "sequence": peptide.sequence, "cap": peptide.cap, "temperature": temperature, "from": proposal.hash,
        "rounds": best, "khat": record[best].khat, "ess": record[best].ess, "settings": asdict(s),
    }  # fmt: skip
