"""molgen: generative models that propose molecular structures, and the physics that verifies them.

The public names load on first use, so that `import molgen` costs milliseconds:

    find_ts            a verified transition state between two structures
    TSResult           what `find_ts` returns
    load_model         a trained transition-state generator, by weights name or checkpoint folder
    sample_peptide     a weighted equilibrium ensemble of a peptide
    sample_cv          the same of any molecule, pushed along collective variables, from energies alone
    system_from_files  the molecule for `sample_cv`: structure files and a calculator
    system_from_pdb    the same: PDB files and an OpenMM force field
    sample_pretrained  more samples with the controller of a finished run, or a shipped one
    fes_from_ts        the free-energy barrier of a transition state that `find_ts` wrote
    Ensemble           what is sampled: structures, log-weights, averages, free energies
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molgen.reweight.ensemble import Ensemble
    from molgen.tsgen import load_model
    from molgen.workflows.fes import sample_cv
    from molgen.workflows.fes_from_ts import fes_from_ts
    from molgen.workflows.fes_pretrained import sample_pretrained
    from molgen.workflows.fes_system import system_from_files, system_from_pdb
    from molgen.workflows.peptide import sample_peptide
    from molgen.workflows.ts import TSResult, find_ts

__version__ = "0.1.0"
__all__ = [
    "Ensemble",
    "TSResult",
    "__version__",
    "fes_from_ts",
    "find_ts",
    "load_model",
    "sample_cv",
    "sample_peptide",
    "sample_pretrained",
    "system_from_files",
    "system_from_pdb",
]

_HOMES = {
    "Ensemble": "molgen.reweight.ensemble",
    "TSResult": "molgen.workflows.ts",
    "fes_from_ts": "molgen.workflows.fes_from_ts",
    "find_ts": "molgen.workflows.ts",
    "load_model": "molgen.tsgen",
    "sample_cv": "molgen.workflows.fes",
    "sample_peptide": "molgen.workflows.peptide",
    "sample_pretrained": "molgen.workflows.fes_pretrained",
    "system_from_files": "molgen.workflows.fes_system",
    "system_from_pdb": "molgen.workflows.fes_system",
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
