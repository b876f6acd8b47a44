"""The other deterministic solvers: scipy's L-BFGS, and proximal gradients for l1."""

import numpy as np
from scipy.optimize import minimize

from softreg import _optimizers
from softreg._objective import inner
from softreg._run import Run


def lbfgs(objective, W, *, max_iter, tol, monitor):
    """scipy's L-BFGS-B on the compiled objective; the proven gap decides when to stop."""
    run = Run(W)
    order = "F" if objective.sparse else "C"

    def unpack(x):
        return np.asarray(x.reshape(objective.shape, order=order), objective.dtype, order=order)

    last = {}

    def evaluate(x):
        monitor.begin()
        run.passes += 1
        value, gradient = objective.value_and_gradient(unpack(x))
        last[x.tobytes()] = value, gradient
        while len(last) > 2:
            del last[next(iter(last))]
        return value, gradient.ravel(order=order).astype(np.float64)

    def after(x):
        run.W = unpack(x)
        key = x.tobytes()
        value, gradient = last[key] if key in last else objective.value_and_gradient(run.W)
        record = run.record(value)
        run.certify(objective, value, gradient, tol)
        if monitor(run.W, record) or run.converged:
            raise StopIteration

    options = {"maxiter": max_iter, "maxfun": 20 * max_iter, "ftol": 0.0, "gtol": 0.0, "maxcor": 20}
    x = W.ravel(order=order).astype(np.float64)
    minimize(evaluate, x, jac=True, method="L-BFGS-B", callback=after, options=options)
    if not run.converged and len(run.records) < max_iter:
        run.stopped_on = "line_search"
    if not run.records:
        run.record(objective.value_and_gradient(W)[0])
        run.certify(objective, *objective.value_and_gradient(W), tol)
    return run


CERTIFY_EVERY = 10  # iterations of `proximal`


def proximal(objective, W, *, max_iter, tol, monitor):
    """Accelerated proximal gradient (FISTA, Beck and Teboulle 2009) for l1 > 0, with exact zeros.

    Features are measured in units of their own curvature, steps are found by backtracking, and momentum restarts
    when it points uphill (O'Donoghue and Candes 2015). An iteration here is one step; it stops on the proven gap.
    """
    run = Run(W)
    units = feature_units(objective)
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
            value_new, gradient_new = objective.value_and_gradient(W)
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
        record = run.record(value_new + objective.penalty_l1(W))
        if certified := (iteration + 1) % CERTIFY_EVERY == 0 or iteration == max_iter - 1:
            run.certify(objective, value_new, gradient_new, tol)
        if monitor(W, record) or run.converged:
            if not certified:
                run.certify(objective, value_new, gradient_new, tol)
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
    return units
