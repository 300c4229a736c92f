"""Variables that compare with given structures: RMSD, progress along a path and distance from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from molgen.errors import InputError
from molgen.geometry.align import kabsch
from molgen.variables.cv import CV, distinct


def rmsd(reference: np.ndarray, atoms: Sequence[int] | None = None) -> CV:
    """Root-mean-square deviation from `reference` (N, 3) after superposition, Angstrom; gradient 0 at the reference.

    Args:
        atoms: those that are superposed and compared; None for all.
    """
    target, chosen = _references(np.asarray(reference)[None], atoms)

    def function(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(_deviations(x, target, chosen)[:, 0], dim=(-2, -1)) / len(chosen) ** 0.5

    return CV("rmsd", "A", None, function)


def path_s(references: np.ndarray, atoms: Sequence[int] | None = None, rate: float | None = None) -> CV:
    """Progress along a path, 0 near its first structure and 1 near its last.

    Args:
        references: (M, N, 3) structures at about equal steps, Angstrom.
        atoms: those that are superposed and compared; None for all.
        rate: lambda, 1/Angstrom^2; None for 2.3 / mean square deviation of neighbours.

    Source: Branduardi, Gervasio, Parrinello, J. Chem. Phys. 126, 054103 (2007), with s divided by its largest value.
    """
    distances, rate = _path(references, atoms, rate)

    def function(x: Tensor) -> Tensor:
        weights = torch.softmax(-rate * distances(x), dim=-1)
        return weights @ torch.linspace(0, 1, weights.shape[-1], dtype=weights.dtype)

    return CV("path-s", "", None, function)


def path_z(references: np.ndarray, atoms: Sequence[int] | None = None, rate: float | None = None) -> CV:
    """Distance from a path, -1/lambda ln sum exp(-lambda d^2), Angstrom^2 (may fall below 0); see `path_s`."""
    distances, rate = _path(references, atoms, rate)
    return CV("path-z", "", None, lambda x: -torch.logsumexp(-rate * distances(x), dim=-1) / rate)


def _references(references: np.ndarray, atoms: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    """The chosen atoms of the references, (M, n, 3), and their indices."""
    chosen = list(range(references.shape[1])) if atoms is None else list(atoms)
    distinct(*chosen)
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} atoms to superpose", expected="at least 2")
    return torch.tensor(references[:, chosen], dtype=torch.float64), chosen


def _deviations(x: Tensor, target: Tensor, atoms: list[int]) -> Tensor:
    """Displacements (B, M, n, 3) of the atoms of x, superposed on each target (M, n, 3).

    The optimal motion is held fixed in the gradient; that of the square deviation is exact, as it is stationary there.
    """
    mobile = x[:, None, atoms].expand(-1, len(target), -1, -1)
    rotation, translation = kabsch(mobile.detach(), target.expand_as(mobile))
    return mobile @ rotation.mT + translation[..., None, :] - target


def _path(
    references: np.ndarray, atoms: Sequence[int] | None, rate: float | None
) -> tuple[Callable[[Tensor], Tensor], float]:
    """Mean square deviations (B, M) from the references as a function of positions, and lambda."""
    if len(references) < 2:
        raise InputError(f"a path of {len(references)} structures", expected="at least 2, at about equal steps")
    target, chosen = _references(np.asarray(references), atoms)
    everyone = list(range(len(chosen)))
    steps = torch.stack([_deviations(b[None], a[None], everyone) for a, b in zip(target, target[1:], strict=False)])
    square = float((steps**2).sum(-1).mean())
    if rate is None and square < 1e-6:
        raise InputError("neighbours of the path are the same structure", expected="structures that differ")
    rate = 2.3 / square if rate is None else rate
    return lambda x: (_deviations(x, target, chosen) ** 2).sum(-1).mean(-1), rate
