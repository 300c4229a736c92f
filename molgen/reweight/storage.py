"""Ensembles on disk: `topology.pdb`, `samples.xtc` and `weights.npz`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from molgen.errors import InputError, check_path
from molgen.files import MANIFEST, explained, write_atomic
from molgen.npz import read_npz, write_npz
from molgen.reweight.free_energy import CVValues
from molgen.reweight.importance import VERDICTS, Verdict, WeightDiagnostics

if TYPE_CHECKING:
    from molgen.reweight.ensemble import Ensemble

TOPOLOGY, SAMPLES, WEIGHTS = "topology.pdb", "samples.xtc", "weights.npz"


class Paths(Protocol):
    """A run directory, as far as writing asks: the path of an output by name."""

    def path(self, name: str) -> Path: ...


def save(ensemble: Ensemble, to: str | Path | Paths, positions: bool) -> list[Path]:
    """Write the files of `Ensemble.save`; `weights.npz` last, so that its presence means the rest is there."""
    if not isinstance(to, (str, os.PathLike)) and not hasattr(to, "path"):
        raise InputError(f"{to!r} given", where="Ensemble.save", expected="a folder to write to")
    if isinstance(to, (str, Path)) and Path(to).is_file():
        raise InputError("is a file", where=str(to), expected="a folder to write to", remedy="name another one")
    if isinstance(to, (str, Path)) and (Path(to) / MANIFEST).exists():  # its summary and pictures would be of others
        raise InputError(
            "is the folder of a run, whose samples would be replaced", where=str(to), expected="a folder to write to",
            remedy="name another one",
        )  # fmt: skip
    place = (lambda name: Path(to) / name) if isinstance(to, (str, Path)) else to.path
    written = []
    if ensemble.topology is not None:
        for name, data in _trajectory_files(ensemble).items():
            written.append(write_atomic(place(name), data))
    written.append(write_npz(place(WEIGHTS), _arrays(ensemble, positions or ensemble.topology is None)))
    return written


def load(folder: str | Path) -> dict[str, Any]:
    """Arguments of the `Ensemble` saved in `folder`."""
    check_path(folder, "Ensemble.load")
    folder = Path(folder)
    if folder.is_file():
        raise InputError(
            "is a file", where=str(folder), expected="the folder of a saved ensemble",
            remedy=f"load {folder.parent}" if (folder.parent / WEIGHTS).is_file() else
            f"load the folder of a run, or of Ensemble.save: one with a {WEIGHTS}",
        )  # fmt: skip
    stored = read_npz(
        folder / WEIGHTS, _NEEDED, expected="weights of a saved ensemble", remedy="write the ensemble again"
    )
    topology = None
    own = not np.array_equal(stored.get(_HAS_TOPOLOGY, True), False)  # not files of an earlier save
    if "positions" not in stored or (own and (folder / TOPOLOGY).exists()):
        import mdtraj

        for name in (TOPOLOGY, SAMPLES):
            if not (folder / name).exists():
                raise InputError("is missing", where=str(folder / name), expected="the folder of a saved ensemble")
        try:
            topology = mdtraj.load_pdb(str(folder / TOPOLOGY), standard_names=False).topology
            if "positions" not in stored:
                stored["positions"] = mdtraj.load_xtc(str(folder / SAMPLES), top=topology).xyz.astype(float) * 10
        except (OSError, ValueError, IndexError, RuntimeError) as error:  # the last of a damaged xtc
            raise InputError(
                f"cannot be read ({error})", where=str(folder), remedy="write the ensemble again"
            ) from error
    n = len(np.atleast_1d(stored["log_weights"]))
    if len(stored["positions"]) != n:
        raise InputError(
            f"{len(stored['positions'])} samples, and {n} weights in {WEIGHTS}",
            where=str(folder / SAMPLES),
            expected="files of one run",
        )
    try:
        return _arguments(stored) | {"topology": topology}
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"damaged ({error})", where=str(folder / WEIGHTS), expected="weights of a saved ensemble",
            remedy="write the ensemble again",
        ) from error  # fmt: skip


def _arguments(stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Those of the `Ensemble` that arrays hold, but for the topology.

    Raises:
        TypeError, ValueError, OverflowError: an array holds something else.
    """
    cvs = zip(*(stored[f"cv_{key}"] for key in _CV), strict=True)
    counts = zip(map(str, stored["validity_reasons"]), map(int, stored["validity_counts"]), strict=True)
    at_best = str(stored["at_best"])
    return {
        "positions": stored["positions"].astype(float),
        **{name: stored[name].astype(float) for name in ("log_weights", "energies")},
        **{name: stored.get(name) for name in ("log_q", "groups")},
        "numbers": stored["numbers"],
        "temperature": float(stored["temperature"]),
        "cvs": {
            str(name): CVValues(str(name), values, str(unit), None if np.isnan(period) else float(period))
            for name, values, unit, period in cvs
        },
        "ancestors": int(stored["ancestors"]) if "ancestors" in stored else None,
        "validity": dict(counts),
        "at_best": VERDICTS[VERDICTS.index(cast(Verdict, at_best))],
        "smoothed": bool(stored["smoothed"]),
        "resampled_by": _diagnostics(stored.get(_RESAMPLED)),
    }


_CV = ("names", "values", "units", "periods")
_HAS_TOPOLOGY = "has_topology"  # absent from older files
_RESAMPLED = "redrawn_by"  # what files have called it from the start
_NEEDED = (
    "log_weights", "energies", "temperature", "numbers", "at_best", "smoothed", "validity_reasons", "validity_counts",
    *(f"cv_{key}" for key in _CV),
)  # fmt: skip


def _arrays(ensemble: Ensemble, positions: bool) -> dict[str, Any]:
    cvs = ensemble.cvs
    arrays = {
        "log_weights": ensemble.log_weights,
        "energies": ensemble.energies,
        "temperature": np.array(float(ensemble.temperature)),
        "numbers": ensemble.numbers,
        "at_best": np.array(ensemble.at_best),
        "smoothed": np.array(ensemble.smoothed),
        _HAS_TOPOLOGY: np.array(ensemble.topology is not None),
        "validity_reasons": np.array(list(ensemble.validity), dtype=str),
        "validity_counts": np.array(list(ensemble.validity.values()), dtype=int),
        "cv_names": np.array(list(cvs), dtype=str),
        "cv_values": np.array([cv.values for cv in cvs.values()], dtype=float).reshape(len(cvs), len(ensemble)),
        "cv_units": np.array([cv.unit for cv in cvs.values()], dtype=str),
        "cv_periods": np.array([np.nan if cv.period is None else cv.period for cv in cvs.values()], dtype=float),
    }
    if positions:
        arrays["positions"] = ensemble.positions
    by = ensemble.resampled_by
    optional = {name: getattr(ensemble, name) for name in ("log_q", "groups", "ancestors")}
    optional[_RESAMPLED] = None if by is None else astuple(by)
    return arrays | {name: np.asarray(value) for name, value in optional.items() if value is not None}


def _diagnostics(stored: np.ndarray | None) -> WeightDiagnostics | None:
    if stored is None:
        return None
    n, finite, *rest = map(float, stored)
    return WeightDiagnostics(int(n), int(finite), *rest)


def _trajectory_files(ensemble: Ensemble) -> dict[str, bytes]:
    """The pdb (the sample of largest weight) and the xtc; mdtraj writes to paths only."""
    import mdtraj

    nm = np.nan_to_num(ensemble.positions / 10, posinf=0.0, neginf=0.0).astype(np.float32)
    frames = mdtraj.Trajectory(nm, ensemble.topology)
    files = {}
    with tempfile.TemporaryDirectory() as folder, explained(Path(folder)):
        for name, part in ((TOPOLOGY, frames[int(np.argmax(ensemble.log_weights))]), (SAMPLES, frames)):
            part.save(str(Path(folder) / name))
            files[name] = (Path(folder) / name).read_bytes()
        read = mdtraj.load_pdb(str(Path(folder) / TOPOLOGY), standard_names=False).topology
    known, own = (
        {tuple(sorted((a.index, b.index))) for a, b in topology.bonds}
        for topology in (read, frames.topology)
        if topology is not None
    )
    files[TOPOLOGY] = _with_bonds(files[TOPOLOGY].decode(), sorted(own - known)).encode()
    return files


def _with_bonds(pdb: str, bonds: Sequence[tuple[int, int]]) -> str:
    """A pdb file with CONECT records of bonds (atoms from 0) that no reader knows by the names of the residues, such as
    that of a first proline's nitrogen to its second hydrogen."""
    lines = pdb.splitlines()
    serial = [line[6:11] for line in lines if line.startswith(("ATOM", "HETATM"))]
    end = next((at for at, line in enumerate(lines) if line.startswith(("CONECT", "END"))), len(lines))
    lines[end:end] = [f"CONECT{serial[i]}{serial[j]}" for i, j in bonds]
    return "\n".join(lines) + "\n"
