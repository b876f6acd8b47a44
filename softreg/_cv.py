"""SoftmaxRegressionCV: alpha and l1_ratio chosen by cross-validation along paths."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Self

import joblib
import numpy as np
from numpy.typing import ArrayLike
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
from softreg._typing import MatrixLike
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
        Strengths of the penalty, or their number on a grid that the data give, evenly spaced in the logarithm. The
        largest alpha of the grid is, for l1_ratio > 0, the smallest that makes all coefficients zero; for l1_ratio = 0,
        half of the total variance of the features, which bounds the curvature of the loss (Böhning 1992). The smallest
        is 1e-4 times the largest for l1_ratio > 0, else 1e-8 times: as wide as the Cs of LogisticRegressionCV. With
        several l1_ratios the grid spans those of all.
    l1_ratios : array of floats, default=(0.0,)
        Shares of the L1 penalty to try, in [0, 1].
    cv : int, splitter or iterable of (train, test), default=None
        The folds; None is 5. A number stands for as many stratified folds without shuffling (plain ones for target
        probabilities).
    scoring : str, callable or None, default=None
        A name that scikit-learn's `get_scorer` knows, or ``scoring(estimator, X, y)``; None is accuracy. If `fit` is
        given `sample_weight`, so is the scorer.
    refit : bool, default=True
        Whether to fit the best pair to all rows. Otherwise `coef_`, `intercept_`, `alpha_` and `l1_ratio_` are means
        over the folds, of the best of each fold.
    fit_intercept : bool, default=True
        As in `SoftmaxRegression`.
    solver : {"auto", "newton", "dual", "proximal_newton", "sgd"}, default="auto"
        As in `SoftmaxRegression`.
    max_iter : int, default=100
        As in `SoftmaxRegression`.
    tol : float, default=1e-4
        As in `SoftmaxRegression`.
    class_weight : dict or "balanced", default=None
        As in `SoftmaxRegression`.
    label_smoothing : float, default=0.0
        As in `SoftmaxRegression`.
    random_state : int, RandomState instance or None, default=None
        As in `SoftmaxRegression`; every fit gets the same seed. The folds do not depend on it.
    n_jobs : int, default=None
        Number of paths that are fitted at a time, each on one thread. None stands for one path after the other, each on
        as many threads as `SoftmaxRegression` takes by itself. Results do not depend on n_jobs.
    verbose : int, default=0
        1 prints the progress of the paths; 2 also prints a line an iteration.

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
    - Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44.
    - Friedman, Hastie and Tibshirani (2010), Regularization paths for generalized linear models via coordinate descent,
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
        self, *, alphas: int | ArrayLike = 10, l1_ratios: ArrayLike = (0.0,), cv: Any = None,
        scoring: str | Callable[..., float] | None = None, refit: bool = True, fit_intercept: bool = True,
        solver: str = "auto", max_iter: int = 100, tol: float = 1e-4,
        class_weight: Mapping[Any, float] | str | None = None, label_smoothing: float = 0.0,
        random_state: int | np.random.RandomState | None = None, n_jobs: int | None = None, verbose: int = 0,
    ) -> None:  # fmt: skip
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
    def fit(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: Any) -> Self:
        """Choose among the penalties, and fit the best.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
            Features, as in `SoftmaxRegression.fit`.
        y : array of shape (n,) or (n, K)
            Labels, or target probabilities; these need a callable `scoring`.
        sample_weight : array of shape (n,), optional
            Weights, not negative.
        **params : dict
            Metadata that splitter and scorer have requested, where metadata routing is enabled.

        Returns
        -------
        self : SoftmaxRegressionCV
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data, a parameter or a fold cannot be used, or a score is not a number.

        Examples
        --------
        >>> from softreg import SoftmaxRegressionCV
        >>> X, y = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [0, 0, 0, 1, 1, 1]
        >>> SoftmaxRegressionCV(alphas=[1e-3, 1e-1], cv=3).fit(X, y).alphas_.tolist()
        [0.1, 0.001]
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

            def scored_path(l1_ratio, train, test):
                """Fit the path over the rows `train`, and score each fit on the rows `test`."""
                score = _score_on(test, X, y, scorer, routed.scorer.score)
                return fit_path(model, objective.select(train), classes, self.alphas_, l1_ratio, score)

            with single_threaded_blas():  # one limit around all threads, not one for each
                paths = Parallel(n_jobs=self.n_jobs, verbose=self.verbose, prefer="threads")(
                    delayed(scored_path)(l1_ratio, train, test)
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
        # the strongest alpha stands first, and argmax takes the first of equals
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
        """Return the SoftmaxRegression that is fitted along the paths, with all parameters but alpha and l1_ratio."""
        model = SoftmaxRegression(**{name: getattr(self, name) for name in SHARED})
        if not isinstance(self.random_state, numbers.Integral):  # the order of the fits must not matter
            model.random_state = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        if self.n_jobs is not None or joblib.effective_n_jobs(None) > 1:
            model.n_jobs = 1
        model.verbose, model.n_features_in_ = max(0, int(self.verbose) - 1), self.n_features_in_
        return model

    def _folds(self, X, y, weight, params):
        """Return the folds: pairs of arrays of row numbers. The training rows of each have at least two classes."""
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

    def score(self, X: MatrixLike, y: ArrayLike, **params: Any) -> float:  # type: ignore[override]  # routed metadata
        """Return the score by `scoring` on the rows of X.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
            Rows to predict.
        y : array of shape (n,) or (n, K)
            Labels, or target probabilities if the scorer takes them.
        **params : dict
            `sample_weight`, or metadata that the scorer has requested, where metadata routing is enabled.

        Returns
        -------
        score : float
            The score; higher is better.

        Examples
        --------
        >>> from softreg import SoftmaxRegressionCV
        >>> X, y = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [0, 0, 0, 1, 1, 1]
        >>> SoftmaxRegressionCV(alphas=[1e-3], cv=3).fit(X, y).score(X, y)
        1.0
        """
        sample_weight = params.pop("sample_weight", None)
        _raise_for_params(params, self, "score")
        routed = self._routed("score", sample_weight, params)
        return self._scorer()(self, X, y, **routed.scorer.score)

    def get_metadata_routing(self) -> Any:
        """Return the metadata that `fit` and `score` pass on to the splitter and to the scorer.

        Returns
        -------
        routing : MetadataRouter
            As scikit-learn's metadata routing asks for it.
        """
        scored = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
        split = MethodMapping().add(caller="fit", callee="split")
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(splitter=self.cv, method_mapping=split).add(scorer=self._scorer(), method_mapping=scored)

    def _routed(self, method, sample_weight, params):
        """Return the metadata of a call of `method`, as a Bunch with `splitter.split` and `scorer.score`."""
        given = {} if sample_weight is None else {"sample_weight": sample_weight}
        if _routing_enabled():
            return process_routing(self, method, **given, **params)
        return Bunch(splitter=Bunch(split={}), scorer=Bunch(score=given))

    def _scorer(self, classes=None, soft=False):
        """Return the scorer.

        Rows of a fold may lack some of the `classes`: a scorer whose metric takes `labels` gets them all, and one whose
        metric takes `pos_label` the second of two. Soft targets need a callable `scoring`; any other raises a
        ValueError.
        """
        if soft and not callable(self.scoring):
            raise ValueError(
                "probabilities as targets need a callable scoring, such as softreg.metrics.cross_entropy_scorer; got "
                f"scoring={self.scoring!r}"
            )
        scorer = get_scorer(self.scoring or "accuracy")
        metric = getattr(scorer, "_score_func", None)
        if classes is None or metric is None:
            return scorer
        takes, known = inspect.signature(metric).parameters, {}
        if "labels" in takes:
            known["labels"] = classes
        if "pos_label" in takes and len(classes) == 2 and scorer._kwargs.get("average", "binary") == "binary":
            known["pos_label"] = classes[1]
        scorer = copy(scorer)
        scorer._kwargs = known | scorer._kwargs
        return scorer

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _score_on(rows, X, y, scorer, params):
    """Return a function (estimator) -> score on these rows of X and y; params has the scorer's metadata of all rows."""
    X_rows, params = X[rows], _check_method_params(X, params, indices=rows)
    return lambda fitted: scorer(fitted, X_rows, y[rows], **params)
