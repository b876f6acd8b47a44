"""How far rounding may carry a lower bound on min F above the true one."""

import numpy as np

PARTS = 16  # of the rows, whose gradients are summed apart: MAX_PARTS of `_core.pyx`
LANES = 16  # running sums of a dot product of float32
LUCK = 10.0  # standard deviations of a sum of rounding errors: 1e-23 is the chance of a larger one


def column_sizes(objective):
    """Root mean squares of the features over the rows of an objective, by weight, shape (d,): one pass."""
    squares = objective.squares_product(objective.shares()[:, None].copy())[: objective.n_features, 0]
    return np.sqrt(squares.astype(np.float64))


def rounding_allowance(objective, W, loss, gradient, sizes):
    """Return by how much a computed `dual_bound` at the probabilities of W may exceed min F.

    The bound is D = L - <G, W> - ||G||^2 / (2 l2) (+ terms of the penalty, computed in float64), with L the mean loss
    and G the gradient of L. Any probabilities Q make it true, so the rounding of logits counts only where L and G speak
    of different ones. With u the unit roundoff of the dtype and eps = 2 u, three things do not cancel:

    1. The loss of a row, log_total - fit, is made of two numbers of the dtype. log_total in [0, log K] is the log of a
       sum that is right to 3 eps (exp to 2 ulp, a compensated sum); fit >= -loss. Their mean over the rows is made in
       float64, whose rounding vanishes beside it: 3 eps + eps (2 log K + loss). It does not shrink with n: sums that
       are nearly one are all rounded the same way.
    2. The computed logits Z' differ from X W^T by some (d / 16 + 6) u sum_j |w_j x_j|, as dot products run in 16 lanes.
       L is the loss at Z', <G, W> is made at X W^T: D is off by the mean of <p - y, Z' - X W^T>. |p - y|_1 is at most
       2 min(loss, 1) of its row; the size of a logit is taken from the root mean squares of the features.
    3. Gradients are summed in the dtype, row after row, in 16 parts. The error E of n / 16 additions that are rounded
       independently is some LUCK sqrt(n / 16) u times the sum of the magnitudes (Higham and Mary 2019), which is at
       most rms(x_j) rms(p_k - y_k), and sum_k (p_k - y_k)^2 <= 2 min(loss, 1) on average. Intercepts are summed in
       float64. Near the optimum E cancels: D moves by <E, W + G / l2> = <E, dF/dW> / l2, and E^2 only lowers it.
       For l2 = 0 the bound is (L - <G, W>) l1 / max |G|, which E moves by ||E|| (||W|| + L / l1).

    n of the order of 1 / u = 1.6e7 rows a part, 2.7e8 in all, ends the independence of 3 for float32.

    Parameters
    ----------
    objective : Objective
    W, gradient : arrays of shape (K, p), and the gradient of its smooth part there
    loss : float, F(W)
    sizes : array of shape (d,), from `column_sizes`

    Returns
    -------
    allowance : float, not negative
    """
    unit = float(np.finfo(objective.dtype).eps) / 2
    n, d, K = objective.n_rows, objective.n_features, objective.n_classes
    coef = np.asarray(objective.coef(W), np.float64)
    of_losses = 2 * unit * (3 + 2 * np.log(K) + loss)
    far = 2 * min(loss, 1.0)  # the mean of |p - y|_1, and of its square
    of_logits = (d / LANES + 6) * unit * np.max(np.abs(coef) @ sizes, initial=0.0) * far
    error = LUCK * np.sqrt(n / PARTS + PARTS) * unit * np.linalg.norm(sizes) * np.sqrt(far)
    if objective.l2:
        slope = np.linalg.norm(np.asarray(objective.coef(gradient), np.float64)) / objective.l2
    else:
        slope = np.linalg.norm(coef) + (loss / objective.l1 if objective.l1 else 0.0)
    return float(of_losses + of_logits + error * slope)
