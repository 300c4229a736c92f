"""Elementary reactions and the npz file that holds many of them.

The file concatenates the atoms of all reactions; reaction k occupies rows `ptr[k]:ptr[k+1]`:

    id (R,)            name or number of the reaction
    split (R,)         'train', 'val', ... any names
    ptr (R+1,)         offsets into the atom arrays
    z (A,)             atomic numbers, the same order on every side of a reaction
    r, ts, p (A, 3)    reactant, transition state and product, Angstrom; a ts of NaNs says that none is known
    p_frag (A,)        product fragment of each atom
    r_frag (A,)        reactant fragment of each atom, optional (default one fragment)
    charge, spin (R,)  total charge and number of unpaired electrons, optional (default 0)
    level (R,)         electronic-structure method of the geometries, optional (default "", unknown)
    verified (R,)      whether ts is a transition state that joins r and p, optional (default yes); training and
                       evaluation use such rows only

Other keys (smiles, barrier_kcal, ...) are ignored here; `read_column` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from molgen.errors import InputError
from molgen.geometry.bonds import bonding_differences
from molgen.geometry.chirality import NONE_OPEN, OpenStereo
from molgen.npz import read_npz, write_npz
from molgen.structures import possible_spin
from molgen.words import counted

_REQUIRED = ("id", "split", "ptr", "z", "r", "ts", "p", "p_frag")
HEAVIEST = 118
EMPTY = "make some (molgen data reactions ... --resume), or give another set"  # remedy for a set without any
HDF5 = {".h5", ".hdf5"}
Pair = tuple[np.ndarray, np.ndarray]  # conformers of reactant and product, (N, 3) Angstrom


@dataclass(frozen=True, eq=False)
class Reaction:
    """One elementary reaction; atom i is the same atom on every side. Construction does not validate.

    Attributes:
        numbers: (N,) int64 atomic numbers.
        reactant, product: (N, 3) float64 Angstrom, each in its own frame. On a side of several fragments their relative
            placement carries no information.
        product_fragments, reactant_fragments: (N,) int64, the fragment of each atom, counted from 0.
        charge: total charge, e.
        spin: number of unpaired electrons.
        name: shown to people, need not be unique.
        ts: (N, 3) float64 Angstrom, where known.
        level: electronic-structure method of the geometries, such as "GFN2-xTB"; "" if unknown.
        conformers: further conformers of both sides, pairs like (reactant, product), of the same bonds, where these are
            not given but chosen, as those of a SMILES are.
        open_stereo: stereocentres ("C3") and double bonds ("C1=C2") of reactant and product that nobody asked to be as
            they are: their SMILES leave them open.
        lowest: (N, 3) Angstrom each, of reactant and product, conformers of the lowest force-field energy, where these
            are not given.
        isomers: pairs likewise, of other stereoisomers of the product that are left open.
    """

    numbers: np.ndarray
    reactant: np.ndarray
    product: np.ndarray
    product_fragments: np.ndarray
    reactant_fragments: np.ndarray
    charge: int = 0
    spin: int = 0
    name: str = ""
    ts: np.ndarray | None = None
    level: str = ""
    conformers: tuple[Pair, ...] = ()
    open_stereo: OpenStereo = NONE_OPEN
    isomers: tuple[Pair, ...] = ()
    lowest: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]] = ((), ())

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def pairs(self) -> list[Pair]:
        """(reactant, product), and all further conformers of both."""
        return [(self.reactant, self.product), *self.conformers]

    @property
    def bonds_change(self) -> bool:
        """Whether any bond is made or broken."""
        return bonding_differences(self.numbers, self.reactant, self.product) > 0

    @property
    def reversed(self) -> Reaction:
        """The reaction product -> reactant, through the same transition state."""
        return Reaction(
            numbers=self.numbers,
            reactant=self.product,
            product=self.reactant,
            product_fragments=self.reactant_fragments,
            reactant_fragments=self.product_fragments,
            charge=self.charge,
            spin=self.spin,
            name=self.name,
            ts=self.ts,
            level=self.level,
            conformers=tuple((p, r) for r, p in self.conformers),
            open_stereo=(self.open_stereo[1], self.open_stereo[0]),
            lowest=(self.lowest[1], self.lowest[0]),
        )


def load_npz(path: str | os.PathLike, split: str | None = None, *, verified: bool = False) -> list[Reaction]:
    """Reactions of an npz file (format: see the module), all of them or those of one split, in file order.

    The arrays of a Reaction are read-only views of the file's arrays.

    Args:
        verified: leave out rows that the file says are not.

    Raises:
        InputError: no such file, not an npz, missing keys, inconsistent shapes, non-finite coordinates, unknown split,
            or none verified.
    """
    arrays = _read(Path(path))
    where = str(path)
    _check(arrays, where)
    ptr = arrays["ptr"].astype(np.int64)
    splits = arrays["split"].astype(str)
    chosen = np.arange(len(splits))
    if split is not None:
        chosen = np.flatnonzero(splits == split)
        if not len(splits):
            raise InputError("holds no reactions", where=where, expected="one at least", remedy=EMPTY)
        if not len(chosen):
            names = ", ".join(f"'{s}' ({n})" for s, n in zip(*np.unique(splits, return_counts=True), strict=True))
            raise InputError(f"no reaction of split '{split}'", where=where, expected=f"one of {names}")
    if verified and "verified" in arrays:
        kept = chosen[arrays["verified"].astype(bool)[chosen]]
        if len(chosen) and not len(kept):
            of = f" of split '{split}'" if split else ""
            there = zip(*np.unique(splits[arrays["verified"].astype(bool)], return_counts=True), strict=True)
            names = ", ".join(f"'{s}' ({n})" for s, n in there)
            raise InputError(
                f"none of {counted(len(chosen), 'reaction')}{of} is verified", where=where,
                expected=f"rows with `verified` true, as in {names}" if names else "rows with `verified` true",
                remedy=f"choose another split: {names}" if names else
                "train and judge by the set it was made from, or make it with another --calculator",
            )  # fmt: skip
        chosen = kept
    z = _frozen(arrays["z"], np.int64)
    r, ts, p = (_frozen(arrays[key], np.float64) for key in ("r", "ts", "p"))
    p_frag = _frozen(arrays["p_frag"], np.int64)
    r_frag = _frozen(arrays.get("r_frag", np.zeros(len(z))), np.int64)
    names = arrays["id"].astype(str).tolist()
    charges = arrays.get("charge", np.zeros(len(names))).astype(int).tolist()
    spins = arrays.get("spin", np.zeros(len(names))).astype(int).tolist()
    levels = arrays.get("level", np.full(len(names), "")).astype(str).tolist()
    known = np.isfinite(ts[ptr[:-1], 0]).tolist() if len(names) else []
    bounds = ptr.tolist()
    reactions = []
    for k in chosen.tolist():
        a = slice(bounds[k], bounds[k + 1])
        reactions.append(
            Reaction(
                z[a],
                r[a],
                p[a],
                p_frag[a],
                r_frag[a],
                charges[k],
                spins[k],
                names[k],
                ts[a] if known[k] else None,
                levels[k],
            )  # fmt: skip
        )
    return reactions


def read_column(path: str | os.PathLike, key: str) -> np.ndarray:
    """One array of the file, such as `split` or `smiles`; empty where the file has none of that name.

    Raises:
        InputError: no such file, or not an npz of reactions.
    """
    return _read(Path(path), (key,)).get(key, np.zeros(0))


def save_npz(
    path: str | os.PathLike,
    reactions: Sequence[Reaction],
    splits: Sequence[str] | str,
    columns: Mapping[str, Sequence] | None = None,
) -> None:
    """Write `reactions` in the format of `load_npz`; coordinates as float32. The file appears whole or not at all.

    Args:
        path: file to write; replaced if it exists.
        reactions: any number of them.
        splits: the split of each reaction, or one name for all.
        columns: further arrays, one value a reaction, under keys of their own.

    Raises:
        InputError: as many splits, and values of a column, as reactions are needed.
    """
    path = Path(path)
    splits = [splits] * len(reactions) if isinstance(splits, str) else list(splits)
    if len(splits) != len(reactions):
        raise InputError(
            f"{len(splits)} splits for {len(reactions)} reactions", where=str(path), expected="one split a reaction"
        )

    for key, values in (columns or {}).items():
        if len(values) != len(reactions):
            raise InputError(f"{len(values)} values of {key} for {len(reactions)} reactions", where=str(path))

    def rows(values, dtype, shape):
        return np.concatenate([np.zeros(shape, dtype), *(np.asarray(v, dtype) for v in values)])

    names = [r.name for r in reactions]
    whole = all(n.isdecimal() and str(int(n)) == n and int(n) < 2**31 for n in names)
    arrays = {
        "id": np.array(names, dtype=np.int32 if whole else str),
        "split": np.array(splits, dtype=str),
        "ptr": np.concatenate([[0], np.cumsum([len(r) for r in reactions], dtype=np.int64)]).astype(np.int64),
        "z": rows((r.numbers for r in reactions), np.int8, 0),
        "r": rows((r.reactant for r in reactions), np.float32, (0, 3)),
        "ts": rows((np.full((len(r), 3), np.nan) if r.ts is None else r.ts for r in reactions), np.float32, (0, 3)),
        "p": rows((r.product for r in reactions), np.float32, (0, 3)),
        "p_frag": rows((r.product_fragments for r in reactions), np.int16, 0),
        "r_frag": rows((r.reactant_fragments for r in reactions), np.int16, 0),
        "charge": np.array([r.charge for r in reactions], dtype=np.int16),
        "spin": np.array([r.spin for r in reactions], dtype=np.int16),
        "level": np.array([r.level for r in reactions], dtype=str),
        **{key: np.asarray(values) for key, values in (columns or {}).items()},
    }
    write_npz(path, arrays)


def refuse_published(path: Path) -> None:
    """Say what to do with a set as its authors publish it where an npz is needed; else do nothing.

    Raises:
        InputError: `path` is a folder or an HDF5 file.
    """
    refuse_run_folder(path, "reactions.npz")
    if path.is_dir() or path.suffix.lower() in HDF5:
        raise InputError(
            "is a folder" if path.is_dir() else "is an HDF5 file",
            where=str(path),
            expected="a file; published sets as such are for molgen train ts alone",
            remedy="make an npz of it in Python: from molgen.data import save_npz; from molgen.data.importers import "
            f"import_reactions; save_npz('set.npz', list(import_reactions('{path}')), 'train')",
        )


def refuse_run_folder(path: Path, name: str) -> None:
    """Name the file where the folder of a run is given in its place; else do nothing.

    Raises:
        InputError: `path` is a folder that holds a file `name`.
    """
    if (path / name).is_file():
        raise InputError(
            "is the folder of a run", where=str(path), expected=f"its {name}", remedy=f"give {path / name}"
        )


def _read(
    path: Path, wanted: Sequence[str] = (*_REQUIRED, "r_frag", "charge", "spin", "level", "verified")
) -> dict[str, np.ndarray]:
    """The arrays `wanted`, by default those a Reaction needs; long text columns are left on disk."""
    refuse_published(path)
    remedy = "copy it again, or write it with molgen.data.save_npz"
    return read_npz(path, _REQUIRED, wanted, expected="an npz of reactions", remedy=remedy)


def _check(arrays: dict[str, np.ndarray], where: str) -> None:
    """Shapes and values, all reactions at once."""
    count = len(np.atleast_1d(arrays["id"]))
    ptr = np.asarray(arrays["ptr"])
    if ptr.dtype.kind == "f" and (ptr == np.floor(ptr)).all():  # offsets written as floats count as what they say
        arrays["ptr"] = ptr = ptr.astype(np.int64)
    if ptr.dtype.kind not in "iu" or ptr.shape != (count + 1,) or ptr[0] != 0 or (np.diff(ptr) <= 0).any():
        raise InputError(
            f"ptr of shape {ptr.shape} for {count} reactions",
            where=where,
            expected=f"ptr ({count + 1},) of whole numbers rising from 0, one offset more than reactions",
        )
    atoms = int(ptr[-1])
    shapes = {
        "split": (count,),
        "z": (atoms,),
        "p_frag": (atoms,),
        "r_frag": (atoms,),
        "charge": (count,),
        "spin": (count,),
        "level": (count,),
        "verified": (count,),
    }
    shapes |= dict.fromkeys(("r", "ts", "p"), (atoms, 3))
    for key, shape in shapes.items():
        if key in arrays and arrays[key].shape != shape:
            raise InputError(f"{key} has shape {arrays[key].shape}", where=where, expected=f"{shape}")
    row_of = np.repeat(np.arange(count), np.diff(ptr))
    for key in ("r", "p", "ts"):
        bad = ~np.isfinite(arrays[key]).all(axis=1)
        if key == "ts":  # a ts that is all NaN is an unknown one
            unknown = np.bincount(row_of, weights=np.isnan(arrays[key]).all(axis=1), minlength=count) == np.diff(ptr)
            bad &= ~unknown[row_of]
        if bad.any():
            k = int(row_of[np.argmax(bad)])
            raise InputError(
                f"{key} has a non-finite coordinate", where=f"{where}, reaction {k} (id {arrays['id'][k]})",
                expected="finite Angstrom; a transition state that is not known is all NaN",
            )  # fmt: skip
    for key in {"p_frag", "r_frag"} & set(arrays):
        if (arrays[key] < 0).any():  # the models mark what is no atom so
            k = int(row_of[np.argmax(arrays[key] < 0)])
            raise InputError(
                f"{key} is {arrays[key].min()}", where=f"{where}, reaction {k} (id {arrays['id'][k]})",
                expected="fragments counted from 0",
            )  # fmt: skip
    _check_chemistry(arrays, row_of, where)


def _check_chemistry(arrays: dict[str, np.ndarray], row_of: np.ndarray, where: str) -> None:
    """Atomic numbers and electrons; `row_of` (atoms,): reaction of each atom."""
    z, count = arrays["z"], len(arrays["ptr"]) - 1
    strange = (z < 1) | (z > HEAVIEST) | (z != np.floor(z))
    if strange.any():
        k = int(row_of[np.argmax(strange)])
        raise InputError(
            f"atomic number {z[np.argmax(strange)]}", where=f"{where}, reaction {k} (id {arrays['id'][k]})",
            expected=f"whole numbers from 1 to {HEAVIEST}",
        )  # fmt: skip
    charge, spin = (np.asarray(arrays.get(key, np.zeros(count))) for key in ("charge", "spin"))
    electrons = np.bincount(row_of, weights=z, minlength=count) - charge
    possible = possible_spin(electrons, spin)
    if not possible.all():
        k = int(np.argmin(possible))
        raise InputError(
            f"{electrons[k]:.0f} electrons (charge {charge[k]:.0f}) cannot have {spin[k]:.0f} unpaired",
            where=f"{where}, reaction {k} (id {arrays['id'][k]})", expected="`spin`, the number of unpaired electrons",
        )  # fmt: skip


def _frozen(array: np.ndarray, dtype) -> np.ndarray:
    array = np.ascontiguousarray(array, dtype=dtype)
    array.flags.writeable = False
    return array
