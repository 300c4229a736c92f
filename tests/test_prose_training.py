"""How Prose learns: the losses, the frames, the order of an epoch, and runs that stop and go on."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prose_cases import KELVINS, md_set, small_flow

from molgen.checkpoint import load_checkpoint
from molgen.data.md import MDSet, load_md
from molgen.data.remd import generate_md
from molgen.data.stereochemistry import cis_bonds
from molgen.errors import CheckpointError, InputError
from molgen.prose.evaluate import log_densities
from molgen.prose.frames import Frames
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.training import (
    CAP,
    Batch,
    ProseLoss,
    epoch,
    prose_loss,
    spread_loss,
    train_prose,
    validation_figures,
)
from molgen.prose.weights import deepened, load_flow
from molgen.train.loop import TrainSettings
from molgen.units import KB
from molgen.workflows.train_prose import own_frames


@functools.cache
def gly() -> Frames:
    return Frames.of_md(md_set("G", "ace-nme"))


@functools.cache
def diglycine() -> Frames:
    return Frames.of_md(md_set("GG", frames=8))


# losses


def test_exact_densities_have_no_spread() -> None:
    """Whatever the temperature, the normalisation and the frames that were drawn."""
    energies = torch.randn(33, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    for kelvin, constant in ((310.0, 0.0), (600.0, -123.4)):
        kt = KB * kelvin
        assert float(spread_loss(constant - energies / kt, energies, kt, 4.0)) == pytest.approx(0, abs=1e-20)
        half = spread_loss(constant - 0.5 * energies / kt, energies, kt, 4.0)
        assert float(half) == pytest.approx(float(spread_loss(-0.5 * energies / kt, energies, kt, 4.0))) and half > 0.01


def test_spread_is_quadratic_near_the_median_then_linear() -> None:
    value = torch.tensor([-10.0, -1.0, 0.0, 0.5, 8.0], dtype=torch.float64)
    expected = (4 * (10 - 2) + 0.5 + 0 + 0.125 + 4 * (8 - 2)) / 5
    assert float(spread_loss(value, torch.zeros(5).double(), 1.0, 4.0)) == pytest.approx(expected)
    assert float(spread_loss(torch.zeros(5).double(), value, 1.0, 4.0)) == pytest.approx(expected)


def test_clashes_count_no_more_than_the_cap() -> None:
    energies = torch.tensor([0.0, 0.1, 0.2, 0.3, 1e6], dtype=torch.float64)
    capped = energies.clamp(max=0.2 + CAP)
    found = [spread_loss(torch.zeros(5).double(), e, 1.0, 4.0) for e in (energies, capped)]
    assert float(found[0]) == pytest.approx(float(found[1]))


def test_loss_is_that_of_log_prob_and_energies() -> None:
    """From frames with everything computed once, in single precision; a sequence weighs by its degrees of freedom."""
    flow, settings = small_flow(), ProseLoss(likelihood=0.3, spread=0.7)
    batches, expected, nll = [], [], []
    for frames, item, kelvin in ((gly(), md_set("G", "ace-nme"), 310.0), (diglycine(), md_set("GG", frames=8), 380.0)):
        here = frames.at(kelvin)
        batches.append(Batch(frames, kelvin, here))
        k = KELVINS.index(kelvin)
        x = torch.from_numpy(item.positions[k]).double()
        log_q = small_flow(dtype=torch.float64).log_prob(frames.layout, x, torch.full((len(x),), kelvin).double())
        value = log_q + torch.from_numpy(item.energies[k]).clamp(
            max=np.median(item.energies[k]) + CAP * KB * kelvin
        ) / (KB * kelvin)
        off = (value - value.sort().values[(len(value) - 1) // 2]).abs()
        spread = torch.where(off < 4, off.square() / 2, 4 * (off - 2)).mean()
        dof = 3 * frames.layout.atoms - 6
        expected.append((-0.3 * log_q.mean() + 0.7 * spread).item() / dof)
        nll.append(-log_q.mean().item() / dof)
    with torch.no_grad():
        found = prose_loss(flow, batches, settings)
    assert float(found["loss"]) == pytest.approx(np.mean(expected), rel=2e-2, abs=2e-3)
    assert float(found["nll"]) == pytest.approx(np.mean(nll), abs=2e-3)


def test_own_samples_are_not_imitated() -> None:
    """They enter the energy spread, and nothing else."""
    flow, data = small_flow(), gly()
    here = data.at(310.0)
    own = replace(data, own=torch.ones_like(data.own))
    with torch.no_grad():
        both = prose_loss(flow, [Batch(data, 310.0, here)], ProseLoss(likelihood=0.0, spread=1.0))
        alone = prose_loss(flow, [Batch(own, 310.0, here)], ProseLoss(likelihood=1.0, spread=1.0))
    assert "nll" in both and "nll" not in alone
    assert float(alone["loss"]) == pytest.approx(float(both["loss"]), rel=1e-6)
    half = replace(data, own=torch.arange(len(data)) % 2 == 0)
    with torch.no_grad():
        mixed = prose_loss(flow, [Batch(half, 310.0, here)], ProseLoss(likelihood=1.0, spread=0.0))
        data_only = prose_loss(flow, [Batch(data, 310.0, here[~half.own[here]])], ProseLoss(likelihood=1.0, spread=0.0))
    share = float((~half.own[here]).float().mean())
    assert float(mixed["loss"]) == pytest.approx(share * float(data_only["loss"]), rel=1e-5)
    assert float(mixed["nll"]) == pytest.approx(float(data_only["nll"]), rel=1e-5)


# frames


def test_a_form_that_the_start_decided_is_not_imitated(tmp_path: Path) -> None:
    """A cis peptide bond stays as it began; after moves of a flow its share is that of the ensemble."""
    path = tmp_path / "GA.npz"
    generate_md("GA", path, 6, temperatures=(310.0, 380.0, 470.0), hot=1, settle=0, cis=True, seed=1)
    item = load_md(path)
    cis = cis_bonds(item.peptide, item.positions)[..., 0]
    assert (cis.sum(0) == 1).all(), "the third replica, whatever its temperature is"
    assert np.array_equal(Frames.of_md(item).own.numpy(), cis.ravel())
    assert not Frames.of_md(replace(item, flow="moves")).own.any()
    generate_md("GP", tmp_path / "GP.npz", 2, temperatures=(310.0, 380.0, 470.0), hot=1, settle=0, cis=True)
    assert not Frames.of_md(load_md(tmp_path / "GP.npz")).own.any(), "cis before proline is imitated"


def test_inverted_and_broken_frames_are_left_out() -> None:
    """The rest stay with their energies and temperatures."""
    item = md_set("AG", frames=6)
    positions, energies = item.positions.copy(), item.energies.copy()
    positions[0, 1] *= -1
    positions[1, 2, 4] = np.nan
    energies[1, 5] = np.inf
    whole, frames = (Frames.of_md(i) for i in (item, replace(item, positions=positions, energies=energies)))
    assert len(whole) == 12 and len(frames) == 9
    kept = [0, 2, 3, 4, 5, 6, 7, 9, 10]
    assert frames.given.tolist() == kept
    for name in ("x", "q", "energies", "temperature", "gradient", "hessian", "scans", "volume"):
        assert torch.equal(getattr(frames, name), getattr(whole, name)[kept]), name
    assert frames.temperatures() == [310.0, 380.0] and len(frames.at(310.0)) == 5


def test_labels_are_made_canonical_before_learning() -> None:
    item = md_set("G", "ace-nme")
    i, j = item.peptide.names.index("HA2"), item.peptide.names.index("HA3")
    positions = item.positions.copy()
    positions[:, :, [i, j]] = positions[:, :, [j, i]]
    assert torch.equal(Frames.of_md(replace(item, positions=positions)).x, gly().x)


def test_frames_join() -> None:
    both = Frames.join([gly(), gly()])
    assert len(both) == 2 * len(gly()) and len(both.at(380.0)) == 2 * len(gly().at(380.0))
    assert torch.equal(both.scans[len(gly()) :], gly().scans)


def test_own_frames_carry_energies_and_are_marked() -> None:
    layout = gly().layout
    frames = own_frames(small_flow(), layout.peptide, 20, 310.0, 1)
    assert frames.own.all() and not gly().own.any() and 5 < len(frames) <= 20
    x = frames.x[:, torch.from_numpy(layout.z.rank)].double().numpy()
    assert np.allclose(layout.peptide.potential("Reference").energy(x), frames.energies.numpy(), atol=0.02)
    assert frames.temperatures() == [310.0]
    log_q = log_densities(small_flow(), layout, x, 310.0)
    log_w = -frames.energies.numpy() / (KB * 310.0) - log_q
    tilted = np.exp(0.5 * (log_w - log_w.max()))
    ratio = frames.share.numpy() / tilted
    assert np.ptp(np.log(ratio[np.argsort(log_w)[:-3]])) < 0.05, "the root of the weights"


def test_own_frames_are_not_what_is_sampled_under_the_same_seed() -> None:
    """A flow judged by the noise it was trained on looks better than it is."""
    layout = gly().layout
    frames = own_frames(small_flow(), layout.peptide, 20, 310.0, 1)
    x = torch.from_numpy(propose(small_flow(), layout, 20, 310.0, 1)[0])[:, torch.from_numpy(layout.z.order)]
    apart = (frames.x[:, None].double() - x[None]).abs().amax((2, 3))
    assert apart.min() > 0.05


def test_frames_are_picked_by_their_shares() -> None:
    frames = replace(gly(), share=torch.arange(len(gly())).float())
    here = frames.at(380.0)
    picked = torch.cat([frames.pick(here, 4, torch.Generator().manual_seed(k)) for k in range(500)])
    counts = torch.bincount(picked, minlength=len(frames))
    assert counts.sum() == 500 * min(4, len(here)) and not counts[frames.at(310.0)].any()
    expected = frames.share[here] / frames.share[here].sum() * counts.sum()
    assert (counts[here] - expected).abs().max() < 5 * expected.max().sqrt()


# epochs


def test_an_epoch_is_every_sequence_at_every_temperature_the_lowest_twice() -> None:
    settings = ProseLoss(frames=8, sequences=2)
    steps = list(epoch([gly(), diglycine()], settings, torch.Generator().manual_seed(0)))
    seen = Counter((batch.frames.layout.atoms, batch.temperature) for step in steps for batch in step)
    assert seen == {(19, 310.0): 2, (19, 380.0): 1, (17, 310.0): 2, (17, 380.0): 1}
    assert all(len(step) == 2 for step in steps)
    for batch in itertools.chain(*steps):
        assert len(batch.index) == 8 and (batch.frames.temperature[batch.index] == batch.temperature).all()
    again = list(epoch([gly(), diglycine()], settings, torch.Generator().manual_seed(0)))
    other = list(epoch([gly(), diglycine()], settings, torch.Generator().manual_seed(1)))
    same = [
        all(torch.equal(a.index, b.index) for a, b in zip(p, q, strict=True)) for p, q in zip(steps, again, strict=True)
    ]
    assert all(same)
    assert any(
        not torch.equal(a.index, b.index) for p, q in zip(steps, other, strict=True) for a, b in zip(p, q, strict=True)
    )


def test_validation_is_at_the_lowest_temperature() -> None:
    """Against log_prob; the forward effective sample size against its definition."""
    item = md_set("G", "ace-nme")
    found = validation_figures(small_flow(), [gly()])
    x = torch.from_numpy(item.positions[0]).double()
    log_q = small_flow(dtype=torch.float64).log_prob(gly().layout, x, torch.full((len(x),), 310.0).double()).detach()
    value = log_q + torch.from_numpy(item.energies[0]) / (KB * 310)
    assert found["val_nll"] == pytest.approx(-float(log_q.mean()) / 51, abs=2e-3)
    assert found["val_spread"] == pytest.approx(float(value.std()), rel=2e-2)
    assert found["score"] == 1 - found["val_forward"]
    w = (value - value.max()).exp()
    assert found["val_forward"] == pytest.approx(1 / float(w.mean() * (1 / w).mean()), rel=0.2)


# runs


def run(directory: Path, steps: int = 24, **more: Any) -> dict[str, Any]:
    directory.mkdir(exist_ok=True)
    settings = {"learning_rate": 0.03, "loss": ProseLoss(frames=12), "seed": 1, "log": lambda message: None}
    return train_prose(small_flow(), [gly(), diglycine()], [gly()], directory, steps=steps, **(settings | more))


def test_training_lowers_the_loss_and_leaves_weights_that_load(tmp_path: Path) -> None:
    """The frames are an untrained flow's own, so that likelihood has nothing to learn, but the energies have."""
    before = validation_figures(small_flow(), [gly()])
    messages: list[str] = []
    loss = ProseLoss(frames=12, sequences=1, likelihood=0.1, spread=1.0)
    after = run(
        tmp_path,
        30,
        log=messages.append,
        loss=loss,
        begun=("old", {"forms": ["[HIP]"], "lengths": [2, 4], "temperatures": [300.0, 350.0]}),
    )
    assert after["step"] == 30 and after["val_spread"] < 0.93 * before["val_spread"]
    assert after["best_score"] <= after["score"] and after["val_nll"] < before["val_nll"] + 0.2
    assert "2 training and 1 validation sequences" in messages[0] and "validation NLL" in messages[-1]
    assert messages[1].startswith("old: validation NLL") and after["without_gain"] is None
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 30 and lines[-1]["val_nll"] == pytest.approx(after["val_nll"])

    proposal = load_flow(tmp_path / "best")
    assert proposal.config["temperatures"] == [300.0, 380.0] and proposal.config["lengths"] == [1, 4]
    assert proposal.config["forms"] == ["[HIP]", "ace-nme"] and not proposal.unknown_forms(gly().layout.peptide)
    assert proposal.config["model"] == "prose" and proposal.config["loss"]["frames"] == 12
    assert not proposal.model.training and proposal.hash == load_checkpoint(tmp_path / "best").hash
    assert validation_figures(proposal.model, [gly()])["score"] == pytest.approx(after["best_score"], rel=1e-5)


def test_stopped_and_resumed_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the third of five steps, of which every one is saved; an epoch has three."""
    monkeypatch.setattr("molgen.prose.training.TrainSettings", functools.partial(TrainSettings, checkpoint_seconds=0.0))
    run(tmp_path / "whole", 5)
    count = itertools.count(1)

    def interrupted(*arguments: Any) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return prose_loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("molgen.prose.training.prose_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", 5)
    assert load_checkpoint(tmp_path / "parts" / "state").config["counters"]["step"] == 2
    run(tmp_path / "parts", 5, resume=True)
    for part in ("state", "best"):
        assert load_checkpoint(tmp_path / "parts" / part).hash == load_checkpoint(tmp_path / "whole" / part).hash


def test_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with pytest.raises(InputError, match="'lengths' is"):
        train_prose(
            small_flow(), [gly()], [gly()], tmp_path, steps=1, resume=True, learning_rate=0.03,
            loss=ProseLoss(frames=12), seed=1, log=lambda message: None,
        )  # fmt: skip


def test_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a model of kind 'tsgen'"):
        load_flow("tsgen")
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_flow(tmp_path / "nowhere")


def test_layouts_are_made_once() -> None:
    item: MDSet = md_set("G", "ace-nme")
    assert Layout.of(item.peptide) is gly().layout or Layout.of(item.peptide).atoms == 19
    assert math.isclose(float(gly().energies[0]), item.energies[0, 0], rel_tol=1e-5)


def test_a_deepened_flow_is_the_same_flow_until_it_learns():
    flow = load_flow().model  # heads of an untrained one would pass no gradient
    grown = deepened(flow, flow.config.layers + 2)
    frames = gly()
    state = frames.state(frames.at(310.0)[:4])
    before, after = flow.log_density(frames.layout, state), grown.log_density(frames.layout, state)
    assert torch.allclose(before, after, rtol=1e-5)
    after.sum().backward()
    assert any(float(p.grad.abs().max()) > 0 for p in grown.trunk.layers[-1].parameters() if p.grad is not None)
    with pytest.raises(InputError, match="more than"):
        deepened(grown, grown.config.layers)
