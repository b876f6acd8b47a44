"""NumPy twins of the kernels in `_coordinate_descent.pyx`: same names, same signatures, a few lines each.

They are the specification that the tests hold the kernels against.
"""

import numpy as np
from scipy.sparse import csc_array


def quadratic_descent(H, l1, g, w, tolerance, max_sweeps):
    """Minimise g^T (v - w) + 1/2 (v - w)^T H (v - w) + sum_j l1_j |v_j| over v, one coordinate after the other.

    w (m,) INOUT becomes v, g (m,) INOUT the gradient of the quadratic there. H is symmetric. A sweep over all
    coordinates is followed by sweeps over those that are not zero, until none of these violates its optimality
    condition by more than the tolerance; then all are visited again. Return the number of sweeps.
    """

    def move(j, step):
        g[:] += step * H[j]

    return _sweeps(w, l1, lambda j: g[j], H.diagonal(), move, tolerance, max_sweeps)


def column_descent(
    data, indices, indptr, columns, classes, P, s, damping, per_class, slopes, l2, l1, w, Z, means, g, tolerance,
    max_sweeps,
):  # fmt: skip
    """Do the same as `quadratic_descent` with the Hessian of the softmax loss, from the columns of X.

    Coordinate c is the weight of column columns[c] of X (CSC, n rows), or of ones where that is -1, in the class of
    row classes[c] of P (L, n), the probabilities. The slopes are those of the loss at Z = 0; its Hessian is

        sum_i s_i (diag(p_i) - p_i p_i^T + damping/2 (I - per_class 1 1^T)) (x) x_i x_i^T.

    w (m,) INOUT becomes v. Z (L, n) INOUT are the logits of v, less those where the slopes were taken, and means (2, n)
    INOUT are sum_k P_k Z_k and per_class sum_k Z_k. g (m,) OUT is the gradient of the loss's model and of l2 at v.
    """
    n = P.shape[1]
    X = csc_array((data, indices, indptr), shape=(n, len(indptr) - 1)).toarray()
    X = np.column_stack([X, np.ones(n)]).astype(np.float64)[:, columns]  # column -1 is that of ones

    def slope(c):
        k = classes[c]
        curved = P[k] * (Z[k] - means[0]) + 0.5 * damping * (Z[k] - means[1])
        return slopes[c] + l2[c] * w[c] + X[:, c] @ (s * curved)

    def move(c, step):
        k = classes[c]
        Z[k] += step * X[:, c]
        means[0] += step * P[k] * X[:, c]
        means[1] += step * per_class * X[:, c]

    p = P[classes].T
    h = l2 + s @ ((p * (1 - p) + 0.5 * damping * (1 - per_class)) * X**2)
    sweeps = _sweeps(w, l1, slope, h, move, tolerance, max_sweeps)
    g[:] = [slope(c) for c in range(len(w))]
    return sweeps


def _sweeps(w, l1, slope, curvature, move, tolerance, max_sweeps):
    """Run sweeps over the coordinates of w INOUT; `move(j, step)` is told of every step."""
    all_coordinates, sweeps = True, 0
    while sweeps < max_sweeps:
        sweeps += 1
        worst = 0.0
        for j in range(len(w)) if all_coordinates else np.flatnonzero((w != 0) | (l1 == 0)):
            worst = max(worst, _violation(w[j], slope(j), l1[j]))
            step = _minimizer(w[j], slope(j), curvature[j], l1[j]) - w[j]
            w[j] += step
            move(j, step)
        if worst <= tolerance and all_coordinates:
            break
        all_coordinates = worst <= tolerance
    return sweeps


def _minimizer(w, slope, curvature, l1):
    """Return the v with the least slope (v - w) + curvature/2 (v - w)^2 + l1 |v|; w where nothing holds v."""
    if curvature <= 0:
        return 0.0 if l1 > 0 else w
    x = w - slope / curvature
    return np.sign(x) * max(abs(x) - l1 / curvature, 0.0)


def _violation(w, slope, l1):
    """Return the least |slope + l1 u| over the subgradients u of |w|."""
    return max(abs(slope) - l1, 0.0) if w == 0 else abs(slope + np.sign(w) * l1)
