"""`molgen train ts`: train a transition-state generator, by wall-clock budget, resumable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.errors import InputError

app = typer.Typer(help="Train a model.", no_args_is_help=True)
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def register(parent: typer.Typer) -> None:
    """Add the subcommand to `parent`."""
    parent.add_typer(app, name="train")


@app.callback()
def _group() -> None:
    """Train a model."""


def seconds_of(text: str) -> float:
    """Seconds of "90s", "30m", "2h", "1h30m" or a plain number of seconds.

    Raises:
        InputError: not a duration.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        raise InputError(f"{text!r} is not a duration", where="--time-budget", expected="such as 90s, 30m, 2h or 1h30m")
    total = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if total <= 0:
        raise InputError("no time to train in", where="--time-budget", expected="a positive duration, such as 2h")
    return total


@app.command("ts")
def train_ts(
    data: Annotated[Path, typer.Option("--data", help="npz of reactions, or RDB7, Transition1x, RGD1 as published.")],
    out: common.Out = Path("runs/train-ts"),
    config: Annotated[str, typer.Option("--config", help="Size of the model: small or base.")] = "small",
    time_budget: Annotated[str, typer.Option("--time-budget", help="Training time, such as 30m or 2h.")] = "2h",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Train by steps instead of by time.")] = None,
    init: Annotated[str | None, typer.Option("--init", help="Start from these weights (name or folder).")] = None,
    train_split: Annotated[str, typer.Option("--train-split")] = "train",
    val_split: Annotated[str, typer.Option("--val-split", help="Selects the weights that are kept.")] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 2e-3,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Train TS-GEN on reactions with known transition states; the best weights by validation end up in OUT/best."""
    from molgen.run import Run
    from molgen.tsgen.training import load_training_data, make_model, train_tsgen

    budget = None if steps else seconds_of(time_budget)
    settings: dict[str, Any] = {
        "data": str(data), "config": config, "init": init, "train_split": train_split, "val_split": val_split,
        "batch_size": batch_size, "learning_rate": learning_rate, "steps": steps,
    }  # fmt: skip
    torch_device = common.resolve_device(device)
    train, val = load_training_data(data, train_split, val_split, seed)
    model = make_model(train, val, config=config, init=init, seed=seed)
    with Run(out, "train ts", settings, seed=seed, device=str(torch_device), overwrite=overwrite, resume=resume) as run:
        for name in ("state", "best", "log.jsonl"):
            run.path(name)
        figures = train_tsgen(
            model, train, val, run.directory, budget_seconds=budget, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed, device=torch_device, resume=run.resumed, log=common.log,
        )  # fmt: skip
        summary = run.finish("ok", results=[figures])
    if as_json:
        common.print_json(summary)
    else:
        best = figures["best_score"]
        typer.echo(f"best validation RMSD (mean) {best:.3f} A after {figures['step']} steps: {run.directory / 'best'}")
        typer.echo(f"use it: molgen ts R.xyz P.xyz --weights {run.directory / 'best'}")
