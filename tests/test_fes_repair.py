"""A corrupted controller: what path weights mend or flag, and what sequential Monte Carlo mends after them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fes_cases import SMALL, START, TINY, T, histogram_difference, run_wells, sampled, sides, wells
from torch import Tensor, nn

from molgen.cli.fes_report import report
from molgen.cvdiffusion.sampler import Sampler
from molgen.report import fes_plots
from molgen.reweight.ensemble import Ensemble
from molgen.units import KB
from molgen.workflows import fes_outcome, fes_repair, fes_surfaces
from molgen.workflows.fes_outcome import ensemble_of, final_draws, outcome
from molgen.workflows.fes_repair import Chains, Repair
from molgen.workflows.fes_surfaces import DISAGREE, surfaces

KT = KB * T


@pytest.fixture(scope="module")
def converged() -> tuple[Ensemble, Sampler]:
    """Started in both wells under a low bias, which a short run learns well."""
    settings = replace(SMALL.sampler, rounds=28, deposit=0.5)
    return sampled(replace(SMALL, gamma=4.0, sampler=settings), [START[0], [[1.0, 0.0, 0.0]]])


class Shifted(nn.Module):
    """A controller that pulls to the right."""

    def __init__(self, controller: nn.Module, by: float):
        super().__init__()
        self.controller, self.by = controller, by

    def forward(self, r: Tensor, x: Tensor) -> Tensor:
        push = x.new_tensor([self.by, 0.0, 0.0])
        return self.controller(r, x) + push / (r[:, None, None] + 0.25)


@pytest.mark.parametrize("by", [0.5, -0.5])
def test_path_weights_mend_or_flag_a_corrupted_controller(converged: tuple[Ensemble, Sampler], by: float):
    exact = wells().basin_free_energy_difference(T) / KT
    _, sampler = converged
    good, history = sampler.controller, sampler.history
    assert abs(histogram_difference(*converged) - exact) < 0.8  # so what follows is of the corruption
    try:
        sampler.controller, sampler.history = Shifted(good, by), []  # pyright: ignore[reportAttributeAccessIssue]
        ensemble = ensemble_of(sampler, final_draws(sampler, 1500, 2)[0])
        found = surfaces(ensemble, sampler)
        wrong = histogram_difference(ensemble, sampler)
    finally:
        sampler.controller, sampler.history = good, history
    assert abs(wrong - exact) > 0.9 and np.sign(wrong - exact) == -np.sign(by)
    mended = ensemble.free_energy(*sides(ensemble)).scaled(1 / KT, "kT")
    assert found.biased.khat > 0.7 or mended.value == pytest.approx(exact, abs=4 * mended.error)
    assert found.biased.khat > 0.7 or mended.error < 0.8
    assert found.disagreement["histogram"] > DISAGREE


def test_sequential_monte_carlo_mends_what_the_weights_do_not(converged: tuple[Ensemble, Sampler]):
    """A controller so wrong that the weights move the histogram far: the result is that of chains, which agree with
    the exact answer, say what they cost, and have the draws they began from as their independent units."""
    exact = wells().basin_free_energy_difference(T) / KT
    _, sampler = converged
    good, history, rejections = sampler.controller, sampler.history, dict(sampler.target.rejections)
    try:
        sampler.controller, sampler.history = Shifted(good, 0.5), []  # pyright: ignore[reportAttributeAccessIssue]
        before, told = sampler.energies_used, []
        plain = outcome(sampler, 1500, 2, repair="never")
        used = sampler.energies_used - before
        auto = outcome(sampler, 1500, 2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sampler, "energies_used", property(lambda s: 8 * s.target.potential.calls))
            mended = outcome(sampler, 1500, 2, repair="always", log=told.append)
    finally:
        sampler.controller, sampler.history = good, history
    assert plain.surfaces.repair is None and plain.surfaces.passed and not plain.surfaces.agree
    assert auto.surfaces.repair is None, "k-hat lets the weights pass"
    repair = mended.surfaces.repair
    assert repair is not None and "sequential Monte Carlo" in told[0] and repair.particles == 400
    assert sampler.energies_used - before == 3 * used + repair.energies
    assert repair.energies == pytest.approx(8 * (before + 3 * used), rel=0.1)
    assert dict(sampler.target.rejections) == rejections and repair.acceptance > 0.4
    ensemble = mended.ensemble
    assert ensemble.groups is not None and len(np.unique(ensemble.groups)) == repair.ancestors > 50
    assert len(ensemble) == 400 * (repair.moves - repair.moves // 2)
    found = ensemble.free_energy(*sides(ensemble)).scaled(1 / KT, "kT")
    assert found.value == pytest.approx(exact, abs=3 * found.error) and found.error < 0.3
    apart = ensemble.diagnostics.log_z - plain.ensemble.diagnostics.log_z
    assert abs(apart) < 0.5, "on the scale of the weights, as `Ensemble.merge` needs it"
    truth = wells()._along(mended.surfaces.path.centres[0]) / KT
    near = truth - truth.min() < 6

    def rmse(surface) -> float:
        apart = (surface.free_energy / KT - truth)[near & np.isfinite(surface.free_energy)]
        return float(np.sqrt(np.mean((apart - apart.mean()) ** 2)))

    assert rmse(mended.surfaces.path) < 0.5 < rmse(plain.surfaces.histogram)
    assert mended.surfaces.passed and mended.surfaces.verdict == "warn" and ensemble.verdict in ("warn", "biased")


@pytest.mark.parametrize(
    ("khat", "halves", "memory", "passed", "verdict"),
    [
        (0.8, 0.1, 0.2, True, "warn"),
        (0.8, 0.4, 0.2, False, "biased"),
        (1.2, 0.1, 0.2, False, "failed"),
        (0.8, np.nan, 0.2, False, "biased"),
        (0.8, 0.1, 0.9, False, "biased"),  # populations are still those of the weights
        (0.6, 0.1, 0.9, True, "warn"),  # which may stand
    ],
)
def test_the_second_chance_is_judged(
    converged: tuple[Ensemble, Sampler], khat: float, halves: float, memory: float, passed: bool, verdict: str
):
    found = surfaces(*converged)
    repair = Repair(400, 10, 300, 0.6, 1000, halves, memory=memory)
    found = replace(found, biased=replace(found.biased, khat=khat), repair=repair)
    assert found.passed is passed and found.verdict == verdict


def test_a_repair_that_fails_leaves_the_weights_and_their_verdict(tmp_path: Path) -> None:
    """A run that has hardly begun to learn: the ensemble says no better of itself than the gate, the report as well."""
    few = replace(TINY, sampler=replace(TINY.sampler, rounds=4, learn=1, pretrain=1), repair="auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fes_surfaces, "DISAGREE", -1.0)  # no chains are at rest
        patch.setattr(fes_surfaces, "MEAN_EXISTS", np.inf)  # and they are tried in spite of the weights
        patch.setattr(fes_outcome, "chains_from", lambda *_: Chains(np.arange(60), 8))
        ensemble, summary = run_wells(settings=few, out=tmp_path / "out")
    assert summary["status"] == "gate_failed" and summary["gate"]["khat_biased"] > 0.7
    assert ensemble.verdict == summary["verdict_unbiased"] in ("biased", "failed")
    assert len(ensemble) < 400 and ensemble.groups is None, "not that of the chains"
    assert not ensemble.expectation("x").reliable and not ensemble.free_energy("x < 0", "x > 0").reliable
    assert Ensemble.load(tmp_path / "out").verdict == ensemble.verdict
    assert summary["results"] and not any(row["reliable"] for row in summary["results"])
    assert summary["repair"]["used"] is False and summary["repair"]["particles"] == 60
    assert "repair failed    by sequential Monte Carlo, 60 chains" in report(summary, tmp_path / "out")


def test_a_repair_that_could_not_pass_is_not_paid_for(converged: tuple[Ensemble, Sampler]) -> None:
    """Weights without a mean, of which a handful hold all; the energies of chains would be for nothing."""
    _, sampler = converged
    good, history, lines = sampler.controller, sampler.history, []
    try:
        sampler.controller, sampler.history = Shifted(good, 40.0), []  # pyright: ignore[reportAttributeAccessIssue]
        before = sampler.target.potential.calls
        found = outcome(sampler, 400, 1, repair="always", log=lines.append)
        spent = sampler.target.potential.calls - before
    finally:
        sampler.controller, sampler.history = good, history
    assert spent <= 400 and found.surfaces.tried is None and not found.surfaces.passed
    assert "too few different samples for sequential Monte Carlo" in lines[-1]


def test_what_k_hat_refuses_is_mended_unasked(converged: tuple[Ensemble, Sampler]) -> None:
    """Weights with a heavy tail, by a controller that pulls aside: chains are tried, and the gate is theirs."""
    _, sampler = converged
    good, history = sampler.controller, sampler.history
    try:
        sampler.controller, sampler.history = Shifted(good, 0.5), []  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fes_surfaces, "RELIABLE_KHAT", -10.0)  # no weights are good enough
            patch.setattr(fes_surfaces, "MEAN_EXISTS", np.inf)
            found = outcome(sampler, 1200, 1)
            patch.setattr(fes_repair, "chains", lambda first, *_, moves, **__: ((first, 1.0) for _ in range(moves)))
            frozen = outcome(sampler, 1200, 1).surfaces
    finally:
        sampler.controller, sampler.history = good, history
    assert frozen.repair is None and frozen.tried is not None and frozen.tried.memory > 0.99, "chains that do nothing"
    repair = found.surfaces.repair or found.surfaces.tried
    assert repair is not None and repair.memory < frozen.tried.memory
    for worse in ({"ancestors": repair.particles // 3}, {"shift": 0.7}, {"halves": 0.4}, {"memory": 0.6}):
        good = replace(repair, ancestors=repair.particles, shift=0.1, halves=0.1, memory=0.1)
        sure = replace(found.surfaces, biased=replace(found.surfaces.biased, khat=0.8), repair=good)
        assert sure.passed and not replace(sure, repair=replace(good, **worse)).passed


def test_the_picture_names_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(fes_plots, "surface", lambda *_, subtitle, **__: told.append(subtitle) or b"")
    summary = run_wells(out=tmp_path / "out")[1]
    assert [text.split(" ")[:2] for text in told] == [[f"{summary['verdict']}:", "k-hat"]]
