"""Distances against closed forms and brute force; the figures of an ensemble on samples whose answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import jensenshannon

from molgen.data.peptide import build_peptide
from molgen.errors import InputError
from molgen.prose.evaluate import (
    METRICS,
    Conformations,
    Torsions,
    compare,
    halves,
    log_densities,
    nll_per_dof,
    torsions,
)
from molgen.prose.metrics import jensen_shannon, slow_coordinates, w2, w2_line, w2_torus
from molgen.units import KB
from molgen.variables import backbone_torsions, torsion, values

KT = KB * 310
PLANAR = (w2, w2_torus)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def shared_frames(shared: Path, sequence: str) -> np.ndarray:
    return np.load(shared / "data" / "peptides_md" / f"{sequence}.npz")["x"][0].astype(float) * 0.0005


# distances


def test_line_of_shifted_and_stretched_points(rng: np.random.Generator) -> None:
    """W2 of two normal distributions is sqrt((m1 - m2)^2 + (s1 - s2)^2); a shift of all points is exact."""
    a = rng.normal(0, 1, 500)
    assert w2_line(a, a + 3) == pytest.approx(3)
    quantiles = np.sort(rng.normal(1, 2, 500))
    exact = np.sqrt(np.mean((np.sort(a) - quantiles) ** 2))
    assert w2_line(a, rng.permutation(quantiles)) == pytest.approx(exact)
    many = rng.normal(0, 1, 50_000), rng.normal(2, 3, 50_000)
    assert w2_line(*many) == pytest.approx(8**0.5, rel=0.02)


def test_line_with_weights_is_the_line_with_points_repeated(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=40), rng.normal(size=70)
    times = rng.integers(0, 4, 40)
    assert w2_line(a, b, times) == pytest.approx(w2_line(np.repeat(a, times), b))
    assert w2_line(b, a, None, times) == pytest.approx(w2_line(b, np.repeat(a, times)))
    assert w2_line([0.0, 10.0], [0.0], [0.75, 0.25]) == pytest.approx(5)


def test_torus_of_point_masses_goes_the_short_way() -> None:
    assert w2_torus([[3.1]], [[-3.1]]) == pytest.approx(2 * np.pi - 6.2)
    assert w2([[3.1]], [[-3.1]]) == pytest.approx(6.2)
    assert w2_torus([[3.1, 0.0]], [[-3.1, 0.5]]) == pytest.approx(np.hypot(2 * np.pi - 6.2, 0.5))
    assert w2_torus([[0.0]], [[np.pi]]) == pytest.approx(np.pi), "nothing on the circle is further away"
    assert w2_torus([[0.5]], [[0.5 + 6 * np.pi]]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("distance", PLANAR)
def test_transport_is_the_best_assignment(distance: Callable[..., float], rng: np.random.Generator) -> None:
    """Equal weights: an assignment problem, solved by SciPy, and for four points by trying all."""
    a, b = rng.uniform(-np.pi, np.pi, (2, 60, 3))
    gap = a[:, None] - b[None]
    if distance is w2_torus:
        gap = (gap + np.pi) % (2 * np.pi) - np.pi
    cost = (gap**2).sum(-1)
    assert distance(a, b) == pytest.approx(np.sqrt(cost[linear_sum_assignment(cost)].mean()))
    four = min(sum(cost[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(4)))
    assert distance(a[:4], b[:4]) == pytest.approx(np.sqrt(four / 4))


@pytest.mark.parametrize("distance", PLANAR)
def test_transport_with_weights_is_transport_with_points_repeated(
    distance: Callable[..., float], rng: np.random.Generator
) -> None:
    a, b = rng.uniform(-np.pi, np.pi, (2, 30, 2))
    times = rng.integers(0, 4, 30)
    assert distance(a, b, times) == pytest.approx(distance(np.repeat(a, times, 0), b))
    assert distance(b, a, None, times) == pytest.approx(distance(b, np.repeat(a, times, 0)))


def test_plane_of_gaussians(rng: np.random.Generator) -> None:
    a = rng.normal(size=(800, 2))
    assert w2(a, a + [3, 4]) == pytest.approx(5)
    assert w2(a, rng.normal(size=(800, 2)) * [1, 3]) == pytest.approx(2, abs=0.2)


def test_jensen_shannon_of_known_histograms(rng: np.random.Generator) -> None:
    """Two cells against one; nothing in common; the same; SciPy (whose distance is the square root)."""
    cells = np.radians([[5.0, 5.0], [15.0, 5.0]])
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    mean = (p + q) / 2
    exact = 0.5 * np.sum(p * np.log(p / mean)) + 0.5 * np.log(1 / 0.75)
    assert jensen_shannon(cells, cells[:1]) == pytest.approx(exact)
    assert jensen_shannon(cells[:1], cells[1:]) == pytest.approx(np.log(2))
    assert jensen_shannon(cells, cells[::-1]) == pytest.approx(0, abs=1e-15)
    a, b = rng.vonmises(0, 1, (2, 3000, 2))
    weights = rng.uniform(0, 1, 3000)
    edges = [np.radians(np.arange(-180, 181, 10.0))] * 2
    counts = [np.histogramdd(x, edges, weights=w)[0].ravel() for x, w in ((a, weights), (b, None))]
    assert jensen_shannon(a, b, weights) == pytest.approx(jensenshannon(*counts) ** 2)


def test_jensen_shannon_knows_that_angles_close(rng: np.random.Generator) -> None:
    a = rng.uniform(-np.pi, np.pi, (500, 2))
    assert jensen_shannon(a, a + 2 * np.pi * rng.integers(-3, 3, a.shape)) == pytest.approx(0, abs=0.01)
    assert jensen_shannon([[-np.pi, 0.0]], [[np.pi, 0.0]]) == pytest.approx(0)


def test_jensen_shannon_floor_is_occupied_bins_over_four_n(rng: np.random.Generator) -> None:
    """Uniform over 12 x 12 bins: 144 / 4n for two samples of n."""
    floors = [jensen_shannon(*rng.uniform(-np.pi, np.pi, (2, 4000, 2)), bins=12) for _ in range(10)]
    assert np.mean(floors) == pytest.approx(144 / 16000, rel=0.1)


@pytest.mark.parametrize("distance", [w2_line, *PLANAR, jensen_shannon])
def test_points_of_zero_weight_may_be_anything(distance: Callable[..., float], rng: np.random.Generator) -> None:
    a = rng.uniform(-3, 3, (20, 2)) if distance is not w2_line else rng.normal(size=20)
    b = a[:7] + 0.1
    spoilt = np.concatenate([a, a[:2]])
    spoilt[20], spoilt[21] = np.nan, np.inf
    weights = np.concatenate([rng.uniform(1, 2, 20), [0, 0]])
    assert distance(spoilt, b, weights) == pytest.approx(distance(a, b, weights[:20]))
    with pytest.raises(InputError, match="not finite"):
        distance(spoilt, b)
    for wrong in (np.zeros(20), -np.ones(20), np.full(20, np.nan)):
        with pytest.raises(InputError, match="do not make a distribution"):
            distance(a, b, wrong)
    with pytest.raises(InputError, match="weights of shape"):
        distance(a, b, np.ones(3))


def test_too_many_points_are_refused_before_they_fill_the_memory() -> None:
    with pytest.raises(InputError, match="take a subsample"):
        w2(np.zeros((10_001, 2)), np.zeros((10_000, 2)))
    with pytest.raises(InputError, match="2 and in 3 dimensions"):
        w2(np.zeros((2, 2)), np.zeros((2, 3)))


def relaxing(times: tuple[float, ...], frames: int, rng: np.random.Generator) -> np.ndarray:
    """Independent stationary AR(1) processes (frames, len(times)) of variance 1, relaxing in `times` frames."""
    from scipy.signal import lfilter

    decay = np.exp(-1 / np.array(times))
    noise = rng.normal(size=(frames + 2000, len(times))) * np.sqrt(1 - decay**2)
    return np.stack([lfilter([1], [1, -d], x) for d, x in zip(decay, noise.T, strict=True)], 1)[2000:]


def test_tica_finds_the_slow_directions_of_a_linear_process(rng: np.random.Generator) -> None:
    """Mixed and stretched so that the fastest has most of the variance; two runs, one fit."""
    mix = rng.normal(size=(4, 4)) * [1, 1, 1, 20]
    runs = [relaxing((200, 40, 3, 0.5), 20_000, rng) for _ in range(2)]
    project = slow_coordinates([x @ mix.T + 7 for x in runs], lag=10)
    found, true = (np.concatenate(z) for z in ([project(x @ mix.T + 7) for x in runs], runs))
    assert found.shape == (40_000, 2)
    assert np.abs(np.corrcoef(found.T, true.T)[0, 2]) > 0.99 and np.abs(np.corrcoef(found.T, true.T)[1, 3]) > 0.99
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-8)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-8)


def test_tica_refuses_what_it_cannot_fit(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="lag of 10"):
        slow_coordinates([rng.normal(size=(10, 3))], lag=10)
    with pytest.raises(InputError, match="1 slow coordinates"):
        slow_coordinates([rng.normal(size=(100, 1))], lag=1)


# an ensemble against its reference


def angles(phi: np.ndarray, psi: np.ndarray) -> Torsions:
    """A tripeptide's torsions: phi of residues 1 and 2, psi of 0 and 1, one chi."""
    return Torsions(phi, psi, phi[:, :1] * 0.5, np.array([1, 2]), np.array([0, 1]))


def boltzmann(n: int, rng: np.random.Generator, bias: float = 0.0) -> Conformations:
    """Basins of 0 and 4 kT and of odds e to 1, 4 dof of harmonic energy; the second made exp(bias) likelier."""
    odds = np.exp(bias - 1)
    second = rng.random(n) < odds / (1 + odds)
    phi = np.stack([np.where(second, 1.0, -1.4), np.full(n, -2.0)], 1) + rng.normal(0, 0.2, (n, 2))
    psi = np.stack([np.where(second, -0.5, 2.6), np.full(n, 2.9)], 1) + rng.normal(0, 0.2, (n, 2))
    energies = (4 * second + 0.5 * rng.chisquare(4, n)) * KT
    weights = np.where(second, np.exp(-bias), 1.0)
    return Conformations(angles(phi, psi), energies, weights / weights.sum() if bias else None)


def test_reweighting_brings_a_biased_ensemble_to_its_floor(rng: np.random.Generator) -> None:
    reference = boltzmann(900, rng), boltzmann(900, rng)
    found = compare(boltzmann(2000, rng, bias=2.0), reference, 310.0, points=300)
    for metric in METRICS:
        raw, reweighted, floor = (found[metric][view] for view in ("raw", "reweighted", "floor"))
        assert 0 < floor, metric
        assert reweighted < 1.5 * floor, metric
        assert raw > 2 * reweighted, metric
    assert found["points"] == {"raw": 300, "reweighted": 2000, "reference": [300, 300]}


def test_a_sample_of_the_reference_scores_the_floor(rng: np.random.Generator) -> None:
    """Compared on as many points as the halves have; the median of eight ensembles."""
    ratios = []
    for _ in range(8):
        reference = boltzmann(200, rng), boltzmann(200, rng)
        found = compare(boltzmann(200, rng), reference, 310.0)
        ratios.append([found[metric]["raw"] / found[metric]["floor"] for metric in METRICS])
        assert all(found[metric]["reweighted"] is None for metric in METRICS)
    np.testing.assert_allclose(np.median(ratios, 0), 1.0, atol=0.45)


def test_energy_distance_is_in_kt_and_leaves_out_what_is_not_finite(rng: np.random.Generator) -> None:
    reference = boltzmann(200, rng), boltzmann(200, rng)
    t = reference[0].torsions
    shifted = Conformations(t, reference[0].energies + 3 * KT)
    exact = (3 + w2_line(shifted.energies, reference[1].energies) / KT) / 2
    assert compare(shifted, reference, 310.0)["e_w2"]["raw"] == pytest.approx(exact)
    shifted.energies[:3] = np.nan, np.inf, -np.inf
    assert compare(shifted, reference, 310.0)["e_w2"]["raw"] == pytest.approx(exact, abs=0.1)
    shifted.energies[:] = np.nan
    assert compare(shifted, reference, 310.0)["e_w2"]["raw"] is None


def test_dipeptides_have_no_residue_with_both_angles(rng: np.random.Generator) -> None:
    def two(n: int) -> Conformations:
        x = rng.normal(size=(n, 2))
        return Conformations(Torsions(x[:, :1], x[:, 1:], x[:, :0], np.array([1]), np.array([0])), rng.normal(size=n))

    found = compare(two(60), halves(two(101)), 310.0)
    assert found["js_residues"] == {"raw": None, "reweighted": None, "floor": None}
    assert found["js_bonds"]["floor"] > 0 and found["points"]["reference"] == [50, 51]


def test_one_residue_has_no_bond_between_two(rng: np.random.Generator) -> None:
    def one(n: int) -> Conformations:
        x = rng.normal(size=(n, 2))
        return Conformations(Torsions(x[:, :1], x[:, 1:], x[:, :0], np.array([0]), np.array([0])), rng.normal(size=n))

    found = compare(one(60), halves(one(101)), 310.0)
    assert found["js_bonds"] == {"raw": None, "reweighted": None, "floor": None}
    assert found["js_residues"]["floor"] > 0


def test_pairs_are_of_one_residue_or_of_one_bond() -> None:
    phi, psi = np.array([[10.0, 20.0]]), np.array([[1.0, 2.0]])  # phi of 1 and 2, psi of 0 and 1
    t = angles(phi, psi)
    assert [p.tolist() for p in t.pairs(0)] == [[[2.0, 10.0]]]
    assert [p.tolist() for p in t.pairs(1)] == [[[1.0, 10.0]], [[2.0, 20.0]]]


@pytest.mark.parametrize("sequence", ["GG", "PI", "GMH", "DLNK"])
def test_torsions_are_those_of_the_molecule(sequence: str, shared: Path) -> None:
    """Against formulas and atom choices written elsewhere in molgen."""
    peptide, x = build_peptide(sequence), shared_frames(shared, sequence)
    found = torsions(peptide, x)
    atoms = backbone_torsions(peptide.mdtraj_topology())
    for name, residues in (("phi", found.phi_residue), ("psi", found.psi_residue)):
        assert residues.tolist() == sorted(atoms[name])
        for k, residue in enumerate(residues):
            gap = getattr(found, name)[:, k] - values(torsion(*atoms[name][int(residue)]), x)
            np.testing.assert_allclose((gap + np.pi) % (2 * np.pi) - np.pi, 0, atol=1e-4)
    chis = {"GG": 0, "PI": 4, "GMH": 5, "DLNK": 10}  # mdtraj: PRO 2, ILE 2, MET 3, HIS 2, ASP 2, LEU 2, ASN 2, LYS 4
    assert found.chi.shape == (len(x), chis[sequence])
    every = np.concatenate([found.phi, found.psi, found.chi], axis=1)
    np.testing.assert_array_equal(found.features, np.concatenate([np.cos(every), np.sin(every)], axis=1))


def test_capped_residue_has_both_angles() -> None:
    peptide = build_peptide("A", "ace-nme")
    found = torsions(peptide, np.random.default_rng(0).normal(size=(3, len(peptide), 3)))
    assert found.phi_residue.tolist() == [1] == found.psi_residue.tolist()
    assert len(found.pairs(0)) == 1


# the likelihood of frames


class Radial:
    """A density that depends on position and temperature and is zero for x > 1."""

    def log_prob(self, layout: Any, x: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float64 and temperature.shape == x.shape[:1]
        value = -x.square().sum((1, 2)) / temperature
        return torch.where(x[:, 0, 0] > 1, -torch.inf, value)


def test_likelihood_of_frames_does_not_depend_on_batches(rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 1, (7, 4, 3))
    x[2, 0, 0] = 2.0
    layout: Any = SimpleNamespace(atoms=4)
    flow: Any = Radial()
    found = log_densities(flow, layout, x, 300.0, batch_size=3)
    exact = -(x**2).sum((1, 2)) / 300
    exact[2] = -np.inf
    np.testing.assert_allclose(found, exact)
    assert nll_per_dof(found, 4) == pytest.approx(-exact[np.isfinite(exact)].mean() / 6)
    assert nll_per_dof([-np.inf], 4) is None
    assert len(log_densities(flow, layout, x[:0], 300.0)) == 0
