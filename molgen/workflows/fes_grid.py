"""The grid of a collective variable: from a range that is given, from its period, or from walls and radii."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from molgen.cvdiffusion.bias import Axis
from molgen.cvdiffusion.walls import STIFFNESS, Wall
from molgen.errors import InputError, number_pair
from molgen.geometry.bonds import radius_sums
from molgen.units import shown
from molgen.variables import CV

WIDTHS = {"A": 0.1, "rad": 0.2}  # hill widths, in the unit of the variable
WIDTH_SHARE = 1 / 30  # hill width of a variable without a unit, as a share of its range
SHORTEST = 0.7  # where the grid of a distance begins, as a share of the sum of covalent radii
BEYOND, DEVIATIONS = 0.3, 3.0  # from a wall to the end of the grid, at least: Angstrom, standard deviations behind it
CELLS = 4  # grid cells a hill width


def axis_of(
    cv: CV,
    limits: tuple[float, float] | None,
    walls: Sequence[Wall],
    width: float | None,
    bins: int | None,
    starts: np.ndarray,
    numbers: np.ndarray,
    kt: float,
) -> tuple[Axis, float, list[Wall]]:
    """The axis of a collective variable, its hill width, and walls that keep it on the axis where none of `walls` does.

    Args:
        limits: (low, high) in the unit of `cv`; None to find them. width: of the hills, or None. starts: (S,) its
            values in the starting structures. numbers: (N,) atomic numbers. kt: eV.

    Raises:
        InputError: no range can be found, a start lies outside of it, or the grid is too coarse for the hills.
    """
    where = f"collective variable {cv.name!r}"
    limits = None if limits is None else number_pair(limits, f"range of {cv.name}")
    own = [wall for wall in walls if wall.cv.definition == cv.definition]
    if cv.period is not None:
        half = cv.period / 2
        if limits is not None and not math.isclose(limits[1] - limits[0], cv.period, rel_tol=1e-6):
            raise InputError("a periodic variable has its period for a range", where=where, remedy="give no range")
        low, high = (-half, half) if limits is None else limits
    else:
        low, high = limits if limits is not None else _found(cv, own, numbers, where, kt)
    scale, unit = shown(cv.unit)
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"range {low * scale:g} to {high * scale:g}", where=where, expected="finite, low < high")
    if cv.period is None and not ((starts >= low) & (starts <= high)).all():
        raise InputError(
            f"the starting structures are at {', '.join(f'{s * scale:.4g}' for s in starts)}",
            where=f"grid of {cv.name!r}, {low * scale:.4g} to {high * scale:.4g} {unit}".rstrip(),
            expected="starting structures inside the grid",
            remedy=f"widen --range{' (from Python: in rad)' if cv.unit == 'rad' else ''}, or move the start",
        )
    width = WIDTHS.get(cv.unit, (high - low) * WIDTH_SHARE) if width is None else width
    if not 0 < width < math.inf:
        raise InputError(f"hill width {width * scale:g}", where=where, expected=f"above 0, in {unit or 'its unit'}")
    count = bins or max(8, math.ceil(CELLS * (high - low) / width))
    fences = []
    if cv.period is None:
        fences = [Wall(cv, limit, above, STIFFNESS.get(cv.unit, 20.0)) for limit, above in ((high, True), (low, False))
                  if not any(wall.above == above and low <= wall.limit <= high for wall in own)]  # fmt: skip
    return Axis(cv.name, cv.unit, low, high, count, cv.period), width, fences


def is_progress(cv: CV) -> bool:
    """Whether a variable is `path-s`, which is never below 0 or above 1; alone, not as part of a sum."""
    return re.fullmatch(r"path-s(?:(?! [-+] ).)*", cv.definition) is not None


def _found(cv: CV, own: Sequence[Wall], numbers: np.ndarray, where: str, kt: float) -> tuple[float, float]:
    """A range as far beyond the walls `own` as samples get; the low end of a plain distance from covalent radii."""

    def beyond(wall: Wall) -> float:
        return max(BEYOND if cv.unit == "A" else 0.0, DEVIATIONS * math.sqrt(kt / wall.stiffness))

    highs = [wall.limit + beyond(wall) for wall in own if wall.above]
    lows = [wall.limit - beyond(wall) for wall in own if not wall.above]
    pair = re.fullmatch(r"distance (\d+) (\d+)", cv.definition)
    if not lows and pair:
        lows = [SHORTEST * float(radius_sums(numbers)[int(pair[1]), int(pair[2])])]
    if is_progress(cv):
        highs, lows = highs or [1.05], lows or [-0.05]
    if not highs or not lows:
        missing = [f'--wall "{cv.definition} {side} ..."' for side, ends in (("<", highs), (">", lows)) if not ends]
        raise InputError(
            "its range is not known",
            where=where,
            expected="a range, or walls on both of its sides (a distance needs the upper one only)",
            remedy=f'give --range "LOW HIGH" in the order of --cv, or {" and ".join(missing)}',
        )
    return min(lows), max(highs)
