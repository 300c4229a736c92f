"""molgen: generative models that propose molecular structures, and the physics that verifies them.

The public names load on first use, so that `import molgen` costs milliseconds:

    find_ts     a verified transition state between two structures
    TSResult    what `find_ts` returns
    load_model  a trained transition-state generator, by weights name or checkpoint folder
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molgen.tsgen import load_model
    from molgen.workflows.ts import TSResult, find_ts

__version__ = "0.1.0"
__all__ = ["TSResult", "__version__", "find_ts", "load_model"]

_HOMES = {"find_ts": "molgen.workflows.ts", "TSResult": "molgen.workflows.ts", "load_model": "molgen.tsgen"}


def __getattr__(name: str) -> Any:
    """Import a public name from its home module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
