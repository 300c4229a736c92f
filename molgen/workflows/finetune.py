"""Finetuning of the flow on one peptide from its own samples and their energies.

Each round draws samples from the flow as it is, pools them with those of all earlier rounds under balance-heuristic
weights, and trains on the pool: the spread of ln q + E/kT about -ln Z over draws picked by the square root of their
weights, which is zero for the exact density. (About the batch mean, a flow that abandons all draws equally would score
as well.) The trunk's features of a conformation do not change, and are computed once. The next round's draws are new to
the flow they judge; when they show no progress, or hardly a proposal is the molecule any more, the flow before is the
result.

After the self-refinement of Prose (arXiv 2508.18175, section 4.3) and the energy-variance loss of Richter et al.,
NeurIPS 2020; pooling after Cornuet et al., Scand. J. Stat. 39 (2012) 798 (adaptive multiple importance sampling).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from molgen.checkpoint import save_checkpoint
from molgen.errors import CalculatorError, InputError, TrainingError
from molgen.prose.frames import Frames
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.training import spread_loss
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.importance import RELIABLE_KHAT, diagnose, khat, mixture_log_weights, normalised, truncate
from molgen.rng import sample_seed
from molgen.run import Progress
from molgen.threads import one_thread
from molgen.train.graphs import CapturedGradients
from molgen.train.loop import Trainer, TrainSettings
from molgen.units import KB
from molgen.workflows.draws import Draws, Store

# draws(flow, n, seed, name) -> n draws with their energies, stored under that name
Draw = Callable[[Proposal, int, int, str], Draws]
_CHUNK = 256  # frames at once where nothing is learned


@dataclass(frozen=True)
class FinetuneSettings:
    """How to finetune.

    Attributes:
        samples: drawn a round. passes: of a round's training over the pool, in batches of `batch`; many passes learn
            the draws by heart.
        learning_rate: peak. huber: where the spread turns linear, kT.
        tilt: exponent of the weights with which draws are picked: 0 would spend the training on proposals that weigh
            nothing, 1 on the few that weigh most.
        tempered: k-hat above which the weights are tempered to `tame`; 1 is where their mean ceases to exist.
        patience: rounds in a row without progress before the one that ends it.
    """

    samples: int = 10_000
    passes: float = 2.0
    batch: int = 64
    learning_rate: float = 4e-4
    huber: float = 4.0
    tilt: float = 0.5
    tempered: float = 1.0
    tame: float = RELIABLE_KHAT
    patience: int = 1


@dataclass(frozen=True)
class Round:
    """One round: k-hat and ESS of fresh draws of the flow it began with; the exponent its weights were tempered with;
    losses of its training; energies evaluated; whether that flow is the one that was kept."""

    khat: float
    ess: float
    ess_psis: float
    exponent: float
    losses: dict[str, float]
    energy_calls: int
    kept: bool = False


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
    device: torch.device | str = "cpu",
    settings: FinetuneSettings | None = None,
    log: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Proposal, list[Round]]:
    """Train a flow on its own samples of one peptide at one temperature.

    Args:
        proposal: the flow to start from; not changed. draws: see `Draw`.
        rounds: at most this many. store: draws, densities and training states are kept there for a resume.
        folder: receives the finetuned flow, a checkpoint that `load_flow` reads. seed: of the noise, with the hash of
            the given flow. scratch: for training states when the store keeps nothing. device: of the training, "cpu" or
            a CUDA device.

    Returns:
        the best flow, judged by fresh draws (the given one if none was better), and a record of each round.

    Raises:
        CalculatorError: hardly a proposal of the given flow is the molecule, or none of its draws has a finite energy.
    """
    s = settings or FinetuneSettings()
    # Another checkpoint gets other noise: one that was finetuned before has learned that of its first rounds by heart
    stream = sample_seed(seed, crc32(proposal.hash.encode()))
    flows, pool, record = [proposal], _Pool(layout, temperature, device), []
    best, best_score, waited = 0, -math.inf, 0
    for number in range(rounds + 1):
        try:
            fresh = draws(flows[-1], s.samples, sample_seed(stream, number), f"round{number}")
        except CalculatorError as error:
            if number == 0:
                raise
            log(f"finetuning round {number}: {error.what}; the flow before stands")
            break
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
            try:
                with one_thread():
                    pool.add(flows, fresh, store, number)
                    log_weights = pool.log_weights()
                    shape = khat(log_weights)
                    exponent = min(1.0, s.tame / shape) if shape > s.tempered and math.isfinite(shape) else 1.0
                    trained, losses = _train(
                        flows[-1], pool.joined(), truncate(exponent * log_weights), pool.log_z(truncate(log_weights)),
                        temperature, s,
                        (store.path(f"training{number}") or scratch / f"training{number}"),
                        sample_seed(stream, number, 1),
                        lambda step, steps, at=number + 1: progress(f"finetuning: training, round {at}", step, steps),
                    )  # fmt: skip
                flows.append(trained)
            except TrainingError as error:
                log(f"finetuning round {number + 1}: {error.what}; the flow before stands")
                last = True
        record.append(Round(found.khat, found.ess, found.ess_psis, exponent, losses, fresh.calls))
        if last:
            break
    record[best] = replace(record[best], kept=True)
    said: dict[str, object] = {"finetuned": _describe(layout, temperature, proposal, best, record, s)}
    if best and layout.peptide.forms:
        said["forms"] = sorted({*proposal.config.get("forms", ()), *layout.peptide.forms})
    save_checkpoint(folder, flows[best].model.state_dict(), {**proposal.config, **said})
    return load_flow(folder), record


def _score(ess: float, shape: float) -> float:
    """Larger is better: effective sample size, discounted where k-hat says that it cannot be trusted."""
    return math.log(max(ess, 1e-12)) - 2 * max(min(shape, 10.0) - RELIABLE_KHAT, 0.0)


def _placed(proposal: Proposal, device: torch.device | str) -> ProseFlow:
    """The flow on a device; proposals stay on the CPU."""
    return proposal.model if torch.device(device).type == "cpu" else copy.deepcopy(proposal.model).to(device)


class _Pool:
    """The draws of all rounds, with the density of every flow at every draw.

    All flows read the same `content` of a conformation, which is why it is computed once.
    """

    def __init__(self, layout: Layout, temperature: float, device: torch.device | str = "cpu"):
        self.layout, self.temperature, self.device = layout, temperature, device
        self.rounds: list[Draws] = []
        self.log_q: list[list[np.ndarray]] = []  # [flow][round], of the frames
        self.parts: list[_Part] = []

    def add(self, flows: Sequence[Proposal], fresh: Draws, store: Store, number: int) -> None:
        """Add the draws of the last of `flows`."""
        self.rounds.append(fresh)
        self.parts.append(_Part.of(_placed(flows[0], self.device), self.layout, fresh, self.device))
        densities = store.get(f"densities{number}")
        if densities is None:
            shares = [draws.log_share for draws in self.rounds]  # draws are those of flows restricted to the molecule
            densities = {
                f"earlier{k}": self.parts[-1].densities(_placed(flow, self.device)) - shares[k]
                for k, flow in enumerate(flows[:-1])
            }
            newest = _placed(flows[-1], self.device)
            densities |= {f"new{k}": part.densities(newest) - shares[-1] for k, part in enumerate(self.parts[:-1])}
            store.put(f"densities{number}", densities)
        for k, row in enumerate(self.log_q):
            row.append(densities[f"earlier{k}"])
        own = fresh.log_q[self.parts[-1].kept]
        self.log_q.append([*(densities[f"new{k}"] for k in range(number)), own])

    def log_weights(self) -> np.ndarray:
        """Balance-heuristic log-weights of the frames; the draws without weight are counted among those of a flow."""
        counts = [len(draws) for draws in self.rounds]
        starts = np.cumsum([0, *counts[:-1]])
        kept = np.concatenate([part.kept + start for part, start in zip(self.parts, starts, strict=True)])
        log_p, log_q = np.full(sum(counts), -np.inf), np.zeros((len(counts), sum(counts)))
        log_p[kept] = -np.concatenate([draws.energies for draws in self.rounds])[kept] / (KB * self.temperature)
        log_q[:, kept] = [np.concatenate(row) for row in self.log_q]
        return mixture_log_weights(log_p, log_q, counts)[kept]

    def log_z(self, log_weights: np.ndarray) -> float:
        """ln Z by the balance-heuristic weights of the frames."""
        return float(np.logaddexp.reduce(log_weights) - np.log(sum(len(draws) for draws in self.rounds)))

    def joined(self) -> _Part:
        """All usable draws: those with a finite energy."""
        return _Part.join(self.parts)


@dataclass(frozen=True, eq=False)
class _Part:
    """The usable draws of a round, M of n.

    Attributes:
        kept: (M,) which draws. frames: of them. scalars, vectors: their `ProseFlow.content`, (M, H, S), (M, H, 3, V);
            half precision.
    """

    kept: np.ndarray
    frames: Frames
    scalars: Tensor
    vectors: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: ProseFlow, layout: Layout, fresh: Draws, device: torch.device | str) -> _Part:
        """The draws that have a weight, and what `model` sees in them, which training never changes."""
        usable = np.flatnonzero(np.isfinite(fresh.log_weights))
        temperature = np.full(len(usable), fresh.temperature)
        frames = Frames.of(layout, fresh.positions[usable], fresh.energies[usable], temperature, device=device)
        kept = usable[frames.given.cpu().numpy()]
        h = model.encode(frames.layout)
        chunks = torch.arange(len(frames)).split(_CHUNK)
        parts = [model.content(frames.layout, frames.state(index), h) for index in chunks]
        scalars, vectors = (torch.cat([value.half() for value in column]) for column in zip(*parts, strict=True))
        return cls(kept, frames, scalars, vectors)

    @classmethod
    def join(cls, parts: Sequence[_Part]) -> _Part:
        return cls(
            np.concatenate([part.kept for part in parts]),
            Frames.join([part.frames for part in parts]),
            torch.cat([part.scalars for part in parts]),
            torch.cat([part.vectors for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.kept)

    def log_density(self, model: ProseFlow, index: Tensor) -> Tensor:
        """(B,) of the frames at `index`, volume element included."""
        state = self.frames.state(index)
        content = self.scalars[index].float(), self.vectors[index].float()
        return model.log_density(self.frames.layout, state, content) - state.log_volume

    @torch.no_grad()
    def densities(self, model: ProseFlow) -> np.ndarray:
        """(M,) of all frames."""
        chunks = torch.arange(len(self)).split(_CHUNK)
        return torch.cat([self.log_density(model, index) for index in chunks]).double().cpu().numpy()


def _train(
    proposal: Proposal,
    part: _Part,
    log_weights: np.ndarray,
    log_z: float,
    temperature: float,
    s: FinetuneSettings,
    directory: Path,
    seed: int,
    report: Callable[[int, int], None],
) -> tuple[Proposal, dict[str, float]]:
    """A copy of the flow, trained on weighted frames, all but what its `content` depends on."""
    layout = part.frames.layout
    if len(part) < 2:
        raise InputError("fewer than two usable draws to finetune on", where=layout.peptide.sequence)
    model = copy.deepcopy(proposal.model).to(layout.device).train().requires_grad_(False)
    for parameter in model.behind_content():
        parameter.requires_grad_(True)
    weights = torch.from_numpy(normalised(s.tilt * log_weights))
    dof, kt = 3 * layout.atoms - 6, KB * temperature
    steps = max(1, round(s.passes * len(part) / s.batch))

    def spread(index: Tensor) -> Tensor:
        return spread_loss(part.log_density(model, index), part.frames.energies[index], kt, s.huber, -log_z)

    def loss(index: Tensor) -> dict[str, Tensor]:
        return {"loss": spread(index) / dof}

    def epoch(generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(50):
            yield torch.multinomial(weights, s.batch, replacement=True, generator=generator)
            report(trainer.step, steps)

    def validate(_: ProseFlow) -> dict[str, float]:
        index = torch.multinomial(weights, 8 * s.batch, replacement=True, generator=torch.Generator().manual_seed(seed))
        return {"score": float(spread(index))}

    captured = CapturedGradients(model) if layout.device.type == "cuda" else None
    trainer = Trainer(
        model, lambda _, index, __: loss(index), epoch, validate,  # type: ignore[arg-type]
        TrainSettings(
            steps=steps, learning_rate=s.learning_rate, warmup=20, weight_decay=0.0, ema=0.99, seed=seed,
            checkpoint_seconds=60.0, validate_seconds=math.inf,
        ),
        directory,
        {"model": "prose", "config": model.describe()},
        gradients=None if captured is None else lambda index: captured([("step", loss, index)])[0],
    )  # fmt: skip
    figures = trainer.run(resume=True)
    return Proposal(model.cpu().requires_grad_(True).eval(), "", proposal.config), {"spread": figures["score"]}


def _describe(
    layout: Layout, temperature: float, proposal: Proposal, best: int, record: Sequence[Round], s: FinetuneSettings
) -> dict:
    peptide = layout.peptide
    return {
        "sequence": peptide.sequence, "cap": peptide.cap, "temperature": temperature, "from": proposal.hash,
        "rounds": best, "khat": record[best].khat, "ess": record[best].ess, "settings": asdict(s),
    }  # fmt: skip
