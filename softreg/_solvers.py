"""Accelerated proximal gradient descent, for l1."""

import numpy as np

from softreg import _optimizers
from softreg._objective import inner
from softreg._run import Run
from softreg._validation import OVERFLOW

STRIDE = 10  # iterations of `proximal_gradient` that a record stands for


def proximal_gradient(objective, W, *, max_iter, tol, monitor):
    """Accelerated proximal gradient (FISTA, Beck and Teboulle 2009), with exact zeros where l1 > 0.

    Features are measured in units of their own curvature, steps are found by backtracking, and momentum restarts
    when it points uphill (O'Donoghue and Candes 2015). An iteration here is one step; it stops on the proven gap.
    """
    run = Run(W, "proximal_gradient")
    units, P = feature_units(objective), objective.probabilities()
    look, previous, momentum, L = W.copy(order="K"), W, 1.0, 1.0
    for iteration in range(max_iter):
        monitor.begin()
        value, gradient = objective.value_and_gradient(look)
        run.passes += 1
        while True:
            rate = units / units.dtype.type(L)
            W = look - rate * gradient
            _optimizers.soft_threshold(objective.coef(W), objective.l1 * objective.coef(rate))
            move = W - look
            value_new, gradient_new = objective.value_and_gradient(W, P)
            run.passes += 1
            bound = value + inner(gradient, move) + 0.5 * inner(move / rate, move)
            if value_new <= bound + 4 * np.finfo(W.dtype).eps * abs(value) or L > 1e12:
                break
            L *= 2.0
        uphill = inner((look - W) / rate, W - previous) > 0
        ahead = 1.0 if uphill else 0.5 * (1 + np.sqrt(1 + 4 * momentum * momentum))
        share = 0.0 if uphill else (momentum - 1) / ahead
        look = W + W.dtype.type(share) * (W - previous)
        previous, momentum, L = W, ahead, 0.9 * L
        run.W = W
        if (iteration + 1) % STRIDE == 0 or iteration == max_iter - 1:
            record = run.record(value_new)
            run.certify(objective, value_new, gradient_new, P, tol)
            if monitor(W, record) or run.converged:
                break
    return run


def feature_units(objective):
    """1 / mean(x_j^2) for each feature, as an array like W; one for the intercept."""
    X = objective.X if objective.rows is None else objective.X[objective.rows]
    if objective.sparse:
        mean = np.asarray(X.multiply(X).mean(axis=0)).ravel()
    else:
        mean = np.einsum("ij,ij->j", X, X) / len(X)
    units = objective.empty()
    units[...] = 1.0
    objective.coef(units)[...] = 1 / np.where(mean > 0, mean, 1)
    if not (np.isfinite(units).all() and units.min() >= np.finfo(units.dtype).tiny):
        raise FloatingPointError(OVERFLOW.format(units.dtype))
    return units
