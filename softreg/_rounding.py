"""Allowances for rounding: it may carry a computed lower bound on min F above the true one.

A bound is made from the mean entropy H of the probabilities P = softmax(Z') at the computed logits Z' of W, and from
the gradient G of the mean loss. Any probabilities make a true bound. So the rounding of logits counts only where H and
G belong to different ones. H is known in two ways, which are the same number in exact arithmetic:

    H = -mean_i sum_k p_ik log p_ik,        H = L - <G, W>,     L the mean loss.

The error E of the sums in G moves a bound H - ||G||^2 / (2 l2) by -<E, G> / l2 in the first case. Near the optimum,
where G = -l2 W, that is <E, W>. In the second case it moves the bound by -<E, W + G / l2> = -<E, dF/dW> / l2, next to
nothing near the optimum. There H has the rounding of Z' and of L in place of that, and where L is large, all digits of
H may be lost. Each way has its own allowance here, so `_duality` takes the better of the two bounds.

Below, u is the unit roundoff of the dtype, |p - y|_1 is at most 2 min(loss, 1) on average, and so is
sum_k (p_k - y_k)^2. Sums of independent rounding errors are taken as `DEVIATIONS` standard deviations: a sum of n
numbers, one after the other, has an error of sqrt(n) u times the sum of their magnitudes (Higham and Mary 2019).
Where errors are not independent (sums of more than some 1 / u numbers, 1.7e7 for float32), they may be larger.
"""

import numpy as np

from softreg._feature_blocks import feature_blocks

DEVIATIONS = 10.0  # 1e-23 is the chance of a larger error


def of_entropy(objective, dtype=None):
    """Return the rounding of the mean entropy of probabilities of a dtype, by default the objective's.

    A probability is right to 8 u (4 ulp), its logarithm to 2 u; sums over K classes are rounded K times. The mean over
    the rows is made in float64, but does not help: probabilities that are nearly one are all rounded the same way.
    """
    K = objective.n_classes
    return _unit(objective, dtype) * (8 + (10 + np.sqrt(K)) * np.log(K))


def of_loss(objective, W, loss):
    """Return the rounding of L - <G, W> at W (K, p), F(W) = loss, without that of the sums in G.

    The loss of a row is made of two numbers of the dtype: the log of a sum, in [0, log K] and right to 6 u, and the
    logits of its targets, at least -loss. The logits differ from X W^T by the rounding of sums over the features of
    sum_j |w_j x_j|, whose size is taken from the root mean squares of the features. That error meets p - y.
    """
    d, sizes, logits = objective.n_features, objective.column_sizes(), np.zeros(objective.n_classes)
    for block in feature_blocks(objective, intercepts=False):
        logits += np.abs(np.asarray(W[:, block], np.float64)) @ sizes[block]
    of_logits = (min(d, DEVIATIONS * np.sqrt(d)) + 2) * np.max(logits, initial=0.0)
    of_losses = 6 + 4 * np.log(objective.n_classes) + 2 * loss
    return _unit(objective) * (of_losses + of_logits * 2 * min(loss, 1.0))


def of_sums(objective, loss, along, of_entropy=None, dtype=None, long=()):
    """Return how far the rounding of the sums in G may move a bound, of which the entropy may be a function of G, too.

    Sums over the rows are sums of numbers whose mean magnitude is at most rms(x_j) rms(p_k - y_k). Intercepts are
    summed in float64. Beside that, each p - y is right to 4 u, maybe for all rows in the same direction.

    With l2 the bound moves by its derivative in G times the error. With l1 there is another limit, which holds for any
    l2: errors of at most e in G are made up for by scaling the distributions by l1 / (l1 + e), which takes e / l1 of
    the entropy, at most twice the loss where a bound is near it.

    Parameters
    ----------
    objective : Objective
    loss : float
    along : array (K, d) or FeatureBlocks, the derivative of the bound in G; not used without l2
    of_entropy : array (K, d) or FeatureBlocks, the derivative of the entropy in G; None for zero
    dtype : of the sums, if it is not that of the objective
    long : features whose sums are in long double, where that is told apart: in the limit by l1
    """
    sizes = objective.column_sizes().astype(np.float64)
    of_sum = _of_sum(objective.design.longest_sum, loss)

    def moved(derivative):
        squares = lengths = 0.0
        for block in feature_blocks(objective, intercepts=False) if derivative is not None else ():
            D, x = derivative[:, block], sizes[block]
            squares, lengths = squares + np.sum((D * x) ** 2), lengths + np.linalg.norm(D, axis=0) @ x
        return of_sum * np.sqrt(squares) + 4 * lengths

    limits = [moved(along)] if objective.l2 else []
    if objective.l1:
        each = np.full(len(sizes), of_sum)
        each[list(long)] = _of_sum(objective.n_rows, loss) * _unit(objective, np.longdouble) / _unit(objective, dtype)
        limits.append(moved(of_entropy) + np.max((each + 4) * sizes, initial=0.0) * 2 * loss / objective.l1)
    return _unit(objective, dtype) * float(min(limits))


def long_features(objective, loss, allowed):
    """Return the features whose sums have to be in long double, (m,), to move a bound with l1 by at most `allowed`."""
    moved = _unit(objective, np.float64) * _of_sum(objective.design.longest_sum, loss) * 2 * loss / objective.l1
    return np.flatnonzero(moved * objective.column_sizes() > allowed)


def _of_sum(length, loss):
    """Return the rounding of sums of so many numbers, in units of u and of their root mean square."""
    return DEVIATIONS * np.sqrt(length * 2 * min(loss, 1.0))


def _unit(objective, dtype=None):
    return float(np.finfo(dtype or objective.dtype).eps) / 2
