"""The reaction Cl- + CH3Cl with GFN2-xTB, walls at 3.3 A, and its free energy along d = r(C-Cl) - r(C-Cl').

    python benchmarks/sn2.py --out runs/sn2-umbrella

Umbrella sampling in d, one walker a window, weighed by MBAR (pymbar); the reaction is symmetric, so only d > 0 is
sampled. The reference for benchmarks/cv.py: no window has a barrier to cross, unlike metadynamics.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

EDGES = np.linspace(-1.7, 1.7, 35)  # of d, Angstrom
WALLS = ["distance 0 4 < 3.3", "distance 0 5 < 3.3"]
CVS = ["distance 0 4", "distance 0 5"]
START = np.array(
    [[0, 0, 0], [1.03, 0, -0.35], [-0.515, 0.89, -0.35], [-0.515, -0.89, -0.35], [0, 0, 1.8], [0, 0, -2.95]]
)
SPACING, SPRING = 0.1, 0.07  # Angstrom between windows; standard deviation of a walker in a flat window
SETTLE, EVERY, BLOCKS = 0.1, 5, 5


def potential():
    """GFN2-xTB of the six atoms."""
    from molgen.potentials.xtb import XtbPotential

    return XtbPotential([6, 1, 1, 1, 17, 17], charge=-1)


def system(starts: np.ndarray):
    """The molecule with the basins that are known, and how to build it again."""
    from molgen.workflows.fes_system import System

    return System(potential(), starts, source={"calculator": "gfn2", "kwargs": {}, "charge": -1, "spin": 0})


def problem():
    """The system with both complexes known, its variables and walls."""
    from molgen.workflows.fes_problem import Problem
    from molgen.workflows.fes_settings import FesSettings

    known = system(np.stack([START, START[[0, 1, 2, 3, 5, 4]]]))
    return Problem.of(known, CVS, 300.0, None, WALLS, FesSettings())


def curve(difference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Free energy (34,) in kcal/mol over the bins of d, lowest 0."""
    from molgen.units import KB, KCAL_MOL

    share = np.histogram(difference, EDGES, weights=weights)[0]
    with np.errstate(divide="ignore"):
        free = -KB * 300.0 * np.log(share) / KCAL_MOL
    return free - free.min()


def umbrella(steps: int, seed: int, out: Path) -> None:
    """Sample, weigh and write `umbrella.npz`: the symmetric curve, those of blocks of time, energies, seconds."""
    from langevin import baoab
    from pymbar import MBAR

    from molgen.cvdiffusion.cvs import evaluate
    from molgen.cvdiffusion.walls import wall_energy

    given = problem()
    kt, surface = given.bias.kt, given.system.potential
    centres = np.arange(-0.05, 1.75, SPACING)
    stiffness = kt / SPRING**2
    x = np.repeat(START[None], len(centres), 0)
    near = np.interp(centres, [0.0, 0.5, 1.2, 1.7], [2.33, 2.05, 1.82, 1.78])
    x[:, 4, 2], x[:, 5, 2] = near, -(near + centres)
    x[:, 1:4, 2] = -0.35 * np.clip(centres, 0, 1)[:, None]

    def forces(x: np.ndarray) -> np.ndarray:
        values, slopes = evaluate(given.cvs, x)
        pull = stiffness * (values[:, 1] - values[:, 0] - centres)[:, None, None]
        return surface.energy_and_forces(x)[1] - wall_energy(given.walls, x)[1] - pull * (slopes[:, 1] - slopes[:, 0])

    kept, begin = [], time.process_time()
    for step, x in enumerate(baoab(forces, x, kt, 1.0, np.random.default_rng(seed)), start=1):  # noqa: B020
        if step % EVERY == 0 and step > SETTLE * steps:
            values = evaluate(given.cvs, x)[0]
            kept.append(values[:, 1] - values[:, 0])
        if step % max(1, steps // 10) == 0:
            print(f"{step} steps, {surface.calls} energies, {time.process_time() - begin:.0f} s", flush=True)
        if step == steps:
            break

    def weighed(d: np.ndarray) -> np.ndarray:
        flat = d.T.ravel()
        reduced = 0.5 * stiffness / kt * (flat - centres[:, None]) ** 2
        found = MBAR(reduced, np.full(len(centres), len(d)), solver_protocol="robust")
        log_w = -np.logaddexp.reduce(found.f_k[:, None] - reduced, axis=0)
        weights = np.exp(log_w - log_w.max())
        return curve(np.concatenate([flat, -flat]), np.concatenate([weights, weights]))

    series = np.array(kept)
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "umbrella.npz", curve=weighed(series), energies=surface.calls, seconds=time.process_time() - begin,
        blocks=np.stack([weighed(part) for part in np.array_split(series, BLOCKS)]),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="of each window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    umbrella(o.steps, o.seed, o.out)
