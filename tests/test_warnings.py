"""The warning of a fit that did not converge."""

import numpy as np
import pytest

from softreg._solvers import Result, warning_text


@pytest.mark.parametrize(
    ("gap", "estimate", "distance"),
    [
        (0.01, np.nan, "the objective is 0.5, proven to be within 0.01 of its minimum; tol"),
        (0.01, 0.002, "0.5, proven to be within 0.01 and estimated to be within 0.002 of its minimum; tol"),
        (np.inf, np.nan, "the objective is 0.5, and its distance from the minimum is not known; tol asks for 0.05."),
    ],
)
def test_it_says_how_near_the_optimum_is(gap, estimate, distance):
    result = Result(np.zeros((3, 2)), solver="newton", gap=gap, estimate=estimate, history=[{"loss": 0.5}])
    assert distance in warning_text(result, tol=0.1)
