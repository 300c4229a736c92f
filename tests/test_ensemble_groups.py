"""How many samples a verdict, or an average, rests on: a draw counts once, and those that are all alike say little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from molgen import Ensemble
from molgen.reweight.estimate import CONSTANT, FEW
from molgen.reweight.importance import VERDICTS
from molgen.variables import custom


def drawn(n: int, seed: int, width: float = 2.8) -> Ensemble:
    """An atom of a standard normal distribution, proposed by one `width` times as wide."""
    x = width * np.random.default_rng(seed).standard_normal((n, 1, 3))
    log_weights = -0.5 * (x**2).sum((1, 2)) + 0.5 * ((x / width) ** 2).sum((1, 2))
    return Ensemble(x, log_weights, (x**2).sum((1, 2)), 300.0, [1])


def descended(ancestors: int, each: int, seed: int = 0) -> Ensemble:
    """Samples of equal weight, `each` of an ancestor near it."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((ancestors, 1, 3)), each, axis=0)
    n = len(x)
    x += 0.1 * rng.standard_normal(x.shape)
    groups = np.repeat(np.arange(ancestors), each)
    return Ensemble(x, np.full(n, 3.0), (x**2).sum((1, 2)), 300.0, [1], groups=groups)


def no_better(one: Ensemble, other: Ensemble) -> bool:
    return VERDICTS.index(one.verdict) >= VERDICTS.index(other.verdict)


def test_draws_that_are_there_twice_mend_nothing() -> None:
    refused = 0
    for seed in range(100):
        once = drawn(120, seed)
        again = (
            once[np.tile(np.arange(120), 4)],
            Ensemble.merge([once[:100], once]),
            Ensemble.merge([once, once, once]),
            once.resample(500),
        )
        assert all(no_better(part, once) for part in again)
        refused += once.verdict in ("biased", "failed")
    assert refused > 30


def test_draws_that_are_there_twice_spoil_nothing() -> None:
    """Of enough samples; and a part of a refused one beside many more is no harm."""
    for seed in range(20):
        once = drawn(2000, seed)
        assert once.verdict == "reliable"
        again = (once[np.tile(np.arange(2000), 2)], Ensemble.merge([once[:30], once]), once.resample(1000))
        assert [part.verdict for part in again] == ["reliable"] * 3
    assert Ensemble.merge([drawn(120, 0), once]).verdict == "reliable"


@pytest.mark.parametrize(("ancestors", "verdict"), [(24, "biased"), (26, "warn"), (99, "warn"), (101, "reliable")])
def test_the_verdict_by_ancestors(ancestors: int, verdict: str, tmp_path: Path) -> None:
    found = descended(ancestors, 20)
    assert found.verdict == verdict and f"{ancestors} effective groups" in repr(found)
    assert verdict in ("warn", "reliable") or not found.expectation(found.energies).reliable
    found.save(tmp_path)
    assert Ensemble.load(tmp_path).verdict == verdict
    assert replace(found, groups=None).verdict == "reliable"


def test_a_part_is_judged_by_its_own_ancestors(tmp_path: Path) -> None:
    whole = descended(150, 10)
    whole.save(tmp_path)
    for ensemble in (whole, Ensemble.load(tmp_path)):
        parts = (ensemble, ensemble[:200], ensemble[:600])
        assert [part.verdict for part in parts] == ["reliable", "biased", "warn"]
        assert ensemble[::5].verdict == "reliable"
        assert ensemble[:200].resample(1000).verdict == "biased"
    parts = [whole[:200], descended(150, 10, seed=1)]
    assert Ensemble.merge(parts).verdict == "reliable", "judged together"


def test_what_was_resampled_is_as_few_as_were_asked_for() -> None:
    blocks = descended(20, 50)
    frames = replace(blocks, log_weights=np.zeros(len(blocks)))
    even = replace(frames, positions=frames.positions + 5.0, groups=None)
    assert frames.verdict == "biased" and even.resample(10).verdict == even.verdict == "reliable"
    assert Ensemble.merge([frames, even.resample(500)]).verdict == "biased", "not forgotten"


def test_the_error_of_log_z_knows_of_copies() -> None:
    once = drawn(500, 0)
    again = once[np.tile(np.arange(500), 4)]
    assert again.diagnostics.log_z_error == pytest.approx(once.diagnostics.log_z_error)
    assert again.diagnostics.log_z == pytest.approx(once.diagnostics.log_z)


def test_the_error_of_log_z_knows_of_ancestors_without_descendants(tmp_path: Path) -> None:
    whole = replace(descended(150, 10), ancestors=1500)  # nine of ten left nothing
    whole.save(tmp_path)
    error = np.sqrt(1500 / 1499 * (1 / 150 - 1 / 1500))
    other = replace(descended(50, 20, seed=1), ancestors=1000)
    both = Ensemble.merge([whole, other])
    for ensemble in (whole, Ensemble.load(tmp_path), whole[::5]):
        assert ensemble.diagnostics.log_z_error == pytest.approx(error)
    assert both.ancestors == 2500 and both.diagnostics.log_z_error < other.diagnostics.log_z_error
    assert Ensemble.merge([whole, drawn(120, 0)]).ancestors == 1620
    assert whole.resample(500).ancestors is None


def test_a_share_that_a_few_samples_have_is_not_reliable() -> None:
    even = Ensemble(np.zeros((1000, 1, 3)), np.zeros(1000), np.zeros(1000), 300.0, [1])
    for ensemble in (even, drawn(1000, 0, width=1.4)):
        for count in (1, 3, 24, 25, 500, 976, 999):
            reliable = 25 <= count <= 975
            share = np.arange(1000) < count
            found = [ensemble.expectation(f) for f in (share, 2.5 + share, 1e-9 * np.arange(1000) / 1000 + share)]
            if ensemble is even:
                assert [f.reliable for f in found[:2]] == [reliable] * 2, count
            assert found[0].reliable <= reliable and (reliable or found[0].why == FEW)
    in_groups = replace(even, groups=np.arange(1000) // 5)
    for groups, reliable in ((20, False), (100, True)):
        assert in_groups.expectation(np.arange(1000) < 5 * groups).reliable == reliable


def test_what_never_varies_has_no_error() -> None:
    even = Ensemble(np.ones((1000, 1, 3)), np.zeros(1000), np.zeros(1000), 300.0, [1])
    nothing = custom("nothing", lambda x: 0 * x[:, 0, 0], "A")
    for what in (
        np.zeros(1000), np.ones(1000, bool), np.zeros(1000, bool), nothing, lambda x: x[:, 0, 0],
        lambda x: x[:, 0, 0] > 3, lambda x: x[:, 0, 0] + 1e-15 * np.arange(1000),
    ):  # fmt: skip
        found = even.expectation(what)
        assert np.isnan(found.error) and not found.reliable and found.why == CONSTANT in str(found)
    for constant in (np.ones(1000), np.full(1000, -2.5), np.full((1000, 2), 3.0)):
        found = even.expectation(constant)
        assert found.reliable and np.max(found.error) < 1e-12, "meant to be one"
    table = even.expectation(lambda x: np.stack([np.arange(1000.0), np.zeros(1000)], 1))
    assert np.isfinite(table.error).tolist() == [True, False] and table.why == CONSTANT


def test_shares_that_are_called_reliable_have_honest_errors() -> None:
    """P(x > 2.326) = 1 %: reliable where 25 samples see it; the errors cover."""
    told, off = {300: [], 4000: []}, []
    for n, seed in ((n, seed) for n in told for seed in range(150)):
        ensemble = drawn(n, seed, width=1.4)
        found = ensemble.expectation(ensemble.positions[:, 0, 0] > 2.32635)
        told[n].append(found.reliable)
        off += [abs(found.value - 0.01) / found.error] if found.reliable else []
    assert np.mean(told[300]) < 0.02 and np.mean(told[4000]) > 0.98
    assert np.mean(np.array(off) < 1) == pytest.approx(0.683, abs=0.1) and np.mean(np.array(off) < 2) > 0.9


def test_averages_of_what_varies_are_not_refused() -> None:
    found = [drawn(300, seed, width=1.4).expectation(lambda x: x[:, 0]) for seed in range(100)]
    assert np.mean([f.reliable for f in found]) > 0.95
