"""`molgen data md`: replica exchange of peptides."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from molgen.cli import common
from molgen.errors import InputError
from molgen.pool import cores

_PS = {"ps": 1, "ns": 1_000, "us": 1_000_000}


def _refuse_other_time(out: Path, frames: int) -> None:
    """Finished simulations keep no velocities to go on from.

    Raises:
        InputError: the run in `out` has another --time.
    """
    from molgen.files import read_manifest

    had = (read_manifest(out) or {}).get("settings", {}).get("frames", frames)
    if had != frames:
        raise InputError(
            f"cannot resume: {frames} ps given, the run has {had} ps", where=str(out), expected=f"--time {had}ps",
            remedy="for more frames begin another run, with another --seed and --out: molgen train prose takes several "
            "--data, and joins what they hold of a peptide",
        )  # fmt: skip


def picoseconds_of(text: str) -> int:
    """Picoseconds of "200ps", "1.5ns" or "2us".

    Raises:
        InputError: not a time, or not a whole number of picoseconds.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ps|ns|us)", text.strip())
    time = float(match[1]) * _PS[match[2]] if match else 0.0
    if time < 1 or abs(time - round(time)) > 1e-6:
        raise InputError(
            f"{text!r} is not a simulation time", where="--time", expected="whole picoseconds, such as 200ps or 2ns"
        )
    return round(time)


def temperatures_of(text: str) -> list[float]:
    """Temperatures of "310,380,470,600".

    Raises:
        InputError: not rising positive numbers.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < t <= 5000 for t in found) or any(a >= b for a, b in pairwise(found)):
        raise InputError(f"{text!r}", where="--temperatures", expected="kelvins, rising, such as 310,380,470,600")
    return found


def md(
    sequences: Annotated[list[str] | None, typer.Argument(help="One-letter sequences: AA GY 'A[HIP]'.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="File of more sequences, one per line; # begins a comment.")
    ] = None,
    cap: Annotated[str, typer.Option("--cap", help="Ends: none (charged) or ace-nme.")] = "none",
    time: Annotated[
        str, typer.Option("--time", help="Time to record at each temperature, a frame every ps.")
    ] = "200ps",
    temperatures: Annotated[str, typer.Option("--temperatures", help="Temperatures, K, rising.")] = "310,380,470,600",
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="Refuse these sequences, and longer ones that contain them.")
    ] = None,
    flow: Annotated[
        str | None,
        typer.Option("--flow", help="Weights of Prose, such as prose: also move to its proposals (see above)."),
    ] = None,
    cis: Annotated[
        bool,
        typer.Option(
            "--cis", help="One replica of four starts with a cis peptide bond: for training only (see above)."
        ),
    ] = False,
    workers: common.Workers = None,
    platform: Annotated[str, typer.Option("--platform", help="OpenMM platform: auto, Reference, CPU, CUDA.")] = "auto",
    out: common.Out = Path("molgen-md"),
    seed: common.Seed = 0,
    resume: common.Resume = False,
    overwrite: common.Overwrite = False,
    as_json: common.Json = False,
) -> None:
    """Temperature replica exchange of peptides (ff14SB, GB OBC2): OUT/SEQ.npz for each sequence.

    A run may be stopped at any time. --resume continues from its last state, at most some seconds old, to the same
    files. Finished sequences are kept, and the list may have grown. Exit code 4: some sequences failed.

    --flow: each ps ends with a choice, by weight, among the conformation and eight proposals of the flow. The ensemble
    stays exact, and basins that the flow knows mix faster.

    --cis: one replica of four starts with a cis peptide bond that does not precede proline, and stays cis. The share of
    this form is therefore that of the starts, and averages would be wrong. Training learns such frames by their
    energies alone.
    """
    from molgen.data.md import read_sequences
    from molgen.potentials.openmm import require_platform
    from molgen.run import Run
    from molgen.workflows.md import check_sequences, flow_of, simulate

    require_platform(platform)
    capping = None if cap == "none" else cap
    frames, kelvins = picoseconds_of(time), temperatures_of(temperatures)
    if cis and flow is not None:
        raise InputError(
            "given beside --flow, whose moves turn the bonds", where="--cis", remedy="leave one of them out"
        )
    if cis and len(kelvins) < 3:
        raise InputError(f"{len(kelvins)} replicas", where="--cis", expected="three --temperatures or more")
    wanted = [*(sequences or ()), *(read_sequences(file) if file else ())]
    chosen = check_sequences(wanted, capping, exclude)
    settings: dict[str, Any] = {"cap": cap, "frames": frames, "temperatures": kelvins, "platform": platform}
    if resume:
        _refuse_other_time(out, frames)
    proposal = None if flow is None else flow_of(flow, kelvins)
    settings |= {"flow": proposal and proposal.hash, "cis": cis}
    stage = "ps a replica"
    with (
        Run(out, "data md", settings, seed=seed, overwrite=overwrite, resume=resume) as run,
        common.stages(stage) as progress,
    ):
        results = simulate(
            chosen, run, frames=frames, cap=capping, temperatures=kelvins, platform=platform, flow=proposal, cis=cis,
            workers=workers or cores(), log=common.warn, progress=lambda done, total: progress(stage, done, total),
        )  # fmt: skip
        failed = [result for result in results if "error" in result]
        wrong = sum(result.get("wrong_handedness", 0) for result in results)
        summary = run.finish(
            "partial" if failed else "ok", validity={"wrong_handedness": wrong}, rejections={"failed": len(failed)}
        )
    if as_json:
        common.print_json(summary)
    else:
        for result in results:
            typer.echo(_line(result))
    if failed:
        raise typer.Exit(common.ExitCode.PARTIAL)


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['sequence']:10} failed"
    rate = "kept" if result.get("kept") else f"{result['ns_per_day']} ns/day"
    counts = f"{result['atoms']:4} atoms  {result['frames']} frames"
    moves = f"  moves {', '.join(f'{share:.2f}' for share in result['moved'])}" if result["moved"] else ""
    return f"{result['sequence']:10} {counts}  exchange {result['acceptance']:.2f}{moves}  {rate}"
