"""find_ts on real reactions against barriers found without molgen, and against calculators that misbehave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from scipy.spatial.transform import Rotation
from ts_cases import EXAMPLES, EXPECTED, FailingAt, NoSaddle, hcn_search, noise_weights, sides

import molgen
from molgen.data.reactions import load_npz
from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import bond_graph
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import refine, verify
from molgen.workflows.ts import TSResult, find_ts
from molgen.workflows.ts_search import TSSearch

HCN = sides("hcn")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Guesses: the sqrt-distance guess, then the same with noise."""
    return noise_weights(tmp_path_factory.mktemp("noise"))


@pytest.fixture
def hcn(weights: Path) -> Callable[..., TSResult]:
    """find_ts on HCN -> HNC with the noise weights."""

    return partial(hcn_search, weights=weights)


def check(result: TSResult, name: str) -> None:
    """The best candidate is the known saddle."""
    expected, best = EXPECTED[name], result.best
    assert result.verified and best.verdict == "intended", best.reason
    assert best.barrier_forward_kcal == pytest.approx(expected["barrier_forward_from_descent_kcal"], abs=0.3)
    assert best.barrier_reverse_kcal == pytest.approx(expected["barrier_reverse_from_descent_kcal"], abs=0.3)
    assert best.imaginary_frequency_cm == pytest.approx(expected["imaginary_frequency_cm"], abs=30)
    assert best.energy == pytest.approx(expected["energy_ts_ev"], abs=2e-3)
    check_path(result)


def check_path(result: TSResult) -> None:
    """The path runs through the saddle, its highest point, and its ends are bonded as reactant and product are."""
    best, reaction = result.best, result.reaction
    path, energies, top = best.path_positions, best.path_energies, best.ts_index
    assert path is not None and energies is not None and top is not None
    assert len(path) == len(energies) and np.isfinite(path).all() and np.isfinite(energies).all()
    assert energies.argmax() == top and 0 < top < len(path) - 1
    assert np.allclose(path[top], best.atoms.positions, atol=1e-6)
    for end, side in ((path[0], reaction.reactant), (path[-1], reaction.product)):
        assert np.array_equal(bond_graph(reaction.numbers, end), bond_graph(reaction.numbers, side))


@pytest.mark.parametrize("name", ["hcn", "vinyl_alcohol"])
def test_known_saddles_with_the_shipped_weights(name: str) -> None:
    result = molgen.find_ts(*sides(name), samples=2)
    check(result, name)
    assert result.status == "ok" or result.rejections["calculator failed"]
    small = name == "hcn"  # fewer atoms than the weights have seen: physics only
    assert len(result.guesses) >= 2 and len(result.checkpoint_hash or "") == (0 if small else 64)
    text = str(result)
    assert text.startswith(f"intended, barrier {result.best.barrier_forward_kcal:.1f} kcal/mol forward")
    assert f"{result.gradient_calls} gradient calls" in text


def test_smiles(weights: Path) -> None:
    check(find_ts(smiles="C#N>>[C-]#[NH+]", weights=weights, samples=1), "hcn")


def test_product_in_several_files_in_any_order(weights: Path) -> None:
    """The fragments' placement is not in the files; CO and H2 are exchanged here."""
    reactant, product = sides("formaldehyde")
    result = find_ts(reactant, product[::-1], weights=weights, samples=3)
    check(result, "formaldehyde")
    assert result.reaction.product_fragments.max() == 1


def test_atoms_objects_in_any_order_and_frame(weights: Path) -> None:
    reactant, product = (read(files[0]) for files in HCN)
    assert isinstance(reactant, Atoms) and isinstance(product, Atoms)
    product = product[[2, 0, 1]]
    product.positions = Rotation.random(None, np.random.default_rng(3)).apply(product.positions) + 5.0
    given = product.positions.copy()
    result = find_ts(reactant, product, weights=weights, samples=1)
    check(result, "hcn")
    assert np.array_equal(product.positions, given), "the caller's atoms were changed"
    assert result.best.atoms.get_chemical_symbols() == reactant.get_chemical_symbols()


def test_an_ase_calculator_object(hcn: Callable[..., TSResult]) -> None:
    from tblite.ase import TBLite

    check(hcn(calculator=TBLite(method="GFN2-xTB", accuracy=0.01, verbosity=0), samples=1), "hcn")


def test_a_potential_object_counts_and_decides(hcn: Callable[..., TSResult]) -> None:
    potential = XtbPotential(read(HCN[0][0]).numbers, method="GFN1-xTB")
    result = hcn(calculator=potential, samples=1, lower=False)
    assert result.verified and result.gradient_calls == potential.calls == result.best.gradient_calls
    assert result.best.energy == pytest.approx(hcn(calculator="gfn1", samples=1).best.energy, abs=1e-9)
    assert abs(result.best.energy - EXPECTED["hcn"]["energy_ts_ev"]) > 0.1  # not GFN2-xTB


@pytest.mark.parametrize(
    ("potential", "text"),
    [
        (XtbPotential([7, 6, 1]), r"made for atomic numbers \[7, 6, 1\].*expected: \[1, 6, 7\]"),
        (XtbPotential([1, 6, 7], charge=1, spin=1), "made for charge 1.*expected: 0"),
        (XtbPotential([1, 6, 7], spin=2), "made for spin 2.*expected: 0"),
    ],
)
def test_a_potential_of_another_molecule_is_refused(
    potential: XtbPotential, text: str, hcn: Callable[..., TSResult]
) -> None:
    assert read(HCN[0][0]).numbers.tolist() == [1, 6, 7]
    with pytest.raises(InputError, match=f"(?s){text}"):
        hcn(calculator=potential)
    assert potential.calls == 0


def test_irc_finds_the_same_wells(hcn: Callable[..., TSResult]) -> None:
    check(hcn(samples=1, verify="irc"), "hcn")


def test_element_outside_the_weights_is_left_to_physics() -> None:
    result = find_ts(*sides("cl_ch3cl"), charge=-1, lower=False)
    check(result, "cl_ch3cl")
    assert any("weights do not know Cl" in note for note in result.notes)
    assert {a.info["source"] for a in result.guesses} == {"sqrt-distance"}
    assert result.best.confidence is None and result.checkpoint_hash is None


def test_the_same_seed_gives_the_same_result(hcn: Callable[..., TSResult]) -> None:
    first, again, other = hcn(seed=1), hcn(seed=1), hcn(seed=2)
    assert [c.summary() for c in first.candidates] == [c.summary() for c in again.candidates]
    for a, b in zip(first.guesses, again.guesses, strict=True):
        assert np.array_equal(a.positions, b.positions)
    assert np.abs(first.guesses[2].positions - other.guesses[2].positions).max() > 1e-3


def test_guesses_that_lead_to_one_saddle_are_counted_once(hcn: Callable[..., TSResult]) -> None:
    result = hcn(samples=4, lower=False)
    intended = [c for c in result.candidates if c.verdict == "intended"]
    assert len(intended) == 1
    assert result.rejections["same saddle as an earlier guess"] >= 1
    same = sum(count for reason, count in result.rejections.items() if reason.startswith("same"))
    assert len(result.candidates) + same == len(result.guesses) == 4


def test_equal_guesses_are_refined_once(hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch) -> None:
    once = hcn(samples=1, lower=False).gradient_calls
    monkeypatch.setattr("molgen.workflows.ts_search.SAME_GUESS", 10.0)
    result = hcn(samples=4, lower=False)
    assert result.rejections == {"same guess as an earlier one": 3}
    assert result.gradient_calls == once and len(result.candidates) == 1


def test_without_refinement_nothing_is_calculated(hcn: Callable[..., TSResult]) -> None:
    result = hcn(refine=False)
    assert result.gradient_calls == 0 and result.status == "ok" and not result.verified
    assert [c.verdict for c in result.candidates] == ["unverified"] * 3
    for candidate, guess in zip(result.candidates, result.guesses, strict=True):
        assert np.array_equal(candidate.atoms.positions, guess.positions)
        assert candidate.energy is None and candidate.path_positions is None


def test_without_verification_the_saddle_is_found_but_not_judged(hcn: Callable[..., TSResult]) -> None:
    result = hcn(verify="none", samples=1)
    best = result.best
    assert (best.verdict, result.status, result.verified) == ("unverified", "ok", False)
    assert best.energy == pytest.approx(EXPECTED["hcn"]["energy_ts_ev"], abs=2e-3)
    assert best.barrier_forward_kcal is None and best.imaginary_frequency_cm is None


def test_confidence_from_the_calibration_in_the_weights(tmp_path: Path) -> None:
    """A calibration that looks at nothing gives its own constant; without one there is no confidence."""
    from molgen.checkpoint import load_checkpoint, save_checkpoint

    plain = load_checkpoint(noise_weights(tmp_path / "plain"))
    assert find_ts(*HCN, weights=tmp_path / "plain", samples=1).best.confidence is None
    constants = {"guess": {"intercept": 0.0, "weights": {}}, "refined": {"intercept": np.log(3), "weights": {}}}
    save_checkpoint(tmp_path / "sure", plain.tensors, {**plain.config, "confidence": constants})
    result = find_ts(*HCN, weights=tmp_path / "sure", samples=1)
    assert result.best.confidence == pytest.approx(0.75)
    assert result.guesses[0].info["confidence_guess"] == pytest.approx(0.5)
    assert result.best.atoms.info["confidence"] == pytest.approx(0.75)


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_failing_guess_costs_only_itself(how: str, victim: int, hcn: Callable[..., TSResult], tmp_path: Path) -> None:
    guesses = hcn(refine=False).guesses
    potential = FailingAt(guesses[0].numbers, [guesses[victim].positions], how)
    result = hcn(calculator=potential, out=tmp_path / "out")
    check(result, "hcn")
    assert result.status == "partial" and result.rejections["calculator failed"] == 1
    failed = [c for c in result.candidates if c.verdict == "failed"]
    assert [c.sample for c in failed] == [victim] and result.candidates[-1] is failed[0]
    assert ("SCF not converged" if how == "raise" else "non-finite") in failed[0].reason
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "partial" and summary["rejections"]["calculator failed"] == 1
    assert summary["validity"]["failed"] == 1


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_failing_on_every_guess_is_an_error(how: str, hcn: Callable[..., TSResult], tmp_path: Path) -> None:
    with pytest.raises(CalculatorError, match=r"failed on every guess.*(SCF not converged|non-finite)") as error:
        hcn(calculator=FailingAt([1, 6, 7], None, how), out=tmp_path / "out")
    assert error.value.exit_code == 2 and "--charge" in str(error.value)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "failed" and ("SCF not converged" in summary["error"] or how == "nan")
    assert len(read(tmp_path / "out" / "guesses.xyz", index=":")) >= 3


def test_ctrl_c_keeps_what_was_found(hcn: Callable[..., TSResult], tmp_path: Path) -> None:
    """Pressed at the first gradient of the third guess, when the first has been verified."""
    out = tmp_path / "out"
    guesses = hcn(refine=False).guesses
    with pytest.raises(KeyboardInterrupt):
        hcn(calculator=FailingAt([1, 6, 7], [guesses[2].positions], "interrupt"), out=out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["energy_calls"] > 0
    assert summary["results"][0]["verdict"] == "intended"
    assert len(read(out / "guesses.xyz", index=":")) == 3
    saved = read(out / "ts.xyz", index=":")
    assert len(saved) == len(summary["results"]) and saved[0].info["verdict"] == "intended"
    assert not list(out.glob(".*")), "a half-written file was left"


def test_a_surface_without_a_saddle_verifies_nothing(hcn: Callable[..., TSResult]) -> None:
    result = hcn(calculator=NoSaddle(), samples=2)
    assert result.status == "gate_failed" and not result.verified
    assert {c.verdict for c in result.candidates} == {"not_a_saddle"}
    assert result.guesses[-1].info["source"] == "sqrt-distance", "the sqrt-distance guess was to be tried as well"


def test_a_guess_with_overlapping_atoms_is_not_refined(
    hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the size is no chemistry: SCF would fail or wander. The sqrt-distance guess takes over."""
    from molgen.tsgen.generate import Guesses, generate

    def shrunk(*args: Any, **options: Any) -> list[Guesses]:
        return [Guesses(g.positions * 0.5, g.deviation) for g in generate(*args, **options)]

    monkeypatch.setattr("molgen.workflows.ts_guesses.generate", shrunk)
    result = hcn(samples=1, lower=False)
    check(result, "hcn")
    worst = result.candidates[-1]
    assert worst.verdict == "not_a_saddle" and worst.gradient_calls == 0
    assert "A apart in the guess, so it was not refined" in worst.reason
    assert result.rejections == {"guess with overlapping atoms": 1} and result.status == "ok"
    assert result.best.source == "sqrt-distance" and result.guesses[-1].info["source"] == "sqrt-distance"
    assert hcn(samples=1, verify="none").best.source == "sqrt-distance"


def test_progress_and_notes_are_reported(hcn: Callable[..., TSResult]) -> None:
    lines: list[str] = []
    stages: list[tuple[str, int, int]] = []
    result = hcn(lower=False, log=lines.append, progress=lambda *stage: stages.append(stage))
    assert lines[: len(result.notes)] == result.notes and any("H0-C1" in line for line in lines)
    refining = [done for stage, done, _ in stages if stage == "refining guesses"]
    assert refining == sorted(refining) and refining[-1] == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samples": 0}, "--samples: 0 given"),
        ({"verify": "slowly"}, "--verify: unknown method 'slowly'.*expected: quick, irc, none"),
        ({"calculator": object()}, "not an ASE calculator"),
        ({"calculator": "gfn3"}, "unknown calculator"),
        ({"weights": "nothing-here"}, "no such checkpoint folder"),
        ({"spin": 1}, "14 electrons .* cannot have 1 unpaired"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    options: dict, text: str, hcn: Callable[..., TSResult], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"(?s){text}"):
        hcn(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_reaction_is_reported_in_the_reactants_order() -> None:
    """Vinyl alcohol's product file is shuffled."""
    result = find_ts(*sides("vinyl_alcohol"), refine=False, samples=1)
    assert result.reaction.numbers.tolist() == read(EXAMPLES / "vinyl_alcohol" / "reactant.xyz").numbers.tolist()
    assert set(asdict(result.reaction)) >= {"numbers", "reactant", "product", "charge", "spin"}


def test_a_saddle_of_higher_order_is_left_along_its_second_mode(rdb7_path: Path) -> None:
    """RDB7 10029: its sqrt-distance guess refines to two imaginary modes; a step along the second finds the saddle."""
    reaction = next(r for r in load_npz(rdb7_path) if r.name == "10029")
    potential = XtbPotential(reaction.numbers)
    search = TSSearch(reaction, potential, "quick", lambda stage, done, total: None)
    search.propose_physics(1, seed=0)
    plain = refine(potential, search.sqrt_guess, reactant=reaction.reactant, product=reaction.product)
    checked = verify(potential, plain.positions, reaction.reactant, reaction.product)
    assert checked.verdict == "not_a_saddle" and checked.modes.frequencies_cm[1] < -50
    assert search.advance()
    (candidate,) = search.candidates
    assert candidate.verdict == "intended"
    assert candidate.energy is not None and plain.energy is not None and candidate.energy < plain.energy
    assert candidate.refine_calls > plain.gradient_calls
    del search.guesses[1:]
    search.propose_physics(1, seed=0)  # the same guess again is not refined again
    del search.guesses[2:]
    assert search.advance() is False and search.rejections["same guess as an earlier one"] == 1
