"""Minibatch gradient descent over a stream of batches, of which none comes twice."""

from dataclasses import dataclass

import numpy as np

from softreg._solvers.learning_rates import Rates, column_sizes, max_curvature, rates_of, units, weights
from softreg._solvers.sgd import diverged, minibatch_size, one_pass, schedule_name
from softreg._solvers.update_rules import Mean, Momentum

EPOCH = 1000  # rows of a stream that its schedule takes for an epoch


@dataclass
class Stream:
    """What a stream of batches has to remember between them."""

    rule: Momentum
    rows: int = 0
    calls: int = 0
    totals: np.ndarray | float = 0.0  # of the columns, see `column_totals` of a design
    curvature: float = 0.0  # mean of the batches' `max_curvature`
    W: np.ndarray | None = None  # the last iterate, where its mean is what is kept
    mean: Mean | None = None

    def automatic_rate(self, objective, W, batch_size):
        """Return the rate of each column for the rows seen so far, lowered where those in hand are steeper.

        The largest eigenvalue of a mean is at most the mean of the largest eigenvalues: a mean over batches is safe
        for all of their rows, and does not remember for ever that the first of them was a single row. Where a feature
        turns out to be larger than it was, what it has learned came in steps that were too long, and is shortened as
        they should have been (Ross, Mineiro and Langford 2013, algorithm 1): W and the mean change in place.
        """
        before = column_sizes(self.totals) if self.rows else np.zeros(objective.shape[1])
        self.totals = self.totals + objective.design.column_totals(weights(objective))
        sizes = column_sizes(self.totals)
        shorter = np.minimum(units(objective, sizes) / units(objective, before), 1)
        for learned in (W, self.mean.W) if self.mean else (W,):
            learned *= np.where(before > 0, shorter, 1).astype(W.dtype)
        own = max_curvature(objective, sizes, batch_size, self.rule.gain, n_rows=np.inf)
        self.curvature += (own - self.curvature) * objective.n_rows / (self.rows + objective.n_rows)
        return rates_of(objective, sizes, max(own, self.curvature))


def learn_batch(objective, W, stream, options):
    """Go once over the rows of a batch from W; return what to predict with. W and the stream change in place."""
    n = objective.n_rows
    order = options.random_state.permutation(n) if options.shuffle else np.arange(n)
    batch_size = minibatch_size(options.batch_size, n)
    if stream.mean is not None:
        W[...] = stream.W
    eta0, auto = options.eta0, options.eta0 == "auto"
    if auto:
        eta0 = stream.automatic_rate(objective, W, batch_size)
    if options.average:
        mean = stream.mean or Mean(objective.zeros())
        stream.mean = Mean(mean.W.astype(objective.dtype, copy=False), mean.steps)
    else:
        stream.mean = None
    rates = Rates(eta0, schedule_name(options.learning_rate, "invscaling"), stream.rows, EPOCH)
    losses = one_pass(objective, W, stream.rule, order, batch_size, rates, stream.mean)
    stream.rows += n
    stream.calls += 1
    if not np.isfinite(losses):
        raise diverged(losses, stream.calls - 1, eta0, auto)
    if options.average:
        stream.W, W = W, stream.mean.W
    return W
