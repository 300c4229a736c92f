"""Once a saddle is proven: rotamers, and lower saddles of the same reaction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read

from molgen import find_ts
from molgen.cli.ts_report import report
from molgen.errors import CalculatorError
from molgen.geometry.align import among
from molgen.geometry.bonds import bond_graph, bonding_changes
from molgen.geometry.internal import dihedral
from molgen.geometry.rotamers import rotamers, rotors
from molgen.smiles import embed_molecule
from molgen.units import kcal
from molgen.workflows import ts_conformers, ts_guesses, ts_lower, ts_search, ts_thermo

LACTONE = "ClCC(=O)[O-]>>O=C1CO1.[Cl-]"


@pytest.mark.parametrize(
    ("smiles", "bonds"),
    [
        ("CCCC", {(1, 2)}),  # methyl groups have no rotamers
        ("OCC[O-]", {(0, 1), (1, 2)}),
        ("CC(=O)NC", set()),  # neither has an amide, nor a methyl group at it
        ("CC(=O)OC", {(1, 3)}),
        ("CC#CC", set()),
        ("C1CCCC1", set()),
        ("C=CC=C", {(1, 2)}),
        ("c1ccccc1CC", {(5, 6)}),
    ],
)
def test_single_bonds_outside_of_rings_turn(smiles: str, bonds: set[tuple[int, int]]) -> None:
    molecule = embed_molecule(smiles, "test")
    found = rotors(molecule.numbers, molecule.conformers[0], molecule.bonds)
    assert {tuple(sorted((rotor.start, rotor.end))) for rotor in found} == bonds
    assert all(rotor.moving[rotor.end] and not rotor.moving[rotor.start] for rotor in found)


def test_rotamers_differ_in_their_torsions_alone() -> None:
    molecule = embed_molecule("CCCC", "test")
    x = molecule.conformers[0]
    turned = rotamers(molecule.numbers, x, molecule.bonds, most=8)
    angles = [float(torch.rad2deg(dihedral(*torch.from_numpy(y)[:4]))) % 360 for y in (x, *turned)]
    assert len(turned) == 2
    assert sorted((angle - angles[0]) % 360 for angle in angles[1:]) == pytest.approx([120, 240], abs=1e-6)
    for y in turned:
        assert np.array_equal(bond_graph(molecule.numbers, y), molecule.bonds)
        for atoms in ([0, 1, 2], [1, 2, 3]):
            assert np.linalg.norm(np.diff(y[atoms], axis=0), axis=1) == pytest.approx(
                np.linalg.norm(np.diff(x[atoms], axis=0), axis=1)
            )


@pytest.mark.parametrize(
    ("smiles", "torsion", "turned"),
    [
        ("C=CC=C", (0, 1, 2, 3), 1),
        ("CC(=O)OC", (0, 1, 3, 4), 1),
        ("OO", (2, 0, 1, 3), 2),
        ("CC(C=O)C", (0, 1, 2, 3), 2),
    ],
)
def test_what_is_conjugated_turns_by_half(smiles: str, torsion: tuple[int, ...], turned: int) -> None:
    molecule = embed_molecule(smiles, "test")
    x = molecule.conformers[0]
    angles = [
        float(torch.rad2deg(dihedral(*torch.from_numpy(y[list(torsion)]))))
        for y in (x, *rotamers(molecule.numbers, x, molecule.bonds, most=8))
    ]
    assert len(angles) == 1 + turned
    steps = sorted((angle - angles[0]) % 360 for angle in angles[1:])
    assert steps == pytest.approx([180] if turned == 1 else [120, 240], abs=1e-6)


def test_rotors_beside_the_reaction_come_first_and_clashes_are_left_out() -> None:
    molecule = embed_molecule("CCCCCCO", "test")
    x, few = molecule.conformers[0], 4
    for atom, near in ((0, (1, 2)), (6, (5, 6))):
        first = rotamers(molecule.numbers, x, molecule.bonds, few, [atom])
        rest = [k for k in range(7) if k not in near]
        distances = [np.linalg.norm(y[near[0]] - y[near[1]]) - np.linalg.norm(x[near[0]] - x[near[1]]) for y in first]
        assert len(first) == few and np.abs(distances).max() < 1e-9
        inner = [np.linalg.norm((y[rest][:, None] - y[rest]), axis=-1) for y in (x, first[0])]
        assert (np.abs(inner[0] - inner[1]).max() > 1e-3) == (atom == 0)
    everything = rotamers(molecule.numbers, x, molecule.bonds, 1000)
    assert few < len(everything) < 3**5 - 1


def test_a_lower_saddle_is_found_behind_the_first_and_turned_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chloroacetate closes to its lactone from the front, 48 kcal/mol, and from behind, 24."""
    turned: list[tuple[float, int]] = []

    def starts(search: Any, best: Any, tried: Any) -> list[ts_lower.Start]:
        turned.append((best.energy, len(tried)))
        return ts_lower.lower_starts(search, best, tried)

    monkeypatch.setattr(ts_search, "lower_starts", starts)
    first, lowest = find_ts(smiles=LACTONE, lower=False), find_ts(smiles=LACTONE)
    assert first.verified and lowest.verified
    assert first.best.barrier_forward_kcal == pytest.approx(48.0, abs=0.5)
    assert lowest.best.barrier_forward_kcal == pytest.approx(24.3, abs=0.5)
    assert first.gradient_calls < lowest.gradient_calls
    assert [energy for energy, _ in turned] == [first.best.energy, lowest.best.energy]
    assert turned[0][1] == 0 < turned[1][1]


def test_a_product_left_open_is_also_looked_for_as_its_other_isomers(tmp_path: Path) -> None:
    """Cyclopentadiene and maleic anhydride meet *exo* as the product happens to be built; *endo* lies lower."""
    result = find_ts(smiles="C1C=CC=C1.C1(=O)OC(=O)C=C1>>C1C2C=CC1C1C2C(=O)OC1=O")
    reaction, numbers = result.reaction, result.reaction.numbers
    ((reactant, other),) = reaction.isomers
    assert np.array_equal(reactant, reaction.reactant)
    changes = [bonding_changes(numbers, reaction.reactant, x) for x in (reaction.product, other)]
    assert [len(c.formed) for c in changes] == [2, 2] and not changes[1].broken
    barriers = [c.barrier_forward_kcal for c in result.candidates if c.verdict == "intended"]
    assert barriers[0] == pytest.approx(1.3, abs=0.3) and max(barriers) == pytest.approx(3.5, abs=0.3)
    assert f"intended ({barriers[-1]:.1f} kcal/mol forward)" in report(result, tmp_path)


def test_barriers_are_also_told_from_lower_conformers(tmp_path: Path) -> None:
    """Hexatriene closes from the conformer whose ends are near; *s-trans* ones are lower."""
    smiles = r"C=C/C=C\C=C>>C1=CCCC=C1"
    result = find_ts(smiles=smiles, out=tmp_path / "out")
    assert set(result.conformers) == {"reactant"} and result.best.path_energies is not None
    lowest, reaction = result.conformers["reactant"], result.reaction
    assert np.array_equal(
        bond_graph(reaction.numbers, lowest.positions), bond_graph(reaction.numbers, reaction.reactant)
    )
    barriers = result.barriers_from_lowest_kcal
    assert barriers == pytest.approx((21.9, 50.8), abs=0.3)
    assert kcal(result.best.energy - lowest.energy) == pytest.approx(barriers[0])
    assert read(tmp_path / "out" / "reactant_lowest.xyz").get_potential_energy() == pytest.approx(lowest.energy)
    assert f"from the lowest      {barriers[0]:.1f} kcal/mol forward, 50.8 back" in report(result, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["barriers_from_lowest_kcal"] == pytest.approx(barriers)
    given = find_ts(Atoms(reaction.numbers, lowest.positions), Atoms(reaction.numbers, reaction.product), lower=False)
    assert not given.conformers and given.barriers_from_lowest_kcal is None
    sides = Atoms(reaction.numbers, lowest.positions), Atoms(reaction.numbers, reaction.product)
    given = find_ts(*sides, temperature=298.15)
    assert given.barriers_from_lowest_kcal == pytest.approx(barriers, abs=0.1), "from the structure that was given"
    thermo = given.thermochemistry
    assert thermo is not None and set(thermo.lowest) == {"reactant"} and not thermo.pieces
    gibbs = thermo.lowest["reactant"]
    assert gibbs.barrier_kcal - thermo.gibbs_forward_kcal == pytest.approx(barriers[0] - 19.4, abs=1.0)
    assert gibbs.rate_unit == "1/s" and gibbs.rate is not None and gibbs.rate < thermo.rates[0]
    assert f"reactant, lowest     Gibbs barrier {gibbs.barrier_kcal:.1f} kcal/mol" in report(given, tmp_path / "out")


def test_rotamers_of_the_saddle_keep_the_distances_of_what_reacts(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[Any, list[ts_lower.Start]]] = []

    def starts(search: Any, best: Any, tried: Any) -> list[ts_lower.Start]:
        kept.append((best.atoms.positions, ts_lower.lower_starts(search, best, tried)))
        return []

    monkeypatch.setattr(ts_lower, "half_made", lambda potential, positions, *arguments: positions + np.nan)
    monkeypatch.setattr(ts_search, "lower_starts", starts)
    result = find_ts(smiles="OCCC=O>>OCC=CO")
    ((saddle, turned),) = kept
    changes = bonding_changes(result.reaction.numbers, result.reaction.reactant, result.reaction.product)
    pairs = np.array([*changes.broken, *changes.formed])
    assert len(pairs) == 2 and 1 <= len(turned) <= ts_lower.REFINED
    for x, _ in turned:
        lengths = [np.linalg.norm(y[pairs[:, 0]] - y[pairs[:, 1]], axis=1) for y in (saddle, x)]
        assert lengths[1] == pytest.approx(lengths[0], abs=0.12)  # the surface pulls at them
        assert not among([saddle], x)


def test_conformers_that_fail_or_become_another_molecule_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of carbonic acid one is lower than the well beside the saddle."""
    smiles, minimum = "O.O=C=O>>OC(=O)O", ts_thermo.minimum

    def failing(*arguments: Any, **options: Any) -> Any:
        raise CalculatorError("no SCF", where="test")

    def torn(potential: Any, x: np.ndarray) -> Any:
        found, modes = minimum(potential, x)
        return (2 * found if len(x) == 6 else found), modes

    monkeypatch.setattr(ts_thermo, "minimum", torn)
    result = find_ts(smiles=smiles, temperature=298.15)
    assert set(result.conformers) == {"product"} and result.thermochemistry is not None
    assert not result.thermochemistry.lowest and result.rejections[ts_thermo.NO_CONFORMER] == 1
    monkeypatch.setattr(ts_conformers, "relax", failing)
    result = find_ts(smiles=smiles)
    assert result.verified and result.status == "ok" and not result.conformers
    assert result.rejections[ts_lower.FAILED_LATER] > 0


def test_higher_saddles_are_passed_over() -> None:
    result = find_ts(smiles="CN(C)C.CCl>>C[N+](C)(C)C.[Cl-]")
    assert result.verified and len(result.candidates) == 1
    assert result.rejections["saddle above the proven one"] > 0


def test_failures_after_a_saddle_is_proven_leave_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refine, begun = ts_search.refine, []

    def failing(*arguments: Any, **options: Any) -> Any:
        raise CalculatorError("no SCF", where="test")

    def once(*arguments: Any, **options: Any) -> Any:
        begun.append(1)
        return refine(*arguments, **options) if len(begun) == 1 else failing()

    monkeypatch.setattr(ts_lower, "half_made", failing)
    monkeypatch.setitem(ts_guesses.RELAXED, "restrained", failing)
    monkeypatch.setattr(ts_search, "refine", once)
    result = find_ts(smiles=LACTONE)
    assert result.verified and result.status == "ok" and len(result.candidates) == 1 < len(begun)
    assert set(result.rejections) == {ts_lower.FAILED_LATER}


def test_no_time_to_look_lower_leaves_the_proven_saddle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ts_lower, "half_made", lambda *arguments: pytest.fail("there was no time"))
    result = find_ts(smiles=LACTONE, time_budget=0.001)
    assert result.verified and len(result.candidates) == 1
