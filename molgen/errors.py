"""Every error molgen raises on purpose: what went wrong, where, what was expected, what to do."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from typing import Any


class MolgenError(Exception):
    """Base of all molgen errors.

    Args:
        what: the fault, with the offending value ("coordinate is NaN").
        where: file, index or option ("reactant.xyz, atom 3").
        expected: what would have been right.
        remedy: what the user can do now.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, expected: str | None = None, remedy: str | None = None):
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        parts = [f"{where}: {what}" if where else what]
        if expected:
            parts.append(f"expected: {expected}")
        if remedy:
            parts.append(f"remedy: {remedy}")
        super().__init__("\n  ".join(parts))


class InputError(MolgenError):
    """The user's input cannot be used (exit code 2)."""

    exit_code = 2


class CheckpointError(InputError):
    """A weights or training checkpoint is missing, truncated or not what it claims to be."""


class CalculatorError(MolgenError):
    """A calculator cannot be built, or failed on every sample."""

    exit_code = 2


class TrainingError(MolgenError):
    """A training that came to nothing: its weights or its validation are not finite any more."""

    exit_code = 3


def check_counts(where: str | None = None, /, **least: tuple[Any, int | None]) -> None:
    """Refuse options that are not whole numbers, or are below the least; None stands for "not given".

    Args:
        where: the function they are arguments of; None: a command line has them.
        least: option -> (value, least or None).

    Raises:
        InputError: names the option.
    """
    for name, (value, minimum) in least.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and (minimum is None or int(value) >= minimum)):
            limit = "" if minimum is None else f", at least {minimum}"
            place = f"{where}, {name}" if where else f"--{name.replace('_', '-')}"
            raise InputError(f"{value!r} given", where=place, expected=f"a whole number{limit}")


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no whole number, 0 or more.

    Raises:
        InputError: names it; None too, which NumPy takes for "any": results could not be had again.
    """
    if seed is None:
        raise InputError("None given", where="--seed", expected="a whole number, at least 0")
    check_counts(seed=(seed, 0))


def check_paths(**paths: Any) -> None:
    """Refuse values that are not a file or folder name; None stands for "not given".

    Raises:
        InputError: names the option.
    """
    for name, value in paths.items():
        if value is not None:
            check_path(value, f"--{name.replace('_', '-')}")


def check_path(value: Any, where: str) -> None:
    """Refuse what is not a file or folder name, None too.

    Raises:
        InputError: names `where`.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{value!r} given", where=where, expected="a name or a path")


def check_given(**values: Any) -> None:
    """Refuse None where an option has no "not given".

    Raises:
        InputError: names the option.
    """
    for name, value in values.items():
        if value is None:
            raise InputError("None given", where=f"--{name.replace('_', '-')}", expected="a value")


def check_output(out: Any, *, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse an output folder that is no path, and options that need a folder where none is given.

    Raises:
        InputError: names the option.
    """
    check_paths(out=out)
    if out is None and (resume or overwrite):
        where = "resume" if resume else "overwrite"
        raise InputError("given without a folder", where=where, remedy="give it: out")


def number_pair(value: Any, where: str) -> tuple[float, float]:
    """`value` as two numbers.

    Raises:
        InputError: it is something else, or one of them is nan.
    """
    try:
        low, high = map(float, () if isinstance(value, (str, bytes)) else value)
    except (TypeError, ValueError):
        low = high = math.nan
    if math.isnan(low) or math.isnan(high):
        raise InputError(f"{value!r} given", where=where, expected="two numbers, (low, high)")
    return low, high


def check_temperature(temperature: Any, where: str = "--temperature") -> None:
    """Refuse a temperature, K, that is not a number above 0.

    Raises:
        InputError: names `where`.
    """
    number = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if not (number and 0 < float(temperature) < math.inf):
        said = f"{temperature:g} K" if number else repr(temperature)
        raise InputError(f"temperature {said}", where=where, expected="a number above 0 K")
