"""The reactions of a list, each searched as by itself, in worker processes: `molgen ts --file FILE`."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from molgen.errors import CalculatorError, InputError, MolgenError
from molgen.files import sha256
from molgen.pool import WorkerPool
from molgen.run import Run
from molgen.words import counted
from molgen.workflows.journal import JOURNAL, Journal, carry_out, read_journal
from molgen.workflows.reaction_tools import WORKER_DIED
from molgen.workflows.ts import find_ts
from molgen.workflows.ts_result import TSResult

TABLE = "reactions.csv"
_QUOTES = "\"'"
_TWO_FILES = re.compile(r"""("[^"]+"|'[^']+'|\S+)\s+("[^"]+"|'[^']+'|\S+)(?:\s+(.+))?""")
REFUSED, FAILED = "refused", "failed"  # outcomes: bad input; no result
_FIGURES = (
    "steps", "barrier_forward_kcal", "barrier_reverse_kcal", "gibbs_forward_kcal", "gibbs_reverse_kcal",
    "forward_from_lowest_kcal", "reverse_from_lowest_kcal", "imaginary_frequency_cm", "barrierless_kcal",
)  # fmt: skip
_COLUMNS = (
    "number", "name", "reaction", "outcome", *_FIGURES, "gradient_calls", "seconds", "reason", "notes", "folder"
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A line of the list.

    Attributes:
        text: the reaction as written, without its name. name: "" where there is none.
        sides: arguments of :func:`molgen.find_ts` that name both sides: `smiles`, or `reactant` and `product`.
        digest: of the text, and of what the files hold.
    """

    text: str
    name: str
    sides: Mapping[str, Any]
    digest: str

    @property
    def files(self) -> list[str]:
        """Those that it names."""
        return [path for paths in self.sides.values() if not isinstance(paths, str) for path in paths]

    def folder(self, index: int) -> str:
        """Of its run: its number, from 1, and its name as far as a file may be called so."""
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", self.name).strip("-.")[:40]
        return f"{index + 1:04d}" + (f"-{plain}" if plain else "")


def side_of(text: str) -> str | list[str]:
    """One path, or several joined by commas."""
    if os.path.isfile(text):  # a comma may be part of a name; with many files it is too long for one
        return text
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return parts if len(parts) > 1 else text


def read_entries(path: Path) -> list[Entry]:
    """The reactions of a list, one a line: a reaction SMILES or two files of structures, then a name if it has one. A
    line that begins with # is a comment; files are relative to the list.

    Raises:
        InputError: it cannot be read, is empty, or a line is no reaction (names it), or names a file that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"cannot read: {reason}", where=str(path), expected="a list of reactions") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if (text := line.strip()) and not text.startswith("#"):
            found.append(_entry(text, path.parent, f"{path}, line {number}"))
    if not found:
        raise InputError("holds no reaction", where=str(path), expected="a reaction SMILES a line, or two files")
    return found


def search_all(
    entries: Sequence[Entry],
    run: Run,
    *,
    options: Mapping[str, Any],
    workers: int | None = None,
    log: Callable[[str], None] = lambda line: None,
    progress: Callable[[str], None] = lambda line: None,
) -> str:
    """Search every reaction with `options` of :func:`molgen.find_ts`, each in a folder of its own within that of the
    run; the table of all is `reactions.csv`. A reaction that is refused, or fails, costs itself alone.

    Killed anywhere and resumed, a run goes on with the reactions that are not finished, were refused or failed: their
    lines may be others now, and the list longer.

    Args:
        workers: processes, default one a core. log: called with a line for each reaction that ends. progress: called
            with how many have.

    Returns:
        The status of the run, whose figures are recorded: "partial" where a reaction was refused, failed or lost
        guesses to the calculator, else "gate_failed" where one is not proven, else "ok".

    Raises:
        InputError: no worker, a damaged journal, or another reaction in place of one that is finished.
        CalculatorError: it failed on every reaction.
    """
    folders = [entry.folder(k) for k, entry in enumerate(entries)]
    factory = partial(Searches, run.directory, entries, folders, dict(options))
    pool = WorkerPool(factory, workers, "--workers", on_progress=lambda job, content: None)
    again = _to_do_again(run.directory, entries) if run.resumed else []
    journal = Journal(run.path(JOURNAL), key="index")
    journal.open()
    for index in again:
        del journal.finished[index]
    for index, folder in enumerate(folders):
        run.path(journal.finished[index]["folder"] if index in journal.finished else folder)
    begin, told = time.monotonic(), set(journal.finished)

    def say() -> None:
        for index in sorted(set(journal.finished) - told):
            told.add(index)
            log(line_of(journal.finished[index]))
        each = (time.monotonic() - begin) / max(journal.fresh, 1)
        progress(f"{len(journal.finished)} of {counted(len(entries), 'reaction')}; {each:.0f} s each")

    def publish() -> None:
        rows = [journal.finished[index] for index in sorted(journal.finished)]
        run.results[:] = rows
        run.write_text(TABLE, table_of(rows))

    def lost(index: int) -> dict[str, Any]:
        return {**_about(index, entries[index], folders[index]), "outcome": FAILED, "reason": WORKER_DIED}

    carry_out(pool, range(len(entries)), journal, lost=lost, progress=say, publish=publish)
    rows, outcomes = run.results, Counter(row["outcome"] for row in run.results)
    if outcomes[FAILED] == len(rows):
        where = f"--calculator {options['calculator']}"
        raise CalculatorError(f"failed on every reaction: {rows[0]['reason']}", where=where)
    proven, calls = (sum(row[key] for row in rows) for key in ("proven", "gradient_calls"))
    run.record(reactions=len(rows), proven=proven, validity=dict(outcomes), energy_calls=calls)
    return next(status for status in ("partial", "gate_failed", "ok") if any(row["status"] == status for row in rows))


@dataclass(frozen=True)
class Searches:
    """A worker's job: the record of one reaction."""

    directory: Path
    entries: Sequence[Entry]
    folders: Sequence[str]
    options: Mapping[str, Any]

    def __call__(self, index: int, progress: Callable[[Any], None] = lambda content: None) -> dict[str, Any]:
        """Search reaction `index`; what goes wrong is in the record. `progress` ends a worker whose parent is gone: it
        would keep others from the folder that it writes to."""
        entry, folder = self.entries[index], self.folders[index]
        record, begin = _about(index, entry, folder), time.monotonic()
        try:
            found = find_ts(
                **entry.sides, **self.options, out=self.directory / folder, overwrite=True,
                progress=lambda stage, done, total: progress(stage),
            )  # fmt: skip
        except InputError as error:
            record |= {"outcome": REFUSED, "reason": str(error)}
        except Exception as error:  # of a calculator: the others go on
            told = str(error) if isinstance(error, MolgenError) else f"{type(error).__name__}: {error}"
            record |= {"outcome": FAILED, "reason": told}
        else:
            record |= _found(found)
        return record | {"seconds": round(time.monotonic() - begin, 1)}


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The records as a table of comma-separated values, empty where something is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        shown = {**row, "number": row["index"] + 1, "notes": "; ".join(row["notes"])}
        shown["reason"] = _one_line(row["reason"])
        writer.writerow([round(value, 3) if isinstance(value := shown[key], float) else value for key in _COLUMNS])
    return text.getvalue()


def line_of(row: Mapping[str, Any]) -> str:
    """A record in a line for people."""
    there, back = row["barrier_forward_kcal"], row["barrier_reverse_kcal"]
    told = row["outcome"].replace("_", " ")
    if row["steps"]:
        told += f" in {row['steps']} steps, {there:.1f} kcal/mol above the reactant at most"
    elif there is not None:
        told += f", {there:.1f} kcal/mol forward, {back:.1f} back"
    elif row["barrierless_kcal"] is not None:
        told += "; it may have no barrier"
    elif row["reason"]:
        told += f": {_one_line(row['reason'])}"
    return f"{row['index'] + 1} {row['name'] or row['reaction']}: {told}"


def _to_do_again(directory: Path, entries: Sequence[Entry]) -> list[int]:
    """Those of an earlier run in `directory` that were refused or failed.

    Raises:
        InputError: another reaction in place of one that was finished.
    """
    path, again = directory / JOURNAL, []
    earlier = read_journal(path, "index") if path.exists() else {}
    for index, record in earlier.items():
        if record["outcome"] in (REFUSED, FAILED):
            again.append(index)
        elif index >= len(entries) or record["digest"] != entries[index].digest:
            raise InputError(
                f"cannot resume: reaction {index + 1} was {record['reaction']}, or its files held something else",
                where=str(directory), expected="the list of the earlier run, with more at its end",
                remedy="put it back, or start afresh in another --out",
            )  # fmt: skip
    return again


def _entry(text: str, folder: Path, where: str) -> Entry:
    """A line that is no comment.

    Raises:
        InputError: see :func:`read_entries`.
    """
    first, *rest = text.split(maxsplit=1)
    if first.count(">") == 2:
        return Entry(first, "".join(rest), {"smiles": first}, sha256(first.encode()))
    if ">" in text:
        raise InputError("not a reaction SMILES", where=where, expected="reactant>>product without spaces, then a name")
    if (found := _TWO_FILES.fullmatch(text)) is None:
        expected = "a reaction SMILES, or the files of reactant and product, then a name"
        raise InputError("not a reaction", where=where, expected=expected)
    sides: dict[str, list[str]] = {}
    words = [word.strip(word[0]) if word[0] in _QUOTES else word for word in found.group(1, 2)]
    for side, word in zip(("reactant", "product"), words, strict=True):
        names = side_of(word) if not os.path.isfile(folder / word) else word
        sides[side] = [str(folder / name) for name in ([names] if isinstance(names, str) else names)]
    entry = Entry(shlex.join(words), found[3] or "", sides, "")
    held = sha256(entry.text.encode())
    for path in entry.files:
        if not os.path.isfile(path):
            raise InputError(f"no such file: {path}", where=where, expected="files of structures, relative to the list")
        held += sha256(Path(path).read_bytes())
    return replace(entry, digest=sha256(held.encode()))


def _about(index: int, entry: Entry, folder: str) -> dict[str, Any]:
    """A record with nothing found yet."""
    return {
        "index": index, "name": entry.name, "reaction": entry.text, "digest": entry.digest, "folder": folder,
        "status": "partial", "proven": False, **dict.fromkeys(_FIGURES), "gradient_calls": 0, "seconds": 0.0,
        "reason": "", "notes": [],
    }  # fmt: skip


def _one_line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines())


def _found(result: TSResult) -> dict[str, Any]:
    """What a search found; of several steps the highest point above the reactant."""
    best, gibbs = result.best, result.thermochemistry
    found: dict[str, Any] = {
        "outcome": best.verdict, "reason": best.reason, "gradient_calls": result.gradient_calls,
        "barrierless_kcal": result.barrierless_kcal, "status": result.status, "proven": result.verified,
        "notes": result.notes + [f"the {side} is no minimum: it becomes {x}" for side, x in result.unstable.items()],
    }  # fmt: skip
    if (mechanism := result.mechanism) is not None and mechanism.complete:
        return found | {
            "outcome": "intended", "proven": True, "steps": len(mechanism.steps), "barrierless_kcal": None,
            "barrier_forward_kcal": mechanism.highest_kcal,
            "gibbs_forward_kcal": None if math.isnan(highest := mechanism.highest_gibbs_kcal) else highest,
            "reason": "",
        }  # fmt: skip
    if result.verified:
        found |= {
            key: getattr(best, key)
            for key in ("barrier_forward_kcal", "barrier_reverse_kcal", "imaginary_frequency_cm")
        }
        if (lowest := result.barriers_from_lowest_kcal) is not None:
            found |= {"forward_from_lowest_kcal": lowest[0], "reverse_from_lowest_kcal": lowest[1]}
        if gibbs is not None:
            found |= {key: getattr(gibbs, key) for key in ("gibbs_forward_kcal", "gibbs_reverse_kcal")}
    return found
