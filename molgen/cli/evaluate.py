"""`molgen evaluate ts`: the metric table on any file of reactions with known transition states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from molgen.cli import common

app = typer.Typer(help="Measure a model against known answers.", no_args_is_help=True)
_COLUMNS = (
    ("rmsd_median", "RMSD median, A"),
    ("rmsd_mean", "RMSD mean, A"),
    ("rmsd_reflect_median", "mirror allowed, median, A"),
    ("dmae_mean", "D-MAE mean, A"),
    ("wrong_handedness", "wrong handedness"),
    ("wrong_determined", "  where the ends determine it"),
)


def register(parent: typer.Typer) -> None:
    """Add the subcommand to `parent`."""
    parent.add_typer(app, name="evaluate")


@app.callback()
def _group() -> None:
    """Measure a model against known answers."""


@app.command("ts")
def evaluate_ts(
    data: Annotated[Path, typer.Option("--data", help="npz of reactions, as `molgen.data.reactions` describes.")],
    split: Annotated[str | None, typer.Option("--split", help="Only this split; default all reactions.")] = None,
    weights: Annotated[str, typer.Option("--weights", help="Shipped weights or checkpoint folder.")] = "tsgen",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Flow steps; default the weights' own.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    single_product: Annotated[bool, typer.Option("--single-product", help="Only products of one fragment.")] = False,
    device: common.Device = "auto",
    dtype: common.Dtype = "float32",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """RMSD, D-MAE and handedness of one guess a reaction, beside guesses that need no learning.

    RMSD by proper rotation, atoms in the given order, 1/N, nothing clipped.
    """
    from molgen.data.reactions import load_npz
    from molgen.tsgen import load_model
    from molgen.tsgen.evaluate import evaluate

    reactions = load_npz(data, split)
    if single_product:
        reactions = [r for r in reactions if r.product_fragments.max() == 0]
    generator = load_model(weights, common.resolve_device(device), common.resolve_dtype(dtype))
    common.log(f"{len(reactions)} reactions, weights {generator.hash[:12]}")
    figures = evaluate(generator.model, reactions, steps=steps or generator.steps, batch_size=batch_size, seed=seed)
    if as_json:
        common.print_json({**figures, "checkpoint_hash": generator.hash})
        return
    rows = {"TS-GEN": figures, "sqrt-distance": figures["baselines"]["sqrt_distance"]}
    rows["midpoint"] = figures["baselines"]["midpoint"]
    width = max(len(title) for _, title in _COLUMNS)
    typer.echo(f"{'':{width}}" + "".join(f"{name:>15}" for name in rows))
    for key, title in _COLUMNS:
        shown = [f"{row[key]:.2%}" if key.startswith("wrong") else f"{row[key]:.3f}" for row in rows.values()]
        typer.echo(f"{title:{width}}" + "".join(f"{value:>15}" for value in shown))
    typer.echo(f"{figures['n']} reactions, {figures['seconds_per_guess'] * 1000:.0f} ms a guess (batch {batch_size})")
