"""The reference ensembles of the peptide benchmark can be read, and made longer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from molgen.data.md import load_md
from molgen.data.peptide import build_peptide
from molgen.data.remd import generate_md
from molgen.errors import InputError
from molgen.prose.evaluate import torsions

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import references  # noqa: E402

SEQUENCES = sorted(path.stem for path in references.FOLDER.glob("*.npz"))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_committed_references_can_be_read(sequence: str) -> None:
    found = references.load(build_peptide(sequence), 310.0)
    assert found is not None and min(map(len, found.parts)) >= 300
    for part in found.parts:
        assert np.abs(part.torsions.features).max() <= 1 and np.isfinite(part.energies).all()
        assert len(part.torsions.phi) == len(part)
    assert references.load(build_peptide(sequence), 600.0) is None


def test_frames_are_continued_and_joined(tmp_path: Path) -> None:
    generate_md("GG", tmp_path / "GG_0.npz", 4, temperatures=(310.0, 450.0), hot=0, settle=0)
    md = load_md(tmp_path / "GG_0.npz")
    longer = references.continue_frames(md, 310.0, 2, seed=0)
    assert longer.positions.shape == (1, 12, len(md.names), 3)
    np.testing.assert_array_equal(longer.positions[0, ::3], md.positions[0])
    assert not np.allclose(longer.positions[0, 1::3], md.positions[0], atol=0.05)
    energies = md.peptide.potential("Reference").energy(longer.positions[0].astype(float))
    np.testing.assert_allclose(energies, longer.energies[0], atol=2e-3)

    first, second = (references.save([longer] * 2, 310.0, seeds, tmp_path, (2, 2)) for seeds in ((0, 1), (2, 3)))
    assert first == second, "of one peptide"
    folder = tmp_path / "folder"
    folder.mkdir()
    joined = references.join(second, folder)
    with pytest.raises(InputError, match=r"seeds \[2, 3\] are in already"):
        references.join(second, folder)
    references.join(references.save([longer] * 2, 310.0, (4, 5), tmp_path, (2, 2)), folder)
    with np.load(joined) as arrays:
        assert arrays["seeds_1"].tolist() == [3, 5] and arrays["continued_0"].tolist() == [2, 2]
        phi = torsions(md.peptide, longer.positions[0]).phi
        np.testing.assert_allclose(arrays["angles_0"][12:, :1] * references.UNIT, phi, atol=1e-4)
