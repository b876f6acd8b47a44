"""SoftmaxRegressionCV: alpha and l1_ratio chosen by cross-validation along paths."""

import inspect
import numbers
from copy import copy

import joblib
import numpy as np
from sklearn.base import BaseEstimator, _fit_context
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.model_selection import check_cv
from sklearn.utils import Bunch, check_random_state
from sklearn.utils._metadata_requests import _raise_for_params, _routing_enabled
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params

from softreg._estimator import SoftmaxRegression
from softreg._path import alpha_grid, check_numbers, check_path, fit_path, warn_of_path
from softreg._prediction import LinearSoftmaxClassifier
from softreg._threads import single_threaded_blas
from softreg._validation import check_data, check_two_classes, restore_on_error

SHARED = (
    "fit_intercept", "solver", "max_iter", "tol", "class_weight", "label_smoothing", "random_state", "n_jobs",
    "verbose",
)  # fmt: skip


class SoftmaxRegressionCV(LinearSoftmaxClassifier, BaseEstimator):
    """SoftmaxRegression with alpha and l1_ratio chosen by cross-validation.

    For each fold and each l1_ratio, the path of alphas is fitted from the strongest penalty to the weakest, each fit
    starting from the last. The pair with the best mean score is then fitted to all rows. As in LogisticRegressionCV,
    ``class_weight="balanced"`` balances all rows, not those of each fold, and a class that is not among the training
    rows of a fold remains one that the model could predict.

    Parameters
    ----------
    alphas : int or array of floats, default=10
        Strengths of the penalty. A number stands for as many, evenly spaced in the logarithm, between two that the data
        give. The largest is, for l1_ratio > 0, the smallest that makes all coefficients zero; for l1_ratio = 0, half of
        the total variance of the features, which bounds the curvature of the loss (Böhning 1992). The smallest is 1e-4
        times that for l1_ratio > 0, else 1e-8 times: as wide as the Cs of LogisticRegressionCV. With several
        l1_ratios the grid spans those of all.
    l1_ratios : array of floats, default=(0.0,)
        Shares of the L1 penalty to try, in [0, 1].
    cv : int, splitter or iterable of (train, test), default=None
        The folds; None is 5, and a number means stratified ones, without shuffling (plain ones for target
        probabilities).
    scoring : str, callable or None, default=None
        A name that scikit-learn's `get_scorer` knows, or ``scoring(estimator, X, y)``; None is accuracy. It is given
        `sample_weight` where `fit` is.
    refit : bool, default=True
        Whether to fit the best pair to all rows. Otherwise `coef_`, `intercept_`, `alpha_` and `l1_ratio_` are means,
        over the folds, of what was best in each.
    fit_intercept : bool, default=True
    solver : {"auto", "newton", "dual", "proximal_gradient", "sgd"}, default="auto"
    max_iter : int, default=100
    tol : float, default=1e-4
    class_weight : dict or "balanced", default=None
    label_smoothing : float, default=0.0
        As in `SoftmaxRegression`.
    random_state : int, RandomState instance or None, default=None
        As in `SoftmaxRegression`; every fit gets the same seed. The folds do not depend on it.
    n_jobs : int, default=None
        How many paths to follow at a time, a thread each. With None it is one path after the other, each on as many
        threads as `SoftmaxRegression` takes by itself. Results do not depend on it.
    verbose : int, default=0
        1 tells of the paths' progress, 2 prints a line an iteration besides.

    Attributes
    ----------
    alpha_, l1_ratio_ : float
        The best; ties go to the strongest penalty.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,), or (1,)
    classes_ : ndarray of shape (n_classes,)
    alphas_ : ndarray of shape (n_alphas,)
        From the largest to the smallest.
    l1_ratios_ : ndarray of shape (n_l1_ratios,)
    scores_ : ndarray of shape (n_folds, n_l1_ratios, n_alphas)
    coefs_paths_ : ndarray of shape (n_folds, n_l1_ratios, n_alphas, n_classes, n_features + 1)
        One row for two classes; intercepts come last, if there are any.
    n_iter_ : ndarray of shape (n_folds, n_l1_ratios, n_alphas)
    n_features_in_, feature_names_in_ :
        As everywhere in scikit-learn.

    References
    ----------
    Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44.
    Friedman, Hastie and Tibshirani (2010), Regularization paths for generalized linear models via coordinate descent,
    J. Stat. Softw. 33.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from softreg import SoftmaxRegressionCV
    >>> X, y = load_wine(return_X_y=True)
    >>> model = SoftmaxRegressionCV(alphas=[1e-3, 1e-2, 1e-1], scoring="neg_log_loss").fit(X, y)
    >>> model.scores_.shape
    (5, 1, 3)
    >>> model.alpha_
    0.001
    """

    _parameter_constraints: dict = {  # noqa: RUF012 (scikit-learn's own form)
        "alphas": [Interval(numbers.Integral, 1, None, closed="left"), "array-like"],
        "l1_ratios": ["array-like"],
        "cv": ["cv_object"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "refit": ["boolean"],
        **{name: SoftmaxRegression._parameter_constraints[name] for name in SHARED},
    }

    def __init__(
        self, *, alphas=10, l1_ratios=(0.0,), cv=None, scoring=None, refit=True, fit_intercept=True, solver="auto",
        max_iter=100, tol=1e-4, class_weight=None, label_smoothing=0.0, random_state=None, n_jobs=None, verbose=0,
    ):  # fmt: skip
        self.alphas = alphas
        self.l1_ratios = l1_ratios
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, **params):
        """Choose among the penalties, and fit the best.

        Parameters
        ----------
        X, y, sample_weight : as in `SoftmaxRegression.fit`
            Probabilities as targets need a callable `scoring`.
        **params : dict
            What splitter and scorer asked for, where metadata routing is enabled.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data, a parameter or a fold cannot be used, or a score is not a number.
        """
        _raise_for_params(params, self, "fit")
        with restore_on_error(self):
            X, codes, targets, classes = check_data(self, X, y)
            y = targets if codes is None else classes[codes]
            model = self._model()
            objective = model._objective(X, codes, targets, classes, sample_weight)
            check_two_classes(objective, classes)
            self.l1_ratios_ = check_numbers(self.l1_ratios, "l1_ratios", 1)
            self.alphas_ = alpha_grid(self.alphas, self.l1_ratios_, objective)
            for l1_ratio in self.l1_ratios_.tolist():
                check_path(model, l1_ratio, self.alphas_, objective)
            routed = self._routed("fit", sample_weight, params)
            scorer = self._scorer(classes, soft=codes is None)
            folds = self._folds(X, y, objective.sample_weight, routed.splitter.split)
            # one limit on BLAS around all threads: those that they set one by one would undo each other
            with single_threaded_blas():
                paths = Parallel(n_jobs=self.n_jobs, verbose=self.verbose, prefer="threads")(
                    delayed(_score_path)(
                        model, objective, classes, self.alphas_, l1_ratio, X, y, train, test, scorer,
                        routed.scorer.score,
                    )
                    for train, test in folds
                    for l1_ratio in self.l1_ratios_.tolist()
                )
            shape = (len(folds), len(self.l1_ratios_), len(self.alphas_))
            coefs, intercepts, n_iters, converged, scores = map(np.array, zip(*paths, strict=True))
            coefs = np.concatenate([coefs, intercepts[..., None]], axis=-1) if self.fit_intercept else coefs
            self.coefs_paths_ = coefs.reshape(*shape, *coefs.shape[-2:])
            self.n_iter_, self.scores_ = n_iters.reshape(shape), scores.reshape(shape).astype(float)
            if not np.isfinite(self.scores_).all():
                raise ValueError(f"scoring={self.scoring!r} gave {self.scores_.ravel().tolist()}: not all are finite")
            self.classes_ = classes
            self._choose(model, X, y, sample_weight)
        warn_of_path(self.tol, converged, stacklevel=4)  # past scikit-learn's wrapper of fit
        return self

    def _choose(self, model, X, y, sample_weight):
        """Set the best penalty and its coefficients, from all rows or as means over the folds."""
        scores = self.scores_.mean(axis=0, keepdims=True) if self.refit else self.scores_
        # the strongest alpha first: argmax takes the first of equals
        best = scores.swapaxes(1, 2).reshape(len(scores), -1).argmax(axis=1)
        of_alpha, of_ratio = np.divmod(best, len(self.l1_ratios_))
        self.alpha_ = float(self.alphas_[of_alpha].mean())
        self.l1_ratio_ = float(self.l1_ratios_[of_ratio].mean())
        folds = slice(None) if self.refit else np.arange(len(scores))
        W = self.coefs_paths_[folds, of_ratio, of_alpha].reshape(-1, *self.coefs_paths_.shape[-2:]).mean(axis=0)
        d = self.n_features_in_
        self.coef_ = np.ascontiguousarray(W[:, :d])
        self.intercept_ = np.array(W[:, d]) if self.fit_intercept else np.zeros(len(W), W.dtype)
        if self.refit:
            model.set_params(alpha=self.alpha_, l1_ratio=self.l1_ratio_, n_jobs=self.n_jobs)
            model.fit(X, y, sample_weight, coef_init=self.coef_, intercept_init=self.intercept_)
            self.coef_, self.intercept_ = model.coef_, model.intercept_

    def _model(self):
        """What is fitted along the paths."""
        model = SoftmaxRegression(**{name: getattr(self, name) for name in SHARED})
        if not isinstance(self.random_state, numbers.Integral):  # the order of the fits must not matter
            model.random_state = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        if self.n_jobs is not None or joblib.effective_n_jobs(None) > 1:
            model.n_jobs = 1
        model.verbose, model.n_features_in_ = max(0, int(self.verbose) - 1), self.n_features_in_
        return model

    def _folds(self, X, y, weight, params):
        """Return pairs of row numbers, as arrays; each trains on two classes at least."""
        cv = check_cv(self.cv, y, classifier=True)
        rows, folds = np.arange(len(y)), []
        for train, test in cv.split(X, y, **params):
            train, test = np.sort(rows[train]), rows[test]
            used = y[train if weight is None else train[weight[train] > 0]]
            if len(used) == 0 or (used.ndim == 1 and len(np.unique(used)) < 2):
                raise ValueError(
                    f"cv={self.cv!r}: the training rows of fold {len(folds)} that have weight are all of one class: "
                    f"{used[:1].tolist()}; every fold needs two"
                )
            folds.append((train, test))
        return folds

    # --- scoring --------------------------------------------------------------------------------------------------

    def score(self, X, y, **params):
        """The score by `scoring` on the rows of X.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
        y : labels of shape (n,)
        **params : dict
            `sample_weight`, or what the scorer asked for where metadata routing is enabled.

        Returns
        -------
        score : float
        """
        _raise_for_params(params, self, "score", allow=["sample_weight"])
        routed = self._routed("score", params.pop("sample_weight", None), params)
        return self._scorer()(self, X, y, **routed.scorer.score)

    def get_metadata_routing(self):
        """What of `fit` and `score` goes to the splitter and to the scorer.

        Returns
        -------
        routing : MetadataRouter
        """
        scored = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
        split = MethodMapping().add(caller="fit", callee="split")
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(splitter=self.cv, method_mapping=split).add(scorer=self._scorer(), method_mapping=scored)

    def _routed(self, method, sample_weight, params):
        given = {} if sample_weight is None else {"sample_weight": sample_weight}
        if _routing_enabled():
            return process_routing(self, method, **given, **params)
        return Bunch(splitter=Bunch(split={}), scorer=Bunch(score=given))

    def _scorer(self, classes=None, soft=False):
        """The scorer; told of all classes where it can be, as rows of a fold may lack some."""
        if soft and not callable(self.scoring):
            raise ValueError(
                "probabilities as targets need a callable scoring, such as softreg.metrics.cross_entropy_scorer; got "
                f"scoring={self.scoring!r}"
            )
        scorer = get_scorer(self.scoring or "accuracy")
        metric = getattr(scorer, "_score_func", None)
        takes = inspect.signature(metric).parameters if metric else {}
        if classes is not None and "labels" in takes:
            scorer, known = copy(scorer), {"labels": classes}
            if len(classes) == 2 and "pos_label" in takes and scorer._kwargs.get("average", "binary") == "binary":
                known["pos_label"] = classes[1]
            scorer._kwargs = known | scorer._kwargs
        return scorer

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _score_path(model, objective, classes, alphas, l1_ratio, X, y, train, test, scorer, params):
    """Fit the path over the rows `train`, and score it on the rows `test`; return what `fit_path` does."""
    X_test, params = X[test], _check_method_params(X, params, indices=test)

    def score(fitted):
        return scorer(fitted, X_test, y[test], **params)

    return fit_path(model, objective.select(train), classes, alphas, l1_ratio, score)
