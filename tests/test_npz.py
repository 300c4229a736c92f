"""npz files: whole, or an error that says which file, what it should be and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.npz import read_npz, write_npz

SAID = {"expected": "numbers", "remedy": "make it again"}


def test_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3), "names": np.array(["x", "yy"]), "one": np.float64(2.5)}
    for compressed in (True, False):
        path = write_npz(tmp_path / "a.npz", arrays, compressed=compressed)
        found = read_npz(path, ("a",), **SAID)
        assert found.keys() == arrays.keys() and all(np.array_equal(found[key], arrays[key]) for key in arrays)
        assert read_npz(path, wanted=("one", "absent"), **SAID).keys() == {"one"}


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", {"a": np.random.default_rng(0).random(1000)})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0xFF  # within the compressed numbers
    np.save(tmp_path / "one.npy", np.zeros(3))
    cases = {
        "text.npz": (b"no npz", "not an npz file(?s:.*)check the path, or make it again"),
        "empty.npz": (b"", "not an npz file"),
        "cut.npz": (
            whole[: len(whole) // 2],
            "not a readable npz file(?s:.*)expected: numbers\n  remedy: make it again",
        ),
        "damaged.npz": (bytes(damaged), "not a readable npz file"),
        "one.npy.npz": ((tmp_path / "one.npy").read_bytes(), "not an npz file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: {message}"):
            read_npz(tmp_path / name, **SAID)
    with pytest.raises(InputError, match="missing keys: b(?s:.*)numbers, with a, b"):
        read_npz(path, ("a", "b"), **SAID)
    with pytest.raises(InputError, match="nowhere.npz: no such file(?s:.*)check the path"):
        read_npz(tmp_path / "nowhere.npz", **SAID)
    with pytest.raises(InputError, match="is a folder"):
        read_npz(tmp_path, **SAID)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(InputError, match="not a readable npz file"):
        read_npz(tmp_path / "objects.npz", **SAID)
