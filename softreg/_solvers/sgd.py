"""Minibatch steps with curvature over all rows: which rows are visited, and when to stop."""

import numpy as np

from softreg._inner_products import squared_norm
from softreg._solvers.result import Result
from softreg._solvers.streaming import new_stream


def sgd(objective, start, options, monitor):
    """Go over the rows in random order, epoch by epoch, from `start`; return the result.

    The rows are a stream to the optimisers of `streaming`, which are told the planned number of epochs. A run stops
    once the certified gap is within tol * F_null. The certificate costs a full gradient, so it is asked for only when
    the mean loss of the last `n_iter_no_change` epochs moved by less than that, and at the end.

    Parameters
    ----------
    objective : Objective
    start : Start
    options : Options
    monitor : Monitor, called after each epoch

    Returns
    -------
    result : Result
        Stopped on "gap" or "max_iter".
    """
    n, epochs = objective.n_rows, options.max_iter
    stream, result = _begin(objective, start, options), Result(start.W, objective.null_loss, options.tol, solver="sgd")
    quiet, best = 0, np.inf
    for epoch in range(epochs):
        monitor.begin()
        stream.begin_epoch(epoch, epochs)
        losses, _ = stream.learn(objective, options.random_state.permutation(n) if options.shuffle else np.arange(n))
        last = epoch == epochs - 1
        stream.end_epoch()
        if last:
            stream.finish()
        previous, result.W = result.W, stream.coefficients(objective.design)
        result.passes += 1
        if last:
            result.W = _shortened(objective, previous, result)
        loss = losses / objective.total_weight + _penalty(objective, result.W)
        quiet = quiet + 1 if loss > best - result.target else 0
        best = min(best, loss)
        entry = result.record(loss)
        if quiet >= options.n_iter_no_change or last:
            result.passes += 1
            result.certify(objective.linearize(result.W))
            quiet = 0
        if monitor(result.W, entry) or result.converged:
            break
    return result


def quick_start(objective, random_state):
    """Return W after a pass over half of the rows from zero, for another solver to go on with."""
    n_rows = objective.n_rows // 2
    stream = new_stream(objective, precondition=True, planned_rows=n_rows)
    stream.learn(objective, random_state.permutation(objective.n_rows)[:n_rows])
    stream.finish()
    return stream.coefficients(objective.design)


def _shortened(objective, previous, result):
    """Return the W of the last epoch, or the minimum of F on the way to it from the previous one, if F grew.

    No later epoch looks at the last step, so this does. With l1 the W of the last epoch stays: a mixture of two W
    would lose its zeros.
    """
    if objective.l1:
        return result.W
    result.passes += 1
    if objective.value(result.W) <= objective.value(previous):
        return result.W
    step = result.W - previous
    result.passes += 1
    return previous + result.W.dtype.type(objective.line_minimum(previous, step, 1.0)) * step


def _begin(objective, start, options):
    """Return the stream at the start."""
    stream = new_stream(objective, options.precondition, planned_rows=options.max_iter * objective.n_rows)
    if start.W.any():
        stream.start_from(start.W, objective.n_rows, objective)
    return stream


def _penalty(objective, W):
    return 0.5 * objective.l2 * squared_norm(objective.coef(W)) + objective.penalty_l1(W)
