"""Several TS-GEN networks as one: the mean of where their flows end, and the variance of their mixture."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from equivariance import randomised
from test_tsmodel import ELEMENTS, SIZES, built_in
from torch import Tensor

from molgen.checkpoint import load_checkpoint, save_checkpoint
from molgen.errors import InputError
from molgen.rng import torch_generator
from molgen.tsgen.condition import ReactionBatch, prepare
from molgen.tsgen.ensemble import TSEnsemble
from molgen.tsgen.generate import flow_samples, generate
from molgen.tsgen.model import TSModel
from molgen.tsgen.training import FlowSettings, flow_loss, make_model, train_tsgen
from molgen.tsgen.weights import load_model

PLAIN = {"elements": ELEMENTS, **SIZES}
LEVELS = ["wB97X-D3", "GFN2-xTB"]


def ensemble(*members: dict) -> TSEnsemble:
    """Each member with parameters of its own."""
    model = TSEnsemble(members)
    for k, member in enumerate(model.networks):
        randomised(member, seed=k, scale=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def batch() -> ReactionBatch:
    return prepare(built_in())


def ends(model: TSEnsemble | TSModel, batch: ReactionBatch, steps: int = 2) -> tuple[Tensor, Tensor]:
    return flow_samples(model, batch, torch.zeros_like(batch.guess), steps)


def test_flows_are_averaged_where_they_end_and_disagreement_is_variance(batch: ReactionBatch) -> None:
    model = ensemble(PLAIN, {**PLAIN, "layers": 2})
    end, deviation = ends(model, batch)
    (a, deviation_a), (b, deviation_b) = (ends(member, batch) for member in model.networks)
    assert torch.allclose(end, (a + b) / 2, atol=1e-6)
    # the variance of two points d apart is d^2 / 4
    apart = (a - b).square().sum(-1) / 4
    wanted = (deviation_a.square() + deviation_b.square()) / 2 + apart
    assert torch.allclose(deviation.square(), wanted, rtol=1e-4) and apart.max() > 1e-4


def test_one_member_alone_is_itself(batch: ReactionBatch) -> None:
    model = ensemble(PLAIN)
    for found, wanted in zip(ends(model, batch), ends(model.networks[0], batch), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_members_with_and_without_levels(batch: ReactionBatch) -> None:
    """Those that know levels are told, the others are not asked."""
    model = ensemble(PLAIN, {**PLAIN, "levels": LEVELS})
    assert model.levels == tuple(LEVELS)
    dear, cheap = (prepare([replace(r, level=x) for r in built_in()], model.levels) for x in LEVELS)
    first, other = ends(model, dear)[0], ends(model, cheap)[0]
    assert torch.equal(ends(model, batch)[0], first) and (first - other).abs().max() > 1e-4


def test_members_learn_side_by_side(batch: ReactionBatch) -> None:
    """The gradients of each are those it would have alone, shared among them."""
    model = ensemble(PLAIN, {**PLAIN, "layers": 2})
    flow_loss(model.networks, batch, torch_generator(1), FlowSettings())["loss"].backward()
    for member in model.networks:
        alone = copy.deepcopy(member)
        alone.zero_grad()
        flow_loss([alone], batch, torch_generator(1), FlowSettings())["loss"].backward()
        for mine, wanted in zip(member.parameters(), alone.parameters(), strict=True):
            assert (mine.grad is None) == (wanted.grad is None)
            if mine.grad is not None and wanted.grad is not None:
                assert torch.allclose(2 * mine.grad, wanted.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "second", [{**PLAIN, "elements": [1, 6]}, {**PLAIN, "levels": ["PM6", "GFN2-xTB"]}], ids=["elements", "levels"]
)
def test_members_have_to_agree(second: dict) -> None:
    with pytest.raises(InputError, match="different elements or levels"):
        TSEnsemble([{**PLAIN, "levels": LEVELS}, second])


def test_weights_in_half_precision_are_found_again(batch: ReactionBatch, tmp_path: Path) -> None:
    model = ensemble(PLAIN, PLAIN)
    config = {"model": "tsgen", "config": model.config}
    save_checkpoint(tmp_path, {k: v.half() for k, v in model.state_dict().items()}, config)
    found = load_model(tmp_path).model
    assert isinstance(found, TSEnsemble) and next(found.parameters()).dtype == torch.float32
    x, _ = flow_samples(found, batch, torch.zeros_like(batch.guess))
    y, _ = flow_samples(model, batch, torch.zeros_like(batch.guess))
    assert (x - y).abs().max() < 2e-2


def test_an_ensemble_guesses_and_goes_on_learning(tmp_path: Path) -> None:
    model, reactions = ensemble(PLAIN, PLAIN), built_in()
    (guess, *_) = generate(model, reactions, samples=2)
    assert guess.positions.shape == (2, 3, 3) and guess.deviation.min() > 0
    save_checkpoint(tmp_path / "first", model.state_dict(), {"model": "tsgen", "config": model.config})
    again = make_model(reactions, reactions, init=str(tmp_path / "first"))
    train_tsgen(again, reactions, reactions, tmp_path, steps=2, batch_size=4, log=lambda line: None)
    assert load_checkpoint(tmp_path / "best").config["config"] == model.config


def test_the_shipped_weights_are_one() -> None:
    model = load_model().model
    assert isinstance(model, TSEnsemble) and len(model.networks) == 4
