"""SoftmaxRegression: its parameters, and its methods `fit` and `partial_fit`."""

import numbers
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from softreg._callbacks import Callbacks, CallbackSupportMixin, Monitor, hold_out, storage_line, with_callbacks
from softreg._coefficients import check_start, fitted_coefficients, penalties, solver_weights
from softreg._objective import Objective
from softreg._prediction import LinearSoftmaxClassifier
from softreg._solvers import SOLVERS, Options, Start, check_solver, solve, solver_names, warning_text
from softreg._solvers.streaming import Stream, new_stream
from softreg._threads import effective_n_threads, single_threaded_blas
from softreg._typing import MatrixLike
from softreg._validation import (
    check_data,
    check_finite,
    check_row_weights,
    check_two_classes,
    finite_or_error,
    restore_on_error,
)

# Parameters that `partial_fit` cannot use: it does not know all rows.
NOT_IN_STREAMS = {"early_stopping": True, "class_weight": "balanced"}
# Attributes that are computed when they are read: they cost d K numbers, and a batch of sparse rows far less.
OF_THE_STREAM = ("coef_", "intercept_", "stream_history_")
UNKNOWN_ROWS = 1000  # that coefficients which were put in by hand count for, where a stream begins at them


class SoftmaxRegression(CallbackSupportMixin, LinearSoftmaxClassifier, BaseEstimator):
    """Linear softmax classifier (multinomial logistic regression).

    The fit minimises, over coefficients W and intercepts b,

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
    solver : {"auto", "newton", "dual", "proximal_newton", "sgd"}, default="auto"
        - "newton" is preconditioned Newton-CG. On many dense rows it begins with half an epoch of SGD, and with a
          sample of the rows.
        - "dual" is dual coordinate ascent. It needs sparse X, alpha > 0 and l1_ratio = 0.
        - "proximal_newton" minimises quadratic models together with the l1 penalty. It needs alpha > 0 and
          l1_ratio > 0.
        - "sgd" takes the minibatch steps of `partial_fit`, for `max_iter` epochs: preconditioned by the covariance of
          the features and the curvature of the classes if X is dense, FTRL-Proximal if X is sparse.
        - "auto" is "proximal_newton" if l1_ratio > 0. Otherwise it is "newton" if X is dense or small, and "dual" if
          X is sparse, followed by "newton" if "dual" is slow. `solver_` names the solver that ran.

        Only "proximal_newton" and "sgd" can do l1_ratio > 0.
    max_iter : int, default=100
        The most iterations: Newton steps, epochs of SGD or of dual coordinate ascent.
    tol : float, default=1e-4
        The fit has converged when F - min F is at most tol * F_null, by a proven bound or by an estimate, see
        `stopped_on_`. F_null is the loss of the null model, which knows the class shares alone; 1e-4 leaves at most
        0.01 % of what there is to explain. A fit that has not converged gives a ConvergenceWarning.
    precondition : bool, default=True
        Whether "sgd" and `partial_fit` keep the covariance of dense features and step in its metric. Without it they
        take less memory, and need more rows to get as far. See the notes.
    shuffle : bool, default=True
        Whether to shuffle the rows before each epoch.
    class_weight : dict or "balanced", default=None
        Weights of the classes; they multiply `sample_weight`.
    label_smoothing : float, default=0.0
        Mixes this share of the uniform distribution into every target; in [0, 1).
    early_stopping : bool, default=False
        Whether to hold out `validation_fraction` of the rows, to stop when the loss on them has not gone down by
        tol * F_null for `n_iter_no_change` iterations, and to keep the weights with the smallest loss on them.
    validation_fraction : float, default=0.1
        The share of the rows that is held out.
    n_iter_no_change : int, default=5
        Iterations without progress that end a fit with early stopping. After as many epochs without progress SGD
        computes a certificate.
    warm_start : bool, default=False
        Whether `fit` starts from the coefficients of the previous fit.
    random_state : int, RandomState instance or None, default=None
        Seeds the shuffling and the held-out rows.
    n_jobs : int, default=None
        Number of threads. None stands for as many as OMP_NUM_THREADS, threadpoolctl and joblib's limits on workers
        allow. Results do not depend on n_jobs.
    verbose : int, default=0
        1 prints a line an iteration: the loss, the gap if it was computed, the accuracy on the held-out rows, rows a
        second (a pass counts all rows), and the time left if all of max_iter are needed.

    Attributes
    ----------
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : ndarray of shape (n_classes,), or (1,)
    classes_ : ndarray of shape (n_classes,)
    solver_ : str
        The solver that ran; if "auto" took two, the second.
    n_iter_ : int
        Number of iterations.
    stopped_on_ : str
        The reason for the end of the fit:

        - "gap": the proven bound is within tol;
        - "estimate": the estimate by the Newton decrement is within tol;
        - "early_stopping", "callback": the held-out rows or a callback ended the fit;
        - "max_iter": all iterations are used up;
        - "precision": no step decreases the objective any more, in the dtype of X.
    optimality_gap_ : float
        A proven bound on (F - min F) / F_null at the end, by duality, or F / F_null where that is less, as F >= 0; inf
        if the fit was stopped before a bound was computed.
    gap_estimate_ : float
        An estimate of (F - min F) / F_null by the Newton decrement, doubled for safety; NaN if it was not computed.
    history_ : dict of arrays, one entry an iteration
        ``loss`` (the objective; for SGD its running mean over the epoch, but exact if ``gap`` is known), ``gap``,
        ``gap_estimate`` (of Newton steps on all rows), ``passes`` over the data for gradients and Hessian products,
        ``time`` in seconds; with early stopping ``validation_loss`` and ``validation_score``.
    stream_history_ : dict of arrays, one entry a call of `partial_fit` that brought rows
        ``rows`` so far, and ``loss`` (mean cross-entropy) and ``accuracy`` of the rows of the call. Each row is
        predicted before it is learnt, so these are the scores on new data. `fit` removes it.
    n_features_in_, feature_names_in_ :
        As everywhere in scikit-learn.

    Notes
    -----
    Beyond X a fit by "newton" takes memory for at most 2.5 arrays of n K numbers. Where one such array would take more
    than 400 MB, probabilities are recomputed block by block, and ``verbose=1`` says so: the fit stays within 1 GB, and
    Hessian products over all rows take 1.7 times as long. On sparse X a fit by "dual" or "newton" takes 4 arrays of d K
    numbers and 2 of n K.

    A stream of `partial_fit` keeps its state between calls and in a pickle, and goes on from there to the last bit. The
    first batch decides on the form of the state and on the dtype:

    - Dense rows, and sparse rows of at most 256 features: the covariance of d features, d^2 numbers of float64 and d^2
      of the dtype, or some hundred rows where d is large. ``precondition=False`` and ``l1_ratio > 0`` leave it out.
      Beside it there are some arrays of K d numbers and some hundred rows.
    - Other sparse rows: W^T in the dtype, and two float64 numbers a feature. A batch costs time in proportion to its
      nonzeros, whatever d is. `coef_` is computed when it is read.

    `set_callbacks` takes `ProgressBar`, `ScoringMonitor` and others that follow `sklearn.callback`'s protocol. Each
    iteration, and each call of `partial_fit`, is a task. Callbacks get X and y as `fit` got them, held-out rows
    included. Their `fitted_estimator` is the estimator that `fit` would return if it ended at that time: before the
    iteration in `on_fit_task_begin`, after it in `on_fit_task_end`. If `on_fit_task_end` returns True, the fit ends,
    without a warning.

    References
    ----------
    Newton's method and dual ascent:

    - Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44.
    - Steihaug (1983), The conjugate gradient method and trust regions, SIAM J. Numer. Anal. 20.
    - Eisenstat and Walker (1996), Choosing the forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17.
    - Shalev-Shwartz and Zhang (2013), Stochastic dual coordinate ascent methods for regularized loss, JMLR 14.

    Proximal Newton steps with l1:

    - Yuan, Ho and Lin (2012), An improved GLMNET for L1-regularized logistic regression, JMLR 13.
    - Lee, Sun and Saunders (2014), Proximal Newton-type methods for minimizing composite functions, SIAM J. Optim. 24.

    Streams and SGD of dense rows:

    - Martens and Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature, ICML.
    - Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30.
    - Shamir and Zhang (2013), Stochastic gradient descent for non-smooth optimization: convergence results and optimal
      averaging schemes, ICML.
    - Ross, Mineiro and Langford (2013), Normalized online learning, UAI.

    Streams and SGD of sparse rows:

    - McMahan (2011), Follow-the-regularized-leader and mirror descent: equivalence theorems and L1 regularization,
      AISTATS.
    - Duchi, Hazan and Singer (2011), Adaptive subgradient methods for online learning and stochastic optimization,
      JMLR 12.

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
        "solver": [StrOptions({"auto", *SOLVERS})],
        "max_iter": [Interval(numbers.Integral, 1, None, closed="left")],
        "tol": [Interval(numbers.Real, 0, None, closed="left")],
        "precondition": ["boolean"],
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
        self, *, alpha: float = 1e-4, l1_ratio: float = 0.0, fit_intercept: bool = True, solver: str = "auto",
        max_iter: int = 100, tol: float = 1e-4, precondition: bool = True, shuffle: bool = True,
        class_weight: Mapping[Any, float] | str | None = None, label_smoothing: float = 0.0,
        early_stopping: bool = False, validation_fraction: float = 0.1, n_iter_no_change: int = 5,
        warm_start: bool = False, random_state: int | np.random.RandomState | None = None, n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:  # fmt: skip
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.precondition = precondition
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
    def fit(
        self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None,
        coef_init: ArrayLike | None = None, intercept_init: ArrayLike | None = None,
    ) -> Self:  # fmt: skip
        """Fit the model.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
            Features. Their dtype is kept if it is float32 or float64; C-ordered arrays and CSR with sorted indices are
            not copied.
        y : array of shape (n,) or (n, K)
            Labels, or K >= 2 target probabilities a row; the classes are then 0 .. K-1.
        sample_weight : array of shape (n,), optional
            Weights, not negative.
        coef_init : array of the shape of `coef_`, optional
            Coefficients to start from. By default they are zero, or those of the previous fit if warm_start=True.
        intercept_init : array of the shape of `intercept_`, optional
            Intercepts to start from, with the same default.

        Returns
        -------
        self : SoftmaxRegression
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data, a start or a combination of parameters cannot be used.
        FloatingPointError
            If features are too large or too small for their dtype.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.classes_.tolist(), model.coef_.shape
        (['a', 'b'], (1, 1))
        """
        row = SOLVERS[solver_names(self.solver, self.alpha * self.l1_ratio > 0)[-1]]
        # outside of restore_on_error: after an error, scikit-learn has to find the callbacks to tear them down
        callbacks = Callbacks(self, X, y, sample_weight, name=row.iteration, max_tasks=self.max_iter)
        with restore_on_error(self), self._problem(X, y, sample_weight) as (objective, classes):
            check_solver(self.solver, self.l1_ratio, objective)
            W = self._start(objective, classes, coef_init, intercept_init)
            result = self._minimize(objective, classes, W, callbacks)
            callbacks.finish()
        if result.stopped_on in SOLVERS[result.solver].advice:
            # past scikit-learn's wrapper of fit, to the caller
            warnings.warn(warning_text(result), ConvergenceWarning, stacklevel=3)
        return self

    @contextmanager
    def _problem(self, X, y, sample_weight):
        """Return a context with the Objective over the rows of a fit, once they are checked, and the classes."""
        X, codes, targets, classes = check_data(self, X, y)
        objective = self._objective(X, codes, targets, classes, sample_weight)
        check_two_classes(objective, classes)
        yield objective, classes

    def _minimize(self, objective, classes, W, callbacks):
        """Run the solver from W, set the fitted attributes, and return the result."""
        row = SOLVERS[solver_names(self.solver, objective.l1 > 0)[-1]]
        random_state = check_random_state(self.random_state)
        train, held_out = self._hold_out(objective, random_state)
        if self.verbose and not train.stores_probabilities:
            print(storage_line(train), flush=True)
        callbacks.start(lambda W: self._fitted_attributes(objective, W, classes), W)
        monitor = Monitor(self, train, row, held_out, callbacks)
        with single_threaded_blas(), finite_or_error(objective):
            result = self._solve(train, Start(W), self._options(random_state), monitor)
            check_finite(result.W, result.loss)
        self._set_fitted_attributes(objective, result.W, classes)
        self.__dict__.pop("_stream", None)
        self.n_iter_, self.solver_, self.stopped_on_ = len(result.history), result.solver, result.stopped_on
        self.optimality_gap_, self.gap_estimate_ = result.gap, result.estimate
        self.history_ = {name: np.array([e[name] for e in result.history]) for name in result.history[0]}
        return result

    def _hold_out(self, objective, random_state):
        """Return the objectives over the rows to train on and over the held-out ones, see `hold_out`."""
        return hold_out(self, objective, random_state)

    def _solve(self, objective, start, options, monitor):
        """Return the result of the solver."""
        return solve(self.solver, objective, start, options, monitor)

    @with_callbacks
    def partial_fit(
        self, X: MatrixLike, y: ArrayLike, classes: ArrayLike | int | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:  # fmt: skip
        """Learn a batch of rows, once, from where the last call ended.

        One pass over shuffled rows is about as good as a whole fit. How a stream is cut into batches does not matter:
        steps depend on the rows alone. Dense rows that do not fill a step yet, at most 256, wait for the next call.
        The state of the optimiser is kept between calls, and pickled with the estimator; a stream that begins after
        `fit` goes on from its coefficients. Of the parameters, `alpha`, `label_smoothing` and `class_weight` can be
        set between calls and count from the next one on. `n_iter_` counts the calls that brought rows, and
        `stream_history_` has the scores of their rows. ``verbose=1`` prints them, a line a call.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
            Any number of rows; none at all changes nothing.
        y : array of shape (n,) or (n, K)
            Labels, or target probabilities, as in `fit`.
        classes : array of labels in any order, or int, optional
            All classes that will ever come, or their number where they are 0 .. classes - 1. Needed in the first call.
        sample_weight : array of shape (n,), optional
            Weights, not negative.

        Returns
        -------
        self : SoftmaxRegression
            The estimator, fitted to all batches so far.

        Raises
        ------
        ValueError
            If the data or a parameter cannot be used: other features or classes than before, or a parameter that
            needs all rows (`early_stopping`, ``class_weight="balanced"``).
        FloatingPointError
            As in `fit`.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> stream = SoftmaxRegression().partial_fit([[0.0], [3.0]], ["a", "b"], classes=["a", "b"])
        >>> stream.partial_fit([[1.0], [2.0]], ["a", "b"]).n_iter_
        2
        """
        self._validate_params()
        known = "_stream" in vars(self) or "coef_" in vars(self)  # not hasattr, which would compute coef_
        for name, refused in NOT_IN_STREAMS.items():
            if (value := getattr(self, name)) == refused:
                raise ValueError(f"{name}={value!r} needs all rows; partial_fit does not know them")
        if not known and classes is None:
            raise ValueError("classes must be given in the first call of partial_fit")
        callbacks = Callbacks(self, X, y, sample_weight)
        with restore_on_error(self):
            X, codes, targets, classes = check_data(self, X, y, classes=classes, first=not known, min_rows=0)
            objective = self._objective(X, codes, targets, classes, sample_weight)
            callbacks.start()
            if objective.n_rows or not known:
                with single_threaded_blas(), finite_or_error(objective):
                    self._learn(objective, classes)
            callbacks.finish()
        return self

    def _learn(self, objective, classes):
        """Learn a batch of a stream, which begins at the previous fit if there is one."""
        stream = getattr(self, "_stream", None)
        if stream is None:
            stream = new_stream(objective, self.precondition)
            if hasattr(self, "coef_"):
                fitted_rows = getattr(self, "_fitted_rows", UNKNOWN_ROWS)
                stream.start_from(self._previous(objective, classes), fitted_rows, objective)
        if stream.settings["n_classes"] != len(classes):
            raise ValueError(f"y has {len(classes)} columns; the stream has {stream.settings['n_classes']} classes")
        if stream.settings["fit_intercept"] != self.fit_intercept:
            raise ValueError(f"fit_intercept={self.fit_intercept} differs from that of the stream's first batch")
        if objective.n_rows:
            order = np.arange(objective.n_rows)
            if self.shuffle and objective.n_rows > 1:
                order = check_random_state(self.random_state).permutation(objective.n_rows)
            entry = stream.learn_batch(objective, order)
            if self.verbose:
                print(
                    f"batch {stream.calls:,}  rows {entry['rows']:,}  loss {entry['loss']:<11.6g} accuracy "
                    f"{entry['accuracy']:6.1%} of the batch before it was learnt", flush=True,
                )  # fmt: skip
        self._stream, self.classes_, self.n_iter_ = stream, classes, stream.calls
        for name in OF_THE_STREAM:
            vars(self).pop(name, None)

    def __getattr__(self, name):
        """Compute what a stream leaves until somebody asks for it."""
        stream = vars(self).get("_stream")
        if name not in OF_THE_STREAM or stream is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name == "stream_history_":
            return {key: np.array(numbers) for key, numbers in stream.history.items()}
        vars(self)["coef_"], vars(self)["intercept_"] = stream.fitted_coefficients()
        return vars(self)[name]

    def __getstate__(self):
        state = super().__getstate__()
        if "_stream" in state:  # plain arrays, which any version can read
            state = {**state, "_stream": self._stream.get_state()}
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if "_stream" in vars(self):
            self._stream = Stream.from_state(self._stream)

    # --- input and output of the solvers ----------------------------------------------------------------------------

    def _objective(self, X, codes, targets, classes, sample_weight):
        """Return the Objective over all rows of checked data, with the estimator's penalties and weights."""
        weight = check_row_weights(sample_weight, self.class_weight, X, codes, classes)
        l2, l1 = penalties(self.alpha, self.l1_ratio, len(classes))
        return Objective(
            X, codes, targets, weight, len(classes), l2=l2, l1=l1, label_smoothing=self.label_smoothing,
            fit_intercept=self.fit_intercept, n_threads=effective_n_threads(self.n_jobs),
        )  # fmt: skip

    def _options(self, random_state):
        """Return the Options of a solver: the parameters that some solver reads."""
        names = {"max_iter", "tol"}.union(*(row.reads for row in SOLVERS.values()))
        return Options(random_state=random_state, **{name: getattr(self, name) for name in names})

    def _start(self, objective, classes, coef_init, intercept_init):
        """Return the W to start from: the caller's, else that of the previous fit of a warm start, else zero."""
        coef, intercept = check_start(objective, coef_init, intercept_init)
        W = solver_weights(objective, coef, intercept)
        if self.warm_start and hasattr(self, "coef_") and (coef is None or intercept is None):
            previous = self._previous(objective, classes)
            if coef is None:
                objective.coef(W)[...] = objective.coef(previous)
            if intercept is None:
                W[:, objective.n_features :] = previous[:, objective.n_features :]
        return W

    def _previous(self, objective, classes):
        """Return the current coefficients as the solvers' W, or raise a ValueError if they do not fit the data."""
        coef, intercept = self._weights()
        if not np.array_equal(self.classes_, classes) or coef.shape[1] != objective.n_features:
            raise ValueError(
                f"the previous fit has {len(self.classes_)} classes and {coef.shape[1]} features, the data "
                f"{len(classes)} classes and {objective.n_features} features; use warm_start=False or a new estimator"
            )
        return solver_weights(objective, coef, intercept)

    def _fitted_attributes(self, objective, W, classes):
        """Return the attributes of an estimator fitted to W, by name."""
        coef, intercept = fitted_coefficients(W, self.fit_intercept)
        return {"classes_": classes, "coef_": coef, "intercept_": intercept}

    def _set_fitted_attributes(self, objective, W, classes):
        """Set `classes_`, `coef_` and `intercept_` to those that belong to W."""
        vars(self).update(self._fitted_attributes(objective, W, classes))
