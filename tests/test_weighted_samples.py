"""Rows are sampled by weight, and a preconditioner that a path hands on is made anew for another penalty."""

import numpy as np
import pytest

from softreg import SoftmaxRegression
from softreg._objective import Objective
from softreg._preconditioners import Blocks, Exact, ScaledCorrelation, preconditioner
from softreg._solvers import row_sampling
from softreg._solvers.newton import newton
from softreg._solvers.result import Options, Start

N, D, K = 10_000, 6, 4


def data(few, seed=0):
    """Rows of which `few` have weight; the others hold numbers that would spoil whatever is made from them."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)) * np.array([1, 10, 0.1, 1, 1, 100])
    y = (X / X.std(axis=0) @ rng.normal(size=(D, K)) + rng.gumbel(size=(N, K))).argmax(axis=1)
    weight = np.zeros(N)
    weight[rng.permutation(N)[:few]] = 1.0
    X[weight == 0] *= 1e6
    return X, y, weight


@pytest.mark.parametrize("few", [40, 400])
@pytest.mark.parametrize("small", [Exact, ScaledCorrelation, Blocks])
def test_a_sample_has_no_rows_without_weight(small, few):
    X, y, weight = data(few)
    objective = Objective(X, y, None, weight, K, l2=1e-3)
    order = np.random.default_rng(0).permutation(N)
    M = Exact(objective, order, 200) if small is Exact else ScaledCorrelation(objective, order)
    M = Blocks(M, order) if small is Blocks else M
    M.refresh(objective.linearize(objective.zeros()))
    assert weight[M.picked].all()
    assert np.abs(M.mean).max() < 100  # with the other rows it would be 1e6 or so
    assert M.deviation.max() < 1000
    sample = row_sampling.RowSample(objective, order, N // 16)
    assert weight[sample.positions].all()
    assert np.ptp(sample.weight) <= 1  # all weigh the same: each is drawn as often as another, or once more


@pytest.mark.parametrize("few", [40, 400])
def test_rows_without_weight_change_nothing(few, monkeypatch):
    """With samples forced: the optimum is that of the rows that have weight.

    A sample of rows that all weigh nothing raised ZeroDivisionError, or ended at W = 0."""
    monkeypatch.setattr(row_sampling, "SAMPLE_WORK", 0)
    X, y, weight = data(few)
    kept = weight > 0
    options = {"alpha": 1e-2, "tol": 1e-10, "random_state": 0, "max_iter": 200}
    parts = (X, y, weight), (X[kept], y[kept], None)
    fits = [SoftmaxRegression(**options).fit(*part) for part in parts]
    # gaps of 1e-10 F put coefficients within sqrt(2e-10 / alpha) of the optimum
    np.testing.assert_allclose(fits[0].coef_, fits[1].coef_, rtol=0, atol=3e-4)


def test_a_preconditioner_for_another_penalty_is_the_inverse_there():
    """Kept as it was, it called itself the exact inverse, and the estimate rested on the wrong matrix."""
    X, y, _ = data(N)
    weak, strong = (Objective(X, y, None, None, K, l2=l2) for l2 in (1e-6, 10.0))
    W = weak.zeros()
    M = preconditioner(weak, np.arange(N))
    M.refresh(weak.linearize(W))
    before = M.solve(weak.linearize(W).gradient)
    other = M.for_objective(strong)
    at = strong.linearize(W)
    other.refresh(at)
    V = strong.zeros()
    V[...] = np.random.default_rng(0).normal(size=V.shape)
    V -= V.mean(axis=0)  # softmax leaves the same for all classes free
    assert other.is_exact_inverse
    # exact to rounding over conditions of some 1e4
    np.testing.assert_allclose(other.solve(at.hessian_product(V)), V, rtol=0, atol=1e-9)
    assert np.array_equal(M.solve(weak.linearize(W).gradient), before)  # the first one is as it was


@pytest.mark.parametrize("alphas", [(10.0, 1e-6), (1e-6, 10.0)])
def test_a_path_tells_the_truth_at_its_next_penalty(alphas):
    X, y, _ = data(N)
    options = Options(max_iter=100, tol=1e-6, random_state=np.random.RandomState(0))
    start = None
    for alpha in alphas:
        objective = Objective(X, y, None, None, K, l2=alpha)
        start = start or Start(objective.zeros())
        result = newton(objective, start, options, Silent())
        start = Start(result.W, preconditioner=result.preconditioner)
    alone = newton(objective, Start(objective.zeros()), Options(200, 1e-12, np.random.RandomState(0)), Silent())
    assert result.converged
    assert result.loss - alone.loss <= 1e-6 * result.loss


class Silent:
    """A monitor that never stops a fit."""

    def begin(self):
        pass

    def __call__(self, W, entry):
        return False
