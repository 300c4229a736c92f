"""How many reactions end in a verified transition state, and for how many gradient calls, from which guess.

    python benchmarks/saddle.py --data ../shared/data/rdb7_ts.npz --split test --count 200 --seed 0 --out DIR

Every guess goes through the same refinement and verification on GFN2-xTB; every gradient is counted, failures included.

- `dft`: the transition state of the data set (wB97X-D3): the ceiling.
- `sqrt`: molgen.geometry.embed.sqrt_distance_guess, no learning, no calls.
- `neb`: ASE's climbing-image NEB, 7 images with the two end points (5 moving), product fragments superposed on the
  reactant (Kabsch), IDPP path, FIRE to 0.3 eV/A without and then to 0.1 with climbing, 180 steps at most together; the
  highest image is the guess.
- `dft-sella`, `sqrt-sella`: the same guesses, refined by sella instead.

Other guesses: `run(reactions, name, guess, out)` from Python, `guess(reaction, potential) -> (N, 3) Angstrom`.
A run can be stopped and repeated: reactions already in DIR/<mode>.jsonl are not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from molgen.data import Reaction, load_npz
from molgen.errors import CalculatorError
from molgen.geometry.embed import place_together, sqrt_distance_guess
from molgen.potentials import Potential
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import Refinement, mode_overlap, refine, verify
from molgen.units import kcal

Guess = Callable[[Reaction, Potential], np.ndarray]
VERDICTS = ("intended", "half", "unintended", "not_a_saddle", "not_converged", "failed")


def _batch(reaction: Reaction) -> list[torch.Tensor]:
    sides = (reaction.reactant, reaction.product, reaction.reactant_fragments, reaction.product_fragments)
    return [torch.tensor(np.array(a))[None] for a in sides]


def dft_guess(reaction: Reaction, potential: Potential) -> np.ndarray:
    """The transition state of the data set."""
    return reaction.ts


def sqrt_guess(reaction: Reaction, potential: Potential) -> np.ndarray:
    """Distances sqrt(d_R d_P), embedded."""
    return sqrt_distance_guess(*_batch(reaction))[0][0].numpy()


def neb_guess(reaction: Reaction, potential: Potential) -> np.ndarray:
    """Highest image of a climbing-image nudged elastic band."""
    from ase import Atoms
    from ase.calculators.calculator import CalculatorError as AseError
    from ase.mep import NEB
    from ase.optimize import FIRE

    from molgen.potentials.ase import PotentialCalculator

    start, end = (x[0].numpy() for x in place_together(*_batch(reaction)))
    images = [Atoms(reaction.numbers, start) for _ in range(6)] + [Atoms(reaction.numbers, end)]
    for image in images:  # a calculator each, so that the end points are evaluated once
        image.calc = PotentialCalculator(potential)
    band = NEB(images, method="improvedtangent")
    band.interpolate("idpp")
    try:
        first = FIRE(band, logfile=None)
        first.run(fmax=0.3, steps=180)
        band.climb = True
        FIRE(band, logfile=None).run(fmax=0.1, steps=180 - first.nsteps)
        energies = [image.get_potential_energy() for image in images]
    except AseError as error:
        raise CalculatorError(str(error), where="nudged elastic band") from error
    return images[int(np.argmax(energies[1:-1])) + 1].positions


def sella_search(potential: Potential, positions: np.ndarray, max_calls: int = 100, **_: object) -> Refinement:
    """sella as it comes (order 1, Cartesian) in the place of molgen's refinement, under the same cap."""
    from ase import Atoms
    from ase.calculators.calculator import CalculatorError as AseError
    from sella import Sella  # an extra: pip install sella

    from molgen.potentials.ase import PotentialCalculator

    before = potential.calls
    atoms = Atoms(potential.numbers, positions, calculator=PotentialCalculator(potential))
    converged = False
    try:
        for converged in Sella(atoms, order=1, internal=False, logfile=None).irun(0.02, 1000):
            if converged or potential.calls - before >= max_calls:
                break
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    except AseError as error:
        raise CalculatorError(str(error), where="sella") from error
    none = np.zeros((positions.size, positions.size))
    return Refinement(atoms.positions, atoms.get_potential_energy(), force, converged, potential.calls - before, none)


GUESSES: dict[str, Guess] = {"dft": dft_guess, "sqrt": sqrt_guess, "neb": neb_guess}
SELLA = "-sella"  # ending of a mode that searches with sella
MODES = (*GUESSES, *(name + SELLA for name in GUESSES))


def examine(reaction: Reaction, guess: Guess, method: str = "quick", search: Callable = refine) -> dict:
    """One row: guess, refine, verify; calls and seconds of each."""
    potential = XtbPotential(reaction.numbers, reaction.charge, reaction.spin)
    row = {"name": reaction.name, "atoms": len(reaction), "fragments": int(reaction.product_fragments.max()) + 1}
    began, marks = time.perf_counter(), []
    verdict, reason = "failed", ""
    ends = (reaction.reactant, reaction.product)
    try:
        positions = guess(reaction, potential)
        marks.append(potential.calls)
        refined = search(potential, positions, reactant=ends[0], product=ends[1])
        marks.append(potential.calls)
        row["overlap"] = round(mode_overlap(refined, reaction.numbers, *ends), 4)
        row |= {"fmax": round(refined.fmax, 4), "positions": np.round(refined.positions, 4).tolist()}
        if refined.converged:
            found = verify(potential, refined.positions, *ends, method=method)
            verdict, reason = found.verdict, found.reason
            row["imaginary_frequency_cm"] = round(found.imaginary_frequency_cm, 1)
            row["frequencies_cm"] = np.round(found.modes.frequencies_cm[:3], 1).tolist()
            if found.barriers is not None:
                row["barrier_forward_kcal"], row["barrier_reverse_kcal"] = (round(kcal(b), 2) for b in found.barriers)
        else:
            verdict, reason = "not_converged", f"largest force {refined.fmax:.3f} eV/A"
    except CalculatorError as error:
        reason = str(error)
    marks = [0, *marks, *[potential.calls] * (3 - len(marks))]
    calls = dict(zip(("calls_guess", "calls_refine", "calls_verify"), np.diff(marks).tolist(), strict=True))
    return row | {"verdict": verdict, "reason": reason, **calls, "seconds": round(time.perf_counter() - began, 3)}


def run(reactions: list[Reaction], name: str, guess: Guess, out: Path, method: str = "quick") -> list[dict]:
    """Rows of all reactions, those already in `out`/`name`.jsonl read from there, the others appended to it."""
    search = sella_search if name.endswith(SELLA) else refine
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.jsonl"
    done = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    with file.open("a") as log:
        for reaction in reactions:
            if reaction.name not in done:
                done[reaction.name] = examine(reaction, guess, method, search)
                log.write(json.dumps(done[reaction.name]) + "\n")
                log.flush()
    return [done[reaction.name] for reaction in reactions]


def summary(rows: list[dict]) -> dict:
    """Shares of verdicts and calls; `calls_per_intended` counts every call of every reaction."""
    calls = {key: np.array([row[key] for row in rows]) for key in ("calls_guess", "calls_refine", "calls_verify")}
    search = calls["calls_guess"] + calls["calls_refine"]
    good = np.array([row["verdict"] == "intended" for row in rows])
    shares = {verdict: round(float(np.mean([row["verdict"] == verdict for row in rows])), 4) for verdict in VERDICTS}
    return {
        "n": len(rows),
        **shares,
        **{f"{key}_mean": round(float(value.mean()), 1) for key, value in calls.items()},
        "calls_search_median": float(np.median(search)),
        "calls_search_mean_intended": round(float(search[good].mean()), 1) if good.any() else None,
        "calls_search_per_intended": round(float(search.sum() / max(good.sum(), 1)), 1),
        "calls_per_intended": round(float((search + calls["calls_verify"]).sum() / max(good.sum(), 1)), 1),
        "seconds_mean": round(float(np.mean([row["seconds"] for row in rows])), 2),
    }


def chosen(data: Path, split: str, count: int, seed: int) -> list[Reaction]:
    """`count` reactions of `split`, drawn without replacement under `seed`."""
    reactions = load_npz(data, split)
    order = np.random.default_rng(seed).permutation(len(reactions))[:count]
    return [reactions[k] for k in order]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["dft", "sqrt", "neb"])
    parser.add_argument("--method", choices=("quick", "irc"), default="quick")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reactions = chosen(args.data, args.split, args.count, args.seed)
    results = {}
    for mode in args.modes:
        results[mode] = summary(run(reactions, mode, GUESSES[mode.removesuffix(SELLA)], args.out, args.method))
        text = json.dumps({"split": args.split, "seed": args.seed, "method": args.method, "modes": results}, indent=1)
        (args.out / "summary.json").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
