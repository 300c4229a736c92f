"""The published reaction sets, read as their authors distribute them.

- RDB7 (Spiekermann, Pattanaik & Green, Sci. Data 9, 417 (2022); Zenodo 6618262): one `rxn000000` folder a reaction,
  holding `r000000.xyz`, `ts000000.xyz` and `p000000.xyz` (or one product file a fragment: `p000000_0.xyz`, ...),
  and beside them a csv with the columns idx, rsmi, psmi, ...
- Transition1x (Schreiner et al., Sci. Data 9, 779 (2022); Figshare 19614657): HDF5,
  `data/<formula>/<reaction>/{reactant,transition_state,product}/positions (1, N, 3)` with `atomic_numbers` (N,) in the
  reaction group. (`train`, `val` and `test` link to the same groups.)
- RGD1 (Zhao et al., Sci. Data 10, 145 (2023); Figshare 21066901): HDF5, one group a reaction with `elements` (N,),
  `RG`, `TSG` and `PG` (N, 3).

All are neutral closed-shell molecules in Angstrom. Fragments are found by bonds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from molgen.data.reactions import Reaction, refuse_run_folder
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, fragments
from molgen.geometry.mapping import given_mapping, map_atoms

_GAP = 20.0  # Angstrom between product fragments that come in separate files


def import_reactions(path: str | os.PathLike, kind: str = "auto") -> Iterator[Reaction]:
    """The reactions of a published set, one by one.

    Args:
        path: folder (RDB7) or HDF5 file (Transition1x, RGD1).
        kind: "rdb7", "transition1x", "rgd1", or "auto" to tell by the content.

    Raises:
        InputError: nothing there, or not in that schema (names the folder or group).
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such file or folder", where=str(path), remedy="check the path")
    refuse_run_folder(path, "reactions.npz")
    if kind == "auto":
        kind = _guess(path)
    if kind not in _IMPORTERS:
        raise InputError(f"unknown kind '{kind}'", where="--kind", expected=f"auto, {', '.join(_IMPORTERS)}")
    return _IMPORTERS[kind](path)


def import_rdb7(path: str | os.PathLike) -> Iterator[Reaction]:
    """Reactions of an RDB7 folder in order of their number; a csv beside the folders is not needed.

    Products in one file are in the reactant's order. Where each fragment has its own file, or the order disagrees, the
    atoms are mapped by geometry, fewest bond changes, then least displacement, from the transition state: it has the
    reactant's order, and shows which hydrogen leaves.
    """
    folders = sorted(p for p in Path(path).rglob("rxn*") if p.is_dir() and re.fullmatch(r"rxn\d+", p.name))
    if not folders:
        raise InputError("no rxn000000 folders", where=str(path), expected="the unpacked RDB7 xyz archive")
    for folder in folders:
        number = folder.name.removeprefix("rxn")
        numbers, reactant = _xyz(_only(folder, f"r{number}.xyz"))
        numbers_ts, ts = _xyz(_only(folder, f"ts{number}.xyz"))
        files = [folder / f"p{number}.xyz"]
        if not files[0].is_file():
            files = sorted(folder.glob(f"p{number}_*.xyz"))
        if not files:
            raise InputError("no product", where=str(folder), expected=f"p{number}.xyz or p{number}_0.xyz, ...")
        parts = [_xyz(file) for file in files]
        numbers_p = np.concatenate([z for z, _ in parts])
        product = np.concatenate([x - x.mean(0) + [_GAP * k, 0, 0] for k, (_, x) in enumerate(parts)])
        if not np.array_equal(numbers, numbers_ts) or not np.array_equal(np.sort(numbers), np.sort(numbers_p)):
            raise InputError(
                "the structures have different atoms", where=str(folder), expected="the same atoms in r, ts and p"
            )
        if len(parts) > 1 or given_mapping(numbers, reactant, numbers_p, product) is None:
            product = product[map_atoms(numbers, ts, numbers_p, product).permutation]
        yield _reaction(numbers, reactant, ts, product, str(int(number)))


def import_transition1x(path: str | os.PathLike) -> Iterator[Reaction]:
    """Reactions of the Transition1x HDF5 file, in the file's order; named formula/reaction."""
    with _open(path) as file:
        data = file.get("data")
        if data is None:
            raise InputError("no group 'data'", where=str(path), expected="data/<formula>/<reaction>")
        for formula, group in data.items():
            for name, reaction in group.items():
                where = f"{path}, data/{formula}/{name}"
                numbers = _array(reaction, "atomic_numbers", where).reshape(-1)
                sides = []
                for side in ("reactant", "transition_state", "product"):
                    positions = _array(reaction, f"{side}/positions", where)
                    sides.append(positions[-1] if positions.ndim == 3 else positions)  # stored as a path of one image
                yield _reaction(numbers, *sides, name=f"{formula}/{name}", where=where)


def import_rgd1(path: str | os.PathLike) -> Iterator[Reaction]:
    """Reactions of the RGD1 HDF5 file, in the file's order."""
    with _open(path) as file:
        for name, group in file.items():
            where = f"{path}, {name}"
            numbers = _array(group, "elements", where).reshape(-1)
            reactant, ts, product = (_array(group, key, where) for key in ("RG", "TSG", "PG"))
            yield _reaction(numbers, reactant, ts, product, name, where)


_IMPORTERS: dict[str, Callable[[Path], Iterator[Reaction]]] = {
    "rdb7": import_rdb7,
    "transition1x": import_transition1x,
    "rgd1": import_rgd1,
}


def _guess(path: Path) -> str:
    if path.is_dir():
        return "rdb7"
    with _open(path) as file:
        if "data" in file:
            return "transition1x"
        first = next(iter(file.values()), None)
        if first is not None and hasattr(first, "keys") and {"elements", "RG", "TSG", "PG"} <= set(first.keys()):
            return "rgd1"
    raise InputError(
        "neither Transition1x nor RGD1",
        where=str(path),
        expected="data/<formula>/<reaction> groups, or groups with elements, RG, TSG, PG",
    )


def _reaction(numbers, reactant, ts, product, name: str, where: str | None = None) -> Reaction:
    numbers = np.asarray(numbers, dtype=np.int64)
    reactant, ts, product = (np.asarray(x, dtype=np.float64) for x in (reactant, ts, product))
    for label, x in (("reactant", reactant), ("transition state", ts), ("product", product)):
        if x.shape != (len(numbers), 3) or not np.isfinite(x).all():
            raise InputError(
                f"{label} of shape {x.shape} or with non-finite values",
                where=where or name,
                expected=f"({len(numbers)}, 3)",
            )
    return Reaction(
        numbers=numbers,
        reactant=reactant,
        product=product,
        product_fragments=fragments(bond_graph(numbers, product)),
        reactant_fragments=fragments(bond_graph(numbers, reactant)),
        name=name,
        ts=ts,
    )


def _open(path: str | os.PathLike):
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"not a readable HDF5 file ({error})", where=str(path),
            expected="reactions: .npz (see molgen.data), an RDB7 folder, or the HDF5 of Transition1x or RGD1",
            remedy="if it is one of these, download it again",
        ) from error  # fmt: skip


def _array(group, key: str, where: str) -> np.ndarray:
    if key not in group:
        raise InputError(f"no '{key}'", where=where, expected=f"found {', '.join(group)}")
    return np.asarray(group[key])


def _only(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise InputError(f"no {name}", where=str(folder), expected="r, ts and p as xyz files")
    return folder / name


def _xyz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (N,) and positions (N, 3) of an xyz file."""
    from molgen.structures import read_side

    structure = read_side(path, path.name)
    return structure.numbers, structure.positions
