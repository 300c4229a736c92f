"""Custom variables that fail, or are none, are named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from molgen.errors import InputError
from molgen.variables import check_start, custom, values_and_gradients


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x[:, 7, 0], r"collective variable 'mine': its function fails \(IndexError"),
        (lambda x: np.linalg.norm(x.numpy()[:, 0], axis=1), "its function fails"),
        (lambda x: 1.0, "its function returns float"),
    ],
)
def test_a_function_that_fails_is_named(function, match):
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    mine = custom("mine", function)
    with pytest.raises(InputError, match=match):
        values_and_gradients([mine], x)
    with pytest.raises(InputError, match=r"collective variable 'mine': its function"):
        check_start([mine], x[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"period": 0.0}, "period = 0.0"), ({"period": -1.0}, "period = -1.0"), ({"period": math.nan}, "period = nan"),
        ({"period": "2 pi"}, "period = '2 pi'"), ({"function": "x"}, "function = 'x'"), ({"name": 5}, "name = 5"),
        ({"unit": None}, "unit = None"),
    ],
)  # fmt: skip
def test_a_variable_of_another_kind_is_refused(change: dict, match: str):
    with pytest.raises(InputError, match=match):
        custom(**{"name": "mine", "function": lambda x: x[:, 0, 0], **change})
