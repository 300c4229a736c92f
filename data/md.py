"""Molecular dynamics of peptides at several temperatures, one npz file a sequence.

    x (T, F, N, 3)     int16 in units of 0.0005 A, or float32 in A where a molecule does not fit into int16
    e (T, F)           float32 potential energy, kJ/mol, of the frames before rounding
    names (N,)         "residue index:residue name:atom name:element"
    bonds (M, 2)       bonded pairs
    acc ()             exchange acceptance
    temperatures (T,)  K; 310, 380, 470, 600 where a file of four temperatures does not say
    flow ()            hash of the weights of a flow whose proposals were moves of the simulation; "" without

`molgen.data.remd` makes such files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from molgen.data.peptide import RESIDUES, Peptide, build_peptide, tokens
from molgen.errors import InputError
from molgen.npz import read_npz, write_npz
from molgen.units import KJ_MOL, NM

if TYPE_CHECKING:
    import mdtraj

TEMPERATURES = (310.0, 380.0, 470.0, 600.0)
UNIT = 0.0005  # Angstrom of one int16 step
STATE = ".state.npz"  # how the file of an unfinished simulation ends
SAME_TEMPERATURE = 0.5  # K
_REQUIRED = ("x", "e", "names", "bonds")


@dataclass(frozen=True, eq=False)
class MDSet:
    """Frames of one peptide at T temperatures.

    Attributes:
        sequence, cap: as `build_peptide` takes them.
        temperatures: (T,) K.
        positions: (T, F, N, 3) float32 Angstrom.
        energies: (T, F) float64 eV.
        names: N labels "residue index:residue name:atom name:element".
        bonds: (M, 2), i < j, sorted.
        acceptance: share of exchange attempts that were accepted; NaN if unknown.
        flow: hash of the weights of a flow whose proposals were moves of the simulation; "" without.
    """

    sequence: str
    cap: str | None
    temperatures: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    names: tuple[str, ...]
    bonds: np.ndarray
    acceptance: float = float("nan")
    flow: str = ""

    @property
    def peptide(self) -> Peptide:
        """Topology and force field, atoms in the order of `positions`."""
        return build_peptide(self.sequence, self.cap)

    def at(self, temperature: float) -> int | None:
        """Index of `temperature` in K, None if there are no frames of it."""
        found = np.flatnonzero(np.abs(np.asarray(self.temperatures) - temperature) < SAME_TEMPERATURE)
        return int(found[0]) if len(found) else None

    def trajectory(self, temperature: float) -> mdtraj.Trajectory:
        """The frames at `temperature` in K.

        Raises:
            InputError: none at this temperature.
        """
        import mdtraj

        found = self.at(temperature)
        if found is None:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise InputError(f"no frames at {temperature:g} K", where=self.sequence, expected=f"one of {known} K")
        return mdtraj.Trajectory(self.positions[found] / NM, self.peptide.mdtraj_topology())


def md_files(paths: Sequence[Path]) -> list[Path]:
    """The npz files of files and folders, each once; states of unfinished simulations are none.

    Raises:
        InputError: a folder without any.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        finished = [file for file in inside if not file.name.endswith(STATE)]
        if not finished:
            what = f"{inside[0].name} is unfinished" if inside else "no npz file in this folder"
            raise InputError(
                what, where=str(path), expected="files of `molgen data md`",
                remedy="finish it by the same command with --resume" if inside else "",
            )  # fmt: skip
        found += finished
    return list(dict.fromkeys(found))


def load_md(path: str | os.PathLike) -> MDSet:
    """The frames of one file, with atoms labelled as the file has them.

    Which of two CH2 hydrogens is HB2, or which methyl of a valine CG1, was an accident of how each replica's start
    structure was built in files of `molgen data md` until 27 November 2026, and changes along them with the exchanges;
    since then it is the same in all. Energies do not depend on it.

    Raises:
        InputError: no such file, not an npz, missing keys, shapes that disagree, non-finite values, or atoms and bonds
            that are not those of `build_peptide`.
    """
    path, where = Path(path), str(path)
    arrays = read_npz(
        path, _REQUIRED, (*_REQUIRED, "acc", "temperatures", "flow"), expected="an npz of molecular dynamics",
        remedy="make it again",
    )  # fmt: skip
    names = tuple(arrays["names"].astype(str).tolist())
    sequence, cap = _sequence_of(names, where)
    peptide = build_peptide(sequence, cap)
    if peptide.labels != names:
        raise InputError(
            f"the atoms are not those of {sequence}", where=where, expected="names and order of molgen.data.peptide"
        )
    x, e, acceptance = arrays["x"], arrays["e"], arrays.get("acc", np.float64(np.nan))
    kinds = {"x": x.dtype == np.int16 or x.dtype.kind == "f", "e": e.dtype.kind in "fiu" and e.ndim == 2,
             "bonds": arrays["bonds"].dtype.kind in "iu" and arrays["bonds"].ndim == 2,
             "acc": acceptance.dtype.kind in "fiu" and not acceptance.ndim}  # fmt: skip
    if wrong := [name for name, good in kinds.items() if not good]:
        raise InputError(
            f"{wrong[0]} has type {np.asarray(arrays[wrong[0]]).dtype} and shape {np.asarray(arrays[wrong[0]]).shape}",
            where=where, expected="x (T, F, N, 3), int16 in 0.0005 A or floating in A, e (T, F) in kJ/mol, bonds "
            "(B, 2), acc a number",
        )  # fmt: skip
    bonds = np.sort(arrays["bonds"].astype(np.int64), axis=1)
    if bonds.shape[1:] != (2,) or {*map(tuple, bonds.tolist())} != {*map(tuple, peptide.bonds.tolist())}:
        raise InputError(f"the bonds are not those of {sequence}", where=where, expected="bonds of molgen.data.peptide")
    temperatures = np.atleast_1d(arrays.get("temperatures", np.array(TEMPERATURES if len(x) == 4 else ())))
    if temperatures.dtype.kind not in "fiu" or not ((temperatures > 0) & np.isfinite(temperatures)).all():
        raise InputError(f"temperatures {temperatures.tolist()}", where=where, expected="kelvin, each above 0")
    temperatures = temperatures.astype(np.float64)
    shape = (len(temperatures), e.shape[-1], len(names), 3)
    if x.shape != shape or e.shape != shape[:2]:
        raise InputError(
            f"x has shape {x.shape}, e {e.shape}, with {len(temperatures)} temperatures and {len(names)} atoms",
            where=where,
            expected="x (T, F, N, 3) and e (T, F)",
        )
    positions = x * np.float32(UNIT) if x.dtype == np.int16 else x.astype(np.float32)
    if not np.isfinite(positions).all() or not np.isfinite(e).all():
        raise InputError("non-finite positions or energies", where=where, remedy="make the file again")
    return MDSet(
        sequence=sequence,
        cap=cap,
        temperatures=temperatures,
        positions=positions,
        energies=e.astype(np.float64) * KJ_MOL,
        names=names,
        bonds=peptide.bonds,
        acceptance=float(acceptance),
        flow=str(arrays.get("flow", "")),
    )


def peptide_of(path: Path) -> tuple[str, str | None]:
    """Sequence and caps of a file, by its names alone.

    Raises:
        InputError: no file of molecular dynamics.
    """
    arrays = read_npz(path, ("names",), ("names",), expected="an npz of molecular dynamics", remedy="make it again")
    return _sequence_of(tuple(arrays["names"].astype(str).tolist()), str(path))


def save_md(path: str | Path, data: MDSet) -> Path:
    """Write `data` in the format of this module; the file appears whole or not at all. Equal data, equal bytes.

    Raises:
        InputError: it cannot be written (disk full, permission).
    """
    x = np.asarray(data.positions, dtype=np.float32)
    if np.abs(x).max(initial=0) < 32767 * UNIT:
        x = np.rint(x.astype(np.float64) / UNIT).astype(np.int16)
    arrays = {
        "x": x,
        "e": (data.energies / KJ_MOL).astype(np.float32),
        "names": np.array(data.names, dtype=str),
        "bonds": data.bonds.astype(np.int16),
        "acc": np.float64(data.acceptance),
        "temperatures": np.asarray(data.temperatures, dtype=np.float64),
        "flow": np.array(data.flow),
    }
    return write_npz(Path(path), arrays)


def read_sequences(path: str | os.PathLike, benchmark: bool = False) -> tuple[str, ...]:
    """Sequences of a list in its order, one a line; "#" starts a comment, a trailing "*" marks the benchmark.

    Args:
        path: text file.
        benchmark: only the marked ones.

    Raises:
        InputError: no such file, not text, or a line that is no sequence (names it).
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"cannot read: {reason}", where=str(path), expected="a list of sequences") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        sequence = text.removesuffix("*").strip()
        if any(letter not in RESIDUES for letter in tokens(sequence)):
            where = f"{path}, line {number}"
            raise InputError(f"{text!r} is no sequence", where=where, expected="such as AAGY or DG *")
        if sequence and (text.endswith("*") or not benchmark):
            found[sequence] = True
    return tuple(found)


def heldout(path: str | os.PathLike, benchmark: bool = False) -> frozenset[str]:
    """The sequences of a list as a set, for `is_held_out`; see `read_sequences`."""
    return frozenset(read_sequences(path, benchmark))


def is_held_out(sequence: str, held: Collection[str]) -> bool:
    """Whether `sequence` is in `held`, or contains a sequence of three or more residues that is.

    Protonation does not matter: "[HIP]" counts as H.
    """
    letters = _letters(sequence)
    return any(_letters(h) == letters or (len(_letters(h)) > 2 and _letters(h) in letters) for h in held)


def _letters(sequence: str) -> str:
    return re.sub(r"\[HI[DEP]\]", "H", sequence)


def _sequence_of(names: tuple[str, ...], where: str) -> tuple[str, str | None]:
    """Sequence and cap of labelled atoms; HIS by its hydrogens."""
    residues: dict[int, tuple[str, set[str]]] = {}
    for name in names:
        parts = name.split(":")
        if len(parts) != 4 or not parts[0].isdecimal():
            raise InputError(f"unreadable atom name {name!r}", where=where, expected="such as 0:ALA:CA:C")
        residues.setdefault(int(parts[0]), (parts[1], set()))[1].add(parts[2])
    letters = {template: letter for letter, template in reversed(RESIDUES.items())}
    kinds = []
    for residue, atoms in residues.values():
        if residue == "HIS":
            residue = {(True, True): "HIP", (True, False): "HID"}.get(("HD1" in atoms, "HE2" in atoms), "HIE")
        kinds.append(residue)
    cap = "ace-nme" if kinds[:1] == ["ACE"] else None
    kinds = kinds[1:-1] if cap else kinds
    unknown = [kind for kind in kinds if kind not in letters]
    if unknown or not kinds:
        raise InputError(
            f"unknown residue {unknown[0] if unknown else ''!r}", where=where, expected="the 20 amino acids"
        )
    return "".join(letters[kind] for kind in kinds), cap
