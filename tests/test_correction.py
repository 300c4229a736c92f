"""From a cheaper level's saddle to the training set's: search data, features, symmetry, training, command line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from equivariance import orthogonal
from test_tsmodel import built_in
from ts_cases import sides
from typer.testing import CliRunner

from molgen import find_ts, load_model
from molgen.checkpoint import save_checkpoint
from molgen.cli import main
from molgen.cli.ts_report import report
from molgen.data.reactions import Reaction, save_npz
from molgen.errors import CheckpointError, InputError
from molgen.geometry.align import rmsd
from molgen.geometry.model_hessian import lindh_hessian
from molgen.potentials.xtb import XtbPotential
from molgen.rng import torch_generator
from molgen.run import Run
from molgen.tsgen.condition import prepare
from molgen.tsgen.correction import (
    WEIGHTS,
    correct,
    correction_loss,
    correction_model,
    epoch,
    load_training_points,
    validation_figures,
)
from molgen.tsgen.correction_model import CorrectionModel, load_correction
from molgen.tsgen.generate import generate
from molgen.tsgen.gradient_features import gradient_features, newton_step
from molgen.workflows import ts_search
from molgen.workflows.search_attempt import NEAR, Searches, SearchPlan
from molgen.workflows.searches import search_all, search_plan
from molgen.workflows.ts_correction import correct_guess, correct_saddle, fitting_correction

runner = CliRunner()
LEVEL = "GFN2-xTB"
SPLITS = ["train", "train", "val", "test"]


def invoke(*arguments):
    return runner.invoke(main.app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def reactions() -> list[Reaction]:
    """H2CO -> H2 + CO and HCN -> HNC, with rough transition states."""
    return built_in()[:2]


@pytest.fixture(scope="module")
def source(reactions, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("set") / "set.npz"
    named = [replace(reactions[k % 2], name=str(k)) for k in range(4)]
    save_npz(path, named, SPLITS)
    return path


@pytest.fixture(scope="module")
def searches(source, tmp_path_factory):
    """`molgen data searches` on the set with two workers: the result and the file."""
    out = tmp_path_factory.mktemp("searches") / "out"
    return invoke("data", "searches", source, "--workers", 2, "--out", out, "--json"), out / "searches.npz"


@pytest.fixture
def model() -> CorrectionModel:
    """A small network in float64."""
    torch.manual_seed(0)
    return CorrectionModel([1, 6, 7, 8], LEVEL, scalars=16, vectors=8, pair=16, layers=2).double().eval()


def surface_of(reactions: list[Reaction], seed: int = 0):
    """A batch in float64, geometries off its guesses, gradients for them."""
    batch = prepare(reactions).to("cpu", torch.float64)
    noise = torch.randn(2, *batch.guess.shape, generator=torch_generator(seed), dtype=torch.float64)
    m = batch.mask[..., None]
    return batch, (batch.guess + 0.1 * noise[0]) * m, 2 * noise[1] * m


# --- features


def test_step_is_newtons_on_the_stretches_of_lindhs_hessian():
    x = torch.tensor([[[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]]], dtype=torch.float64)
    z = torch.tensor([[6, 8]])
    gradient = torch.tensor([[[-1.3, 0.4, 0.0], [1.3, 0.0, 0.2]]], dtype=torch.float64)
    hessian = lindh_hessian(z[0].numpy(), x[0].numpy()) + 4.0 * np.eye(6)  # two atoms: stretches are all there is
    expected = -np.linalg.solve(hessian, gradient.numpy().ravel()).reshape(2, 3)
    assert np.allclose(newton_step(z, x, gradient)[0].numpy(), expected, atol=1e-12)


def test_features_turn_with_the_molecule_and_padding_changes_nothing(reactions):
    batch, x, gradient = surface_of(reactions)
    vectors, scalars = gradient_features(batch.numbers, x, gradient)
    q = orthogonal(3, improper=True)
    turned, same = gradient_features(batch.numbers, x @ q.T + 1.0, gradient @ q.T)
    assert torch.allclose(torch.einsum("ij,bnjk->bnik", q, vectors), turned, atol=1e-10)
    assert torch.allclose(scalars, same, atol=1e-10)
    small = batch.select(torch.tensor([0]))
    n = small.numbers.shape[1]
    assert n < batch.numbers.shape[1]
    alone = gradient_features(small.numbers, x[:1, :n], gradient[:1, :n])
    assert torch.allclose(alone[0], vectors[:1, :n], atol=1e-12)
    assert torch.equal(vectors[~batch.mask], torch.zeros_like(vectors[~batch.mask]))
    assert vectors.norm(dim=2).max() <= 1 + 1e-12


# --- network


def test_correction_depends_on_gradient_not_on_frame_or_direction(model, reactions):
    batch, x, gradient = surface_of(reactions)
    found, deviation = correct(model, batch, x, gradient)
    other, _ = correct(model, batch, x, -gradient)
    assert rmsd(found, other, batch.mask).min() > 1e-4
    for improper in (False, True):
        q, m = orthogonal(5, improper), batch.mask[..., None]
        turned, same = correct(model, batch, (x @ q.T + 2.0) * m, gradient @ q.T)
        assert torch.allclose(turned, (found @ q.T + 2.0) * m, atol=1e-9)
        assert torch.allclose(same, deviation, atol=1e-9)
        start = (batch.guess @ orthogonal(7, improper).T) if not improper else batch.guess
        given, _ = correct(model, batch, (x @ q.T + 2.0) * m, gradient @ q.T, start @ q.T)
        expected, _ = correct(model, batch, x, gradient, batch.guess)
        assert torch.allclose(given, (expected @ q.T + 2.0) * m, atol=1e-9)
        assert not torch.allclose(expected, found, atol=1e-4)
    back, _ = correct(model, batch.swapped(), x, gradient)
    assert torch.allclose(back, found, atol=1e-9)
    assert (deviation[batch.mask] > 0).all() and not deviation[~batch.mask].any()


def test_correction_sees_no_geometry_of_reactant_and_product(model, reactions):
    batch, x, gradient = surface_of(reactions)
    moved = replace(batch, reactant=batch.reactant + 0.1, product=2 * batch.product, guess=0 * batch.guess)
    assert torch.equal(correct(model, moved, x, gradient)[0], correct(model, batch, x, gradient)[0])
    unbonded = replace(batch, hops=batch.hops.flip(1, 2))
    assert not torch.equal(correct(model, unbonded, x, gradient)[0], correct(model, batch, x, gradient)[0])


def test_a_correction_does_not_guess_and_a_guesser_does_not_correct(model, tmp_path):
    save_checkpoint(tmp_path / "w", model.state_dict(), {"model": "correction", "config": model.config})
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "w")
    with pytest.raises(CheckpointError):
        load_correction("tsgen")


# --- searches


def test_points_are_geometries_with_their_gradients(searches, source, reactions):
    result, path = searches
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["searches"] == summary["asked"] == 3  # the test split is left out
    with np.load(path) as data:
        kinds, index, ptr = data["kind"].tolist(), data["index"], data["ptr"]
        assert set(index.tolist()) == {0, 1, 2} and str(data["level"]) == LEVEL
        assert summary["near_lost"] + kinds.count("near") == 2 * NEAR
        assert summary["points"] == len(kinds) and summary["energy_calls"] >= len(kinds) - kinds.count("saddle")
        for k, kind in enumerate(kinds):
            atoms = slice(ptr[k], ptr[k + 1])
            potential = XtbPotential(reactions[index[k] % 2].numbers)
            forces = potential.energy_and_forces(data["x"][atoms].astype(float)[None])[1][0]
            limit = 0.03 if kind == "saddle" else 0.02 * max(1.0, np.abs(forces).max())  # positions have four digits
            assert np.abs(forces + data["gradient"][atoms]).max() < limit, kind
        assert kinds.count("guess") >= 2 and kinds.count("saddle") >= 1
        assert not any(kind == "near" for kind, row in zip(kinds, index, strict=True) if row == 2)  # of val


def test_training_searches_begin_from_spoilt_guesses_and_others_from_the_users(reactions):
    splits = {**dict.fromkeys(range(6), "train"), 6: "val"}
    work = Searches(SearchPlan(dict(zip(splits, [reactions[0]] * 7, strict=True)), splits))
    starts = [[point["x"] for point in work(row)["points"] if point["kind"] == "guess"] for row in splits]
    guess = generate(work._model.model.eval(), [reactions[0]])[0].positions[0]
    apart = [float(rmsd(torch.tensor(x[0], dtype=torch.float64), guess)) if x else None for x in starts]
    assert apart[6] is not None and apart[6] < 1e-3
    spoilt = [value for value in apart[:6] if value is not None]  # others had atoms on top of one another
    assert len(spoilt) >= 3 and min(spoilt) > 1e-3 and max(spoilt) > 0.03


def test_resumed_searches_give_the_same_file(searches, source, tmp_path):
    plan, settings = search_plan(source)
    digest = settings["files"][str(source)]
    first = list(plan.reactions)[0]
    with Run(tmp_path / "run", "data searches", settings) as run:
        part = replace(plan, reactions={first: plan.reactions[first]})
        search_all(part, run, digest=digest, workers=1)
        run.finish("ok")
    with Run(tmp_path / "run", "data searches", settings, resume=True) as run:
        seen: list[int] = []
        search_all(plan, run, digest=digest, workers=1, work=Searches, progress=lambda line: seen.append(1))
        run.finish("ok")
    assert len(seen) == 2
    with np.load(tmp_path / "run" / "searches.npz") as a, np.load(searches[1]) as b:
        for key in a.files:
            assert np.array_equal(a[key], b[key]), key


def test_a_dead_worker_costs_its_search_only(source, tmp_path):
    plan, settings = search_plan(source)
    with Run(tmp_path / "run", "data searches", settings) as run:
        figures = search_all(plan, run, digest="", workers=1, work=partial(DiesOn, list(plan.reactions)[1]))
        run.finish("ok")
    assert figures["searches"] == 3 and figures["rejections"]["worker died"] == 1


class DiesOn(Searches):
    """Ends its process on one row."""

    def __init__(self, row: int, plan: SearchPlan):
        super().__init__(plan)
        self.row = row

    def __call__(self, row: int):
        if row == self.row:
            import os

            os._exit(3)
        record = {"outcome": "converged", "points": [], "near_lost": 0, "calls": {}, "seconds": 0.0}
        return {"index": row, "split": "train", **record}


# --- training


def test_every_reaction_gives_one_of_its_points_an_epoch(searches, source):
    points = load_training_points(source, searches[1], "train")
    assert set(points.kind.tolist()) <= set(WEIGHTS) and int(points.offsets[-1]) == len(points.x)
    drawn: list[float] = []
    for seed in range(40):
        for batch, x, gradient, guess, has_guess in epoch(points, 1, torch_generator(seed)):
            row = int((points.reactions.numbers > 0).sum(1).eq(int(batch.mask.sum())).nonzero()[0])
            own = points.x[points.offsets[row] : points.offsets[row + 1], : x.shape[1]]
            match = (own - x).abs().amax((1, 2)) < 1e-6
            assert match.any()
            drawn.append(float(match.nonzero()[0]))
            assert gradient.shape == x.shape
            assert bool(has_guess) == bool(points.from_flow[row])
            assert torch.equal(guess[0], own[0])
    assert len(drawn) == 80 and len(set(drawn)) > 3


def test_a_reaction_without_its_guess_is_not_judged_by_another(searches, source, model):
    """A search that lost its guess leaves points near the truth only."""
    points = load_training_points(source, searches[1], "train")
    a, b = points.offsets[:2].tolist()
    kinds = points.kind.copy()
    kinds[a:b] = "near"
    lost = replace(points, kind=kinds)
    figures, whole = validation_figures(model.float(), lost), validation_figures(model.float(), points)
    assert set(figures) == set(whole) and all(np.isfinite(value) for value in figures.values())
    kinds[:] = "near"
    kinds[b] = points.kind[b]  # the guess of the second reaction alone
    one = validation_figures(model.float(), replace(points, kind=kinds))
    assert one["val_guess_before"] == one["val_saddle_before"], "its only point is both"


def test_the_loss_teaches(searches, source, model):
    points = load_training_points(source, searches[1], "train")
    item = next(epoch(points, 2, torch_generator(0)))
    model = model.float().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    errors = []
    for step in range(150):
        losses = correction_loss(model, item, torch_generator(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        errors.append(losses["rmsd"].item())
    assert np.mean(errors[-10:]) < 0.3 * np.mean(errors[:5])


def test_trained_weights_serve_find_ts(searches, source, tmp_path):
    out = tmp_path / "run"
    command = ("train", "correction", "--data", source, "--searches", searches[1], "--level", "rough", "--out", out)
    result = invoke(*command, "--steps", 20, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"val_guess_mean", "val_saddle_mean", "score"} <= set(rows[-1])

    reactant, product = sides("hcn")
    found = find_ts(reactant[0], product[0], correction=str(out / "best"), out=tmp_path / "ts")
    assert found.verified and found.corrected is not None
    written = read(tmp_path / "ts" / "ts_corrected.xyz")
    assert np.allclose(written.positions, found.corrected.positions, atol=1e-6)
    assert written.info["corrected_to"] == "rough" and not written.info["verified"]
    assert json.loads((tmp_path / "ts" / "summary.json").read_text())["corrected"]["level"] == "rough"
    without = find_ts(reactant[0], product[0], correction="none", out=tmp_path / "none")
    assert without.corrected is None and not (tmp_path / "none" / "ts_corrected.xyz").exists()
    assert found.corrected.source == "saddle"
    saddle = torch.tensor(found.best.atoms.positions)  # in one frame, so that a viewer shows what moved
    moved = torch.tensor(found.corrected.positions)
    assert (moved - saddle).square().sum(-1).mean().sqrt() < float(rmsd(moved, saddle)) + 1e-6


def test_without_a_saddle_the_guess_is_carried_over(tmp_path, monkeypatch):
    real = ts_search.refine
    monkeypatch.setattr(ts_search, "refine", lambda *a, **k: replace(real(*a, **k), converged=False))
    reactant, product = sides("claisen")
    found = find_ts(reactant[0], product[0], samples=1, out=tmp_path)
    assert not found.verified and found.corrected is not None and found.corrected.source == "guess"
    assert read(tmp_path / "ts_corrected.xyz").positions == pytest.approx(found.corrected.positions, abs=1e-6)
    assert json.loads((tmp_path / "summary.json").read_text())["corrected"]["source"] == "guess"
    assert "not verified; from the guess, since no saddle was proven" in report(found, tmp_path)


@pytest.mark.parametrize(
    ("calculator", "kwargs"), [("gfn1", None), ("tblite.ase:TBLite", {"method": "GFN2-xTB"}), (object(), None)]
)
def test_a_correction_is_not_used_with_another_calculator(calculator, kwargs, model, tmp_path, reactions):
    save_checkpoint(tmp_path / "w", model.float().state_dict(), {"model": "correction", "config": model.config})
    weights = str(tmp_path / "w")
    found, unfit = fitting_correction(weights, reactions[0], calculator, kwargs)
    assert found is None and "reads gradients of GFN2-xTB, not of" in unfit and "use --calculator gfn2, or" in unfit
    assert fitting_correction(weights, reactions[0], "gfn2")[1] == ""
    assert "neutral" in fitting_correction(weights, replace(reactions[0], charge=1), "gfn2")[1]
    other = replace(reactions[0], numbers=np.array([6, 17, 1]))
    assert "does not know Cl (H, C, N, O were" in fitting_correction(weights, other, "gfn2")[1]
    assert fitting_correction("none", reactions[0], "gfn2") == (None, "")


@pytest.mark.parametrize("good", [0, 1, 2])
def test_an_estimate_counts_the_corrections_of_its_guess(good, model, tmp_path, reactions):
    """The calculator fails on the guess after `good` gradients: it is corrected less often, and says so."""
    save_checkpoint(tmp_path / "w", model.state_dict(), {"model": "correction", "config": model.config})
    weights = load_correction(tmp_path / "w", dtype=torch.float64)
    guess = prepare([reactions[0]]).guess[0].double().numpy()
    calls = 0

    class Failing(XtbPotential):
        def _evaluate_one(self, positions, forces):
            nonlocal calls
            calls += 1
            if calls > good:
                raise RuntimeError("SCF not converged")
            return super()._evaluate_one(positions, forces)

    found = correct_saddle(weights, reactions[0], Failing(reactions[0].numbers), reactions[0].ts, guess)
    assert found.guess_corrections == good == found.summary()["guess_corrections"]
    alone = correct_saddle(weights, reactions[0], Failing(reactions[0].numbers), reactions[0].ts)
    assert alone.guess_corrections == 0 and np.isfinite(found.positions).all()
    assert not np.allclose(alone.positions, found.positions, atol=1e-4)
    calls = 0
    without = correct_guess(weights, reactions[0], Failing(reactions[0].numbers), guess)
    assert (without is None) == (good == 0)
    if without is not None:
        assert without.source == "guess" and without.guess_corrections == good
        assert not np.allclose(without.positions, guess, atol=1e-4) and (without.deviation > 0).all()


def test_a_correction_of_ones_own_that_does_not_fit_is_pointed_out(model, tmp_path):
    save_checkpoint(tmp_path / "w", model.float().state_dict(), {"model": "correction", "config": model.config})
    reactant, product = sides("hcn")
    own = find_ts(reactant[0], product[0], calculator="gfn1", correction=str(tmp_path / "w"), samples=1)
    assert own.corrected is None and any("nothing is corrected" in note for note in own.notes)
    default = find_ts(reactant[0], product[0], calculator="gfn1", samples=1)
    assert default.corrected is None and not any("nothing is corrected" in note for note in default.notes)
    assert repr(default) == f"TSResult({default})" and "intended" in repr(default)


# --- bad input


def test_searches_of_another_set_are_refused(searches, source, reactions, tmp_path):
    other = tmp_path / "other.npz"
    save_npz(other, reactions[:1], "train")
    with pytest.raises(InputError, match="another set"):
        load_training_points(other, searches[1], "train")
    with pytest.raises(InputError, match="no point of split 'test'"):
        load_training_points(source, searches[1], "test")
    with pytest.raises(InputError, match="missing keys: index"):
        load_training_points(source, source, "train")


def test_weights_of_another_level_or_other_elements_are_refused(searches, source, tmp_path):
    points = load_training_points(source, searches[1], "train")
    for name, elements, level in (("level", [1, 6, 7, 8], "GFN1-xTB"), ("elements", [1, 6], LEVEL)):
        other = CorrectionModel(elements, level, scalars=16, vectors=8, pair=16, layers=1)
        save_checkpoint(tmp_path / name, other.state_dict(), {"model": "correction", "config": other.config})
    with pytest.raises(InputError, match="reads gradients of GFN1-xTB"):
        correction_model(points, points, str(tmp_path / "level"))
    with pytest.raises(InputError, match="atomic numbers"):
        correction_model(points, points, str(tmp_path / "elements"))
