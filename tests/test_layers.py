"""A module imports only from its own row of the architecture or the rows above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "molgen"
ROWS = (
    {"__init__", "units", "errors", "rng", "files", "npz", "pool", "device", "threads", "words"},
    {"geometry", "nn", "smiles", "checkpoint", "batch"},
    {"structures", "xyz"},
    {"potentials"},
    {"data"},
    {"io", "smiles_reaction"},
    {"flow", "train", "variables"},
    {"tsgen", "prose", "cvdiffusion"},
    {"saddle", "reweight"},
    {"report", "run", "workflows", "cli", "__main__"},
)
ROW = {name: index for index, row in enumerate(ROWS) for name in row}
MODELS = {"tsgen", "prose", "cvdiffusion"}  # never import each other
FILES = sorted({path for folder in (PACKAGE, *PACKAGE.glob("*/")) for path in folder.rglob("*.py")})  # symlinks too


def unit(path: Path) -> str:
    """The architecture's name for a file: the folder or module directly under molgen."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Units of molgen that a file imports, inside functions too; imports for type checkers alone do not count."""
    tree = ast.parse(path.read_text())
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for block in typing_only for inner in ast.walk(block)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if id(node) not in skipped}
        elif isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            assert node.level == 0, f"{path}: relative import; write it from molgen on"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    units = {name.split(".")[1] if "." in name else "__init__" for name in names if name.split(".")[0] == "molgen"}
    return {name if name in ROW else "__init__" for name in units}  # molgen.__version__ lives in __init__


def test_every_unit_has_a_row():
    assert {unit(path) for path in FILES} <= set(ROW)
    assert len({unit(path) for path in FILES}) > 8 and {"potentials", "data"} <= {unit(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    own = unit(path)
    below = {name for name in imported(path) if ROW[name] > ROW[own]}
    assert not below, f"{path} ({own}) imports from the rows below it: {sorted(below)}"
    assert own not in MODELS or not (imported(path) & MODELS - {own})
