"""Confidence: the calibrated probability that a guess refines to the intended saddle.

A logistic model on what is known before the expensive verification. `benchmarks/ts.py` fits its coefficients on
validation reactions and judges them by a reliability table on test reactions; they live in the checkpoint's
`config.json`. Energies are not among the features: a low one rewards guesses that slid off the ridge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Features = Mapping[str, float]
_FLOOR = 1e-3


def guess_features(deviation: np.ndarray, displacement: float) -> dict[str, float]:
    """What a guess says of itself.

    Args:
        deviation: (N,) predicted error of each atom, Angstrom.
        displacement: RMSD between the guess and the sqrt-distance guess, Angstrom.
    """
    return {
        "log_deviation": math.log(max(float(np.sqrt(np.mean(np.square(deviation)))), _FLOOR)),
        "log_worst_atom": math.log(max(float(np.max(deviation)), _FLOOR)),
        "log_displacement": math.log(max(displacement, _FLOOR)),
    }


def refined_features(moved: float, overlap: float, gradient_calls: int) -> dict[str, float]:
    """What the refinement adds.

    Args:
        moved: RMSD between guess and saddle, Angstrom.
        overlap: |cosine| between the mode climbed and the motion from reactant to product, 0 to 1.
        gradient_calls: spent on the refinement.
    """
    return {
        "log_moved": math.log(max(moved, _FLOOR)),
        "overlap": overlap,
        "log_calls": math.log(max(gradient_calls, 1)),
    }


def confidence(features: Features, calibration: Mapping | None) -> float | None:
    """P(intended) under a calibration {"intercept": ..., "weights": {feature: ...}}; None without one."""
    if not calibration:
        return None
    z = calibration["intercept"] + sum(w * features[name] for name, w in calibration["weights"].items())
    return 1 / (1 + math.exp(-max(min(z, 30.0), -30.0)))


def fit_calibration(rows: Sequence[Features], intended: Sequence[bool], penalty: float = 1.0) -> dict:
    """Logistic regression with an L2 penalty on the standardised features (Platt scaling of several scores)."""
    from scipy.optimize import minimize

    names = sorted(rows[0])
    x = np.array([[row[name] for name in names] for row in rows])
    y = np.asarray(intended, dtype=float)
    mean, scale = x.mean(0), x.std(0) + 1e-9
    z = (x - mean) / scale

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        logit = beta[0] + z @ beta[1:]
        residual = 1 / (1 + np.exp(-logit)) - y
        value = np.logaddexp(0, logit).sum() - y @ logit + 0.5 * penalty * beta[1:] @ beta[1:]
        return float(value), np.concatenate([[residual.sum()], z.T @ residual + penalty * beta[1:]])

    beta = minimize(loss, np.zeros(len(names) + 1), jac=True, method="L-BFGS-B").x
    weights = beta[1:] / scale
    return {"intercept": float(beta[0] - weights @ mean), "weights": dict(zip(names, map(float, weights), strict=True))}


def reliability(predicted: Sequence[float], intended: Sequence[bool], bins: int = 5) -> tuple[float, list[dict]]:
    """Expected calibration error and the reliability table, over bins of equal count (Naeini 2015; Guo 2017)."""
    p, y = np.asarray(predicted, dtype=float), np.asarray(intended, dtype=float)
    table = [
        {"n": len(part), "predicted": float(p[part].mean()), "intended": float(y[part].mean())}
        for part in np.array_split(np.argsort(p, kind="stable"), bins)
        if len(part)
    ]
    error = sum(row["n"] * abs(row["predicted"] - row["intended"]) for row in table) / len(p)
    return float(error), table
