"""The torch device that a user names, and how many threads it may take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from molgen.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """The torch device of `--device`; "auto" takes CUDA where there is one.

    Raises:
        InputError: unknown device, or one this machine does not have.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"unknown device {name!r}", where="--device", expected="auto, cpu, cuda, cuda:1 or mps"
        ) from error
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= present.get(device.type, 0):
        raise InputError(
            f"no device {name!r} on this machine",
            where="--device",
            expected="auto, or one that `molgen doctor` lists",
            remedy="give --device cpu, or install a torch build for your accelerator",
        )
    return device


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside, unless the user has set their number (OMP_NUM_THREADS).

    For small batches: a step of finetuning (64 conformations) takes 0.15 s on one thread, 0.12 s on two idle cores, and
    ten to twenty times as long on two threads that share the machine with another job, since they wait for each other.
    """
    import torch

    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
