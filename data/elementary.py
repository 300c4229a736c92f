"""Elementary steps of a molecule: which bonds may break and form next, and a first geometry of what that gives.

At most two bonds break and two form, between near atoms, and the product must satisfy the valences: every atom keeps an
allowed number of neighbours, and what valence is left over must pair up as multiple bonds (a matching), save for a few
carbenes, ylides and zwitterions. Hydrogen shifts, ring openings and closures, cycloadditions, eliminations and
migrations are all cases of it; the numbers of bonds are drawn with the frequencies they have in RDB7 (Grambow et al.,
Sci. Data 7, 137 (2020)), whose search for reactions had the same bounds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from ase.data import chemical_symbols

from molgen.geometry.bonds import BondChanges, distance_matrix, fragments, radius_sums
from molgen.geometry.embed import embed_distances

# element: (valence, most neighbours); other elements are spectators, their bonds stay
VALENCES = {
    1: (1, 1), 5: (3, 4), 6: (4, 4), 7: (3, 4), 8: (2, 3), 9: (1, 1), 14: (4, 4), 15: (3, 4), 16: (2, 3),
    17: (1, 1), 35: (1, 1), 53: (1, 1),
}  # fmt: skip
# (bonds broken, bonds formed): share of the draws
SHAPES = {
    (1, 1): 0.34,
    (2, 1): 0.30,
    (1, 2): 0.08,
    (2, 2): 0.12,
    (2, 0): 0.06,
    (1, 0): 0.04,
    (0, 1): 0.03,
    (0, 2): 0.03,
}
HYDROGEN_SHARE = 0.35  # weight of breaking a bond to hydrogen, of which there are many, against another bond's
NEAR, DECAY, FARTHEST = 2.0, 0.9, 5.5  # Angstrom: a bond forms with weight exp(-(d - NEAR) / DECAY), up to FARTHEST
BETWEEN = 0.3  # weight of a bond formed between molecules, whose placement carries no information
STRAINED = 0.15  # share of the steps towards a carbene, ylide or biradical that is kept (then 42 %, as in RDB7)
STAYS_STRAINED = 0.3  # likewise of the steps from one such molecule to another
TRIES = 200
APART = 1.2  # Angstrom by which the ends of a broken bond move apart in the first geometry of the product
ANGLE = math.cos(math.radians(112))  # at a new bond


def propose_step(
    numbers: np.ndarray, bonds: np.ndarray, positions: np.ndarray, rng: np.random.Generator
) -> BondChanges | None:
    """A random elementary step of a molecule (or several).

    Args:
        numbers: (N,) atomic numbers. bonds: (N, N) connectivity. positions: (N, 3) Angstrom.

    Returns:
        Bonds broken and formed; None when no valid step was found in a number of tries.
    """
    weights = formation_weights(bonds, positions)
    before = unpaired_valence(numbers, bonds)
    shapes, shares = list(SHAPES), np.array(list(SHAPES.values()))
    for _ in range(TRIES):
        broken, formed = shapes[rng.choice(len(shapes), p=shares / shares.sum())]
        step = _draw(numbers, bonds, weights, broken, formed, rng)
        if step is None:
            continue
        after = applied(bonds, step)
        if not neighbours_allowed(numbers, bonds, after):
            continue
        excess = unpaired_valence(numbers, after) - before
        chance = STRAINED if excess > 0 else STAYS_STRAINED if before and excess == 0 else 1.0
        if excess <= 2 and rng.random() < chance:
            return step
    return None


def applied(bonds: np.ndarray, step: BondChanges) -> np.ndarray:
    """Connectivity (N, N) after `step`."""
    after = np.array(bonds, dtype=bool)
    for pairs, value in ((step.broken, False), (step.formed, True)):
        for i, j in pairs:
            after[i, j] = after[j, i] = value
    return after


def neighbours_allowed(numbers: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether every atom whose number of neighbours changes ends with at least one, and not too many."""
    old, new = before.sum(1), after.sum(1)
    return all(
        new[k] == old[k] or (int(z) in VALENCES and 1 <= new[k] <= VALENCES[int(z)][1]) for k, z in enumerate(numbers)
    )


def unpaired_valence(numbers: np.ndarray, bonds: np.ndarray) -> int:
    """Units of valence that no Lewis structure with these bonds pairs up: 0 for an ordinary closed-shell molecule.

    A carbene, a zwitterion or a biradical has 2. Multiple bonds are a maximum matching of the free valences of bonded
    atoms (Edmonds, Can. J. Math. 17, 449 (1965)). A terminal carbon on N or O counts as divalent (CO, isonitriles).
    """
    free, excess = _free_valences(numbers, bonds)
    return excess + int(free.sum()) - 2 * int(sum(pi_bonds(numbers, bonds).values()))


def pi_bonds(numbers: np.ndarray, bonds: np.ndarray) -> dict[tuple[int, int], int]:
    """{(i, j), i < j: bonds beside the first} of a Lewis structure with as many multiple bonds as there can be."""
    import networkx  # slow to import

    free, _ = _free_valences(numbers, bonds)
    graph = networkx.Graph()
    for i, j in zip(*np.nonzero(np.triu(bonds, 1)), strict=True):
        for a in range(min(int(free[i]), 2)):
            for b in range(min(int(free[j]), 2)):
                graph.add_edge((int(i), a), (int(j), b))
    found: dict[tuple[int, int], int] = {}
    for (i, _), (j, _) in networkx.max_weight_matching(graph, maxcardinality=True):
        pair = (min(i, j), max(i, j))
        found[pair] = found.get(pair, 0) + 1
    return found


def _free_valences(numbers: np.ndarray, bonds: np.ndarray) -> tuple[np.ndarray, int]:
    """Free valence (N,) of each atom, and by how many neighbours the others exceed theirs."""
    degree = bonds.sum(1)
    free = np.array([VALENCES.get(int(z), (int(d), 0))[0] for z, d in zip(numbers, degree, strict=True)]) - degree
    for k in np.flatnonzero((np.asarray(numbers) == 6) & (degree == 1)):
        if numbers[int(np.argmax(bonds[k]))] in (7, 8):
            free[k] -= 2
    return np.maximum(free, 0), int(np.maximum(-free, 0).sum())


def formation_weights(bonds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(N, N) weights with which a bond between two atoms is drawn, by their distance; 0 for bonded and far pairs."""
    d = distance_matrix(positions)
    part = fragments(bonds)
    weights = np.where(d < FARTHEST, np.exp(-np.maximum(d - NEAR, 0) / DECAY), 0.0)
    weights = np.where(part[:, None] == part, weights, BETWEEN)
    return np.where(bonds | np.eye(len(d), dtype=bool), 0.0, weights)


def _draw(numbers, bonds, weights, broken: int, formed: int, rng: np.random.Generator) -> BondChanges | None:
    """So many bonds to break and to form; None where the draw went wrong."""
    known = np.array([int(z) in VALENCES for z in numbers])
    pairs = [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(bonds & known & known[:, None], 1)), strict=True)]
    if len(pairs) < broken:
        return None
    ease = np.array([HYDROGEN_SHARE if 1 in (numbers[i], numbers[j]) else 1.0 for i, j in pairs])
    cut = [pairs[k] for k in rng.choice(len(pairs), broken, replace=False, p=ease / ease.sum())] if broken else []
    made: list[tuple[int, int]] = []
    weights = weights * known * known[:, None]
    loose = [k for pair in cut for k in pair]
    bare = [k for k in loose if bonds[k].sum() == loose.count(k)]  # an atom without any neighbour must find one
    for _ in range(formed):
        bare = [k for k in bare if not any(k in pair for pair in made)]
        pool = np.zeros_like(weights)
        rows = bare[:1] or loose or range(len(weights))
        pool[rows] = weights[rows]
        for i, j in (*made, *cut):
            pool[i, j] = pool[j, i] = 0.0
        total = pool.sum()
        if total <= 0:
            return None
        i, j = divmod(int(rng.choice(pool.size, p=pool.ravel() / total)), len(pool))
        made.append((min(i, j), max(i, j)))
    return BondChanges(tuple(sorted(cut)), tuple(sorted(made)))


def step_kind(numbers: np.ndarray, bonds: np.ndarray, step: BondChanges) -> str:
    """The step in a chemist's words, for tables: "hydrogen shift", "ring opening", "cycloaddition", ..."""
    after = applied(bonds, step)
    pieces = int(fragments(after).max()) - int(fragments(bonds).max())
    moved = {k for pair in step.broken for k in pair if numbers[k] == 1} & {k for pair in step.formed for k in pair}
    if pieces > 0:
        return "fragmentation"
    if pieces < 0:
        return "cycloaddition" if len(step.formed) == 2 and not step.broken else "addition"
    if moved:
        return "hydrogen shift" if len(step.broken) == len(step.formed) == 1 else "hydrogen shift with other bonds"
    if not step.formed:
        return "ring opening"
    if not step.broken:
        return "ring closure" if len(step.formed) == 1 else "cycloaddition"
    return "rearrangement"


def step_text(numbers: np.ndarray, step: BondChanges) -> str:
    """The step in a line, atoms counted from 0: "break C0-H4; form O2-H4"."""

    def names(pairs):
        return " ".join("-".join(f"{chemical_symbols[int(numbers[k])]}{k}" for k in pair) for pair in pairs)

    parts = (("break", step.broken), ("form", step.formed))
    return "; ".join(f"{word} {names(pairs)}" for word, pairs in parts if pairs)


def product_geometry(
    numbers: np.ndarray, bonds: np.ndarray, positions: np.ndarray, step: BondChanges, iterations: int = 150
) -> np.ndarray:
    """A geometry (N, 3) in Angstrom with the product's bonds, close to the reactant's; to be relaxed by a calculator.

    New bonds get the sum of the covalent radii and tetrahedral angles, the ends of broken bonds move apart, all else
    keeps its distances as well as it can (stress majorisation, see :mod:`molgen.geometry.embed`).
    """
    after = applied(bonds, step)
    d = distance_matrix(positions) + np.eye(len(positions))
    target, weight = d.copy(), np.where(after & bonds, 1.0, 0.05)
    near = (after.astype(int) @ after.astype(int) > 0) & ~after
    weight = np.where(near & (bonds.astype(int) @ bonds.astype(int) > 0), 0.5, weight)
    for i, j in step.formed:
        length = radius_sums(numbers)[i, j]
        _set(target, weight, i, j, length, 1.0)
        for a, b in ((i, j), (j, i)):
            for c in np.flatnonzero(after[b]).tolist():
                if c != a and not after[a, c]:
                    side = radius_sums(numbers)[b, c]
                    _set(target, weight, a, c, math.sqrt(length**2 + side**2 - 2 * length * side * ANGLE), 0.3)
    for i, j in step.broken:
        _set(target, weight, i, j, max(d[i, j] + APART, 2.6), 0.5)
    start = torch.from_numpy(np.array(positions, dtype=float))
    scaled = torch.from_numpy(weight / np.maximum(target, 0.5) ** 4)
    mask = torch.ones(1, len(d), dtype=torch.bool)
    return embed_distances(start[None], torch.from_numpy(target)[None], scaled[None], mask, iterations)[0].numpy()


def _set(target: np.ndarray, weight: np.ndarray, i: int, j: int, distance: float, strength: float) -> None:
    target[i, j] = target[j, i] = distance
    weight[i, j] = weight[j, i] = strength
