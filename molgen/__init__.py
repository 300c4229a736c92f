"""molgen: generative models that propose molecular structures, and the physics that verifies them.

The public names load on first use, so that `import molgen` costs milliseconds:

    find_ts         a verified transition state between two structures
    TSResult        what `find_ts` returns
    load_model      a trained transition-state generator, by weights name or checkpoint folder
    sample_peptide  a weighted equilibrium ensemble of a peptide
    sample_cv       the same of any molecule, pushed along collective variables, from energies alone
    Ensemble        what both return: samples, log-weights, averages, free energies
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molgen.reweight.ensemble import Ensemble
    from molgen.tsgen import load_model
    from molgen.workflows.fes import sample_cv
    from molgen.workflows.peptide import sample_peptide
    from molgen.workflows.ts import TSResult, find_ts

__version__ = "0.1.0"
__all__ = ["Ensemble", "TSResult", "__version__", "find_ts", "load_model", "sample_cv", "sample_peptide"]

_HOMES = {
    "Ensemble": "molgen.reweight.ensemble",
    "TSResult": "molgen.workflows.ts",
    "find_ts": "molgen.workflows.ts",
    "load_model": "molgen.tsgen",
    "sample_cv": "molgen.workflows.fes",
    "sample_peptide": "molgen.workflows.peptide",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
