"""The symmetry of a molecule: in how many ways it turns onto itself, and whether it is its own mirror image."""

from __future__ import annotations

import warnings

import numpy as np
from ase.data import atomic_masses
from scipy.spatial.transform import Rotation

TOLERANCE = 0.1  # Angstrom, how far an atom may lie from where its like lies
COLLINEAR = 0.02  # least over largest extent, below which atoms lie on a line


def symmetry_number(numbers: np.ndarray, positions: np.ndarray, tolerance: float = TOLERANCE) -> int:
    """Proper rotations, the identity among them, that carry every atom to one of its element; of a line 1, or 2 where
    its ends are alike.

    Args:
        numbers: (N,) atomic numbers. positions: (N, 3) Angstrom.
        tolerance: Angstrom.
    """
    z = np.asarray(numbers)
    if len(z) == 1:
        return 1
    x = _centred(z, positions)
    if (axis := _line(x)) is not None:
        order = _nearest(z, x - 2 * np.outer(x @ axis, axis), x)
        return 1 + bool(np.abs(x @ axis + x[order] @ axis).max() < tolerance)
    return max(_rotations(z, x, x, tolerance), 1)


def is_symmetric(numbers: np.ndarray, positions: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Whether a rotation, a mirror plane or any other operation but the identity carries every atom to one of its
    element; of atoms on a line or in a plane always.

    Args: as of :func:`symmetry_number`.
    """
    z = np.asarray(numbers)
    if len(z) < 4 or _line(x := _centred(z, positions)) is not None:
        return True
    return _rotations(z, x, x, tolerance) > 1 or _rotations(z, x, -x, tolerance) > 0


def _centred(z: np.ndarray, positions: np.ndarray) -> np.ndarray:
    x = np.asarray(positions, dtype=float)
    return x - np.average(x, axis=0, weights=atomic_masses[z])


def _line(x: np.ndarray) -> np.ndarray | None:
    """The direction (3,) of the line on which atoms (N, 3) about their centre lie; None where they do not."""
    extent, axes = np.linalg.svd(x, full_matrices=False)[1:]
    return axes[0] if extent[1] < COLLINEAR * extent[0] else None


def _rotations(z: np.ndarray, x: np.ndarray, y: np.ndarray, tolerance: float) -> int:
    """How many rotations carry every atom of x (N, 3), about its centre, to one of its element (N,) of y.

    Two atoms off a line through the centre fix a rotation by where they go, so all are found from the pairs that one
    such pair may go to.
    """
    radius = np.linalg.norm(x, axis=1)
    alike = (z[:, None] == z) & (np.abs(radius[:, None] - radius) < 2 * tolerance)
    across = np.linalg.norm(np.cross(x[:, None], x), axis=-1)
    # the rarest pair of atoms that spans a plane well: few places to go to
    rarity = np.where(across > across.max() / 3, np.outer(alike.sum(1), alike.sum(1)), np.inf)
    a, b = np.unravel_index(rarity.argmin(), rarity.shape)
    frame, apart = _frame(x[a], x[b]), np.linalg.norm(x[a] - x[b])
    found = set()
    for c in np.flatnonzero(alike[a]):
        for d in np.flatnonzero(alike[b]):
            if across[c, d] > across.max() / 6 and abs(np.linalg.norm(x[c] - x[d]) - apart) < 4 * tolerance:
                order = _nearest(z, x @ frame @ _frame(y[c], y[d]).T, y)
                if len(set(order)) == len(z):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", UserWarning)  # of a candidate that is no symmetry
                        turn = Rotation.align_vectors(y[order], x)[0]
                    if np.linalg.norm(turn.apply(x) - y[order], axis=1).max() < tolerance:
                        found.add(tuple(order))
    return len(found)


def _frame(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(3, 3) right-handed axes as columns: along `first`, and in the plane of both."""
    u = first / np.linalg.norm(first)
    w = np.cross(u, second)
    w /= np.linalg.norm(w)
    return np.stack([u, np.cross(w, u), w], axis=1)


def _nearest(z: np.ndarray, moved: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(N,) the atom of its own element that each moved atom lies nearest to."""
    distance = np.linalg.norm(moved[:, None] - x, axis=-1)
    return np.where(z[:, None] == z, distance, np.inf).argmin(1)
