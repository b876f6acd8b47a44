"""The public mathematics: finite differences for every gradient, identities, other implementations, forms."""

import doctest

import numpy as np
import pytest
import scipy.special
from scipy import sparse
from shared import both_dtypes
from sklearn.metrics import log_loss

from softreg import functional as F

N, D, K = 9, 4, 5
# What check_gradient promises of a right gradient in float64: some 6 times the root of machine epsilon.
RIGHT = 1e-7
# Two ways to a number of order one, each by a few sums of at most 9 terms and exps of differences of at most
# 16: relative errors of some (9 + 16) eps on either side.
CLOSE = {"rtol": 50 * np.finfo(float).eps, "atol": 50 * np.finfo(float).eps}

both_targets = pytest.mark.parametrize("soft", [False, True])
both_weights = pytest.mark.parametrize("weighted", [False, True])
both_smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def logits(*shape, dtype=np.float64):
    return np.random.default_rng(0).uniform(-8, 8, size=shape or (N, K)).astype(dtype)


def targets(soft):
    rng = np.random.default_rng(1)
    return rng.dirichlet(np.ones(K), size=N) if soft else rng.integers(K, size=N)


def weights(weighted=True):
    return np.random.default_rng(2).integers(4, size=N).astype(float) if weighted else None


def linear_problem():
    """X with a third of its entries, W and b."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(N, D)) * (rng.random((N, D)) < 0.3), rng.normal(size=(K, D)), rng.normal(size=K)


def test_examples():
    result = doctest.testmod(F)
    assert result.failed == 0
    with_example = {test.name.split(".")[-1] for test in doctest.DocTestFinder().find(F) if test.examples}
    assert with_example == set(F.__all__)


# --- finite differences -----------------------------------------------------------------------------------


@both_targets
@both_weights
@both_smoothings
@reductions
def test_cross_entropy_gradient(soft, weighted, smoothing, reduction):
    options = {"sample_weight": weights(weighted), "label_smoothing": smoothing, "reduction": reduction}

    def value_and_grad(Z):
        loss, G = F.cross_entropy_grad(Z, targets(soft), **options)
        assert np.array_equal(loss, F.cross_entropy(Z, targets(soft), **options))
        return np.sum(loss), G

    assert F.check_gradient(value_and_grad, logits())[0] < RIGHT


@both_targets
@both_weights
@both_smoothings
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_linear_gradients(soft, weighted, smoothing, form):
    X, W, b = linear_problem()

    def value_and_grads(X=X, W=W, b=b):
        options = {"sample_weight": weights(weighted), "label_smoothing": smoothing}
        return F.linear_cross_entropy_grad(form(X), targets(soft), W, b, **options)

    assert F.check_gradient(lambda W: (value_and_grads(W=W)[0], value_and_grads(W=W)[1]), W)[0] < RIGHT
    assert F.check_gradient(lambda b: (value_and_grads(b=b)[0], value_and_grads(b=b)[2]), b)[0] < RIGHT
    assert F.check_gradient(lambda X: (value_and_grads(X=X)[0], value_and_grads(X=X)[3]), X)[0] < RIGHT


def test_softmax_derivatives():
    u = np.random.default_rng(4).normal(size=K)
    assert F.check_gradient(lambda z: (u @ F.softmax(z), F.softmax_vjp(z, u)), logits(K))[0] < RIGHT
    assert F.check_gradient(lambda z: (F.logsumexp(z), F.softmax(z)), logits(K))[0] < RIGHT
    for k in range(K):
        error, _ = F.check_gradient(lambda z, k=k: (F.softmax(z)[k], F.softmax_jacobian(z)[k]), logits(K))
        assert error < RIGHT


# --- identities -------------------------------------------------------------------------------------------


def test_jacobian():
    Z, U = logits(), np.random.default_rng(5).normal(size=(N, K))
    J = F.softmax_jacobian(Z)
    assert np.array_equal(J, J.transpose(0, 2, 1))
    assert np.allclose(J.sum(axis=2), 0, rtol=0, atol=K * np.finfo(float).eps)  # K entries of at most 1/4
    assert np.allclose(np.einsum("nij,ni->nj", J, U), F.softmax_vjp(Z, U), **CLOSE)
    P = F.softmax(Z)
    assert np.allclose(J, [np.diag(p) - np.outer(p, p) for p in P], **CLOSE)
    # p (1 - p) = exp(-50) / (1 + exp(-50))^2 where p rounds to one
    assert F.softmax_jacobian([0.0, -50.0])[0, 0] == pytest.approx(np.exp(-50), rel=1e-14)


def test_softmax_sums_to_one_and_ignores_a_shift():
    Z = np.round(logits() * 2**20) / 2**20  # a shift by 1024 is then exact
    assert np.allclose(F.softmax(Z).sum(axis=1), 1, rtol=0, atol=K * np.finfo(float).eps)  # K rounded terms
    assert np.array_equal(F.softmax(Z + 1024), F.softmax(Z))
    assert np.array_equal(F.log_softmax(Z + 1024), F.log_softmax(Z))
    # 1024 plus a logit rounds at 2^-43, half of it is 256 eps
    assert np.allclose(F.logsumexp(Z + 1024), F.logsumexp(Z) + 1024, rtol=0, atol=2.0**-43)
    assert np.allclose(np.exp(F.log_softmax(Z)), F.softmax(Z), **CLOSE)
    assert np.allclose(Z - F.logsumexp(Z)[:, None], F.log_softmax(Z), **CLOSE)


@both_weights
@reductions
def test_soft_targets_mix_the_losses_of_the_classes(weighted, reduction):
    Y, options = targets(True), {"sample_weight": weights(weighted), "reduction": "none"}
    mixed = sum(Y[:, k] * F.cross_entropy(logits(), np.full(N, k), **options) for k in range(K))
    total = {"mean": mixed.sum() / (weights().sum() if weighted else N), "sum": mixed.sum(), "none": mixed}
    loss = F.cross_entropy(logits(), Y, **{**options, "reduction": reduction})
    assert np.allclose(loss, total[reduction], **CLOSE)
    one_hot = F.cross_entropy_grad(logits(), np.eye(K)[targets(False)], **options)
    for a, b in zip(one_hot, F.cross_entropy_grad(logits(), targets(False), **options), strict=True):
        assert np.allclose(a, b, **CLOSE)


@both_targets
def test_label_smoothing_is_mixing_with_the_uniform_distribution(soft):
    Y = targets(soft) if soft else np.eye(K)[targets(soft)]
    by_hand = F.cross_entropy_grad(logits(), 0.8 * Y + 0.2 / K)
    for a, b in zip(F.cross_entropy_grad(logits(), targets(soft), label_smoothing=0.2), by_hand, strict=True):
        assert np.allclose(a, b, **CLOSE)


@both_targets
@both_smoothings
def test_weights_are_repeated_rows(soft, smoothing):
    (X, W, b), Y, s = linear_problem(), targets(soft), weights()
    twice = np.repeat(np.arange(N), s.astype(int))
    weighted = F.linear_cross_entropy_grad(X, Y, W, b, sample_weight=s, label_smoothing=smoothing)
    repeated = F.linear_cross_entropy_grad(X[twice], Y[twice], W, b, label_smoothing=smoothing)
    for a, b in zip(weighted[:3], repeated[:3], strict=True):
        assert np.allclose(a, b, **CLOSE)
    assert np.allclose(weighted[3][twice], s[twice, None] * repeated[3], **CLOSE)
    assert not weighted[3][s == 0].any()


def test_one_weight_for_all_rows():
    for reduction, factor in (("mean", 1), ("sum", 3)):
        loss = F.cross_entropy(logits(), targets(False), reduction=reduction)
        heavy = F.cross_entropy(logits(), targets(False), reduction=reduction, sample_weight=3)
        assert np.allclose(heavy, factor * loss, **CLOSE)


def test_linear_is_the_composition():
    (X, W, b), Y, s = linear_problem(), targets(True), weights()
    loss, dW, db, dX = F.linear_cross_entropy_grad(X, Y, W, b, sample_weight=s)
    value, G = F.cross_entropy_grad(X @ W.T + b, Y, sample_weight=s)
    for a, c in ((loss, value), (dW, G.T @ X), (db, G.sum(axis=0)), (dX, G @ W)):
        assert np.allclose(a, c, **CLOSE)
    without = F.linear_cross_entropy_grad(X, Y, W)
    for a, c in zip(without, F.linear_cross_entropy_grad(X, Y, W, np.zeros(K)), strict=True):
        assert np.array_equal(a, c)


def unsorted_csr(X):
    """The same matrix, every row stored from right to left."""
    X = sparse.csr_array(X)
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(X.indptr, X.indptr[1:], strict=False)])
    return sparse.csr_array((X.data[order], X.indices[order], X.indptr), shape=X.shape)


def csr_with_int64(X):
    X = sparse.csr_array(X)
    X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return X


FORMS = [sparse.csr_array, sparse.csr_matrix, sparse.csc_array, unsorted_csr, csr_with_int64]


@pytest.mark.parametrize("form", FORMS)
@both_dtypes
def test_sparse_equals_dense(form, dtype):
    X, W, b = (a.astype(dtype) for a in linear_problem())
    S = form(X)
    before = [a.copy() for a in (S.data, S.indices, S.indptr)]
    options = {"sample_weight": weights()}
    got, want = (F.linear_cross_entropy_grad(A, targets(False), W, b, **options) for A in (S, X))
    assert all(np.array_equal(a, b) for a, b in zip(before, (S.data, S.indices, S.indptr), strict=True))
    for a, b in zip(got, want, strict=True):
        assert np.allclose(a, b, rtol=0, atol=50 * np.finfo(dtype).eps)  # as CLOSE
    assert all(a.dtype == dtype for a in got[1:])


# --- other implementations --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(K,), (N, K), (1, 1), (0, K), (300, 100)])
def test_scipy_agrees(shape):
    Z = logits(*shape)
    close = dict.fromkeys(CLOSE, 2 * (shape[-1] + 16) * np.finfo(float).eps)  # as there, for K terms
    assert np.allclose(F.softmax(Z), scipy.special.softmax(Z, axis=-1), **close)
    assert np.allclose(F.log_softmax(Z), scipy.special.log_softmax(Z, axis=-1), **close)
    assert np.allclose(F.logsumexp(Z), scipy.special.logsumexp(Z, axis=-1), **close)


@both_targets
@both_weights
def test_scikit_learn_agrees(soft, weighted):
    Z, Y, s = logits(), targets(soft), weights(weighted)
    if soft:  # log_loss knows labels only: K weighted copies of each row
        s = Y * (1 if s is None else s[:, None])
        want = log_loss(np.tile(np.arange(K), N), np.repeat(F.softmax(Z), K, axis=0), sample_weight=s.ravel())
    else:
        want = log_loss(Y, F.softmax(Z), sample_weight=s, labels=range(K))
    assert F.cross_entropy(Z, Y, sample_weight=weights(weighted)) == pytest.approx(want, rel=CLOSE["rtol"])


# --- forms ------------------------------------------------------------------------------------------------


def test_one_row_is_a_batch_of_one():
    Z, U, Y = logits(), logits()[::-1], targets(True)
    for i, y in enumerate(targets(False)):
        assert np.array_equal(F.softmax(Z[i]), F.softmax(Z)[i])
        assert np.array_equal(F.log_softmax(Z[i]), F.log_softmax(Z)[i])
        assert F.logsumexp(Z[i]) == F.logsumexp(Z)[i]
        assert np.array_equal(F.softmax_jacobian(Z[i]), F.softmax_jacobian(Z)[i])
        assert np.array_equal(F.softmax_vjp(Z[i], U[i]), F.softmax_vjp(Z, U)[i])
        for one, many in ((y, targets(False)), (Y[i], Y)):
            losses, G = F.cross_entropy_grad(Z, many, sample_weight=weights(), reduction="none")
            loss, g = F.cross_entropy_grad(Z[i], one, sample_weight=weights()[i], reduction="none")
            assert np.ndim(loss) == 0
            assert loss == losses[i]
            assert np.array_equal(g, G[i])
    assert F.cross_entropy(Z[0], 2) == F.cross_entropy(Z[:1], [2])


@both_dtypes
def test_dtypes_are_kept(dtype):
    Z, s = logits(dtype=dtype), weights()
    X, W, b = (a.astype(dtype) for a in linear_problem())
    results = [F.softmax(Z), F.log_softmax(Z), F.logsumexp(Z), F.logsumexp(Z[0]), F.softmax_jacobian(Z)]
    results += [F.softmax_vjp(Z, Z), F.cross_entropy(Z, targets(True), sample_weight=s, reduction="none")]
    results += [F.cross_entropy_grad(Z, targets(soft), sample_weight=s)[1] for soft in (False, True)]
    results += F.linear_cross_entropy_grad(X, targets(True), W, b, sample_weight=s)[1:]
    assert {a.dtype for a in results} == {np.dtype(dtype)}
    assert isinstance(F.cross_entropy(Z, targets(True)), float)


def test_other_dtypes_become_float64():
    Z = np.arange(6).reshape(2, 3)
    for other in (Z, Z.astype(np.float16), Z.tolist(), Z.astype(object), Z.astype(">f8")):
        assert np.array_equal(F.softmax(other), F.softmax(Z.astype(float)))
        assert F.softmax(other).dtype == np.float64
    wide = Z.astype(np.float64)
    assert F.softmax_vjp(Z.astype(np.float32), wide).dtype == np.float64
    assert F.linear_cross_entropy_grad(Z.astype(np.float32), [0, 1], wide)[1].dtype == np.float64
    for codes in (np.array([0, 2], np.uint8), np.array([0, 2], ">i4"), [0, 2]):
        assert F.cross_entropy(wide, codes) == F.cross_entropy(wide, np.array([0, 2]))
    assert F.cross_entropy(wide, [[True, False, False]] * 2) == F.cross_entropy(wide, [0, 0])


def test_any_memory_layout_and_read_only_inputs():
    X, W, b = linear_problem()
    Y, s = targets(True), weights()
    want = F.linear_cross_entropy_grad(X, Y, W, b, sample_weight=s)
    for form in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2], lambda a: a[::-1].copy()[::-1]):
        given = [form(a) for a in (X, Y, W, b, s)]
        copies = [a.copy() for a in given]
        for a in given:
            a.flags.writeable = False
        got = F.linear_cross_entropy_grad(*given[:4], sample_weight=given[4])
        assert all(np.array_equal(a, c) for a, c in zip(got, want, strict=True))
        assert all(np.array_equal(a, c) for a, c in zip(given, copies, strict=True))


@pytest.mark.parametrize("shape", [(K,), (N, K)])
@both_dtypes
def test_out(shape, dtype):
    Z, U = logits(*shape, dtype=dtype), logits(*shape, dtype=dtype)[::-1].copy()
    Y = targets(True)[: Z.size // K].reshape(shape)
    calls = [F.softmax, F.log_softmax, lambda Z, out=None: F.softmax_vjp(Z, U, out=out)]
    calls += [lambda Z, out=None: F.cross_entropy_grad(Z, Y, out=out)[1]]
    for call in calls:
        want, out = call(Z), np.full_like(Z, np.nan)
        assert call(Z, out=out) is out
        assert np.array_equal(out, want)
        out = Z.copy()
        assert call(out, out=out) is out  # in place
        assert np.array_equal(out, want)
    # one array shifted against the other: the kernel must not read what it has just written
    memory = np.concatenate([np.ravel(Z), np.zeros(2, dtype)])
    F.softmax(memory[:-2].reshape(shape), out=memory[2:].reshape(shape))
    assert np.array_equal(memory[2:].reshape(shape), F.softmax(Z))


def test_no_rows():
    empty, codes = np.empty((0, K)), np.empty(0, int)
    assert F.softmax(empty).shape == F.log_softmax(empty).shape == F.softmax_vjp(empty, empty).shape == (0, K)
    assert F.logsumexp(empty).shape == (0,)
    assert F.softmax_jacobian(empty).shape == (0, K, K)
    assert F.cross_entropy(empty, codes, reduction="sum") == 0
    assert F.cross_entropy_grad(empty, codes, reduction="none")[1].shape == (0, K)


def test_the_loss_keeps_its_digits_where_probabilities_underflow():
    assert F.cross_entropy([0.0, 1e4], 0) == 1e4
    assert F.cross_entropy(np.float32([0, 1e4]), 0) == 1e4
    assert F.cross_entropy([0.0, 1e4], [0.5, 0.5]) == 5e3


# --- check_gradient itself --------------------------------------------------------------------------------


def test_check_gradient_is_exact_for_polynomials_of_degree_four():
    x = np.array([[0.5, -2.0], [3.0, 1e6]])
    for eps in (None, 0.5):  # without a truncation error the step may be any
        assert F.check_gradient(lambda x: ((x**4).sum(), 4 * x**3), x, eps=eps)[0] < RIGHT
    error, index = F.check_gradient(lambda x: (x**4, 4 * x**3), 3.0)
    assert error < RIGHT
    assert index == ()


def test_check_gradient_finds_a_missing_p():
    """The classic mistake in the vector-Jacobian product: t - sum(t), where it should be t - sum(t) p."""
    u = np.array([1.0, -2.0, 0.5])

    def value_and_grad(z, right):
        p = F.softmax(z)
        t = p * u
        return u @ p, t - t.sum() * (p if right else 1)

    z = np.array([0.3, -0.1, 2.0])
    assert F.check_gradient(lambda z: value_and_grad(z, True), z)[0] < RIGHT
    error, index = F.check_gradient(lambda z: value_and_grad(z, False), z)
    wrong, right = value_and_grad(z, False)[1], value_and_grad(z, True)[1]
    relative = abs(wrong - right) / np.maximum(abs(wrong), abs(right))
    assert error == pytest.approx(relative.max(), rel=RIGHT)
    assert index == (relative.argmax(),)


@both_dtypes
@pytest.mark.parametrize("index", [(0, 0), (1, 3), (2, 2)])
def test_check_gradient_names_the_wrong_entry(index, dtype):
    def value_and_grad(Z):
        loss, G = F.cross_entropy_grad(Z, [0, 1, 2], reduction="sum")
        G[index] *= 1.5
        return loss, G

    error, where = F.check_gradient(value_and_grad, np.zeros((3, 4), dtype))
    assert where == index
    assert error == pytest.approx(1 / 3, rel=1e-2)  # |1.5 g - g| / 1.5 g; float32 resolves two digits


def test_check_gradient_in_float32():
    def value_and_grad(Z):
        assert Z.dtype == np.float32
        return F.cross_entropy_grad(Z, targets(True))

    error, _ = F.check_gradient(value_and_grad, logits(dtype=np.float32))
    assert error < 6 * np.sqrt(np.finfo(np.float32).eps)  # its promise


def test_check_gradient_is_not_fooled():
    assert F.check_gradient(lambda x: (x @ x / 2, x), [1.0, 2.0])[0] < RIGHT  # a gradient that is x itself
    assert F.check_gradient(lambda x: (x @ x, 2 * x), np.zeros(3))[0] < RIGHT  # a minimum: 0 against rounding
    assert F.check_gradient(lambda x: (0.0, 0 * x), np.ones(3)) == (0.0, (0,))
    assert np.isnan(F.check_gradient(lambda x: (np.nan, x), np.ones(3))[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_call_that_raises_leaves_out_as_it_was_where_it_is_an_input(value):
    Z = logits()
    Z[3, 1] = value
    before, Y = Z.copy(), targets(False)
    for call in (F.softmax, F.log_softmax, lambda Z, out: F.cross_entropy_grad(Z, Y, out=out)):
        with pytest.raises(ValueError, match="Input Z contains"):
            call(Z, out=Z)
        assert np.array_equal(Z, before, equal_nan=True)
