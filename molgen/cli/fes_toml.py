"""Options of `molgen fes` from a TOML file."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import typer

from molgen.errors import InputError

Options = dict[str, Any]  # every parameter of `molgen fes` by its name, from the command line, a file or its default
FILES = re.compile(r"(\b(?:rmsd|path-s|path-z)\s+)(?![=<>])(\S+)", re.IGNORECASE)  # in the text of a variable


def merged(given: Options, config: Path | None, ctx: typer.Context) -> Options:
    """Options of the command line over those of the file over defaults.

    Raises:
        InputError: no such file, not TOML, or a key that is no option.
    """
    if config is None:
        return given
    try:
        stored = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(config), expected="a TOML file") from error
    except ValueError as error:  # TOMLDecodeError, or not UTF-8
        raise InputError(
            f"is not TOML ({error})", where=str(config), remedy="write for example rounds = 300"
        ) from error
    names = {key.rstrip("_").replace("_", "-").removeprefix("as-"): key for key in given}
    result = dict(given)
    for name, value in stored.items():
        if name.replace("_", "-") not in names:
            raise InputError(f"unknown key {name!r}", where=str(config), expected=", ".join(sorted(names)))
        key = names[name.replace("_", "-")]
        source = ctx.get_parameter_source(key)
        if source is None or source.name == "DEFAULT":
            result[key] = typed(key, value, given[key], config)
    for parameter in ctx.command.params:
        least, value = getattr(parameter, "min", None), result.get(str(parameter.name))
        if least is not None and value is not None and value < least:
            raise InputError(f"{parameter.name} = {value}", where=str(config), expected=f"at least {least}")
    return result


def typed(key: str, value: Any, default: Any, config: Path) -> Any:
    """A value of the file as the command line would have given it; paths count from the file's folder."""
    listed: list[Any] = value if isinstance(value, list) else [value]
    good, example, result = type(value) is type(default), json.dumps(default, default=str), value
    if key in ("xyz", "pdb"):
        return [config.parent / str(item) for item in listed]
    if key == "hill_width":
        good, example, result = all(type(v) in (int, float) for v in listed), "0.1, or a list", listed
    elif key in ("cv", "wall", "range_", "forcefield"):
        good, example, result = all(isinstance(v, str) for v in listed), "text, or a list of texts", listed
        if key == "range_":
            example = '"0.7 1.8", or a list of such texts'
        if good and key in ("cv", "wall"):
            result = [FILES.sub(lambda m: f"{m[1]}{config.parent / m[2]}", text) for text in listed]
        elif good and key == "forcefield":
            result = [_beside(config, text) for text in listed]
    elif key == "calculator_kwargs":
        good, example = isinstance(value, dict), '{ method = "GFN1-xTB" }'
        result = json.dumps(value) if good else value
    elif key == "pretrained":
        good, example = isinstance(value, str), "ala2"
        result = _beside(config, str(value)) if good else value
    elif key == "solvent":
        good, example = isinstance(value, str), "water"
    elif key == "from_ts":
        good, example, result = isinstance(value, str), "a path", config.parent / str(value)
    elif key == "out":
        good, example, result = isinstance(value, str), "a path", Path(str(value))
    elif key in ("charge", "spin", "rounds", "draws", "learn", "samples", "paths"):
        good, example = type(value) is int, {"charge": "-1", "spin": "1"}.get(key, "200")
    elif isinstance(default, float) and type(value) is int:
        good, result = True, float(value)
    if not good:
        raise InputError(
            f"{key.rstrip('_')} = {value!r}",
            where=str(config),
            expected=f"a value like {example}",
            remedy="see molgen fes --help",
        )
    return result


def _beside(config: Path, text: str) -> str:
    """What lies beside the file under this name; else the name, of something that comes with molgen or OpenMM."""
    path = config.parent / text
    return str(path) if path.exists() else text
