"""The same reaction with the atoms labelled otherwise: which of equivalent atoms react is not for a search to know."""

from __future__ import annotations

import numpy as np

from molgen.geometry.bonds import bond_graph
from molgen.geometry.chirality import stereo_differences
from molgen.geometry.labelled import isomorphisms, reaction_graph

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
    wanted = reaction_graph(numbers, bond_graph(numbers, reactant), bond_graph(numbers, product))
    found: list[tuple[int, tuple[int, ...], np.ndarray, np.ndarray]] = []
    for first, second in (wells, wells[::-1]):
        graph = reaction_graph(numbers, bond_graph(numbers, first), bond_graph(numbers, second))
        for match in isomorphisms(wanted, graph):
            found.append((sum(k != j for k, j in enumerate(match)), match, first, second))
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
