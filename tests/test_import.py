"""Importing molgen, or asking for help, loads nothing heavy; the public names are there when wanted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import molgen
from molgen.errors import InputError

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


OF_FILES = (
    molgen.load_model, molgen.Ensemble.load, molgen.system_from_files, molgen.system_from_pdb, molgen.sample_pretrained,
    molgen.fes_from_ts, lambda value: molgen.find_ts(value, value),
)  # fmt: skip
OF_TEXTS = (
    lambda value: molgen.find_ts(smiles=value), molgen.sample_peptide, lambda value: molgen.sample_cv(value, value),
    lambda value: molgen.sample_peptide("GG", units=value), lambda value: molgen.sample_peptide("GG", n=value),
    lambda value: molgen.system_from_files("examples/cl_ch3cl/reactant.xyz", calculator=value),
)  # fmt: skip


@pytest.mark.parametrize("value", [None, 1.5, b"x", "", [], ["x", 3], {}, object()])
@pytest.mark.parametrize("function", [*OF_FILES, *OF_TEXTS])
def test_main_arguments_of_another_kind_are_bad_input(function, value, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(InputError):
        function(value)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'molgen' has no attribute 'find_tss'"):
        molgen.find_tss  # noqa: B018
