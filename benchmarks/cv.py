"""The CV-biased diffusion sampler against exact answers, well-tempered metadynamics and itself without its parts.

    python benchmarks/cv.py --out runs/bench-cv                        everything that is not in OUT yet
    python benchmarks/cv.py --out runs/bench-cv --parts models,sn2     some of it

Parts: models (Gaussian, double well, Mueller-Brown against quadrature; or one of them by its name); corrupted (a spoilt
controller); ablation (the double well without bias, path weights, target mix, learned kernel variances, log grid); ala2
(alanine dipeptide against the metadynamics of benchmarks/ala2.py, --out runs/ala2-metad-SEED); sn2 (Cl- + CH3Cl,
GFN2-xTB, against the umbrella sampling of benchmarks/sn2.py, --out runs/sn2-umbrella, and beside the metadynamics of
benchmarks/metadynamics.py, --out runs/metad-sn2-SEED). Three seeds each. A row of figures a seed is kept in OUT, so an
interrupted run continues; all together go to benchmarks/results/cv.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
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
from pictures import own_track

from molgen.cvdiffusion.cvs import custom
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import Sampler, SamplerSettings
from molgen.cvdiffusion.train import train_sampler
from molgen.errors import CalculatorError
from molgen.potentials.analytic import DoubleWell, Harmonic, MuellerBrown
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import CollectiveVariable
from molgen.reweight.importance import normalised
from molgen.units import KB, KCAL_MOL
from molgen.workflows.fes import FesSettings, run_fes
from molgen.workflows.fes_estimate import ensemble_of, final_draws, surfaces
from molgen.workflows.fes_problem import Problem
from molgen.workflows.fes_settings import default_settings
from molgen.workflows.fes_system import System

T, SEEDS, LOW = 300.0, (0, 1, 2), 8.0  # K; kT, where surfaces are compared
KT = KB * T
RESULTS = Path(__file__).parent / "results" / "cv.json"

SMALL = FesSettings(
    sampler=SamplerSettings(rounds=150, draws=256, learn=60, pretrain=500, width=0.15),
    schedule=Schedule(start=25.0, steps=50), frames=100, samples=8000, stop=False,
)  # fmt: skip
PLANE = 52_000  # final samples of the model with two variables: its surface has ten times as many bins
SN2 = replace(default_settings("cartesian"), stop=False)


def along(axis: int, name: str):
    """A Cartesian coordinate of a single particle."""
    return custom(name, lambda x: x[:, 0, axis], "A")


def models() -> dict[str, tuple[Problem, Callable[..., np.ndarray], float, str]]:
    """Problem, exact free energy in eV at points of its variables, exact difference of basins in eV, their divide."""
    double, brown = DoubleWell(barrier=0.25, tilt=0.05), MuellerBrown()
    x, y = along(0, "x"), along(1, "y")
    left = np.array([[[-1.0, 0.0, 0.0]]])
    minima = np.array([[[*m, 0.0]] for m in MuellerBrown.MINIMA[:2]])
    top = float(double.stationary_points()[1])
    return {
        "double well": (
            Problem.of(System(double, left), [x], T, [(-2.0, 2.0)], [], SMALL),
            lambda at: np.asarray(double._along(at / double.separation)),
            double.basin_free_energy_difference(T),
            f"x - {top}",
        ),
        "Mueller-Brown": (
            Problem.of(System(brown, minima[:1]), [x, y], T, [(-1.7, 1.3), (-0.6, 2.2)], [], SMALL),
            brown.surface,
            brown.basin_free_energy_difference(T),
            "y - x",
        ),
    }  # fmt: skip


def averaged(exact: Callable[..., np.ndarray], edges: tuple[np.ndarray, ...], points: int = 12) -> np.ndarray:
    """-kT ln of the mean of exp(-F/kT) over each bin, eV."""
    share = (np.arange(points) + 0.5) / points
    fine = [(e[:-1, None] + np.diff(e)[:, None] * share).ravel() for e in edges]
    weight = np.exp(-exact(*np.meshgrid(*fine, indexing="ij")) / KT)
    for axis in range(len(edges)):
        shape = weight.shape
        weight = weight.reshape(*shape[:axis], -1, points, *shape[axis + 1 :]).mean(axis + 1)
    return -KT * np.log(weight)


def apart(found: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square difference in kT of two surfaces where the exact one is below `LOW` kT, constants removed."""
    low = (exact - exact.min() < LOW * KT) & np.isfinite(found)
    difference = (found - exact)[low]
    return float(np.std(difference) / KT)


def sampled(problem: Problem, seed: int, settings: FesSettings) -> tuple[Sampler, float]:
    """A finished sampler, and the seconds it took."""
    begin = time.process_time()
    problem = replace(problem, settings=settings)
    problem.bias.load_state(fresh(problem))
    sampler = problem.sampler(seed, lambda message: None)
    with tempfile.TemporaryDirectory() as folder:
        train_sampler(sampler, Path(folder), learning_rate=settings.learning_rate, save_seconds=1e9)
    return sampler, time.process_time() - begin


def fresh(problem: Problem) -> dict[str, np.ndarray]:
    """The state of an empty bias like the problem's."""
    return type(problem.bias)(
        problem.bias.axes, problem.bias.widths, problem.bias.gamma, problem.temperature, problem.bias.cap
    ).state()  # fmt: skip


def difference(ensemble: Ensemble, divide: str) -> Any:
    """Free-energy difference of the two sides of a divide "x - 0.1" or "y - x"."""
    x = ensemble.cvs["x"].values
    if divide == "y - x":
        above = ensemble.cvs["y"].values - x > MuellerBrown.DIVIDE
        return ensemble.free_energy(above, ~above)
    right = x > float(divide.removeprefix("x - "))
    return ensemble.free_energy(~right, right)


def model_row(name: str, seed: int, settings: FesSettings = SMALL) -> dict:
    """Errors of the three surfaces and of the difference of basins, in kT."""
    problem, exact, truth, divide = models()[name]
    problem.system.potential.calls = 0
    sampler, seconds = sampled(problem, seed, settings)
    begin = time.process_time()
    draws, _ = final_draws(sampler, settings.samples, settings.fine)
    ensemble = ensemble_of(sampler, draws)
    found = surfaces(ensemble, sampler)
    reference = averaged(exact, found.path.edges)
    delta = difference(ensemble, divide)
    return {
        "system": name, "seed": seed, "energies": sampler.energies_used,
        "seconds": seconds + time.process_time() - begin,
        "rmse_path": apart(found.path.free_energy, reference), "rmse_bias": apart(found.bias, reference),
        "rmse_histogram": apart(found.histogram.free_energy, reference),
        "delta_f_error": (delta.value - truth) / KT, "delta_f_sigma": delta.error / KT,
        "khat_biased": found.biased.khat, "ess_biased": found.biased.ess, "ess": ensemble.diagnostics.ess,
        "log_z_error": ensemble.diagnostics.log_z - problem.system.potential.log_partition(T),
    }  # fmt: skip


def gaussian_row(seed: int) -> dict:
    """ln Z of a harmonic well, without bias."""
    potential = Harmonic(np.zeros((1, 3)), 2.0)
    settings = replace(SMALL, sampler=replace(SMALL.sampler, rounds=40, deposit=0.0, width=0.11), samples=4000)
    problem = Problem.of(System(potential, np.zeros((1, 1, 3))), [along(0, "x")], T, [(-1.0, 1.0)], [], settings)
    sampler, seconds = sampled(problem, seed, settings)
    draws, _ = final_draws(sampler, settings.samples, settings.fine)
    found = ensemble_of(sampler, draws).diagnostics
    return {
        "system": "Gaussian", "seed": seed, "energies": sampler.energies_used, "seconds": seconds, "ess": found.ess,
        "khat_biased": found.khat, "log_z_error": found.log_z - potential.log_partition(T),
    }  # fmt: skip


def corrupted_rows(seed: int) -> list[dict]:
    """A finished controller that sees everything shifted: what the histogram and the path weights make of it."""
    problem, exact, truth, divide = models()["double well"]
    sampler, _ = sampled(problem, seed, SMALL)
    net, rows = sampler.controller, []
    for shift in (0.0, 0.1, 0.2, 0.3, 0.5):
        push = torch.tensor([shift, 0.0, 0.0])
        sampler.controller = Shifted(net, push)  # type: ignore[assignment]
        draws, _ = final_draws(sampler, 8000, 1)
        sampler.history = []
        ensemble = ensemble_of(sampler, draws)
        found = surfaces(ensemble, sampler)
        reference = averaged(exact, found.path.edges)
        delta = difference(ensemble, divide)
        rows.append({
            "system": "corrupted", "seed": seed, "shift": shift,
            "rmse_histogram": apart(found.histogram.free_energy, reference),
            "rmse_path": apart(found.path.free_energy, reference), "khat_biased": found.biased.khat,
            "ess_biased": found.biased.ess, "delta_f_error": (delta.value - truth) / KT,
            "apart": found.disagreement["histogram"],
        })  # fmt: skip
    return rows


class Shifted:
    """A controller evaluated beside the point."""

    def __init__(self, net: Any, push: torch.Tensor):
        self.net, self.push = net, push

    def __call__(self, r: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.net(r, x + self.push)


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


def sn2_row(seed: int, out: Path) -> dict:
    """The reaction from one side, without knowing the other."""
    system = sn2.system(sn2.START[None])
    begin = time.process_time()
    ensemble, summary = run_fes(
        system, sn2.CVS, T, walls=sn2.WALLS, settings=SN2, seed=seed, out=out / f"sn2-{seed}", resume=True
    )
    d = ensemble.cvs[sn2.CVS[0]].values - ensemble.cvs[sn2.CVS[1]].values
    wells = ensemble.free_energy(d < 0, d > 0)
    surface = ensemble.fes(CollectiveVariable("d", d, "A"), bins=[sn2.EDGES])
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
    parser.add_argument("--parts", default="models,corrupted,ablation,sn2,ala2")
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
    settings = {"Gaussian": SMALL, "double well": SMALL, "Mueller-Brown": replace(SMALL, samples=PLANE)}
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
