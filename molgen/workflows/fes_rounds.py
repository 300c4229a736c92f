"""What a round of a CV-biased run says, and when the rounds have converged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from molgen.cvdiffusion.sampler import Sampler
from molgen.cvdiffusion.target import Batch
from molgen.reweight.importance import RELIABLE_KHAT, diagnose, normalised, psis
from molgen.workflows.fes_basins import LOW

OnRound = Callable[[dict[str, Any]], None]
RESTS = 0.2  # kT: the surface rests when no bin below `LOW` moves by more between snapshots
SNAPSHOTS = 20  # snapshots of the surface in a whole run


def judge(sampler: Sampler, batch: Batch) -> dict[str, Any]:
    """Figures of a round: how good its weights are, how far the bias has grown, energies so far."""
    found = diagnose(sampler.target.log_weights(batch))
    plain = diagnose(sampler.target.log_weights(batch, biased=False))
    return {
        "round": int(batch.round[0]),
        "energies": int(sampler.energies_used),
        "accepted": int(batch.accepted.sum()),
        "ess": found.ess,
        "khat": found.khat,
        "log_z": found.log_z,
        "ess_unbiased": plain.ess,
        "khat_unbiased": plain.khat,
        "bias": float(np.max(sampler.target.bias.values)) / sampler.target.kt,
        "moved": _moved(sampler),
    }


def converged(sampler: Sampler) -> bool:
    """Whether the last three snapshots of the surface under the resting bias differ by less than 0.2 kT, k-hat < 0.7.

    A snapshot is the path-weighted surface of everything since the bias rests, every twentieth of the run.
    """
    moves = [record["moved"] for record in sampler.records if record.get("moved") is not None]
    if len(moves) < 3 or sampler.records[-1]["moved"] is None or max(moves[-3:]) >= RESTS:
        return False
    return bool(diagnose(sampler.target.log_weights(Batch.join(sampler.history))).khat < RELIABLE_KHAT)


def _moved(sampler: Sampler) -> float | None:
    """The largest difference, kT, below `LOW` of a snapshot and the one before, `LOW` where they share no bin; None if
    this round is not one."""
    every, frozen = max(1, sampler.settings.rounds // SNAPSHOTS), sampler.history
    if len(frozen) < 2 * every or len(frozen) % every:
        return None
    later, earlier = (_snapshot(sampler, Batch.join(part)) for part in (frozen, frozen[:-every]))
    low = np.isfinite(later) & np.isfinite(earlier) & (later < LOW)
    return float(np.abs(later[low] - earlier[low]).max()) if low.any() else LOW


def _snapshot(sampler: Sampler, batch: Batch) -> np.ndarray:
    """The surface in kT over coarse bins; 0 at its minimum."""
    bias = sampler.target.bias
    weights = normalised(psis(sampler.target.log_weights(batch, biased=False)))
    edges = [np.linspace(a.low, a.high, max(6, round((a.high - a.low) / (2 * w)) + 1))
             for a, w in zip(bias.axes, bias.widths, strict=True)]  # fmt: skip
    share = np.histogramdd(_wrapped(bias, batch.cvs), edges, weights=weights)[0]
    with np.errstate(divide="ignore"):
        free = -np.log(share)
    return free - free.min()


def _wrapped(bias: Any, cvs: np.ndarray) -> np.ndarray:
    """Values (n, D) moved into the ranges of the periodic axes."""
    return np.stack([axis.wrapped(cvs[:, d]) for d, axis in enumerate(bias.axes)], 1)
