"""The CV-biased diffusion sampler against exact answers, well-tempered metadynamics and itself without its parts.

    python benchmarks/cv.py --out runs/bench-cv                        everything that is not in OUT yet
    python benchmarks/cv.py --out runs/bench-cv --parts models,sn2     some of it

Parts: models (Gaussian, double well, Mueller-Brown against quadrature; or one of them by its name); corrupted (a spoilt
controller); ablation (the double well without bias, path weights, target mix, learned kernel variances, log grid);
paths (weights of the shipped controllers by how many paths their densities are averaged over); ala2 (alanine dipeptide
against the metadynamics of benchmarks/ala2.py, --out runs/ala2-metad-SEED); sn2 (Cl- + CH3Cl, GFN2-xTB, against the
umbrella sampling of benchmarks/sn2.py, --out runs/sn2-umbrella, and beside the metadynamics of
benchmarks/metadynamics.py, --out runs/metad-sn2-SEED). Three seeds each. A row of figures a seed is kept in OUT, so an
interrupted run continues; all together go to benchmarks/results/cv.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ala2
import numpy as np
import sn2
import torch
from cv_models import KT, SMALL, T, corrupted_rows, gaussian_row, model_row
from pictures import own_track

from molgen.cvdiffusion.noising import Schedule
from molgen.errors import CalculatorError
from molgen.reweight.free_energy import CVValues
from molgen.reweight.importance import diagnose, normalised
from molgen.units import KCAL_MOL
from molgen.workflows.fes import run_fes
from molgen.workflows.fes_outcome import final_draws
from molgen.workflows.fes_pretrained import load_pretrained
from molgen.workflows.fes_settings import default_settings

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "cv.json"

# the model with two variables: its surface has ten times as many bins, so many samples rather than many paths to each
PLANE = replace(SMALL, samples=52_000, paths=2)
SN2 = replace(default_settings("cartesian"), stop=False)


def ablations() -> dict[str, Callable[[int], dict]]:
    """The double well without one part each; "no path weights" is the histogram column of "everything"."""
    s = SMALL.sampler
    uniform = Uniform(start=25.0, steps=250)
    return {
        "everything": lambda seed: model_row("double well", seed),
        "no bias": lambda seed: model_row("double well", seed, replace(SMALL, sampler=replace(s, deposit=0.0))),
        "adjoint target alone": lambda seed: model_row(
            "double well", seed, replace(SMALL, sampler=replace(s, adjoint=True))
        ),
        "unweighted replay": lambda seed: model_row("double well", seed, replace(SMALL, sampler=replace(s, beta=0.0))),
        "fixed kernel variances": lambda seed: model_row("double well", seed, replace(SMALL, fixed_kernels=True)),
        "250 uniform steps": lambda seed: model_row("double well", seed, replace(SMALL, schedule=uniform, fine=1)),
    }


def or_failed(make: Callable[[int], dict], seed: int) -> dict:
    """A row, or why there is none: without some parts the sampler collapses."""
    try:
        return make(seed)
    except CalculatorError as error:
        return {"system": "double well", "seed": seed, "failed": str(error).splitlines()[0]}


class Uniform(Schedule):
    """Steps of equal variance, as published samplers use; the last one ends at the sample."""

    @property
    def residual(self) -> np.ndarray:  # type: ignore[override]
        return np.append(np.linspace(self.start, self.end**2, self.steps), 0.0)


def paths_rows(name: str, count: int = 3000) -> list[dict]:
    """Weights of samples of a shipped controller by how many paths their densities are averaged over."""
    rows = []
    for paths in (1, 2, 4, 8):
        _, sampler, kernels, _ = load_pretrained(name)
        begin = time.process_time()
        draws, _ = final_draws(sampler, count, 1, kernels, paths)
        seconds = time.process_time() - begin
        biased, plain = (diagnose(sampler.target.log_weights(draws, biased=b)) for b in (True, False))
        rows.append({
            "controller": name, "paths": paths, "samples": count, "seconds": seconds, "energies": count,
            "ess_biased": biased.ess, "khat_biased": biased.khat, "ess": plain.ess, "khat": plain.khat,
            "log_z": biased.log_z, "log_z_error": biased.log_z_error,
        })  # fmt: skip
    return rows


def sn2_row(seed: int, out: Path) -> dict:
    """The reaction from one side, without knowing the other."""
    system = sn2.system(sn2.START[None])
    begin = time.process_time()
    ensemble, summary = run_fes(
        system, sn2.CVS, T, walls=sn2.WALLS, settings=SN2, seed=seed, out=out / f"sn2-{seed}", resume=True
    )
    d = ensemble.cvs[sn2.CVS[0]].values - ensemble.cvs[sn2.CVS[1]].values
    wells = ensemble.free_energy(d < 0, d > 0)
    surface = ensemble.fes(CVValues("d", d, "A"), bins=[sn2.EDGES])
    top = sn2.barrier(d, ensemble.log_weights, ensemble.weights).mean
    return {
        "system": "sn2", "seed": seed, "seconds": time.process_time() - begin, "energies": summary["energy_calls"],
        "curve": sn2.curve(np.nan_to_num(d, nan=99.0), ensemble.weights).tolist(),
        "sigma": (surface.error / KCAL_MOL).tolist(), "barrier": top.value / KCAL_MOL,
        "barrier_sigma": top.error / KCAL_MOL, "barrier_khat": top.khat, "verdict": summary["verdict"],
        "wells": wells.value / KCAL_MOL, "wells_sigma": wells.error / KCAL_MOL,
        "khat_biased": summary["gate"]["khat_biased"],
        "ess_biased": summary["weights_biased"]["ess"], "khat": summary["weights"]["khat"],
        "disagreement_kt": summary["disagreement_kt"],
    }  # fmt: skip


def against(row: dict, truth: np.ndarray, height: float) -> dict:
    """Errors of a curve and a barrier against those of the reference, kcal/mol."""
    mine = np.array(row["curve"], dtype=float)
    low = (truth < 12) & np.isfinite(mine)
    missing = int(((truth < 12) & ~np.isfinite(mine)).sum())
    return {
        **row, "barrier_error": row["barrier"] - height, "rmse": float(np.std((mine - truth)[low])),
        "swap_asymmetry": abs(row["wells"]), "missing_bins": missing,
    }  # fmt: skip


def metadynamics_row(folder: Path) -> tuple[dict, list[dict]]:
    """The end of a metadynamics run, reweighted; and the error of its bias surface along the way."""
    stored = np.load(folder / "metadynamics.npz")
    d, w = stored["cvs"][:, 0] - stored["cvs"][:, 1], stored["weights"].astype(float)
    wells = -KT * np.log(w[d > 0].sum() / w[d < 0].sum()) / KCAL_MOL
    end = {"energies": int(stored["energies"][-1]), "seconds": float(stored["seconds"][-1]),
           "barrier": sn2.barrier(d, np.log(w), w / w.sum()).mean.value / KCAL_MOL,
           "curve": sn2.curve(d, w).tolist(), "wells": float(wells)}  # fmt: skip
    grid = np.meshgrid(stored["nodes0"], stored["nodes1"], indexing="ij")
    apart = (grid[0] - grid[1]).ravel()
    track = []
    for free, energies, seconds in zip(stored["bias_free_energy"], stored["energies"], stored["seconds"], strict=True):
        weights = np.exp(-(free - free.min()).astype(float) / KT)
        track.append({"energies": float(energies), "seconds": float(seconds), "wells": 0.0, "barrier": 0.0,
                      "curve": sn2.curve(apart, weights).tolist()})  # fmt: skip
    return end, track


def sn2_reference(path: Path) -> tuple[dict, np.ndarray]:
    """Figures of the umbrella sampling, and its curve, both sides made equal."""
    stored = np.load(path)

    def both(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = chosen & (stored["d"] >= 0)  # the windows at the top reach over it: it must not count twice
        d, log_w = (np.tile(stored[name][chosen], 2) for name in ("d", "log_weights"))
        d[len(d) // 2 :] *= -1
        return d, log_w, normalised(log_w)

    blocks = [both(stored["block"] == number) for number in np.unique(stored["block"])]
    every = both(np.ones(len(stored["d"]), dtype=bool))
    truth = sn2.curve(every[0], every[2])
    tops = np.array([sn2.barrier(*block).mean.value for block in blocks]) / KCAL_MOL
    curves = np.stack([sn2.curve(d, w) for d, _, w in blocks])[:, truth < 12]
    figures = {
        "energies": int(stored["energies"]), "seconds": float(stored["seconds"]), "curve": truth.tolist(),
        "barrier": sn2.barrier(*every).mean.value / KCAL_MOL,
        "barrier_sigma": float(tops.std(ddof=1) / len(tops) ** 0.5),
        "block_error": float(np.sqrt(np.mean(curves.var(0, ddof=1) / len(curves)))),
    }  # fmt: skip
    return figures, truth


def sn2_report(rows: list[dict], folder: Path, out: Path, before: dict) -> dict[str, Any]:
    """Everything about the reaction, errors against the umbrella sampling in `folder`; runs are in `out`.

    Args:
        before: an earlier report: its metadynamics stay where `folder` has none.
    """
    reference, truth = sn2_reference(folder / "sn2-umbrella" / "umbrella.npz")
    height = reference["barrier"]

    def errors(values: dict, weights: np.ndarray) -> dict:
        d = values[sn2.CVS[0]] - values[sn2.CVS[1]]
        row = {"curve": sn2.curve(d, weights).tolist(), "wells": 0.0, "barrier": 0.0}
        return {"rmse": against(row, truth, height)["rmse"]}

    peers = {name: against(row, truth, height) for name, row in before.get("peers", {}).items()}
    tracks = {name: track for name, track in before.get("tracks", {}).items() if not name.startswith("molgen")}
    for r in rows:
        tracks[f"molgen fes, seed {r['seed']}"] = own_track(out / f"sn2-{r['seed']}", r["seconds"], errors)
    for path in sorted(folder.glob("metad-sn2-*/metadynamics.npz")):
        end, track = metadynamics_row(path.parent)
        name = f"well-tempered metadynamics, 4 walkers, seed {path.parent.name.rsplit('-', 1)[1]}"
        peers[name] = against(end, truth, height)
        tracks[name] = [{k: v for k, v in against(row, truth, height).items() if k in ("energies", "seconds", "rmse")}
                        for row in track]  # fmt: skip
    return {
        "reference": reference, "rows": [against(r, truth, height) for r in rows], "peers": peers, "tracks": tracks,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="models,corrupted,ablation,paths,sn2,ala2")
    parser.add_argument("--references", type=Path, default=Path("runs"))
    o = parser.parse_args()
    torch.set_num_threads(1)
    (o.out / "rows").mkdir(parents=True, exist_ok=True)

    def kept(name: str, make: Callable[[], Any]) -> Any:
        path = o.out / "rows" / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            value = make()
            path.write_text(json.dumps(value, default=float))
            last = value if isinstance(value, dict) else value[-1]
            long = ("curve", "sigma", "surface")
            shown = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in last.items() if k not in long}
            print(name, shown, flush=True)
        return json.loads(path.read_text())

    parts, results = o.parts.split(","), {}
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    settings = {"Gaussian": SMALL, "double well": SMALL, "Mueller-Brown": PLANE}
    names = [name for name in settings if name in parts or "models" in parts]
    if names:
        rows = {(row["system"], row["seed"]): row for row in stored.get("models", [])}
        for n, s in itertools.product(names, SEEDS):
            make = partial(gaussian_row, s) if n == "Gaussian" else partial(model_row, n, s, settings[n])
            rows[n, s] = kept(f"{n} {s}", make)
        results["models"] = list(rows.values())
    if "corrupted" in parts:
        results["corrupted"] = [r for s in SEEDS for r in kept(f"corrupted {s}", lambda s=s: corrupted_rows(s))]
    if "ablation" in parts:
        results["ablation"] = [
            {**kept(f"ablation {n} {s}", lambda f=f, s=s: or_failed(f, s)), "variant": n}
            for n, f in ablations().items()
            for s in SEEDS
        ]
    if "paths" in parts:
        results["paths"] = [r for name in ("ala2", "sn2") for r in kept(f"paths {name}", lambda n=name: paths_rows(n))]
    if "ala2" in parts:
        rows = [kept(f"ala2 {s}", lambda s=s: ala2.row(s, o.out)) for s in SEEDS]
        if list(o.references.glob("ala2-metad-*/metadynamics.npz")):
            results["ala2"] = ala2.report(rows, o.references, o.out)
    if "sn2" in parts:
        rows = [kept(f"sn2 {s}", lambda s=s: sn2_row(s, o.out)) for s in SEEDS]
        if (o.references / "sn2-umbrella" / "umbrella.npz").exists():
            results["sn2"] = sn2_report(rows, o.references, o.out, stored.get("sn2", {}))
    stored |= results | {
        "command": "python benchmarks/cv.py --out runs/bench-cv", "date": time.strftime("%Y-%m-%d"),
        "machine": "one of two Xeon cores of a busy machine; 1 thread; seconds are those of the processor",
    }  # fmt: skip
    RESULTS.write_text(json.dumps(stored, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
