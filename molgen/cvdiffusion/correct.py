"""What a grown bias still lacks, from samples with path weights.

Hills follow where the sampler goes, which lags behind what it learns: a bias that has just stopped growing can be 2 kT
too high in one basin. The path weights know the biased density p_V, so V can be moved to what well-tempered hills would
converge to, -(1 - 1/gamma) F with F = -kT ln p_V - V:

    dV = (1 - 1/gamma) kT ln p_V - V/gamma + constant.

p_V is a kernel estimate on a lattice one hill width apart; dV is a sum of hills of either sign on that lattice, so the
bias stays a sum of hills.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from molgen.cvdiffusion.bias import WellTemperedBias

BLUR = 1.5  # hill widths: of the kernels
LEAST, HALF = 2.0, 5.0  # effective samples in a kernel: with fewer V stays; at which half of dV is believed
MOST = 4.0  # kT, of a single correction


def correction(bias: WellTemperedBias, cvs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (M, D) and heights (M,) in eV of the hills that bring V nearer to where it should rest.

    Args:
        cvs: (n, D) of samples. weights: (n,) for the target under the present bias, normalised.
    """
    dims = len(bias.axes)
    edges, modes = [], []
    for axis, width in zip(bias.axes, bias.widths, strict=True):
        edges.append(np.linspace(axis.low, axis.high, max(2, round((axis.high - axis.low) / width)) + 1))
        modes.append("wrap" if axis.period is not None else "reflect")
    places = np.stack([axis.wrapped(cvs[:, d]) for d, axis in enumerate(bias.axes)], 1)
    share, squares = (np.histogramdd(places, edges, weights=weights**power)[0] for power in (1, 2))
    density, variance = share, squares
    for axis, mode in enumerate(modes):
        density = gaussian_filter1d(density, BLUR, axis, mode=mode)
        # the square of a Gaussian kernel is a narrower one over 2 sqrt(pi) sigma
        variance = gaussian_filter1d(variance, BLUR / 2**0.5, axis, mode=mode) / (2 * np.pi**0.5 * BLUR)
    effective = np.divide(density**2, variance, out=np.zeros_like(density), where=variance > 1e-200)
    known = effective > LEAST
    if not known.any():
        return np.zeros((0, dims)), np.zeros(0)
    centres = np.stack(np.meshgrid(*[(e[1:] + e[:-1]) / 2 for e in edges], indexing="ij"), -1)[known]
    p, there = density[known], bias.evaluate(centres)[0] / bias.kt
    wanted = (1 - 1 / bias.gamma) * np.log(p) - there / bias.gamma
    wanted = wanted - p @ wanted / p.sum()  # the constant: no change on average, so none at the rim
    wanted = np.clip(wanted * effective[known] / (effective[known] + HALF), -MOST, MOST)
    # Gaussians of one width, one width apart, add up to (2 pi)^(D/2)
    steps = np.array([e[1] - e[0] for e in edges])
    return centres, bias.kt * wanted * np.prod(steps / bias.widths) / (2 * np.pi) ** (dims / 2)
