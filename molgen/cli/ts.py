"""`molgen ts`: a verified transition state between two structures."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.files import SUMMARY

KINDS = ("gibbs", "enthalpy")


def register(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""
    app.command(name="ts")(ts)


def ts(
    reactant: Annotated[
        str | None, typer.Argument(help="Reactant: xyz, extxyz, pdb, sdf; fragments joined by commas.")
    ] = None,
    product: Annotated[str | None, typer.Argument(help="Product, likewise. Any atom order and orientation.")] = None,
    smiles: Annotated[str | None, typer.Option("--smiles", help='Instead of files: "reactant>>product".')] = None,
    charge: Annotated[
        int | None, typer.Option("--charge", help="Total charge; default that of SMILES, sdf and mol files, else 0.")
    ] = None,
    spin: Annotated[int | None, typer.Option("--spin", help="Unpaired electrons; default the fewest possible.")] = None,
    samples: Annotated[int, typer.Option("-n", "--samples", help="Guesses drawn from the model.")] = 8,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Refine guesses to saddles of the calculator.")
    ] = True,
    calculator: common.Calculator = "gfn2",
    calculator_kwargs: common.CalculatorKwargs = None,
    solvent: common.Solvent = None,
    temperature: Annotated[
        float | None,
        typer.Option("-T", "--temperature", help="K; also Gibbs energies and rates there, from normal modes."),
    ] = None,
    verify: Annotated[str, typer.Option("--verify", help="quick (modes, descents), irc, or none.")] = "quick",
    max_calls: Annotated[
        int | None,
        typer.Option("--max-calls", min=1, help="Gradient calls of one refinement; default 100, more if large."),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="After 90s, 30m, ..., begin no further guess.")
    ] = None,
    follow: Annotated[
        int,
        typer.Option("--follow", min=0, help="Where one step of several is found, search on, so many times at most."),
    ] = 2,
    map_atoms: Annotated[bool, typer.Option("--map/--no-map", help="Map atoms when the orders differ.")] = True,
    weights: Annotated[str, typer.Option("--weights", help="Shipped weights or checkpoint folder.")] = "tsgen",
    correction: Annotated[
        str,
        typer.Option("--correction", help="Weights that carry the saddle to their training set's level, or none."),
    ] = "tsgen-gfn2",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Flow steps; default the weights' own.")] = None,
    out: common.Out = Path("molgen-ts"),
    overwrite: common.Overwrite = False,
    seed: common.Seed = 0,
    device: common.Device = "auto",
    dtype: common.Dtype = "float32",
    as_json: common.Json = False,
) -> None:
    """Transition state between REACTANT and PRODUCT: guessed, refined, verified.

    Writes ts.xyz (ranked), guesses.xyz, path.xyz, barrier.png, reactant.xyz, product.xyz and summary.json to OUT; where
    --correction fits, also ts_corrected.xyz: the saddle (if none was proven, the guess) as the level of the training
    set would have it; of several steps mechanism.xyz and mechanism.png. Exit code 3 when no saddle, and no steps, were
    proven to join the two (with --verify none: when no saddle was found), 4 when the calculator failed on some guesses.
    """
    from molgen.saddle import calls_allowed
    from molgen.workflows.ts import find_ts

    kwargs = common.calculator_kwargs(calculator_kwargs)
    seconds = common.seconds_of(time_budget) if time_budget else None
    torch_device = common.resolve_device(device)
    with common.stages("guessing") as progress:
        result = find_ts(
            _side(reactant), _side(product), smiles=smiles, charge=charge, spin=spin, samples=samples, refine=refine,
            calculator=calculator, calculator_kwargs=kwargs, solvent=solvent, temperature=temperature, verify=verify,
            max_calls=max_calls, time_budget=seconds, follow=follow, out=out, overwrite=overwrite, weights=weights,
            correction=correction, steps=steps, map_atoms=map_atoms, seed=seed, device=str(torch_device),
            dtype=common.resolve_dtype(dtype), log=common.log, progress=progress,
        )  # fmt: skip
    if as_json:
        common.print_json(json.loads((out / SUMMARY).read_text(encoding="utf-8")))
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
    codes = {"ok": common.ExitCode.OK, "partial": common.ExitCode.PARTIAL, "gate_failed": common.ExitCode.GATE_FAILED}
    raise typer.Exit(codes[result.status])


def saddles_of(result: Any) -> list[Any]:
    """Those that the result consists of: one, those of all steps, or none."""
    if result.mechanism is not None and result.mechanism.complete:
        return [step.saddle for step in result.mechanism.steps if step.saddle is not None]
    return [result.best] if result.verified else []


def beside(
    result: Any, out: Path, calculator: str, solvent: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> str:
    """Where to look on from the best saddle, if there is one."""
    from molgen.workflows.ts_output import INTERMEDIATE

    if result.mechanism is not None:
        return " (search-2 and so on went on from the best saddle's intermediate, in vain)"
    if known := result.best.known:
        files = (INTERMEDIATE, "product.xyz") if known == "reactant" else ("reactant.xyz", INTERMEDIATE)
        options = [f"--charge {result.reaction.charge}"] if result.reaction.charge else []
        options += [f"--spin {result.reaction.spin}"] if result.reaction.spin > 1 else []
        options += [f"--calculator {shlex.quote(calculator)}"] if calculator != "gfn2" else []
        options += [f"--calculator-kwargs {shlex.quote(json.dumps(dict(kwargs)))}"] if kwargs else []
        options += [f"--solvent {solvent}"] if solvent else []
        command = " ".join(["molgen ts", *(shlex.quote(str(out / file)) for file in files), *options])
        return f" (the best saddle joins the {known} to {INTERMEDIATE}: go on with {command})"
    return " (path.xyz shows what lies beside the best saddle)" if (out / "path.xyz").exists() else ""


def more_effort(result: Any, limit: int) -> str:
    """Advice where guesses were left for want of time, or most refinements took all `limit` gradient calls."""
    from molgen.workflows.ts_result import OUT_OF_TIME

    left, short = (result.rejections.get(reason, 0) for reason in (OUT_OF_TIME, "refinement did not converge"))
    tries = len(result.candidates)
    advice = f"; {left} guesses were left when the time was up, so try a longer --time-budget" if left else ""
    if 2 * short > tries:
        advice += f"; {short} of {tries} refinements ran out of {limit} gradient calls, so try --max-calls {3 * limit}"
    return advice


def report(result: Any, out: Path) -> str:
    """The result in words: verdict, barriers, mode, confidence, cost, files."""
    best, reaction = result.best, result.reaction
    steps = result.mechanism
    lines = [f"verdict              {best.verdict.replace('_', ' ')}" + (f": {best.reason}" if best.reason else "")]
    if steps is not None and steps.complete:
        lines = [f"verdict              intended, in {len(steps.steps)} steps"]
    elif best.barrier_forward_kcal is not None:
        forward, back = best.barrier_forward_kcal, best.barrier_reverse_kcal
        if best.verdict == "intended":
            lines.append(f"barrier              {forward:.1f} kcal/mol forward, {back:.1f} back")
        else:
            above = [f"{round(value, 1) + 0.0:.1f}" for value in (forward, back)]  # no -0.0
            lines.append(f"above its wells      {above[0]} and {above[1]} kcal/mol")
    if steps is not None:
        lines += mechanism_lines(steps)
    elif result.thermochemistry is not None:
        lines += thermochemistry_lines(
            result.thermochemistry, "barrier" if best.verdict == "intended" else "above wells"
        )
    if best.imaginary_frequency_cm is not None:
        lines.append(f"imaginary frequency  {abs(best.imaginary_frequency_cm):.0f}i cm-1")
    if best.confidence is not None:
        known = result.level == "GFN2-xTB" and not reaction.charge and not reaction.spin
        caution = "" if known else " (calibrated on neutral molecules with GFN2-xTB)"
        lines.append(f"confidence           {best.confidence:.0%} before verification{caution}")
    lines.append(f"guess                {best.source}, sample {best.sample}")
    lines.append(f"cost                 {result.gradient_calls} gradient calls, {result.seconds:.1f} s")
    if result.corrected is not None:
        expected = f"{result.corrected.level}, expected error {result.corrected.expected_rmsd:.2f} A, not verified"
        if result.corrected.source == "guess":
            expected += "; from the guess, since no saddle was proven"
        lines.append(f"corrected            ts_corrected.xyz: {expected}")
    others = len(result.candidates) - 1
    if others:
        counts = Counter(c.verdict.replace("_", " ") for c in result.candidates[1:])
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        lines.append(f"other candidates     {others}: {verdicts}")
    for reason, count in sorted(result.rejections.items()):
        lines.append(f"set aside            {count} x {reason}")
    further = sorted(path.name for path in out.glob("search-*")) if steps is not None else []
    lines.append(f"files                {', '.join([common.written(out), *(f'{name}/' for name in further)])}")
    return "\n".join(lines)


def mechanism_lines(found: Any) -> list[str]:
    """The steps from the reactant to the product in words."""
    from molgen.units import kcal

    lines = []
    for k, step in enumerate(found.steps, start=1):
        barriers, change = step.barriers_kcal, kcal(step.path_energies[-1] - step.path_energies[0])
        if barriers is not None:
            told = f"barrier {barriers[0]:.1f} kcal/mol forward, {barriers[1]:.1f} back"
            if (gibbs := found.searches[step.search].thermochemistry) is not None:
                told += (
                    f"; Gibbs {gibbs.gibbs_forward_kcal:.1f}, {gibbs.gibbs_reverse_kcal:.1f} at {gibbs.temperature:g} K"
                )
        else:
            told = "not found" if step.search is None else f"no barrier, {change:+.1f} kcal/mol"
        lines.append(f"{f'step {k}':21}{step.ends[0]} to {step.ends[1]}: {told}")
    if math.isfinite(found.highest_kcal):
        lines.append(f"highest point        {found.highest_kcal:.1f} kcal/mol above the reactant")
    return lines


def thermochemistry_lines(found: Any, title: str = "barrier") -> list[str]:
    """Gibbs barriers and rates in words."""
    gibbs, enthalpy = ([found.summary()[f"{kind}_{way}_kcal"] for way in ("forward", "reverse")] for kind in KINDS)
    forward, back = found.rates
    lasts = common.duration(math.log(2) / forward if forward else math.inf)
    lines = [
        f"{f'Gibbs {title}':21}{gibbs[0]:.1f} kcal/mol forward, {gibbs[1]:.1f} back at {found.temperature:g} K; "
        f"enthalpy {enthalpy[0]:.1f}, {enthalpy[1]:.1f}",
        f"rate                 {forward:.1e} 1/s forward, half-life {lasts}; {back:.1e} 1/s back; "
        f"tunnelling x {found.tunnelling:.1f}",
    ]
    if soft := sum(point.imaginary for point in (found.reactant, found.saddle, found.product)):
        lines[0] += f" ({soft} soft imaginary mode{'s' if soft > 1 else ''} beside taken as real)"
    for side, pieces in found.pieces.items():
        rate = "as fast as they meet" if pieces.rate is None else f"{pieces.rate:.1e} {pieces.rate_unit}"
        barrier = f"Gibbs barrier {pieces.barrier_kcal:.1f} kcal/mol ({found.standard_state})"
        lines.append(f"{f'{side} apart':21}{' + '.join(pieces.names)}: {barrier}, {rate}")
    return lines


def _side(text: str | None) -> str | list[str] | None:
    """One path, or several joined by commas."""
    if text is None or os.path.isfile(text):  # a comma may be part of a name
        return text
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return parts if len(parts) > 1 else text
