"""Text files that PLUMED reads: HILLS, COLVAR and free-energy surfaces as sum_hills writes them.

Energies are in kJ/mol, lengths in Angstrom, angles in rad, so PLUMED's input needs UNITS LENGTH=A ENERGY=kj/mol.
Units stand in comment lines "# units_energy kJ/mol" and "# unit_phi rad" under the header: a METAD that restarts from
HILLS stops at a "#! SET" line it does not know (PLUMED's IFile::scanField). Names lose what PLUMED cannot read:
"distance 0 4" becomes distance_0_4. PLUMED cuts Gaussians off at 3.5 widths, molgen does not: its sum_hills differs
from our free energy by up to 0.2 % of the heights that overlap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from molgen.cvdiffusion.bias import WellTemperedBias
from molgen.errors import InputError
from molgen.units import KJ_MOL
from molgen.variables import wrapped

COLUMNS: tuple[str, ...] = ("bias", "energy", "logweight")  # of the COLVAR of a run, beside its variables
_UNIT_LINE = re.compile(r"#\s+(units?_\S+)\s+(\S+)\s*")


def field_name(name: str) -> str:
    """`name` as a PLUMED field: letters, digits, "_", "." and "-", anything else a "_".

    So is the "." of a number: ARG=c_1.8 is to PLUMED a component "8" of "c_1", and METAD cannot have it.
    """
    field = re.sub(r"[^A-Za-z0-9_.-]+|\.(?=\d)", "_", name.strip())
    if not re.search("[A-Za-z0-9]", field):
        raise InputError(f"collective variable named {name!r}", where="PLUMED file", expected="letters or digits")
    return field


def hills_text(bias: WellTemperedBias) -> str:
    """HILLS: one hill a line, time its number; heights times gamma / (gamma - 1), which sum_hills turns into -F.

    Periodic variables are moved into [-period/2, period/2), the domain that PLUMED's TORSION has: a METAD that restarts
    refuses another, whatever the range of the axis.
    """
    names = _field_names([axis.name for axis in bias.axes])
    hills = bias.hills
    count = len(hills.heights)
    centres, sets = _periodic(names, [axis.period for axis in bias.axes], hills.centres)
    table = np.column_stack(
        [
            np.arange(count),
            centres,
            np.broadcast_to(bias.widths, hills.centres.shape),
            hills.heights * bias.gamma / (bias.gamma - 1) / KJ_MOL,
            np.full(count, bias.gamma),
        ]
    )
    fields = ["time", *names, *(f"sigma_{name}" for name in names), "height", "biasf"]
    sets += [("multivariate", "false"), ("kerneltype", "gaussian")]
    return _header(fields, sets, names, [axis.unit for axis in bias.axes]) + _rows(table)


def colvar_text(
    names: Sequence[str],
    units: Sequence[str],
    periods: Sequence[float | None],
    values: ArrayLike,
    extra: Mapping[str, ArrayLike] | None = None,
) -> str:
    """COLVAR: one sample a line, time its number; periodic variables moved into [-period/2, period/2).

    Args:
        names, units, periods: of D collective variables; periods None where not periodic.
        values: (n, D) in `units`.
        extra: further columns (n,), written as they are, e.g. "bias" in kJ/mol and "logweight".

    Raises:
        InputError: lengths that differ, names that coincide.
    """
    columns = {field_name(name): np.asarray(column, dtype=float) for name, column in (extra or {}).items()}
    fields = _field_names(names)
    table = np.asarray(values, dtype=float)
    _check_count(fields, units, periods)
    if table.ndim != 2 or table.shape[1] != len(fields):
        raise InputError(f"values of shape {table.shape}", where="COLVAR", expected=f"(n, {len(fields)})")
    for name, column in columns.items():
        if column.shape != (len(table),):
            raise InputError(f"column of shape {column.shape}", where=f"COLVAR, {name}", expected=f"({len(table)},)")
    table, sets = _periodic(fields, periods, table)
    every = np.column_stack([np.arange(len(table)), table, *columns.values()])
    return _header(["time", *fields, *columns], sets, fields, units) + _rows(every)


def fes_text(
    names: Sequence[str],
    units: Sequence[str],
    periods: Sequence[float | None],
    centres: Sequence[np.ndarray],
    free_energy: np.ndarray,
    error: np.ndarray | None = None,
) -> str:
    """Free-energy surface as sum_hills writes it: the first variable fastest, a blank line after each of its sweeps.

    Args:
        names, units, periods: of D collective variables.
        centres: D arrays of grid points (bin centres or nodes), evenly spaced.
        free_energy: eV, (n_1, ..., n_D); may be inf.
        error: eV, likewise; left out if None.

    Raises:
        InputError: shapes that differ, uneven grid points, names that coincide.
    """
    fields = _field_names(names)
    points = [np.asarray(c, dtype=float) for c in centres]
    _check_count(fields, units, periods, points)
    shape = tuple(len(c) for c in points)
    columns = [np.asarray(c, dtype=float) for c in ((free_energy,) if error is None else (free_energy, error))]
    for column in columns:
        if column.shape != shape:
            raise InputError(f"grid of shape {column.shape}", where="free-energy surface", expected=f"{shape}")
    sets = []
    for name, period, c in zip(fields, periods, points, strict=True):
        sets += _grid_sets(name, period, c)
    mesh = np.meshgrid(*points, indexing="ij")
    table = np.stack([a.ravel(order="F") for a in (*mesh, *(c / KJ_MOL for c in columns))], axis=1)
    sweep = shape[0] if len(shape) > 1 else len(table)
    blocks = [_rows(table[start : start + sweep]) for start in range(0, len(table), sweep)]
    header = _header([*fields, "file.free", *(["error"] if error is not None else [])], sets, fields, units)
    return header + "\n".join(blocks)


def check_names(bias: WellTemperedBias) -> None:
    """Refuse collective variables whose names clash in the files, before a run has cost anything.

    Raises:
        InputError: the names that clash.
    """
    names, units, periods = zip(*((a.name, a.unit, a.period) for a in bias.axes), strict=True)
    colvar_text(names, units, periods, np.zeros((0, len(names))), dict.fromkeys(COLUMNS, np.zeros(0)))
    fes_text(names, units, periods, [np.zeros(1)] * len(names), *2 * [np.zeros([1] * len(names))])
    hills_text(bias)


def read_table(source: str | Path) -> tuple[list[str], dict[str, str], np.ndarray]:
    """Fields, settings and rows (n, F) of a PLUMED file, in the units of the file.

    Settings are the "#! SET" lines and the unit lines of molgen, e.g. {"min_phi": "-pi", "units_energy": "kJ/mol"}.

    Args:
        source: a path, or the text itself (anything with a line break in it).

    Raises:
        InputError: no such file, no "#! FIELDS" line, or a row that does not fit it (names the line).
    """
    text, where = _text(source)
    fields: list[str] | None = None
    sets: dict[str, str] = {}
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words, at = line.split(), f"{where}, line {number}"
        if words[:2] == ["#!", "FIELDS"]:
            if fields is not None and words[2:] != fields:
                raise InputError("the fields change", where=at, expected=" ".join(fields))
            fields = words[2:]
        elif words[:2] == ["#!", "SET"] and len(words) == 4:
            sets[words[2]] = words[3]
        elif unit := _UNIT_LINE.fullmatch(line):
            sets[unit[1]] = unit[2]
        elif words := line.split("#")[0].split():
            if fields is None:
                raise InputError("data before the header", where=at, expected='"#! FIELDS ..." in the first line')
            rows.append(_numbers(words, len(fields), at))
    if fields is None:
        raise InputError("no header", where=where, expected='"#! FIELDS ..." in the first line')
    return fields, sets, np.array(rows, dtype=float).reshape(len(rows), len(fields))


def _periodic(
    fields: Sequence[str], periods: Sequence[float | None], values: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Values (n, D), periodic ones moved into [-period/2, period/2), and the header that says so."""
    moved, sets = np.array(values, dtype=float), []
    for d, (name, period) in enumerate(zip(fields, periods, strict=True)):
        if period is not None:
            sets += [(f"min_{name}", _end(-period / 2)), (f"max_{name}", _end(period / 2))]
            moved[:, d] = wrapped(moved[:, d], -period / 2, period)
    return moved, sets


def _text(source: str | Path) -> tuple[str, str]:
    if isinstance(source, str) and "\n" in source:
        return source, "PLUMED text"
    try:
        return Path(source).read_text(encoding="utf-8"), str(source)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read: {error}", where=str(source), expected="a PLUMED text file") from error


def _numbers(words: list[str], count: int, where: str) -> list[float]:
    if len(words) != count:
        raise InputError(f"{len(words)} columns", where=where, expected=f"{count}, as the header says")
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"not a number: {error}", where=where) from error


def _field_names(names: Sequence[str]) -> list[str]:
    if not names:
        raise InputError("no collective variable", where="PLUMED file", expected="one or more")
    return [field_name(name) for name in names]


def _check_count(fields: Sequence[str], *others: Sequence) -> None:
    if any(len(other) != len(fields) for other in others):
        raise InputError(
            f"{[len(other) for other in others]} entries for {len(fields)} collective variables",
            where="PLUMED file",
            expected="one for each",
        )


def _grid_sets(name: str, period: float | None, points: np.ndarray) -> list[tuple[str, str]]:
    """Header of one axis as PLUMED's grids have it; `points` that make up a whole period are periodic.

    Its nbins is the number of points, also where both ends are points (GridBase::create: "one more bin").
    """
    if not len(points) or not np.isfinite(points).all():
        raise InputError(f"grid points {points}", where=name, expected="one or more, finite")
    step = (points[-1] - points[0]) / max(len(points) - 1, 1)
    if not np.allclose(np.diff(points), step, rtol=0, atol=1e-6 * abs(step)) or (len(points) > 1 and step <= 0):
        raise InputError("uneven grid points", where=name, expected="rising by equal steps: PLUMED's grids are even")
    around = period is not None and np.isclose(step * len(points), period, rtol=1e-6, atol=0)
    high = points[0] + period if period is not None and around else points[-1]
    return [
        (f"min_{name}", _end(points[0])),
        (f"max_{name}", _end(high)),
        (f"nbins_{name}", str(len(points))),
        (f"periodic_{name}", "true" if around else "false"),
    ]


def _header(fields: Sequence[str], sets: Iterable[tuple[str, str]], names: Sequence[str], units: Sequence[str]) -> str:
    if len(set(fields)) != len(fields):
        raise InputError(f"two fields of one name in {' '.join(fields)}", where="PLUMED file", remedy="rename one")
    lines = [f"#! FIELDS {' '.join(fields)}", *(f"#! SET {key} {value}" for key, value in sets)]
    lines += ["# units_energy kJ/mol", "# units_length A"]
    lines += [f"# unit_{name} {unit or 'none'}" for name, unit in zip(names, units, strict=True)]
    return "\n".join(lines) + "\n"


def _rows(table: np.ndarray) -> str:
    return "".join(" " + " ".join(f"{value:.12g}" for value in row) + "\n" for row in table.tolist())


def _end(value: float) -> str:
    """An end of a range; PLUMED compares them as text, so -pi and pi must look as it writes them."""
    for text, exact in (("-pi", -np.pi), ("pi", np.pi)):
        if abs(value - exact) < 1e-9:
            return text
    return f"{value:.12g}"
