"""Systems with an exact answer for benchmarks/cv.py: Gaussian, double well, Mueller-Brown; and a spoilt controller."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import Sampler, SamplerSettings
from molgen.cvdiffusion.train import train_sampler
from molgen.potentials.analytic import DoubleWell, Harmonic, MuellerBrown
from molgen.reweight.ensemble import Ensemble
from molgen.units import KB
from molgen.variables import custom
from molgen.workflows.fes import FesSettings
from molgen.workflows.fes_outcome import ensemble_of, final_draws, repaired
from molgen.workflows.fes_problem import Problem
from molgen.workflows.fes_repair import chains_from
from molgen.workflows.fes_rounds import judge
from molgen.workflows.fes_surfaces import surfaces
from molgen.workflows.fes_system import System

T, LOW = 300.0, 8.0  # K; kT, where surfaces are compared
KT = KB * T

SPOILT = 24_000  # final samples of a spoilt controller
SMALL = FesSettings(
    sampler=SamplerSettings(rounds=150, draws=256, learn=60, pretrain=500, width=0.15),
    schedule=Schedule(start=25.0, steps=50), frames=100, samples=8000, stop=False,
)  # fmt: skip


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
    sampler = problem.sampler(seed, lambda message: None, judge)
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
    draws, _ = final_draws(sampler, settings.samples, settings.fine, paths=settings.paths)
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
    draws, _ = final_draws(sampler, settings.samples, settings.fine, paths=settings.paths)
    found = ensemble_of(sampler, draws).diagnostics
    return {
        "system": "Gaussian", "seed": seed, "energies": sampler.energies_used, "seconds": seconds, "ess": found.ess,
        "khat_biased": found.khat, "log_z_error": found.log_z - potential.log_partition(T),
    }  # fmt: skip


def corrupted_rows(seed: int) -> list[dict]:
    """A finished controller that sees everything shifted: what the histogram and the path weights make of it."""
    problem, exact, truth, divide = models()["double well"]
    sampler, _ = sampled(problem, seed, SMALL)
    net, rows, calls = sampler.controller, [], sampler.energies_used + SPOILT
    for shift in (0.0, 0.1, 0.2, 0.3, 0.5):
        push = torch.tensor([shift, 0.0, 0.0])
        sampler.controller = Shifted(net, push)  # type: ignore[assignment]
        draws, _ = final_draws(sampler, SPOILT, 1, paths=SMALL.paths)
        sampler.history = []
        ensemble = ensemble_of(sampler, draws)
        found = surfaces(ensemble, sampler)
        reference = averaged(exact, found.path.edges)
        delta = difference(ensemble, divide)
        begin = chains_from(sampler, draws, calls)
        assert begin is not None
        chain, mended = repaired(sampler, draws, found, begin)  # as `--repair always` does
        assert mended.repair is not None
        rows.append({
            "system": "corrupted", "seed": seed, "shift": shift,
            "rmse_histogram": apart(found.histogram.free_energy, reference),
            "rmse_path": apart(found.path.free_energy, reference), "khat_biased": found.biased.khat,
            "ess_biased": found.biased.ess, "delta_f_error": (delta.value - truth) / KT,
            "apart": found.disagreement["histogram"], "verdict": found.verdict,
            "rmse_repaired": apart(mended.path.free_energy, reference), "halves": mended.repair.halves,
            "memory": mended.repair.memory, "accepted": mended.passed,
            "delta_f_error_repaired": (difference(chain, divide).value - truth) / KT,
            "energies_repair": mended.repair.energies,
        })  # fmt: skip
    return rows


class Shifted:
    """A controller evaluated beside the point."""

    def __init__(self, net: Any, push: torch.Tensor):
        self.net, self.push = net, push

    def __call__(self, r: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.net(r, x + self.push)
