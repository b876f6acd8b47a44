# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Leaf functions for products of rows of X: register tiles and BLAS for dense rows, vectors of K numbers for CSR rows.

Dense rows come as a row pointer table x: `count` pointers and TILE_ROWS more, whose rows are fetched ahead. A vector
that would pass the end of a row is moved back to end with it. The numbers that it then covers a second time meet a
zero on the other side, or are left out at the end.

In CSR, a nonzero of feature j meets row j of a table (p, K): W^T or the gradient. The K numbers are held in up to four
vectors. The last vector is moved back to end with the row: it computes some numbers twice, with the same result.
"""

from libc.string cimport memset
from scipy.linalg.cython_blas cimport dgemm, sgemm

from softreg._simd cimport DOUBLE_LANES, FLOAT_LANES, floating, index_t, prefetch, sr_inline_void, sr_sum4, sr_void
from softreg._simd cimport sum_lanes, vdouble, vec, vector_pointer, vfloat


cdef enum:
    TILE_ROWS = 4       # logits tile: 4 rows x 5 classes = 20 vector accumulators of AVX-512's 32 registers,
    TILE_CLASSES = 5    # ... 9 loads for 20 multiply-adds; 5 x 2 vectors in the other product
    AHEAD = 8           # nonzeros of a CSR row that the rows of the table are fetched ahead


cdef inline sr_inline_void dot_tile(
    const floating** x, const vec* W, Py_ssize_t dp, Py_ssize_t d, bint ahead, floating* T, Py_ssize_t ld
) noexcept nogil:
    """T += (TILE_CLASSES, TILE_ROWS) dot products of rows of W and rows of x."""
    cdef vec[TILE_CLASSES * TILE_ROWS] acc
    cdef vec[TILE_ROWS] v
    cdef vec w
    cdef Py_ssize_t j, c, k, i
    cdef Py_ssize_t lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        for k in range(TILE_CLASSES * TILE_ROWS):
            memset(&acc[k], 0, sizeof(vec))
        for c in range(dp // lanes):
            j = c * lanes if c * lanes + lanes <= d else d - lanes
            for i in range(TILE_ROWS):
                v[i] = (<const vec*>(x[i] + j))[0]
                if ahead:
                    prefetch(x[i + TILE_ROWS] + j)
            for k in range(TILE_CLASSES):
                w = (<const vec*>(<const floating*>W + k * dp + c * lanes))[0]
                for i in range(TILE_ROWS):
                    acc[k * TILE_ROWS + i] = acc[k * TILE_ROWS + i] + v[i] * w
        for k in range(TILE_CLASSES):
            sr_sum4(&acc[k * TILE_ROWS], T + k * ld)


cdef inline sr_void add_dot_products(
    const floating** x, Py_ssize_t count, const vec* W, Py_ssize_t dp, Py_ssize_t d, Py_ssize_t Kp,
    floating* T, Py_ssize_t ld,
) noexcept nogil:
    """T (Kp, ld) += W (Kp, dp) x^T, in place from rows of X; T has room for TILE_ROWS - 1 rows more than `count`."""
    cdef Py_ssize_t i = 0, k
    cdef const floating* w = <const floating*>W
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while i < count:
            dot_tile(x + i, W, dp, d, True, T + i, ld)
            k = TILE_CLASSES
            while k < Kp:
                dot_tile(x + i, <const vec*>(w + k * dp), dp, d, False, T + k * ld + i, ld)
                k += TILE_CLASSES
            i += TILE_ROWS


cdef inline sr_void add_product(
    const floating* A, Py_ssize_t lda, Py_ssize_t Kp, const floating** rows, Py_ssize_t count, Py_ssize_t n_columns,
    vec* C, Py_ssize_t ldc,
) noexcept nogil:
    """C (Kp, ldc) += A (Kp, count) B, B (count, n_columns) given by its rows, in tiles of 5 classes x 2 vectors.

    It serves both products: G^T X with the rows of X for B, and W X^T with the columns of a transposed block.
    Columns of C come in whole tiles; the last one stands for the last columns of B, some of them a second time.
    """
    cdef vec[TILE_CLASSES] left, right
    cdef vec b, c
    cdef floating a
    cdef floating* out
    cdef Py_ssize_t i, j, k, q, t = 0
    cdef Py_ssize_t lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while t < n_columns:
            j = t if t + 2 * lanes <= n_columns else n_columns - 2 * lanes
            k = 0
            while k < Kp:
                out = <floating*>C + k * ldc + t
                for q in range(TILE_CLASSES):
                    left[q] = (<vec*>(out + q * ldc))[0]
                    right[q] = (<vec*>(out + q * ldc + lanes))[0]
                for i in range(count):
                    b = (<const vec*>(rows[i] + j))[0]
                    c = (<const vec*>(rows[i] + j + lanes))[0]
                    for q in range(TILE_CLASSES):
                        a = A[(k + q) * lda + i]
                        left[q] = left[q] + a * b
                        right[q] = right[q] + a * c
                for q in range(TILE_CLASSES):
                    (<vec*>(out + q * ldc))[0] = left[q]
                    (<vec*>(out + q * ldc + lanes))[0] = right[q]
                k += TILE_CLASSES
            t += 2 * lanes


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


cdef inline sr_inline_void csr_tile(
    const floating* data, const index_t* indices, Py_ssize_t count, floating* table, Py_ssize_t K, Py_ssize_t width,
    Py_ssize_t n, bint back, vec* row
) noexcept nogil:
    """row (width,) += one row of X times `width` columns of the table, or `back`, in n vectors: both constants."""
    cdef vec[4] own, sums
    cdef Py_ssize_t[4] at
    cdef Py_ssize_t i, q, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef floating v
    cdef floating* w
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        for i in range(n):
            at[i] = i * lanes if i < n - 1 else width - lanes
            own[i] = (<vec*>(<floating*>row + at[i]))[0]
        for q in range(count):
            if q + AHEAD < count:
                w = table + indices[q + AHEAD] * K
                for i in range(n):
                    prefetch(w + at[i])
            v = data[q]
            w = table + indices[q] * K
            for i in range(n):
                if back:
                    sums[i] = (<vec*>(w + at[i]))[0] + v * own[i]
                else:
                    own[i] = own[i] + v * (<vec*>(w + at[i]))[0]
            if back:
                for i in range(n):
                    (<vec*>(w + at[i]))[0] = sums[i]
        if not back:
            for i in range(n):
                (<vec*>(<floating*>row + at[i]))[0] = own[i]


cdef inline sr_inline_void csr_row(
    const floating* data, const index_t* indices, Py_ssize_t count, floating* table, Py_ssize_t K, bint back, vec* row
) noexcept nogil:
    """row (K,) += one row of X times the table; or, `back`, the table += its outer product with the row."""
    cdef Py_ssize_t k = 0, q, i, width, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef floating v
    cdef floating* z = <floating*>row
    cdef floating* w
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while K - k >= lanes:
            width = min(K - k, 4 * lanes)
            if width <= lanes:
                csr_tile(data, indices, count, table + k, K, width, 1, back, <vec*>(z + k))
            elif width <= 2 * lanes:
                csr_tile(data, indices, count, table + k, K, width, 2, back, <vec*>(z + k))
            elif width <= 3 * lanes:
                csr_tile(data, indices, count, table + k, K, width, 3, back, <vec*>(z + k))
            else:
                csr_tile(data, indices, count, table + k, K, width, 4, back, <vec*>(z + k))
            k += width
        for q in range(count if k < K else 0):
            v = data[q]
            w = table + indices[q] * K + k
            for i in range(K - k):
                if back:
                    w[i] = w[i] + v * z[k + i]
                else:
                    z[k + i] = z[k + i] + v * w[i]


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
        if floating is float:
            csr_row(data + low, indices + low, indptr[r + 1] - low, <float*>Wt, K, False, <vfloat*>z)
        else:
            csr_row(data + low, indices + low, indptr[r + 1] - low, <double*>Wt, K, False, <vdouble*>z)


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
        if floating is float:
            csr_row(data + low, indices + low, high - low, out, K, True, <vfloat*>(G + i * K))
        else:
            csr_row(data + low, indices + low, high - low, out, K, True, <vdouble*>(G + i * K))


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
