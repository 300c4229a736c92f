"""`molgen peptide`: an equilibrium ensemble of a peptide, weighted and judged."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.files import read_summary
from molgen.words import counted


def register(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""
    app.command(name="peptide")(peptide)


def peptide(
    sequence: Annotated[
        str, typer.Argument(help="One-letter codes from N to C, such as AAGY. H is HIE; else write [HID] or [HIP].")
    ],
    n: Annotated[int, typer.Option("-n", "--samples", help="Number of samples.")] = 10_000,
    temperature: Annotated[float, typer.Option("-T", "--temperature", help="Temperature, K.")] = 310.0,
    cap: Annotated[str, typer.Option("--cap", help="Ends: none (charged) or ace-nme.")] = "none",
    observable: Annotated[
        list[str] | None,
        typer.Option(
            "--observable",
            help='Report the weighted mean of a variable: "distance 0 5", "phi 1", "rg", '
            '"helicity", ...; atoms and residues count from 0; may be repeated.',
        ),
    ] = None,
    finetune: Annotated[
        int, typer.Option("--finetune", help="First train the flow on this peptide: rounds, minutes each.")
    ] = 0,
    smc: Annotated[
        bool,
        typer.Option("--smc", help="Propose hot, then cool by sequential Monte Carlo: hundreds of energies a sample."),
    ] = False,
    weights: Annotated[str, typer.Option("--weights", help="Shipped weights or checkpoint folder.")] = "prose",
    platform: Annotated[str, typer.Option("--platform", help="OpenMM platform: auto, Reference, CPU, CUDA.")] = "auto",
    workers: common.Workers = None,
    prose_compat: Annotated[
        bool,
        typer.Option(
            "--prose-compat", help="Drop the largest 0.2 % of the weights, as Prose does; averages are then biased."
        ),
    ] = False,
    units: Annotated[str, typer.Option("--units", help="Units of energies: kJ/mol or kcal/mol.")] = "kJ/mol",
    save_float64: Annotated[
        bool, typer.Option("--save-float64", help="Also write exact positions to weights.npz.")
    ] = False,
    out: common.Out = Path("molgen-peptide"),
    overwrite: common.Overwrite = False,
    resume: common.Resume = False,
    seed: common.Seed = 0,
    device: common.FlowDevice = "auto",
    as_json: common.Json = False,
) -> None:
    """Boltzmann ensemble of a peptide in implicit water (ff14SB, GB OBC2): proposed by a flow, weighted, judged.

    Writes to OUT: topology.pdb, samples.xtc, weights.npz, ramachandran.png, weights.png and summary.json.

    Exit code 3: k-hat says that the weights cannot be trusted. The ensemble is written anyway.
    """
    from molgen.workflows.peptide import sample_peptide

    with common.stages("sampling") as progress:
        sample_peptide(
            sequence, n, temperature, cap=cap, weights=weights, finetune=finetune, smc=smc,
            observables=observable or (), prose_compat=prose_compat, platform=platform, workers=workers or "auto",
            seed=seed, device=device, out=out, overwrite=overwrite, resume=resume, units=units,
            save_float64=save_float64, log=common.log, progress=progress,
        )  # fmt: skip
    summary = read_summary(out)
    assert summary is not None  # written just now
    if as_json:
        common.print_json(summary)
    else:
        typer.echo(report(summary, out))
    if summary["status"] == "gate_failed":
        common.warn(_advice(summary, out))
        raise typer.Exit(common.ExitCode.GATE_FAILED)


def report(summary: dict[str, Any], out: Path) -> str:
    """A run in words: what was sampled, how good the weights are, observables, cost, files."""
    from molgen.reweight.estimate import doubt

    weights, smc = summary["weights"], summary["smc"]
    cap = f", {summary['cap']}" if summary["cap"] else ""
    compat = " (the largest weights were dropped)" if summary["prose_compat"] else ""
    why = "; ".join(summary["why"])
    rows = [
        ("peptide", f"{summary['sequence']}{cap}, {summary['atoms']} atoms, {summary['temperature']:g} K"),
        ("verdict", summary["verdict"] + compat + (f": {why}" if why else "")),
        ("samples", str(weights["n"])),
        ("ESS", f"{smc['ess_of_ancestors']:.2%} by ancestor, {weights['ess']:.2%} of the weights alone" if smc else
                f"{weights['ess']:.2%} raw, {weights['ess_psis']:.2%} with smoothed weights"),
        ("k-hat", f"{_judged(weights)}; largest weight {weights['max_weight']:.2%}"),
    ]  # fmt: skip
    if smc:
        rows.append(
            ("proposed at", f"{smc['hot_temperature']:g} K, k-hat {common.number(smc['hot_weights']['khat'])} there")
        )
        rows.append(("ancestors", f"{smc['unique_ancestors']} of {weights['n']} proposals have descendants"))
    for number, row in enumerate(summary["finetuning"]):
        said = (
            f"ESS {row['ess']:.2%} raw, {row['ess_psis']:.2%} with smoothed weights, k-hat {common.number(row['khat'])}"
        )
        rows.append((f"after {counted(number, 'round')}", f"{said}{', kept' if row['kept'] else ''}"))
    for row in summary["results"]:
        said = doubt(row["khat"], row["reliable"], row.get("why", ""))
        value = f"{common.number(row['value'], 5)} +- {common.number(row['error'])} {row['unit']}".rstrip()
        rows.append((row["name"], f"{value}   ({said})" if said else value))
    rows.append(("drawn again", common.redrawn(summary["redrawn"], summary["proposals"])))
    rows += [("weight zero", f"{count} x {reason}") for reason, count in sorted(summary["rejections"].items())]
    rates = [
        f"{summary[key]:.0f} {name} a second"
        for key, name in (("samples_per_second", "samples"), ("energies_per_second", "energies"))
        if summary[key]
    ]
    rows.append(("cost", ", ".join([f"{summary['energy_calls']} energies", *rates])))
    if summary["finetuning"]:
        rows.append(("finetuned flow", f"{out / 'adapter'}, for --weights on the same peptide"))
    rows.append(("files", common.written(out)))
    width = max(20, *(len(name) + 1 for name, _ in rows))
    return "\n".join(f"{name:<{width}} {text}" for name, text in rows)


def _judged(weights: dict[str, Any]) -> str:
    if weights["khat"] is None:
        return "none, too few weights"
    return f"{common.number(weights['khat'])} (fine up to {weights['threshold']:.2f})"


def _advice(summary: dict[str, Any], out: Path) -> str:
    from molgen.reweight.importance import LEAST_DRAWS, RELIABLE_KHAT

    if summary["prose_compat"]:
        return "the largest weights were dropped (--prose-compat): averages are biased by construction"
    tuned, smc, n = summary["finetuning"], summary["smc"], summary["weights"]["n"]
    ways = [] if tuned else ["--finetune 4"]
    if tuned and tuned[-1]["kept"]:  # still gaining
        ways.append(f"--weights {shlex.quote(str(out / 'adapter'))} --finetune 4 --out NEW")
    if not smc:
        ways.append("--smc")
    elif (effective := smc["ess_of_ancestors"] * n) < LEAST_DRAWS:
        enough = 2 * LEAST_DRAWS * n / effective  # about twice what is needed
        ways.append(f"-n {math.ceil(enough / 1000) * 1000}")
    remedy = f"try {' or '.join(ways)}" if ways else "neither finetuning nor --smc has repaired that"
    weights = summary["weights"]
    if weights["khat"] is None and n < LEAST_DRAWS:  # there is no k-hat, which says nothing of them
        return f"{n} sample{'s are' if n > 1 else ' is'} too few to judge the weights: give -n 1000 or more"
    if not smc and weights["khat"] is not None and weights["khat"] <= RELIABLE_KHAT:  # what lacks is number
        found, enough = weights["ess"] * n, 2 * LEAST_DRAWS / weights["ess"]
        return f"{found:.0f} effective samples are too few: give -n {math.ceil(enough / 100) * 100} or more"
    return f"{summary['verdict']}: averages over this ensemble are not Boltzmann averages; {remedy}"
