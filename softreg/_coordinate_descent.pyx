# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""Coordinate descent on quadratic models with an l1 penalty. `_coordinate_descent_reference.py` says what is computed.

A result depends on the order of the coordinates alone: each function runs on one thread, without the GIL.
"""

from libc.math cimport fabs, fmax
from scipy.linalg.cython_blas cimport daxpy


ctypedef fused floating:
    float
    double

ctypedef fused index_t:
    int
    long long


cdef inline double _minimizer(double w, double slope, double curvature, double l1) noexcept nogil:
    """Return the v with the least slope (v - w) + curvature/2 (v - w)^2 + l1 |v|; w where nothing holds v."""
    cdef double x, reach
    if curvature <= 0:
        return 0 if l1 > 0 else w
    x = w - slope / curvature
    reach = l1 / curvature
    return x - reach if x > reach else (x + reach if x < -reach else 0)


cdef inline double _violation(double w, double slope, double l1) noexcept nogil:
    """Return the least |slope + l1 u| over the subgradients u of |w|."""
    return fmax(fabs(slope) - l1, 0) if w == 0 else fabs(slope + (l1 if w > 0 else -l1))


def quadratic_descent(
    const double[:, ::1] H, const double[::1] l1, double[::1] g, double[::1] w, double tolerance,
    Py_ssize_t max_sweeps,
):
    """Minimise g^T (v - w) + 1/2 (v - w)^T H (v - w) + sum_j l1_j |v_j| over v, one coordinate after the other.

    w (m,) INOUT becomes v, g (m,) INOUT the gradient of the quadratic there. H is symmetric. A sweep over all
    coordinates is followed by sweeps over those that are not zero, until none of these violates its optimality
    condition by more than the tolerance; then all are visited again. Return the number of sweeps.
    """
    cdef Py_ssize_t j, sweeps = 0
    cdef int m = <int>g.shape[0], one = 1
    cdef double step, worst
    cdef bint all_coordinates = True
    with nogil:
        while sweeps < max_sweeps:
            sweeps += 1
            worst = 0
            for j in range(m):
                if w[j] == 0 and l1[j] > 0 and not all_coordinates:
                    continue
                worst = fmax(worst, _violation(w[j], g[j], l1[j]))
                step = _minimizer(w[j], g[j], H[j, j], l1[j]) - w[j]
                if step != 0:
                    w[j] += step
                    daxpy(&m, &step, <double*>&H[j, 0], &one, &g[0], &one)
            if worst <= tolerance and all_coordinates:
                break
            all_coordinates = worst <= tolerance
    return sweeps


cdef inline double _column_slope(
    const floating* x, const index_t* at, Py_ssize_t count, const double* p, const double* s, const double* z,
    const double* mean, const double* plain, double share
) noexcept nogil:
    """Return sum_i s_i x_i (p_i (z_i - mean_i) + share (z_i - plain_i)); x NULL stands for ones in all rows."""
    cdef Py_ssize_t t, i
    cdef double total = 0
    if x == NULL:
        for i in range(count):
            total += s[i] * (p[i] * (z[i] - mean[i]) + share * (z[i] - plain[i]))
    elif share == 0:
        for t in range(count):
            i = at[t]
            total += x[t] * s[i] * p[i] * (z[i] - mean[i])
    else:
        for t in range(count):
            i = at[t]
            total += x[t] * s[i] * (p[i] * (z[i] - mean[i]) + share * (z[i] - plain[i]))
    return total


cdef inline double _column_curvature(
    const floating* x, const index_t* at, Py_ssize_t count, const double* p, const double* s, double share
) noexcept nogil:
    """Return sum_i s_i x_i^2 (p_i (1 - p_i) + share); x NULL stands for ones in all rows."""
    cdef Py_ssize_t t, i
    cdef double total = 0
    if x == NULL:
        for i in range(count):
            total += s[i] * (p[i] * (1 - p[i]) + share)
    else:
        for t in range(count):
            i = at[t]
            total += s[i] * (p[i] * (1 - p[i]) + share) * x[t] * x[t]
    return total


cdef inline void _column_move(
    const floating* x, const index_t* at, Py_ssize_t count, const double* p, double step, double per_class, double* z,
    double* mean, double* plain
) noexcept nogil:
    """Add step * x to z, and what this changes in the means over the classes; x NULL stands for ones in all rows."""
    cdef Py_ssize_t t, i
    cdef double change
    if x == NULL:
        for i in range(count):
            z[i] += step
            mean[i] += p[i] * step
            plain[i] += per_class * step
    else:
        for t in range(count):
            i = at[t]
            change = step * x[t]
            z[i] += change
            mean[i] += p[i] * change
            plain[i] += per_class * change


def column_descent(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] columns,
    const Py_ssize_t[::1] classes, const double[:, ::1] P, const double[::1] s, double damping, double per_class,
    const double[::1] slopes, const double[::1] l2, const double[::1] l1, double[::1] w, double[:, ::1] Z,
    double[:, ::1] means, double[::1] g, double tolerance, Py_ssize_t max_sweeps,
):
    """Do the same as `quadratic_descent` with the Hessian of the softmax loss, from the columns of X.

    Coordinate c is the weight of column columns[c] of X (CSC, n rows), or of ones where that is -1, in the class of
    row classes[c] of P (L, n), the probabilities. The slopes are those of the loss at Z = 0; its Hessian is

        sum_i s_i (diag(p_i) - p_i p_i^T + damping/2 (I - per_class 1 1^T)) (x) x_i x_i^T.

    w (m,) INOUT becomes v. Z (L, n) INOUT are the logits of v, less those where the slopes were taken, and means (2, n)
    INOUT are sum_k P_k Z_k and per_class sum_k Z_k. g (m,) OUT is the gradient of the loss's model and of l2 at v.
    """
    cdef Py_ssize_t m = w.shape[0], n = P.shape[1], c, k, low, count, sweeps = 0
    cdef double step, worst, share = 0.5 * damping
    cdef double[::1] h = w.copy()
    cdef const floating* x
    cdef const index_t* at
    cdef double* mean = &means[0, 0]
    cdef double* plain = &means[1, 0]
    cdef bint all_coordinates = True, is_last = False
    with nogil:
        while True:
            worst = 0
            for c in range(m):
                if w[c] == 0 and l1[c] > 0 and not all_coordinates:
                    continue
                k = classes[c]
                x = NULL
                at = NULL
                count = n
                if columns[c] >= 0:
                    low = indptr[columns[c]]
                    count = indptr[columns[c] + 1] - low
                    x = &data[0] + low
                    at = &indices[0] + low
                if sweeps == 0:
                    h[c] = l2[c] + _column_curvature(x, at, count, &P[k, 0], &s[0], share * (1 - per_class))
                g[c] = slopes[c] + l2[c] * w[c]
                g[c] += _column_slope(x, at, count, &P[k, 0], &s[0], &Z[k, 0], mean, plain, share)
                if is_last:
                    continue
                worst = fmax(worst, _violation(w[c], g[c], l1[c]))
                step = _minimizer(w[c], g[c], h[c], l1[c]) - w[c]
                if step != 0:
                    w[c] += step
                    _column_move(x, at, count, &P[k, 0], step, per_class, &Z[k, 0], mean, plain)
            if is_last:
                break
            sweeps += 1
            is_last = sweeps == max_sweeps or (worst <= tolerance and all_coordinates)
            all_coordinates = is_last or worst <= tolerance
    return sweeps
