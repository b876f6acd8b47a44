"""Conversion of `coef_` and `intercept_` to the solvers' W, and back.

For K > 2 classes W (K, p) is [coef_ intercept_]. For two classes the estimator has one row, the difference of the
classes, as in scikit-learn, and W has two: minus and plus one half of it. The penalty on one row is that on two rows
of half the size for twice the strength, see `penalties`.
"""

import numpy as np
from scipy.sparse import issparse

from softreg._array_checks import check_floats


def penalties(alpha, l1_ratio, n_classes):
    """Return the objective's l2 and l1 for the estimator's alpha and l1_ratio."""
    return alpha * (1 - l1_ratio) * (2 if n_classes == 2 else 1), alpha * l1_ratio


def fitted_coefficients(W, fit_intercept):
    """Return `coef_` and `intercept_` that belong to W (K, p), as copies."""
    if len(W) == 2:
        W = W[1:] - W[:1]
    if not fit_intercept:
        return np.array(W, order="C"), np.zeros(len(W), W.dtype)
    intercept = np.array(W[:, -1])
    if len(W) > 1:
        intercept -= intercept.mean()  # softmax leaves one constant on all intercepts free: they sum to zero here
    return np.array(W[:, :-1], order="C"), intercept


def solver_weights(objective, coef, intercept):
    """Return the W (K, p) that belongs to `coef_` and `intercept_`; None stands for zeros."""
    W, halves = objective.zeros(), np.array([[-0.5], [0.5]]) if objective.n_classes == 2 else 1
    if coef is not None:
        objective.coef(W)[...] = halves * (coef.toarray() if issparse(coef) else coef)
    if intercept is not None and objective.fit_intercept:
        W[:, -1:] = halves * np.reshape(intercept, (-1, 1))
    return W


def check_start(objective, coef_init, intercept_init):
    """Return `coef_init` and `intercept_init` as arrays of the problem's dtype and shapes, or None where not given.

    Raises
    ------
    ValueError
        If a shape does not match the data, or an intercept is given without `fit_intercept`.
    """
    rows = 1 if objective.n_classes == 2 else objective.n_classes
    coef = _check_shape(objective, coef_init, "coef_init", (rows, objective.n_features))
    intercept = _check_shape(objective, intercept_init, "intercept_init", (rows,))
    if intercept is not None and intercept.any() and not objective.fit_intercept:
        raise ValueError(f"intercept_init={intercept.tolist()} needs fit_intercept=True")
    return coef, intercept


def _check_shape(objective, given, name, shape):
    """Return an array of that shape in the problem's dtype, or None; raise a ValueError that names it."""
    if given is None:
        return None
    given = check_floats(given, name, objective.dtype)
    if given.shape != shape:
        raise ValueError(
            f"{name} has shape {given.shape}; the data have {objective.n_classes} classes and {objective.n_features} "
            f"features, which needs {shape}"
        )
    return given
