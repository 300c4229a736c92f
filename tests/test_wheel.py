"""What users install: the source archive and the wheel made from it, imported outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "molgen", "potentials", "data")

IMPORT_ALL = """
import importlib, pathlib, sys
import molgen
root = pathlib.Path(molgen.__file__).parent
names = sorted(".".join(("molgen", *p.relative_to(root).with_suffix("").parts)) for p in root.rglob("*.py"))
for name in names:
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert module.__file__.startswith(sys.argv[1]), module.__file__
print(*names)
"""


def run(*command: object, **kwargs) -> str:
    """Run a command; its output is the failure message."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, f"{command[:4]} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory) -> Path:
    """Folder with the installed wheel. Built from a copy, so that a stale `build/` cannot lend files."""
    work = tmp_path_factory.mktemp("wheel")
    (work / "source").mkdir()
    for name in SHIPPED:
        source = root / name
        ignore = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, work / "source" / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, work / "source" / name)
    # Without --wheel or --sdist, build makes the source archive first and the wheel from that archive.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist", work / "source")
    assert len(list((work / "dist").glob("molgen-*.tar.gz"))) == 1
    (wheel,) = (work / "dist").glob("molgen-*.whl")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", work / "site", wheel)
    return work / "site"


@pytest.mark.slow
def test_wheel(root, installed, tmp_path):
    """Every module and every weights file of the repository is in the wheel, real and importable."""
    package = installed / "molgen"
    assert not any(path.is_symlink() for path in installed.rglob("*"))
    assert not (installed / "potentials").exists() and not (installed / "data").exists()
    assert (package / "py.typed").is_file()
    for path in (root / "molgen" / "weights").rglob("*.*"):
        if path.suffix in (".safetensors", ".json", ".md"):
            assert (package / path.relative_to(root / "molgen")).read_bytes() == path.read_bytes()

    # The editable install would answer otherwise: -P and an explicit path put the wheel first.
    environment = os.environ | {"PYTHONPATH": str(installed)}
    names = run(sys.executable, "-P", "-c", IMPORT_ALL, installed, cwd=tmp_path, env=environment).split()
    folders = (root / "molgen", *(path for path in (root / "molgen").iterdir() if path.is_dir()))
    sources = {path for folder in folders for path in folder.rglob("*.py")}
    expected = {".".join(("molgen", *path.relative_to(root / "molgen").with_suffix("").parts)) for path in sources}
    assert set(names) == expected

    script = installed / "bin" / "molgen"
    assert run(sys.executable, script, "--version", cwd=tmp_path, env=environment).startswith("molgen ")
