"""By what a resumed run is known to be the one it continues, beside its settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molgen.files import json_text, read_manifest
from molgen.rng import generator
from molgen.variables import CV, values_and_gradients
from molgen.workflows.fes_problem import Problem

SAME = {"rel_tol": 1e-6, "abs_tol": 1e-4}  # tolerances, eV and units of the variables: rounding, not another potential
MANY, BESIDE = 4, 0.1  # number of structures beside the first start; how far each coordinate is moved, Angstrom
PLACES = 6  # decimals of coordinates in Angstrom


def identity(problem: Problem, earlier: Path | None) -> dict[str, Any]:
    """Variables, starting structures and energies, each under a name that a refusal can tell.

    Values and energies are those at the starts and beside the first, where minima and symmetry hide less.

    Args:
        earlier: folder of the run that is to be resumed, whose numbers are taken where the new ones only round
            otherwise; None for a fresh run.
    """
    system = problem.system
    noise = BESIDE * generator(0).standard_normal((MANY, *system.starts.shape[1:]))
    x = np.concatenate([system.starts, system.starts[0] + noise])
    frames = [] if problem.prior is None else [problem.prior.frames]
    found = {
        "collective variables": _variables(problem.cvs, x),
        "starting structures": _digest(system.numbers, system.starts, *frames),
        "energies": system.potential.energy_and_forces(x)[0],
        "variables of walls": _variables([wall.cv for wall in problem.walls if wall.cv not in problem.cvs], x),
    }
    now = json.loads(json_text(found))
    before = {} if earlier is None else read_manifest(earlier) or {}
    return _settled(now, before.get("settings"))


def _variables(cvs: Sequence[CV], x: np.ndarray) -> dict[str, Any]:
    return {
        "names": [cv.name for cv in cvs],
        "definitions": [cv.definition for cv in cvs],
        "files": {name: _digest(frames) for cv in cvs for name, frames in cv.references.items()},
        "values": values_and_gradients(cvs, x)[0],
    }


def _digest(*arrays: np.ndarray) -> str:
    """A few letters that change with the arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(repr((np.round(np.asarray(array, dtype=float), PLACES) + 0.0).tolist()).encode())
    return found.hexdigest()[:16]


def _settled(now: Any, before: Any) -> Any:
    """`now`, with the numbers of `before` where they are the same but for rounding."""
    if isinstance(now, dict) and isinstance(before, dict):
        return {key: _settled(value, before.get(key)) for key, value in now.items()}
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return [_settled(*pair) for pair in zip(now, before, strict=True)]
    if isinstance(now, float) and isinstance(before, (int, float)):
        return before if math.isclose(now, before, **SAME) else now
    return now
