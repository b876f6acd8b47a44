"""AdaGrad, RMSProp and Adam against their published updates and torch; what solvers make of them."""

import copy
import pickle
import re

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning

from softreg import SoftmaxRegression
from softreg._optimizers import EPSILON, SGD, AdaGrad, Adam, RMSProp

K, D, N = 3, 5, 60
RATES = (0.1, 0.1, 0.05, 0.2, 0.01)
NEW = ("adagrad", "rmsprop", "adam")
solvers = pytest.mark.parametrize("solver", NEW)
forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
unfinished = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def data(classes=K):
    """Labels drawn from a softmax model, so that no W separates them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)) * (rng.random((N, D)) < 0.7)
    return X, (X @ rng.normal(size=(D, classes)) + rng.gumbel(size=(N, classes))).argmax(axis=1)


# --- update rules -------------------------------------------------------------------------------------------


def adagrad(gradients, rates):
    """Duchi et al. (2011), with the diagonal of G."""
    for t, rate in enumerate(rates):
        yield rate / (np.sqrt(sum(g**2 for g in gradients[: t + 1])) + EPSILON), gradients[t]


def rmsprop(gradients, rates):
    """Tieleman and Hinton (2012): MeanSquare(t) = 0.9 MeanSquare(t - 1) + 0.1 g^2."""
    square = 0
    for g, rate in zip(gradients, rates, strict=True):
        square = 0.9 * square + 0.1 * g**2
        yield rate / (np.sqrt(square) + EPSILON), g


def adam(gradients, rates, beta_1=0.9, beta_2=0.999):
    """Kingma and Ba (2015), algorithm 1, line by line."""
    m = v = 0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        yield rate / (np.sqrt(v / (1 - beta_2**t)) + EPSILON), m / (1 - beta_1**t)


RULES = {
    "adagrad": (AdaGrad, adagrad, {}),
    "rmsprop": (RMSProp, rmsprop, {}),
    "adam": (Adam, adam, {}),
    "adam, other betas": (lambda: Adam(0.5, 0.9), adam, {"beta_1": 0.5, "beta_2": 0.9}),
    "adam without a mean": (lambda: Adam(0.0, 0.0), adam, {"beta_1": 0.0, "beta_2": 0.0}),
}
rules = pytest.mark.parametrize("rule", RULES)


def steps(optimizer, dtype=np.float64, order="C"):
    """Iterates on a quadratic with gradient H (W - C), the gradients, and the rates that coordinates saw."""
    rng = np.random.default_rng(0)
    H, C, W = (np.asarray(rng.uniform(0.5, 2, size=(K, D)), dtype, order) for _ in range(3))
    iterates, gradients, seen = [W.copy()], [], []
    for rate in RATES:
        gradients.append(H * (W - C))
        seen.append(optimizer.step(W, gradients[-1].copy(order="K"), rate))
        iterates.append(W.copy(order="K"))
    return iterates, gradients, seen


@rules
def test_published_update(rule):
    """Each step, and the rate that it says each coordinate saw: five of them, a few roundings each, on numbers of
    order one."""
    make, published, options = RULES[rule]
    iterates, gradients, seen = steps(make())
    for t, (rate, direction) in enumerate(published(gradients, RATES, **options)):
        np.testing.assert_allclose(seen[t], rate, rtol=1e-13)
        np.testing.assert_allclose(iterates[t + 1], iterates[t] - rate * direction, rtol=1e-13, atol=1e-13)


@rules
def test_steps_of_torch(rule):
    """torch.optim on the same quadratic; SGD's variants too, with a constant rate as torch takes it."""
    torch = pytest.importorskip("torch")
    make, _, options = RULES[rule]
    name = rule.partition(",")[0].partition(" ")[0]
    given = {
        "adagrad": lambda p: torch.optim.Adagrad(p, eps=EPSILON),
        "rmsprop": lambda p: torch.optim.RMSprop(p, alpha=0.9, eps=EPSILON),
        "adam": lambda p: torch.optim.Adam(
            p, betas=(options.get("beta_1", 0.9), options.get("beta_2", 0.999)), eps=EPSILON
        ),
    }[name]
    follow_torch(torch, given, make())


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_of_torch(momentum, nesterov):
    torch = pytest.importorskip("torch")
    follow_torch(torch, lambda p: torch.optim.SGD(p, momentum=momentum, nesterov=nesterov), SGD(momentum, nesterov))


def follow_torch(torch, make, optimizer):
    iterates, gradients, _ = steps(optimizer)
    W = torch.tensor(iterates[0], requires_grad=True)
    theirs = make([W])
    for rate, gradient, after in zip(RATES, gradients, iterates[1:], strict=True):
        theirs.param_groups[0]["lr"] = rate
        W.grad = torch.tensor(gradient)
        theirs.step()
        np.testing.assert_allclose(after, W.detach().numpy(), rtol=1e-12, atol=1e-12)  # roundings, in another order


@rules
def test_state_keeps_dtype_and_order(rule):
    optimizer = RULES[rule][0]()
    iterates, _, seen = steps(optimizer, np.float32, "F")
    arrays = [value for value in vars(optimizer).values() if isinstance(value, np.ndarray)]
    assert arrays
    assert all(a.dtype == np.float32 and a.flags.f_contiguous for a in [*arrays, *seen, iterates[-1]])


@rules
def test_no_gradient_no_step(rule):
    W = np.ones((K, D))
    RULES[rule][0]().step(W, np.zeros((K, D)), 0.1)
    assert np.array_equal(W, np.ones((K, D)))


def test_equal_settings_are_equal_whatever_has_been_seen():
    used = Adam()
    steps(used)
    assert used == Adam() != Adam(0.5)
    assert SGD(0.9) != SGD(0.9, True)
    assert AdaGrad() != RMSProp()
    assert copy.deepcopy(used).steps == pickle.loads(pickle.dumps(used)).steps == len(RATES)


# --- solvers ------------------------------------------------------------------------------------------------


@unfinished
@solvers
@forms
@pytest.mark.parametrize("classes", [2, K])
@pytest.mark.parametrize("average", [False, True])
def test_trajectory_with_whole_batches(solver, form, classes, average):
    """Four epochs of one batch each, with gradients in plain NumPy; for two classes on both rows of the model."""
    X, y = data(classes)
    options = {"eta0": 0.1, "learning_rate": "constant", "max_iter": 4, "tol": 0, "alpha": 0.01, "average": average}
    model = SoftmaxRegression(solver=solver, batch_size=N, **options).fit(form(X), y)
    A, l2 = np.column_stack([X, np.ones(N)]), 0.01 * (2 if classes == 2 else 1)
    W, gradients, iterates = np.zeros((classes, D + 1)), [], []
    for t in range(4):
        P = np.exp(A @ W.T) / np.exp(A @ W.T).sum(axis=1, keepdims=True)
        gradients.append((P - np.eye(classes)[y]).T @ A / N + l2 * W * (np.arange(D + 1) < D))
        rate, direction = list(RULES[solver][1](gradients, [0.1] * (t + 1)))[-1]
        W = W - rate * direction
        iterates.append(W)
    W = np.mean(iterates, axis=0) if average else W
    W = W[1:] - W[:1] if classes == 2 else W - np.where(np.arange(D + 1) < D, 0, W[:, D].mean())
    # sums in another order, amplified where a gradient is near zero and is divided by its own size
    np.testing.assert_allclose(model.coef_, W[:, :D], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.intercept_, W[:, D], rtol=1e-9, atol=1e-9)


@solvers
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_ends_at_the_optimum_of_the_penalty_asked_for(solver, l1_ratio):
    """Whole batches and a falling rate. The gap is proven by duality: a threshold for l1 that is not the one of the
    rate each coordinate saw would stop elsewhere. Warnings are errors: all arrive within tol."""
    X, y = data()
    model = SoftmaxRegression(solver=solver, alpha=0.05, l1_ratio=l1_ratio, batch_size=N, tol=1e-4, max_iter=2000)
    model.fit(X, y)
    assert model.stopped_on_ == "gap"
    assert model.optimality_gap_ <= 1e-4 * model.history_["loss"][-1] * (1 + 1e-12)
    exact = SoftmaxRegression(alpha=0.05, l1_ratio=l1_ratio, tol=1e-9, max_iter=10_000).fit(X, y)
    if l1_ratio == 1.0:
        assert ((model.coef_ == 0) & (exact.coef_ == 0)).any()


@unfinished
@pytest.mark.parametrize("solver", ["sgd", "rmsprop", "adam"])  # the rate of AdaGrad falls by itself
def test_mean_of_iterates_is_nearer_than_the_last(solver):
    """At a constant rate the iterates of single rows stay as far from the optimum as the noise takes them, and
    their mean does not: Polyak and Juditsky (1992)."""
    X, y = data()
    options = {"solver": solver, "alpha": 0.05, "batch_size": 1, "learning_rate": "constant", "eta0": 0.05}
    runs = [SoftmaxRegression(**options, average=a, max_iter=100, random_state=0).fit(X, y) for a in (False, True)]
    last, mean = (model.optimality_gap_ for model in runs)
    assert mean < 0.5 * last


@unfinished
@pytest.mark.parametrize("solver", ["sgd", *NEW])
@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_automatic_rates_learn_from_raw_features(solver, load):
    """Features of wine go up to 1680, beside others of 0.1. After 30 epochs each is under half of the loss of
    the shares of the classes, which is what a model without features would have."""
    X, y = load(return_X_y=True)
    model = SoftmaxRegression(solver=solver, max_iter=30, batch_size=32, random_state=0).fit(X, y)
    shares = np.bincount(y) / len(y)
    assert model.history_["loss"][-1] < -0.5 * (shares * np.log(shares)).sum()


@unfinished
@pytest.mark.parametrize("solver", ["sgd", *NEW])
@forms
def test_automatic_rates_go_with_the_units_of_the_features(solver, form):
    """Without a penalty, other units of a feature are other units of its coefficients, step by step. Powers of two
    keep all sums the same; what is left is epsilon, 1e-8, beside the root of squares of some 1e-2 and more."""
    X, y = data()
    c = np.array([1.0, 4, 16, 0.25, 0.5])
    options = {"solver": solver, "alpha": 0, "max_iter": 3, "batch_size": 8, "random_state": 0}
    plain = SoftmaxRegression(**options).fit(form(X), y)
    scaled = SoftmaxRegression(**options).fit(form(X * c), y)
    np.testing.assert_allclose(scaled.coef_ * c, plain.coef_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", NEW)
@pytest.mark.parametrize(("name", "value"), [("momentum", 0.5), ("nesterov", False)])
def test_no_momentum_but_sgds(solver, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}.*solver='sgd'.*solver='{solver}'"):
        SoftmaxRegression(solver=solver, **{name: value}).fit(*data())


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "lbfgs", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_no_betas_but_adams(solver, name):
    with pytest.raises(ValueError, match=f"{name}=0.5.*solver='adam'.*solver='{solver}'"):
        SoftmaxRegression(solver=solver, **{name: 0.5}).fit(*data())


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, None])
def test_betas(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{re.escape(str(value))}"):
        SoftmaxRegression(solver="adam", **{name: value}).fit(*data())


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
