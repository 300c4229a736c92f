"""The torch device that a user names."""

from __future__ import annotations

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
    except (RuntimeError, TypeError) as error:
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
