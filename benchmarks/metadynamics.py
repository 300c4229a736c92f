"""Well-tempered metadynamics with the same energies, walls and bias as the sampler: the peer to compare with.

    python benchmarks/metadynamics.py sn2 --walkers 4 --steps 100000 --out runs/metad-sn2

Walkers share one bias (multiple walkers; Raiteri et al., J. Phys. Chem. B 110 (2006) 3533) and move by BAOAB Langevin
dynamics, all energies of a step in one batch. Writes `metadynamics.npz`: snapshots of the bias surface and of the
surface reweighted by the final bias, against energies spent and seconds. Resumable: run the command again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

MASS, STEP, FRICTION = 12.0, 1.0, 0.02  # amu of every atom, fs, 1/fs
DEPOSIT_EVERY, HEIGHT = 100, 0.5  # steps; kT a walker's hill
SNAPSHOTS = 40
ACCELERATION = 9.648533e-3  # eV/(A amu) in A/fs^2


def sn2():
    """Cl- + CH3Cl with GFN2-xTB, distances up to 3.3 A."""
    from molgen.potentials.xtb import XtbPotential
    from molgen.workflows.fes import FesSettings, Problem
    from molgen.workflows.fes_system import System

    start = np.array(
        [[0, 0, 0], [1.03, 0, -0.35], [-0.515, 0.89, -0.35], [-0.515, -0.89, -0.35], [0, 0, 1.8], [0, 0, -2.95]]
    )
    mirrored = start[[0, 1, 2, 3, 5, 4]]
    system = System(XtbPotential([6, 1, 1, 1, 17, 17], charge=-1), np.stack([start, mirrored]))
    walls = ["distance 0 4 < 3.3", "distance 0 5 < 3.3"]
    return Problem.of(system, ["distance 0 4", "distance 0 5"], 300.0, None, walls, FesSettings())


SYSTEMS = {"sn2": sn2}


def target_of(problem: Any) -> Any:
    """The biased target of a problem, without handedness: dynamics do not invert centres."""
    from molgen.cvdiffusion.target import Target, closest_allowed

    return Target(
        problem.system.potential, problem.cvs, problem.walls, problem.bias, problem.temperature,
        0.5 * closest_allowed(problem.system.numbers),
    )  # fmt: skip


def run(name: str, walkers: int, steps: int, seed: int, out: Path) -> None:
    """Run or continue; the state is saved with every snapshot."""
    from molgen.cvdiffusion.start import starting_frames

    problem = SYSTEMS[name]()
    target, bias, kt = target_of(problem), problem.bias, problem.bias.kt
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.npz"
    rng = np.random.default_rng(seed)
    if state_file.exists():
        saved = dict(np.load(state_file))
        bias.load_state({key[5:]: value for key, value in saved.items() if key.startswith("bias.")})
        x, v, done, spent = saved["x"], saved["v"], int(saved["done"]), float(saved["spent"])
        cvs, rows = [saved["cvs"]], [saved["rows"]] if len(saved["rows"]) else []
        rng = np.random.default_rng([seed, done])
        target.potential.calls = int(saved["calls"])
    else:
        frames = starting_frames(
            target.potential, target.walls, problem.system.starts, problem.temperature, walkers, seed
        )
        x, v, done, spent = frames[:walkers], np.zeros_like(frames[:walkers]), 0, 0.0
        cvs, rows = [np.zeros((0, len(problem.cvs)))], []
    begin = time.monotonic() - spent
    decay, kick = np.exp(-FRICTION * STEP), np.sqrt(kt / MASS * ACCELERATION)
    force = forces(target, x)
    every = max(DEPOSIT_EVERY, steps // SNAPSHOTS)
    for step in range(done + 1, steps + 1):
        v = v + 0.5 * STEP * force / MASS * ACCELERATION
        x = x + 0.5 * STEP * v
        v = decay * v + kick * np.sqrt(1 - decay**2) * rng.standard_normal(v.shape)
        x = x + 0.5 * STEP * v
        new = forces(target, x)
        lost = ~np.isfinite(new).all((1, 2))
        new[lost], v[lost] = 0.0, 0.0
        v, force = v + 0.5 * STEP * new / MASS * ACCELERATION, new
        if step % 10 == 0:
            cvs.append(evaluated(target, x))
        if step % DEPOSIT_EVERY == 0:
            bias.add(cvs[-1], HEIGHT * kt * walkers)
            force = forces(target, x)
        if step % every == 0 or step == steps:
            rows.append(bias.free_energy().ravel()[None])
            cvs = [np.concatenate(cvs)]
            table = {f"bias.{key}": value for key, value in bias.state().items()}
            rows = [np.concatenate(rows)]
            spent = time.monotonic() - begin
            np.savez_compressed(
                state_file, x=x, v=v, done=step, spent=spent, cvs=cvs[0], rows=rows[0], calls=target.potential.calls,
                **table,
            )  # fmt: skip
            print(f"{step} steps, {target.potential.calls} energies, {spent:.0f} s", flush=True)
    finish(problem, target, cvs[0], rows[0], steps, every, spent, out, walkers)


def forces(target: Any, x: np.ndarray) -> np.ndarray:
    """(W, N, 3) eV/A of potential, walls and bias."""
    batch = target.evaluate(x, np.zeros(len(x)), 0)
    push = target.bias.evaluate(batch.cvs)[1]
    found = -batch.gradient - np.einsum("nd,ndai->nai", push, batch.cv_gradient)
    found[~batch.accepted] = np.nan
    return found


def evaluated(target: Any, x: np.ndarray) -> np.ndarray:
    """(W, D) collective variables."""
    from molgen.cvdiffusion.cvs import evaluate

    return evaluate(target.cvs, x)[0]


def finish(problem, target, cvs, rows, steps, every, spent, out, walkers) -> None:
    """Reweight everything after the first fifth by the final bias, in blocks, and write what comparisons need."""
    bias = problem.bias
    kept = cvs[len(cvs) // 5 :]
    kept = kept[np.isfinite(kept).all(1)]
    weights = np.exp(bias.evaluate(kept)[0] / bias.kt)
    edges = [np.linspace(a.low, a.high, max(6, round((a.high - a.low) / w)) + 1)
             for a, w in zip(bias.axes, bias.widths, strict=True)]  # fmt: skip
    blocks = np.array_split(np.arange(len(kept)), 4)
    wrapped = np.stack([axis.wrapped(kept[:, d]) for d, axis in enumerate(bias.axes)], 1)
    shares = np.stack([np.histogramdd(wrapped[b], edges, weights=weights[b])[0] for b in blocks])
    energies = (np.arange(len(rows)) + 1) * every * walkers
    np.savez_compressed(
        out / "metadynamics.npz", bias_free_energy=rows.astype(np.float32), energies=energies, shares=shares,
        seconds=np.linspace(spent / len(rows), spent, len(rows)), cvs=kept.astype(np.float32),
        weights=weights.astype(np.float32), **{f"edges{d}": e for d, e in enumerate(edges)},
        nodes=np.array(json.dumps([a.nodes.tolist() for a in bias.axes])),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--walkers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100_000, help="of each walker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    run(given.system, given.walkers, given.steps, given.seed, given.out)
