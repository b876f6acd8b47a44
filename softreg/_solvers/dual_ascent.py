"""Dual coordinate ascent for sparse rows: an epoch costs little more than a gradient, and proves how far it has come.

The dual of the objective has a distribution Q_i for each row, and weights W that belong to them:

    max  (1/S) sum_i s_i H(Q_i) - l2/2 ||W||^2,     W = (1/(l2 S)) sum_i s_i (Y_i - Q_i) x_i^T.

A step moves one Q_i towards softmax(W x_i + b) and W by what that changes, where x_i is not zero (Shalev-Shwartz and
Zhang 2013). That takes few epochs where ||x_i||^2 / (l2 S) is moderate, as for normalised text, and many otherwise.

Intercepts are not penalised, which constrains the dual: the class totals of Q have to be those of Y. The method of
multipliers meets that: b is the weight of a constant feature, penalised for its distance from a base, and after each
epoch the base follows it.
"""

import numpy as np
from scipy.special import entr

from softreg._duality import dual_bound, dual_point
from softreg._objective import squared_norm
from softreg._preconditioners import EXACT_SIZE
from softreg._rounding import rounding_allowance
from softreg._solvers.result import Result
from softreg._validation import OVERFLOW

CONSTANT = 0.1  # square of the constant feature over the mean ||x||^2: 1 is slower, 0.01 meets the totals too late;
# ... l2 S at least, or a strong penalty would hold back intercepts, too
WINDOW = 5  # epochs that tell the speed
LONGEST = 50  # epochs to go at that speed, from which Newton's method is the shorter way
BALANCE_STEPS = 20  # Newton steps on the class totals at most


def obstacle(objective):
    """Return what keeps the method from this objective, or None."""
    if not objective.design.has_dual_epoch:
        return "needs a sparse X; for a dense one take solver='newton'"
    if not objective.l2 > 0:
        return "needs alpha > 0; for alpha=0 take solver='newton'"
    return None


def is_promising(objective):
    """Return whether the method applies, and may be faster than Newton's."""
    return obstacle(objective) is None and not objective.l1 and np.prod(objective.shape) > EXACT_SIZE


def dual_ascent(objective, start, options, monitor):
    """Visit the rows in random order, epoch by epoch, until the proven gap is within tol * F; return the result.

    What Q leaves of F is an estimate of the gap, and free. Once it is small, Q is balanced, for a proof.

    Parameters
    ----------
    objective : Objective with l2 > 0, l1 = 0 and sparse X
    start : Start
    options : Options
    monitor : Monitor, called after each epoch

    Returns
    -------
    result : Result
        Stopped on "gap", "max_iter", or "slow" where Newton's method is the shorter way.
    """
    tol, gaps = options.tol, []
    dual = _Dual(objective, start.W.copy(order="K"))
    result = Result(dual.W, solver="dual")
    for epoch in range(options.max_iter):
        monitor.begin()
        dual.epoch(options.random_state.permutation(objective.n_rows))
        result.passes += 1.5
        entry = result.record(objective.value(dual.W))
        gaps.append(max(entry["loss"] - dual.value(), np.finfo(float).tiny))
        if gaps[-1] <= 0.5 * tol * abs(entry["loss"]) or epoch == options.max_iter - 1:
            dual.balance()
            result.passes += 1
            entry["loss"] = objective.value(dual.W)
            result.bound(dual.bound(entry["loss"]), tol)
        if monitor(dual.W, entry) or result.converged:
            break
        if options.may_give_up and _is_slow(gaps, tol * abs(entry["loss"])):
            result.stopped_on = "slow"
            break
    return result


def _is_slow(gaps, target):
    """Return whether the target is more than LONGEST epochs away at the speed of the last ones."""
    if len(gaps) <= WINDOW:
        return False
    speed = np.log(gaps[-1 - WINDOW] / gaps[-1]) / WINDOW
    return gaps[-1] > target * np.exp(min(LONGEST * speed, 700))


class _Dual:
    """The distributions Q (n, K), and the W (K, p) that belongs to them.

    Attributes
    ----------
    constant : float
        The square of the constant feature whose weights are the intercepts.
    entropy : float
        (1/S) sum_i s_i H(Q_i).
    moved : array of shape (K, 1), or (K, 0) without intercepts
        How far the intercepts are from their base.
    """

    def __init__(self, objective, W):
        self.objective, self.W = objective, W
        mean = objective.design.mean_squared_norm()
        if not np.isfinite(mean):
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        self.constant = max(CONSTANT * mean, objective.l2 * objective.total_weight)
        self.Q, self.moved = objective.distributions(), np.zeros_like(self.intercepts(W))
        if W.any():
            self.mix()

    def mix(self):
        """Move Q from Y, where W is zero, towards the probabilities at W: all the way where W is optimal."""
        objective, at = self.objective, self.objective.linearize(self.W)
        entropy, G = dual_point(at)
        charge = squared_norm(objective.coef(G)) + self.constant * squared_norm(self.intercepts(G))
        best = objective.l2 * max(entropy, 0.0) / charge if charge > 0 else 1.0  # of the dual, as H is concave
        share = objective.dtype.type(min(1.0, best))
        self.Q += share * (at.probabilities(slice(None)) - self.Q)
        self.follow(share * G)
        self.intercepts(self.W)[...] += self.moved

    def intercepts(self, W):
        return self.objective.design.intercepts(W)

    def follow(self, G):
        """Set W to what belongs to G(Q), see `_duality`; the intercepts stay, their base changes."""
        factor = self.objective.dtype.type(-1 / self.objective.l2)
        self.objective.coef(self.W)[...] = factor * self.objective.coef(G)
        self.moved = factor * self.objective.dtype.type(self.constant) * self.intercepts(G)

    def epoch(self, order):
        """Visit every row once, then move the base of the intercepts."""
        objective, b = self.objective, self.intercepts(self.W)
        base = b - self.moved
        self.entropy = objective.dual_epoch(self.W, self.Q, order, self.constant)
        self.moved = b - base
        b += self.moved

    def value(self):
        """Return the dual objective, without what the class totals of Q are off."""
        return self.entropy - 0.5 * self.objective.l2 * squared_norm(self.objective.coef(self.W))

    def balance(self):
        """Tilt Q by a factor a class until its totals are those of Y, and compute what belongs to it anew.

        The factors are found by Newton's method, as are intercepts: tilted distributions are a softmax of shifted ones.
        """
        objective, Q = self.objective, self.Q
        Y, share = objective.distributions(), objective.shares()
        for _ in range(BALANCE_STEPS if objective.fit_intercept else 0):
            off = share @ (Y - Q)
            if np.abs(off).max() <= np.finfo(Q.dtype).eps * 0.01:
                break
            H = np.diag(share @ Q) - (Q * share[:, None]).T @ Q
            Q *= np.exp(np.clip(np.linalg.lstsq(H, off)[0], -1, 1)).astype(Q.dtype)
            Q /= Q.sum(axis=1, keepdims=True)
        self.entropy = float(share @ entr(Q).sum(axis=1))
        self.follow(objective.moments(Q - Y))

    def bound(self, loss):
        """Return the proven lower bound on min F that Q gives, where F(W) is the loss."""
        G = np.empty(self.objective.shape)
        self.objective.coef(G)[...] = -self.objective.l2 * self.objective.coef(self.W)
        self.intercepts(G)[...] = -self.objective.l2 / self.constant * self.moved
        # an error of G moves the bound along G / l2 = -W, as one of a gradient does along dF/dW / l2
        allowance = rounding_allowance(self.objective, self.W, loss, self.objective.l2 * self.W)
        return dual_bound(self.objective, self.entropy, G) - allowance
