"""`molgen evaluate prose`: figures against recomputation and known answers, resuming, missing data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from typer.testing import CliRunner, Result

from molgen.checkpoint import save_checkpoint
from molgen.cli import evaluate as command
from molgen.cli import main
from molgen.data.md import MDSet, save_md
from molgen.data.peptide import build_peptide
from molgen.data.stereochemistry import cis_bonds
from molgen.errors import CalculatorError, InputError
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.model import ProseConfig, ProseFlow
from molgen.prose.validity import validate
from molgen.prose.weights import Proposal, load_flow
from molgen.units import KB, KJ_MOL
from molgen.workflows import evaluate_prose as workflow
from molgen.workflows.draws import Draws, Energies

KT = KB * 310
SMALL = ProseConfig(width=16, head=8, channels=4, encoder_layers=1, scalars=8, vectors=4, pair=8, heads=1, layers=1)
METRICS = ("e_w2", "t_w2", "tica_w2", "js_bonds", "js_residues")
runner = CliRunner()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained flow."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    flow = ProseFlow(SMALL)
    config = {"model": "prose", "config": flow.describe(), "temperatures": [300.0, 600.0], "lengths": [2, 4]}
    save_checkpoint(folder, dict(flow.state_dict()), config)
    return folder


def dynamics(flow: ProseFlow, sequence: str, seed: int, frames: int = 40) -> MDSet:
    """What stands in for molecular dynamics at 310 and 600 K: samples of the flow, trans."""
    peptide = build_peptide(sequence)
    drawn = (propose(flow, Layout.of(peptide), 4 * frames, t, seed)[0] for t in (310.0, 600.0))
    x = np.stack([part[~cis_bonds(peptide, part).any(axis=1)][:frames] for part in drawn])
    energies = np.stack([peptide.potential("Reference").energy(part) for part in x])
    return MDSet(
        sequence, None, np.array([310.0, 600.0]), x.astype(np.float32), energies, peptide.labels, peptide.bonds
    )


@pytest.fixture(scope="module")
def data(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of GG and GA."""
    folder = tmp_path_factory.mktemp("data")
    for sequence in ("GA", "GG"):
        save_md(folder / f"{sequence}.npz", dynamics(load_flow(weights).model, sequence, seed=100))
    return folder


@pytest.fixture
def evaluate(data: Path, weights: Path, tmp_path: Path):
    def run(*arguments: Any, out: str = "out", data: Path | None = data) -> Result:
        given = [*(["--data", data] if data else []), "--weights", weights, "--out", tmp_path / out, "-n", 60]
        return runner.invoke(main.app, ["evaluate", "prose", *map(str, [*given, *arguments])])

    return run


def rows(result: Result, code: int = 0) -> list[dict[str, Any]]:
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)["results"]


def timeless(found: Any) -> Any:
    """Without the seconds."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if "seconds" not in key}
    return [timeless(value) for value in found] if isinstance(found, list) else found


def test_figures_are_those_of_the_samples(evaluate, data: Path, weights: Path, tmp_path: Path) -> None:
    """Proposals, energies, log-weights and likelihood once more by hand."""
    result = evaluate("--json", "--dtype", "float64")
    (ga, gg) = rows(result)
    assert (ga["sequence"], gg["sequence"]) == ("GA", "GG") and (gg["residues"], gg["atoms"], gg["n"]) == (2, 17, 60)
    peptide, flow = build_peptide("GG"), load_flow(weights, dtype=torch.float64).model
    x, log_q = propose(flow, Layout.of(peptide), 60, 310.0, 0)
    log_w = -peptide.potential("Reference").energy(x) / KT - log_q
    w = np.exp(log_w - log_w.max())
    assert gg["weights"]["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum() / 60, rel=1e-4)
    assert gg["weights"]["log_z"] == pytest.approx(logsumexp(log_w) - np.log(60), abs=1e-3)
    assert gg["weights"]["ess_top_dropped"] == gg["weights"]["ess"], "0.2 % of 60 is none"
    assert gg["weights"]["n"] == 60 and gg["finite_energies"] == 1.0 and gg["energy_calls"] == 60 + 40
    assert set(METRICS) < set(gg["metrics"]) and gg["metrics"]["points"]["reference"] == [20, 20]
    for metric in METRICS[:-1]:
        assert gg["metrics"][metric].keys() == {"raw", "reweighted", "floor"}
        assert all(value > 0 for value in gg["metrics"][metric].values())
    assert gg["metrics"]["js_residues"]["floor"] is None

    frames = np.load(data / "GG.npz")["x"][0] * 0.0005
    t = torch.full((40,), 310.0, dtype=torch.float64)
    with torch.no_grad():
        on_frames = flow.log_prob(Layout.of(peptide), torch.from_numpy(frames), t).numpy()
    assert gg["md"]["frames"] == 40 and gg["md"]["impossible"] == 0
    assert gg["md"]["nll_per_dof"] == pytest.approx(-on_frames.mean() / 45, rel=1e-5)
    log_v = -peptide.potential("Reference").energy(frames) / KT - on_frames
    expected = np.exp(gg["weights"]["log_z"] - logsumexp(log_v) + np.log(40))
    assert gg["md"]["ess_forward"] == pytest.approx(min(expected, 1), rel=1e-3)
    assert gg["md"]["log_z_gap"] == pytest.approx(np.log(40) - logsumexp(-log_v) - gg["weights"]["log_z"], abs=1e-3)

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "ok" and summary["energy_calls"] == 2 * (60 + 40)
    assert summary["checkpoint_hash"] == load_flow(weights).hash
    assert summary["means"]["2"]["ess"] == pytest.approx((ga["weights"]["ess"] + gg["weights"]["ess"]) / 2)
    assert summary["means"]["2"]["t_w2"]["floor"] == pytest.approx(
        np.mean([row["metrics"]["t_w2"]["floor"] for row in (ga, gg)])
    )
    assert json.loads((tmp_path / "out" / "GG.json").read_text()) == gg


def test_tables(evaluate) -> None:
    result = evaluate()
    assert result.exit_code == 0, result.stderr
    head, line = result.stdout.splitlines()
    assert head.split()[:4] == ["residues", "sequences", "ESS", "PSIS"] and line.split()[:2] == ["2", "2"]
    for text in ("2 sequences", "GG: 17 atoms, 60 samples at 310 K", "wrong chirality 0", "T-W2, rad", "MD floor"):
        assert text in result.stderr
    assert "GG" not in result.stdout


class Exact:
    """Energies and densities of frames, and proposals drawn from them, under a flow that is exactly Boltzmann's.

    Args:
        x: frames (n, N, 3). energies: (n,) eV. found: frames that the flow knows; its density is zero elsewhere.
    """

    def __init__(self, x: np.ndarray, energies: np.ndarray, found: np.ndarray, log_z: float):
        self.energies, self.calls = energies, 0
        log_q = -energies / KT - log_z - np.log(found.mean())
        self.log_q = np.where(found, log_q, -np.inf)
        chosen = np.flatnonzero(found)
        validity, calls = validate(build_peptide("GG"), x[chosen]), len(chosen)
        self.draws = Draws(
            x[chosen], log_q[chosen], energies[chosen], validity, 310.0, len(chosen), {}, calls, {"sampling": 1.0}
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.energies


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_exact_flow_and_one_that_misses_a_mode(share: float, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ESS 1 either way; only the frames tell that three quarters of the mass were never proposed."""
    md = dynamics(load_flow(weights).model, "GG", seed=3, frames=200)
    case = workflow.Case(md.peptide, (md,))
    x, energies = case.frames(310.0)[0]
    fake: Any = Exact(x, energies, np.arange(200) < 200 * share, log_z=7.0)
    monkeypatch.setattr(workflow, "draw", lambda *_, **__: fake.draws)
    monkeypatch.setattr(workflow, "log_densities", lambda *_: fake.log_q)
    row = workflow.evaluate_case(case, load_flow(weights), fake, samples=200)
    assert row["weights"]["ess"] == pytest.approx(1) and row["weights"]["verdict"] == "reliable"
    assert row["weights"]["log_z"] == pytest.approx(7 + np.log(share))
    assert row["md"]["log_z_gap"] == pytest.approx(-np.log(share), abs=1e-6)
    assert row["md"]["ess_forward"] == pytest.approx(1 if share == 1 else 0)
    assert row["md"]["consistency"] == pytest.approx(1 if share == 1 else 0)
    assert row["md"]["impossible"] == 200 - 200 * share
    if share == 1:
        assert row["metrics"]["e_w2"]["raw"] == pytest.approx(row["metrics"]["e_w2"]["reweighted"])
        mean, dynamic = row["energy"]["reweighted"], row["energy"]["md"]
        assert mean[0] == pytest.approx(energies.mean() / KT) == dynamic[0]
        assert mean[1] * 0.99 <= dynamic[1] < 2 * mean[1], "these frames do not depend on each other"


def test_a_given_reference_serves_for_distances(data: Path, weights: Path) -> None:
    (case,) = workflow.gather([data / "GG.npz"])
    frames = case.frames(310.0)
    reference = workflow._reference(case.peptide, frames)
    bare = workflow.Case(case.peptide)
    with Energies(case.peptide, "Reference", 1) as energies:
        own, given, none = (
            workflow.evaluate_case(which, load_flow(weights), energies, samples=60, reference=parts)
            for which, parts in ((case, None), (bare, reference), (bare, None))
        )
    assert given["metrics"] == own["metrics"] and given["energy"] == own["energy"]
    assert given["md"] is None and not any("no molecular dynamics" in note for note in given["notes"])
    assert none["metrics"] is None and any("no molecular dynamics" in note for note in none["notes"])


def test_dynamics_helped_by_a_flow_are_named(data: Path, weights: Path) -> None:
    (case,) = workflow.gather([data / "GG.npz"])
    proposal = load_flow(weights)
    own, other = (
        workflow.Case(case.peptide, (replace(case.sets[0], flow=flow),)) for flow in (proposal.hash, "fedcba9876543210")
    )
    notes = [workflow._notes(c, proposal, 310.0, c.frames(310.0), False) for c in (own, other)]
    assert any("which is judged here" in note for note in notes[0])
    assert any("fedcba987654 proposes" in note and "judged" not in note for note in notes[1])


def test_broken_proposals_are_drawn_again_and_counted(
    data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third proposal with a hydrogen pulled off: 60 samples without one, from 90 proposals."""

    def pulled(*arguments: Any, first: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        x, log_q = propose(*arguments, first=first, **options)
        x[-first % 3 :: 3, 1] += 1.5
        return x, log_q

    monkeypatch.setattr("molgen.workflows.draws.propose", pulled)
    (case,) = workflow.gather([data / "GG.npz"])
    with Energies(case.peptide, "Reference", 1) as energies:
        row = workflow.evaluate_case(case, load_flow(weights), energies, samples=60)
    again = row["redrawn"]
    assert again["bad bond"] >= 30 and row["proposals"] == 60 + sum(again.values()) and row["energy_calls"] == 100
    assert row["validity"]["broken_topology"] == row["validity"]["wrong_chirality"] == 0 and row["n"] == 60
    means = workflow.means([row, row])["2"]
    assert means["broken_topology"] == 0 and means["redrawn"]["bad bond"] == 2 * again["bad bond"]
    assert means["proposals"] == 2 * row["proposals"] and means["non_finite_energies"] == 0
    assert f"{again['bad bond']} x bad bond" in command._sequence(row)


def test_interrupted_and_resumed(evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second sequence; the first is not done again, and the end is the same."""
    whole = rows(evaluate("--json", out="whole"))
    done, real = [], workflow.evaluate_case

    def interrupted(case: workflow.Case, *arguments: Any, **options: Any) -> dict[str, Any]:
        done.append(case.name)
        if done == ["GA", "GG"]:
            raise KeyboardInterrupt
        return real(case, *arguments, **options)

    monkeypatch.setattr(workflow, "evaluate_case", interrupted)
    assert evaluate().exit_code == 130
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "interrupted"
    again = evaluate()
    assert again.exit_code == 2 and "not empty" in again.stderr
    changed = evaluate("--resume", "-T", 600)
    assert changed.exit_code == 2 and "'temperature' was 310.0 and is now 600.0" in changed.stderr
    assert timeless(rows(evaluate("--resume", "--json"))) == timeless(whole)
    assert done == ["GA", "GG", "GG"]


def test_a_sequence_that_fails_leaves_the_others(evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4; it is tried again when the run is resumed."""
    real = workflow.evaluate_case

    def failing(case: workflow.Case, *arguments: Any, **options: Any) -> dict[str, Any]:
        if case.name == "GA":
            raise CalculatorError("no sample has a finite energy")
        return real(case, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "evaluate_case", failing)
        result = evaluate("--json")
        bad, good = rows(result, code=4)
    assert bad == {"sequence": "GA", "error": "no sample has a finite energy"} and good["sequence"] == "GG"
    summary = json.loads(result.stdout)
    assert summary["status"] == "partial" and summary["means"]["2"]["sequences"] == 1
    assert "GA: failed: no sample has a finite energy" in result.stderr
    assert all("error" not in row for row in rows(evaluate("--resume", "--json")))


def test_without_dynamics(evaluate) -> None:
    """A sequence without a file, no data at all, a temperature that the file lacks: said, and the rest is there."""
    first, second = rows(evaluate("--json", "--sequences", "SG,GG"))
    assert (first["sequence"], second["sequence"]) == ("SG", "GG")
    assert first["metrics"] is None is first["md"] and first["weights"]["n"] == 60
    assert first["notes"] == ["no molecular dynamics: no distances, forward ESS or likelihood"]
    assert second["metrics"] is not None and second["notes"] == []
    (alone,) = rows(evaluate("--json", "--sequences", "A", "--cap", "ace-nme", out="alone", data=None))
    assert alone["sequence"] == "A_ace-nme" and alone["residues"] == 1
    assert [n[17:] for n in alone["notes"][:2]] == ["trained on 2 to 4 residues", "not trained on ace-nme caps"]
    (hot,) = rows(evaluate("--json", "--sequences", "GG", "-T", 700, out="hot"))
    assert hot["metrics"] is None
    assert hot["notes"] == [
        "700 K is outside the 300 to 600 K that the weights were trained on",
        "no molecular dynamics at 700 K, only at 310, 600 K",
    ]
    result = evaluate("--sequences", "SG", out="table", data=None)
    assert "note: no molecular dynamics" in result.stderr and result.stdout.splitlines()[1].split()[-2:] == ["-", "(-)"]


def test_dynamics_of_another_stereoisomer_are_noticed(evaluate, weights: Path, tmp_path: Path) -> None:
    """Mirrored frames: density zero, no likelihood, and it says why."""
    md = dynamics(load_flow(weights).model, "GA", seed=7)
    save_md(tmp_path / "GA.npz", replace(md, positions=md.positions * [1, 1, -1]))
    result = evaluate("--json", "--data", tmp_path / "GA.npz", data=None)
    (row,) = rows(result)
    assert row["notes"] == ["40 of 40 frames of the dynamics have a centre of the wrong hand"]
    assert row["md"]["impossible"] == 40 and row["md"]["nll_per_dof"] is None and row["md"]["ess_forward"] == 0
    assert "NLL - a degree of freedom" in result.stderr


def test_another_temperature_has_its_own_frames(evaluate, data: Path) -> None:
    (hot,) = rows(evaluate("--json", "--sequences", "GG", "-T", 600))
    energies = np.load(data / "GG.npz")["e"][1] * KJ_MOL / (KB * 600)
    assert hot["energy"]["md"][0] == pytest.approx(energies.mean(), rel=1e-4)


def test_two_files_of_a_peptide_are_two_runs(data: Path, weights: Path, tmp_path: Path) -> None:
    second = tmp_path / "GG_second.npz"
    save_md(second, dynamics(load_flow(weights).model, "GG", seed=101, frames=30))
    (case,) = workflow.gather([data / "GG.npz", second])
    assert [len(energies) for _, energies in case.frames(310.0)] == [40, 30]
    parts = workflow._reference(case.peptide, case.frames(310.0))
    assert [len(part) for part in parts] == [40, 30]
    np.testing.assert_array_equal(parts[1].energies, case.frames(310.0)[1][1])
    first, (x, e) = case.frames(310.0)
    assert workflow._reference(case.peptide, [first, (x[:20], e[:20])]) is not None
    assert workflow._reference(case.peptide, [first, (x[:19], e[:19])]) is None
    assert workflow._reference(case.peptide, [(x, e)]) is None, "30 frames are too few to halve"


def test_other_files_of_a_folder_are_not_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "KW.npz").write_text("no npz")
    (tmp_path / "GG.npz").write_bytes((data / "GG.npz").read_bytes())
    assert [len(case.sets) for case in workflow.gather([tmp_path], ["GG", "SG"])] == [1, 0]
    with pytest.raises(InputError, match="KW.npz: not an npz file"):
        workflow.gather([tmp_path])
    for k in range(3):
        (tmp_path / f"GG-{k}.npz").write_bytes((data / "GA.npz").read_bytes())
    again = [tmp_path / "GG.npz", tmp_path]
    assert [len(case.sets) for case in workflow.gather(again, ["GG"])] == [1], "each file once, of other peptides none"
    (tmp_path / "GG.npz").rename(tmp_path / "run1.npz")
    assert [len(case.sets) for case in workflow.gather([tmp_path], ["GG"])] == [1], "whatever its name"
    with pytest.raises(InputError, match="KW.npz: not an npz file"):
        workflow.gather([tmp_path / "KW.npz"], ["GG"])


def test_states_of_unfinished_simulations_are_no_data(data: Path, tmp_path: Path) -> None:
    (tmp_path / "AA.state.npz").write_bytes(b"anything")
    with pytest.raises(InputError, match="AA.state.npz is unfinished(?s:.*)--resume"):
        workflow.gather([tmp_path])
    (tmp_path / "GG.npz").write_bytes((data / "GG.npz").read_bytes())
    assert [case.name for case in workflow.gather([tmp_path])] == ["GG"]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--sequences", "GX"], ["unknown residue 'X' at position 2"]),
        (["--sequences", "GG", "--weights", "nowhere"], ["no such checkpoint folder"]),
        (["--data", "nowhere.npz"], ["nowhere.npz: no such file"]),
        ([], ["nothing to evaluate", "--data"]),
        (["--cap", "ace-nme"], ["--cap: ace-nme given without --sequences"]),
        (["-n", "1", "--sequences", "GG"], ["greater than or equal"]),
        (["-T", "0", "--sequences", "GG"], ["greater than or"]),
        (["--sequences", "GG", "--platform", "Abacus"], ["no OpenMM platform 'Abacus'"]),
    ],
)
def test_refuses(arguments: list[str], texts: list[str], evaluate) -> None:
    result = evaluate(*arguments, data=None)
    assert result.exit_code == 2, result.output
    assert all(text in result.stderr for text in texts), result.stderr
    assert not result.stdout


def test_refuses_an_empty_folder_and_other_weights(evaluate, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = evaluate("--data", tmp_path / "empty", data=None)
    assert result.exit_code == 2 and "no npz file in this folder" in result.stderr
    result = evaluate("--sequences", "GG", "--weights", "tsgen")
    assert result.exit_code == 2 and "holds a model of kind 'tsgen'" in result.stderr


def test_a_loaded_proposal_is_taken_as_it_is(data: Path, weights: Path, tmp_path: Path) -> None:
    """As the benchmark does after finetuning."""
    from molgen.run import Run

    loaded = load_flow(weights)
    proposal = Proposal(loaded.model, "finetuned", loaded.config)
    with Run(tmp_path / "run", "evaluate prose", {}) as run:
        summary = workflow.evaluate_prose(workflow.gather([data / "GG.npz"]), run, weights=proposal, samples=25)
    assert summary["checkpoint_hash"] == "finetuned" and summary["results"][0]["n"] == 25


def test_too_few_frames_and_a_third_file_are_said(evaluate, data: Path, weights: Path, tmp_path: Path) -> None:
    flow = load_flow(weights).model
    for folder, frames, number in (("few", 30, 1), ("three", 40, 3)):
        (tmp_path / folder).mkdir()
        for k in range(number):
            save_md(tmp_path / folder / f"GG{k}.npz", dynamics(flow, "GG", seed=k, frames=frames))
    row = rows(evaluate("--json", data=tmp_path / "few", out="a"))[0]
    assert "the dynamics have 30 frames at 310 K, too few" in row["notes"][0] and "t_w2" not in row
    third = evaluate(data=tmp_path / "three", out="b")
    assert third.exit_code == 2 and "a third file of GG" in third.stderr
    bad = evaluate("--platform", "FOO", out="c")
    assert bad.exit_code == 2 and "no OpenMM platform 'FOO'" in bad.stderr and not (tmp_path / "c").exists()
