"""Atom mapping: which atom of the product is which atom of the reactant, from geometries in any order and orientation.

In order of weight: fewest bonds broken and formed; fewest tetrahedral centres inverted; fewest where one neighbour
leaves and another enters; fewest bonds formed across rings of three or four; fewest substitutions at the front of a
tetrahedral centre, where what leaves and what enters are never in one fragment; least displacement after superposing
each fragment by a proper rotation. Equivalent atoms, above all hydrogens, are told apart by inversion and displacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from molgen.errors import InputError
from molgen.geometry.align import kabsch
from molgen.geometry.bonds import compare_bonds
from molgen.geometry.chirality import inverted_centres, substituted_centres, tetrahedral_quadruples
from molgen.geometry.skeleton import Side, allowed, skeleton_maps

_CANDIDATES = 12  # skeleton mappings, best resemblance first, on which the hydrogens are placed
_BOND = 1e5  # one bond in the hydrogens' assignment outweighs any sum of squared displacements
_FAR = 9.0  # Angstrom^2; stands for the displacement between fragments, which has no meaning


@dataclass(frozen=True, eq=False)
class Mapping:
    """Atom i of the reactant is atom `permutation[i]` of the product.

    Attributes:
        permutation: (N,) int64; `positions_p[permutation]` is the product in the reactant's order.
        bonds_broken, bonds_formed: pairs (i, j), i < j, in the reactant's order.
        changed: whether `permutation` differs from the given order.
        displacement: root-mean-square displacement, Angstrom, each fragment superposed by itself.
        inverted: number of tetrahedral centres, kept on both sides, that change handedness.
        exact: whether the number of bond changes is proven to be the least for terminal hydrogens.
    """

    permutation: np.ndarray
    bonds_broken: tuple[tuple[int, int], ...]
    bonds_formed: tuple[tuple[int, int], ...]
    changed: bool
    displacement: float
    inverted: int
    exact: bool

    @property
    def bond_changes(self) -> int:
        """Number of bonds broken and formed."""
        return len(self.bonds_broken) + len(self.bonds_formed)


def map_atoms(numbers_r, positions_r, numbers_p, positions_p, *, pinned=None, node_limit: int = 60_000) -> Mapping:
    """The best mapping of the reactant's atoms onto the product's; the given orders play no part.

    Args:
        numbers_r, numbers_p: (N,) atomic numbers, the same composition.
        positions_r, positions_p: (N, 3) Angstrom.
        pinned: (N,) product atom, of the same element, of each reactant atom where that is known, -1 elsewhere.
        node_limit: partial skeleton mappings to look at before settling for a heuristic (`Mapping.exact` false).

    Raises:
        InputError: different composition.
    """
    r, p = _sides(numbers_r, positions_r, numbers_p, positions_p)
    pinned = np.full(len(r.numbers), -1) if pinned is None else np.asarray(pinned, dtype=np.int64)
    found = skeleton_maps(r, p, pinned=pinned, node_limit=node_limit)
    skeletons = [p.heavy[m] for m in found.maps]
    if len(skeletons) > _CANDIDATES:
        skeletons = sorted(skeletons, key=lambda images: _score(r, p, r.heavy, images)[1:])[:_CANDIDATES]
    best = min(
        (candidate for images in skeletons for candidate in _with_hydrogens(r, p, images, pinned)),
        key=lambda permutation: _score(r, p, np.arange(len(permutation)), permutation),
    )
    return _mapping(r, p, _exchange_hydrogens(r, p, best, pinned), found.exact)


def given_mapping(numbers_r, positions_r, numbers_p, positions_p) -> Mapping | None:
    """The mapping that the given order is, or None where the elements disagree in order."""
    r, p = _sides(numbers_r, positions_r, numbers_p, positions_p)
    if not np.array_equal(r.numbers, p.numbers):
        return None
    return _mapping(r, p, np.arange(len(r.numbers)), exact=False)


def _sides(numbers_r, positions_r, numbers_p, positions_p) -> tuple[Side, Side]:
    if not np.array_equal(np.sort(numbers_r), np.sort(numbers_p)):
        raise InputError(
            "reactant and product have different composition",
            where="atom mapping",
            expected="the same atoms on both sides",
        )
    return Side.of(numbers_r, positions_r), Side.of(numbers_p, positions_p)


def _mapping(r: Side, p: Side, permutation: np.ndarray, exact: bool) -> Mapping:
    atoms = np.arange(len(permutation))
    changes = compare_bonds(r.bonds, p.bonds[np.ix_(permutation, permutation)])
    _, inverted, *_, displacement = _score(r, p, atoms, permutation)
    return Mapping(
        permutation=permutation.astype(np.int64),
        bonds_broken=changes.broken,
        bonds_formed=changes.formed,
        changed=not np.array_equal(permutation, atoms),
        displacement=displacement,
        inverted=inverted,
        exact=exact,
    )


def _score(r: Side, p: Side, atoms: np.ndarray, images: np.ndarray) -> tuple[int, int, int, int, int, float]:
    """Of `atoms` of R as `images` of P: bonds changed, centres inverted, centres substituted, tight rings, frontside
    substitutions, and displacement in Angstrom.
    """
    bonds_r, bonds_p = r.bonds[np.ix_(atoms, atoms)], p.bonds[np.ix_(images, images)]
    x, y = r.positions[atoms], p.positions[images]
    centres = tetrahedral_quadruples(bonds_r & bonds_p)
    inverted = int(inverted_centres(x, y, centres).sum()) if len(centres) else 0
    square = 0.0
    pieces = _pieces(r, p, atoms, images)
    for piece in range(int(pieces.max()) + 1):
        a, b = x[pieces == piece], y[pieces == piece]
        square += _deviation(a, b)
    changes = int((bonds_r ^ bonds_p).sum()) // 2
    substituted = _substituted(r, p, atoms, images)
    tight = _tight_rings(bonds_r, bonds_p)
    front = _frontside(r, p, atoms, images)
    return changes, inverted, substituted, tight, front, float(np.sqrt(square / len(atoms)))


def _substituted(r: Side, p: Side, atoms: np.ndarray, images: np.ndarray) -> int:
    """Tetrahedral centres, and trigonal carbons that are no acyl group's, at which one neighbour leaves and another
    enters.

    Without a base or a nucleophile that is hard: an ester is hydrolysed at its acyl carbon, not at the alkyl or the
    aryl; an ene reaction makes its new bond at the end of the double bond, not where the hydrogen leaves.
    """
    full_r, full_p = r.bonds[atoms], p.bonds[images]
    stay = full_r[:, atoms] & full_p[:, images]
    kept, elements = stay.sum(1), r.numbers[atoms]
    if len(atoms) < len(r.numbers):  # the skeleton alone: as many hydrogens as can stay do
        kept = kept + np.minimum(full_r[:, r.light].sum(1), full_p[:, p.light].sum(1))
    degree = np.where(full_r.sum(1) == full_p.sum(1), full_r.sum(1), 0)
    acyl = stay[:, ~np.isin(elements, (1, 6))].any(1)
    trigonal = (degree == 3) & (elements == 6) & ~acyl
    return int((((degree == 4) | trigonal) & (kept == degree - 1)).sum())


def _frontside(r: Side, p: Side, atoms: np.ndarray, images: np.ndarray) -> int:
    """Tetrahedral centres that keep their handedness while one neighbour leaves and another enters, as no SN2 does.

    Within one fragment front and back are not free to choose: such pairs do not count.
    """
    part_r, part_p = r.fragments[atoms], p.fragments[images]
    if not part_r.any() or not part_p.any():
        return 0
    corners = substituted_centres(r.bonds[np.ix_(atoms, atoms)], p.bonds[np.ix_(images, images)])
    leaving, entering = corners[:, 3], corners[:, 4]
    corners = corners[(part_r[leaving] != part_r[entering]) & (part_p[leaving] != part_p[entering])]
    x, y = r.positions[atoms], p.positions[images]
    return len(corners) - int(inverted_centres(x, y, corners[:, [0, 1, 2, 3]], corners[:, [0, 1, 2, 4]]).sum())


def _tight_rings(before: np.ndarray, after: np.ndarray) -> int:
    """Bonds formed in a ring of three or four, of bonds that change or stay, in which one breaks.

    Counting bonds cannot tell a [1,3] from a [3,3] shift, nor an ene reaction from an insertion into a C-H bond; the
    wider cyclic transition state is the likelier.
    """
    broken, either = before & ~after, before | after

    def tight(i: int, j: int) -> bool:
        near, far = (np.flatnonzero(either[a]).tolist() for a in (i, j))
        return any(
            broken[i, k] or broken[m, j] or broken[k, m]
            for k in near if k != j for m in far if m != i and (k == m or either[k, m])
        )  # fmt: skip

    return sum(tight(i, j) for i, j in np.argwhere(np.triu(after & ~before)).tolist())


def _deviation(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of squared deviations of a and b (n, 3) superposed by the best proper rotation (Kabsch 1978)."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    covariance = a.T @ b
    s = np.linalg.svd(covariance, compute_uv=False)
    overlap = s[0] + s[1] + (s[2] if np.linalg.det(covariance) > 0 else -s[2])
    return max(0.0, float((a**2).sum() + (b**2).sum() - 2.0 * overlap))


def _pieces(r: Side, p: Side, atoms: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The atoms that share their fragment in R and in P move as one piece."""
    pair = r.fragments[atoms] * (p.fragments.max() + 1) + p.fragments[images]
    return np.unique(pair, return_inverse=True)[1]


def _move(target: np.ndarray, mobile: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`points` under the proper rotation and translation that take `mobile` (n, 3) onto `target` (n, 3)."""
    rotation, translation = kabsch(torch.from_numpy(mobile), torch.from_numpy(target))
    return points @ rotation.numpy().T + translation.numpy()


def _with_hydrogens(r: Side, p: Side, images: np.ndarray, pinned: np.ndarray) -> list[np.ndarray]:
    """Permutations (N,) that extend the skeleton mapping `images` (n,): exact assignments of the hydrogens.

    Bond changes first; among equals the least squared displacement, measured either in the frame of the whole piece
    or, for a hydrogen that stays on its atom, in that of this atom and its neighbours. A skeleton that is a line or a
    point leaves the rotation open: several are tried. Each is refined with all atoms.
    """
    permutation = np.empty(len(r.numbers), dtype=np.int64)
    permutation[r.heavy] = images
    if not len(r.light):
        return [permutation]
    bonds = _hydrogen_bond_cost(r, p, images, pinned)
    stays, local = _local_displacements(r, p, images)
    results = {}
    for start, keep in product(_starts(r, p, images), (stays, np.zeros_like(stays)) if stays.any() else (stays,)):
        placed, previous = start, None
        for _ in range(4):
            square = np.full((len(r.light), len(p.light)), _FAR)
            for (f, g), frame in placed.items():
                rows, columns = r.fragments[r.light] == f, p.fragments[p.light] == g
                gap = r.positions[r.light[rows]][:, None] - frame[p.light[columns]][None]
                square[np.ix_(rows, columns)] = (gap**2).sum(-1)
            cost = _BOND * bonds + np.minimum(np.where(keep, local, square), 100.0)
            permutation[r.light] = p.light[linear_sum_assignment(cost)[1]]
            if previous is not None and np.array_equal(permutation, previous):
                break
            previous = permutation.copy()
            placed = _frames(r, p, np.arange(len(permutation)), permutation)
        results[permutation.tobytes()] = permutation.copy()
    return list(results.values())


def _frames(r: Side, p: Side, atoms: np.ndarray, images: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """{(fragment of R, fragment of P): all of P moved so that their common piece lies on R}."""
    frames = {}
    for f, g in {(int(f), int(g)) for f, g in zip(r.fragments[atoms], p.fragments[images], strict=True)}:
        own = (r.fragments[atoms] == f) & (p.fragments[images] == g)
        frames[f, g] = _move(r.positions[atoms[own]], p.positions[images[own]], p.positions)
    return frames


def _starts(r: Side, p: Side, images: np.ndarray) -> list[dict[tuple[int, int], np.ndarray]]:
    """Frames from the skeleton alone; turned about what is left undetermined where it is a line or a point."""
    frames = _frames(r, p, r.heavy, images)
    axes = {}
    for f, g in frames:
        points = r.positions[r.heavy[(r.fragments[r.heavy] == f) & (p.fragments[images] == g)]]
        centre = points.mean(axis=0)
        _, size, directions = np.linalg.svd(points - centre)
        if len(points) < 3 or size[1] < 0.2:
            axes[f, g] = centre, directions[0], len(points) == 1
    if not axes:
        return [frames]
    turns = [(angle, tilt) for tilt in (False, True) for angle in np.arange(6) * (np.pi / 3)]
    starts = []
    for angle, tilt in turns:
        if tilt and not any(point for *_, point in axes.values()):
            continue
        start = dict(frames)
        for key, (centre, axis, is_point) in axes.items():
            turned = _turn(frames[key] - centre, axis, angle)
            if tilt and is_point:
                turned = _turn(turned, np.roll(axis, 1) - axis * (np.roll(axis, 1) @ axis), np.pi / 2)
            start[key] = turned + centre
        starts.append(start)
    return starts


def _turn(points: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotate `points` by `angle` about `axis` through the origin."""
    length = np.linalg.norm(axis)
    axis = axis / length if length > 1e-6 else np.array([1.0, 0.0, 0.0])
    return Rotation.from_rotvec(angle * axis).apply(points)


def _hydrogen_bond_cost(r: Side, p: Side, images: np.ndarray, pinned: np.ndarray) -> np.ndarray:
    """(nR, nP) bonds changed by taking a hydrogen of R for one of P; an H-H bond counts half to either end.

    What is not `allowed` costs more than all bonds together.
    """
    to_r = r.bonds[np.ix_(r.light, r.heavy)].astype(int)
    to_p = p.bonds[np.ix_(p.light, images)].astype(int)
    heavy = to_r.sum(1)[:, None] + to_p.sum(1)[None, :] - 2 * to_r @ to_p.T
    among_r = r.bonds[np.ix_(r.light, r.light)].sum(1)
    among_p = p.bonds[np.ix_(p.light, p.light)].sum(1)
    forbidden = ~allowed(pinned, r.light, p.light)
    return heavy + 0.5 * np.abs(among_r[:, None] - among_p[None, :]) + 1e4 * forbidden


def _local_displacements(r: Side, p: Side, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hydrogens that keep their atom, seen from there: mask (nR, nP) and squared displacements (nR, nP).

    The frame is that of the carrying atom and the neighbours it keeps, with those one further on at a tenth of the
    weight. Where these lie on a line there is no frame and the mask is false.
    """
    kept = r.skeleton & p.bonds[np.ix_(images, images)]
    near = kept | np.eye(len(kept), dtype=bool)
    weights = np.where(near, 1.0, np.where(near.astype(int) @ near.astype(int) > 0, 0.1, 0.0))
    x, y = r.positions[r.heavy], p.positions[images]
    stays = np.zeros((len(r.light), len(p.light)), bool)
    square = np.zeros(stays.shape)
    for a in range(len(images)):
        rows = np.flatnonzero(r.bonds[r.light, r.heavy[a]])
        columns = np.flatnonzero(p.bonds[p.light, images[a]])
        if not len(rows) or not len(columns) or min(_width(x, weights[a]), _width(y, weights[a])) < 0.1:
            continue
        mobile, target, weight = (torch.from_numpy(v) for v in (y, x, weights[a]))
        rotation, translation = kabsch(mobile, target, weight)
        moved = p.positions[p.light[columns]] @ rotation.numpy().T + translation.numpy()
        block = np.ix_(rows, columns)
        stays[block] = True
        square[block] = ((r.positions[r.light[rows]][:, None] - moved[None]) ** 2).sum(-1)
    return stays, square


def _width(points: np.ndarray, weights: np.ndarray) -> float:
    """Extent, Angstrom, of weighted points across their longest axis; 0 for points on a line."""
    if len(points) < 3:
        return 0.0
    centred = points - (weights[:, None] * points).sum(0) / weights.sum()
    return float(np.linalg.svd(centred * np.sqrt(weights)[:, None], compute_uv=False)[1])


def _exchange_hydrogens(r: Side, p: Side, permutation: np.ndarray, pinned: np.ndarray) -> np.ndarray:
    """Exchange the images of two hydrogens, or turn three on one atom, while that improves the score.

    Finds what independent assignment cannot: the pair that leaves as H2, the hydrogen whose neighbours turn after it
        left.
    """
    permutation = permutation.copy()
    atoms = np.arange(len(permutation))
    cost = _hydrogen_bond_cost(r, p, permutation[r.heavy], pinned)
    place = {int(atom): k for k, atom in enumerate(p.light)}
    light = {int(atom): k for k, atom in enumerate(r.light)}
    cycles = [list(pair) for pair in combinations(light, 2)]
    for heavy in r.heavy:
        on_it = [int(a) for a in r.light if r.bonds[a, heavy]]
        cycles += [[a, *turn] for a, b, c in combinations(on_it, 3) for turn in ((b, c), (c, b))]
    score, improved = _score(r, p, atoms, permutation), True
    while improved:
        improved = False
        for cycle in cycles:
            old = permutation[cycle]
            new = np.roll(old, 1)
            rows = [light[a] for a in cycle]
            if cost[rows, [place[a] for a in new]].sum() > cost[rows, [place[a] for a in old]].sum():
                continue
            permutation[cycle] = new
            trial = _score(r, p, atoms, permutation)
            if trial < score:
                score, improved = trial, True
            else:
                permutation[cycle] = old
    return permutation
