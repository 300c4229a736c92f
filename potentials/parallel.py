"""A pool of worker processes, one sample each at a time; a worker that dies takes only its sample with it.

Each worker has its own pipe, so that the sample it died on is known; concurrent.futures breaks the whole pool instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler

import numpy as np

from molgen.errors import InputError
from molgen.potentials.base import Potential

# Fresh interpreters: a fork would copy the threads' locks of torch, OpenMM and tblite without their threads.
_CONTEXT = multiprocessing.get_context("spawn")


class ParallelPotential(Potential):
    """Evaluates the samples of a batch in `workers` processes; results in the order of the samples.

    Args:
        factory: picklable, makes the potential in each worker: `functools.partial(XtbPotential, numbers)`.
        workers: processes; by default one a core this process may use. Each runs one OpenMP thread unless
            OMP_NUM_THREADS says otherwise.

    Workers start at the first evaluation and live until `close()` or the end of a `with` block. As with all spawned
    processes, a script that uses this needs `if __name__ == "__main__":`.
    """

    def __init__(self, factory: Callable[[], Potential], workers: int | None = None):
        try:
            ForkingPickler.dumps(factory)
        except Exception as error:
            raise InputError(
                f"the factory cannot be sent to a worker: {error}",
                where="ParallelPotential",
                remedy="use functools.partial of a class or a function defined in a module",
            ) from error
        molecule = factory()
        super().__init__(molecule.numbers, molecule.charge, molecule.spin)
        self.factory = factory
        self.workers = len(os.sched_getaffinity(0)) if workers is None else int(workers)
        if self.workers < 1:
            raise InputError(f"{workers} workers", where="ParallelPotential", expected="at least 1")
        self._pool: list[_Worker] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End the workers. A later evaluation starts new ones."""
        while self._pool:
            self._pool.pop().end()

    def _evaluate(self, positions, forces):
        energy = np.full(len(positions), np.nan)
        force = np.full(positions.shape, np.nan) if forces else None
        waiting = deque(range(len(positions)))
        busy: dict = {}  # connection -> (worker, sample)
        try:
            while len(self._pool) < min(self.workers, len(positions)):
                self._pool.append(_Worker(self.factory))
            idle = list(self._pool)
            while waiting or busy:
                while idle and waiting:
                    worker, sample = idle.pop(), waiting.popleft()
                    worker.submit(positions[sample], forces)
                    busy[worker.connection] = worker, sample
                for connection in wait(list(busy)):
                    worker, sample = busy.pop(connection)
                    try:
                        energy[sample], given, reason = worker.connection.recv()
                    except (EOFError, ConnectionResetError):
                        self._pool.remove(worker)
                        given, reason = np.nan, worker.end()
                        worker = _Worker(self.factory)
                        self._pool.append(worker)
                    if reason:
                        self.failures[sample] = reason
                    if force is not None:
                        force[sample] = given
                    idle.append(worker)
        except BaseException:  # Ctrl-C included: no worker may keep a result that the next call would read
            for worker in self._pool:
                worker.process.kill()
            self.close()
            raise
        return energy, force


class _Worker:
    def __init__(self, factory):
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, factory), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()  # ours alone would keep the pipe open after the worker's death

    def submit(self, positions, forces: bool) -> None:
        try:
            self.connection.send((positions, forces))
        except BrokenPipeError:
            pass  # it died idle; the read that follows finds out and says so

    def end(self) -> str:
        """Close the pipe, which ends a living worker; how the process ended, in words."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return f"worker process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


def _serve(connection, factory) -> None:
    """A worker's life: positions in; energy, forces and the reason of a failure out; until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    potential = factory()
    while True:
        try:
            positions, forces = connection.recv()
        except EOFError:
            return
        if forces:
            energy, force = potential.energy_and_forces(positions[None])
            answer = energy[0], force[0]
        else:
            answer = potential.energy(positions[None])[0], None
        connection.send((*answer, potential.failures.get(0)))


@contextmanager
def _one_thread():
    """Processes started inside get OMP_NUM_THREADS=1 unless it is set: one thread a worker, not cores a worker."""
    given = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ["OMP_NUM_THREADS"]
