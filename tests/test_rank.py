"""Confidence: coefficients recovered from data they made, calibration error counted by hand, no ranking by energy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from molgen.tsgen.rank import confidence, fit_calibration, guess_features, refined_features, reliability
from molgen.workflows.ts_result import VERDICTS, Candidate, ranked

TRUE = {"intercept": -0.7, "weights": {"log_deviation": -1.5, "log_moved": 0.4, "overlap": 2.0}}


def synthetic(count: int, seed: int) -> tuple[list[dict[str, float]], np.ndarray]:
    """Features on the scales they have, and outcomes drawn with the true probabilities."""
    rng = np.random.default_rng(seed)
    columns = {
        "log_deviation": rng.normal(-2.0, 0.6, count),
        "log_moved": rng.normal(-1.5, 0.9, count),
        "overlap": rng.uniform(0, 1, count),
    }
    rows = [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]
    p = np.array([confidence(row, TRUE) for row in rows])
    return rows, rng.random(count) < p


def standard_errors(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of the maximum-likelihood coefficients, from the Fisher information at the truth."""
    names = sorted(rows[0])
    x = np.array([[1.0, *(row[name] for name in names)] for row in rows])
    p = np.array([confidence(row, TRUE) for row in rows])
    covariance = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    return dict(zip(["intercept", *names], np.sqrt(np.diag(covariance)), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_logistic_coefficients_are_recovered_within_three_sigma(seed: int) -> None:
    rows, intended = synthetic(6000, seed)
    fitted, sigma = fit_calibration(rows, intended.tolist()), standard_errors(rows)
    assert abs(fitted["intercept"] - TRUE["intercept"]) < 3 * sigma["intercept"]
    for name, weight in TRUE["weights"].items():
        assert abs(fitted["weights"][name] - weight) < 3 * sigma[name], name
        assert sigma[name] < 0.3  # else the line above says nothing


def test_fit_on_a_constant_feature_and_on_one_outcome_stays_finite() -> None:
    rows = [{"a": float(k), "b": 1.0} for k in range(10)]
    fitted = fit_calibration(rows, [k > 4 for k in range(10)])
    assert all(math.isfinite(value) for value in (fitted["intercept"], *fitted["weights"].values()))
    sure = confidence(rows[0], fit_calibration(rows, [True] * 10))
    assert sure is not None and 0.9 < sure <= 1


def test_fitted_probabilities_are_calibrated_on_new_data() -> None:
    rows, intended = synthetic(6000, 10)
    calibration = fit_calibration(rows, intended.tolist())
    fresh, outcome = synthetic(6000, 11)
    error, _ = reliability([confidence(row, calibration) or 0.0 for row in fresh], outcome.tolist())
    assert error < 0.03


def test_reliability_counted_by_hand() -> None:
    """Two bins of four: predicted 0.2 with one of four true, predicted 0.9 with two of four: (0.05 + 0.4) / 2."""
    error, table = reliability([0.9, 0.2] * 4, [True, False, True, False, False, True, False, False], bins=2)
    assert [row["n"] for row in table] == [4, 4]
    assert [row["predicted"] for row in table] == pytest.approx([0.2, 0.9])
    assert [row["intended"] for row in table] == pytest.approx([0.25, 0.5])
    assert error == pytest.approx((0.05 + 0.4) / 2)


def test_reliability_of_a_perfect_and_of_a_perverse_forecast() -> None:
    outcome = [True] * 5 + [False] * 5
    assert reliability([float(o) for o in outcome], outcome, bins=2)[0] == 0
    assert reliability([1 - float(o) for o in outcome], outcome, bins=2)[0] == 1


def test_reliability_weighs_bins_by_their_size() -> None:
    """Seven predictions in two bins of four and three."""
    predicted, outcome = [0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8], [False] * 4 + [True] * 3
    error, table = reliability(predicted, outcome, bins=2)
    assert [row["n"] for row in table] == [4, 3]
    assert error == pytest.approx((4 * 0.1 + 3 * 0.2) / 7)


def test_more_bins_than_predictions() -> None:
    error, table = reliability([0.3, 0.6], [False, True], bins=5)
    assert [row["n"] for row in table] == [1, 1]
    assert error == pytest.approx((0.3 + 0.4) / 2)


@pytest.mark.parametrize("calibration", [None, {}])
def test_no_confidence_without_calibration(calibration: dict | None) -> None:
    assert confidence({"overlap": 0.5}, calibration) is None


def test_confidence_is_the_logistic_function() -> None:
    calibration = {"intercept": 1.0, "weights": {"a": 2.0, "b": -3.0}}
    assert confidence({"a": 0.5, "b": 0.1, "unused": 9.0}, calibration) == pytest.approx(1 / (1 + math.exp(-1.7)))
    assert confidence({"a": 1e6, "b": 0.0}, calibration) == pytest.approx(1.0)
    assert confidence({"a": -1e6, "b": 0.0}, calibration) == pytest.approx(0.0, abs=1e-12)


def test_features() -> None:
    features = guess_features(np.array([0.3, 0.4]), 0.2)
    assert features["log_deviation"] == pytest.approx(0.5 * math.log(0.125))
    assert features["log_worst_atom"] == pytest.approx(math.log(0.4))
    assert features["log_displacement"] == pytest.approx(math.log(0.2))
    assert refined_features(0.1, 0.7, 20) == pytest.approx(
        {"log_moved": math.log(0.1), "overlap": 0.7, "log_calls": math.log(20)}
    )
    zeros = [*guess_features(np.zeros(3), 0.0).values(), *refined_features(0.0, 0.0, 0).values()]
    assert np.isfinite(zeros).all()


def candidate(verdict: str, sample: int, confidence: float | None = None, energy: float | None = None) -> Candidate:
    return Candidate(Atoms("H"), "TS-GEN", sample, verdict=verdict, confidence=confidence, energy=energy)


def test_ranked_by_verdict_first() -> None:
    """Whatever confidence and energy say."""
    given = [candidate(v, k, confidence=k / 10, energy=-float(k)) for k, v in enumerate(VERDICTS)]
    for order in itertools.permutations(given):
        assert [c.verdict for c in ranked(list(order))] == list(VERDICTS)


def test_ranked_by_confidence_within_a_verdict() -> None:
    """One of unknown confidence counts as a coin toss."""
    given = [candidate("intended", k, confidence=c) for k, c in enumerate([0.2, 0.9, None, 0.6])]
    assert [c.confidence for c in ranked(given)] == [0.9, 0.6, None, 0.2]


@pytest.mark.parametrize("verdict", VERDICTS[1:])
def test_what_is_not_proven_is_never_ranked_by_energy(verdict: str) -> None:
    given = [candidate(verdict, k, confidence=0.5, energy=e) for k, e in enumerate([-1.0, -9.0, -5.0, None])]
    for order in itertools.permutations(given):
        assert [c.sample for c in ranked(list(order))] == [0, 1, 2, 3]


def test_a_step_comes_before_a_saddle_with_one_end_on_both_sides() -> None:
    given = [candidate("half", 0, 0.9), replace(candidate("half", 1, 0.1), known="reactant")]
    assert [c.sample for c in ranked(given)] == [1, 0]


def test_the_lowest_of_the_intended_saddles_is_the_best() -> None:
    """A chair before a boat, however sure the model was; mirror images by confidence."""
    given = [
        candidate("intended", 0, 0.4, energy=-5.0), candidate("intended", 1, 0.5, energy=-5.0004),
        candidate("intended", 2, 0.9, energy=-4.7),
    ]  # fmt: skip
    for order in itertools.permutations(given):
        assert [c.sample for c in ranked(list(order))] == [1, 0, 2]
