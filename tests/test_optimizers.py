"""SGD against torch; automatic and adaptive rates."""

import numpy as np
import pytest
from shared import forms, softmax_data, unfinished
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning

from softreg import SoftmaxRegression
from softreg._solvers.update_rules import Momentum

K, D, N = 3, 5, 60
RATES = (0.1, 0.1, 0.05, 0.2, 0.01)


def data(classes=K):
    return softmax_data(N, D, classes)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_of_torch(momentum, nesterov):
    """torch.optim on a quadratic with gradient H (W - C), at rates that change."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    H, C, W = (rng.uniform(0.5, 2, size=(K, D)) for _ in range(3))
    W_torch = torch.tensor(W, requires_grad=True)
    ours, theirs = Momentum(momentum, nesterov), torch.optim.Momentum([W_torch], momentum=momentum, nesterov=nesterov)
    for rate in RATES:
        gradient = H * (W - C)
        theirs.param_groups[0]["lr"] = rate
        W_torch.grad = torch.tensor(gradient)
        theirs.step()
        ours.step(W, gradient, rate)
        np.testing.assert_allclose(W, W_torch.detach().numpy(), rtol=1e-12, atol=1e-12)  # roundings, in another order


def test_equal_settings_are_equal_whatever_has_been_seen():
    used = Momentum(0.9)
    used.step(np.ones((K, D)), np.ones((K, D)), 0.1)
    assert used == Momentum(0.9) != Momentum(0.9, True)


# --- the automatic rate -------------------------------------------------------------------------------------


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_ends_at_the_optimum_of_the_penalty_asked_for(l1_ratio):
    """Whole batches and a falling rate. The gap is proven by duality: a threshold for l1 that is not the one of the
    rate each coordinate saw would stop elsewhere. Warnings are errors: all arrive within tol."""
    X, y = data()
    model = SoftmaxRegression(solver="sgd", alpha=0.05, l1_ratio=l1_ratio, batch_size=N, tol=1e-4, max_iter=2000)
    model.fit(X, y)
    assert model.stopped_on_ == "gap"
    assert model.optimality_gap_ <= 1e-4 * model.history_["loss"][-1] * (1 + 1e-12)
    exact = SoftmaxRegression(alpha=0.05, l1_ratio=l1_ratio, tol=1e-9, max_iter=10_000).fit(X, y)
    if l1_ratio == 1.0:
        assert ((model.coef_ == 0) & (exact.coef_ == 0)).any()


@unfinished
def test_mean_of_iterates_is_nearer_than_the_last():
    """At a constant rate the iterates of single rows stay as far from the optimum as the noise takes them, and
    their mean does not: Polyak and Juditsky (1992)."""
    X, y = data()
    options = {"solver": "sgd", "alpha": 0.05, "batch_size": 1, "learning_rate": "constant", "eta0": 0.05}
    runs = [SoftmaxRegression(**options, average=a, max_iter=100, random_state=0).fit(X, y) for a in (False, True)]
    last, mean = (model.optimality_gap_ for model in runs)
    assert mean < 0.5 * last


@unfinished
@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_automatic_rates_learn_from_raw_features(load):
    """Features of wine go up to 1680, beside others of 0.1. After 30 epochs each is under half of the loss of
    the shares of the classes, which is what a model without features would have."""
    X, y = load(return_X_y=True)
    model = SoftmaxRegression(solver="sgd", max_iter=30, batch_size=32, random_state=0).fit(X, y)
    shares = np.bincount(y) / len(y)
    assert model.history_["loss"][-1] < -0.5 * (shares * np.log(shares)).sum()


@unfinished
@forms
def test_automatic_rates_go_with_the_units_of_the_features(form):
    """Without a penalty, other units of a feature are other units of its coefficients, step by step. Powers of two
    keep all sums the same; what is left are roundings of the rates."""
    X, y = data()
    c = np.array([1.0, 4, 16, 0.25, 0.5])
    options = {"solver": "sgd", "alpha": 0, "max_iter": 3, "batch_size": 8, "random_state": 0}
    plain = SoftmaxRegression(**options).fit(form(X), y)
    scaled = SoftmaxRegression(**options).fit(form(X * c), y)
    np.testing.assert_allclose(scaled.coef_ * c, plain.coef_, rtol=1e-10, atol=1e-10)


# --- the adaptive rate --------------------------------------------------------------------------------------


def test_adaptive_rate_gets_nearer_than_a_constant_one():
    """Batches of four rows leave noise in proportion to the rate. The adaptive one ends early here, as nothing of
    1e-4 an epoch is gained at the lower rates: measured, a quarter of the gap is left."""
    X, y = data()
    options = {"solver": "sgd", "alpha": 0.05, "batch_size": 4, "eta0": 0.1, "max_iter": 300, "random_state": 0}
    gaps = {}
    for name in ("constant", "adaptive"):
        with pytest.warns(ConvergenceWarning):
            gaps[name] = SoftmaxRegression(**options, learning_rate=name).fit(X, y).optimality_gap_
    assert gaps["adaptive"] < 0.5 * gaps["constant"]


def test_adaptive_rate_falls_by_five_after_epochs_without_progress():
    """tol=1 calls nothing progress but the first epoch: three epochs at eta0, then two at each lower rate, until one
    is under 1e-6 of eta0, which takes 9 falls (5^8 < 1e6 < 5^9). Whole batches, in plain NumPy beside it."""
    X, y = data()
    options = {"solver": "sgd", "momentum": 0.0, "batch_size": N, "shuffle": False, "learning_rate": "adaptive"}
    options |= {"n_iter_no_change": 2, "eta0": 0.1, "alpha": 0.0, "max_iter": 30}
    with pytest.warns(ConvergenceWarning, match="adaptive rate"):
        model = SoftmaxRegression(**options, tol=1).fit(X, y)
    rates = [0.1, *np.repeat(0.1 / 5.0 ** np.arange(9), 2)]
    assert (model.n_iter_, model.stopped_on_) == (len(rates), "rate")
    W, A = np.zeros((K, D + 1)), np.column_stack([X, np.ones(N)])
    for rate in rates:
        P = np.exp(A @ W.T) / np.exp(A @ W.T).sum(axis=1, keepdims=True)
        W -= rate * (P - np.eye(K)[y]).T @ A / N
    np.testing.assert_allclose(model.coef_, W[:, :D], rtol=1e-12, atol=1e-12)  # 19 steps of a few roundings


@unfinished
def test_adaptive_rate_stays_while_there_is_progress():
    """Whole batches at a low rate go down at every step."""
    X, y = data()
    options = {"solver": "sgd", "batch_size": N, "eta0": 0.1, "alpha": 0.0, "max_iter": 30, "tol": 0}
    kept, constant = (
        SoftmaxRegression(**options, learning_rate=name, random_state=0).fit(X, y) for name in ("adaptive", "constant")
    )
    assert kept.stopped_on_ == "max_iter"
    assert np.array_equal(kept.coef_, constant.coef_)
