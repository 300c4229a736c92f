"""Which placed atoms describe the next one, for any peptide (coordinates: `molgen.geometry.internal`).

The second and third substituent of a centre are described from the first (A is that sibling), so phi is narrow and its
sign is the chirality. Rings are closed by bilateration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from molgen.errors import InputError
from molgen.geometry.bonds import atom_classes
from molgen.geometry.internal import ZMatrix, dihedral, wrapped_angle

_THIRD = 2 * math.pi / 3


def build_zmatrix(
    names: Sequence[str],
    residue_index: Sequence[int] | np.ndarray,
    residue_names: Sequence[str],
    numbers: Sequence[int] | np.ndarray,
    bonds: np.ndarray,
) -> ZMatrix:
    """Order and references for a peptide: backbone N to C with everything rigidly attached, side chains outward, then
    the rotors that carry hydrogens alone.

    Args:
        names, residue_index, numbers: one for each atom. residue_names: one for each residue. bonds: (M, 2).

    Raises:
        InputError: atoms that no bond connects to the backbone.
    """
    return _Builder(names, residue_index, residue_names, numbers, bonds).build()


class _Builder:
    def __init__(self, names, residue_index, residue_names, numbers, bonds):
        self.names, self.residue = list(names), [int(r) for r in residue_index]
        self.residue_names = list(residue_names)
        self.hydrogen = np.asarray(numbers) == 1
        self.graph = nx.Graph()
        self.graph.add_nodes_from(range(len(self.names)))
        self.graph.add_edges_from((int(i), int(j)) for i, j in bonds)
        self.rings = [set(ring) for ring in nx.minimum_cycle_basis(self.graph)]
        self.classes = atom_classes(numbers, nx.to_numpy_array(self.graph) > 0)[-1]
        self.placed: dict[int, int] = {}
        self.rows: list[tuple[tuple[int, int, int], bool, int, float]] = []
        self.axis: dict[int, int] = {}  # centre -> the placed neighbour that its substituents are seen along

    def build(self) -> ZMatrix:
        chain = self._chain()
        for k, atom in enumerate(chain[:3]):
            self._put(atom, (-1, chain[0] if k > 1 else -1, chain[k - 1] if k else -1), False, 0, 0.0)
        self.axis[chain[0]], self.axis[chain[1]], self.axis[chain[2]] = chain[1], chain[0], chain[1]
        for atom in chain[1:]:
            if not self._is_rotor(atom):
                self._substituents(atom)
        queue = [chain[0]] if not self._is_rotor(chain[0]) else []
        queue += sorted((a for a in self.placed if a not in chain), key=lambda a: (self.residue[a], self.placed[a]))
        rotors = []
        while queue:
            centre = queue.pop(0)
            if self._is_rotor(centre):
                rotors.append(centre)
            else:
                queue += self._substituents(centre)
        rotors += [a for a in (chain[0], chain[-1]) if self._is_rotor(a)]
        for centre in sorted(rotors, key=lambda a: (self.residue[a], self.placed[a])):
            self._substituents(centre)
        if len(self.placed) < len(self.names):
            lost = next(i for i in range(len(self.names)) if i not in self.placed)
            raise InputError(
                f"atom {lost} ({self.names[lost]}) is not bonded to the backbone",
                where=f"residue {self.residue[lost] + 1}",
                expected="one connected peptide",
            )
        order = np.array(list(self.placed))
        rows = [(tuple(self.placed.get(a, -1) for a in refs), closes, m, c) for refs, closes, m, c in self.rows]
        return ZMatrix(
            order=order,
            references=np.array([r[0] for r in rows]),
            closes=np.array([r[1] for r in rows]),
            fold=np.array([r[2] for r in rows]),
            centre=np.array([r[3] for r in rows]),
            swaps=self._swaps(),
        )

    def _chain(self) -> list[int]:
        """Backbone atoms from the N terminus to the C terminus, caps included."""
        at = {(r, n): i for i, (r, n) in enumerate(zip(self.residue, self.names, strict=True))}
        chain = []
        for r, name in enumerate(self.residue_names):
            wanted = {"ACE": ("CH3", "C"), "NME": ("N", "CH3" if (r, "CH3") in at else "C")}.get(name, ("N", "CA", "C"))
            missing = [atom for atom in wanted if (r, atom) not in at]
            if missing:
                raise InputError(
                    f"residue {r + 1} ({name}) has no atom {missing[0]}", where="topology", expected="a peptide's atoms"
                )
            chain += [at[r, atom] for atom in wanted]
        return chain

    def _is_rotor(self, centre: int) -> bool:
        """Only hydrogens left to place, and nothing to place them from but one neighbour."""
        left = [x for x in self.graph[centre] if x not in self.placed]
        return bool(left) and all(self.hydrogen[x] for x in left) and len(self.graph[centre]) - len(left) == 1

    def _put(self, atom, refs, closes, fold, centre) -> None:
        self.placed[atom] = len(self.placed)
        self.rows.append((refs, closes, fold, centre))

    def _neighbours(self, atom: int) -> list[int]:
        return sorted((n for n in self.graph[atom] if n in self.placed), key=self.placed.__getitem__)

    def _substituents(self, centre: int) -> list[int]:
        """Place all unplaced neighbours of `centre`: one that turns a ring, backbone, other heavy ones, hydrogens."""
        backbone = {"N", "CA", "C"}
        todo = [x for x in self.graph[centre] if x not in self.placed]

        def urgency(x: int) -> tuple:
            ring = self._ring_mate(x, centre) is not None
            return (self.hydrogen[x], not ring, self.names[x] not in backbone, self.residue[x], self.names[x])

        todo.sort(key=urgency)
        for x in todo:
            self._place(x, centre)
        return todo

    def _place(self, x: int, c: int) -> None:
        self.axis[x] = c
        before = self._neighbours(c)
        other = [n for n in self._neighbours(x) if n != c]
        if other:  # closes a ring
            b = other[0]
            a = next(n for n in before if n not in (b, x))
            planar = self._planar_ring({x, b, c})
            self._put(x, (a, b, c), True, 0 if planar else 1, math.pi if planar else 0.0)
            return
        b = self.axis[c] if self.axis[c] in before else before[0]
        siblings = [n for n in before if n != b]
        if siblings:
            centre = math.pi if len(self.graph[c]) == 3 else self._side(x, c, siblings)
            self._put(x, (siblings[0], b, c), False, 0, centre)
            return
        candidates = [n for n in self._neighbours(b) if n != c]
        if (mate := self._ring_mate(x, c)) is not None:  # a torsion within a ring, cis: flat if aromatic, else puckered
            self._put(x, (mate, b, c), False, 0 if self._planar_ring({x, c, b, mate}) else 1, 0.0)
            return
        left = [n for n in self.graph[c] if n != b]
        same = len(left) == len(self.graph[c]) - 1 > 1 and len({self.classes[n] for n in left}) == 1
        self._put(x, (candidates[0], b, c), False, len(left) if same else 1, 0.0)

    def _ring_mate(self, x: int, c: int) -> int | None:
        """The placed atom across the bond from `c` in one ring with x and that bond, if x has no sibling yet."""
        before = self._neighbours(c)
        if len(before) != 1:
            return None
        across = [n for n in self._neighbours(before[0]) if n != c]
        return next((n for n in across if any({x, c, before[0], n} <= ring for ring in self.rings)), None)

    def _planar_ring(self, atoms: set[int]) -> bool:
        """Whether one aromatic ring (three bonds or fewer at every member) holds all these atoms."""
        return any(atoms <= ring and all(len(self.graph[a]) <= 3 for a in ring) for ring in self.rings)

    def _side(self, x: int, c: int, siblings: list[int]) -> float:
        """Dihedral of the next substituent of a tetrahedral centre against the first, seen along the axis.

        In L amino acids CB and HA lie at -120 and +120 degrees from C, seen along N-CA; (S)-CB of isoleucine and
        (R)-CB of threonine have their methyl at -120 from CG1 and OG1. Elsewhere the two are equivalent and the choice
        is free.
        """
        fixed = {"C": 0, "CB": -1, "HA": 1}
        if self.names[c] == "CA" and {self.names[x], self.names[siblings[0]]} <= set(fixed):
            turns = fixed[self.names[x]] - fixed[self.names[siblings[0]]]
            return (turns + 1) % 3 * _THIRD - _THIRD
        second = -_THIRD if (self.residue_names[self.residue[c]], self.names[c]) == ("ILE", "CB") else _THIRD
        return second if len(siblings) == 1 else -second

    def _swaps(self) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
        """`swaps` of :class:`ZMatrix`."""
        swaps = []
        for c in (c for c in self.placed if len(self.graph[c]) == 4):
            children = [n for n in self.graph[c] if self.axis.get(n) == c and self.placed[n] > 2]
            for i, x in enumerate(children):
                for y in children[i + 1 :]:
                    if self.classes[x] != self.classes[y]:
                        continue
                    first, second = sorted((x, y), key=self.placed.__getitem__)
                    narrow = [n for n in (first, second) if self.rows[self.placed[n]][2] == 0]
                    if narrow and (len(narrow) == 2 or len(children) == 3 and not self._rotor_of_three(children)):
                        groups = self._branch(first, c), self._branch(second, c)
                        swaps.append((self.placed[narrow[0]], *groups))
        return tuple(sorted(swaps))

    def _rotor_of_three(self, children: list[int]) -> bool:
        return len({self.classes[n] for n in children}) == 1

    def _branch(self, x: int, c: int) -> tuple[int, ...]:
        """Ranks of the atoms beyond the bond c-x, in order."""
        graph = self.graph.copy()
        graph.remove_edge(x, c)
        return tuple(sorted(self.placed[n] for n in nx.node_connected_component(graph, x)))


def canonical(z: ZMatrix, x: Tensor) -> Tensor:
    """Positions (B, N, 3) by rank with equivalent hydrogens (and methyl groups) named as the z-matrix expects."""
    for rank, first, second in z.swaps:
        a, b, c = (x[:, k] for k in z.references[rank])
        off = wrapped_angle(dihedral(a, b, c, x[:, rank]) - float(z.centre[rank])).abs() > math.pi / 2
        if off.any():
            swapped = x.clone()
            swapped[:, list(first + second)] = x[:, list(second + first)]
            x = torch.where(off[:, None, None], swapped, x)
    return x
