"""What is proven stays below the true minimum, also where all sums are float32 and long."""

import numpy as np
import pytest
from scipy import sparse

from softreg import _core, _duality, _rounding
from softreg._duality import dual_bound, dual_point, lower_bound, penalty_derivative
from softreg._objective import Objective


def minimum(X, codes, weight, K, l2):
    """Return W close to the optimum in float64, by Newton steps on the dense Hessian, and min F from both sides."""
    objective = Objective(X.astype(np.float64), codes, None, weight, K, l2=l2)
    W = objective.zeros()
    for _ in range(12):
        at = objective.linearize(W)
        H = np.array([at.hessian_product(E.reshape(W.shape)).ravel() for E in np.eye(W.size)])
        W = W - np.linalg.lstsq(H, at.gradient.ravel(), rcond=None)[0].reshape(W.shape)
    at = objective.linearize(W)
    return W, at.value, lower_bound(at)


def check(objective, best, value, rng):
    """Hold bounds at the optimum `best` and around it against the minimum."""
    for far in (0, 1e-6, 1e-4, 1e-2, 1):
        W = objective.empty()
        W[...] = best * (1 + far * rng.normal(size=best.shape))
        at = objective.linearize(W)
        bound = lower_bound(at)
        assert bound <= value
        # each of the two bounds by itself
        entropy, G = dual_point(at)
        step, coef = penalty_derivative(objective, G), objective.coef(W).astype(np.float64)
        allowed = _rounding.of_entropy(objective) + _rounding.of_sums(objective, at.value, step)
        assert dual_bound(objective, entropy, G.copy()) - allowed <= value
        entropy = at.value - 0.5 * objective.l2 * np.sum(coef**2) - np.sum(G * W)
        allowed = _rounding.of_loss(objective, W, at.value) + _rounding.of_sums(objective, at.value, coef + step)
        assert dual_bound(objective, entropy, G.copy()) - allowed <= value
        if far == 0:  # of use: at most a thousandth of what there was to explain
            assert value - bound <= 1e-3 * np.log(objective.n_classes)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("separable", [False, True])
def test_a_bound_of_float32_stays_below_the_minimum(form, scale, separable):
    """At the optimum and around it; features with a mean, so that sums are long and of one sign."""
    rng, n, K, l2 = np.random.default_rng(0), 40_000, 3, 1e-3 * max(scale, 1) ** 2
    X = (scale * rng.normal([0, 1, 5, -3], size=(n, 4))).astype(np.float32)
    noise = 0 if separable else scale
    codes = (X @ rng.normal(size=(4, K)) + noise * rng.gumbel(size=(n, K))).argmax(axis=1)
    best, value, below = minimum(X, codes, None, K, l2)
    assert value - below <= 1e-11 * value  # the truth is known to far more digits than float32 has
    check(Objective(form(X), codes, None, None, K, l2=l2), best, value, rng)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_a_bound_of_float32_over_millions_of_rows(form):
    """Forty different rows, each of them many times and one after the other: in a running sum each is rounded alike.

    The minimum is that over the different rows, with weights.
    """
    rng, n, K, l2 = np.random.default_rng(0), 3_000_000, 3, 1e-3
    distinct = rng.normal([1, 5], size=(40, 2)).astype(np.float32)
    codes = rng.integers(K, size=40)
    counts = np.full(40, n // 40)
    best, value, below = minimum(distinct, codes, counts.astype(np.float64), K, l2)
    assert value - below <= 1e-11 * value  # as above
    X, codes = form(np.repeat(distinct, counts, axis=0)), np.repeat(codes, counts)
    check(Objective(X, codes, None, None, K, l2=l2), best, value, rng)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_long_sums_of_float32(form):
    """A million times 0.1: one after the other, with a running sum in float32, they make 100958."""
    n = 1_000_000
    X, G = form(np.full((n, 1), 0.1, np.float32)), np.ones((n, 1), np.float32)
    out = np.zeros((1, 1), np.float32)
    if sparse.issparse(X):
        _core.csr_gradient(X.data, X.indices, X.indptr, None, G, 1, out)
    else:
        _core.dense_gradient(X, None, G, out)
    # sums of at most 4096 numbers, then of 244: each addition is wrong by half an eps at most, of the sum so far
    assert abs(float(out[0, 0]) - n * float(np.float32(0.1))) <= 0.5 * (4096 + 244) * np.finfo(np.float32).eps * 1e5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_intercept_gradients_of_csr_are_summed_in_float64(dtype):
    """A million residuals of 0.1 and as many of -0.1: in float32 the running sum reaches 1e5, and rounds at 4e-3."""
    n, G = 2_000_000, np.full((2_000_000, 2), 0.1, dtype)
    G[n // 2 :] *= -1
    G[0] += 0.25
    empty = (np.empty(0, dtype), np.empty(0, np.int32), np.zeros(n + 1, np.int32))
    out = np.zeros((2, 2), dtype)
    _core.csr_gradient(*empty, None, G, 1, out)
    assert np.array_equal(out[0], [0, 0])
    # two million additions in float64, of numbers below 1e5 in size
    assert np.allclose(out[1], 0.25, rtol=0, atol=2e6 * 1e5 * np.finfo(float).eps)


def test_the_gradient_that_is_enlarged_by_its_rounding_is_a_copy():
    """The bound from the loss takes the gradient itself, of which a block may be kept between the two bounds."""
    objective = Objective(np.ones((4, 2)), np.array([0, 1, 2, 0]), None, None, 3, l2=0.1)
    G, W = np.ones((3, 2)), np.full((3, 2), 1e6)
    larger = _duality._enlarged(objective, G, W, slice(0, 2))
    assert (larger > G).all() and (G == 1).all()
