"""Whether two transition states are one: the same reaction by connectivity, the same geometry by RMSD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from molgen.data.reactions import Reaction
from molgen.geometry.align import rmsd
from molgen.geometry.bonds import distance_matrix
from molgen.geometry.labelled import isomorphisms, reaction_graph

SAME_RMSD = 0.05  # Angstrom; two transition states are one within this and SAME_ENERGY
SAME_ENERGY = 2e-3  # eV
SAME_DISTANCE = 0.01  # Angstrom; of one structure, as files round it


class KnownSaddles:
    """Transition states seen so far, found again in any atom order, direction and handedness."""

    def __init__(self) -> None:
        self._of: dict[str, list[tuple[float, Saddle]]] = {}

    def add(
        self, key: str, energy: float, numbers: np.ndarray, ts: np.ndarray, before: np.ndarray, after: np.ndarray
    ) -> bool:
        """Take up a transition state unless it is known; whether it was new.

        Args:
            key: of the reaction, see :func:`molgen.data.exclusion.reaction_key`. energy: eV, of the transition state.
            numbers: (N,). ts: (N, 3) Angstrom. before, after: (N, N) connectivity of the two ends.
        """
        known = self._of.setdefault(key, [])
        saddle = (numbers, ts, before, after)
        if any(abs(energy - e) < SAME_ENERGY and same_saddle(saddle, other) for e, other in known):
            return False
        known.append((energy, saddle))
        return True

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def reactions(self) -> int:
        """Number of different reactions by connectivity."""
        return len(self._of)


Saddle = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # numbers, ts, before, after


def same_saddle(a: Saddle, b: Saddle) -> bool:
    """Whether two transition states (numbers, ts, before, after) coincide within SAME_RMSD after relabelling.

    Atoms may be exchanged where element and both connectivities allow it; reactant and product, and mirror images, too.
    """
    if np.abs(_profile(a[0], a[1]) - _profile(b[0], b[1])).max(initial=0) > 4 * SAME_RMSD:
        return False  # whatever the labels: distances of superposable geometries differ by little
    mine = torch.from_numpy(np.asarray(a[1], dtype=float))
    for order in _labellings(a, b):
        if float(rmsd(torch.from_numpy(np.asarray(b[1], dtype=float)[order]), mine, reflect=True)) < SAME_RMSD:
            return True
    return False


def _profile(numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sorted distances, pairs of each two elements by themselves: independent of labels and handedness."""
    i, j = np.triu_indices(len(x), 1)
    low, high = np.minimum(numbers[i], numbers[j]), np.maximum(numbers[i], numbers[j])
    d = distance_matrix(x)[i, j]
    return d[np.lexsort((d, high, low))]


def _labellings(a: Saddle, b: Saddle) -> Iterator[list[int]]:
    """Orders (N,) of b's atoms that make it the reaction a, forwards or backwards."""
    wanted = reaction_graph(a[0], a[2], a[3])
    for before, after in ((b[2], b[3]), (b[3], b[2])):
        yield from map(list, isomorphisms(wanted, reaction_graph(b[0], before, after)))


def among(reactions: Sequence[Reaction], others: Sequence[Reaction]) -> np.ndarray:
    """(len(reactions),) whether a reaction is one of the others: atoms in the same order, and the distances within its
    transition state alike to `SAME_DISTANCE`, whichever way it runs, however it lies and is rounded."""
    found = np.zeros(len(reactions), dtype=bool)
    groups: dict[bytes, tuple[list[int], list[int]]] = {}
    for which, part in enumerate((reactions, others)):
        for at, reaction in enumerate(part):
            groups.setdefault(reaction.numbers.tobytes(), ([], []))[which].append(at)
    for here, there in groups.values():
        if here and there:
            one, other = _distances(reactions, here), _distances(others, there)
            found[here] = cKDTree(other).query(one, p=np.inf, distance_upper_bound=SAME_DISTANCE)[0] < np.inf
    return found


def _distances(reactions: Sequence[Reaction], at: Sequence[int]) -> np.ndarray:
    """(len(at), N (N - 1) / 2) Angstrom, within transition states of N atoms."""
    return np.array([pdist(np.asarray(reactions[k].ts, dtype=float)) for k in at])
