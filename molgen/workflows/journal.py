"""Numbered jobs done by worker processes, each written to a journal as it ends, so that a killed run can go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from molgen.errors import InputError
from molgen.files import explained
from molgen.pool import Died, WorkerPool

JOURNAL = "attempts.jsonl"  # its name in the folder of a run
PUBLISH_EVERY = 600.0  # seconds between two writings of the results


class Journal:
    """The records of finished jobs, a JSON object a line, in the order of finishing.

    Args:
        path: file, made if absent. key: entry of a record that holds the number of its job.
        stamp: entries added to every record.

    Attributes:
        finished: records by number of job, those of earlier runs included. fresh: how many are of this run.
    """

    def __init__(self, path: Path, key: str = "attempt", stamp: Mapping[str, Any] | None = None):
        self.path, self.key, self.stamp = path, key, dict(stamp or {})
        self.finished: dict[int, dict[str, Any]] = {}
        self.fresh = 0
        self._stream: Any = None

    def open(self) -> None:
        """Read what an earlier run wrote, if there is one, and open the file for more.

        Raises:
            InputError: a damaged journal, or a file that cannot be written.
        """
        if self.path.exists():
            self.finished = read_journal(self.path, self.key)
        with explained(self.path):
            self._stream = self.path.open("a", encoding="utf-8")

    def keep(self, record: Mapping[str, Any]) -> None:
        """Write the record of a finished job.

        Raises:
            InputError: it cannot be written, such as to a full disk.
        """
        kept = {**record, **self.stamp}
        with explained(self.path):
            self._stream.write(json.dumps(kept) + "\n")
            self._stream.flush()
        self.finished[kept[self.key]] = kept
        self.fresh += 1

    def close(self) -> None:
        """Close the file.

        Raises:
            InputError: what is still to be written does not go in.
        """
        if self._stream is not None:
            with explained(self.path):
                self._stream.close()


def carry_out(
    pool: WorkerPool,
    jobs: Iterable[int],
    journal: Journal,
    *,
    lost: Callable[[int], dict[str, Any]],
    progress: Callable[[], None],
    publish: Callable[[], None],
    seconds: float | None = None,
) -> None:
    """Have the jobs done that are not in the journal, and close it and the pool.

    A job is taken from `jobs` when a worker is free for it; none after `seconds`, though those begun are finished.

    Args:
        pool: its workers take a job's number and answer with a record. lost: record of a job its worker died on.
        progress: called when the journal has another record.
        publish: writes the results of what the journal holds; called every PUBLISH_EVERY seconds, and at the end,
            whatever ended it.
    """
    begin = published = time.monotonic()
    done = set(journal.finished)

    def waiting() -> Iterator[tuple[int]]:
        for index in jobs:
            if index in done:
                continue
            if seconds is not None and time.monotonic() > begin + seconds:
                return
            yield (index,)

    try:
        for (index,), answer in pool.run(waiting()):
            journal.keep({**lost(index), "cause": answer.reason} if isinstance(answer, Died) else answer)
            progress()
            if time.monotonic() > published + PUBLISH_EVERY:
                publish()
                published = time.monotonic()
    finally:
        pool.close()
        try:
            journal.close()
        finally:
            publish()


def read_journal(path: Path, key: str = "attempt") -> dict[int, dict[str, Any]]:
    """Records of a journal by their entry `key`; a last line cut short by a kill is removed from the file.

    Raises:
        InputError: another line that is no record.
    """
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with explained(path), path.open("r+b") as stream:
            stream.truncate(whole)
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            index, outcome = int(record[key]), record["outcome"]
            if not isinstance(outcome, str):
                raise TypeError(f"outcome {outcome!r}")
            records[index] = record
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                "not the record of an attempt",
                where=f"{path}, line {number}",
                expected="what an earlier run wrote",
                remedy="remove the line: its attempt is then made again",
            ) from error
    return records
