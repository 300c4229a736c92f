"""Broad dihedrals and the force-field terms they feel, by rank."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from molgen.geometry.internal import ZMatrix

Bends = dict[tuple[frozenset[int], int], tuple[float, float]]  # angle and force constant, by (ends, apex)


@dataclass(frozen=True, eq=False)
class Terms:
    """Force-field terms by rank, each owned by the atom that completes it (its highest rank).

    Attributes:
        atoms: (K, m) ranks. owner: (K,) rank. slot: (K,) where in `atoms` the owner stands.
        constants: (K, c) parameters: angles (theta, k), torsions (n, phase, k); radians, eV.
    """

    atoms: Tensor
    owner: Tensor
    slot: Tensor
    constants: Tensor

    @classmethod
    def of(cls, atoms: np.ndarray, constants: np.ndarray) -> Terms:
        """Terms from ranks (K, m) and constants (K, c)."""
        return cls(
            torch.from_numpy(atoms),
            torch.from_numpy(atoms.max(1)),
            torch.from_numpy(atoms.argmax(1)),
            torch.from_numpy(constants).double(),
        )


@dataclass(frozen=True, eq=False)
class Rotor:
    """A broad dihedral and what turns with it: the atom X and the other substituents that its centre still lacks.

    Attributes:
        rank, fold: of X. atoms: (Y,) ranks of X and its siblings. azimuth: (Y,) their dihedral minus X's.
        torsions: (K, 3) n, phase, k of every torsion over the axis; ends: (K,) rank at the far end of the axis;
            offsets: (K,) azimuth of the near end.
        closure: of a torsion within a five-membered ring whose last atom, bonded to X and A, is still to come: its two
            bond lengths (Angstrom), the angle between them (radians), its force constant (eV); else None.
        beyond: what hangs on X and is still to come: its charge (e), how far past X it lies (Angstrom), its number
            of heavy atoms.
    """

    rank: int
    fold: int
    atoms: Tensor
    azimuth: Tensor
    torsions: Tensor
    ends: Tensor
    offsets: Tensor
    closure: tuple[float, float, float, float] | None
    beyond: tuple[float, float, int]


def build_rotor(
    z: ZMatrix,
    i: int,
    torsions: Terms,
    graph: nx.Graph,
    ideal: tuple[np.ndarray, np.ndarray],
    bends: Bends,
    charges: np.ndarray,
    heavy: set[int],
) -> Rotor:
    """The rotor of rank i; ideal: (r0, theta0) of all ranks, heavy: ranks of the heavy atoms."""
    a, b, c = (int(k) for k in z.references[i])
    if z.closes[i]:  # the axis is no bond: only the closing atom itself turns
        empty = torch.zeros(0, dtype=torch.long)
        none = torch.zeros(0, dtype=torch.float64)
        return Rotor(
            i, 1, torch.tensor([i]), torch.zeros(1).double(), none.reshape(0, 3), empty, none, None, (0.0, 0.0, 0)
        )
    siblings = [k for k in graph[c] if k > i and z.references[k, 0] == i and z.references[k, 2] == c]
    atoms = [i, *siblings]
    azimuth = {i: 0.0} | {k: float(z.centre[k]) for k in siblings}
    rows, ends, offsets = [], [], []
    for quad, constants in zip(torsions.atoms.tolist(), torsions.constants, strict=True):
        for d, e, f, g in (quad, quad[::-1]):
            if (e, f) == (b, c) and g in azimuth and d < i:
                rows.append(constants)
                ends.append(d)
                offsets.append(azimuth[g])
    return Rotor(
        rank=i,
        fold=int(z.fold[i]),
        atoms=torch.tensor(atoms),
        azimuth=torch.tensor([azimuth[k] for k in atoms]).double(),
        torsions=torch.stack(rows) if rows else torch.zeros(0, 3).double(),
        ends=torch.tensor(ends, dtype=torch.long),
        offsets=torch.tensor(offsets).double(),
        closure=_closure(z, i, a, graph, ideal, bends),
        beyond=_beyond(i, atoms, graph, charges, heavy),
    )


def _beyond(
    i: int, rotor: list[int], graph: nx.Graph, charges: np.ndarray, heavy: set[int]
) -> tuple[float, float, int]:
    """Charge, distance and heavy atoms of the branch that X carries: what is reached from it through later ranks."""
    reach = nx.single_source_shortest_path_length(graph.subgraph([k for k in graph if k >= i]), i)
    branch = [k for k in reach if k not in rotor]
    if not branch:
        return 0.0, 0.0, 0
    weight = np.abs(charges[branch]) + 0.01
    hops = float((weight * [reach[k] for k in branch]).sum() / weight.sum())
    return float(charges[branch].sum()), 1.2 * hops, len(heavy & set(branch))


def _closure(
    z: ZMatrix, i: int, a: int, graph: nx.Graph, ideal: tuple[np.ndarray, np.ndarray], bends: Bends
) -> tuple[float, float, float, float] | None:
    """What the atom that will close a ring between ranks i and a asks of their distance."""
    last = [k for k in set(graph[i]) & set(graph[a]) if k > i and z.closes[k]]
    if not last:
        return None
    (k,) = last
    theta, force = bends[frozenset((i, a)), k]
    # the second coordinate of an atom that closes a ring is a length too
    return float(ideal[0][k]), float(ideal[1][k]), float(theta), float(force)
