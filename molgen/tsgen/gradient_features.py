"""What one gradient of a potential says about a geometry, as input of the network.

The raw gradient points where bonds are strained; how far an atom should move is better told by a Newton step on a model
Hessian. That of the close-pair stretches of Lindh's force field is enough, and costs one small solve.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molgen.geometry.model_hessian import STIFFEN, STRETCH, pair_strengths
from molgen.units import BOHR, HARTREE

LONGEST = 0.3  # Angstrom, of the step of one atom
GRADIENT_VECTORS, GRADIENT_SCALARS = 2, 2


def gradient_features(numbers: Tensor, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (B, N, 3, 2) and scalars (B, N, 2) of every atom: its gradient, squashed to below 1, and its step.

    Args:
        numbers: (B, N), 0 for padding. x: (B, N, 3) Angstrom. gradient: (B, N, 3) eV/Angstrom.
    """
    size = gradient.norm(dim=-1, keepdim=True)
    step = newton_step(numbers, x, gradient)
    length = step.norm(dim=-1, keepdim=True)
    step = step * (LONGEST / length.clamp_min(LONGEST))
    scalars = torch.cat([torch.log1p(size / 0.05), torch.log1p(length / 0.005)], dim=-1) / 4
    return torch.stack([gradient / (1 + size), step / LONGEST], dim=-1), scalars


def newton_step(numbers: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """-H^-1 g (B, N, 3), Angstrom, with the model Hessian of all close pairs' stretches; arguments as above.

    Source of the force constants: Lindh et al., Chem. Phys. Lett. 241, 423 (1995).
    """
    b, n = numbers.shape
    real = numbers > 0
    away = (x[:, None] - x[:, :, None]) / BOHR
    distance = away.square().sum(-1).add(1e-12).sqrt()
    pair = real[:, :, None] & real[:, None, :] & ~torch.eye(n, dtype=torch.bool, device=x.device)
    constants = STRETCH * pair_strengths(numbers, distance) * pair * (HARTREE / BOHR**2)
    u = away / distance[..., None]
    block = constants[..., None, None] * u[..., :, None] * u[..., None, :]  # (B, N, N, 3, 3)
    diagonal = torch.diag_embed(block.sum(2).permute(0, 2, 3, 1)).permute(0, 3, 4, 1, 2)
    hessian = (diagonal - block).permute(0, 1, 3, 2, 4).reshape(b, 3 * n, 3 * n)
    hessian = hessian + STIFFEN * torch.eye(3 * n, dtype=x.dtype, device=x.device)
    return -torch.linalg.solve(hessian, gradient.reshape(b, -1, 1)).reshape(b, n, 3)
