"""Bond lengths, angles and dihedrals as the coordinates of the process, for molecules whose bonds stay.

The stiff directions that make a molecule hard for a diffusion in Cartesian coordinates (three quarters of them) become
a nearly isotropic Gaussian: narrow coordinates are whitened by the covariance of the starting frames to `WIDTH`.
Dihedrals about bonds are broad and stay in radians, on the real line: a dihedral phi of period P has the density

    p(phi mod P) w(phi),   sum over k of w(phi + k P) = 1,   w ~ exp(-phi^2 / 2 s^2), s = P/2,

so that every winding means the same geometry, averages are those of p, and the process needs no torus. Where a centre
carries m equal terminal atoms, about evenly spaced about the bond, P = 2 pi / m, and w is divided by its sum over the
dihedrals of all of them and whole turns: each geometry counts once, under whichever of its m names. `relabelled` then
gives every sample one of these at random, for averages that tell the atoms apart. (Those of a methyl group or NO2 are
so spaced; the two hydrogens of an amine are not, and half of its names would hardly be drawn.)
Rings are cut at one bond; the closing bond is then a correlation like any other, which the whitening sees.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from molgen.cvdiffusion.space import Placed, Space
from molgen.errors import InputError
from molgen.geometry.bonds import atom_classes
from molgen.geometry.internal import ZMatrix, dihedral, log_volume, present, to_cartesian, to_internal

WIDTH = 0.25  # standard deviation of a whitened coordinate; about that of a dihedral in its well, in radians
END = 0.05  # standard deviation of the last noise
SHRINK = 0.05  # of the covariance of the frames towards the unit matrix
LEAST_BEND, WINDINGS = math.radians(10), 6
UNEVEN = math.radians(30)  # between dihedrals of equal atoms, from a whole turn over their number
FROM_LINE = math.radians(8)  # an angle nearer to a line has no dihedral to speak of


def tree_zmatrix(numbers: np.ndarray, bonds: np.ndarray, start: np.ndarray, fixed: Collection[int] = ()) -> ZMatrix:
    """A z-matrix along the bonds of any molecule, outward from one end of its longest chain of heavy atoms.

    The first substituent of a centre has a dihedral about the bond behind it, broad unless that bond is in a ring; the
    others are described from the first and narrow.

    Args:
        numbers: (N,). bonds: (N, N) bool. start: (N, 3) Angstrom, where narrow dihedrals are read off.
        fixed: atoms that a collective variable tells apart.

    Raises:
        InputError: fewer than four atoms, atoms without a bond to the others, or three neighbours on a line.
    """
    graph = nx.from_numpy_array(np.asarray(bonds))
    if len(numbers) < 4 or not nx.is_connected(graph):
        raise InputError(
            f"{len(numbers)} atoms in {nx.number_connected_components(graph)} fragments", where="internal coordinates",
            expected="one molecule of at least four atoms", remedy="use --coordinates cartesian",
        )  # fmt: skip
    first = _ends(graph, numbers)
    tree = nx.bfs_tree(graph, first[0], sort_neighbors=lambda found: sorted(found, key=lambda a: (-numbers[a], a)))
    order = [*first, *(a for a in tree if a not in first)]
    parent = {child: centre for centre, child in tree.edges} | {first[1]: first[0], first[2]: first[1]}
    rank = {atom: k for k, atom in enumerate(order)}
    classes = atom_classes(numbers, np.asarray(bonds))[-1]
    rings = nx.cycle_basis(graph)
    references, fold, centre = np.full((len(order), 3), -1), np.zeros(len(order), dtype=int), np.zeros(len(order))
    references[1, 2], references[2, 1:] = 0, (0, 1)
    eldest: dict[int, int] = {first[1]: first[2]}  # the first substituent of a centre
    for k, atom in enumerate(order[3:], start=3):
        c = parent[atom]
        b = parent[c] if c != first[0] else first[1]
        if c in eldest:
            a = eldest[c]
            centre[k] = _dihedral(start, a, b, c, atom)
        else:
            a = next(n for n in sorted(graph[b], key=rank.__getitem__) if n != c)
            eldest[c] = atom
            if any(b in ring and c in ring for ring in rings):
                centre[k] = _dihedral(start, a, b, c, atom)
            else:
                mates = [n for n in graph[c] if n != b]
                equal = len({classes[n] for n in mates}) == 1 and all(len(graph[n]) == 1 for n in mates)
                around = [_dihedral(start, a, b, c, n) for n in mates]
                fold[k] = len(mates) if equal and not set(mates) & set(fixed) and _spaced(around) else 1
        references[k] = rank[a], rank[b], rank[c]
    z = ZMatrix(np.array(order), references, np.zeros(len(order), dtype=bool), fold, centre)
    _refuse_lines(z, start)
    return z


class InternalSpace(Space):
    """Whitened bond lengths, angles and narrow dihedrals, and broad dihedrals in radians; shape (3N - 6, 1).

    Args:
        z: the z-matrix. mean: (M,) and unwhiten: (M, M), Angstrom and radians: internal coordinates are
            points @ unwhiten + mean.

    Attributes:
        periods: (M,) radians of each broad dihedral, 0 for what is narrow.
        equal: ranks of the equal atoms of each rotor of several, in the order in which they follow about the bond.
    """

    width = WIDTH

    def __init__(self, z: ZMatrix, mean: Tensor, unwhiten: Tensor):
        self.z, self.atoms, self.mean, self.unwhiten = z, len(z), mean, unwhiten
        self.rows, self.columns = torch.nonzero(present(z), as_tuple=True)
        self.shape, self.dimensions = (len(self.rows), 1), len(self.rows)
        fold = torch.from_numpy(z.fold)[self.rows]
        self.broad = (self.columns == 2) & (fold > 0)
        self.periods = torch.where(self.broad, 2 * math.pi / fold.clamp(min=1).double(), 0.0).numpy()
        groups = [_equal(z, int(r)) for r in self.rows[self.broad]]
        self.equal = [sorted(group, key=lambda r: z.centre[r] % (2 * math.pi)) for group in groups if len(group) > 1]
        self._mates = [group[1:] for group in groups]
        self.whiten = torch.linalg.inv(unwhiten)
        self.log_scale = float(torch.linalg.slogdet(unwhiten)[1])

    @classmethod
    def whitened(cls, z: ZMatrix, frames: np.ndarray) -> InternalSpace:
        """The space in which the narrow coordinates of `frames` (n, N, 3), Angstrom, in atom order, are white."""
        count = 3 * len(z) - 6
        plain = cls(z, torch.zeros(count, dtype=torch.float64), torch.eye(count, dtype=torch.float64))
        q = plain._internal(frames)
        mean = torch.where(plain.broad, 0.0, q.mean(0))
        narrow = (q - mean)[:, ~plain.broad]
        deviations = narrow.std(0).clamp(min=1e-6)
        correlation = torch.corrcoef((narrow / deviations).T)
        values, vectors = torch.linalg.eigh((1 - SHRINK) * correlation + SHRINK * torch.eye(len(correlation)).double())
        index = torch.nonzero(~plain.broad)[:, 0]
        unwhiten = plain.unwhiten.clone()
        unwhiten[index[:, None], index] = vectors @ (values.sqrt()[:, None] * vectors.T) * deviations / WIDTH
        return cls(z, mean, unwhiten)

    def centred(self, points: Tensor) -> Tensor:
        return points

    def source(self, start: float, spread: float) -> np.ndarray:
        return start + np.where(self.periods > 0, (self.periods / 2) ** 2, WIDTH**2)[:, None]

    def pooled(self, squares: Tensor) -> np.ndarray:
        return squares.numpy()

    def points(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        y = ((self._internal(positions) - self.mean) @ self.whiten).numpy()
        period = self.periods[self.broad.numpy()]
        shifts = y[:, self.broad.numpy(), None] + np.arange(-WINDINGS, WINDINGS + 1) * period[:, None]
        logs = -2 * (shifts / period[:, None]) ** 2 - np.log(rng.exponential(size=shifts.shape))  # the Gumbel trick
        y[:, self.broad.numpy()] = np.take_along_axis(shifts, logs.argmax(-1)[..., None], -1)[..., 0]
        return y[..., None]

    def reflected(self, points: np.ndarray, centres: np.ndarray, hands: np.ndarray) -> tuple[np.ndarray, float]:
        return points, 1.0  # dihedrals tell left from right

    def place(self, points: np.ndarray) -> Placed:
        y = torch.from_numpy(points).requires_grad_()
        q, x = self._cartesian(y)
        log_volume_ = log_volume(self.z, q, x) + self.log_scale + self._log_winding(y[..., 0])
        (slope,) = torch.autograd.grad(log_volume_.sum(), y)
        return Placed(
            self._ordered(x.detach()), log_volume_.detach().numpy(), slope.numpy(), self._inside(q.detach())
        )  # fmt: skip

    def pull(self, points: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(points).requires_grad_()
        _, x = self._cartesian(y)
        ranked = torch.from_numpy(gradients[:, :, self.z.order])
        return np.stack([torch.autograd.grad((x * g).sum(), y, retain_graph=True)[0].numpy() for g in ranked])

    def moved(self, points: np.ndarray, slopes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return points, slopes

    def relabelled(self, positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Geometries (n, N, 3) with the names of equal atoms turned about their bond at random, each by itself.

        Turned only, not exchanged: that would be the other hand.
        """
        given, rows = positions.copy(), np.arange(len(positions))[:, None]
        for ranks in self.equal:
            atoms, m = self.z.order[ranks], len(ranks)
            turned = (np.arange(m) + rng.integers(m, size=len(rows))[:, None]) % m
            given[:, atoms] = positions[rows, atoms[turned]]
        return given

    def _internal(self, positions: np.ndarray) -> Tensor:
        """(n, M) in Angstrom and radians."""
        x = torch.from_numpy(np.asarray(positions, dtype=np.float64)[:, self.z.order])
        return to_internal(self.z, x)[:, self.rows, self.columns]

    def _cartesian(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Internal coordinates and positions (n, N, 3) by rank of points (n, M, 1)."""
        q = y.new_zeros(len(y), self.atoms, 3)
        q[:, self.rows, self.columns] = y[..., 0] @ self.unwhiten + self.mean
        return q, to_cartesian(self.z, q)

    def _ordered(self, x: Tensor) -> np.ndarray:
        return x[:, torch.from_numpy(self.z.rank)].numpy()

    def _log_winding(self, y: Tensor) -> Tensor:
        """(n,) log of the product of all w, each over its sum over the dihedrals of equal atoms and whole turns."""
        turns = 2 * math.pi * torch.arange(-WINDINGS, WINDINGS + 1, dtype=y.dtype)
        q, total = y.new_zeros(len(y), self.atoms, 3), y.new_zeros(len(y))
        q[:, self.rows, self.columns] = y @ self.unwhiten + self.mean
        for own, period, mates in zip(y[:, self.broad].T, self.periods[self.broad], self._mates, strict=True):
            around = own[:, None] + torch.cat([y.new_zeros(len(y), 1), q[:, mates, 2]], 1)
            around = around + torch.from_numpy(np.append(0.0, self.z.centre[mates]))
            others = around - 2 * math.pi * (around.detach() / (2 * math.pi)).round()
            logs = -2 * ((others[..., None] + turns) / period).square()
            total = total - 2 * (own / period).square() - torch.logsumexp(logs, (1, 2))
        return total

    def _inside(self, q: Tensor) -> np.ndarray:
        """(n,) positive lengths, angles between 0 and pi, narrow dihedrals within a turn."""
        bends, turns = q[:, 2:, 1], q[:, 3:, 2][:, torch.from_numpy(self.z.fold[3:] == 0)]
        good = (q[:, 1:, 0] > 0).all(1) & (bends > LEAST_BEND).all(1) & (bends < math.pi - 1e-3).all(1)
        return (good & (turns.abs() < math.pi).all(1)).numpy()


def _ends(graph: nx.Graph, numbers: np.ndarray) -> list[int]:
    """Three atoms in a row: those at one end of the longest shortest path, of heavy atoms if there are three."""
    heavy = graph.subgraph(np.flatnonzero(numbers > 1).tolist())
    skeleton = heavy if len(heavy) > 2 and nx.is_connected(heavy) else graph
    paths = [path for _, found in nx.all_pairs_shortest_path(skeleton) for path in found.values()]
    longest = max(paths, key=lambda path: (len(path), [-a for a in path]))
    if len(longest) < 3:
        longest = max((p for _, f in nx.all_pairs_shortest_path(graph) for p in f.values()), key=len)
    return longest[:3]


def _equal(z: ZMatrix, rank: int) -> list[int]:
    """Ranks of the atoms that the broad dihedral of `rank` takes for equal, itself first."""
    if z.fold[rank] < 2:
        return [rank]
    _, b, c = z.references[rank]
    return [rank, *map(int, np.flatnonzero((z.references == (rank, b, c)).all(1)))]


def _dihedral(x: np.ndarray, *atoms: int) -> float:
    return float(dihedral(*(torch.from_numpy(np.asarray(x[a], dtype=np.float64)) for a in atoms)))


def _spaced(angles: list[float]) -> bool:
    """Whether dihedrals, radians, are a whole turn over their number apart."""
    turned = np.sort(np.mod(angles, 2 * math.pi))
    gaps = np.diff(turned, append=turned[0] + 2 * math.pi)
    return bool(np.abs(gaps - 2 * math.pi / len(angles)).max() < UNEVEN)


def _refuse_lines(z: ZMatrix, start: np.ndarray) -> None:
    q = to_internal(z, torch.from_numpy(np.asarray(start, dtype=np.float64))[None, z.order])[0, 2:, 1]
    worst = int(torch.minimum(q, math.pi - q).argmin())
    if min(float(q[worst]), math.pi - float(q[worst])) < FROM_LINE:
        a, b, c = int(z.order[worst + 2]), *(int(z.order[r]) for r in z.references[worst + 2, [2, 1]])
        raise InputError(
            f"atoms {a}, {b}, {c} lie on a line", where="internal coordinates", expected="bent groups only",
            remedy="use --coordinates cartesian",
        )  # fmt: skip
