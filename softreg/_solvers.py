"""The training loops: which rows are visited, when to stop. Formulas are the objective's, steps the optimiser's."""

import time
from dataclasses import dataclass, field

import numpy as np

from softreg import _optimizers
from softreg._objective import inner


@dataclass
class Run:
    """What a solver hands back, and the diary it keeps on the way."""

    W: np.ndarray
    converged: bool = False
    n_iter: int = 0
    gap: float = np.inf
    records: list = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def record(self, **known):
        self.n_iter += 1
        self.records.append({"time": time.perf_counter() - self.started, **known})
        return self.records[-1]


def sgd(
    objective, W, optimizer, *, eta0, learning_rate, batch_size, max_iter, tol, n_iter_no_change, shuffle,
    average, random_state, monitor,
):  # fmt: skip
    """Minibatch SGD over shuffled rows; W is changed in place.

    It stops once the certified gap is within tol * F. The certificate costs a full gradient, so it is asked for
    only when the mean loss of the last `n_iter_no_change` epochs moved by less than that, and at the end.
    `monitor(W, record)` may end the run after any epoch.
    """
    run = Run(W)
    first = objective.value_and_gradient(W)[0] + objective.penalty_l1(W)
    auto = eta0 == "auto"
    rate = automatic_rate(objective, batch_size) if auto else eta0
    mean = np.zeros_like(W) if average else None
    passes, quiet, best, steps = 1, 0, np.inf, 0
    for epoch in range(max_iter):
        order = random_state.permutation(objective.n_rows) if shuffle else np.arange(objective.n_rows)
        losses = 0.0
        for batch, value in batches(objective, W, optimizer, order, batch_size, rate, learning_rate, epoch, max_iter):
            losses += value * len(batch)
            steps += 1
            if average:
                mean += (W - mean) / steps
        passes += 1
        result = mean if average else W
        loss = losses / objective.n_rows + objective.penalty_l1(W)
        quiet = quiet + 1 if loss > best - tol * abs(best) else 0
        best = min(best, loss)
        record = run.record(loss=loss, gap=np.nan, passes=passes)
        last = epoch == max_iter - 1
        if np.isfinite(loss) and (quiet >= n_iter_no_change or last):
            quiet = 0
            passes += 1
            value, gradient = objective.value_and_gradient(result)
            loss = value + objective.penalty_l1(result)
            run.gap = objective.optimality_gap(result, value, gradient)
            record.update(loss=loss, gap=run.gap, passes=passes)
            run.converged = run.gap <= tol * abs(loss)
        if not np.isfinite(loss) or (last and loss > first):
            raise diverged(loss, epoch, rate, auto)
        if monitor(result, record) or run.converged:
            break
    run.W = mean if average else W
    return run


def batches(objective, W, optimizer, order, batch_size, eta0, learning_rate, epoch, max_iter):
    """One epoch of steps on W; yields each batch and the objective there without l1, before the step."""
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rate = eta0 * _optimizers.schedule(learning_rate, (epoch + start / len(order), max_iter))
        value, gradient = objective.batch_value_and_gradient(W, batch)
        seen = optimizer.step(W, gradient, rate)
        if objective.l1:
            _optimizers.soft_threshold(objective.coef(W), objective.l1 * seen)
        yield batch, value


def stream(objective, W, optimizer, *, rate, epochs, learning_rate, max_iter, batch_size, random_state):
    """One epoch of SGD on rows that may never come again, `epochs` after the start."""
    run = Run(W)
    order = np.arange(objective.n_rows) if random_state is None else random_state.permutation(objective.n_rows)
    losses = 0.0
    for batch, value in batches(objective, W, optimizer, order, batch_size, rate, learning_rate, epochs, max_iter):
        losses += value * len(batch)
    if not np.isfinite(losses):
        raise diverged(losses, int(epochs), rate, False)
    return run


def diverged(loss, epoch, rate, auto):
    what = f"eta0='auto' chose {rate:.3g}, which" if auto else f"eta0={rate!r}"
    return FloatingPointError(
        f"SGD diverged: the loss is {loss:.3g} after epoch {epoch + 1}. {what} is too high for this data; "
        "choose a lower eta0 or scale the features."
    )


def automatic_rate(objective, batch_size, sample_size=4096, iterations=12):
    """1 / L for minibatches: the largest rate at which gradient descent on their mean cannot overshoot.

    The Hessian of one row is at most (1/2) [x 1][x 1]^T in every direction of the classes (Böhning 1992), so
    L <= 1/2 lambda_max for the whole, 1/2 max ||[x 1]||^2 for a single row, and for batches the mean of both
    that Gower et al. (2019) derive. lambda_max comes from power iterations at uniform probabilities.
    """
    rows = np.unique(np.linspace(0, objective.n_rows - 1, sample_size).astype(np.intp))
    sample = objective.sample(rows if objective.rows is None else objective.rows[rows])
    K = objective.n_classes
    P = np.full((sample.n_rows, K), 1.0 / K, objective.dtype)
    V = objective.zeros()
    V[0], V[1:] = 1, -1 / max(K - 1, 1)
    largest = 0.0
    for _ in range(iterations):
        V /= np.sqrt(inner(V, V)) or 1.0
        V_next = sample.hessian_product(P, V)
        largest = inner(V, V_next)
        V = V_next
    X = objective.X[sample.rows]
    norms = X.multiply(X).sum(axis=1) if objective.sparse else np.einsum("ij,ij->i", X, X)
    mean, single = 0.5 * K * largest, 0.5 * (float(norms.max()) + objective.fit_intercept)
    n = max(objective.n_rows, 2)
    share = (n - min(batch_size, n)) / (min(batch_size, n) * (n - 1))
    return 1.0 / max((1 - share) * mean + share * single + objective.l2, np.finfo(objective.dtype).tiny)
