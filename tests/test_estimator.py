"""SoftmaxRegression as scikit-learn's guest: its contract, parameters, forms of input, prediction, neighbours."""

import doctest
import inspect
import pickle
import re
import warnings

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy import sparse
from scipy.special import log_softmax, softmax
from shared import both_classes, forms, null_loss, softmax_data, unfinished
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from softreg import SoftmaxRegression, _estimator
from softreg import functional as F
from softreg._callbacks import hold_out

N, D, K = 120, 5, 3
ALPHA = 1e-2
# Fits that two ways must take to the same optimum. F there is under 1.1, so a gap of at most 1e-12 F puts each
# within sqrt(2 * 1.1e-12 / ALPHA) = 1.5e-5 of the best coefficients, by strong convexity.
EXACT = {"alpha": ALPHA, "tol": 1e-12, "max_iter": 1000}
SAME_OPTIMUM = {"rtol": 0, "atol": 3e-5}
# Fits of a few minibatch epochs: two ways that differ by the order of sums, some 30 eps a step, keep together. Later
# epochs solve for Newton steps, which multiplies that by the condition of the Hessian, some 1e4 here.
SHORT = {"alpha": ALPHA, "solver": "sgd", "max_iter": 3, "random_state": 0}
SAME_PATH = {"rtol": 1e-9, "atol": 1e-9}

solvers = pytest.mark.parametrize("solver", ["auto", "sgd"])


def data(classes=K, n=N, d=D, dtype=np.float64, seed=0):
    X, y = softmax_data(n, d, classes, seed)
    y[:classes] = np.arange(classes)
    return X.astype(dtype), y


def weights(n=N):
    return np.random.default_rng(1).integers(4, size=n).astype(float)


def objective(model, X, Y, s=None):
    """F in plain NumPy, from the class's docstring; Y are codes or distributions."""
    Z = np.atleast_2d(model.decision_function(X).astype(float).T).T
    Z = np.hstack([-Z / 2, Z / 2]) if Z.shape[1] == 1 else Z
    Y = np.eye(Z.shape[1])[Y] if Y.ndim == 1 else Y
    Y = (1 - model.label_smoothing) * Y + model.label_smoothing / Z.shape[1]
    coef = model.coef_.astype(float)
    penalty = (1 - model.l1_ratio) / 2 * (coef**2).sum() + model.l1_ratio * np.abs(coef).sum()
    return np.average(-(Y * log_softmax(Z, axis=1)).sum(axis=1), weights=s) + model.alpha * penalty


def same(a, b, **tolerance):
    """Equal coefficients: bit for bit, or within a tolerance."""
    for name in ("coef_", "intercept_"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        if tolerance:
            np.testing.assert_allclose(x, y, **tolerance)
        else:
            assert np.array_equal(x, y)


@pytest.fixture
def seen(monkeypatch):
    """What `fit` hands to the objective."""
    calls = []

    class Spy(_estimator.Objective):
        def __init__(self, X, *args, **kwargs):
            calls.append(X)
            super().__init__(X, *args, **kwargs)

    monkeypatch.setattr(_estimator, "Objective", Spy)
    return calls


# --- the contract -------------------------------------------------------------------------------------------


# The checks cut max_iter down to 5 by themselves and fit random labels: a warning is then the right answer.
@unfinished
@parametrize_with_checks([SoftmaxRegression(), SoftmaxRegression(solver="sgd")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_examples():
    result = doctest.testmod(_estimator)
    assert result.attempted > 0
    assert result.failed == 0


def test_docstring_names_every_parameter_and_its_default():
    doc = inspect.getdoc(SoftmaxRegression)
    for name, parameter in inspect.signature(SoftmaxRegression).parameters.items():
        default = parameter.default if not isinstance(parameter.default, str) else f'"{parameter.default}"'
        default = {"0.0001": "1e-4"}.get(str(default), str(default))
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert re.search(rf"^{name} : .*default={re.escape(default)}$", doc, re.MULTILINE), name
        assert name in SoftmaxRegression._parameter_constraints


@solvers
@both_classes
@unfinished
def test_attributes(solver, classes):
    X, y = data(classes)
    model = SoftmaxRegression(solver=solver, max_iter=20)
    assert model.fit(X, y) is model
    rows = 1 if classes == 2 else classes
    assert model.coef_.shape == (rows, D)
    assert model.intercept_.shape == (rows,)
    assert model.coef_.flags.c_contiguous
    assert np.array_equal(model.classes_, np.arange(classes))
    assert model.n_features_in_ == D
    assert isinstance(model.n_iter_, int)
    assert 1 <= model.n_iter_ <= 20
    assert not hasattr(model, "feature_names_in_")
    fitted = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    doc = inspect.getdoc(SoftmaxRegression)
    assert [name for name in fitted if not re.search(rf"\b{name}\b", doc)] == []
    without = SoftmaxRegression(solver=solver, fit_intercept=False, max_iter=20).fit(X, y)
    assert np.array_equal(without.intercept_, np.zeros(rows))


def test_not_fitted():
    X, y = data()
    for call in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(SoftmaxRegression(), call)(X)
    with pytest.raises(NotFittedError):
        SoftmaxRegression().input_gradient(X, y)


# --- labels -------------------------------------------------------------------------------------------------

KINDS = {
    "int": [3, 11, 200],
    "negative": [-7, -1, 0],
    "int8": np.array([-128, 0, 127], np.int8),
    "float": [0.0, 1.0, 5.0],
    "string": ["ash", "birch", "oak"],
    "object": np.array(["ash", "birch", "oak"], object),
    "bool": [False, True],
    "two strings": ["no", "yes"],
}


@unfinished
@solvers
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind(solver, kind):
    """The names of the classes change nothing but `classes_` and what `predict` returns."""
    names = np.asarray(KINDS[kind])
    X, y = data(len(names))
    model = SoftmaxRegression(solver=solver, max_iter=3, random_state=0)
    plain, named = clone(model).fit(X, y), clone(model).fit(X, names[y])
    assert np.array_equal(named.classes_, names)
    assert named.classes_.dtype == names.dtype
    same(plain, named)
    predicted = named.predict(X)
    assert predicted.dtype == names.dtype
    assert np.array_equal(predicted, names[plain.predict(X)])
    assert named.score(X, names[y]) == np.mean(plain.predict(X) == y)


@unfinished
def test_labels_in_lists_series_and_columns():
    X, y = data()
    names = np.array(["ash", "birch", "oak"])[y]
    expected = SoftmaxRegression(**SHORT).fit(X, names)
    for form in (list, tuple, pd.Series, pl.Series, pd.Categorical):
        same(SoftmaxRegression(**SHORT).fit(X, form(names)), expected)
    with pytest.warns(sklearn.exceptions.DataConversionWarning):
        same(SoftmaxRegression(**SHORT).fit(X, names[:, None]), expected)


@forms
@both_classes
@pytest.mark.parametrize("dtype", [np.float64, np.float32, int, bool])
@unfinished
def test_one_hot_targets_are_labels(form, classes, dtype):
    X, y = data(classes)
    labels = SoftmaxRegression(**SHORT).fit(form(X), y)
    targets = SoftmaxRegression(**SHORT).fit(form(X), np.eye(classes)[y].astype(dtype))
    same(labels, targets, **SAME_PATH)
    assert np.array_equal(targets.classes_, np.arange(classes))
    assert np.array_equal(labels.predict(X), targets.predict(X))


@both_classes
def test_soft_targets_are_weighted_labels(classes):
    """A row with distribution q has the loss of `classes` copies of it, one of each label, weighted by q."""
    X, _ = data(classes)
    Y = np.random.default_rng(2).dirichlet(np.ones(classes), size=N)
    soft = SoftmaxRegression(**EXACT).fit(X, Y)
    copies, labels = np.repeat(X, classes, axis=0), np.tile(np.arange(classes), N)
    hard = SoftmaxRegression(**EXACT).fit(copies, labels, sample_weight=Y.ravel())
    same(soft, hard, **SAME_OPTIMUM)
    assert soft.score(X, Y.argmax(axis=1)) == np.mean(soft.predict(X) == Y.argmax(axis=1))


def test_targets_of_its_own_are_kept():
    """A teacher without penalty: a student that starts from nothing finds its probabilities again."""
    X, _ = data()
    rng = np.random.default_rng(3)
    teacher = softmax(X @ rng.normal(size=(D, K)) + rng.normal(size=K), axis=1)
    student = SoftmaxRegression(alpha=1e-9, tol=1e-11, max_iter=1000).fit(X, teacher)
    # F is within 1e-11 of the teacher's entropy, and by Pinsker so is half of the mean squared total variation
    np.testing.assert_allclose(student.predict_proba(X), teacher, atol=N * 1e-5)
    assert np.mean(np.abs(student.predict_proba(X) - teacher).sum(axis=1) ** 2) / 2 < 1e-8


@both_classes
def test_label_smoothing_is_a_softer_target(classes):
    X, y = data(classes)
    smoothed = SoftmaxRegression(label_smoothing=0.2, **EXACT).fit(X, y)
    targets = SoftmaxRegression(**EXACT).fit(X, 0.8 * np.eye(classes)[y] + 0.2 / classes)
    same(smoothed, targets, **SAME_OPTIMUM)
    plain = SoftmaxRegression(**EXACT).fit(X, y)
    assert np.abs(smoothed.coef_).sum() < np.abs(plain.coef_).sum()


# --- forms of X ---------------------------------------------------------------------------------------------


def variants_of_dense(X, folder):
    wide = np.full((N, 2 * D + 1), np.nan, X.dtype)
    wide[:, 2 : 2 + D] = X
    every_other = np.full((2 * N, D), np.nan, X.dtype)
    every_other[::2] = X
    mapped = np.memmap(folder / "X.bin", X.dtype, "w+", shape=X.shape)
    mapped[...] = X
    mapped.flush()
    read_only = X.copy()
    read_only.flags.writeable = False
    return {
        "plain": X,
        "column slice": wide[:, 2 : 2 + D],
        "row slice": every_other[::2],
        "reversed rows": X[::-1].copy()[::-1],
        "read-only": read_only,
        "memory-mapped": np.memmap(folder / "X.bin", X.dtype, "r", shape=X.shape),
    }


DENSE = ["plain", "column slice", "row slice", "reversed rows", "read-only", "memory-mapped"]


@unfinished
@solvers
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_any_stride_are_not_copied(solver, name, dtype, tmp_path, seen):
    X, y = data(dtype=dtype)
    given = variants_of_dense(X, tmp_path)[name]
    model = SoftmaxRegression(solver=solver, max_iter=3, random_state=0)
    fitted = clone(model).fit(given, y)
    assert np.shares_memory(seen[0], given)
    assert seen[0].dtype == dtype
    expected = clone(model).fit(X, y)
    same(fitted, expected)
    assert np.array_equal(fitted.predict_proba(given), expected.predict_proba(X))


@unfinished
@solvers
def test_other_orders_and_dtypes_are_copied_into_the_right_ones(solver):
    X, y = data()
    X = np.round(4 * X)
    model = SoftmaxRegression(solver=solver, max_iter=3, random_state=0)
    expected = clone(model).fit(X, y)
    wide = np.full((N, 2 * D), np.nan)
    wide[:, ::2] = X
    others = [np.asfortranarray(X), wide[:, ::2], X[:, ::-1].copy()[:, ::-1], X.astype(int), X.tolist()]
    others += [X.astype(np.float16), X.astype(">f8"), X.astype(object)]
    for given in others:
        fitted = clone(model).fit(given, y)
        assert fitted.coef_.dtype == np.float64
        same(fitted, expected)
        assert np.array_equal(fitted.predict(given), expected.predict(X))


@unfinished
@solvers
@forms
def test_float32_stays_float32(solver, form):
    X, y = data(dtype=np.float32)
    s = weights()
    model = SoftmaxRegression(solver=solver, class_weight={0: 1, 1: 2, 2: 3}, random_state=0, max_iter=5)
    model.fit(form(X), y, sample_weight=s)
    model.partial_fit(form(X), y, classes=np.arange(K))
    outputs = [model.coef_, model.intercept_, model.decision_function(form(X)), model.predict_proba(form(X))]
    outputs += [model.predict_log_proba(form(X)), model.input_gradient(form(X), y)]
    assert [a.dtype for a in outputs] == [np.float32] * len(outputs)
    # a model can meet the other dtype later: the data's dtype is the answer's
    assert model.predict_proba(X.astype(float)).dtype == np.float64


def test_float32_finds_the_optimum_of_float64():
    """A gap of 1e-6 F, of which float32 sums can just be sure, is sqrt(2e-6 / ALPHA) = 1.5e-2 of coefficients."""
    X, y = data()
    exact = SoftmaxRegression(**EXACT).fit(X, y)
    single = SoftmaxRegression(alpha=ALPHA, tol=1e-6, max_iter=1000).fit(X.astype(np.float32), y)
    assert objective(single, X, y) - objective(exact, X, y) < 2e-6
    np.testing.assert_allclose(single.coef_, exact.coef_, atol=1.5e-2)


@unfinished
@solvers
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("frozen", [False, True])
def test_csr_is_not_copied(solver, index, form, frozen, seen):
    X, y = data()
    given = form(X)
    given.indices, given.indptr = given.indices.astype(index), given.indptr.astype(index)
    if frozen:
        for a in (given.data, given.indices, given.indptr):
            a.flags.writeable = False
    model = SoftmaxRegression(solver=solver, max_iter=3, random_state=0).fit(given, y)
    for name in ("data", "indices", "indptr"):
        assert np.shares_memory(getattr(seen[0], name), getattr(given, name))
        assert getattr(seen[0], name).dtype == getattr(given, name).dtype
    same(model, SoftmaxRegression(solver=solver, max_iter=3, random_state=0).fit(sparse.csr_array(X), y))
    assert np.array_equal(model.predict_proba(given), model.predict_proba(sparse.csr_array(X)))
    # the same sums in another order than those of dense rows
    np.testing.assert_allclose(model.predict_proba(given), model.predict_proba(X), rtol=1e-13)


@both_classes
def test_sparse_and_dense_agree(classes):
    """Intercepts too, which softmax leaves free up to a constant: they have mean zero, as coefficients have."""
    X, y = data(classes)
    dense, csr = (SoftmaxRegression(**EXACT).fit(form(X), y) for form in (np.asarray, sparse.csr_array))
    same(dense, csr, **SAME_OPTIMUM)
    if classes > 2:
        np.testing.assert_allclose([dense.intercept_.sum(), csr.intercept_.sum()], 0, atol=1e-12)


@unfinished
def test_unusual_csr():
    """Indices out of order, zeros that are stored, entries in two parts: the same matrix. Nothing is put right
    in the caller's arrays."""
    X, y = data()
    row = np.repeat(np.arange(N), 2 * D)
    column = np.tile(np.r_[np.arange(D)[::-1], np.arange(D)], N)
    halves = sparse.csr_array((np.ravel(X[row, column] / 2), column, np.arange(0, 2 * D * N + 1, 2 * D)), (N, D))
    before = halves.data.copy(), halves.indices.copy()
    for options in (EXACT, SHORT):
        model = SoftmaxRegression(**options).fit(halves, y)
        same(model, SoftmaxRegression(**options).fit(sparse.csr_array(X), y), **SAME_OPTIMUM)
        np.testing.assert_allclose(model.predict_proba(halves), model.predict_proba(X), rtol=1e-12)
    assert np.array_equal(halves.data, before[0])
    assert np.array_equal(halves.indices, before[1])


@unfinished
@pytest.mark.parametrize("form", [sparse.csc_array, sparse.coo_array, sparse.lil_array, sparse.csc_matrix])
def test_other_sparse_forms(form):
    X, y = data()
    given = form(X)
    model = SoftmaxRegression(**SHORT).fit(given, y)
    same(model, SoftmaxRegression(**SHORT).fit(sparse.csr_array(X), y))
    assert np.array_equal(model.predict(given), model.predict(X))


@unfinished
@solvers
@forms
def test_inputs_come_out_unmodified(solver, form):
    X, _ = data()
    Y, s = np.random.default_rng(2).dirichlet(np.ones(K), size=N), weights()
    given = form(X)
    model = SoftmaxRegression(solver=solver, max_iter=3, label_smoothing=0.1).fit(given, Y, sample_weight=s)
    model.partial_fit(given, Y, classes=K, sample_weight=s)
    for call in (model.predict, model.predict_proba, model.predict_log_proba, model.decision_function):
        call(given)
    model.input_gradient(given, Y)
    assert np.array_equal(given.toarray() if sparse.issparse(given) else given, X)
    assert np.array_equal(Y, np.random.default_rng(2).dirichlet(np.ones(K), size=N))
    assert np.array_equal(s, weights())


@unfinished
def test_predictions_do_not_share_memory():
    X, y = data()
    model = SoftmaxRegression(**SHORT).fit(X, y)
    first = model.predict_proba(X)
    kept = first.copy()
    model.predict_proba(-X)
    assert np.array_equal(first, kept)


# --- reproducibility ----------------------------------------------------------------------------------------


@unfinished
@solvers
@forms
def test_same_seed_same_bits(solver, form):
    X, y = data()
    fits = [SoftmaxRegression(solver=solver, max_iter=3, random_state=seed).fit(form(X), y) for seed in (5, 5)]
    same(*fits)
    sgd = [SoftmaxRegression(**{**SHORT, "random_state": seed}).fit(form(X), y).coef_ for seed in (5, 6)]
    assert not np.array_equal(*sgd)
    still = [
        SoftmaxRegression(**{**SHORT, "random_state": seed, "shuffle": False}).fit(form(X), y).coef_ for seed in (5, 6)
    ]
    assert np.array_equal(*still)


@unfinished
@solvers
@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_do_not_change_a_bit(solver, form, dtype):
    """Enough rows and classes that the kernels do divide them."""
    X, y = data(12, n=1500, d=40, dtype=dtype)
    fits = [
        SoftmaxRegression(solver=solver, max_iter=3, random_state=0, n_jobs=n).fit(form(X), y)
        for n in (None, 1, 2, 3, -1, -2, -100)
    ]
    for model in fits[1:]:
        same(model, fits[0])
        assert np.array_equal(model.predict_proba(form(X)), fits[0].predict_proba(form(X)))
        assert np.array_equal(model.input_gradient(form(X), y), fits[0].input_gradient(form(X), y))


@unfinished
@solvers
def test_random_state_objects(solver):
    X, y = data()
    model = SoftmaxRegression(solver=solver, max_iter=3)
    a = clone(model).set_params(random_state=np.random.RandomState(3)).fit(X, y)
    b = clone(model).set_params(random_state=3).fit(X, y)
    same(a, b)
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (it is about this state)
    clone(model).set_params(random_state=3, early_stopping=solver == "sgd").fit(X, y)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@unfinished
@solvers
def test_fit_forgets_the_previous_fit(solver):
    X, y = data()
    model = SoftmaxRegression(solver=solver, max_iter=3, random_state=0)
    once = clone(model).fit(X, y)
    other, labels = data(4, d=7, seed=9)
    again = clone(model).fit(other, labels).fit(X, y)
    same(once, again)
    assert len(again.history_["loss"]) == again.n_iter_


# --- weights ------------------------------------------------------------------------------------------------


@forms
@both_classes
def test_weights_are_repeated_rows(form, classes):
    X, y = data(classes)
    s = weights()
    repeats = np.repeat(np.arange(N), s.astype(int))
    weighted = SoftmaxRegression(**EXACT).fit(form(X), y, sample_weight=s)
    repeated = SoftmaxRegression(**EXACT).fit(form(X[repeats]), y[repeats])
    same(weighted, repeated, **SAME_OPTIMUM)
    unweighted = SoftmaxRegression(**EXACT).fit(form(X), y)
    assert np.abs(weighted.coef_ - unweighted.coef_).max() > 0.01


@unfinished
@solvers
def test_the_unit_of_weights_does_not_matter(solver):
    X, y = data()
    model = SoftmaxRegression(solver=solver, alpha=ALPHA, max_iter=3, random_state=0)
    fits = [clone(model).fit(X, y, sample_weight=unit * weights()) for unit in (1.0, 1024.0, 2.0**-20)]
    same(fits[0], fits[1], **SAME_PATH)
    same(fits[0], fits[2], **SAME_PATH)
    same(clone(model).fit(X, y), clone(model).fit(X, y, sample_weight=np.full(N, 8.0)), **SAME_PATH)


@unfinished
def test_a_number_is_equal_weights():
    X, y = data()
    same(SoftmaxRegression(**SHORT).fit(X, y), SoftmaxRegression(**SHORT).fit(X, y, sample_weight=2.0), **SAME_PATH)


@unfinished
@pytest.mark.parametrize("weighted", [False, True])
@both_classes
def test_class_weight_multiplies_sample_weight(weighted, classes):
    X, y = data(classes)
    names = np.array(["ash", "birch", "oak"])[y]
    s = weights() if weighted else None
    of_class = {"ash": 0.5, "birch": 3.0, "oak": 2.0}
    of_class = {name: of_class[name] for name in np.unique(names)}
    by_class = SoftmaxRegression(class_weight=of_class, **SHORT).fit(X, names, sample_weight=s)
    of_row = np.array([of_class[name] for name in names]) * (1 if s is None else s)
    same(by_class, SoftmaxRegression(**SHORT).fit(X, names, sample_weight=of_row), **SAME_PATH)


@unfinished
@both_classes
def test_balanced_classes_weigh_the_same(classes):
    X, y = data(classes)
    y[20 : N - 20] = 0
    balanced = SoftmaxRegression(class_weight="balanced", **SHORT).fit(X, y)
    same(balanced, SoftmaxRegression(**SHORT).fit(X, y, sample_weight=1 / np.bincount(y)[y]), **SAME_PATH)


# --- invariants of the optimum ------------------------------------------------------------------------------


def test_class_coefficients_sum_to_zero():
    """Of all coefficients with the same probabilities, the penalty prefers those with mean zero."""
    X, y = data()
    model = SoftmaxRegression(**EXACT).fit(X, y)
    np.testing.assert_allclose(model.coef_.sum(axis=0), 0, atol=K * SAME_OPTIMUM["atol"])


@both_classes
@pytest.mark.parametrize("weighted", [False, True])
def test_intercepts_make_the_totals_right(classes, weighted):
    """Their gradient is zero: as much probability goes to each class as it has weight."""
    X, y = data(classes)
    s = weights() if weighted else np.ones(N)
    model = SoftmaxRegression(**EXACT).fit(X, y, sample_weight=s)
    expected = np.bincount(y, weights=s) / s.sum()
    # F falls by g^2 / L when the intercepts move by g / L, and L <= 1/2: g^2 <= 1e-12
    np.testing.assert_allclose(s @ model.predict_proba(X) / s.sum(), expected, atol=1e-6)


@both_classes
def test_an_intercept_is_a_column_of_ones(classes):
    """Its penalty aside: so large that its coefficient may be small, the column costs next to nothing."""
    X, y = data(classes)
    ones = np.column_stack([X, np.full(N, 1e4)])
    with_intercept = SoftmaxRegression(**EXACT).fit(X, y)
    with_column = SoftmaxRegression(fit_intercept=False, **EXACT).fit(ones, y)
    # the penalty on b / 1e4 is some ALPHA b^2 / 1e8 = 1e-10, which moves the optimum by its root over ALPHA at most
    np.testing.assert_allclose(with_column.coef_[:, :D], with_intercept.coef_, atol=2e-4)
    probabilities = [with_intercept.predict_proba(X), with_column.predict_proba(ones)]
    np.testing.assert_allclose(*probabilities, atol=2e-4)


def test_features_may_be_shifted():
    """The intercept is free, so a constant on every feature changes it and nothing else."""
    X, y = data()
    shift = np.array([100.0, -3, 0, 1e3, 7])
    plain, shifted = SoftmaxRegression(**EXACT).fit(X, y), SoftmaxRegression(**EXACT).fit(X + shift, y)
    np.testing.assert_allclose(shifted.coef_, plain.coef_, **SAME_OPTIMUM)
    np.testing.assert_allclose(shifted.predict_proba(X + shift), plain.predict_proba(X), atol=1e-4)


def test_rows_classes_and_features_may_be_permuted():
    X, y = data()
    rng = np.random.default_rng(4)
    rows, columns, classes = rng.permutation(N), rng.permutation(D), np.array([2, 0, 1])
    plain = SoftmaxRegression(**EXACT).fit(X, y)
    other = SoftmaxRegression(**EXACT).fit(X[rows][:, columns], classes[y[rows]])
    np.testing.assert_allclose(other.coef_[classes], plain.coef_[:, columns], **SAME_OPTIMUM)
    # intercepts are free up to a constant
    centred = [m - m.mean() for m in (other.intercept_[classes], plain.intercept_)]
    np.testing.assert_allclose(*centred, atol=1e-4)


# --- stopping, history, warnings ----------------------------------------------------------------------------


@solvers
@forms
@both_classes
@unfinished
def test_history(solver, form, classes):
    X, y = data(classes)
    model = SoftmaxRegression(solver=solver, alpha=ALPHA, max_iter=30).fit(form(X), y)
    assert {"loss", "gap", "passes", "time"} <= model.history_.keys()
    assert {len(a) for a in model.history_.values()} == {model.n_iter_}
    assert all(isinstance(a, np.ndarray) for a in model.history_.values())
    assert (np.diff(model.history_["time"]) >= 0).all()
    assert model.history_["time"][0] > 0
    assert (np.diff(model.history_["passes"]) > 0).all()
    # the last entry is what was kept; both are sums over N rows
    assert model.history_["loss"][-1] == pytest.approx(objective(model, X, y), rel=1e-12)


@solvers
@both_classes
@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_converged_means_proven_or_estimated(solver, classes, tol):
    """Warnings are errors: it arrived, and F really is that near to the best there is."""
    X, y = data(classes)
    model = SoftmaxRegression(solver=solver, alpha=0.05, tol=tol, max_iter=2000, random_state=0).fit(X, y)
    best = SoftmaxRegression(**{**EXACT, "alpha": 0.05}).fit(X, y)
    least = objective(best, X, y)
    distance = (objective(model, X, y) - least) / null_loss(y)
    assert distance <= tol
    assert model.optimality_gap_ >= distance - 1e-12  # rounding of F, and of EXACT itself
    assert {"gap": model.optimality_gap_, "estimate": model.gap_estimate_}[model.stopped_on_] <= tol


@pytest.mark.parametrize("alpha", [0.0, 1e-4])
@solvers
def test_a_fit_that_did_not_arrive_says_so(solver, alpha):
    X, y = data()
    with pytest.warns(ConvergenceWarning) as caught:
        model = SoftmaxRegression(solver=solver, alpha=alpha, tol=1e-13, max_iter=1).fit(X, y)
    (message,) = [str(w.message) for w in caught]
    assert f"{model.history_['loss'][-1]:.6g}" in message
    known = [gap for gap in (model.optimality_gap_, model.gap_estimate_) if np.isfinite(gap)]
    assert all(f"{gap:.2g}" in message for gap in known)
    assert known or "not known" in message
    assert alpha == 0 or known
    assert "max_iter" in message
    assert caught[0].filename == __file__  # it points at the line that called fit
    assert model.n_iter_ == 1
    assert np.isfinite(model.coef_).all()


def test_without_a_penalty_the_loss_is_the_proven_gap():
    """F >= 0, so F - min F <= F."""
    X, y = data()
    model = SoftmaxRegression(alpha=0).fit(X, y)
    assert model.stopped_on_ == "estimate"
    assert model.optimality_gap_ == pytest.approx(objective(model, X, y) / null_loss(y), rel=1e-12)  # rounding


@solvers
@both_classes
def test_separable_classes_without_a_penalty_end_with_a_proof(solver, classes):
    """There is no minimum. The fit ends where F, which is at most tol * F_null, proves that it is near enough to 0."""
    X = np.random.default_rng(0).normal(size=(60, 4))
    y = (X @ np.eye(4, classes)).argmax(axis=1)
    model = SoftmaxRegression(solver=solver, alpha=0, tol=1e-2, max_iter=300, random_state=0)
    model.fit(X, y)
    assert model.stopped_on_ == "gap"
    assert model.optimality_gap_ <= 1e-2
    assert np.isfinite(model.coef_).all()


@unfinished
@solvers
def test_verbose(solver, capsys):
    X, y = data()
    SoftmaxRegression(solver=solver, max_iter=4).fit(X, y)
    assert capsys.readouterr() == ("", "")
    model = SoftmaxRegression(solver=solver, max_iter=4, verbose=1).fit(X, y)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == model.n_iter_
    for line, loss in zip(printed, model.history_["loss"], strict=True):
        assert f"loss {loss:.6g}" in line


# --- early stopping -----------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch):
    """The rows of every part of the data that a fit makes for itself."""
    rows = []
    select = _estimator.Objective.select
    monkeypatch.setattr(_estimator.Objective, "select", lambda self, r: rows.append(r) or select(self, r))
    return rows


EARLY = {"early_stopping": True, "solver": "newton", "alpha": 0.0, "random_state": 0}
# On 60 rows of 30 features without a penalty, the loss of the held-out rows soon rises.
OVERFITTING = {"n": 60, "d": 30}


@both_classes
@pytest.mark.parametrize("n_iter_no_change", [1, 2])
def test_early_stopping_keeps_the_best(classes, n_iter_no_change, parts):
    X, y = data(classes, **OVERFITTING)
    options = {**EARLY, "n_iter_no_change": n_iter_no_change, "validation_fraction": 0.3}
    model = SoftmaxRegression(max_iter=500, **options).fit(X, y)  # stopping early is no reason for a warning
    train, held_out = parts[:2]
    assert model.n_iter_ < 500
    assert len(held_out) == 0.3 * len(X)
    assert np.array_equal(np.sort(np.r_[train, held_out]), np.arange(len(X)))

    losses = model.history_["validation_loss"]
    best = losses.argmin()
    assert losses[-1] > losses[best]
    # what is kept is what was best, and history says the truth about it; N sums of terms of order one
    kept = log_loss(y[held_out], model.predict_proba(X[held_out]))
    assert kept == pytest.approx(losses[best], rel=1e-12)
    assert model.history_["validation_score"][best] == accuracy_score(y[held_out], model.predict(X[held_out]))
    # it waited as long as it should have, and no longer
    least = np.minimum.accumulate(losses)
    better = np.r_[True, losses[1:] <= least[:-1] * (1 - model.tol)]
    assert model.n_iter_ == np.flatnonzero(better)[-1] + 1 + n_iter_no_change
    # bit for bit what that many epochs give
    parts.clear()
    with pytest.warns(ConvergenceWarning):
        again = SoftmaxRegression(max_iter=int(best) + 1, **{**options, "n_iter_no_change": 1000}).fit(X, y)
    same(model, again)


@unfinished
def test_early_stopping_does_not_look_at_what_it_holds_out(parts):
    X, y = data(**OVERFITTING)
    model = SoftmaxRegression(max_iter=3, **EARLY).fit(X, y)
    held_out = parts[1]
    other = X.copy()
    other[held_out] *= -3
    spoiled = SoftmaxRegression(max_iter=3, **EARLY, n_iter_no_change=1000).fit(other, y)
    assert np.array_equal(model.history_["loss"], spoiled.history_["loss"])
    assert not np.array_equal(model.history_["validation_loss"], spoiled.history_["validation_loss"])


@unfinished
def test_early_stopping_holds_out_some_of_every_class(parts):
    X, y = data(n=200)
    y = np.where(np.arange(200) < 20, 2, y % 2)
    SoftmaxRegression(max_iter=1, **EARLY).fit(X, y)
    assert np.bincount(y[parts[1]]).tolist() == [round(0.1 * n) for n in np.bincount(y)]


@unfinished
@solvers
def test_early_stopping_with_weights_and_soft_targets(solver, parts):
    X, _ = data()
    Y = np.random.default_rng(2).dirichlet(np.ones(K), size=N)
    s = weights() + 1
    model = SoftmaxRegression(solver=solver, early_stopping=True, random_state=0, max_iter=10)
    model.fit(X, Y, sample_weight=s)
    held_out = parts[1]
    losses = -(Y * model.predict_log_proba(X)).sum(axis=1)[held_out]
    best = model.history_["validation_loss"].min()
    assert np.average(losses, weights=s[held_out]) == pytest.approx(best, rel=1e-12)


# --- warm starts --------------------------------------------------------------------------------------------


@both_classes
@pytest.mark.parametrize("fit_intercept", [True, False])
@forms
def test_warm_start_begins_where_the_last_fit_ended(classes, fit_intercept, form):
    """A fit of no more than one iteration from the optimum has a loss that a cold one is far from."""
    X, y = data(classes)
    options = {"alpha": ALPHA, "solver": "newton", "tol": 1e-9, "fit_intercept": fit_intercept, "random_state": 0}
    model = SoftmaxRegression(warm_start=True, **options).fit(form(X), y)
    before = objective(model, X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(max_iter=1).fit(form(X), y)
        cold = SoftmaxRegression(**{**options, "max_iter": 1}).fit(form(X), y)
    assert objective(model, X, y) <= before * (1 + 1e-9)  # tol of the fit before
    assert objective(cold, X, y) > 1.001 * before


@both_classes
def test_warm_start_at_the_optimum(classes):
    """There is nothing left to do, and nothing wrong with that."""
    X, y = data(classes)
    model = SoftmaxRegression(alpha=0.05, tol=1e-3, max_iter=2000, warm_start=True, random_state=0).fit(X, y)
    model.set_params(tol=1e-2)
    before = objective(model, X, y)
    cold = clone(model).fit(X, y)
    model.fit(X, y)
    assert model.n_iter_ <= cold.n_iter_
    assert objective(model, X, y) <= before * (1 + 1e-2)


@unfinished
@forms
def test_warm_start_of_sgd_at_the_optimum_stays_near(form):
    """A few noisy steps lead a little away from an optimum: that is what stochastic steps do."""
    X, y = data()
    model = SoftmaxRegression(**EXACT, warm_start=True).fit(form(X), y)
    model.set_params(solver="sgd", max_iter=1, tol=0.0, random_state=0).fit(form(X), y)
    assert objective(model, X, y) < np.log(K)


@unfinished
def test_warm_start_along_a_path_of_alphas():
    X, y = data()
    model = SoftmaxRegression(**EXACT, warm_start=True)
    for alpha in (1.0, 0.1, ALPHA):
        model.set_params(alpha=alpha).fit(X, y)
    same(model, SoftmaxRegression(**EXACT).fit(X, y), **SAME_OPTIMUM)


# --- partial_fit --------------------------------------------------------------------------------------------


def test_partial_fit_over_a_stream():
    """Three passes over ten parts of some 300 rows, the first of which lacks a class."""
    X, y = data(n=3000)
    keep = (y < 2) | (np.arange(3000) >= 400)
    X, y = X[keep], y[keep]
    names = np.array(["ash", "birch", "oak"])[y]
    least = objective(SoftmaxRegression(**EXACT).fit(X, names), X, y)
    model, reached = SoftmaxRegression(alpha=ALPHA, random_state=0), []
    for _ in range(3):
        for part in np.array_split(np.arange(len(y)), 10):
            model.partial_fit(X[part], names[part], classes=["ash", "birch", "oak"])
        reached.append(objective(model, X, y))
    assert np.array_equal(model.classes_, ["ash", "birch", "oak"])
    assert model.n_iter_ == 30
    # noise adds some tenths of F in the beginning and falls with the rate, by 1 / sqrt(30) until the end
    assert least < reached[2] < reached[0] < 1.2 * least
    assert reached[2] < 1.05 * least


@unfinished
def test_partial_fit_takes_classes_again_and_soft_targets():
    X, y = data()
    a, b = SoftmaxRegression(**SHORT), SoftmaxRegression(**SHORT)
    a.partial_fit(X, y, classes=np.arange(K)).partial_fit(X, y)
    b.partial_fit(X, y, classes=[2, 1, 0]).partial_fit(X, y, classes=np.arange(K))
    same(a, b)
    soft = SoftmaxRegression(**SHORT)
    soft.partial_fit(X, np.eye(K)[y], classes=K).partial_fit(X, np.eye(K)[y])
    same(a, soft, **SAME_PATH)


@unfinished
def test_partial_fit_goes_on_from_fit():
    X, y = data()
    model = SoftmaxRegression(**EXACT).fit(X, y)
    before = objective(model, X, y)
    model.partial_fit(X, y)
    assert objective(model, X, y) < 1.05 * before  # steps go as far as the rows that were fitted allow


@unfinished
def test_fit_forgets_the_stream():
    X, y = data()
    fresh = SoftmaxRegression(**SHORT).fit(X, y).partial_fit(X, y, classes=np.arange(K))
    model = SoftmaxRegression(**SHORT)
    for _ in range(5):
        model.partial_fit(-10 * X, y, classes=np.arange(K))
    same(model.fit(X, y).partial_fit(X, y, classes=np.arange(K)), fresh)


# --- prediction ---------------------------------------------------------------------------------------------


@forms
@both_classes
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@unfinished
def test_predictions_agree_with_each_other(form, classes, dtype):
    X, y = data(classes, dtype=dtype)
    model = SoftmaxRegression(**SHORT).fit(form(X), y)
    Z, P, log_P = (getattr(model, f)(form(X)) for f in ("decision_function", "predict_proba", "predict_log_proba"))
    eps = np.finfo(dtype).eps
    plain = X.astype(float) @ model.coef_.T.astype(float) + model.intercept_
    assert Z.shape == ((N,) if classes == 2 else (N, classes))
    np.testing.assert_allclose(Z, plain.ravel() if classes == 2 else plain, atol=10 * eps)  # sums of D + 1 terms
    if classes == 2:
        Z = np.column_stack([np.zeros(N), Z])
    # differences of logits of a few units, rounded to eps of them, are errors of that size in log p
    np.testing.assert_allclose(P, softmax(Z.astype(float), axis=1), rtol=50 * eps)
    np.testing.assert_allclose(log_P, log_softmax(Z.astype(float), axis=1), rtol=50 * eps, atol=50 * eps)
    np.testing.assert_allclose(P.sum(axis=1), 1, rtol=classes * eps)
    assert np.array_equal(model.predict(form(X)), Z.argmax(axis=1))
    assert np.array_equal(model.predict(form(X)), P.argmax(axis=1))
    assert model.score(form(X), y) == np.mean(model.predict(form(X)) == y)


@both_classes
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@unfinished
def test_log_probabilities_where_probabilities_underflow(classes, dtype):
    """log p is a difference of logits there; log of the probability would be -inf."""
    X, y = data(classes, dtype=dtype)
    model = SoftmaxRegression(**SHORT).fit(X, y)
    far = (1e5 * X).astype(dtype)
    P, log_P, Z = model.predict_proba(far), model.predict_log_proba(far), model.decision_function(far).astype(float)
    assert (P == 0).any()
    assert np.isfinite(log_P).all()
    Z = np.column_stack([np.zeros(N), Z]) if classes == 2 else Z
    # rounding of the logits themselves: eps of the largest
    tolerance = 8 * np.finfo(dtype).eps * np.abs(Z).max()
    np.testing.assert_allclose(log_P, log_softmax(Z, axis=1), rtol=8 * np.finfo(dtype).eps, atol=tolerance)
    np.testing.assert_allclose(P.sum(axis=1), 1, rtol=classes * np.finfo(dtype).eps)


@pytest.mark.parametrize("classes", [2, K])
@pytest.mark.parametrize("kind", ["labels", "names", "soft", "smoothed"])
@forms
@unfinished
def test_input_gradient(classes, kind, form):
    """Against five-point differences of the mean cross-entropy; `check_gradient` promises 1e-7 of a right one."""
    X, y = data(classes)
    smoothing = 0.1 if kind == "smoothed" else 0.0
    names = np.array(["ash", "birch", "oak"])[:classes] if kind == "names" else np.arange(classes)
    model = SoftmaxRegression(**SHORT, label_smoothing=smoothing).fit(X, names[y])
    Y = np.random.default_rng(2).dirichlet(np.ones(classes), size=N) if kind == "soft" else np.eye(classes)[y]
    given = Y if kind == "soft" else names[y]
    target = (1 - smoothing) * Y + smoothing / classes

    def value_and_gradient(rows):
        log_P = model.predict_log_proba(form(rows))
        return -(target[:6] * log_P).sum(axis=1).mean(), model.input_gradient(form(rows), given[:6])

    assert F.check_gradient(value_and_gradient, X[:6])[0] < 1e-7
    assert isinstance(model.input_gradient(form(X), list(given)), np.ndarray)


@unfinished
@pytest.mark.parametrize("classes", [2, K])
def test_sparsify_and_back(classes):
    X, y = data(classes, d=8)
    model = SoftmaxRegression(**{**SHORT, "alpha": 0.1}, l1_ratio=1.0).fit(X, y)
    dense = model.coef_.copy()
    assert (dense == 0).any()
    assert (dense != 0).any()
    expected = [model.predict(X), model.predict_proba(X), model.decision_function(X), model.input_gradient(X, y)]
    assert model.sparsify() is model
    assert sparse.issparse(model.coef_)
    for form in (np.asarray, sparse.csr_array):
        given = form(X)
        found = [model.predict(given), model.predict_proba(given), model.decision_function(given)]
        found.append(model.input_gradient(given, y))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)  # sums of 8 products in another order
    streamed = pickle.loads(pickle.dumps(model)).densify().set_params(warm_start=True).fit(X, y)
    same(model.set_params(warm_start=True).fit(X, y), streamed)
    same(model.densify(), streamed)


@both_classes
@forms
@pytest.mark.parametrize("labels", [np.arange(K), np.array(["ash", "birch", "oak"])], ids=["numbers", "words"])
def test_score_takes_what_fit_takes(classes, form, labels):
    X, y = data(classes)
    Y = (np.eye(classes)[y] + 0.3) / (1 + 0.3 * classes)  # the most probable class is the label
    s = weights()
    model = SoftmaxRegression(alpha=ALPHA).fit(form(X), labels[y], sample_weight=s)
    expected = np.average(model.predict(form(X)) == labels[y], weights=s)
    for given in (labels[y], labels[y].tolist(), pd.Series(labels[y]), Y, Y.tolist(), pd.DataFrame(Y), pl.DataFrame(Y)):
        assert model.score(form(X), given, sample_weight=s) == pytest.approx(expected, rel=1e-14)  # N sums
    assert model.score(form(X), Y, 2.0) == pytest.approx(model.score(form(X), Y), rel=1e-14)
    with pytest.raises(ValueError, match="sums to"):
        model.score(form(X), 2 * Y)
    with pytest.raises(ValueError, match="sample_weight"):
        model.score(form(X), Y, -s)
    assert np.isfinite(cross_val_score(SoftmaxRegression(alpha=ALPHA), form(X), Y)).all()


# The limit of the softmax where logits overflow: coefficients of two features, an intercept a class, a row in units of
# a number from which the logits of the dtype overflow, and the probabilities.
THIRD, HALF = 1 / 3, 1 / 2
OVERFLOWING = {
    "one class": ([[2, 0], [1, 0], [-3, 0]], [0, 0, 0], [1, 0], [1, 0, 0]),
    "two as large": ([[2, 0], [2, 0], [-4, 0]], [0, 0, 0], [1, 0], [HALF, HALF, 0]),
    "two, one larger": ([[2, 0], [3, 0], [-5, 0]], [0, 0, 0], [1, 0], [0, 1, 0]),
    "all negative": ([[-4, 0], [-3, 0], [-2, 0]], [0, 0, 0], [1, 0], [0, 0, 1]),
    "all negative, all as large": ([[-4, 0]] * 3, [0, 0, 0], [1, 0], [THIRD] * 3),
    "what cancels": ([[2, -2], [3, -3], [5, -5]], [0, 0, 0], [1, 1], [THIRD] * 3),
    "what cancels, and intercepts": ([[2, -2], [3, -3], [5, -5]], np.log([0.2, 0.3, 0.5]), [1, 1], [0.2, 0.3, 0.5]),
    "what cancels in two": ([[2, -2], [4, -3], [-3, 3]], [0, 0, 0], [1, 1], [0, 1, 0]),
    "what cancels with less than nothing": ([[2, -2], [3, -4], [-3, 3]], [0, 0, 0], [1, 1], [HALF, 0, HALF]),
    "no overflow, but their difference": ([[1.5, 0], [-1.5, 0], [0, 0]], [0, 0, 0], [1, 0], [1, 0, 0]),
    "two classes": ([[4, 0]], [0], [1, 0], [0, 1]),
    "two classes, negative": ([[-4, 0]], [0], [1, 0], [1, 0]),
    "two classes, what cancels": ([[4, -4]], [0], [1, 1], [HALF, HALF]),
}


@pytest.mark.parametrize("weights", [np.asarray, sparse.csr_array], ids=["dense weights", "sparse weights"])
@forms
@pytest.mark.parametrize("large", ["X", "coef_"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OVERFLOWING)
def test_logits_that_overflow(name, dtype, large, form, weights):
    coef, intercept, row, expected = OVERFLOWING[name]
    size = dtype(2.0 ** (np.finfo(dtype).maxexp - 1))  # a power of two, half of what overflows: products are exact
    close = {"rtol": 32 * np.finfo(dtype).eps, "atol": 0}  # scaled intercepts are subnormal: they lose some digits
    X, coef = np.array([[0, 0], row, [0, 0]]), np.array(coef, float)
    model = SoftmaxRegression()
    model.coef_ = weights(coef if large == "X" else (coef / 8 * size).astype(dtype))
    model.intercept_, model.classes_ = np.array(intercept, float), np.arange(max(len(coef), 2))
    X = form(X.astype(dtype) * (size if large == "X" else dtype(8)))
    P, log_P, Z = model.predict_proba(X), model.predict_log_proba(X), model.decision_function(X)
    np.testing.assert_allclose(P[1], expected, **close)
    assert np.isfinite(log_P).all()
    np.testing.assert_allclose(np.exp(log_P[1]), expected, **close)
    np.testing.assert_allclose(P[0], softmax(intercept if len(intercept) > 1 else [0, 0]), rtol=1e-6)  # as float32
    assert P.dtype == Z.dtype == dtype
    assert np.isfinite(Z).all()
    assert expected[model.predict(X)[1]] == max(expected)
    if max(expected) == 1 and len(intercept) == 1:
        assert np.sign(Z[1]) == np.sign(coef[0, 0])
    assert np.isfinite(model.input_gradient(X / (1 if large == "X" else 8), np.zeros(3, int))).all()


@forms
def test_a_row_that_overflows_leaves_the_others_alone(form):
    """Bit for bit."""
    X, y = data(dtype=np.float32)
    model = SoftmaxRegression(alpha=ALPHA).fit(X, y)
    spoiled = X.copy()
    spoiled[7] = 3e38
    others = np.delete(np.arange(N), 7)
    for call in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        before, after = getattr(model, call)(form(X)), getattr(model, call)(form(spoiled))
        assert np.array_equal(before[others], after[others])


@pytest.mark.parametrize("name", ["coef_", "intercept_"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(name, value):
    X, y = data()
    model = SoftmaxRegression(alpha=ALPHA).fit(X, y)
    getattr(model, name)[0] = value
    for call in ("decision_function", "predict", "predict_proba", "predict_log_proba"):
        with pytest.raises(ValueError, match=f"Input {name} contains"):
            getattr(model, call)(X)


# --- attributes put in from elsewhere -----------------------------------------------------------------------

ELSEWHERE = {
    "Fortran order": np.asfortranarray,
    "a list": np.ndarray.tolist,
    "float32": lambda a: a.astype(np.float32),
    "integers": lambda a: a.astype(np.int16),
    "every other column": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
}


@both_classes
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_weights_from_elsewhere(kind, form, classes):
    """Small integers: sums of their products are exact in every dtype and order."""
    rng, rows = np.random.default_rng(0), 1 if classes == 2 else classes
    X, y = rng.integers(-4, 5, size=(N, D)).astype(float), rng.integers(classes, size=N)
    coef, intercept = rng.integers(-3, 4, size=(rows, D)).astype(float), rng.integers(-3, 4, size=rows).astype(float)
    model = SoftmaxRegression(warm_start=True)
    model.coef_, model.intercept_ = ELSEWHERE[kind](coef), ELSEWHERE[kind](intercept)
    model.classes_ = list(range(classes))
    Z = X @ coef.T + intercept
    assert np.array_equal(model.decision_function(form(X)), Z[:, 0] if classes == 2 else Z)
    assert np.array_equal(model.predict(form(X)), Z[:, 0] > 0 if classes == 2 else Z.argmax(axis=1))
    Z = np.hstack([np.zeros_like(Z), Z]) if classes == 2 else Z
    np.testing.assert_allclose(model.predict_proba(form(X)), softmax(Z, axis=1), rtol=1e-13)  # exp of up to 100
    np.testing.assert_allclose(model.predict_log_proba(form(X)), log_softmax(Z, axis=1), rtol=1e-13, atol=1e-13)
    assert np.isfinite(model.input_gradient(form(X), y)).all()
    assert model.partial_fit(form(X), y) is model
    assert model.fit(form(X), y) is model


@both_classes
def test_an_intercept_from_elsewhere_may_be_a_number(classes):
    """scikit-learn's linear models leave ``intercept_ = 0.0`` where there is none."""
    X, y = data(classes)
    model = SoftmaxRegression(fit_intercept=False, warm_start=True).fit(X, y)
    expected = model.decision_function(X), model.predict(X), model.predict_proba(X)
    model.intercept_ = 0.0
    for a, b in zip(expected, (model.decision_function(X), model.predict(X), model.predict_proba(X)), strict=True):
        assert np.array_equal(a, b)
    model.set_params(fit_intercept=True).fit(X, y)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("coef_", np.ones(D), rf"coef_ has shape \({D},\); 3 classes need \(3, n_features\)"),
        ("coef_", np.ones((2, D)), rf"coef_ has shape \(2, {D}\); 3 classes need"),
        ("coef_", np.ones((3, D + 1)), rf"coef_ has shape \(3, {D + 1}\), but X has {D} features"),
        ("coef_", sparse.csr_array(np.ones((3, D + 1))), rf"coef_ has shape \(3, {D + 1}\), but X has {D} features"),
        ("coef_", [["a"] * D] * 3, "coef_ must be an array of real numbers"),
        ("coef_", [[1.0], [1.0, 2.0], [1.0]], "coef_ must be an array of real numbers"),
        ("coef_", 1j * np.ones((3, D)), "coef_ must be an array of real numbers"),
        ("intercept_", np.ones(2), r"intercept_ has shape \(2,\); 3 classes need \(3,\)"),
        ("intercept_", np.ones((3, 1)), r"intercept_ has shape \(3, 1\)"),
        ("intercept_", None, "intercept_ must be an array of real numbers"),
    ],
)
def test_an_attribute_that_cannot_be_used_is_named(name, value, message):
    X, y = data()
    model = SoftmaxRegression().fit(X, y)
    setattr(model, name, value)
    for call in ("decision_function", "predict", "predict_proba", "predict_log_proba"):
        with pytest.raises((TypeError, ValueError), match=message):
            getattr(model, call)(X)


# --- proximal l1 --------------------------------------------------------------------------------------------


@solvers
@forms
@unfinished
def test_l1_makes_exact_zeros(solver, form):
    """Features of pure noise get none of it, and more of the penalty means fewer coefficients."""
    X, y = data()
    noisy = np.column_stack([X, np.random.default_rng(5).normal(size=(N, 3)) * 0.1])
    counts = []
    for alpha in (0.003, 0.03, 10.0):
        model = SoftmaxRegression(solver=solver, alpha=alpha, l1_ratio=1.0, max_iter=300, random_state=0)
        counts.append(np.count_nonzero(model.fit(form(noisy), y).coef_))
    assert counts[0] > counts[1] > counts[2] == 0
    middle = SoftmaxRegression(solver=solver, alpha=0.03, l1_ratio=1.0, max_iter=300, random_state=0).fit(noisy, y)
    assert not middle.coef_[:, D:].any()
    # all coefficients gone, the intercepts give each class its share
    shares = softmax(model.intercept_)
    np.testing.assert_allclose(shares, np.bincount(y) / N, atol=0.02)  # as near as tol=1e-4 puts them: g^2 <= F tol


def test_l1_counts_newton_steps():
    X, y = data()
    for max_iter in (1, 2, 3):
        model = SoftmaxRegression(l1_ratio=0.5, tol=0, max_iter=max_iter, verbose=0)
        with pytest.warns(ConvergenceWarning, match=f"stopped after {max_iter} iterations"):
            model.fit(X, y)
        assert model.n_iter_ == max_iter
        assert {len(column) for column in model.history_.values()} == {max_iter}
        # the loss with its penalty at every step; N sums
        assert model.history_["loss"][-1] == pytest.approx(objective(model, X, y), rel=1e-12)
    assert np.isfinite(model.history_["gap"]).all()
    assert (model.history_["loss"][:-1] > model.history_["loss"][-1]).all()


# --- neighbours in scikit-learn -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def test_pipeline(iris):
    X, y = iris
    model = SoftmaxRegression(alpha=ALPHA, max_iter=1000, random_state=0)
    pipeline = make_pipeline(StandardScaler(), model).fit(X, y)
    alone = clone(model).fit(StandardScaler().fit_transform(X), y)
    same(pipeline[-1], alone)
    assert np.array_equal(pipeline.predict_proba(X), alone.predict_proba(StandardScaler().fit_transform(X)))


@unfinished
def test_grid_search(iris):
    X, y = iris
    grid = {"softmaxregression__alpha": [1e-3, 1e2], "softmaxregression__solver": ["auto", "sgd"]}
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(max_iter=30, random_state=0))
    search = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss", error_score="raise").fit(X, y)
    assert search.best_params_["softmaxregression__alpha"] == 1e-3  # 1e2 leaves nothing but the class shares
    table = {(p["softmaxregression__alpha"], p["softmaxregression__solver"]) for p in search.cv_results_["params"]}
    assert len(table) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@unfinished
def test_cross_validation_in_two_processes(iris):
    """Workers start anew, with one thread each: the scores are those of this process to the last bit."""
    X, y = iris
    model = SoftmaxRegression(max_iter=20, random_state=0)
    options = {"cv": 4, "scoring": "neg_log_loss", "error_score": "raise"}
    scores = [cross_val_score(model, X, y, n_jobs=n, **options) for n in (1, 2)]
    assert np.array_equal(*scores)
    assert len(set(scores[0])) == 4


def test_calibration(iris):
    X, y = iris
    model = CalibratedClassifierCV(SoftmaxRegression(alpha=ALPHA, max_iter=1000), cv=3).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=1e-14)
    assert len(model.calibrated_classifiers_) == 3
    assert np.array_equal(model.predict(X), model.predict_proba(X).argmax(axis=1))


def test_one_against_the_rest(iris):
    """Its three binary problems are three binary fits, whose single rows it stacks."""
    X, y = iris
    binary = SoftmaxRegression(alpha=ALPHA, max_iter=1000, random_state=0)
    model = OneVsRestClassifier(binary).fit(X, y)
    alone = [clone(binary).fit(X, y == k) for k in range(3)]
    for k in range(3):
        assert np.array_equal(model.estimators_[k].coef_, alone[k].coef_)
    assert np.array_equal(model.decision_function(X), np.column_stack([m.decision_function(X) for m in alone]))


@unfinished
def test_clone_pickle_and_joblib(tmp_path):
    X, y = data()
    model = SoftmaxRegression(**SHORT, class_weight={0: 1.0, 1: 2.0, 2: 1.0})
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "coef_")
    model.partial_fit(X, y, classes=np.arange(K))
    joblib.dump(model, tmp_path / "model.joblib")
    for other in (
        pickle.loads(pickle.dumps(model)),
        joblib.load(tmp_path / "model.joblib"),
        joblib.load(tmp_path / "model.joblib", mmap_mode="r"),
    ):
        same(other, model)
        assert np.array_equal(other.predict_proba(X), model.predict_proba(X))
    # a stream goes on where it was, velocity and rate included
    revived = pickle.loads(pickle.dumps(model)).partial_fit(X, y)
    same(revived, model.partial_fit(X, y))


@unfinished
@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_frames(frame, recwarn):
    X, y = data()
    names = ["red", "green", "blue", "near", "far"]
    given = frame(dict(zip(names, X.T, strict=True)))
    model = SoftmaxRegression(**SHORT).fit(given, y)
    assert model.feature_names_in_.tolist() == names
    same(model, SoftmaxRegression(**SHORT).fit(X, y))
    assert np.array_equal(model.predict_proba(given), model.predict_proba(X.copy()))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(given[names[::-1]])


@unfinished
@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_after_a_transformer_with_set_output(iris, output):
    frame = load_iris(as_frame=True)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(**SHORT)).set_output(transform=output)
    pipeline.fit(frame.data, frame.target)
    assert pipeline[-1].feature_names_in_.tolist() == frame.feature_names
    plain = make_pipeline(StandardScaler(), SoftmaxRegression(**SHORT)).fit(*iris)
    same(pipeline[-1], plain[-1], **SAME_PATH)
    assert np.array_equal(pipeline.predict(frame.data), plain.predict(iris[0]))


@unfinished
def test_metadata_routing():
    X, y = data()
    s = weights()
    direct = SoftmaxRegression(**SHORT).fit(X, y, sample_weight=s)
    with sklearn.config_context(enable_metadata_routing=True):
        model = SoftmaxRegression(**SHORT).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"alpha": [ALPHA]}, cv=3, error_score="raise").fit(X, y, sample_weight=s)
        same(search.best_estimator_, direct)
        deaf = SoftmaxRegression(**SHORT).set_fit_request(sample_weight=False).set_score_request(sample_weight=False)
        pipeline = make_pipeline(StandardScaler(with_mean=False, with_std=False), deaf)
        same(pipeline.fit(X, y)[-1], SoftmaxRegression(**SHORT).fit(X, y))
        streams = SoftmaxRegression().set_partial_fit_request(classes=True, sample_weight=True)
        assert streams.get_metadata_routing().partial_fit.requests == {"classes": True, "sample_weight": True}
    assert not np.array_equal(direct.coef_, SoftmaxRegression(**SHORT).fit(X, y).coef_)


@unfinished
def test_many_classes_and_wide_data():
    """Sizes at which kernels change their way; digits' own optimum is checked in test_vs_sklearn."""
    X, y = load_digits(return_X_y=True)
    y = 10 * y + np.arange(len(y)) % 10  # a hundred classes
    model = SoftmaxRegression(alpha=1e-3, max_iter=20, random_state=0).fit(X / 16, y)
    assert model.coef_.shape == (100, 64)
    assert model.history_["loss"][-1] < np.log(100)
    wide = sparse.random_array((40, 5000), density=0.01, rng=np.random.default_rng(0), format="csr")
    model = SoftmaxRegression(max_iter=20, random_state=0).fit(wide, np.arange(40) % 4)
    assert model.coef_.shape == (4, 5000)
    # a column that is always empty gets nothing at all
    empty = np.bincount(wide.indices, minlength=5000) == 0
    assert not model.coef_[:, empty].any()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_most_rows_weigh_nothing(form):
    """The held-out rows have weight, and the fit is that of the rows that have some."""
    rng = np.random.default_rng(0)
    X, weight = rng.normal(size=(5_000, 5)), np.zeros(5_000)
    y = (X[:, :3] + rng.gumbel(size=(5_000, 3))).argmax(axis=1)
    weight[:40] = 1.0
    model = SoftmaxRegression(alpha=0.1, tol=1e-8, random_state=0)
    fitted = clone(model).fit(form(X), y, sample_weight=weight)
    alone = clone(model).fit(form(X[:40]), y[:40])
    np.testing.assert_allclose(fitted.coef_, alone.coef_, rtol=0, atol=1e-3)  # tol = 1e-8 and a curvature of 0.1
    model.set_params(early_stopping=True)
    objective = model._objective(form(X), y, None, np.arange(3), weight)
    train, held_out = hold_out(model, objective, np.random.RandomState(0))
    assert sorted([*train.design.rows, *held_out.design.rows]) == list(range(40))
