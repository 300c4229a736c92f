"""xTB in an implicit solvent, from the potential to the commands that offer it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation
from ts_cases import sides
from typer.testing import CliRunner

from molgen import find_ts, system_from_files
from molgen.cli import main
from molgen.errors import InputError
from molgen.potentials import check_potential
from molgen.potentials.ase import calculator_from_spec, level_name, with_solvent
from molgen.potentials.xtb import METHODS, SOLVENTS, XtbPotential
from molgen.workflows.fes_from_ts import read_path

ETHANOL = molecule("CH3CH2OH")
HCN = sides("hcn")


def solvated(atoms: Atoms, solvent: str | None, charge: int = 0) -> float:
    """Energy, eV."""
    return XtbPotential(atoms.numbers, charge, solvent=solvent).energy(atoms.positions[None])[0]


@pytest.mark.parametrize("solvent", ["water", "dmso"])
def test_forces_in_a_solvent_are_the_gradient_and_remember_nothing(solvent: str) -> None:
    x = ETHANOL.positions + np.random.default_rng(0).normal(size=(2, len(ETHANOL), 3)) * 0.05
    potential = XtbPotential(ETHANOL.numbers, solvent=solvent)
    check_potential(potential, x, invariant=False)  # tblite's surface grid does not turn with the molecule
    turned = np.stack([turn.apply(ETHANOL.positions) for turn in Rotation.random(20, random_state=0)])
    assert 1e-6 < np.ptp(potential.energy(turned)) < 0.004, "eV"


@pytest.mark.parametrize("method", METHODS)
def test_every_solvent_that_is_named_can_be_used(method: str) -> None:
    energies = {s: XtbPotential([1, 1], 0, 0, method, s).energy(molecule("H2").positions[None])[0] for s in SOLVENTS}
    assert np.isfinite(list(energies.values())).all() and len(set(energies.values())) == len(SOLVENTS)


def test_free_energies_of_solvation_are_near_experiment() -> None:
    # Kelly, Cramer, Truhlar, J. Phys. Chem. B 2006, 110, 16066 (ion) and the Minnesota solvation database, kcal/mol
    for atoms, charge, measured, within in ((Atoms("Cl", [[0, 0, 0]]), -1, -74.5, 8), (molecule("H2O"), 0, -6.3, 4)):
        change = (solvated(atoms, "water", charge) - solvated(atoms, None, charge)) * 23.06
        assert change == pytest.approx(measured, abs=within)


def test_a_solvent_nobody_knows_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"GFN2-xTB: unknown solvent 'brine'[\s\S]*acetone.*water"):
        calculator_from_spec("gfn2", {"solvent": "brine"}, ETHANOL.numbers)
    with pytest.raises(InputError, match="unknown solvent 4"):
        XtbPotential(ETHANOL.numbers, solvent=4)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"'water' beside the calculator 'tblite.ase:TBLite'[\s\S]*--calculator-kwargs"
    ):
        with_solvent("tblite.ase:TBLite", {}, "water")
    with pytest.raises(InputError, match=r"the argument solvent alone, got \['accuracy'\]"):
        calculator_from_spec("gfn2", {"accuracy": 1}, ETHANOL.numbers)


def test_a_level_in_a_solvent_is_another_level() -> None:
    assert level_name("gfn2", with_solvent("gfn2", None, "thf")) == "GFN2-xTB(solvent='thf')"
    assert level_name("gfn2", with_solvent("gfn2", None, None)) == "GFN2-xTB"


def test_molgen_ts_in_water_and_the_free_energy_that_goes_on_from_it(tmp_path: Path) -> None:
    files = [str(path) for side in HCN for path in side]
    result = CliRunner().invoke(
        main.app, ["ts", *files, "-n", "1", "--solvent", "water", "--out", str(tmp_path / "ts")]
    )
    assert result.exit_code == 0, result.stderr
    assert "calibrated on neutral molecules with GFN2-xTB" in result.stdout or "confidence" not in result.stdout
    summary = json.loads((tmp_path / "ts" / "summary.json").read_text())
    assert summary["level"] == "GFN2-xTB(solvent='water')" and not (tmp_path / "ts" / "ts_corrected.xyz").exists()
    gas = find_ts(*HCN, samples=1, correction="none").best.barrier_forward_kcal
    assert gas is not None and abs(summary["results"][0]["barrier_forward_kcal"] - gas) > 0.5
    path = read_path(tmp_path / "ts")
    assert path.potential.solvent == "water"  # type: ignore[attr-defined]
    assert path.energies[path.saddle] == pytest.approx(summary["results"][0]["energy"], abs=0.01)


def test_molgen_fes_takes_a_solvent_for_either_kind_of_energy(tmp_path: Path) -> None:
    file = tmp_path / "ethanol.xyz"
    ETHANOL.write(file)
    system = system_from_files(str(file), solvent="water")
    assert system.source is not None and system.source["kwargs"] == {"solvent": "water"}
    assert system.potential.energy(ETHANOL.positions[None])[0] == pytest.approx(solvated(ETHANOL, "water"), abs=1e-4)
    options = ["fes", "--xyz", str(file), "--cv", "torsion 0 1 2 3", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(main.app, [*options, "--solvent", "obc2"])
    assert refused.exit_code == 2 and "unknown solvent 'obc2'" in refused.stderr
    config = tmp_path / "run.toml"
    config.write_text("solvent = 4\n")
    refused = CliRunner().invoke(main.app, ["fes", str(config), *options[1:]])
    assert refused.exit_code == 2 and "solvent = 4" in refused.stderr and "a value like water" in refused.stderr
