"""Cross-entropy against target distributions: the metric, and the scorer wherever scikit-learn takes one."""

import doctest
import pickle

import numpy as np
import pytest
import sklearn
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softreg import SoftmaxRegression, SoftmaxRegressionCV, metrics
from softreg.metrics import cross_entropy_loss, cross_entropy_scorer

both_classes = pytest.mark.parametrize("classes", [2, 3])


def data(classes=3, n=90):
    """Rows, and distributions of a softmax model in them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    Y = np.exp(X @ rng.normal(size=(4, classes)))
    return X, Y / Y.sum(axis=1, keepdims=True)


def test_examples():
    result = doctest.testmod(metrics)
    assert result.attempted > 0
    assert result.failed == 0


@both_classes
@pytest.mark.parametrize("weighted", [False, True])
def test_loss(classes, weighted):
    """The formula, and log_loss; sums of 90 terms of order one."""
    _, Y = data(classes)
    P = np.roll(Y, 1, axis=0)
    s = np.arange(90.0) if weighted else None
    given = {"sample_weight": s}
    expected = np.average(-(Y * np.log(P)).sum(axis=1), weights=s)
    assert cross_entropy_loss(Y, np.log(P), **given) == pytest.approx(expected, rel=1e-13)
    y = np.array(["ash", "birch", "oak"])[Y.argmax(axis=1)]
    assert cross_entropy_loss(y, np.log(P), **given) == pytest.approx(log_loss(y, P, **given), rel=1e-13)


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 87.4), (np.float64, 708.4)])
def test_a_probability_of_zero_is_a_finite_loss(dtype, most):
    """Minus the logarithm of the smallest normal number."""
    log_P = np.array([[-np.inf, 0.0]], dtype)
    assert cross_entropy_loss([[1.0, 0.0]], log_P) == pytest.approx(most, abs=0.1)
    assert cross_entropy_loss([[0.0, 1.0]], log_P) == 0


@pytest.mark.parametrize(
    ("y", "log_proba", "options", "message"),
    [
        ([0, 1], np.zeros((2, 3)), {}, "3 columns, but there are 2 labels"),
        ([0, 5], np.zeros((2, 3)), {"labels": [0, 1, 2]}, "label 5"),
        ([0, 1], np.zeros(2), {}, r"y_log_proba has shape \(2,\)"),
        ([0, 1], np.full((2, 2), np.nan), {}, "y_log_proba contains NaN"),
        ([[0.5, 0.6], [1, 0]], np.zeros((2, 2)), {}, "sums to 1.1"),
        ([0, 1], np.zeros((2, 2)), {"sample_weight": [-1, 1]}, "negative"),
    ],
)
def test_bad_input(y, log_proba, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy_loss(y, log_proba, **options)


@both_classes
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_scorer_in_scikit_learn(classes, soft, n_jobs):
    X, Y = data(classes)
    y = Y if soft else np.array(["ash", "birch", "oak"])[Y.argmax(axis=1)]
    model = make_pipeline(StandardScaler(), SoftmaxRegression(alpha=0.1))
    search = GridSearchCV(model, {"softmaxregression__alpha": [1e-3, 1.0]}, scoring=cross_entropy_scorer, n_jobs=n_jobs)
    assert search.fit(X, y).best_params_ == {"softmaxregression__alpha": 1e-3}  # the data are a softmax model
    assert search.score(X, y) == -cross_entropy_loss(y, search.predict_log_proba(X))
    scores = cross_val_score(model, X, y, scoring=cross_entropy_scorer, n_jobs=n_jobs)
    assert np.isfinite(scores).all() and (scores < 0).all()
    if not soft:  # log_loss clips at the smallest difference from one, far below what these fits predict
        np.testing.assert_allclose(scores, cross_val_score(model, X, y, scoring="neg_log_loss"), rtol=1e-12)


@both_classes
def test_scorer_in_cross_validation_along_paths(classes):
    X, Y = data(classes)
    model = SoftmaxRegressionCV(alphas=[1e-3, 1.0], scoring=cross_entropy_scorer)
    assert model.fit(X, Y, sample_weight=np.ones(90)).alpha_ == 1e-3
    assert model.score(X, Y) == -cross_entropy_loss(Y, model.predict_log_proba(X))
    with pytest.raises(ValueError, match="cross_entropy_scorer"):
        SoftmaxRegressionCV().fit(X, Y)


def test_folds_may_lack_a_class():
    X, Y = data()
    y = Y.argmax(axis=1)
    model = SoftmaxRegression().fit(X, y)
    some = y < 2
    expected = log_loss(y[some], model.predict_proba(X[some]), labels=[0, 1, 2])
    assert -cross_entropy_scorer(model, X[some], y[some]) == pytest.approx(expected, rel=1e-12)


def test_scorer_takes_other_classifiers_and_weights_and_is_pickled():
    X, Y = data()
    y, s = Y.argmax(axis=1), np.arange(90.0)
    with np.errstate(divide="ignore"):  # a forest takes the logarithm of zero
        forest = RandomForestClassifier(10, random_state=0).fit(X, y)
        assert np.isfinite(cross_entropy_scorer(forest, X, Y))
    model = SoftmaxRegression().fit(X, Y)
    expected = -cross_entropy_loss(Y, model.predict_log_proba(X), sample_weight=s)
    assert pickle.loads(pickle.dumps(cross_entropy_scorer))(model, X, Y, sample_weight=s) == expected


def test_metadata_routing():
    X, Y = data()
    s = np.arange(1.0, 91.0)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = pickle.loads(pickle.dumps(cross_entropy_scorer)).set_score_request(sample_weight=True)
        model = SoftmaxRegression().set_fit_request(sample_weight=False)
        search = GridSearchCV(model, {"alpha": [0.1]}, scoring=scorer, cv=2).fit(X, Y, sample_weight=s)
    fold = SoftmaxRegression(alpha=0.1).fit(X[45:], Y[45:])
    assert search.cv_results_["split0_test_score"] == [scorer(fold, X[:45], Y[:45], sample_weight=s[:45])]
