"""The objective against plain NumPy, finite differences, and its certificate against scipy's optimum."""

import numpy as np
import pytest
import scipy.optimize
from scipy import sparse
from scipy.special import logsumexp
from shared import like

from softreg import functional as F
from softreg._duality import bound_of_gradient, dual_bound, dual_point, lower_bound
from softreg._inner_products import inner, squared_norm
from softreg._objective import Objective

N, D, K = 24, 4, 3
# What check_gradient promises of a right gradient in float64: some 6 times the root of machine epsilon.
RIGHT = 1e-7
# Two orders of summation over N terms of order one, through exponentials of differences of at most 10: relative
# errors of some (N + 10) eps on either side, with as much again for the products with X.
CLOSE = {"rtol": 1e-13, "atol": 1e-13}

forms = pytest.mark.parametrize("form", ["dense", "csr", "csr64"])
both_targets = pytest.mark.parametrize("soft", [False, True])
both_weights = pytest.mark.parametrize("weighted", [False, True])
both_smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1])
both_intercepts = pytest.mark.parametrize("intercept", [False, True])
PENALTIES = {
    "l2": {"l2": 0.05},
    "small l2": {"l2": 1e-4},
    "l1": {"l2": 0.0, "l1": 0.02},
    "elastic net": {"l2": 0.03, "l1": 0.01},
}
penalties = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)


def data(form="dense", soft=False, weighted=False, classes=K, dtype=np.float64):
    """X with half of its entries, targets of the noisy kind that no W separates, and weights."""
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(N, D)) * (rng.random((N, D)) < 0.5) * [1, 3, 1, 0.3] + [0, 1, 0, 0]).astype(dtype)
    codes = rng.integers(classes, size=N)
    targets = rng.dirichlet(np.ones(classes), size=N).astype(dtype) if soft else None
    s = rng.integers(4, size=N).astype(dtype) if weighted else None
    if form != "dense":
        X = sparse.csr_array(X)
        if form == "csr64":
            X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X, None if soft else codes.astype(np.intp), targets, s


def problem(*, classes=K, l2=0.05, l1=0.0, smoothing=0.0, intercept=True, **what):
    options = {"l2": l2, "l1": l1, "label_smoothing": smoothing, "fit_intercept": intercept}
    return Objective(*data(classes=classes, **what), classes, **options)


def point(objective, seed=1, scale=1.0):
    W = objective.zeros()
    W[...] = scale * np.random.default_rng(seed).normal(size=W.shape)
    return W


def plain(objective, W):
    """F without l1, from its definition in the module's first line, in float64."""
    X, rows = objective.design.X, objective.design.rows
    X = np.asarray(X.todense() if sparse.issparse(X) else X, np.float64)
    X = X if rows is None else X[rows]
    W, n = np.asarray(W, np.float64), len(X)
    Z = X @ W[:, :D].T + (W[:, D] if objective.fit_intercept else 0)
    Y = np.eye(len(W))[objective.codes] if objective.targets is None else objective.targets
    Y = (1 - objective.label_smoothing) * Y + objective.label_smoothing / len(W)
    s = np.ones(n) if objective.sample_weight is None else objective.sample_weight
    losses = logsumexp(Z, axis=1) - (Y * Z).sum(axis=1)
    return s @ losses / s.sum() + objective.l2 / 2 * (W[:, :D] ** 2).sum()


def total(objective, W):
    return objective.value_and_gradient(W)[0] + objective.penalty_l1(W)


def gap_at(objective, W):
    """The proven bound on F(W) - min F."""
    at = objective.linearize(W)
    return max(at.value + objective.penalty_l1(W) - lower_bound(at), 0.0)


def minimum(objective):
    """scipy's optimum. With l1, W = A - B with A, B >= 0, where the penalty is linear and L-BFGS-B serves."""
    signs = np.array([1, -1] if objective.l1 else [1])
    size = int(np.prod(objective.shape))
    penalised = np.zeros(objective.shape)
    penalised[:, :D] = 1

    def value_and_gradient(parts):
        value, gradient = objective.value_and_gradient(like(objective, signs @ parts.reshape(len(signs), size)))
        linear = objective.l1 * np.tile(penalised.ravel(), len(signs))
        return value + linear @ parts, np.outer(signs, gradient.ravel(order="C")).ravel() + linear

    found = scipy.optimize.minimize(
        value_and_gradient,
        np.zeros(len(signs) * size),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * (2 * size) if objective.l1 else None,
        # it goes on until it can no longer go down; the certificate then says how far it came
        options={"maxiter": 20000, "maxfun": 20000, "ftol": 0, "gtol": 1e-12, "maxcor": 50},
    )
    return like(objective, signs @ found.x.reshape(len(signs), size))


# --- value and derivatives ----------------------------------------------------------------------------------


@forms
@both_targets
@both_weights
@both_smoothings
@both_intercepts
def test_value_and_gradient(form, soft, weighted, smoothing, intercept):
    objective = problem(form=form, soft=soft, weighted=weighted, smoothing=smoothing, intercept=intercept)
    W = point(objective)
    np.testing.assert_allclose(objective.value_and_gradient(W)[0], plain(objective, W), **CLOSE)
    error, _ = F.check_gradient(lambda W: objective.value_and_gradient(like(objective, W)), W)
    assert error < RIGHT


@forms
@both_weights
@both_intercepts
def test_hessian_product(form, weighted, intercept):
    """Five-point differences of gradients along V: h^4 and eps / h are both some 2e-13 at h = eps^(1/5)."""
    objective = problem(form=form, weighted=weighted, intercept=intercept)
    W, V, h = point(objective), point(objective, seed=2), np.finfo(float).eps ** 0.2
    at = objective.linearize(W)
    np.testing.assert_allclose(at.probabilities(slice(None)).sum(axis=1), 1, rtol=1e-15 * K)
    gradients = [objective.value_and_gradient(W + step * h * V)[1] for step in (-2, -1, 1, 2)]
    differences = np.tensordot([1, -8, 8, -1], gradients, 1) / (12 * h)
    product = at.hessian_product(V)
    # fifth derivatives along V are of the order of (|V| |x|)^5, some 1e3 for this data
    np.testing.assert_allclose(product, differences, rtol=1e-8, atol=1e-9)
    # symmetric and not negative: <U, HV> = <HU, V>
    U = point(objective, seed=3)
    np.testing.assert_allclose(inner(U, product), inner(at.hessian_product(U), V), **CLOSE)
    assert inner(V, product) > 0
    # in the form for conjugate gradients, which sums in another order
    form_for_cg, R = at.product(V), U.copy(order="K")
    np.testing.assert_allclose(form_for_cg.curvature, inner(V, product), **CLOSE)
    form_for_cg.add_to(R, 0.3)
    np.testing.assert_allclose(R, U + 0.3 * product, rtol=1e-12, atol=1e-13)


def test_hessian_has_the_null_direction_of_softmax():
    """A constant added to all intercepts changes no probability."""
    objective = problem(l2=0.05)
    V = objective.zeros()
    V[:, -1] = 1
    # (p - p sum(p)) is zero up to the rounding of a sum of K probabilities
    np.testing.assert_allclose(objective.linearize(point(objective)).hessian_product(V), 0, atol=1e-15)


@forms
@both_weights
def test_without_penalties_class_gradients_sum_to_zero(form, weighted):
    """Each row of P - Y sums to zero, so does everything that is made of them."""
    objective = problem(form=form, weighted=weighted, l2=0.0)
    gradient = objective.value_and_gradient(point(objective))[1]
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-14)  # N sums of K numbers of order one


@forms
def test_float32(form):
    """The same numbers in float32: rounded inputs, sums of N terms; errors of some (N + 10) eps of float32."""
    close = {"rtol": 50 * np.finfo(np.float32).eps, "atol": 50 * np.finfo(np.float32).eps}
    single, double = (problem(form=form, dtype=dtype) for dtype in (np.float32, np.float64))
    W = point(double)
    value, gradient = single.value_and_gradient(like(single, W))
    assert gradient.dtype == np.float32
    assert isinstance(value, float)
    np.testing.assert_allclose(value, double.value_and_gradient(W)[0], **close)
    np.testing.assert_allclose(gradient, double.value_and_gradient(W)[1], **close)


@forms
def test_memory_order(form):
    """A nonzero of a sparse X meets the numbers of all classes side by side; a dense row meets a class's."""
    objective = problem(form=form)
    W = point(objective)
    at = objective.linearize(W)
    for array in (objective.empty(), objective.zeros(), at.gradient, at.hessian_product(W)):
        assert array.shape == (K, D + 1)
        assert array.flags.c_contiguous == (form == "dense")
        assert array.flags.f_contiguous == (form != "dense")


@forms
def test_nothing_is_modified(form):
    objective = problem(form=form, soft=True, weighted=True)
    X = objective.design.X
    matrix = X.data if sparse.issparse(X) else X
    given = [matrix, objective.targets, objective.sample_weight, W := point(objective)]
    before = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    at = objective.linearize(W)
    lower_bound(at)
    at.hessian_product(at.gradient)
    for a, b in zip(given, before, strict=True):
        assert np.array_equal(a, b)


def test_wide_row_strides_are_not_copied():
    X, *rest = data()
    wide = np.zeros((N, 2 * D))
    wide[:, :D] = X
    view = Objective(wide[:, :D], *rest, K, l2=0.05)
    whole = Objective(X, *rest, K, l2=0.05)
    assert view.design.X.base is wide
    W = point(whole)
    assert view.value_and_gradient(W)[0] == whole.value_and_gradient(W)[0]
    assert np.array_equal(view.value_and_gradient(W)[1], whole.value_and_gradient(W)[1])


def test_norms():
    A, B = np.random.default_rng(0).normal(size=(2, 5, 7))
    np.testing.assert_allclose(squared_norm(A), (A**2).sum(), **CLOSE)
    np.testing.assert_allclose(inner(A, B), (A * B).sum(), **CLOSE)
    np.testing.assert_allclose(inner(np.asfortranarray(A), np.asfortranarray(B)), (A * B).sum(), **CLOSE)


# --- rows and batches ---------------------------------------------------------------------------------------


@forms
@both_targets
@both_weights
def test_selection_is_the_objective_over_its_rows(form, soft, weighted):
    objective = problem(form=form, soft=soft, weighted=weighted)
    rows = np.array([3, 4, 9, 10, 11, 20])
    part = objective.select(rows)
    assert part.design.X is objective.design.X
    assert part.n_rows == len(rows)
    X, codes, targets, s = (None if a is None else a[rows] for a in data(form, soft, weighted))
    alone = Objective(X, codes, targets, s, K, l2=0.05)
    W = point(objective)
    np.testing.assert_allclose(part.value_and_gradient(W)[0], alone.value_and_gradient(W)[0], **CLOSE)
    np.testing.assert_allclose(part.value_and_gradient(W)[1], alone.value_and_gradient(W)[1], **CLOSE)
    products = [chosen.linearize(W).hessian_product(W) for chosen in (part, alone)]
    np.testing.assert_allclose(*products, **CLOSE)
    np.testing.assert_allclose(gap_at(part, W), gap_at(alone, W), **CLOSE)
    np.testing.assert_allclose(part.value_and_gradient(W)[0], plain(part, W), **CLOSE)


@forms
def test_weights_are_repeated_rows(form):
    X, codes, _, s = data(form, weighted=True)
    repeats = np.repeat(np.arange(N), s.astype(int))
    weighted = Objective(X, codes, None, s, K, l2=0.05)
    repeated = Objective(X[repeats], codes[repeats], None, None, K, l2=0.05)
    W = point(weighted)
    np.testing.assert_allclose(total(weighted, W), total(repeated, W), **CLOSE)
    np.testing.assert_allclose(gap_at(weighted, W), gap_at(repeated, W), **CLOSE)


@forms
@both_smoothings
def test_one_hot_targets_are_labels(form, smoothing):
    X, codes, _, s = data(form, weighted=True)
    options = {"l2": 0.05, "label_smoothing": smoothing}
    labels = Objective(X, codes, None, s, K, **options)
    targets = Objective(X, None, np.eye(K)[codes], s, K, **options)
    W = point(labels)
    np.testing.assert_allclose(total(labels, W), total(targets, W), **CLOSE)
    np.testing.assert_allclose(gap_at(labels, W), gap_at(targets, W), **CLOSE)
    gradients = [objective.value_and_gradient(W)[1] for objective in (labels, targets)]
    np.testing.assert_allclose(*gradients, **CLOSE)


# --- penalties ----------------------------------------------------------------------------------------------


@both_intercepts
def test_intercepts_are_not_penalised(intercept):
    free, l2, l1 = (problem(intercept=intercept, l2=a, l1=b) for a, b in [(0.0, 0.0), (0.1, 0.0), (0.0, 0.2)])
    W = point(free)
    coef = W[:, :D]
    np.testing.assert_allclose(total(l2, W) - total(free, W), 0.05 * (coef**2).sum(), **CLOSE)
    np.testing.assert_allclose(total(l1, W) - total(free, W), 0.2 * np.abs(coef).sum(), **CLOSE)
    added = l2.value_and_gradient(W)[1] - free.value_and_gradient(W)[1]
    np.testing.assert_allclose(added[:, :D], 0.1 * coef, **CLOSE)
    assert not added[:, D:].any()
    assert np.array_equal(l1.value_and_gradient(W)[1], free.value_and_gradient(W)[1])  # l1 is not in the smooth part


@forms
@both_targets
@both_weights
@both_smoothings
@pytest.mark.parametrize("l2", [0.05, 1e-4])
def test_the_quick_bound_is_that_of_the_probabilities(form, soft, weighted, smoothing, l2):
    """Without intercepts there are no class totals to repair."""
    objective = problem(form=form, soft=soft, weighted=weighted, smoothing=smoothing, l2=l2, intercept=False)
    at = objective.linearize(point(objective))
    # the entropy is a difference there of numbers of order ten, and is divided by nothing small
    assert bound_of_gradient(at) == pytest.approx(dual_bound(objective, *dual_point(at)), rel=1e-10, abs=1e-12)
    assert bound_of_gradient(objective.with_penalties(0.0, 0.0).linearize(at.W)) == 0


@forms
@both_intercepts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_in_float64_for_any_dtype(form, intercept, dtype):
    design = problem(form=form, intercept=intercept, dtype=dtype).select(np.arange(0, N, 2)).design
    G = np.asfortranarray(np.random.default_rng(5).normal(size=(N // 2, K)))
    rows = design.float64_rows(slice(None))
    expected = G.T @ (np.hstack([rows, np.ones((N // 2, 1))]) if intercept else rows)
    assert design.accumulate_float64(G).dtype == np.float64
    np.testing.assert_allclose(design.accumulate_float64(G), expected, **CLOSE)


@pytest.mark.parametrize("alpha", [0.1, 0.003])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.4])
def test_binary_penalty(alpha, l1_ratio):
    """Two rows -w/2 and w/2 under twice the l2 are the logistic regression in w with its own penalty."""
    objective = problem(classes=2, l2=2 * alpha * (1 - l1_ratio), l1=alpha * l1_ratio)
    X, codes, *_ = data(classes=2)
    w, b = np.random.default_rng(5).normal(size=D), 0.3
    W = like(objective, np.outer([-0.5, 0.5], [*w, b]))
    losses = np.logaddexp(0, -np.where(codes, 1, -1) * (X @ w + b))
    expected = losses.mean() + alpha * ((1 - l1_ratio) / 2 * w @ w + l1_ratio * np.abs(w).sum())
    np.testing.assert_allclose(total(objective, W), expected, **CLOSE)


def test_binary_optimum_has_opposite_rows():
    """So the one row w = W_1 - W_0 keeps all of it: the coefficients sum to zero over the classes."""
    objective = problem(classes=2, l2=0.02)
    W = minimum(objective)
    # strong convexity: an optimum within 1e-13 of the least value is within sqrt(2e-13 / l2) = 3e-6 of the best W
    np.testing.assert_allclose(objective.coef(W).sum(axis=0), 0, atol=3e-6)


# --- the certificate ----------------------------------------------------------------------------------------


@forms
@both_intercepts
@penalties
@pytest.mark.parametrize("kind", ["labels", "weighted", "soft", "smoothed"])
def test_gap_is_a_bound_and_tight(form, intercept, penalty, kind):
    what = {"weighted": kind == "weighted", "soft": kind == "soft", "smoothing": 0.1 * (kind == "smoothed")}
    objective = problem(form=form, intercept=intercept, **what, **penalty)
    best = minimum(objective)
    least = total(objective, best)
    # Both at once: scipy is at the optimum, and the bound says so. L-BFGS-B ends where F moves by less than its
    # rounding, some 1e-16, with gradients of some sqrt(1e-16 L) = 1e-8. The bound is of first order in the
    # up to 15 gradients of intercepts and of what l1 keeps at zero, times logarithms or coefficients of some 10.
    assert 0 <= gap_at(objective, best) <= 1e-6
    # Anywhere else it must not be less than the distance to a value that is itself not under the minimum: no
    # tolerance but the rounding of values of some (1 + size of the logits).
    for seed, scale in enumerate([0.0, 0.01, 0.3, 1.0, 10.0, 100.0]):
        for share in (1.0, 0.3, 0.01, 1e-4):
            W = best + share * (point(objective, seed, scale) - best)
            value, gap = objective.value_and_gradient(W)[0], gap_at(objective, W)
            distance = value + objective.penalty_l1(W) - least
            assert gap >= distance - 1e-14 * (1 + value)
            assert distance > 0
            # and never more than F itself, whose least possible value is zero
            assert gap <= (value + objective.penalty_l1(W)) * (1 + 1e-15)


def test_gap_without_intercept_is_the_squared_gradient():
    """||dF/dW||^2 / (2 l2), the identity of the docstring; the gap is a difference of values of order one."""
    objective = problem(intercept=False)
    best = minimum(objective)
    for share in (0.1, 0.03, 0.01):
        W = best + share * point(objective)
        _, gradient = objective.value_and_gradient(W)
        expected = (gradient**2).sum() / (2 * objective.l2)
        np.testing.assert_allclose(gap_at(objective, W), expected, rtol=1e-9, atol=1e-14)


@forms
@penalties
@both_intercepts
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_false_proof_where_the_loss_is_huge(form, penalty, intercept, dtype):
    """A loss of 1e22 has no digits left for a minimum of order one, and F at zero, log K, is never under it."""
    X, *labels = data(form=form)
    objective = Objective((X * 1e-12).astype(dtype), *labels, K, fit_intercept=intercept, **{"l2": 0.05, **penalty})
    for scale in 10.0 ** np.arange(0, 16):
        for seed in range(3):
            W = like(objective, scale * np.random.default_rng(seed).normal(size=objective.shape)).astype(dtype)
            W[:, D:] *= 1e-3
            # the mean of the entropies and F at zero are rounded
            assert lower_bound(objective.linearize(W)) <= np.log(K) * (1 + 10 * np.finfo(dtype).eps)


@penalties
@both_intercepts
def test_gap_falls_with_the_distance(penalty, intercept):
    """At least of first order: ten times nearer to the optimum, ten times less, but for terms of higher order."""
    objective = problem(intercept=intercept, **penalty)
    best, V = minimum(objective), point(objective)
    gaps = [gap_at(objective, best + h * V) for h in (1e-3, 1e-4, 1e-5)]
    assert gaps[1] < gaps[0] / 9
    assert gaps[2] < gaps[1] / 9


def test_gap_sees_an_intercept_that_is_off():
    """Coefficients at their optimum, intercepts not: a bound from coefficients alone would say zero."""
    objective = problem(l2=100.0)  # coefficients near zero whatever the intercepts are
    W = minimum(objective)
    W[:, -1] += [3.0, 0, -3.0]
    distance = total(objective, W) - total(objective, minimum(objective))
    assert distance > 1
    assert gap_at(objective, W) >= distance


@both_intercepts
def test_no_penalty_no_bound(intercept):
    objective = problem(l2=0.0, intercept=intercept)
    assert gap_at(objective, point(objective)) == np.inf


@pytest.mark.parametrize("classes", [1, 2, 3, 8])
def test_targets_of_few_or_absent_classes(classes):
    """A class that never comes has total zero: nothing divides by it."""
    X, codes, *_ = data(classes=classes)
    objective = Objective(X, codes, None, None, classes + 1, l2=0.05)
    W = point(objective)
    gap = gap_at(objective, W)
    assert np.isfinite(gap)
    assert gap >= total(objective, W) - total(objective, minimum(objective))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 7, 25, 49])
def test_gap_where_the_class_totals_are_right_already(dtype, classes):
    """At zero, with as many rows of each class, the intercepts' gradient is nothing but rounding, which may well
    be positive in every class at once: what is to be repaired is its difference between classes."""
    X = np.random.default_rng(0).normal(size=(8 * classes, 3)).astype(dtype)
    codes = np.arange(8 * classes) % classes
    objective = Objective(X, codes.astype(np.intp), None, None, classes, l2=1e-3)
    W = objective.zeros()
    gap = gap_at(objective, W)
    # F(0) = log(classes), and zero is a bound from below that needs no proof
    assert 0 < gap <= np.log(classes) * (1 + 1e-5)
    exact = Objective(X.astype(float), objective.codes, None, None, classes, l2=1e-3)
    distance = total(exact, exact.zeros()) - total(exact, minimum(exact))
    assert gap >= distance - 1e-5  # sums in float32
