"""Dual coordinate ascent: weights that belong to distributions, bounds that hold, and when Newton's method goes on."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.special import entr
from shared import QuietMonitor
from sklearn.exceptions import ConvergenceWarning

from softreg import SoftmaxRegression
from softreg._duality import dual_bound
from softreg._objective import Objective
from softreg._solvers import Options, Start
from softreg._solvers import dual_ascent as module
from softreg._solvers.dual_ascent import _Dual, dual_ascent
from softreg._solvers.newton import newton

KINDS = {
    "plain": {},
    "float32": {"dtype": np.float32},
    "weighted": {"weighted": True},
    "part": {"weighted": True, "part": True},
    "no intercept": {"fit_intercept": False},
    "smoothed": {"label_smoothing": 0.1},
    "soft": {"soft": True, "part": True},
    "binary": {"K": 2},
    "many classes": {"K": 12},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def problem(n=300, d=400, K=4, dtype=np.float64, l2=3e-3, weighted=False, soft=False, part=False, **options):
    """Sparse rows of length 1, most features rare, as in text; classes of very different size."""
    rng = np.random.default_rng(0)
    X = sparse.random_array((n, d), density=0.05, format="csr", rng=rng)
    X.data *= (1 / np.arange(1, d + 1))[X.indices]
    X = sparse.csr_array(X / np.maximum(sparse.linalg.norm(X, axis=1), 1e-3)[:, None]).astype(dtype)
    codes = (X @ rng.normal(size=(d, K)) * 3 - np.arange(K) + rng.gumbel(size=(n, K))).argmax(axis=1)
    codes[:K] = np.arange(K)
    targets = rng.dirichlet(np.ones(K), size=n).astype(dtype) if soft else None
    s = rng.integers(4, size=n).astype(dtype) if weighted else None
    objective = Objective(X, None if soft else codes, targets, s, K, l2=l2, **options)
    return objective.select(np.arange(0, n, 2)) if part else objective


def options(max_iter=100, tol=1e-6, may_give_up=False):
    return Options(max_iter=max_iter, tol=tol, random_state=np.random.RandomState(0), may_give_up=may_give_up)


def ascent(objective, W=None, **given):
    W = objective.zeros() if W is None else W
    return dual_ascent(objective, Start(W), options(**given), QuietMonitor())


def optimum(objective):
    return newton(objective, Start(objective.zeros()), options(tol=1e-12), QuietMonitor()).W


def residual(dual):
    """G(Q), in float64."""
    objective = dual.objective
    return objective.moments(dual.Q - objective.distributions()).astype(np.float64)


@kinds
def test_weights_belong_to_the_distributions(kind):
    objective = problem(**kind)
    dual = _Dual(objective, objective.zeros())
    for _ in range(5):
        dual.epoch(np.random.default_rng(0).permutation(objective.n_rows))
        G = residual(dual)
        # sums of 5 x 300 updates, each rounded
        tolerance = 2000 * float(np.finfo(objective.dtype).eps)
        expected = -objective.coef(G) / objective.l2
        np.testing.assert_allclose(objective.coef(dual.W), expected, rtol=0, atol=tolerance * np.abs(expected).max())
        assert dual.entropy == pytest.approx(objective.shares() @ entr(dual.Q).sum(axis=1), rel=tolerance)
        assert np.all(dual.Q >= 0)
        np.testing.assert_allclose(dual.Q.sum(axis=1), 1, rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_row_makes_the_dual_worse(dtype):
    objective = problem(fit_intercept=False, dtype=dtype)
    dual, before = _Dual(objective, objective.zeros()), 0.0
    for row in np.tile(np.arange(objective.n_rows), 2):
        objective.dual_epoch(dual.W, dual.Q, np.array([row]), 0.0)
        dual.entropy = float(objective.shares() @ entr(dual.Q.astype(float)).sum(axis=1))
        # what is compared is a sum of some hundred numbers, rounded
        assert dual.value() >= before - 300 * np.finfo(dtype).eps * dual.entropy
        before = dual.value()


@kinds
def test_balanced_bound_holds_and_is_tight(kind):
    objective = problem(**kind)
    W = optimum(objective)
    lowest = objective.value(W)
    dual = _Dual(objective, objective.zeros())
    eps = np.finfo(objective.dtype).eps
    for _ in range(8):
        dual.epoch(np.random.default_rng(0).permutation(objective.n_rows))
        dual.balance()
        totals = residual(dual)[:, objective.n_features :]
        # a mean of numbers up to 1
        assert np.abs(totals).max(initial=0.0) <= 10 * eps
        bound = dual.bound(objective.value(dual.W), 0.0)
        assert bound <= lowest + 100 * eps * lowest  # both are rounded
    assert bound >= (1 - 0.1) * lowest  # eight epochs get that far, by a wide margin


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_balancing_ends_where_rounding_stops_it(dtype, monkeypatch):
    """Newton's method squares the distance of the totals: six steps lead from 1 to the rounding of float64."""
    objective = problem(dtype=dtype)
    dual, steps, solve = _Dual(objective, objective.zeros()), [], np.linalg.lstsq
    dual.epoch(np.random.default_rng(0).permutation(objective.n_rows))
    monkeypatch.setattr(np.linalg, "lstsq", lambda H, off: steps.append(1) or solve(H, off))
    dual.balance()
    assert 1 <= len(steps) <= 7


@kinds
def test_bound_in_float64(kind, monkeypatch):
    """It is the dual bound of the same distributions, whether or not their totals are those of the classes."""
    monkeypatch.setattr(module, "CLASSES", 3)  # more than one group of classes
    objective = problem(**kind)
    dual = _Dual(objective, objective.zeros())
    for _ in range(3):
        dual.epoch(np.random.default_rng(0).permutation(objective.n_rows))
        for _ in range(2):
            Q = dual.Q.astype(float) / dual.Q.sum(axis=1, dtype=float)[:, None]
            weight = np.ones(objective.n_rows) if objective.sample_weight is None else objective.sample_weight
            share = weight.astype(float) / weight.sum(dtype=float)
            X = objective.design.copy_rows(slice(None)).toarray().astype(float)
            X = np.hstack([X, np.ones((len(X), objective.shape[1] - X.shape[1]))])
            G = (share[:, None] * (Q - objective.distributions())).T @ X
            expected = dual_bound(objective, float(share @ entr(Q).sum(axis=1)), G)
            # sums of 300 rows; with float32, the smoothed labels and the moments of the classes have its digits
            assert dual.float64_bound() == pytest.approx(expected, rel=1e-12 if objective.dtype == float else 1e-7)
            dual.balance()


def test_a_gap_below_the_rounding_of_float32_is_proven():
    """The allowance for float32 is more than 10 times the target, so without float64 no epoch would bring a proof."""
    objective = problem(dtype=np.float32, l2=1e-4)
    result = ascent(objective, tol=1e-6)
    assert result.stopped_on == "gap" and result.gap <= 1e-6
    dual = _Dual(objective, result.W)
    assert dual.allowance(result.loss, np.float32) > 10 * result.target
    assert dual.allowance(result.loss, np.float64) < 1e-3 * result.target


@kinds
def test_reaches_the_optimum(kind):
    objective = problem(**kind)
    result = ascent(objective, tol=1e-4)
    value, lowest = objective.value(result.W), objective.value(optimum(objective))
    assert result.stopped_on == "gap"
    rounding = 100 * np.finfo(objective.dtype).eps * value  # of the values
    assert value - lowest <= result.gap * result.null_loss + rounding
    assert result.gap <= 1e-4
    assert result.history[-1]["loss"] == value


def test_an_optimal_start_stays():
    objective = problem()
    W = optimum(objective)
    result = ascent(objective, W, tol=1e-6)
    assert len(result.history) == 1
    cold = ascent(objective, tol=1e-6)
    assert len(cold.history) > 3


def test_slow_where_the_penalty_is_tiny():
    result = ascent(problem(l2=1e-9), tol=1e-8, may_give_up=True)
    assert result.stopped_on == "slow"
    assert len(result.history) < 100


def test_the_last_epoch_is_proven():
    objective = problem()
    result = ascent(objective, max_iter=2, tol=1e-9)
    assert result.stopped_on == "max_iter"
    assert objective.value(result.W) - objective.value(optimum(objective)) <= result.gap * result.null_loss < np.inf


@pytest.mark.parametrize("alpha", [1e2, 1e-2, 1e-4, 1e-6, 1e-10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_estimator_tells_the_truth(alpha, dtype):
    objective = problem(l2=alpha, dtype=dtype)
    exact = problem(l2=alpha)
    lowest = exact.value(optimum(exact))
    model = SoftmaxRegression(alpha=alpha, tol=1e-3, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(objective.design.X, objective.codes)
    W = exact.zeros()
    exact.coef(W)[...], W[:, -1] = model.coef_, model.intercept_
    assert caught or exact.value(W) - lowest <= 1e-3 * exact.null_loss
    assert not (caught and dtype == np.float64)


def test_no_thread_changes_a_bit():
    objective = problem()
    X, y = objective.design.X, objective.codes
    one, two = (SoftmaxRegression(random_state=0, n_jobs=jobs, tol=1e-8).fit(X, y) for jobs in (1, 2))
    np.testing.assert_array_equal(one.coef_, two.coef_)
