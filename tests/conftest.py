"""Fixtures every test may use; one thread a test process, because the suite runs several."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy and torch read it
os.environ.setdefault("OMP_STACKSIZE", "64M")  # tblite's Fortran puts large arrays on the stack of its threads
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the development data sets (`MOLGEN_SHARED`, or `shared` beside the repository)."""
    folder = Path(os.environ.get("MOLGEN_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no development data in {folder}; set MOLGEN_SHARED")
    return folder


@pytest.fixture(scope="session")
def rdb7_path(shared: Path) -> Path:
    """RDB7 reactions (Spiekermann et al. 2022) in the format of shared/data/README.md."""
    path = shared / "data" / "rdb7_ts.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were when they were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        save(self, *args, **options)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures
