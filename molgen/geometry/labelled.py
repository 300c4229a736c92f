"""Graphs whose atoms and bonds bear labels, for RDKit to lay one upon the other."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rdkit import Chem

MOST = 2_000  # isomorphisms to choose from: those of six methyl groups would be 46,656
_KINDS = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)


def labelled_graph(atoms: Iterable[tuple[int, int]], bonds: Iterable[tuple[int, int, int]]) -> Chem.Mol:
    """A molecule without chemistry, to match against others of its kind.

    Args:
        atoms: atomic number and a label each. bonds: two atoms and a label, 0 to 2, each.
    """
    graph = Chem.RWMol()
    for number, label in atoms:
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        atom.SetIsotope(label)  # compared where the pattern has one
        graph.AddAtom(atom)
    for i, j, label in bonds:
        graph.AddBond(i, j, _KINDS[label])
    graph.UpdatePropertyCache(strict=False)
    return graph.GetMol()


def reaction_graph(numbers, before: np.ndarray, after: np.ndarray) -> Chem.Mol:
    """The condensed graph of a reaction: atoms by element, bonds by what becomes of them: kept, broken or formed.

    Args:
        numbers: (N,) atomic numbers. before, after: (N, N) boolean connectivity of the two ends.
    """
    fate = np.where(before & after, 0, np.where(before, 1, 2))
    pairs = np.argwhere(np.triu(before | after, 1)).tolist()
    return labelled_graph([(int(z), 0) for z in numbers], [(i, j, int(fate[i, j])) for i, j in pairs])


def isomorphisms(graph: Chem.Mol, other: Chem.Mol) -> tuple[tuple[int, ...], ...]:
    """The orders (N,) of the other graph's atoms that make it `graph`, at most `MOST`; none where they differ."""
    if (graph.GetNumAtoms(), graph.GetNumBonds()) != (other.GetNumAtoms(), other.GetNumBonds()):
        return ()
    return other.GetSubstructMatches(graph, uniquify=False, maxMatches=MOST)  # of as many bonds: none left over
