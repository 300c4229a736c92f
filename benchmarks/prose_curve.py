"""Prose's forward ESS against the sequences it learned from.

    python benchmarks/prose_curve.py --data MD... --exclude HELDOUT.txt --val AY,PW,... \
        [--sequences 10 40 160 0] --out DIR

Every row is a small flow (0.54 M parameters) trained from scratch by the same number of steps on the dynamics of so
many sequences, nested random parts of all (0: all of them). The weights of a row are those with the highest forward
ESS on the sequences of --val; "learned" are the same figures on as many of the sequences learned from.
Rows are kept in DIR; DIR/prose_curve.json holds all of them. Half an hour of a core a row.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from molgen.checkpoint import BEST, STATE
from molgen.files import json_text, write_atomic
from molgen.prose.frames import Frames
from molgen.prose.training import train_prose, validation_figures
from molgen.prose.weights import load_flow, make_flow
from molgen.rng import generator, sample_seed
from molgen.workflows.train_prose import joined, load_training_data


def learned_from(train: list[Frames], count: int) -> list[Frames]:
    """The first `count` sequences in a random order that is the same for every row; 0: all."""
    order = generator(0, len(train)).permutation(len(train))
    return [train[k] for k in order[: count or None]]


def figures(folder: Path, data: list[Frames]) -> dict[str, float]:
    """NLL a degree of freedom, spread (kT) and forward ESS of the best weights, means over sequences."""
    found = validation_figures(load_flow(folder / BEST).model, data)
    return {name: round(found[f"val_{name}"], 4) for name in ("nll", "spread", "forward")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="as of molgen train prose")
    parser.add_argument("--exclude", type=Path, required=True)
    parser.add_argument("--val", required=True, help="sequences that validate: AY,PW")
    parser.add_argument("--sequences", type=int, nargs="+", default=[10, 40, 160, 0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = load_training_data(args.data, exclude=args.exclude, val=args.val.split(","))
    everything = joined(found.train)
    for count in args.sequences:
        train = learned_from(everything, count)
        folder = args.out / f"{len(train)}-{args.steps}-{args.seed}"
        file = folder / "row.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            begin = time.process_time()
            torch.manual_seed(sample_seed(args.seed))
            last = train_prose(
                make_flow("small"), train, found.val, folder, steps=args.steps, seed=args.seed,
                resume=(folder / STATE).is_dir(),
            )  # fmt: skip
            imitated = [frames for frames in train if not frames.own[frames.at(frames.temperatures()[0])].all()]
            seen = [imitated[k] for k in np.linspace(0, len(imitated) - 1, len(found.val)).astype(int)]
            row = {
                "sequences": len(train), "frames": sum(map(len, train)), "steps": args.steps, "seed": args.seed,
                "validation": figures(folder, found.val), "learned": figures(folder, seen), "last": last,
                "cpu_seconds": time.process_time() - begin,
            }  # fmt: skip
            write_atomic(file, json_text(row))
        row = json.loads(file.read_text())
        print(json.dumps({key: row[key] for key in ("sequences", "validation", "learned")}), flush=True)
    rows = sorted((json.loads(file.read_text()) for file in args.out.glob("*/row.json")), key=lambda r: r["sequences"])
    about = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "val": args.val}
    write_atomic(args.out / "prose_curve.json", json_text({"about": about, "rows": rows}))


if __name__ == "__main__":
    main()
