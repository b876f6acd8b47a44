"""Scores of probabilities against target distributions, where scikit-learn's metrics take labels alone."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics._scorer import _BaseScorer
from sklearn.utils.validation import column_or_1d

from softreg._array_checks import check_floats
from softreg._validation import are_distributions
from softreg.functional import cross_entropy

__all__ = ["cross_entropy_loss", "cross_entropy_scorer"]


def cross_entropy_loss(
    y_true: ArrayLike, y_log_proba: ArrayLike, *, labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:  # fmt: skip
    """Return the mean cross-entropy of predicted probabilities against labels or target distributions.

    For labels the loss is that of `sklearn.metrics.log_loss`, but computed from logarithms of probabilities: these are
    right also where a probability rounds to zero.

    Parameters
    ----------
    y_true : array of shape (n,) or (n, n_classes)
        Labels, or target distributions, one a row.
    y_log_proba : array of shape (n, n_classes)
        Logarithms of probabilities, as `predict_log_proba` gives them. One that is smaller than that of the smallest
        normal number of its dtype (-87 in float32, -708 in float64) counts as that: the mean stays finite.
    labels : array of shape (n_classes,), optional
        The class of each column, in sorted order; needed where `y_true` does not have all of them. It has no effect on
        distributions, whose columns are the classes.
    sample_weight : array of shape (n,), optional
        Weights, not negative.

    Returns
    -------
    loss : float
        The weighted mean.

    Raises
    ------
    ValueError
        If shapes do not match, a row of `y_true` is no distribution, or a label is not in `labels`.

    Examples
    --------
    >>> import numpy as np
    >>> from softreg.metrics import cross_entropy_loss
    >>> log_proba = np.log([[0.5, 0.5], [0.25, 0.75]])
    >>> round(cross_entropy_loss([[0.5, 0.5], [0.0, 1.0]], log_proba), 4)
    0.4904
    >>> round(cross_entropy_loss(["no", "yes"], log_proba), 4)
    0.4904
    """
    y_log_proba = np.asarray(y_log_proba)
    if y_log_proba.dtype.kind == "f":  # -inf is the logarithm of zero
        y_log_proba = np.maximum(y_log_proba, np.log(np.finfo(y_log_proba.dtype).tiny))
    y_log_proba = check_floats(y_log_proba, "y_log_proba")
    if y_log_proba.ndim != 2:
        raise ValueError(f"y_log_proba has shape {y_log_proba.shape}; it needs a column for each class")
    if are_distributions(y_true):
        targets = np.asarray(y_true)
    else:
        targets = _codes(column_or_1d(y_true), labels, y_log_proba.shape[1])
    return cross_entropy(y_log_proba, targets, sample_weight=sample_weight)


def _codes(y, labels, n_classes):
    """Return the column of each label, (n,)."""
    labels = np.unique(y if labels is None else labels)
    if len(labels) != n_classes:
        raise ValueError(f"y_log_proba has {n_classes} columns, but there are {len(labels)} labels: {labels.tolist()}")
    if (unknown := ~np.isin(y, labels)).any():
        raise ValueError(f"y_true has the label {y[unknown].tolist()[0]!r}, which is not in labels {labels.tolist()}")
    return np.searchsorted(labels, y)


class _LogProbaScorer(_BaseScorer):
    """Scorer that hands all columns of `predict_log_proba` to its metric.

    `make_scorer` keeps one column where there are two classes.
    """

    def _score(self, method_caller, estimator, X, y_true, **kwargs):
        """Return the score of a fitted estimator on the rows of X; scikit-learn calls this."""
        self._warn_overlap("A parameter of the scorer is also passed as metadata, which is used.", kwargs)
        known = {"labels": estimator.classes_} | self._kwargs | kwargs
        return self._sign * self._score_func(y_true, estimator.predict_log_proba(X), **known)

    def __repr__(self):
        return "cross_entropy_scorer"


cross_entropy_scorer = _LogProbaScorer(cross_entropy_loss, -1, {}, "predict_log_proba")
"""Minus :func:`cross_entropy_loss`, as a scorer ``scorer(estimator, X, y, sample_weight=None)``; higher is better.

It goes where scikit-learn takes a callable ``scoring``: `GridSearchCV`, `cross_val_score`, `SoftmaxRegressionCV`.
"""
