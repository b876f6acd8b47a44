"""Fitted models outside of softreg: as scikit-learn's LogisticRegression, and through skops."""

import numpy as np
import pandas as pd
import pytest
from shared import forms, softmax_data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from softreg import SoftmaxRegression, SoftmaxRegressionCV

ESTIMATORS = {
    "default": SoftmaxRegression(),
    "no intercept": SoftmaxRegression(fit_intercept=False),
    "cv": SoftmaxRegressionCV(alphas=[1e-1, 1e-3], cv=3),
}
estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def data(classes=3, labels=("a", "b", "c"), form=np.asarray):
    X, y = softmax_data(200, 5, classes)
    return form(X), np.array(labels)[y]


# --- LogisticRegression ---------------------------------------------------------------------------------------------


@estimators
@forms
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("labels", [("a", "b", "c"), (-1, 0, 5)], ids=["str", "int"])
def test_logistic_regression_predicts_the_same(estimator, form, classes, labels):
    X, y = data(classes, labels, form)
    model = clone(estimator).fit(X, y)
    theirs = model.to_sklearn()
    assert type(theirs) is LogisticRegression
    assert theirs.fit_intercept == model.fit_intercept and theirs.n_features_in_ == 5
    assert theirs.classes_.dtype == model.classes_.dtype
    assert theirs.predict(X).tolist() == model.predict(X).tolist()
    # the same sums of five products, added in another order
    np.testing.assert_allclose(theirs.predict_proba(X), model.predict_proba(X), rtol=0, atol=1e-14)
    np.testing.assert_allclose(theirs.decision_function(X), model.decision_function(X), rtol=1e-12, atol=1e-12)


def test_logistic_regression_of_a_stream_in_float32():
    X, y = data()
    X = X.astype(np.float32)
    model = SoftmaxRegression().partial_fit(X, y, classes=["a", "b", "c"])
    theirs = model.to_sklearn()
    assert theirs.coef_.dtype == theirs.predict_proba(X).dtype == np.float32
    np.testing.assert_allclose(theirs.predict_proba(X), model.predict_proba(X), rtol=0, atol=1e-6)  # ten ulp of 1


def test_logistic_regression_has_copies_and_names():
    X, y = data()
    X = pd.DataFrame(X, columns=list("vwxyz"))
    model = SoftmaxRegression().fit(X, y)
    theirs = model.to_sklearn()
    assert theirs.feature_names_in_.tolist() == list("vwxyz")
    for name in ("coef_", "intercept_", "classes_"):
        array = getattr(theirs, name)
        assert array.flags.writeable and not np.shares_memory(array, getattr(model, name))
    sparse = model.sparsify().to_sklearn()
    np.testing.assert_allclose(sparse.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-14)  # as above


def test_an_unfitted_model_has_no_logistic_regression():
    with pytest.raises(NotFittedError):
        SoftmaxRegression().to_sklearn()


# --- skops ----------------------------------------------------------------------------------------------------------


@estimators
@forms
@pytest.mark.parametrize("labels", [("a", "b", "c"), (-1, 0, 5)], ids=["str", "int"])
def test_skops_asks_to_trust_the_estimator_alone(estimator, form, labels):
    skops_io = pytest.importorskip("skops.io")
    X, y = data(3, labels, form)
    model = clone(estimator).fit(X, y)
    written, own = skops_io.dumps(model), f"{type(model).__module__}.{type(model).__name__}"
    assert skops_io.get_untrusted_types(data=written) == [own]
    read = skops_io.loads(written, trusted=[own])
    assert np.array_equal(read.predict_proba(X), model.predict_proba(X))
    assert vars(read).keys() == vars(model).keys()
