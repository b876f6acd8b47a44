"""Trajectories of SGD against a NumPy twin, optimisers against their published update, rates, divergence."""

import itertools
import warnings
from functools import cache

import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_softmax
from shared import forms, unfinished
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from softreg import SoftmaxRegression
from softreg._objective import Objective
from softreg._solvers.learning_rates import automatic_rate, schedule
from softreg._solvers.update_rules import Momentum, soft_threshold
from softreg._threads import single_threaded_blas

N, D, K = 50, 5, 3
SCHEDULES = {
    "constant": lambda t, T: 1.0,
    "linear": lambda t, T: 1 - t / T,
    "cosine": lambda t, T: (1 + np.cos(np.pi * t / T)) / 2,
    "invscaling": lambda t, T: 1 / np.sqrt(1 + t),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)
# The runs below are short on purpose: they must end where the twin ends, not at the optimum.


def data(classes=K, dtype=np.float64):
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(N, D)) * (rng.random((N, D)) < 0.6)).astype(dtype)
    y = (X @ rng.normal(size=(D, classes)) + rng.gumbel(size=(N, classes))).argmax(axis=1)
    return X, y, rng.integers(1, 4, size=N).astype(float)


# --- seeded trajectories ------------------------------------------------------------------------------------


def twin(
    X, Y, s, *, alpha=1e-2, l1_ratio=0.0, eta0=0.1, batch_size=8, max_iter=4, learning_rate="constant",
    momentum=0.9, nesterov=True, average=False, shuffle=True, label_smoothing=0.0, fit_intercept=True, seed=0,
    epoch_rows=None,
):  # fmt: skip
    """Minibatch SGD in plain NumPy, from the definitions; for two classes on both rows of the model.

    Returns coefficients, intercepts, and the mean loss of each epoch as it was met on the way.
    """
    n, classes = Y.shape
    Y = (1 - label_smoothing) * Y + label_smoothing / classes
    A = np.column_stack([X, np.ones(n)]) if fit_intercept else X
    penalised = (np.arange(A.shape[1]) < X.shape[1]).astype(float)
    l2, l1 = alpha * (1 - l1_ratio) * (2 if classes == 2 else 1), alpha * l1_ratio
    W, velocity, iterates, epochs = np.zeros((classes, A.shape[1])), 0.0, [], []
    rng = check_random_state(seed)
    for epoch in range(max_iter):
        order, met = rng.permutation(n) if shuffle else np.arange(n), 0.0
        for start in range(0, n, batch_size):
            rows = order[start : start + batch_size]
            rate = eta0 * SCHEDULES[learning_rate]((epoch * n + start) / (epoch_rows or n), max_iter)
            Z = A[rows] @ W.T
            P = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
            share = s[rows, None] * n / (s.sum() * len(rows))
            met += len(rows) * (-(share * Y[rows] * np.log(P)).sum() + l2 / 2 * (W**2 @ penalised).sum())
            gradient = (share * (P - Y[rows])).T @ A[rows] + l2 * W * penalised
            velocity = momentum * velocity + gradient
            W = W - rate * (gradient + momentum * velocity if nesterov else velocity)
            W = np.sign(W) * np.maximum(np.abs(W) - rate * l1 * penalised, 0)
            iterates.append(W)
        kept = np.mean(iterates, axis=0) if average else W
        epochs.append(met / n + l1 * (np.abs(kept) @ penalised).sum())
    W = kept
    W = W[1:] - W[:1] if classes == 2 else W
    d = X.shape[1]
    return W[:, :d], W[:, d] if fit_intercept else np.zeros(len(W)), epochs


BASE = {"alpha": 1e-2, "eta0": 0.1, "batch_size": 8, "max_iter": 4, "learning_rate": "constant"}
VARIANTS = {
    "plain": {"momentum": 0.0},
    "momentum": {"nesterov": False},
    "nesterov": {},
    "other momentum": {"momentum": 0.5},
    "averaged": {"average": True},
    "averaged l1": {"average": True, "l1_ratio": 0.5, "momentum": 0.0},
    "in order": {"shuffle": False},
    # with l1 there is more than one way to go on from a proximal step with momentum; see the
    # test of whole batches
    "l1": {"l1_ratio": 1.0, "alpha": 0.05, "momentum": 0.0},
    "elastic net": {"l1_ratio": 0.3, "alpha": 0.05, "momentum": 0.0},
    "l1, falling rate": {"l1_ratio": 1.0, "alpha": 0.05, "learning_rate": "linear", "momentum": 0.0},
    "unpenalised": {"alpha": 0.0},
    "smoothed": {"label_smoothing": 0.2},
    "no intercept": {"fit_intercept": False},
    "one row a batch": {"batch_size": 1, "eta0": 0.02},
    "one batch an epoch": {"batch_size": N},
    "batch larger than n": {"batch_size": 10 * N},
    "other seed": {"random_state": 3},
    **{name: {"learning_rate": name} for name in SCHEDULES},
}


def same(model, expected, tolerance):
    coef, intercept, epochs = expected
    np.testing.assert_allclose(model.coef_, coef, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=tolerance, atol=tolerance)
    # the last epoch ends with a full gradient, and the exact objective in place of the mean that was met
    np.testing.assert_allclose(model.history_["loss"][:-1], epochs[:-1], rtol=tolerance)


@unfinished
@pytest.mark.parametrize(("form", "classes"), [(np.asarray, K), (sparse.csr_array, 2)], ids=["dense", "csr, binary"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_trajectory_is_the_twins(form, classes, variant):
    """Every step differs by the order of its sums, some 30 eps on numbers of order one; gradient steps within the
    stable rates do not amplify that, and momentum 0.9 sums it up tenfold: 200 steps make at most 1e-11 of it."""
    X, y, s = data(classes)
    given = {**BASE, **variant}
    model = SoftmaxRegression(solver="sgd", tol=0, random_state=given.pop("random_state", 0), **given)
    model.fit(form(X), y, sample_weight=s)
    expected = twin(X, np.eye(classes)[y], s, seed=model.random_state, **given)
    same(model, expected, 1e-11)
    assert model.n_iter_ == given["max_iter"]
    if given.get("l1_ratio") == 1.0:
        # zeros are zeros, in the same places
        assert np.array_equal(model.coef_ == 0, expected[0] == 0)


@unfinished
@forms
def test_float32_trajectory(form):
    """The same, with float32's eps of 1.2e-7 in place of 2.2e-16."""
    X, y, s = data(dtype=np.float32)
    model = SoftmaxRegression(solver="sgd", tol=0, random_state=0, **BASE).fit(form(X), y, sample_weight=s)
    assert model.coef_.dtype == np.float32
    same(model, twin(X.astype(float), np.eye(K)[y], s, **BASE), 2e-5)


@unfinished
def test_soft_targets_trajectory():
    X, _, s = data()
    Y = np.random.default_rng(1).dirichlet(np.ones(K), size=N)
    model = SoftmaxRegression(solver="sgd", tol=0, random_state=0, **BASE).fit(X, Y, sample_weight=s)
    same(model, twin(X, Y, s, **BASE), 1e-11)


@unfinished
def test_automatic_settings_are_these():
    """batch_size, learning_rate and eta0 left alone: 256 or n rows, linear, and what automatic_rate says."""
    X, y, _ = data()
    codes, weight = y.astype(np.intp), np.ones(N)
    rate = automatic_rate(Objective(X, codes, None, None, K, l2=1e-2), N, Momentum(0.9, True).gain)
    model = SoftmaxRegression(solver="sgd", alpha=1e-2, tol=0, max_iter=5, random_state=0).fit(X, y)
    settings = {"alpha": 1e-2, "max_iter": 5, "batch_size": N, "learning_rate": "linear", "eta0": rate}
    same(model, twin(X, np.eye(K)[y], weight, **settings), 1e-11)


@unfinished
@forms
def test_partial_fit_trajectory(form):
    """Calls go on where the last one ended, velocity included; the rate falls by 1 / sqrt(1 + rows / 1000)."""
    X, y, s = data()
    settings = {**BASE, "learning_rate": "invscaling"}
    model = SoftmaxRegression(solver="sgd", random_state=check_random_state(0), **settings)
    for _ in range(settings["max_iter"]):
        model.partial_fit(form(X), y, classes=np.arange(K), sample_weight=s)
    coef, intercept, _ = twin(X, np.eye(K)[y], s, **settings, epoch_rows=1000)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-11, atol=1e-11)


@unfinished
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_whole_batches_end_at_the_optimum(l1_ratio, momentum, nesterov):
    """Nothing is random then: whatever the momentum, the point where steps stop moving must be the optimum of the
    penalty that was asked for. At the rate 0.3 the slowest direction keeps 1 - 0.3 * 0.02 of itself a step, so
    2000 steps leave e^-12 = 6e-6 of it in W at worst; with l1 the bound is of first order in that."""
    X, y, _ = data()
    options = {"alpha": 0.05, "l1_ratio": l1_ratio, "eta0": 0.3, "batch_size": N, "learning_rate": "constant"}
    model = SoftmaxRegression(
        solver="sgd", max_iter=2000, tol=1e-5, momentum=momentum, nesterov=nesterov, shuffle=False, **options
    ).fit(X, y)
    assert model.optimality_gap_ <= 1e-4 * model.history_["loss"][-1]


def test_sgd_arrives():
    """Left to itself on a well-posed problem, it proves that it has arrived. Warnings are errors here."""
    X, y, _ = data()
    model = SoftmaxRegression(solver="sgd", alpha=0.1, tol=1e-4, max_iter=1000, random_state=0).fit(X, y)
    assert model.optimality_gap_ <= 1e-4 * model.history_["loss"][-1]
    assert model.n_iter_ < 1000


# --- update rules -------------------------------------------------------------------------------------------


def steps(rule, rates, seed=0):
    """Iterates on a quadratic with gradient H (W - C), and the gradients that were given."""
    rng = np.random.default_rng(seed)
    H, C, W = rng.uniform(0.5, 2, size=(K, D)), rng.normal(size=(K, D)), rng.normal(size=(K, D))
    iterates, gradients = [W.copy()], []
    for rate in rates:
        gradients.append(H * (W - C))
        rule.step(W, gradients[-1].copy(), rate)
        iterates.append(W.copy())
    return iterates, gradients


def triples(sequence):
    return list(zip(sequence[:-2], sequence[1:-1], sequence[2:], strict=True))


RATES = (0.1, 0.1, 0.05, 0.2, 0.01)
# five steps, each a few roundings on numbers of order one
STEPS = {"rtol": 1e-14, "atol": 1e-14}


def test_sgd_without_momentum():
    iterates, gradients = steps(Momentum(), RATES)
    for before, after, g, rate in zip(iterates[:-1], iterates[1:], gradients, RATES, strict=True):
        np.testing.assert_allclose(after, before - rate * g, **STEPS)


def test_heavy_ball():
    """Polyak's method at a constant rate: w+ = w - rate g + mu (w - w-)."""
    iterates, gradients = steps(Momentum(0.8), [0.1] * 5)
    np.testing.assert_allclose(iterates[1], iterates[0] - 0.1 * gradients[0], **STEPS)
    for (older, before, after), g in zip(triples(iterates), gradients[1:], strict=True):
        np.testing.assert_allclose(after, before - 0.1 * g + 0.8 * (before - older), **STEPS)


def test_nesterov():
    """Nesterov's own form, at a constant rate. Its gradients are taken at u + mu (u - u-), and that is the W here:
    u+ = W - rate g(W), W+ = u+ + mu (u+ - u). (Sutskever et al. 2013, section 2, in Bengio's change of variables.)
    """
    mu, rate = 0.8, 0.1
    iterates, gradients = steps(Momentum(mu, nesterov=True), [rate] * 5)
    # the first W looks ahead from rest: u_0 = W_0
    u = iterates[0]
    for before, after, g in zip(iterates[:-1], iterates[1:], gradients, strict=True):
        following = before - rate * g
        np.testing.assert_allclose(after, following + mu * (following - u), **STEPS)
        u = following


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_changing_rates(nesterov):
    """v <- mu v + g, W <- W - rate v or W - rate (g + mu v): the rate multiplies the sum of gradients."""
    iterates, gradients = steps(Momentum(0.7, nesterov), RATES)
    v = 0
    for before, after, g, rate in zip(iterates[:-1], iterates[1:], gradients, RATES, strict=True):
        v = 0.7 * v + g
        np.testing.assert_allclose(after, before - rate * (g + 0.7 * v if nesterov else v), **STEPS)


def test_nesterov_without_momentum_is_plain():
    assert np.array_equal(steps(Momentum(0.0, nesterov=True), RATES)[0], steps(Momentum(), RATES)[0])


def test_velocity_keeps_the_memory_order():
    rule, W = Momentum(0.9), np.zeros((K, D), np.float32, order="F")
    rule.step(W, np.ones_like(W), 0.1)
    assert rule.velocity.flags.f_contiguous
    assert rule.velocity.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_velocity_follows_a_stream_that_changes_its_form(dtype):
    """Dense rows, then CSR ones, whose W lies in memory the other way: the numbers stay with their classes."""
    rng = np.random.default_rng(0)
    rule, (g, h) = Momentum(0.5), rng.normal(size=(2, K, D))
    W = np.zeros((K, D))
    rule.step(W, g, 0.1)
    W = np.array(W, dtype, order="F")
    rule.step(W, np.array(h, dtype, order="F"), 0.1)
    assert rule.velocity.dtype == dtype
    # five roundings of numbers of order one
    np.testing.assert_allclose(W, -0.1 * g - 0.1 * (0.5 * g + h), rtol=0, atol=5 * np.finfo(dtype).eps)


@schedules
def test_schedule(name):
    for t in (0, 0.25, 1, 7.5, 10):
        assert schedule(name, (t, 10)) == pytest.approx(SCHEDULES[name](t, 10), abs=1e-15)
    assert schedule(name, (0, 10)) == 1
    assert all(0 <= schedule(name, (t, 10)) <= 1 for t in (10.5, 1000))  # past the end it does not rise again


def test_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule 'exponential'"):
        schedule("exponential", (0, 10))


def test_soft_threshold():
    W = np.array([[3.0, -3.0, 0.5, -0.5, 0.0, 1.0, -1.0]])
    soft_threshold(W, 1.0)
    assert np.array_equal(W, [[2.0, -2.0, 0, 0, 0, 0, 0]])
    assert not np.signbit(W[0, 2:]).any()


def test_soft_threshold_is_the_proximal_operator():
    """It minimises (w - a)^2 / 2 + t |w| over a fine grid of w."""
    grid = np.linspace(-4, 4, 8001)
    for a, t in itertools.product((-3.0, -0.2, 0.0, 0.4, 2.5), (0.0, 0.3, 1.0)):
        W = np.array([[a]])
        soft_threshold(W, t)
        assert W[0, 0] == pytest.approx(grid[((grid - a) ** 2 / 2 + t * np.abs(grid)).argmin()], abs=1e-3)


# --- the automatic rate -------------------------------------------------------------------------------------


def rates(X, batch_size, *, classes=K, l2=0.01, fit_intercept=True, s=None, form=np.asarray):
    codes = (np.arange(X.shape[0]) % classes).astype(np.intp)
    objective = Objective(form(X), codes, None, s, classes, l2=l2, fit_intercept=fit_intercept)
    with single_threaded_blas():
        return automatic_rate(objective, batch_size, momentum_gain=1)


def steepest(X, rate, l2=0.01, s=None):
    """The largest eigenvalue of the Hessian where each column is measured so that its rate is one: over 2, gradient
    descent overshoots. The class part of a Hessian is at most 1/2 (Böhning 1992)."""
    A = np.column_stack([X, np.ones(len(X))])[:, : len(rate)]
    s = np.full(len(X), 1 / len(X)) if s is None else s / s.sum()
    H = (A.T * s) @ A / 2 + l2 * np.diag(np.arange(len(rate)) < X.shape[1])
    return np.linalg.eigvalsh(np.sqrt(rate[:, None] * rate) * H)[-1]


RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(200, 6))
RATE_PROBLEMS = {
    "normal": NORMAL,
    "scaled": NORMAL * [1e-3, 1, 1, 10, 1, 1e3],
    "offset": NORMAL + 100,
    "tiny": NORMAL * 1e-6,
    "opposite columns": np.column_stack([NORMAL[:, 0], -NORMAL[:, 0]]) * 100,
    "one column": NORMAL[:, :1] * 30,
    "zeros": np.zeros((200, 3)),
    "constant": np.full((200, 3), 5.0),
    "more rows than the sample": RNG.normal(size=(6000, 4)) * [1, 2, 3, 4],
}


@pytest.mark.parametrize("fit_intercept", [True, False])
@forms
@pytest.mark.parametrize("X", RATE_PROBLEMS.values(), ids=RATE_PROBLEMS)
def test_automatic_rate_is_one_over_L(X, form, fit_intercept):
    """L of the whole objective for whole batches, and of steep rows for batches of one; between them it falls.

    Power iterations see the largest eigenvalue from below, and a sample of 4096 rows of 6000 knows a covariance
    to some percent: 5 % is far from the factor of 2 at which gradient descent overshoots. L adds the largest
    eigenvalues of the loss and of the penalty, which is at most twice that of their sum.
    """
    n = len(X)
    found = [rates(X, size, fit_intercept=fit_intercept, form=form) for size in (n, n // 2, 8, 1)]
    assert 0.45 <= steepest(X, found[0]) <= 1.05
    assert all((larger >= smaller * (1 - 1e-12)).all() for larger, smaller in itertools.pairwise(found))  # roundings
    if n <= 4096:
        alone = np.array([steepest(X[i : i + 1], found[-1]) for i in range(n)])
        # a mean of the rows' own, weighted by themselves, so that a row that is steep alone does not hold up the rest
        assert 0.45 <= (alone**2).sum() / alone.sum() <= 1.01  # l2 is in each of them, and only once in L


def test_automatic_rate_knows_weights():
    """One row carries nearly all of the weight. A batch of it alone stands for the whole weight of a batch of one
    row: n s_i / S times its own curvature."""
    X, s = np.ones((100, 2)), np.ones(100)
    X[7], s[7] = 50, 1e4
    assert steepest(X, rates(X, 100, s=s), s=s) <= 1.05
    rate = rates(X, 1, s=s)
    assert 100 * s[7] / s.sum() * (rate @ [50**2, 50**2, 1]) / 2 <= 1


def test_automatic_rate_goes_with_the_units_of_the_features():
    """Without a penalty, a feature in units c times smaller gets a rate c^2 times smaller; c are powers of two."""
    c = np.array([1.0, 2, 4, 0.5, 1024, 2**-10])
    assert np.array_equal(rates(NORMAL * c, 8, l2=0)[:-1], rates(NORMAL, 8, l2=0)[:-1] / c**2)


@unfinished
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_automatic_rate_on_opposite_columns(fit_intercept):
    """The steepest direction of (z, -z) is orthogonal to equal coefficients: a start there would not see it."""
    X = RATE_PROBLEMS["opposite columns"]
    y = X[:, 0] > 30 * RNG.normal(size=len(X))
    model = SoftmaxRegression(solver="sgd", random_state=0, max_iter=20, fit_intercept=fit_intercept).fit(X, y)
    assert model.history_["loss"][-1] < np.log(2)


# --- divergence ---------------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("eta0", [1e3, 1e30])
def test_divergence_is_an_error_that_names_the_rate(form, dtype, eta0):
    X, y, _ = data(dtype=dtype)
    model = SoftmaxRegression(solver="sgd", eta0=eta0, alpha=0.1, learning_rate="constant", max_iter=200)
    with pytest.raises(FloatingPointError, match=f"diverged.*eta0={eta0!r}".replace("+", r"\+")):
        model.fit(form(X), y)
    assert not hasattr(model, "coef_")


def test_divergence_of_a_stream():
    X, y, _ = data()
    model = SoftmaxRegression(solver="sgd", eta0=1e30, alpha=0.1, learning_rate="constant")
    with pytest.raises(FloatingPointError, match=r"eta0=1e\+30"):
        for _ in range(200):
            model.partial_fit(X, y, classes=np.arange(K))


@unfinished
def test_a_high_rate_that_still_descends_is_no_error():
    X, y, _ = data()
    model = SoftmaxRegression(solver="sgd", eta0=1.0, max_iter=20, random_state=0).fit(X, y)
    assert model.history_["loss"][-1] < np.log(K)


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
    assert warned or distance <= tol * F
    assert warned != (model.stopped_on_ in ("gap", "estimate"))
    assert model.stopped_on_ != "max_iter" or model.n_iter_ == 50
    # what is called proven is never less than the truth; F itself is rounded, and the minimum known to 1e-9
    assert model.optimality_gap_ >= distance - 2e-9 * F
    assert F <= np.log(len(model.classes_)) * (1 + 1e-12)  # never worse than nothing at all


@pytest.mark.parametrize("alpha", ALPHAS[::2])
@pytest.mark.parametrize("solver", ["auto", "sgd"])
@pytest.mark.parametrize("name", HARD)
def test_within_tol_or_warned_in_float32(name, solver, alpha):
    """Rounding X to float32 moves logits, and F, by 1e-7 of their size, some 100 at most; that of what is proven by
    as much."""
    model, F, warned = fitted(name, alpha, tol=1e-3, solver=solver, max_iter=50, dtype=np.float32)
    distance = F - least(name, alpha)
    assert np.isfinite(F)
    assert warned or distance <= 1e-3 * F + 1e-5
    assert model.optimality_gap_ >= distance - 1e-5


@forms
@pytest.mark.parametrize(("dtype", "alphas"), [(np.float64, ALPHAS[1:]), (np.float32, ALPHAS[2:])])
@pytest.mark.parametrize("name", HARD)
def test_default_solver_arrives(name, dtype, alphas, form):
    """Nothing to choose and nothing to warn of, at the default tol of 1e-4. float32 is spared the smallest alpha,
    where F can be smaller than what its own sums can tell apart."""
    for alpha in alphas:
        _, F, warned = fitted(name, alpha, max_iter=1000, dtype=dtype, form=form)
        assert not warned
        assert F - least(name, alpha) <= 1e-4 * F + (1e-5 if dtype == np.float32 else 0)


# --- which solver runs ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("form", "params", "ran"),
    [
        (np.asarray, {}, "newton"),
        (np.asarray, {"l1_ratio": 0.5}, "proximal_gradient"),
        (np.asarray, {"l1_ratio": 0.5, "alpha": 0.0}, "newton"),  # no l1 is left
        (sparse.csr_array, {}, "dual"),
        (sparse.csr_array, {"alpha": 1e-10, "tol": 1e-8}, "newton"),  # "dual" is too slow to finish
        (sparse.csr_array, {"alpha": 0.0}, "newton"),
        (sparse.csr_array, {"l1_ratio": 0.5}, "proximal_gradient"),
        (np.asarray, {"solver": "newton"}, "newton"),
        (sparse.csr_array, {"solver": "newton"}, "newton"),
        (sparse.csr_array, {"solver": "dual", "alpha": 1e-10, "tol": 1e-8, "max_iter": 30}, "dual"),
        (np.asarray, {"solver": "proximal_gradient"}, "proximal_gradient"),
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
