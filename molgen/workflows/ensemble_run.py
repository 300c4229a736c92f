"""What every run that ends in an ensemble has: a hash of it, and the way back to it once the run has finished."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from molgen.reweight.ensemble import Ensemble
from molgen.run import SUMMARY, Run


def finished_run(run: Run) -> tuple[Ensemble, dict[str, Any]] | None:
    """The ensemble and summary of a run that had finished before it was resumed; None of any other."""
    path = run.directory / SUMMARY
    if not run.resumed or not path.exists():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return (Ensemble.load(run.directory), summary) if "ensemble_hash" in summary else None


def ensemble_hash(ensemble: Ensemble) -> str:
    """SHA-256 of positions, log-weights and energies, to the bit."""
    digest = hashlib.sha256()
    for part in (ensemble.positions, ensemble.log_weights, ensemble.energies):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
