"""Harmonic walls that keep a collective variable on one side of a limit: "distance 0 4 < 3.3 k=20"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from molgen.errors import InputError
from molgen.units import KB, shown
from molgen.variables import CV, Molecule, parse_cv, values_and_gradients

STIFFNESS = {"A": 20.0, "rad": 5.0, "": 20.0}  # eV/unit^2, where none is given
_EXCLUDED = 10 * KB * 300  # eV; a start structure higher up a wall is refused

_WALL = re.compile(r"(?P<cv>.*?)\s*(?P<side>[<>])\s*(?P<limit>\S+)(?:\s+k\s*=\s*(?P<k>\S+))?\s*")


@dataclass(frozen=True, eq=False)
class Wall:
    """Energy 1/2 k excess^2 where `cv` is beyond `limit`, else 0, eV.

    Attributes:
        limit: in the CV's unit (A, rad).
        above: True keeps the CV below the limit ("<"), False above it (">").
        stiffness: k, eV/unit^2.
    """

    cv: CV
    limit: float
    above: bool
    stiffness: float

    def __post_init__(self):
        if self.cv.period is not None:
            raise InputError(
                "a wall on a periodic variable has no side",
                where=f"wall on {self.cv.name!r}",
                expected="a variable without period: a distance, an angle, or the cosine of a torsion (a custom CV)",
                remedy="write the wall on another variable",
            )
        if not (math.isfinite(self.limit) and 0 < self.stiffness < math.inf):
            raise InputError(
                f"limit {self.limit:g}, k {self.stiffness:g}",
                where=f"wall on {self.cv.name!r}",
                expected="a finite limit and a finite k above 0",
            )


def parse_wall(text: str, molecule: Molecule, labelled: Mapping[str, CV] | None = None) -> Wall:
    """The wall "CV < LIMIT" or "CV > LIMIT", with an optional " k=STIFFNESS".

    The limit of an angle is in degrees; k in eV per A^2, rad^2 or bare unit^2. The CV is one of `parse_cv`.

    Args:
        labelled: variables that may be called by their labels.

    Raises:
        InputError: not such a clause, a CV that cannot be read, or one that is periodic.
    """
    match = _WALL.fullmatch(text)
    try:
        numbers = [float(match[name]) for name in ("limit", "k") if match[name]] if match else []
    except ValueError:
        numbers = []
    if not match or not numbers:
        raise InputError(
            "cannot be read",
            where=f"wall {text!r}",
            expected='"CV < LIMIT" or "CV > LIMIT", A or degrees, then k=STIFFNESS if other than the default',
            remedy='write for example "distance 0 4 < 3.3" or "angle 0 1 2 > 90 k=5"',
        )
    known = (labelled or {}).get(match["cv"].strip())
    try:
        cv = parse_cv(match["cv"], molecule) if known is None else known
    except InputError as error:
        error.add_note(f"in the wall {text!r}")
        raise
    limit = math.radians(numbers[0]) if cv.unit == "rad" else numbers[0]
    return Wall(cv, limit, match["side"] == "<", numbers[1] if len(numbers) > 1 else STIFFNESS.get(cv.unit, 20.0))


def wall_energy(walls: Sequence[Wall], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy (B,) eV and gradient (B, N, 3) eV/A of all walls; nan as :func:`values_and_gradients` has it."""
    values, slopes = values_and_gradients([wall.cv for wall in walls], positions)
    signs = np.array([1.0 if wall.above else -1.0 for wall in walls])
    limits, k = np.array([wall.limit for wall in walls]), np.array([wall.stiffness for wall in walls])
    excess = np.maximum(signs * (values - limits), 0)
    return (0.5 * k * excess**2).sum(1), np.einsum("bd,bdna->bna", k * signs * excess, slopes)


def check_walls(walls: Sequence[Wall], positions: np.ndarray) -> None:
    """Refuse a start structure (N, 3) that a wall raises by more than 10 kT at 300 K.

    Raises:
        InputError: names the wall, its limit and the value in the start structure.
    """
    start = np.asarray(positions, dtype=np.float64)[None]
    for wall in walls:
        energy = float(wall_energy([wall], start)[0][0])
        if energy <= _EXCLUDED:
            continue
        scale, unit = shown(wall.cv.unit)
        unit = f" {unit}".rstrip()
        value = float(values_and_gradients([wall.cv], start)[0][0, 0])
        side = "<" if wall.above else ">"
        raise InputError(
            f"the start structure is at {value * scale:.4g}{unit}, {energy:.2f} eV up the wall",
            where=f"wall {wall.cv.name!r} {side} {wall.limit * scale:.4g}{unit}",
            expected=f"a start structure inside the wall, or at most {_EXCLUDED:.2f} eV up it",
            remedy="move the limit, or start from another structure",
        )
