"""Graphs whose atoms and bonds bear labels, for RDKit to lay one upon the other."""

from __future__ import annotations

from collections.abc import Iterable

from rdkit import Chem

MOST = 2_000  # ways to choose from: those of six methyl groups would be 46,656
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
