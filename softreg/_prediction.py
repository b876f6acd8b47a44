"""Prediction from `coef_`, `intercept_` and `classes_`: logits, classes, probabilities, and the gradient in X."""

import numpy as np
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
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
from softreg._design_matrix import design_matrix
from softreg._memory_layout import ensure_row_major
from softreg._threads import effective_n_threads, single_threaded_blas
from softreg._validation import FLOATS, are_distributions
from softreg.functional import _check_targets, _check_weights


class LinearSoftmaxClassifier(SparseCoefMixin, ClassifierMixin):
    """What a fitted linear softmax classifier can do; `n_jobs` is its parameter for threads."""

    def decision_function(self, X):
        """Logits of shape (n, n_classes), or (n,) for two classes: then positive means ``classes_[1]``.

        They are at most half of the dtype's largest number: a row of larger ones is shifted and clipped, and keeps
        its order.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
        """
        X = self._check_predict(X)
        Z = self._logits(X, *self._weights())
        return Z.ravel() if Z.shape[1] == 1 else Z

    def predict(self, X):
        """The most probable class of each row of X, shape (n,)."""
        scores = self.decision_function(X)
        return np.asarray(self.classes_)[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes, in the order of ``classes_``: shape (n, n_classes).

        Where logits overflow they are the limit of the softmax, never NaN.
        """
        return self._through(_core.softmax, X)

    def predict_log_proba(self, X):
        """Logarithms of the probabilities, from the logits: right also where a probability rounds to zero."""
        return self._through(_core.log_softmax, X)

    def score(self, X, y, sample_weight=None):
        """Accuracy: the share of the rows of X whose predicted class is right.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
        y : array of shape (n,) or (n, n_classes)
            Labels, or target probabilities: the most probable class is then the right one.
        sample_weight : array of shape (n,), optional
            Weights, not negative.

        Returns
        -------
        score : float

        Raises
        ------
        ValueError
            If X, y or the weights cannot be used.
        """
        predicted = self.predict(X)
        if are_distributions(y):
            _, targets = _check_targets(np.asarray(y), (len(predicted), len(self.classes_)), np.float64)
            y = np.asarray(self.classes_)[targets.argmax(axis=1)]
        return accuracy_score(y, predicted, sample_weight=_check_weights(sample_weight, len(predicted), np.float64))

    def input_gradient(self, X, y):
        """The gradient of the mean cross-entropy over the rows of X with respect to X, shape (n, d).

        It is (P - Y) W / n: what a layer that produced X needs to go on with backpropagation.

        Parameters
        ----------
        X : array or sparse matrix of shape (n, d)
        y : labels of shape (n,), or target probabilities of shape (n, n_classes)
        """
        X = self._check_predict(X)
        if len(np.shape(y)) == 2:
            _, targets = _check_targets(np.asarray(y), (X.shape[0], len(self.classes_)), X.dtype)
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

    def _check_predict(self, X):
        check_is_fitted(self)
        # what is not finite is looked for in the logits; zeros that a sparse `coef_` leaves out would hide it
        finite = issparse(self.coef_)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False, ensure_all_finite=finite)
        return ensure_row_major(X)

    def _weights(self):
        """`coef_` (one row for two classes, dense or sparse) and `intercept_` as floats, whoever has set them."""
        rows = 1 if len(self.classes_) == 2 else len(self.classes_)
        coef = self.coef_ if issparse(self.coef_) else _floats(self.coef_, "coef_")
        intercept = _floats(self.intercept_, "intercept_")
        if coef.ndim != 2 or coef.shape[0] != rows:
            raise ValueError(f"coef_ has shape {coef.shape}; {len(self.classes_)} classes need ({rows}, n_features)")
        if intercept.shape not in ((), (rows,)):
            raise ValueError(f"intercept_ has shape {intercept.shape}; {len(self.classes_)} classes need ({rows},)")
        return coef, np.broadcast_to(intercept, (rows,))

    def _class_logits(self, X):
        """One column of logits a class, and the coefficients that made them, also for two classes."""
        coef, intercept = self._weights()
        if issparse(coef):
            coef = coef.toarray()
        if len(self.classes_) == 2:  # softmax of (-z/2, z/2) is the sigmoid of z
            halves = np.array([[-0.5], [0.5]], coef.dtype)
            coef, intercept = halves * coef, halves[:, 0] * intercept
        return self._logits(X, coef, intercept), coef

    def _logits(self, X, coef, intercept):
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
        if issparse(coef):
            Z = safe_sparse_dot(X, coef.T.astype(X.dtype, copy=False), dense_output=True) + intercept
            return np.ascontiguousarray(Z, X.dtype)
        design = design_matrix(X, n_threads=effective_n_threads(self.n_jobs))
        W = design.empty(len(coef))
        W[:, :-1], W[:, -1] = coef, intercept
        return design.logits(W)

    def _through(self, kernel, X):
        X = self._check_predict(X)
        Z, _ = self._class_logits(X)
        kernel(Z, Z, effective_n_threads(self.n_jobs))
        return Z


def _floats(values, name):
    """An attribute as an array of float32 or float64."""
    try:
        values = np.asarray(values)
        return values if values.dtype in FLOATS else values.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers: {error}") from error


def saturated_logits(X, coef, intercept, limit):
    """Logits of rows of X that overflow, within [-limit, limit], as float64 (n, rows of coef).

    They are computed from X and coef divided by powers of two: no sum overflows, and infinities do not cancel to NaN.
    Where there are several classes, each row is then shifted by one number, which softmax does not see, so that its
    largest logit fits in; what is still below -limit is -limit.
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
