"""`molgen fes`: a free-energy surface along collective variables, from energies alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from molgen.cli import common
from molgen.cli.fes_report import report
from molgen.cli.fes_toml import Options, merged
from molgen.errors import InputError

if TYPE_CHECKING:
    from molgen.variables import CV, Molecule

BESIDE_PRETRAINED = (
    "pretrained", "samples", "paths", "repair", "seed", "out", "overwrite", "resume", "units", "as_json", "config",
)  # fmt: skip

# options that one way to name the molecule makes meaningless: option -> (parameters, what counts instead)
DECIDED = {
    "from_ts": (
        ("xyz", "pdb", "cv", "range_", "charge", "spin", "calculator", "calculator_kwargs", "forcefield", "solvent",
         "platform"),
        "structures, calculator, charge, spin and collective variable from the ts run",
    ),
    "pdb": (
        ("charge", "spin", "calculator", "calculator_kwargs"),
        "energies from a force field: --forcefield, --solvent, --platform",
    ),
    "xyz": (("forcefield", "platform"), "energies from a calculator: --calculator, --solvent, --charge, --spin"),
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""
    app.command(name="fes")(fes)


def fes(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(help="TOML file with these options as keys. Options on the command line win.")
    ] = None,
    xyz: Annotated[
        list[Path] | None, typer.Option("--xyz", help="Structure; repeat it for each basin that you know.")
    ] = None,
    calculator: Annotated[
        str, typer.Option("--calculator", help="Energies of --xyz: gfn2, gfn1, or module:Class of an ASE calculator.")
    ] = "gfn2",
    calculator_kwargs: common.CalculatorKwargs = None,
    charge: Annotated[
        int | None, typer.Option("--charge", help="Total charge, for --xyz; default: what the files say, else 0.")
    ] = None,
    spin: Annotated[
        int | None, typer.Option("--spin", help="Unpaired electrons, for --xyz; default: as few as possible.")
    ] = None,
    pdb: Annotated[
        list[Path] | None, typer.Option("--pdb", help="In place of --xyz: PDB with all hydrogens; may be repeated.")
    ] = None,
    forcefield: Annotated[
        list[str] | None, typer.Option("--forcefield", help="OpenMM force field, for --pdb; may be repeated.")
    ] = None,
    from_ts: Annotated[
        Path | None, typer.Option("--from-ts", help="In place of --xyz and --cv: the folder of a molgen ts run.")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", help="Draw from a trained controller: ala2, sn2, or the folder of a run."),
    ] = None,
    solvent: Annotated[
        str | None,
        typer.Option("--solvent", help="Implicit solvent. --pdb: obc2 (default) or none; xTB: water, thf, ..."),
    ] = None,
    platform: Annotated[str, typer.Option("--platform", help="OpenMM platform: auto, Reference, CPU, CUDA.")] = "auto",
    cv: Annotated[
        list[str] | None,
        typer.Option(
            "--cv", help='One to three variables: "distance 0 4", "phi 1", "d = ..." (a sum). Numbers start at 0.'
        ),
    ] = None,
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range", help='For each --cv: "LOW HIGH" in A or degrees, or "auto" if it is periodic or walled.'
        ),
    ] = None,
    wall: Annotated[
        list[str] | None, typer.Option("--wall", help='Restrain a variable: "distance 0 4 < 3.3"; may be repeated.')
    ] = None,
    temperature: Annotated[float, typer.Option("-T", "--temperature", help="Temperature, K.")] = 300.0,
    coordinates: Annotated[
        str,
        typer.Option(
            "--coordinates",
            help="cartesian, internal (bonds must not change), or auto: internal for --pdb or torsions, without rings.",
        ),
    ] = "auto",
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=4, help="Rounds, each of --draws energies; default: 300, internal 100."),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", min=16, help="Trajectories, and so energies, per round; default: 192, internal 1024."),
    ] = None,
    learn: Annotated[
        int | None, typer.Option("--learn", min=1, help="Gradient steps per round; default: 80, internal 200.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--samples",
            min=1,
            help="Samples drawn at the end; default: 16000, with --pretrained half of its run's.",
        ),
    ] = None,
    paths: Annotated[
        int | None,
        typer.Option(
            "--paths",
            min=1,
            help="Paths over which the density of each sample is averaged; costs time, no energies. "
            "Default: 4, with --pretrained as in its run.",
        ),
    ] = None,
    gamma: Annotated[float, typer.Option("--gamma", help="Bias factor; with --from-ts at least half of --cap.")] = 12.0,
    cap: Annotated[
        float, typer.Option("--cap", help="Height to which the bias may grow, kT; --from-ts raises it.")
    ] = 23.0,
    hill_width: Annotated[
        list[float] | None, typer.Option("--hill-width", help="Width of the hills, one for each --cv, in A or degrees.")
    ] = None,
    width: Annotated[
        float, typer.Option("--width", help="Width of the stiffest thermal motion, A; for Cartesian coordinates.")
    ] = 0.05,
    controller: Annotated[
        str, typer.Option("--controller", help="Network of the controller: auto, pair or trunk.")
    ] = "auto",
    stop: Annotated[
        bool, typer.Option("--stop/--no-stop", help="With one variable: end early, once the surface rests.")
    ] = True,
    repair: Annotated[
        str,
        typer.Option(
            "--repair", help="Sequential Monte Carlo if the weights fail: auto, always (also for warn), never."
        ),
    ] = "auto",
    forecast: Annotated[bool, typer.Option("--forecast", help="Predict the cost, and stop.")] = False,
    units: Annotated[str, typer.Option("--units", help="Units of energies: kcal/mol or kJ/mol.")] = "kcal/mol",
    out: common.Out = Path("molgen-fes"),
    overwrite: common.Overwrite = False,
    resume: common.Resume = False,
    seed: common.Seed = 0,
    as_json: common.Json = False,
) -> None:
    """Free energy along one to three collective variables: a diffusion learns to sample, exact weights correct it.

    Writes to OUT: fes.dat, COLVAR and HILLS (for PLUMED), weights.npz, samples, fes.png, convergence.png and
    summary.json.

    Exit code 3: the surface cannot be trusted, or --from-ts cannot determine the barrier. Everything is written anyway.
    """
    given = {key: value for key, value in locals().items() if key not in ("ctx", "config")}
    options = merged(given, config, ctx)
    if pretrained := options["pretrained"]:
        others = [key for key in options if key not in BESIDE_PRETRAINED]
        expected = "molecule, variables, walls, temperature and method of the finished run"
        _refuse_beside(f"--pretrained {pretrained}", others, expected, options, ctx)
    for key, (others, expected) in DECIDED.items():
        if options[key]:
            _refuse_beside(f"--{key.replace('_', '-')}", others, expected, options, ctx)
    summary, folder = run(options)
    if options["as_json"] and summary:
        common.print_json(summary)
    elif summary:
        typer.echo(report(summary, folder))
    if summary and summary["status"] == "gate_failed":
        further = "more --rounds and --learn, or in Cartesian coordinates a --width nearer to the stiffest bond"
        advice = "more samples (-n)" if options["pretrained"] else further
        mended = ", and sequential Monte Carlo did not mend it" if summary["repair"] else ""
        if not summary["gate"]["passed"]:
            common.warn(f"{_refused(summary)}{mended}: the surface is not to be trusted; try {advice}")
        source, number = shlex.quote(str(folder)), 10 * summary["weights"]["n"]
        more = f"; or draw more: molgen fes --pretrained {source} -n {number} --out NEW"
        more = ", or more samples (-n)" if options["from_ts"] else more  # whose controller has no variables by name
        for text in summary.get("unknown", []):
            common.warn(f"{text}; try {advice}{'' if options['pretrained'] else more}")
        raise typer.Exit(common.ExitCode.GATE_FAILED)


def _refused(summary: Mapping[str, Any]) -> str:
    """Why the gate refuses the path weights, in words."""
    from molgen.reweight.importance import LEAST_DRAWS

    khat, limit, weights = summary["gate"]["khat_biased"], summary["gate"]["limit"], summary["weights_biased"]
    if khat is not None and khat <= limit:  # the other half of the gate
        effective = weights["ess"] * weights["n"]
        return f"the path weights leave {effective:.0f} effective samples under the bias, fewer than {LEAST_DRAWS}"
    return "k-hat of the path weights is " + ("none, from so few weights" if khat is None else f"above {limit:g}")


def run(o: Options) -> tuple[dict[str, Any], Path]:
    """Build what the options describe and run it; nothing is written, and the summary is empty, for --forecast."""
    from molgen.units import energy_unit
    from molgen.workflows.fes import run_fes
    from molgen.workflows.fes_forecast import forecast
    from molgen.workflows.fes_problem import Problem

    path = None
    if o["pretrained"]:
        return _pretrained(o), o["out"]
    walls = o["wall"] or []
    if o["from_ts"]:
        from molgen.workflows.fes_from_ts import read_path

        path = read_path(o["from_ts"])
        system, described = path.system, path.described
        settings = _settings(o, path.cvs[:1], system)
        given = path.arguments(settings, o["temperature"], walls, common.log)
    else:
        system, described = _system(o)
        cvs = o["cv"] or []
        ranges, settings = _ranges(o["range_"], cvs, system.molecule()), _settings(o, cvs, system)
        given = {"cvs": cvs, "ranges": ranges, "walls": walls, "settings": settings}
    if not given["cvs"]:
        raise InputError(
            "no collective variable", where="--cv", expected="one to three",
            remedy='give for example --cv "distance 0 4"',
        )  # fmt: skip
    if o["forecast"]:
        energy_unit(o["units"])
        problem = Problem.of(system, temperature=o["temperature"], **given)
        for note in problem.notes:
            common.log(note)
        common.log("measuring a few energies, learning steps and trajectories (a minute or two from 50 atoms)")
        told = forecast(problem)
        if o["as_json"]:
            common.print_json({"forecast": told.splitlines()})
        else:
            typer.echo(told)
        return {}, o["out"]
    rounds = given["settings"].sampler.rounds
    with common.stages("starting") as progress:
        moved: list[float] = []

        def show(row: dict[str, Any]) -> None:
            text = f"ESS {row['ess']:.0%}, k-hat {row['khat']:.2f}, bias {row['bias']:.0f} kT, "
            text += f"{row['energies']} energies"
            if row["moved"] is not None:
                moved.append(row["moved"])
            text += f", surface moved by {moved[-1]:.2f} kT at most" if moved else ""
            progress(text, row["round"], rounds)

        _, summary = run_fes(
            system, temperature=o["temperature"], **given, seed=o["seed"], out=o["out"], overwrite=o["overwrite"],
            resume=o["resume"], units=o["units"], described=described, prior=path, log=common.log, progress=show,
        )  # fmt: skip
    return summary, o["out"]


def _refuse_beside(where: str, others: Sequence[str], expected: str, options: Options, ctx: typer.Context) -> None:
    """Refuse options, on the command line or in a file, that `where` has decided already."""
    if clash := common.options_given(ctx, others, options):
        raise InputError(
            f"together with {', '.join(clash)}", where=where, expected=expected,
            remedy="leave it out, or make a run of its own",
        )  # fmt: skip


def _pretrained(o: Options) -> dict[str, Any]:
    from molgen.workflows.fes_pretrained import sample_pretrained

    return sample_pretrained(
        o["pretrained"], o["samples"], paths=o["paths"], repair=o["repair"], seed=o["seed"], out=o["out"],
        overwrite=o["overwrite"], resume=o["resume"], units=o["units"], log=common.log,
    )[1]  # fmt: skip


def _system(o: Options) -> tuple[Any, dict[str, Any]]:
    from molgen.workflows.fes_system import system_from_files, system_from_pdb

    if bool(o["xyz"]) == bool(o["pdb"]):
        raise InputError(
            "give --xyz or --pdb, one of the two",
            where="molgen fes",
            expected="a structure to start from, or --from-ts or --pretrained",
        )
    if o["xyz"]:
        kwargs = common.calculator_kwargs(o["calculator_kwargs"])
        system = system_from_files(o["xyz"], o["calculator"], kwargs, o["charge"], o["spin"], o["solvent"])
        source = system.source or {}
        described = {key: source[key] for key in ("calculator", "charge", "spin")}
        described |= {"calculator_kwargs": source["kwargs"]} if source["kwargs"] else {}
        return system, {"xyz": [str(p) for p in o["xyz"]], **described}
    field = {"forcefield": o["forcefield"]} if o["forcefield"] else {}
    field |= {"solvent": o["solvent"]} if o["solvent"] else {}
    system = system_from_pdb(o["pdb"], platform=o["platform"], **field)
    used = {key: (system.source or {})[key] for key in ("forcefield", "solvent")}
    return system, {"pdb": [str(p) for p in o["pdb"]], **used}


def _settings(o: Options, cvs: Sequence[str | CV], system: Any) -> Any:
    from molgen.workflows.fes_problem import coordinates_of
    from molgen.workflows.fes_settings import COORDINATES, default_settings

    if o["coordinates"] not in COORDINATES:
        raise InputError(
            f"unknown coordinates {o['coordinates']!r}", where="--coordinates", expected=", ".join(COORDINATES)
        )
    wanted = o["coordinates"]
    if o["controller"] != "auto":  # internal coordinates have a network of their own
        if wanted == "internal":
            raise InputError(
                f"--controller {o['controller']}", where="--coordinates internal", expected="--controller auto",
                remedy="leave it out, or use --coordinates cartesian",
            )  # fmt: skip
        wanted = "cartesian"
    kind = coordinates_of(system, wanted, cvs)
    usual = replace(default_settings(kind), coordinates=wanted)
    if kind == "internal" and o["width"] != usual.sampler.width:
        raise InputError(
            f"--width {o['width']:g}", where="internal coordinates", expected="a width in Cartesian coordinates alone",
            remedy="leave it out, or use --coordinates cartesian",
        )  # fmt: skip
    asked = {key: o[key] for key in ("rounds", "draws", "learn") if o[key] is not None}
    sampler = replace(usual.sampler, width=o["width"], **asked)
    widths = o["hill_width"]
    if widths:
        scales = _scales(cvs, system.molecule()) + [1.0] * len(widths)
        widths = tuple(value * scale for value, scale in zip(widths, scales, strict=False))
    if o["controller"] not in ("auto", "pair", "trunk"):
        raise InputError(f"unknown controller {o['controller']!r}", where="--controller", expected="auto, pair, trunk")
    return replace(
        usual, sampler=sampler, gamma=o["gamma"], cap=o["cap"], widths=widths or None, controller=o["controller"],
        samples=o["samples"] or usual.samples, paths=o["paths"] or usual.paths, stop=o["stop"], repair=o["repair"],
    )  # fmt: skip


def _scales(cvs: Sequence[str | CV], molecule: Molecule) -> list[float]:
    """What a number on the command line is multiplied by, for each collective variable: degrees become radians."""
    from molgen.units import shown
    from molgen.variables import parse_cv

    built = [parse_cv(cv, molecule) if isinstance(cv, str) else cv for cv in cvs]
    return [1 / shown(cv.unit)[0] for cv in built]


def _ranges(texts: list[str] | None, cvs: list[str], molecule: Molecule) -> list[tuple[float, float] | None] | None:
    if not texts:
        return None
    found: list[tuple[float, float] | None] = []
    scales = _scales(cvs, molecule) + [1.0] * len(texts)
    for text, scale in zip(texts, scales, strict=False):
        if text == "auto":
            found.append(None)
            continue
        try:
            low, high = (float(word) * scale for word in text.split())
        except ValueError as error:
            raise InputError(f"{text!r}", where="--range", expected='"LOW HIGH" or "auto"') from error
        found.append((low, high))
    return found
