"""Conformers: how far apart two geometries with the same bonds are."""

from __future__ import annotations

import numpy as np
import torch

from molgen.geometry.align import superpose
from molgen.geometry.bonds import fragments


def shape_distance(numbers, bonds: np.ndarray, a: np.ndarray, b: np.ndarray, *, exchange: bool = True) -> float:
    """Largest displacement, Angstrom, of an atom between `a` and `b`, every fragment superposed by itself.

    Unlike an RMSD it does not fade with the size of the molecule: a turned hydroxyl group counts in any.

    Args:
        numbers: (N,) atomic numbers.
        bonds: (N, N) connectivity of both.
        a, b: (N, 3) Angstrom.
        exchange: the hydrogens of one atom may change places: their centre stands for them.
    """
    return float(_displacements(numbers, bonds, a, b, exchange).max())


def shape_rmsd(numbers, bonds: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of these displacements, Angstrom: which of two far conformers is the nearer one.

    Args: as of :func:`shape_distance`, hydrogens of one atom exchanged at will.
    """
    return float(np.sqrt((_displacements(numbers, bonds, a, b, exchange=True) ** 2).mean()))


def _displacements(numbers, bonds: np.ndarray, a: np.ndarray, b: np.ndarray, exchange: bool) -> np.ndarray:
    """(M,) Angstrom, of atoms or of the centres that stand for them."""
    group = np.arange(len(numbers))
    if exchange:
        terminal = (np.asarray(numbers) == 1) & (bonds.sum(1) == 1)
        group[terminal] = len(numbers) + bonds[terminal].argmax(1)
    members = group[None, :] == np.unique(group)[:, None]
    part = fragments(bonds)[members.argmax(1)]
    weights = members / members.sum(1, keepdims=True)
    x, y = (torch.from_numpy(weights @ np.asarray(c, dtype=float)) for c in (a, b))
    gaps = [(superpose(y[part == k], x[part == k]) - x[part == k]).norm(dim=1) for k in np.unique(part)]
    return torch.cat(gaps).numpy()
