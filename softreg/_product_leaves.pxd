# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Leaf functions for products of rows of X, dense and CSR: with the vectors that this machine has, and by BLAS."""

from libc.string cimport memset
from scipy.linalg.cython_blas cimport dgemm, sgemm

from softreg cimport _narrow_leaves, _wide_leaves
from softreg._simd cimport floating, index_t, is_wide, ndouble, nfloat, sr_inline_void, sr_void, sum_lanes, vdouble
from softreg._simd cimport vector_pointer, vfloat


cdef inline void add_dot_products(
    const floating** x, Py_ssize_t count, const floating* W, Py_ssize_t dp, Py_ssize_t d, Py_ssize_t Kp,
    floating* T, Py_ssize_t ld,
) noexcept nogil:
    """T (Kp, ld) += W (Kp, dp) x^T, in place from rows of X; T has room for TILE_ROWS - 1 rows more than `count`."""
    if floating is float:
        if is_wide():
            _wide_leaves.add_dot_products[float, vfloat](x, count, <const vfloat*>W, dp, d, Kp, T, ld)
        else:
            _narrow_leaves.add_dot_products[float, nfloat](x, count, <const nfloat*>W, dp, d, Kp, T, ld)
    elif is_wide():
        _wide_leaves.add_dot_products[double, vdouble](x, count, <const vdouble*>W, dp, d, Kp, T, ld)
    else:
        _narrow_leaves.add_dot_products[double, ndouble](x, count, <const ndouble*>W, dp, d, Kp, T, ld)


cdef inline void add_product(
    const floating* A, Py_ssize_t lda, Py_ssize_t Kp, const floating** rows, Py_ssize_t count, Py_ssize_t n_columns,
    floating* C, Py_ssize_t ldc,
) noexcept nogil:
    """C (Kp, ldc) += A (Kp, count) B, B (count, n_columns) given by its rows; see `_vector_leaves.pxi`."""
    if floating is float:
        if is_wide():
            _wide_leaves.add_product[float, vfloat](A, lda, Kp, rows, count, n_columns, <vfloat*>C, ldc)
        else:
            _narrow_leaves.add_product[float, nfloat](A, lda, Kp, rows, count, n_columns, <nfloat*>C, ldc)
    elif is_wide():
        _wide_leaves.add_product[double, vdouble](A, lda, Kp, rows, count, n_columns, <vdouble*>C, ldc)
    else:
        _narrow_leaves.add_product[double, ndouble](A, lda, Kp, rows, count, n_columns, <ndouble*>C, ldc)


cdef inline sr_void add_row_sums(
    const floating* T, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t K, double* out
) noexcept nogil:
    """out (K,) += sums of T over its first `count` columns and the zeros that follow, in sixteen lanes of float64."""
    cdef Py_ssize_t i, k, q
    cdef double[16] lane
    for k in range(K):
        for q in range(16):
            lane[q] = 0
        for i in range(0, count, 16):
            for q in range(16):
                lane[q] = lane[q] + T[k * ld + i + q]
        sum_lanes(lane)
        out[k] += lane[0]


cdef inline void gemm(
    bint transpose, Py_ssize_t M, Py_ssize_t N, Py_ssize_t L, const floating* A, Py_ssize_t lda,
    const floating* B, Py_ssize_t ldb, floating beta, floating* C, Py_ssize_t ldc,
) noexcept nogil:
    """BLAS, column-major: C (M, N) = A (M, L) B (L, N) + beta C, with A given transposed where `transpose` says so."""
    cdef int m = <int>M, n = <int>N, inner = <int>L, a = <int>lda, b = <int>ldb, c = <int>ldc
    cdef floating one = 1
    cdef char* side = b"T" if transpose else b"N"
    if floating is float:
        sgemm(side, b"N", &m, &n, &inner, &one, <float*>A, &a, <float*>B, &b, &beta, C, &c)
    else:
        dgemm(side, b"N", &m, &n, &inner, &one, <double*>A, &a, <double*>B, &b, &beta, C, &c)


cdef struct CSRRows:            # rows of a CSR matrix X (n, d); void is float or double, or int or long long
    const void* data
    const void* indptr
    const Py_ssize_t* rows      # (m,) numbers of the rows; NULL: all of them
    Py_ssize_t m, n, n_features, stored


cdef inline CSRRows csr_rows(
    const floating[::1] data, const index_t[::1] indptr, const Py_ssize_t[::1] rows, Py_ssize_t n_features
) noexcept:
    """Return rows of a CSR matrix as the leaf functions take them, beside its indices."""
    cdef CSRRows X
    X.data, X.indptr = vector_pointer[floating](data), vector_pointer[index_t](indptr)
    X.rows = vector_pointer[Py_ssize_t](rows)
    X.n, X.n_features, X.stored = indptr.shape[0] - 1, n_features, data.shape[0]
    X.m = X.n if rows is None else rows.shape[0]
    return X


cdef inline sr_inline_void csr_row(
    const floating* data, const index_t* indices, Py_ssize_t count, floating* table, Py_ssize_t K, bint back,
    floating* row,
) noexcept nogil:
    """row (K,) += one row of X times the table; or, `back`, the table += its outer product with the row."""
    if floating is float:
        if is_wide():
            _wide_leaves.csr_row[float, index_t, vfloat](data, indices, count, table, K, back, <vfloat*>row)
        else:
            _narrow_leaves.csr_row[float, index_t, nfloat](data, indices, count, table, K, back, <nfloat*>row)
    elif is_wide():
        _wide_leaves.csr_row[double, index_t, vdouble](data, indices, count, table, K, back, <vdouble*>row)
    else:
        _narrow_leaves.csr_row[double, index_t, ndouble](data, indices, count, table, K, back, <ndouble*>row)


cdef inline sr_void csr_forward(
    const CSRRows* X, const index_t* indices, Py_ssize_t start, Py_ssize_t stop, const floating* Wt,
    const floating* bias, Py_ssize_t K, floating* Z,
) noexcept nogil:
    """Rows start .. stop of Z (m, K) OUT = their logits."""
    cdef const floating* data = <const floating*>X.data
    cdef const index_t* indptr = <const index_t*>X.indptr
    cdef const Py_ssize_t* rows = X.rows
    cdef Py_ssize_t i, k, r, low
    cdef floating* z
    for i in range(start, stop):
        r = rows[i] if rows != NULL else i
        low = indptr[r]
        z = Z + i * K
        for k in range(K):
            z[k] = bias[k] if bias != NULL else 0
        csr_row(data + low, indices + low, indptr[r + 1] - low, <floating*>Wt, K, False, z)


cdef inline Py_ssize_t csr_lower_bound(
    const index_t* indices, Py_ssize_t low, Py_ssize_t high, Py_ssize_t feature
) noexcept nogil:
    """Return the first position in low .. high whose feature is not smaller than `feature`, high if there is none."""
    cdef Py_ssize_t middle
    while low < high:
        middle = low + (high - low) // 2
        if indices[middle] < feature:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline sr_void csr_backward(
    const CSRRows* X, const index_t* indices, Py_ssize_t start, Py_ssize_t stop, const floating* G, Py_ssize_t K,
    Py_ssize_t first, Py_ssize_t last, floating* out,
) noexcept nogil:
    """out (p, K) += X^T G over rows start .. stop, for the features first .. last alone.

    Threads share the features, so each sum has one order.
    """
    cdef const floating* data = <const floating*>X.data
    cdef const index_t* indptr = <const index_t*>X.indptr
    cdef const Py_ssize_t* rows = X.rows
    cdef Py_ssize_t i, r, low, high, n_features = X.n_features
    for i in range(start, stop):
        r = rows[i] if rows != NULL else i
        low = indptr[r]
        high = indptr[r + 1]
        if first > 0:
            low = csr_lower_bound(indices, low, high, first)
        if last < n_features:
            high = csr_lower_bound(indices, low, high, last)
        csr_row(data + low, indices + low, high - low, out, K, True, <floating*>(G + i * K))


cdef inline void csr_accumulate(
    const CSRRows* X, const index_t* indices, Py_ssize_t group, const floating* G, Py_ssize_t K, Py_ssize_t first,
    Py_ssize_t last, floating* recent, floating* out,
) noexcept nogil:
    """The same over all rows, `group` of them at a time where there is scratch for their sums, recent (p, K)."""
    cdef Py_ssize_t start = 0, n = (last - first) * K
    if recent == NULL:
        csr_backward(X, indices, 0, X.m, G, K, first, last, out)
        return
    while start < X.m:
        memset(recent + first * K, 0, n * sizeof(floating))
        csr_backward(X, indices, start, min(X.m, start + group), G, K, first, last, recent)
        add_vector(out + first * K, recent + first * K, n)
        start += group


cdef inline sr_void add_column_sums(const floating* G, Py_ssize_t m, Py_ssize_t K, floating* out) noexcept nogil:
    """out (K,) += column sums of G (m, K), each in float64 and row after row."""
    cdef Py_ssize_t i, k, first, width
    cdef double[64] sums
    for first in range(0, K, 64):
        width = min(<Py_ssize_t>64, K - first)
        for k in range(width):
            sums[k] = 0
        for i in range(m):
            for k in range(width):
                sums[k] = sums[k] + G[i * K + first + k]
        for k in range(width):
            out[first + k] += <floating>sums[k]


cdef inline sr_void add_vector(floating* total, const floating* other, Py_ssize_t n) noexcept nogil:
    """total += other."""
    cdef Py_ssize_t i
    for i in range(n):
        total[i] = total[i] + other[i]


cdef inline sr_void add_penalty(
    const floating* W, Py_ssize_t n, double l2, floating* gradient, double* squares
) noexcept nogil:
    """gradient (n,) += l2 W; squares (1,) += ||W||^2."""
    cdef Py_ssize_t i, q, whole = n // 16 * 16
    cdef floating factor = <floating>l2
    cdef double[16] lane
    for q in range(16):
        lane[q] = 0
    for i in range(n):
        gradient[i] = gradient[i] + factor * W[i]
    for i in range(0, whole, 16):
        for q in range(16):
            lane[q] = lane[q] + <double>W[i + q] * <double>W[i + q]
    for i in range(whole, n):
        lane[0] = lane[0] + <double>W[i] * <double>W[i]
    sum_lanes(lane)
    squares[0] += lane[0]
