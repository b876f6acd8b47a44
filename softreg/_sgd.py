"""Minibatch training: which rows are visited, at which rate, when to stop; for all rows at once, or for a stream."""

from dataclasses import dataclass

import numpy as np

from softreg import _optimizers
from softreg._rates import automatic_rate, column_sizes, column_totals, rate_of, steepness, units
from softreg._run import Run


def sgd(
    objective, W, optimizer, *, eta0, learning_rate, batch_size, max_iter, tol, n_iter_no_change, shuffle,
    average, random_state, monitor,
):  # fmt: skip
    """Minibatches of shuffled rows; W is changed in place.

    It stops once the certified gap is within tol * F. The certificate costs a full gradient, so it is asked for
    only when the mean loss of the last `n_iter_no_change` epochs moved by less than that, and at the end. The
    rate "adaptive" goes down then. `monitor(W, record)` may end the run after any epoch.
    """
    run = Run(W, "sgd", passes=1)
    first = objective.value_and_gradient(W)[0] + objective.penalty_l1(W)
    auto = eta0 == "auto"
    rate, lowered = automatic_rate(objective, batch_size, optimizer) if auto else eta0, 1.0
    mean = Mean(objective.zeros()) if average else None
    quiet, best = 0, np.inf
    for epoch in range(max_iter):
        monitor.begin()
        order = random_state.permutation(objective.n_rows) if shuffle else np.arange(objective.n_rows)
        rates = Rates(rate, learning_rate, epoch * objective.n_rows, objective.n_rows, max_iter)
        losses = one_pass(objective, W, optimizer, order, batch_size, rates, mean)
        run.W = mean.W if average else W
        run.passes += 1
        loss = losses / objective.n_rows + objective.penalty_l1(run.W)
        quiet = quiet + 1 if loss > best - tol * abs(best) else 0
        best = min(best, loss)
        record = run.record(loss)
        last = epoch == max_iter - 1
        if np.isfinite(loss) and (quiet >= n_iter_no_change or last):
            run.passes += 1
            P = objective.probabilities()
            run.certify(objective, *objective.value_and_gradient(run.W, P), P, tol)
            loss = record["loss"]
            if learning_rate == "adaptive" and quiet >= n_iter_no_change and not run.converged:
                rate, lowered = rate / 5, lowered / 5
                run.stopped_on = "rate" if lowered < 1e-6 else "max_iter"
            quiet = 0
        if not np.isfinite(loss) or (last and loss > 2 * first + 1):
            raise diverged(loss, epoch, rate, auto)
        if monitor(run.W, record) or run.stopped_on != "max_iter":
            break
    return run


@dataclass
class Rates:
    """The rate at each row of one pass over them: eta0 times the schedule, which counts rows, in `unit`s."""

    eta0: float | np.ndarray
    name: str
    rows: int  # seen before the pass
    unit: int
    total: int | None = None  # units that are planned

    def __call__(self, done):
        return self.eta0 * float(_optimizers.schedule(self.name, ((self.rows + done) / self.unit, self.total)))


@dataclass
class Mean:
    """The mean of all iterates (Polyak and Juditsky 1992)."""

    W: np.ndarray
    steps: int = 0

    def add(self, W):
        self.steps += 1
        self.W += (W - self.W) / self.steps


def one_pass(objective, W, optimizer, order, batch_size, rates, mean=None):
    """Steps on W over batches of `order`; the sum over its rows of the objective without l1, as it was met."""
    losses = 0.0
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        value, gradient = objective.batch_value_and_gradient(W, batch)
        rate = rates(start)
        optimizer.step(W, gradient, rate)
        if objective.l1:
            threshold = objective.l1 * optimizer.lag * rate
            _optimizers.soft_threshold(objective.coef(W), objective.coef(np.broadcast_to(threshold, W.shape)))
        if mean is not None:
            mean.add(W)
        losses += value * len(batch)
    return losses


def quick_start(objective, random_state, epochs=2, batch_size=256):
    """W after a few epochs from zero, for another solver to go on with."""
    W, optimizer, n = objective.zeros(), _optimizers.SGD(0.9, True), objective.n_rows
    try:
        rate = automatic_rate(objective, batch_size, optimizer)
    except FloatingPointError:  # of features that Newton's method can still take
        return W
    for epoch in range(epochs):
        rates = Rates(rate, "linear", epoch * n, n, epochs)
        one_pass(objective, W, optimizer, random_state.permutation(n), batch_size, rates)
    return W


@dataclass
class Stream:
    """What a stream of batches has to remember between them."""

    optimizer: object
    rows: int = 0
    calls: int = 0
    totals: np.ndarray | float = 0.0  # of the columns, see `column_totals`
    steepness: float = 0.0  # mean of the batches'
    W: np.ndarray | None = None  # the last iterate, where its mean is what is kept
    mean: Mean | None = None

    def automatic_rate(self, objective, W, batch_size):
        """The rate for the rows seen so far, lowered where those in hand are steeper.

        The largest eigenvalue of a mean is at most the mean of the largest eigenvalues: a mean over batches is safe
        for all of their rows, and does not remember for ever that the first of them was a single row. Where a feature
        turns out to be larger than it was, what it has learned came in steps that were too long, and is shortened as
        they should have been (Ross, Mineiro and Langford 2013, algorithm 1).
        """
        before = column_sizes(self.totals) if self.rows else np.zeros(objective.shape[1])
        self.totals = self.totals + column_totals(objective)
        sizes = column_sizes(self.totals)
        shorter = np.minimum(units(objective, sizes) / units(objective, before), 1)
        for learned in (W, self.mean.W) if self.mean else (W,):
            learned *= np.where(before > 0, shorter, 1).astype(W.dtype)
        own = steepness(objective, self.optimizer, sizes, batch_size, n_rows=np.inf)
        self.steepness += (own - self.steepness) * objective.n_rows / (self.rows + objective.n_rows)
        return rate_of(objective, sizes, max(own, self.steepness))


EPOCH = 1000  # rows of a stream that its schedule takes for an epoch


def stream(objective, W, state, *, eta0, learning_rate, batch_size, average, random_state):
    """One pass over rows that may never come again; returns what to predict with."""
    order = np.arange(objective.n_rows) if random_state is None else random_state.permutation(objective.n_rows)
    if state.mean is not None:
        W[...] = state.W
    if auto := eta0 == "auto":
        eta0 = state.automatic_rate(objective, W, batch_size)
    if average:
        mean = state.mean or Mean(objective.zeros())
        state.mean = Mean(mean.W.astype(objective.dtype, copy=False), mean.steps)
    else:
        state.mean = None
    rates = Rates(eta0, learning_rate, state.rows, EPOCH)
    losses = one_pass(objective, W, state.optimizer, order, batch_size, rates, state.mean)
    state.rows += objective.n_rows
    state.calls += 1
    if not np.isfinite(losses):
        raise diverged(losses, state.calls - 1, eta0, auto)
    if average:
        state.W, W = W, state.mean.W
    return W


def diverged(loss, epoch, rate, auto):
    what = f"eta0='auto' chose {np.max(rate):.3g}, which" if auto else f"eta0={rate!r}"
    return FloatingPointError(
        f"SGD diverged: the loss is {loss:.3g} after epoch {epoch + 1}. {what} is too high for this data; "
        "choose a lower eta0 or scale the features."
    )
