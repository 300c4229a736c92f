"""Variables of a few atoms: distances, angles, torsions, volumes, coordination numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from molgen.errors import InputError
from molgen.variables.cv import CV, angle_at, distinct, norm


def distance(i: int, j: int) -> CV:
    """Distance of two atoms, Angstrom."""
    distinct(i, j)
    return CV(
        f"distance {i} {j}", "A", None, lambda x: norm(x[:, j] - x[:, i]), definition=_either_way("distance", i, j)
    )


def angle(i: int, j: int, k: int) -> CV:
    """Angle at j, 0 to pi; without gradient at both ends."""
    distinct(i, j, k)
    definition = _either_way("angle", i, j, k)
    return CV(f"angle {i} {j} {k}", "rad", None, lambda x: angle_at(x, i, j, k), ((i, j, k),), definition)


def torsion(i: int, j: int, k: int, l: int) -> CV:  # noqa: E741
    """Torsion angle in (-pi, pi], IUPAC sign; without gradient where three neighbours lie on a line."""
    distinct(i, j, k, l)

    def function(x: Tensor) -> Tensor:
        a, b, c = x[:, j] - x[:, i], x[:, k] - x[:, j], x[:, l] - x[:, k]
        first, second = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
        value = torch.atan2(norm(b) * (a * second).sum(-1), (first * second).sum(-1))
        value = value + 2 * math.pi * (value <= -math.pi)
        return value + 0 / (norm(first) * norm(second))  # nan on a line, where atan2 alone would have some value

    bends, definition = ((i, j, k), (j, k, l)), _either_way("torsion", i, j, k, l)
    return CV(f"torsion {i} {j} {k} {l}", "rad", 2 * math.pi, function, bends, definition)


def _either_way(kind: str, *atoms: int) -> str:
    """One text for atoms that read the same from either end."""
    return " ".join(map(str, (kind, *min(atoms, atoms[::-1]))))


def volume(i: int, j: int, k: int, l: int) -> CV:  # noqa: E741
    """Signed volume of a tetrahedron of atoms, Angstrom^3, as `molgen.geometry.chirality.signed_volumes` has it.

    Of the four neighbours of a stereocentre, it changes its sign where the centre turns over: a wall holds the hand.
    """
    distinct(i, j, k, l)

    def function(x: Tensor) -> Tensor:
        a, b, c = x[:, j] - x[:, i], x[:, k] - x[:, i], x[:, l] - x[:, i]
        return (a * torch.linalg.cross(b, c)).sum(-1) / 6

    return CV(f"volume {i} {j} {k} {l}", "A^3", None, function)


def coordination(a: Sequence[int], b: Sequence[int], r0: float, n: int = 6, m: int = 12) -> CV:
    """Number of contacts between the atoms `a` and `b`: sum over pairs of (1 - (r/r0)^n) / (1 - (r/r0)^m), n < m."""
    distinct(*a, *b)
    if not (a and b):
        raise InputError("a group without atoms", expected="at least one atom on each side")
    if not (0 < r0 < math.inf and 0 < n < m):
        raise InputError(f"r0={r0} n={n} m={m}", expected="r0 above 0 (Angstrom) and whole numbers 0 < n < m")
    left, right, common = list(a), list(b), math.gcd(n, m)

    def function(x: Tensor) -> Tensor:
        r = norm(x[:, left, None] - x[:, None, right])
        y = (r / r0) ** common  # both polynomials divided by 1 - y: nothing is 0/0 at r0
        return (_geometric(y, n // common) / _geometric(y, m // common)).sum((1, 2))

    powers = "" if (n, m) == (6, 12) else f" n={n} m={m}"
    return CV(f"coordination {','.join(map(str, a))} {','.join(map(str, b))} r0={r0:g}{powers}", "", None, function)


def _geometric(y: Tensor, terms: int) -> Tensor:
    """1 + y + ... + y^(terms - 1)."""
    total = torch.ones_like(y)
    for _ in range(terms - 1):
        total = total * y + 1
    return total
