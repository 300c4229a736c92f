"""Umbrella sampling and MBAR along the path of a `molgen ts` run: the peer of `molgen fes --from-ts`.

    molgen ts examples/hcn/reactant.xyz examples/hcn/product.xyz --out runs/hcn-ts
    python benchmarks/umbrella.py runs/hcn-ts --out runs/umbrella-hcn

One walker a window, moved by BAOAB Langevin dynamics with the potential, path variable s and wall on z of the sampler;
all energies of a step are one batch. A window holds its walker by k/2 (s - s0)^2 on top of minus the energies of the
path (its steep slope would otherwise call for narrow windows). Runs are cut into blocks of time; MBAR (pymbar, the
extra `bench`; Shirts and Chodera, J. Chem. Phys. 129 (2008) 124105) weighs each by itself, and the spread of their
barriers is the error. Writes umbrella.json; prints the barrier of a sampler's run beside it with --against OUT.
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

STEP = 0.7  # fs; the dynamics take equal masses, barriers the real ones
EVERY = 5  # steps between kept values
SETTLE = 0.1  # share of the run left out
SPRING = 0.6  # standard deviation of a window, in distances between windows


def run(folder: Path, windows: int, steps: int, blocks: int, temperature: float, seed: int, out: Path) -> dict:
    """Sample all windows and weigh; the figures, also in `out`/umbrella.json."""
    import torch
    from langevin import baoab

    from molgen.cvdiffusion.walls import wall_energy
    from molgen.units import KB
    from molgen.variables import values_and_gradients
    from molgen.workflows.fes_from_ts import read_path

    torch.set_num_threads(1)
    begin = time.monotonic()
    path, kt = read_path(folder), KB * temperature
    s_cv, wall = path.cvs[:1], path.wall()
    along = values_and_gradients(s_cv, path.frames)[0][:, 0]
    centres = np.linspace(along[0], along[-1], windows)
    stiffness = kt / (SPRING * (centres[1] - centres[0])) ** 2
    support = _spline(*path.profile)

    def windowed(s: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (eV) of the windows `at` at s, and its derivative."""
        base, slope = support(s)
        return 0.5 * stiffness * (s - at) ** 2 - base, stiffness * (s - at) - slope

    def forces(x: np.ndarray) -> np.ndarray:
        found = path.potential.energy_and_forces(x)[1]
        values, slopes = values_and_gradients(s_cv, x)
        if not (np.isfinite(found).all() and np.isfinite(values).all()):
            raise SystemExit("a walker was lost: no energy or no s")
        _, push = windowed(values[:, 0], centres)
        _, held = wall_energy([wall], x)
        return found - held - push[:, None, None] * slopes[:, 0]

    rng = np.random.default_rng(seed)
    x = path.frames[np.abs(along[None] - centres[:, None]).argmin(1)].copy()
    kept_s, kept_x = [], []
    for step, x in zip(range(1, steps + 1), baoab(forces, x, kt, STEP, rng), strict=False):  # noqa: B020
        if step % EVERY == 0 and step > SETTLE * steps:
            kept_s.append(values_and_gradients(s_cv, x)[0][:, 0])
            kept_x.append(x)
        if step % max(1, steps // 10) == 0:
            print(f"{step} steps, {path.potential.calls} energies, {time.monotonic() - begin:.0f} s", flush=True)
    s, positions = np.array(kept_s), np.array(kept_x)  # (T, W), (T, W, N, 3)
    parts = zip(np.array_split(s, blocks), np.array_split(positions, blocks), strict=True)
    rows = [weigh(path, windowed, centres, *part, temperature) for part in parts]
    whole = weigh(path, windowed, centres, s, positions, temperature)
    spread = {key: float(np.std([row[key] for row in rows], ddof=1) / blocks**0.5) for key in whole}
    figures: dict[str, Any] = {
        "unit": "kcal/mol", "temperature": temperature, "windows": windows, "steps": steps,
        "energy_calls": path.potential.calls, "seconds": time.monotonic() - begin,
    }  # fmt: skip
    figures |= {key: {"value": value, "error": spread[key], "blocks": [row[key] for row in rows]}
                for key, value in whole.items()}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "umbrella.json").write_text(json.dumps(figures, indent=2))
    return figures


def weigh(path, windowed, centres, s: np.ndarray, positions: np.ndarray, temperature: float) -> dict[str, float]:
    """Barriers in kcal/mol and s* of samples (T, W) by MBAR weights for the target without windows."""
    from pymbar import MBAR

    from molgen.reweight.barrier import find_barrier
    from molgen.units import KB, KCAL_MOL
    from molgen.variables import values_and_gradients
    from molgen.workflows.fes_from_ts import path_speed

    flat, kt = s.T.ravel(), KB * temperature
    reduced = np.stack([windowed(flat, centre)[0] / kt for centre in centres])
    mbar = MBAR(reduced, np.full(len(centres), len(s)), solver_protocol="robust")
    # target: no window, so ln w = -ln sum_k N_k exp(f_k - u_k)
    log_w = -np.logaddexp.reduce(mbar.f_k[:, None] - reduced + np.log(len(s)), axis=0)
    x = positions.swapaxes(0, 1).reshape(-1, *positions.shape[2:])
    weights = np.exp(log_w - log_w.max())
    near = float(values_and_gradients(path.cvs[:1], path.frames[path.saddle][None])[0][0, 0])
    found = find_barrier(
        flat, path_speed(path, x), log_w, weights / weights.sum(), temperature, near=near, replicas=2
    )  # fmt: skip
    named = {"forward": found.forward, "reverse": found.reverse, "reaction": found.reaction}
    return {**{name: estimate.value / KCAL_MOL for name, estimate in named.items()}, "s": found.place}


def _spline(s: np.ndarray, energies: np.ndarray):
    """Energy (eV) and slope along the path, constant beyond its ends."""
    from scipy.interpolate import PchipInterpolator

    curve = PchipInterpolator(s, energies)
    slope = curve.derivative()

    def support(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = np.clip(at, s[0], s[-1])
        return curve(inside), np.where(inside == at, slope(inside), 0.0)

    return support


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ts", type=Path, help="folder of a molgen ts run")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--steps", type=int, default=8000, help="of each window")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", type=Path, help="folder of a molgen fes --from-ts run")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    found = run(o.ts, o.windows, o.steps, o.blocks, o.temperature, o.seed, o.out)
    print(f"{found['energy_calls']} energies, {found['seconds']:.0f} s")
    other = json.loads((o.against / "summary.json").read_text())["barrier"] if o.against else {}
    for name in ("forward", "reverse", "reaction"):
        line = f"{name:9} umbrella {found[name]['value']:8.2f} +- {found[name]['error']:.2f} kcal/mol"
        if other:
            line += f"   sampler {other[name]['value']:8.2f} +- {other[name]['error']:.2f}"
        print(line)
