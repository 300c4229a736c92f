"""Moves of replica exchange to what a flow proposes: exact whatever the flow, resumed to the bit, refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from prose_cases import small_flow
from scipy import stats
from typer.testing import CliRunner

from molgen.cli import main
from molgen.data.md import load_md
from molgen.data.peptide import build_peptide
from molgen.data.remd import generate_md
from molgen.data.start import start_structure
from molgen.prose import moves as module
from molgen.prose.moves import FlowMoves, pick
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.estimate import autocorrelation_time
from molgen.reweight.importance import normalised
from molgen.units import KB
from molgen.workflows.draws import Energies, Store, draw
from molgen.workflows.md import moves_of

mm = pytest.importorskip("openmm")
QUICK = {"temperatures": (310.0, 600.0), "hot": 1, "settle": 1}


@pytest.fixture
def few(monkeypatch):
    """Fewer proposals at once."""
    monkeypatch.setattr(module, "BLOCK", 4)


def test_picks_sample_the_target_whatever_the_proposals():
    """A two-well density from proposals that hardly know one well: against the exact quantiles."""
    grid = np.linspace(-4, 4, 4001)

    def energy(x):
        return 2 * (x**2 - 1) ** 2 + 0.5 * x

    cdf = np.cumsum(np.exp(-energy(grid)))
    random, x, visited = np.random.default_rng(0), 0.9, []
    proposal = stats.norm(0.8, 0.9)
    steps = random.normal(0.8, 0.9, size=(60_000, 2))
    log_w = -energy(steps) - proposal.logpdf(steps)
    for y, weights in zip(steps, log_w, strict=True):
        present = -energy(x) - stats.norm._logpdf((x - 0.8) / 0.9) + np.log(0.9)
        chosen = pick(np.append(weights, present), random)
        x = y[chosen] if chosen < 2 else x
        visited.append(x)
    tau = autocorrelation_time(np.array(visited))
    independent = np.array(visited)[:: int(np.ceil(2 * tau))]
    assert len(independent) > 500
    assert stats.kstest(independent, lambda v: np.interp(v, grid, cdf / cdf[-1])).pvalue > 1e-3


def test_what_the_flow_cannot_propose_stays():
    random = np.random.default_rng(0)
    assert {pick(np.array([3.0, 5.0, np.inf]), random) for _ in range(50)} == {2}  # q(x) = 0
    assert {pick(np.array([-np.inf, -np.inf, -900.0]), random) for _ in range(50)} == {2}
    assert {pick(np.array([-np.inf, 900.0, 1.0]), random) for _ in range(50)} == {1}


def test_a_chain_of_moves_has_the_mean_of_the_weighted_draws():
    """No dynamics in between: the chain is exact by its moves alone."""
    peptide, proposal, t = build_peptide("GG"), load_flow("prose"), 310.0
    moves = FlowMoves(proposal, peptide, (t,), seed=3, tries=2)
    x = moves.named(start_structure(peptide, 1)[None])
    energies, chain = peptide.potential().energy(x), []
    for move in range(384):
        x, energies, moved = moves(move, x, energies)
        chain.append(energies[0] / (KB * t))
        assert moved.shape == (1,)
    np.testing.assert_allclose(peptide.potential().energy(x), energies, atol=1e-6)
    chain = np.array(chain[20:])
    with Energies(peptide, "auto", 1) as pool:
        drawn = draw(proposal.model, moves._layout, pool, 1500, t, 4, Store(None), "GG")
    weights = normalised(drawn.log_weights)
    value = drawn.energies / (KB * t)
    mean = weights @ value
    error = np.sqrt(weights**2 @ (value - mean) ** 2 + chain.var() * autocorrelation_time(chain) / len(chain))
    assert error < 0.6 and abs(chain.mean() - mean) < 4 * error


@pytest.mark.usefixtures("few")
def test_a_move_depends_on_its_number_alone_and_lands_on_proposals():
    peptide = build_peptide("GG")
    proposal = Proposal(small_flow(), "hash", {})
    one, other = (FlowMoves(proposal, peptide, (310.0, 600.0), seed=3, tries=3) for _ in range(2))
    x = one.named(np.stack([start_structure(peptide, k) for k in range(2)]))
    energies = np.full(2, 1e4)  # of weight nothing, so that every move changes it
    first = [one(m, x, energies) for m in (0, 1, 9)]
    again = [other(m, x, energies) for m in (9, 0, 1)]
    for a, b in zip(first, [again[1], again[2], again[0]], strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
        assert a[2].all()
        np.testing.assert_allclose(a[1], peptide.potential().energy(a[0]), atol=1e-9)
    assert not np.array_equal(first[0][0], first[1][0]) and (x[0] != first[0][0][0]).any()


@pytest.mark.usefixtures("few")
def test_the_wrong_hand_is_never_taken(monkeypatch):
    peptide = build_peptide("AA")
    monkeypatch.setattr(module, "wrong_chirality", lambda peptide, x: np.ones(len(x), dtype=bool))
    moves = FlowMoves(Proposal(small_flow(), "hash", {}), peptide, (310.0,))
    x = start_structure(peptide, 0)[None]
    assert not moves(0, x, np.full(1, 1e4))[2].any()


def test_names_are_those_of_the_flow():
    """Exchanged hydrogens of a CH2 and methyl groups of valine are named back; the energy does not know."""
    peptide = build_peptide("VS")
    moves = FlowMoves(Proposal(small_flow(), "hash", {}), peptide, (310.0,))
    x = moves.named(start_structure(peptide, 0)[None])
    at = {label.split(":", 1)[1].rsplit(":", 1)[0]: i for i, label in enumerate(peptide.labels)}
    swapped = x.copy()
    pairs = [("SER:HB2", "SER:HB3"), ("VAL:CG1", "VAL:CG2")]
    pairs += [(f"VAL:HG1{k}", f"VAL:HG2{k}") for k in (1, 2, 3)]
    for a, b in pairs:
        swapped[:, [at[a], at[b]]] = x[:, [at[b], at[a]]]
    assert np.abs(swapped - x).max() > 1
    np.testing.assert_allclose(moves.named(swapped), x, atol=1e-12)
    energies = peptide.potential().energy(np.concatenate([x, swapped]))
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)


@pytest.mark.usefixtures("few")
def test_stopped_anywhere_the_file_is_the_same_to_the_bit(tmp_path):
    proposal = Proposal(small_flow(), "a hash", {})

    def run(name, stop=None, **kinds):
        def progress(done, total):
            if done == stop:
                raise KeyboardInterrupt

        moves = moves_of(proposal, "GG", None, QUICK["temperatures"], 5)
        return generate_md("GG", tmp_path / name, 6, seed=5, moves=moves, progress=progress, **QUICK, **kinds)

    figures = run("whole.npz")
    with pytest.raises(KeyboardInterrupt):
        run("parts.npz", 5, save_seconds=0)
    assert run("parts.npz")["moved"] == figures["moved"] and len(figures["moved"]) == 2
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()
    assert load_md(tmp_path / "whole.npz").flow == "a hash"


def test_command(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(main.app, ["data", "md", "GG", "--out", str(tmp_path / "md"), *arguments])

    result = run("--flow", "nowhere")
    assert result.exit_code == 2 and "nowhere" in result.output
    result = run("--flow", "prose", "--temperatures", "200,310")
    assert result.exit_code == 2 and "does not know 200 K" in result.output and "--flow" in result.output
    result = run("--flow", "prose", "--time", "2ps", "--temperatures", "310", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "moves" in result.output
    assert json.loads((tmp_path / "md/summary.json").read_text())["checkpoint_hash"] == load_flow("prose").hash
    md = load_md(tmp_path / "md/GG.npz")
    assert md.flow == load_flow("prose").hash and md.positions.shape[1] == 2
