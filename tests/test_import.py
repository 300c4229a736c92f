"""Importing molgen, or asking for help, loads nothing heavy; the public names are there when wanted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import molgen

HEAVY = {"torch", "jax", "sella", "openmm", "rdkit", "matplotlib", "tblite", "torch_geometric", "e3nn", "scipy", "ase"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("statement", ["import molgen", "import molgen.cli.main", "import molgen.run"])
def test_nothing_heavy(statement):
    loaded = loaded_by(statement)
    assert "molgen" in loaded
    assert not loaded & (HEAVY | {"numpy"})


@pytest.mark.parametrize("statement", ["import molgen.potentials", "import molgen.checkpoint", "import molgen.batch"])
def test_backends_wait_until_they_are_used(statement):
    assert not loaded_by(statement) & (HEAVY - {"torch", "ase", "scipy"})


@pytest.mark.parametrize("name", sorted(set(molgen.__all__) - {"__version__"}))
def test_public_names(name):
    value = getattr(molgen, name)
    assert callable(value) and value.__doc__
    assert name in dir(molgen)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'molgen' has no attribute 'find_tss'"):
        molgen.find_tss  # noqa: B018
