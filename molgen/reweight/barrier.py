"""Free-energy barriers along a reaction coordinate, in a form that does not depend on its scale.

With the basins s < s* (reactant) and s > s* (product), the rate of transition-state theory through the surface s* is

    k = <|ds/dt| delta(s - s*)> / (2 P(s < s*)) = sqrt(kT/2 pi) <|D s| delta(s - s*)> / P(s < s*),

|D s|^2 = sum_i |ds/dx_i|^2 / m_i, and the barrier is what Eyring's k = (kT/h) exp(-A/kT) makes of it:

    A(s*) = F(s*) - F_R,   F(s) = -kT ln <l delta(s - s*)>,   F_R = -kT ln P(s < s*),   l = h |D s| / sqrt(2 pi kT):

minus kT ln of the density on the surface, made a bare number by the thermal wavelength l of s, over the partition
function of the basin (Dietschreit, Diestler, Hulm, Ochsenfeld, Gomez-Bombarelli, J. Chem. Phys. 157 (2022) 084113). s*
is where A is largest (variational). Nuclei are classical; recrossing and tunnelling are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from molgen.errors import InputError
from molgen.reweight.estimate import Estimate, bootstrap
from molgen.reweight.importance import cleaned, khat, khat_threshold
from molgen.units import KB, PLANCK

BINS = 50  # in `limits`, by default 0 to 1
WINDOW, DROP = 3, 3.0  # bins on each side of the highest, and kT below it, that the parabola of the top is fitted to


@dataclass(frozen=True)
class Barrier:
    """A barrier between two basins, eV.

    Attributes:
        forward, reverse: above the basins below and above the surface. reaction: F(product) - F(reactant).
        place: s*. samples: with a weight, in the fitted bins around it.
    """

    forward: Estimate
    reverse: Estimate
    reaction: Estimate
    place: float
    samples: int


def find_barrier(
    s: np.ndarray,
    slopes: np.ndarray,
    log_weights: np.ndarray,
    weights: np.ndarray,
    temperature: float,
    *,
    near: float,
    limits: tuple[float, float] = (0.0, 1.0),
    bins: int = BINS,
    groups: np.ndarray | None = None,
    replicas: int = 200,
    seed: int = 0,
) -> Barrier:
    """The highest surface between the basins on both sides of `near`, by a parabola through the bins at the top.

    Errors are those of a bootstrap of everything, the fit and s* included. k-hat is the largest of those of the two
    basins and of the bins at the top; values are inf where bins at the top are empty.

    Args:
        s: (n,) reaction coordinate; may be NaN where the weight is zero.
        slopes: (n,) |D s|, in the unit of s per Angstrom sqrt(amu).
        log_weights: (n,) raw. weights: (n,) normalised, to average with.
        near: s of the saddle. limits: of the bins, in s.
        groups: (n,) labels of samples that depend on each other.

    Raises:
        InputError: no weight on one side of the barrier.
    """
    kt, log_w = KB * temperature, cleaned(log_weights)
    edges = np.linspace(*limits, bins + 1)
    used = (weights > 0) & np.isfinite(s)
    s = np.where(used, s, limits[0] - 1)
    lengths = np.where(used, slopes, 0.0) * PLANCK / np.sqrt(2 * np.pi * kt)
    at = np.where(used, np.searchsorted(edges, s, side="right"), 0)  # 0 and bins + 1: outside
    centres, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for name, side in (("below", used & (s < near)), ("above", used & (s > near))):
        if not side.any():
            raise InputError(f"no sample with a weight {name} s = {near:.2f}", where="barrier", expected="both basins")

    def profile(w: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return -np.log(np.bincount(at, w * lengths, bins + 2)[1:-1] / width)

    surface = profile(weights)
    square = np.bincount(at, (weights * lengths) ** 2, bins + 2)[1:-1]
    precision = np.exp(-2 * np.where(np.isfinite(surface), surface, 0.0)) * width**2 / np.maximum(square, 1e-300)
    middle = int(np.clip(np.searchsorted(edges, near) - 1, 1, bins - 2))
    left, right = int(np.argmin(surface[:middle])), middle + 1 + int(np.argmin(surface[middle + 1 :]))

    first = left + int(np.argmax(_finite(surface[left : right + 1])))
    low = surface < surface[first] - DROP
    reach = [
        next((k for k in range(1, WINDOW) if low[np.clip(first + side * (k + 1), 0, bins - 1)]), WINDOW)
        for side in (-1, 1)
    ]

    def top(free: np.ndarray) -> tuple[float, float]:
        start = max(left, first - WINDOW)
        highest = start + int(np.argmax(_finite(free[start : min(right, first + WINDOW) + 1])))
        chosen = np.arange(max(left, highest - reach[0]), min(right, highest + reach[1]) + 1)
        if not np.isfinite(free[chosen]).all():
            return float(centres[highest]), np.inf
        if len(chosen) < 3:
            return float(centres[highest]), float(free[highest])
        c, b, a = np.polyfit(centres[chosen] - centres[highest], free[chosen], 2, w=np.sqrt(precision[chosen]))
        step = -b / (2 * c) if c < 0 else np.inf
        if abs(step) > (chosen[-1] - chosen[0]) / 2 * width:
            return float(centres[highest]), float(free[highest])
        # at the top of a parabola the mean density of a bin is larger than that of its middle
        return float(centres[highest] + step), float(a + b * step / 2 - c * width**2 / 12)

    def figures(w: np.ndarray) -> np.ndarray:
        place, height = top(profile(w))
        with np.errstate(divide="ignore", invalid="ignore"):
            basins = -np.log([w[used & (s < place)].sum(), w[used & (s >= place)].sum()])
        return np.array([kt * (height - basins[0]), kt * (height - basins[1]), kt * (basins[1] - basins[0]), place])

    forward, reverse, reaction, place = figures(weights)
    errors = bootstrap(figures, weights, groups, replicas=replicas, seed=seed)
    around = used & (at > first - reach[0]) & (at <= first + reach[1] + 1)
    level = np.concatenate([[0.0], _finite(surface), [0.0]])[at]  # each bin counts by itself
    shapes, good = [], bool(np.isfinite(forward))
    for part in (log_w[around] + level[around], log_w[used & (s < place)], log_w[used & (s >= place)]):
        shapes.append(khat(part) if len(part) else np.inf)
        good &= bool(shapes[-1] <= khat_threshold(len(part)))
    estimates = [
        Estimate(float(value), float(error), float(max(shapes)), good, "eV")
        for value, error in zip((forward, reverse, reaction), errors, strict=False)
    ]
    return Barrier(*estimates, place=float(place), samples=int(around.sum()))


def _finite(free: np.ndarray) -> np.ndarray:
    """Free energies with empty bins below all others."""
    return np.where(np.isfinite(free), free, -np.inf)
