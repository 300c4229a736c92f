"""A pool of worker processes, one job each at a time; a worker that dies takes only its job with it.

Each worker has its own pipe, so that the job it died on is known; concurrent.futures breaks the whole pool instead.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from molgen.errors import CalculatorError, InputError, check_counts
from molgen.threads import one_thread_each

# Fresh interpreters: a fork would copy the threads' locks of torch, OpenMM and tblite without their threads.
_CONTEXT = multiprocessing.get_context("spawn")


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Died:
    """The answer to a job whose worker died: how, in words."""

    reason: str


@dataclass(frozen=True)
class _Progress:
    """What a job said before its answer."""

    content: Any


@dataclass(frozen=True)
class _Started:
    """The first word of a worker; `fault`: why it has nothing to work with, in words."""

    fault: str = ""


class WorkerPool:
    """Hands jobs to `workers` processes.

    Args:
        factory: picklable, makes in each worker the callable that does a job.
        workers: processes; None: one a core this process may use. Each runs one thread of OpenMP and of OpenMM's CPU
            platform unless OMP_NUM_THREADS and OPENMM_CPU_THREADS say otherwise.
        where: names the pool in messages.
        on_progress: called with (job, content) each time a job calls `progress(content)`; with it jobs are given the
            keyword `progress`. Where the parent is gone, that call ends the process.

    Attributes:
        members: the living workers. They start when there is work for them, and live until `close()`.

    Raises:
        InputError: no worker, or a factory that cannot be sent to one.
    """

    def __init__(
        self,
        factory: Callable[[], Callable[..., Any]],
        workers: int | None = None,
        where: str = "WorkerPool",
        on_progress: Callable[[tuple, Any], None] | None = None,
    ):
        try:
            ForkingPickler.dumps(factory)
        except Exception as error:
            raise InputError(
                f"the factory cannot be sent to a worker: {error}",
                where=where,
                remedy="use functools.partial of a class or a function defined in a module",
            ) from error
        self.factory, self.on_progress, self.where = factory, on_progress, where
        check_counts(workers=(workers, 1))
        self.workers = cores() if workers is None else int(workers)
        self.members: list[Worker] = []
        self._started = False  # whether a worker ever has

    def run(self, jobs: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """(job, answer) of every job, in the order of finishing; the answer is `Died` where the worker died.

        A job is taken from `jobs` only when a worker is free for it. Ending early, Ctrl-C included, kills the workers:
        none may keep an answer that the next call would read.

        Raises:
            CalculatorError: the factory fails in a worker, or workers die before they have started and none ever has.
        """
        waiting = iter(jobs)
        busy: dict[Connection, tuple[Worker, tuple]] = {}
        idle, exhausted = list(self.members), False
        try:
            while True:
                while not exhausted and (idle or len(self.members) < self.workers):
                    job = next(waiting, None)
                    if job is None:
                        exhausted = True
                        break
                    worker = idle.pop() if idle else self._new()
                    worker.submit(job)
                    busy[worker.connection] = worker, job
                if not busy:
                    return
                for connection in wait(list(busy)):
                    worker, job = busy[connection]  # pyright: ignore[reportArgumentType]
                    try:
                        answer = worker.connection.recv()
                    except (EOFError, OSError):  # OSError: reset, or cut off within a message
                        self.members.remove(worker)
                        answer = Died(worker.end())
                        if not self._started:  # nor will the next
                            raise self._cannot_start(
                                answer.reason, 'a script that starts workers needs `if __name__ == "__main__":`'
                            ) from None
                    else:
                        if isinstance(answer, _Started):
                            if answer.fault:
                                raise self._cannot_start(answer.fault)
                            self._started = True
                            continue
                        if self.on_progress is not None and isinstance(answer, _Progress):
                            self.on_progress(job, answer.content)
                            continue
                        idle.append(worker)
                    del busy[connection]  # pyright: ignore[reportArgumentType]
                    yield job, answer
        except BaseException:
            for worker in self.members:
                worker.process.kill()
            self.close()
            raise

    def close(self) -> None:
        """End the workers. A later `run` starts new ones."""
        while self.members:
            self.members.pop().end()

    def _cannot_start(self, reason: str, remedy: str | None = None) -> CalculatorError:
        return CalculatorError(f"a worker cannot start: {reason}", where=self.where, remedy=remedy)

    def _new(self) -> Worker:
        self.members.append(Worker(self.factory, reports=self.on_progress is not None))
        return self.members[-1]


class Worker:
    """A process that does jobs one after the other; with `reports` jobs are given the keyword `progress`."""

    def __init__(self, factory: Callable[[], Callable[..., Any]], reports: bool = False):
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, factory, reports), daemon=True)
        with one_thread_each():
            self.process.start()
        theirs.close()  # ours alone would keep the pipe open after the worker's death

    def submit(self, job: tuple) -> None:
        """Hand over a job; one that died idle is found out by the read that follows."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job)

    def end(self) -> str:
        """Close the pipe, which ends a living worker; how the process ended, in words."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return f"worker process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def _serve(connection: Connection, factory: Callable[[], Callable[..., Any]], reports: bool) -> None:
    """A worker's life: jobs in, progress and answers out, until the pipe closes. What it prints goes to stderr."""
    with contextlib.suppress(OSError):  # one that has no stderr
        os.dup2(2, 1)  # also what a calculator's libraries print: stdout is for the parent's results
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle

    def send(message: Any) -> None:
        try:
            connection.send(message)
        except ConnectionError:  # the parent is gone
            raise SystemExit from None  # passes a job that catches every Exception

    try:
        work = factory()
    except Exception as error:
        send(_Started(f"{type(error).__name__}: {error}"))
        return
    send(_Started())
    options = {"progress": lambda content: send(_Progress(content))} if reports else {}
    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionError):
            return
        send(work(*job, **options))
