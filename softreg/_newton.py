"""Newton-CG: full gradients, Hessian products over a growing sample of the rows, preconditioned, in a trust region."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from softreg._objective import inner
from softreg._preconditioners import Blocks, ScaledCorrelation, preconditioner
from softreg._row_sampling import systematic_sample
from softreg._run import Run
from softreg._sgd import quick_start

SAMPLE_WORK = 5e7  # n K p from which a Hessian over a sample of the rows pays: below, a pass takes milliseconds
LONG_SOLVE = 8  # products of a solve after which blocks that cost some 15 to build are worth it


def newton(objective, W, *, max_iter, tol, random_state, monitor, M=None, run=None):
    """Newton's method for the smooth objective.

    A step minimises the quadratic model by conjugate gradients, stopped at the trust region's boundary (Steihaug
    1983) or where they are as exact as the model was (Eisenstat and Walker 1996). Where it overshoots, the minimum
    along it is found instead, see `search`. The sample grows when steps on it do not pay. The run ends on a proven
    gap of tol * F, or on an estimate over all rows, see `confirm`. Large problems that begin at zero begin with a
    little SGD, where that goes down at all. A preconditioner M of a run that ended at W can be given, and a run to go
    on with.
    """
    if objective.l2:  # the optimum sums to zero over the classes, and preconditioners leave that sum as it is
        objective.coef(W)[...] -= objective.coef(W).mean(axis=0)
    run, noise = run or Run(W, "newton"), np.finfo(objective.dtype).eps
    run.solver, run.stopped_on = "newton", "max_iter"
    order = random_state.permutation(objective.n_rows)
    quickly = Part.pays(objective) and not W.any()
    at = Point.first(objective, W, run, random_state) if quickly else Point.of(objective, W, run)
    run.W = at.W
    M = preconditioner(objective, order) if M is None else M
    M.refresh(at.P)  # also one that is given: it was made at other probabilities, and for another penalty
    part, wary = Part.first(objective, order), Wariness(objective)
    norm = dual_norm(M, at.gradient)
    radius, accuracy, since_refresh = 1.5 * norm, 0.3, 0
    for _ in range(max_iter - len(run.records)):
        monitor.begin()
        solve = trust_region_cg(part.objective, part.of(wary.of(at.P)), at.gradient, M, radius, accuracy)
        run.passes += solve.products * part.share
        since_refresh += solve.products * part.share
        new, shortened = search(objective, at, solve.step, noise, run, wary)
        decrease, before = at.value - new.value, norm
        radius = adapted(radius, solve, decrease, shortened)
        reached = dual_norm(M, new.gradient)
        missed = abs(reached - solve.residual) / before if before > 0 else 0.0
        accuracy = min(0.3, max(1e-3 if M.whole else 0.05, missed))
        if better := decrease > 0:
            at, run.W = new, new.W
        record = run.record(at.value)
        norm = reached if better else dual_norm(M, at.gradient)
        if part.share == 1 and not wary.share.any():  # the solve may already be what `confirm` would do
            whole = better and shortened == 1
            run.estimated(solve.gap(M, at.value, noise, reached if whole else None), at.value, tol)
        trusted = better and shortened == 1 and decrease >= 0.5 * solve.decrease
        if not run.converged and trusted and solve.left(decrease, norm) <= tol * abs(at.value):
            at, part = confirm(objective, at, M, tol, run, wary), Part(objective, order, objective.n_rows)
        if objective.l2 and (run.converged or solve.decrease <= 10 * tol * abs(at.value)):
            run.certify(objective, at.value, at.gradient, at.P, tol)
        record["loss"] = at.value
        if monitor(at.W, record) or run.converged:
            break
        if not better and part.share == 1 and solve.decrease <= noise * abs(at.value):
            at = confirm(objective, at, M, tol, run, wary)
            run.stopped_on = run.stopped_on if run.converged else "precision"
            run.certify(objective, at.value, at.gradient, at.P, tol)
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
        run.certify(objective, at.value, at.gradient, at.P, tol)
    run.M = M
    return run


def adapted(radius, solve, decrease, shortened):
    """The next trust region, by how well the objective followed the model."""
    if shortened < 1:
        return max(shortened, 0.3) * min(radius, solve.length)
    if solve.cut and decrease > 0.75 * solve.decrease:
        return 2.5 * radius
    if decrease < 0.25 * solve.decrease:
        return 0.5 * min(radius, solve.length)
    return radius


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

    @classmethod
    def first(cls, objective, zero, run, random_state):
        """Where two epochs of SGD lead, or zero, where F is log K."""
        run.passes += 2
        at = cls.of(objective, quick_start(objective, random_state, epochs=2), run)
        return at if at.value < np.log(objective.n_classes) else cls.of(objective, zero, run)


class Part:
    """The objective over `size` rows: the first in a given random order, or in proportion to their weights."""

    def __init__(self, objective, order, size):
        self.whole, self.order, self.size, self.share = objective, order, size, size / objective.n_rows
        self.chosen, self.objective = None, objective
        if self.share == 1:
            return
        weight = None
        if objective.sample_weight is None:
            self.chosen = np.sort(order[:size])
        else:
            shares = objective.shares()
            self.chosen, importance = systematic_sample(shares, order, size)
            weight = shares[self.chosen] * importance
        rows = self.chosen if objective.rows is None else objective.rows[self.chosen]
        self.objective = objective.sample(rows, weight)

    @classmethod
    def first(cls, objective, order):
        """A sixteenth of the rows, and several a feature, where that pays."""
        n, p = objective.n_rows, objective.shape[1]
        return cls(objective, order, min(n, max(n // 16, 10 * p)) if cls.pays(objective) else n)

    @staticmethod
    def pays(objective):
        """Whether passes are long enough for work on a part of the rows, or on minibatches, to come first."""
        return not objective.sparse and objective.n_rows * objective.n_classes * objective.shape[1] > SAMPLE_WORK

    def of(self, P):
        return P if self.chosen is None else P[self.chosen]

    def doubled(self):
        size = min(2 * self.size, self.whole.n_rows)
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


def confirm(objective, at, M, tol, run, wary):
    """Estimate the gap at a point by a solve over all rows, see `Solve.gap`, and go where that leads.

    It goes on until what it found and what it may have missed are together within half of tol * F, or 1 % of the whole.
    """
    M.refresh(at.P)
    enough, noise = 0.5 * tol * abs(at.value), np.finfo(objective.dtype).eps
    solve = trust_region_cg(objective, at.P, at.gradient, M, np.inf, 0.1, 300, min_products=least(M), enough=enough)
    run.passes += solve.products
    new, t = search(objective, at, solve.step, noise, run, wary)
    whole = new.value < at.value and t == 1
    run.estimated(solve.gap(M, at.value, noise, dual_norm(M, new.gradient) if whole else None), at.value, tol)
    at = new if new.value < at.value else at
    run.W = at.W
    return at


def least(M):
    """The products of a solve that an estimate of the gap is taken from."""
    return 5 if M.whole else 20


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
    exact: bool  # to rounding
    products: int
    cut: bool  # at the boundary, at the most products, or where rounding left no curvature too soon

    def gap(self, M, value, eps, reached=None):
        """An estimate of F - min F where the solve began, or where its step led; inf where it does not carry one.

        The gap of the quadratic model is 1/2 g^T H^-1 g. It takes a solve to its end, and at least 20 products, as
        directions that matter late show late, or 5 where M is the whole Hessian but for rounding. It is doubled: the
        decrement is half of the gap where the loss falls off exponentially, as it does for nearly separable classes.
        Where a whole step led, `reached` is the norm of the gradient in that of M^-1. M^-1 over the smallest eigenvalue
        of M^-1 H stands for H^-1, and three times that, as such a loss has only 1 / e of its curvature left.
        Where the loss is tiny, so are the curvatures p (1 - p), and 1 % of them is rounding: no estimate.
        """
        thorough = not self.cut and (self.exact or self.products >= least(M))
        if not thorough or abs(value) < 100 * eps:
            return np.inf
        before = 2 * self.decrement
        return before if reached is None else min(before, 3 * reached**2 / self.smallest)

    def left(self, decrease, norm):
        """Roughly what is left of F - min F after a step that brought `decrease`, to a gradient of that norm.

        The least of three: the model's gap before the step; what the preconditioner makes of the new gradient; what
        the solve left and the model missed.
        """
        missed = abs(decrease - self.decrease)
        return min(self.decrement, 0.5 * norm**2 / self.smallest, self.decrement - self.decrease + missed)


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
    decrease, cut, exact, diagonal, off = 0.0, True, False, [], []
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
            cut, exact = not done, done
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
    return Solve(s, decrease, decrement, np.sqrt(ss), residual, smallest, exact, len(diagonal), cut)


def smallest_ritz(diagonal, off):
    """The smallest eigenvalue of the tridiagonal matrix of conjugate gradients; 1 before the first product."""
    if not diagonal:
        return 1.0
    smallest = eigvalsh_tridiagonal(diagonal, off[: len(diagonal) - 1], select="i", select_range=(0, 0))[0]
    return max(smallest, np.finfo(float).tiny)
