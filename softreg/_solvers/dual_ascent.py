"""Dual coordinate ascent for sparse rows: an epoch costs little more than a gradient, and gives a proven gap.

The dual of the objective has a distribution Q_i for each row, and weights W that belong to them:

    max  (1/S) sum_i s_i H(Q_i) - l2/2 ||W||^2,     W = (1/(l2 S)) sum_i s_i (Y_i - Q_i) x_i^T.

A step moves one Q_i towards softmax(W x_i + b), and changes W accordingly where x_i is not zero (Shalev-Shwartz and
Zhang 2013). The method takes few epochs if ||x_i||^2 / (l2 S) is moderate, as for normalised text, and many otherwise.

Intercepts are not penalised, which constrains the dual: the class totals of Q have to be those of Y. The method of
multipliers meets this constraint. b is the weight of a constant feature, penalised for its distance from a base; after
each epoch the base moves.

An epoch runs on one thread. Two fixed blocks of rows with updates delayed to the end of the epoch (CoCoA+: Ma et al.
2015) were measured: as many epochs to a gap of 1e-2 F_null or one more, but up to twice as many to 1e-4 where alpha is
small, and a copy of W for each block. Two threads would have gained a tenth of a fit, and one thread lost as much.
Updates that are not damped diverge or are slower, also if they are exchanged eight times an epoch.
"""

import numpy as np
from scipy.special import entr

from softreg import _rounding
from softreg._duality import dual_bound, dual_point, penalty_derivative, repair_of_totals, smooth_bound
from softreg._feature_blocks import FeatureBlocks
from softreg._inner_products import squared_norm
from softreg._preconditioners import EXACT_SIZE
from softreg._solvers.result import Result
from softreg._validation import OVERFLOW

# Square of the constant feature over the mean ||x||^2: 1 is slower, 0.01 meets the totals too late. It is at least
# l2 S over that mean, or a strong penalty would slow down the intercepts, too.
CONSTANT = 0.1
WINDOW = 5  # epochs from which the speed is measured
LONGEST = 50  # remaining epochs at that speed above which Newton's method is faster
BALANCE_STEPS = 20  # the most Newton steps on the class totals
CLASSES = 8  # classes for which the bound in float64 is summed at a time


def obstacle(objective):
    """Return the reason why the method cannot minimise this objective, or None."""
    if not objective.design.has_dual_epoch:
        return "needs a sparse X; for a dense one take solver='newton'"
    if not objective.l2 > 0:
        return "needs alpha > 0; for alpha=0 take solver='newton'"
    return None


def is_promising(objective):
    """Return True if the method can minimise the objective, and may be faster than Newton's."""
    return obstacle(objective) is None and not objective.l1 and np.prod(objective.shape) > EXACT_SIZE


def dual_ascent(objective, start, options, monitor):
    """Visit the rows in random order, epoch by epoch, until the proven gap is within tol * F_null; return the result.

    F minus the dual objective of Q estimates the gap and costs nothing. Once the estimate is small, Q is balanced, and
    the dual objective is then a proven bound. If float32 is too coarse for the proof, it is made in float64.

    Parameters
    ----------
    objective : Objective with l2 > 0, l1 = 0 and sparse X
    start : Start
    options : Options
    monitor : Monitor, called after each epoch

    Returns
    -------
    result : Result
        Stopped on "gap", "max_iter", or "slow" if Newton's method would be faster.
    """
    gaps, dual = [], _Dual(objective, start.W.copy(order="K"))
    result = Result(dual.W, objective.null_loss, options.tol, solver="dual")
    for epoch in range(options.max_iter):
        monitor.begin()
        dual.epoch(options.random_state.permutation(objective.n_rows))
        result.passes += 1.5
        entry = result.record(objective.value(dual.W))
        gaps.append(max(entry["loss"] - dual.value(), np.finfo(float).tiny))
        if gaps[-1] <= 0.5 * result.target or epoch == options.max_iter - 1:
            dual.balance()
            result.passes += 1
            entry["loss"] = objective.value(dual.W)
            result.bound(dual.bound(entry["loss"], result.target))
        if monitor(dual.W, entry) or result.converged:
            break
        if options.may_give_up and _is_slow(gaps, result.target):
            result.stopped_on = "slow"
            break
    return result


def _is_slow(gaps, target):
    """Return True if the target is more than LONGEST epochs away at the speed of the last ones; gaps is a list."""
    if len(gaps) <= WINDOW:
        return False
    speed = np.log(gaps[-1 - WINDOW] / gaps[-1]) / WINDOW
    return gaps[-1] > target * np.exp(min(LONGEST * speed, 700))


class _Dual:
    """The distributions Q (n, K), and the W (K, p) that belongs to them, which is changed in place.

    Attributes
    ----------
    constant : float
        The square of the constant feature whose weights are the intercepts.
    entropy : float
        (1/S) sum_i s_i H(Q_i).
    moved : array of shape (K, 1), or (K, 0) without intercepts
        Distance of the intercepts from their base.
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
        """Move Q from Y, to which W = 0 belongs, towards the probabilities at W, by the best share for the dual.

        The share is 1 if W is optimal. W changes to the one that belongs to the new Q.
        """
        objective, at = self.objective, self.objective.linearize(self.W)
        entropy, G = dual_point(at)
        charge = squared_norm(objective.coef(G)) + self.constant * squared_norm(self.intercepts(G))
        best = objective.l2 * max(entropy, 0.0) / charge if charge > 0 else 1.0  # H is concave: this maximises a bound
        share = objective.dtype.type(min(1.0, best))
        for block in objective.blocks():
            self.Q[block] += share * (at.probabilities(block) - self.Q[block])
        self.follow(share * G)
        self.intercepts(self.W)[...] += self.moved

    def intercepts(self, W):
        """Return a view of the intercepts of W, (K, 1) or (K, 0)."""
        return self.objective.design.intercepts(W)

    def follow(self, G):
        """Set W to the coefficients that belong to G(Q), see `_duality`; the intercepts stay, their base changes."""
        factor = self.objective.dtype.type(-1 / self.objective.l2)
        np.multiply(factor, self.objective.coef(G), out=self.objective.coef(self.W), casting="same_kind")
        self.moved = factor * self.objective.dtype.type(self.constant) * self.intercepts(G)

    def epoch(self, order):
        """Visit every row once, then move the base of the intercepts."""
        objective, b = self.objective, self.intercepts(self.W)
        base = b - self.moved
        self.entropy = objective.dual_epoch(self.W, self.Q, order, self.constant)
        self.moved = b - base
        b += self.moved

    def value(self):
        """Return the dual objective, without a term for class totals that do not match."""
        return self.entropy - 0.5 * self.objective.l2 * squared_norm(self.objective.coef(self.W))

    def balance(self):
        """Multiply Q by a factor for each class until its totals are those of Y; compute W and the entropy anew.

        The factors are found by Newton's method. They act like intercepts: each row is the softmax of shifted logits.
        The method ends where rounding keeps the totals from coming nearer; the bound repairs the rest.
        """
        objective, Q, share, nearest = self.objective, self.Q, self.objective.shares(), np.inf
        blocks = list(objective.blocks())
        for _ in range(BALANCE_STEPS if objective.fit_intercept else 0):
            off = sum(share[block] @ (objective.distributions(block) - Q[block]) for block in blocks)
            distance = np.abs(off).max()
            if not np.finfo(Q.dtype).eps * 0.01 < distance < nearest:
                break
            nearest = distance
            H = np.diag(share @ Q) - sum((Q[block] * share[block, None]).T @ Q[block] for block in blocks)
            factors = np.exp(np.clip(np.linalg.lstsq(H, off)[0], -1, 1)).astype(Q.dtype)
            for block in blocks:
                Q[block] *= factors
                Q[block] /= Q[block].sum(axis=1, keepdims=True)
        self.entropy = float(sum(share[block] @ entr(Q[block]).sum(axis=1, dtype=np.float64) for block in blocks))
        change = objective.distributions()
        self.follow(objective.moments(np.subtract(Q, change, out=change)))

    def bound(self, loss, target):
        """Return the proven lower bound on min F from Q, less the allowance for rounding; `loss` is F(W).

        If that allowance alone keeps the gap above the target, the bound is made again in float64.
        """
        objective = self.objective
        bound = dual_bound(objective, self.entropy, FeatureBlocks(self.gradient))
        allowance = self.allowance(loss, objective.dtype)
        if loss - bound <= target < loss - bound + allowance and objective.dtype != np.float64:
            bound, allowance = self.float64_bound(), self.allowance(loss, np.float64)
        return max(bound - allowance, 0.0)  # F >= 0

    def allowance(self, loss, dtype):
        """Return how far rounding may have raised a bound that is made in that dtype."""
        objective, G = self.objective, FeatureBlocks(self.gradient)
        along = FeatureBlocks(lambda block: penalty_derivative(objective, G[:, block]))
        return _rounding.of_sums(objective, loss, along, dtype=dtype) + _rounding.of_entropy(objective, dtype)

    def float64_bound(self):
        """Return the dual bound of Q, normalised and summed in float64; G is made a few classes at a time."""
        objective, Q = self.objective, self.Q
        weight = np.ones(objective.n_rows) if objective.sample_weight is None else objective.sample_weight
        share, sums = weight[:, None] / np.float64(objective.total_weight), Q.sum(axis=1, dtype=np.float64)[:, None]
        t, r, totals = 0.0, np.zeros(objective.n_classes), objective.class_shares()
        if objective.fit_intercept:
            t, r = repair_of_totals(totals, np.sum(share / sums * Q, axis=0) - totals)
        X, entropy, squares = objective.design.copy_rows(slice(None)), t * np.sum(entr(r)), 0.0
        for start in range(0, objective.n_classes, CLASSES):
            classes = slice(start, start + CLASSES)
            q = Q[:, classes] / sums
            entropy += (1 - t) * np.sum(share * entr(q))
            q = (1 - t) * q + t * r[classes]
            for block in objective.blocks():
                q[block] -= objective.distributions(block)[:, classes]
            squares += squared_norm(X.T @ (share * q))
        return smooth_bound(objective.l2, entropy, squares)

    def gradient(self, block):
        """Return the columns `block` of G(Q), float64: W and the distance of the intercepts belong to it."""
        objective = self.objective
        if block.start < objective.n_features:
            return -objective.l2 * self.W[:, block].astype(np.float64)
        return -objective.l2 / self.constant * self.moved.astype(np.float64)
