"""Proven lower bounds on min F, by duality.

With the gradient part G(Q) = (1/S) sum_i s_i (Q_i - Y_i) [x_i 1]^T of any distributions Q whose class totals equal
those of Y (only then is an unpenalised intercept optimal),

    min F >= D(Q) = (1/S) sum_i s_i H(Q_i) - 1/(2 l2) sum max(|G(Q)| - l1, 0)^2,     intercepts left out.

H is the entropy. At the optimum Q = P attains the minimum. There is no bound without a penalty.
"""

import numpy as np
from scipy.special import entr

from softreg import _rounding
from softreg._design_matrix import CACHED_NUMBERS
from softreg._feature_blocks import FeatureBlocks, feature_blocks
from softreg._inner_products import inner, squared_norm

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
    coef = FeatureBlocks(lambda block: objective.coef(W)[:, block].astype(np.float64))
    of_gradient = FeatureBlocks(lambda block: _gradient_of_loss(linearization, block))
    G = FeatureBlocks(lambda block: _enlarged(objective, of_gradient[:, block], W[:, block], block))
    allowance = _allowance(objective, G, loss)
    by_entropy = max(dual_bound(objective, linearization.entropy(), G) - allowance, 0.0)  # F >= 0
    if allowance <= NEGLIGIBLE * (loss - by_entropy):
        return by_entropy
    with np.errstate(over="ignore", invalid="ignore"):
        penalty = products = magnitudes = 0.0
        for block in feature_blocks(objective):
            product = of_gradient[:, block] * W[:, block]
            products, magnitudes = products + np.sum(product), magnitudes + np.sum(np.abs(product))
        for block in feature_blocks(objective, intercepts=False):
            penalty += 0.5 * objective.l2 * np.sum(coef[:, block] ** 2)
        of_loss = loss - penalty - products
        # the difference itself is made in float64
        allowance = 4 * np.finfo(np.float64).eps * (loss + penalty + magnitudes)
    if not np.isfinite(of_loss):
        return by_entropy
    by_loss = dual_bound(objective, of_loss, G) - allowance - _rounding.of_loss(objective, W, loss)
    along = FeatureBlocks(lambda block: coef[:, block] + penalty_derivative(objective, G[:, block]))
    return max(by_entropy, by_loss - _rounding.of_sums(objective, loss, along, coef))


def bound_of_gradient(linearization):
    """Return the `lower_bound` of a smooth objective without the repair of the class totals and without rounding.

    That takes three inner products. It is not proven, and tells whether `lower_bound` is worth its cost.
    """
    objective, W, gradient = linearization.objective, linearization.W, linearization.gradient
    if not objective.l2:
        return 0.0
    coef, of_coef = objective.coef(W), objective.coef(gradient)
    square, product = squared_norm(coef), inner(of_coef, coef)
    entropy = linearization.value + 0.5 * objective.l2 * square - inner(gradient, W)
    squares = squared_norm(of_coef) - 2 * objective.l2 * product + objective.l2**2 * square
    return smooth_bound(objective.l2, max(entropy, 0.0), max(squares, 0.0))


def _gradient_of_loss(linearization, block):
    """Return the gradient of the mean loss, without that of the penalty, in the columns `block`, float64."""
    objective, G = linearization.objective, linearization.gradient[:, block].astype(np.float64)
    if block.start < objective.n_features:
        G -= objective.l2 * linearization.W[:, block].astype(np.float64)
    return G


def _enlarged(objective, G, W, block):
    """Return the columns `block` of G, each number larger by the rounding of the penalty's gradient."""
    if block.start >= objective.n_features:
        return G
    rounding = float(np.finfo(objective.dtype).eps) * objective.l2 * np.abs(W.astype(np.float64))
    return G + np.copysign(rounding, G)


def bound_of_distributions(objective, entropy, G, loss, dtype=None, long=()):
    """Return a proven lower bound on min F, from the mean entropy and G of distributions, and the loss near there.

    Both were computed in `dtype`, by default the objective's, and the columns of G of the features `long` from sums in
    long double; the bound leaves room for the rounding. G is an array like W, or FeatureBlocks.
    """
    return max(dual_bound(objective, entropy, G) - _allowance(objective, G, loss, dtype, long), 0.0)  # F >= 0


def _allowance(objective, G, loss, dtype=None, long=()):
    """Return how far rounding may have raised a bound that is made from the entropy and G of distributions."""
    along = FeatureBlocks(lambda block: penalty_derivative(objective, G[:, block]))
    return _rounding.of_sums(objective, loss, along, dtype=dtype, long=long) + _rounding.of_entropy(objective, dtype)


def penalty_derivative(objective, G):
    """Return the derivative of 1/(2 l2) sum max(|G| - l1, 0)^2 in G: -W at the optimum; zeros without l2.

    G is an array like W, of which the intercepts are left out, or some columns of features of one.
    """
    G = objective.coef(G)
    excess = np.maximum(np.abs(G) - objective.l1, 0) / objective.l2 if objective.l2 else 0.0
    return np.copysign(excess, G)


def dual_point(linearization):
    """Return what `dual_bound` takes at Q = P: the mean entropy of the probabilities, and G of them, float64."""
    objective, G = linearization.objective, np.array(linearization.gradient, np.float64)
    objective.coef(G)[...] -= objective.l2 * objective.coef(linearization.W).astype(np.float64)
    return linearization.entropy(), G


def dual_point_along(linearization, step=None, long=()):
    """Return what `dual_point` does, at the probabilities and their first-order change along a step, an array like W.

    Where a probability would fall below zero, see `move_along`; elsewhere G changes as the gradient of the quadratic
    model does. A step that minimises the model meets the optimality conditions, which the probabilities at its end do
    only in the limit of short steps. So the bound is as sharp as the model. Sums are in float64 for any dtype, those of
    the features `long` in long double.
    """
    objective, shares = linearization.objective, linearization.objective.shares().astype(np.float64)
    entropy, G = 0.0, np.zeros(objective.shape, order=objective.design.order)
    long_sums = np.zeros((objective.n_classes, len(long)), np.longdouble)
    for block in objective.blocks(CACHED_NUMBERS):
        # in Fortran order, as NumPy is slow along few classes
        design, P = objective.design.select(block), linearization.probabilities(block).astype(np.float64, order="F")
        if step is not None:
            move_along(P, design.logits(step).astype(np.float64, order="F"))
        logs = np.log(np.maximum(P, np.finfo(np.float64).tiny))
        entropy -= shares[block] @ np.einsum("ik,ik->i", P, logs)
        P -= objective.distributions(block)
        P *= shares[block, None]
        G += design.accumulate_float64(P)
        long_sums += design.accumulate_long(P, long)
    if len(long):
        G[:, long] = long_sums
    return entropy, G


def move_along(P, Z):
    """Add to P (m, K) INOUT its first-order change where the logits change by Z (m, K), or as much as keeps P >= 0."""
    Z -= np.einsum("ik,ik->i", P, Z)[:, None]
    Z += 1
    P *= np.maximum(Z, 0, out=Z)
    P /= P.sum(axis=1, keepdims=True)


def dual_bound(objective, entropy, G):
    """Return a proven lower bound on min F, from the mean entropy of distributions Q, and G(Q).

    G is an array like W, or FeatureBlocks.

    Q meets the condition on the class totals only where the intercept's column g of G is zero. So the bound is that
    of other distributions, u ((1 - t) Q + t r) + (1 - u) Y. A share t of the constant distribution r = y - g (1-t)/t,
    the smallest that keeps r >= 0, repairs the totals y. And the u in [0, 1] is the best. H is concave, so they have
    at least the entropy h = u ((1 - t) H(Q) + t H(r)).

    u h - sum max(u a - l1, 0)^2 / (2 l2), with a = |G|, is largest where sum a max(u a - l1, 0) = l2 h. Over the m
    largest a, and without the max, that is u = (l2 h + l1 sum a) / sum a^2, and the right m gives the least u. Without
    l2, that is l1 over the largest a. Without l1 all a count.
    """
    l1, l2, d = objective.l1, objective.l2, objective.n_features
    sizes = FeatureBlocks(lambda block: np.abs(G[:, block]))
    if objective.fit_intercept:
        t, r = repair_of_totals(objective.class_shares(), np.asarray(G[:, slice(d, d + 1)], np.float64)[:, 0])
        if t > 0:
            entropy = (1 - t) * entropy + t * np.sum(entr(r))
            M = objective.class_moments()
            sizes = FeatureBlocks(lambda block: np.abs((1 - t) * G[:, block] + t * _of_constant(r, M[:, block])))
    entropy, blocks = max(entropy, 0.0), list(feature_blocks(objective, intercepts=False))
    with np.errstate(over="ignore", invalid="ignore"):
        if not l1:
            return smooth_bound(l2, entropy, sum(np.sum(sizes[:, block] ** 2) for block in blocks))
        large = [a[~(a <= l1)] for a in (sizes[:, block] for block in blocks)]  # NaN stays
        a = np.sort(np.concatenate([np.zeros(0), *large]))[::-1]
        squares = np.cumsum(a * a)
    if not len(a):
        return entropy
    if not np.isfinite(squares[-1]):
        return 0.0
    u = min(1.0, np.min((l2 * entropy + l1 * np.cumsum(a)) / squares))
    return u * entropy - (np.sum(np.maximum(u * a - l1, 0) ** 2) / (2 * l2) if l2 else 0.0)


def repair_of_totals(totals, g):
    """Return the t and r of `dual_bound`, for the class totals (K,) and the intercept column g of G (K,), float64."""
    g = g - g.mean()  # they sum to zero but for rounding
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.max(np.where(g > 0, g / (totals + g), 0.0), initial=0.0)
    if not t > 0:
        return 0.0, totals
    r = np.maximum(totals - g * ((1 - t) / t), 0)
    return t, r / r.sum()


def smooth_bound(l2, entropy, squares):
    """Return the `dual_bound` without l1, for distributions with that mean entropy >= 0 and sum of G^2."""
    if squares == 0:
        return entropy
    u = min(1.0, l2 * entropy / squares)
    return u * entropy - u * u * squares / (2 * l2) if np.isfinite(squares) else 0.0


def _of_constant(r, M):
    """Return columns of G of the distribution r (K,) in all rows, from those of the class moments M, float64."""
    M = M.astype(np.float64)
    return r[:, None] * M.sum(axis=0) - M
