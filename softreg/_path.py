"""The path of solutions from a strong penalty to a weak one, and the grid of penalties along it."""

import numbers
import warnings
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state

from softreg._callbacks import Monitor
from softreg._coefficients import penalties
from softreg._estimator import SoftmaxRegression
from softreg._solvers import SOLVERS, Start, check_solver, solve, solver_names
from softreg._threads import single_threaded_blas
from softreg._typing import Floats, MatrixLike
from softreg._validation import check_data, check_finite, check_two_classes, finite_or_error

FARTHEST = 2.0  # of a prediction along a path, in steps from the alpha before the last to the last
L2_SPAN, L1_SPAN = 1e-8, 1e-4  # the weakest penalty of a grid, as a share of the strongest


def softmax_path(
    X: MatrixLike, y: ArrayLike, *, alphas: int | ArrayLike = 10, l1_ratio: float = 0.0,
    sample_weight: ArrayLike | None = None, **params: Any,
) -> tuple[Floats, Floats, Floats, NDArray[np.integer[Any]]]:  # fmt: skip
    """Fit softmax regression for many penalties, from strong to weak, each fit starting from the last.

    Parameters
    ----------
    X : array or sparse matrix of shape (n, d)
        Features, as `SoftmaxRegression.fit` takes them.
    y : array of shape (n,) or (n, K)
        Labels, or target probabilities.
    alphas : int or array of floats, default=10
        Strengths of the penalty, or their number on a grid that the data give, see `SoftmaxRegressionCV`.
    l1_ratio : float, default=0.0
        Share of the L1 penalty, in [0, 1].
    sample_weight : array of shape (n,), optional
        Weights, not negative.
    **params : dict
        Other parameters of `SoftmaxRegression`, but not `alpha`, `warm_start` or `early_stopping`.

    Returns
    -------
    alphas : ndarray of shape (n_alphas,)
        From the largest to the smallest.
    coefs : ndarray of shape (n_alphas, n_classes, n_features), or (n_alphas, 1, n_features) for two classes
        The `coef_` of each fit.
    intercepts : ndarray of shape (n_alphas, n_classes), or (n_alphas, 1)
        The `intercept_` of each fit.
    n_iters : ndarray of shape (n_alphas,)
        The iterations of each fit.

    Raises
    ------
    ValueError
        If the data or a parameter cannot be used.
    TypeError
        If a parameter is given that has no place in a path.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softreg import softmax_path
    >>> X, y = load_iris(return_X_y=True)
    >>> alphas, coefs, intercepts, n_iters = softmax_path(X, y, alphas=[0.01, 0.1, 1.0])
    >>> alphas.tolist(), coefs.shape
    ([1.0, 0.1, 0.01], (3, 3, 4))
    """
    for name in {"alpha", "warm_start", "early_stopping"} & params.keys():
        raise TypeError(f"softmax_path takes no {name}: its fits differ in alpha, and each starts from the last")
    model = SoftmaxRegression(l1_ratio=l1_ratio, **params)
    model._validate_params()
    X, codes, targets, classes = check_data(model, X, y)
    objective = model._objective(X, codes, targets, classes, sample_weight)
    check_two_classes(objective, classes)
    alphas = alpha_grid(alphas, [l1_ratio], objective)
    check_path(model, l1_ratio, alphas, objective)
    coefs, intercepts, n_iters, converged, _ = fit_path(model, objective, classes, alphas, l1_ratio)
    warn_of_path(model.tol, np.array(converged), stacklevel=3)
    return alphas, np.array(coefs), np.array(intercepts), np.array(n_iters)


def check_path(model, l1_ratio, alphas, objective):
    """Raise a ValueError if the model's solver cannot fit the weakest penalty of a path."""
    weakest = objective.with_penalties(*penalties(alphas[-1], l1_ratio, objective.n_classes))
    check_solver(model.solver, l1_ratio, weakest)


def fit_path(model, objective, classes, alphas, l1_ratio, score=lambda fitted: None):
    """Fit the penalties in turn, each fit starting from the last.

    Parameters
    ----------
    model : SoftmaxRegression
        Gives all parameters but `alpha` and `l1_ratio`; not changed.
    objective : Objective over the rows to train on; its penalties are not used
    classes : array of shape (K,)
    alphas : array, from strong to weak
    l1_ratio : float
    score : function of an estimator fitted to one alpha, for the scores

    Returns
    -------
    coefs, intercepts, n_iters, converged, scores : tuples with an entry for each alpha
    """
    start, fits, solved = Start(objective.zeros()), [], []
    row = SOLVERS[solver_names(model.solver, l1_ratio > 0)[-1]]
    for alpha in alphas.tolist():
        penalised = objective.with_penalties(*penalties(alpha, l1_ratio, len(classes)))
        with single_threaded_blas(), finite_or_error(objective):
            if len(solved) == 2:
                start = replace(start, W=_predicted(penalised, alpha, solved))
            options = model._options(check_random_state(model.random_state))
            result = solve(model.solver, penalised, start, options, Monitor(model, penalised, row))
            check_finite(result.W, result.loss)
        start = Start(result.W, preconditioner=result.preconditioner)
        solved = [*solved[-1:], (alpha, result.W)]  # the last two
        fitted = copy(model).set_params(alpha=alpha, l1_ratio=l1_ratio)
        fitted._set_fitted_attributes(penalised, result.W, classes)
        fits.append((fitted.coef_, fitted.intercept_, len(result.history), result.converged, score(fitted)))
    return tuple(zip(*fits, strict=True))


def _predicted(objective, alpha, solved):
    """Return where the path leads at alpha, if the objective is lower there than where it is; else that.

    `solved` holds the last two alphas and their W, arrays (K, p). W changes almost linearly in log(alpha), so the last
    change is continued, at most `FARTHEST` times as far.
    """
    (first, before), (second, W) = solved
    if not 0 < alpha < second < first:
        return W
    predicted = W + W.dtype.type(min(np.log(second / alpha) / np.log(first / second), FARTHEST)) * (W - before)
    value, here = (objective.value(V) + objective.penalty_l1(V) for V in (predicted, W))
    return predicted if value < here else W


def warn_of_path(tol, converged, stacklevel):
    """Give a ConvergenceWarning if not all fits converged; converged is a bool array of any shape."""
    if not converged.all():
        warnings.warn(
            f"{np.sum(~converged)} of {converged.size} fits along the path stopped before they converged to tol={tol} "
            "of the null model's loss. Increase max_iter, standardise the features, leave out the smallest alphas, or "
            "raise tol.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


# --- the grid -----------------------------------------------------------------------------------------------------


def alpha_grid(alphas, l1_ratios, objective):
    """Return the alphas as an array, from the largest to the smallest.

    A number of them stands for as many between the largest and the smallest that the data of the objective give.
    """
    if not isinstance(alphas, numbers.Integral):
        return np.sort(check_numbers(alphas, "alphas", np.inf))[::-1]
    if alphas < 1:
        raise ValueError(f"alphas={alphas} must be at least 1, or an array of penalties")
    with single_threaded_blas(), finite_or_error(objective):
        largest = np.array([_alpha_max(objective, l1_ratio) for l1_ratio in l1_ratios])
        check_finite(largest.astype(objective.dtype), 0)
    span = np.where(np.asarray(l1_ratios) > 0, L1_SPAN, L2_SPAN)
    return np.geomspace(largest.max(), (largest * span).min(), alphas)


def _alpha_max(objective, l1_ratio):
    """Return the largest alpha of a grid.

    For l1: the smallest alpha at which all coefficients are zero, that is the largest entry of the gradient there over
    l1_ratio. For l2: half of the features' total variance, which bounds the curvature of the loss (Böhning 1992).
    """
    M = objective.class_moments()
    d, centred = objective.n_features, objective.fit_intercept
    mean = M[:, :d].sum(axis=0, dtype=np.float64)
    if l1_ratio > 0:
        shares = M[:, d:] if centred else 1 / objective.n_classes
        return float(np.abs(shares * mean - M[:, :d]).max() / l1_ratio) or 1.0
    squares = np.average(objective.design.row_squared_norms(), weights=objective.sample_weight)
    # rounding may cancel all of a variance that is far smaller than the squared mean
    return 0.5 * float(max(squares - centred * mean @ mean, 1e-6 * squares)) or 1.0


def check_numbers(values, name, largest):
    """Return a list of numbers in [0, largest] as an array; name is that of the parameter, for the error."""
    numbers = check_array(values, dtype=np.float64, ensure_2d=False, input_name=name)
    if numbers.ndim != 1 or numbers.min() < 0 or numbers.max() > largest:
        raise ValueError(f"{name} must be a list of numbers from 0 to {largest}; got {values!r}")
    return numbers
