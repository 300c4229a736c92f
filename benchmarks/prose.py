"""Prose in figures: the starred held-out peptides, 10^4 samples each, nothing dropped, beside molecular dynamics.

    python benchmarks/prose.py --out DIR [--weights prose] [--part zero-shot ...] [--sequences AW ...] [--reference DIR]

Parts, each a row a sequence in DIR/<part>/, kept when the run is repeated with the same settings:

- `reference`: two independent replica exchange runs a sequence at 310 to 600 K (`molgen data md --flow`, or with
  --reference-flow none without its moves), in DIR/reference-md or --reference. The floors are distances between the
  two. Hours; torsions and energies of those of the committed figures are in `benchmarks/references`, which serve where
  there are no others (the forward ESS and the likelihood need frames).
- `zero-shot`: `molgen evaluate prose`; distances only where there is a reference.
- `finetune`: `molgen peptide --finetune 4` on the tetrapeptides, then `zero-shot` once more with the finetuned flow and
  another seed; beside the row of `zero-shot`, which comes first.
- `speed`: samples a second on 1 and 2 threads, energies a second in 1 and 2 processes.
- `mixing`: one short replica exchange with and one without the flow's moves, in turn on one core.
- `dynamics`: plain Langevin dynamics at the temperature, one run a core at once; independent samples a second by the
  autocorrelation time of the slowest backbone torsion. A torsion that never moved to another basin looks faster than it
  is, which flatters the dynamics.

DIR/prose.json holds everything that is finished; without --sequences it is also written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import references
import torch

from molgen import __version__
from molgen.data.md import TEMPERATURES, heldout, load_md
from molgen.data.peptide import Peptide, build_peptide
from molgen.data.remd import HOT, SETTLE, generate_md
from molgen.errors import MolgenError
from molgen.files import json_text, write_atomic
from molgen.prose.evaluate import torsions
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.estimate import autocorrelation_time
from molgen.workflows.draws import Energies
from molgen.workflows.evaluate_prose import evaluate_case, gather, means
from molgen.workflows.md import moves_of
from molgen.workflows.peptide import sample_peptide

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("reference", "zero-shot", "finetune", "speed", "mixing", "dynamics")
TIMED = 1000  # samples drawn for a rate
TIMED_ENERGIES = 4000
THREADS = (1, 2)

Row = dict[str, Any]


def kept(file: Path, key: Row, make: Callable[[], Row]) -> Row:
    """The row in `file` if it was made under `key`, else a new one; a failure is a row too, and is tried again."""
    key = json.loads(json_text(key))
    if file.exists():
        row = json.loads(file.read_text())
        if row["key"] == key and "error" not in row:
            return row
    begin = time.perf_counter()
    try:
        row = make()
    except MolgenError as error:
        row = {"error": str(error)}
    row = {"key": key, **row, "wall_seconds": round(time.perf_counter() - begin, 1)}
    write_atomic(file, json_text(row))
    return json.loads(file.read_text())


def simulate(task: tuple[str, Path, int, tuple[float, ...], int, Proposal | None]) -> Row:
    """One run of molecular dynamics, in a process of its own."""
    sequence, path, frames, temperatures, seed, flow = task
    torch.set_num_threads(1)
    moves = None if flow is None else moves_of(flow, sequence, None, temperatures, seed)
    return generate_md(sequence, path, frames, temperatures=temperatures, seed=seed, moves=moves)


def simulations(
    sequence: str, folder: Path, frames: int, temperatures: tuple[float, ...], flow: Proposal | None = None
) -> Row:
    """Two independent runs at once, `<sequence>_0.npz` and `<sequence>_1.npz` in `folder`, one core each."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(sequence, folder / f"{sequence}_{run}.npz", frames, temperatures, run, flow) for run in range(2)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return {"runs": pool.map(simulate, tasks)}


def dynamics_of(sequence: str, folder: Path) -> list[Path]:
    """The files of a sequence: two runs made by `reference`, or one of the development set's."""
    return sorted(folder.glob(f"{sequence}_?.npz")) or sorted(folder.glob(f"{sequence}.npz"))


def judged(sequence: str, proposal: Proposal, reference: Path, args: argparse.Namespace, seed: int) -> Row:
    """The row of `molgen evaluate prose`."""
    (case,) = gather(dynamics_of(sequence, reference), [sequence])
    stored = references.load(case.peptide, args.temperature)
    frames = sum(len(energies) for _, energies in case.frames(args.temperature))
    if stored is not None and frames > sum(len(part.energies) for part in stored.parts):
        stored = None
    given = {} if stored is None else {"reference": stored.parts, "lag": stored.lag}
    with Energies(case.peptide, "auto", "auto") as energies:
        return evaluate_case(
            case, proposal, energies, samples=args.samples, temperature=args.temperature, seed=seed,
            points=args.points, **given,
        )  # fmt: skip


def finetuned(sequence: str, reference: Path, folder: Path, args: argparse.Namespace) -> Row:
    """Finetune as a user would, then judge the flow that came out by samples of another seed."""
    again = (folder / "manifest.json").exists()
    sample_peptide(
        sequence, args.samples, args.temperature, weights=args.weights, finetune=args.finetune, workers="auto",
        seed=args.seed, out=folder, resume=again, log=print,
    )  # fmt: skip
    row = judged(sequence, load_flow(folder / "adapter"), reference, args, args.seed + 1)
    summary = json.loads((folder / "summary.json").read_text())
    before = json.loads((args.out / "zero-shot" / f"{sequence}.json").read_text())["weights"]
    figures = {key: summary.get(key) for key in ("finetuning", "energy_calls", "wall_seconds")}
    return {**row, "before": before, "finetuning": figures}


def rates(peptide: Peptide, proposal: Proposal, temperature: float) -> Row:
    """Samples a second by threads, energies a second by processes; the best of two or three, after a warm-up."""
    layout, found = Layout.of(peptide), {"atoms": len(peptide), "samples": {}, "energies": {}}
    for threads in THREADS:
        torch.set_num_threads(threads)
        propose(proposal.model, layout, 64, temperature, 0)
        seconds = min(_seconds(lambda: propose(proposal.model, layout, TIMED, temperature, 0)) for _ in range(2))
        found["samples"][threads] = round(TIMED / seconds, 1)
    x, _ = propose(proposal.model, layout, TIMED, temperature, 0)
    x = np.resize(x, (TIMED_ENERGIES, *x.shape[1:]))
    for workers in THREADS:
        with Energies(peptide, "auto", workers) as energies:
            energies(x[:64])
            seconds = min(_seconds(lambda: energies(x)) for _ in range(3))
        found["energies"][workers] = round(TIMED_ENERGIES / seconds, 1)
    return found


def slowest(path: Path) -> float:
    """Autocorrelation time in ps of the slowest backbone torsion of a run at its lowest temperature."""
    md = load_md(path)
    angles = torsions(md.peptide, md.positions[0]).backbone
    return max(autocorrelation_time(angle, angle=True) for angle in angles.T)


def mixed(sequence: str, folder: Path, frames: int, flow: Proposal) -> Row:
    """What an independent conformation costs replica exchange without and with the moves of `flow`, in CPU seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    row: Row = {"ps": frames}
    for name, moves in (("plain", None), ("moves", flow)):
        path = folder / f"{sequence}-{name}.npz"
        for stale in folder.glob(f"{path.stem}.*"):  # a state too: its seconds are not known
            stale.unlink()
        begin = time.process_time()
        found = simulate((sequence, path, frames, TEMPERATURES, 0, moves))
        seconds = (time.process_time() - begin) / (frames + HOT + SETTLE)
        row[name] = {"cpu_seconds_per_ps": seconds, "moved": found["moved"], "autocorrelation_ps": slowest(path)}
    cost = [row[name]["cpu_seconds_per_ps"] * row[name]["autocorrelation_ps"] for name in ("plain", "moves")]
    return {**row, "gain": cost[0] / cost[1]}


def slowness(sequence: str, folder: Path, frames: int, temperature: float) -> Row:
    """Dynamics on every core, and what an independent sample costs it."""
    runs = simulations(sequence, folder, frames, (temperature,))["runs"]
    time_ps = float(np.mean([slowest(folder / f"{sequence}_{run}.npz") for run in range(2)]))
    ps_a_second = sum(run["ns_per_day"] for run in runs) * 1000 / 86400
    return {
        "ps": frames,
        "platform": runs[0]["platform"],
        "ps_per_second": round(ps_a_second, 1),
        "autocorrelation_ps": round(time_ps, 1),
        "independent_per_second": ps_a_second / time_ps,
    }


def per_second(shot: Row, speed: Row, dynamics: Row) -> Row:
    """Effective samples a second, energies included, on the best of 1 and 2 cores, beside the dynamics."""
    sampling, energies = (max(speed[key].values()) for key in ("samples", "energies"))
    rate = shot["weights"]["ess"] / (1 / sampling + 1 / energies)
    return {"ess_per_second": rate, "over_dynamics": rate / dynamics["independent_per_second"]}


def collect(out: Path, sequences: list[str], about: Row) -> Row:
    """Everything that is finished, with means by length."""
    report: Row = {"about": about}
    for part in PARTS:
        files = {s: out / part / f"{s}.json" for s in sequences}
        rows = {s: json.loads(file.read_text()) for s, file in files.items() if file.exists()}
        if rows:
            report[part] = {"rows": rows}
    for part in ("zero-shot", "finetune"):
        if part in report:
            report[part]["means"] = means(list(report[part]["rows"].values()))
    three = [report.get(part, {}).get("rows", {}) for part in ("zero-shot", "speed", "dynamics")]
    done = [s for s in sequences if all(s in rows and "error" not in rows[s] for rows in three)]
    if done:
        report["against dynamics"] = {s: per_second(*(rows[s] for rows in three)) for s in done}
    return report


def _seconds(job: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="prose")
    parser.add_argument("--heldout", type=Path, default=ROOT.parent / "shared/data/peptides_md/HELDOUT.txt")
    parser.add_argument("--sequences", nargs="+", help="instead of the starred ones of --heldout")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--reference", type=Path, help="folder of molecular dynamics; default OUT/reference-md")
    parser.add_argument("--reference-ps", type=int, default=1000, help="a temperature and run; two runs a sequence")
    parser.add_argument("--reference-flow", default="prose", help="weights whose proposals are moves of it, or none")
    parser.add_argument("--keep-references", action="store_true", help="write benchmarks/references too")
    parser.add_argument("--mixing-ps", type=int, default=500)
    parser.add_argument("--dynamics-ps", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--temperature", type=float, default=310.0)
    parser.add_argument("--points", type=int, default=2500, help="see molgen evaluate prose --points")
    parser.add_argument("--finetune", type=int, default=4, help="rounds, see FinetuneSettings")
    parser.add_argument("--finetune-lengths", type=int, nargs="+", default=[4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sequences = args.sequences or sorted(heldout(args.heldout, benchmark=True), key=lambda s: (len(s), s))
    reference = args.reference or args.out / "reference-md"
    proposal = load_flow(args.weights)
    mixing = None if args.reference_flow == "none" else load_flow(args.reference_flow)
    model = {"weights": proposal.hash, "temperature": args.temperature}
    drawn = {**model, "samples": args.samples, "points": args.points, "seed": args.seed}
    about = {
        "molgen": __version__, "commit": _commit(), "weights": proposal.hash, "temperature": args.temperature,
        "samples": args.samples, "parameters": sum(p.numel() for p in proposal.model.parameters()),
        "machine": f"{platform.processor() or platform.machine()}, {args.threads} threads",
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip

    def md_of(sequence: str) -> list[Any]:
        files = dynamics_of(sequence, reference) or sorted(references.FOLDER.glob(f"{sequence}.npz"))
        return [[file.name, file.stat().st_size] for file in files]

    def run(part: str, sequence: str) -> Row:
        file, peptide = args.out / part / f"{sequence}.json", build_peptide(sequence)
        if part == "reference":
            key = {"ps": args.reference_ps, "temperatures": TEMPERATURES, "folder": str(reference)}
            key |= {"flow": None if mixing is None else mixing.hash}
            row = kept(file, key, lambda: simulations(sequence, reference, args.reference_ps, TEMPERATURES, mixing))
            if args.keep_references:
                references.save([load_md(path) for path in dynamics_of(sequence, reference)], args.temperature)
            return row
        if part == "zero-shot":
            key = {**drawn, "reference": md_of(sequence)}
            return kept(file, key, lambda: judged(sequence, proposal, reference, args, args.seed))
        if part == "finetune":
            key = {**drawn, "reference": md_of(sequence), "rounds": args.finetune}
            name = f"{sequence}-{proposal.hash[:8]}-{args.finetune}x-{args.samples}-{args.temperature:g}-{args.seed}"
            folder = args.out / "finetune" / name
            return kept(file, key, lambda: finetuned(sequence, reference, folder, args))
        if part == "speed":
            return kept(file, model, lambda: rates(peptide, proposal, args.temperature))
        if part == "mixing":
            key = {**model, "ps": args.mixing_ps}
            return kept(file, key, lambda: mixed(sequence, args.out / "mixing-md", args.mixing_ps, proposal))
        key = {"ps": args.dynamics_ps, "temperature": args.temperature}
        folder = args.out / "dynamics-md"
        return kept(file, key, lambda: slowness(sequence, folder, args.dynamics_ps, args.temperature))

    for part in args.part:
        lengths = args.finetune_lengths if part == "finetune" else None
        for sequence in sequences:
            if lengths is None or len(sequence) in lengths:
                row = run(part, sequence)
                torch.set_num_threads(args.threads)
                figures = row.get("error") or row.get("weights") or {k: v for k, v in row.items() if k != "key"}
                print(part, sequence, json.dumps(figures), flush=True)
                report = collect(args.out, sequences, about)
                write_atomic(args.out / "prose.json", json_text(report))
    if args.sequences is None and (args.out / "prose.json").exists():
        write_atomic(ROOT / "benchmarks/results/prose.json", (args.out / "prose.json").read_text())


if __name__ == "__main__":
    main()
