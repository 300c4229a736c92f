"""`molgen train`: train a model, by wall-clock budget or by steps, resumable."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from molgen.cli import common
from molgen.errors import InputError
from molgen.files import digest

if TYPE_CHECKING:
    from molgen.run import Run

app = typer.Typer(help="Train a model.", no_args_is_help=True)
TrainingTime = Annotated[
    str | None, typer.Option("--time-budget", help="Training time, such as 30m; default: 2h, correction 1h.")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Train for so many steps, not for a time.")]
Init = Annotated[str | None, typer.Option("--init", help="Begin with these weights (name or folder).")]
TrainSplit = Annotated[str, typer.Option("--train-split", help="Split to learn from.")]
ValSplit = Annotated[str, typer.Option("--val-split", help="Validation split; it selects the weights that are kept.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Reactions per batch.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="Learning rate at its highest.")]


def _seconds(steps: int | None, time_budget: str | None, usual: str, learning_rate: float) -> float | None:
    """Seconds to train for, None to train by steps; checks what the trainer would refuse when the folder is made."""
    from molgen.train.loop import check_learning_rate

    check_learning_rate(learning_rate)
    if steps is not None and time_budget is not None:
        raise InputError(
            f"{time_budget} given beside --steps {steps}", where="--time-budget", expected="one of the two"
        )
    return None if steps is not None else common.seconds_of(time_budget or usual)


def register(parent: typer.Typer) -> None:
    """Add the subcommand to `parent`."""
    parent.add_typer(app, name="train")


@app.callback()
def _group() -> None:
    """Train a model."""


@app.command("ts")
def train_ts(
    context: typer.Context,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            help="npz of reactions, or RDB7, Transition1x, RGD1 as published; may be repeated: the first validates.",
        ),
    ],
    out: common.Out = Path("runs/train-ts"),
    config: Annotated[
        str | None, typer.Option("--config", help="Size of a new network: small or base; default: small.")
    ] = None,
    time_budget: TrainingTime = None,
    steps: Steps = None,
    init: Init = None,
    train_split: TrainSplit = "train",
    val_split: ValSplit = "val",
    val_share: Annotated[
        float | None,
        typer.Option(
            "--val-share",
            help="In place of --val-split: a random share of the training reactions; default for published sets: 0.05.",
        ),
    ] = None,
    batch_size: BatchSize = 64,
    dropout: Annotated[
        float | None, typer.Option("--dropout", min=0.0, max=0.9, help="Dropout of a new network; default: 0.05.")
    ] = None,
    learning_rate: LearningRate = 2e-3,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Train TS-GEN on reactions with known transition states; the best weights by validation end up in OUT/best."""
    from molgen.run import Run
    from molgen.tsgen.training import load_training_data, make_model, train_tsgen

    budget = _seconds(steps, time_budget, "2h", learning_rate)
    torch_device = common.resolve_device(device)
    if val_share is not None and common.options_given(context, ("val_split",)):
        raise InputError("given beside --val-split", where="--val-share", remedy="leave one of them out")
    if val_share is not None and not 0 < val_share < 1:
        raise InputError(f"{val_share:g} given", where="--val-share", expected="a share between 0 and 1, such as 0.1")
    train, val = load_training_data(data[0], train_split, val_split, seed, data[1:], common.warn, val_share)
    settings: dict[str, Any] = {
        "data": [str(path) for path in data], "data_sha256": digest(data), "init": init,
        "config": None if init else config or "small", "train_split": train_split, "val_split": val_split,
        "batch_size": batch_size, "learning_rate": learning_rate, "steps": steps, "dropout": dropout,
        **({} if val_share is None else {"val_share": val_share}),
    }  # fmt: skip
    model = make_model(train, val, config=config, init=init, dropout=dropout, seed=seed)

    def learn(run: Run) -> dict[str, Any]:
        return train_tsgen(
            model, train, val, run.directory, budget_seconds=budget, steps=steps, batch_size=batch_size, init=init,
            learning_rate=learning_rate, seed=seed, device=torch_device, resume=run.resumed, log=common.log,
        )  # fmt: skip

    with Run(out, "train ts", settings, seed=seed, device=str(torch_device), overwrite=overwrite, resume=resume) as run:
        summary = _carry_out(run, learn)
    _report(summary, run, as_json, _rmsd, None if _without_gain(summary, "reactions") else "ts R.xyz P.xyz")


@app.command("correction")
def train_correction(
    data: Annotated[Path, typer.Option("--data", help="npz of reactions.")],
    searches: Annotated[
        Path, typer.Option("--searches", help="searches.npz, made by `molgen data searches` from --data.")
    ],
    out: common.Out = Path("runs/train-correction"),
    init: Init = None,
    level: Annotated[
        str, typer.Option("--level", help="Level of theory of the data, to be named in corrected structures.")
    ] = "",
    time_budget: TrainingTime = None,
    steps: Steps = None,
    train_split: TrainSplit = "train",
    val_split: ValSplit = "val",
    batch_size: BatchSize = 64,
    learning_rate: LearningRate = 2e-3,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Train the correction from a cheaper level's geometries and gradients to the data's transition states."""
    from molgen.checkpoint import BEST
    from molgen.run import Run
    from molgen.tsgen.correction import correction_model, load_training_points
    from molgen.tsgen.correction import train_correction as run_training
    from molgen.tsgen.correction_model import load_correction

    budget = _seconds(steps, time_budget, "1h", learning_rate)
    torch_device = common.resolve_device(device)
    splits = train_split, val_split
    train, val = (load_training_points(data, searches, split, splits) for split in splits)
    settings: dict[str, Any] = {
        "data": str(data), "searches": str(searches), "data_sha256": digest([data, searches]), "init": init,
        "level": level, "train_split": train_split, "val_split": val_split, "batch_size": batch_size,
        "learning_rate": learning_rate, "steps": steps,
    }  # fmt: skip
    model = correction_model(train, val, init, seed)

    def learn(run: Run) -> dict[str, Any]:
        return run_training(
            model, train, val, run.directory, level=level, budget_seconds=budget, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed, device=torch_device, resume=run.resumed, log=common.log,
        )  # fmt: skip

    with Run(
        out, "train correction", settings, seed=seed, device=str(torch_device), overwrite=overwrite, resume=resume
    ) as run:
        summary = _carry_out(run, learn)
    without_gain = load_correction(run.directory / BEST).without_gain
    if without_gain:
        common.warn(
            f"the correction does not help ({without_gain}): train longer, or on more reactions; until then use none"
        )
    _report(summary, run, as_json, _rmsd, None if without_gain else "ts R.xyz P.xyz", "correction")


@app.command("prose")
def train_prose(
    data: Annotated[
        list[Path], typer.Option("--data", help="npz files of molgen data md, or a folder of them; may be repeated.")
    ],
    out: common.Out = Path("runs/train-prose"),
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="Leave out these sequences, and longer ones that contain them.")
    ] = None,
    val: Annotated[
        str, typer.Option("--val", help="Validation sequences, such as AY,PF; they select the weights that are kept.")
    ] = "",
    val_share: Annotated[
        float | None,
        typer.Option("--val-share", help="In place of --val: a random share of the sequences; default: 0.05."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", help="Size of a new flow: small or base; default: small.")
    ] = None,
    time_budget: TrainingTime = None,
    steps: Steps = None,
    init: Init = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", help="Deepen the trunk of --init to so many layers; new ones begin as identities."),
    ] = None,
    own: Annotated[
        Path | None,
        typer.Option("--own", help="File of sequences, one per line, to learn from the energies of samples of --init."),
    ] = None,
    own_samples: Annotated[
        int | None, typer.Option("--own-samples", min=2, help="Samples of each sequence of --own; default: 256.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch-size", min=2, help="Frames per sequence in a batch.")] = 32,
    sequences: Annotated[int, typer.Option("--sequences", min=1, help="Sequences per batch.")] = 2,
    learning_rate: LearningRate = 2e-3,
    seed: common.Seed = 0,
    device: common.FlowDevice = "auto",
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Train Prose on molecular dynamics of peptides; the best weights by validation end up in OUT/best."""
    import torch

    from molgen.prose.training import ProseLoss, check_training
    from molgen.prose.training import train_prose as run_training
    from molgen.prose.weights import deepened, load_flow, make_flow
    from molgen.rng import sample_seed
    from molgen.run import Run
    from molgen.workflows.train_prose import joined, load_own_data, load_training_data

    budget = _seconds(steps, time_budget, "2h", learning_rate)
    if own is not None and init is None:
        raise InputError("--own needs a flow to draw samples from", where="--init", expected="weights of Prose")
    if own is None and own_samples is not None:
        raise InputError("given without --own", where="--own-samples", remedy="leave it out, or give --own SEQUENCES")
    if val and val_share is not None:
        raise InputError("given beside --val, which names all", where="--val-share", remedy="leave one of them out")
    val_share = 0.05 if val_share is None else val_share
    if layers is not None and init is None:
        raise InputError("given without --init, whose weights it deepens", where="--layers", remedy="leave it out")
    if config is not None and init is not None:
        raise InputError(
            f"{config} given beside --init {init}", where="--config",
            expected="one or the other: weights keep the size they have",
        )  # fmt: skip
    own_samples = own_samples or 256
    torch_device = common.resolve_device(device)
    torch.manual_seed(sample_seed(seed))
    begun = None if init is None else load_flow(init)
    model = make_flow(config or "small") if begun is None else begun.model
    if layers is not None:
        model = deepened(model, layers)
    chosen = common.sequences_of(val)
    with common.progress() as bar:
        task = bar.add_task("files", total=None)
        found = load_training_data(
            data, exclude=exclude, val=chosen, val_share=val_share, seed=seed, log=common.log,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
        train = found.train
        if own is not None:
            only = {frames.layout.peptide.sequence for frames in found.val}  # chosen or drawn at random
            only -= {frames.layout.peptide.sequence for frames in train}
            train = train + load_own_data(
                model, own, own_samples, min(train[0].temperatures()), exclude=exclude, val=only, seed=seed,
                log=common.log,
                progress=lambda done, total: bar.update(task, description="samples", completed=done, total=total),
            )  # fmt: skip

    files = [*data, *(path for path in (exclude, own) if path is not None)]
    settings: dict[str, Any] = {
        "data": [str(path) for path in data], "data_sha256": digest(files), "exclude": exclude and str(exclude),
        "val": val, "val_share": val_share, "init": init, "config": None if init else config or "small", "batch": batch,
        "sequences": sequences, "learning_rate": learning_rate, "steps": steps, "own": own and str(own),
        "own_samples": own_samples, **({"layers": layers} if layers else {}),
    }  # fmt: skip
    train, loss = joined(train), ProseLoss(frames=batch, sequences=sequences)
    check_training(train, loss, torch_device)

    def learn(run: Run) -> dict[str, Any]:
        run.record(rejections={"excluded": len(found.excluded), "unusable": len(found.unusable)})
        return run_training(
            model, train, found.val, run.directory, budget_seconds=budget, steps=steps, seed=seed,
            learning_rate=learning_rate, loss=loss, device=torch_device, resume=run.resumed, log=common.log,
            begun=None if begun is None else (str(init), begun.config),
        )  # fmt: skip

    with Run(
        out, "train prose", settings, seed=seed, device=str(torch_device), overwrite=overwrite, resume=resume
    ) as run:
        summary = _carry_out(run, learn)
    use = None if _without_gain(summary, "frames") else "peptide AAGY"
    _report(summary, run, as_json, lambda score: f"forward ESS {1 - score:.3f}", use)


def _carry_out(run: Run, learn: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    from molgen.checkpoint import BEST, STATE

    for name in (STATE, BEST, "log.jsonl"):
        run.path(name)
    return run.finish("ok", results=[learn(run)])


def _without_gain(summary: dict[str, Any], what: str) -> bool:
    """Whether the best weights are no better than those the training began with, which is warned of."""
    told = summary["results"][0].get("without_gain")
    if told:
        common.warn(f"the training does not help ({told}): train longer, or on more {what}")
    return bool(told)


def _rmsd(score: float) -> str:
    return f"RMSD (mean) {score:.3f} A"


def _report(
    summary: dict[str, Any],
    run: Run,
    as_json: bool,
    told: Callable[[float], str],
    use: str | None,
    option: str = "weights",
) -> None:
    """The summary as JSON, or in words: the best validation, and the command that uses the weights."""
    from molgen.checkpoint import BEST

    if as_json:
        common.print_json(summary)
        return
    figures, best = summary["results"][0], str(run.directory / BEST)
    at = f"step {figures['best_step']} of {figures['step']}"
    typer.echo(f"best validation {told(figures['best_score'])}, at {at}: {best}")
    if use is not None:
        typer.echo(f"use it: molgen {use} --{option} {shlex.quote(best)}")
