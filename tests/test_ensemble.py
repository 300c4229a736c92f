"""Ensembles: estimates against exact answers, error bars against repeated seeds, files there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.potentials.analytic import DoubleWell, GaussianMixture, Harmonic
from molgen.reweight import CVValues, Ensemble
from molgen.run import Run
from molgen.units import KB
from molgen.variables import torsion, values

T = 300.0
KT = KB * T


def gaussian_ensemble(n: int, seed: int, width: float = 1.4, **options) -> Ensemble:
    """A harmonic atom (1 A standard deviation, at x = 2) proposed by a Gaussian `width` times as wide."""
    potential = Harmonic([[2.0, 0.0, 0.0]], stiffness=KT)
    noise = np.random.default_rng(seed).standard_normal((n, 1, 3))
    positions = potential.centre + width * noise
    log_q = -0.5 * (noise**2).sum((1, 2)) - 3 * np.log(width * np.sqrt(2 * np.pi))
    energies = potential.energy(positions)
    return Ensemble(positions, -energies / KT - log_q, energies, T, np.array([1]), log_q=log_q, **options)


def well_ensemble(n: int, seed: int, well: DoubleWell) -> Ensemble:
    """A double well proposed by a broad Gaussian along x and the exact one across."""
    rng = np.random.default_rng(seed)
    spread = np.array([1.2, np.sqrt(KT / well.stiffness), np.sqrt(KT / well.stiffness)])
    noise = rng.standard_normal((n, 1, 3))
    log_q = -0.5 * (noise**2).sum((1, 2)) - np.log(spread * np.sqrt(2 * np.pi)).sum()
    energies = well.energy(noise * spread)
    return Ensemble(noise * spread, -energies / KT - log_q, energies, T, np.array([1]), log_q=log_q)


def x(positions: np.ndarray) -> np.ndarray:
    return positions[:, 0, 0]


def covered(deviations: list[float]) -> None:
    """Deviations in standard errors are those of a normal distribution: 68 % within 1, 95 % within 2."""
    inside = np.abs(deviations)
    assert np.mean(inside < 1) == pytest.approx(0.683, abs=0.07)
    assert np.mean(inside < 2) == pytest.approx(0.954, abs=0.035)


def test_expectation_and_log_z_are_exact():
    ensemble = gaussian_ensemble(20000, 0)
    mean = ensemble.expectation(x)
    assert mean.value == pytest.approx(2.0, abs=4 * mean.error)
    assert mean.error == pytest.approx(np.sqrt(np.mean((mean.value - x(ensemble.positions)) ** 2) / 20000), rel=0.5)
    assert mean.reliable and mean.khat < 0.7
    energy = ensemble.expectation(ensemble.energies)
    assert energy.value == pytest.approx(1.5 * KT, abs=4 * energy.error)
    table = ensemble.expectation(lambda p: p[:, 0] ** 2)
    assert table.value == pytest.approx([5.0, 1.0, 1.0], abs=4 * table.error.max())
    assert table.error.shape == table.khat.shape == (3,)
    log_z = Harmonic([[2.0, 0.0, 0.0]], stiffness=KT).log_partition(T)
    assert ensemble.diagnostics.log_z == pytest.approx(log_z, abs=4 * ensemble.diagnostics.log_z_error)


def test_errors_of_expectations_cover():
    estimates = [gaussian_ensemble(300, seed).expectation(x) for seed in range(400)]
    covered([(e.value - 2) / e.error for e in estimates])


def test_errors_of_free_energies_cover():
    well = DoubleWell(barrier=0.1, tilt=0.02)
    top, exact = well.stationary_points()[1], well.basin_free_energy_difference(T)
    estimates = [
        well_ensemble(400, seed, well).free_energy(lambda p: x(p) < top, lambda p: x(p) >= top) for seed in range(400)
    ]
    covered([(e.value - exact) / e.error for e in estimates])


def test_free_energy_is_exact_by_every_kind_of_region():
    well = DoubleWell(barrier=0.1, tilt=0.02)
    ensemble = well_ensemble(20000, 1, well)
    top = float(well.stationary_points()[1])
    ensemble = Ensemble(**{**vars_of(ensemble), "cvs": {"s": CVValues("s", x(ensemble.positions), "A")}})
    by_mask = ensemble.free_energy(x(ensemble.positions) < top, x(ensemble.positions) >= top)
    assert by_mask.value == pytest.approx(well.basin_free_energy_difference(T), abs=4 * by_mask.error)
    assert by_mask.error < 0.002 and by_mask.unit == "eV" and by_mask.reliable
    by_text = ensemble.free_energy(f"s < {top}", f"s in ({top}, 100)")
    by_box = ensemble.free_energy({"s": (-100.0, top)}, {"s": (top, 100.0)})
    assert by_mask == by_text == by_box
    back = ensemble.free_energy(f"s > {top}", f"s < {top}")
    assert (back.value, back.error) == pytest.approx((-by_mask.value, by_mask.error))
    bootstrap = ensemble.free_energy(f"s < {top}", f"s > {top}", replicas=300, seed=3)
    assert bootstrap.error == pytest.approx(by_mask.error, rel=0.2) and bootstrap.value == by_mask.value
    same = ensemble.free_energy("s < 0", "s < 0")
    assert same.value == 0 and np.isnan(same.error) and not same.reliable


def test_a_box_in_degrees_is_refused_and_so_are_empty_ranges():
    ensemble = gaussian_ensemble(200, 0)
    angle = CVValues("phi", np.linspace(-3, 3, 200), "rad", 2 * np.pi)
    ensemble = Ensemble(**{**vars_of(ensemble), "cvs": {"phi": angle, "s": CVValues("s", np.arange(200.0))}})
    for box, match in (
        ({"phi": (-180, 0)}, "more than a whole turn"),
        ({"s": (3.0, 2.0)}, "the lower limit first"),
        ({"phi": 3}, "region, phi: 3 given"),
    ):
        with pytest.raises(InputError, match=match):
            ensemble.region(box)
    with pytest.raises(InputError, match="more than a whole turn"):
        ensemble.fes("phi", bins=6, ranges=(-180, 180))
    assert ensemble.region("phi in (-180, 180)").all() and ensemble.region({"phi": (-np.pi, np.pi)}).all()
    edges = np.linspace(-3, 3, 7)
    assert (
        ensemble.fes("phi", bins=edges).counts.tolist() == ensemble.fes("phi", bins=6, ranges=(-3, 3)).counts.tolist()
    )


def test_nothing_of_an_ensemble_that_cannot_be_believed_is_reliable():
    ensemble = gaussian_ensemble(2000, 1)
    at_best = {verdict: replace(ensemble, at_best=verdict) for verdict in ("warn", "biased", "failed")}
    assert [e.verdict for e in at_best.values()] == list(at_best)
    for verdict, doubted in at_best.items():
        found = (
            doubted.expectation(x), doubted.free_energy(lambda p: x(p) < 2, lambda p: x(p) > 2),
            doubted.fes(CVValues("s", x(doubted.positions)), bins=4),
        )  # fmt: skip
        assert {estimate.reliable for estimate in found} == {verdict == "warn"}
    assert Ensemble.merge([ensemble, at_best["biased"]]).verdict == "biased"


def vars_of(ensemble: Ensemble) -> dict:
    """Arguments that make the same ensemble."""
    return {name: getattr(ensemble, name) for name in ensemble.__dataclass_fields__}


def test_mixture_of_three_atoms_weights():
    """Exact populations 1:3 of two far modes, sampled 1:1."""
    mixture = GaussianMixture(means=[np.zeros((3, 3)), np.full((3, 3), 2.0)], weights=[1, 3], temperature=T)
    even = GaussianMixture(means=mixture.means, weights=[1, 1], temperature=T)
    positions = even.sample(4000, np.random.default_rng(0))
    energies = mixture.energy(positions)
    ensemble = Ensemble(positions, (even.energy(positions) - energies) / KT, energies, T, np.ones(3))
    found = ensemble.free_energy(lambda p: p.mean((1, 2)) < 1, lambda p: p.mean((1, 2)) > 1)
    assert found.value == pytest.approx(-KT * np.log(3), abs=4 * found.error)


def test_empty_regions_and_no_weights():
    ensemble = gaussian_ensemble(500, 2)
    nowhere, somewhere = np.zeros(500, bool), np.ones(500, bool)
    assert ensemble.free_energy(somewhere, nowhere).value == np.inf
    assert ensemble.free_energy(nowhere, somewhere).value == -np.inf
    empty = ensemble.free_energy(nowhere, nowhere)
    assert np.isnan(empty.value) and empty.error == np.inf and not empty.reliable
    dead = Ensemble(np.zeros((50, 1, 3)), np.full(50, np.nan), np.zeros(50), T, np.array([1]))
    assert np.isnan(dead.expectation(x).value) and not dead.expectation(x).reliable
    assert dead.verdict == "failed" and not dead.weights.any()
    with pytest.raises(InputError, match="no sample has a weight"):
        dead.resample(3)


def test_one_sample():
    one = gaussian_ensemble(1, 0)
    assert one.expectation(x).value == x(one.positions)[0]
    assert np.isnan(one.expectation(x).error) and not one.expectation(x).reliable and one.verdict == "failed"


def test_a_few_samples_in_a_region_are_not_reliable():
    ensemble = gaussian_ensemble(2000, 3)
    order = np.argsort(x(ensemble.positions))
    rare = np.isin(np.arange(2000), order[-10:])
    found = ensemble.free_energy(~rare, rare)
    assert np.isfinite(found.value) and not found.reliable and found.khat == np.inf


def test_samples_of_zero_weight_may_be_anything():
    good = gaussian_ensemble(1000, 4)
    positions, log_weights = good.positions.copy(), good.log_weights.copy()
    positions[::7], log_weights[::7] = np.nan, -np.inf
    ensemble = Ensemble(positions, log_weights, good.energies, T, np.array([1]), validity={"non-finite energy": 143})
    assert np.isfinite(ensemble.expectation(x).value)
    assert ensemble.diagnostics.finite == 1000 - 143
    assert np.isfinite(ensemble.fes(CVValues("x", x(positions), "A"), bins=5).error).all()
    positions[1] = np.nan
    with pytest.raises(InputError, match=r"sample 1.*not finite where the weight is above zero"):
        Ensemble(positions, log_weights, good.energies, T, np.array([1])).expectation(x)


def test_groups_hold_the_error_of_copies():
    """Every sample four times over: without groups the error comes out halved."""
    once = gaussian_ensemble(1000, 5)
    copies = Ensemble(**{**vars_of(once[np.repeat(np.arange(1000), 4)]), "groups": None})
    assert once[np.repeat(np.arange(1000), 4)].groups is not None and once[::2].groups is None
    grouped = Ensemble(**{**vars_of(copies), "groups": np.repeat(np.arange(1000), 4)})
    single = Ensemble(**{**vars_of(once), "smoothed": False})  # raw weights: the tails of 1000 and 4000 differ
    copies, grouped = (Ensemble(**{**vars_of(e), "smoothed": False}) for e in (copies, grouped))
    assert copies.expectation(x).error == pytest.approx(single.expectation(x).error / 2, rel=1e-3)
    assert grouped.expectation(x).error == pytest.approx(single.expectation(x).error)
    left = {"a": lambda p: x(p) < 1, "b": lambda p: x(p) > 2}
    assert grouped.free_energy(left["a"], left["b"]).error == pytest.approx(
        single.free_energy(left["a"], left["b"]).error
    )
    wide = CVValues("x", x(copies.positions)), CVValues("x", x(single.positions))
    assert grouped.fes(wide[0], bins=8).error == pytest.approx(single.fes(wide[1], bins=8).error)


def test_resample():
    ensemble = gaussian_ensemble(2000, 6, width=2.0)
    drawn = ensemble.resample(5000, seed=1)
    assert len(drawn) == 5000 and not drawn.log_weights.any() and drawn.verdict == "reliable"
    assert np.array_equal(drawn.positions, ensemble.resample(5000, seed=1).positions)
    assert not np.array_equal(drawn.positions, ensemble.resample(5000, seed=2).positions)
    weighted, equal = ensemble.expectation(x), drawn.expectation(x)
    assert equal.value == pytest.approx(2.0, abs=4 * equal.error)
    expected = np.sqrt(weighted.error**2 + 1 / 5000)  # the draw adds the variance of its own 5000
    assert equal.error == pytest.approx(expected, rel=0.1)


def test_merge():
    parts = [gaussian_ensemble(1000, s, validity={"non-finite energy": s}) for s in (7, 8)]
    both = Ensemble.merge(parts)
    assert len(both) == 2000 and both.validity == {"non-finite energy": 15} and both.groups is None
    z = [np.exp(part.diagnostics.log_z) for part in parts]
    assert both.diagnostics.log_z == pytest.approx(np.log(np.mean(z)), abs=1e-12)
    drawn = parts[1].resample(10, seed=0)
    grouped = Ensemble.merge([parts[0].resample(20), drawn])
    assert grouped.groups is not None and drawn.groups is not None and grouped.log_q is not None
    assert len(np.unique(grouped.groups[20:])) == len(np.unique(drawn.groups)) and grouped.groups[:20].max() < 20
    with pytest.raises(InputError, match="(?s)ensemble 1: its log-weights are zeros.*on one scale"):
        Ensemble.merge([parts[0], drawn])
    dead = Ensemble(**{**vars_of(parts[1]), "log_weights": np.full(1000, -np.inf)})
    assert len(Ensemble.merge([parts[0], dead])) == 2000 == len(Ensemble.merge([dead, dead]))
    with pytest.raises(InputError, match="(?s)ensemble 1.*the same molecule and temperature"):
        Ensemble.merge([parts[0], Ensemble(**{**vars_of(parts[1]), "temperature": 310.0})])
    with pytest.raises(InputError, match="no ensemble"):
        Ensemble.merge([])


def test_without_top_is_biased_whatever_khat_says():
    ensemble = gaussian_ensemble(10000, 9, width=0.85)  # too narrow: a tail
    dropped = ensemble.without_top(0.002)
    assert dropped.diagnostics.finite == 9980 and dropped.diagnostics.ess > ensemble.diagnostics.ess
    assert ensemble.verdict == "reliable" and dropped.verdict == "biased"
    assert (dropped.weights[np.argsort(ensemble.log_weights)[-20:]] == 0).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"positions": np.zeros((3, 1, 2))}, "positions of shape"),
        ({"energies": np.zeros(2)}, "energies of shape"),
        ({"log_q": np.zeros(4)}, "log_q of shape"),
        ({"groups": np.zeros((3, 1))}, "groups of shape"),
        ({"cvs": {"s": CVValues("s", np.zeros(5))}}, "collective variable 's'"),
        ({"temperature": 0.0}, "temperature 0 K"),
        ({"temperature": np.nan}, "temperature nan K"),
        ({"log_weights": []}, "one number a sample"),
    ],
)
def test_bad_input(change, match):
    good = {"positions": np.zeros((3, 1, 3)), "log_weights": np.zeros(3), "energies": np.zeros(3)}
    with pytest.raises(InputError, match=match):
        Ensemble(**{**good, "temperature": T, "numbers": [1], **change})


def test_names_that_do_not_exist():
    ensemble = gaussian_ensemble(50, 0, cvs={"s": CVValues("s", np.zeros(50))})
    with pytest.raises(InputError, match="no kind of variable 'distnace'") as caught:
        ensemble.cv("distnace 0 1")
    assert "attached collective variables: s" in caught.value.__notes__[0]
    with pytest.raises(InputError, match="no topology"):
        _ = ensemble.trajectory
    with pytest.raises(InputError, match="a mask of shape"):
        ensemble.free_energy(np.zeros(50), np.zeros(50))


def butane(n: int, seed: int, **options) -> Ensemble:
    """Four carbons with uniform torsion and weights exp(cos(torsion)), with a topology."""
    import mdtraj

    topology = mdtraj.Topology()
    residue = topology.add_residue("BUT", topology.add_chain())
    atoms = [topology.add_atom(f"C{i}", mdtraj.element.carbon, residue) for i in range(4)]
    for pair in zip(atoms, atoms[1:], strict=False):
        topology.add_bond(*pair)
    angle = np.random.default_rng(seed).uniform(-np.pi, np.pi, n)
    positions = np.zeros((n, 4, 3))
    positions[:, 0], positions[:, 2] = [1.5, 0, 0], [0, 0, 1.5]
    positions[:, 3] = np.stack([1.5 * np.cos(angle), 1.5 * np.sin(angle), np.full(n, 1.5)], axis=1)
    return Ensemble(positions, np.cos(angle), -KT * np.cos(angle), T, np.full(4, 6), topology, **options)


def test_trajectory_is_what_functions_see():
    import mdtraj

    ensemble = butane(200, 0)
    assert ensemble.trajectory.xyz is not None
    assert ensemble.trajectory.xyz * 10 == pytest.approx(ensemble.positions, abs=1e-6)
    found = ensemble.expectation(lambda t: mdtraj.compute_distances(t, [[0, 3]])[:, 0] * 10)
    assert found.value == pytest.approx(ensemble.expectation("distance 0 3").value, abs=1e-5)
    assert ensemble.expectation("distance 0 3").unit == "A"
    both = ensemble.cv("d = distance 0 3 - 2*distance 1 2")
    assert (both.name, both.unit) == ("d", "A")
    assert both.values == pytest.approx(ensemble.cv("distance 0 3").values - 2 * ensemble.cv("distance 1 2").values)
    ours = values(torsion(0, 1, 2, 3), ensemble.positions)
    assert ours == pytest.approx(mdtraj.compute_dihedrals(ensemble.trajectory, [[0, 1, 2, 3]])[:, 0], abs=1e-5)


def test_mean_direction_of_a_torsion():
    """von Mises of concentration 1 around 0, turned to sit at the seam."""
    ensemble = butane(4000, 1)
    turned = np.angle(np.exp(1j * (values(torsion(0, 1, 2, 3), ensemble.positions) + np.pi - 0.05)))
    ensemble = Ensemble(**{**vars_of(ensemble), "cvs": {"t": CVValues("t", turned, "rad", 2 * np.pi)}})
    degrees = CVValues("d", np.degrees(turned), "", 360.0)
    ensemble = Ensemble(**{**vars_of(ensemble), "cvs": {**ensemble.cvs, "d": degrees}})
    mean = ensemble.expectation("t")
    assert np.angle(np.exp(1j * (mean.value - np.pi + 0.05))) == pytest.approx(0, abs=4 * mean.error)
    assert 0.005 < mean.error < 0.06
    assert ensemble.expectation("d").value == pytest.approx(np.degrees(mean.value))
    assert ensemble.expectation("d").error == pytest.approx(np.degrees(mean.error))


def test_errors_of_mean_directions_cover():
    estimates = [butane(300, seed).expectation("torsion 0 1 2 3") for seed in range(400)]
    covered([e.value / e.error for e in estimates])


def test_saved_and_loaded(tmp_path: Path):
    cvs = {"t": CVValues("t", np.arange(60.0), "rad", 2 * np.pi), "s": CVValues("s", np.ones(60))}
    first = butane(60, 3, cvs=cvs, log_q=np.arange(60.0), groups=np.arange(60) // 2, validity={"clash": 2})
    paths = first.save(tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["topology.pdb", "samples.xtc", "weights.npz"]
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths)
    second = Ensemble.load(tmp_path / "new" / "folder")
    assert np.abs(second.positions - first.positions).max() <= 0.00501
    for name in ("log_weights", "energies", "numbers", "log_q", "groups"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert (second.temperature, second.validity, second.at_best) == (T, {"clash": 2}, "reliable")
    assert list(second.cvs) == ["t", "s"]
    assert (second.cvs["t"].unit, second.cvs["t"].period, second.cvs["s"].period) == ("rad", 2 * np.pi, None)
    assert np.array_equal(second.cvs["t"].values, cvs["t"].values)
    assert second.topology is not None
    assert [a.name for a in second.topology.atoms] == ["C0", "C1", "C2", "C3"]
    assert second.expectation("torsion 0 1 2 3").value == pytest.approx(
        first.expectation("torsion 0 1 2 3").value, abs=0.01
    )
    first.save(tmp_path / "exact", positions=True)
    assert np.array_equal(Ensemble.load(tmp_path / "exact").positions, first.positions)
    once = (tmp_path / "exact" / "weights.npz").read_bytes()
    first.save(tmp_path / "exact", positions=True)
    assert (tmp_path / "exact" / "weights.npz").read_bytes() == once


def test_saved_without_a_topology_and_in_a_run(tmp_path: Path):
    first = gaussian_ensemble(30, 0)
    with Run(tmp_path / "run", "peptide", {}) as run:
        assert [p.name for p in first.save(run)] == ["weights.npz"]
    second = Ensemble.load(tmp_path / "run")
    assert np.array_equal(second.positions, first.positions) and second.topology is None
    assert "weights.npz" in (tmp_path / "run" / "manifest.json").read_text()


def test_samples_that_are_not_numbers_are_saved_too(tmp_path: Path):
    first = butane(10, 0)
    positions, log_weights = first.positions.copy(), first.log_weights.copy()
    positions[0], log_weights[0] = np.nan, np.nan
    Ensemble(**{**vars_of(first), "positions": positions, "log_weights": log_weights}).save(tmp_path)
    second = Ensemble.load(tmp_path)
    assert len(second) == 10 and second.log_weights[0] == -np.inf and not second.positions[0].any()


def test_damaged_files(tmp_path: Path):
    with pytest.raises(InputError, match=r"weights\.npz: no such file"):
        Ensemble.load(tmp_path)
    butane(10, 0).save(tmp_path)
    whole = (tmp_path / "weights.npz").read_bytes()
    (tmp_path / "weights.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"weights\.npz: not a readable npz file"):
        Ensemble.load(tmp_path)
    np.savez(tmp_path / "weights.npz", log_weights=np.zeros(3))
    with pytest.raises(InputError, match="missing keys: .*energies"):
        Ensemble.load(tmp_path)
    butane(9, 0).save(tmp_path / "other")
    (tmp_path / "weights.npz").write_bytes((tmp_path / "other" / "weights.npz").read_bytes())
    with pytest.raises(InputError, match="10 samples, and 9 weights"):
        Ensemble.load(tmp_path)
    (tmp_path / "samples.xtc").write_bytes(b"nothing of the sort")
    with pytest.raises(InputError, match="cannot be read"):
        Ensemble.load(tmp_path)
    (tmp_path / "samples.xtc").unlink()
    with pytest.raises(InputError, match=r"samples\.xtc: is missing"):
        Ensemble.load(tmp_path)


def test_its_representation_is_a_line():
    ensemble = gaussian_ensemble(100, 0)
    text = repr(ensemble)
    assert text.startswith("Ensemble(100 samples of ") and ensemble.verdict in text and "\n" not in text
