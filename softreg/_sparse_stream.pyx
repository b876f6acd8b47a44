# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""The compiled pass over a stream of sparse rows. `_sparse_stream_reference.py` says what it computes.

A row is met four times: its features are measured, its logits are summed, the strengths of its features grow, and its
gradient is added. It stays in the nearest cache meanwhile, and the rows of theta are fetched from memory once.
"""

from libc.math cimport exp, fabs, isfinite, log, sqrt
from libc.stdlib cimport free, malloc

from softreg cimport _narrow_leaves, _wide_leaves
from softreg._simd cimport floating, index_t, is_wide, matrix_pointer, ndouble, nfloat, prefetch, sr_exp
from softreg._simd cimport sr_inline_void, sr_void, vdouble, vector_pointer, vfloat


cdef enum:
    AHEAD = 8           # nonzeros that features and theta are fetched ahead
    NUMBERS = 2         # a feature: its strength, and its largest magnitude
    L2 = 0              # places in `totals`
    L1 = 1
    LOGS = 2
    NONZEROS = 3
    ROWS = 4


# --- products with theta: a nonzero meets K contiguous numbers ------------------------------------------------------

cdef inline sr_inline_void _product(
    const floating* times, const floating* plus, const index_t* indices, Py_ssize_t count, floating* theta,
    Py_ssize_t K, bint back, floating* row
) noexcept nogil:
    """row (K,) += sum_j times_j theta_j; `back`, theta_j = times_j theta_j + plus_j row."""
    if floating is float:
        if is_wide():
            _wide_leaves.stream_row[float, index_t, vfloat](times, plus, indices, count, theta, K, back, <vfloat*>row)
        else:
            _narrow_leaves.stream_row[float, index_t, nfloat](times, plus, indices, count, theta, K, back, <nfloat*>row)
    elif is_wide():
        _wide_leaves.stream_row[double, index_t, vdouble](times, plus, indices, count, theta, K, back, <vdouble*>row)
    else:
        _narrow_leaves.stream_row[double, index_t, ndouble](times, plus, indices, count, theta, K, back, <ndouble*>row)


cdef inline floating _shrunk(floating a, floating by) noexcept nogil:
    """a, moved towards zero by `by`, at most to zero."""
    return a - by if a > by else a + by if a < -by else 0


cdef inline sr_inline_void _sparse_forward(
    const floating* times, const index_t* indices, Py_ssize_t count, const floating* theta, Py_ssize_t K, floating l1,
    floating* z
) noexcept nogil:
    """z (K,) += sum_j times_j theta_j, theta_j shrunk by l1."""
    cdef Py_ssize_t k, q
    for q in range(count):
        for k in range(K):
            z[k] = z[k] + times[q] * _shrunk(theta[indices[q] * K + k], l1)


cdef inline sr_inline_void _sparse_back(
    const floating* times, const floating* plus, const index_t* indices, Py_ssize_t count, floating* theta,
    Py_ssize_t K, floating l1, const floating* residual
) noexcept nogil:
    """theta_j += times_j (theta_j shrunk by l1) + plus_j residual."""
    cdef Py_ssize_t k, q
    cdef floating* w
    for q in range(count):
        w = theta + indices[q] * K
        for k in range(K):
            w[k] = w[k] + (times[q] * _shrunk(w[k], l1) + plus[q] * residual[k])


# --- the steps of a row ---------------------------------------------------------------------------------------------

cdef inline Py_ssize_t _measure(
    const floating* data, const index_t* indices, Py_ssize_t count, const floating* theta, Py_ssize_t K, double weight,
    double band, double* features, double* totals, floating* x, index_t* at
) noexcept nogil:
    """x, at OUT = the nonzeros of a row and their features. Return how many; features and totals follow them.

    -1 where a strength would overflow.
    """
    cdef Py_ssize_t q, nonzeros = 0
    cdef double size, strength, logs = 0
    cdef double* feature
    for q in range(count):
        if q + AHEAD < count:
            prefetch(features + NUMBERS * indices[q + AHEAD])
            prefetch(theta + K * indices[q + AHEAD])
            prefetch(theta + K * indices[q + AHEAD] + K - 1)
        if data[q] == 0:
            continue
        size = fabs(data[q])
        feature = features + NUMBERS * indices[q]
        if size > feature[1]:
            if size > band * feature[1] and feature[1] > 0:
                strength = feature[0] * (size / feature[1]) * (size / feature[1])
                if not isfinite(strength):
                    return -1
                feature[0] = strength
            feature[1] = size
        logs += log(size)
        x[nonzeros] = data[q]
        at[nonzeros] = indices[q]
        nonzeros += 1
    totals[LOGS] += weight * logs
    totals[NONZEROS] += weight * nonzeros
    totals[ROWS] += weight
    return nonzeros


cdef inline double _target(
    const floating* y, Py_ssize_t code, Py_ssize_t k, double smoothing, Py_ssize_t K
) noexcept nogil:
    """Return the target of class k in a row; y (K,) or NULL."""
    cdef double target
    if y != NULL:
        target = y[k]
    else:
        target = 1.0 if k == code else 0.0
    return (1 - smoothing) * target + smoothing / K


cdef inline double _residual(
    const floating* y, Py_ssize_t code, double smoothing, Py_ssize_t K, floating lowest, floating* z, double* squares,
    bint* correct
) noexcept nogil:
    """z (K,) INOUT: from logits to y - p. Return the cross-entropy; squares OUT = |y - p|^2; correct OUT."""
    cdef Py_ssize_t k, best = 0, truth = code
    cdef floating high, total
    cdef double fit = 0, target, norm = 0, residual
    for k in range(1, K):
        best = k if z[k] > z[best] else best
    high = z[best]
    if y != NULL:
        truth = 0
        for k in range(1, K):
            truth = k if y[k] > y[truth] else truth
    correct[0] = best == truth
    for k in range(K):
        target = _target(y, code, k, smoothing, K)
        if target > 0:
            fit += target * (<double>z[k] - <double>high)
    for k in range(K):
        z[k] = <floating>sr_exp(z[k], high, lowest)
        norm += z[k]
    total = <floating>(1 / norm)
    squares[0] = 0
    for k in range(K):
        target = _target(y, code, k, smoothing, K)
        residual = target - <double>(z[k] * total)
        z[k] = <floating>residual
        squares[0] += residual * residual
    return log(norm) - fit


cdef inline double _grown(double strength, double x, double unit, double squares) noexcept nogil:
    """The strength of a feature after a gradient x (y - p)."""
    return sqrt(strength * strength + x * x * unit * unit * squares)


cdef sr_void _learn_rows(
    const floating* data, const index_t* indices, const index_t* indptr, const Py_ssize_t* rows, Py_ssize_t m,
    const Py_ssize_t* codes, const floating* targets, const floating* sample_weight, double smoothing, double l2,
    double l1, double rate, double band, double limit, double damping, floating* theta, Py_ssize_t K,
    Py_ssize_t n_features, bint intercept, double* features, double* totals, double* score, floating* z, double* grown,
    floating* x, floating* times, index_t* at, Py_ssize_t* learnt
) noexcept nogil:
    """One row after the other; z (K,), the others (longest + 1,) are scratch. learnt (1,) OUT."""
    cdef Py_ssize_t i, k, q, r, count, low
    cdef double weight, loss, squares, unit, mean, spread, size, change, moved, step
    cdef floating lowest, shrink
    cdef bint correct
    cdef double* feature
    lowest = <floating>(log(1e-20) if floating is float else log(1e-100))
    for i in range(m):
        learnt[0] = i
        r = rows[i] if rows != NULL else i
        low = indptr[r]
        weight = sample_weight[r] if sample_weight != NULL else 1
        if weight == 0:
            continue
        count = _measure(
            data + low, indices + low, indptr[r + 1] - low, theta, K, weight, band, features, totals, x, at
        )
        if count < 0:
            return
        spread = sqrt(1 + totals[NONZEROS] / totals[ROWS]) / rate
        mean = exp(totals[LOGS] / totals[NONZEROS]) if totals[NONZEROS] > 0 else 1
        if intercept:
            x[count] = 1
            at[count] = <index_t>n_features
        for q in range(count + intercept):
            feature = features + NUMBERS * at[q]
            size = feature[0] + (totals[L2] if q < count else 0)
            times[q] = <floating>(x[q] / size) if size > 0 else 0
        for k in range(K):
            z[k] = 0
        shrink = <floating>totals[L1]
        if shrink > 0:
            _sparse_forward(times, at, count, theta, K, shrink, z)
            _sparse_forward(times + count, at + count, intercept, theta, K, 0, z)
        else:
            _product[floating, index_t](times, NULL, at, count + intercept, theta, K, False, z)
        loss = _residual(
            targets + r * K if targets != NULL else NULL, codes[r] if codes != NULL else 0, smoothing, K, lowest, z,
            &squares, &correct
        )
        moved = sqrt(squares)
        squares = weight * squares
        change = 0
        for q in range(count + intercept):
            feature = features + NUMBERS * at[q]
            unit = spread * min(max(mean, feature[1] / band), feature[1] * band) if q < count else spread
            grown[q] = _grown(feature[0], x[q], unit, squares)
            size = grown[q] + (totals[L2] + weight * l2 if q < count else 0)
            change += x[q] * (x[q] / size) if size > 0 else 0
            if not isfinite(grown[q]):
                return
        if not (isfinite(loss) and isfinite(change)):
            return
        score[0] += weight * loss
        score[1] += weight * correct
        change = weight * change
        moved = change * moved / limit
        step = weight / (sqrt(1 + moved * moved) + damping * change)
        for q in range(count + intercept):
            feature = features + NUMBERS * at[q]
            size = feature[0] + (totals[L2] if q < count else 0)
            times[q] = <floating>((grown[q] - feature[0]) / size) if size > 0 else 0
            if shrink == 0:
                times[q] = times[q] + 1
            feature[0] = grown[q]
            x[q] = <floating>(x[q] * step)
        if shrink > 0:
            _sparse_back(times, x, at, count, theta, K, shrink, z)
            _sparse_back(times + count, x + count, at + count, intercept, theta, K, 0, z)
        else:
            _product[floating, index_t](times, x, at, count + intercept, theta, K, True, z)
        totals[L2] += weight * l2
        totals[L1] += weight * l1
    learnt[0] = m


def csr_stream(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const Py_ssize_t[::1] codes, const floating[:, ::1] targets, const floating[::1] sample_weight,
    double label_smoothing, double l2, double l1, double rate, double band, double limit, double damping,
    Py_ssize_t n_features, floating[:, ::1] theta, double[:, ::1] features, double[::1] totals, double[::1] score,
):
    """Learn the rows in turn; see the twin. Return how many were learnt."""
    cdef Py_ssize_t K = theta.shape[1], i, r, longest = 0, learnt = 0
    cdef Py_ssize_t m = indptr.shape[0] - 1 if rows is None else rows.shape[0]
    cdef bint intercept = theta.shape[0] > n_features
    for i in range(m):
        r = i if rows is None else rows[i]
        longest = max(longest, <Py_ssize_t>(indptr[r + 1] - indptr[r]))
    cdef double* grown = <double*>malloc((longest + 1) * sizeof(double))
    cdef floating* scratch = <floating*>malloc((2 * (longest + 1) + K) * sizeof(floating))
    cdef index_t* at = <index_t*>malloc((longest + 1) * sizeof(index_t))
    cdef const floating* v = vector_pointer[floating](data)
    cdef const index_t* j = vector_pointer[index_t](indices)
    cdef const index_t* ptr = vector_pointer[index_t](indptr)
    cdef const Py_ssize_t* visits = vector_pointer[Py_ssize_t](rows)
    cdef const Py_ssize_t* label = vector_pointer[Py_ssize_t](codes)
    cdef const floating* y = matrix_pointer[floating](targets)
    cdef const floating* s = vector_pointer[floating](sample_weight)
    cdef floating* weights = matrix_pointer[floating](theta)
    cdef double* numbers = &features[0, 0]
    if grown == NULL or scratch == NULL or at == NULL:
        free(grown)
        free(scratch)
        free(at)
        raise MemoryError(f"scratch memory for a row of {longest} numbers")
    with nogil:
        _learn_rows(
            v, j, ptr, visits, m, label, y, s, label_smoothing, l2, l1, rate, band, limit, damping, weights, K,
            n_features, intercept, numbers, &totals[0], &score[0], scratch, grown, scratch + K,
            scratch + K + longest + 1, at, &learnt
        )
    free(grown)
    free(scratch)
    free(at)
    return learnt
