"""The same reaction with the atoms labelled otherwise: which of equivalent atoms react is not for a search to know."""

from __future__ import annotations

import numpy as np
from rdkit import Chem

from molgen.geometry.bonds import bond_graph
from molgen.geometry.chirality import stereo_differences
from molgen.geometry.labelled import MOST, labelled_graph

NEAREST = 100  # labellings that change the fewest atoms, of which the stereoisomers are looked at


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
    found: list[tuple[int, tuple[int, ...], np.ndarray, np.ndarray]] = []
    for first, second in (wells, wells[::-1]):
        graph = _condensed(numbers, first, second)
        if graph.GetNumBonds() == wanted.GetNumBonds():  # then a match is an isomorphism
            matches = graph.GetSubstructMatches(wanted, uniquify=False, maxMatches=MOST)
            found += [(sum(k != j for k, j in enumerate(match)), match, first, second) for match in matches]
    least: tuple[int, tuple[int, ...]] | None = None
    for _, match, first, second in sorted(found, key=lambda entry: entry[0])[:NEAREST]:
        order = np.array(match, dtype=np.int64)
        ends = ((reactant, first[order]), (product, second[order]))
        other = sum(len(stereo_differences(numbers, end, well)) for end, well in ends)
        if least is None or other < least[0]:
            least = other, match
        if not other:
            break
    return None if least is None else np.array(least[1], dtype=np.int64)


def _condensed(numbers, before: np.ndarray, after: np.ndarray) -> Chem.Mol:
    """The graph of a reaction: atoms by element, bonds by what becomes of them: kept, broken or formed."""
    first, second = bond_graph(numbers, before), bond_graph(numbers, after)
    fate = np.where(first & second, 0, np.where(first, 1, 2))
    pairs = np.argwhere(np.triu(first | second)).tolist()
    return labelled_graph([(int(z), 0) for z in numbers], [(i, j, int(fate[i, j])) for i, j in pairs])
