"""`molgen evaluate ts`, `molgen evaluate prose`: tables against known transition states and molecular dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.errors import InputError
from molgen.files import digest
from molgen.words import counted

app = typer.Typer(help="Measure a model against known answers.", no_args_is_help=True)
_COLUMNS = (
    ("rmsd_median", "RMSD median, A"),
    ("rmsd_mean", "RMSD mean, A"),
    ("rmsd_reflect_median", "mirror allowed, median, A"),
    ("dmae_mean", "D-MAE mean, A"),
    ("wrong_handedness", "wrong handedness"),
    ("wrong_determined", "  where the ends determine it"),
)
_DISTANCES = (
    ("e_w2", "E-W2, kT"),
    ("t_w2", "T-W2, rad"),
    ("tica_w2", "TICA-W2"),
    ("js_bonds", "JS of psi, phi (bonds)"),
    ("js_residues", "JS of phi, psi (residues)"),
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
    split: Annotated[str | None, typer.Option("--split", help="Take only this split; default: all reactions.")] = None,
    weights: Annotated[str, typer.Option("--weights", help="Shipped weights or checkpoint folder.")] = "tsgen",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Flow steps; default: those of the weights.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Reactions per batch.")] = 32,
    single_product: Annotated[
        bool, typer.Option("--single-product", help="Take only reactions whose product is one molecule.")
    ] = False,
    device: common.Device = "auto",
    dtype: common.Dtype = "float32",
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """RMSD, D-MAE and handedness of one guess a reaction, beside guesses that need no learning.

    RMSD by proper rotation, atoms in the given order, 1/N, nothing clipped.
    """
    from molgen.data.geometries import check_geometries
    from molgen.data.reactions import load_npz
    from molgen.tsgen import load_model
    from molgen.tsgen.evaluate import evaluate

    reactions = load_npz(data, split, verified=True)
    if single_product and reactions:
        reactions = [r for r in reactions if r.product_fragments.max() == 0]
        if not reactions:
            raise InputError(
                "no reaction has a single product", where=str(data), expected="one at least",
                remedy="leave out --single-product, or choose another --split",
            )  # fmt: skip
    check_geometries(reactions, data, common.warn)
    generator = load_model(weights, common.resolve_device(device), common.resolve_dtype(dtype))
    common.log(f"{counted(len(reactions), 'reaction')}, weights {generator.hash[:12]}")
    figures = evaluate(
        generator.model, reactions, steps=steps or generator.steps, batch_size=batch_size, seed=seed, source=data
    )
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
    cost = f"{figures['seconds_per_guess'] * 1000:.0f} ms a guess (batch {batch_size})"
    typer.echo(f"{counted(figures['n'], 'reaction')}, {cost}")


@app.command("prose")
def evaluate_prose(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Molecular dynamics: a folder or npz files; may be repeated.")
    ] = None,
    sequences: Annotated[
        list[str] | None,
        typer.Option("--sequences", help="Take only these, such as AA or AA,GGY; default: all of --data."),
    ] = None,
    cap: Annotated[str, typer.Option("--cap", help="Ends of --sequences: none (charged) or ace-nme.")] = "none",
    samples: Annotated[int, typer.Option("-n", "--samples", min=2, help="Proposals per sequence.")] = 10_000,
    temperature: Annotated[float, typer.Option("-T", "--temperature", min=1, help="Temperature, K.")] = 310.0,
    weights: Annotated[str, typer.Option("--weights", help="Shipped weights or checkpoint folder.")] = "prose",
    workers: common.Workers = None,
    platform: Annotated[str, typer.Option("--platform", help="OpenMM platform: auto, Reference, CPU, CUDA.")] = "auto",
    points: Annotated[
        int,
        typer.Option(
            "--points", min=20, max=10_000, help="Frames in each optimal transport, which takes seconds to a minute."
        ),
    ] = 2500,
    out: common.Out = Path("runs/evaluate-prose"),
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    seed: common.Seed = 0,
    dtype: common.Dtype = "float32",
    as_json: common.Json = False,
) -> None:
    """Proposals, weights and reweighted ensembles of peptides beside their molecular dynamics, nothing dropped.

    ESS is Kish's, over all samples. Distances to the dynamics stand beside their floor, the distance between two halves
    of it (or between two runs, if two files hold the same peptide). Exit code 4 when a sequence could not be evaluated.
    """
    from molgen.potentials.openmm import require_platform
    from molgen.prose.weights import load_flow
    from molgen.run import METHOD, Run
    from molgen.workflows.draws import DRAWN
    from molgen.workflows.evaluate_prose import evaluate_prose, gather

    wanted = common.sequences_of(",".join(sequences)) if sequences else None
    require_platform(platform)
    cases = gather(data or [], wanted, cap)
    proposal = load_flow(weights, dtype=common.resolve_dtype(dtype))
    settings: dict[str, Any] = {
        "data": [str(path) for path in data or []], "data_sha256": digest(data or []),
        "sequences": [case.name for case in cases], "samples": samples, "temperature": temperature,
        "weights": proposal.hash, "points": points, "dtype": dtype, METHOD: DRAWN,
    }  # fmt: skip
    common.log(f"{counted(len(cases), 'sequence')}, weights {proposal.hash[:12]}")
    with (
        Run(out, "evaluate prose", settings, seed=seed, overwrite=overwrite, resume=resume) as run,
        common.stages("sampling") as progress,
    ):
        summary = evaluate_prose(
            cases, run, weights=proposal, samples=samples, temperature=temperature, seed=seed,
            workers=workers or "auto", platform=platform, points=points,
            report=lambda row: common.log(_sequence(row)), progress=progress,
        )  # fmt: skip
    if as_json:
        common.print_json(summary)
    else:
        typer.echo(_means(summary["means"]))
    raise typer.Exit(common.ExitCode.OK if summary["status"] == "ok" else common.ExitCode.PARTIAL)


def _sequence(row: dict[str, Any]) -> str:
    """The table of one sequence."""
    if "error" in row:
        return f"{row['sequence']}: failed: {row['error']}"
    w, valid, md = row["weights"], row["validity"], row["md"]
    cis = [_number(valid.get(key), ".2%") for key in ("cis_reweighted", "cis_proline_reweighted")]
    lines = [
        f"{row['sequence']}: {row['atoms']} atoms, {row['n']} samples at {row['temperature']:g} K: {w['verdict']}",
        f"  ESS {w['ess']:.4f}, smoothed {w['ess_psis']:.4f}; k-hat {_number(w['khat'], '.2f')} "
        f"(threshold {w['threshold']:.2f}); largest weight {w['max_weight']:.3f}",
        f"  finite energies {row['finite_energies']:.2%}; wrong chirality {valid['wrong_chirality']}, broken topology "
        f"{valid['broken_topology']}; proposals drawn again: {common.redrawn(row['redrawn'], row['proposals'])}",
        f"  cis peptide bonds {cis[0]}, before proline {cis[1]}",
    ]
    if md is not None:
        lines.append(
            f"  on {md['frames']} MD frames: NLL {_number(md['nll_per_dof'], '.4f')} a degree of freedom, forward ESS "
            f"{md['ess_forward']:.4f}, ln Z gap {_number(md['log_z_gap'], '+.3f')}, impossible {md['impossible']}"
        )
        mean, dynamics = row["energy"]["reweighted"], row["energy"]["md"]
        lines.append(
            f"  mean energy, kT: reweighted {_number(mean[0], '.2f')} +- {_number(mean[1], '.2f')}, "
            f"MD {dynamics[0]:.2f} +- {dynamics[1]:.2f}"
        )
    if row["metrics"] is not None:
        lines.append(f"  {'':26}{'raw':>12}{'reweighted':>12}{'MD floor':>12}")
        for key, title in _DISTANCES:
            values = (row["metrics"][key][view] for view in ("raw", "reweighted", "floor"))
            lines.append(f"  {title:26}" + "".join(f"{_number(value, '.4g'):>12}" for value in values))
    return "\n".join([*lines, *(f"  note: {note}" for note in row["notes"])])


def _means(means: dict[str, Any]) -> str:
    """The table of means, a line a length."""
    head = f"{'residues':>8}{'sequences':>10}{'ESS':>8}{'PSIS':>8}{'k-hat':>8}{'redrawn':>10}"
    lines = [head + "".join(f"{name + ' (floor)':>20}" for name in ("E-W2", "T-W2", "TICA-W2"))]
    for length, m in means.items():
        line = f"{length:>8}{m['sequences']:>10}{m['ess']:>8.3f}{m['ess_psis']:>8.3f}{_number(m['khat_max'], '.2f'):>8}"
        line += f"{sum(m['redrawn'].values()) / m['proposals']:>10.2%}"
        for key in ("e_w2", "t_w2", "tica_w2"):
            both = [_number(m[key][view], ".3g") for view in ("reweighted", "floor")]
            line += f"{f'{both[0]} ({both[1]})':>20}"
        lines.append(line)
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
