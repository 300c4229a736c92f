"""Finetuning on one peptide: pooled weights against brute force, a known target reached, the better flow kept."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peptide_cases import FlowPotential, tiny_flow

from molgen.data.peptide import Peptide, build_peptide
from molgen.errors import CalculatorError
from molgen.prose.evaluate import log_densities
from molgen.prose.layout import Layout
from molgen.prose.training import spread_loss
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.importance import diagnose
from molgen.threads import one_thread
from molgen.units import KB
from molgen.variables import torsion, values
from molgen.workflows.draws import Draws, Energies, Store, draw
from molgen.workflows.finetune import FinetuneSettings, _Pool, _score, finetune_flow
from molgen.workflows.peptide import sample_peptide

T = 400.0
PEPTIDE = build_peptide("GG")
LAYOUT = Layout.of(PEPTIDE)
PSI = tuple(PEPTIDE.names.index(name) for name in ("N", "CA", "C"))


class Tilted(FlowPotential):
    """The flow's own energy and 2 kT cos(psi) besides: a target that is known and not the flow's."""

    def __init__(self, peptide: Peptide):
        super().__init__(peptide, T)
        second = int(np.flatnonzero(peptide.residue_index == 1)[0])
        self.atoms = (*PSI, second)

    def _evaluate(self, positions, forces):
        energy, _ = super()._evaluate(positions, forces)
        return energy + 2 * KB * T * np.cos(values(torsion(*self.atoms), positions)), None


class Bench:
    """A folder, and draws that are counted."""

    def __init__(self, tmp_path, monkeypatch, potential=Tilted):
        monkeypatch.setattr(Peptide, "potential", lambda self, platform="auto", workers=1: potential(self))
        self.energies, self.store, self.tmp_path, self.names = Energies(PEPTIDE, "auto", 1), Store(None), tmp_path, []

    def draws(self, proposal: Proposal, n: int, seed: int, name: str) -> Draws:
        self.names.append(name)
        return draw(proposal.model, LAYOUT, self.energies, n, T, seed, self.store, name)

    def finetune(self, rounds: int, log=lambda line: None, given: Proposal | None = None, **settings):
        return finetune_flow(
            given or tiny_flow(), LAYOUT, self.draws, T, rounds, self.store, self.tmp_path / "adapter", seed=5,
            scratch=self.tmp_path / "scratch", settings=FinetuneSettings(**settings), log=log,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_a_known_target_is_reached(bench):
    """Exactly tilted draws have ESS 1/E[w^2] = I0(4) / I0(2)^2 for a flat psi; learning the tilt brings that to one."""
    flow, rounds = bench.finetune(2, samples=250, passes=8, batch=48, learning_rate=1e-2)
    assert bench.names == ["round0", "round1", "round2"]
    assert rounds[0].ess < 0.6 and max(r.ess for r in rounds) > rounds[0].ess + 0.15
    fresh = bench.draws(flow, 250, 99, "fresh")
    assert diagnose(fresh.log_weights).ess > rounds[0].ess + 0.1
    assert all(r.energy_calls > 220 for r in rounds) and rounds[-1].losses == {}
    before = tiny_flow().model.state_dict()
    moved = {name for name, value in flow.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith(("trunk.", "encoder.", "to_trunk.")) for name in moved)
    assert all(parameter.requires_grad for parameter in flow.model.parameters())


def test_the_result_is_a_checkpoint_that_says_what_it_is(bench):
    flow, rounds = bench.finetune(1, samples=64, passes=1, batch=16, patience=9)
    again = load_flow(bench.tmp_path / "adapter")
    assert again.hash == flow.hash and again.config["temperatures"] == [300.0, 600.0]
    said = again.config["finetuned"]
    assert said["sequence"] == "GG" and said["temperature"] == T and said["from"] == "untrained"
    assert said["ess"] == rounds[said["rounds"]].ess
    assert len(sample_peptide("GG", 5, T, weights=bench.tmp_path / "adapter")) == 5


def test_the_flow_given_is_not_changed(bench):
    before = {name: value.clone() for name, value in tiny_flow().model.state_dict().items()}
    bench.finetune(1, samples=32, passes=1, batch=8)
    assert all(torch.equal(value, before[name]) for name, value in tiny_flow().model.state_dict().items())


def test_without_progress_the_given_flow_stays(bench, monkeypatch):
    """Training that ruins the flow: it ends early, with the weights it began with."""
    flow, rounds = bench.finetune(5, samples=64, passes=10, batch=16, learning_rate=0.8, patience=0)
    assert len(rounds) == 2 and rounds[1].ess < rounds[0].ess and flow.config["finetuned"]["rounds"] == 0
    for name, value in tiny_flow().model.state_dict().items():
        assert torch.equal(flow.model.state_dict()[name], value), name


def test_pooled_weights_are_those_of_the_mixture(bench):
    """Against ln p - ln(sum_k n_k q_k / n), every density computed anew."""
    first = tiny_flow()
    second = Proposal(copy.deepcopy(first.model), "", first.config)
    torch.nn.init.normal_(second.model.head_out, std=0.02, generator=torch.Generator().manual_seed(0))
    pool, flows = _Pool(LAYOUT, T), [first]
    parts = [bench.draws(first, 30, 1, "a"), bench.draws(second, 50, 2, "b")]
    for number, fresh in enumerate(parts):
        pool.add(flows, fresh, bench.store, number)
        flows.append(second)
    x = np.concatenate([part.positions for part in parts])
    energies = np.concatenate([part.energies for part in parts])
    usable = np.concatenate([np.isfinite(part.log_weights) for part in parts])
    shares = [part.log_share for part in parts]  # of proposals that are the molecule
    flows = zip((first, second), shares, strict=True)
    q = [log_densities(flow.model, LAYOUT, x[usable], T) - share for flow, share in flows]
    mixture = np.logaddexp(q[0] + np.log(30 / 80), q[1] + np.log(50 / 80))
    assert pool.log_weights() == pytest.approx(-energies[usable] / (KB * T) - mixture, abs=2e-2)
    assert len(pool.joined()) == usable.sum() and np.abs(q[0] - q[1]).max() > 0.1
    for flow, own, share in zip((first, second), q, shares, strict=True):  # from the stored content, of half precision
        assert pool.joined().densities(flow.model) - share == pytest.approx(own, abs=2e-2)


def test_draws_without_energy_are_no_frames_but_count_among_the_draws(bench):
    """Ten of thirty: the others weigh what a mixture of thirty gives them."""
    drawn = bench.draws(tiny_flow(), 30, 1, "a")
    usable = np.arange(30) >= 10
    spoilt = replace(drawn, energies=np.where(usable, drawn.energies, np.nan))
    pool = _Pool(LAYOUT, T)
    pool.add([tiny_flow()], spoilt, bench.store, 0)
    assert len(pool.joined()) == usable.sum() <= 20
    assert pool.log_weights() == pytest.approx(drawn.log_weights[usable])
    assert diagnose(spoilt.log_weights).n == 30


def test_weights_without_a_mean_are_tempered(tmp_path, monkeypatch):
    """The force field at 310 K, from which the untrained flow is far: k-hat above 1."""
    monkeypatch.undo()
    energies = Energies(PEPTIDE, "Reference", 1)

    def draws(proposal, n, seed, name):
        return draw(proposal.model, LAYOUT, energies, n, 310.0, seed, Store(None), name)

    _, rounds = finetune_flow(
        tiny_flow(), LAYOUT, draws, 310.0, 1, Store(None), tmp_path / "adapter", seed=1, scratch=tmp_path,
        settings=FinetuneSettings(samples=400, passes=0.04, batch=8),
    )  # fmt: skip
    assert rounds[0].khat > 1 and rounds[0].exponent == pytest.approx(0.7 / rounds[0].khat, rel=0.05)


def test_rounds_are_compared_by_ess_and_tail():
    assert _score(0.2, 0.3) > _score(0.1, 0.3) and _score(0.1, 0.3) == _score(0.1, 0.69)
    assert _score(0.2, 1.5) < _score(0.1, 0.7) and _score(0.1, np.inf) > -np.inf


def test_each_round_draws_afresh(bench):
    seeds = []
    real = bench.draws
    bench.draws = lambda proposal, n, seed, name: (seeds.append(seed), real(proposal, n, seed, name))[1]
    bench.finetune(2, samples=32, passes=0.5, batch=8, patience=9)
    assert len(set(seeds)) == 3


def test_a_second_finetuning_draws_other_noise_than_the_first(bench):
    """Under the same seed: the flow knows the noise of its first rounds by heart."""
    seeds, real = [], bench.draws
    bench.draws = lambda proposal, n, seed, name: (seeds.append(seed), real(proposal, n, seed, name))[1]
    settings = {"samples": 32, "passes": 0.5, "batch": 8, "patience": 9}
    first, folder = bench.finetune(1, **settings)[0], bench.tmp_path
    for run, given in (("second", first), ("again", tiny_flow())):
        bench.tmp_path = folder / run
        bench.finetune(1, given=given, **settings)
    assert len(set(seeds[:4])) == 4 and seeds[4:] == seeds[:2]


def test_a_flow_that_training_broke_ends_it_and_loses_nothing(bench):
    """Hardly a proposal of it is the molecule: the flow before is the result."""
    real, told = bench.draws, []

    def draws(proposal, n, seed, name):
        if name == "round1":
            raise CalculatorError("63 of 64 proposals are not this molecule")
        return real(proposal, n, seed, name)

    bench.draws = draws
    flow, rounds = bench.finetune(3, samples=32, passes=0.5, batch=8, log=told.append)
    assert len(rounds) == 1 and flow.config["finetuned"]["rounds"] == 0
    assert "63 of 64" in told[-1] and "the flow before stands" in told[-1]
    bench.draws = lambda proposal, n, seed, name: (_ for _ in ()).throw(CalculatorError("not the molecule"))
    with pytest.raises(CalculatorError, match="not the molecule"):
        bench.finetune(1)


def test_a_training_that_diverges_ends_it_and_loses_nothing(bench, monkeypatch):
    real, told = spread_loss, []
    monkeypatch.setattr("molgen.workflows.finetune.spread_loss", lambda *given: real(*given) * torch.nan)
    flow, rounds = bench.finetune(3, samples=32, passes=20, batch=8, log=told.append)
    assert len(rounds) == 1 and flow.config["finetuned"]["rounds"] == 0 and rounds[0].losses == {}
    assert "finetuning round 1: " in told[-1] and "the flow before stands" in told[-1]
    for name, value in tiny_flow().model.state_dict().items():
        assert torch.equal(flow.model.state_dict()[name], value), name


def test_ln_z_of_the_pool_is_that_of_the_weights(bench):
    """Of frames without energy too, which count among the draws."""
    drawn = bench.draws(tiny_flow(), 30, 1, "a")
    spoilt = replace(drawn, energies=np.where(np.arange(30) >= 10, drawn.energies, np.nan))
    pool = _Pool(LAYOUT, T)
    pool.add([tiny_flow()], spoilt, bench.store, 0)
    assert pool.log_z(pool.log_weights()) == pytest.approx(diagnose(spoilt.log_weights).log_z, abs=1e-6)


def test_the_spread_about_a_known_constant_sees_a_flow_that_leaks():
    """Likelihoods too low by the same amount everywhere have no spread of their own."""
    energies, kt = torch.tensor([0.1, 0.5, 0.2]), KB * T
    exact = -energies / kt - 2.0
    assert spread_loss(exact - 1, energies, kt, 4.0) < 1e-9
    assert spread_loss(exact - 1, energies, kt, 4.0, -2.0) == pytest.approx(0.5, abs=1e-5)
    assert spread_loss(exact, energies, kt, 4.0, -2.0) < 1e-9


def test_training_takes_one_thread_unless_told(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with one_thread():
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
