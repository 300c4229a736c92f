"""TS-GEN's error against the reactions it learned from: how many, of which kind.

    python benchmarks/learning_curve.py --data rdb7_ts.npz [--new reactions.npz ...] [--rows all/8 ...] --out DIR

Every row is a small network (0.78 M parameters) trained from scratch by the same number of steps:

- `all/8`, `all/4`, `all/2`, `all`: nested random parts of the training split.
- `single`: those of its reactions with one reactant and one product.
- `new`: the whole split and the reactions of --new, which may be of another level; the network is told which.

The weights of a row are those with the lowest mean error on the single-product reactions of the validation split; it is
given with the error on as many of the reactions learned from. `--test` adds the test split, for rows that are finished.
Rows are kept in DIR; DIR/learning_curve.json holds all of them. An hour and a half on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from molgen.checkpoint import BEST, STATE
from molgen.data.reactions import Reaction, load_npz
from molgen.files import json_text, write_atomic
from molgen.rng import generator
from molgen.tsgen import load_model
from molgen.tsgen.evaluate import evaluate
from molgen.tsgen.training import make_model, train_tsgen

PARTS = {"all/8": 8, "all/4": 4, "all/2": 2, "all": 1}
ROWS = (*PARTS, "single", "new")


def single(reactions: Sequence[Reaction]) -> list[Reaction]:
    """Those with one molecule on either side."""
    return [r for r in reactions if max(r.reactant_fragments) == 0 and max(r.product_fragments) == 0]


def learned_from(row: str, train: list[Reaction], new: Sequence[Path]) -> list[Reaction]:
    """The reactions of a row."""
    if row == "new":
        return train + [r for path in new for r in load_npz(path, "train", verified=True)]
    if row == "single":
        return single(train)
    order = generator(0, len(train)).permutation(len(train))
    return [train[k] for k in order[: len(train) // PARTS[row]]]


def error(weights: Path, reactions: list[Reaction]) -> dict[str, float]:
    """Median and mean RMSD (Angstrom) of noiseless guesses in two steps."""
    found = evaluate(load_model(weights).model, reactions, steps=2)
    return {"median": found["rmsd_median"], "mean": found["rmsd_mean"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--new", type=Path, nargs="+", default=[])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS[:-1])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if "new" in args.rows and not args.new:
        parser.error("the row `new` needs --new")
    train, val = (load_npz(args.data, split) for split in ("train", "val"))
    held = single(val)
    args.out.mkdir(parents=True, exist_ok=True)
    for row in args.rows:
        folder = args.out / f"{row.replace('/', '-')}-{args.steps}-{args.seed}"
        file = folder / "row.json"
        if not file.exists():
            reactions, begin = learned_from(row, train, args.new), time.process_time()
            folder.mkdir(exist_ok=True)
            model = make_model(reactions, held, seed=args.seed)
            resume = (folder / STATE).is_dir()
            found = train_tsgen(model, reactions, held, folder, steps=args.steps, seed=args.seed, resume=resume)
            seen = [r for r in single(reactions) if r.level == held[0].level]
            seen = [seen[k] for k in np.linspace(0, len(seen) - 1, len(held)).astype(int)]
            figures = {
                "row": row, "steps": args.steps, "seed": args.seed, "reactions": len(reactions),
                "single": len(single(reactions)), "validation": error(folder / BEST, held),
                "learned": error(folder / BEST, seen), "last": found, "cpu_seconds": time.process_time() - begin,
            }  # fmt: skip
            write_atomic(file, json_text(figures))
        figures = json.loads(file.read_text())
        if args.test and "test" not in figures:
            figures["test"] = error(folder / BEST, single(load_npz(args.data, "test")))
            write_atomic(file, json_text(figures))
        print(json.dumps({key: figures.get(key) for key in ("row", "reactions", "validation", "learned", "test")}))
    rows = [json.loads(file.read_text()) for file in sorted(args.out.glob("*/row.json"))]
    about = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    write_atomic(args.out / "learning_curve.json", json_text({"about": about, "rows": rows}))


if __name__ == "__main__":
    main()
