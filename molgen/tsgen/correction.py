"""The last stage of the flow: from a geometry and its gradient on a cheaper level to the transition state (t = 1).

At t = 1 the flow's network is asked for the end point at the end point. Given the gradient of a cheaper potential
there, it can tell how far off the geometry is, and where that level's saddle lies beside the data set's transition
state. Applied to a raw guess it is a correction by one gradient call; applied to the saddle of the cheaper level it
carries that saddle to the level of the data set.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from molgen.data.reactions import Reaction, load_npz, read_column
from molgen.errors import InputError
from molgen.files import sha256
from molgen.geometry.align import kabsch, rmsd
from molgen.rng import sample_seed
from molgen.train.loop import Trainer, TrainSettings
from molgen.train.losses import aligned_rmsd_loss, log_variance_loss, pair_distance_loss
from molgen.tsgen.condition import ReactionBatch, prepare
from molgen.tsgen.model import TSModel, reading_surface
from molgen.tsgen.training import pair_weights, seen_sizes
from molgen.tsgen.weights import load_model

KEYS = ("index", "kind", "converged", "ptr", "x", "gradient", "level", "source_sha256")
WEIGHTS = {"guess": 2.0, "path": 1.0, "saddle": 6.0, "near": 1.0}  # how often a kind of point is drawn, relatively
JITTER = 0.005  # Angstrom, noise on the geometry in training
BLUR = 0.05  # relative noise on each atom's gradient
END_NOISE = 0.02  # Angstrom, noise on reactant and product


@torch.no_grad()
def correct(model: TSModel, batch: ReactionBatch, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Transition states (B, N, 3) and predicted deviations (B, N) from geometries `x` with their `gradient`.

    The mean over the reaction and its reverse, in the frame of `batch.guess`.

    Args:
        x: (B, N, 3) Angstrom, in any frame. gradient: (B, N, 3) eV/Angstrom, in that frame.
    """
    x, gradient = in_frame(batch, x, gradient)
    time = x.new_ones(len(x))
    (there, log_there), (back, log_back) = (model(x, time, side, gradient) for side in (batch, batch.swapped()))
    log_variance = torch.logaddexp(log_there, log_back) - torch.log(torch.tensor(2.0))
    return (there + back) / 2, (3 * log_variance.exp()).sqrt() * batch.mask


def in_frame(batch: ReactionBatch, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Geometries and gradients (B, N, 3) turned into the frame of `batch.guess`."""
    weights = batch.mask.to(x.dtype)
    rotation, translation = kabsch(x, batch.guess.to(x.dtype), weights)
    m = batch.mask[..., None]
    return (x @ rotation.mT + translation[:, None]) * m, gradient @ rotation.mT * m


@dataclass
class Points:
    """Geometries with gradients, many a reaction.

    Attributes:
        reactions: R reactions with their transition states.
        x, gradient: (K, N, 3) Angstrom and eV/Angstrom, padded, in the frame of the reaction's guess.
        kind: (K,) names, see :mod:`molgen.workflows.searches`. offsets: (R + 1,) points of reaction i are
            offsets[i]:offsets[i + 1].
        level: of the gradients.
    """

    reactions: ReactionBatch
    x: Tensor
    gradient: Tensor
    kind: np.ndarray
    offsets: Tensor
    level: str

    def at(self, reactions: Tensor, points: Tensor) -> tuple[ReactionBatch, Tensor, Tensor]:
        """Rows `reactions`, and the geometries and gradients of `points`, cropped alike."""
        batch = self.reactions.select(reactions)
        n = batch.numbers.shape[1]
        return batch, self.x[points, :n], self.gradient[points, :n]


def load_training_points(data: Path, searches: Path, split: str) -> Points:
    """The points that `searches`, a file of `molgen data searches` on `data`, has of the reactions of a split.

    Reactions without points are left out.

    Raises:
        InputError: no such file or split, not such a file, of another set, or without points of this split.
    """
    splits = read_column(data, "split").astype(str)
    rows, reactions = np.flatnonzero(splits == split).tolist(), load_npz(data, split)
    arrays = _arrays(searches)
    if str(arrays["source_sha256"]) != sha256(Path(data).read_bytes()):
        raise InputError(
            f"was made from another set than {data}", where=str(searches), remedy=f"molgen data searches {data}"
        )
    members: dict[int, list[int]] = {}
    for k, row in enumerate(arrays["index"].tolist()):
        members.setdefault(row, []).append(k)
    kept = [i for i, row in enumerate(rows) if row in members]
    if not kept:
        raise InputError(f"no point of split '{split}'", where=str(searches), expected="searches of this split, too")
    return _points([reactions[i] for i in kept], [members[rows[i]] for i in kept], arrays)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in KEYS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"cannot be read ({error})",
            where=str(path),
            expected="searches.npz of molgen data searches",
            remedy="molgen data searches set.npz --out DIR",
        ) from error


def _points(reactions: Sequence[Reaction], members: Sequence[Sequence[int]], arrays: dict[str, np.ndarray]) -> Points:
    """Points `members` of each reaction, padded and turned into the frames of the reactions' guesses."""
    batch = prepare(reactions)
    counts = torch.tensor([len(group) for group in members])
    order, owner = np.concatenate(members), torch.repeat_interleave(torch.arange(len(reactions)), counts)
    ptr = arrays["ptr"]
    x, gradient = (torch.zeros(len(order), batch.numbers.shape[1], 3) for _ in range(2))
    for k, point in enumerate(order.tolist()):
        atoms = slice(int(ptr[point]), int(ptr[point + 1]))
        n = atoms.stop - atoms.start
        x[k, :n], gradient[k, :n] = (torch.from_numpy(arrays[key][atoms]) for key in ("x", "gradient"))
    for part in torch.arange(len(order)).split(4096):
        some = batch.select(owner[part])
        n = some.numbers.shape[1]
        x[part, :n], gradient[part, :n] = in_frame(some, x[part, :n], gradient[part, :n])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    return Points(batch, x, gradient, arrays["kind"][order], offsets, str(arrays["level"]))


def correction_model(init: str, train: Points, val: Points, *, seed: int = 0) -> TSModel:
    """The weights `init` of TS-GEN with inputs for the gradients of the points, or as they are if they have these.

    Raises:
        InputError: weights that read another level, or an element they do not know. CheckpointError: bad `init`.
    """
    torch.manual_seed(sample_seed(seed))
    model = load_model(init).model
    if model.surface not in ("", train.level):
        raise InputError(f"reads gradients of {model.surface}", where=f"--init {init}", expected=train.level)
    for points in (train, val):
        unknown = sorted(set(points.reactions.numbers.unique().tolist()) - {0, *model.elements})
        if unknown:
            raise InputError(f"atomic numbers {unknown}", where="--data", expected=f"those of {init}: {model.elements}")
    return model if model.surface else reading_surface(model, train.level)


def correction_loss(
    model: nn.Module, item: tuple[ReactionBatch, Tensor, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The loss of :func:`molgen.tsgen.training.flow_loss` at t = 1, where x is one of the reaction's points."""
    batch, x, gradient = item
    device = x.device

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(device)

    batch = batch.swapped((torch.rand(len(batch), generator=generator) < 0.5).to(device))
    mask, m = batch.mask, batch.mask[..., None]
    noisy = replace(
        batch,
        reactant=(batch.reactant + END_NOISE * noise(x)) * m,
        product=(batch.product + END_NOISE * noise(x)) * m,
    )
    x = (x + JITTER * noise(x)) * m
    gradient = gradient * (1 + BLUR * noise(x[..., :1]))
    predicted, log_variance = model(x, x.new_ones(len(x)), noisy, gradient)
    deviation, square = aligned_rmsd_loss(predicted, batch.true_ts, mask)
    pair = pair_distance_loss(predicted, batch.true_ts, pair_weights(batch))
    nll = log_variance_loss(square, log_variance, mask)
    loss = (deviation + 0.5 * pair + 0.01 * nll).mean()
    return {"loss": loss, "rmsd": deviation.mean(), "pair": pair.mean(), "nll": nll.mean()}


def epoch(
    points: Points, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[ReactionBatch, Tensor, Tensor]]:
    """One point of every reaction, kinds by `WEIGHTS`; batches of similar sizes in random order."""
    sizes = points.reactions.mask.sum(1).cpu()
    # the point that rings first among exponential clocks with these rates
    rates = torch.tensor([WEIGHTS[kind] for kind in points.kind.tolist()])
    rings = -torch.rand(len(rates), generator=generator).clamp_min(1e-12).log() / rates
    bounds = points.offsets.tolist()
    chosen = torch.tensor([a + int(rings[a:b].argmin()) for a, b in pairwise(bounds)])
    chunks = torch.argsort(sizes + 1.5 * torch.rand(len(sizes), generator=generator)).split(batch_size)
    for k in torch.randperm(len(chunks), generator=generator).tolist():
        yield points.at(chunks[k], chosen[chunks[k]])


@torch.no_grad()
def validation_figures(model: TSModel, points: Points, batch_size: int = 64) -> dict[str, float]:
    """Errors after one gradient at the guess, and from the end of the search; "score" is the mean of their means."""
    figures = {}
    first = points.offsets[:-1]
    searched = torch.tensor([kind != "near" for kind in points.kind.tolist()]).long()
    last = first + torch.tensor([int(searched[a:b].sum()) for a, b in pairwise(points.offsets.tolist())]) - 1
    for name, index in (("guess", first), ("saddle", last)):
        before, after = [], []
        for rows in torch.argsort(points.reactions.mask.sum(1)).split(batch_size):
            batch, x, gradient = points.at(rows, index[rows])
            before.append(rmsd(x, batch.true_ts, batch.mask))
            after.append(rmsd(correct(model, batch, x, gradient)[0], batch.true_ts, batch.mask))
        value = torch.cat(after)
        figures |= {f"val_{name}_before": float(torch.cat(before).median())}
        figures |= {f"val_{name}_median": float(value.median()), f"val_{name}_mean": float(value.mean())}
    return {"score": (figures["val_guess_mean"] + figures["val_saddle_mean"]) / 2, **figures}


def train_correction(
    model: TSModel,
    train: Points,
    val: Points,
    directory: Path,
    *,
    level: str = "",
    budget_seconds: float | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train the last stage; further arguments and results as of :func:`molgen.tsgen.training.train_tsgen`.

    Args:
        level: of the reactions' transition states, for the model's users.
    """
    torch.set_flush_denormal(True)
    model = model.to(device)
    counts = f"{len(train.reactions)} training ({len(train.x)} points) and {len(val.reactions)} validation reactions"
    log(f"{counts}, gradients of {train.level}")
    settings = TrainSettings(budget_seconds, steps, learning_rate=learning_rate, seed=seed)
    stream = (directory / "log.jsonl").open("a", encoding="utf-8")

    def record(figures: dict[str, Any]) -> None:
        stream.write(json.dumps(figures) + "\n")
        stream.flush()
        if "score" in figures:
            shown = (
                "step {step}, {seconds:.0f} s: RMSD median / mean, A, after one gradient {val_guess_median:.3f} / "
                "{val_guess_mean:.3f} (guess: {val_guess_before:.3f}), from the saddle {val_saddle_median:.3f} / "
                "{val_saddle_mean:.3f} (saddle: {val_saddle_before:.3f})"
            )
            log(shown.format(**figures))

    trainer = Trainer(
        model,
        correction_loss,
        lambda g: epoch(train, batch_size, g),
        lambda _: validation_figures(model, val),
        settings,
        directory,
        {"model": "tsgen", "config": model.config, "level": level, "atoms": seen_sizes(train.reactions)},
        record,
    )
    with stream:
        figures = trainer.run(resume)
    return {**figures, "best_score": trainer.best, "step": trainer.step, "elapsed": trainer.elapsed}
