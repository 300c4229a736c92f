"""Sums, biases and restraints, and the process pool: exact sums, every failure kept, nothing lost to a crash."""

import os
import signal
from functools import partial

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.potentials import SamplewisePotential, check_potential
from molgen.potentials.analytic import Harmonic, MuellerBrown
from molgen.potentials.composite import BiasPotential, DistanceRestraint, SumPotential
from molgen.potentials.parallel import ParallelPotential
from molgen.potentials.xtb import XtbPotential

WATER = np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])
POSITIONS = WATER + np.random.default_rng(0).normal(size=(4, 3, 3)) * 0.05


def repulsion(positions):
    """sum over atom pairs of 0.1 / r^2, and its gradient."""
    apart = positions[:, :, None] - positions[:, None]
    inverse = 1 / ((apart**2).sum(-1) + np.eye(positions.shape[1]) * 1e12)
    return 0.05 * inverse.sum((1, 2)), (-0.2 * inverse[..., None] ** 2 * apart).sum(2)


def biased_water():
    restraint = DistanceRestraint([[0, 1], [1, 2]], [1.0, 1.4], [3.0, 0.5], [8, 1, 1])
    return SumPotential(XtbPotential([8, 1, 1]), BiasPotential(repulsion, [8, 1, 1]), restraint)


def test_composites_keep_the_protocol():
    check_potential(BiasPotential(repulsion, [8, 1, 1]), POSITIONS)
    check_potential(DistanceRestraint([[0, 1], [1, 2]], 1.2, [3.0, 0.5], [8, 1, 1]), POSITIONS)
    check_potential(DistanceRestraint([[0, 1], [1, 2]], 1.2, [3.0, 5.0], [8, 1, 1], strongest_pull=0.4), POSITIONS)
    check_potential(biased_water(), POSITIONS)


def test_restraint_energy_is_the_formula():
    x = np.array([[[0.0, 0, 0], [2.0, 0, 0], [2.0, 1.0, 0]]])
    restraint = DistanceRestraint([[0, 1], [2, 1]], [1.5, 1.2], [4.0, 10.0], [1, 1, 1])
    energy, forces = restraint.energy_and_forces(x)
    assert energy[0] == pytest.approx(0.5 * 4 * 0.5**2 + 0.5 * 10 * 0.2**2)
    np.testing.assert_allclose(forces[0], [[2, 0, 0], [-2, -2, 0], [0, 2, 0]], atol=1e-12)


def test_a_restraint_pulls_no_harder_than_it_may():
    """Of a stretched pair U is linear, and as steep as before of one that is too close."""
    x = np.array([[[0.0, 0, 0], [2.0, 0, 0], [2.0, 1.0, 0]]])
    restraint = DistanceRestraint([[0, 1], [2, 1]], [1.5, 1.2], [4.0, 10.0], [1, 1, 1], strongest_pull=1.0)
    energy, forces = restraint.energy_and_forces(x)
    assert energy[0] == pytest.approx(0.5 * 4 * 0.25**2 + 1.0 * 0.25 + 0.5 * 10 * 0.2**2)
    np.testing.assert_allclose(forces[0], [[1, 0, 0], [-1, -2, 0], [0, 2, 0]], atol=1e-12)


def test_a_sum_is_the_sum_of_its_terms_and_counts_its_own_calls():
    total = biased_water()
    parts = [term.energy_and_forces(POSITIONS) for term in total.terms]
    energy, forces = total.energy_and_forces(POSITIONS)
    np.testing.assert_allclose(energy, parts[0][0] + parts[1][0] + parts[2][0], atol=1e-12)
    np.testing.assert_allclose(forces, parts[0][1] + parts[1][1] + parts[2][1], atol=1e-12)
    assert total.calls == 4 and [term.calls for term in total.terms] == [8, 8, 8]


class Fussy(SamplewisePotential):
    """Harmonic; raises, leaves or crashes when the first atom's x says so."""

    def __init__(self, threshold=100.0):
        super().__init__([8, 1, 1])
        self.threshold = threshold

    def _evaluate_one(self, positions, forces):
        x = positions[0, 0]
        if x > 4 * self.threshold:
            os.kill(os.getpid(), signal.SIGSEGV)
        if x > 3 * self.threshold:
            os._exit(3)
        if x > self.threshold:
            raise ValueError(f"beyond {self.threshold:g}")
        return 0.5 * (positions**2).sum(), -positions


def test_a_sum_keeps_every_terms_reason():
    x = POSITIONS.copy()
    x[1, 0, 0], x[3, 0, 0] = 150, 250
    total = SumPotential(Fussy(100), Fussy(200), Harmonic(WATER))
    energy = total.energy(x)
    assert total.failures == {
        1: "Fussy: ValueError: beyond 100",
        3: "Fussy: ValueError: beyond 100; Fussy: ValueError: beyond 200",
    }
    np.testing.assert_array_equal(np.isnan(energy), [False, True, False, True])


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (SumPotential, "no terms"),
        (lambda: SumPotential(Harmonic(WATER), Harmonic(WATER[:2])), r"term 1 \(Harmonic\) has 2 atoms, term 0 3"),
        (lambda: DistanceRestraint([[0, 3]], 1, 1, [1, 1, 1]), "expected: pairs of two different atoms, 0 to 2"),
        (lambda: DistanceRestraint([[1, 1]], 1, 1, [1, 1, 1]), "expected: pairs of two different atoms"),
        (lambda: BiasPotential(lambda x: (x, x), [1]).energy([[[0, 0, 0]]]), r"bias returned shapes \(1, 1, 3\)"),
        (lambda: ParallelPotential(lambda: MuellerBrown()), "cannot be sent to a worker.*\n.*functools.partial"),
        (lambda: ParallelPotential(MuellerBrown, workers=0), "0 given"),
    ],
)
def test_what_cannot_be_built_says_why(build, text):
    with pytest.raises(InputError, match=text):
        build()


def test_a_pool_keeps_the_protocol_and_equals_one_process():
    with ParallelPotential(partial(XtbPotential, [8, 1, 1]), workers=2) as pool:
        check_potential(pool, POSITIONS)
        alone = XtbPotential([8, 1, 1]).energy_and_forces(POSITIONS)
        for here, there in zip(alone, pool.energy_and_forces(POSITIONS), strict=True):
            np.testing.assert_array_equal(here, there)
        workers = [worker.process for worker in pool._pool.members]
        assert len(workers) == 2 and all(process.is_alive() for process in workers)
    assert all(process.exitcode == 0 for process in workers)


def test_a_crashed_worker_costs_one_sample_and_is_replaced():
    x = np.repeat(POSITIONS, 3, axis=0)
    x[2, 0, 0], x[5, 0, 0], x[7, 0, 0] = 350, 450, 150
    with ParallelPotential(Fussy, workers=2) as pool:
        energy, forces = pool.energy_and_forces(x)
        assert pool.failures == {
            2: "worker process died (exit code 3)",
            5: "worker process died (SIGSEGV)",
            7: "ValueError: beyond 100",
        }
        good = np.setdiff1d(np.arange(12), [2, 5, 7])
        np.testing.assert_array_equal(energy[good], 0.5 * (x[good] ** 2).sum((1, 2)))  # order kept
        np.testing.assert_array_equal(forces[good], -x[good])
        assert np.isnan(energy[[2, 5, 7]]).all() and np.isnan(forces[[2, 5, 7]]).all() and pool.calls == 12
        assert np.isfinite(pool.energy(POSITIONS)).all() and pool.failures == {}

        pool._pool.members[0].process.kill()  # dies idle, between two batches
        pool._pool.members[0].process.join()
        energy = pool.energy(POSITIONS)
        assert np.isnan(energy).sum() == 1 and list(pool.failures.values()) == ["worker process died (SIGKILL)"]


def test_an_interrupted_pool_starts_anew(monkeypatch):
    with ParallelPotential(Fussy, workers=1) as pool:

        def interrupt(_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("molgen.pool.wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.energy(POSITIONS)
        assert pool._pool.members == []
        np.testing.assert_array_equal(pool.energy(POSITIONS[::-1]), 0.5 * (POSITIONS[::-1] ** 2).sum((1, 2)))
