"""Metrics of guesses on geometries whose errors are known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from molgen.data.reactions import Reaction
from molgen.tsgen.condition import prepare
from molgen.tsgen.evaluate import achiral_ends, deviations, summary

# H2O2 turned by its torsion: chiral unless the torsion is 0 or 180 degrees.
OXYGENS = np.array([[0.0, 0.0, 0.0], [1.45, 0.0, 0.0]])


def peroxide(torsion: float) -> np.ndarray:
    a = np.radians(torsion)
    hydrogens = np.array([[-0.2, 0.95, 0.0], [1.65, 0.95 * np.cos(a), 0.95 * np.sin(a)]])
    return np.concatenate([OXYGENS, hydrogens])


def reaction(reactant: float, ts: float, product: float) -> Reaction:
    fragment = np.zeros(4, dtype=int)
    return Reaction(np.array([8, 8, 1, 1]), peroxide(reactant), peroxide(product), fragment, fragment, ts=peroxide(ts))


@pytest.mark.parametrize(
    ("ends", "achiral"), [((0, 180), True), ((0, 120), False), ((60, 180), False), ((60, 120), False)]
)
def test_ends_are_achiral_only_if_both_equal_their_mirror_images(ends: tuple[float, float], achiral: bool) -> None:
    assert achiral_ends(prepare([reaction(ends[0], 90, ends[1])])).tolist() == [achiral]


@pytest.mark.parametrize("ends", [(0, 180), (60, 120)])
def test_a_mirrored_guess_counts_and_says_whether_it_could_have_been_known(ends: tuple[float, float]) -> None:
    reactions = [reaction(ends[0], 90, ends[1])]
    batch = prepare(reactions)
    right, mirrored = (deviations(x, reactions, batch) for x in (batch.true_ts, -batch.true_ts))
    assert right["rmsd"][0] == pytest.approx(0, abs=1e-5) and right["wrong_handedness"][0] == 0
    assert mirrored["rmsd"][0] > 0.1 and mirrored["rmsd_reflect"][0] == pytest.approx(0, abs=1e-5)
    assert mirrored["wrong_handedness"][0] == 1 and mirrored["dmae"][0] == pytest.approx(0, abs=1e-5)
    assert mirrored["wrong_determined"][0] == (0 if ends == (0, 180) else 1)


def test_figures_of_a_stretched_guess() -> None:
    """Every distance 10 % too long: D-MAE is a tenth of the mean distance, whatever the padding."""
    reactions = [reaction(60, 90, 120), reaction(0, 30, 60)]
    batch = prepare(reactions)
    errors = deviations(1.1 * batch.true_ts, reactions, batch)
    for k, r in enumerate(reactions):
        assert r.ts is not None
        distances = torch.pdist(torch.from_numpy(r.ts))
        assert errors["dmae"][k] == pytest.approx(0.1 * float(distances.mean()), rel=1e-4)
        spread = np.sqrt(((r.ts - r.ts.mean(0)) ** 2).sum(1).mean())
        assert errors["rmsd"][k] == pytest.approx(0.1 * spread, rel=1e-4)
    figures = summary(errors)
    assert figures["n"] == 2 and figures["rmsd_mean"] == pytest.approx(errors["rmsd"].mean())
