"""Warm starts, the path of penalties, and the choice among them by cross-validation."""

import doctest
import inspect
import re
import warnings

import numpy as np
import pytest
import sklearn
from scipy import sparse
from scipy.special import softmax
from shared import BEFORE_1_8, both_classes, softmax_data, unfinished
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import accuracy_score, log_loss, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from softreg import SoftmaxRegression, SoftmaxRegressionCV, _estimator, _path, softmax_path
from softreg._objective import Objective

N, D, K = 120, 5, 3
ALPHAS = np.array([1.0, 0.1, 0.01])
# F is under 1.1, so a gap of at most 1e-12 F puts a fit within sqrt(2 * 1.1e-12 / 0.01) = 1.5e-5 of the best
# coefficients by strong convexity, and two fits within 3e-5. Intercepts follow from them, as steep as they are.
EXACT = {"tol": 1e-12, "max_iter": 3000, "random_state": 0}
SAME_OPTIMUM = {"rtol": 0, "atol": 3e-5}
# The log loss of a row moves by at most 2 max|dz|, and dz sums D + 1 differences times |x| <= 4: 2 * 6 * 4 * 3e-5.
SAME_LOSS = {"rtol": 0, "atol": 1.5e-3}



def data(classes=K, n=N, seed=0):
    return softmax_data(n, D, classes, seed)


def weights():
    return np.random.default_rng(1).integers(4, size=N).astype(float)


def cross_entropy(model, X, Y):
    return float(np.mean(np.sum(Y * model.predict_log_proba(X), axis=1)))


# --- fits that start from given coefficients ------------------------------------------------------------------


@unfinished
@both_classes
@pytest.mark.parametrize("params", [{}, {"solver": "sgd"}, {"l1_ratio": 0.5}], ids=str)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_a_given_start_is_a_warm_start(params, classes, form):
    X, y = data(classes)
    model = SoftmaxRegression(max_iter=10, random_state=0, warm_start=True, **params).fit(form(X), y)
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    given = clone(model).fit(form(X), y, coef_init=coef, intercept_init=intercept)
    cold = clone(model).fit(form(X), y)
    model.fit(form(X), y)
    assert np.array_equal(given.coef_, model.coef_)
    assert np.array_equal(given.intercept_, model.intercept_)
    assert not np.array_equal(given.coef_, cold.coef_)


def test_a_given_start_goes_before_the_previous_fit():
    X, y = data()
    coef, intercept = np.ones((K, D)), np.array([1.0, 0.0, -1.0])
    params = {"max_iter": 1, "tol": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        new = SoftmaxRegression(**params).fit(X, y, coef_init=coef, intercept_init=intercept)
        model = SoftmaxRegression(warm_start=True, **params).fit(X, y)
        previous = model.intercept_
        assert np.array_equal(clone(model).fit(X, y, None, coef, intercept).coef_, new.coef_)
        half = SoftmaxRegression(**params).fit(X, y, coef_init=coef, intercept_init=previous)
        assert np.array_equal(model.fit(X, y, coef_init=coef).coef_, half.coef_)  # the rest is the previous fit's


def test_starts_are_not_modified_and_keep_the_dtype():
    X, y = data()
    start = np.ones((K, D)), np.zeros(K)
    for array in start:
        array.flags.writeable = False
    model = SoftmaxRegression().fit(X.astype(np.float32), y, coef_init=start[0], intercept_init=start[1])
    assert model.coef_.dtype == np.float32


@pytest.mark.parametrize(
    ("classes", "start", "message"),
    [
        (K, {"coef_init": np.zeros((2, D))}, "coef_init has shape (2, 5); the data have 3 classes and 5 features"),
        (K, {"coef_init": np.zeros((K, D + 1))}, "which needs (3, 5)"),
        (2, {"coef_init": np.zeros(D)}, "coef_init has shape (5,); the data have 2 classes"),
        (2, {"intercept_init": np.zeros(2)}, "intercept_init has shape (2,)"),
        (K, {"coef_init": np.full((K, D), np.nan)}, "Input coef_init contains NaN"),
        (K, {"intercept_init": np.full(K, np.inf)}, "Input intercept_init contains infinity"),
        (K, {"coef_init": "abc"}, "could not convert string to float"),
        (K, {"intercept_init": np.ones(K), "fit_intercept": False}, "intercept_init=[1.0, 1.0, 1.0] needs fit_inter"),
    ],
)
def test_starts_that_cannot_be_used(classes, start, message):
    X, y = data(classes)
    model = SoftmaxRegression(fit_intercept=start.pop("fit_intercept", True)).fit(X, y)
    before = model.coef_
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(X, y, **start)
    assert model.coef_ is before


# --- the path ---------------------------------------------------------------------------------------------------


@unfinished
@both_classes
@pytest.mark.parametrize("params", [{}, {"l1_ratio": 0.7}, {"fit_intercept": False}], ids=str)
def test_a_path_is_its_fits(params, classes):
    X, y = data(classes)
    alphas, coefs, intercepts, n_iters = softmax_path(X, y, alphas=ALPHAS[::-1], **params, **EXACT)
    assert np.array_equal(alphas, ALPHAS)
    rows = 1 if classes == 2 else classes
    assert (coefs.shape, intercepts.shape, n_iters.shape) == ((3, rows, D), (3, rows), (3,))
    for alpha, coef, intercept in zip(alphas, coefs, intercepts, strict=True):
        cold = SoftmaxRegression(alpha=alpha, **params, **EXACT).fit(X, y)
        np.testing.assert_allclose(coef, cold.coef_, **SAME_OPTIMUM)
        np.testing.assert_allclose(intercept, cold.intercept_, **SAME_OPTIMUM)


def test_a_path_over_many_decades():
    """The preconditioner is kept from fit to fit: it must not matter how far apart they are."""
    X, y = data()
    X *= [1e-2, 1, 1, 10, 1e3]
    for alpha, coef, intercept, _ in zip(*softmax_path(X, y, alphas=[1e3, 1e-3, 0.0], tol=1e-8), strict=True):
        cold = SoftmaxRegression(alpha=alpha, tol=1e-8).fit(X, y)
        here = log_loss(y, softmax(X @ coef.T + intercept, axis=1)) + alpha / 2 * np.sum(coef**2)
        there = log_loss(y, cold.predict_proba(X)) + alpha / 2 * np.sum(cold.coef_**2)
        assert here == pytest.approx(there, rel=1e-8)  # both within tol of the least there is


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_warm_starts_take_fewer_passes(l1_ratio, monkeypatch):
    X, y = data(n=600)
    solve, passes = _path.solve, []

    def counted(*args):
        result = solve(*args)
        passes.append(result.passes)
        return result

    monkeypatch.setattr(_path, "solve", counted)
    monkeypatch.setattr(_estimator, "solve", counted)
    alphas = softmax_path(X, y, alphas=np.geomspace(0.05, 0.005, 10), l1_ratio=l1_ratio, max_iter=1000)[0]
    path, passes[:] = sum(passes), []
    for alpha in alphas:
        SoftmaxRegression(alpha=alpha, l1_ratio=l1_ratio, max_iter=1000).fit(X, y)
    assert path < 0.9 * sum(passes)


@pytest.mark.parametrize("l1_ratio", [0.0, 1.0])
def test_a_path_goes_on_in_its_direction(l1_ratio, monkeypatch):
    """From the third alpha on a fit starts nearer to its optimum than the last fit is."""
    X, y = data(n=600)
    X *= [1e-2, 1, 1, 10, 1e3]
    solve, starts = _path.solve, []

    def spied(solver, objective, start, *args):
        result = solve(solver, objective, start, *args)
        value = lambda W: objective.value(W) + objective.penalty_l1(W)  # noqa: E731
        starts.append((value(start.W) - result.loss, value(before[-1]) - result.loss))
        before.append(result.W)
        return result

    before = [np.zeros((K, D + 1))]
    monkeypatch.setattr(_path, "solve", spied)
    softmax_path(X, y, alphas=np.geomspace(0.1, 1e-3, 8), l1_ratio=l1_ratio, tol=1e-6, max_iter=1000)
    for start, last in starts[:2]:
        assert start == last
    for start, last in starts[2:]:
        assert start < (0.8 if l1_ratio else 0.5) * last  # coefficients that leave zero have no direction before


def test_alphas_that_have_no_direction():
    X, y = data()
    objective = Objective(X, y, None, None, K, l2=0.0)
    W = objective.zeros()
    for alphas in ((1.0, 1.0, 0.5), (1.0, 0.5, 0.5), (1.0, 0.5, 0.0)):
        predicted = _path._predicted(objective, alphas[2], [(alphas[0], W + 1), (alphas[1], W)])
        assert np.array_equal(predicted, W)


@both_classes
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("s", [None, weights()], ids=["even", "weighted"])
def test_l1_has_no_coefficients_from_the_first_alpha_on(classes, fit_intercept, s):
    X, y = data(classes)
    params = {"sample_weight": s, "l1_ratio": 0.5, "fit_intercept": fit_intercept, "max_iter": 1000, "tol": 1e-8}
    largest = softmax_path(X, y, alphas=1, **params)[0][0]
    _, coefs, _, _ = softmax_path(X, y, alphas=[1.001 * largest, 0.97 * largest], **params)
    assert not coefs[0].any()
    assert coefs[1].any()


def test_the_grid_follows_the_unit_of_the_features_but_not_of_the_weights():
    X, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        alphas = softmax_path(X, y, alphas=4, max_iter=1)[0]
        # the same sums in another order
        np.testing.assert_allclose(softmax_path(10 * X, y, alphas=4, max_iter=1)[0], 100 * alphas, rtol=1e-12)
        weighted = softmax_path(X, y, alphas=4, max_iter=1, sample_weight=np.full(N, 7.0))[0]
        np.testing.assert_allclose(weighted, alphas, rtol=1e-12)
        csr = softmax_path(sparse.csr_array(X), y, alphas=4, max_iter=1)[0]
        np.testing.assert_allclose(csr, alphas, rtol=1e-12)
    np.testing.assert_allclose(alphas[0], 0.5 * X.var(axis=0).sum(), rtol=1e-12)
    np.testing.assert_allclose(alphas[0] / alphas, 10 ** (np.arange(4) * 8 / 3), rtol=1e-12)


def test_a_path_that_did_not_arrive_says_so():
    X, y = data()
    with pytest.warns(ConvergenceWarning, match=r"3 of 3 fits along the path stopped .* tol=1e-14"):
        softmax_path(X, y, alphas=ALPHAS, max_iter=1, tol=1e-14)


@pytest.mark.parametrize("name", ["alpha", "warm_start", "early_stopping"])
def test_a_path_refuses_what_it_would_ignore(name):
    with pytest.raises(TypeError, match=f"softmax_path takes no {name}:"):
        softmax_path(*data(), **{name: True})


# --- the choice -------------------------------------------------------------------------------------------------


# The checks cut max_iter down to 5 by themselves and fit random labels: a warning is then the right answer.
@unfinished
@parametrize_with_checks([SoftmaxRegressionCV(alphas=3, cv=3, scoring="neg_log_loss")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_examples():
    result = doctest.testmod(_path)
    assert result.attempted > 0
    assert result.failed == 0


def test_docstring_names_every_parameter_and_its_default():
    doc = inspect.getdoc(SoftmaxRegressionCV)
    for name, parameter in inspect.signature(SoftmaxRegressionCV).parameters.items():
        default = parameter.default if not isinstance(parameter.default, str) else f'"{parameter.default}"'
        default = {"0.0001": "1e-4"}.get(str(default), str(default))
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert re.search(rf"^{name} : .*default={re.escape(default)}$", doc, re.MULTILINE), name
        assert name in SoftmaxRegressionCV._parameter_constraints


@both_classes
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_attributes(classes, fit_intercept):
    X, y = data(classes)
    names = np.array(["a", "b", "c"])
    model = SoftmaxRegressionCV(
        alphas=ALPHAS[::-1], l1_ratios=[0.0, 0.5], cv=4, fit_intercept=fit_intercept, max_iter=1000
    )
    assert model.fit(X.astype(np.float32), names[y]) is model
    rows = 1 if classes == 2 else classes
    assert model.scores_.shape == model.n_iter_.shape == (4, 2, 3)
    assert model.coefs_paths_.shape == (4, 2, 3, rows, D + fit_intercept)
    assert model.coefs_paths_.dtype == model.coef_.dtype == np.float32
    assert (model.coef_.shape, model.intercept_.shape) == ((rows, D), (rows,))
    assert np.array_equal(model.alphas_, ALPHAS)
    assert np.array_equal(model.l1_ratios_, [0.0, 0.5])
    assert model.alpha_ in ALPHAS
    assert model.l1_ratio_ in (0.0, 0.5)
    assert model.score(X, names[y]) == accuracy_score(names[y], model.predict(X))
    # float32 sums of three probabilities
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, atol=1e-6)
    fitted = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    doc = inspect.getdoc(SoftmaxRegressionCV)
    assert [name for name in fitted if not re.search(rf"\b{name}\b", doc)] == []


@unfinished
@pytest.mark.parametrize(("classes", "scoring"), [(K, "neg_log_loss"), (2, "neg_log_loss"), (2, "roc_auc")])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_it_is_a_grid_search(classes, scoring, form):
    X, y = data(classes)
    grid = {"l1_ratio": [0.0, 0.5], "alpha": ALPHAS}
    search = GridSearchCV(SoftmaxRegression(**EXACT), grid, scoring=scoring, cv=4).fit(form(X), y)
    model = SoftmaxRegressionCV(alphas=ALPHAS, l1_ratios=[0.0, 0.5], scoring=scoring, cv=4, **EXACT).fit(form(X), y)
    scores = np.array([search.cv_results_[f"split{k}_test_score"] for k in range(4)])
    at = {(p["l1_ratio"], p["alpha"]): i for i, p in enumerate(search.cv_results_["params"])}
    order = [at[l1_ratio, alpha] for l1_ratio in model.l1_ratios_ for alpha in model.alphas_]
    # ranks are those of the same probabilities but for ties within 3e-5: none here
    np.testing.assert_allclose(model.scores_, scores[:, order].reshape(4, 2, 3), **SAME_LOSS)
    assert search.best_params_ == {"alpha": model.alpha_, "l1_ratio": model.l1_ratio_}
    np.testing.assert_allclose(model.coef_, search.best_estimator_.coef_, **SAME_OPTIMUM)
    assert model.score(form(X), y) == pytest.approx(search.score(form(X), y), rel=0, abs=SAME_LOSS["atol"])


@pytest.mark.skipif(BEFORE_1_8, reason="LogisticRegressionCV has other attributes there")
@both_classes
@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_it_is_logistic_regression_cv(classes, refit, class_weight):
    X, y = data(classes)
    n = N * 3 // 4  # of each fold, and what C is to be divided by
    common = {"cv": KFold(4), "scoring": "neg_log_loss", "refit": refit, "class_weight": class_weight}
    # balanced weights sum to N over all rows, but not over those of a fold: there C is another number
    alphas = ALPHAS if class_weight is None else ALPHAS[-1:]
    theirs = LogisticRegressionCV(
        Cs=1 / (n * alphas), l1_ratios=(0.0,), use_legacy_attributes=False, tol=1e-10, max_iter=10_000, **common
    ).fit(X, y)
    ours = SoftmaxRegressionCV(alphas=alphas, **common, **EXACT).fit(X, y)
    assert ours.scores_.shape == theirs.scores_.shape
    assert ours.coefs_paths_.shape == theirs.coefs_paths_.shape
    if class_weight is None:
        np.testing.assert_allclose(ours.coefs_paths_, theirs.coefs_paths_, **SAME_OPTIMUM)
        np.testing.assert_allclose(ours.scores_, theirs.scores_, **SAME_LOSS)
        np.testing.assert_allclose(ours.alpha_, 1 / (n * theirs.C_) if refit else ours.alpha_)
    else:  # sums of weights differ by some 5 % from fold to fold, and so does what the penalty does
        np.testing.assert_allclose(ours.scores_, theirs.scores_, atol=0.01)
    if not refit:
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=3e-5 if class_weight is None else 0.1)


def test_without_refit_everything_is_a_mean_of_the_best():
    X, y = data()
    model = SoftmaxRegressionCV(
        alphas=np.geomspace(1, 1e-3, 7), cv=4, refit=False, scoring="neg_log_loss", random_state=0
    ).fit(X, y)
    best = model.scores_[:, 0].argmax(axis=1)
    assert len(set(best)) > 1
    assert model.alpha_ == model.alphas_[best].mean()
    W = model.coefs_paths_[np.arange(4), 0, best].mean(axis=0)
    assert np.array_equal(model.coef_, W[:, :-1])
    assert np.array_equal(model.intercept_, W[:, -1])


def test_ties_go_to_the_strongest_penalty():
    X, y = data()
    constant = SoftmaxRegressionCV(alphas=ALPHAS, l1_ratios=[0.5, 0.0], scoring=lambda *args: 1.0, max_iter=1000)
    constant.fit(X, y)
    assert (constant.alpha_, constant.l1_ratio_) == (1.0, 0.5)


@unfinished
def test_weights_reach_fits_and_scores():
    X, y = data()
    s = weights()
    folds = list(StratifiedKFold(3).split(X, y))
    model = SoftmaxRegressionCV(alphas=ALPHAS, cv=folds, scoring="neg_log_loss", class_weight={0: 2.0}, **EXACT)
    model.fit(X, y, sample_weight=s)
    for k, (train, test) in enumerate(folds):
        one = SoftmaxRegression(alpha=0.1, class_weight={0: 2.0}, **EXACT).fit(X[train], y[train], s[train])
        expected = -log_loss(y[test], one.predict_proba(X[test]), sample_weight=s[test])
        assert model.scores_[k, 0, 1] == pytest.approx(expected, rel=0, abs=SAME_LOSS["atol"])
        assert expected != pytest.approx(-log_loss(y[test], one.predict_proba(X[test])), abs=0.01)
    by_weight = model.score(X, y, sample_weight=s)
    assert by_weight == pytest.approx(-log_loss(y, model.predict_proba(X), sample_weight=s), rel=1e-12)


@unfinished
def test_balanced_classes_are_balanced_over_all_rows():
    X, y = data()
    balanced = SoftmaxRegressionCV(alphas=ALPHAS, class_weight="balanced", random_state=0).fit(X, y)
    counts = np.bincount(y)
    by_hand = {k: N / (K * counts[k]) for k in range(K)}
    same = SoftmaxRegressionCV(alphas=ALPHAS, class_weight=by_hand, random_state=0).fit(X, y)
    assert np.array_equal(balanced.coefs_paths_, same.coefs_paths_)


@pytest.mark.parametrize(
    "scoring", ["accuracy", "average_precision", "balanced_accuracy", "f1", "f1_macro", "neg_brier_score"]
)
def test_scoring_names_with_labels_that_are_names(scoring):
    """"f1" among them, which has to be told which of two names is the positive one."""
    X, y = data(2)
    y = np.array(["no", "yes"])[y]
    model = SoftmaxRegressionCV(alphas=ALPHAS, cv=3, scoring=scoring).fit(X, y)
    assert model.scores_.std() > 0


def test_scoring_by_a_function():
    X, y = data()
    by_name = SoftmaxRegressionCV(alphas=ALPHAS, scoring="neg_log_loss", random_state=0).fit(X, y)
    scorer = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba")
    for scoring in (scorer, lambda model, X, y: -log_loss(y, model.predict_proba(X))):
        model = SoftmaxRegressionCV(alphas=ALPHAS, scoring=scoring, random_state=0).fit(X, y)
        assert np.array_equal(model.scores_, by_name.scores_)


def test_random_state_objects():
    X, y = data(n=300)
    a, b = (SoftmaxRegressionCV(alphas=ALPHAS, random_state=np.random.RandomState(3)).fit(X, y) for _ in range(2))
    assert np.array_equal(a.coefs_paths_, b.coefs_paths_)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
def test_jobs_do_not_change_a_bit(l1_ratio):
    X, y = data(n=400)
    common = {"alphas": ALPHAS, "l1_ratios": [l1_ratio], "random_state": 0, "max_iter": 1000}
    models = [SoftmaxRegressionCV(n_jobs=n_jobs, **common).fit(X, y) for n_jobs in (None, 1, 2)]
    for model in models[1:]:
        for name in ("coefs_paths_", "scores_", "n_iter_", "coef_", "intercept_"):
            assert np.array_equal(getattr(model, name), getattr(models[0], name))


def test_a_class_that_a_fold_does_not_train_on():
    """It stays one that could be predicted, ever less likely: the fit stops where tol says."""
    X, y = data()
    folds = [(np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:10]), (np.arange(80), np.arange(80, N))]
    model = SoftmaxRegressionCV(alphas=ALPHAS, cv=folds, scoring="neg_log_loss").fit(X, y)
    assert model.coefs_paths_.shape[-2] == K
    assert np.isfinite(model.coefs_paths_).all()
    assert (model.scores_[0] < -3).all()  # less than 5 % for what was never seen


def test_probabilities_as_targets():
    X, y = data()
    Y = SoftmaxRegression(alpha=0.01).fit(X, y).predict_proba(X)
    model = SoftmaxRegressionCV(alphas=ALPHAS, cv=4, scoring=cross_entropy, **{**EXACT, "tol": 1e-8}).fit(X, Y)
    for k, (train, test) in enumerate(KFold(4).split(X)):
        one = SoftmaxRegression(alpha=0.01, tol=1e-8).fit(X[train], Y[train])
        # two fits with a gap of at most 1e-8 F: 3e-5 becomes 3e-3, and SAME_LOSS a hundred times itself in the worst
        # case, a mean over rows and signs far less
        assert model.scores_[k, 0, 2] == pytest.approx(cross_entropy(one, X[test], Y[test]), abs=1e-3)
    assert model.score(X, Y) == cross_entropy(model, X, Y)
    with pytest.raises(ValueError, match=r"probabilities as targets need a callable scoring.*got scoring=None"):
        SoftmaxRegressionCV().fit(X, Y)


def test_metadata_routing():
    X, y = data()
    groups, s = np.arange(N) % 4, weights()
    folds = list(GroupKFold(4).split(X, y, groups))
    direct = SoftmaxRegressionCV(alphas=ALPHAS, cv=folds, random_state=0).fit(X, y, sample_weight=s)
    score = direct.score(X, y, sample_weight=s)
    with pytest.raises(ValueError, match="groups"):
        SoftmaxRegressionCV(cv=GroupKFold(4)).fit(X, y, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        model = SoftmaxRegressionCV(alphas=ALPHAS, cv=GroupKFold(4), scoring=scorer, random_state=0)
        model.fit(X, y, sample_weight=s, groups=groups)
        assert np.array_equal(model.scores_, direct.scores_)
        assert model.score(X, y, sample_weight=s) == score
        deaf = make_scorer(accuracy_score).set_score_request(sample_weight=False)
        unweighted = clone(model).set_params(scoring=deaf).fit(X, y, sample_weight=s, groups=groups)
        assert np.array_equal(unweighted.coefs_paths_, direct.coefs_paths_)
        assert not np.array_equal(unweighted.scores_, direct.scores_)


BAD = [
    ({"alphas": 0}, "alphas"),
    ({"alphas": []}, "minimum of 1 is required"),
    ({"alphas": [0.1, -1.0]}, "alphas must be a list of numbers from 0 to inf; got [0.1, -1.0]"),
    ({"alphas": [0.1, np.nan]}, "Input alphas contains NaN"),
    ({"alphas": [[0.1]]}, "alphas must be a list"),
    ({"alphas": ["a"]}, "could not convert string to float: 'a'"),
    ({"l1_ratios": [0.5, 1.5]}, "l1_ratios must be a list of numbers from 0 to 1; got [0.5, 1.5]"),
    ({"scoring": "no such score"}, "scoring"),
    ({"scoring": lambda *args: np.nan}, "not all are finite"),
    ({"cv": 1}, "The 'cv' parameter"),
    ({"cv": [(np.arange(0), np.arange(N))]}, "are all of one class: []"),
    ({"cv": [(np.flatnonzero(data()[1] == 1), np.arange(N))]}, "are all of one class: [1]"),
    ({"tol": -1.0}, "tol"),
    ({"refit": "yes"}, "refit"),
]


@pytest.mark.parametrize(("params", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_input_leaves_the_model_as_it_was(params, message):
    X, y = data()
    model = SoftmaxRegressionCV(alphas=ALPHAS).fit(X, y)
    model.set_params(**params)
    before = vars(model).copy()
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(X, y)
    assert vars(model) == before or all(vars(model)[name] is before[name] for name in before)


def test_weights_that_leave_one_class():
    X, y = data()
    with pytest.raises(ValueError, match="leaves rows of one class only"):
        SoftmaxRegressionCV(alphas=ALPHAS).fit(X, y, sample_weight=(y == 1).astype(float))
