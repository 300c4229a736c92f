"""Regions as people write them."""

from __future__ import annotations

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.reweight import CVValues
from molgen.reweight.regions import boxed_region, written_region

DEGREES = np.array([-179.0, -100.0, -10.0, 0.0, 60.0, 150.0, 180.0])
CVS = {
    "phi 1": CVValues("phi 1", np.radians(DEGREES), "rad", 2 * np.pi),
    "turned": CVValues("turned", np.radians(DEGREES) + 4 * np.pi, "rad", 2 * np.pi),
    "d and e": CVValues("d and e", np.arange(7.0), "A"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phi 1 in (-180, 0)", [1, 1, 1, 0, 0, 0, 1]),  # 180 is -180
        ("phi 1 in (-180.0, 180)", [1] * 7),
        ("phi 1 in [0, 360)", [1] * 7),
        ("phi 1 in (102, 462)", [1] * 7),  # the width is rounded to less than a turn
        ("phi 1 in (150, -150)", [1, 0, 0, 0, 0, 1, 1]),
        ("turned in (150, -150)", [1, 0, 0, 0, 0, 1, 1]),
        ("phi 1 in (140, 190)", [1, 0, 0, 0, 0, 1, 1]),
        ("phi 1 > 0", [0, 0, 0, 0, 1, 1, 0]),
        ("turned < -50", [1, 1, 0, 0, 0, 0, 1]),
        ("d and e < 3.5", [1, 1, 1, 1, 0, 0, 0]),
        ("d and e in (2, inf)", [0, 0, 1, 1, 1, 1, 1]),
        ("d and e in (2, 5) and phi 1 in (-50, 50)", [0, 0, 1, 1, 0, 0, 0]),
        ("d and e>2 and d and e<4", [0, 0, 0, 1, 0, 0, 0]),
        ("d and e in (1e0, .5e1)", [0, 1, 1, 1, 1, 0, 0]),
    ],
)
def test_written_regions(text, expected):
    assert written_region(text, CVS.__getitem__).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize(
    "text", ["", "phi 1", "phi 1 in (1)", "phi 1 in (1, 2) and", "phi 1 in (1, 2) or d < 3", "< 3"]
)
def test_regions_that_cannot_be_read(text):
    with pytest.raises(InputError, match="cannot read"):
        written_region(text, CVS.__getitem__)


def test_a_name_that_is_none_tells_how_regions_are_written():
    def unknown(name: str):
        raise InputError(f"no kind of variable {name!r}")

    with pytest.raises(InputError, match="no kind of variable '0 < s'") as caught:
        written_region("0 < s < 90", unknown)
    assert any('a range is written "phi 1 in (0, 90)"' in note for note in caught.value.__notes__)


@pytest.mark.parametrize("limits", ["(7, 7)", "(180, -180)", "(360, 0)"])
def test_a_range_of_nothing_is_refused(limits):
    with pytest.raises(InputError, match="an empty range"):
        written_region(f"phi 1 in {limits}", CVS.__getitem__)


def test_boxed_regions_are_in_the_variables_own_units():
    assert boxed_region({"phi 1": (-np.pi, 0.0)}, CVS.__getitem__).tolist() == [True, True, True, *[False] * 3, True]
    both = boxed_region({"phi 1": (-np.pi, 0.0), "d and e": (1, 3)}, CVS.__getitem__)
    assert both.tolist() == [False, True, True, *[False] * 4]
    for limits in ((None, 5), ("a", "b"), (np.nan, 1.0), (1, 2, 3)):
        with pytest.raises(InputError, match="two numbers"):
            boxed_region({"d and e": limits}, CVS.__getitem__)
    with pytest.raises(InputError, match="without a range"):
        boxed_region({}, CVS.__getitem__)
