"""What is sampled: exp(-(E + V + walls)/kT), with all that training and weights need of a batch of geometries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self

import numpy as np
import torch

from molgen.cvdiffusion.bias import WellTemperedBias
from molgen.cvdiffusion.space import Space
from molgen.cvdiffusion.walls import Wall, wall_energy
from molgen.geometry.bonds import distance_matrix, radius_sums
from molgen.geometry.chirality import signed_volumes
from molgen.potentials.base import Potential
from molgen.units import KB
from molgen.variables import CV, values_and_gradients

CLASH = 0.55  # of the sum of covalent radii: nearer than that, tight-binding energies are no longer physics
CLIP = 250.0  # largest force on an atom that training sees, kT/Angstrom


@dataclass(frozen=True, eq=False)
class Batch:
    """n geometries and all that is known of them; the bias is left out, for it changes.

    Attributes:
        points: (n, M, c) of the space. positions: (n, N, 3) Angstrom, what they mean.
        log_path: (n,) see `molgen.cvdiffusion.noising`, with the volume element of the space.
        energies: (n,) eV of the potential; NaN where rejected. gradient: (n, M, c) eV/A of potential, walls and volume
            element, over points. walls: (n,) eV. cvs: (n, D). cv_gradient: (n, D, M, c), over points.
        round: (n,) in which they were drawn.
    """

    points: np.ndarray
    positions: np.ndarray
    log_path: np.ndarray
    energies: np.ndarray
    gradient: np.ndarray
    walls: np.ndarray
    cvs: np.ndarray
    cv_gradient: np.ndarray
    round: np.ndarray

    def __len__(self) -> int:
        return len(self.energies)

    @property
    def accepted(self) -> np.ndarray:
        """(n,) true where there is an energy."""
        return np.isfinite(self.energies)

    def take(self, index: np.ndarray) -> Self:
        """Rows by index or mask."""
        return type(self)(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """All rows of several batches, in order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


@dataclass(eq=False)
class Target:
    """A potential, collective variables, walls and the bias, at one temperature.

    Attributes:
        least: (N, N) Angstrom, pairs closer than that are rejected without an energy; zeros for model systems.
        space: of the trajectories.
        centres: (Q, 4) neighbours of stereocentres, and hands: (Q,) the signs of their volumes that are sampled.
            Where the space is blind to reflections, trajectories end in the mixture of the target and its mirror image,
            and whatever ends as the mirror image is reflected.
        floor: eV; energies below it are holes of the potential, and rejected. Choose it from what is known of minima.
        rejections: reason -> count, of all geometries so far.
    """

    potential: Potential
    cvs: Sequence[CV]
    walls: Sequence[Wall]
    bias: WellTemperedBias
    temperature: float
    least: np.ndarray
    space: Space
    centres: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), dtype=int))
    hands: np.ndarray = field(default_factory=lambda: np.zeros(0))
    floor: float = -np.inf
    rejections: Counter[str] = field(default_factory=Counter)

    @property
    def kt(self) -> float:
        """eV."""
        return KB * self.temperature

    def evaluate(self, points: np.ndarray, log_path: np.ndarray, number: int) -> Batch:
        """Energies, gradients and collective variables of points (n, M, c) drawn in round `number`.

        What cannot be evaluated gets a NaN energy, a weight of zero, and is counted by reason.
        """
        n = len(points)
        if len(self.centres):
            points, density = self.space.reflected(points, self.centres, self.hands)
            log_path = log_path + np.log(density)
        placed = self.space.place(points)
        positions, log_path = placed.positions, log_path + placed.log_volume
        reasons = dict.fromkeys(map(int, np.flatnonzero(~placed.inside)), "no geometry")
        if self.least.any():
            close = (distance_matrix(positions) < self.least).any((1, 2))
            reasons |= dict.fromkeys(map(int, np.flatnonzero(close)), "atoms too close")
        if len(self.centres):
            turned = (signed_volumes(positions, self.centres) * self.hands < 0).any(1)
            reasons |= dict.fromkeys(map(int, np.flatnonzero(turned)), "other handedness")
        values, cv_gradient = values_and_gradients(self.cvs, positions)
        for i in np.flatnonzero(~np.isfinite(values).all(1) | ~np.isfinite(cv_gradient).all((1, 2, 3))):
            reasons.setdefault(int(i), "collective variable undefined")
        good = np.delete(np.arange(n), list(reasons))
        energies, gradient, walls = np.full(n, np.nan), np.zeros(positions.shape), np.zeros(n)
        if len(good):
            energies[good], forces = self.potential.energy_and_forces(positions[good])
            walls[good], wall_gradient = wall_energy(self.walls, positions[good])
            gradient[good] = wall_gradient - forces
            for i in self.potential.failures:
                reasons[int(good[i])] = "no energy"
            for i in good[~np.isfinite(walls[good])]:
                reasons[int(i)] = "wall undefined"
        for i in np.flatnonzero(energies < self.floor):
            reasons[int(i)] = "energy below the floor"
        bad = list(reasons)
        energies[bad] = np.nan
        for array in (gradient, walls, values, cv_gradient):
            array[bad] = 0.0
        slope, *cv_slopes = self.space.pull(points, np.stack([gradient, *np.moveaxis(cv_gradient, 1, 0)]))
        slope = slope - self.kt * placed.volume_slope
        for array in (slope, *cv_slopes):
            array[bad] = 0.0
        self.rejections.update(reasons.values())
        return Batch(
            points, positions, log_path, energies, slope, walls, values, np.stack(cv_slopes, 1), np.full(n, number)
        )

    def log_weights(self, batch: Batch, biased: bool = True) -> np.ndarray:
        """(n,) ln w for the target with the bias as it is now, or without it; -inf where rejected."""
        energy = batch.energies + batch.walls
        if biased:
            energy = energy + self.bias.evaluate(batch.cvs)[0]
        log_w = batch.log_path - energy / self.kt
        return np.where(batch.accepted, log_w, -np.inf)

    def gradient(self, batch: Batch) -> np.ndarray:
        """(n, M, c) gradient of (E + V + walls)/kT and volume element, 1/Angstrom, with the bias as it is now."""
        push = self.bias.evaluate(batch.cvs)[1]
        return (batch.gradient + np.einsum("nd,ndai->nai", push, batch.cv_gradient)) / self.kt

    def slope(self, batch: Batch) -> np.ndarray:
        """(n, M, c) `gradient` without what moves the whole, clipped atom by atom."""
        slope = self.space.centred(torch.from_numpy(self.gradient(batch))).numpy()
        size = np.linalg.norm(slope, axis=-1, keepdims=True)
        return slope * np.minimum(1.0, CLIP / np.maximum(size, 1e-12))


def closest_allowed(numbers: np.ndarray) -> np.ndarray:
    """(N, N) distances below which no energy is asked for, Angstrom; zeros for a single particle."""
    least = CLASH * radius_sums(numbers)
    np.fill_diagonal(least, 0.0)
    return least if len(numbers) > 1 else np.zeros((1, 1))
