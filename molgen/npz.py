"""Arrays on disk: npz files that are written whole or not at all, and read with one kind of error."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molgen.errors import InputError
from molgen.files import write_atomic

# what numpy raises of files that are damaged, no npz, or hold Python objects
_DAMAGED = (
    ValueError, KeyError, EOFError, TypeError, AttributeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_npz(path: Path, arrays: Mapping[str, Any], *, compressed: bool = True) -> Path:
    """Write `arrays` by name; returns the path.

    Raises:
        InputError: the file cannot be written.
    """
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return write_atomic(path, stream.getvalue())


def read_npz(
    path: Path, needed: Sequence[str] = (), wanted: Sequence[str] | None = None, *, expected: str, remedy: str
) -> dict[str, np.ndarray]:
    """The arrays of a file by name: all, or those `wanted` that it has.

    Args:
        needed: names that have to be there. expected, remedy: what the file should be, and what to do where it is not,
            for messages.

    Raises:
        InputError: no such file, unreadable, damaged, no npz of plain arrays, or without one that is needed.
    """
    where = str(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(what, where=where, expected=expected, remedy="check the path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {name: archive[name] for name in (names if wanted is None else wanted) if name in names}
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=where, expected=expected,
                         remedy=remedy) from error  # fmt: skip
    except _DAMAGED as error:
        with path.open("rb") as stream:
            damaged = stream.read(2) == b"PK"
        raise InputError(
            f"not a readable npz file ({error})" if damaged else "not an npz file", where=where, expected=expected,
            remedy=remedy if damaged else f"check the path, or {remedy}",
        ) from error  # fmt: skip
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"missing keys: {', '.join(missing)}", where=where, expected=f"{expected}, with {', '.join(needed)}",
            remedy=remedy,
        )  # fmt: skip
    return arrays
