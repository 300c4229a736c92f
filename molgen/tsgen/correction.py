"""From a geometry and its gradient on a cheaper level to the transition state of a better one.

Applied to a raw guess it is a correction by one gradient call; applied to the saddle of the cheaper level it carries
that saddle to the level of the data set. It is trained on what saddle searches pass (`molgen data searches`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from molgen.data.reactions import Reaction, load_npz, read_column, refuse_run_folder
from molgen.errors import InputError
from molgen.files import read_manifest, sha256
from molgen.geometry.align import rmsd, superpose
from molgen.npz import read_npz
from molgen.potentials.ase import EMBEDDED
from molgen.rng import sample_seed
from molgen.train.loop import Trainer, TrainSettings
from molgen.tsgen.condition import ReactionBatch, prepare, refuse_unknown_elements
from molgen.tsgen.correction_model import KIND, SIZES, CorrectionModel, load_correction
from molgen.tsgen.network import both_directions, predicted_deviation
from molgen.tsgen.training import geometry_losses, rows_by_size, seen_sizes
from molgen.tsgen.weights import load_model

KEYS = ("index", "kind", "start", "ptr", "x", "gradient", "level", "source_sha256")
WEIGHTS = {"guess": 2.0, "path": 1.0, "saddle": 6.0, "near": 1.0}  # how often a kind of point is drawn, relatively
JITTER = 0.005  # Angstrom, noise on the geometry in training
BLUR = 0.05  # relative noise on each atom's gradient


@torch.no_grad()
def correct(
    model: CorrectionModel, batch: ReactionBatch, x: Tensor, gradient: Tensor, guess: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Transition states (B, N, 3), superposed on `x`, and predicted deviations (B, N), Angstrom.

    The mean over the reaction and its reverse, which makes the correction exactly symmetric.

    Args:
        x: (B, N, 3) Angstrom. gradient: (B, N, 3) eV/Angstrom.
        guess: (B, N, 3) Angstrom, TS-GEN's, from which `x` was found; None if that began elsewhere.
    """
    given = torch.full((len(x),), guess is not None, device=x.device)
    start = x if guess is None else guess
    end, log_variance = both_directions(
        lambda direction: model(x, gradient, start, given, direction), (batch, batch.swapped())
    )
    placed = superpose(end, x, batch.mask.to(x.dtype)) * batch.mask[..., None]
    return placed, predicted_deviation(log_variance, batch.mask)


def corrected(
    model: CorrectionModel, reaction: Reaction, x: np.ndarray, gradient: np.ndarray, guess: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`correct` for one reaction: positions (N, 3) and predicted deviations (N,), Angstrom, float64."""
    like = next(model.parameters())
    batch = prepare([reaction]).to(like.device, like.dtype)
    at, slope = (torch.from_numpy(np.array(a, dtype=float)).to(like)[None] for a in (x, gradient))
    start = None if guess is None else torch.from_numpy(np.array(guess, dtype=float)).to(like)[None]
    found, deviation = correct(model, batch, at, slope, start)
    return found[0].double().cpu().numpy(), deviation[0].double().cpu().numpy()


class Item(NamedTuple):
    """A batch: reactions, one geometry and gradient of each, the guesses, and whether these are TS-GEN's."""

    batch: ReactionBatch
    x: Tensor
    gradient: Tensor
    guess: Tensor
    has_guess: Tensor


@dataclass
class Points:
    """Geometries with gradients, many a reaction.

    Attributes:
        reactions: R reactions with their transition states.
        x, gradient: (K, N, 3) Angstrom and eV/Angstrom, padded.
        from_flow: (R,) whether the first point of a reaction is a guess of TS-GEN.
        kind: (K,) names, see :mod:`molgen.workflows.searches`. offsets: (R + 1,) points of reaction i are
            offsets[i]:offsets[i + 1].
        level: of the gradients.
    """

    reactions: ReactionBatch
    x: Tensor
    gradient: Tensor
    from_flow: Tensor
    kind: np.ndarray
    offsets: Tensor
    level: str

    def to(self, device: torch.device | str) -> Points:
        """A copy on another device; `kind` and `offsets` stay, which only choose."""
        moved = {name: getattr(self, name).to(device) for name in ("reactions", "x", "gradient", "from_flow")}
        return replace(self, **moved)

    def at(self, reactions: Tensor, points: Tensor) -> Item:
        """Rows `reactions` with their guesses, and the geometries and gradients of `points`, cropped alike."""
        batch = self.reactions.select(reactions)
        n = batch.numbers.shape[1]
        guess = self.x[self.offsets[reactions], :n]
        return Item(batch, self.x[points, :n], self.gradient[points, :n], guess, self.from_flow[reactions])


def load_training_points(data: Path, searches: Path, split: str, wanted: Sequence[str] = ()) -> Points:
    """The points that `searches`, a file of `molgen data searches` on `data`, has of the reactions of a split.

    Reactions without points are left out.

    Args:
        wanted: all splits the user needs, for the command that an error names; default this one.

    Raises:
        InputError: no such file or split, not such a file, of another set, or without points of this split.
    """
    splits = read_column(data, "split").astype(str)
    rows, reactions = np.flatnonzero(splits == split).tolist(), load_npz(data, split)
    arrays = _arrays(searches)
    if str(arrays["source_sha256"]) != sha256(Path(data).read_bytes()):
        raise InputError(
            f"was made from another set than {data}", where=str(searches), expected="searches on that set",
            remedy=_search_command(data, None, wanted or [split], str(arrays["level"])),
        )  # fmt: skip
    members: dict[int, list[int]] = {}
    for k, row in enumerate(arrays["index"].tolist()):
        members.setdefault(row, []).append(k)
    kept = [i for i, row in enumerate(rows) if row in members]
    if not kept:
        ends = dict(zip(arrays["row"].tolist(), arrays["outcome"].tolist(), strict=True))
        if set(rows) <= set(ends):  # to search them once more would give the same
            raise InputError(
                f"no point of split '{split}': {', '.join(sorted({ends[row] for row in rows}))} in all its searches",
                where=str(searches), expected="a search of this split that came to something",
                remedy="add reactions to the split, or search with another --calculator or --weights in another --out",
            )  # fmt: skip
        raise InputError(
            f"no point of split '{split}'",
            where=str(searches),
            expected="searches of this split, too",
            remedy=_search_command(data, searches, wanted or [split], str(arrays["level"])),
        )
    return _points([reactions[i] for i in kept], [members[rows[i]] for i in kept], arrays)


def _search_command(data: Path, searches: Path | None, splits: Sequence[str], level: str) -> str:
    """The command that makes points of all `splits` of a set, in the run of `searches` where its manifest is there."""
    words = ["molgen", "data", "searches", str(data), "--split", ",".join(dict.fromkeys(splits))]
    made = None if searches is None else read_manifest(searches.parent)  # None: moved away from its run
    if searches is not None and made is not None and made.get("command") == "data searches":
        s = made["settings"]
        words[3] = s["source"]
        words += ["--calculator", s["calculator"]]
        words += ["--calculator-kwargs", json.dumps(s["calculator_kwargs"])] if s["calculator_kwargs"] else []
        words += ["--seed", str(made["seed"])] if made["seed"] else []
        text = shlex.join([*words, "--out", str(searches.parent), "--resume"])
        return text if s["weights"] == load_model().hash else f"{text}, with the --weights of that run"
    known = [name for name, embedded in EMBEDDED.items() if embedded == level]
    return shlex.join([*words, *(["--calculator", *known] if known else []), "--out", "searches-of-all"])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    refuse_run_folder(path, "searches.npz")
    arrays = read_npz(
        path, KEYS, expected="searches.npz of molgen data searches", remedy="run molgen data searches set.npz --out DIR"
    )
    return {key: np.zeros(0, int) for key in ("row", "outcome")} | arrays


def _points(reactions: Sequence[Reaction], members: Sequence[Sequence[int]], arrays: dict[str, np.ndarray]) -> Points:
    """Points `members` of each reaction, padded."""
    batch = prepare(reactions)
    counts = torch.tensor([len(group) for group in members])
    order, ptr = np.concatenate(members), arrays["ptr"]
    x, gradient = (torch.zeros(len(order), batch.numbers.shape[1], 3) for _ in range(2))
    for k, point in enumerate(order.tolist()):
        atoms = slice(int(ptr[point]), int(ptr[point + 1]))
        n = atoms.stop - atoms.start
        x[k, :n], gradient[k, :n] = (torch.from_numpy(arrays[key][atoms]) for key in ("x", "gradient"))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    first = order[offsets[:-1].numpy()]
    from_flow = torch.from_numpy((arrays["kind"][first] == "guess") & (arrays["start"][first] == "tsgen"))
    return Points(batch, x, gradient, from_flow, arrays["kind"][order], offsets, str(arrays["level"]))


def correction_model(train: Points, val: Points, init: str | None = None, seed: int = 0) -> CorrectionModel:
    """The model to train: new, for the elements and the level of `train`, or the weights `init`.

    Raises:
        InputError: weights that read another level, or an element the model will not know. CheckpointError: bad `init`.
    """
    torch.manual_seed(sample_seed(seed))
    there = [sorted(set(points.reactions.numbers.unique().tolist()) - {0}) for points in (train, val)]
    model = CorrectionModel(there[0], train.level, **SIZES) if init is None else load_correction(init).model
    if model.level != train.level:
        raise InputError(
            f"reads gradients of {model.level}",
            where=f"--init {init}",
            expected=f"{train.level}, as the searches",
            remedy="leave out --init, or make searches with that calculator",
        )
    refuse_unknown_elements(
        [*there[0], *there[1]], model.elements, where="--data", known_to=init or "the training split",
        remedy="leave out --init" if init else "train on some too",
    )  # fmt: skip
    return model


def correction_loss(model: nn.Module, item: Item, generator: torch.Generator) -> dict[str, Tensor]:
    """Error of the corrected geometry: RMSD after superposition, pair distances, likelihood of the variances.

    The terms and weights of :func:`molgen.tsgen.training.flow_loss`; half the batch sees the reaction reversed.
    """
    batch, x, gradient, guess, has_guess = item

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(x.device)

    batch = batch.swapped((torch.rand(len(batch), generator=generator) < 0.5).to(x.device))
    mask = batch.mask
    x = (x + JITTER * noise(x)) * mask[..., None]
    blurred = gradient * (1 + BLUR * noise(x[..., :1]))
    predicted, log_variance = model(x, blurred, guess, has_guess, batch)
    return geometry_losses(predicted, log_variance, batch)


def epoch(points: Points, batch_size: int, generator: torch.Generator) -> Iterator[Item]:
    """One point of every reaction, kinds by `WEIGHTS`; batches of similar sizes in random order."""
    # the point that rings first among exponential clocks with these rates
    rates = torch.tensor([WEIGHTS[kind] for kind in points.kind.tolist()])
    rings = -torch.rand(len(rates), generator=generator).clamp_min(1e-12).log() / rates
    bounds = points.offsets.tolist()
    chosen = torch.tensor([a + int(rings[a:b].argmin()) for a, b in pairwise(bounds)])
    for rows in rows_by_size(points.reactions, batch_size, generator):
        yield points.at(rows, chosen[rows])


@torch.no_grad()
def validation_figures(model: CorrectionModel, points: Points, batch_size: int = 64) -> dict[str, float]:
    """Errors after one gradient at the guess, and from the end of the search; "score" is the mean of their means."""
    figures = {}
    first = points.offsets[:-1]
    searched = torch.tensor([kind != "near" for kind in points.kind.tolist()]).long()
    count = torch.tensor([int(searched[a:b].sum()) for a, b in pairwise(points.offsets.tolist())])
    last, some = first + count - 1, (count > 0).cpu()  # a search that lost its guess has points near the truth only
    for name, index in (("guess", first), ("saddle", last)):
        before, after = [], []
        order = torch.argsort(points.reactions.mask.sum(1).cpu())
        for rows in order[some[order]].split(batch_size):
            batch, x, gradient, guess, _ = points.at(rows, index[rows])
            before.append(rmsd(x, batch.true_ts, batch.mask))
            after.append(rmsd(correct(model, batch, x, gradient, guess)[0], batch.true_ts, batch.mask))
        value = torch.cat(after)
        figures |= {f"val_{name}_before": float(torch.cat(before).median())}
        figures |= {f"val_{name}_median": float(value.median()), f"val_{name}_mean": float(value.mean())}
    return {"score": (figures["val_guess_mean"] + figures["val_saddle_mean"]) / 2, **figures}


def train_correction(
    model: CorrectionModel,
    train: Points,
    val: Points,
    directory: Path,
    *,
    level: str = "",
    budget_seconds: float | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
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
    model, train, val = model.to(device), train.to(device), val.to(device)
    counts = f"{len(train.reactions)} training ({len(train.x)} points) and {len(val.reactions)} validation reactions"
    log(f"{counts}, gradients of {train.level}")
    settings = TrainSettings(budget_seconds, steps, learning_rate=learning_rate, seed=seed)
    trainer = Trainer(
        model,
        correction_loss,
        lambda g: epoch(train, batch_size, g),
        lambda _: validation_figures(model, val),
        settings,
        directory,
        {"model": KIND, "config": model.config, "level": level, "atoms": seen_sizes(train.reactions)},
    )
    line = (
        "step {step}, {seconds:.0f} s: RMSD median / mean, A, after one gradient {val_guess_median:.3f} / "
        "{val_guess_mean:.3f} (guess: {val_guess_before:.3f}), from the saddle {val_saddle_median:.3f} / "
        "{val_saddle_mean:.3f} (saddle: {val_saddle_before:.3f})"
    )
    return trainer.run_logged(line, log, resume)
