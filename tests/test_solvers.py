"""Which solver runs, and whether what it says of its convergence is true."""

import itertools
import warnings
from functools import cache

import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_softmax
from shared import forms, null_loss
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning

from softreg import SoftmaxRegression
from softreg._objective import Objective
from softreg._solvers import Result
from softreg._solvers.sgd import _shortened

N, D, K = 50, 5, 3


def data(classes=K, dtype=np.float64):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(N, D)) * (rng.random((N, D)) < 0.6)).astype(dtype)
    y = (X @ rng.normal(size=(D, classes)) + rng.gumbel(size=(N, classes))).argmax(axis=1)
    return X, y, rng.integers(1, 4, size=N).astype(float)


# --- honest stopping ----------------------------------------------------------------------------------------


def newton(X, y, alpha, fit_intercept=True):
    """min F by damped Newton steps on the whole Hessian, in float64 and plain NumPy.

    Columns are brought to one scale, with their penalty, and so is the Hessian's diagonal. What softmax leaves
    free, a constant added to a column of W, is held at its penalised optimum of zero.
    """
    n, classes = len(y), y.max() + 1
    scale = np.abs(X).max(axis=0)
    scale[scale == 0] = 1
    A = np.column_stack([X / scale, np.ones(n)]) if fit_intercept else X / scale
    p = A.shape[1]
    penalty = np.zeros(p)
    penalty[: X.shape[1]] = alpha * (2 if classes == 2 else 1) / scale**2
    Y = np.eye(classes)[y]

    def value(W):
        return -(Y * log_softmax(A @ W.T, axis=1)).sum() / n + 0.5 * (W**2 @ penalty).sum()

    W = np.zeros((classes, p))
    free = np.kron(np.ones((classes, classes)), np.eye(p)) / classes
    for _ in range(500):
        P = np.exp(log_softmax(A @ W.T, axis=1))
        gradient = ((P - Y).T @ A / n + W * penalty).ravel()
        H = np.zeros((classes, p, classes, p))
        for k, j in itertools.product(range(classes), repeat=2):
            H[k, :, j] = (A.T * (P[:, k] * ((k == j) - P[:, j]) / n)) @ A + (k == j) * np.diag(penalty)
        H = H.reshape(classes * p, classes * p) + free * np.abs(np.diagonal(H.reshape(classes * p, -1))).min()
        D = 1 / np.sqrt(np.diagonal(H))
        ridge = 1e-14 * np.eye(len(D))  # of the unit diagonal
        step = -D * cho_solve(cho_factor(H * np.outer(D, D) + ridge), D * gradient)
        decrement, before, length = -gradient @ step, value(W), 1.0
        while length > 1e-8 and value(W + length * step.reshape(W.shape)) > before - 0.1 * length * decrement:
            length /= 2
        if length <= 1e-8 or decrement <= 1e-13 * before:
            break
        W = W + length * step.reshape(W.shape)
    assert decrement <= 1e-9 * before  # half of it is what is left to gain
    return min(before, value(W))


def hard_problems():
    rng = np.random.default_rng(0)
    X, y, _ = data()
    wide = rng.normal(size=(20, 40))
    columns = rng.normal(size=(80, 5))
    noisy = (columns @ rng.normal(size=(5, 3)) + rng.gumbel(size=(80, 3))).argmax(axis=1)
    return {
        "noisy": (X, y),
        "binary": (X, (y > 0).astype(int)),
        "separable": (columns, (columns @ rng.normal(size=(5, 3))).argmax(axis=1)),
        "constant and twin features": (np.column_stack([X, X[:, :2], np.full(N, 7.0), np.zeros(N)]), y),
        "scales from 1e-6 to 1e6": (columns * [1e-6, 1e-3, 1, 1e3, 1e6], noisy),
        "offset": (columns + np.array([0, 1e4, -1e3, 0, 10]), noisy),
        "more features than rows": (wide, np.arange(20) % 3),
        "one feature": (columns[:, :1], noisy),
        "rare classes": (np.repeat(columns, 3, axis=0), np.r_[np.zeros(235, int), [1, 1, 1, 2, 2]]),
        "many classes": (rng.normal(size=(200, 3)), np.arange(200) % 25),
        "raw wine": load_wine(return_X_y=True),
    }


HARD = hard_problems()
ALPHAS = (1e-10, 1e-6, 1e-3, 1e2)
least = cache(lambda name, alpha: newton(*HARD[name], alpha))


def fitted(name, alpha, *, dtype=np.float64, form=np.asarray, **options):
    """A fit, F there, in float64 from its coefficients, and whether it warned."""
    X, y = HARD[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = SoftmaxRegression(alpha=alpha, random_state=0, **options).fit(form(X.astype(dtype)), y)
    Z = X @ model.coef_.T.astype(float) + model.intercept_
    Z = np.hstack([np.zeros_like(Z), Z]) if Z.shape[1] == 1 else Z
    losses = -log_softmax(Z, axis=1)[np.arange(len(y)), y]
    return model, losses.mean() + alpha / 2 * (model.coef_.astype(float) ** 2).sum(), bool(caught)


@pytest.mark.parametrize(("alpha", "tol"), [(1e-10, 1e-6), (1e-6, 1e-2), (1e-3, 1e-6), (1e2, 1e-2)])
@pytest.mark.parametrize("solver", ["auto", "sgd"])
@pytest.mark.parametrize("name", HARD)
def test_within_tol_or_warned(name, solver, alpha, tol):
    model, F, warned = fitted(name, alpha, tol=tol, solver=solver, max_iter=50)
    distance = F - least(name, alpha)
    assert np.isfinite(F)
    assert warned or distance <= tol * null_loss(HARD[name][1])
    assert warned != (model.stopped_on_ in ("gap", "estimate"))
    assert model.stopped_on_ != "max_iter" or model.n_iter_ == 50
    # what is called proven is never less than the truth; F itself is rounded, and the minimum known to 1e-9
    assert model.optimality_gap_ * null_loss(HARD[name][1]) >= distance - 2e-9 * F
    noise = 1e-3 if solver == "sgd" else 1e-12  # of intercepts that are means over noisy steps
    assert F <= np.log(len(model.classes_)) * (1 + noise)  # never worse than nothing at all


@pytest.mark.parametrize("alpha", ALPHAS[::2])
@pytest.mark.parametrize("solver", ["auto", "sgd"])
@pytest.mark.parametrize("name", HARD)
def test_within_tol_or_warned_in_float32(name, solver, alpha):
    """Rounding X to float32 moves logits, and F, by 1e-7 of their size, some 100 at most; that of what is proven by
    as much."""
    model, F, warned = fitted(name, alpha, tol=1e-3, solver=solver, max_iter=50, dtype=np.float32)
    distance = F - least(name, alpha)
    assert np.isfinite(F)
    unit = null_loss(HARD[name][1])
    assert warned or distance <= 1e-3 * unit + 1e-5
    assert model.optimality_gap_ * unit >= distance - 1e-5


@forms
@pytest.mark.parametrize(("dtype", "alphas"), [(np.float64, ALPHAS[1:]), (np.float32, ALPHAS[2:])])
@pytest.mark.parametrize("name", HARD)
def test_default_solver_arrives(name, dtype, alphas, form):
    """Nothing to choose and nothing to warn of, at the default tol of 1e-4. float32 is spared the smallest alpha,
    where F can be smaller than what its own sums can tell apart."""
    for alpha in alphas:
        _, F, warned = fitted(name, alpha, max_iter=1000, dtype=dtype, form=form)
        assert not warned
        assert F - least(name, alpha) <= 1e-4 * null_loss(HARD[name][1]) + (1e-5 if dtype == np.float32 else 0)


# --- which solver runs ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("form", "params", "ran"),
    [
        (np.asarray, {}, "newton"),
        (np.asarray, {"l1_ratio": 0.5}, "proximal_newton"),
        (np.asarray, {"l1_ratio": 0.5, "alpha": 0.0}, "newton"),  # no l1 is left
        (sparse.csr_array, {}, "dual"),
        (sparse.csr_array, {"alpha": 1e-10, "tol": 1e-8}, "newton"),  # "dual" is too slow to finish
        (sparse.csr_array, {"alpha": 0.0}, "newton"),
        (sparse.csr_array, {"l1_ratio": 0.5}, "proximal_newton"),
        (np.asarray, {"solver": "newton"}, "newton"),
        (sparse.csr_array, {"solver": "newton"}, "newton"),
        (sparse.csr_array, {"solver": "dual", "alpha": 1e-10, "tol": 1e-8, "max_iter": 30}, "dual"),
        (np.asarray, {"solver": "proximal_newton", "l1_ratio": 0.5}, "proximal_newton"),
        (np.asarray, {"solver": "sgd"}, "sgd"),
    ],
)
def test_solver_says_what_ran(form, params, ran):
    """200 columns and 3 classes: "auto" does not take "dual" where X is small."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 200)) * (rng.random((300, 200)) < 0.1)
    y = (X[:, :3] + rng.gumbel(size=(300, 3))).argmax(axis=1)
    model = SoftmaxRegression(**{"alpha": 1e-2, "random_state": 0, **params}).fit(form(X), y)
    assert model.solver_ == ran


# --- the last epoch of SGD --------------------------------------------------------------------------------------


def objective_of(l1=0.0):
    X, y, _ = data()
    return Objective(X, y, None, None, K, l2=0.01, l1=l1)


def test_the_last_step_of_sgd_is_shortened_where_f_grew():
    objective = objective_of()
    before = objective.zeros()
    far = -50 * objective.linearize(before).gradient
    assert objective.value(far) > objective.value(before)
    result = Result(far, objective.null_loss, 1e-4)
    W = _shortened(objective, before, result)
    assert objective.value(W) < objective.value(before)
    # on the line between both, up to rounding
    t = np.sum(W * far) / np.sum(far * far)
    np.testing.assert_allclose(W, t * far, atol=1e-12 * np.abs(far).max())
    assert 0 < t < 1


def test_with_l1_the_last_step_of_sgd_stays():
    """A mixture of two W would lose the zeros of either."""
    objective = objective_of(l1=0.01)
    far = -50 * objective.linearize(objective.zeros()).gradient
    result = Result(far, objective.null_loss, 1e-4)
    assert _shortened(objective, objective.zeros(), result) is far
    assert result.passes == 0
