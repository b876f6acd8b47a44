"""SoftmaxRegression: its parameters, and how a fit and a stream are put together."""

import copy
import numbers
import warnings

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, _fit_context
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils._param_validation import Interval, StrOptions

from softreg import _dual, _sgd, _solvers
from softreg._monitor import Callbacks, Monitor
from softreg._newton import newton
from softreg._objective import Objective
from softreg._optimizers import SGD
from softreg._prediction import LinearSoftmaxClassifier
from softreg._threads import effective_n_threads, single_threaded_blas
from softreg._validation import all_or_nothing, check_data, check_finite, finite_or_error
from softreg.functional import _check_floats, _check_weights

SCHEDULES = {"auto", "constant", "linear", "cosine", "invscaling", "adaptive"}


class SoftmaxRegression(CallbackSupportMixin, LinearSoftmaxClassifier, BaseEstimator):
    """Linear softmax classifier (multinomial logistic regression).

    It minimises, over coefficients W and intercepts b,

        (1/S) sum_i s_i CE(y_i, softmax(W x_i + b)) + alpha ((1 - l1_ratio)/2 ||W||_2^2 + l1_ratio ||W||_1),

    where the s_i are sample weights and S is their sum. Intercepts are not penalised.
    ``LogisticRegression(C=1 / (n * alpha))`` has the same optimum.

    Parameters
    ----------
    alpha : float, default=1e-4
        Strength of the penalty, at least 0.
    l1_ratio : float, default=0.0
        Share of the L1 penalty, in [0, 1]; above 0, coefficients can be exactly zero.
    fit_intercept : bool, default=True
        Whether to fit an intercept for each class.
    solver : {"auto", "newton", "dual", "proximal_gradient", "sgd"}, default="auto"
        "newton" is preconditioned Newton-CG; on many dense rows it starts with a little SGD and on a sample of them.
        "dual" is dual coordinate ascent; it needs sparse X, alpha > 0 and l1_ratio = 0. "proximal_gradient" is
        accelerated proximal gradient descent (FISTA); it alone can do l1_ratio > 0 beside "sgd", which is minibatch
        gradient descent with momentum. "auto" is "newton" where X is dense or small; "dual" where X is sparse, and
        "newton" after it where "dual" gets slow; and "proximal_gradient" where l1_ratio > 0. `solver_` says what ran.
        `partial_fit` always takes minibatches, as "sgd" does.
    max_iter : int, default=100
        The most iterations: Newton or proximal steps, epochs of SGD or of dual coordinate ascent.
    tol : float, default=1e-4
        The fit has converged when F - min F is at most tol * F, by a proven bound or by the estimate that
        `stopped_on_` tells of; otherwise it warns.
    batch_size : int or "auto", default="auto"
        Rows a minibatch; "auto" is 256, or n if that is less. This, `learning_rate`, `eta0`, `momentum`, `nesterov`,
        `average` and `shuffle` are for "sgd" and `partial_fit`; the other solvers ignore them.
    learning_rate : {"auto", "constant", "linear", "cosine", "invscaling", "adaptive"}, default="auto"
        How the rate goes down from eta0. "linear" and "cosine" end at zero after max_iter epochs; "invscaling" is
        eta0 / sqrt(1 + epochs); "adaptive" divides by 5 each time the loss has not gone down by tol times itself for
        `n_iter_no_change` epochs, and ends the fit under eta0 / 10^6. "auto" is "linear", and in `partial_fit`, which
        does not know the end, "invscaling". An epoch of a stream is 1,000 rows, however they come.
    eta0 : float or "auto", default="auto"
        The first rate. "auto" finds one for each feature, from the root mean square of its entries that are not zero,
        and so does not depend on its unit: the largest that does not overshoot on the mean batch, by the data's
        curvature. In a stream it is found again for each batch, from all rows so far.
    momentum : float, default=0.9
        Momentum of "sgd", in [0, 1).
    nesterov : bool, default=True
        Whether momentum looks ahead.
    average : bool, default=False
        Whether to keep the mean of all iterates in place of the last one; with l1, zeros of it are rare.
    shuffle : bool, default=True
        Whether to shuffle the rows before each epoch.
    class_weight : dict or "balanced", default=None
        Weights of the classes; they multiply `sample_weight`.
    label_smoothing : float, default=0.0
        Mixes this share of the uniform distribution into every target; in [0, 1).
    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows, stop when the loss there has not gone down by
        tol times itself for `n_iter_no_change` epochs, and keep the weights that were best there.
    validation_fraction : float, default=0.1
        The share of the rows that is held out.
    n_iter_no_change : int, default=5
        Epochs without progress that end a fit with early stopping, and after which SGD asks for a certificate.
    warm_start : bool, default=False
        Whether `fit` starts from the coefficients of the previous fit.
    random_state : int, RandomState instance or None, default=None
        Seeds the shuffling and the held-out rows.
    n_jobs : int, default=None
        Threads. None takes what OMP_NUM_THREADS, threadpoolctl and joblib's limits on workers allow. Results do
        not depend on it.
    verbose : int, default=0
        1 prints a line an epoch or iteration: the loss, the gap where it was computed, accuracy on the held-out rows,
        rows a second (each pass counts), and the time left at this pace if all of max_iter are needed.

    Attributes
    ----------
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,), or (1,)
    classes_ : ndarray of shape (n_classes,)
    solver_ : str
        The solver that ran, or that finished where "auto" took two.
    n_iter_ : int
        Iterations that were run; of the proximal solver, in tens.
    stopped_on_ : str
        "gap" where the proven bound came within tol, "estimate" where the Newton decrement did, "early_stopping",
        "callback" where one asked for it, "max_iter", "precision" where the dtype of X cannot tell the objective any
        better, or "rate" where the adaptive rate has become tiny.
    optimality_gap_ : float
        A proven bound on F - min F at the end, by duality; inf where there is none (alpha = 0), or where a fit was
        stopped before it was computed.
    gap_estimate_ : float
        The same by the Newton decrement, doubled for safety; NaN where it was not computed.
    history_ : dict of arrays, one entry an iteration
        ``loss`` (the objective; of SGD its running mean over the epoch, exact where ``gap`` is known), ``gap``,
        ``gap_estimate`` where Newton's was made on all rows, ``passes`` over the data for gradients and Hessian
        products, ``time`` in seconds; with early stopping ``validation_loss``, ``validation_score``.
    n_features_in_, feature_names_in_ :
        As everywhere in scikit-learn.

    Notes
    -----
    `set_callbacks` takes `ProgressBar`, `ScoringMonitor` and others that follow `sklearn.callback`'s protocol. Each
    epoch of SGD, each iteration (ten of the proximal solver) and each call of `partial_fit` is a task to them. They
    get X and y as `fit` got them, held-out rows included, and as `fitted_estimator` what `fit` would return if it
    ended there. Where `on_fit_task_end` returns True, it does, without a warning.

    References
    ----------
    Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44.
    Sutskever et al. (2013), On the importance of initialization and momentum in deep learning, ICML.
    Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30.
    Ross, Mineiro and Langford (2013), Normalized online learning, UAI.
    Gower et al. (2019), SGD: general analysis and improved rates, ICML.
    Shalev-Shwartz and Zhang (2013), Stochastic dual coordinate ascent methods for regularized loss, JMLR 14.
    Steihaug (1983), The conjugate gradient method and trust regions, SIAM J. Numer. Anal. 20.
    Eisenstat and Walker (1996), Choosing the forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17.
    Beck and Teboulle (2009), A fast iterative shrinkage-thresholding algorithm, SIAM J. Imaging Sci. 2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softreg import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> SoftmaxRegression(alpha=1e-3).fit(X, y).score(X, y) > 0.95
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012 (scikit-learn's own form)
        "alpha": [Interval(numbers.Real, 0, None, closed="left")],
        "l1_ratio": [Interval(numbers.Real, 0, 1, closed="both")],
        "fit_intercept": ["boolean"],
        "solver": [StrOptions({"auto", "newton", "dual", "proximal_gradient", "sgd"})],
        "max_iter": [Interval(numbers.Integral, 1, None, closed="left")],
        "tol": [Interval(numbers.Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(numbers.Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions(SCHEDULES)],
        "eta0": [StrOptions({"auto"}), Interval(numbers.Real, 0, None, closed="neither")],
        "momentum": [Interval(numbers.Real, 0, 1, closed="left")],
        "nesterov": ["boolean"],
        "average": ["boolean"],
        "shuffle": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(numbers.Real, 0, 1, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(numbers.Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(numbers.Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "n_jobs": [numbers.Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self, *, alpha=1e-4, l1_ratio=0.0, fit_intercept=True, solver="auto", max_iter=100, tol=1e-4,
        batch_size="auto", learning_rate="auto", eta0="auto", momentum=0.9, nesterov=True, average=False,
        shuffle=True, class_weight=None, label_smoothing=0.0, early_stopping=False, validation_fraction=0.1,
        n_iter_no_change=5, warm_start=False, random_state=None, n_jobs=None, verbose=0,
    ):  # fmt: skip
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.eta0 = eta0
        self.momentum = momentum
        self.nesterov = nesterov
        self.average = average
        self.shuffle = shuffle
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # --- training -------------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, coef_init=None, intercept_init=None):
        """Fit the model.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
            float32 and float64 stay what they are; C-ordered arrays and CSR with sorted indices are not copied.
        y : array of shape (n,) or (n, K)
            Labels, or K >= 2 target probabilities a row; the classes are then 0 .. K-1.
        sample_weight : array of shape (n,), optional
            Weights, not negative.
        coef_init, intercept_init : arrays of the shapes of `coef_` and `intercept_`, optional
            Where to start. What is not given is zero, or that of the previous fit where warm_start=True.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data, a start or a combination of parameters cannot be used.
        FloatingPointError
            If SGD diverged because the rate is too high, or features are too large or too small for their dtype.
        """
        # outside all_or_nothing, or callbacks that were set up would not be torn down after an error
        max_tasks = -(-self.max_iter // self._stride())
        callbacks = Callbacks(self, X, y, sample_weight, name=self._unit(), max_tasks=max_tasks)
        with all_or_nothing(self):
            X, codes, targets, classes = check_data(self, X, y)
            self._check_combination(X, self.alpha)
            objective = self._objective(X, codes, targets, classes, sample_weight)
            W = self._start(objective, classes, coef_init, intercept_init)
            random_state = check_random_state(self.random_state)
            train, held_out = self._hold_out(objective, random_state)
            callbacks.start(lambda W: self._fitted(objective, W, classes))
            monitor = Monitor(self, train, held_out, callbacks)
            with single_threaded_blas(), finite_or_error(objective):
                run = self._solve(train, W, random_state, monitor)
                check_finite(run.W, run.records[-1]["loss"])
            W = run.W
            if monitor.best is not None and not np.array_equal(monitor.best, W):
                W, run.stopped_on = monitor.best, "early_stopping" if run.converged else run.stopped_on
                run.gap, run.estimate = np.inf, np.nan  # they were those of the last weights, not of the best
            self._keep(objective, W, classes)
            vars(self).pop("_stream", None)
            self.n_iter_, self.solver_ = len(run.records), run.solver
            self.optimality_gap_, self.gap_estimate_ = run.gap, run.estimate
            self.stopped_on_ = monitor.stopped_on or run.stopped_on
            self.history_ = {name: np.array([r[name] for r in run.records]) for name in run.records[0]}
            callbacks.finish()
        if self.stopped_on_ not in ("gap", "estimate", "early_stopping", "callback"):
            self._warn(run)
        return self

    @with_callbacks
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Go once over a batch of rows, in minibatches, from where the last call ended.

        What the optimiser remembers, the mean of `average`, and how many rows have come are kept between calls, and
        pickled with the estimator. A parameter that is set between calls counts from the next one on; another solver
        or momentum forgets the gradients so far. `n_iter_` counts the calls that brought rows.

        Parameters
        ----------
        X, y, sample_weight : as in `fit`
            Any number of rows; none at all changes nothing.
        classes : array of labels in any order, or their number where they are 0 .. classes - 1
            All classes that will ever come; needed in the first call.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data or a parameter cannot be used: other features or classes than before, or a parameter that
            needs all rows or the end of the fit (`early_stopping`, ``class_weight="balanced"``, a `learning_rate`
            that is planned or looks at epochs).
        FloatingPointError
            As in `fit`.
        """
        self._validate_params()
        known = hasattr(self, "coef_")
        self._check_stream(known, classes)
        callbacks = Callbacks(self, X, y, sample_weight)
        with all_or_nothing(self):
            X, codes, targets, classes = check_data(self, X, y, classes=classes, first=not known, min_rows=0)
            objective = self._objective(X, codes, targets, classes, sample_weight)
            callbacks.start()
            W = self._previous(objective, classes) if known else objective.zeros()
            if objective.n_rows or not known:
                state = copy.deepcopy(getattr(self, "_stream", None)) or _sgd.Stream(self._optimizer())
                if objective.n_rows:
                    with single_threaded_blas(), finite_or_error(objective):
                        W = self._learn(objective, W, state)
                self._stream = state
                self._keep(objective, W, classes)
                self.n_iter_ = state.calls
            callbacks.finish()
        return self

    def _learn(self, objective, W, state):
        """Go on with a stream; a parameter that was set since the last call counts from here on."""
        optimizer = self._optimizer()
        state.optimizer = state.optimizer if state.optimizer == optimizer else optimizer
        random_state = check_random_state(self.random_state)
        return _sgd.stream(
            objective, W, state, eta0=self.eta0, learning_rate=self._schedule("invscaling"), average=self.average,
            batch_size=self._batch_size(objective), random_state=random_state if self.shuffle else None,
        )  # fmt: skip

    def _check_stream(self, known, classes):
        """What a fit knows and a stream cannot."""
        for name, refused in {
            "early_stopping": (True,), "class_weight": ("balanced",), "learning_rate": ("linear", "cosine", "adaptive"),
        }.items():  # fmt: skip
            if (value := getattr(self, name)) in refused:
                raise ValueError(f"{name}={value!r} needs all rows or the end of the fit; partial_fit knows neither")
        if not known and classes is None:
            raise ValueError("classes must be given in the first call of partial_fit")

    def _check_combination(self, X, smallest_alpha):
        """Raise if the solver cannot do what is asked; `smallest_alpha` is that of a path, or alpha itself."""
        if self.l1_ratio > 0 and self.solver in ("newton", "dual"):
            raise ValueError(
                f"solver={self.solver!r} needs l1_ratio=0; l1_ratio={self.l1_ratio} needs solver='auto', "
                "'proximal_gradient' or 'sgd'"
            )
        if self.solver == "dual" and not issparse(X):
            raise ValueError("solver='dual' needs a sparse X; for a dense one take solver='newton'")
        if self.solver == "dual" and not smallest_alpha > 0:
            raise ValueError(f"solver='dual' needs alpha > 0; for alpha={smallest_alpha} take solver='newton'")

    def _objective(self, X, codes, targets, classes, sample_weight):
        weight = None
        if sample_weight is not None:
            weight = _check_weights(sample_weight, X.shape[0], X.dtype)
        if self.class_weight is not None:
            if codes is None:
                raise ValueError("class_weight needs labels in y; weight target probabilities by sample_weight")
            of_class = compute_class_weight(self.class_weight, classes=classes, y=classes[codes], sample_weight=weight)
            some = of_class[codes].any() or not len(codes)
            if not (np.isfinite(of_class).all() and (of_class >= 0).all() and some):
                raise ValueError(f"class_weight must be finite, not negative and not all zero; got {self.class_weight}")
            of_row = of_class[codes].astype(X.dtype)
            weight = of_row if weight is None else weight * of_row
        if weight is not None and len(weight) and not weight.sum(dtype=np.float64) > 0:
            raise ValueError("sample_weight sums to zero: nothing is left to fit")
        l2, l1 = self._penalties(len(classes))
        return Objective(
            X, codes, targets, weight, len(classes), l2=l2, l1=l1, label_smoothing=self.label_smoothing,
            fit_intercept=self.fit_intercept, n_threads=effective_n_threads(self.n_jobs),
        )  # fmt: skip

    def _penalties(self, n_classes):
        """The objective's l2 and l1."""
        # two rows of half the size each stand for the one row of a binary model: same penalty for twice alpha
        twice = 2 if n_classes == 2 else 1
        return self.alpha * (1 - self.l1_ratio) * twice, self.alpha * self.l1_ratio

    def _start(self, objective, classes, coef, intercept):
        """W from what the caller gave, else from the previous fit of a warm start, else zero."""
        W = objective.zeros()
        if self.warm_start and hasattr(self, "coef_") and (coef is None or intercept is None):
            W = self._previous(objective, classes)
        rows = 1 if len(classes) == 2 else len(classes)
        if coef is not None:
            coef = _check_start(coef, "coef_init", (rows, objective.n_features), objective, classes)
            objective.coef(W)[...] = _halves(classes) * coef
        if intercept is not None:
            intercept = _check_start(intercept, "intercept_init", (rows,), objective, classes)
            if self.fit_intercept:
                W[:, -1:] = _halves(classes) * intercept[:, None]
            elif intercept.any():
                raise ValueError(f"intercept_init={intercept.tolist()} needs fit_intercept=True")
        return W

    def _previous(self, objective, classes):
        """The current coefficients as the solvers' W."""
        coef = self.coef_.toarray() if issparse(self.coef_) else self.coef_
        if not np.array_equal(self.classes_, classes) or coef.shape[1] != objective.n_features:
            raise ValueError(
                f"the previous fit has {len(self.classes_)} classes and {coef.shape[1]} features, the data "
                f"{len(classes)} classes and {objective.n_features} features; use warm_start=False or a new estimator"
            )
        W = objective.zeros()
        objective.coef(W)[...] = _halves(classes) * coef
        if self.fit_intercept:
            W[:, -1:] = _halves(classes) * self.intercept_[:, None]
        return W

    def _keep(self, objective, W, classes):
        vars(self).update(self._fitted(objective, W, classes))

    def _fitted(self, objective, W, classes):
        """The attributes of an estimator fitted to W; copies."""
        if len(classes) == 2:
            W = W[1:] - W[:1]
        intercept = np.array(W[:, -1]) if self.fit_intercept else np.zeros(len(W), W.dtype)
        if len(classes) > 2:
            intercept -= intercept.mean()  # softmax leaves one constant on all intercepts free: they sum to zero here
        return {"classes_": classes, "coef_": np.array(objective.coef(W), order="C"), "intercept_": intercept}

    def _hold_out(self, objective, random_state):
        """The part to train on, and the rest; rows without weight are in neither."""
        if not self.early_stopping:
            return objective, None
        rows = np.flatnonzero(objective.shares())
        train, held_out = train_test_split(
            rows, test_size=self.validation_fraction, random_state=random_state,
            stratify=None if objective.codes is None else objective.codes[rows],
        )  # fmt: skip
        return objective.sample(np.sort(train)), objective.sample(np.sort(held_out))

    def _batch_size(self, objective):
        return min(256 if self.batch_size == "auto" else self.batch_size, max(objective.n_rows, 1))

    def _schedule(self, auto):
        return auto if self.learning_rate == "auto" else self.learning_rate

    def _unit(self):
        return "epoch" if self.solver == "sgd" else "iteration"

    def _stride(self):
        """Iterations that a record of the solver stands for."""
        l1 = self.solver == "auto" and self.alpha * self.l1_ratio > 0
        return _solvers.STRIDE if l1 or self.solver == "proximal_gradient" else 1

    def _optimizer(self):
        return SGD(self.momentum, self.nesterov)

    def _solve(self, objective, W, random_state, monitor, M=None):
        common = {"max_iter": self.max_iter, "tol": self.tol, "monitor": monitor}
        if self.solver == "sgd":
            return _sgd.sgd(
                objective, W, self._optimizer(), eta0=self.eta0, shuffle=self.shuffle,
                learning_rate=self._schedule("linear"), batch_size=self._batch_size(objective),
                n_iter_no_change=self.n_iter_no_change, average=self.average, random_state=random_state, **common,
            )  # fmt: skip
        if objective.l1 or self.solver == "proximal_gradient":
            return _solvers.proximal_gradient(objective, W, **common)
        run, auto = None, self.solver == "auto"
        if self.solver == "dual" or (auto and _dual.suits(objective)):
            run = _dual.dual_ascent(objective, W, random_state=random_state, stop_if_slow=auto, **common)
            if run.stopped_on != "slow":
                return run
        return newton(objective, W, random_state=random_state, M=M, run=run, **common)

    def _warn(self, run):
        loss, reached = run.records[-1]["loss"], []
        if np.isfinite(run.gap):
            reached.append(f"proven to be within {run.gap:.2g}")
        if np.isfinite(run.estimate):
            reached.append(f"estimated to be within {run.estimate:.2g}")
        advice = {
            "precision": f"The digits of {run.W.dtype} are used up: scale the features, or give X as float64.",
            "rate": "The adaptive rate went down to a millionth: raise eta0 or tol, or standardise the features.",
            "max_iter": "Increase max_iter, standardise the features, or raise alpha or tol.",
        }
        warnings.warn(
            f"SoftmaxRegression stopped after {self.n_iter_} iterations before it converged: the objective is "
            f"{loss:.6g}, {' and '.join(reached) or 'how far is not known'} of its minimum; tol asks for "
            f"{self.tol * loss:.2g}. {advice[run.stopped_on]}",
            ConvergenceWarning,
            stacklevel=4,  # past scikit-learn's wrapper of fit, to the caller
        )


def _halves(classes):
    """What turns the one row of two classes into the solvers' two."""
    return np.array([[-0.5], [0.5]]) if len(classes) == 2 else 1


def _check_start(given, name, shape, objective, classes):
    given = _check_floats(given, name, objective.dtype)
    if given.shape != shape:
        raise ValueError(
            f"{name} has shape {given.shape}; the data have {len(classes)} classes and {objective.n_features} "
            f"features, which needs {shape}"
        )
    return given
