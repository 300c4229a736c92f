"""How Prose is trained: frames of molecular dynamics, one sequence and one temperature at a time, with their energies.

Loss: negative log-likelihood of the frames, and the spread of log q + E/kT over frames of one sequence, which is zero
for the exact density whatever the populations in the frames are; it repairs basins that a short trajectory misjudges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molgen.errors import InputError
from molgen.prose.frames import Frames
from molgen.prose.model import ProseFlow
from molgen.train.graphs import CapturedGradients
from molgen.train.loop import Trainer, TrainSettings
from molgen.units import KB

CAP = 40.0  # kT
LANES = 8  # sequences whose gradients a GPU computes at the same time


@dataclass(frozen=True)
class ProseLoss:
    """Weights of the loss.

    Attributes:
        likelihood, spread: weights of the negative log-likelihood and of the energy spread, both a frame.
        huber: where the spread turns from square to linear, kT.
        frames: frames of one sequence in a batch. sequences: sequences a step.
    """

    likelihood: float = 0.5
    spread: float = 0.5
    huber: float = 4.0
    frames: int = 32
    sequences: int = 2


@dataclass(frozen=True)
class Batch:
    """Frames of one sequence at one temperature."""

    frames: Frames
    temperature: float
    index: Tensor


def spread_loss(
    log_q: Tensor, energies: Tensor, kt: Tensor | float, huber: float, centre: float | None = None
) -> Tensor:
    """Huber loss (scalar) of log q + E/kT (B,) about `centre`, or about its own median; kT^2 near zero.

    Energies count up to CAP kT above their median: what lies higher only has to become unlikely.
    """
    value = log_q + torch.minimum(energies, energies.median() + CAP * kt) / kt
    # no tensor from a number: it would be copied from the CPU, which a CUDA graph cannot capture
    middle = value.detach().median().expand_as(value) if centre is None else torch.full_like(value, centre)
    return torch.nn.functional.huber_loss(value, middle, delta=huber)


def frame_losses(model: ProseFlow, frames: Frames, index: Tensor, settings: ProseLoss) -> dict[str, Tensor]:
    """Losses of frames `index` (B,) of one temperature, by 1 / degrees of freedom; "data": the share to imitate."""
    state = frames.state(index)
    log_q = model.log_density(frames.layout, state) - state.log_volume
    data = ~frames.own[index]
    total = -(log_q * data).sum()
    scatter = spread_loss(log_q, frames.energies[index], state.kt[0], settings.huber)
    dof = 3 * frames.layout.atoms - 6
    loss = (settings.likelihood * total / len(data) + settings.spread * scatter) / dof
    nll = total.detach() / data.sum() / dof
    return {"loss": loss, "spread": scatter.detach(), "nll": nll, "data": data.float().mean()}


def prose_loss(model: ProseFlow, batches: Sequence[Batch], settings: ProseLoss) -> dict[str, Tensor]:
    """Losses of a step; each sequence weighs by 1 / its degrees of freedom."""
    return mean_losses([frame_losses(model, batch.frames, batch.index, settings) for batch in batches])


def mean_losses(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means of the losses of :func:`frame_losses`; "nll" of those that have data."""
    figures = {name: torch.stack([part[name] for part in parts]).mean() for name in ("loss", "spread")}
    nll = [part["nll"] for part in parts if part["data"] > 0]
    return figures | ({"nll": torch.stack(nll).mean()} if nll else {})


def epoch(data: Sequence[Frames], settings: ProseLoss, generator: torch.Generator) -> Iterator[list[Batch]]:
    """Every sequence at every temperature once (the lowest twice), frames and order at random.

    What does not fill the last step is left out.
    """
    jobs = []
    for frames in data:
        temperatures = frames.temperatures()
        jobs += [(frames, t) for t in (temperatures[0], *temperatures)]
    order = torch.randperm(len(jobs), generator=generator).tolist()
    for start in range(0, len(order) - settings.sequences + 1, settings.sequences):
        step = []
        for frames, t in (jobs[j] for j in order[start : start + settings.sequences]):
            step.append(Batch(frames, t, frames.pick(frames.at(t), settings.frames, generator)))
        yield step


@torch.no_grad()
def validation_figures(model: ProseFlow, data: Sequence[Frames], frames: int = 100) -> dict[str, float]:
    """NLL a degree of freedom and spread of log q + E/kT at the lowest temperature, means over sequences.

    Frames that are no data to imitate (`Frames.own`) count in the spread alone. "val_forward" estimates the effective
    sample size that samples of the flow would have, from the data's side: 1 / (E_MD[w] E_MD[1/w]), w the weight of a
    frame. "score" is what it lacks to 1: unlike the spread, a handful of frames cannot decide it.
    """
    nll, spreads, forward = [], [], []
    for item in data:
        t = item.temperatures()[0]
        index = item.at(t)
        index = index[:: max(1, len(index) // frames)]
        state = item.state(index)
        log_q = (model.log_density(item.layout, state) - state.log_volume).double()
        value = log_q + item.energies[index].double() / (KB * t)
        spreads.append(float(value.std()))
        imitated = ~item.own[index]
        if not imitated.any():
            continue
        nll.append(-float(log_q[imitated].mean()) / (3 * item.layout.atoms - 6))
        value = value[imitated]
        both = torch.logsumexp(value, 0) + torch.logsumexp(-value, 0)
        forward.append(float(torch.exp(2 * np.log(len(value)) - both)))
    found = float(np.mean(forward))
    spread = float(np.mean(spreads))
    return {"score": 1 - found, "val_nll": float(np.mean(nll)), "val_spread": spread, "val_forward": found}


def check_training(train: Sequence[Frames], settings: ProseLoss, device: torch.device) -> None:
    """What can be said before a run begins.

    Raises:
        InputError: another device than cpu and cuda, or a batch of more sequences than an epoch has.
    """
    if device.type not in ("cpu", "cuda"):  # densities are in double precision
        raise InputError(f"Prose does not train on {device}", where="--device", expected="auto, cpu or cuda")
    most = sum(len(frames.temperatures()) + 1 for frames in train)
    if settings.sequences > most:
        raise InputError(
            f"{settings.sequences} sequences in a batch, of {most} (each at every temperature, the lowest twice)",
            where="--sequences",
            expected=f"{most} or fewer",
        )


def train_prose(
    model: ProseFlow,
    train: Sequence[Frames],
    val: Sequence[Frames],
    directory: Path,
    *,
    budget_seconds: float | None = None,
    steps: int | None = None,
    learning_rate: float = 2e-3,
    loss: ProseLoss | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    begun: tuple[str, Mapping[str, Any]] | None = None,
    extra: dict[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train Prose; the best weights by validation go to `directory/best`, the figures of every step to `log.jsonl`.

    Args:
        begun: name of the weights that `model` begins from, and their `Proposal.config`: what they were trained on
            counts as known, and their validation is told before training.

    Returns:
        the last validation figures, `best_score` and `best_step`, `step` and `elapsed` seconds; `without_gain`, None or
        a text: the best is no better than the weights it began with.
    """
    torch.set_flush_denormal(True)
    loss = loss or ProseLoss()
    model = model.to(device)
    train, val = ([frames.to(device) for frames in part] for part in (train, val))
    log(
        f"{len(train)} training and {len(val)} validation sequences, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters"
    )
    settings = TrainSettings(
        budget_seconds,
        steps,
        learning_rate=learning_rate,
        seed=seed,
        weight_decay=1e-3,
    )
    before = begun[1] if begun else {}
    temperatures = [*before.get("temperatures", ()), *(float(t) for item in train for t in item.temperatures())]
    lengths = [len([r for r in item.layout.peptide.residue_names if r not in ("ACE", "NME")]) for item in train]
    lengths += before.get("lengths", ())
    forms = sorted({*before.get("forms", ()), *(form for item in train for form in item.layout.peptide.forms)})
    config = {
        "model": "prose",
        "config": model.describe(),
        "loss": asdict(loss),
        "temperatures": [min(temperatures), max(temperatures)],
        "lengths": [min(lengths), max(lengths)],
        **({"forms": forms} if forms else {}),
        **(extra or {}),
    }
    trainer = Trainer(
        model,
        lambda m, batch, _: prose_loss(m, batch, loss),  # type: ignore[arg-type]
        lambda g: epoch(train, loss, g),
        lambda m: validation_figures(m, val),  # type: ignore[arg-type]
        settings,
        directory,
        config,
        gradients=_captured(model, loss) if torch.device(device).type == "cuda" else None,
    )
    shown = (
        "validation NLL {val_nll:.4f} a degree of freedom, spread {val_spread:.2f} kT, forward ESS {val_forward:.3f}"
    )
    score = math.inf
    if begun is not None:  # before a resumed run puts its own weights in
        at_first = validation_figures(model.eval(), val)
        score = at_first["score"]
        if not resume:
            log(f"{begun[0]}: {shown.format(**at_first)}")
    figures = trainer.run_logged("step {step}, {seconds:.0f} s: " + shown, log, resume)
    best = figures["best_score"]
    if begun is None or best < score:
        return {**figures, "without_gain": None}
    told = f"forward ESS {1 - best:.4f}, {1 - score:.4f} by {begun[0]}, on the validation frames"
    return {**figures, "without_gain": told}


def _captured(model: ProseFlow, settings: ProseLoss) -> Callable[[Sequence[Batch]], dict[str, Tensor]]:
    """The gradients of :func:`prose_loss`, one CUDA graph for each sequence."""
    captured = CapturedGradients(model, 1 / settings.sequences, lanes=min(LANES, settings.sequences))

    def gradients(batches: Sequence[Batch]) -> dict[str, Tensor]:
        jobs = []
        for batch in batches:
            loss = partial(frame_losses, model, batch.frames, settings=settings)
            jobs.append(((id(batch.frames), len(batch.index)), loss, batch.index))
        return mean_losses(captured(jobs))

    return gradients
