"""How TS-GEN is trained: batches of alike sizes, points on the straight path, the loss."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from molgen.data.duplicates import among
from molgen.data.geometries import check_geometries
from molgen.data.importers import import_reactions
from molgen.data.reactions import Reaction, load_npz
from molgen.errors import InputError
from molgen.flow.interpolant import straight_path
from molgen.geometry.align import rmsd
from molgen.rng import generator, sample_seed
from molgen.train.graphs import GraphedNetwork
from molgen.train.loop import Trainer, TrainSettings
from molgen.tsgen.condition import ReactionBatch, prepare, refuse_unknown_elements
from molgen.tsgen.ensemble import TSEnsemble, networks_of
from molgen.tsgen.generate import SIGMA, flow_samples
from molgen.tsgen.losses import aligned_rmsd_loss, log_variance_loss, pair_distance_loss
from molgen.tsgen.model import CONFIGS, TSModel
from molgen.tsgen.weights import load_model
from molgen.words import counted

VAL_SHARE_OPTION = "--val-share 0.1 (a tenth of the training reactions, drawn at random)"  # what a message offers
# a TSModel, or what stands in for it
Network = Callable[[Tensor, Tensor, ReactionBatch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FlowSettings:
    """The path of the flow and the noise of training.

    Attributes:
        sigma: width of the prior around the sqrt-distance guess, Angstrom.
        end_noise: Gaussian noise on reactant and product in training, Angstrom (regularises).
        batch_size: reactions a step.
    """

    sigma: float = SIGMA
    end_noise: float = 0.02
    batch_size: int = 64


def rows_by_size(data: ReactionBatch, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch: rows (at most `batch_size`,) of reactions of similar sizes (little padding), in random order."""
    sizes = data.mask.sum(1).cpu()
    key = sizes + torch.rand(len(data), generator=generator) * 1.5
    chunks = torch.argsort(key).split(batch_size)
    for k in torch.randperm(len(chunks), generator=generator).tolist():
        yield chunks[k]


class FlatNetwork(nn.Module):
    """A TS-GEN network that reads tensors alone, in the order of :meth:`inputs`."""

    def __init__(self, model: TSModel):
        super().__init__()
        self.model = model

    @staticmethod
    def inputs(x_t: Tensor, t: Tensor, batch: ReactionBatch) -> tuple[Tensor, ...]:
        """What `forward` reads of the inputs of :class:`TSModel`."""
        level = batch.numbers.new_zeros(len(batch)) if batch.level is None else batch.level
        return x_t, t, batch.numbers, batch.reactant, batch.product, batch.r_frag, batch.p_frag, batch.hops, level

    def forward(self, x_t: Tensor, t: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        numbers, reactant, product, r_frag, p_frag, hops, level = given
        batch = ReactionBatch(numbers, x_t, reactant, product, r_frag, p_frag, hops, level=level)
        return self.model(x_t, t, batch)


def graphed(model: TSModel) -> Network:
    """The network on CUDA, a graph for each shape; for :func:`flow_loss` in place of the network itself."""
    network = GraphedNetwork(FlatNetwork(model))

    def forward(x_t: Tensor, t: Tensor, batch: ReactionBatch) -> tuple[Tensor, Tensor]:
        end, log_variance = network(*FlatNetwork.inputs(x_t, t, batch))
        return end, log_variance

    return forward


def flow_loss(
    networks: Sequence[Network], batch: ReactionBatch, generator: torch.Generator, flow: FlowSettings
) -> dict[str, Tensor]:
    """Conditional flow matching with endpoint prediction (Lipman 2023; TS-GEN, arXiv 2507.10530, with another prior).

    x_0 = sqrt-distance guess + sigma noise, x_t = (1 - t) x_0 + t x_1. The loss compares end points: RMSD after
    superposition, pair distances (reacting and short ones weigh more), and the likelihood of the predicted variances.
    Half the batch sees reactant and product exchanged; reflections need no augmentation, the network is equivariant.
    Of several networks, which learn side by side, the mean.
    """
    device = batch.guess.device
    b, n = batch.numbers.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    batch = batch.swapped((torch.rand(b, generator=generator) < 0.5).to(device))
    mask = batch.mask
    m = mask[..., None]
    noisy = replace(
        batch,
        reactant=(batch.reactant + flow.end_noise * draw(b, n, 3)) * m,
        product=(batch.product + flow.end_noise * draw(b, n, 3)) * m,
    )
    # most of the work is at the start of the path, where the guess is worst
    t = torch.rand(b, generator=generator).to(device) ** 2
    x_0 = (batch.guess + flow.sigma * draw(b, n, 3)) * m
    x_t = straight_path(x_0, batch.true_ts, t)
    parts = [geometry_losses(*network(x_t, t, noisy), batch) for network in networks]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def geometry_losses(predicted: Tensor, log_variance: Tensor, batch: ReactionBatch) -> dict[str, Tensor]:
    """Errors of predicted transition states (B, N, 3) with log-variances (B, N): "loss" and its terms, batch means."""
    deviation, square = aligned_rmsd_loss(predicted, batch.true_ts, batch.mask)
    pair = pair_distance_loss(predicted, batch.true_ts, pair_weights(batch))
    nll = log_variance_loss(square, log_variance, batch.mask)
    loss = (deviation + 0.5 * pair + 0.01 * nll).mean()
    return {"loss": loss, "rmsd": deviation.mean(), "pair": pair.mean(), "nll": nll.mean()}


def pair_weights(batch: ReactionBatch) -> Tensor:
    """(B, N, N) weights 1 + 2 |d_R - d_P| of the real pairs, doubled below 2 A in the transition state."""
    n = batch.numbers.shape[1]
    same_r, same_p = batch.same_fragment
    change = (torch.cdist(batch.reactant, batch.reactant) - torch.cdist(batch.product, batch.product)).abs()
    weight = 1 + 2 * torch.where(same_r & same_p, change, 0.5).clamp(max=2.0)
    weight = weight * torch.where(torch.cdist(batch.true_ts, batch.true_ts) < 2.0, 2.0, 1.0)
    pair = batch.mask[:, :, None] & batch.mask[:, None, :]
    return weight * (pair & ~torch.eye(n, dtype=torch.bool, device=weight.device))


def seen_sizes(batch: ReactionBatch) -> list[int]:
    """Fewest and most atoms, but for a thousandth of the reactions each: what weights can claim to know."""
    sizes = batch.mask.sum(1).float()
    return sizes.quantile(torch.tensor([0.001, 0.999], device=sizes.device)).int().tolist()


@torch.no_grad()
def validation_figures(model: TSModel | TSEnsemble, data: ReactionBatch, batch_size: int = 64) -> dict[str, float]:
    """One-step error from the noiseless guess, averaged over both directions; "score" is the mean RMSD."""
    values = []
    for index in torch.argsort(data.mask.sum(1)).split(batch_size):
        batch = data.select(index)
        predicted, _ = flow_samples(model, batch, torch.zeros_like(batch.guess), steps=1)
        values.append(rmsd(predicted, batch.true_ts, batch.mask))
    value = torch.cat(values)
    mean, median = float(value.mean()), float(value.median())
    return {"score": mean, "val_rmsd_mean": mean, "val_rmsd_median": median}


def load_training_data(
    path: Path,
    train_split: str = "train",
    val_split: str = "val",
    seed: int = 0,
    more: Sequence[Path] = (),
    warn: Callable[[str], None] = lambda message: None,
    val_share: float | None = None,
) -> tuple[list[Reaction], list[Reaction]]:
    """Training and validation reactions: the splits of an npz, or of a published set a random twentieth for validation.

    Rows that an npz marks as not verified (failures of `molgen data reactions --relevel`) are left out, and so are,
    told to `warn`, training reactions that validation or an earlier file has too.

    Args:
        more: files to train on as well, published sets whole.
        val_share: of the training reactions of `path` (of all, in a published set), to validate by, drawn at random in
            place of `val_split`.

    Raises:
        InputError: no such file or split, too few reactions to draw from, or one without its transition state.
    """
    of_npz = Path(path).suffix.lower() == ".npz"
    if not of_npz and (train_split, val_split) != ("train", "val"):
        raise InputError(
            f"{train_split} and {val_split} given for a published set, which has no splits", where="--train-split",
            expected="an npz", remedy="leave them out: a twentieth drawn at random validates",
        )  # fmt: skip
    train = _training_reactions(path, train_split, warn)
    if of_npz and val_share is None:
        val = _validation_reactions(path, val_split, len(train))
    else:
        train, val = _drawn(path, train, 0.05 if val_share is None else val_share, seed)
    _check_transition_states(val, path, warn)
    for extra in more:
        found = _training_reactions(extra, train_split, warn)
        new = [reaction for reaction, old in zip(found, among(found, train), strict=True) if not old]
        if len(new) < len(found):
            again = counted(len(found) - len(new), "training reaction")
            warn(f"{again} of {extra} also in an earlier --data, counted once")
        train += new
    kept = [reaction for reaction, held_out in zip(train, among(train, val), strict=True) if not held_out]
    if not kept:
        raise InputError(
            "all training reactions are validation reactions too", where=str(path), expected="others to validate by",
            remedy=f"give another --val-split, or {VAL_SHARE_OPTION} in place of it",
        )  # fmt: skip
    if len(kept) < len(train):
        warn(f"{counted(len(train) - len(kept), 'training reaction')} left out, as validation has the same")
    return kept, val


def _training_reactions(path: Path, split: str, warn: Callable[[str], None]) -> list[Reaction]:
    """Reactions of a split of an npz, or all of a published set, each with a sound transition state."""
    of_npz = Path(path).suffix.lower() == ".npz"
    found = load_npz(path, split, verified=True) if of_npz else list(import_reactions(path))
    _check_transition_states(found, path, warn)
    return found


def _validation_reactions(path: Path, split: str, training: int) -> list[Reaction]:
    """Reactions of the validation split of an npz that has `training` reactions to learn from."""
    try:
        return load_npz(path, split, verified=True)
    except InputError as error:
        more = f"add {VAL_SHARE_OPTION}" if training > 1 else "make more reactions (molgen data reactions ... --resume)"
        remedy = f"{more}, or a set that has both splits first: --data OTHER.npz --data {shlex.quote(str(path))}"
        raise InputError(
            error.what, where=error.where, expected=f"{error.expected} (--val-split)", remedy=remedy
        ) from error


def _drawn(path: Path, reactions: Sequence[Reaction], share: float, seed: int) -> tuple[list[Reaction], list[Reaction]]:
    """Training reactions and a random `share`, one at least, to validate by."""
    if len(reactions) < 2:
        raise InputError(
            f"{counted(len(reactions), 'reaction')} to learn from and to validate by", where=str(path),
            expected="2 at least", remedy="make more reactions (molgen data reactions ... --resume)",
        )  # fmt: skip
    order = generator(seed, len(reactions)).permutation(len(reactions))
    held = min(max(1, int(share * len(reactions) + 1e-9)), len(reactions) - 1)
    return [reactions[k] for k in order[held:]], [reactions[k] for k in order[:held]]


def _check_transition_states(reactions: Sequence[Reaction], path: Path, warn: Callable[[str], None]) -> None:
    """Refuse reactions without one, and see :func:`check_geometries`."""
    for reaction in reactions:
        if reaction.ts is None:
            raise InputError(
                "no transition state to learn from", where=f"{path}, reaction {reaction.name}", remedy="remove it"
            )
    check_geometries(reactions, path, warn)


def make_model(
    train: Sequence[Reaction],
    val: Sequence[Reaction] = (),
    *,
    config: str | None = None,
    init: str | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> TSModel | TSEnsemble:
    """The model to train: of size `config` (default "small") for the elements of `train`, or the weights `init`.

    Of several levels in `train` the model is told which; that of `val` comes first.

    Raises:
        InputError: no such size, a size or dropout beside `init`, or an element of the data that the model cannot know.
        CheckpointError: bad `init`.
    """
    for option, value in (("--config", config), ("--dropout", dropout)):
        if value is not None and init is not None:
            raise InputError(
                f"{value} given beside --init {init}",
                where=option,
                expected="one or the other: weights keep the size and the dropout they have",
            )
    dropout = 0.05 if dropout is None else dropout
    config = config or "small"
    if config not in CONFIGS:
        raise InputError(f"no model size {config!r}", where="--config", expected=" or ".join(CONFIGS))
    torch.manual_seed(sample_seed(seed))
    if init is None:
        levels = list(dict.fromkeys(r.level for r in (*val, *train)))
        elements = sorted({int(z) for r in train for z in r.numbers})
        model = TSModel(elements, levels=levels if len(levels) > 1 else (), dropout=dropout, **CONFIGS[config])
    else:
        model = load_model(init).model
    for reaction in (*train, *val):
        refuse_unknown_elements(
            reaction.numbers.tolist(), model.elements, where=f"reaction {reaction.name}",
            known_to="the training split" if init is None else init,
            remedy="train on some too" if init is None else "leave out --init",
        )  # fmt: skip
    return model


def _sizes(batches: ReactionBatch, init: str | None) -> list[int]:
    """Fewest and most atoms that were learned from, by the weights a training began with, too."""
    known = [seen_sizes(batches)]
    if init is not None:
        known += [load_model(init).config.get("atoms") or known[0]]
    return [min(low for low, _ in known), max(high for _, high in known)]


def _level(train: Sequence[Reaction], batches: ReactionBatch, levels: Sequence[str]) -> str:
    """The level that guesses of the trained weights are of: of those learned from the first that the network knows; ""
    if unknown."""
    if batches.level is not None:
        return levels[int(batches.level.min())]
    seen = {reaction.level for reaction in train}
    return seen.pop() if len(seen) == 1 else ""


def train_tsgen(
    model: TSModel | TSEnsemble,
    train: Sequence[Reaction],
    val: Sequence[Reaction],
    directory: Path,
    *,
    budget_seconds: float | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    resume: bool = False,
    init: str | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train TS-GEN; the best weights by validation go to `directory/best`, the figures of every step to `log.jsonl`.

    Args:
        model: see :func:`make_model`; trained in place. train, val: reactions, see :func:`load_training_data`.
        budget_seconds, steps: one of the two, see :class:`molgen.train.loop.TrainSettings`.
        init: name of the weights that `model` begins from; their validation is told before training.

    Returns:
        the last validation figures, `best_score` and `best_step`, `step` and `elapsed` seconds; `without_gain`, None or
        a text: the best is no better than `init`, or without one than the sqrt-distance guess.
    """
    torch.set_flush_denormal(True)  # Adam's moments of dead inputs decay into denormals, which are slow
    model = model.to(device)
    parameters = sum(p.numel() for p in model.parameters())
    log(f"{len(train)} training and {len(val)} validation reactions, {parameters:,} parameters")
    batches, held = (prepare(part, model.levels).to(device) for part in (train, val))
    plain = rmsd(held.guess, held.true_ts, held.mask)
    log(f"sqrt-distance guess, no model: validation RMSD median {plain.median():.3f}, mean {plain.mean():.3f} A")
    name, score = "the sqrt-distance guess, which needs no weights", float(plain.mean())
    if init is not None:
        at_first = validation_figures(model.eval(), held)  # before a resumed run puts its own weights in
        name, score = init, at_first["score"]
        if not resume:
            log(f"{init}: validation RMSD median {at_first['val_rmsd_median']:.3f}, mean {at_first['score']:.3f} A")
    flow = FlowSettings(batch_size=batch_size)
    on_gpu = torch.device(device).type == "cuda"
    networks = [graphed(network) if on_gpu else network for network in networks_of(model)]
    multiple = 2 if on_gpu else 1  # few shapes, few graphs
    settings = TrainSettings(budget_seconds, steps, learning_rate=learning_rate, seed=seed)
    trainer = Trainer(
        model,
        lambda _, batch, g: flow_loss(networks, batch, g, flow),
        lambda g: (batches.select(rows, multiple) for rows in rows_by_size(batches, batch_size, g)),
        lambda _: validation_figures(model, held),
        settings,
        directory,
        {
            "model": "tsgen", "config": model.config, "flow": asdict(flow), "atoms": _sizes(batches, init),
            "level": _level(train, batches, model.levels),
        },
    )  # fmt: skip
    line = "step {step}, {seconds:.0f} s: validation RMSD median {val_rmsd_median:.3f}, mean {val_rmsd_mean:.3f} A"
    figures = trainer.run_logged(line, log, resume)
    best = figures["best_score"]
    told = f"mean validation RMSD {best:.4f} A, {score:.4f} A by {name}, of the validation reactions ({len(val)})"
    return {**figures, "without_gain": told if best >= score else None}
