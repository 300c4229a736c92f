"""The reference ensembles of the peptide benchmark can be read, and made longer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from molgen.data.md import load_md
from molgen.data.peptide import build_peptide
from molgen.data.remd import STEP_PS, generate_md, thermal_velocities
from molgen.errors import InputError
from molgen.prose.evaluate import torsions
from molgen.units import KB, KJ_MOL

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import references  # noqa: E402

SEQUENCES = sorted(path.stem for path in references.FOLDER.glob("*.npz"))


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_committed_references_can_be_read(sequence: str) -> None:
    found = references.load(build_peptide(sequence), 310.0)
    assert found is not None and min(map(len, found.parts)) >= 100
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


def test_continued_frames_are_no_hotter() -> None:
    """Vibrations, at the step and mass of the dynamics, from exact positions: their energy stays kT / 2."""
    mm = pytest.importorskip("openmm")
    count, k, kt = 4000, 2.8e5, KB * 310 / KJ_MOL
    system, bonds = mm.System(), mm.HarmonicBondForce()
    for i in range(count):
        for mass in (8.0, 4.0):
            system.addParticle(mass)
        bonds.addBond(2 * i, 2 * i + 1, 0.1, k)
    system.addForce(bonds)
    rng = np.random.default_rng(0)
    x = np.zeros((2 * count, 3))
    x[1::2, 0] = 0.1 + np.sqrt(kt / k) * rng.normal(size=count)
    platform = mm.Platform.getPlatformByName("Reference")
    energies = {}
    for name in ("ours", "Maxwell's"):
        integrator = mm.LangevinMiddleIntegrator(310.0, 1.0, STEP_PS)
        integrator.setRandomNumberSeed(1)
        context = mm.Context(system, integrator, platform)
        context.setPositions(x)
        context.setVelocitiesToTemperature(310.0, 1)
        if name == "ours":
            thermal_velocities(context, 310.0, 1)
        found = []
        for _ in range(8):
            integrator.step(20)
            found.append(context.getState(getEnergy=True).getPotentialEnergy()._value / count / kt)
        energies[name] = np.mean(found)
    assert energies["ours"] == pytest.approx(0.5, abs=0.02)
    assert energies["Maxwell's"] > 0.56, "what it is for"
