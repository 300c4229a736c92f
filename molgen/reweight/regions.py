"""Regions of configuration space as people write them: "phi 1 in (-180, 0) and rg < 4.5"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from molgen.errors import InputError, number_pair
from molgen.reweight.free_energy import CVValues
from molgen.units import shown

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?inf"
_CLAUSE = re.compile(
    rf"\s*(?P<name>(?:(?!\bin\s*[(\[]).)+?)\s*(?:\bin\s*[(\[]\s*(?P<low>{_NUMBER})\s*,\s*(?P<high>{_NUMBER})\s*[)\]]"
    rf"|(?P<sign>[<>])\s*(?P<limit>{_NUMBER}))\s*(?:\band\b|$)"
)

_WRITTEN = 'clauses are joined by "and" alone, and a range is written "phi 1 in (0, 90)"'
Lookup = Callable[[str], CVValues]


def written_region(text: str, lookup: Lookup) -> np.ndarray:
    """Samples (n,) that satisfy `text`: clauses "NAME in (LOW, HIGH)", "NAME < X" and "NAME > X" joined by "and".

    Angles in degrees, distances in Angstrom; LOW counts as inside and HIGH does not. A periodic range may wrap:
    "phi 1 in (150, -150)". NAME is an attached collective variable, or the text of one.

    Raises:
        InputError: no such clause, or no such collective variable.
    """
    mask, end = None, 0
    while mask is None or end < len(text):
        match = _CLAUSE.match(text, end)
        if not match or (match.group().rstrip().endswith("and") and match.end() == len(text)):
            raise InputError(
                f"cannot read {text[end:].strip()!r}",
                where=f"region {text!r}",
                expected='clauses such as "phi 1 in (-180, 0)" or "distance 0 5 < 4", joined by "and"; degrees and A',
            )
        try:
            variable = lookup(match["name"])
        except InputError as error:
            error.add_note(f"in the region {text!r}: {_WRITTEN}")
            raise
        scale = 1 / shown(variable.unit)[0]
        if match["sign"]:
            limit = float(match["limit"]) * scale
            half = np.inf if variable.period is None else variable.period / 2
            inside = -half <= limit < half if match["sign"] == ">" else -half < limit <= half
            if variable.period is not None and not inside:
                raise InputError(
                    f"{variable.name} {match['sign']} {match['limit']}", where=f"region {text!r}",
                    expected=f"a limit between {-half / scale:g} and {half / scale:g}, where {variable.name} lies",
                    remedy=f'a range may wrap: "{variable.name} in (150, -150)"',
                )  # fmt: skip
            values = variable.wrapped(-variable.period / 2 if variable.period else 0.0)
            clause = values < limit if match["sign"] == "<" else values > limit
        else:
            clause = _within(variable, float(match["low"]) * scale, float(match["high"]) * scale)
        mask, end = clause if mask is None else mask & clause, match.end()
    return mask


def boxed_region(ranges: Mapping[str, tuple[float, float]], lookup: Lookup) -> np.ndarray:
    """Samples (n,) inside every [low, high) of `ranges`, a box over collective variables, in their units (A, rad)."""
    masks = [_within(lookup(name), *number_pair(pair, f"region, {name}")) for name, pair in ranges.items()]
    if not masks:
        raise InputError("a region without a range", expected='at least one, {"phi 1": (-3.14, 0.0)}')
    return np.logical_and.reduce(masks)


def _within(variable: CVValues, low: float, high: float) -> np.ndarray:
    if variable.period is None:
        if not low < high:
            raise InputError(
                f"{variable.name} from {low:g} to {high:g}", where="region", expected="the lower limit first"
            )
        return (variable.values >= low) & (variable.values < high)
    width = (high - low) / variable.period
    if abs(width - 1) <= 1e-9:
        return np.isfinite(variable.values)
    if width < 1 and abs(width - round(width)) < 1e-9:
        raise InputError(
            f"{variable.name} from {low:g} to {high:g} {variable.unit}: an empty range", where="region",
            expected="two different limits; a whole turn is low to low + 360 degrees",
        )  # fmt: skip
    if width > 1:  # degrees, most likely: as radians they would be everything
        raise InputError(
            f"{variable.name} from {low:g} to {high:g} {variable.unit}, more than a whole turn",
            where="region",
            expected=f"at most {variable.period:.4g} {variable.unit}; a box counts in A and rad, text in A and degrees",
        )
    return variable.wrapped(low) < low + np.mod(high - low, variable.period)
