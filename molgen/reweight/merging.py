"""One ensemble of several, and parts of one: whether ensembles belong together, and which draws are there twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from molgen.errors import InputError
from molgen.reweight.importance import Verdict, worst, worst_weights

if TYPE_CHECKING:
    from molgen.reweight.ensemble import Ensemble

# One draw twice: batches of another shape move positions by 1e-5 A, an xtc by up to 0.01; no two draws of a molecule
# lie that close in all atoms
SAME_POSITION, SAME_ENERGY = 0.011, 0.01  # Angstrom, eV


def indexed(ensemble: Ensemble, index: Any) -> Ensemble:
    """The ensemble of `Ensemble.__getitem__`."""
    part = np.atleast_1d(np.arange(len(ensemble))[index])
    once, found = np.unique(part), taken(ensemble, part)
    if len(once) == len(part):
        return found
    return replace(found, at_best=worst(ensemble.at_best, taken(ensemble, once).verdict))  # ties spoil k-hat


def taken(ensemble: Ensemble, part: np.ndarray) -> Ensemble:
    """The samples at indices `part` (m,), of which those that are there twice are a group."""
    groups = part if ensemble.groups is None and len(np.unique(part)) < len(part) else None
    return replace(
        ensemble,
        positions=ensemble.positions[part],
        log_weights=ensemble.log_weights[part],
        energies=ensemble.energies[part],
        log_q=None if ensemble.log_q is None else ensemble.log_q[part],
        groups=groups if ensemble.groups is None else ensemble.groups[part],
        cvs={name: replace(cv, values=np.asarray(cv.values)[part]) for name, cv in ensemble.cvs.items()},
    )


def merged(ensembles: Iterable[Ensemble]) -> Ensemble:
    """The ensemble of `Ensemble.merge`."""
    parts = list(ensembles)
    if not parts:
        raise InputError("no ensemble to merge", where="Ensemble.merge", expected="one or more")
    for at, part in enumerate(parts):
        if not hasattr(part, "log_weights"):
            raise InputError(f"{part!r} given", where=f"Ensemble.merge, ensemble {at}", expected="an Ensemble")
    first = parts[0]
    for at, part in enumerate(parts[1:], 1):
        if not np.array_equal(part.numbers, first.numbers) or part.temperature != first.temperature:
            raise InputError(
                f"{len(part.numbers)} atoms at {part.temperature} K, the first has {len(first.numbers)} at "
                f"{first.temperature} K",
                where=f"Ensemble.merge, ensemble {at}",
                expected="the same molecule and temperature",
            )

    weighted = [bool(part.log_weights[np.isfinite(part.log_weights)].any()) for part in parts]
    alike = [np.isfinite(part.log_weights).any() and not uneven for part, uneven in zip(parts, weighted, strict=True)]
    if any(weighted) and any(alike):
        raise InputError(
            "its log-weights are zeros, as of molecular dynamics or after `resample`, and those of others are not",
            where=f"Ensemble.merge, ensemble {alike.index(True)}",
            expected="log-weights of all on one scale",
            remedy="merge the weighted ensembles, and resample what they give together",
        )

    def joined(name: str) -> np.ndarray | None:
        columns = [getattr(part, name) for part in parts]
        return None if any(column is None for column in columns) else np.concatenate(columns)

    resampled = any(part.resampled_by is not None for part in parts)  # of which groups are not judged again
    verdicts: list[Verdict] = [part.verdict if resampled else part.at_best for part in parts]
    groups, copies = _groups(parts)
    common = [name for name in first.cvs if all(name in part.cvs for part in parts)]
    reasons = list(dict.fromkeys(reason for part in parts for reason in part.validity))
    whole = replace(
        first,
        **{name: joined(name) for name in ("positions", "log_weights", "energies", "log_q")},
        groups=groups,
        ancestors=_ancestors(parts, groups),
        cvs={c: replace(first.cvs[c], values=np.concatenate([p.cvs[c].values for p in parts])) for c in common},
        validity={reason: sum(part.validity.get(reason, 0) for part in parts) for reason in reasons},
        at_best=worst(*verdicts),
        smoothed=all(part.smoothed for part in parts),
        resampled_by=worst_weights(*(part.resampled_by for part in parts)),
    )
    if not len(copies):
        return whole
    once = whole[np.setdiff1d(np.arange(len(whole)), copies)]
    return replace(whole, at_best=worst(whole.at_best, once.verdict))


def _groups(parts: list[Ensemble]) -> tuple[np.ndarray | None, np.ndarray]:
    """Groups (n,) of all samples: those of the parts, joined where parts have a draw in common; None if none are.

    And which samples (m,) an earlier part has, too.
    """
    labels, offset = [], 0
    for part in parts:
        own = np.arange(len(part)) if part.groups is None else np.unique(part.groups, return_inverse=True)[1]
        labels.append(own + offset)
        offset += len(part)
    every, positions = np.concatenate(labels), np.concatenate([part.positions.reshape(len(part), -1) for part in parts])
    one, other = _common(positions, np.concatenate([p.energies for p in parts]), [len(part) for part in parts])
    if all(part.groups is None for part in parts) and not len(one):
        return None, other
    links = coo_array((np.ones(len(one)), (every[one], every[other])), shape=(offset, offset))
    return connected_components(links, directed=False)[1][every], other


def _ancestors(parts: list[Ensemble], groups: np.ndarray | None) -> int | None:
    """Ancestors of all samples, a draw that was never resampled being its own; None where a part has other groups."""
    if groups is None or any(part.groups is not None and part.ancestors is None for part in parts):
        return None
    if all(part.ancestors is None for part in parts):  # groups are draws that several have
        return None
    left = [len(part) if part.groups is None else len(np.unique(part.groups)) for part in parts]
    dead = sum((part.ancestors or size) - size for part, size in zip(parts, left, strict=True))
    return dead + len(np.unique(groups))


def _common(positions: np.ndarray, energies: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of samples (m,), (m,) of different parts that are one draw.

    Args:
        positions: (n, 3 N) Angstrom. energies: (n,) eV. sizes: of the parts, which follow each other.
    """
    ends, pairs = np.cumsum(sizes), [np.zeros((2, 0), dtype=int)]
    known = np.isfinite(positions).all(1) & np.isfinite(energies)
    for begin, end in zip(ends[:-1], ends[1:], strict=True):
        earlier, later = np.flatnonzero(known[:begin]), begin + np.flatnonzero(known[begin:end])
        if len(earlier) and len(later):
            near = cKDTree(positions[earlier]).query(positions[later], p=np.inf, distance_upper_bound=SAME_POSITION)[1]
            found = near < len(earlier)
            pair = np.stack([earlier[near[found]], later[found]])
            pairs.append(pair[:, np.abs(np.subtract(*energies[pair])) < SAME_ENERGY])
    one, other = np.concatenate(pairs, axis=1)
    return one, other
