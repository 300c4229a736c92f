"""How many threads compute: one for small molecules, one in each worker process."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

SERIAL = 60  # atoms up to which a second OpenMP thread does not pay
_VARIABLE = "OMP_NUM_THREADS"


def one_thread(atoms: int = 0) -> contextlib.AbstractContextManager:
    """One thread for OpenMP and linear algebra inside, for small molecules, unless the user has set their number.

    A gradient of 14 atoms takes 5 ms on one thread; on two that share a busy machine, waiting for each other, 450 ms
    and more were measured; a step of finetuning a flow takes ten times as long. On an idle machine, too, matrices of
    such molecules, and small networks, are slower on two.
    """
    if atoms > SERIAL or _VARIABLE in os.environ:
        return contextlib.nullcontext()
    return pools().limit(limits=1)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside compute on one thread unless the user has set their number: not cores a worker."""
    given = os.environ.get(_VARIABLE)
    os.environ.setdefault(_VARIABLE, "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ[_VARIABLE]


@functools.cache
def pools():
    """The thread pools of this process, tblite's included."""
    import tblite.interface  # noqa: F401  # its OpenMP runtime must be loaded to be found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
