"""What every run that ends in an ensemble has: a hash of it, and the way back to it once the run has finished."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from molgen.files import read_summary
from molgen.reweight.ensemble import Ensemble
from molgen.run import Run


def finished_run(run: Run) -> tuple[Ensemble, dict[str, Any]] | None:
    """The ensemble and summary of a run that had finished before it was resumed; None of any other."""
    summary = read_summary(run.directory) if run.resumed else None
    if not summary or "ensemble_hash" not in summary:
        return None
    run.release()  # callers go into no other `with run`
    return Ensemble.load(run.directory), summary


def ensemble_hash(ensemble: Ensemble) -> str:
    """SHA-256 of positions, log-weights and energies, to the bit."""
    digest = hashlib.sha256()
    for part in (ensemble.positions, ensemble.log_weights, ensemble.energies):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
