"""The same optimum as scikit-learn's: objective, coefficients and probabilities, held to what `tol` promises."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.special import log_softmax, softmax
from shared import BEFORE_1_8, null_loss
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from softreg import SoftmaxRegression

ELASTIC_NET = {"penalty": "elasticnet"} if BEFORE_1_8 else {}  # what makes LogisticRegression look at l1_ratio
TOL = 1e-12  # what ours is asked for: F - min F <= TOL * F


def standardised(loader):
    X, y = loader(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def text():
    """Rows like those of tf-idf: 300 by 80, 5 % filled, positive, of unit length; 4 classes with words of their own."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=300)
    words = rng.random((300, 80)) < 0.03 + 0.12 * (np.arange(80) % 8 == y[:, None])
    words[:, 0] = True
    X = sparse.csr_array(words * rng.gamma(2.0, size=(300, 80)))
    return sparse.csr_array(X / np.sqrt((X**2).sum(axis=1))[:, None]), y


def few(loader, rows):
    X, y = loader(return_X_y=True)
    return X[rows], y[rows]


# name: (X, y), alpha
PROBLEMS = {
    "iris": (load_iris(return_X_y=True), 1e-3),
    "iris, standardised": (standardised(load_iris), 1e-2),
    "wine": (load_wine(return_X_y=True), 1e-2),
    "wine, standardised": (standardised(load_wine), 1e-3),
    "digits": (few(load_digits, slice(600)), 1e-2),
    "breast_cancer": (load_breast_cancer(return_X_y=True), 1e-2),
    "breast_cancer, standardised": (standardised(load_breast_cancer), 1e-3),
    "text": (text(), 1e-3),
    "two of iris": (few(load_iris, slice(50, None)), 1e-2),
}
problems = pytest.mark.parametrize("name", PROBLEMS)
WELL_SCALED = ["iris", "iris, standardised", "wine, standardised", "breast_cancer, standardised", "text"]


def two_rows(A):
    """One column a class, also for two classes."""
    return np.concatenate([-A / 2, A / 2], axis=-1) if A.shape[-1] == 1 else A


def logits(model, X):
    return two_rows(X @ model.coef_.T + model.intercept_)


def objective(model, X, y, s, alpha, l1_ratio=0.0):
    """F as the class's docstring states it, in plain NumPy, and the probabilities."""
    Z = logits(model, X)
    losses = -log_softmax(Z, axis=1)[np.arange(len(y)), np.unique(y, return_inverse=True)[1]]
    penalty = (1 - l1_ratio) / 2 * (model.coef_**2).sum() + l1_ratio * np.abs(model.coef_).sum()
    return np.average(losses, weights=s) + alpha * penalty, softmax(Z, axis=1)


def doubt(model, X, y, s, alpha):
    """A bound on F - min F of scikit-learn's answer: the squared gradient of the coefficients over 2 alpha.

    It holds where the gradient of the intercepts is zero; theirs is added with the curvature of a mean of
    p (1 - p), the smallest class share being 0.05 here.
    """
    _, P = objective(model, X, y, s, alpha)
    codes = np.unique(y, return_inverse=True)[1]
    G = (P - np.eye(P.shape[1])[codes]) * (np.ones(len(y)) if s is None else s)[:, None]
    G /= len(y) if s is None else s.sum()
    if P.shape[1] == 2:
        G = G[:, 1:]
    gradient = np.asarray(X.T @ G).T + alpha * model.coef_
    intercepts = G.sum(axis=0) if model.fit_intercept else 0
    return (gradient**2).sum() / (2 * alpha) + np.sum(intercepts**2) / (2 * 0.05)


def reference(X, y, alpha, s=None, **options):
    """LogisticRegression as far as it goes. It may warn on its way that it cannot go further; `doubt` judges it."""
    total = len(y) if s is None else s.sum()
    X = X if not sparse.issparse(X) else X.toarray()  # newton-cholesky
    model = LogisticRegression(C=1 / (total * alpha), solver="newton-cholesky", tol=1e-13, max_iter=200, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y, sample_weight=s)


def agree(ours, theirs, X, y, alpha, s=None, tol=TOL):
    """All that follows from F - min F <= tol F_null for ours and <= doubt for theirs, and nothing looser.

    The optimum is W*. By strong convexity, alpha/2 |W - W*|^2 <= F - min F. And F - min F is at least the mean
    Kullback-Leibler divergence of the probabilities, that by Pinsker at least 2 TV^2, so one row of weight s_i
    has |p - p*| <= TV <= sqrt(S / s_i (F - min F) / 2).
    """
    least, expected = objective(theirs, X, y, s, alpha)
    found, P = objective(ours, X, y, s, alpha)
    off = doubt(theirs, X, y, s, alpha)
    assert off <= 1e-11 * least  # else this would compare with nothing
    slack = 4 * np.finfo(float).eps * (1 + least)  # rounding of the two means
    allowed = tol * null_loss(y, s)
    assert found <= least + allowed + slack
    assert least <= found + off + slack
    ours_off, theirs_off = allowed + slack, off + slack
    distance = np.sqrt(2 * ours_off / alpha) + np.sqrt(2 * theirs_off / alpha)
    assert np.linalg.norm(ours.coef_ - theirs.coef_) <= distance
    s = np.ones(len(y)) if s is None else s
    rows = s > 0
    bound = np.sqrt(s.sum() / s[rows] / 2) * (np.sqrt(ours_off) + np.sqrt(theirs_off))
    assert (np.abs(P - expected)[rows].max(axis=1) <= bound).all()
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape
    assert np.array_equal(ours.classes_, theirs.classes_)
    # its own predictions are those of the coefficients; sums of d products of logits of a few hundred at most
    np.testing.assert_allclose(ours.predict_proba(X), P, atol=1e-11)


@problems
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_default_solver(name, fit_intercept):
    (X, y), alpha = PROBLEMS[name]
    ours = SoftmaxRegression(alpha=alpha, tol=TOL, max_iter=1000, fit_intercept=fit_intercept).fit(X, y)
    agree(ours, reference(X, y, alpha, fit_intercept=fit_intercept), X, y, alpha)
    if not fit_intercept:
        assert not ours.intercept_.any()


@pytest.mark.parametrize("name", WELL_SCALED[1:])
def test_sgd(name):
    """Its noise falls with its rate: 1e-3 is what it is for. Where alpha is small it gets there without a proof,
    and warns that it has none; the place is what counts here."""
    (X, y), alpha = PROBLEMS[name]
    ours = SoftmaxRegression(solver="sgd", alpha=alpha, tol=1e-3, max_iter=2000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours.fit(X, y)
    agree(ours, reference(X, y, alpha), X, y, alpha, tol=1e-3)


@problems
def test_sample_weights(name):
    (X, y), alpha = PROBLEMS[name]
    s = np.random.default_rng(1).integers(4, size=len(y)).astype(float)
    ours = SoftmaxRegression(alpha=alpha, tol=TOL, max_iter=1000).fit(X, y, sample_weight=s)
    agree(ours, reference(X, y, alpha, s), X, y, alpha, s)


@pytest.mark.parametrize("name", ["wine, standardised", "breast_cancer, standardised", "text"])
@pytest.mark.parametrize("class_weight", ["balanced", "dict"])
def test_class_weights(name, class_weight):
    """scikit-learn's C multiplies the sum of losses: the sum of all weights goes into C by hand."""
    (X, y), alpha = PROBLEMS[name]
    of_class = {k: 1.0 + 2 * k for k in np.unique(y)} if class_weight == "dict" else "balanced"
    counts = np.bincount(y)
    s = (1.0 + 2 * y) if class_weight == "dict" else (len(y) / (len(counts) * counts))[y]
    ours = SoftmaxRegression(alpha=alpha, tol=TOL, max_iter=1000, class_weight=of_class).fit(X, y)
    dense = X.toarray() if sparse.issparse(X) else X
    theirs = LogisticRegression(
        C=1 / (s.sum() * alpha), solver="newton-cholesky", tol=1e-13, max_iter=200, class_weight=of_class
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(dense, y)
    agree(ours, theirs, X, y, alpha, s)


def test_sparse_is_dense():
    (X, y), alpha = PROBLEMS["text"]
    options = {"alpha": alpha, "tol": TOL, "max_iter": 1000}
    theirs = reference(X, y, alpha)
    agree(SoftmaxRegression(**options).fit(X, y), theirs, X, y, alpha)
    agree(SoftmaxRegression(**options).fit(X.toarray(), y), theirs, X, y, alpha)


@pytest.mark.parametrize("name", ["iris, standardised", "two of iris"])
def test_intercepts_are_free(name):
    """Under so large a penalty no coefficient is left, and the intercepts are the logarithms of the class shares."""
    (X, y), _ = PROBLEMS[name]
    X, y = X[:-20], y[:-20]
    alpha = 1e6
    ours = SoftmaxRegression(alpha=alpha, tol=TOL, max_iter=1000).fit(X, y)
    agree(ours, reference(X, y, alpha), X, y, alpha)
    shares = np.unique(y, return_counts=True)[1] / len(y)
    np.testing.assert_allclose(softmax(two_rows(ours.intercept_)), shares, atol=1e-5)


@pytest.mark.parametrize("alpha", [1e-8, 1e-4, 1.0, 100.0])
def test_alphas(alpha):
    """The mapping of C holds over ten orders of magnitude. Labels are noisy: alpha hardly matters at the lower end,
    where it is the loss, not the penalty, that bounds the coefficients, and better than `agree` asks for."""
    X, y = standardised(load_wine)
    y = np.where(np.random.default_rng(0).random(len(y)) < 0.3, (y + 1) % 3, y)
    X = X[:, :5]
    ours = SoftmaxRegression(alpha=alpha, tol=TOL, max_iter=1000).fit(X, y)
    theirs = reference(X, y, alpha)
    (found, P), (least, Q) = (objective(m, X, y, None, alpha) for m in (ours, theirs))
    assert abs(found - least) <= 1e-11 * least
    # at least 0.01 of curvature everywhere, by noise of 30 %: sqrt(2 * 1e-11 / 0.01) = 5e-5
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=5e-5)
    np.testing.assert_allclose(P, Q, atol=5e-5)


def test_soft_targets_are_a_mean_of_labels():
    """LogisticRegression has no soft targets; weighted copies of rows, one for each label, are the way round it."""
    X, _ = standardised(load_wine)
    Y = np.random.default_rng(2).dirichlet(np.ones(3), size=len(X))
    copies, labels = np.repeat(X, 3, axis=0), np.tile(np.arange(3), len(X))
    ours = SoftmaxRegression(alpha=1e-2, tol=TOL, max_iter=1000).fit(X, Y)
    agree(ours, reference(copies, labels, 1e-2, Y.ravel()), copies, labels, 1e-2, Y.ravel())


def test_float32():
    """float32 sums know F to some 1e-7 of it; asked for 1e-5, it must get there."""
    (X, y), alpha = PROBLEMS["wine, standardised"]
    ours = SoftmaxRegression(alpha=alpha, tol=1e-5, max_iter=1000).fit(X.astype(np.float32), y)
    theirs = reference(X, y, alpha)
    ours.coef_, ours.intercept_ = ours.coef_.astype(float), ours.intercept_.astype(float)
    agree(ours, theirs, X, y, alpha, tol=1e-5)


# --- l1 and elastic net ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iris, standardised", "breast_cancer, standardised"])
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_l1_against_saga(name, l1_ratio, fit_intercept):
    """saga stops where no coefficient moves by more than 1e-8 of the largest in an epoch, some 1e-6 from the end,
    and F is flat there: both are within 1e-6 F of the least."""
    (X, y), _ = PROBLEMS[name]
    alpha, tol = 0.02, 1e-6
    options = {"l1_ratio": l1_ratio, "fit_intercept": fit_intercept}
    ours = SoftmaxRegression(alpha=alpha, tol=tol, max_iter=10_000, random_state=0, **options).fit(X, y)
    theirs = LogisticRegression(
        C=1 / (len(y) * alpha), solver="saga", tol=1e-8, max_iter=100_000, random_state=0, **options, **ELASTIC_NET
    ).fit(X, y)
    (found, P), (least, Q) = (objective(m, X, y, None, alpha, l1_ratio) for m in (ours, theirs))
    assert found <= least + tol * found
    assert least <= found + tol * least
    off = 2 * np.sqrt(tol * found)  # once for either
    assert (np.abs(P - Q).max(axis=1) <= np.sqrt(len(y) / 2) * off).all()  # Pinsker, as in `agree`
    if l1_ratio < 1:  # strongly convex
        assert np.linalg.norm(ours.coef_ - theirs.coef_) <= np.sqrt(2 / (alpha * (1 - l1_ratio))) * off
    # what is clearly not zero is where it is, in both; and zeros are exact in ours
    clear = np.abs(theirs.coef_) > 0.1
    assert np.array_equal(np.sign(ours.coef_[clear]), np.sign(theirs.coef_[clear]))
    assert clear.any()
    assert (ours.coef_[theirs.coef_ == 0] == 0).mean() > 0.5
    assert (ours.coef_ == 0).any()
