"""Dual coordinate ascent for sparse rows: an epoch costs little more than a gradient, and proves how far it has come.

The dual of the objective has a distribution Q_i for each row, and weights W that belong to them:

    max  (1/S) sum_i s_i H(Q_i) - l2/2 ||W||^2,     W = (1/(l2 S)) sum_i s_i (Y_i - Q_i) x_i^T.

A step moves one Q_i towards softmax(W x_i + b) and W by what that changes, where x_i is not zero (Shalev-Shwartz and
Zhang 2013). That takes few epochs where ||x_i||^2 / (l2 S) is moderate, as for normalised text, and many otherwise.

Intercepts are not penalised, which constrains the dual: the class totals of Q have to be those of Y. The method of
multipliers meets that: b is the weight of a constant feature, penalised for its distance from `base`, and after each
epoch `base` follows it.
"""

import numpy as np
from scipy.special import entr

from softreg._objective import squared_norm
from softreg._preconditioners import EXACT_SIZE
from softreg._run import Run

CONSTANT = 0.1  # square of the constant feature over the mean ||x||^2: 1 is slower, 0.01 meets the totals too late;
# ... l2 S at least, or a strong penalty would hold back intercepts, too
WINDOW = 5  # epochs that tell the speed
LONGEST = 50  # epochs to go at that speed, from which Newton's method is the shorter way


def suits(objective):
    """Whether the method applies, and may be faster than Newton's."""
    K, p = objective.shape
    return objective.sparse and objective.l2 > 0 and not objective.l1 and K * p > EXACT_SIZE


def dual_ascent(objective, W, *, max_iter, tol, random_state, monitor, stop_if_slow=True):
    """Epochs in random order until the proven gap is within tol * F; W is changed in place.

    What Q leaves of F is an estimate of the gap, and free. Once it is small, Q is balanced, for a proof. With
    `stop_if_slow` the run ends with `stopped_on` "slow" where Newton's method is likely to be faster.
    """
    run, dual, gaps = Run(W, "dual"), Dual(objective, W), []
    for epoch in range(max_iter):
        monitor.begin()
        dual.epoch(random_state.permutation(objective.n_rows))
        run.passes += 1.5
        record = run.record(objective.value(W))
        gaps.append(max(record["loss"] - dual.value(), np.finfo(float).tiny))
        if gaps[-1] <= 0.5 * tol * abs(record["loss"]) or epoch == max_iter - 1:
            dual.balance()
            run.passes += 1
            record["loss"] = objective.value(W)
            run.bounded(objective, dual.bound(), tol)
        if monitor(W, record) or run.converged:
            break
        if stop_if_slow and len(gaps) > WINDOW:
            speed = np.log(gaps[-1 - WINDOW] / gaps[-1]) / WINDOW
            if gaps[-1] > tol * abs(record["loss"]) * np.exp(min(LONGEST * speed, 700)):
                run.stopped_on = "slow"
                break
    return run


class Dual:
    """W with the distributions that it belongs to."""

    def __init__(self, objective, W):
        self.objective, self.W, X = objective, W, objective.X
        mean = float(X.data @ X.data) / X.shape[0]
        self.constant = max(CONSTANT * mean, objective.l2 * objective.total_weight)
        self.Q, self.moved = objective.distributions(), np.zeros_like(self.intercepts(W))
        if W.any():
            self.mix()

    def mix(self):
        """Move Q from Y, where W is zero, towards the probabilities at W: all the way where W is optimal."""
        objective, W, P = self.objective, self.W, self.objective.probabilities()
        _, gradient = objective.value_and_gradient(W, P)
        entropy, G = objective.dual_point(W, P, gradient)
        charge = squared_norm(objective.coef(G)) + self.constant * squared_norm(self.intercepts(G))
        best = objective.l2 * max(entropy, 0.0) / charge if charge > 0 else 1.0  # of the dual, as H is concave
        share = objective.dtype.type(min(1.0, best))
        self.Q += share * (P - self.Q)
        self.follow(share * G)
        self.intercepts(W)[...] += self.moved

    def intercepts(self, W):
        """The last column of an array like W, or no column."""
        return W[:, self.objective.n_features :]

    def follow(self, G):
        """W becomes what belongs to G(Q), see `Objective.dual_bound`; intercepts stay, their base changes."""
        factor = self.objective.dtype.type(-1 / self.objective.l2)
        self.objective.coef(self.W)[...] = factor * self.objective.coef(G)
        self.moved = factor * self.objective.dtype.type(self.constant) * self.intercepts(G)

    def epoch(self, order):
        """Visit every row once, then move the base of the intercepts."""
        b = self.intercepts(self.W)
        base = b - self.moved
        self.entropy = self.objective.dual_epoch(self.W, self.Q, order, self.constant)
        self.moved = b - base
        b += self.moved

    def value(self):
        """The dual objective, but for what the class totals of Q are off."""
        return self.entropy - 0.5 * self.objective.l2 * squared_norm(self.objective.coef(self.W))

    def balance(self):
        """Tilt Q by a factor a class until its totals are those of Y, and compute what belongs to it anew.

        The factors are found by Newton's method, as are intercepts: tilted distributions are a softmax of shifted ones.
        """
        objective, Q = self.objective, self.Q
        Y, share = objective.distributions(), objective.shares()
        for _ in range(20 if objective.fit_intercept else 0):
            off = share @ (Y - Q)
            if np.abs(off).max() <= np.finfo(Q.dtype).eps * 0.01:
                break
            H = np.diag(share @ Q) - (Q * share[:, None]).T @ Q
            Q *= np.exp(np.clip(np.linalg.lstsq(H, off)[0], -1, 1)).astype(Q.dtype)
            Q /= Q.sum(axis=1, keepdims=True)
        self.entropy = float(share @ entr(Q).sum(axis=1))
        self.follow(objective.moments(Q - Y))

    def bound(self):
        """The proven lower bound on min F that Q gives."""
        G = np.empty(self.objective.shape)
        self.objective.coef(G)[...] = -self.objective.l2 * self.objective.coef(self.W)
        self.intercepts(G)[...] = -self.objective.l2 / self.constant * self.moved
        return self.objective.dual_bound(self.entropy, G)
