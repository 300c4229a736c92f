"""Which placed atoms describe the next one, for any peptide; Cartesian <-> internal coordinates, exact both ways.

Every atom X after the third has three placed reference atoms A, B, C and the coordinates r = |XC|, theta = angle
B-C-X and phi = dihedral A-B-C-X. An atom that closes a ring is bonded to two placed atoms, B and C: bilateration
replaces theta by r2 = |XB|. The second and third substituent of a centre are described from the first (A is that
sibling), so phi is narrow and its sign is the chirality.

The volume element of an atom is r^2 sin(theta), of a bilaterated one r r2 / |BC|, of the first three
r12^2 r23^2 sin(theta) (Parsons et al., J. Comput. Chem. 2005, 26, 1063, for the placement).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from molgen.errors import InputError

_THIRD = 2 * math.pi / 3


@dataclass(frozen=True)
class ZMatrix:
    """The order in which atoms are placed, and from what.

    Attributes:
        order: (N,) atom index of each rank.
        references: (N, 3) ranks of A, B, C; -1 where there is none (the first three atoms).
        closes: (N,) true where r2 = |XB| takes the place of theta.
        fold: (N,) 0 for a narrow dihedral around `center`, else m: a broad one, of density periodic in 2 pi / m (m
            equal substituents on the centre).
        center: (N,) radians, where a narrow dihedral lies.
        swaps: (rank to look at, ranks of one substituent, ranks of an equivalent one): hydrogens of a CH2, or the
            methyl groups of valine and leucine, which trade places where the dihedral is on the wrong side.
    """

    order: np.ndarray
    references: np.ndarray
    closes: np.ndarray
    fold: np.ndarray
    center: np.ndarray
    swaps: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def rank(self) -> np.ndarray:
        """(N,) rank of each atom index."""
        rank = np.empty_like(self.order)
        rank[self.order] = np.arange(len(self.order))
        return rank

    @cached_property
    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """The reference ranks A, B, C as (N,) tensors, 0 in place of -1."""
        a, b, c = torch.from_numpy(np.maximum(self.references, 0).T.copy())
        return a, b, c


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
        hashes = nx.weisfeiler_lehman_subgraph_hashes(
            nx.set_node_attributes(self.graph, {i: str(z) for i, z in enumerate(numbers)}, "z") or self.graph,
            node_attr="z",
            iterations=6,
        )
        self.classes = [hashes[i][-1] for i in range(len(self.names))]
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
            center=np.array([r[3] for r in rows]),
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

    def _put(self, atom, refs, closes, fold, center) -> None:
        self.placed[atom] = len(self.placed)
        self.rows.append((refs, closes, fold, center))

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
            center = math.pi if len(self.graph[c]) == 3 else self._side(x, c, siblings)
            self._put(x, (siblings[0], b, c), False, 0, center)
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


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral a-b-c-d in (-pi, pi], from positions (..., 3)."""
    axis, first, last = c - b, a - b, d - c
    normal, other = torch.linalg.cross(first, axis), torch.linalg.cross(last, axis)
    y = (torch.linalg.cross(normal, other) * axis).sum(-1) / axis.norm(dim=-1)
    return torch.atan2(y, (normal * other).sum(-1))


def wrapped(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def canonical(z: ZMatrix, x: Tensor) -> Tensor:
    """Positions (B, N, 3) by rank with equivalent hydrogens (and methyl groups) named as the z-matrix expects."""
    for rank, first, second in z.swaps:
        a, b, c = (x[:, k] for k in z.references[rank])
        off = wrapped(dihedral(a, b, c, x[:, rank]) - float(z.center[rank])).abs() > math.pi / 2
        if off.any():
            swapped = x.clone()
            swapped[:, list(first + second)] = x[:, list(second + first)]
            x = torch.where(off[:, None, None], swapped, x)
    return x


def to_internal(z: ZMatrix, x: Tensor) -> Tensor:
    """(B, N, 3) by rank: r (Angstrom), theta (radians; r2 where a ring closes) and phi (radians, minus `center`).

    What the first three atoms lack is 0.

    Args:
        x: (B, N, 3) positions by rank, Angstrom.
    """
    a, b, c = (x[:, index] for index in z.index)
    bond, back = x - c, b - c
    r = bond.norm(dim=-1)
    theta = torch.atan2(torch.linalg.cross(back, bond).norm(dim=-1), (back * bond).sum(-1))
    closes = torch.from_numpy(z.closes)
    second = torch.where(closes, (x - b).norm(dim=-1), theta)
    phi = wrapped(dihedral(a, b, c, x) - torch.from_numpy(z.center).to(x))
    return torch.where(_present(z), torch.stack([r, second, phi], dim=-1), 0.0)


def place(a: Tensor, b: Tensor, c: Tensor, r: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
    """The position X (..., 3) with |XC| = r, angle B-C-X = theta, dihedral A-B-C-X = phi."""
    axis, first = c - b, b - a
    axis = axis / axis.norm(dim=-1, keepdim=True)
    normal = torch.linalg.cross(first, axis)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    third = torch.linalg.cross(normal, axis)
    r, theta, phi = r[..., None], theta[..., None], phi[..., None]
    return c - r * theta.cos() * axis + r * theta.sin() * (phi.cos() * third + phi.sin() * normal)


def closing_angle(r: Tensor, r2: Tensor, distance: Tensor) -> Tensor:
    """The angle B-C-X of a triangle with |XC| = r, |XB| = r2, |BC| = distance; 0 or pi where there is none."""
    return torch.arccos(((r.square() + distance.square() - r2.square()) / (2 * r * distance)).clamp(-1, 1))


def to_cartesian(z: ZMatrix, q: Tensor) -> Tensor:
    """Inverse of :func:`to_internal`: positions (B, N, 3) by rank; the first atom at the origin, the second on z."""
    zero = q.new_zeros(len(q))
    xs = [torch.stack([zero, zero, zero], -1)]
    xs.append(torch.stack([zero, zero, q[:, 1, 0]], -1))
    for i in range(2, len(z)):
        r, theta, phi = q[:, i].unbind(-1)
        if i == 2:
            c, b = (xs[k] for k in z.references[2, [2, 1]])
            xs.append(place(b + q.new_tensor([1.0, 0.0, 0.0]), b, c, r, theta, zero))
            continue
        a, b, c = (xs[k] for k in z.references[i])
        if z.closes[i]:
            theta = closing_angle(r, theta, (b - c).norm(dim=-1))
        xs.append(place(a, b, c, r, theta, phi + float(z.center[i])))
    return torch.stack(xs, 1)


def log_volume(z: ZMatrix, q: Tensor, x: Tensor) -> Tensor:
    """(B,) log |dx / dq|, rigid motion left out: q (B, N, 3) of :func:`to_internal`, x (B, N, 3) by rank."""
    _, b, c = (x[:, index] for index in z.index)
    r, second = q[..., 0], q[..., 1]
    closes = torch.from_numpy(z.closes)
    present = _present(z)
    distance = torch.where(closes, (b - c).norm(dim=-1), 1.0)
    sine = torch.where(present[:, 1] & ~closes, second.sin(), 1.0)
    per_atom = torch.where(
        closes, r.abs().log() + second.abs().clamp(min=1e-300).log() - distance.log(), 2 * r.log() + sine.log()
    )
    return (per_atom * present[:, 0])[:, 1:].sum(-1)


def _present(z: ZMatrix) -> Tensor:
    """(N, 3) which of r, theta, phi an atom has."""
    rank = torch.arange(len(z))
    return torch.stack([rank > 0, rank > 1, rank > 2], -1)
