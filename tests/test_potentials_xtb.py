"""GFN-xTB and ASE calculators against each other, against published energies and against finite differences."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, CalculatorError
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from tblite import interface

from molgen import errors, threads
from molgen.potentials import check_potential
from molgen.potentials.ase import AsePotential, PotentialCalculator, calculator_from_spec
from molgen.potentials.xtb import XtbPotential
from molgen.units import BOHR

WATER = molecule("H2O")
SN2 = Atoms(
    "ClCClH3", [[-2.9, 0, 0], [0, 0, 0], [1.8, 0, 0], [-0.3, 1.03, 0], [-0.3, -0.515, 0.892], [-0.3, -0.515, -0.892]]
)


def noisy(atoms, count=2, width=0.05):
    return atoms.positions + np.random.default_rng(0).normal(size=(count, len(atoms), 3)) * width


@pytest.mark.parametrize(
    ("atoms", "charge", "spin", "method"),
    [
        (molecule("CH3CHO"), 0, 0, "GFN2-xTB"),
        (molecule("CH3CHO"), 0, 0, "GFN1-xTB"),
        (SN2, -1, 0, "GFN2-xTB"),
        (molecule("CH3"), 0, 1, "GFN2-xTB"),
    ],
)
def test_xtb_keeps_the_protocol(atoms, charge, spin, method):
    check_potential(XtbPotential(atoms.numbers, charge, spin, method), noisy(atoms))


# tblite's documentation, https://tblite.readthedocs.io/en/latest/users/ase.html
@pytest.mark.parametrize(("spec", "energy"), [("gfn2", -137.96777625229421), ("GFN1", -156.9675057724589)])
def test_water_energy_is_the_published_one(spec, energy):
    potential = calculator_from_spec(spec, None, WATER.numbers)
    assert potential.energy(WATER.positions[None])[0] == pytest.approx(energy, abs=2e-6)


@pytest.mark.parametrize(
    ("atoms", "charge", "spin"),
    [(SN2, -1, 0), (molecule("CH3"), 0, 1), (molecule("CH3"), 1, 0), (molecule("C2H4"), 0, 2)],
)
def test_charge_and_spin_reach_tblite_by_both_ways(atoms, charge, spin):
    embedded = XtbPotential(atoms.numbers, charge, spin)
    through_ase = calculator_from_spec(
        "tblite.ase:TBLite", {"verbosity": 0, "accuracy": 0.01}, atoms.numbers, charge, spin
    )
    explicit = {"charge": charge, "multiplicity": spin + 1, "verbosity": 0, "accuracy": 0.01}
    reference = calculator_from_spec("tblite.ase:TBLite", explicit, atoms.numbers)
    x = noisy(atoms)
    for a, b, c in zip(*(p.energy_and_forces(x) for p in (embedded, through_ase, reference)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-5)


def test_charge_and_spin_matter():
    x = molecule("CH3").positions[None]
    energies = [XtbPotential([6, 1, 1, 1], charge, spin).energy(x)[0] for charge, spin in ((0, 1), (1, 0), (0, 3))]
    assert energies[1] - energies[0] > 5 and energies[2] - energies[0] > 2  # ionisation and excitation, eV


def test_results_do_not_depend_on_what_was_evaluated_before():
    x = noisy(SN2, 3, 0.2)
    potential = XtbPotential(SN2.numbers, -1)
    first = potential.energy_and_forces(x[:1])
    potential.energy(np.stack([x[1], x[2] * 0.02, x[2]]))
    again = potential.energy_and_forces(x[:1])
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_an_scf_failure_costs_one_sample():
    potential = XtbPotential(WATER.numbers)
    x = np.repeat(WATER.positions[None], 3, axis=0)
    x[1] *= 10  # free atoms: closed-shell fractions of electrons hop between them and the SCF never settles
    energy = potential.energy(x)
    assert potential.failures == {1: "TBLiteRuntimeError: SCF not converged in 200 cycles"}
    assert energy[0] == energy[2] and np.isnan(energy[1]) and potential.calls == 3


def test_an_scf_that_oscillates_is_mixed_more_gently():
    """Cyanide and formaldehyde, where tblite's own settings do not converge; forces by finite differences."""
    numbers = np.array([6, 7, 6, 8, 1, 1])
    x = np.array(
        [[2.2, 0.02, 0.02], [3.2, 0.54, -0.32], [-1.32, -0.2, 0.07], [-1.98, 0.83, 0.21], [-0.96, -0.8, 0.92],
         [-1.1, -0.63, -0.92]]
    )  # fmt: skip
    plain = interface.Calculator("GFN2-xTB", numbers, x / BOHR, -1.0, 0)
    plain.set("verbosity", 0)
    with pytest.raises(RuntimeError, match="not converged"):
        plain.singlepoint()
    potential, step = XtbPotential(numbers, -1), 1e-3 * np.random.default_rng(0).normal(size=x.shape)
    energy, forces = potential.energy_and_forces(np.stack([x, x + step, x - step]))
    assert not potential.failures
    assert energy[2] - energy[1] == pytest.approx(2 * (forces[0] * step).sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([8, 1, 1], 1, 0), "9 electrons .* cannot have 0 unpaired.*\n.*odd number.*\n.*--spin"),
        (([8, 1, 1], 0, 1), "expected: an even number"),
        (([92, 1], 0, 1), "atom 0 has atomic number 92, which GFN2-xTB has no parameters for"),
        (([1, 0], 0, 1), "atom 1 has atomic number 0"),
        (([8, 1, 1], 0, 0, "GFN3-xTB"), "unknown method 'GFN3-xTB'\n  expected: GFN2-xTB or GFN1-xTB"),
    ],
)
def test_molecules_xtb_cannot_describe(arguments, text):
    with pytest.raises(errors.InputError, match=text):
        XtbPotential(*arguments)


def test_xtb_prints_nothing():
    code = (
        "from molgen.potentials.xtb import XtbPotential as X\n"
        "X([1, 1]).energy([[[0., 0, 0], [.7, 0, 0]], [[0., 0, 0], [2e-3, 0, 0]]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


def test_any_ase_calculator_keeps_the_protocol():
    atoms = molecule("CH3OH")
    check_potential(AsePotential(EMT(), atoms.numbers), noisy(atoms))


class Misshapen(Calculator):
    """Forces of a given shape."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": self.parameters.get("energy", 1.0), "forces": np.ones(self.parameters["shape"])}


@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1), (), (12,), (2, 3)])
def test_forces_of_another_shape_are_not_spread_over_the_atoms(shape):
    potential = AsePotential(Misshapen(shape=shape), [8, 8, 1, 1])
    energy, forces = potential.energy_and_forces(np.zeros((1, 4, 3)) + np.arange(4)[:, None])
    assert np.isnan(forces).all() and np.isnan(energy[0])
    assert f"forces of shape {shape}" in potential.failures[0] and "(4, 3)" in potential.failures[0]


@pytest.mark.parametrize(
    ("energy", "expected"), [(np.array([2.0]), 2.0), ([2.0], 2.0), ("n/a", np.nan), (1 + 1j, np.nan)]
)
def test_an_energy_that_is_no_float_is_one_or_costs_the_sample(energy, expected):
    calculator = Misshapen(shape=(2, 3), energy=energy)
    found = AsePotential(calculator, [1, 1]).energy(np.arange(6.0).reshape(1, 2, 3))
    assert found == pytest.approx([expected], nan_ok=True)


class Moody(Calculator):
    """E = |x|^2 / 2, but it raises, or returns NaN, where the first atom is far out."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        x = self.atoms.positions
        self.results = {"energy": 0.5 * (x**2).sum() * (np.nan if x[0, 0] > 20 else 1), "forces": -x}
        if x[0, 0] > 30:
            raise RuntimeError("out of range")


def test_a_calculator_that_raises_or_returns_nan_costs_one_sample():
    potential = AsePotential(Moody(), [1, 1])
    x = np.array([[[0.0, 0, 0], [1, 0, 0]]] * 4) + 1
    x[1, 0, 0], x[2, 0, 0] = 31, 21
    energy, forces = potential.energy_and_forces(x)
    np.testing.assert_array_equal(energy, [4.5, np.nan, np.nan, 4.5])
    np.testing.assert_array_equal(forces[[0, 3]], -x[[0, 3]])
    assert potential.failures[1] == "RuntimeError: out of range" and "non-finite" in potential.failures[2]


@pytest.mark.parametrize(
    ("spec", "kwargs", "error", "text"),
    [
        (
            "gfn3",
            {},
            errors.InputError,
            "calculator 'gfn3': unknown calculator\n  expected: gfn2, gfn1 or \"module:Class\"",
        ),
        (
            "gfn2",
            {"a": 1},
            errors.InputError,
            "the argument solvent alone, got .'a'.\n  remedy: use \"tblite.ase:TBLite\"",
        ),
        ("no.such:X", {}, errors.InputError, "cannot import module 'no.such'.*\n  remedy: install the package"),
        ("ase.calculators.emt:Emt", {}, errors.InputError, "no class 'Emt'\n  expected: one of .*EMT"),
        ("ase.calculators.emt:", {}, errors.InputError, "unknown calculator"),
        (
            "ase.io:read",
            {},
            errors.CalculatorError,
            r"read\(\) raised TypeError.*\n  remedy: check --calculator-kwargs",
        ),
        ("builtins:dict", {"a": 1}, errors.InputError, "{'a': 1} is not an ASE calculator"),
    ],
)
def test_calculator_names_that_cannot_be_used(spec, kwargs, error, text):
    with pytest.raises(error, match=text):
        calculator_from_spec(spec, kwargs, WATER.numbers)


def test_a_class_is_not_a_calculator():
    with pytest.raises(errors.InputError, match=r"not an ASE calculator[\s\S]*create it first"):
        AsePotential(EMT, [1])


def test_unknown_elements_are_refused_before_ase_sees_them():
    with pytest.raises(errors.InputError, match="no such elements"):
        AsePotential(EMT(), [1, 200])


def test_an_ase_optimiser_runs_over_a_potential_and_its_counter():
    atoms, potential = WATER.copy(), XtbPotential(WATER.numbers)
    atoms.calc = PotentialCalculator(potential)
    optimiser = BFGS(atoms, logfile=None)
    assert optimiser.run(fmax=0.01)
    assert potential.calls == optimiser.nsteps + 1  # energy and forces of a step are one call
    assert atoms.get_distance(0, 1) == pytest.approx(0.959, abs=0.003)  # GFN2 water, J. Chem. Theory Comput. 2019


def test_potential_calculator_raises_the_reason():
    atoms = Atoms("H2", [[31, 0, 0], [0, 0, 0]], calculator=PotentialCalculator(AsePotential(Moody(), [1, 1])))
    with pytest.raises(CalculatorError, match="out of range"):
        atoms.get_potential_energy()
    atoms.positions[0, 0] = 1
    assert atoms.get_potential_energy() == pytest.approx(0.5)


def test_potential_calculator_refuses_another_molecule():
    atoms = molecule("NH3")
    atoms.calc = PotentialCalculator(XtbPotential(WATER.numbers))
    with pytest.raises(errors.InputError, match="H3N are not the molecule .*\n  expected: H2O, in the same order"):
        atoms.get_potential_energy()


@pytest.mark.parametrize(("atoms", "set_by_user", "one"), [(14, False, True), (14, True, False), (200, False, False)])
def test_small_molecules_use_one_openmp_thread(
    atoms: int, set_by_user: bool, one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that wait for each other on a busy machine cost a hundred times the work."""
    from threadpoolctl import ThreadpoolController

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_by_user:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    pools = threads.pools().select(user_api="openmp")
    with pools.limit(limits=2), threads.one_thread(atoms):
        counts = {pool["num_threads"] for pool in ThreadpoolController().select(user_api="openmp").info()}
    assert counts == ({1} if one else {2})


def test_tblite_by_name_leaves_stdout_to_the_results(capfd: pytest.CaptureFixture[str]) -> None:
    """Its table of iterations would stand before the JSON of --json."""
    calculator_from_spec("tblite.ase:TBLite", {"method": "GFN1-xTB"}, WATER.numbers).energy(WATER.positions[None])
    assert capfd.readouterr().out == ""
