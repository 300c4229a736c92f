"""Checkpoints: a folder with `model.safetensors` (tensors) and `config.json` (plain data that names no callables).

One format serves shipped weights and training state: weights, optimiser moments, moving averages and generator states
are tensors; step counts and settings are JSON. Loading never runs code from the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from molgen import __version__
from molgen.errors import CheckpointError, check_path
from molgen.files import json_text, sha256, write_atomic

Model = TypeVar("Model", bound=nn.Module)
SHIPPED = Path(__file__).parent / "weights"
FORMAT = 1
TENSORS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
# Both files cannot change in one step, so the new config is first laid beside the old one: whichever of the two
# matches the tensors is the valid one, wherever a crash falls.
_PENDING_FILE = "config.json.pending"
STATE, BEST = "state", "best"  # folders of a run: what is not finished; the best weights of a training
_RECOPY = "copy or download the checkpoint again; shipped weights come back with a reinstall of molgen"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Attributes:
        tensors: name -> tensor, on the CPU.
        config: the saved configuration; `save_checkpoint` adds `format`, `molgen_version`, `sha256` and `bytes`.
        hash: SHA-256 of `model.safetensors`, verified on loading.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    hash: str


def save_checkpoint(directory: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a checkpoint; a crash at any moment leaves the previous one or the new one loadable.

    Args:
        directory: folder to write, made if absent; an existing checkpoint in it is replaced.
        tensors: name -> tensor of any shape, dtype and device. Tensors that share memory are stored separately.
        config: JSON-ready data; non-finite numbers are stored as null.

    Raises:
        TypeError: `config` holds something that is not data.
        InputError: the disk is full or the folder cannot be written.
    """
    directory = Path(directory)
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    payload = safetensors.torch.save(stored)
    identity = {"format": FORMAT, "molgen_version": __version__, "sha256": sha256(payload), "bytes": len(payload)}
    text = json_text({**config, **identity})
    pending = write_atomic(directory / _PENDING_FILE, text)
    write_atomic(directory / TENSORS_FILE, payload)
    pending.replace(directory / CONFIG_FILE)


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated, altered, or of a format this molgen does not know.
    """
    directory = Path(directory)
    files = f"a folder with {TENSORS_FILE} and {CONFIG_FILE}"
    if directory.is_file():
        whole = all((directory.parent / name).is_file() for name in (TENSORS_FILE, CONFIG_FILE))
        raise CheckpointError(
            "is a file, no checkpoint", where=str(directory), expected=files,
            remedy=f"give {directory.parent}" if whole else "give such a folder, OUT/best of a training for one",
        )  # fmt: skip
    if not directory.is_dir():
        raise CheckpointError(
            "no such checkpoint folder",
            where=str(directory),
            expected=files,
            remedy="check the path; `molgen doctor` lists the weights that are installed",
        )
    inside = sorted(file.parent for file in directory.glob(f"*/{TENSORS_FILE}") if file.parent.name != STATE)
    if inside and not (directory / TENSORS_FILE).exists():
        raise CheckpointError(
            "is no checkpoint, but holds some",
            where=str(directory),
            expected=files,
            remedy=f"give {' or '.join(map(str, inside))}",
        )
    if not any((directory / name).exists() for name in (TENSORS_FILE, CONFIG_FILE, _PENDING_FILE)):
        raise CheckpointError(
            f"is no checkpoint: it has no {TENSORS_FILE}", where=str(directory), expected=files,
            remedy="give such a folder, OUT/best of a training for one; `molgen doctor` lists the weights installed",
        )  # fmt: skip
    payload = _read(directory / TENSORS_FILE)
    digest = sha256(payload)
    config = _matching_config(directory, digest)
    _verify(directory / TENSORS_FILE, payload, digest, config)
    try:
        tensors = safetensors.torch.load(payload)
    except SafetensorError as error:
        raise CheckpointError(
            f"not a safetensors file ({error})",
            where=str(directory / TENSORS_FILE),
            expected="tensors written by molgen",
            remedy=_RECOPY,
        ) from error
    return Checkpoint(tensors, config, digest)


def load_weights(weights: str | Path, kind: str, build: Callable[[dict[str, Any]], Model]) -> tuple[Model, Checkpoint]:
    """A trained network from shipped weights by name, or from a checkpoint folder by path ("./prose" is a folder).

    Args:
        kind: what the checkpoint has to say that it holds, "tsgen" or "prose". build: the network of a configuration.

    Raises:
        CheckpointError: no such weights, damaged, of another kind, or the state of a training run.
        InputError: `weights` is no name and no path.
    """
    check_path(weights, "--weights")
    shipped = {path.name for path in SHIPPED.iterdir() if path.is_dir()}
    folder = SHIPPED / weights if isinstance(weights, str) and weights in shipped else Path(weights)
    checkpoint = load_checkpoint(folder)
    if checkpoint.config.get("model") != kind:
        raise CheckpointError(
            f"holds a model of kind {checkpoint.config.get('model')!r}",
            where=str(folder),
            expected=repr(kind),
            remedy=f"give a checkpoint of kind {kind!r}",
        )
    model = build(checkpoint.config["config"])
    wanted, found = model.state_dict(), checkpoint.tensors
    wrong = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    if wrong or len(found) != len(wanted):
        training = "counters" in checkpoint.config
        raise CheckpointError(
            "is the state of a training run" if training else f"{len(wrong)} tensors do not fit the configuration",
            where=str(folder),
            expected=f"the {len(wanted)} tensors of {kind}",
            remedy=f"give {folder.parent / 'best'}" if training else _RECOPY,
        )
    model.load_state_dict(found)
    return model, checkpoint


def _matching_config(directory: Path, digest: str) -> dict[str, Any]:
    """The config that describes these tensors: the pending one when a crash kept it from being moved into place."""
    pending = directory / _PENDING_FILE
    if pending.exists():
        config = _config(pending)
        if config.get("sha256") == digest:
            return config
    return _config(directory / CONFIG_FILE)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path))
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError
        raise CheckpointError(
            f"not valid JSON ({error})", where=str(path), expected="a configuration written by molgen", remedy=_RECOPY
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise CheckpointError(
            f"unknown checkpoint format {found!r}",
            where=str(path),
            expected=f"format {FORMAT}, the one molgen {__version__} writes",
            remedy="upgrade molgen, or use weights made for this version",
        )
    return config


def _verify(path: Path, payload: bytes, digest: str, config: dict[str, Any]) -> None:
    size = config.get("bytes")
    if isinstance(size, int) and len(payload) < size:
        raise CheckpointError(
            f"truncated: {len(payload)} bytes", where=str(path), expected=f"{size} bytes", remedy=_RECOPY
        )
    if digest != config.get("sha256"):
        raise CheckpointError(
            f"wrong hash: SHA-256 {digest}",
            where=str(path),
            expected=f"{config.get('sha256')}, as {CONFIG_FILE} beside it says",
            remedy=_RECOPY,
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror})",
            where=str(path),
            expected=f"{TENSORS_FILE} and {CONFIG_FILE} in one folder",
            remedy=_RECOPY,
        ) from error
