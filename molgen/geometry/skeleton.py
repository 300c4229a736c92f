"""Mappings between the heavy-atom skeletons of two sides that change the fewest bonds.

The cost of a skeleton mapping counts heavy-heavy bonds broken and formed, plus differences in the number of hydrogens
on each atom: for terminal hydrogens that is the exact number of bonds that the best placement of the hydrogens changes.
Depth-first branch and bound, deepened over the cost; the bound sums, over the atoms not yet placed, the least cost of
their immediate surroundings (Riesen & Bunke, Image Vision Comput. 27, 950 (2009)), half of each bond to either end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from molgen.geometry.bonds import atom_classes, bond_graph, distance_matrix, fragments

_RECENT = 12  # placed atoms that a tie between candidates is broken by


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a reaction: `numbers` (N,), `positions` (N, 3), and what follows from them.

    Attributes:
        bonds: (N, N) connectivity.
        fragments: (N,) fragment of each atom.
        heavy: (n,) indices of the skeleton: all but hydrogen, or every atom where there is nothing but hydrogen.
        light: (N - n,) the hydrogens.
        hydrogens: (n,) hydrogens on each skeleton atom.
        skeleton: (n, n) bonds among skeleton atoms.
    """

    numbers: np.ndarray
    positions: np.ndarray
    bonds: np.ndarray
    fragments: np.ndarray
    heavy: np.ndarray
    light: np.ndarray
    hydrogens: np.ndarray
    skeleton: np.ndarray

    @classmethod
    def of(cls, numbers, positions) -> Side:
        """The side with these atoms, bonds by distance."""
        numbers, positions = np.asarray(numbers), np.asarray(positions, dtype=float)
        bonds = bond_graph(numbers, positions)
        is_light = (numbers == 1) if (numbers != 1).any() else np.zeros(len(numbers), bool)
        heavy, light = np.flatnonzero(~is_light), np.flatnonzero(is_light)
        return cls(
            numbers=numbers,
            positions=positions,
            bonds=bonds,
            fragments=fragments(bonds),
            heavy=heavy,
            light=light,
            hydrogens=bonds[np.ix_(heavy, light)].sum(axis=1),
            skeleton=bonds[np.ix_(heavy, heavy)],
        )


@dataclass(frozen=True)
class SkeletonMaps:
    """Skeleton mappings of equal cost: `maps` (M, n), the place in P's skeleton of each atom of R's skeleton.

    `exact` says that no mapping costs less; otherwise the search was cut short and a heuristic's result is given.
    """

    maps: np.ndarray
    cost: int
    exact: bool


def skeleton_maps(
    r: Side, p: Side, *, pinned: np.ndarray | None = None, most: int = 200, node_limit: int = 60_000
) -> SkeletonMaps:
    """The cheapest skeleton mappings of `r` onto `p` (same composition), at most `most` of them.

    Args:
        r, p: the two sides.
        pinned: (N,) atom of P that each atom of R has to be, -1 where it may be any of its element.
        most: mappings to stop at; ties are met in order of geometric resemblance.
        node_limit: partial mappings to look at before falling back on greedy placement and pair exchanges.
    """
    search = _SkeletonMatcher(r, p, pinned)
    free = np.ones(len(r.heavy), bool) if pinned is None else pinned[r.heavy] < 0
    greedy = _exchange(r, p, search.run(math.inf, 1, node_limit)[0], free)
    best = _cost(r, p, greedy)
    budget = search.lower_bound + (best - search.lower_bound) % 2  # the parity of the cost is fixed
    while budget <= best:
        maps = search.run(budget, most, node_limit)
        node_limit -= search.nodes
        if len(maps):
            return SkeletonMaps(maps, int(budget), exact=True)  # every smaller budget was searched to its end
        if node_limit <= 0:
            break
        budget += 2
    return SkeletonMaps(greedy[None], best, exact=budget >= best)


def _cost(r: Side, p: Side, mapping: np.ndarray) -> int:
    """Bonds that `mapping` (n,) changes, hydrogens placed as well as can be."""
    edges = int((r.skeleton ^ p.skeleton[np.ix_(mapping, mapping)]).sum()) // 2
    return edges + int(np.abs(r.hydrogens - p.hydrogens[mapping]).sum())


def _exchange(r: Side, p: Side, mapping: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Exchange the images of two `free` (n,) atoms of one element while that lowers the cost."""
    mapping = mapping.copy()
    z = r.numbers[r.heavy]
    pairs = [(i, j) for i in range(len(z)) for j in range(i + 1, len(z)) if z[i] == z[j] and free[i] and free[j]]

    def local(i, j):
        """The part of the cost that atoms i and j take part in."""
        rows = r.skeleton[[i, j]] ^ p.skeleton[np.ix_(mapping[[i, j]], mapping)]
        own = np.abs(r.hydrogens[[i, j]] - p.hydrogens[mapping[[i, j]]]).sum()
        return int(rows.sum()) - int(rows[0, j]) + int(own)

    improved = True
    while improved:
        improved = False
        for i, j in pairs:
            before = local(i, j)
            mapping[[i, j]] = mapping[[j, i]]
            if local(i, j) < before:
                improved = True
            else:
                mapping[[i, j]] = mapping[[j, i]]
    return mapping


class _SkeletonMatcher:
    """Depth-first placement of R's skeleton atoms, neighbours after neighbours, within a budget of bond changes."""

    def __init__(self, r: Side, p: Side, pinned: np.ndarray | None):
        self.n = len(r.heavy)
        z_r, z_p = r.numbers[r.heavy], p.numbers[p.heavy]
        same = z_r[:, None] == z_p[None, :]
        if pinned is not None:
            same &= allowed(pinned, r.heavy, p.heavy)
        self.own = np.abs(r.hydrogens[:, None] - p.hydrogens[None, :])
        star = self.own + 0.5 * sum(
            np.abs(r.skeleton[:, z_r == z].sum(1)[:, None] - p.skeleton[:, z_p == z].sum(1)[None, :]) for z in set(z_r)
        )
        star = np.where(same, star, 1e6)
        self.likeness = _likeness(r, p)[np.ix_(r.heavy, p.heavy)]
        self.order = _order(r.skeleton, np.where(same, self.likeness, -1))
        # rest[k]: least cost of the surroundings of the atoms from the k-th on; they may use any atom of P
        self.rest = [0.0] * (self.n + 1)
        for k in range(self.n):
            rows, columns = linear_sum_assignment(star[self.order[k:]])
            self.rest[k] = float(star[self.order[k:]][rows, columns].sum())
        self.lower_bound = math.ceil(self.rest[0] - 1e-9)
        self.d_r = distance_matrix(r.positions[r.heavy])
        self.d_p = distance_matrix(p.positions[p.heavy])
        self.apart_r = r.fragments[r.heavy][:, None] != r.fragments[r.heavy]
        self.apart_p = p.fragments[p.heavy][:, None] != p.fragments[p.heavy]
        self.near_r = [np.flatnonzero(row).tolist() for row in r.skeleton]
        self.mask_p = [sum(1 << int(j) for j in np.flatnonzero(row)) for row in p.skeleton]
        self.choices = [np.flatnonzero(row).tolist() for row in same]

    def run(self, budget: float, most: int, node_limit: int) -> np.ndarray:
        """Complete mappings (M, n) of cost <= budget, until `most` are found or `nodes` exceeds `node_limit`."""
        self.nodes = 0
        self._budget, self._most, self._limit = budget, most, node_limit
        self._image: list[int] = [-1] * self.n
        self._found: list[list[int]] = []
        self._place(0, 0, 0)
        return np.array(self._found, dtype=np.int64).reshape(-1, self.n)

    def _place(self, depth: int, cost: int, used: int) -> None:
        if depth == self.n:
            self._found.append(self._image.copy())
            return
        u = self.order[depth]
        image = self._image
        target = 0  # images of the placed neighbours of u
        for w in self.near_r[u]:
            if image[w] >= 0:
                target |= 1 << image[w]
        allowed = self._budget - cost - self.rest[depth + 1] + 1e-9
        candidates = []
        for v in self.choices[u]:
            if not used >> v & 1:
                step = int(self.own[u, v]) + ((self.mask_p[v] & used) ^ target).bit_count()
                if step <= allowed:
                    candidates.append((step, -int(self.likeness[u, v]), v))
        if len(candidates) > 1:
            candidates = self._resembling(u, depth, candidates)
        for step, _, v in candidates:
            self.nodes += 1
            image[u] = v
            self._place(depth + 1, cost + step, used | 1 << v)
            image[u] = -1
            if len(self._found) >= self._most or (self.nodes > self._limit and self._budget < math.inf):
                return

    def _resembling(self, u: int, depth: int, candidates: list) -> list:
        """Cheapest first, then most alike, then those at the distances from the placed atoms that u has in R."""
        placed = [w for w in self.order[max(0, depth - _RECENT) : depth] if not self.apart_r[u, w]]
        images = [self._image[w] for w in placed]
        places = [v for *_, v in candidates]
        off = self.d_p[np.ix_(places, images)] - self.d_r[u, placed]
        off = np.where(self.apart_p[np.ix_(places, images)], 0.0, off)
        misfit = (off**2).sum(axis=1).tolist()
        return [c for _, c in sorted(zip(misfit, candidates, strict=True), key=lambda mc: (*mc[1][:2], mc[0]))]


def allowed(pinned: np.ndarray, atoms: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(n, m) whether atom `atoms[i]` of R may be `images[j]` of P: a pinned atom only its own image, no other that."""
    wanted = pinned[atoms]
    taken = np.isin(images, pinned[pinned >= 0])
    return np.where(wanted[:, None] >= 0, wanted[:, None] == images[None, :], ~taken[None, :])


def _likeness(r: Side, p: Side) -> np.ndarray:
    """(N, N) radius, in bonds, up to which the surroundings of an atom of R and one of P are alike."""
    rounds = 6
    total = np.zeros((len(r.numbers), len(p.numbers)), dtype=int)
    for a, b in zip(atom_classes(r.numbers, r.bonds, rounds), atom_classes(p.numbers, p.bonds, rounds), strict=True):
        total += np.array(a)[:, None] == np.array(b)[None, :]
    return total


def _order(skeleton: np.ndarray, likeness: np.ndarray) -> list[int]:
    """The order of placement: atoms with the fewest look-alikes first, then neighbours of placed atoms."""
    n = len(skeleton)
    top = likeness.max(axis=1)
    rivals = (likeness == top[:, None]).sum(axis=1)
    order: list[int] = []
    left = set(range(n))
    while left:
        touching = skeleton[:, order].sum(axis=1)
        nxt = min(left, key=lambda a: (-min(touching[a], 1), rivals[a], -top[a], -touching[a], a))
        order.append(nxt)
        left.remove(nxt)
    return order
