"""Accelerated proximal gradient descent (FISTA, Beck and Teboulle 2009), for l1."""

import numpy as np

from softreg._objective import inner
from softreg._solvers.result import Result
from softreg._solvers.update_rules import soft_threshold
from softreg._validation import OVERFLOW

CERTIFY_EVERY = 10  # steps
STEEPEST = 1e12  # backtracking goes no further


def proximal_gradient(objective, start, options, monitor):
    """Minimise the objective from `start`, with exact zeros where l1 > 0; return the result.

    Features are measured in units of their own curvature, steps are found by backtracking, and momentum restarts
    when it points uphill (O'Donoghue and Candes 2015).

    Parameters
    ----------
    objective : Objective
    start : Start
    options : Options
    monitor : Monitor, called after each step

    Returns
    -------
    result : Result
        Stopped on "gap" or "max_iter".
    """
    W = start.W
    result = Result(W, solver="proximal_gradient")
    units = _feature_units(objective)
    look, previous, momentum, L = W.copy(order="K"), W, 1.0, 1.0
    for iteration in range(options.max_iter):
        monitor.begin()
        W, value, L = _proximal_step(objective, look, units, L, result)
        uphill = inner((look - W) / (units / units.dtype.type(L)), W - previous) > 0
        ahead = 1.0 if uphill else 0.5 * (1 + np.sqrt(1 + 4 * momentum * momentum))
        share = 0.0 if uphill else (momentum - 1) / ahead
        look = W + W.dtype.type(share) * (W - previous)
        previous, momentum, L = W, ahead, 0.9 * L
        result.W = W
        entry = result.record(value + objective.penalty_l1(W))
        if certified := (iteration + 1) % CERTIFY_EVERY == 0 or iteration == options.max_iter - 1:
            result.certify(objective.linearize(W), options.tol)
        if monitor(W, entry) or result.converged:
            if not certified:
                result.certify(objective.linearize(W), options.tol)
            break
    return result


def _proximal_step(objective, look, units, L, result):
    """Return the point after a proximal step from `look`, F without l1 there, and the L >= that it took."""
    value, gradient = objective.value_and_gradient(look)
    result.passes += 1
    while True:
        rate = units / units.dtype.type(L)
        W = look - rate * gradient
        soft_threshold(objective.coef(W), objective.l1 * objective.coef(rate))
        move = W - look
        value_new = objective.value(W)
        result.passes += 1
        bound = value + inner(gradient, move) + 0.5 * inner(move / rate, move)
        if value_new <= bound + 4 * np.finfo(W.dtype).eps * abs(value) or L > STEEPEST:
            return W, value_new, L
        L *= 2.0


def _feature_units(objective):
    """Return 1 / (mean(x_j^2) + 2 l2) for each feature, as an array like W; one for the intercept.

    Each is the inverse of twice a bound on the curvature; one stands for a feature of zeros without a penalty.
    """
    squares, _ = objective.design.column_totals(objective.shares().astype(np.float64))
    curvature, units = squares + 2 * objective.l2, objective.empty()
    units[...] = 1.0
    objective.coef(units)[...] = objective.coef(1 / np.where(curvature > 0, curvature, 1)[None])
    if not (np.isfinite(units).all() and units.min() >= np.finfo(units.dtype).tiny):
        raise FloatingPointError(OVERFLOW.format(units.dtype))
    return units
