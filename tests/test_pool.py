"""Worker pools: progress reaches the parent, a death costs one job, orphans end quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from molgen.errors import CalculatorError
from molgen.pool import Died, WorkerPool, cores


class Counting:
    """Counts to its job's number, and dies at 3."""

    def __call__(self, number, progress):
        for k in range(number):
            progress((k, os.environ["OMP_NUM_THREADS"]))
            if k == 3:
                os._exit(7)
        return -number


def test_progress_comes_with_its_job_and_before_its_answer(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    heard = []
    pool = WorkerPool(Counting, 2, on_progress=lambda job, content: heard.append((job, content)))
    answers = {}
    for (number,), answer in pool.run([(3,), (5,), (2,)]):
        assert sum(job == (number,) for job, _ in heard) == min(number, 4)
        answers[number] = answer
    pool.close()
    assert answers == {3: -3, 2: -2, 5: Died("worker process died (exit code 7)")}
    assert [content for job, content in heard if job == (5,)] == [(k, "1") for k in range(4)]


class Unable:
    """Fails wherever it is made; `how`: with an error, or by the end of its process."""

    def __init__(self, how: str):
        if how == "error":
            raise RuntimeError("no licence on this machine")
        os._exit(9)


class DiesOnce:
    """Does what it is given, and dies of 0, the first of its pool."""

    def __call__(self, number):
        if number == 0:
            os._exit(7)
        return number


@pytest.mark.parametrize(
    ("how", "reason"), [("error", "RuntimeError: no licence on this machine"), ("exit", "exit code 9")]
)
def test_workers_that_cannot_start_end_it(how, reason):
    """With the reason, and not a new process for every job."""
    pool, taken = WorkerPool(partial(Unable, how), 2, "energies"), []
    with pytest.raises(CalculatorError, match=f"energies: a worker cannot start: .*{reason}"):
        list(pool.run((taken.append(k) or k,) for k in range(100)))
    assert pool.members == [] and len(taken) == 2


def test_a_first_job_that_kills_its_worker_costs_itself_alone():
    with_pool = WorkerPool(DiesOnce, 1)
    answers = dict(with_pool.run([(0,), (1,)]))
    with_pool.close()
    assert answers == {(0,): Died("worker process died (exit code 7)"), (1,): 1}


def test_an_error_in_the_parent_ends_the_workers():
    def stop(job, content):
        raise KeyboardInterrupt

    pool = WorkerPool(Counting, 1, on_progress=stop)
    with pytest.raises(KeyboardInterrupt):
        list(pool.run([(2,)]))
    assert pool.members == []


class Talking:
    """Speaks on and on, deaf to every Exception."""

    def __call__(self, progress):
        for _ in range(10_000):
            try:
                progress(0)
            except Exception:
                sys.stderr.write("an orphan goes on\n")


def test_a_worker_whose_parent_is_gone_ends_quietly():
    code = """
        import os, signal
        from test_pool import Talking, WorkerPool
        if __name__ == "__main__":
            kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            list(WorkerPool(Talking, 2, on_progress=kill).run([(), ()]))
    """
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, *sys.path])
    ended = subprocess.run(  # returns once the workers, which hold its stderr, have ended too
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL and ended.stderr == ""


def test_cores_where_there_is_no_affinity(monkeypatch):
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores() == 3
