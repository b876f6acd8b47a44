"""The warning of a fit that did not converge."""

import numpy as np
import pytest

from softreg._solvers import Result, warning_text


@pytest.mark.parametrize(
    ("gap", "estimate", "distance"),
    [
        (0.01, np.nan, "0.5, proven to be within 0.01 of its minimum, as a share of the null model's loss 1.099; tol"),
        (0.01, 0.002, "0.5, proven to be within 0.01 and estimated to be within 0.002 of its minimum, as a share of"),
        (np.inf, np.nan, "the objective is 0.5, and its distance from the minimum is not known; tol asks for 0.1."),
    ],
)
def test_it_says_how_near_the_optimum_is(gap, estimate, distance):
    result = Result(np.zeros((3, 2)), np.log(3), 0.1, "newton", gap=gap, estimate=estimate, history=[{"loss": 0.5}])
    assert distance in warning_text(result)
