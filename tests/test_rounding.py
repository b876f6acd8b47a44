"""The allowance for rounding: what is proven stays below the true minimum, also where all sums are float32."""

import numpy as np
import pytest
from scipy import sparse

from softreg import _core
from softreg._duality import lower_bound
from softreg._objective import Objective
from softreg._rounding import rounding_allowance


def solved(X, codes, K, l2):
    """W close to the optimum in float64, by plain Newton steps on the dense Hessian, min F and a bound from below."""
    objective = Objective(X.astype(np.float64), codes, None, None, K, l2=l2)
    W = objective.zeros()
    for _ in range(12):
        at = objective.linearize(W)
        H = np.array([at.hessian_product(E.reshape(W.shape)).ravel() for E in np.eye(W.size)])
        W = W - np.linalg.lstsq(H, at.gradient.ravel(), rcond=None)[0].reshape(W.shape)
    at = objective.linearize(W)
    return W, at.value, lower_bound(at)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("separable", [False, True])
def test_a_bound_of_float32_stays_below_the_minimum(form, scale, separable):
    """At the optimum and around it; features with a mean, so that sums are long and of one sign."""
    rng, n, K, l2 = np.random.default_rng(0), 40_000, 3, 1e-3 * max(scale, 1) ** 2
    X = (scale * rng.normal([0, 1, 5, -3], size=(n, 4))).astype(np.float32)
    noise = 0 if separable else scale
    codes = (X @ rng.normal(size=(4, K)) + noise * rng.gumbel(size=(n, K))).argmax(axis=1)
    best, minimum, below = solved(X, codes, K, l2)
    assert minimum - below <= 1e-11 * minimum  # the truth is known to far more digits than float32 has
    objective = Objective(form(X), codes, None, None, K, l2=l2)
    for far in (0, 1e-6, 1e-4, 1e-2, 1):
        W = objective.empty()
        W[...] = best * (1 + far * rng.normal(size=best.shape))
        at = objective.linearize(W)
        assert lower_bound(at) <= minimum
        if far == 0:  # of use: at most a thousandth of what there was to explain
            assert rounding_allowance(objective, W, at.value, at.gradient) <= 1e-3 * np.log(K)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_intercept_gradients_of_csr_are_summed_in_float64(dtype):
    """A million residuals of 0.1 and as many of -0.1: in float32 the running sum reaches 1e5, and rounds at 4e-3."""
    n, G = 2_000_000, np.full((2_000_000, 2), 0.1, dtype)
    G[n // 2 :] *= -1
    G[0] += 0.25
    empty = (np.empty(0, dtype), np.empty(0, np.int32), np.zeros(n + 1, np.int32))
    out = np.empty((2, 2), dtype)
    _core.csr_gradient(*empty, None, G, 1, out)
    assert np.array_equal(out[0], [0, 0])
    # two million additions in float64, of numbers below 1e5 in size
    assert np.allclose(out[1], 0.25, rtol=0, atol=2e6 * 1e5 * np.finfo(float).eps)
