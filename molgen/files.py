"""Files that are whole or absent: atomic writes, strict JSON, digests; what is known of a finished run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from molgen.errors import InputError

MANIFEST, SUMMARY = "manifest.json", "summary.json"  # of a run directory: what was asked, what was found
_UNFINISHED = re.compile(r"\.(.+)\.\w{8}\.tmp")  # what `write_atomic` writes to before it renames
_REMEDIES = {
    errno.ENOSPC: ("no space left on the device", "free some space, or write to another disk with --out"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or write to another disk with --out"),
    errno.EACCES: ("permission denied", "choose a folder you may write to with --out"),
    errno.EPERM: ("operation not permitted", "choose a folder you may write to with --out"),
    errno.EROFS: ("read-only file system", "choose a folder you may write to with --out"),
}


@contextlib.contextmanager
def explained(path: Path):
    """Turn an `OSError` of writing `path` into an `InputError` that says which file and what to do."""
    try:
        yield
    except OSError as error:
        what, remedy = _REMEDIES.get(error.errno or 0, (error.strerror or str(error), "choose another --out"))
        raise InputError(f"cannot write: {what}", where=str(path), remedy=remedy) from error


def write_atomic(path: str | Path, data: str | bytes) -> Path:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Parent folders are made. Text is UTF-8.

    Raises:
        InputError: the disk is full, or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The same folder, hence the same file system: only there is os.replace atomic.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would lock colleagues out of shared results
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    return path


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove what writers of `paths` (`write_atomic`) left beside them when they were killed; of a folder, those of all
    files in it. Only for who knows that nobody is writing there.

    Raises:
        InputError: one cannot be removed.
    """
    beside: dict[Path, set[str]] = {}
    found: list[Path] = []
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            found += [file for file in path.rglob(".*.tmp") if _UNFINISHED.fullmatch(file.name)]
        else:
            beside.setdefault(path.parent, set()).add(path.name)
    for folder, names in beside.items():
        tries = ((file, _UNFINISHED.fullmatch(file.name)) for file in folder.glob(".*.tmp"))
        found += [file for file, match in tries if match and match[1] in names]
    for file in found:
        with explained(file):
            file.unlink(missing_ok=True)


def lock_folder(folder: Path) -> int | None:
    """Hold `folder` until the handle returned is closed or the process ends, however it ends; no file is made.

    None where that cannot be: on platforms without `fcntl`, and on file systems that lock no folders, such as some NFS.

    Raises:
        InputError: another process holds it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _holder(os.fstat(handle))
        os.close(handle)
        raise InputError(
            f"another run is writing there{pid and f', pid {pid}'}", where=str(folder), expected="one run at a time",
            remedy="wait until it has ended, end it, or choose another --out",
        ) from None  # fmt: skip
    except OSError:
        os.close(handle)
        return None
    return handle


def _holder(about: os.stat_result) -> str:
    """Number of the process that holds the lock of a folder; empty where the system does not tell."""
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return ""
    return next((lock[4] for lock in locks if lock[1] == "FLOCK" and lock[5:6] == [place] and lock[4] != "0"), "")


def json_text(value: Any) -> str:
    """`value` as indented, standard JSON (RFC 8259) with a final newline.

    NumPy and torch scalars and arrays become numbers and lists, paths become strings, and non-finite numbers become
    null, because JSON has none.

    Raises:
        TypeError: `value` holds something that is not data (names the type).
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """What a run was asked; None where the folder holds none.

    Raises:
        InputError: the file is not valid JSON.
    """
    return _object(Path(folder) / MANIFEST)


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """What a run has found; None where the folder holds none.

    Raises:
        InputError: the file is not valid JSON.
    """
    return _object(Path(folder) / SUMMARY)


def _object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"not valid JSON ({error})", where=str(path), remedy="remove the file, or choose another folder"
        ) from error
    return content if isinstance(content, dict) else None


def digest(paths: Iterable[str | os.PathLike]) -> str:
    """SHA-256 of names and contents of files, and of all files in folders; of files above 64 MB, of size and time."""
    found = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                about = file.stat()
                small = about.st_size <= 64 * 2**20
                found.update(f"{file.name} {about.st_size}\n".encode())
                found.update(file.read_bytes() if small else str(about.st_mtime_ns).encode())
    return found.hexdigest()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 digest."""
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, without importing either
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
