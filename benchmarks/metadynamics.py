"""Well-tempered metadynamics with the same energies, walls and bias as the sampler: the peer to compare with.

    python benchmarks/metadynamics.py sn2 --walkers 4 --steps 25000 --out runs/metad-sn2

Walkers share one bias (multiple walkers; Raiteri et al., J. Phys. Chem. B 110 (2006) 3533) and move by BAOAB Langevin
dynamics, all energies of a step in one batch. Writes `metadynamics.npz`: snapshots of the bias surface and of the
surface reweighted by the final bias, against energies spent and seconds. Resumable: run the command again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

STEP = 1.0  # fs
DEPOSIT_EVERY, HEIGHT = 100, 1.0  # steps; kT a walker's hill
SNAPSHOTS = 40


def target_of(problem: Any) -> Any:
    """The biased target of a problem, without handedness: dynamics do not invert centres."""
    from molgen.cvdiffusion.space import CartesianSpace
    from molgen.cvdiffusion.target import Target, closest_allowed

    return Target(
        problem.system.potential, problem.cvs, problem.walls, problem.bias, problem.temperature,
        0.5 * closest_allowed(problem.system.numbers), CartesianSpace(len(problem.system.numbers)),
    )  # fmt: skip


def run(name: str, walkers: int, steps: int, seed: int, out: Path) -> None:
    """Run or continue; the state is saved with every snapshot."""
    import sn2
    from langevin import baoab

    from molgen.cvdiffusion.start import starting_frames

    problem = {"sn2": sn2.problem}[name]()
    target, bias, kt = target_of(problem), problem.bias, problem.bias.kt
    out.mkdir(parents=True, exist_ok=True)
    state_file = out / "state.npz"
    rng = np.random.default_rng(seed)
    if state_file.exists():
        saved = dict(np.load(state_file))
        bias.load_state({key[5:]: value for key, value in saved.items() if key.startswith("bias.")})
        x, done, spent = saved["x"], int(saved["done"]), float(saved["spent"])
        cvs, rows = [saved["cvs"]], [saved["rows"]] if len(saved["rows"]) else []
        rng = np.random.default_rng([seed, done])
        target.potential.calls = int(saved["calls"])
    else:
        frames = starting_frames(
            target.potential, target.walls, problem.system.starts, problem.temperature, walkers, seed
        )
        x, done, spent = frames[:: max(1, len(frames) // walkers)][:walkers], 0, 0.0
        cvs, rows = [np.zeros((0, len(problem.cvs)))], []
    begin = time.process_time() - spent
    every = max(DEPOSIT_EVERY, steps // SNAPSHOTS)
    walk = baoab(lambda x: forces(target, x), x, kt, STEP, rng)
    for step, x in zip(range(done + 1, steps + 1), walk, strict=False):  # noqa: B020
        if step % 10 == 0:
            cvs.append(evaluated(target, x))
        if step % DEPOSIT_EVERY == 0:
            bias.add(cvs[-1], HEIGHT * kt * walkers)
        if step % every == 0 or step == steps:
            rows.append(bias.free_energy().ravel()[None])
            cvs = [np.concatenate(cvs)]
            table = {f"bias.{key}": value for key, value in bias.state().items()}
            rows = [np.concatenate(rows)]
            spent = time.process_time() - begin
            np.savez_compressed(
                state_file, x=x, done=step, spent=spent, cvs=cvs[0], rows=rows[0], calls=target.potential.calls,
                **table,
            )  # fmt: skip
            print(f"{step} steps, {target.potential.calls} energies, {spent:.0f} s", flush=True)
    finish(problem, target.potential.calls, cvs[0], rows[0], spent, out)


def forces(target: Any, x: np.ndarray) -> np.ndarray:
    """(W, N, 3) eV/A of potential, walls and bias."""
    batch = target.evaluate(x, np.zeros(len(x)), 0)
    push = target.bias.evaluate(batch.cvs)[1]
    found = -batch.gradient - np.einsum("nd,ndai->nai", push, batch.cv_gradient)
    found[~batch.accepted] = np.nan
    return found


def evaluated(target: Any, x: np.ndarray) -> np.ndarray:
    """(W, D) collective variables."""
    from molgen.variables import values_and_gradients

    return values_and_gradients(target.cvs, x)[0]


def finish(problem: Any, calls: int, cvs: np.ndarray, rows: np.ndarray, spent: float, out: Path) -> None:
    """Reweight everything after the first third by the final bias, and write what comparisons need."""
    bias = problem.bias
    kept = cvs[len(cvs) // 3 :]
    kept = kept[np.isfinite(kept).all(1)]
    count = len(rows)
    np.savez_compressed(
        out / "metadynamics.npz", bias_free_energy=rows.astype(np.float32), cvs=kept.astype(np.float32),
        weights=np.exp(bias.evaluate(kept)[0] / bias.kt), energies=np.linspace(calls / count, calls, count),
        seconds=np.linspace(spent / count, spent, count), **{f"nodes{d}": a.nodes for d, a in enumerate(bias.axes)},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=("sn2",))
    parser.add_argument("--walkers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25_000, help="of each walker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    run(given.system, given.walkers, given.steps, given.seed, given.out)
