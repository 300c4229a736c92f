"""One symmetry suite for every network: the kinds of its inputs and outputs, in e3nn's letters, are all it must know.

`0e` scalar, `0o` pseudoscalar (flips sign under reflection), `1o` polar vector, `1e` axial vector (turns with
det(R) R), `x` position (turns and moves). Vectors have their three components on axis 2: (B, N, 3) or
(B, N, 3, channels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Function = Callable[[list[Tensor], list[Tensor]], Sequence[Tensor]]


def orthogonal(seed: int, improper: bool = False) -> Tensor:
    """(3, 3) float64 random rotation (Haar measure), or rotation times reflection."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q) * (-1.0 if improper else 1.0)


def rotate(x: Tensor, matrix: Tensor) -> Tensor:
    """`x` (B, N, 3, ...) with `matrix` (3, 3) applied to its axis 2."""
    return torch.einsum("ij,bnj...->bni...", matrix.to(x), x)


def transformed(x: Tensor, kind: str, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """What an output of this kind must become under the motion."""
    turned = rotate(x, matrix) if kind in ("1o", "1e", "x") else x
    if kind in ("0o", "1e"):
        turned = turned * torch.linalg.det(matrix).to(x)
    return turned + shift.to(x) if kind == "x" and shift is not None else turned


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| over the largest |b|, or over 1 where b is small."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1.0))


def assert_equivariant(
    function: Function,
    positions: Sequence[Tensor],
    kinds: Sequence[str],
    tolerance: float,
    *,
    vectors: Sequence[Tensor] = (),
    move_each: bool = True,
    trials: int = 4,
) -> None:
    """Check `function(positions, vectors)` under random motions, every second one with a reflection.

    Args:
        function: returns one tensor for each of `kinds`.
        positions: (B, N, 3) each; vectors: (B, N, 3, ...) polar inputs.
        kinds: of the outputs, see the module.
        tolerance: bound of :func:`relative_error`.
        move_each: each geometry of each batch row gets a translation of its own (outputs may then not be positions);
            otherwise all of a row move together.

    Raises:
        AssertionError: an output misses the tolerance, or is all but zero, so that the test could not fail.
    """
    before = function(list(positions), list(vectors))
    assert len(before) == len(kinds)
    for kind, value in zip(kinds, before, strict=True):
        assert value.isfinite().all() and value.abs().max() > 1e-3, f"{kind} output cannot tell: all zero or not finite"
    for trial in range(trials):
        matrix = orthogonal(trial, improper=trial % 2 == 1)
        shifts = shift_vectors(positions, trial) if move_each else [shift_vectors(positions, trial)[0]] * len(positions)
        moved = [rotate(x, matrix) + d for x, d in zip(positions, shifts, strict=True)]
        after = function(moved, [rotate(u, matrix) for u in vectors])
        for k, (kind, old, new) in enumerate(zip(kinds, before, after, strict=True)):
            error = relative_error(new, transformed(old, kind, matrix, None if move_each else shifts[0]))
            motion = "rotation and reflection" if trial % 2 else "rotation"
            assert error <= tolerance, (
                f"output {k} ({kind}) under {motion} {trial}: error {error:.1e} > {tolerance:.0e}"
            )


def shift_vectors(positions: Sequence[Tensor], seed: int) -> list[Tensor]:
    """For each geometry a translation (B, 1, 3) of some Angstrom."""
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(len(x), 1, 3, generator=generator, dtype=torch.float64).to(x) for x in positions]


def randomised(model: Network, seed: int = 0, scale: float = 0.7) -> Network:
    """The model with every parameter drawn anew, larger than at the start of training (root mean square
    `scale` / sqrt(inputs), there 0.58 and less), no bias zero; in eval mode.

    A fresh network hides faults behind zero biases and small last layers.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            if p.ndim > 1:
                p.copy_(scale * noise / p.shape[1] ** 0.5)
            else:
                p.copy_(0.3 * noise + (1.0 if "norm" in name or "final" in name else 0.0) * (not name.endswith("bias")))
    return model.eval()
