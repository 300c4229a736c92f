"""What is sampled: slopes against finite differences, weights, and everything that rejects a geometry."""

from __future__ import annotations

import numpy as np
import pytest
from fes_cases import SQUARE, START, Faulty, T, X, four_atoms

from molgen.cvdiffusion.bias import Axis, WellTemperedBias
from molgen.cvdiffusion.space import CartesianSpace
from molgen.cvdiffusion.target import CLIP, Batch, Target, closest_allowed
from molgen.cvdiffusion.walls import Wall, wall_energy
from molgen.geometry.chirality import signed_volumes
from molgen.potentials.analytic import Harmonic
from molgen.variables import distance, values_and_gradients

GEOMETRIES = SQUARE + 0.15 * np.random.default_rng(3).standard_normal((12, 4, 3))


def energy(target: Target, x: np.ndarray) -> np.ndarray:
    """E + V + walls over kT, by their own functions."""
    bias = target.bias.evaluate(values_and_gradients(target.cvs, x)[0])[0]
    return (target.potential.energy(x) + bias + wall_energy(target.walls, x)[0]) / target.kt


def numerical_slope(target: Target, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    found = np.zeros_like(x)
    for i in range(4):
        for k in range(3):
            e = np.zeros((4, 3))
            e[i, k] = step
            found[:, i, k] = (energy(target, x + e) - energy(target, x - e)) / (2 * step)
    return found


def test_slope_is_the_gradient_of_potential_bias_and_walls():
    target = four_atoms()
    batch = target.evaluate(GEOMETRIES, np.zeros(12), 1)
    assert batch.accepted.all() and (batch.walls > 0).any() and (batch.walls == 0).any()
    assert (np.abs(target.bias.evaluate(batch.cvs)[1]) > 0.05).any()
    expected = numerical_slope(target, GEOMETRIES)
    expected -= expected.mean(1, keepdims=True)  # the motion of the centre is not sampled
    assert target.slope(batch) == pytest.approx(expected, abs=1e-3)
    assert np.abs(expected).max() < CLIP


def test_the_slope_has_the_bias_as_it_is_now():
    target = four_atoms(hills=0)
    batch = target.evaluate(GEOMETRIES, np.zeros(12), 1)
    before, unbiased = target.slope(batch), target.log_weights(batch, biased=False)
    target.bias.add(batch.cvs, 0.4)
    expected = numerical_slope(target, GEOMETRIES)
    assert target.slope(batch) == pytest.approx(expected - expected.mean(1, keepdims=True), abs=1e-3)
    assert np.abs(target.slope(batch) - before).max() > 1
    assert target.log_weights(batch, biased=False) == pytest.approx(unbiased)


def test_a_single_particle_keeps_its_slope():
    bias = WellTemperedBias([Axis("x", "A", -2.2, 2.2, 100)], [0.1], 8.0, T)
    target = Target(Faulty(10**9), [X], [], bias, T, closest_allowed(np.array([1])), CartesianSpace(1))
    x = np.array(START) + [0.2, 0.1, 0.0]
    slope = target.slope(target.evaluate(x, np.zeros(1), 0))
    assert slope * target.kt == pytest.approx(-target.potential.energy_and_forces(x)[1])


def test_steep_slopes_are_clipped_atom_by_atom():
    stiff = Harmonic(SQUARE, np.array([[4.0], [4.0], [4.0], [200.0]]), [6, 6, 8, 1])
    target = four_atoms(stiff, hills=0)
    target.walls = []
    x = SQUARE[None] + np.array([[0, 0, 0.2], [0, 0, 0.02], [0, 0, 0], [0, 0, 0.1]])
    plain = -stiff.energy_and_forces(x)[1] / target.kt
    plain -= plain.mean(1, keepdims=True)
    slope = target.slope(target.evaluate(x, np.zeros(1), 0))
    sizes, before = np.linalg.norm(slope, axis=-1)[0], np.linalg.norm(plain, axis=-1)[0]
    assert (before > CLIP).any() and (before < CLIP).any()
    assert sizes == pytest.approx(np.minimum(before, CLIP))
    assert np.einsum("nai,nai->na", slope, plain)[0] == pytest.approx(sizes * before)  # the direction stays


def test_weights_with_and_without_bias_differ_by_the_bias():
    target = four_atoms()
    log_path = np.random.default_rng(0).standard_normal(12)
    batch = target.evaluate(GEOMETRIES, log_path, 1)
    biased, plain = target.log_weights(batch), target.log_weights(batch, biased=False)
    assert biased - plain == pytest.approx(-target.bias.evaluate(batch.cvs)[0] / target.kt)
    assert biased == pytest.approx(log_path - energy(target, GEOMETRIES))
    assert np.ptp(biased - plain) > 0.1


def spoiled() -> np.ndarray:
    """Geometry 1 has atoms too close, 3 a distance of nothing, the rest are good."""
    x = GEOMETRIES.copy()
    x[1, 1] = x[1, 0] + [0.3, 0, 0]
    x[3, 1] = x[3, 0]
    return x


def test_rejections_are_counted_by_reason_and_weigh_nothing():
    target = four_atoms()
    target.centres = np.array([[0, 1, 2, 3], [1, 2, 3, 0]])
    target.hands = np.sign(signed_volumes(SQUARE[None], target.centres))[0]
    target.hands[1] *= -1  # no geometry has this one right: the two are always opposed
    batch = target.evaluate(GEOMETRIES, np.zeros(12), 4)
    assert dict(target.rejections) == {"other handedness": 12} and target.potential.calls == 0
    target.rejections.clear()
    target.centres = target.centres[:0]
    batch = target.evaluate(spoiled(), np.zeros(12), 4)
    assert dict(target.rejections) == {"atoms too close": 2} and (batch.round == 4).all()
    assert np.flatnonzero(~batch.accepted).tolist() == [1, 3]
    assert target.potential.calls == 10  # no energy was paid for them
    for biased in (True, False):
        log_w = target.log_weights(batch, biased)
        assert np.isneginf(log_w[[1, 3]]).all() and np.isfinite(np.delete(log_w, [1, 3])).all()
    assert np.isfinite(target.slope(batch)).all()
    target.evaluate(spoiled(), np.zeros(12), 5)
    assert target.rejections["atoms too close"] == 4


def test_mirror_images_are_reflected_and_weigh_half():
    """The mixture of a target and its mirror image is half as dense as the target."""
    plain, target = four_atoms(), four_atoms()
    target.centres = np.array([[0, 1, 2, 3]])
    target.hands = np.sign(signed_volumes(SQUARE[None], target.centres))[0]
    right = GEOMETRIES[np.sign(signed_volumes(GEOMETRIES, target.centres)[:, 0]) == target.hands[0]]
    sign = np.where(np.arange(len(right)) % 3 == 0, -1, 1)[:, None, None]
    log_path = np.arange(len(right), dtype=float)
    batch = target.evaluate(sign * right, log_path, 1)
    assert len(right) > 8 and batch.positions == pytest.approx(right) and not target.rejections
    expected = plain.log_weights(plain.evaluate(right, log_path, 1))
    assert target.log_weights(batch) == pytest.approx(expected - np.log(2))


def test_an_undefined_variable():
    target = four_atoms()
    target.least = np.zeros((4, 4))
    batch = target.evaluate(spoiled(), np.zeros(12), 0)
    assert dict(target.rejections) == {"collective variable undefined": 1} and not batch.accepted[3]
    assert np.isfinite(batch.cvs).all() and np.isfinite(batch.cv_gradient).all()


def test_an_undefined_wall():
    target = four_atoms()
    target.least = np.zeros((4, 4))
    target.walls = [Wall(distance(2, 3), 1.0, False, 5.0)]
    x = GEOMETRIES.copy()
    x[2, 2] = x[2, 3] + 1e-8
    x[4, 2] = x[4, 3] + 2e-3
    batch = target.evaluate(x, np.zeros(12), 0)
    assert np.flatnonzero(~batch.accepted).tolist() == [2] and sum(target.rejections.values()) == 1
    assert np.isfinite(batch.gradient).all() and np.isfinite(batch.walls).all()


def test_an_energy_that_fails_and_one_below_the_floor():
    bias = WellTemperedBias([Axis("x", "A", -2.2, 2.2, 100)], [0.1], 8.0, T)
    target = Target(Faulty(5), [X], [], bias, T, closest_allowed(np.array([1])), CartesianSpace(1), floor=-0.04)
    x = np.linspace(-1.3, 1.3, 20)[:, None, None] * np.array([[1.0, 0, 0]])
    batch = target.evaluate(x, np.zeros(20), 0)
    low = target.potential.energy(x)
    below = np.flatnonzero(low < -0.04)
    assert len(below) and target.rejections["energy below the floor"] == len(set(below) - {0, 5, 10, 15})
    assert target.rejections["no energy"] == 4 and not batch.accepted[[0, 5, 10, 15, *below]].any()
    assert batch.accepted.sum() == 20 - sum(target.rejections.values()) > 5


def test_nothing_at_all_can_be_evaluated():
    target = four_atoms()
    batch = target.evaluate(np.zeros((3, 4, 3)), np.zeros(3), 0)
    assert not batch.accepted.any() and np.isneginf(target.log_weights(batch)).all()


def test_batches_join_and_split():
    target = four_atoms()
    batch = target.evaluate(GEOMETRIES, np.arange(12.0), 2)
    halves = [batch.take(np.arange(5)), batch.take(np.arange(12) >= 5)]
    again = Batch.join(halves)
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(batch).values(), strict=True))
