"""The protocol of molgen.potentials.base, and that the conformance checker finds potentials that break it."""

import numpy as np
import pytest

from molgen.errors import CalculatorError, InputError
from molgen.potentials import Potential, SamplewisePotential, check_potential
from molgen.potentials.analytic import Harmonic
from molgen.structures import check_electrons

CENTRE = np.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.2], [0.3, 1.4, -0.5]])
POSITIONS = CENTRE + np.random.default_rng(0).normal(size=(4, 3, 3)) * 0.2


class Wells(Harmonic):
    """A harmonic potential that fails in every way a backend can."""

    def _evaluate(self, positions, forces):
        energy, force = super()._evaluate(positions, forces)
        for i, x in enumerate(positions):
            if x[0, 0] > 50:
                energy[i] = np.inf
            elif x[0, 0] > 40:
                force[i, 1, 2] = np.nan
            elif x[0, 0] > 30:
                self.failures[i] = "SCF did not converge"
        return energy, force


def test_failed_samples_are_nan_with_a_reason_under_their_own_index():
    potential = Wells(CENTRE)
    x = np.repeat(POSITIONS[:1], 8, axis=0)
    x[0, 0, 0], x[1, 1, 2], x[3, 0, 0], x[4, 2] = 35, np.nan, 45, x[4, 1] + 1e-4
    x[6, 0, 0], x[7, 1, 0] = 55, np.inf
    energy, forces = potential.energy_and_forces(x)
    good = [2, 5]
    assert np.isnan(np.delete(energy, good)).all() and np.isnan(np.delete(forces, good, axis=0)).all()
    np.testing.assert_array_equal(energy[good], Harmonic(CENTRE).energy(POSITIONS[[0, 0]]))
    coincident = potential.failures.pop(4)
    assert potential.failures == {
        0: "SCF did not converge",
        1: "coordinate of atom 1 is not finite",
        3: "Wells returned a non-finite energy or force",
        6: "Wells returned a non-finite energy or force",
        7: "coordinate of atom 1 is not finite",
    }
    assert coincident.startswith("atoms 1 and 2 coincide (0.0002 A")
    assert potential.calls == 5  # the three unusable geometries never reached the method
    potential.energy(POSITIONS)
    assert potential.failures == {} and potential.calls == 9


def test_a_method_that_loses_all_samples_still_answers():
    potential = Wells(CENTRE)
    energy, forces = potential.energy_and_forces(np.full((2, 3, 3), np.nan))
    assert np.isnan(energy).all() and np.isnan(forces).all() and sorted(potential.failures) == [0, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planar_molecules_are_not_mistaken_for_coincident_atoms(axis):
    x = POSITIONS.copy()
    x[..., axis] = 0
    assert np.isfinite(Harmonic(CENTRE).energy(x)).all()


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        (POSITIONS[0], r"shape \(3, 3\)\n  expected: \(B, 3, 3\) in Angstrom\n  remedy: add the batch axis"),
        (POSITIONS[:, :2], r"shape \(4, 2, 3\)\n  expected: \(B, 3, 3\)"),
        ([["a"]], "not an array of numbers"),
    ],
)
def test_wrong_shapes_are_explained(positions, text):
    with pytest.raises(InputError, match=text):
        Harmonic(CENTRE).energy(positions)


def test_numbers_must_be_a_list_of_atoms():
    with pytest.raises(InputError, match=r"shape \(0,\)"):
        Harmonic(CENTRE, numbers=[])


@pytest.mark.parametrize(
    ("charge", "spin", "text"),
    [
        (1, 0, "9 electrons .* cannot have 0 unpaired\n  expected: an odd number"),
        (0, 1, "an even number"),
        (0, 12, "cannot have 12"),
        (0, -2, "cannot have -2"),
        (10, 0, "charge 10 leaves 0 electrons"),
        (11, 1, "charge 11 leaves -1 electrons"),
    ],
)
def test_impossible_electron_counts(charge, spin, text):
    with pytest.raises(InputError, match=text):
        check_electrons([8, 1, 1], charge, spin)


@pytest.mark.parametrize(("charge", "spin"), [(0, 0), (0, 2), (1, 1), (-1, 1), (8, 0)])
def test_possible_electron_counts(charge, spin):
    check_electrons([8, 1, 1], charge, spin)


class WrongSign(Harmonic):
    def _evaluate(self, positions, forces):
        energy, force = super()._evaluate(positions, forces)
        return energy, -force


class Drifting(Harmonic):
    """Forces a thousandth too large: a unit or constant slightly off."""

    def _evaluate(self, positions, forces):
        energy, force = super()._evaluate(positions, forces)
        return energy, force * 1.001


class Coupled(Harmonic):
    def _evaluate(self, positions, forces):
        energy, force = super()._evaluate(positions, forces)
        return energy + 1e-3 * len(positions), force


class Contagious(Harmonic):
    def energy_and_forces(self, positions):
        energy, force = super().energy_and_forces(positions)
        return (energy * np.nan, force) if self.failures else (energy, force)


class Hiding(Harmonic):
    """Fills in a number where there is none."""

    def energy_and_forces(self, positions):
        energy, force = super().energy_and_forces(positions)
        return np.nan_to_num(energy), np.nan_to_num(force)


class Silent(Harmonic):
    def energy_and_forces(self, positions):
        result = super().energy_and_forces(positions)
        self.failures = {}
        return result


class Uncounted(Harmonic):
    def energy_and_forces(self, positions):
        self.calls -= 1
        return super().energy_and_forces(positions)


class Single(Harmonic):
    def energy_and_forces(self, positions):
        energy, force = super().energy_and_forces(positions)
        return energy.astype(np.float32), force


class Flat(Harmonic):
    def energy_and_forces(self, positions):
        energy, force = super().energy_and_forces(positions)
        return energy, force.reshape(len(force), -1)


class TwoEnergies(Harmonic):
    def energy(self, positions):
        return super().energy(positions) + 0.1


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (WrongSign, r"forces: sample \d, atom \d, [xyz]"),
        (Drifting, "forces: sample"),
        (Coupled, "batch: a sample depends on its batch"),
        (Contagious, "NaN: a NaN sample changes the others"),
        (Hiding, "NaN: a NaN sample has energy 0.0, expected NaN"),
        (Silent, r"NaN: failures are \{\}"),
        (Uncounted, "calls: 3 counted for 4 evaluations"),
        (Single, r"shapes: energies are float32 \(4,\), expected float64 \(4,\)"),
        (Flat, r"shapes: forces are float64 \(4, 9\), expected float64 \(4, 3, 3\)"),
        (TwoEnergies, r"energy: energy\(\) is not energy_and_forces\(\)\[0\]"),
    ],
)
def test_the_checker_finds_broken_potentials(broken, text):
    with pytest.raises(CalculatorError, match=text):
        check_potential(broken(CENTRE, 3.0), POSITIONS, invariant=False)


def test_the_checker_finds_a_potential_that_is_not_invariant():
    check_potential(Harmonic(CENTRE, 3.0), POSITIONS, invariant=False)
    with pytest.raises(CalculatorError, match="invariance: rotation and translation matter"):
        check_potential(Harmonic(CENTRE, 3.0), POSITIONS)


def test_the_checker_names_every_broken_rule_at_once():
    class Both(Silent, WrongSign):
        pass

    with pytest.raises(CalculatorError) as caught:
        check_potential(Both(CENTRE), POSITIONS, invariant=False)
    assert "forces: sample" in str(caught.value) and "NaN: failures" in str(caught.value)


def test_the_checker_asks_for_usable_positions():
    with pytest.raises(CalculatorError, match="usable positions needed.*coordinate of atom 0"):
        check_potential(Harmonic(CENTRE), POSITIONS * np.nan)


def test_a_backend_that_raises_costs_one_sample():
    class Moody(SamplewisePotential):
        def _evaluate_one(self, positions, forces):
            if positions[0, 0] > 9:
                raise RuntimeError("not this one")
            return 1.0, positions * 0

    potential: Potential = Moody([1])
    energy = potential.energy([[[0.0, 0, 0]], [[10.0, 0, 0]], [[1.0, 0, 0]]])
    np.testing.assert_array_equal(energy, [1, np.nan, 1])
    assert potential.failures == {1: "RuntimeError: not this one"} and potential.calls == 3
