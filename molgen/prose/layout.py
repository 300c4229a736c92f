"""What the flow knows of a molecule before it sees a conformation: every array by rank in the z-matrix, built once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from molgen.data.peptide import Parameters, Peptide
from molgen.geometry.internal import ZMatrix
from molgen.prose.limits import Limits
from molgen.prose.rotors import Bends, Rotor, Terms, build_rotor
from molgen.prose.zmatrix import build_zmatrix, canonical
from molgen.units import COULOMB

if TYPE_CHECKING:
    from molgen.prose.physics import Plan
    from molgen.prose.rows import Rows

ELEMENTS = (1, 6, 7, 8, 16)
# ff14SB's atom types for proteins; the flow knows atoms by type, charge and bonds, never by residue or position.
TYPES = tuple(
    "H H1 H4 H5 HA HC HO HP HS C C* C8 CA CB CC CN CO CR CT CV CW CX 2C 3C N N2 N3 NA NB O O2 OH S SH".split()
)
# of `_nodes`, after element and type: force field and ring closure, fold, degree and ring, the rest
NODE_FEATURES = len(ELEMENTS) + len(TYPES) + 4 + 4 + 5 + 6
NEIGHBOURS = 10
PHI_SCALE = 0.6  # radians per sqrt(eV): the unit of narrow dihedrals


@dataclass(frozen=True, eq=False)
class Layout:
    """Static description of one peptide; float tensors are float64, on the CPU unless moved by `to`.

    Attributes:
        z: the z-matrix. peptide: where it comes from.
        nodes: (N, NODE_FEATURES) atom features. bonds: (2, 2M) both directions.
        heavy: (H,) ranks of the heavy atoms, ascending. near: (N, NEIGHBOURS) placed atoms nearest in bonds (the atom
            itself where there are fewer); near_bonds: (N, NEIGHBOURS) how many bonds away, 0 for none.
        heavy_bonds: (H, H) bonds between heavy atoms, at most 8.
        r0, theta0: (N,) ideal |XC| and angle B-C-X (|XB| where a ring closes). scale: (N, 3) units of r, theta and phi
            in which the stiffest term is eV/2 times the square.
        limits: the windows of r, theta and narrow phi.
        narrow: (K,) ranks described by a local quadratic. rotors: the broad dihedrals.
        lj, coulomb: (N, N) scale of the non-bonded terms (0, 1/2 or 1; 0, 5/6 or 1). sigma, epsilon: (N, N) mixed by
            Lorentz and Berthelot; charges: (N, N) products in eV Angstrom.
        angles, torsions: bonded terms.
        copies, rows, quadratics: kept for reuse; a copy by `dataclasses.replace` begins with none.
    """

    peptide: Peptide
    z: ZMatrix
    nodes: Tensor
    bonds: Tensor
    heavy: Tensor
    near: Tensor
    near_bonds: Tensor
    heavy_bonds: Tensor
    r0: Tensor
    theta0: Tensor
    scale: Tensor
    limits: Limits
    narrow: Tensor
    rotors: tuple[Rotor, ...]
    lj: Tensor
    coulomb: Tensor
    sigma: Tensor
    epsilon: Tensor
    charges: Tensor
    angles: Terms
    torsions: Terms
    # by device: what `to` returned
    copies: dict[torch.device, Layout] = field(default_factory=dict, init=False, repr=False)
    # by consecutive ranks, or "narrow": see `Rows.of` and `Rows.narrow`
    rows: dict[range | str, Rows] = field(default_factory=dict, init=False, repr=False)
    # by ranks and precision: the static tensors of `molgen.prose.physics.local_quadratic`
    quadratics: dict[tuple[tuple[int, ...], torch.dtype], Plan] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def order(self) -> Tensor:
        """(N,) atom index of each rank."""
        return torch.from_numpy(self.z.order).to(self.device)

    def named(self, positions: np.ndarray) -> np.ndarray:
        """Positions (n, N, 3) in the peptide's order, equivalent hydrogens and methyl groups named as the flow does."""
        found = np.array(positions, dtype=float)
        found[:, self.z.order] = canonical(self.z, torch.from_numpy(found)[:, self.z.order]).numpy()
        return found

    @cached_property
    def references(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) each: ranks of the reference atoms A, B, C, 0 where there is none."""
        a, b, c = (index.to(self.device) for index in self.z.index)
        return a, b, c

    @cached_property
    def centre(self) -> Tensor:
        """(N,) where narrow dihedrals lie, radians."""
        return torch.from_numpy(self.z.centre).to(self.device)

    @cached_property
    def hops(self) -> Tensor:
        """(H, H, 9) `heavy_bonds`, one-hot."""
        return torch.nn.functional.one_hot(self.heavy_bonds, 9)

    @cached_property
    def rotor_ranks(self) -> Tensor:
        """(R,) rank of each broad dihedral."""
        return torch.tensor([rotor.rank for rotor in self.rotors], device=self.device)

    @cached_property
    def rotor_of(self) -> Tensor:
        """(N,) the broad dihedral of each rank, or -1."""
        index = torch.full((self.atoms,), -1, device=self.device)
        return index.index_copy(0, self.rotor_ranks, torch.arange(len(self.rotors), device=self.device))

    @cached_property
    def folds(self) -> Tensor:
        """(R,) fold of each broad dihedral."""
        return torch.tensor([rotor.fold for rotor in self.rotors], device=self.device)

    @cached_property
    def broad(self) -> Tensor:
        """(N,) whether phi is broad."""
        return self.rotor_of >= 0

    @cached_property
    def has_line(self) -> Tensor:
        """(N, 3) whether an atom has r, theta and a narrow phi."""
        rank = torch.arange(self.atoms, device=self.device)
        return torch.stack([rank > 0, rank > 1, (rank > 2) & ~self.broad], -1)

    @cached_property
    def log_scale(self) -> Tensor:
        """(N, 3) log of `scale`."""
        return self.scale.log()

    @cached_property
    def ideal(self) -> Tensor:
        """(N, 3) what steps are counted from: ideal r and theta, 0 for phi."""
        return torch.stack([self.r0, self.theta0, torch.zeros_like(self.r0)], -1)

    @property
    def atoms(self) -> int:
        """N."""
        return len(self.z)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.nodes.device

    def to(self, device: torch.device | str) -> Layout:
        """The same, its tensors on another device."""
        device = torch.device(device)
        if device == self.device:
            return self
        if device not in self.copies:
            self.copies[device] = _moved(self, device)
        return self.copies[device]

    @property
    def noise(self) -> int:
        """Uniform numbers that make one sample: r, theta, phi and a label for every rank."""
        return 4 * self.atoms

    @staticmethod
    def of(peptide: Peptide) -> Layout:
        """The layout of a peptide, made once."""
        return _build(peptide)


@lru_cache(maxsize=512)  # as many as peptides are kept
def _build(peptide: Peptide) -> Layout:
    z = build_zmatrix(peptide.names, peptide.residue_index, peptide.residue_names, peptide.numbers, peptide.bonds)
    n, p, order, rank = len(z), peptide.parameters, z.order, z.rank
    graph = nx.Graph([(int(rank[i]), int(rank[j])) for i, j in peptide.bonds])
    hops = shortest_path(nx.to_numpy_array(graph, range(n)), unweighted=True).astype(np.int64)
    angles = Terms.of(rank[p.angles], np.stack([p.angle_theta, p.angle_k], 1))
    torsions = Terms.of(rank[p.torsions], np.stack([p.torsion_n, p.torsion_phase, p.torsion_k], 1))
    r0, theta0, scale, bends = _ideal(z, p, rank, peptide.bonds)
    heavy = np.flatnonzero(peptide.numbers[order] > 1)
    near, near_bonds = _nearest(hops)
    sigma, epsilon = p.sigma[order], p.epsilon[order]
    edges = np.array([(i, j) for i, j in graph.edges] + [(j, i) for i, j in graph.edges]).T
    kept = np.where(hops < 3, 0.0, 1.0)
    return Layout(
        peptide=peptide,
        z=z,
        nodes=torch.from_numpy(_nodes(z, peptide, graph)),
        bonds=torch.from_numpy(edges),
        heavy=torch.from_numpy(heavy),
        near=torch.from_numpy(near),
        near_bonds=torch.from_numpy(near_bonds),
        heavy_bonds=torch.from_numpy(np.minimum(hops[heavy][:, heavy], 8)),
        r0=torch.from_numpy(r0),
        theta0=torch.from_numpy(theta0),
        scale=torch.from_numpy(scale),
        limits=Limits.of(
            z, np.stack([r0, theta0], 1), scale[:, 1], _corners(z, bends), hydrogen=peptide.numbers[order] == 1
        ),
        narrow=torch.from_numpy(np.flatnonzero((z.fold == 0) & (np.arange(n) > 2))),
        rotors=tuple(
            build_rotor(z, int(i), torsions, graph, (r0, theta0), bends, p.charges[order], set(heavy.tolist()))
            for i in np.flatnonzero(z.fold)
        ),
        lj=torch.from_numpy(np.where(hops == 3, 0.5, kept)),
        coulomb=torch.from_numpy(np.where(hops == 3, 1 / 1.2, kept)),
        sigma=torch.from_numpy((sigma[:, None] + sigma) / 2),
        epsilon=torch.from_numpy(np.sqrt(epsilon[:, None] * epsilon)),
        charges=torch.from_numpy(COULOMB * p.charges[order][:, None] * p.charges[order]),
        angles=angles,
        torsions=torsions,
    )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, Peptide | ZMatrix):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value) if f.init})  # type: ignore[type-var]
    return value


def _nearest(hops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`near` and `near_bonds` of :class:`Layout` from the bonds between all atoms, `hops` (N, N)."""
    n = len(hops)
    near = np.repeat(np.arange(n)[:, None], NEIGHBOURS, 1)
    bonds = np.zeros((n, NEIGHBOURS), dtype=np.int64)
    for i in range(1, n):
        closest = np.lexsort((-np.arange(i), hops[i, :i]))[:NEIGHBOURS]
        near[i, : len(closest)] = closest
        bonds[i, : len(closest)] = np.minimum(hops[i, closest], 7)
    return near, bonds


def _ideal(
    z: ZMatrix, p: Parameters, rank: np.ndarray, bonds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bends]:
    """Ideal r, theta and their units from the bond and angle that the z-matrix uses; all angles by (ends, apex)."""
    n = len(z)
    r0, theta0, scale = np.ones(n), np.full(n, 2.0), np.ones((n, 3))
    springs = {
        frozenset((int(rank[i]), int(rank[j]))): (length, k)
        for (i, j), length, k in zip(bonds, p.bond_length, p.bond_k, strict=True)
    }
    bends = {
        (frozenset((int(rank[i]), int(rank[k]))), int(rank[j])): (theta, force)
        for (i, j, k), theta, force in zip(p.angles, p.angle_theta, p.angle_k, strict=True)
    }
    scale[:, 2] = PHI_SCALE
    for i in range(1, n):
        _, b, c = z.references[i]
        r0[i], k = springs[frozenset((i, int(c)))]
        scale[i, 0] = k**-0.5
        if z.closes[i]:
            theta0[i], k = springs[frozenset((i, int(b)))]
            scale[i, 1] = k**-0.5
        elif i > 1:
            theta0[i], k = bends[frozenset((i, int(b))), int(c)]
            scale[i, 1] = k**-0.5
    return r0, theta0, scale, bends


def _nodes(z: ZMatrix, peptide: Peptide, graph: nx.Graph) -> np.ndarray:
    """(N, NODE_FEATURES) atom features; `graph` has the ranks of bonded atoms."""
    p, order = peptide.parameters, z.order
    numbers = peptide.numbers[order]
    types = [p.types[i] for i in order]
    rings = nx.minimum_cycle_basis(graph)
    in_ring = np.array([any(i in ring for ring in rings) for i in range(len(z))])
    degree = np.array([graph.degree[i] for i in range(len(z))])
    sign = np.round(np.degrees(z.centre)).astype(int)
    columns = [
        *(numbers == e for e in ELEMENTS),
        *(np.array([t == kind for t in types]) for kind in TYPES),
        p.charges[order],
        p.sigma[order] - 2.5,
        np.sqrt(p.epsilon[order]) * 10,
        z.closes,
        *(z.fold == m for m in range(4)),
        *(degree == d for d in range(1, 5)),
        in_ring,
        *((sign == value) & (z.fold == 0) for value in (0, 120, 180, -120)),
        np.arange(len(z)) < 3,
        np.array([sum(numbers[j] == 1 for j in graph[i]) for i in range(len(z))]) / 3,
    ]
    return np.stack(columns, 1).astype(np.float64)


def _corners(z: ZMatrix, bends: Bends) -> dict[int, tuple[float, float]]:
    """The ideal angle at each atom that closes a ring, between its two bonds, and the unit of that angle, radians."""
    corners = {}
    for k in np.flatnonzero(z.closes).tolist():
        theta, force = bends[frozenset(z.references[k, 1:].tolist()), k]
        corners[k] = (theta, force**-0.5)
    return corners
