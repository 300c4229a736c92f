"""Normal modes against closed forms and ASE; the model Hessian against derivatives of the coordinates it models."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.vibrations import Vibrations

from molgen.errors import CalculatorError
from molgen.geometry.model_hessian import _bends, _torsions, lindh_hessian
from molgen.potentials.base import Potential, SamplewisePotential
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import normal_modes
from molgen.saddle.modes import masses, modes_of, rigid_motions
from molgen.saddle.molden import molden
from molgen.units import WAVENUMBER


class Springs(SamplewisePotential):
    """Sum of k (d - d0)^2 / 2 over the pairs given."""

    def __init__(self, numbers, springs):
        super().__init__(numbers)
        self.springs = springs

    def _evaluate_one(self, positions, forces):
        energy, force = 0.0, np.zeros_like(positions)
        for i, j, k, length in self.springs:
            d = positions[i] - positions[j]
            r = np.linalg.norm(d)
            energy += k * (r - length) ** 2 / 2
            force[i] -= k * (r - length) * d / r
            force[j] += k * (r - length) * d / r
        return energy, force


class Failing(Potential):
    """Wraps a potential whose calls from `after` on return NaN."""

    def __init__(self, inner, after):
        super().__init__(inner.numbers)
        self.inner, self.after = inner, after

    def _evaluate(self, positions, forces):
        energy, force = self.inner.energy_and_forces(positions)
        if self.calls > self.after:
            energy, force = energy * np.nan, force * np.nan
        return energy, force


def test_diatomic_frequency_is_that_of_its_reduced_mass():
    potential = Springs([6, 8], [(0, 1, 30.0, 1.1)])
    modes = normal_modes(potential, np.array([[0.3, 0.2, 0.1], [0.3, 0.2, 1.2]]), central=True)
    reduced = 1 / (1 / masses([6]) + 1 / masses([8]))
    assert modes.frequencies_cm == pytest.approx(WAVENUMBER * np.sqrt(30.0 / reduced), rel=1e-4)
    assert abs(modes.vectors[0, :, 2]).min() > 0.5
    assert modes.gradient_calls == potential.calls == 3


def test_linear_triatomic_stretches():
    # m_A (x) m_B (x) m_A with equal springs: nu_1^2 = k/m_A, nu_3^2 = k (1/m_A + 2/m_B); Herzberg (1945)
    k, (m_o, m_c) = 40.0, masses([8, 6])
    x = np.array([[0, 0, -1.2], [0, 0, 0], [0, 0, 1.2]])
    modes = normal_modes(Springs([8, 6, 8], [(0, 1, k, 1.2), (1, 2, k, 1.2)]), x, central=True)
    assert len(modes.frequencies_cm) == 4  # 3N - 5
    expected = WAVENUMBER * np.sqrt([k / m_o, k * (1 / m_o + 2 / m_c)])
    assert modes.frequencies_cm[2:] == pytest.approx(expected, rel=1e-4)


def test_a_negative_curvature_is_a_negative_frequency():
    potential = Springs([6, 8], [(0, 1, -30.0, 1.1)])
    modes = normal_modes(potential, np.array([[0, 0, 0], [0, 0, 1.1]]), central=True)
    reduced = 1 / (1 / masses([6]) + 1 / masses([8]))
    assert modes.frequencies_cm == pytest.approx(-WAVENUMBER * np.sqrt(30.0 / reduced), rel=1e-4)


@pytest.fixture(scope="module")
def water():
    atoms = molecule("H2O")
    potential = XtbPotential(atoms.numbers)
    from molgen.saddle.descent import relax

    return potential, relax(potential, atoms.positions, fmax=1e-3, max_calls=50).positions


def test_water_as_ase_vibrations_has_it(water, tmp_path):
    from molgen.potentials.ase import PotentialCalculator

    potential, x = water
    vibrations = Vibrations(
        Atoms("OHH", x, calculator=PotentialCalculator(potential)), delta=0.005, name=tmp_path / "v"
    )
    vibrations.run()
    reference = vibrations.get_frequencies().real[-3:]
    assert normal_modes(potential, x, central=True).frequencies_cm == pytest.approx(reference, abs=1.0)
    assert normal_modes(potential, x).frequencies_cm == pytest.approx(reference, rel=0.02)  # forward differences


def test_modes_do_not_depend_on_orientation(water):
    potential, x = water
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a, b = (normal_modes(potential, y, central=True).frequencies_cm for y in (x, x @ rotation.T + 3.0))
    assert a == pytest.approx(b, abs=1.0)


def test_a_single_atom_has_no_modes():
    modes = normal_modes(XtbPotential([2]), np.zeros((1, 3)))
    assert modes.frequencies_cm.shape == (0,) and modes.vectors.shape == (0, 1, 3) and modes.hessian.shape == (3, 3)


def test_a_failing_calculator_reports_its_reason(water):
    potential, x = water
    failing = Failing(potential, 2)
    with pytest.raises(CalculatorError, match="non-finite"):
        normal_modes(failing, x)
    assert failing.calls == 3


def _numeric(function, points, step=1e-5):
    rows = []
    for i in range(len(points)):
        columns = []
        for axis in np.eye(3):
            ahead, behind = ([p + s * axis * (j == i) for j, p in enumerate(points)] for s in (step, -step))
            columns.append((function(*ahead) - function(*behind)) / (2 * step))
        rows.append(np.stack(columns, -1))
    return np.stack(rows, 1)


def _angle(a, b, c):
    u, v = a - b, c - b
    return np.arccos((u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1))


def _torsion(a, b, c, d):
    u, w, v = b - a, c - b, d - c
    m, n = np.cross(u, w), np.cross(w, v)
    return np.arctan2((np.cross(m, n) * w).sum(-1) / np.linalg.norm(w, axis=-1), (m * n).sum(-1))


def test_derivatives_of_bends_and_torsions():
    points = list(np.random.default_rng(1).normal(size=(4, 6, 3)))
    (bends, _), _ = _bends(*points[:3])
    assert np.abs(bends) == pytest.approx(np.abs(_numeric(_angle, points[:3])), abs=1e-6)
    torsions, _ = _torsions(*points)
    assert np.abs(torsions) == pytest.approx(np.abs(_numeric(_torsion, points)), abs=1e-6)


def test_model_hessian_is_invariant_and_near_the_real_one(water):
    potential, x = water
    model = lindh_hessian(potential.numbers, x)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = lindh_hessian(potential.numbers, x @ rotation.T)
    assert turned == pytest.approx(np.kron(np.eye(3), rotation) @ model @ np.kron(np.eye(3), rotation).T, abs=1e-8)
    assert np.linalg.eigvalsh(model).min() > -1e-8
    assert np.abs(model @ np.tile(np.eye(3), (3, 1))).max() < 1e-8  # translations cost nothing
    frequencies = modes_of(model, potential.numbers, x).frequencies_cm
    real = normal_modes(potential, x).frequencies_cm
    assert frequencies[1:] == pytest.approx(real[1:], rel=0.25)  # the stretches
    assert frequencies[0] == pytest.approx(real[0], rel=0.7)


def test_model_hessian_holds_a_linear_molecule_straight():
    x = np.array([[0, 0, -1.06], [0, 0, 0], [0, 0, 1.2], [0, 0, 2.26]])
    frequencies = modes_of(lindh_hessian([1, 6, 6, 1], x), [1, 6, 6, 1], x).frequencies_cm
    assert len(frequencies) == 7
    assert frequencies[0] > 100


def test_a_free_rotor_is_not_imaginary_with_forward_differences():
    # staggered ethanol: the methyl and hydroxyl rotors are soft, and forward differences alone can turn them imaginary
    from molgen.saddle.descent import relax

    atoms = molecule("CH3CH2OH")
    potential = XtbPotential(atoms.numbers)
    x = relax(potential, atoms.positions, fmax=0.005, max_calls=100).positions
    forward, central = normal_modes(potential, x), normal_modes(potential, x, central=True)
    assert (central.frequencies_cm > 0).all()
    assert forward.frequencies_cm[4:] == pytest.approx(central.frequencies_cm[4:], rel=0.02)
    assert (forward.frequencies_cm > -50).all()


def test_checking_soft_modes_puts_the_central_difference_in():
    from molgen.saddle.modes import _imaginary_modes_checked, internal_basis

    atoms = molecule("CH3CH2OH")
    potential = XtbPotential(atoms.numbers)
    true = normal_modes(potential, atoms.positions, central=True)
    internal = internal_basis(atoms.positions)
    project = internal @ internal.T
    soft = true.vectors[[0, 1]].reshape(2, -1) @ project
    spoiled = true.hessian - 20.0 * (soft.T @ soft)
    modes = modes_of(spoiled, atoms.numbers, atoms.positions)
    assert (modes.frequencies_cm[:3] < 0).tolist() == [True, True, False]
    before = potential.calls
    mended = _imaginary_modes_checked(potential, atoms.positions, spoiled, saddle=True)
    assert potential.calls - before == 2  # the first mode may be imaginary, only the second is in doubt
    assert mended == pytest.approx(mended.T)
    doubtful = project @ modes.vectors[1].ravel()
    assert np.abs(spoiled @ doubtful - true.hessian @ doubtful).max() > 1
    assert mended @ doubtful == pytest.approx(true.hessian @ doubtful, abs=0.2)


def test_a_molden_file_has_the_modes(water):
    """Read back: bohr, the frequencies in order, and displacements that diagonalise the Hessian."""
    potential, x = water
    modes = normal_modes(potential, x, central=True)
    parts = dict(part.split("]", 1) for part in molden(potential.numbers, x, modes).split("[")[1:])
    assert list(parts) == ["Molden Format", "Atoms", "FREQ", "FR-COORD", "FR-NORM-COORD"]
    unit, *atoms = parts["Atoms"].strip().splitlines()
    assert unit.strip() == "Angs" and [row.split()[:3] for row in atoms] == [
        ["O", "1", "8"],
        ["H", "2", "1"],
        ["H", "3", "1"],
    ]
    assert np.array([row.split()[3:] for row in atoms], float) == pytest.approx(x, abs=1e-7)
    bohr = [row.split()[1:] for row in parts["FR-COORD"].strip().splitlines()]
    assert np.array(bohr, float) * 0.529177 == pytest.approx(x, abs=1e-6)
    frequencies = np.array(parts["FREQ"].split(), float)
    assert frequencies == pytest.approx(modes.frequencies_cm, abs=0.006)
    blocks = parts["FR-NORM-COORD"].strip().split("vibration ")[1:]
    assert [block.split()[0] for block in blocks] == ["1", "2", "3"]
    for block, frequency in zip(blocks, frequencies, strict=True):
        moved = np.array(block.split()[1:], float)
        mass = np.repeat(masses([8, 1, 1]), 3)
        assert modes.hessian @ moved == pytest.approx((frequency / WAVENUMBER) ** 2 * mass * moved, abs=0.02)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
def test_a_nearly_linear_molecule_keeps_its_bends(noise):
    """Linear water: two stretches, and both bends imaginary, whatever the last digits of the geometry."""
    x = np.array([[0, 0, -0.93], [0, 0, 0], [0, 0, 0.93]])
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    x = x @ turn + noise * np.random.default_rng(0).normal(size=x.shape)
    found = normal_modes(XtbPotential([1, 8, 1]), x).frequencies_cm
    assert len(found) == 4 and (found < -50).sum() == 2


def test_a_bent_transition_state_has_six_rigid_motions():
    bent = np.array([[1.2, 0, 0.45], [0, 0, 0], [0, 0, 1.2]])
    assert rigid_motions(bent, masses([1, 6, 7])).shape == (9, 6)
    assert rigid_motions(bent * [0, 0, 1.0]).shape == (9, 5)
