"""The reaction Cl- + CH3Cl with GFN2-xTB, walls at 3.3 A, and its free energy along d = r(C-Cl) - r(C-Cl').

    python benchmarks/sn2.py --out runs/sn2-umbrella

Umbrella sampling in d, one walker a window, weighed by MBAR (pymbar); the reaction is symmetric, so only d > 0 is
sampled. Walkers of neighbouring windows exchange places (Sugita, Kitao, Okamoto, J. Chem. Phys. 113 (2000) 6042), so
that what is slow within a window is not what starts there. The reference for benchmarks/cv.py: no window has a barrier
to cross, unlike metadynamics.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

EDGES = np.linspace(-1.7, 1.7, 35)  # of d, Angstrom
WIDTH = 0.2  # Angstrom between knots of the smooth profile
WALLS = ["distance 0 4 < 3.3", "distance 0 5 < 3.3"]
CVS = ["distance 0 4", "distance 0 5"]
START = np.array(
    [[0, 0, 0], [1.03, 0, -0.35], [-0.515, 0.89, -0.35], [-0.515, -0.89, -0.35], [0, 0, 1.8], [0, 0, -2.95]]
)
SPACING, SPRING = 0.1, 0.07  # Angstrom between windows; standard deviation of a walker in a flat window
SETTLE, EVERY, BLOCKS = 0.1, 5, 5
EXCHANGE = 10  # steps between attempts


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


def barrier(difference: np.ndarray, log_weights: np.ndarray, weights: np.ndarray, groups: np.ndarray | None = None):
    """The barrier along d: top of the smooth profile above its minima; of samplers and of the reference alike."""
    from molgen.reweight.barrier import profile_barrier
    from molgen.reweight.free_energy import CVValues

    return profile_barrier(
        CVValues("d", difference, "A"), log_weights, weights, 300.0, between=(-1.2, 1.2),
        limits=(float(EDGES[0]), float(EDGES[-1])), width=WIDTH, groups=groups,
    )  # fmt: skip


def umbrella(steps: int, seed: int, out: Path) -> None:
    """Sample, weigh and write `umbrella.npz`: the symmetric curve, those of blocks of time, energies, seconds."""
    from langevin import baoab
    from pymbar import MBAR

    from molgen.cvdiffusion.walls import wall_energy
    from molgen.variables import values_and_gradients

    given = problem()
    kt, surface = given.bias.kt, given.system.potential
    centres = np.arange(-0.05, 1.75, SPACING)
    stiffness = kt / SPRING**2
    x = np.repeat(START[None], len(centres), 0)
    near = np.interp(centres, [0.0, 0.5, 1.2, 1.7], [2.33, 2.05, 1.82, 1.78])
    x[:, 4, 2], x[:, 5, 2] = near, -(near + centres)
    x[:, 1:4, 2] = -0.35 * np.clip(centres, 0, 1)[:, None]

    window = np.arange(len(centres))  # of each walker
    exchanges = [0, 0, 0]  # calls, attempts, successes
    rng = np.random.default_rng([seed, 1])

    def exchange(d: np.ndarray) -> None:
        """Metropolis exchange of the windows of every other pair of neighbours; d (W,) of the walkers."""
        walker = np.argsort(window)
        for k in range(exchanges[0] // EXCHANGE % 2, len(centres) - 1, 2):
            one, two = walker[k], walker[k + 1]
            # 1/2 k [(d1 - c1)^2 + (d2 - c2)^2 - (d1 - c2)^2 - (d2 - c1)^2]
            gain = stiffness / kt * (d[one] - d[two]) * (centres[k + 1] - centres[k])
            exchanges[1] += 1
            if np.log(rng.random()) < gain:
                window[one], window[two] = k + 1, k
                exchanges[2] += 1

    def forces(x: np.ndarray) -> np.ndarray:
        values, slopes = values_and_gradients(given.cvs, x)
        d = values[:, 1] - values[:, 0]
        exchanges[0] += 1
        if exchanges[0] % EXCHANGE == 0:
            exchange(d)
        pull = stiffness * (d - centres[window])[:, None, None]
        return surface.energy_and_forces(x)[1] - wall_energy(given.walls, x)[1] - pull * (slopes[:, 1] - slopes[:, 0])

    kept, begin = [], time.process_time()
    for step, x in enumerate(baoab(forces, x, kt, 1.0, np.random.default_rng(seed)), start=1):  # noqa: B020
        if step % EVERY == 0 and step > SETTLE * steps:
            values = values_and_gradients(given.cvs, x)[0]
            kept.append(values[:, 1] - values[:, 0])
        if step % max(1, steps // 10) == 0:
            print(f"{step} steps, {surface.calls} energies, {time.process_time() - begin:.0f} s, "
                  f"{exchanges[2] / max(1, exchanges[1]):.0%} exchanged", flush=True)  # fmt: skip
        if step == steps:
            break

    series = np.array(kept)
    flat = series.T.ravel()
    reduced = 0.5 * stiffness / kt * (flat - centres[:, None]) ** 2
    found = MBAR(reduced, np.full(len(centres), len(series)), solver_protocol="robust")
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "umbrella.npz", d=flat, log_weights=-np.logaddexp.reduce(found.f_k[:, None] - reduced, axis=0),
        block=np.tile(np.arange(len(series)) * BLOCKS // len(series), len(centres)), f_k=found.f_k, centres=centres,
        energies=surface.calls, seconds=time.process_time() - begin,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="of each window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    umbrella(o.steps, o.seed, o.out)
