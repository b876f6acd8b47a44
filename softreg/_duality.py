"""Proven lower bounds on min F, by duality.

With the gradient part G(Q) = (1/S) sum_i s_i (Q_i - Y_i) [x_i 1]^T of any distributions Q whose class totals equal
those of Y (only then is an unpenalised intercept optimal),

    min F >= D(Q) = (1/S) sum_i s_i H(Q_i) - 1/(2 l2) sum max(|G(Q)| - l1, 0)^2,     intercepts left out.

H is the entropy. At the optimum Q = P attains the minimum. There is no bound without a penalty.
"""

import numpy as np

from softreg._objective import squared_norm
from softreg._rounding import rounding_allowance


def lower_bound(linearization):
    """Return a proven lower bound on min F, from the probabilities and the gradient at a point; -inf without a penalty.

    At the optimum of a smooth objective the bound is min F itself. F(W) does not enter: where that is large, rounding
    would eat what is left of a difference. The gradient of the penalty has to be taken off, and its rounding is added
    to what remains, which lowers the bound.
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
    """Return what `dual_bound` takes at Q = P: the mean entropy of the probabilities, and G of them, float64."""
    objective, G = linearization.objective, np.array(linearization.gradient, np.float64)
    objective.coef(G)[...] -= objective.l2 * objective.coef(linearization.W).astype(np.float64)
    return linearization.entropy(), G


def dual_bound(objective, entropy, G):
    """Return a proven lower bound on min F, from the mean entropy of distributions Q, and G(Q), which is overwritten.

    Q meets the condition on the class totals only where the intercept's column g of G is zero. So the bound is that
    of other distributions, u ((1 - t) Q + t r) + (1 - u) Y. A share t of the constant distribution r = y - g (1-t)/t,
    the smallest that keeps r >= 0, repairs the totals y. And u <= 1 scales G down to what is best (l2 > 0) or allowed
    (l2 = 0). H is concave, so they have at least the entropy u ((1 - t) H(Q) + t H(r)).
    """
    if objective.fit_intercept:
        g = G[:, -1] - G[:, -1].mean()  # they sum to zero but for rounding
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
