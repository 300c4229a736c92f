"""TS-GEN in figures: geometry errors on a test split, invariance, saddles found per gradient call, and confidence.

    python benchmarks/ts.py --data ../shared/data/rdb7_ts.npz --out DIR [--weights tsgen] [--stages geometry ...]

Stages, each resumable, each adding to DIR/ts.json (rows of the saddle searches in DIR/*.jsonl):

- `geometry`: every reaction of the test split, one sample, against guesses without learning.
- `invariance`: the change of a guess under random rotations, atom orders and fragment placements.
- `saddles`: 200 reactions of the test split fixed by seed; guess + refinement + verification on GFN2-xTB, for (a) one
  TS-GEN guess, (b) the sqrt-distance guess, (c) ASE's CI-NEB, (d) the true DFT transition state.
- `ranked`: the same reactions through `find_ts` with 8 samples, up to the first saddles proven (`--no-lower`).
- `lower`: the first of these with and without looking for lower saddles, one step each.
- `calibrate`: fits the confidence model on reactions of the validation split and writes it into the weights folder.
- `confidence`: reliability of that model on the rows of `saddles`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import saddle
import torch
from ase import Atoms

from molgen import __version__, find_ts
from molgen.checkpoint import load_checkpoint, save_checkpoint
from molgen.data.reactions import Reaction, load_npz
from molgen.errors import CalculatorError
from molgen.geometry.align import rmsd
from molgen.tsgen import Generator, load_model
from molgen.tsgen.condition import prepare
from molgen.tsgen.evaluate import evaluate
from molgen.tsgen.generate import Guesses, generate
from molgen.tsgen.rank import confidence, fit_calibration, guess_features, refined_features, reliability
from molgen.units import kcal
from molgen.workflows.ts_result import TSResult

STAGES = ("geometry", "invariance", "saddles", "calibrate", "confidence", "ranked", "lower")
LOWERED = 0.1  # kcal/mol


def guesses_of(model: Generator, reactions: list[Reaction]) -> dict[str, tuple[Guesses, dict[str, float]]]:
    """The first sample of every reaction, and its features for the confidence model."""
    found = generate(model.model, reactions, steps=model.steps)
    plain = prepare(reactions).guess.double()
    out = {}
    for i, (reaction, guess) in enumerate(zip(reactions, found, strict=True)):
        moved = float(rmsd(guess.positions[0], plain[i, : len(reaction)]))
        out[reaction.name] = guess, guess_features(guess.deviation[0].numpy(), moved)
    return out


def geometry(model: Generator, reactions: list[Reaction]) -> dict:
    """The metric table; `seconds_per_guess` at batch 32 on all cores torch was given."""
    figures = evaluate(model.model, reactions, steps=model.steps)
    per_reaction = figures.pop("per_reaction")
    return {**figures, "rmsd_quantiles": np.quantile(per_reaction["rmsd"], [0.1, 0.25, 0.75, 0.9]).round(4).tolist()}


def invariance(model: Generator, reactions: list[Reaction], seed: int = 0) -> dict:
    """Largest and mean RMSD (Angstrom) between a guess and the guess for the same reaction, presented differently."""
    rng = np.random.default_rng(seed)

    def turned(x: np.ndarray) -> np.ndarray:
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        return x @ (q * np.sign(np.linalg.det(q))).T + rng.normal(size=3) * 5

    def scattered(r: Reaction) -> Reaction:
        product = r.product.copy()
        for k in range(int(r.product_fragments.max()) + 1):
            product[r.product_fragments == k] = turned(product[r.product_fragments == k])
        return replace(r, reactant=turned(r.reactant), product=product)

    orders = [rng.permutation(len(r)) for r in reactions]
    shuffled = [
        replace(
            r, numbers=r.numbers[o], reactant=r.reactant[o], product=r.product[o],
            product_fragments=r.product_fragments[o], reactant_fragments=r.reactant_fragments[o], ts=None,
        )
        for r, o in zip(reactions, orders, strict=True)
    ]  # fmt: skip
    base = [g.positions[0] for g in generate(model.model, reactions, steps=model.steps)]
    out = {"n": len(reactions)}
    for name, changed in (
        ("rotation", [replace(r, reactant=turned(r.reactant), product=turned(r.product)) for r in reactions]),
        ("fragment_placement", [scattered(r) for r in reactions]),
        ("atom_order", shuffled),
        ("exchange_of_sides", [r.reversed for r in reactions]),
    ):
        new = [g.positions[0] for g in generate(model.model, changed, steps=model.steps)]
        if name == "atom_order":
            new = [x[np.argsort(o)] for x, o in zip(new, orders, strict=True)]
        error = np.array([float(rmsd(a, b)) for a, b in zip(base, new, strict=True)])
        out[name] = {"max": float(error.max()), "mean": float(error.mean()), "over_1e-3": int((error > 1e-3).sum())}
    return out


def searches(model: Generator, reactions: list[Reaction], out: Path, modes: list[str]) -> dict:
    """Summaries of the saddle searches by origin of the guess."""
    own = guesses_of(model, reactions)
    sources = {**saddle.GUESSES, "molgen": lambda reaction, potential: own[reaction.name][0].positions[0].numpy()}
    return {mode: saddle.summary(saddle.run(reactions, mode, sources[mode], out)) for mode in modes}


def features_of(
    model: Generator, reactions: list[Reaction], rows: list[dict]
) -> tuple[list[dict], list[dict], list[bool]]:
    """Features before and after refinement, and the outcome, of rows whose refinement converged."""
    own = guesses_of(model, reactions)
    before, after, intended = [], [], []
    for row in rows:
        guess, first = own[row["name"]]
        refined = torch.tensor(row["positions"], dtype=torch.float64) if "positions" in row else guess.positions[0]
        moved = float(rmsd(guess.positions[0], refined))
        before.append(first)
        after.append({**first, **refined_features(moved, row.get("overlap", 0.0), row["calls_refine"])})
        intended.append(row["verdict"] == "intended")
    return before, after, intended


def calibrate(model: Generator, folder: Path, reactions: list[Reaction], out: Path) -> dict:
    """Fit the confidence model on validation reactions and write it beside the weights."""
    own = guesses_of(model, reactions)
    rows = saddle.run(reactions, "val_molgen", lambda r, _: own[r.name][0].positions[0].numpy(), out)
    before, after, intended = features_of(model, reactions, rows)
    calibration = {"guess": fit_calibration(before, intended), "refined": fit_calibration(after, intended)}
    checkpoint = load_checkpoint(folder)
    config = {**checkpoint.config, "confidence": {**calibration, "reactions": len(rows)}}
    save_checkpoint(folder, checkpoint.tensors, config)
    return {"n": len(rows), "intended": float(np.mean(intended)), **calibration}


def judge(model: Generator, reactions: list[Reaction], rows: list[dict]) -> dict:
    """Reliability tables of both confidence models on test rows."""
    before, after, intended = features_of(model, reactions, rows)
    calibration = model.config["confidence"]
    out = {}
    for name, features in (("guess", before), ("refined", after)):
        predicted = [confidence(f, calibration[name]) for f in features]
        error, table = reliability(predicted, intended)
        good, bad = np.array(predicted)[intended], np.array(predicted)[~np.array(intended)]
        ordered = float(np.mean(good[:, None] > bad[None]) + 0.5 * np.mean(good[:, None] == bad[None]))
        out[name] = {"expected_calibration_error": error, "area_under_roc": ordered, "table": table}
    return out


def rows_of(reactions: list[Reaction], file: Path, row_of: Callable[[Reaction], dict]) -> list[dict]:
    """A row for every reaction; those that `file` holds already are not made again."""
    done = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    with file.open("a") as log:
        for reaction in (r for r in reactions if r.name not in done):
            done[reaction.name] = row_of(reaction)
            log.write(json.dumps(done[reaction.name]) + "\n")
            log.flush()
    return [done[r.name] for r in reactions]


def found(reaction: Reaction, weights: str, **options: Any) -> TSResult:
    """`find_ts` of the two sides as they are, in one order of atoms."""
    sides = Atoms(reaction.numbers, reaction.reactant), Atoms(reaction.numbers, reaction.product)
    return find_ts(*sides, map_atoms=False, weights=weights, **options)


def ranked(reactions: list[Reaction], weights: str, out: Path) -> dict:
    """`find_ts` with 8 samples on every reaction, up to the first saddles proven, all calls counted."""

    def row_of(reaction: Reaction) -> dict:
        row = {"name": reaction.name, "verdict": "failed", "calls": 0, "seconds": 0.0, "source": ""}
        try:
            result = found(reaction, weights, lower=False)
        except CalculatorError as error:
            return row | {"reason": str(error)}
        row |= {"verdict": result.best.verdict, "calls": result.gradient_calls, "source": result.best.source}
        row |= {"seconds": round(result.seconds, 2), "candidates": len(result.candidates)}
        way = result.mechanism
        row["steps"] = len(way.steps) if way is not None and way.complete else 0
        row["calls_on"] = sum(s.gradient_calls for s in way.searches[1:]) if way is not None else 0
        return row

    rows = rows_of(reactions, out / "ranked.jsonl", row_of)
    share = {v: float(np.mean([row["verdict"] == v for row in rows])) for v in sorted({row["verdict"] for row in rows})}
    calls, seconds = np.array([row["calls"] for row in rows]), np.array([row["seconds"] for row in rows])
    from_flow = float(np.mean([row["verdict"] == "intended" and row["source"] == "TS-GEN" for row in rows]))
    on = np.array([row.get("calls_on", 0) for row in rows])
    figures = {
        "calls_mean": float(calls.mean()), "calls_median": float(np.median(calls)),
        "calls_first_mean": float((calls - on).mean()),
        "several_steps": float(np.mean([row["verdict"] != "intended" and row.get("steps", 0) > 0 for row in rows])),
        "half_in_steps": float(np.mean([row["verdict"] == "half" and row.get("steps", 0) > 0 for row in rows])),
    }  # fmt: skip
    return {"n": len(rows), **share, "intended_from_flow": from_flow, **figures, "seconds_mean": float(seconds.mean())}


def lower(reactions: list[Reaction], weights: str, out: Path) -> dict:
    """`find_ts` once up to the first saddles proven, once looking for lower ones: what that costs and finds."""

    def row_of(reaction: Reaction) -> dict:
        row: dict = {"name": reaction.name, "first": None, "lower": None}
        for key in ("first", "lower"):
            try:
                result = found(reaction, weights, follow=0, lower=key == "lower")
            except CalculatorError:
                continue
            best, spent = result.best, {"calls": result.gradient_calls, "seconds": round(result.seconds, 2)}
            row[key] = {"energy": best.energy, "barrier": best.barrier_forward_kcal, "source": best.source, **spent}
            row[key]["proven"] = best.verdict == "intended" and not best.stereo
        return row

    rows = rows_of(reactions, out / "lower.jsonl", row_of)
    proven = [row for row in rows if row["first"] and row["first"]["proven"]]
    gain = np.array([kcal(row["first"]["energy"] - row["lower"]["energy"]) for row in proven])
    spent = {
        f"{figure}_{key}_mean": float(np.mean([row[key][figure] for row in proven]))
        for figure in ("calls", "seconds") for key in ("first", "lower")
    }  # fmt: skip
    lowered = np.sort(gain[gain > LOWERED]).round(2).tolist()
    return {"n": len(rows), "proven": len(proven), "lowered_kcal": lowered, **spent}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="tsgen")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=200, help="reactions of the saddle searches")
    parser.add_argument("--ranked-count", type=int, default=200, help="how many of them also through find_ts")
    parser.add_argument("--lower-count", type=int, default=60, help="how many of them with lower saddles looked for")
    parser.add_argument("--calibrate-split", default="val")
    parser.add_argument("--calibrate-count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", default=["molgen", "sqrt", "neb", "dft"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "ts.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    for stage in args.stages:
        model = load_model(args.weights)
        chosen = saddle.chosen(args.data, args.split, args.count, args.seed)
        begin = time.perf_counter()
        if stage == "geometry":
            figures = geometry(model, load_npz(args.data, args.split))
        elif stage == "invariance":
            multi = [r for r in load_npz(args.data, args.calibrate_split) if r.product_fragments.max() > 0]
            figures = {"single": invariance(model, chosen), "multi_fragment": invariance(model, multi)}
        elif stage == "saddles":
            figures = searches(model, chosen, args.out, args.modes)
        elif stage == "calibrate":
            from molgen.checkpoint import SHIPPED

            folder = SHIPPED / args.weights if (SHIPPED / args.weights).is_dir() else Path(args.weights)
            held = saddle.chosen(args.data, args.calibrate_split, args.calibrate_count, args.seed)
            figures = calibrate(model, folder, held, args.out)
        elif stage == "confidence":
            rows = searches_rows(args.out, chosen)
            figures = judge(model, chosen, rows)
        elif stage == "lower":
            figures = lower(chosen[: args.lower_count], args.weights, args.out)
        else:
            figures = ranked(chosen[: args.ranked_count], args.weights, args.out)
        report[stage] = {**figures, "wall_seconds": round(time.perf_counter() - begin, 1)}
        report["about"] = {
            "molgen": __version__, "weights": model.hash, "split": args.split, "seed": args.seed,
            "machine": f"{platform.processor() or platform.machine()}, {args.threads} threads",
            "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        file.write_text(json.dumps(report, indent=1))
        print(stage, json.dumps(figures, indent=1))


def searches_rows(out: Path, reactions: list[Reaction]) -> list[dict]:
    """The rows `saddles` left for TS-GEN's guesses."""
    rows = {row["name"]: row for row in map(json.loads, (out / "molgen.jsonl").read_text().splitlines())}
    return [rows[reaction.name] for reaction in reactions]


if __name__ == "__main__":
    main()
