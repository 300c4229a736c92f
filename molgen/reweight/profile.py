"""Smooth free energies along one variable, for tops and minima: those of noisy bins are biased.

The highest of several noisy bins lies above the top, the lowest below the minimum. Here ln of the density is a cubic
spline, fitted by the estimating equations of a gamma regression with log link (McCullagh and Nelder, Generalized linear
models, ch. 8) on fine bins,

    sum_b v_b (p_b / exp(eta(x_b)) - 1) B_k(x_b) = 0   for every spline B_k,

which hold on average for the exact density: each bin counts by its relative error, so 20 kT of height are no matter,
and an empty bin is as good as any other. v_b is the effective number of samples around the bin, smoothed over the
width of a spline so that it does not follow the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline
from scipy.ndimage import uniform_filter1d

from molgen.errors import InputError

FINE = 8  # bins, and points of the curve, between two knots
STEPS, CLOSE = 60, 1e-6  # of Newton's method; change of ln p at which it ends
LARGEST = 600.0  # -ln p, beyond which exp would overflow
RIDGE = 1e-4  # of the mean diagonal, on third differences: where nothing fell the curve goes on as a parabola


@dataclass(frozen=True, eq=False)
class SmoothDensity:
    """Fits ln of a density to weighted samples, again and again with other weights.

    Attributes:
        centres: (B,) of the fine bins. step: their width.
        start: (K,) coefficients of the spline for the weights it was made with.
    """

    centres: np.ndarray
    step: float
    start: np.ndarray
    _weights: np.ndarray
    _bin: np.ndarray
    _basis: np.ndarray
    _trust: np.ndarray
    _ridge: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray, limits: tuple[float, float], knots: int) -> SmoothDensity:
        """Prepare the fit of samples (n,) with weights (n,), on `limits` with `knots` intervals between knots.

        Raises:
            InputError: fewer than 4 intervals, limits that do not increase, or no weight within them.
        """
        low, high = limits
        if knots < 4 or not low < high:
            raise InputError(
                f"{knots} intervals between {low:g} and {high:g}", where="smooth free energy",
                expected="4 or more, low < high",
            )  # fmt: skip
        count, step = knots * FINE, (high - low) / knots
        edges = np.linspace(low, high, count + 1)
        used = (weights > 0) & (values >= low) & (values <= high)
        if not used.any():
            raise InputError(
                f"no sample with a weight between {low:g} and {high:g}", where="smooth free energy",
                expected="samples", remedy="give other limits",
            )  # fmt: skip
        index = np.where(used, np.clip(np.searchsorted(edges, values, side="right") - 1, 0, count - 1), count)
        centres = (edges[1:] + edges[:-1]) / 2
        places = low + step * np.arange(-3, knots + 4)
        basis = BSpline.design_matrix(centres, places, 3).toarray()
        first = np.bincount(index, weights, count + 1)[:-1]
        second = np.bincount(index, weights**2, count + 1)[:-1]
        own = np.divide(first**2, second, out=np.zeros(count), where=second > 0)
        trust = uniform_filter1d(uniform_filter1d(own, 2 * FINE, mode="nearest"), FINE, mode="nearest")
        bend = np.diff(np.eye(knots + 3), 3, axis=0)
        ridge = RIDGE * np.einsum("bk,b->k", basis**2, trust).mean() * bend.T @ bend
        made = cls(centres, step / FINE, np.zeros(knots + 3), weights, index, basis, trust, ridge)
        # a first guess from the bins between knots, filled in and made smooth
        density, known = made._density(weights)
        rough = np.repeat(density.reshape(knots, FINE).mean(1), FINE)
        level = np.log(np.interp(centres, centres[known], rough[known]))
        guess = np.linalg.lstsq(basis, uniform_filter1d(level, FINE, mode="nearest"), rcond=None)[0]
        object.__setattr__(made, "start", made._fitted(weights, guess))
        return made

    def log_density(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(B,) ln p at `centres` for weights (n,), None: those it was made with.

        -inf between two knots where no weight fell.
        """
        coefficients = self.start if weights is None else self._fitted(weights, self.start)
        known = self._density(self._weights if weights is None else weights)[1]
        return np.where(known, self._basis @ coefficients, -np.inf)

    def _density(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the fine bins (B,), and whether any weight fell between the two knots around."""
        density = np.bincount(self._bin, weights, len(self.centres) + 1)[:-1] / self.step
        return density, np.repeat(density.reshape(-1, FINE).any(1), FINE)

    def _fitted(self, weights: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """Coefficients by Newton's method on the convex sum of v (p exp(-eta) + eta), steps cut where it overshoots."""
        density, known = self._density(weights)
        trust = np.where(known, self._trust, 0.0)  # elsewhere ln p has no lower bound
        if not trust.any():  # a redraw without any sample here: nothing to fit
            return guess

        def loss(c: np.ndarray) -> tuple[float, np.ndarray]:
            eta = self._basis @ c
            ratio = density * np.exp(-np.clip(eta, -LARGEST, None))
            return float(trust @ (ratio + eta) + 0.5 * c @ self._ridge @ c), ratio

        c, (value, ratio) = guess, loss(guess)
        for _ in range(STEPS):
            slope = self._basis.T @ (trust * (1 - ratio)) + self._ridge @ c
            # Newton's matrix with a little of Fisher's (ratio 1), which holds where a spline has no sample
            curve = (self._basis.T * (trust * np.clip(ratio, 0.02, 1e3))) @ self._basis + self._ridge
            step = np.linalg.solve(curve, -slope)
            share = 1.0
            while share > 1e-4:
                new, new_ratio = loss(c + share * step)
                if new <= value + 1e-12 * abs(value):
                    break
                share /= 2
            else:
                break
            c, value, ratio = c + share * step, new, new_ratio
            if np.abs(share * step).max() < CLOSE:
                break
        return c
