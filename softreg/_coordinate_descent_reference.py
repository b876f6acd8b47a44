"""NumPy twins of the kernels in `_coordinate_descent.pyx`: same names, same signatures, a few lines each.

They are the specification that the tests hold the kernels against.
"""

import numpy as np
from scipy.linalg import lapack
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


def newton_step(H, l1, shared, g, w):
    """Go towards the minimum of the model over the coordinates that are not zero or not penalised.

    The step goes to the minimum along its line, where the penalty has kinks, or stops each coordinate at zero that it
    would take across, whichever is lower. H (m, m) is symmetric. Each row of shared (q, K) has the positions of one
    feature's coordinates in all classes, of which H does not see a common shift: the step has none. w (m,) INOUT
    changes by the step, with exact zeros, and g (m,) INOUT, the gradient of the quadratic, too.
    """
    S = np.flatnonzero((w != 0) | (l1 == 0))
    if not len(S):
        return
    position = np.full(len(w), -1)
    position[S] = np.arange(len(S))
    complete = position[shared]
    complete = complete[(complete >= 0).all(axis=1)]
    penalty, v = l1[S], w[S]
    slope = g[S] + np.sign(v) * penalty
    step = -_solve(H[np.ix_(S, S)], complete, slope)
    curved = H[:, S] @ step
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = np.where((penalty > 0) & (v * step < 0), -v / step, np.inf)  # where along the step each becomes zero
    t, least = _line_minimum(slope @ step, step @ curved[S], kinks, 2 * penalty * np.abs(step))
    zero = kinks == t
    ends = kinks <= 1 + 1e-9  # what is left of the others is rounding
    if ends.any():  # as an alternative, stop these at zero and let the others go all the way
        projected = np.where(ends, -v, step)
        other = H[:, S] @ projected
        if slope @ projected + 0.5 * projected @ other[S] < least:
            t, step, curved, zero = 1.0, projected, other, ends
    g += t * curved
    w[S] = np.where(zero, 0, v + t * step)


def _solve(A, shared, b):
    """Return A^-1 b for a positive semidefinite A, which is lost.

    Shifts of a feature's weight in all classes are no part of the solution: A does not see them. Other directions
    without curvature are damped by as much as rounding asks for.
    """
    A[shared[:, :, None], shared[:, None, :]] += A[shared, shared].mean(axis=1)[:, None, None]
    scale = A.diagonal()
    scale = 1 / np.sqrt(np.where(scale > 0, scale, 1))
    A *= scale[:, None] * scale
    diagonal = np.diag_indices_from(A)
    for ridge in (1e-13, 1e-10, 1e-8, 1e-6, 1e-3, 1):
        A[diagonal] += ridge
        factor, info = lapack.dpotrf(A, lower=1)
        if info == 0:
            break
    return scale * lapack.dpotrs(factor, scale * b, lower=1)[0]


def _line_minimum(slope, curvature, kinks, rise):
    """Minimise slope t + curvature/2 t^2 + sum_j rise_j max(t - kinks_j, 0) over t in (0, 1]; return t and the value.

    t is one of the kinks exactly where the minimum is there.
    """
    order = np.argsort(kinks)
    order = order[kinks[order] < 1]
    kinks, rise = kinks[order], rise[order]
    after = slope + kinks * curvature + np.cumsum(rise)  # the slope just beyond each kink
    i = int(np.argmax(after >= 0)) if (after >= 0).any() else len(kinks)
    if i < len(kinks) and after[i] - rise[i] <= 0:
        t = kinks[i]
    else:
        t = -(slope + rise[:i].sum()) / curvature if curvature > 0 else 1.0
        t = min(t, 1.0)
    return t, slope * t + 0.5 * curvature * t * t + rise @ np.maximum(t - kinks, 0)


def shift_classes(shared, l1, l2, g, w):
    """Shift the weights of a feature in all classes, which the loss does not see, to where the penalty is least.

    Each row of shared (q, K) has the positions of one feature. w (m,) INOUT changes, and g (m,) INOUT, the gradient of
    the loss and of l2, too.
    """
    K = shared.shape[1]
    for at in shared[l1[shared[:, :1]].ravel() > 0]:
        v, penalty, ridge, slope = w[at], l1[at[0]], l2[at[0]], g[at].sum()
        if np.abs(slope + penalty * np.sign(v).sum()) <= penalty * ((v == 0).sum() + 1e-9):
            continue  # the penalty is least already
        kinks = np.sort(-v)  # shifts that make a weight zero; the slope of the penalty jumps there
        after = slope + K * ridge * kinks + penalty * (2 * np.arange(1, K + 1) - K)
        i = int(np.argmax(after >= -1e-9 * penalty)) if (after >= -1e-9 * penalty).any() else K - 1
        shift, before = kinks[i], after[i] - 2 * penalty
        if before > 1e-9 * penalty and ridge > 0:
            shift -= before / (K * ridge)
        v += shift
        v[np.abs(v) <= 1e-13 * np.abs(shift)] = 0  # what is left of equal weights is rounding
        w[at] = v
        g[at] += ridge * shift


def minimize_quadratic(
    H, l1, l2, shared, g, w, tolerance, small, largest, max_rounds, max_sweeps, small_gain
):  # fmt: skip
    """Minimise what `quadratic_descent` does, by that and by Newton steps in turn; return the decrease.

    Rounds end where no optimality condition is violated by more than the tolerance, or where the decrease is more than
    `small` and the last round had no more than the share small_gain of it. A Newton step is taken where it is over
    `largest` coordinates at most; weights are then shifted. H contains l2 on its diagonal.
    """
    before, first, decrease = w.copy(), g.copy(), 0.0
    for _ in range(max_rounds):
        quadratic_descent(H, l1, g, w, tolerance, max_sweeps)
        last, decrease = decrease, -0.5 * (w - before) @ (g + first) - l1 @ (np.abs(w) - np.abs(before))
        worst = max(_violation(*at) for at in zip(w, g, l1, strict=True))
        if worst <= tolerance or (decrease > small and decrease - last <= small_gain * decrease):
            break
        if np.count_nonzero((w != 0) | (l1 == 0)) <= largest:
            newton_step(H, l1, shared, g, w)
            shift_classes(shared, l1, l2, g, w)
    return decrease


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
