"""Physics in the loop: what a few gradients of GFN2-xTB, or its saddle, add to TS-GEN's guess.

    python benchmarks/correction.py --data ../shared/data/rdb7_ts.npz --out DIR [--split test] [--count N] [--weights W]

For every reaction, one guess without noise; then, with the correction's weights,

- `gradients`: k = 0 to 5 times: one gradient at the geometry, one correction;
- `search`: the saddle search stopped after 5 gradient calls, then one correction;
- `saddle`: the saddle search to its end (100 calls at most), then what `molgen ts` corrects it to (two-level; two
  more calls). A search that does not converge, or fails, counts with the geometry it ended at; the two-level one
  is then that of the guess, as in `molgen ts`.

Errors are RMSD to the true transition state: proper rotation, 1/N, nothing dropped. Rows go to DIR/correction.jsonl
as they are made, so that a run can be stopped and repeated; the summary to DIR/correction.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import saddle
import torch

from molgen import __version__
from molgen.data.reactions import Reaction, load_npz
from molgen.errors import CalculatorError
from molgen.geometry.align import rmsd
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import refine
from molgen.saddle.modes import gradient
from molgen.saddle.optimize import Search
from molgen.tsgen import Generator, load_model
from molgen.tsgen.correction import corrected
from molgen.tsgen.correction_model import Correction, load_correction
from molgen.tsgen.generate import generate
from molgen.workflows.ts_correction import GUESS_CORRECTIONS, correct_guess, correct_saddle

GRADIENTS = 5


def error(reaction: Reaction, x: np.ndarray) -> float:
    """RMSD to the true transition state, Angstrom."""
    assert reaction.ts is not None
    return round(float(rmsd(torch.from_numpy(x), torch.from_numpy(np.array(reaction.ts)))), 5)


def examine(weights: Correction, reaction: Reaction, guess: np.ndarray) -> dict:
    """One row."""
    potential = XtbPotential(reaction.numbers, reaction.charge, reaction.spin)
    x, expected = guess, []
    geometries = [x]
    row: dict = {"name": reaction.name, "atoms": len(reaction), "failed": ""}
    try:
        for _ in range(GRADIENTS):
            x, deviation = corrected(weights.model, reaction, x, gradient(potential, x)[1], guess)
            geometries.append(x)
            expected.append(round(float(np.sqrt(np.mean(np.square(deviation)))), 4))
    except CalculatorError as problem:
        row["failed"] += f"gradients: {problem.what}; "
    geometries += [x] * (GRADIENTS + 1 - len(geometries))
    row |= {"gradients": [error(reaction, g) for g in geometries], "expected": expected}

    last, few = [guess, np.zeros_like(guess)], [guess, np.zeros_like(guess)]
    before = potential.calls

    def watch(search: Search) -> bool:
        last[:] = search.positions, search.gradient
        if potential.calls - before <= GRADIENTS:
            few[:] = last
        return False

    converged = False
    try:
        found = refine(potential, guess, reactant=reaction.reactant, product=reaction.product, stop=watch)
        converged = found.converged
        if converged:
            last[:] = found.positions, np.zeros_like(guess)
    except CalculatorError as problem:
        row["failed"] += f"search: {problem.what}; "
    row |= {
        "converged": converged,
        "calls": potential.calls - before + GUESS_CORRECTIONS,
        "saddle": error(reaction, last[0]),
    }
    early = corrected(weights.model, reaction, few[0], few[1], guess)[0]
    both = correct_saddle(weights, reaction, potential, last[0], guess) if converged else None
    both = both or correct_guess(weights, reaction, potential, guess)
    two_level = both.positions if both else guess  # the calculator failed on it
    row |= {"search": error(reaction, early), "two_level": error(reaction, two_level)}
    row |= {"two_level_expected": round(both.expected_rmsd if both else 0.0, 4)}
    row["positions"] = {"guess": guess, "gradients": geometries[-1], "saddle": last[0], "two_level": two_level}
    row["positions"] = {key: np.round(value, 4).tolist() for key, value in row["positions"].items()}
    return row


def run(weights: Correction, guesser: Generator, reactions: list[Reaction], out: Path) -> list[dict]:
    """Rows of all reactions; those in the file already are not made again."""
    file = out / "correction.jsonl"
    done = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    waiting = [reaction for reaction in reactions if reaction.name not in done]
    guesses = generate(guesser.model, waiting, steps=guesser.steps) if waiting else []
    with file.open("a") as log:
        for reaction, guess in zip(waiting, guesses, strict=True):
            done[reaction.name] = examine(weights, reaction, guess.positions[0].numpy())
            log.write(json.dumps(done[reaction.name]) + "\n")
            log.flush()
    return [done[reaction.name] for reaction in reactions]


def figures(values: list[float]) -> dict:
    """Median, mean and the 75 and 90 % quantiles."""
    quantiles = np.quantile(values, [0.5, 0.75, 0.9])
    names = ("median", "quantile_75", "quantile_90")
    return {name: round(float(v), 4) for name, v in zip(names, quantiles, strict=True)} | {
        "mean": round(float(np.mean(values)), 4)
    }


def summary(rows: list[dict]) -> dict:
    """The table."""
    ends = [row for row in rows if row["converged"]]
    return {
        "n": len(rows),
        "gradients": [figures([row["gradients"][k] for row in rows]) for k in range(GRADIENTS + 1)],
        "search_5_calls": figures([row["search"] for row in rows]),
        "saddle": figures([row["saddle"] for row in rows]),
        "two_level": figures([row["two_level"] for row in rows]),
        "two_level_of_converged": figures([row["two_level"] for row in ends]),
        "saddle_of_converged": figures([row["saddle"] for row in ends]),
        "converged": round(len(ends) / len(rows), 4),
        "calls_mean": round(float(np.mean([row["calls"] for row in rows])), 1),
        "failed": sum(bool(row["failed"]) for row in rows),
        "expected_against_error": calibration(rows),
    }


def calibration(rows: list[dict], parts: int = 5) -> list[dict]:
    """Expected and true RMSD of the two-level one, by fifths of the expected one."""
    order = sorted(rows, key=lambda row: row["two_level_expected"])
    return [
        {
            "expected": round(float(np.sqrt(np.mean([row["two_level_expected"] ** 2 for row in part]))), 4),
            "error": round(float(np.sqrt(np.mean([row["two_level"] ** 2 for row in part]))), 4),
            "error_median": round(float(np.median([row["two_level"] for row in part])), 4),
        }
        for part in (order[i * len(order) // parts : (i + 1) * len(order) // parts] for i in range(parts))
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="tsgen-gfn2")
    parser.add_argument("--guesses", default="tsgen", help="weights of the guess")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.count:
        reactions = saddle.chosen(args.data, args.split, args.count, args.seed)
    else:
        reactions = load_npz(args.data, args.split)
    begin = time.perf_counter()
    weights, guesser = load_correction(args.weights), load_model(args.guesses)
    report = summary(run(weights, guesser, reactions, args.out))
    report["about"] = {
        "molgen": __version__, "weights": weights.hash, "guesses": guesser.hash, "split": args.split,
        "machine": f"{platform.processor() or platform.machine()}, 1 thread", "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"), "wall_seconds": round(time.perf_counter() - begin, 1),
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    (args.out / "correction.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
