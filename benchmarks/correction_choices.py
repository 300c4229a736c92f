"""The choices behind the correction, on validation reactions: what the points are, where the guess comes in, steering.

    python benchmarks/correction_choices.py --data rdb7_ts.npz --searches searches.npz --out DIR

- `points` (needs --searches): errors of the stored points before and after the correction, by split and kind.
- `order`: the saddle corrected with the plain guess, with the guess corrected twice, and with the search begun
  from that; the calls and the share converged of both searches.
- `steering`: of five samples the one chosen by the surface (smallest force across the reaction, smallest Newton
  decrement), by the predicted deviation, none (the first), and by the truth.

RMSD medians and means, Angstrom; all but `points` on the single-product reactions of the validation split. The result
goes to DIR/correction_choices.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from correction import error, figures

from molgen.data.reactions import Reaction, load_npz
from molgen.errors import CalculatorError
from molgen.geometry.align import rmsd
from molgen.geometry.model_hessian import STIFFEN, lindh_hessian
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import refine
from molgen.saddle.modes import gradient
from molgen.saddle.refine import reaction_direction
from molgen.tsgen import load_model
from molgen.tsgen.correction import correct, corrected, load_training_points
from molgen.tsgen.correction_model import CorrectionModel, load_correction
from molgen.tsgen.generate import generate

MOST = 1000  # points of a kind


def points(model: CorrectionModel, data: Path, searches: Path) -> dict:
    """Errors of the points before and after the correction, and after one that is told of no gradient."""
    out: dict = {}
    for split in ("train", "val"):
        stored = load_training_points(data, searches, split)
        for kind in ("guess", "path", "saddle", "near"):
            chosen = torch.from_numpy(np.flatnonzero(stored.kind == kind)[:MOST])
            if not len(chosen):
                continue
            owner = torch.bucketize(chosen, stored.offsets, right=True) - 1
            batch, x, slope, guess, _ = stored.at(owner, chosen)
            after, blind = (correct(model, batch, x, g, guess)[0] for g in (slope, torch.zeros_like(slope)))
            errors = [rmsd(y, batch.true_ts, batch.mask).tolist() for y in (x, after, blind)]
            names = ("before", "after", "without_gradient")
            out[f"{split} {kind}"] = {name: figures(e) for name, e in zip(names, errors, strict=True)}
    return out


def search(potential: XtbPotential, reaction: Reaction, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """End, gradient there, calls, and whether the saddle search converged."""
    last, before, converged = [start, np.zeros_like(start)], potential.calls, False
    try:
        found = refine(
            potential, start, reactant=reaction.reactant, product=reaction.product,
            stop=lambda s: bool(last.__setitem__(slice(None), [s.positions, s.gradient])),
        )  # fmt: skip
        converged = found.converged
        if converged:
            last = [found.positions, np.zeros_like(start)]
    except CalculatorError:
        pass  # counts with where it ended
    return last[0], last[1], potential.calls - before, converged


def order(model: CorrectionModel, reactions: list[Reaction], guesses: list[np.ndarray]) -> dict:
    """Where the correction of the guess comes in."""
    errors: dict[str, list[float]] = {}
    calls: dict[str, list[int]] = {"guess": [], "corrected guess": []}
    done: dict[str, list[bool]] = {"guess": [], "corrected guess": []}
    for reaction, guess in zip(reactions, guesses, strict=True):
        potential, better = XtbPotential(reaction.numbers), guess
        try:
            for _ in range(2):
                better = corrected(model, reaction, better, gradient(potential, better)[1], guess)[0]
        except CalculatorError:
            better = guess
        ends = {}
        for name, start in (("guess", guess), ("corrected guess", better)):
            *ends[name], spent, converged = search(potential, reaction, start)
            calls[name].append(spent + 2 * (name != "guess"))
            done[name].append(converged)
        found = {"guess": guess, "guess corrected twice": better, "saddle": ends["guess"][0]}
        for name, end, given in (
            ("saddle, plain guess", "guess", guess),
            ("saddle, corrected guess", "guess", better),
            ("saddle found from the corrected guess, corrected guess", "corrected guess", better),
        ):
            found[name] = corrected(model, reaction, ends[end][0], ends[end][1], given)[0]
        for name, x in found.items():
            errors.setdefault(name, []).append(error(reaction, x))
    searches = {
        name: {"calls_mean": round(float(np.mean(calls[name])), 1), "converged": round(float(np.mean(done[name])), 4)}
        for name in calls
    }
    return {"rmsd": {name: figures(values) for name, values in errors.items()}, "searches_from": searches}


def steering(reactions: list[Reaction], weights: str) -> dict:
    """Which of five samples the surface would choose."""
    guesser, errors = load_model(weights), {}
    drawn = generate(guesser.model, reactions, samples=5, steps=guesser.steps)
    for reaction, guesses in zip(reactions, drawn, strict=True):
        potential, across, decrement = XtbPotential(reaction.numbers), [], []
        true = [error(reaction, x) for x in guesses.positions.numpy()]
        for x in guesses.positions.numpy():
            try:
                slope = gradient(potential, x)[1].ravel()
            except CalculatorError:
                across.append(np.inf)
                decrement.append(np.inf)
                continue
            along = reaction_direction(reaction.numbers, x, reaction.reactant, reaction.product)
            rest = slope if along is None else slope - (along.ravel() @ slope) * along.ravel()
            hessian = lindh_hessian(reaction.numbers, x) + STIFFEN * np.eye(x.size)
            across.append(np.linalg.norm(rest))
            decrement.append(rest @ np.linalg.solve(hessian, rest))
        scores = {
            "first": [0.0] + 4 * [1.0], "force across": across, "Newton decrement": decrement,
            "predicted deviation": guesses.deviation.square().mean(1).tolist(), "truth": true,
        }  # fmt: skip
        for name, score in scores.items():
            errors.setdefault(name, []).append(true[int(np.argmin(score))])
    return {name: figures(values) for name, values in errors.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--searches", type=Path)
    parser.add_argument("--weights", default="tsgen-gfn2")
    parser.add_argument("--guesses", default="tsgen")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, guesser = load_correction(args.weights).model, load_model(args.guesses)
    reactions = [r for r in load_npz(args.data, "val") if r.product_fragments.max() == 0]
    guesses = [g.positions[0].numpy() for g in generate(guesser.model, reactions, steps=guesser.steps)]
    report: dict = {"n": len(reactions), "date": time.strftime("%Y-%m-%d")}
    if args.searches is not None:
        report["points"] = points(model, args.data, args.searches)
    report |= {"order": order(model, reactions, guesses), "steering": steering(reactions, args.guesses)}
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    (args.out / "correction_choices.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
