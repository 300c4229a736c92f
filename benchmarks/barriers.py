"""Barrier errors of guessed transition states at the level of DFT: single points at what `correction.py` found.

    pip install --target /tmp/pyscf pyscf h5py    # not among molgen's dependencies
    PYTHONPATH=/tmp/pyscf python benchmarks/barriers.py --data rdb7_ts.npz --rows DIR/correction.jsonl --out DIR

wB97X/6-31G(d) with density fitting (pyscf), at the true transition state, TS-GEN's guess and the corrected
saddle, for the first 60 reactions of the fixed order of `saddle.py` (test split, seed 0). The reactant is
the same, so the error of the barrier is the difference of the energies. Rows go to DIR/barriers.jsonl as they are made.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import saddle

from molgen.units import HARTREE, KCAL_MOL

KINDS = ("true", "guess", "two_level")


def energy(numbers: np.ndarray, positions: np.ndarray) -> float | None:
    """wB97X/6-31G(d) energy in kcal/mol; None where the SCF does not converge."""
    from pyscf import dft, gto, lib  # pyright: ignore[reportMissingImports]

    lib.num_threads(1)
    molecule = gto.M(atom=[(int(z), x) for z, x in zip(numbers, positions, strict=True)], basis="6-31g*", verbose=0)
    field = dft.RKS(molecule, xc="wb97x").density_fit()
    field.grids.level, field.conv_tol = 2, 1e-7
    value = field.kernel()
    if not field.converged:
        value = field.newton().kernel()
    return float(value) * HARTREE / KCAL_MOL if field.converged else None


def summary(rows: list[dict]) -> dict:
    """Absolute errors of the barrier, kcal/mol."""
    out: dict[str, Any] = {"n": len(rows), "not_converged": sum(row[kind] is None for row in rows for kind in KINDS)}
    for kind in KINDS[1:]:
        errors = [abs(row[kind] - row["true"]) for row in rows if row[kind] is not None and row["true"] is not None]
        figures = {"mean": np.mean(errors), "median": np.median(errors), "within_1": np.mean(np.array(errors) < 1)}
        out[kind] = {key: round(float(value), 3) for key, value in figures.items()}
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no more reactions after so many")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = {row["name"]: row for row in map(json.loads, args.rows.read_text().splitlines())}
    args.out.mkdir(parents=True, exist_ok=True)
    file, begin = args.out / "barriers.jsonl", time.monotonic()
    done = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    chosen = saddle.chosen(args.data, "test", args.count, 0)
    with file.open("a") as log:
        for reaction in chosen:
            if reaction.name in done or time.monotonic() - begin > 60 * args.minutes:
                continue
            geometries = {"true": reaction.ts, **found[reaction.name]["positions"]}
            row = {kind: energy(reaction.numbers, np.array(geometries[kind])) for kind in KINDS}
            done[reaction.name] = {"name": reaction.name, **row}
            log.write(json.dumps(done[reaction.name]) + "\n")
            log.flush()
    rows = [done[reaction.name] for reaction in chosen if reaction.name in done]
    ended = summary([row for row in rows if found[row["name"]].get("converged")])
    report: dict = {
        "barriers": {**summary(rows), "converged": ended["n"], "two_level_of_converged": ended["two_level"]}
    }
    report["about"] = {"level": "wB97X/6-31G(d), density fitting, pyscf", "date": time.strftime("%Y-%m-%d")}
    text = json.dumps(report, indent=1)
    (args.out / "barriers.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
