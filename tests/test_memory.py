"""Memory beyond X: how much a fit takes at most, and the probabilities that are recomputed to keep it small."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from shared import both_dtypes, like, softmax_data, unfinished

from softreg import SoftmaxRegression, _objective, _teams
from softreg._objective import Objective, _next_trial, _trials_ahead
from softreg._preconditioners import Diagonal

N, D, K = 700, 6, 5  # rows of more than two blocks of 256, see `small_blocks`
forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 256 rows, the least, wherever rows are taken in blocks."""
    for name in ("BLOCK_NUMBERS", "CACHED_NUMBERS"):
        monkeypatch.setattr(_objective, name, 1)


@pytest.fixture
def nothing_stored(monkeypatch, small_blocks):
    """Probabilities of all rows are never stored."""
    monkeypatch.setattr(_objective, "STORED_BYTES", 0)


def problem(form, dtype=np.float64, soft=False, weighted=False):
    rng = np.random.default_rng(0)
    X, y = softmax_data(N, D, K)
    targets = rng.dirichlet(np.ones(K), size=N).astype(dtype) if soft else None
    weight = rng.integers(3, size=N).astype(dtype) if weighted else None
    codes = None if soft else y.astype(np.intp)
    objective = Objective(form(X.astype(dtype)), codes, targets, weight, K, l2=0.01, label_smoothing=0.1)
    return objective, *(like(objective, rng.normal(size=objective.shape)) for _ in range(2))


def both_modes(monkeypatch, objective, W):
    """Return the linearisation at W with stored probabilities, and that which recomputes them."""
    stored = objective.linearize(W)
    monkeypatch.setattr(_objective, "STORED_BYTES", 0)
    recomputed = objective.linearize(W)
    assert stored._P is not None and recomputed._P is None
    return stored, recomputed


def close(dtype):
    """Sums of N numbers of order one in another order, behind exponentials of logits of order ten: some 100 eps."""
    eps = float(np.finfo(dtype).eps)
    return {"rtol": 1000 * eps, "atol": 100 * eps}


@forms
@both_dtypes
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_recomputed_probabilities_give_the_same_sums(form, dtype, soft, weighted, monkeypatch, small_blocks):
    objective, W, V = problem(form, dtype, soft, weighted)
    rng = np.random.default_rng(1)
    positions = np.sort(rng.permutation(N)[:600])
    share = (0.1 * (rng.random(N) < 0.3)).astype(dtype)
    stored, recomputed = both_modes(monkeypatch, objective, W)
    U = Diagonal(objective)
    U.refresh(stored)
    models = {
        "all rows": lambda at: at,
        "damped": lambda at: at.damped(share),
        "some rows": lambda at: at.select(positions),
        "some damped rows": lambda at: at.damped(share).select(positions, np.ones(len(positions), dtype)),
    }
    for name, model in models.items():
        one, other = model(stored), model(recomputed)
        same = {**close(dtype), "err_msg": name}
        assert one.value == pytest.approx(other.value, rel=close(dtype)["rtol"])
        np.testing.assert_allclose(other.gradient, one.gradient, **same)
        np.testing.assert_allclose(other.hessian_product(V), one.hessian_product(V), **same)
        np.testing.assert_allclose(other.probabilities(slice(9, 300)), one.probabilities(slice(9, 300)), **same)
        np.testing.assert_allclose(other.probabilities(np.array([3, 7])), one.probabilities(np.array([3, 7])), **same)
        np.testing.assert_allclose(other.class_gram(), one.class_gram(), **same)
        for mine, other_sums in zip(one.curvature_sums(U.U), other.curvature_sums(U.U), strict=True):
            np.testing.assert_allclose(other_sums, mine, **same)
        np.testing.assert_allclose(other.uncertainty(), one.uncertainty(), **same)
        assert other.entropy() == pytest.approx(one.entropy(), rel=close(dtype)["rtol"])
    trials = [objective.linearize(W + V), objective.linearize(W + V)]
    trials[1]._P = None
    changes = [one.probability_changes(trial) for one, trial in zip((stored, recomputed), trials, strict=True)]
    np.testing.assert_allclose(*changes, **close(dtype))


@forms
def test_damping_changes_no_other_linearisation(form):
    objective, W, V = problem(form)
    at = objective.linearize(W)
    before, product = at.probabilities(slice(None)).copy(), at.hessian_product(V)
    damped = at.damped(np.full(N, 0.5))
    damped.probabilities(slice(0, 10))
    assert not np.array_equal(damped.hessian_product(V), product)
    assert np.array_equal(at.probabilities(slice(None)), before)
    assert np.array_equal(at.hessian_product(V), product)


@forms
@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_line_search_with_and_without_kept_logits(form, factor, monkeypatch, small_blocks):
    """The trials of a bisection are numbers of its own, so that both ways have to end at the very same."""
    objective, W, _ = problem(form)
    step = -factor * objective.linearize(W).gradient
    kept = objective.line_minimum(W, step, 1.0)
    monkeypatch.setattr(_objective, "KEPT_NUMBERS", 0)
    assert objective.line_minimum(W, step, 1.0) == kept


def test_trials_ahead_are_all_that_a_bisection_may_come_to():
    for turns in np.ndindex(2, 2, 2):
        low, high = 0.0, 0.9
        ahead = _trials_ahead((low, high), 3)
        for turn in turns:
            t = _next_trial(low, high)
            assert t in ahead
            low, high = (t, high) if turn else (low, t)
    assert _trials_ahead((0.95, 1.0), 3) == set()  # the bracket is a tenth already


@forms
@pytest.mark.parametrize("what", [{"solver": "newton"}, {"solver": "auto"}, {"solver": "auto", "l1_ratio": 0.5}])
def test_a_fit_that_recomputes_reaches_the_same_optimum(form, what, monkeypatch, small_blocks):
    """Both fits end within tol of the same minimum, by a proven gap or by an estimate that is twice the gap."""
    X, y = softmax_data(2000, D, K)
    what = {"alpha": 1e-3, "tol": 1e-6, "random_state": 0, **what}
    stored = SoftmaxRegression(**what).fit(form(X), y)
    monkeypatch.setattr(_objective, "STORED_BYTES", 0)
    recomputed = SoftmaxRegression(**what).fit(form(X), y)
    losses = [model.history_["loss"][-1] for model in (stored, recomputed)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6 * losses[0])


@forms
def test_threads_do_not_change_a_fit_that_recomputes(form, nothing_stored):
    X, y = softmax_data(2000, D, K)
    _teams.use_threads_everywhere(True)
    try:
        one, two = (SoftmaxRegression(solver="newton", random_state=0, n_jobs=n).fit(form(X), y) for n in (1, 2))
    finally:
        _teams.use_threads_everywhere(False)
    assert np.array_equal(one.coef_, two.coef_) and np.array_equal(one.intercept_, two.intercept_)


@unfinished
def test_verbose_says_that_probabilities_are_recomputed(capsys, nothing_stored):
    X, y = softmax_data(200, 3, 3)
    SoftmaxRegression(verbose=1, max_iter=1).fit(X, y)
    assert "recomputed block by block" in capsys.readouterr().out
    SoftmaxRegression(max_iter=1).fit(X, y)
    assert not capsys.readouterr().out


def test_verbose_does_not_mention_stored_probabilities(capsys):
    X, y = softmax_data(200, 3, 3)
    SoftmaxRegression(verbose=1).fit(X, y)
    assert "recomputed" not in capsys.readouterr().out


# --- peaks ------------------------------------------------------------------------------------------------------------
# tracemalloc counts what NumPy allocates, also the zeros that the system gives no memory to.


def peak_of_fit(X, y, **what):
    """Return the largest number of bytes that a fit has at a time, beyond what was there before."""
    model = SoftmaxRegression(random_state=0, **what)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        model.fit(X, y)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def many_classes(n, d, classes, dtype=np.float32):
    """Labels of many classes, whose features are apart; a tenth of the labels is drawn anew."""
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=n)
    X = (rng.normal(size=(classes, d))[y] + 0.5 * rng.normal(size=(n, d))).astype(dtype)
    return X, np.where(rng.random(n) < 0.1, rng.integers(classes, size=n), y)


@unfinished
def test_a_dense_fit_takes_two_and_a_half_arrays_of_probabilities(monkeypatch):
    """Two linearisations at a time, or one and a model's copy. The half is left for samples and for temporaries, whose
    size does not grow with n K: here they are blocks of 2^18 numbers, and samples of 512 rows."""
    n, d, classes = 20000, 16, 200
    monkeypatch.setattr(_objective, "BLOCK_NUMBERS", 2**18)
    monkeypatch.setattr(_objective, "KEPT_NUMBERS", 2**18)
    monkeypatch.setattr("softreg._preconditioners.correlation.SAMPLE_ROWS", 512)
    monkeypatch.setattr("softreg._preconditioners.blocks.BLOCK_ROWS", 512)
    X, y = many_classes(n, d, classes)
    assert peak_of_fit(X, y, max_iter=12, tol=1e-6) <= 2.5 * n * classes * 4


@unfinished
def test_a_fit_that_recomputes_has_no_array_of_probabilities(monkeypatch):
    """Blocks of 2^18 numbers, samples of 512 rows, and some numbers a row: less than half an array of n K numbers."""
    n, d, classes = 20000, 16, 200
    monkeypatch.setattr(_objective, "STORED_BYTES", 2**20)
    monkeypatch.setattr(_objective, "BLOCK_NUMBERS", 2**18)
    monkeypatch.setattr(_objective, "KEPT_NUMBERS", 0)
    monkeypatch.setattr("softreg._preconditioners.correlation.SAMPLE_ROWS", 512)
    monkeypatch.setattr("softreg._preconditioners.blocks.BLOCK_ROWS", 512)
    X, y = many_classes(n, d, classes)
    assert peak_of_fit(X, y, max_iter=3) <= 0.5 * n * classes * 4


def text(n, d, classes):
    """Rows of 30 nonzeros among d features, of length one, whose labels follow from the first, common features."""
    rng = np.random.default_rng(0)
    columns = (d * rng.random((n, 30)) ** 4).astype(np.int32)
    X = sparse.csr_array((rng.random(n * 30).astype(np.float32), columns.ravel(), np.arange(0, 30 * n + 1, 30)), (n, d))
    X.sum_duplicates()
    X.data /= np.sqrt(np.repeat(np.add.reduceat(X.data**2, X.indptr[:-1]), np.diff(X.indptr)))
    return X, (X[:, :100] @ rng.normal(size=(100, classes)) + 0.2 * rng.gumbel(size=(n, classes))).argmax(axis=1)


@unfinished
@pytest.mark.parametrize(("solver", "arrays"), [("dual", 4), ("newton", 5)])
def test_a_sparse_fit_takes_few_arrays_like_w(solver, arrays, monkeypatch):
    """Dual ascent: the start, W, the class moments, and a gradient or `coef_`. Newton's method: the start,
    zeros that take no memory but are counted here, W, the residual, the step and the direction. Beside these there are
    two arrays of n K numbers, and at most three blocks of features at a time, of 2^18 numbers of float64."""
    monkeypatch.setattr("softreg._preconditioners.diagonal.KEPT_NUMBERS", 0)
    n, d, classes = 500, 2**16, 40
    X, y = text(n, d, classes)
    allowed = 4 * (arrays * classes * (d + 1) + 2 * n * classes) + 3 * 8 * 2**18
    assert peak_of_fit(X, y, solver=solver, alpha=1e-4, max_iter=12) <= allowed
