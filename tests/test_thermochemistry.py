"""Gibbs energies: entropies against measured ones, rates against the formula, `molgen ts -T` end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.thermochemistry import IdealGasThermo
from scipy.spatial.transform import Rotation
from ts_cases import sides
from typer.testing import CliRunner

from molgen import find_ts
from molgen.cli import main
from molgen.cli.common import duration
from molgen.cli.ts_report import thermochemistry_lines
from molgen.errors import InputError
from molgen.potentials.xtb import XtbPotential
from molgen.saddle.descent import relax
from molgen.saddle.modes import normal_modes
from molgen.saddle.thermochemistry import BAR, eyring, molar_pressure, thermochemistry, wigner
from molgen.units import KB, kcal
from molgen.workflows.ts_ends import minimum
from molgen.workflows.ts_thermo import NOT_APART, _shares

HCN = sides("hcn")
# standard entropies at 298.15 K and 1 bar, J/mol/K: CODATA key values (N2, HCl, Ar, H2O, NH3, CO2) and the NIST WebBook
ENTROPY = {
    "Ar": 154.8,
    "HCl": 186.9,
    "H2O": 188.8,
    "N2": 191.6,
    "NH3": 192.8,
    "CH4": 186.3,
    "CO2": 213.8,
    "C2H4": 219.3,
    "C6H6": 269.2,
}


class FailingFrom(XtbPotential):
    """GFN2-xTB that fails from so many calls on."""

    def __init__(self, numbers, calls: int):
        super().__init__(numbers)
        self.least = calls

    def _evaluate_one(self, positions, forces):
        if self.calls > self.least:
            raise RuntimeError("SCF not converged")
        return super()._evaluate_one(positions, forces)


def relaxed(name: str):
    """Geometry, numbers and modes of a molecule on GFN2-xTB."""
    atoms = Atoms("Ar") if name == "Ar" else molecule(name)
    potential = XtbPotential(atoms.numbers)
    x = relax(potential, atoms.positions, fmax=0.01, max_calls=200).positions if len(atoms) > 1 else atoms.positions
    return x, atoms.numbers, normal_modes(potential, x)


@pytest.mark.parametrize("name", ENTROPY)
def test_entropies_are_those_measured(name: str) -> None:
    found = thermochemistry(*relaxed(name), 298.15)
    entropy = (found.enthalpy - found.gibbs) / 298.15 / (units.kJ / units.mol) * 1000
    assert entropy == pytest.approx(ENTROPY[name], abs=1.6)  # 1.5 in benzene, of GFN2's softest modes
    assert found.imaginary == 0


def test_stiff_molecules_have_the_gibbs_energy_of_the_harmonic_ideal_gas() -> None:
    x, numbers, modes = relaxed("H2CO")
    gas = IdealGasThermo(modes.frequencies_cm * units.invcm, "nonlinear", modes.energy, Atoms(numbers, x), 2, 0)
    for pressure in (BAR, 10 * BAR):
        expected = gas.get_gibbs_energy(500.0, pressure, verbose=False)
        assert thermochemistry(x, numbers, modes, 500.0, pressure=pressure).gibbs == pytest.approx(expected, abs=2e-5)
    doublet = thermochemistry(x, numbers, modes, 500.0, spin=1).gibbs
    assert thermochemistry(x, numbers, modes, 500.0).gibbs - doublet == pytest.approx(KB * 500 * math.log(2))


def test_gibbs_energies_do_not_turn_with_the_molecule() -> None:
    atoms, found = molecule("HCOOCH3"), []
    potential = XtbPotential(atoms.numbers)
    for turn in Rotation.random(2, random_state=2):
        x, modes = minimum(potential, turn.apply(atoms.positions))
        found.append(kcal(thermochemistry(x, atoms.numbers, modes, temperature=298.15, pressure=BAR).gibbs))
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_rates_by_the_formula() -> None:
    # k T / h = 6.2e12 1/s at 298.15 K; 20 kcal/mol
    barrier = 20 * units.kcal / units.mol
    assert eyring(barrier, 298.15) == pytest.approx(6.2124e12 * math.exp(-20 / 0.592484), rel=1e-3)
    assert wigner(-1000.0, 298.15) == pytest.approx(1 + (1000 * 1.438777 / 298.15) ** 2 / 24, rel=1e-5)
    assert eyring(barrier, 298.15, -1000.0) == pytest.approx(wigner(1000.0, 298.15) * eyring(barrier, 298.15))
    assert molar_pressure(298.15) == pytest.approx(24.79e5, rel=1e-3)
    assert math.isfinite(eyring(-5.0, 1.0))


def test_how_electrons_are_shared() -> None:
    chloromethane, fluoride = molecule("CH3Cl").numbers, np.array([9])
    assert _shares([chloromethane, fluoride], [0, -1], 0) == [((0, 0), (-1, 0)), ((0, 2), (-1, 2))]
    methyl, ethane, oxygen = molecule("CH3").numbers, molecule("C2H6").numbers, np.array([8, 8])
    assert _shares([methyl, methyl], [0, 0], 0)[0] == ((0, 1), (0, 1)), "two radicals of one pair"
    assert _shares([methyl, ethane], [0, 0], 1)[0] == ((0, 1), (0, 0))
    assert ((0, 2), (0, 1)) in _shares([oxygen, methyl], [0, 0], 3)
    assert ((0, 2), (0, 1)) in _shares([oxygen, methyl], [0, 0], 1), "a triplet and a doublet couple to a doublet"
    assert ((0, 2), (0, 0)) not in _shares([oxygen, ethane], [0, 0], 0)
    assert _shares([np.array([1]), np.array([1])], [1, 1], 0) == [], "no electron is left"
    assert _shares([methyl, ethane], [], 1) == [], "a calculator that does not tell the charges"


def test_radicals_apart_are_no_ions_and_oxygen_is_a_triplet() -> None:
    """Two hydroperoxyl radicals on a singlet surface, and nitric oxide with ozone."""
    smiles = "[O:1][O:2][H:7].[O:3][O:4][H:8]>>[O:1]=[O:2].[H:7][O:3][O:4][H:8]"
    found = find_ts(smiles=smiles, temperature=298.15, correction="none").thermochemistry
    assert found is not None and found.pieces["reactant"].names == ["HO2(doublet)", "HO2(doublet)"]
    assert -27 < found.pieces["reactant"].barrier_kcal < -22  # by ions some 200 lower
    smiles = "[N:1]=[O:2].[O:3]=[O+:4][O-:5]>>[O:2]=[N:1][O:5].[O:3]=[O:4]"
    found = find_ts(smiles=smiles, temperature=298.15, correction="none").thermochemistry
    assert found is not None and set(found.pieces["product"].names) == {"NO2(doublet)", "O2(triplet)"}


def test_barriers_are_measured_from_minima() -> None:
    """Ammonia and bromomethane in water meet in a complex of threefold symmetry, which is none: 9.7 kcal/mol from
    there, and 11.6 from where it falls to."""
    result = find_ts(smiles="N.CBr>>C[NH3+].[Br-]", solvent="water", samples=1, correction="none")
    assert result.best.barrier_forward_kcal == pytest.approx(11.6, abs=0.3)
    assert result.best.path_positions is not None
    well = result.best.path_positions[0]
    modes = normal_modes(XtbPotential(result.reaction.numbers, solvent="water"), well, central=True)
    assert modes.frequencies_cm[0] > -10


def test_a_saddle_at_a_temperature(tmp_path: Path) -> None:
    result = find_ts(*HCN, samples=1, temperature=400, correction="none", out=tmp_path / "out")
    found, best = result.thermochemistry, result.best
    assert found is not None and best.barrier_forward_kcal is not None
    assert best.path_positions is not None
    modes = normal_modes(XtbPotential(result.reaction.numbers), best.path_positions[0], central=True, saddle=False)
    again = thermochemistry(best.path_positions[0], result.reaction.numbers, modes, 400)
    assert found.reactant.gibbs == pytest.approx(again.gibbs, abs=1e-4)
    assert found.saddle.energy - found.reactant.energy == pytest.approx(best.barrier_forward_kcal / 23.0605, abs=1e-3)
    # the stretch that becomes the motion over the saddle takes its zero-point energy with it
    assert -5 < found.summary()["enthalpy_forward_kcal"] - best.barrier_forward_kcal < -2
    assert found.rates[0] == pytest.approx(
        eyring(found.saddle.gibbs - found.reactant.gibbs, 400, best.imaginary_frequency_cm or 0.0), rel=0.02
    )
    assert found.reactant.symmetry == 1 and found.reactant.imaginary == 0 and found.pieces == {}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["thermochemistry"]
    assert summary["gibbs_forward_kcal"] == pytest.approx(found.gibbs_forward_kcal)
    assert summary["standard_state"] == "1 bar" and summary["temperature"] == 400


def test_molecules_alone_of_a_substitution_in_the_gas_and_in_water(tmp_path: Path) -> None:
    smiles = "[Cl-:1].[CH3:2][Br:3]>>[Cl:1][CH3:2].[Br-:3]"
    found = {}
    for solvent in (None, "water"):
        result = find_ts(smiles=smiles, temperature=298.15, solvent=solvent)
        assert result.verified and result.thermochemistry is not None
        found[solvent] = result.thermochemistry
        assert {side: set(pieces.names) for side, pieces in found[solvent].pieces.items()} == {
            "reactant": {"CH3Br", "Cl(-1)"}, "product": {"CH3Cl", "Br(-1)"},
        }  # fmt: skip
    gas, water = found[None].pieces["reactant"], found["water"].pieces["reactant"]
    # measured in water: some 24.5 kcal/mol; in the gas phase the saddle lies near the free molecules
    assert -4 < gas.barrier_kcal < 4 and gas.rate is None
    assert 14 < water.barrier_kcal < 28 and water.rate is not None
    assert water.rate == pytest.approx(
        eyring(water.barrier_kcal / 23.0605, 298.15, found["water"].imaginary_frequency_cm), rel=0.01
    )
    assert [point.symmetry for point in water.points] == ([1, 3] if water.names[0] == "Cl(-1)" else [3, 1])
    assert found["water"].standard_state == "1 mol/L"


def test_a_calculator_that_fails_at_the_modes_costs_the_gibbs_energies_alone() -> None:
    first = find_ts(*HCN, samples=1, correction="none")
    potential = FailingFrom(first.reaction.numbers, first.gradient_calls + 3)
    result = find_ts(*HCN, samples=1, correction="none", temperature=300, calculator=potential)
    assert result.verified and result.thermochemistry is None
    assert "no Gibbs energies" in result.best.reason and result.status == "partial"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": 0}, "--temperature: temperature 0 K"),
        ({"temperature": math.nan}, "--temperature: temperature nan K"),
        ({"temperature": "warm"}, "--temperature: temperature 'warm'"),
        ({"temperature": 300, "refine": False}, "of a saddle that is not verified"),
        ({"temperature": 300, "verify": "none"}, "of a saddle that is not verified"),
    ],
)
def test_temperatures_that_mean_nothing(options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        find_ts(*HCN, **options)


def test_what_the_report_says(tmp_path: Path) -> None:
    smiles = "[Cl-:1].[CH3:2][Br:3]>>[Cl:1][CH3:2].[Br-:3]"
    said = CliRunner().invoke(main.app, ["ts", "--smiles", smiles, "-T", "298.15", "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.stderr
    lines = {line[:21].strip(): line[21:] for line in said.stdout.splitlines()}
    assert "at 298.15 K; enthalpy" in lines["Gibbs barrier"] and "tunnelling x 1." in lines["rate"]
    assert "CH3Br" in said.stdout and "as fast as they meet" in said.stdout
    assert duration(1e-9) == "1e-09 s" and duration(90) == "1.5 min" and duration(4e9) == "1.3e+02 years"


def test_wells_with_a_soft_imaginary_mode_are_said_to_have_one() -> None:
    found = find_ts(*HCN, samples=1, temperature=300, correction="none").thermochemistry
    assert found is not None and "imaginary" not in thermochemistry_lines(found)[0]
    odd = replace(found, product=replace(found.product, imaginary=1))
    assert thermochemistry_lines(odd)[0].endswith("(imaginary modes taken as real: 1 of the product)")
    cold = replace(found, temperature=20.0)
    assert "beyond what Wigner's formula is for" in thermochemistry_lines(cold)[1]


def test_a_calculator_by_ase_has_neutral_molecules_alone_too() -> None:
    """One that was told a charge when it was made would have it for every part."""
    from tblite.ase import TBLite

    options: dict[str, Any] = {"temperature": 298.15, "samples": 2}
    calculator = TBLite(verbosity=0, accuracy=0.01)
    for smiles, sides_apart in (
        ("C=C.Cl>>CCCl", {"reactant"}),
        ("[Cl-:1].[CH3:2][Br:3]>>[Cl:1][CH3:2].[Br-:3]", set()),
    ):
        result = find_ts(smiles=smiles, calculator=calculator, **options)
        assert result.verified and result.level == "TBLite" and result.thermochemistry is not None
        assert set(result.thermochemistry.pieces) == sides_apart
        assert result.rejections[NOT_APART] == (0 if sides_apart else 2), "said in the report"
