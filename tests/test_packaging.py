"""The pins `make` installs lie within the ranges users get, and every import of a third party is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import molgen
from molgen.cli import doctor

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("line", PROJECT["dependencies"] + EXTRAS["dev"])
def test_pins_lie_in_the_ranges(line):
    requirement = Requirement(line)
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_doctor_looks_for_every_dependency():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {canonicalize_name(name) for name, *_ in doctor._REQUIRED} == declared


def test_versions_agree():
    assert importlib.metadata.version("molgen") == molgen.__version__
    assert f"version: {molgen.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_third_party_import_is_declared():
    declared = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    for extra in ("dft", "mlip"):
        declared |= {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
    modules = {"arviz-stats": "arviz_stats", "mace-torch": "mace", "pot": "ot", "torch-geometric": "torch_geometric"}
    allowed = {modules.get(name, name) for name in declared} | {"molgen"} | set(sys.stdlib_module_names)
    for folder in ("molgen", "potentials", "data"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                unknown = {name.split(".")[0] for name in names} - allowed
                assert not unknown, f"{path} imports {unknown}, which pyproject.toml does not declare"
