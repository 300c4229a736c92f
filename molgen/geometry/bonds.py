"""Who is bonded to whom, from geometry alone: connectivity, fragments, bond orders, bonds broken and formed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.sparse.csgraph import connected_components

# Slack over the sum of covalent radii, Angstrom. On the 20,100 geometries of RDB7 (train) against their atom-mapped
# SMILES, 0.2 to 0.3 is a plateau on which 0.5 to 1 % of the geometries differ in any bond (a factor of 1.2 to 1.3
# instead: 1.3 to 6 %, because H2 needs more of it than strained rings bear). Its upper end still bonds F2.
TOLERANCE = 0.3
# Angstrom, and a share of the sum of covalent radii, by which a pair's distance must differ as well for a bond made or
# broken to count: 0.25, of H2 0.155, which tells it from linear H3
CLEAR, CLEAR_SHARE = 0.25, 0.25
TOO_CLOSE = 0.3  # Angstrom; two atoms are never nearer: the shortest bond there is, H2's, is 0.74
OVERLAP = 0.6  # of the sum of covalent radii; the shortest distance in 1,900 transition states of RDB7 is 0.77 of it


def radius_sums(numbers) -> np.ndarray:
    """(N, N) sums of covalent radii, Angstrom (Cordero et al., Dalton Trans. 2832 (2008), via ase.data)."""
    radii = covalent_radii[np.asarray(numbers)]
    return radii[:, None] + radii[None, :]


def overlapping(numbers, positions: np.ndarray) -> str:
    """In words, the worst pair of atoms too close for any electronic structure; empty if there is none."""
    i, j = np.triu_indices(len(positions), 1)
    ratio = distance_matrix(positions)[i, j] / radius_sums(numbers)[i, j]
    k = int(ratio.argmin())
    distance = distance_matrix(positions)[i[k], j[k]]
    return "" if ratio[k] > OVERLAP else f"atoms {i[k]} and {j[k]} are {distance:.2f} A apart"


def distance_matrix(positions) -> np.ndarray:
    """(..., N, N) pair distances of positions (..., N, 3)."""
    positions = np.asarray(positions, dtype=float)
    return np.linalg.norm(positions[..., :, None, :] - positions[..., None, :, :], axis=-1)


def bond_graph(numbers, positions, tolerance: float = TOLERANCE) -> np.ndarray:
    """Connectivity (..., N, N), boolean and symmetric: pairs closer than the sum of their covalent radii + `tolerance`.

    Args:
        numbers: (N,) atomic numbers.
        positions: (..., N, 3) Angstrom, near equilibrium; half-broken bonds of a transition state are a matter of
            taste.
        tolerance: Angstrom.
    """
    bonds = distance_matrix(positions) < radius_sums(numbers) + tolerance
    n = bonds.shape[-1]
    bonds[..., np.arange(n), np.arange(n)] = False
    return bonds


def bond_orders(numbers, positions) -> np.ndarray:
    """Smooth bond orders (..., N, N) from distances: exp((sum of radii - d) / 0.3), at most 3, 0 on the diagonal.

    Source: Pauling, J. Am. Chem. Soc. 69, 542 (1947): d(n) = d(1) - 0.71 log10(n), that is 0.31 Angstrom for a factor
        e.
    """
    excess = radius_sums(numbers) - distance_matrix(positions)
    order = np.minimum(np.exp(np.minimum(excess, 1.0) / 0.3), 3.0)
    n = order.shape[-1]
    order[..., np.arange(n), np.arange(n)] = 0.0
    return order


def fragments(bonds: np.ndarray) -> np.ndarray:
    """(N,) int64 fragment (connected component) of each atom of `bonds` (N, N), counted in order of first atoms."""
    labels = connected_components(bonds, directed=False)[1]
    first = np.unique(labels, return_index=True)[1]
    return np.argsort(np.argsort(first))[labels].astype(np.int64)


class BondChanges(NamedTuple):
    """Pairs (i, j), i < j, bonded before only (`broken`) and after only (`formed`)."""

    broken: tuple[tuple[int, int], ...]
    formed: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Number of bonds broken and formed."""
        return len(self.broken) + len(self.formed)


def compare_bonds(before: np.ndarray, after: np.ndarray) -> BondChanges:
    """The bonds that differ between two connectivities (N, N) of the same atoms in the same order."""

    def pairs(bonds):
        return tuple((int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(bonds, 1)), strict=True))

    before, after = np.asarray(before, bool), np.asarray(after, bool)
    return BondChanges(broken=pairs(before & ~after), formed=pairs(after & ~before))


def bonding_changes(numbers, before: np.ndarray, after: np.ndarray) -> BondChanges:
    """Pairs bonded in one of two geometries (N, 3) only, where that is not a matter of a little distance."""
    first, second = (distance_matrix(x) - radius_sums(numbers) - TOLERANCE for x in (before, after))
    clear = np.abs(first - second) > np.minimum(CLEAR, CLEAR_SHARE * radius_sums(numbers))
    return compare_bonds((first < 0) & clear, (second < 0) & clear)


def bonding_differences(numbers, a: np.ndarray, b: np.ndarray) -> int:
    """Number of :func:`bonding_changes` between two geometries (N, 3)."""
    return bonding_changes(numbers, a, b).count


def bond_names(numbers, pairs: Iterable[tuple[int, int]]) -> str:
    """Bonds in words, "C0-C5, O2-H7", atoms counted from 0; "none" without any."""
    names = [f"{chemical_symbols[int(z)]}{k}" for k, z in enumerate(numbers)]
    return ", ".join(f"{names[i]}-{names[j]}" for i, j in pairs) or "none"


def atom_classes(numbers, bonds: np.ndarray, rounds: int | None = None) -> list[list[int]]:
    """Colours of the atoms after 0, 1, ... rounds of neighbourhood refinement; equal colour = same surroundings.

    The colours are comparable between molecules, as long as the version of Python is one. Without `rounds` the
    refinement runs until it splits no further class. Source: Morgan, J. Chem. Doc. 5, 107 (1965); Weisfeiler and
    Leman (1968).
    """
    neighbours = [np.flatnonzero(row).tolist() for row in bonds]
    history = [[int(z) for z in numbers]]
    limit = len(history[0]) if rounds is None else rounds
    for _ in range(limit):
        colour = history[-1]
        refined = [
            hash((c, tuple(sorted(colour[j] for j in near)))) for c, near in zip(colour, neighbours, strict=True)
        ]
        history.append(refined)
        if rounds is None and len(set(refined)) == len(set(colour)):
            break
    return history


def molecule_key(numbers, bonds: np.ndarray, charge: int = 0) -> str:
    """A text that is the same for the same connectivity (N, N), whatever the order of the atoms and fragments.

    Colours of the atoms refined to the end, fragment by fragment. Molecules that differ only where such refinement
    is blind (some regular graphs) share a key; the same molecule never has two. Stereochemistry and bond orders do not
    count.
    """
    numbers, part = np.asarray(numbers), fragments(bonds)
    pieces = []
    for k in range(int(part.max()) + 1):
        member = np.flatnonzero(part == k)
        colours = atom_classes(numbers[member], bonds[np.ix_(member, member)], rounds=len(member))[-1]
        pieces.append((len(member), sorted(colours)))
    text = repr((int(charge), sorted(numbers.tolist()), sorted(pieces)))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
