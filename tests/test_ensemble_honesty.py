"""An `Ensemble` does not look better than its weights, and refuses what has no answer."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from molgen import Ensemble
from molgen.errors import InputError
from molgen.reweight.estimate import FEW, Estimate, doubt, effective_groups
from molgen.reweight.free_energy import CVValues
from molgen.reweight.importance import VERDICTS
from molgen.units import KB
from molgen.variables import custom


def ensemble(log_weights, **options) -> Ensemble:
    """Two atoms apart by 1 to 2 Angstrom."""
    n = len(log_weights)
    positions = np.zeros((n, 2, 3))
    positions[:, 1, 0] = 1 + np.random.default_rng(1).random(n)
    return Ensemble(positions, log_weights, np.zeros(n), 300.0, [1, 1], **options)


EVEN = ensemble(np.zeros(400))
BAD = ensemble(6 * np.random.default_rng(0).standard_normal(400))


def test_resampling_does_not_mend_the_weights() -> None:
    drawn = BAD.resample(1000)
    assert BAD.verdict == "failed" == drawn.verdict and not drawn.expectation("distance 0 1").reliable
    assert drawn.diagnostics.ess == pytest.approx(1), "its own weights are even"
    for part in (EVEN, BAD):
        assert VERDICTS.index(part.resample(100).verdict) >= VERDICTS.index(part.verdict)


def test_a_few_samples_drawn_by_weight_keep_the_verdict() -> None:
    for part in (EVEN, BAD):
        assert part.resample(10).verdict == part.verdict
    with pytest.raises(InputError, match=r"Ensemble.resample, count: 0 given(?s:.*)at least 1"):
        EVEN.resample(0)


def test_estimates_of_resampled_samples_are_no_more_reliable(tmp_path) -> None:
    """k-hat between what 150 draws allow and 0.7: a `warn`, whose estimates are not reliable before or after."""
    seeds = (np.random.default_rng(seed).pareto(1 / 0.6, 150) for seed in range(100))
    part = next(e for e in (ensemble(np.log(w)) for w in seeds) if e.verdict == "warn")
    drawn = part.resample(2000)
    drawn.save(tmp_path)
    for again in (drawn, Ensemble.load(tmp_path), drawn.resample(500), Ensemble.merge([EVEN, drawn])):
        found = (
            again.expectation("distance 0 1"),
            again.fes("distance 0 1", bins=2),
            again.free_energy("distance 0 1 < 1.5", "distance 0 1 > 1.5"),
            again.barrier("distance 0 1", (1.1, 1.9)).forward,
        )
        assert not any(estimate.reliable for estimate in found)
        assert all(estimate.khat >= part.diagnostics.khat for estimate in found)
    assert f"k-hat {part.diagnostics.khat:.2f}, fine up to {part.diagnostics.threshold:.2f}" in str(
        drawn.expectation("distance 0 1")
    )
    assert EVEN.resample(1000).expectation("distance 0 1").reliable
    assert Ensemble.load(tmp_path).resampled_by == drawn.resampled_by == part.diagnostics


def test_why_an_estimate_is_not_reliable() -> None:
    khats = {
        0.82: "k-hat 0.82, fine up to 0.7",
        0.41: "fewer than 25 independent samples",
        np.inf: "too few samples to",
    }
    for khat, reason in khats.items():
        assert re.search(f"not reliable: {reason}", str(Estimate(1.0, 0.1, khat, False)))
    rng = np.random.default_rng(0)
    uneven = ensemble(0.9 * rng.standard_exponential(200))  # a tail of shape 0.9
    found = uneven.expectation(np.arange(200.0))
    assert not found.reliable and found.why.startswith(f"k-hat {found.khat:.2f}, fine up to 0.5")
    refused = replace(EVEN, at_best="biased").expectation(np.arange(len(EVEN)))
    assert str(refused).endswith("(not reliable: the weights of the whole run are refused)")
    empty = EVEN.free_energy(np.zeros(len(EVEN), bool), np.ones(len(EVEN), bool))
    assert (empty.value, empty.why) == (-np.inf, "a region without samples")


@pytest.mark.parametrize("replicas", [0, 50])
def test_overlapping_regions_differ_by_what_lies_in_one_alone(replicas: int) -> None:
    """A share that no sample, or a handful, has met is as unknown as the mean of its indicator."""
    everything = np.ones(len(EVEN), bool)
    for beyond, reliable, why in ((0, False, "the same samples lie in both regions"), (24, False, FEW), (25, True, "")):
        found = EVEN.free_energy(everything, np.arange(len(EVEN)) >= beyond, replicas=replicas)
        assert (found.reliable, found.why) == (reliable, why) and np.isnan(found.error) == (beyond == 0), beyond


def test_averages_of_a_handful_of_effective_samples_are_not_reliable() -> None:
    """k-hat accepts weights of which 18 of 120 count, in one case of many."""
    refused = 0
    for seed in range(20):
        x = 2.8 * np.random.default_rng(seed).standard_normal((120, 1, 3))
        square = (x**2).sum((1, 2))
        drawn = Ensemble(x, square / 2 / 2.8**2 - square / 2, square, 300.0, [1])
        if drawn.verdict == "biased" and drawn.diagnostics.khat < 0.6:
            refused += 1
            assert not drawn.expectation(x[:, 0, 0]).reliable
    assert refused > 10


def test_angles_without_a_direction_have_no_reliable_mean() -> None:
    rng = np.random.default_rng(1)
    n, told = len(EVEN), []
    for _ in range(300):
        everywhere = EVEN.expectation(CVValues("a", rng.uniform(-np.pi, np.pi, n), "rad", 2 * np.pi))
        told.append(everywhere.reliable)
        assert everywhere.reliable or "no clear mean direction" in str(everywhere)
    assert np.mean(told) < 0.04  # 1 % by chance
    opposite = CVValues("a", np.where(rng.uniform(size=n) < 0.5, 0.0, np.pi), "rad", 2 * np.pi)
    assert not EVEN.expectation(opposite).reliable
    broad = CVValues("a", rng.normal(3.0, 1.2, n), "rad", 2 * np.pi)
    assert EVEN.expectation(broad).reliable


def test_a_handful_of_effective_samples_is_biased() -> None:
    """k-hat of few weights may be small; a single one of them may still carry all."""
    few = ensemble(0.5 * np.random.default_rng(0).standard_normal(28))
    assert few.diagnostics.khat <= few.diagnostics.threshold and 15 < few.diagnostics.ess * 28 < 25
    assert few.verdict == "biased" and ensemble(np.zeros(20)).verdict == "reliable"


def test_an_error_without_a_variance_is_a_lower_bound() -> None:
    """N(0, 0.65^2) proposals for N(0, 1): the tail of the weights has a shape of 1 - 0.65^2 = 0.58."""
    u = 0.65 * np.random.default_rng(2).standard_normal(4000)
    narrow = ensemble(u**2 / (2 * 0.65**2) - u**2 / 2)
    found = narrow.expectation(u**2)
    assert 0.5 < found.khat < 0.7 and found.reliable
    assert str(found).endswith(f"(error a lower bound: k-hat {found.khat:.2f})")
    assert "lower bound" in str(narrow.expectation(np.stack([u, u**2], 1))), "of an array too"
    assert [doubt(khat, True) for khat in (0.5, -np.inf, None)] == ["", "", ""] and "lower" not in str(
        EVEN.expectation(u[:400])
    )


def scattered(n: int, seed: int, **options) -> Ensemble:
    """Four atoms anywhere within some Angstrom, of uneven weights."""
    rng = np.random.default_rng(seed)
    x, energies = 2 * rng.standard_normal((n, 4, 3)), rng.standard_normal(n)
    return Ensemble(x, rng.standard_normal(n), energies, 300.0, [1] * 4, **options)


def test_one_draw_in_two_ensembles_is_one_group() -> None:
    """The first hundred of three hundred, as after a run with -n 100 and one with -n 300 under one seed: batches of
    another shape, and the rounding of an xtc, move them a little."""
    whole, other = scattered(300, 0), scattered(50, 1)
    again = replace(whole[:100], positions=whole.positions[:100] + 0.004, energies=whole.energies[:100] + 1e-4)
    both = Ensemble.merge([whole, other, again])
    assert both.groups is not None and len(np.unique(both.groups)) == 350
    assert np.array_equal(both.groups[:100], both.groups[350:])
    assert Ensemble.merge([whole, other]).groups is None
    twice, once = Ensemble.merge([whole, whole]), whole.expectation("distance 0 1")
    assert twice.expectation("distance 0 1").error == pytest.approx(once.error, rel=0.05)
    elsewhere = replace(again, energies=again.energies + 1.0)
    assert Ensemble.merge([whole, elsewhere]).groups is None, "of another energy"


def test_groups_that_have_a_draw_in_common_are_joined() -> None:
    parts = [scattered(60, 0, groups=np.arange(60) // 2), scattered(60, 1, groups=np.arange(60) // 3)]
    first, second = parts
    positions, energies = second.positions.copy(), second.energies.copy()
    positions[0], energies[0] = first.positions[5], first.energies[5]
    positions[9] = np.nan
    groups = Ensemble.merge([first, replace(second, positions=positions, energies=energies)]).groups
    assert groups is not None and len(np.unique(groups)) == 30 + 20 - 1
    assert len({*groups[4:6].tolist(), *groups[60:63].tolist()}) == 1 and groups[6] != groups[63]


def test_variables_that_are_functions() -> None:
    span = custom("span", lambda x: (x[:, 0] - x[:, 1]).norm(dim=-1), "A")
    written, made = (EVEN.expectation(what) for what in ("distance 0 1", span))
    assert (written.value, written.unit) == (made.value, made.unit)
    assert EVEN.fes(span, bins=5).names == ("span",) and EVEN.barrier(span, between=(1.1, 1.9)).place > 1
    with pytest.raises(InputError, match="collective variable: 3(?s:.*)or the variable"):
        EVEN.fes([3])


def test_a_function_that_fails_is_told_what_it_is_given() -> None:
    with pytest.raises(InputError, match="IndexError(?s:.*)positions [(]n, N, 3[)], Angstrom"):
        EVEN.expectation(lambda x: x[:, 2, 0])
    with pytest.raises(InputError, match="AttributeError"):
        EVEN.region(lambda x: x.xyz[:, 0, 0] > 0)


def test_the_file_of_weights_is_no_folder(tmp_path) -> None:
    EVEN.save(tmp_path)
    with pytest.raises(InputError, match=f"is a file(?s:.*)remedy: load {tmp_path}"):
        Ensemble.load(tmp_path / "weights.npz")
    other = tmp_path / "other"
    other.mkdir()
    (other / "m.smi").write_text("CC")
    with pytest.raises(InputError, match="is a file(?s:.*)one with a weights.npz"):
        Ensemble.load(other / "m.smi")
    with pytest.raises(InputError, match="is a file(?s:.*)remedy: name another one$"):
        EVEN.save(other / "m.smi")


@pytest.mark.parametrize("given", [None, 5])
def test_what_is_no_folder_is_named(given) -> None:
    with pytest.raises(InputError, match=f"Ensemble.load: {given} given"):
        Ensemble.load(given)


def test_an_error_that_is_unknown_is_not_reliable() -> None:
    one_chain = ensemble(np.zeros(400), groups=np.zeros(400, dtype=int))
    found = one_chain.expectation("distance 0 1")
    assert np.isnan(found.error) and not found.reliable


def test_an_array_says_that_it_is_not_reliable() -> None:
    assert "not reliable" in str(BAD.expectation(BAD.positions[:, 1]))
    assert "not reliable" not in str(EVEN.expectation(EVEN.positions[:, 1, :1]))


def known_in_part(weight_of_the_unknown: float) -> Ensemble:
    values = np.linspace(0, 1, 400)
    values[::2] = np.nan
    weights = np.where(np.isnan(values), weight_of_the_unknown, 0.0)
    return ensemble(weights, cvs={"s": CVValues("s", values)})


@pytest.mark.parametrize(
    "ask",
    [
        lambda e: e.expectation("s"),
        lambda e: e.free_energy("s < 0.5", "s > 0.5"),
        lambda e: e.free_energy({"s": (0, 0.5)}, {"s": (0.5, 1)}),
        lambda e: e.fes("s", bins=4),
        lambda e: e.barrier("s", (0.2, 0.8)),
    ],
)
def test_a_variable_must_be_known_where_there_is_a_weight(ask) -> None:
    ask(known_in_part(-np.inf))
    with pytest.raises(InputError, match=r"200 are not finite where the weight is above zero"):
        ask(known_in_part(0.0))


@pytest.mark.parametrize("text", ["a > 180", "a > 200", "a < 190", "a < -180"])
def test_a_limit_outside_the_turn_is_refused(text: str) -> None:
    turn = {"a": CVValues("a", np.linspace(-3, 3, 400), "rad", 2 * np.pi)}
    known = ensemble(np.zeros(400), cvs=turn)
    with pytest.raises(InputError, match=r"a limit between -180 and 180"):
        known.region(text)
    assert known.region("a < 180").all() and known.region("a > -180").all()


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda: EVEN.resample(2.5), "2.5 given.*a whole number"),
        (lambda: EVEN.expectation(["a"] * 400), "not numbers"),
        (lambda: EVEN.expectation(np.exp(1j * np.arange(400))), "complex numbers.*real and .imag"),
        (lambda: EVEN.expectation(lambda x: np.zeros((len(x), 0))), r"shape \(400, 0\)"),  # compute_chi1 of AG
        (lambda: EVEN.fes(5), "5.*a name"),
        (lambda: Ensemble(np.zeros((3, 1, 3)), np.zeros(3), np.zeros(3), 300.0, ["C"]), "numbers"),
        (lambda: Ensemble(np.zeros((3, 1, 3)), np.zeros(3), np.zeros(3), "300", [6]), "temperature '300'"),
    ],
)
def test_what_is_no_number_is_bad_input(ask, text: str) -> None:
    with pytest.raises(InputError, match=f"(?s){text}"):
        ask()


def test_descendants_of_a_handful_are_a_handful() -> None:
    """1000 samples of equal weight from 6 ancestors: neither a mean, nor a surface, nor a difference is reliable."""
    few, many = (ensemble(np.zeros(1000), groups=np.arange(1000) % count) for count in (6, 200))
    for part, reliable in ((few, False), (many, True), (ensemble(np.zeros(1000)), True)):
        found = (
            part.expectation("distance 0 1"),
            part.fes("distance 0 1", bins=4),
            part.free_energy("distance 0 1 < 1.5", "distance 0 1 > 1.5"),
        )
        assert [estimate.reliable for estimate in found] == [reliable] * 3
    assert "fewer than 25 independent samples" in str(few.expectation("distance 0 1"))


def test_a_region_that_few_ancestors_reached_is_not_reliable() -> None:
    """500 samples, of 5 ancestors; the rest have one each."""
    groups = np.where(np.arange(1000) < 500, np.arange(1000) % 5, np.arange(1000))
    part, here = ensemble(np.zeros(1000), groups=groups), np.arange(1000) < 500
    assert not part.free_energy(~here, here).reliable and not part.free_energy(here, ~here).reliable
    assert ensemble(np.zeros(1000)).free_energy(~here, here).reliable
    assert not part.expectation(here.astype(float)).reliable


def test_a_mean_that_one_ancestor_moves_is_not_reliable() -> None:
    """Of 500 ancestors alike, the share of one and of a hundred."""
    groups = np.arange(1000) % 500
    for count, reliable in ((1, False), (100, True)):
        assert ensemble(np.zeros(1000), groups=groups).expectation((groups < count) * 1.0).reliable == reliable
    assert ensemble(np.zeros(1000), groups=groups).expectation(np.ones(1000)).reliable, "a constant has no error"


def test_a_group_that_weighs_all_leaves_one() -> None:
    groups, weights = np.arange(1000) % 200, np.zeros(1000)
    assert effective_groups(np.exp(weights), groups) == pytest.approx(200)
    assert effective_groups(np.where(groups == 7, 1.0, 1e-9), groups) == pytest.approx(1)
    assert effective_groups(np.ones(30), None) == pytest.approx(30)
    assert not ensemble(np.where(groups == 7, 0.0, -30.0), groups=groups).expectation("distance 0 1").reliable


def test_estimates_of_a_few_equal_samples_say_so() -> None:
    """Two frames of a dynamics have equal weights, and tell little."""
    for count, reliable in ((2, False), (24, False), (400, True)):
        found = ensemble(np.zeros(count)).expectation(np.random.default_rng(0).standard_normal(count))
        assert found.reliable == reliable and ("fewer than 25" in str(found)) != reliable


def test_a_barrier_stops_at_the_next_basin() -> None:
    """Three wells of a torsion; the middle one of two is no minimum of the barrier beside it."""
    turn = np.linspace(-np.pi, np.pi, 20001)
    kt = KB * 300.0
    free = (
        4.0 * (1 + np.cos(3 * turn)) / 2 + 3.0 * (1 + np.cos(turn)) / 2
    )  # kT; wells at 180 and, 2.25 up, near 63 degrees
    cumulated = np.cumsum(np.exp(-0.3 * free))
    x = np.interp(np.random.default_rng(0).random(6000), cumulated / cumulated[-1], turn)
    angle = CVValues("t", x, "rad", 2 * np.pi)
    drawn = replace(ensemble(-0.7 * np.interp(x, turn, free)), cvs={"t": angle})
    gauche = (turn > 0.5) & (turn < 2)
    well, bottom = float(turn[gauche][free[gauche].argmin()]), free[gauche].min()
    barrier = drawn.barrier("t", (-well, well))
    exact = kt * (7.0 - bottom)
    for side in (barrier.forward, barrier.reverse):
        assert side.reliable and abs(side.value - exact) < 4 * side.error + 0.1 * kt
    third = drawn.barrier("t", (well, np.pi))  # from gauche to trans
    top = free[(turn > well)].max()
    assert abs(third.forward.value - kt * (top - bottom)) < 4 * third.forward.error + 0.1 * kt
    assert abs(third.reverse.value - kt * top) < 4 * third.reverse.error + 0.1 * kt
