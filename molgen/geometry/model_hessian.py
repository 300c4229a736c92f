"""A Hessian without gradient calls: Lindh's model force field, from the geometry alone.

Stretches, bends and torsions between all close atoms, with force constants that fall off smoothly with distance, so
that half-made bonds of a transition state get half-sized constants and no connectivity has to be guessed.

Source: Lindh, Bernhardsson, Karlstroem, Malmqvist, Chem. Phys. Lett. 241, 423 (1995).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from molgen.units import BOHR, HARTREE

# rows of the periodic table: H-He, Li-Ne, Na and heavier; bohr^-2 and bohr
_DECAY = torch.tensor([[1.0, 0.3949, 0.3949], [0.3949, 0.28, 0.28], [0.3949, 0.28, 0.28]], dtype=torch.float64)
_REFERENCE = torch.tensor([[1.35, 2.10, 2.53], [2.10, 2.87, 3.40], [2.53, 3.40, 3.40]], dtype=torch.float64)
STRETCH, _BEND, _TORSION = 0.45, 0.15, 0.005  # hartree, bohr, rad
STIFFEN = 4.0  # eV/Angstrom^2, added to every curvature where the model is inverted
_LEAST = 1e-3  # products of the distance factors below this are left out
_LINEAR = 0.3  # sine of the angle below which a bend gets its second, perpendicular component


def pair_strengths(numbers: Tensor, distance: Tensor) -> Tensor:
    """rho (..., N, N): 1 at a bond's length, falling with distance, at most 3 (atoms pushed into one another).

    Args:
        numbers: (..., N) atomic numbers. distance: (..., N, N) bohr.
    """
    row = torch.bucketize(numbers.contiguous(), torch.tensor([3, 11], device=numbers.device), right=True)
    decay, reference = (table.to(distance)[row[..., :, None], row[..., None, :]] for table in (_DECAY, _REFERENCE))
    return torch.exp((decay * (reference.square() - distance.square())).clamp(min=-80.0)).clamp(max=3.0)


def lindh_hessian(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Model Hessian (3N, 3N) in eV/Angstrom^2, positive semi-definite.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3) Angstrom.
    """
    x = np.asarray(positions, dtype=float) / BOHR
    n = len(x)
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    rho = pair_strengths(torch.from_numpy(np.array(numbers, dtype=np.int64)), torch.from_numpy(d)).numpy()
    np.fill_diagonal(rho, 0.0)
    hessian = np.zeros((3 * n, 3 * n))
    components = 3 * np.arange(n)[:, None] + np.arange(3)

    def add(atoms: np.ndarray, rows: np.ndarray, constants: np.ndarray) -> None:
        """Add k b b^T for internal coordinates on `atoms` (K, m) with derivatives `rows` (K, m, 3)."""
        for a in range(atoms.shape[1]):
            for b in range(atoms.shape[1]):
                block = constants[:, None, None] * rows[:, a, :, None] * rows[:, b, None, :]
                at = components[atoms[:, a]][:, :, None], components[atoms[:, b]][:, None, :]
                np.add.at(hessian, at, block)

    i, j = np.nonzero(np.triu(rho > _LEAST))
    u = _unit(x[j] - x[i])
    add(np.stack([i, j], 1), np.stack([-u, u], 1), STRETCH * rho[i, j])

    chain = (rho[:, :, None] * rho[None] > _LEAST) & (np.arange(n)[:, None, None] < np.arange(n))
    i, j, k = np.nonzero(chain)
    for rows, weight in _bends(x[i], x[j], x[k]):
        add(np.stack([i, j, k], 1), rows, _BEND * rho[i, j] * rho[j, k] * weight)

    i, j, k = np.nonzero(rho[:, :, None] * rho[None] > _LEAST)
    strength = (rho[i, j] * rho[j, k])[:, None] * rho[k]
    t, m = np.nonzero(
        (strength > _LEAST) & (np.arange(n) != i[:, None]) & (np.arange(n) != j[:, None]) & (j < k)[:, None]
    )
    if len(t):
        atoms = np.stack([i[t], j[t], k[t], m], 1)
        rows, weight = _torsions(*(x[a] for a in atoms.T))
        add(atoms, rows, _TORSION * strength[t, m] * weight)
    return hessian * (HARTREE / BOHR**2)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-8)


def _bends(a, b, c):
    """Derivatives (K, 3, 3) of the angle a-b-c in its plane and, as it becomes linear, out of it; with weights (K,)."""
    ra, rc = (np.linalg.norm(v, axis=-1)[:, None] for v in (a - b, c - b))
    u, v = _unit(a - b), _unit(c - b)
    sine = np.linalg.norm(np.cross(u, v), axis=-1)
    axis = np.eye(3)[np.abs(u).argmin(-1)]
    normal = _unit(np.where((sine > 1e-3)[:, None], np.cross(u, v), np.cross(u, axis)))
    for da, dc, weight in (
        (np.cross(normal, u) / ra, -np.cross(normal, v) / rc, np.ones(len(u))),
        (normal / ra, normal / rc, np.clip(1 - sine / _LINEAR, 0, None) * ((u * v).sum(-1) < 0)),
    ):
        yield np.stack([da, -da - dc, dc], 1), weight


def _torsions(a, b, c, d):
    """Derivatives (K, 4, 3) of the torsion a-b-c-d, with weights (K,) that fade it out as it becomes undefined."""
    u, w, v = a - b, c - b, d - c
    length = np.maximum(np.linalg.norm(w, axis=-1, keepdims=True), 1e-8)
    m, n = np.cross(u, w), np.cross(v, w)
    m2, n2 = ((t**2).sum(-1, keepdims=True) for t in (m, n))
    sine2 = np.minimum(
        m2 / ((u**2).sum(-1, keepdims=True) * length**2), n2 / ((v**2).sum(-1, keepdims=True) * length**2)
    )
    weight = np.clip(sine2[:, 0] / _LINEAR**2, 0, 1) * (sine2[:, 0] > 1e-3)
    m2, n2 = np.maximum(m2, 1e-6), np.maximum(n2, 1e-6)
    da, dd = length * m / m2, -length * n / n2
    along_u, along_v = ((t * w).sum(-1, keepdims=True) / length**2 for t in (u, v))
    db = -(1 - along_u) * da + along_v * dd
    return np.stack([da, db, -da - db - dd, dd], 1), weight
