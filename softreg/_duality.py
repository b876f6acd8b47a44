"""Proven lower bounds on min F, by duality.

Take any distributions Q_i, one a row, whose class totals equal those of Y (an unpenalised intercept demands that), and
G(Q) = (1/S) sum_i s_i (Q_i - Y_i) [x_i 1]^T, which is the gradient of the mean loss if Q are the probabilities. Then

    min F >= D(Q) = (1/S) sum_i s_i H(Q_i) - 1/(2 l2) sum max(|G(Q)| - l1, 0)^2,     intercepts left out.

H is the entropy. At the optimum Q = P attains the minimum. Without a penalty there is no bound.
"""

import numpy as np

from softreg._objective import squared_norm
from softreg._rounding import rounding_allowance


def lower_bound(linearization):
    """Return a proven lower bound on min F, from the probabilities and the gradient at a point; -inf without a penalty.

    At the optimum of a smooth objective the bound is min F itself. F(W) does not enter: if F(W) is large, a difference
    of such numbers is mostly rounding. G is the gradient minus that of the penalty. The rounding of this difference is
    added to |G|, which lowers the bound.
    """
    objective, W = linearization.objective, linearization.W
    if not objective.l2 and not objective.l1:
        return -np.inf
    entropy, G = dual_point(linearization)
    rounding = float(np.finfo(objective.dtype).eps) * objective.l2 * np.abs(objective.coef(W).astype(np.float64))
    objective.coef(G)[...] += np.copysign(rounding, objective.coef(G))
    bound = dual_bound(objective, entropy, G)
    return max(bound - rounding_allowance(objective, W, linearization.value, linearization.gradient), 0.0)  # F >= 0


def dual_point(linearization):
    """Return the mean entropy of the probabilities P, and G(P) in float64: the arguments of `dual_bound`."""
    objective, G = linearization.objective, np.array(linearization.gradient, np.float64)
    objective.coef(G)[...] -= objective.l2 * objective.coef(linearization.W).astype(np.float64)
    return linearization.entropy(), G


def dual_bound(objective, entropy, G):
    """Return a proven lower bound on min F, from the mean entropy of distributions Q, and G(Q), which is overwritten.

    Q meets the condition on the class totals y only if the intercept's column g of G is zero. So the bound is that of
    other distributions, u ((1 - t) Q + t r) + (1 - u) Y, in two steps. First, a share t of the constant distribution
    r = y - g (1-t)/t makes the totals right; t is the smallest share with r >= 0. Second, u <= 1 scales G down: to the
    best bound if l2 > 0, and until no entry is above l1 if l2 = 0. H is concave, so the entropy of these distributions
    is at least u ((1 - t) H(Q) + t H(r)).
    """
    if objective.fit_intercept:
        g = G[:, -1] - G[:, -1].mean()  # the column sums to zero but for rounding
        M = objective.class_moments()
        totals = M[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.max(np.where(g > 0, g / (totals + g), 0.0), initial=0.0)
        if t > 0:
            r = np.maximum(totals - g * ((1 - t) / t), 0)
            r /= r.sum()
            entropy = (1 - t) * entropy - t * np.sum(r * np.log(np.where(r > 0, r, 1)))
            G *= 1 - t
            G += t * (r[:, None] * M.sum(axis=0) - M)
    G, entropy = objective.coef(G), max(entropy, 0.0)
    if objective.l2:
        charge = squared_norm(np.maximum(np.abs(G) - objective.l1, 0)) / (2 * objective.l2)
        u = min(1.0, entropy / (2 * charge)) if charge > 0 else 1.0
        return u * entropy - u * u * charge
    largest = np.abs(G).max(initial=0.0)
    return entropy * min(1.0, objective.l1 / largest) if largest > 0 else entropy
