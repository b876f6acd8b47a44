"""Accelerated proximal gradient descent (FISTA, Beck and Teboulle 2009), for l1."""

import numpy as np

from softreg._objective import inner
from softreg._solvers.result import Result
from softreg._validation import OVERFLOW

CERTIFY_EVERY = 10  # steps
MAX_CURVATURE = 1e12  # backtracking stops here


def proximal_gradient(objective, start, options, monitor):
    """Minimise the objective from `start`, with exact zeros where l1 > 0; return the result.

    Each feature has the unit 1 / mean(x_j^2), step sizes are found by backtracking, and momentum restarts when it
    points uphill (O'Donoghue and Candes 2015).

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
    """Take a proximal step from `look` (K, p), with step sizes units / L.

    L is doubled until the quadratic model is an upper bound on F without l1. Return the new W, F without l1 there, and
    L; the passes are added to the result.
    """
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
        if value_new <= bound + 4 * np.finfo(W.dtype).eps * abs(value) or L > MAX_CURVATURE:
            return W, value_new, L
        L *= 2.0


def _feature_units(objective):
    """Return 1 / (mean(x_j^2) + 2 l2) for each feature, as an array like W; one for the intercept.

    Each is the inverse of twice a bound on the curvature; one stands for a feature of zeros without a penalty.
    """
    curvature, units = objective.design.column_mean_squares() + 2 * objective.l2, objective.empty()
    vanished = np.flatnonzero(curvature == 0)
    if len(vanished) and objective.design.has_entries(vanished):  # no features of zeros: their squares vanish
        raise FloatingPointError(OVERFLOW.format(units.dtype))
    units[...] = 1.0
    objective.coef(units)[...] = 1 / np.where(curvature > 0, curvature, 1)
    if not (np.isfinite(units).all() and units.min() >= np.finfo(units.dtype).tiny):
        raise FloatingPointError(OVERFLOW.format(units.dtype))
    return units


def soft_threshold(W, threshold):
    """Apply the proximal operator of threshold ||W||_1 in place: exact zeros below the threshold."""
    magnitude = np.abs(W)
    magnitude -= threshold
    np.maximum(magnitude, 0, out=magnitude)
    np.copysign(magnitude, W, out=W)
    W[magnitude == 0] = 0  # not -0.0
