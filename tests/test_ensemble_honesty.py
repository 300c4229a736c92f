"""An `Ensemble` does not look better than its weights, and refuses what has no answer."""

from __future__ import annotations

import re

import numpy as np
import pytest

from molgen import Ensemble
from molgen.errors import InputError
from molgen.reweight.estimate import Estimate
from molgen.reweight.free_energy import CollectiveVariable
from molgen.reweight.importance import VERDICTS
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


def test_why_an_estimate_is_not_reliable() -> None:
    khats = {0.82: "k-hat 0.82, fine up to 0.7", 0.41: "too few samples, or .*k-hat 0.41", np.inf: "too few samples to"}
    for khat, reason in khats.items():
        assert re.search(f"not reliable: {reason}", str(Estimate(1.0, 0.1, khat, False)))


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
    return ensemble(weights, cvs={"s": CollectiveVariable("s", values)})


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
    turn = {"a": CollectiveVariable("a", np.linspace(-3, 3, 400), "rad", 2 * np.pi)}
    known = ensemble(np.zeros(400), cvs=turn)
    with pytest.raises(InputError, match=r"a limit between -180 and 180"):
        known.region(text)
    assert known.region("a < 180").all() and known.region("a > -180").all()


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda: EVEN.resample(2.5), "2.5 given.*a whole number"),
        (lambda: EVEN.expectation(["a"] * 400), "not numbers"),
        (lambda: EVEN.fes(5), "5.*a name"),
        (lambda: Ensemble(np.zeros((3, 1, 3)), np.zeros(3), np.zeros(3), 300.0, ["C"]), "numbers"),
        (lambda: Ensemble(np.zeros((3, 1, 3)), np.zeros(3), np.zeros(3), "300", [6]), "temperature '300'"),
    ],
)
def test_what_is_no_number_is_bad_input(ask, text: str) -> None:
    with pytest.raises(InputError, match=f"(?s){text}"):
        ask()
