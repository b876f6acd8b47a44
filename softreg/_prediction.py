"""Prediction from `coef_`, `intercept_` and `classes_`: logits, classes, probabilities, and the gradient in X."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model._base import SparseCoefMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import (
    assert_all_finite,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from softreg import _core
from softreg._array_checks import FLOATS, check_targets, check_weights
from softreg._design_matrix import design_matrix
from softreg._memory_layout import ensure_row_major
from softreg._threads import effective_n_threads, single_threaded_blas
from softreg._typing import Floats, MatrixLike
from softreg._validation import are_distributions


class LinearSoftmaxClassifier(SparseCoefMixin, ClassifierMixin):
    """Prediction methods of fitted linear softmax classifiers.

    They read the attributes `coef_`, `intercept_` and `classes_` and the parameters `fit_intercept`, `n_jobs` and
    `label_smoothing`.
    """

    # fitted attributes, which estimators set and users may replace
    coef_: Any
    intercept_: Any
    classes_: Any
    fit_intercept: bool
    n_jobs: int | None
    label_smoothing: float

    # the page of a class in the documentation, to which the HTML representation links
    _doc_link_module = "softreg"
    _doc_link_template = "https://softreg.readthedocs.io/en/latest/api/{estimator_module}.{estimator_name}.html"

    def decision_function(self, X: MatrixLike) -> Floats:
        """Return the logits of the rows of X.

        They are at most half of the dtype's largest number. A row of larger ones is shifted and clipped, and keeps
        its order.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        Z : array of shape (n, n_classes), or (n,) for two classes
            Logits in the order of ``classes_``. For two classes a positive one means ``classes_[1]``.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.decision_function([[0.0], [3.0]]).shape
        (2,)
        """
        X = self._check_predict(X)
        Z = self._logits(X, *self._weights())
        return Z.ravel() if Z.shape[1] == 1 else Z

    def predict(self, X: MatrixLike) -> NDArray[Any]:
        """Return the most probable class of each row of X.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        y : array of shape (n,)
            Entries of ``classes_``.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.predict([[0.0], [3.0]]).tolist()
        ['a', 'b']
        """
        scores = self.decision_function(X)
        return np.asarray(self.classes_)[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: MatrixLike) -> Floats:
        """Return the probabilities of the classes for each row of X.

        Where logits overflow they are the limit of the softmax, never NaN.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        P : array of shape (n, n_classes)
            Probabilities in the order of ``classes_``.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.predict_proba([[1.5]]).round(3).tolist()
        [[0.5, 0.5]]
        """
        return self._through(_core.softmax, X)

    def predict_log_proba(self, X: MatrixLike) -> Floats:
        """Return the logarithms of the probabilities for each row of X.

        They are computed from the logits, and so are right where a probability rounds to zero.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
            Rows to predict.

        Returns
        -------
        log_P : array of shape (n, n_classes)
            Logarithms of probabilities in the order of ``classes_``.

        Raises
        ------
        ValueError
            If X has other features than the training data, or holds NaN or infinity.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.predict_log_proba([[1.5]]).round(3).tolist()
        [[-0.693, -0.693]]
        """
        return self._through(_core.log_softmax, X)

    def score(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy: the share of the rows of X whose predicted class is right.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
            Rows to predict.
        y : array of shape (n,) or (n, n_classes)
            Labels, or target probabilities: the most probable class is then the right one.
        sample_weight : array of shape (n,), optional
            Weights, not negative.

        Returns
        -------
        score : float
            The accuracy, in [0, 1].

        Raises
        ------
        ValueError
            If X, y or the weights cannot be used.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.score([[0.0], [3.0]], ["a", "b"])
        1.0
        """
        predicted = self.predict(X)
        if are_distributions(y):
            _, targets = check_targets(np.asarray(y), (len(predicted), len(self.classes_)), np.float64)
            y = np.asarray(self.classes_)[targets.argmax(axis=1)]
        return accuracy_score(y, predicted, sample_weight=check_weights(sample_weight, len(predicted), np.float64))

    def input_gradient(self, X: MatrixLike, y: ArrayLike) -> Floats:
        """Return the gradient of the mean cross-entropy over the rows of X with respect to X.

        The gradient is (P - Y) W / n. A layer that produced X goes on with backpropagation from there.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, n_features)
            Rows to differentiate at.
        y : array of shape (n,) or (n, n_classes)
            Labels, or target probabilities.

        Returns
        -------
        dX : array of shape (n, n_features)
            The gradient, dense.

        Raises
        ------
        ValueError
            If X or y cannot be used, or y has a label that is not in ``classes_``.
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.input_gradient([[1.5]], ["b"]).shape
        (1, 1)
        """
        X = self._check_predict(X)
        if len(np.shape(y)) == 2:
            _, targets = check_targets(np.asarray(y), (X.shape[0], len(self.classes_)), X.dtype)
            codes = None
        else:
            y, targets = column_or_1d(y), None
            check_consistent_length(X, y)
            if (unknown := ~np.isin(y, self.classes_)).any():
                raise ValueError(f"y has the label {y[unknown].tolist()[0]!r}, which is not in classes_")
            codes = np.searchsorted(self.classes_, y).astype(np.intp)
        Z, coef = self._class_logits(X)
        coef = np.ascontiguousarray(coef, X.dtype)
        G = np.empty_like(Z)
        weight = np.full(X.shape[0], 1 / max(X.shape[0], 1), X.dtype)
        n_threads = effective_n_threads(self.n_jobs)
        _core.cross_entropy(Z, codes, targets, weight, self.label_smoothing, None, G, n_threads)
        out = np.empty(X.shape, X.dtype)
        with single_threaded_blas():
            _core.input_gradient(G, coef, out, n_threads)
        return out

    def to_sklearn(self) -> LogisticRegression:
        """Return a fitted LogisticRegression of scikit-learn that predicts the same.

        It is for programs that know scikit-learn and not softreg. Its arrays are copies. Of the parameters only
        `fit_intercept` is taken over: the result predicts, and does not say how it was fitted.

        Returns
        -------
        model : LogisticRegression
            With `coef_`, `intercept_`, `classes_` and `n_features_in_`, and `feature_names_in_` if there are any.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> model.to_sklearn().predict([[0.0], [3.0]]).tolist()
        ['a', 'b']
        """
        check_is_fitted(self)
        coef, intercept = self._weights()
        model = LogisticRegression(fit_intercept=self.fit_intercept)
        model.coef_, model.intercept_, model.classes_ = coef.copy(), intercept.copy(), np.array(self.classes_)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(model, name, getattr(self, name))
        return model

    def _check_predict(self, X):
        """Return X as the kernels take it; NaN and infinity are found later, in the logits."""
        check_is_fitted(self)
        # a NaN of X shows in the logits; but not where a sparse `coef_` leaves out the zero that would meet it
        finite = issparse(self.coef_)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False, ensure_all_finite=finite)
        return ensure_row_major(X)

    def _weights(self):
        """Return `coef_` and `intercept_` as floats, or raise an error: users may have set them.

        For two classes they have one row. `coef_` may be sparse.
        """
        rows = 1 if len(self.classes_) == 2 else len(self.classes_)
        coef = self.coef_ if issparse(self.coef_) else _floats(self.coef_, "coef_")
        intercept = _floats(self.intercept_, "intercept_")
        if coef.ndim != 2 or coef.shape[0] != rows:
            raise ValueError(f"coef_ has shape {coef.shape}; {len(self.classes_)} classes need ({rows}, n_features)")
        if intercept.shape not in ((), (rows,)):
            raise ValueError(f"intercept_ has shape {intercept.shape}; {len(self.classes_)} classes need ({rows},)")
        return coef, np.broadcast_to(intercept, (rows,))

    def _class_logits(self, X):
        """Return the logits (n, n_classes) and the coefficients (n_classes, d), with two columns for two classes."""
        coef, intercept = self._weights()
        if issparse(coef):
            coef = coef.toarray()
        if len(self.classes_) == 2:  # softmax of (-z/2, z/2) is the sigmoid of z
            halves = np.array([[-0.5], [0.5]], coef.dtype)
            coef, intercept = halves * coef, halves[:, 0] * intercept
        return self._logits(X, coef, intercept), coef

    def _logits(self, X, coef, intercept):
        """Return the logits of the rows of X, (n, rows of coef); those that overflow are saturated."""
        if X.shape[1] != coef.shape[1]:
            raise ValueError(f"coef_ has shape {coef.shape}, but X has {X.shape[1]} features")
        with np.errstate(over="ignore", invalid="ignore"), single_threaded_blas():
            Z = self._plain_logits(X, coef, intercept)
            limit = np.finfo(Z.dtype).max / 2  # no difference of two logits overflows
            if -limit <= Z.min() and Z.max() <= limit:
                return Z
            # a NaN or infinity in X or in the weights is one in Z: only then is it worth a pass over them
            for values, name in ((X, "X"), (coef, "coef_"), (intercept, "intercept_")):
                assert_all_finite(values, estimator_name=type(self).__name__, input_name=name)
            rows = np.flatnonzero(~(np.abs(Z) <= limit).all(axis=1))
            for block in np.array_split(rows, -(-len(rows) // 1024)):  # the copies in float64 stay small
                Z[block] = saturated_logits(X[block], coef, intercept, float(limit))
        return Z

    def _plain_logits(self, X, coef, intercept):
        """Return X coef^T + intercept, which may overflow, in the dtype of X."""
        if issparse(coef):
            Z = safe_sparse_dot(X, coef.T.astype(X.dtype, copy=False), dense_output=True) + intercept
            return np.ascontiguousarray(Z, X.dtype)
        design = design_matrix(X, n_threads=effective_n_threads(self.n_jobs))
        W = design.empty(len(coef))
        W[:, :-1], W[:, -1] = coef, intercept
        return design.logits(W)

    def _through(self, kernel, X):
        """Return the rows that the kernel makes of the logits of X, (n, n_classes)."""
        X = self._check_predict(X)
        Z, _ = self._class_logits(X)
        kernel(Z, Z, effective_n_threads(self.n_jobs))
        return Z


def _floats(values, name):
    """Return an attribute as an array of float32 or float64."""
    try:
        values = np.asarray(values)
        return values if values.dtype in FLOATS else values.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers: {error}") from error


def saturated_logits(X, coef, intercept, limit):
    """Return logits of rows of X that overflow, within [-limit, limit], as float64 (n, rows of coef).

    They are computed from X and coef divided by powers of two: no sum overflows, and infinities do not cancel to NaN.
    Where there are several classes, each row is then shifted by one number, which softmax does not see, so that its
    largest logit fits in. A logit still below -limit becomes -limit.
    """
    largest = abs(X).max(axis=1)
    largest = largest.toarray().ravel() if issparse(largest) else largest
    of_row, of_coef = np.maximum(np.frexp(largest)[1], 0), max(np.frexp(abs(coef).max())[1], 0)
    scale, exponent = np.ldexp(1.0, -of_row)[:, None], (of_row + of_coef)[:, None]
    X = X.multiply(scale).tocsr() if issparse(X) else X * scale
    coef = coef.astype(np.float64) * np.ldexp(1.0, -of_coef)
    Z = safe_sparse_dot(X, coef.T, dense_output=True)
    Z += np.ldexp(intercept.astype(np.float64), -exponent)
    edge, top = np.ldexp(limit, -exponent), Z.max(axis=1, keepdims=True)
    lowest_top = -edge if Z.shape[1] == 1 else -edge / 2  # room for the other classes below it
    Z = np.maximum(Z - top + np.clip(top, lowest_top, edge), -edge)
    return np.ldexp(Z, exponent)
