"""The allowance for rounding: a bound on the distance of a computed lower bound on min F above the true one."""

import numpy as np

PARTS = 16  # parts of the rows, each with sums of its own: MAX_PARTS of `_core.pyx`
LANES = 16  # running sums of a dot product of float32
DEVIATIONS = 10.0  # standard deviations of a sum of rounding errors: 1e-23 is the chance of a larger one


def rounding_allowance(objective, W, loss, gradient):
    """Return the most by which a computed `lower_bound` at W may exceed min F.

    The bound is D = H - ||G||^2 / (2 l2) (+ terms of the penalty, computed in float64), with H the mean entropy of the
    probabilities and G the gradient of the mean loss. Any probabilities give a true bound, so the rounding of logits
    counts only as far as H and G are made of different probabilities. With u the unit roundoff of the dtype, two errors
    do not cancel:

    1. Probabilities are right to a few u, and the entropy of a row to 6 u + 2 u (log K + loss). This error does not
       shrink with n: probabilities that are nearly one are all rounded the same way.
    2. Gradients are summed in the dtype, row after row, in 16 parts. The error E_kj of n / 16 additions that are
       rounded independently has a deviation of sqrt(n / 16 + 16) u times the magnitudes, which are at most
       rms(x_j) rms(p_k - y_k) (Higham and Mary 2019), and sum_k (p_k - y_k)^2 <= 2 min(loss, 1) on average. Intercepts
       are summed in float64. Near the optimum E cancels: D moves by <E, W + G / l2> = <E, dF/dW> / l2, and E^2 only
       lowers D. For l2 = 0 the bound is H l1 / max |G|, which moves by the largest E_kj times loss / l1.

    Rounding errors that are not independent (n of the order of 1 / u rows in a part, 2.7e8 rows in all for float32)
    would need more.

    Parameters
    ----------
    objective : Objective
    W, gradient : arrays of shape (K, p), and the gradient of F without l1 there
    loss : float, F(W)

    Returns
    -------
    allowance : float, not negative
    """
    unit, sizes = float(np.finfo(objective.dtype).eps) / 2, objective.column_sizes()
    of_entropy = unit * (6 + 2 * (np.log(objective.n_classes) + loss))
    slope = np.asarray(objective.coef(gradient), np.float64)
    if objective.l2:
        moved = np.linalg.norm(slope * sizes) / objective.l2
    else:
        moved = np.max(sizes, initial=0.0) * loss / objective.l1
    deviation = np.sqrt(objective.n_rows / PARTS + PARTS) * unit * np.sqrt(2 * min(loss, 1.0))
    return float(of_entropy + DEVIATIONS * deviation * moved)
