"""Units in which people read values."""

from __future__ import annotations

import math

import pytest

from molgen.units import COULOMB, shown, shown_value


def test_angles_are_read_in_degrees() -> None:
    assert shown("rad") == (180 / math.pi, "degrees") and shown("A") == (1.0, "A")
    assert [shown_value(math.pi / 2, "rad"), shown_value(1.234, "A"), shown_value(0.5, "")] == [
        "90.0 degrees",
        "1.23 A",
        "0.50",
    ]


def test_coulombs_constant() -> None:
    """e^2 / (4 pi epsilon_0), CODATA 2018."""
    assert pytest.approx(14.39964548, rel=1e-7) == COULOMB
