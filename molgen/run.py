"""A run directory: what was asked (`manifest.json`), what came out, and how it went (`summary.json`).

with Run(out, "ts", settings, seed=0, device="cpu") as run:
    run.write_text("ts.xyz", frames)
    run.results.append({"verdict": "intended"})      # kept even if the user presses Ctrl-C here
    summary = run.finish("ok", energy_calls=61)
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from molgen import __version__
from molgen.errors import InputError, MolgenError, check_seed
from molgen.files import (
    MANIFEST,
    SUMMARY,
    explained,
    json_text,
    lock_folder,
    read_manifest,
    read_summary,
    remove_unfinished,
    write_atomic,
)

Progress = Callable[[str, int, int], None]  # told of a stage, how much of it is done, and of how much
METHOD = "method"  # setting of a run, see `Run`
RUN_KEYS = ("status", "command", "molgen_version", "seed", "device", "wall_seconds", "results")  # of a summary
# Keys every summary has, so that scripts need not ask which command wrote it; null where a command has no such thing.
_FIGURES = ("checkpoint_hash", "energy_calls", "validity", "rejections")


class Run:
    """One run and the directory that holds it.

    Every file appears whole or not at all. Files are listed in the manifest, so `overwrite` removes what an earlier run
    wrote and nothing else. A run that replaces or continues another touches nothing before its first output, the first
    call of `path`; one that ends with an error before leaves the other as it was. The folder is locked until the end of
    the `with` block, or `release`.

    Args:
        directory: output folder, made if absent.
        command: subcommand, e.g. "ts".
        settings: JSON-ready options that decide the result; a resumed run must have the same. `METHOD` names what
            no option chooses, but another version of molgen may do otherwise.
        seed: random seed.
        device: torch device name; may differ when resuming.
        overwrite: replace an earlier run in `directory`; its files are there until the first output.
        resume: continue an earlier run in `directory`; a fresh start where there is none. None where the command
            cannot: a message does not offer it then.
        reads: what the run is given to read besides the paths in `settings`.
        within: `directory` is an output of another run, which has cleared it: what it still holds is the user's.

    Attributes:
        results: list that `finish` writes when it is given no other; fill it as results arrive.
        figures: summary entries collected so far (see `record`).
        resumed: True when this continues an earlier run.

    Raises:
        InputError: a seed that is none; the directory holds files and neither `overwrite` nor `resume` was asked; it
            is not a run directory of this command (either); a setting changed (resume); it cannot be written; another
            process has a run there.
    """

    def __init__(
        self,
        directory: str | Path,
        command: str,
        settings: Mapping[str, Any],
        *,
        seed: int = 0,
        device: str = "cpu",
        overwrite: bool = False,
        resume: bool | None = None,
        reads: Iterable[Any] = (),
        within: bool = False,
    ):
        check_seed(seed)
        self.directory = Path(directory)
        self.command, self.seed, self.device = command, int(seed), str(device)
        self.results: list[Any] = []
        self.figures: dict[str, Any] = {}
        self.resumed = False
        self._settings = json.loads(json_text(dict(settings)))
        self._files: list[str] = []
        self._earlier_seconds = 0.0
        self._finished = False
        self._begin = time.monotonic()
        self._reads = [*reads, *_texts(self._settings)]
        self._untouched = self._replaces = False  # whether an earlier run is still as it was; is to be cleared then
        self._unlock: Callable[[], Any] | None = None
        try:
            self._open(overwrite, resume, within)
            if not self._untouched:
                self._write_manifest()
        except BaseException:
            self.release()
            raise

    def path(self, name: str) -> Path:
        """Path of output `name`, listed in the manifest; for writers that need one (atomic writing is then theirs).

        The first call removes the run that this one replaces.

        Raises:
            ValueError: `name` points outside the run directory.
        """
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or path == Path("."):
            raise ValueError(f"{name!r} is not a path inside the run directory")
        changed, self._untouched = self._untouched, False
        if self._replaces:
            self._replaces = False
            _clear(self.directory)
        if name not in self._files:
            self._files.append(name)
            changed = True
        if changed:
            self._write_manifest()
        return self.directory / path

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write `data` to output `name` atomically."""
        return write_atomic(self.path(name), data)

    def write_text(self, name: str, text: str) -> Path:
        """Write `text` (UTF-8) to output `name` atomically."""
        return write_atomic(self.path(name), text)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` to output `name` atomically (NumPy values welcome, non-finite numbers become null)."""
        return write_atomic(self.path(name), json_text(value))

    def record(self, **figures: Any) -> None:
        """Keep `figures` for the summary, also for that of an interrupted run."""
        self.figures.update(figures)

    def finish(self, status: str, results: list[Any] | None = None, **figures: Any) -> dict[str, Any]:
        """Write `summary.json` and return its content.

        Args:
            status: "ok", "gate_failed", "partial", "interrupted" or "failed".
            results: list of results; default `self.results`.
            figures: `checkpoint_hash`, `energy_calls`, `validity`, `rejections` (reason -> count) and whatever the
                command measures besides.
        """
        figures = {**dict.fromkeys(_FIGURES), **self.figures, **figures}
        summary = {
            "status": status,
            "command": self.command,
            "molgen_version": __version__,
            "seed": self.seed,
            "device": self.device,
            "wall_seconds": round(self._earlier_seconds + time.monotonic() - self._begin, 3),
            **figures,
            "results": self.results if results is None else results,
        }
        text = json_text(summary)
        write_atomic(self.path(SUMMARY), text)
        self._finished = True
        return json.loads(text)

    def release(self) -> None:
        """Let other processes have the folder; of a run that writes nothing more."""
        if self._unlock is not None:
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """Leave a summary whatever happened, but no folder where the input was refused before anything was written, and
        an earlier run as it was where this one has put nothing in its place.

        The exception goes on to the caller.
        """
        try:
            self._end(error)
        finally:
            self.release()

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            if not self._finished:
                self.finish("ok")
            return
        if self._untouched or (isinstance(error, InputError) and self._withdraw()):
            return
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            self.finish(status, error=str(error) or type(error).__name__)
        except MolgenError as second:
            error.add_note(f"and no {SUMMARY} could be written: {second}")  # the first fault is the one to report

    def _withdraw(self) -> bool:
        """Remove the folder of a run that has begun here and written its manifest alone; whether it was one."""
        with explained(self.directory):
            if not self._fresh or [path.name for path in self.directory.iterdir()] != [MANIFEST]:
                return False
            (self.directory / MANIFEST).unlink()
            if self._made:
                self.directory.rmdir()
        return True

    def _open(self, overwrite: bool, resume: bool | None, within: bool) -> None:
        where = str(self.directory)
        if overwrite and resume:
            raise InputError("--overwrite and --resume exclude each other", where=where, remedy="give one of the two")
        with explained(self.directory):
            file = self.directory.exists() and not self.directory.is_dir()
        if file:
            raise InputError("is a file", where=where, expected="an output folder", remedy="choose another --out")
        with explained(self.directory):
            self._made = not self.directory.exists()
            self.directory.mkdir(parents=True, exist_ok=True)
            if not within and (handle := lock_folder(self.directory)) is not None:
                self._unlock = weakref.finalize(self, os.close, handle)
                remove_unfinished(self.directory / name for name in (MANIFEST, SUMMARY))
            self._fresh = not any(self.directory.iterdir())
        if self._fresh or within:
            return
        self._untouched = True
        if resume:
            self._continue()
            self._tidy()
            return
        held = (read_manifest(self.directory) or {}).get("command")
        if not overwrite:
            ways = ["another --out"]
            if held == self.command:
                ways = [*(["--resume to continue it"] if resume is not None else []),
                        "--overwrite to replace the earlier run", *ways]  # fmt: skip
            raise InputError(
                "the output folder is not empty", where=where, expected="an empty or new folder",
                remedy=f"give {', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else f"give {ways[0]}",
            )  # fmt: skip
        if held != self.command:
            raise InputError(
                f"holds the output of molgen {held}" if held else "holds files, but no run of molgen",
                where=where, expected=f"a run of molgen {self.command}, to replace it",
                remedy="choose another --out, or remove the folder yourself",
            )  # fmt: skip
        self._keep_what_is_read()
        self._tidy()
        self._replaces = True

    def _tidy(self) -> None:
        """Remove what writers of this run left when they were killed; runs within it do that when they go on."""
        if self._unlock is not None:
            remove_unfinished(path for path in _listed(self.directory) if not _is_run(path))

    def _continue(self) -> None:
        manifest = read_manifest(self.directory)
        if manifest is None:
            raise InputError(
                f"nothing to resume: no {MANIFEST}",
                where=str(self.directory),
                expected="the folder of an earlier run",
                remedy="check --out, or leave out --resume",
            )
        held = manifest.get("command")
        if held != self.command:
            raise InputError(
                f"cannot resume: holds the output of molgen {held}",
                where=str(self.directory),
                expected=f"a run of molgen {self.command}",
                remedy="choose another --out",
            )
        before, now = {"seed": manifest.get("seed")}, {"seed": self.seed}
        before |= manifest.get("settings", {})
        now |= self._settings
        if before.get(METHOD) != now.get(METHOD):
            raise InputError(
                "cannot resume: an earlier version of molgen, which did this in another way, began the run",
                where=str(self.directory / MANIFEST),
                expected=f"'{METHOD}': {now.get(METHOD)!r}",
                remedy="start afresh in another --out",
            )
        if (
            "data_sha256" in now
            and before.get("data_sha256") != now["data_sha256"]
            and before.get("data") == now["data"]
        ):
            raise InputError(
                "cannot resume: the files of the data have other contents than when the run began",
                where=str(self.directory / MANIFEST), expected="the same data",
                remedy="put them back, or start afresh in another --out",
            )  # fmt: skip
        for key in {**before, **now}:
            was, is_now = before.get(key), now.get(key)
            if was != is_now:
                if isinstance(was, dict) and isinstance(is_now, dict):  # what differs alone
                    same = {k for k in was if k in is_now and was[k] == is_now[k]}
                    was, is_now = ({k: v for k, v in part.items() if k not in same} for part in (was, is_now))
                raise InputError(
                    f"cannot resume: '{key}' was {was!r} and is now {is_now!r}",
                    where=str(self.directory / MANIFEST),
                    expected="the settings of the earlier run",
                    remedy=f"set '{key}' back, or start afresh in another --out",
                )
        self._files = [str(name) for name in manifest.get("files", [])]
        self._earlier_seconds = float((read_summary(self.directory) or {}).get("wall_seconds") or 0.0)
        self.resumed = True

    def _keep_what_is_read(self) -> None:
        """Refuse to replace an earlier run by one that reads what it wrote, such as weights."""
        root = self.directory.resolve()
        own = {path.resolve() for path in _own(self.directory)}
        for text in self._reads:
            if not isinstance(text, (str, os.PathLike)) or not os.path.exists(text):
                continue
            path = Path(text).resolve()
            holds = root in path.parents and any(path in mine.parents for mine in own)  # a run within this one
            if holds or own & {path, *path.parents}:
                raise InputError(
                    f"{text} lies in it, and would be removed before the run", where=str(self.directory),
                    expected="a folder to replace that holds nothing the run reads", remedy="choose another --out",
                )  # fmt: skip

    def _write_manifest(self) -> None:
        manifest = {
            "command": self.command,
            "settings": self._settings,
            "seed": self.seed,
            "device": self.device,
            "molgen_version": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": self._files,
        }
        write_atomic(self.directory / MANIFEST, json_text(manifest))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _listed(folder: Path) -> Iterator[Path]:
    """What the run in `folder` listed as its own."""
    root = folder.resolve()
    for name in (read_manifest(folder) or {}).get("files") or []:
        path = folder / str(name)
        if root in path.resolve().parents:  # a manifest edited by hand must not reach outside
            yield path


def _own(folder: Path) -> Iterator[Path]:
    """What the run in `folder` listed as its own; of a run within it, what that listed, and its manifest."""
    for path in _listed(folder):
        if _is_run(path):
            yield from (*_own(path), path / MANIFEST)
        else:
            yield path


def _clear(folder: Path) -> None:
    """Remove what the run in `folder`, and the runs within it, listed as their own."""
    own = list(_own(folder))
    with explained(folder):
        for path in own:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if path.name == MANIFEST and path.parent != folder:
                (path.parent / SUMMARY).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # the user's own files in it stay
                    path.parent.rmdir()


def _is_run(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and (path / MANIFEST).exists()
