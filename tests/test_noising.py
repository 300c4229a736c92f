"""The noising process against Gaussian targets, for which score, kernels and ln Z are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from molgen.cvdiffusion.noising import Schedule, averaged, fit_variances, simulate
from molgen.cvdiffusion.space import CartesianSpace
from molgen.reweight.importance import diagnose

ATOMS = 4
SPACE = CartesianSpace(ATOMS)
SCHEDULE = Schedule(start=36.0, end=0.02, steps=24, spread=0.02)


def springs(seed: int = 0) -> np.ndarray:
    """(3N, 3N) precision of a target that does not see translations, stiff and soft directions mixed."""
    rng = np.random.default_rng(seed)
    matrix = np.zeros((3 * ATOMS, 3 * ATOMS))
    for i in range(ATOMS):
        for j in range(i):
            u = np.zeros((ATOMS, 3))
            u[i] = rng.standard_normal(3)
            u[j] = -u[i]
            matrix += np.exp(rng.uniform(2, 6)) * np.outer(u.ravel(), u.ravel())
            matrix += 20 * np.kron(np.outer(*2 * [np.eye(ATOMS)[i] - np.eye(ATOMS)[j]]), np.eye(3))
    return matrix


PRECISION = springs()


def exact(precision: np.ndarray):
    """The score of the noised Gaussian, -(Sigma + r)^-1 x."""
    values, vectors = (torch.from_numpy(a) for a in np.linalg.eigh(precision))
    values = values.clamp(min=0)

    def score(r: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        flat = x.double().flatten(1) @ vectors
        return SPACE.centred((-flat * values / (1 + r[:1].double() * values) @ vectors.T).view(x.shape)).float()

    return score


def log_z(precision: np.ndarray) -> float:
    return 0.5 * (SPACE.dimensions * np.log(2 * np.pi) - np.log(np.linalg.eigvalsh(precision)[3:]).sum())


def log_weights(precision: np.ndarray, schedule: Schedule, variances: np.ndarray, count: int) -> np.ndarray:
    found = simulate(exact(precision), schedule, variances, SPACE, count, 0)
    x = found.points.reshape(count, -1)
    return found.log_path - 0.5 * np.einsum("bi,ij,bj->b", x, precision, x)


def test_the_grid_goes_from_the_source_to_the_sample():
    r = SCHEDULE.residual
    assert r[0] == pytest.approx(SCHEDULE.start) and r[-2] == pytest.approx(SCHEDULE.end**2) and r[-1] == 0
    assert (np.diff(r) < 0).all() and SCHEDULE.removed.sum() == pytest.approx(SCHEDULE.start)


def test_for_an_isotropic_gaussian_all_weights_are_equal():
    """Score and kernels are exact, at any number of steps, and so is ln Z."""
    precision = np.kron(np.eye(ATOMS) - 1 / ATOMS, np.eye(3)) / 0.1**2
    schedule = Schedule(start=36.0, end=0.02, steps=8, spread=0.01)
    log_w = log_weights(precision, schedule, schedule.variances(0.1), 200)
    assert log_w.std() < 5e-3  # of single precision
    assert log_w.mean() == pytest.approx(log_z(precision), abs=5e-3)


def gaussian_samples(count: int) -> np.ndarray:
    values, vectors = np.linalg.eigh(PRECISION)
    normal = np.random.default_rng(1).standard_normal((count, SPACE.dimensions))
    return (normal / np.sqrt(values[3:]) @ vectors[:, 3:].T).reshape(count, ATOMS, 3)


@pytest.mark.parametrize("steps", [48, 192])
def test_stiff_and_soft_directions_cost_weight_but_ln_z_holds(steps: int):
    schedule = Schedule(SCHEDULE.start, SCHEDULE.end, steps, SCHEDULE.spread)
    variances = fit_variances(exact(PRECISION), schedule, SPACE, gaussian_samples(4000), np.full(4000, 1 / 4000), 0)
    found = diagnose(log_weights(PRECISION, schedule, variances, 4000))
    assert found.khat < 0.7 and found.log_z == pytest.approx(log_z(PRECISION), abs=4 * found.log_z_error)
    assert (0.7 if steps > 100 else 0.2) < found.ess < 0.999


def test_fitted_variances_are_the_exact_ones():
    precision = np.kron(np.eye(ATOMS) - 1 / ATOMS, np.eye(3)) / 0.1**2
    x = np.random.default_rng(2).standard_normal((4000, ATOMS, 3)) * 0.1
    x -= x.mean(1, keepdims=True)
    fitted = fit_variances(exact(precision), SCHEDULE, SPACE, x, np.full(4000, 1 / 4000), 0)
    assert fitted / SCHEDULE.variances(0.1) == pytest.approx(np.ones(24), abs=0.05)


def test_a_trajectory_depends_on_its_own_number_alone():
    few, many = (simulate(exact(PRECISION), SCHEDULE, SCHEDULE.variances(0.1), SPACE, n, 3, 5) for n in (3, 7))
    assert few.points == pytest.approx(many.points[:3], abs=1e-6)


def test_more_paths_to_each_end_leave_ln_z_and_raise_the_effective_sample_size():
    """Few steps and kernels that fit badly: the path decides most of the weight."""
    score, x = exact(PRECISION), gaussian_samples(2000)
    variances = fit_variances(score, SCHEDULE, SPACE, x, np.full(len(x), 1 / len(x)), 0)
    one = simulate(score, SCHEDULE, variances, SPACE, 4000, 0)
    ends = one.points.reshape(4000, -1)
    energy = 0.5 * np.einsum("bi,ij,bj->b", ends, PRECISION, ends)
    found = {k: averaged(score, SCHEDULE, variances, SPACE, one, k, 0, 9) for k in (1, 2, 6)}
    assert found[1].log_path == pytest.approx(one.log_path, abs=1e-12)
    weights = {k: diagnose(paths.log_path - energy) for k, paths in found.items()}
    for k, w in weights.items():
        assert np.array_equal(found[k].points, one.points)
        assert w.log_z == pytest.approx(log_z(PRECISION), abs=4 * w.log_z_error)
    assert weights[1].ess + 0.03 < weights[2].ess < weights[6].ess - 0.03


def test_for_an_isotropic_gaussian_every_path_says_the_same():
    precision = np.kron(np.eye(ATOMS) - 1 / ATOMS, np.eye(3)) / 0.1**2
    schedule = Schedule(start=36.0, end=0.02, steps=8, spread=0.01)
    score, variances = exact(precision), schedule.variances(0.1)
    one = simulate(score, schedule, variances, SPACE, 50, 0)
    assert averaged(score, schedule, variances, SPACE, one, 3, 1).log_path == pytest.approx(one.log_path, abs=1e-2)


def test_paths_of_an_end_depend_on_its_own_number_alone():
    score, variances = exact(PRECISION), SCHEDULE.variances(0.1)
    few, many = (averaged(score, SCHEDULE, variances, SPACE, simulate(score, SCHEDULE, variances, SPACE, n, 3), 3, 4)
                 for n in (3, 7))  # fmt: skip
    assert few.log_path == pytest.approx(many.log_path[:3], abs=1e-4)
