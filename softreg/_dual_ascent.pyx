# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""Dual coordinate ascent on CSR rows. `_reference.py` says what it computes, and what its arguments are."""

from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport log
from libc.stdlib cimport free, malloc

from softreg._product_leaves cimport CSRRows, add_row_sums, csr_row, csr_rows
from softreg._simd cimport floating, index_t, matrix_pointer, round_up, sr_exp, sr_log, sr_void, subtract_clipped
from softreg._simd cimport vector_pointer


cdef sr_void _dual_step(
    const floating* z, Py_ssize_t Kp, floating c, floating lowest, floating* q, floating* move, floating* terms,
    double* entropy
) noexcept nogil:
    """q (Kp,) INOUT += move (Kp,) OUT = t (softmax(z) - q), and entropy (1,) OUT = H(q), as the twin says.

    Kp is K in whole vectors: beyond K, z holds the lowest number and q zeros. terms (2, Kp) is scratch: what is added
    up. Probabilities below exp(lowest) are zero.
    """
    cdef Py_ssize_t k
    cdef floating high = z[0], e, x, over, t, tiny = <floating>(1e-20 if floating is float else 1e-100)
    cdef double[2] sums
    cdef double kl, far
    for k in range(1, Kp):
        high = z[k] if z[k] > high else high
    for k in range(Kp):
        e = sr_exp(z[k], high, lowest)
        move[k] = e
        terms[k] = e
        x = q[k]
        over = 1 / x if x > 0 else 1
        terms[Kp + k] = x * (sr_log(over) + subtract_clipped(z[k], high))
    sums[0] = sums[1] = 0
    add_row_sums(terms, Kp, Kp, 2, sums)
    over = <floating>(1 / sums[0])
    kl = log(sums[0]) - sums[1]
    for k in range(Kp):
        e = move[k] * over - q[k]
        move[k] = e
        terms[k] = e if e > 0 else -e
        terms[Kp + k] = e * e
    sums[0] = sums[1] = 0
    add_row_sums(terms, Kp, Kp, 2, sums)
    far = sums[0] * sums[0]
    kl = max(kl, 0.5 * far)         # as Pinsker's inequality says; rounding may not know
    t = <floating>min(1.0, (kl + 0.5 * far) / (far + c * sums[1])) if far > 0 else 1
    for k in range(Kp):
        e = t * move[k]
        x = q[k] + e
        x = x if x >= tiny else 0
        move[k] = e
        q[k] = x
        over = 1 / x if x > 0 else 1
        terms[k] = x * sr_log(over)
    entropy[0] = 0
    add_row_sums(terms, Kp, Kp, 1, entropy)


cdef struct KernelArguments:    # void is float or double
    CSRRows X
    const Py_ssize_t* order     # (n_visits,) positions among the rows
    Py_ssize_t n_visits, K, Kp
    void* Wt                    # (p, K) INOUT
    void* bias                  # (K,) INOUT the last row of Wt; NULL: no intercepts
    void* Q                     # (m, K) INOUT
    const void* sample_weight
    double scale, constant


cdef sr_void _dual_rows(
    const KernelArguments* args, const index_t* indices, floating* scratch, double* total
) noexcept nogil:
    """Visit one row after the other; scratch (5, Kp); total (1,) += the sum of s H(q).

    The second product with a row of X finds it in the nearest cache.
    """
    cdef const floating* data = <const floating*>args.X.data
    cdef const index_t* indptr = <const index_t*>args.X.indptr
    cdef const Py_ssize_t* rows = args.X.rows
    cdef const floating* weight = <const floating*>args.sample_weight
    cdef floating* Wt = <floating*>args.Wt
    cdef floating* bias = <floating*>args.bias
    cdef floating* Q = <floating*>args.Q
    cdef Py_ssize_t i, k, at, r, low, length, K = args.K, Kp = args.Kp
    cdef double entropy, s, squares, scale = args.scale, constant = args.constant
    cdef floating* z = scratch
    cdef floating* q = scratch + Kp
    cdef floating* move = scratch + 2 * Kp
    cdef floating factor, floor, lowest = -FLT_MAX if floating is float else -DBL_MAX
    floor = <floating>(log(1e-20) if floating is float else log(1e-100))
    for k in range(K, Kp):
        z[k] = lowest
        q[k] = 0
    for i in range(args.n_visits):
        at = args.order[i]
        r = rows[at] if rows != NULL else at
        low = indptr[r]
        length = indptr[r + 1] - low
        s = weight[r] if weight != NULL else 1
        squares = constant if bias != NULL else 0
        for k in range(length):
            squares += data[low + k] * data[low + k]
        for k in range(K):
            z[k] = bias[k] if bias != NULL else 0
            q[k] = Q[at * K + k]
        csr_row(data + low, indices + low, length, <floating*>Wt, K, False, z)
        _dual_step(z, Kp, <floating>(scale * s * squares), floor, q, move, scratch + 3 * Kp, &entropy)
        total[0] += s * entropy
        factor = <floating>(-scale * s)
        for k in range(K):
            Q[at * K + k] = q[k]
            move[k] = factor * move[k]
        csr_row(data + low, indices + low, length, <floating*>Wt, K, True, move)
        if bias != NULL:
            for k in range(K):
                bias[k] += <floating>constant * move[k]


def csr_dual_epoch(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const Py_ssize_t[::1] order, floating[:, ::1] Wt, Py_ssize_t n_features, const floating[::1] sample_weight,
    double scale, double constant, floating[:, ::1] Q,
):
    """Visit positions `order` among the rows: move q, a row of Q (m, K) INOUT, towards p = softmax(W [x 1]), by

        q <- q + t (p - q),     t = min(1, (KL(q||p) + |p - q|_1^2 / 2) / (|p - q|_1^2 + c |p - q|_2^2)),

    Wt (p, K) INOUT -= scale * s * change of q * [x constant], c = scale * s * (||x||^2 + constant).
    Return sum_i s_i H(Q_i) over the positions, H the entropy, each as it was left.
    """
    cdef Py_ssize_t K = Q.shape[1], Kp = round_up(K, 16)
    cdef const index_t* j = vector_pointer[index_t](indices)
    cdef floating* w = matrix_pointer[floating](Wt)
    cdef floating* scratch = <floating*>malloc(5 * Kp * sizeof(floating))
    cdef double total = 0
    cdef KernelArguments args
    args.X = csr_rows(data, indptr, rows, n_features)
    args.order, args.n_visits = vector_pointer[Py_ssize_t](order), order.shape[0]
    args.K, args.Kp, args.scale, args.constant = K, Kp, scale, constant
    args.Wt, args.Q = w, matrix_pointer[floating](Q)
    args.bias = w + n_features * K if Wt.shape[0] > n_features else NULL
    args.sample_weight = vector_pointer[floating](sample_weight)
    if scratch == NULL:
        raise MemoryError(f"{5 * Kp * sizeof(floating)} bytes of scratch memory")
    with nogil:
        _dual_rows(&args, j, scratch, &total)
    free(scratch)
    return total
