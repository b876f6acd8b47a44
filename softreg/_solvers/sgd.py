"""Minibatch gradient descent over all rows: which rows are visited, at which rate, when to stop."""

import numpy as np

from softreg._solvers.learning_rates import Rates, automatic_rate
from softreg._solvers.result import Result
from softreg._solvers.update_rules import Mean, Momentum, soft_threshold

BATCH_SIZE = 256  # rows of a minibatch, where batch_size is "auto"


def sgd(objective, start, options, monitor):
    """Go over minibatches of shuffled rows, epoch by epoch, from `start`; return the result.

    A run stops once the certified gap is within tol * F. The certificate costs a full gradient, so it is asked for
    only when the mean loss of the last `n_iter_no_change` epochs moved by less than that, and at the end. The
    rate "adaptive" goes down then.

    Parameters
    ----------
    objective : Objective
    start : Start
    options : Options
    monitor : Monitor, called after each epoch

    Returns
    -------
    result : Result
        Stopped on "gap", "max_iter" or "rate".

    Raises
    ------
    FloatingPointError
        If the loss overflows, or ends far above where it began.
    """
    W, n = start.W.copy(order="K"), objective.n_rows
    result, rule = Result(W, solver="sgd", passes=1), Momentum(options.momentum, options.nesterov)
    first = objective.value_and_gradient(W)[0] + objective.penalty_l1(W)
    batch_size, name = minibatch_size(options.batch_size, n), schedule_name(options.learning_rate, "linear")
    auto = options.eta0 == "auto"
    rate, lowered = automatic_rate(objective, batch_size, rule.gain) if auto else options.eta0, 1.0
    mean = Mean(objective.zeros()) if options.average else None
    quiet, best = 0, np.inf
    for epoch in range(options.max_iter):
        monitor.begin()
        order = options.random_state.permutation(n) if options.shuffle else np.arange(n)
        rates = Rates(rate, name, epoch * n, n, options.max_iter)
        losses = one_pass(objective, W, rule, order, batch_size, rates, mean)
        result.W = mean.W if options.average else W
        result.passes += 1
        loss = losses / n + objective.penalty_l1(result.W)
        quiet = quiet + 1 if loss > best - options.tol * abs(best) else 0
        best = min(best, loss)
        entry = result.record(loss)
        last = epoch == options.max_iter - 1
        if np.isfinite(loss) and (quiet >= options.n_iter_no_change or last):
            result.passes += 1
            result.certify(objective.linearize(result.W), options.tol)
            loss = entry["loss"]
            if name == "adaptive" and quiet >= options.n_iter_no_change and not result.converged:
                rate, lowered = rate / 5, lowered / 5
                result.stopped_on = "rate" if lowered < 1e-6 else "max_iter"
            quiet = 0
        if not np.isfinite(loss) or (last and loss > 2 * first + 1):
            raise diverged(loss, epoch, rate, auto)
        if monitor(result.W, entry) or result.stopped_on != "max_iter":
            break
    return result


def minibatch_size(batch_size, n_rows):
    """Return the rows of a minibatch, at most all of them."""
    return min(BATCH_SIZE if batch_size == "auto" else batch_size, max(n_rows, 1))


def schedule_name(name, auto):
    """Return the schedule's name, `auto` where it is left to us."""
    return auto if name == "auto" else name


def one_pass(objective, W, rule, order, batch_size, rates, mean=None):
    """Step on W, in place, over batches of `order`; return the sum over rows of the objective met, without l1."""
    losses = 0.0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        value, gradient = objective.minibatch_value_and_gradient(W, batch)
        rate = rates(start)
        rule.step(W, gradient, rate)
        if objective.l1:
            threshold = objective.l1 * rule.gain * rate
            soft_threshold(objective.coef(W), objective.coef(np.broadcast_to(threshold, W.shape)))
        if mean is not None:
            mean.add(W)
        losses += value * len(batch)
    return losses


def quick_start(objective, random_state, epochs=2):
    """Return W after a few epochs from zero, for another solver to go on with."""
    W, rule, n = objective.zeros(), Momentum(0.9, True), objective.n_rows
    try:
        rate = automatic_rate(objective, BATCH_SIZE, rule.gain)
    except FloatingPointError:  # of features that Newton's method can still take
        return W
    for epoch in range(epochs):
        rates = Rates(rate, "linear", epoch * n, n, epochs)
        one_pass(objective, W, rule, random_state.permutation(n), BATCH_SIZE, rates)
    return W


def diverged(loss, epoch, rate, auto):
    """Return the error for a loss that grew without bound."""
    what = f"eta0='auto' chose {np.max(rate):.3g}, which" if auto else f"eta0={rate!r}"
    return FloatingPointError(
        f"SGD diverged: the loss is {loss:.3g} after epoch {epoch + 1}. {what} is too high for this data; "
        "choose a lower eta0 or scale the features."
    )
