"""Smooth free energies along one variable, for tops and minima: those of noisy bins are biased.

The highest of several noisy bins lies above the top, the lowest below the minimum. Here ln of the density is a cubic
spline, fitted by the estimating equations of a gamma regression with log link (McCullagh and Nelder, Generalized linear
models, ch. 8) on fine bins,

    sum_b v_b (p_b / exp(eta(x_b)) - 1) B_k(x_b) = 0   for every spline B_k,

which hold on average for the exact density: each bin counts by its relative error, so 20 kT of height are no matter,
and an empty bin is as good as any other. v_b is the effective number of samples around the bin, smoothed over the
width of a spline so that it does not follow the noise. A well narrower than the distance between knots makes the spline
ring far beyond it; `SmoothDensity.refined` sets knots closer there, and only there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline
from scipy.ndimage import uniform_filter1d

from molgen.errors import InputError
from molgen.reweight.importance import LEAST_DRAWS

FINE = 8  # bins, and points of the curve, between two knots
STEPS, CLOSE = 60, 1e-6  # of Newton's method; change of ln p at which it ends
LARGEST = 600.0  # -ln p, beyond which exp would overflow
HALVINGS = 6  # of an interval at most
STIFF = 3.0  # standard errors of a score by which it is not zero
RINGING = 2.0  # of ln p above the fullest fine bin
RIDGE = 1e-4  # of the mean diagonal, on third differences: where nothing fell the curve goes on as a parabola


@dataclass(frozen=True, eq=False)
class SmoothDensity:
    """Fits ln of a density to weighted samples, again and again with other weights.

    Attributes:
        centres: (B,) of the fine bins. step: (B,) their widths.
        start: (K,) coefficients of the spline for the weights it was made with.
    """

    centres: np.ndarray
    step: np.ndarray
    start: np.ndarray
    _places: np.ndarray
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
        if not ((weights > 0) & (values >= low) & (values <= high)).any():
            raise InputError(
                f"no sample with a weight between {low:g} and {high:g}", where="smooth free energy",
                expected="samples", remedy="give other limits",
            )  # fmt: skip
        return cls._between(values, weights, np.linspace(low, high, knots + 1))

    @classmethod
    def _between(cls, values: np.ndarray, weights: np.ndarray, places: np.ndarray) -> SmoothDensity:
        """With knots at `places`, rising."""
        knots = len(places) - 1
        edges = _divided(places, FINE)
        count, step = len(edges) - 1, np.diff(edges)
        used = (weights > 0) & (values >= places[0]) & (values <= places[-1])
        index = np.where(used, np.clip(np.searchsorted(edges, values, side="right") - 1, 0, count - 1), count)
        centres = (edges[1:] + edges[:-1]) / 2
        padded = _padded(places)
        basis = BSpline.design_matrix(centres, padded, 3).toarray()
        first = np.bincount(index, weights, count + 1)[:-1]
        second = np.bincount(index, weights**2, count + 1)[:-1]
        own = np.divide(first**2, second, out=np.zeros(count), where=second > 0)
        trust = uniform_filter1d(uniform_filter1d(own, 2 * FINE, mode="nearest"), FINE, mode="nearest")
        middles, widths = (places[1:] + places[:-1]) / 2, np.diff(places)
        bend = BSpline(padded, np.eye(knots + 3), 3).derivative(3)(middles) * widths[:, None] ** 3
        ridge = RIDGE * np.einsum("bk,b->k", basis**2, trust).mean() * bend.T @ bend
        made = cls(centres, step, np.zeros(knots + 3), places, weights, index, basis, trust, ridge)
        # a first guess from the bins between knots, filled in and made smooth
        density, known = made._density(weights)
        rough = np.repeat(density.reshape(knots, FINE).mean(1), FINE)
        level = np.log(np.interp(centres, centres[known], rough[known]))
        guess = np.linalg.lstsq(basis, uniform_filter1d(level, FINE, mode="nearest"), rcond=None)[0]
        object.__setattr__(made, "start", made._fitted(weights, guess))
        return made

    def refined(self, values: np.ndarray, groups: np.ndarray | None = None) -> SmoothDensity:
        """With intervals halved, again and again, where the samples say that the spline is too stiff for a well.

        They say so by the score of a spline on halved intervals, which is zero on average if the density is a spline on
        these, beyond `STIFF` of its standard errors (Rao's score test).

        Args:
            values: (n,) of the samples it was made with. groups: (n,) labels of those that depend on each other.
        """
        made = self
        for _ in range(HALVINGS):
            finer = made.halved(values, made._stiff(groups))
            if finer is None:
                break
            made = finer
        return made

    def halved(self, values: np.ndarray, where: np.ndarray | None = None) -> SmoothDensity | None:
        """With intervals (those `where`) halved whose halves hold `LEAST_DRAWS` samples; None if there is none."""
        halves = _divided(self._places, 2)
        split = np.histogram(values[self._weights > 0], halves)[0].reshape(-1, 2).min(1) >= LEAST_DRAWS
        split = split if where is None else split & where
        if not split.any():
            return None
        return SmoothDensity._between(values, self._weights, np.union1d(self._places, halves[1::2][split]))

    def _stiff(self, groups: np.ndarray | None) -> np.ndarray:
        """(intervals,) whether ln p bends more there than the spline can."""
        halves = _padded(_divided(self._places, 2))
        finer = BSpline.design_matrix(self.centres, halves, 3).toarray()
        inverse = np.exp(-np.clip(self._basis @ self.start, -LARGEST, None))
        normal = (self._basis.T * self._trust) @ self._basis + self._ridge
        # without what the fit would take up, so that the errors of its coefficients are counted
        finer -= self._basis @ np.linalg.solve(normal, (self._basis.T * self._trust) @ finer)
        score = (self._trust * (self._density(self._weights)[0] * inverse - 1)) @ finer
        inside = self._bin < len(self.centres)
        at = self._bin[inside]
        terms = self._weights[inside] * (self._trust * inverse / self.step)[at]
        if groups is None:
            seen = np.bincount(at, terms**2, len(finer)) @ finer**2
        else:
            label = np.unique(groups[inside], return_inverse=True)[1]
            seen = np.array([(np.bincount(label, terms * column[at]) ** 2).sum() for column in finer.T])
        least = self._trust @ finer**2  # of a density as fitted: where hardly a sample fell, they do not tell the error
        off = score**2 > STIFF**2 * np.maximum(seen, least)
        middles = (halves[:-4] + halves[4:])[off] / 2
        return np.histogram(middles, self._places)[0] > 0

    def rings(
        self, weights: np.ndarray | None = None, level: np.ndarray | None = None, where: slice = slice(None)
    ) -> bool:
        """Whether the curve overshoots the samples, as beside the step of a density without tails.

        Args:
            weights: (n,), None: those it was made with. level: (B,) the curve of these, if it is known already.
            where: fine bins to look at.
        """
        level = self.log_density(weights) if level is None else level
        fullest = self._density(self._weights if weights is None else weights)[0][where].max()
        return bool(fullest > 0 and level[where].max() > np.log(fullest) + RINGING)

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
        if not trust.any():  # a replica without any sample here: nothing to fit
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


def _divided(places: np.ndarray, parts: int) -> np.ndarray:
    """Rising places with every interval in equal parts."""
    fractions = np.arange(parts) / parts
    return np.append((places[:-1, None] + np.diff(places)[:, None] * fractions).reshape(-1), places[-1])


def _padded(places: np.ndarray) -> np.ndarray:
    """Knots of cubic splines on `places`, three more at both ends."""
    more = np.arange(1, 4)
    first, last = places[1] - places[0], places[-1] - places[-2]
    return np.concatenate([places[0] - first * more[::-1], places, places[-1] + last * more])
