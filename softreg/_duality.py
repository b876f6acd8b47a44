"""Proven lower bounds on min F, by duality.

With the gradient part G(Q) = (1/S) sum_i s_i (Q_i - Y_i) [x_i 1]^T of any distributions Q whose class totals equal
those of Y (only then is an unpenalised intercept optimal),

    min F >= D(Q) = (1/S) sum_i s_i H(Q_i) - 1/(2 l2) sum max(|G(Q)| - l1, 0)^2,     intercepts left out.

H is the entropy. At the optimum Q = P attains the minimum. There is no bound without a penalty.
"""

import numpy as np

from softreg import _rounding
from softreg._objective import squared_norm

NEGLIGIBLE = 1e-3  # share of the gap that an allowance for rounding may be without a second bound being computed


def lower_bound(linearization):
    """Return a proven lower bound on min F, from the probabilities and the gradient at a point; -inf without a penalty.

    At the optimum of a smooth objective the bound is min F itself. The gradient of the penalty has to be taken off,
    and its rounding is added to what remains, which lowers the bound. The bound is made from the entropy of the
    probabilities, and from the entropy that the loss and the gradient tell; see `_rounding` for why. The better one
    counts. The second one is far too low where the loss is so large that rounding eats the difference; it is left out
    where the allowance for rounding in the first one is no part of the gap, as in exact arithmetic both are the same.
    """
    objective, W, loss = linearization.objective, linearization.W, linearization.value
    if not objective.l2 and not objective.l1:
        return -np.inf
    entropy, G = dual_point(linearization)
    W = W.astype(np.float64)
    coef = objective.coef(W)
    with np.errstate(over="ignore", invalid="ignore"):
        product = G * W
    rounding = float(np.finfo(objective.dtype).eps) * objective.l2 * np.abs(coef)
    objective.coef(G)[...] += np.copysign(rounding, objective.coef(G))
    allowance = _allowance(objective, G, loss)
    by_entropy = max(dual_bound(objective, entropy, G.copy()) - allowance, 0.0)  # F >= 0
    if allowance <= NEGLIGIBLE * (loss - by_entropy):
        return by_entropy
    with np.errstate(over="ignore", invalid="ignore"):
        terms = loss, 0.5 * objective.l2 * squared_norm(coef), np.sum(product)
        of_loss = terms[0] - terms[1] - terms[2]
        # the difference itself is made in float64
        allowance = 4 * np.finfo(np.float64).eps * (terms[0] + terms[1] + np.sum(np.abs(product)))
    if not np.isfinite(of_loss):
        return by_entropy
    step = penalty_derivative(objective, G)
    by_loss = dual_bound(objective, of_loss, G) - allowance - _rounding.of_loss(objective, W, loss)
    return max(by_entropy, by_loss - _rounding.of_sums(objective, loss, coef + step, coef))


def bound_of_distributions(objective, entropy, G, loss, dtype=None):
    """Return a proven lower bound on min F, from the mean entropy and G of distributions, and the loss near there.

    Both were computed in `dtype`, by default the objective's; the bound leaves room for its rounding.
    """
    return max(dual_bound(objective, entropy, G.copy()) - _allowance(objective, G, loss, dtype), 0.0)  # F >= 0


def _allowance(objective, G, loss, dtype=None):
    """Return how far rounding may have raised a bound that is made from the entropy and G of distributions."""
    sums = _rounding.of_sums(objective, loss, penalty_derivative(objective, G), dtype=dtype)
    return sums + _rounding.of_entropy(objective, dtype)


def penalty_derivative(objective, G):
    """Return the derivative of 1/(2 l2) sum max(|G| - l1, 0)^2 in G: -W at the optimum; zeros without l2."""
    G = objective.coef(G)
    excess = np.maximum(np.abs(G) - objective.l1, 0) / objective.l2 if objective.l2 else 0.0
    return np.copysign(excess, G)


def dual_point(linearization):
    """Return what `dual_bound` takes at Q = P: the mean entropy of the probabilities, and G of them, float64."""
    objective, G = linearization.objective, np.array(linearization.gradient, np.float64)
    objective.coef(G)[...] -= objective.l2 * objective.coef(linearization.W).astype(np.float64)
    return linearization.entropy(), G


def dual_bound(objective, entropy, G):
    """Return a proven lower bound on min F, from the mean entropy of distributions Q, and G(Q), which is overwritten.

    Q meets the condition on the class totals only where the intercept's column g of G is zero. So the bound is that
    of other distributions, u ((1 - t) Q + t r) + (1 - u) Y. A share t of the constant distribution r = y - g (1-t)/t,
    the smallest that keeps r >= 0, repairs the totals y. And the u in [0, 1] is the best. H is concave, so they have
    at least the entropy h = u ((1 - t) H(Q) + t H(r)).

    u h - sum max(u a - l1, 0)^2 / (2 l2), with a = |G|, is largest where sum a max(u a - l1, 0) = l2 h. Over the m
    largest a, and without the max, that is u = (l2 h + l1 sum a) / sum a^2, and the right m gives the least u. Without
    l2, that is l1 over the largest a.
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
    entropy, l1, l2 = max(entropy, 0.0), objective.l1, objective.l2
    a = np.abs(objective.coef(G)).ravel()
    a = np.sort(a[~(a <= l1)])[::-1]  # NaN stays
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.cumsum(a * a)
    if not len(a) or squares[-1] == 0:
        return entropy
    if not np.isfinite(squares[-1]):
        return 0.0
    u = min(1.0, np.min((l2 * entropy + l1 * np.cumsum(a)) / squares))
    return u * entropy - (np.sum(np.maximum(u * a - l1, 0) ** 2) / (2 * l2) if l2 else 0.0)
