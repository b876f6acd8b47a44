"""Streams of sparse rows: the kernel against its NumPy twin, what the steps promise, and the state."""

import inspect
import pickle

import numpy as np
import pytest
from scipy import sparse

from softreg import _sparse_stream, _sparse_stream_reference
from softreg._solvers.sparse_stream import BAND, DAMPING, LIMIT, RATE, SparseStream

EPS = np.finfo(np.float64).eps


# --- helpers ----------------------------------------------------------------------------------------------


def text(n=200, d=60, K=3, dtype=np.float64, index=np.int32, seed=0):
    """Rows of counts that tell their class, some of them empty, one with an entry that is zero; codes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(K, size=n)
    rates = 0.2 * rng.exponential(size=(K, d))
    counts = rng.poisson(rates[y])
    counts[::9] = 0
    X = sparse.csr_array(counts.astype(dtype))
    X.data[3] = 0
    return with_index(X, index), y.astype(np.intp)


def with_index(X, index):
    X = X.copy()
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    return X


def frozen(*arrays):
    for a in arrays:
        if a is not None:
            a.flags.writeable = False


def learnt(X, y, *, l2=1e-2, fit_intercept=True, n_classes=3, batch=None, **given):
    stream = SparseStream(X.shape[1], n_classes, fit_intercept, X.dtype)
    batch = batch or X.shape[0]
    given = {"sample_weight": None, "targets": None} | given
    scores = np.zeros(2)
    for i in range(0, X.shape[0], batch):
        part = slice(i, i + batch)
        own = {k: given[k] if given[k] is None else given[k][part] for k in ("sample_weight", "targets")}
        codes = None if y is None else y[part]
        scores += stream.learn(X[part], codes, l2=l2, **{**given, **own})
    return stream, scores


def distance(a, b):
    """The largest difference, relative to the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


# --- the kernel and its twin ------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 3, 8, 15, 16, 17, 20, 33, 64, 100])  # every width of tile, with remainders
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("l1", [0.0, 1e-3])
@pytest.mark.parametrize("variant", ["plain", "no intercept", "soft", "weights", "int64", "rows"])
def test_the_kernel_follows_its_twin(K, dtype, l1, variant):
    index = np.int64 if variant == "int64" else np.int32
    X, y = text(60, 40, K, dtype, index)
    rng = np.random.default_rng(1)
    targets = rng.dirichlet(np.ones(K), size=60).astype(dtype) if variant == "soft" else None
    weight = rng.exponential(size=60).astype(dtype) if variant == "weights" else None
    if weight is not None:
        weight[::7] = 0
    rows = rng.permutation(60)[:40].astype(np.intp) if variant == "rows" else None
    codes = None if targets is not None else y
    frozen(X.data, X.indices, X.indptr, codes, targets, weight, rows)
    ends = []
    for module, of in ((_sparse_stream, dtype), (_sparse_stream_reference, np.float64)):
        stream = SparseStream(40, K, variant != "no intercept", of)
        score = np.zeros(2)
        count = module.csr_stream(
            X.data.astype(of, copy=False), X.indices, X.indptr, rows, codes, targets, weight, 0.1, 1e-2, l1, RATE, BAND,
            LIMIT, DAMPING, 40, stream.theta, stream.features, stream.totals, score,
        )  # fmt: skip
        assert count == (60 if rows is None else 40)
        ends.append((stream.theta, stream.features, stream.totals, score[:1]))
    # 60 steps, each of which rounds once or twice what it changes and depends smoothly on those before
    bound = 1000 * np.finfo(dtype).eps
    for kernel, twin in zip(*ends, strict=True):
        assert distance(kernel, twin) < bound


def test_the_twin_has_the_kernels_signature():
    kernel = inspect.signature(_sparse_stream.csr_stream)
    assert list(kernel.parameters) == list(inspect.signature(_sparse_stream_reference.csr_stream).parameters)


# --- penalties of features that a row does not have -------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_l2_is_exact_against_steps_on_all_features(fit_intercept):
    """A dense twin makes every step on every coefficient, by the first-order condition of that step alone."""
    X, y = text()
    l2, K, d = 3e-2, 3, X.shape[1]
    W, h, total = np.zeros((d + 1, K)), np.zeros(d + 1), 0.0
    stream = SparseStream(d, K, fit_intercept)
    for i in range(X.shape[0]):
        # the row's own step, at strengths and coefficients as they stand
        before, features = W.copy(), stream.features.copy()
        stream.learn(X[i : i + 1], y[i : i + 1], None, None, l2=l2)
        grown = np.append(stream.features[:, 0], [0.0] * (not fit_intercept))
        x = np.append(X[i : i + 1].toarray().ravel(), float(fit_intercept))
        h = np.append(features[:, 0], [0.0] * (not fit_intercept))
        sizes = features[:, 1]
        seen = x[: len(sizes)]
        jump = (np.abs(seen) > BAND * sizes) & (sizes > 0)
        assert not jump.any()
        z = x @ before
        p = np.exp(z - z.max())
        r = np.eye(K)[y[i]] - p / p.sum()
        penalty = np.append(np.full(d, l2), 0.0)
        size = grown + (total + l2) * (penalty > 0)
        change = np.sum(np.divide(x * x, size, out=np.zeros_like(x), where=x != 0))
        # first order condition of the step, for every feature: (h' + L') W' = (h' + L) W + t x r
        t = 1 / np.sqrt(1 + (change * np.linalg.norm(r) / LIMIT) ** 2)
        right = (grown + total * (penalty > 0))[:, None] * before + t * np.outer(x, r)
        W = np.divide(right, size[:, None], out=np.zeros_like(right), where=size[:, None] > 0)
        total += l2
        assert (grown[x == 0] == h[x == 0]).all()
    found = np.zeros((d + 1, K))
    found[: len(stream.theta)] = stream.coefficients().T
    # 200 steps of a few roundings each
    assert distance(found, W) < 1000 * EPS


def test_l1_is_exact_against_steps_on_all_features():
    """Rows that come after the last meeting shrink a coefficient as l1 and l2 of all of them at once do."""
    X, y = text()
    stream, _ = learnt(X, y, l2=1e-3, l1=2e-3)
    before = stream.coefficients()[:, :-1]
    empty = sparse.csr_array((50, X.shape[1]))
    empty.indices, empty.indptr = empty.indices.astype(np.int32), empty.indptr.astype(np.int32)
    h, L2 = stream.features[:-1, 0], stream.totals[0]
    stream.learn(empty, np.zeros(50, np.intp), None, None, l2=1e-3, l1=2e-3)
    W = before
    for step in range(50):
        size, larger = h + L2 + step * 1e-3, h + L2 + (step + 1) * 1e-3
        # argmin of size/2 (W' - W)^2 + l2/2 W'^2 + l1 |W'|, from a W that was not zero
        W = np.sign(W) * np.maximum(size * np.abs(W) - 2e-3, 0) / np.where(larger > 0, larger, 1)
    after = stream.coefficients()[:, :-1]
    alive = before != 0
    assert 0 < alive.sum() and (after[alive] == 0).any() and (after[alive] != 0).any()
    # differences of numbers of order 1 (theta) around zero: absolute, in units of the largest coefficient
    assert distance(after[alive], W[alive]) < 1000 * EPS
    assert (after[~alive] == 0).all()


def test_l1_makes_zeros():
    X, y = text()
    few, many = (np.count_nonzero(learnt(X, y, l2=0.0, l1=l1)[0].coefficients()[:, :-1]) for l1 in (3e-2, 0.0))
    assert few < many / 2


# --- what does not matter ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 10, 37])
def test_cuts_of_a_stream_change_no_bit(batch):
    X, y = text()
    whole, scores = learnt(X, y)
    parts, sums = learnt(X, y, batch=batch)
    assert np.array_equal(whole.theta, parts.theta) and np.array_equal(whole.features, parts.features)
    assert np.isclose(scores, sums, rtol=1e-12).all()  # losses are added in another order
    assert scores[1] == sums[1]


def test_rows_of_weight_zero_and_entries_of_zero_do_not_count():
    X, y = text()
    weight = np.ones(X.shape[0])
    weight[::3] = 0
    some = weight > 0
    left, right = learnt(X, y, sample_weight=weight)[0], learnt(X[some], y[some])[0]
    assert np.array_equal(left.theta, right.theta) and np.array_equal(left.totals, right.totals)
    dense = sparse.csr_array(np.ones(X.shape))
    dense.data = X.toarray().ravel()
    dense = with_index(dense, np.int32)
    assert np.array_equal(learnt(dense, y)[0].theta, learnt(X, y)[0].theta)


def test_entries_that_come_twice_are_summed():
    X, y = text()
    data, indices = np.repeat(X.data / 2, 2), np.repeat(X.indices, 2)
    twice = sparse.csr_array((data, indices, 2 * X.indptr), shape=X.shape)
    assert np.array_equal(learnt(twice, y)[0].theta, learnt(X, y)[0].theta)
    assert twice.nnz == 2 * X.nnz  # the caller's matrix is as it was


def test_a_weight_of_two_is_about_the_row_twice():
    X, y = text(2000)
    doubled, _ = learnt(X, y, sample_weight=np.full(2000, 2.0))
    twice, _ = learnt(X[np.repeat(np.arange(2000), 2)], np.repeat(y, 2))
    assert np.isclose(doubled.totals, twice.totals, rtol=1e-12).all()
    # a second step is made after the first, where the residual is smaller: W agrees to a few per cent, no more
    assert np.linalg.norm(doubled.coefficients() - twice.coefficients()) < 0.1 * np.linalg.norm(twice.coefficients())


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_units_of_all_features_do_not_matter(factor):
    X, y = text()
    left, right = learnt(X, y, l2=0.0)[0], learnt(X * factor, y, l2=0.0)[0]
    # powers of two, but the mean of the logarithms rounds
    assert distance(right.coefficients()[:, :-1] * factor, left.coefficients()[:, :-1]) < 1e5 * EPS


def test_features_of_mixed_units_are_learnt():
    X, y = text(2000)
    scales = 10.0 ** np.random.default_rng(0).uniform(-6, 6, X.shape[1])
    mixed = with_index(sparse.csr_array(X @ sparse.diags_array(scales)), np.int32)
    accuracies = []
    for A in (X, mixed):
        W = learnt(A, y, l2=0.0)[0].coefficients()
        accuracies.append(np.mean((A @ W[:, :-1].T + W[:, -1]).argmax(axis=1) == y))
    # .91 and .86 here: steps of features outside the band are a factor of BAND off; one unit for all gives .71
    assert accuracies[0] > 0.9 and accuracies[1] > accuracies[0] - 0.08


def test_a_feature_that_grows_is_forgiven():
    """What was learnt at 1e-6 would give logits of 1e12 at 1e6; two classes, one feature."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400).astype(np.intp)
    x = (2.0 * y - 1) * np.where(np.arange(400) < 200, 1e-6, 1e6)
    X = with_index(sparse.csr_array(x[:, None]), np.int32)
    stream, (loss, correct) = learnt(X, y, n_classes=2, l2=0.0)
    assert np.abs(X @ stream.coefficients()[:, :-1].T).max() < 100  # a wrong unit: 1e12
    assert correct > 395 and loss < 40  # log 2 a row would be 277


# --- what is learnt ---------------------------------------------------------------------------------------


def test_a_pass_learns_and_predicts_before_it_learns():
    X, y = text(3000)
    _, (loss, correct) = learnt(X, y, l2=1e-4)
    assert loss / 3000 < 0.5 * np.log(3) and correct / 3000 > 0.8
    alone = SparseStream(X.shape[1], 3)
    first = alone.learn(X[1:2], y[1:2], None, None, l2=1e-4)
    assert np.isclose(first[0], np.log(3), rtol=1e-15)  # nothing was known


def test_label_smoothing_is_soft_targets():
    X, y = text()
    targets = 0.7 * np.eye(3)[y] + 0.1
    soft, hard = learnt(X, None, targets=targets)[0], learnt(X, y, label_smoothing=0.3)[0]
    # the same numbers, rounded once more
    assert distance(soft.theta, hard.theta) < 1000 * EPS


def test_empty_rows_teach_the_intercepts_alone():
    X = sparse.csr_array((30, 5))
    X.indices, X.indptr = X.indices.astype(np.int32), X.indptr.astype(np.int32)
    y = np.zeros(30, np.intp)
    W = learnt(X, y)[0].coefficients()
    assert (W[:, :-1] == 0).all() and W[0, -1] > W[1, -1]
    assert (learnt(X, y, fit_intercept=False)[0].theta == 0).all()


def test_epochs_come_close_to_the_optimum():
    X, y = text(3000)
    from softreg import SoftmaxRegression

    alpha, rng = 1e-3, np.random.default_rng(0)
    best = SoftmaxRegression(alpha=alpha, tol=1e-6).fit(X, y)

    def objective(W):
        Z = X @ W[:, :-1].T + W[:, -1]
        return np.mean(np.logaddexp.reduce(Z, axis=1) - Z[np.arange(3000), y]) + alpha / 2 * np.sum(W[:, :-1] ** 2)

    stream = SparseStream(X.shape[1], 3)
    for epoch in range(5):
        stream.begin_epoch(epoch, 5)
        stream.learn(X, y, None, None, l2=alpha, rows=rng.permutation(3000).astype(np.intp))
    optimum = objective(np.column_stack([best.coef_, best.intercept_]))
    assert objective(stream.coefficients()) < 1.01 * optimum  # what several epochs are for


# --- the state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [lambda s: pickle.loads(pickle.dumps(s)), "state"])
def test_a_stream_goes_on_bit_for_bit(copied):
    X, y = text()
    whole, _ = learnt(X, y, l1=1e-3)
    half, _ = learnt(X[:100], y[:100], l1=1e-3)
    if copied == "state":
        other = SparseStream(1, 2)
        other.set_state(half.get_state())
    else:
        other = copied(half)
    other.learn(X[100:], y[100:], None, None, l2=1e-2, l1=1e-3)
    assert np.array_equal(other.theta, whole.theta) and np.array_equal(other.features, whole.features)
    assert not np.array_equal(half.theta, whole.theta)  # the copy shares nothing


def test_the_state_is_plain_and_names_its_format():
    state = SparseStream(4, 3).get_state()
    assert all(type(v) in (int, float, np.ndarray) for v in state.values())
    with pytest.raises(ValueError, match="format 99"):
        SparseStream(4, 3).set_state({**state, "format": 99})


def test_adopted_coefficients_are_kept():
    X, y = text()
    stream, _ = learnt(X, y, l1=1e-3)
    W = np.random.default_rng(0).normal(size=stream.coefficients().shape)
    met = np.append(stream.features[:-1, 1] > 0, True)
    stream.adopt(W)
    assert distance(stream.coefficients()[:, met], W[:, met]) < 100 * EPS  # made and unmade by a division
    j = np.array([3, 5, X.shape[1]])
    assert np.array_equal(stream.coefficients(j), stream.coefficients()[:, j])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflow_is_an_error_and_leaves_finite_numbers(dtype):
    X, y = text(dtype=dtype)
    X.data[-1] = np.finfo(dtype).max
    stream, _ = learnt(X[:100], y[:100])
    if dtype is np.float64:  # products of float32 numbers are made in float64, which takes them
        with pytest.raises(FloatingPointError, match=r"row 99 overflow; scale the features"):
            stream.learn(X[100:], y[100:], None, None, l2=1e-2)
    else:
        stream.learn(X[100:], y[100:], None, None, l2=1e-2)
    assert np.isfinite(stream.coefficients()).all() and np.isfinite(stream.features).all()


@pytest.mark.parametrize("n_epochs", [None, 2, 5])
def test_forgetting_changes_no_coefficient(n_epochs):
    X, y = text()
    stream, _ = learnt(X, y, l1=1e-3)
    before, theta = stream.coefficients(), stream.theta.copy()
    stream.begin_epoch(1, n_epochs)
    assert distance(stream.coefficients(), before) < 100 * EPS  # all sums are scaled by one factor
    assert np.array_equal(stream.theta, theta) == (n_epochs == 2)  # all is kept over the last two epochs
