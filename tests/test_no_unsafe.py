"""No file of the product loads code from data, and none has grown too long to read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("molgen", "potentials", "data", "tests", "examples", "benchmarks")
FILES = sorted({path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")})
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "torch.jit.load", "eval", "exec", "pd.read_pickle"}


def faults(source: str) -> list[str]:
    """What `source` does that the project does not allow."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            found += [f"torch.{a.name}" for a in node.names if f"{node.module}.{a.name}" in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            modules = []
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                found.append(name)
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if (keyword.arg, value) in {("allow_pickle", "True"), ("weights_only", "False")}:
                    found.append(f"{keyword.arg}={value}")
        else:
            continue
        found += [module for module in modules if module.split(".")[0] in FORBIDDEN_MODULES]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path):
    source = path.read_text()
    assert not faults(source), f"{path} uses {faults(source)}"
    lines = source.count("\n")
    assert lines <= 400, f"{path} has {lines} lines; 400 is the most"


@pytest.mark.parametrize("source", [
    "import torch\ntorch.load('a.pt')",
    "from torch import load",
    "import pickle",
    "from yaml import load",
    "eval('1')",
    "np.load('a.npz', allow_pickle=True)",
    "def f():\n    import joblib",
])  # fmt: skip
def test_the_check_itself(source):
    assert faults(source)


def test_harmless_code_passes():
    assert not faults("import numpy as np\nmodel.eval()\nnp.load('a.npz')\nnp.load('b', allow_pickle=False)")


def test_all_folders_were_searched():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"molgen", "potentials", "data", "tests"}
