"""What becomes of guesses: which hide others, which are put right, which come first, when the search goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ts_cases import NoSaddle, hcn_search, noise_weights, sides
from typer.testing import CliRunner

from molgen.cli.main import app
from molgen.data.reactions import Reaction
from molgen.errors import CalculatorError, InputError
from molgen.geometry.align import rmsd_of
from molgen.io import load_reaction
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import refine
from molgen.saddle.restrain import falls
from molgen.workflows import ts_ends, ts_guesses, ts_search
from molgen.workflows.ts import TSResult, find_ts
from molgen.workflows.ts_result import Candidate, ranked
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


def test_a_guess_that_ran_out_of_calls_hides_no_saddle(
    hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first search is cut short beside the saddle, which the second one then finds."""
    limits = iter([7])

    def cut(*arguments: Any, **options: Any) -> Any:
        return refine(*arguments, **{**options, "max_calls": next(limits, options["max_calls"])})

    monkeypatch.setattr("molgen.workflows.ts_search.refine", cut)
    monkeypatch.setattr("molgen.workflows.ts_search.SAME_ENERGY", np.inf)
    monkeypatch.setattr("molgen.workflows.ts_search.SAME_RMSD", 10.0)
    result = hcn()
    assert result.verified and result.best.sample == 1
    assert [c.verdict for c in result.candidates] == ["intended", "not_a_saddle"]


def test_numbers_that_cannot_be_diagonalised_fail_one_guess(
    hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = iter([True])

    def once(*arguments: Any, **options: Any) -> Any:
        if next(broken, False):
            raise np.linalg.LinAlgError("Eigenvalues did not converge")
        return refine(*arguments, **options)

    monkeypatch.setattr("molgen.workflows.ts_search.refine", once)
    result = hcn()
    assert result.verified and result.rejections["numerical failure"] == 1
    failed = next(c for c in result.candidates if c.verdict == "failed")
    assert failed.reason == "Eigenvalues did not converge"


@pytest.mark.parametrize("beside", ["[H][H]", "[He]"])
def test_small_fragments_that_take_no_part(beside: str) -> None:
    result = find_ts(smiles=f"C=CO.{beside}>>CC=O.{beside}", refine=False, samples=2)
    assert all(np.isfinite(guess.positions).all() for guess in result.guesses)


def test_a_fragment_that_takes_no_part_keeps_its_shape() -> None:
    """The model has not learned a water beside a rearrangement, and would crush it."""
    result = find_ts(smiles="C=COCC=C.O>>C=CCCC=O.O", refine=False, samples=4)
    water = np.flatnonzero(result.reaction.reactant_fragments == result.reaction.reactant_fragments.max())
    given = Atoms(result.reaction.numbers, result.reaction.reactant)[water].get_all_distances()
    assert len(water) == 3
    for guess in result.guesses:
        assert np.allclose(guess[water].get_all_distances(), given, atol=1e-6)


def test_where_no_bond_changes_the_fragment_that_turns_is_no_spectator() -> None:
    """Butene beside a water: the guess of its rotation is no reactant."""
    result = find_ts(smiles=r"C/C=C\C.O>>C/C=C/C.O", refine=False, samples=2)
    butene = np.flatnonzero(result.reaction.reactant_fragments == 0)
    assert len(butene) == 12
    for guess in result.guesses:
        assert min(rmsd_of(guess.positions[butene], end[butene]) for end in ends_of(result)) > 0.2


def ends_of(result: TSResult) -> tuple[np.ndarray, np.ndarray]:
    return result.reaction.reactant, result.reaction.product


def test_what_was_refined_comes_before_what_was_not() -> None:
    hopeful = Candidate(Atoms("H"), "TS-GEN", 0, verdict="not_a_saddle", confidence=0.9)
    refined = Candidate(Atoms("H"), "TS-GEN", 1, verdict="not_a_saddle", confidence=0.2, energy=-1.0)
    assert [c.sample for c in ranked([hopeful, refined])] == [1, 0]


def test_a_refinement_cut_short_near_a_saddle_goes_on(
    hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before guesses without the model are tried, as the same candidate, and only where nothing was proven."""
    limits: list[int] = []

    def cut(*arguments: Any, **options: Any) -> Any:
        limits.append(7 if not limits else options["max_calls"])
        return refine(*arguments, **{**options, "max_calls": limits[-1]})

    monkeypatch.setattr("molgen.workflows.ts_search.refine", cut)
    result = hcn(samples=1, lower=False)
    assert result.verified and len(limits) == 2 and len(result.candidates) == len(result.guesses) == 1
    assert result.best.refine_calls > 7 and not result.rejections
    assert result.gradient_calls == result.best.gradient_calls
    monkeypatch.setattr("molgen.workflows.ts_search.NEARLY", 1e-3)
    limits.clear()
    assert len(hcn(samples=1, lower=False).guesses) > 1


def test_a_refinement_that_goes_on_to_a_known_saddle_is_no_second_candidate(
    hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, limits = ts_search.settle, iter([7])

    def cut(*arguments: Any, **options: Any) -> Any:
        return refine(*arguments, **{**options, "max_calls": next(limits, options["max_calls"])})

    def missed(*arguments: Any, **options: Any) -> Any:
        saddle, checked = settle(*arguments, **options)
        return saddle, replace(checked, verdict="half")

    monkeypatch.setattr("molgen.workflows.ts_search.refine", cut)
    monkeypatch.setattr("molgen.workflows.ts_search.settle", missed)
    result = hcn(samples=2)
    assert [c.sample for c in result.candidates if c.source == "TS-GEN"] == [1]
    assert result.rejections["same saddle as an earlier guess"] >= 1


def test_another_stereoisomer_is_not_the_end_of_the_search(
    hcn: Callable[..., TSResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses without the model are tried, too, and the first with the isomers that were given is the best."""
    settle = ts_search.settle

    def turned(*arguments: Any, **options: Any) -> Any:
        saddle, checked = settle(*arguments, **options)
        return saddle, replace(checked, stereo="another stereoisomer of the product than was given (C3)")

    monkeypatch.setattr(ts_search, "settle", turned)
    said: list[str] = []
    result = hcn(log=said.append)
    told = CliRunner().invoke(app, ["ts", *[str(side[0]) for side in HCN], "-n", "1", "--out", str(tmp_path / "out")])
    assert told.exit_code == 0 and "the barrier is that of this path" in " ".join(told.stderr.split())
    assert result.verified and result.best.stereo and any("trying guesses without it too" in line for line in said)


def test_sides_alone_lead_to_what_interpolation_misses() -> None:
    """Hexatriene, disrotatory, on GFN2-xTB: its equivalent hydrogens are paired as no path pairs them."""
    result = find_ts(smiles="C=C/C=C\\C=C>>C1=CCCC=C1", samples=1, correction="none")
    assert result.verified and result.best.source == "restrained" and not result.best.stereo
    assert result.best.barrier_forward_kcal == pytest.approx(19.4, abs=0.5)


def test_guesses_begin_from_several_conformers() -> None:
    """A Cope rearrangement by chair and by boat, of which the lower is the best."""
    cope = "[CH2:1]=[CH:2][CH2:3][CH2:4][CH:5]=[CH2:6]>>[CH2:3]=[CH:2][CH2:1][CH2:6][CH:5]=[CH2:4]"
    result = find_ts(smiles=cope, samples=3, correction="none")
    barriers = [c.barrier_forward_kcal for c in result.candidates if c.verdict == "intended"]
    assert result.best.source == "TS-GEN" and barriers[0] == pytest.approx(28.6, abs=0.5)
    assert barriers[-1] == pytest.approx(40.9, abs=0.5)


def test_bonds_are_held_where_one_side_becomes_the_other() -> None:
    """Me3P=O and ethene from an oxaphosphetane: half made, its bonds are past the saddle already."""
    reaction, _ = load_reaction(smiles="C1COP1(C)(C)C>>C=C.O=P(C)(C)C")
    search = TSSearch(reaction, XtbPotential(reaction.numbers), "quick", lambda *stage: None)
    search.propose_physics(1, 0)
    search.guesses = [guess for guess in search.guesses if guess.source == "bisected"]
    while search.advance():
        pass
    assert search.succeeded()
    best = search.best_with_relaxed_ends()
    assert best.source == "bisected" and best.barrier_forward_kcal == pytest.approx(22.0, abs=0.5)


def test_an_end_that_relaxes_to_another_molecule_is_said_to(tmp_path: Path) -> None:
    """Glycine's zwitterion is none on GFN2-xTB: what is joined to the product is glycine."""
    arguments = ["ts", "--smiles", "[NH3+]CC(=O)[O-]>>CN.O=C=O", "-n", "1", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0 and "the reactant relaxes to another molecule (the reactant with O3-H" in told.stdout
    assert "the reactant is no minimum of this calculator" in told.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["unstable"]) == list(summary["results"][0]["unstable"]) == ["reactant"]


def test_an_end_that_relaxes_to_a_side_is_it() -> None:
    """SO3 and water on GFN2-xTB: their complex counts as bonded at 1.96, and no longer at 2.10 Angstrom."""
    result = find_ts(smiles="O=S(=O)=O.O>>OS(=O)(=O)O", samples=1, correction="none", lower=False)
    assert result.verified and result.best.barrier_forward_kcal == pytest.approx(4.6, abs=0.3)


@pytest.mark.parametrize(
    ("before", "after", "other"),
    [
        ((1.20, -3.0), (1.35, -3.0), False),  # was the product; its O-H passes the length of a bond by little
        ((1.35, -3.0), (1.20, -3.0), True),  # becomes it
        ((1.35, -3.0), (1.40, -3.0), False),
        ((1.20, -3.0), (2.00, -3.0), True),  # breaks
    ],
)
def test_an_end_is_judged_anew_where_it_became_a_side_or_another_molecule(before, after, other) -> None:
    """OH and H on a line: of the product the first hydrogen is bonded, of the reactant the second."""

    def line(*at: float) -> np.ndarray:
        return np.array([[0.0, 0, 0], *([x, 0, 0] for x in at)])

    given = Reaction(np.array([8, 1, 1]), line(3.0, -0.97), line(0.97, -3.0), *2 * [np.array([0, 0, 1])])
    assert ts_ends._is_other(given, line(*before), line(*after)) is other


def test_pieces_that_fall_together_are_said_to(tmp_path: Path) -> None:
    """NH3 and BH3 on GFN2-xTB; a Diels-Alder reaction has a barrier, and one piece nothing to fall together."""
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["ts", "--smiles", "N.B>>[NH3+][BH3-]", "-n", "1", "--out", str(out)])
    assert told.exit_code == 3 and "the pieces of the reactant become the product without a barrier, 2" in " ".join(
        told.stderr.split()
    )
    summary = json.loads((out / "summary.json").read_text())
    assert summary["barrierless_kcal"] == pytest.approx(22.4, abs=1.0) and summary["barrierless_side"] == "reactant"
    ring = load_reaction(smiles="C=CC=C.C=C>>C1=CCCCC1")[0]
    assert falls(XtbPotential(ring.numbers), ring.product, ring.reactant, ring.product) is None
    lost = find_ts(*HCN, calculator=NoSaddle(), samples=1)
    assert lost.status == "gate_failed" and lost.barrierless_kcal is None


@pytest.mark.parametrize(
    ("smiles", "side", "down"),
    [
        ("[OH-].CC(=O)O>>O.CC(=O)[O-]", "reactant", 50.7),  # an acid and a base
        ("N.[Cl-]>>[NH2-].Cl", "product", 76.1),  # and what they make the other way round
    ],
)
def test_several_pieces_that_become_others_without_a_barrier_are_said_to(smiles: str, side: str, down: float) -> None:
    result = find_ts(smiles=smiles, samples=1, max_calls=30, correction="none")
    assert result.status == "gate_failed" and result.barrierless_side == side
    assert result.barrierless_kcal == pytest.approx(down, abs=1.0)


def test_a_flat_stretch_is_no_barrier() -> None:
    """Acetone and a methyl radical, which at 3.3 Angstrom hardly pull."""
    made = load_reaction(smiles="CC(C)(C)[O]>>CC(C)=O.[CH3]")[0]
    fall = falls(XtbPotential(made.numbers, 0, 1), made.reactant, made.product, made.reactant)
    assert fall is not None and fall.lost == pytest.approx(0.87, abs=0.02)


def test_one_step_of_several_is_a_start_for_the_next(tmp_path: Path) -> None:
    """Hydroboration: a complex of both forms first."""
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["ts", "--smiles", "C=C.B>>CCB", "-n", "4", "--follow", "0", "--out", str(out)])
    said, best = " ".join(told.stderr.split()), json.loads((out / "summary.json").read_text())["results"][0]
    assert (
        told.exit_code == 3
        and f"go on with molgen ts {out / 'reactant.xyz'} {out / 'intermediate.xyz'})" in said.replace("- ", "-")
    )
    assert best["verdict"] == "half" and best["known"] == "product"
    assert best["reason"].endswith("another molecule (the reactant with C0-B2, C1-B2 formed)")
    borane = Atoms("BH3", 1.19 * np.array([[0, 0, 0], [1, 0, 0], [-0.5, 0.866, 0], [-0.5, -0.866, 0]]))
    step = find_ts([molecule("C2H4"), borane], out / "intermediate.xyz", correction="none")
    assert step.best.intermediate is None and step.barrierless_side == "reactant"
    assert step.barrierless_kcal == pytest.approx(8.8, abs=0.5)


def test_a_side_that_is_no_minimum_is_said_to_be_none(tmp_path: Path) -> None:
    """Glycine's zwitterion, which is none in the gas phase."""
    options = ["-n", "1", "--max-calls", "30", "--correction", "none", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, ["ts", "--smiles", "NCC(=O)O>>[NH3+]CC(=O)[O-]", *options])
    said = " ".join(told.stderr.split())
    assert (
        told.exit_code == 3 and "the product is no minimum of this calculator: relaxed, it becomes the reactant" in said
    )
    assert "try more --samples" not in said
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["unstable"] == {"product": "the reactant"}


def test_a_calculator_that_fails_while_a_reason_is_sought_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise CalculatorError("no convergence")

    monkeypatch.setattr("molgen.workflows.ts_without.relax", broken)
    monkeypatch.setattr("molgen.workflows.ts_without.falls", broken)
    result = find_ts(smiles="N.B>>[NH3+][BH3-]", samples=1, max_calls=5, correction="none")
    assert result.rejections["calculator failed"] == 2 and result.status == "gate_failed"
    assert result.barrierless_kcal is None and not result.unstable


def test_a_calculator_that_fails_on_a_side_costs_that_guess(
    hcn: Callable[..., TSResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise CalculatorError("no convergence")

    monkeypatch.setattr(ts_guesses, "RELAXED", {"restrained": broken})
    result = hcn(calculator=NoSaddle(), samples=1)
    assert result.rejections["calculator failed"] == 3 and result.status == "gate_failed"
    assert {guess.info["source"] for guess in result.guesses} == {"TS-GEN", "sqrt-distance"}


def test_precision_as_a_text_is_refused() -> None:
    with pytest.raises(InputError, match="dtype: 'float64' given"):
        find_ts(*HCN, dtype="float64")  # type: ignore[arg-type]


def test_a_side_without_bonds_is_warned_of(hcn: Callable[..., TSResult]) -> None:
    """HCN in Bohr."""
    reactant, product = (read(side[0]) for side in HCN)
    assert isinstance(reactant, Atoms)
    reactant.positions /= 0.529177
    result = find_ts(reactant, product, refine=False, samples=1)
    assert any(note.endswith("no two atoms are bonded: are its coordinates in Angstrom?") for note in result.notes)
