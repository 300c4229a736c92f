"""The coordinates in which trajectories run: Cartesian, or internal (`molgen.cvdiffusion.internal`).

A point of a space has shape (M, c): atoms and axes, or internal coordinates and 1. The rest of the sampler sees points
and their slopes; energies, collective variables and walls see positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from molgen.geometry.chirality import signed_volumes


@dataclass(frozen=True, eq=False)
class Placed:
    """n points as geometries.

    Attributes:
        positions: (n, N, 3) Angstrom. log_volume: (n,) log density of points over that of positions, to be added to
            log w. volume_slope: (n, M, c) its gradient.
        inside: (n,) whether the point means a geometry at all.
    """

    positions: np.ndarray
    log_volume: np.ndarray
    volume_slope: np.ndarray
    inside: np.ndarray


class Space(ABC):
    """Coordinates of a molecule.

    Attributes:
        shape: (M, c) of a point. dimensions: of the space that is sampled. atoms: N.
        width: of the target's stiffest directions; None: as the settings say.
    """

    shape: tuple[int, int]
    dimensions: int
    atoms: int
    width: float | None = None

    @abstractmethod
    def centred(self, points: Tensor) -> Tensor:
        """Points (..., M, c) moved into the space that is sampled."""

    @abstractmethod
    def source(self, start: float, spread: float) -> float | np.ndarray:
        """Variance of the target after noise of variance `start`, of all coordinates or (M, c) of each."""

    @abstractmethod
    def pooled(self, squares: Tensor) -> np.ndarray:
        """Mean of squared errors (M, c) over coordinates that share a variance: a number, or (M, c)."""

    @abstractmethod
    def points(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n, M, c) of geometries (n, N, 3); where several points mean one geometry, one of them by their density."""

    @abstractmethod
    def reflected(self, points: np.ndarray, centres: np.ndarray, hands: np.ndarray) -> tuple[np.ndarray, float]:
        """Points with all `centres` of the other hand as their mirror images; the factor by which the density fell.

        Args:
            centres: (Q, 4) neighbours of stereocentres. hands: (Q,) signs of their volumes.
        """

    @abstractmethod
    def place(self, points: np.ndarray) -> Placed:
        """Geometries of points."""

    @abstractmethod
    def pull(self, points: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        """Gradients (K, n, M, c) over points of functions that have `gradients` (K, n, N, 3) over positions."""

    @abstractmethod
    def moved(self, points: np.ndarray, slopes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points and slopes (B, M, c) after random symmetries of the target."""

    def relabelled(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Geometries (n, N, 3) under names of equal atoms as likely as any: as they are where the process is blind to
        names."""
        return positions

    def log_normal(self, shift: Tensor, variance: Tensor) -> Tensor:
        """Log-density (B,) of displacements (B, M, c) under N(0, variance), a number or (M, c)."""
        count = self.dimensions / variance.numel()
        logs = count * torch.log(2 * torch.pi * variance).sum()
        return -0.5 * (shift.square() / variance).sum((1, 2)) - 0.5 * logs


@dataclass(eq=False)
class CartesianSpace(Space):
    """Positions without centre of mass (of equal masses), 3N - 3 dimensions; a single particle in its 3.

    Attributes:
        symmetry: classes of exchangeable atoms, each a list of indices. mirror: whether reflections are symmetries.
    """

    atoms: int
    symmetry: list[list[int]] = field(default_factory=list)
    mirror: bool = True

    def __post_init__(self) -> None:
        self.shape = (self.atoms, 3)
        self.dimensions = 3 * self.atoms - 3 if self.atoms > 1 else 3

    def centred(self, points: Tensor) -> Tensor:
        return points - points.mean(-2, keepdim=True) if self.atoms > 1 else points

    def source(self, start: float, spread: float) -> float:
        return start + spread

    def pooled(self, squares: Tensor) -> np.ndarray:
        return squares.sum().numpy() / self.dimensions

    def points(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return positions

    def reflected(self, points: np.ndarray, centres: np.ndarray, hands: np.ndarray) -> tuple[np.ndarray, float]:
        # the mixture of both hands, which a network blind to reflections can learn, is half as dense as the target
        mirrored = np.all(signed_volumes(points, centres) * hands < 0, axis=1)
        return np.where(np.asarray(mirrored)[:, None, None], -points, points), 0.5

    def place(self, points: np.ndarray) -> Placed:
        return Placed(points, np.zeros(len(points)), np.zeros(points.shape), np.ones(len(points), dtype=bool))

    def pull(self, points: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        return gradients

    def moved(self, points: np.ndarray, slopes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        b, n = points.shape[:2]
        if n == 1:
            return points, slopes
        order = np.broadcast_to(np.arange(n), (b, n)).copy()
        for group in self.symmetry:
            order[:, group] = rng.permuted(np.broadcast_to(group, (b, len(group))), axis=1)
        turn, upper = np.linalg.qr(rng.standard_normal((b, 3, 3)))
        turn = turn * np.sign(np.diagonal(upper, axis1=1, axis2=2))[:, None]  # evenly over O(3)
        if not self.mirror:
            turn = turn * np.sign(np.linalg.det(turn))[:, None, None]
        rows = np.arange(b)[:, None]
        return points[rows, order] @ turn, slopes[rows, order] @ turn
