"""`molgen ts`: a verified transition state between two structures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.cli.ts_report import beside, more_effort, report, saddles_of
from molgen.errors import InputError
from molgen.files import read_summary
from molgen.words import counted

_CODES = {"ok": common.ExitCode.OK, "partial": common.ExitCode.PARTIAL, "gate_failed": common.ExitCode.GATE_FAILED}


def register(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""
    app.command(name="ts")(ts)


def ts(
    reactant: Annotated[
        str | None, typer.Argument(help="Reactant: xyz, extxyz, pdb, sdf, ... Several files: a.xyz,b.xyz.")
    ] = None,
    product: Annotated[str | None, typer.Argument(help="Product, likewise, in any atom order and orientation.")] = None,
    smiles: Annotated[
        str | None, typer.Option("--smiles", help='Reaction SMILES in place of files: "reactant>>product".')
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Many reactions, one a line: a SMILES or two files, then a name (see below)."),
    ] = None,
    charge: Annotated[
        int | None, typer.Option("--charge", help="Total charge; default: what the input says, else 0.")
    ] = None,
    spin: Annotated[int | None, typer.Option("--spin", help="Unpaired electrons; default: as few as possible.")] = None,
    samples: Annotated[int, typer.Option("-n", "--samples", help="Number of guesses drawn from the model.")] = 8,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Refine guesses to saddles of --calculator.")
    ] = True,
    calculator: common.Calculator = "gfn2",
    calculator_kwargs: common.CalculatorKwargs = None,
    solvent: common.Solvent = None,
    temperature: Annotated[
        float | None,
        typer.Option("-T", "--temperature", help="K: also compute Gibbs energies and rates, from normal modes."),
    ] = None,
    verify: Annotated[str, typer.Option("--verify", help="quick (modes and descents), irc or none.")] = "quick",
    max_calls: Annotated[
        int | None,
        typer.Option(
            "--max-calls", min=1, help="Gradient calls of one refinement; default: 100, more from 22 atoms on."
        ),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="Start no further guess after 90s, 30m, ...")
    ] = None,
    follow: Annotated[
        int,
        typer.Option("--follow", min=0, help="Where one step of several is found: how often to search on."),
    ] = 2,
    lower: Annotated[
        bool,
        typer.Option(
            "--lower/--no-lower", help="Once a saddle is proven, look for lower ones, and for lower conformers."
        ),
    ] = True,
    map_atoms: Annotated[bool, typer.Option("--map/--no-map", help="Map the atoms when the two orders differ.")] = True,
    weights: Annotated[str, typer.Option("--weights", help="Shipped weights or checkpoint folder.")] = "tsgen",
    correction: Annotated[
        str,
        typer.Option("--correction", help="Weights that predict the saddle at their training set's level, or none."),
    ] = "tsgen-gfn2",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Flow steps; default: those of the weights.")
    ] = None,
    out: common.Out = Path("molgen-ts"),
    overwrite: common.Overwrite = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="With --file: processes; default: one a core.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="With --file: continue an earlier run in OUT.")] = False,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "float32",
    as_json: common.Json = False,
) -> None:
    """Transition state between REACTANT and PRODUCT: guessed, refined, verified.

    Writes to OUT: ts.xyz (ranked), guesses.xyz, path.xyz, barrier.png, modes.molden, reactant.xyz, product.xyz (and
    *_lowest.xyz, conformers lower than the wells) and summary.json. Where --correction applies, also ts_corrected.xyz:
    where the saddle (or the guess, if none was proven) is expected at the level of the training set. For several steps,
    also mechanism.xyz and mechanism.png.

    Exit code 0: verified. 3: no saddle, and no series of steps, was proven to join the two (with --verify none: no
    saddle was found). 4: verified, but the calculator failed on some guesses.

    --file: each line is a reaction SMILES, or the files of reactant and product, and a name if you like. Each reaction
    has a folder of its own within OUT, and a line in OUT/reactions.csv; --workers are at work at once. Exit code 4: one
    was refused or failed, or lost guesses to the calculator.
    """
    from molgen.saddle import calls_allowed
    from molgen.workflows.ts import find_ts
    from molgen.workflows.ts_many import side_of

    kwargs = common.calculator_kwargs(calculator_kwargs)
    seconds = common.seconds_of(time_budget) if time_budget else None
    options = {
        "charge": charge, "spin": spin, "samples": samples, "refine": refine, "calculator": calculator,
        "calculator_kwargs": kwargs, "solvent": solvent, "temperature": temperature, "verify": verify,
        "max_calls": max_calls, "time_budget": seconds, "follow": follow, "lower": lower, "weights": weights,
        "correction": correction, "steps": steps, "map_atoms": map_atoms, "seed": seed,
        "device": str(common.resolve_device(device)), "dtype": common.resolve_dtype(dtype),
    }  # fmt: skip
    if file is not None:
        _refuse(given_beside={"REACTANT": reactant, "--smiles": smiles})
        raise typer.Exit(_CODES[_many(file, out, options, workers, overwrite, resume, as_json)])
    _refuse(without_file={"--workers": workers, "--resume": resume or None})
    with common.stages("guessing") as progress:
        sides = (None if side is None else side_of(side) for side in (reactant, product))
        result = find_ts(
            *sides, smiles=smiles, out=out, overwrite=overwrite, log=common.log, progress=progress, **options
        )
    if as_json:
        common.print_json(read_summary(out))
    else:
        typer.echo(report(result, out))
    for saddle in saddles_of(result):
        if saddle.stereo:
            common.warn(f"{saddle.stereo}: the barrier is that of this path, not between the isomers given")
    for side, other in result.unstable.items():
        so = "The barrier is from there" if result.status != "gate_failed" else "There may be no saddle to find"
        common.warn(
            f"the {side} is no minimum of this calculator: relaxed, it becomes {other}. {so}: try another --calculator"
        )
    if result.barrierless_kcal is not None and result.status == "gate_failed":
        other = {"reactant": "product", "product": "reactant"}[result.barrierless_side]
        common.warn(
            "no saddle was proven, and with this calculator there may be none: drawn apart along the bonds that "
            f"change, the pieces of the {result.barrierless_side} become the {other} without a barrier, "
            f"{result.barrierless_kcal:.1f} kcal/mol down"
        )
    elif result.status == "gate_failed" and not result.unstable:
        on = beside(result, out, calculator, solvent, kwargs)
        limit = max_calls or calls_allowed(len(result.reaction))
        none = "no saddle was found" if verify == "none" else "no saddle was proven to join the two"
        common.warn(
            f"{none}. The reaction may take several steps{on}, or this calculator "
            f"has no such saddle: try more --samples or another --calculator{more_effort(result, limit)}"
        )
    raise typer.Exit(_CODES[result.status])


def _many(
    file: Path, out: Path, options: dict[str, Any], workers: int | None, overwrite: bool, resume: bool, as_json: bool
) -> str:
    """Search all reactions of a list; the status."""
    from molgen.run import Run
    from molgen.workflows.ts_many import TABLE, read_entries, search_all

    entries = read_entries(file)
    settings = {name: str(value) if name == "dtype" else value for name, value in options.items() if name != "device"}
    read = [str(file), *(path for entry in entries for path in entry.files)]
    asked = {"seed": options["seed"], "device": options["device"], "reads": read}
    with Run(out, "ts --file", settings, overwrite=overwrite, resume=resume, **asked) as run:
        with common.live_line() as say:
            status = search_all(entries, run, options=options, workers=workers, log=common.log, progress=say)
        summary = run.finish(status)
    if as_json:
        common.print_json(summary)
        return status
    typer.echo(
        f"{summary['proven']} of {counted(summary['reactions'], 'reaction')} proven, "
        f"{summary['energy_calls']} gradient calls"
    )
    for outcome, count in sorted(summary["validity"].items()):
        typer.echo(f"{count:6}  {outcome.replace('_', ' ')}")
    typer.echo(f"all of them: {out / TABLE}")
    return status


def _refuse(given_beside: Mapping[str, Any] | None = None, without_file: Mapping[str, Any] | None = None) -> None:
    """Refuse options that go with --file alone, or not with it.

    Raises:
        InputError: names the first that is given.
    """
    for name, value in (given_beside or without_file or {}).items():
        if value is not None:
            raise InputError(
                "given beside --file, which names the reactions" if given_beside else "has no meaning without --file",
                where=name, remedy="leave it out",
            )  # fmt: skip
