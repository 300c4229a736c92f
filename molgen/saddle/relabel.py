"""The same reaction with the atoms labelled otherwise: which of equivalent atoms react is not for a search to know."""

from __future__ import annotations

import numpy as np
from rdkit import Chem

from molgen.geometry.bonds import bond_graph
from molgen.geometry.chirality import stereo_differences

# How a bond of both sides, of the first and of the second alone is drawn in the graph of a reaction
_KEPT, _BROKEN, _FORMED = Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE
MOST = 2_000  # labellings to choose from: those of six methyl groups would be 46,656


def relabelling(numbers, wells, reactant: np.ndarray, product: np.ndarray) -> np.ndarray | None:
    """The order of the atoms in which two wells are the bonds of reactant and product, where there is one.

    It is an isomorphism of the two reactions' condensed graphs (bonds kept, broken and formed), so it exchanges
    equivalent atoms of both wells alike. Of several it is the one of the fewest other stereoisomers, then of the fewest
    atoms that change places.

    Args:
        numbers: (N,) atomic numbers. wells: two times (N, 3) Angstrom. reactant, product: (N, 3) Angstrom.

    Returns:
        (N,) int64; `wells[k][order]` have the bonds of reactant and product, or of product and reactant. None without.
    """
    wanted = _condensed(numbers, reactant, product)
    best: tuple[int, int, np.ndarray] | None = None
    for first, second in (wells, wells[::-1]):
        found = _condensed(numbers, first, second)
        if found.GetNumBonds() != wanted.GetNumBonds():
            continue
        for match in found.GetSubstructMatches(wanted, uniquify=False, maxMatches=MOST):
            order = np.array(match, dtype=np.int64)
            moved = int((order != np.arange(len(order))).sum())
            if best is not None and best[:2] <= (0, moved):
                continue
            pairs = ((reactant, first[order]), (product, second[order]))
            other = sum(len(stereo_differences(numbers, end, well)) for end, well in pairs)
            if best is None or (other, moved) < best[:2]:
                best = other, moved, order
    return None if best is None else best[2]


def _condensed(numbers, before: np.ndarray, after: np.ndarray) -> Chem.Mol:
    """The graph of a reaction: atoms by element, bonds by what becomes of them."""
    mol = Chem.RWMol()
    for z in numbers:
        atom = Chem.Atom(int(z))
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    first, second = bond_graph(numbers, before), bond_graph(numbers, after)
    for i, j in np.argwhere(np.triu(first | second)).tolist():
        kind = _KEPT if first[i, j] and second[i, j] else _BROKEN if first[i, j] else _FORMED
        mol.AddBond(i, j, kind)
    mol.UpdatePropertyCache(strict=False)
    return mol.GetMol()
