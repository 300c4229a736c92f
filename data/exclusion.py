"""Which reaction is it, whatever the order of the atoms and the direction: the filter that keeps a test set unseen.

A reaction's key is the unordered pair of the connectivities of its two sides (molecule keys: stereochemistry, bond
orders and the atom mapping do not count), so the filter drops rather too much than too little. A bond near the distance
where bonds end may count on one level of theory and not on another: a reaction has a key for each tolerance, and one in
common is enough to be excluded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product

import numpy as np

from molgen.data.reactions import Reaction, load_npz, read_column
from molgen.errors import InputError
from molgen.geometry.bonds import TOLERANCE, bond_graph, molecule_key

TOLERANCES = (TOLERANCE - 0.1, TOLERANCE, TOLERANCE + 0.1)  # Angstrom


def pair_key(a: str, b: str) -> str:
    """The key of a reaction between two molecule keys; no direction."""
    return " ".join(sorted((a, b)))


def reaction_key(numbers, bonds_r: np.ndarray, bonds_p: np.ndarray, charge: int = 0) -> str:
    """The key of a reaction between two connectivities (N, N)."""
    return pair_key(*(molecule_key(numbers, bonds, charge) for bonds in (bonds_r, bonds_p)))


def reaction_keys(numbers, reactant: np.ndarray, product_: np.ndarray, charge: int = 0, parts=()) -> frozenset[str]:
    """The keys of a reaction given by the geometries (N, 3) of its ends, at every tolerance.

    Args:
        parts: fragment indices (N,) of reactant and product, if known; atoms of different fragments are not bonded.
    """
    sides = []
    for x, part in zip((reactant, product_), parts or (None, None), strict=True):
        graphs = [bond_graph(numbers, x, tolerance) for tolerance in TOLERANCES]
        if part is not None:
            graphs = [bonds & (part[:, None] == part) for bonds in graphs]
        unique = {bonds.tobytes(): bonds for bonds in graphs}
        sides.append({molecule_key(numbers, bonds, charge) for bonds in unique.values()})
    return frozenset(pair_key(a, b) for a, b in product(*sides))


def smiles_key(smiles: str) -> str | None:
    """The key of an atom-mapped reaction SMILES with explicit hydrogens; None where it cannot be read."""
    from rdkit import Chem, rdBase

    keys = []
    options = Chem.SmilesParserParams()
    options.removeHs = options.sanitize = False
    with rdBase.BlockLogs():
        for side in smiles.split(">>"):
            molecule = Chem.MolFromSmiles(side, options)
            if molecule is None:
                return None
            numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
            keys.append(molecule_key(numbers, Chem.GetAdjacencyMatrix(molecule) > 0, Chem.GetFormalCharge(molecule)))
    return pair_key(*keys) if len(keys) == 2 else None


def excluded_keys(sets: Sequence[str | os.PathLike]) -> frozenset[str]:
    """The keys of all reactions of "set.npz", "set.npz:split" or "set.npz:split,split".

    Raises:
        InputError: no such file or split.
    """
    keys: set[str] = set()
    for entry in sets:
        path, splits = split_spec(str(entry))
        names = read_column(path, "split").astype(str)
        for split in splits or [None]:
            reactions = load_npz(path, split)
            keys |= keys_of(reactions)
            smiles = read_column(path, "smiles").astype(str)
            if len(smiles):
                chosen = smiles if split is None else smiles[names == split]
                keys |= {key for text in chosen if (key := smiles_key(text)) is not None}
    if sets and not keys:
        raise InputError("no reactions in it", where="--exclude", expected="reactions to exclude")
    return frozenset(keys)


def keys_of(reactions: Sequence[Reaction]) -> set[str]:
    """All keys of `reactions`."""
    found: set[str] = set()
    for r in reactions:
        parts = r.reactant_fragments, r.product_fragments
        found |= reaction_keys(r.numbers, r.reactant, r.product, r.charge, parts)
    return found


def split_spec(text: str) -> tuple[str, list[str]]:
    """Path and splits of "set.npz:test,val"."""
    path, colon, splits = text.rpartition(":")
    if not colon or not path.lower().endswith(".npz"):
        return text, []
    return path, [name for name in splits.split(",") if name]
