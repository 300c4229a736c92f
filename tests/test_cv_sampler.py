"""Rounds of the CV sampler: state, replay, symmetries, and a whole run against a double well that is known exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fes_cases import (
    RANGE,
    SMALL,
    SQUARE,
    START,
    Faulty,
    T,
    X,
    four_atoms,
    histogram_difference,
    run_wells,
    sampled,
    sides,
    tiny_sampler,
    wells,
)
from torch import Tensor, nn

from molgen.checkpoint import load_checkpoint
from molgen.cvdiffusion.controller import ControllerConfig, build_controller
from molgen.cvdiffusion.sampler import Lesson, Sampler, lesson_loss, tempered
from molgen.cvdiffusion.space import CartesianSpace
from molgen.cvdiffusion.train import train_sampler
from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import distance_matrix
from molgen.potentials.base import Potential
from molgen.reweight.ensemble import Ensemble
from molgen.units import KB
from molgen.workflows.fes import sample_cv
from molgen.workflows.fes_surfaces import DISAGREE, surfaces

KT = KB * T


def average(sampler: Sampler) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in sampler.controller.state_dict().items()}


def rounds(sampler: Sampler, count: int) -> list[Lesson]:
    """That many rounds without learning; all lessons."""
    return [lesson for _ in range(count) for lesson in sampler.epoch(average(sampler))]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k], equal_nan=True) and a[k].dtype == b[k].dtype for k in a if k != "seconds"
    )


def test_a_restored_sampler_goes_on_to_the_bit():
    first = tiny_sampler(four_atoms())
    rounds(first, 4)
    saved = {name: np.array(array) for name, array in first.state().items()}
    again = tiny_sampler(four_atoms())
    assert not same(again.state(), saved)
    again.load_state(saved)
    assert same(again.state(), saved) and again.energies_used == first.energies_used
    assert (again.state()["seconds"] >= saved.pop("seconds")).all() and saved
    tiny_sampler(four_atoms()).load_state(saved)  # of a run that an earlier version began
    assert len(again.drawn) == len(first.drawn) == 3 and again.records == first.records
    for one, other in zip(rounds(first, 3), rounds(again, 3), strict=True):
        assert torch.equal(one.noised, other.noised) and torch.equal(one.wanted, other.wanted)
    assert same(first.state(), again.state()) and first.target.rejections == again.target.rejections


def test_state_of_another_bias_is_refused():
    sampler, other = tiny_sampler(four_atoms()), tiny_sampler(four_atoms())
    other.target.bias.gamma = 3.0
    with pytest.raises(InputError, match="another bias"):
        other.load_state(sampler.state())


def test_what_a_run_costs_does_not_depend_on_what_the_potential_did_before():
    target = four_atoms()
    target.potential.energy(np.repeat(SQUARE[None], 7, axis=0))
    sampler = tiny_sampler(target, calls_before=7)
    rounds(sampler, 3)
    assert sampler.energies_used == target.potential.calls - 7 == 40 + sum(b.accepted.sum() for b in sampler.drawn)


def test_the_bias_grows_until_it_is_frozen_and_history_begins_there():
    sampler = tiny_sampler(four_atoms(hills=0), rounds=10, freeze=0.3)
    highest = []
    for _ in range(9):
        rounds(sampler, 1)
        highest.append(sampler.target.bias.values.max())
    assert sampler.frozen_from == 4 and (np.diff(highest[:4]) > 0).all() and np.ptp(highest[3:]) == 0
    assert [int(batch.round[0]) for batch in sampler.history] == [4, 5, 6, 7, 8]


def test_the_bias_is_corrected_by_the_weights_once_it_rests():
    """Rounds 4, 5 and 6 of 12, and in none after; a resumed run does the same."""
    sampler = tiny_sampler(four_atoms(hills=0), rounds=12, freeze=0.25, corrections=3)
    changed, before = [], sampler.target.bias.values
    for number in range(9):
        rounds(sampler, 1)
        if number >= sampler.frozen_from and not np.array_equal(sampler.target.bias.values, before):
            changed.append(number)
        before = sampler.target.bias.values
    assert sampler.frozen_from == 4 and changed == [4, 5, 6]
    again = tiny_sampler(four_atoms(hills=0), rounds=12, freeze=0.25, corrections=0)
    rounds(again, 9)
    assert not np.array_equal(again.target.bias.values, before)


@pytest.mark.parametrize(("refit", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 1, 3]), (6, [0, 1])])
def test_kernels_are_fitted_every_so_many_rounds(refit: int, expected: list[int], monkeypatch: pytest.MonkeyPatch):
    sampler = tiny_sampler(four_atoms(), refit=refit)
    fitted, fit = [], sampler._fit
    monkeypatch.setattr(sampler, "_fit", lambda *a: (fitted.append(sampler.number), fit(*a)))
    rounds(sampler, 5)
    assert [0 if n == 1 and k == 0 else n for k, n in enumerate(fitted)] == expected


def test_memory_forgets_old_rounds():
    sampler = tiny_sampler(four_atoms(), memory=2)
    rounds(sampler, 5)
    assert set(sampler.replayed().round) == {3, 4}


@pytest.mark.parametrize("spread", [0.1, 3.0, 100.0])
def test_tempered_weights_keep_a_share_and_favour_the_heavy(spread: float):
    log_w = spread * np.random.default_rng(0).standard_normal(500)
    p = tempered(log_w, None)
    assert p.sum() == pytest.approx(1) and 1 / (p**2).sum() >= 0.3 * 500
    assert np.corrcoef(np.log(p), log_w)[0, 1] == pytest.approx(1)
    if spread == 0.1:
        assert p == pytest.approx(np.exp(log_w) / np.exp(log_w).sum())  # nothing to temper


def test_a_given_exponent_is_used_as_it_is():
    log_w = np.array([0.0, 2.0, 700.0])
    assert tempered(log_w, 0.0) == pytest.approx(np.full(3, 1 / 3))
    assert np.log(tempered(log_w, 0.01)).tolist() == pytest.approx(
        0.01 * log_w - np.logaddexp.reduce(0.01 * log_w), abs=1e-9
    )


class Blind(nn.Module):
    """The score of springs of one strength between all atoms: no exchange, rotation or reflection changes it."""

    def forward(self, r: Tensor, x: Tensor) -> Tensor:
        apart = x[:, :, None] - x[:, None]
        return -(apart * apart.square().sum(-1, keepdim=True)).sum(2)


@pytest.mark.parametrize("mirror", [True, False])
def test_lessons_are_turned_and_exchanged(mirror: bool):
    space = CartesianSpace(4, [[1, 2]], mirror)
    rng = np.random.default_rng(0)
    x, a = SQUARE + 0.1 * rng.standard_normal((200, 4, 3)), rng.standard_normal((200, 4, 3))
    moved, slope = space.moved(x, a, np.random.default_rng(1))
    plain, exchanged = (np.abs(distance_matrix(moved) - distance_matrix(x[:, o])).max((1, 2)) < 1e-9
                        for o in ([0, 1, 2, 3], [0, 2, 1, 3]))  # fmt: skip
    assert (plain ^ exchanged).all() and 60 < plain.sum() < 140
    order = np.where(plain[:, None], [0, 1, 2, 3], [0, 2, 1, 3])
    rows = np.arange(200)[:, None]
    turns = np.linalg.solve(x[rows, order][:, 1:] - x[rows, order][:, :1], moved[:, 1:] - moved[:, :1])
    assert turns @ turns.mT == pytest.approx(np.broadcast_to(np.eye(3), (200, 3, 3)), abs=1e-6)
    assert slope == pytest.approx(a[rows, order] @ turns, abs=1e-6)
    negative = (np.linalg.det(turns) < 0).sum()
    assert 60 < negative < 140 if mirror else negative == 0
    assert np.abs(turns.mean(0)).max() < 0.2  # evenly spread: no component prefers a sign


def test_symmetries_keep_the_loss_of_a_controller_that_has_them():
    space = CartesianSpace(4, [[0, 1, 2, 3]])
    x, a = np.repeat(SQUARE[None], 64, 0), np.repeat(-np.roll(SQUARE, 1, 0)[None], 64, 0)
    moved, slope = space.moved(x, a, np.random.default_rng(1))
    r = torch.full((64,), 0.3)
    losses = [
        lesson_loss(Blind(), Lesson(torch.from_numpy(p).float(), r, torch.from_numpy(-s).float()), 0.05)["loss"]
        for p, s in ((x, a), (moved, slope))
    ]
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=1e-4)


def test_at_little_noise_the_lesson_is_the_slope_and_at_much_the_way_back():
    sampler = tiny_sampler(four_atoms(), width=0.05, batch=2000)
    lesson = next(sampler.epoch(average(sampler)))
    r = lesson.residual.double()
    assert r.min() < 0.001 and r.max() > 20
    assert lesson.noised.mean(1).abs().max() < 1e-5
    far = r > 5
    # a sample in 9 dimensions, noised to r: the way back is -z / sqrt(r), of that size
    size = (lesson.wanted[far].double().square().sum((1, 2)) * r[far]).mean()
    assert float(size) == pytest.approx(9, rel=0.1)
    adjoint = tiny_sampler(four_atoms(), adjoint=True, batch=2000)
    wanted = next(adjoint.epoch(average(adjoint))).wanted
    known = adjoint.target.slope(adjoint.frames)
    sizes = np.linalg.norm(known.reshape(40, -1), axis=1)
    found = np.linalg.norm(wanted.numpy().reshape(2000, -1), axis=1)
    assert np.abs(found[:, None] - sizes).min(1).max() < 1e-3 * sizes.max()


class Hopeless(Potential):
    """Springs that answer NaN from the fourth call on, for so many of every eight samples."""

    def __init__(self, lost: int):
        super().__init__([6, 6, 8, 1])
        self.lost, self.asked = lost, 0

    def _evaluate(self, positions, forces):
        self.asked += 1
        shift = positions - SQUARE
        energy = 2.0 * (shift**2).sum((1, 2))
        if self.asked > 3:
            energy[np.arange(len(energy)) % 8 < self.lost] = np.nan
        return energy, -4.0 * shift


def test_most_samples_rejected_ends_the_run_and_keeps_what_was_done(tmp_path: Path):
    sampler = tiny_sampler(four_atoms(Hopeless(6)))
    with pytest.raises(CalculatorError, match=r"round 3: \d+ of 16 samples were rejected .*x no energy") as error:
        train_sampler(sampler, tmp_path)
    assert "give a calculator that converges" in str(error.value) and "walls" in str(error.value), "the cause first"
    assert len(sampler.drawn) == 2
    kept = load_checkpoint(tmp_path / "state")
    assert kept.config["counters"]["step"] == 3 + 2 * 2 and int(kept.tensors["companion.number"]) == 3
    again = tiny_sampler(four_atoms())  # the calculator mended
    train_sampler(again, tmp_path, resume=True)
    assert again.number >= 6 and {1, 2, 3, 4, 5, 6} == {int(b.round[0]) for b in again.drawn}


def test_half_of_the_samples_may_be_rejected(tmp_path: Path):
    sampler = tiny_sampler(four_atoms(Hopeless(3)))
    sampler.target.least = np.zeros((4, 4))
    train_sampler(sampler, tmp_path)
    assert dict(sampler.target.rejections) == {"no energy": 4 * 6} and len(sampler.drawn) == 6


@pytest.fixture(scope="module")
def trained() -> tuple[Ensemble, Sampler]:
    """Started in the left well alone, the right one found by the bias."""
    return sampled(SMALL, START)


def test_a_whole_run_reproduces_the_double_well(trained: tuple[Ensemble, Sampler]):
    ensemble, sampler = trained
    exact = wells().basin_free_energy_difference(T) / KT
    found = ensemble.free_energy(*sides(ensemble)).scaled(1 / KT, "kT")
    assert exact > 3.5 and found.error < 0.2
    assert found.value == pytest.approx(exact, abs=min(4 * found.error, 0.5))
    weights = ensemble.diagnostics
    assert weights.khat < 0.7 and weights.log_z_error < 0.2
    assert weights.log_z == pytest.approx(wells().log_partition(T), abs=4 * weights.log_z_error)
    assert min(side.sum() for side in sides(ensemble)) > 300  # the bias took it to both
    assert sampler.energies_used > 36 * 112 + 1000 and len(sampler.records) == 36


def test_moments_and_surface_of_the_run(trained: tuple[Ensemble, Sampler]):
    ensemble, sampler = trained
    y2 = ensemble.expectation(ensemble.positions[:, 0, 1] ** 2)
    assert y2.value == pytest.approx(KT, abs=4 * y2.error) and y2.error < 0.15 * KT
    found = surfaces(ensemble, sampler)
    x = found.path.centres[0]
    exact = wells()._along(x) / KT
    near = exact - exact.min() < 6
    apart = found.path.free_energy[near] / KT - (exact - exact.min())[near]
    assert np.sqrt(np.mean((apart - apart.mean()) ** 2)) < 0.4
    assert len(found.basins) == 2
    assert [np.sign(b.minimum[0]) for b in found.basins] == [-1, 1]
    (one, other, barrier), exact = found.barriers[0], wells()._along(np.linspace(-1.5, 1.5, 3001)) / KT
    top = exact[1000:2000].max()
    assert len(found.barriers) == 1 and (one, other) == (0, 1) and found.missing == []
    assert barrier.forward.value / KT == pytest.approx(top - exact.min(), abs=0.4)
    assert barrier.reverse.value / KT == pytest.approx(top - exact[1500:].min(), abs=0.4)
    for histogram, khat, agree in ((0.35, 0.6, False), (0.25, 0.6, True), (0.35, 0.4, True), (1.1, 0.4, False)):
        biased = replace(found.biased, khat=khat)
        judged = replace(found, biased=biased, disagreement={"histogram": histogram, "bias": 2.0})
        assert judged.agree is agree and judged.verdict == ("reliable" if agree else "warn")
        assert replace(judged, effective=24.0).verdict == "biased"
    assert found.effective == pytest.approx(ensemble.diagnostics.ess * len(ensemble))


def test_path_weights_hold_where_the_controller_has_not_caught_up(trained: tuple[Ensemble, Sampler]):
    """The plain histogram of so short a run is off by several kT, and is seen to be."""
    ensemble, sampler = trained
    exact = wells().basin_free_energy_difference(T) / KT
    assert abs(histogram_difference(ensemble, sampler) - exact) > 2
    assert surfaces(ensemble, sampler).disagreement["histogram"] > DISAGREE
    assert abs(ensemble.free_energy(*sides(ensemble)).value / KT - exact) < 0.5


def test_a_controller_that_never_learned_is_flagged():
    """Drawn from scratch with coarse steps, the weights of a double well fall apart, and k-hat or the error says so."""
    torch.manual_seed(0)
    settings = replace(SMALL, samples=300)
    settings = replace(settings, sampler=replace(settings.sampler, rounds=2, learn=1, pretrain=1, draws=64))
    ensemble = sample_cv(wells(), [X], T, starts=START, ranges=[RANGE], settings=settings)
    found = ensemble.diagnostics
    exact = wells().log_partition(T)
    assert found.khat > 0.7 or found.log_z == pytest.approx(exact, abs=4 * found.log_z_error)
    assert found.ess < 0.3


def test_energies_that_fail_now_and_then_cost_those_samples_only():
    settings = replace(SMALL, samples=100)
    settings = replace(settings, sampler=replace(settings.sampler, rounds=3, learn=2, pretrain=5, draws=40))
    ensemble = sample_cv(Faulty(4), [X], T, starts=START, ranges=[RANGE], settings=settings)
    lost = np.isneginf(ensemble.log_weights)
    assert dict(ensemble.validity) == {"rejected": int(lost.sum())} and lost.mean() == pytest.approx(0.25, abs=0.02)
    assert np.isnan(ensemble.energies[lost]).all() and np.isfinite(ensemble.energies[~lost]).all()


def test_a_round_that_was_refused_counts_once_when_it_is_resumed(tmp_path):
    """The calculator is out of order in round 2; the resumed run is the one without the fault."""
    settings = replace(SMALL, samples=30, repair="never")
    settings = replace(settings, sampler=replace(settings.sampler, rounds=4, learn=2, pretrain=5, draws=40))

    class Flaky(Faulty):
        """Fails in the `fault`-th round."""

        def __init__(self, fault: int = 0):
            super().__init__(8)
            self.fault = fault

        def _evaluate(self, positions, forces):
            energy, force = super()._evaluate(positions, forces)
            self.fault -= len(positions) == 40
            return (energy if self.fault or len(positions) != 40 else np.full(40, np.nan)), force

    def run(potential, folder, **options):
        return run_wells(potential=potential, settings=settings, out=folder, **options)[1]

    whole = run(Flaky(), tmp_path / "whole")
    with pytest.raises(CalculatorError, match="40 of 40 samples were rejected") as error:
        run(Flaky(2), tmp_path / "cut")
    assert error.value.where == "round 2"
    resumed = run(Flaky(), tmp_path / "cut", resume=True)
    assert resumed["rejections"] == whole["rejections"] != {}
    assert resumed["ensemble_hash"] == whole["ensemble_hash"]
    assert resumed["energy_calls"] == whole["energy_calls"] + 40  # those were asked for


def test_pair_controller_is_what_four_atoms_get():
    sampler = tiny_sampler(four_atoms())
    assert build_controller(sampler.controller.describe()).config == sampler.controller.config
    assert isinstance(sampler.controller.config, ControllerConfig) and sampler.target.space.atoms == 4
