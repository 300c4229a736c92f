"""How many threads compute: one for small molecules, one in each worker process."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

SERIAL = 60  # atoms up to which a second OpenMP thread does not pay
# OpenMM's CPU platform takes all cores, whatever OpenMP is told
VARIABLES = ("OMP_NUM_THREADS", "OPENMM_CPU_THREADS")


def one_thread(atoms: int = 0) -> contextlib.AbstractContextManager:
    """One thread for OpenMP and linear algebra inside, for small molecules, unless the user has set their number.

    A gradient of 14 atoms takes 5 ms on one thread; on two that share a busy machine, waiting for each other, 450 ms
    and more were measured; a step of finetuning a flow takes ten times as long. On an idle machine, too, matrices of
    such molecules, and small networks, are slower on two.
    """
    if atoms > SERIAL or VARIABLES[0] in os.environ:
        return contextlib.nullcontext()
    return pools().limit(limits=1)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside compute on one thread unless the user has set their number: not cores a worker."""
    absent = [name for name in VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(absent, "1"))
    try:
        yield
    finally:
        for name in absent:
            del os.environ[name]


@functools.cache
def pools():
    """The thread pools of this process, tblite's included."""
    import tblite.interface  # noqa: F401  # its OpenMP runtime must be loaded to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
