"""The xyz and extxyz format, parsed here so that a message can name the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers

from molgen.errors import InputError

_ISOTOPES = {"D": 1, "T": 1}  # they have the electrons of hydrogen, and weigh as much here
_NUMBER_OF = {**atomic_numbers, **_ISOTOPES}


class Frame(NamedTuple):
    """`numbers` (N,), `positions` (N, 3), Angstrom, and `comment` of a frame; whether it has `isotopes`, D or T."""

    numbers: np.ndarray
    positions: np.ndarray
    comment: str
    isotopes: bool


def xyz_frames(path: Path) -> Iterator[Frame]:
    """The frames of an xyz or extxyz file. Blank lines around frames are skipped.

    Raises:
        InputError: not text, or a line that is no atom.
    """
    # not splitlines: a form feed or U+2028 in a comment ends no line; \r and \r\n were made \n by reading
    lines, at = text_of(path).removesuffix("\n").split("\n"), 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        frame = _frame(lines, at, str(path))
        yield frame
        at += 2 + len(frame.numbers)


def _frame(lines: list[str], at: int, path: str) -> Frame:
    """The frame that begins at line `at`."""
    try:
        count = int(lines[at])
    except ValueError:
        raise InputError(
            f"'{lines[at].strip()}' is not a number of atoms", where=f"{path}, line {at + 1}",
            expected="xyz: number of atoms, a comment line, then 'element x y z' lines",
        ) from None  # fmt: skip
    if count < 1 or at + 2 + count > len(lines):
        raise InputError(
            f"{count} atoms announced, {max(0, len(lines) - at - 2)} found", where=f"{path}, line {at + 1}",
            expected="as many atom lines as the first line says",
            remedy="correct the count, or fetch the file again: it may be cut short",
        )  # fmt: skip
    element, first = _columns(lines[at + 1], f"{path}, line {at + 2}")
    numbers, positions, isotopes = np.empty(count, np.int64), np.empty((count, 3)), False
    for k in range(count):
        number = at + 2 + k
        where, fields = f"{path}, line {number + 1}", lines[number].split()
        try:
            x, y, z = fields[first : first + 3]
            positions[k] = float(x), float(y), float(z)
            symbol = fields[element]
        except (ValueError, IndexError):
            raise InputError(
                f"'{lines[number].strip()}' is not an atom", where=where, expected="element x y z, Angstrom"
            ) from None
        numbers[k] = atomic_number(symbol, where)
        isotopes |= symbol.capitalize() in _ISOTOPES
    return Frame(numbers, positions, lines[at + 1], isotopes)


def _columns(comment: str, where: str) -> tuple[int, int]:
    """Columns of the element and of x; an extxyz comment may say so (Properties=species:S:1:pos:R:3)."""
    _, found, text = comment.partition("Properties=")
    if not found:
        return 0, 1
    fields = text.split()[0].strip("\"'").split(":") if text.split() else []
    starts, column = {}, 0
    for name, width in zip(fields[0::3], fields[2::3], strict=False):
        starts[name] = column
        column += int(width) if width.isdecimal() else 1
    if "species" not in starts or "pos" not in starts:
        raise InputError(
            "Properties names no species or no pos", where=where, expected="Properties=species:S:1:pos:R:3"
        )
    return starts["species"], starts["pos"]


def charge_of(comment: str) -> tuple[int | None, str]:
    """The total charge, e, that the comment of an xyz frame names, such as charge=-1, "charge: -1" or the charge=-1.0
    of ASE; None where there is none, with what could not be read as one."""
    told = re.search(r"(?i)(?:^|[\s;,])charge\s*[=:]\s*\"?([^\s;,\"]+)", comment)
    if told is None:
        return None, ""
    whole = re.fullmatch(r"([+-]?\d+)(?:\.0*)?", told[1])
    return (int(whole[1]), "") if whole else (None, told[0].strip())


def is_periodic(comment: str) -> bool:
    """Whether the comment of an extxyz frame names periodic boundaries: a lattice, unless pbc="F F F" goes with it."""
    told = re.search(r"""(?i)(?:^|\s)pbc\s*=\s*("[^"]*"|'[^']*'|\[[^]]*\]|\S+)""", comment)
    return "Lattice=" in comment and (told is None or re.search(r"(?i)t|1", told[1]) is not None)


def text_of(path: Path) -> str:
    """A text file; characters of another encoding than UTF-8, as in comments, are replaced."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), expected="an xyz file") from error
    if "\0" in text:
        raise InputError("is not text", where=str(path), expected="an xyz file")
    return text


def atomic_number(symbol: str, where: str) -> int:
    """Atomic number of a symbol in any case, or of a number."""
    number = int(symbol) if symbol.isdecimal() else _NUMBER_OF.get(symbol.capitalize(), 0)
    if not 1 <= number <= 118:
        raise InputError(f"unknown element '{symbol}'", where=where, expected="an element symbol or an atomic number")
    return number
