"""`molgen data`: reactions of any molecules, and dynamics of peptides (:mod:`molgen.cli.data_md`), to learn from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.cli.data_md import md
from molgen.errors import InputError
from molgen.words import counted

app = typer.Typer(help="Make data sets.", no_args_is_help=True)
Weights = Annotated[str, typer.Option("--weights", help="TS-GEN: shipped weights or checkpoint folder.")]


def register(parent: typer.Typer) -> None:
    """Add the subcommand to `parent`."""
    parent.add_typer(app, name="data")


@app.callback()
def _group() -> None:
    """Make data sets."""


app.command("md")(md)


@app.command("reactions")
def reactions(
    context: typer.Context,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Molecules: SMILES lists (.smi, .txt), structures (.xyz, .sdf), reaction sets (.npz)."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Stop after so many reactions.")] = None,
    attempts: Annotated[int | None, typer.Option("--attempts", min=1, help="Stop after so many attempts.")] = None,
    time_budget: common.TimeBudget = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Never make a reaction of this set: set.npz or set.npz:test; may be repeated."),
    ] = None,
    calculator: common.Calculator = "gfn2",
    calculator_kwargs: common.CalculatorKwargs = None,
    guess: Annotated[str, typer.Option("--guess", help="tsgen, sqrt (sqrt-distance), or both, at random.")] = "both",
    weights: Weights = "tsgen",
    relevel: Annotated[
        bool,
        typer.Option("--relevel", help="Instead, re-optimise the reactions of a set with --calculator (see above)."),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="With --relevel: train, val, test, several (train,val) or all; default: train,val."
        ),
    ] = None,
    charge: Annotated[
        int | None, typer.Option("--charge", help="Total charge of structure files that name none (.xyz); default: 0.")
    ] = None,
    spin: Annotated[int | None, typer.Option("--spin", help="Unpaired electrons; default: as few as possible.")] = None,
    workers: common.Workers = None,
    out: common.Out = Path("molgen-reactions"),
    seed: common.Seed = 0,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """New elementary reactions of SOURCES with verified transition states: OUT/reactions.npz, for `molgen train ts`.

    A run may be stopped at any time. --resume continues, with other limits if you like (--count, --attempts,
    --time-budget). --count alone also ends when nothing new is found any more. Exit code 3: nothing was found.

    If a source is a set with splits, molecules come from its training reactions only, and reactions of its other splits
    are never made.

    --relevel: instead of new reactions, re-optimise reactant, transition state and product of a set at another level,
    and judge them again. Rows keep their order; `index` is the row in the set. Failures are kept too, with their
    `verdict`; training uses the rows marked `verified`. --count then counts reactions of the set.
    """
    from molgen.data.exclusion import split_spec
    from molgen.run import Run
    from molgen.workflows.reactions import check_limits, find_reactions, plan_of

    seconds = common.seconds_of(time_budget) if time_budget else None
    kwargs = common.calculator_kwargs(calculator_kwargs)
    _refuse_options(context, relevel)
    if relevel:
        from molgen.workflows.relevel import level_plan

        plan = level_plan(sources or [], split=split, count=count, calculator=calculator, calculator_kwargs=kwargs)
        summary = _relevel(*plan, out, seconds=seconds, workers=workers, seed=seed, overwrite=overwrite, resume=resume)
        if as_json:
            common.print_json(summary)
        else:
            typer.echo(_verdicts(summary, out))
        if not summary["verified"]:
            common.warn("no reaction is verified at this level: nothing to train on or to judge by")
            raise typer.Exit(common.ExitCode.GATE_FAILED)
        return
    check_limits(attempts, count, seconds)
    plan, settings = plan_of(
        sources or [], exclude or [], calculator=calculator, calculator_kwargs=kwargs, guess=guess, weights=weights,
        charge=charge, spin=spin, seed=seed, log=common.log,
    )  # fmt: skip
    common.log(f"{counted(len(plan.molecules), 'molecule')}; {len(plan.excluded)} keys of excluded reactions")
    options: dict[str, Any] = {"seed": seed, "overwrite": overwrite, "resume": resume}
    with Run(out, "data reactions", settings, **options, reads=[split_spec(e)[0] for e in exclude or []]) as run:
        with common.live_line() as say:
            search = find_reactions(
                plan, run, attempts=attempts, count=count, seconds=seconds, workers=workers,
                progress=lambda search: say(search.line()),
            )  # fmt: skip
        summary = run.finish("ok" if len(search.found) else "gate_failed", **search.figures())
    if as_json:
        common.print_json(summary)
    else:
        typer.echo(_yield(summary, out))
    if search.exhausted:
        common.warn(
            f"ended after {search.idle} attempts in a row without a new reaction, at {len(search.found)} of {count}; "
            "give more molecules, or go on with --resume and --attempts or --time-budget"
        )
    if not len(search.found):
        known = search.found.outcomes["excluded"]
        common.warn(
            (f"no new reaction was found, and {known} of an excluded set: " if known else "no reaction was found: ")
            + "try more --attempts, other or larger molecules (those of a few atoms have next to none), "
            + ("fewer sets in --exclude, " if exclude and known else "")
            + "--guess both, or another --calculator"
        )
        raise typer.Exit(common.ExitCode.GATE_FAILED)


@app.command("searches")
def searches(
    source: Annotated[Path, typer.Argument(help="Set of reactions (.npz) with known transition states.")],
    split: Annotated[
        str | None, typer.Option("--split", help="train, val, several (train,val) or all; default: train,val.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, help="Take only so many reactions, at random.")] = None,
    time_budget: common.TimeBudget = None,
    calculator: common.Calculator = "gfn2",
    calculator_kwargs: common.CalculatorKwargs = None,
    weights: Weights = "tsgen",
    workers: common.Workers = None,
    out: common.Out = Path("molgen-searches"),
    seed: common.Seed = 0,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Saddle searches at a cheaper level towards the known transition states of a set: OUT/searches.npz.

    It keeps geometries and gradients on the way from a guess to that level's saddle. From these `molgen train
    correction` learns where the set's own transition state lies. A run may be stopped at any time; --resume continues
    it, to the same file.
    """
    from molgen.run import Run
    from molgen.workflows.searches import search_all, search_plan

    seconds = common.seconds_of(time_budget) if time_budget else None
    kwargs = common.calculator_kwargs(calculator_kwargs)
    plan, settings = search_plan(
        source, split=split, count=count, calculator=calculator, calculator_kwargs=kwargs, weights=weights, seed=seed
    )
    common.log(f"{counted(len(plan.reactions), 'reaction')} to search")
    with Run(out, "data searches", settings, seed=seed, overwrite=overwrite, resume=resume) as run:
        with common.live_line() as say:
            digest = settings["files"][str(source)]
            figures = search_all(plan, run, digest=digest, seconds=seconds, workers=workers, progress=say)
        summary = run.finish("ok", **figures)
    if as_json:
        common.print_json(summary)
        return
    done = max(summary["searches"], 1)
    typer.echo(
        f"{summary['searches']} of {counted(summary['asked'], 'search')}, {summary['seconds_per_search']:.2f} s each"
    )
    typer.echo(f"{summary['converged'] / done:6.1%}  converged")
    for reason, number in summary["rejections"].items():
        typer.echo(f"{number / done:6.1%}  {reason}")
    words = ["--data", str(source), "--searches", str(out / "searches.npz")]
    typer.echo(f"train on it: molgen train correction {shlex.join(words)}")


def _refuse_options(context: typer.Context, relevel: bool) -> None:
    """Refuse options that would do nothing with, or without, --relevel."""
    names = ("attempts", "exclude", "guess", "weights", "charge", "spin") if relevel else ("split",)
    for option in common.options_given(context, names):
        raise InputError(
            f"has no meaning {'with' if relevel else 'without'} --relevel",
            where=option,
            remedy="leave it out" if relevel else "give --relevel, or leave it out",
        )


def _relevel(plan: Any, settings: dict[str, Any], out: Path, *, seconds, workers, **options: Any) -> dict[str, Any]:
    """Re-optimise a set; the summary."""
    from molgen.run import Run
    from molgen.workflows.relevel import relevel

    common.log(f"{counted(len(plan.rows), 'reaction')} to re-optimise")
    with Run(out, "data reactions --relevel", settings, **options) as run:
        with common.live_line() as say:
            twin = relevel(plan, run, seconds=seconds, workers=workers, progress=lambda twin: say(twin.line()))
        return run.finish("ok" if twin.figures()["verified"] else "gate_failed", **twin.figures())


def _verdicts(summary: dict[str, Any], out: Path) -> str:
    """A run of --relevel in words."""
    done = max(summary["reactions"], 1)
    asked = counted(summary["asked"], "reaction")
    lines = [
        f"{summary['reactions']} of {asked}, {summary['seconds_per_reaction']:.2f} s each",
        f"{summary['verified'] / done:6.1%}  verified: {counted(summary['verified'], 'row')} to train and to judge by",
    ]
    for verdict, number in summary["verdicts"].items():
        lines.append(f"{number / done:6.1%}  {verdict}")
        unusable = summary["intended_not_verified"].items() if verdict == "intended" else ()
        lines += [f"{'':8}of these {count} not verified: {reason}" for reason, count in unusable]
    if summary["rmsd_median"] is not None:
        lines.append(f"median RMSD of verified transition states to the set's: {summary['rmsd_median']:.3f} A")
    return "\n".join([*lines, *_training(out)])


def _yield(summary: dict[str, Any], out: Path) -> str:
    """The run in words: what was kept, how the attempts ended (shares of all, each in one line), what to do with it."""
    tried = max(summary["attempts"], 1)
    kept, of = counted(summary["kept"], "transition state"), counted(summary["reactions"], "reaction")
    lines = [
        f"{kept} of {of} from {counted(summary['attempts'], 'attempt')}, "
        f"{summary['per_worker_hour']:.0f} an hour and worker",
        f"{summary['kept'] / tried:6.1%}  verified and new ({summary['intended']} of {summary['kept']} as intended)",
    ]
    told = {"duplicate": "verified, but found before"}
    for reason, number in summary["rejections"].items():
        lines.append(f"{number / tried:6.1%}  {told.get(reason, reason)}")
    return "\n".join([*lines, *_training(out)])


def _training(out: Path) -> list[str]:
    """The command that trains on the set in `out`, where it has rows to learn from and rows to judge by: from the
    shipped weights, or where these do not know an element, anew."""
    from molgen.tsgen.training import load_training_data, make_model

    for init in ("tsgen", None):
        try:
            make_model(*load_training_data(out / "reactions.npz"), init=init)
        except InputError:
            continue
        words = ["--data", str(out / "reactions.npz"), *(["--init", init] if init else [])]
        return [f"train on it: molgen train ts {shlex.join(words)}"]
    return []
