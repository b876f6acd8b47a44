"""SoftmaxRegression for dask collections: `fit` on the rows where they lie, lazy prediction, and streams of chunks."""

from contextlib import contextmanager

import numpy as np
from dask import is_dask_collection
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

import softreg
from softreg._solvers import solver_names
from softreg.dask._client import fit_client
from softreg.dask._input import float_dtype
from softreg.dask._newton import distributed_newton
from softreg.dask._prediction import accuracy, predicted
from softreg.dask._problem import checked_chunks, distributed_objective, hold_out
from softreg.dask._proximal_newton import distributed_proximal_newton
from softreg.dask._stream import stream

DISTRIBUTED = {"newton": distributed_newton, "proximal_newton": distributed_proximal_newton}


def check_distributed(estimator):
    """Raise a ValueError if a parameter has a value that needs all rows in one place."""
    able = ("auto", *DISTRIBUTED)
    if estimator.solver not in able:
        raise ValueError(
            f"solver={estimator.solver!r} needs all rows in one place; on dask collections take {able}, or learn "
            "the rows in one pass by softreg.dask.stream"
        )


class SoftmaxRegression(softreg.SoftmaxRegression):
    """Linear softmax classifier for dask arrays and dataframes, which may be larger than the memory of one machine.

    Parameters, attributes and the objective are those of `softreg.SoftmaxRegression`, and so is the certificate: the
    coefficients are equal within `tol`. On NumPy and SciPy input the methods are those of that class.

    `fit` takes a dask array (chunks of rows dense or CSR) or a dask dataframe. Rows stay where they are. A pass sends
    the coefficients to each worker, and brings a sum of K (d + 1) float64 numbers back from each, whatever the number
    of rows. Sums over the chunks are exact and rounded once: for the same chunks the coefficients are the same to the
    last bit, whatever the number of workers, if these have the same processor and the same libraries.

    On dask input `predict`, `predict_proba`, `predict_log_proba`, `decision_function` and `score` return dask arrays,
    which are computed when they are asked for.

    Parameters
    ----------
    alpha, l1_ratio, fit_intercept : float, float, bool
        As in `softreg.SoftmaxRegression`.
    solver : {"auto", "newton", "proximal_newton"}, default="auto"
        "auto" is "proximal_newton" if l1_ratio > 0, else "newton". For l1 the coefficients that may differ from zero,
        at most 5000, have their Hessian on the client. The other solvers of one machine need all rows in one place.
    max_iter, tol : int, float
        As in `softreg.SoftmaxRegression`.
    precondition, shuffle : bool, bool
        As in `softreg.SoftmaxRegression`; they count in streams alone.
    class_weight, label_smoothing : dict or "balanced" or None, float
        As in `softreg.SoftmaxRegression`.
    early_stopping, validation_fraction, n_iter_no_change : bool, float, int
        As in `softreg.SoftmaxRegression`. Early stopping holds out a share of the rows of each chunk.
    warm_start, random_state : bool, int or RandomState or None
        As in `softreg.SoftmaxRegression`.
    n_jobs : int, default=None
        Threads that a task on a worker takes. None is one: Dask runs several tasks side by side.
    verbose : int, default=0
        As in `softreg.SoftmaxRegression`.
    persist : bool or "auto", default="auto"
        True keeps the rows, and their probabilities, in the memory of the workers during the fit. False computes both
        again in every pass, from the files or from what else X is made of: the workers need memory for a few chunks.
        "auto" keeps the rows if they take at most half of the memory of the workers, or were persisted before, and
        the probabilities if there is room for them, too: 3 n K numbers. What it does not keep is computed again in
        every pass, with a warning. The coefficients are the same to the last bit.

    Attributes
    ----------
    traffic_ : dict of int
        What the last fit moved between client and workers: ``passes`` over the chunks, ``bytes_sent`` with W and
        steps to all workers, ``bytes_received`` of sums from all of them (with their rounding errors, up to two numbers
        for each), and ``bytes_of_rows`` that came to the client for the preconditioner. With ``persist=False`` W goes
        to one worker, from which the others take it, and one sum comes back.

    Notes
    -----
    The current `distributed.Client` is used; ``with client.as_current():`` makes another one current. If there is none,
    `fit` starts a local one in this process, with a warning, and closes it at the end.

    If a worker dies, Dask computes its rows again, and the fit goes on. That needs rows that can be computed: data
    which were sent by `Client.scatter` are lost with their last worker. Where rows stay, each worker has an actor
    during the fit, so that Dask retires no worker before its end. If one worker has more chunks than its share, some
    of them move to others at the beginning.

    A worker holds its chunks, for each of their rows K probabilities at two or three W, and a few W.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_iris
    >>> from softreg.dask import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> X, y = da.from_array(X, chunks=(50, -1)), da.from_array(y, chunks=50)
    >>> model = SoftmaxRegression(alpha=1e-3).fit(X, y)  # doctest: +SKIP
    >>> model.predict(X).compute()  # doctest: +SKIP
    """

    _parameter_constraints: dict = {  # noqa: RUF012 (scikit-learn's own form)
        **softreg.SoftmaxRegression._parameter_constraints, "persist": ["boolean", StrOptions({"auto"})],
    }  # fmt: skip

    def __init__(
        self, *, alpha=1e-4, l1_ratio=0.0, fit_intercept=True, solver="auto", max_iter=100, tol=1e-4,
        precondition=True, shuffle=True, class_weight=None, label_smoothing=0.0, early_stopping=False,
        validation_fraction=0.1, n_iter_no_change=5, warm_start=False, random_state=None, n_jobs=None, verbose=0,
        persist="auto",
    ):  # fmt: skip
        super().__init__(
            alpha=alpha, l1_ratio=l1_ratio, fit_intercept=fit_intercept, solver=solver, max_iter=max_iter, tol=tol,
            precondition=precondition, shuffle=shuffle, class_weight=class_weight, label_smoothing=label_smoothing,
            early_stopping=early_stopping, validation_fraction=validation_fraction, n_iter_no_change=n_iter_no_change,
            warm_start=warm_start, random_state=random_state, n_jobs=n_jobs, verbose=verbose,
        )  # fmt: skip
        self.persist = persist

    # --- training -------------------------------------------------------------------------------------------------

    @contextmanager
    def _problem(self, X, y, sample_weight):
        """Return a context with the objective of a fit and the classes; at its end the workers are freed."""
        if not any(map(is_dask_collection, (X, y, sample_weight))):
            with super()._problem(X, y, sample_weight) as problem:
                yield problem
            return
        check_distributed(self)
        with fit_client() as client:
            passes, chunks = checked_chunks(self, client, X, y, sample_weight, self.persist)
            try:
                like = np.empty((0, self.n_features_in_), float_dtype(X))
                yield distributed_objective(self, passes, chunks, like)
            finally:
                passes.close()
            self.traffic_ = {
                "passes": passes.count, "bytes_sent": passes.sent, "bytes_received": passes.received,
                "bytes_of_rows": passes.row_bytes,
            }  # fmt: skip

    def _hold_out(self, objective, random_state):
        if not hasattr(objective, "passes"):
            return super()._hold_out(objective, random_state)
        if not self.early_stopping:
            return objective, None
        return hold_out(objective, self.validation_fraction, random_state)

    def _solve(self, objective, start, options, monitor):
        if not hasattr(objective, "passes"):
            return super()._solve(objective, start, options, monitor)
        name = solver_names(self.solver, objective.l1 > 0)[-1]
        return monitor.conclude(DISTRIBUTED[name](objective, start, options, monitor))

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Learn a batch, or each chunk of a dask array in turn, see `softreg.dask.stream`.

        Parameters
        ----------
        X : array, sparse matrix, dask array or dask dataframe of shape (n, d)
            Rows.
        y : array or dask collection of shape (n,) or (n, K)
            Labels, or target probabilities.
        classes : array of labels or int, optional
            All classes that will ever come, see `softreg.SoftmaxRegression.partial_fit`.
        sample_weight : array or dask array of shape (n,), optional
            Weights of the rows.

        Returns
        -------
        self : SoftmaxRegression
            The estimator.

        Raises
        ------
        ValueError
            As in `softreg.SoftmaxRegression.partial_fit` and `softreg.dask.stream`.

        Examples
        --------
        >>> from softreg.dask import SoftmaxRegression
        >>> SoftmaxRegression().partial_fit([[0.0], [3.0]], ["a", "b"], classes=["a", "b"]).n_iter_
        1
        """
        if is_dask_collection(X):
            return stream(self, X, y, classes=classes, sample_weight=sample_weight)
        return super().partial_fit(X, y, classes=classes, sample_weight=sample_weight)

    # --- prediction -----------------------------------------------------------------------------------------------

    def decision_function(self, X):
        """Return the logits for each row of X, or their difference for two classes.

        Parameters
        ----------
        X : array, sparse matrix, dask array or dask dataframe of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        Z : array or dask array of shape (n, n_classes), or (n,) for two classes
            Logits X W^T + b. On dask input a dask array, which is computed when it is asked for.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity; on dask input when the result is
            computed.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg.dask import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.decision_function([[0.0], [3.0]]).shape
        (2,)
        """
        return self._predicted("decision_function", X)

    def predict(self, X):
        """Return the most probable class for each row of X.

        Parameters
        ----------
        X : array, sparse matrix, dask array or dask dataframe of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        y : array or dask array of shape (n,)
            Labels. On dask input a dask array, which is computed when it is asked for.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity; on dask input when the result is
            computed.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg.dask import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.predict([[0.5], [2.5]]).tolist()
        ['a', 'b']
        """
        return self._predicted("predict", X)

    def predict_proba(self, X):
        """Return the probability of each class for each row of X.

        Parameters
        ----------
        X : array, sparse matrix, dask array or dask dataframe of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        P : array or dask array of shape (n, n_classes)
            Probabilities in the order of ``classes_``. On dask input a dask array, which is computed when it is asked
            for.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity; on dask input when the result is
            computed.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg.dask import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.predict_proba([[1.5]]).round(3).tolist()
        [[0.5, 0.5]]
        """
        return self._predicted("predict_proba", X)

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities for each row of X.

        Parameters
        ----------
        X : array, sparse matrix, dask array or dask dataframe of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        log_P : array or dask array of shape (n, n_classes)
            Logarithms of probabilities in the order of ``classes_``. On dask input a dask array, which is computed when
            it is asked for.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity; on dask input when the result is
            computed.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg.dask import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.predict_log_proba([[1.5]]).round(3).tolist()
        [[-0.693, -0.693]]
        """
        return self._predicted("predict_log_proba", X)

    def score(self, X, y, sample_weight=None):
        """Return the accuracy; a target distribution counts as its most probable class.

        Parameters
        ----------
        X : array, sparse matrix, dask array or dask dataframe of shape (n, n_features)
            Rows to predict.
        y : array or dask collection of shape (n,) or (n, K)
            Labels, or target distributions.
        sample_weight : array or dask array of shape (n,), optional
            Weights of the rows.

        Returns
        -------
        accuracy : float, or dask array of no dimension
            Weighted share of the rows that are predicted right. Lazy if X is a dask collection.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity; on dask input when the result is
            computed.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg.dask import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.score([[0.5], [2.5]], ["a", "b"])
        1.0
        """
        if not is_dask_collection(X):
            return super().score(X, y, sample_weight)
        return accuracy(self._on_one_machine(), X, y, sample_weight)

    def _predicted(self, method, X):
        """Return the method's result for X: lazy on dask input."""
        if not is_dask_collection(X):
            return getattr(super(), method)(X)
        model = self._on_one_machine()
        if method == "predict":
            return predicted(model, method, X, np.asarray(self.classes_).dtype, ())
        K = len(self.classes_)
        columns = () if method == "decision_function" and K == 2 else (K,)
        return predicted(model, method, X, float_dtype(X), columns)

    def _on_one_machine(self):
        """Return a fitted estimator of one machine with the coefficients of now."""
        check_is_fitted(self)
        parameters = {name: value for name, value in self.get_params().items() if name != "persist"}
        model = softreg.SoftmaxRegression(**parameters)
        for name in ("coef_", "intercept_", "classes_", "n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model
