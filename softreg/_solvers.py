"""The training loops: which rows are visited, when to stop. Formulas are the objective's, steps the optimiser's."""

import time
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import minimize

from softreg import _optimizers
from softreg._objective import inner
from softreg._preconditioners import Blocks, ScaledCorrelation, preconditioner
from softreg._rates import automatic_rate, column_sizes, column_totals, rate_of, steepness, units


@dataclass
class Run:
    """What a solver hands back, and the diary it keeps on the way."""

    W: np.ndarray
    stopped_on: str = "max_iter"
    gap: float = np.inf  # proven bound on F - min F
    estimate: float = np.nan  # the same by the Newton decrement, not proven
    passes: float = 0.0  # over the data, for a gradient or a Hessian product
    M: object = None  # the preconditioner at the end, for the next fit of a path
    records: list = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def converged(self):
        return self.stopped_on in ("gap", "estimate")

    def record(self, loss):
        seconds = time.perf_counter() - self.started
        entry = {"loss": loss, "gap": np.nan, "gap_estimate": np.nan, "passes": self.passes, "time": seconds}
        self.records.append(entry)
        return entry

    def certify(self, objective, value, gradient, tol):
        """Compute the proven gap, and note it in the last record; whether it is within tol."""
        loss = value + objective.penalty_l1(self.W)
        self.gap = objective.optimality_gap(self.W, value, gradient)
        self.records[-1].update(loss=loss, gap=self.gap, passes=self.passes)
        if self.gap <= tol * abs(loss):
            self.stopped_on = "gap"
        return self.converged


def sgd(
    objective, W, optimizer, *, eta0, learning_rate, batch_size, max_iter, tol, n_iter_no_change, shuffle,
    average, random_state, monitor,
):  # fmt: skip
    """Minibatches of shuffled rows, for any of the optimisers; W is changed in place.

    It stops once the certified gap is within tol * F. The certificate costs a full gradient, so it is asked for
    only when the mean loss of the last `n_iter_no_change` epochs moved by less than that, and at the end. The
    rate "adaptive" goes down then. `monitor(W, record)` may end the run after any epoch.
    """
    run = Run(W, passes=1)
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
            run.certify(objective, *objective.value_and_gradient(run.W), tol)
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
        seen = optimizer.step(W, gradient, rates(start))
        if objective.l1:
            threshold = objective.l1 * optimizer.lag * seen
            _optimizers.soft_threshold(objective.coef(W), objective.coef(np.broadcast_to(threshold, W.shape)))
        if mean is not None:
            mean.add(W)
        losses += value * len(batch)
    return losses


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
        shorter = np.minimum(units(objective, self.optimizer, sizes) / units(objective, self.optimizer, before), 1)
        for learned in (W, self.mean.W) if self.mean else (W,):
            learned *= np.where(before > 0, shorter, 1).astype(W.dtype)
        own = steepness(objective, self.optimizer, sizes, batch_size, n_rows=np.inf)
        self.steepness += (own - self.steepness) * objective.n_rows / (self.rows + objective.n_rows)
        return rate_of(objective, self.optimizer, sizes, max(own, self.steepness))


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


# --- Newton's method -------------------------------------------------------------------------------------------------

SAMPLE_WORK = 5e7  # n K p from which a Hessian over a sample of the rows pays: below, a pass takes milliseconds

LONG_SOLVE = 8  # products after which blocks that cost some 30 products to build are worth it


def newton(objective, W, *, max_iter, tol, random_state, monitor, sampled=True, M=None):
    """Newton-CG: full gradients, Hessian products over a growing sample of the rows, preconditioned, in a trust region.

    A step minimises the quadratic model by conjugate gradients, stopped at the trust region's boundary (Steihaug
    1983); where the objective does not follow, it is shortened along the same direction. The sample grows when
    the steps stop paying. The run ends on a proven gap of tol * F, or on an estimate: the Newton decrement over
    all rows, see `confirm`.
    """
    if objective.l2:  # the optimum sums to zero over the classes, and preconditioners leave that sum as it is
        objective.coef(W)[...] -= objective.coef(W).mean(axis=0)
    run = Run(W)
    n, noise = objective.n_rows, np.finfo(objective.dtype).eps
    order = random_state.permutation(n)
    at = Point.of(objective, W, run)
    if M is None:
        M = preconditioner(objective, order)
        M.refresh(at.P)
    sampled = sampled and not objective.sparse and n * objective.n_classes * objective.shape[1] > SAMPLE_WORK
    part = Part(objective, order, max(n // 16, 10 * objective.shape[1]) if sampled else n)
    norm = dual_norm(M, at.gradient)
    radius, accuracy, since_refresh = 1.5 * norm, 0.3, 0
    wary = Wariness(objective)
    for _ in range(max_iter):
        monitor.begin()
        solve = trust_region_cg(part.objective, part.of(wary.of(at.P)), at.gradient, M, radius, accuracy)
        run.passes += solve.products * part.share
        since_refresh += solve.products * part.share
        new, shortened = search(objective, at, solve.step, noise, run, wary)
        decrease = at.value - new.value
        if shortened < 1:
            radius = max(shortened, 0.3) * min(radius, solve.length)
        elif solve.cut and decrease > 0.75 * solve.decrease:
            radius *= 2.5
        elif decrease < 0.25 * solve.decrease:
            radius = 0.5 * min(radius, solve.length)
        better = decrease > 0
        at = new if better else at
        run.W = at.W
        record = run.record(at.value)
        norm, before = dual_norm(M, at.gradient), norm
        # as exact as the last model was: what the gradient became and what it should have (Eisenstat and Walker 1996)
        missed = abs(dual_norm(M, new.gradient) - solve.residual) / before if before > 0 else 0.0
        accuracy = min(0.3, max(1e-3 if M.whole else 0.05, missed))
        if better and not shortened < 1 and decrease >= 0.5 * solve.decrease:
            # before the step; by the preconditioner; by what the solve left and the model missed
            left = solve.decrement - solve.decrease + abs(decrease - solve.decrease)
            run.estimate = min(solve.decrement, 0.5 * norm**2 / solve.smallest, left)
            if run.estimate <= tol * abs(at.value):
                at = confirm(objective, at, M, tol, run)
                part = Part(objective, order, n)
                if run.estimate <= tol * abs(at.value):
                    run.stopped_on = "estimate"
        if objective.l2 and (run.converged or solve.decrease <= 10 * tol * abs(at.value)):
            run.certify(objective, at.value, at.gradient, tol)
        record["loss"] = at.value
        if monitor(at.W, record) or run.converged:
            break
        if not better and part.share == 1 and solve.decrease <= noise * abs(at.value):
            at = confirm(objective, at, M, tol, run)
            run.stopped_on = "estimate" if run.estimate <= tol * abs(at.value) else "precision"
            run.certify(objective, at.value, at.gradient, tol)
            break
        # the sample does not know what the objective does, or steps on it do not pay
        if decrease < 0.25 * solve.decrease or shortened < 1 or (not solve.cut and norm > 0.8 * before):
            part = part.doubled()
        if isinstance(M, ScaledCorrelation) and solve.products > LONG_SOLVE and Blocks.affordable(objective):
            M, since_refresh = Blocks(M, order), np.inf
        if since_refresh >= M.patience and (better or since_refresh == np.inf):
            M.refresh(wary.of(at.P))
            since_refresh = 0
            measured, norm = norm, dual_norm(M, at.gradient)
            radius *= measured / norm if norm > 0 else 1.0  # the same region in the new metric
    if not np.isfinite(run.gap):
        run.certify(objective, at.value, at.gradient, tol)
    run.M = M
    return run


@dataclass
class Point:
    """W with what the objective says there."""

    W: np.ndarray
    value: float
    gradient: np.ndarray
    P: np.ndarray

    @classmethod
    def of(cls, objective, W, run):
        P = objective.probabilities()
        run.passes += 1
        return cls(W, *objective.value_and_gradient(W, P), P)


class Part:
    """The objective over the first `size` rows in a given order."""

    def __init__(self, objective, order, size):
        self.whole, self.order, self.share = objective, order, min(1, size / objective.n_rows)
        self.chosen, self.objective = None, objective
        if self.share < 1:
            self.chosen = np.sort(order[:size])
            self.objective = objective.sample(self.chosen if objective.rows is None else objective.rows[self.chosen])

    def of(self, P):
        return P if self.chosen is None else P[self.chosen]

    def doubled(self):
        size = min(2 * self.objective.n_rows, self.whole.n_rows)
        return self if self.share == 1 else Part(self.whole, self.order, size)


class Wariness:
    """Rows that a step threw over, and that the next models hold back.

    A row whose class is certain has no curvature, and a model without it lets its logits go anywhere. After a step
    that overshot, rows whose probabilities it turned over count in the Hessian as if they were less certain.
    """

    def __init__(self, objective):
        self.share = np.zeros(objective.n_rows, objective.dtype)

    def of(self, P):
        if not self.share.any():
            return P
        return P + self.share[:, None] * (P.dtype.type(1 / P.shape[1]) - P)

    def after(self, P, trial, overshot):
        self.share *= self.share.dtype.type(0.5)
        self.share[self.share < 0.01] = 0
        if overshot:
            self.share[np.abs(trial - P).sum(axis=1) > 1] = 0.1


def search(objective, at, step, noise, run, wary):
    """W + t step where the objective goes down enough for it, and t: 1, or the minimum along the step if 1 overshoots.

    Along a line the logits are Z + t dZ: once both are known, trials of t cost a softmax and no pass over X.
    """
    slope, t = inner(at.gradient, step), 1.0
    new = Point.of(objective, at.W + step, run)
    wary.after(at.P, new.P, new.value > at.value + 0.2 * slope)
    for _ in range(8):
        if new.value <= at.value + 0.2 * t * slope or slope >= -noise * abs(at.value):
            break
        t = objective.line_minimum(at.W, step, 0.9 * t)
        run.passes += 1
        new = Point.of(objective, at.W + at.W.dtype.type(t) * step, run)
    return new, t


def confirm(objective, at, M, tol, run):
    """Estimate the gap at a point, and go where the solve that it took leads.

    The gap of the quadratic model there is 1/2 g^T H^-1 g. It comes from a solve that goes on until what it found
    and what it may have missed are together within half of tol * F, or 1 % of the whole: at least 20 products, as
    directions that matter late show late, or 5 where M is the whole Hessian but for rounding. It is doubled: the
    decrement is half of the gap where the loss falls off exponentially, as it does for nearly separable classes.
    """
    M.refresh(at.P)
    least = 5 if M.whole else 20
    enough = 0.5 * tol * abs(at.value)
    solve = trust_region_cg(objective, at.P, at.gradient, M, np.inf, 0.1, 300, min_products=least, enough=enough)
    run.passes += solve.products
    # where the loss is that small, so are the curvatures p (1 - p): 1 % of them is rounding
    unknown = solve.cut or abs(at.value) < 100 * np.finfo(objective.dtype).eps
    run.estimate = np.inf if unknown else 2 * solve.decrement
    run.records[-1]["gap_estimate"] = run.estimate
    new = Point.of(objective, at.W + solve.step, run)
    at = new if new.value < at.value else at
    run.W = at.W
    return at


def dual_norm(M, gradient):
    return np.sqrt(max(inner(gradient, M.solve(gradient)), 0.0))


@dataclass
class Solve:
    """What conjugate gradients found."""

    step: np.ndarray
    decrease: float  # of the quadratic model
    decrement: float  # estimate of 1/2 g^T H^-1 g, the gap of the model: the decrease and what the solve left of it
    length: float  # of the step in M's norm
    residual: float  # norm in that of M^-1
    smallest: float  # eigenvalue of M^-1 H that was seen
    products: int
    cut: bool  # at the boundary, at the most products, or where rounding left no curvature too soon


def trust_region_cg(objective, P, gradient, M, radius, accuracy, max_products=100, min_products=1, enough=0.0):
    """Minimise g^T s + 1/2 s^T H s within ||s||_M <= radius until ||residual|| <= accuracy ||g||, both in M^-1's norm.

    What is left of the decrease, 1/2 r^T H^-1 r, is at most 1/2 r^T M^-1 r over the smallest eigenvalue of M^-1 H,
    for which the smallest Ritz value of the same iterations stands.
    """
    s, r = objective.zeros(), gradient.copy(order="K")
    z = M.solve(r)
    d = -z
    rz = first = inner(r, z)
    target = accuracy**2 * first
    ss, sd, dd = 0.0, 0.0, rz
    decrease, cut, diagonal, off = 0.0, True, [], []
    ratio, step = 0.0, 1.0
    for _ in range(max_products):
        done = rz <= target or (enough and decrease + 0.5 * rz / smallest_ritz(diagonal, off) <= enough)
        exact = rz <= 1e-8 * first  # what follows may be rounding
        if (done and (exact or len(diagonal) >= min_products)) or not rz > 0:
            cut = False
            break
        Hd = objective.hessian_product(P, d)
        curvature = inner(d, Hd)
        if not curvature > 0:  # rounding: H has no negative curvature
            cut = not done
            break
        diagonal.append(curvature / rz + ratio / step)
        step = rz / curvature
        longer = ss + 2 * step * sd + step * step * dd
        if longer >= radius**2:
            step = (-sd + np.sqrt(max(sd * sd + dd * (radius**2 - ss), 0.0))) / dd
            s += s.dtype.type(step) * d
            decrease += step * rz - 0.5 * step * step * curvature
            ss = radius**2
            break
        s += s.dtype.type(step) * d
        r += r.dtype.type(step) * Hd
        decrease += 0.5 * step * rz
        ss = longer
        z = M.solve(r)
        ratio, rz = inner(r, z) / rz, inner(r, z)
        off.append(np.sqrt(max(ratio, 0.0)) / step)
        d = d.dtype.type(ratio) * d - z
        sd, dd = ratio * (sd + step * dd), rz + ratio * ratio * dd
    smallest = smallest_ritz(diagonal, off)
    decrement, residual = decrease + 0.5 * rz / smallest, np.sqrt(max(rz, 0.0))
    return Solve(s, decrease, decrement, np.sqrt(ss), residual, smallest, len(diagonal), cut)


def smallest_ritz(diagonal, off):
    """The smallest eigenvalue of the tridiagonal matrix of conjugate gradients; 1 before the first product."""
    if not diagonal:
        return 1.0
    smallest = eigvalsh_tridiagonal(diagonal, off[: len(diagonal) - 1], select="i", select_range=(0, 0))[0]
    return max(smallest, np.finfo(float).tiny)


# --- other deterministic solvers --------------------------------------------------------------------------------


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


STRIDE = 10  # iterations of `proximal` that a record stands for


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
        if (iteration + 1) % STRIDE == 0 or iteration == max_iter - 1:
            record = run.record(value_new)
            run.certify(objective, value_new, gradient_new, tol)
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
    return units
