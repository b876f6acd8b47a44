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
    the coefficients to the workers, and brings one sum of K (d + 1) float64 numbers back, whatever the number of rows.
    Sums are added in the order of the chunks: for the same chunks the coefficients are the same to the last bit,
    whatever the number of workers, if these have the same processor and the same libraries.

    On dask input `predict`, `predict_proba`, `predict_log_proba`, `decision_function` and `score` return dask arrays,
    which are computed when they are asked for.

    Parameters
    ----------
    alpha, l1_ratio, fit_intercept, max_iter, tol, class_weight, label_smoothing, early_stopping, validation_fraction, \
n_iter_no_change, warm_start, random_state, verbose, precondition, shuffle :
        As in `softreg.SoftmaxRegression`. Early stopping holds out a share of the rows of each chunk. The last two
        count in streams alone.
    solver : {"auto", "newton", "proximal_newton"}, default="auto"
        "auto" is "proximal_newton" if l1_ratio > 0, else "newton". For l1 the coefficients that may differ from zero,
        at most 5000, have their Hessian on the client. The other solvers of one machine need all rows in one place.
    n_jobs : int, default=None
        Threads that a task on a worker takes. None is one: Dask runs several tasks side by side.
    persist : bool or "auto", default="auto"
        True keeps the rows, and their probabilities, in the memory of the workers during the fit. False computes both
        again in every pass, from the files or from what else X is made of: the workers need memory for a few chunks.
        "auto" is True if X takes at most half of the memory of the workers, or was persisted before; else False, with
        a warning.

    Attributes
    ----------
    traffic_ : dict of int
        What the last fit moved between client and workers: ``passes`` over the chunks, ``bytes_sent`` with W and
        steps (once a pass, however many workers there are), ``bytes_received`` of sums, and ``bytes_of_rows`` that came
        to the client for the preconditioner.

    Notes
    -----
    The current `distributed.Client` is used; ``with client.as_current():`` makes another one current. If there is none,
    `fit` starts a local one in this process, with a warning, and closes it at the end.

    If a worker dies, Dask computes again what it held, and the fit goes on. That needs rows that can be computed: data
    which were sent by `Client.scatter` are lost with their last worker.

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
        with fit_client(stacklevel=7) as client:
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
        X, y, classes, sample_weight :
            As in `softreg.SoftmaxRegression.partial_fit`; X, y and weights may be dask collections.

        Returns
        -------
        self : SoftmaxRegression
        """
        if is_dask_collection(X):
            return stream(self, X, y, classes=classes, sample_weight=sample_weight)
        return super().partial_fit(X, y, classes=classes, sample_weight=sample_weight)

    # --- prediction -----------------------------------------------------------------------------------------------

    def decision_function(self, X):
        return self._predicted("decision_function", X)

    def predict(self, X):
        return self._predicted("predict", X)

    def predict_proba(self, X):
        return self._predicted("predict_proba", X)

    def predict_log_proba(self, X):
        return self._predicted("predict_log_proba", X)

    def score(self, X, y, sample_weight=None):
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
