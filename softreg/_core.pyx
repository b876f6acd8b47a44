# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""The compiled kernels. `_reference.py` says what each one computes, and what its arguments are.

How they compute it. Rows are taken in blocks of `BLOCK`. A block of logits is held class-major, T[k * ld + i] for
class k of row i, so that max, exp, sum and scaling run over rows: vectors stay full for every number of classes.
Each operation is one leaf function (`sr_void`: a clone per instruction set) without allocation, Python objects or
policy; the functions that Python calls split the work and own the buffers.

The two matrix products, logits and X^T accumulation, read rows of X where they stand, through a table of row pointers.
Small K runs on register tiles below; from `BLAS_CLASSES` classes on, where the operands are thick enough, on BLAS.

Work is split into parts by shape alone, never by thread count; parts add into buffers of their own that are
summed in order. So a result does not depend on the number of threads, not even in the last bit.
"""

from cython.parallel cimport prange
from libc.float cimport DBL_MAX, FLT_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, sgemm


cdef extern from "_simd.h" nogil:
    ctypedef void sr_void "SR_VOID"
    ctypedef void sr_inline_void "SR_INLINE_VOID"
    ctypedef float vfloat "sr_vfloat"
    ctypedef double vdouble "sr_vdouble"
    const int FLOAT_LANES "SR_FLOAT_LANES"
    const int DOUBLE_LANES "SR_DOUBLE_LANES"
    const int OPENMP "SR_OPENMP"
    float sr_exp_float(float, float)
    double sr_exp_double(double, double)
    float sr_log_float(float)
    double sr_log_double(double)
    void sr_columns_float(const float**, Py_ssize_t, float*, Py_ssize_t)
    void sr_columns_double(const double**, Py_ssize_t, double*, Py_ssize_t)
    void sr_rows_float(const float*, Py_ssize_t, float*, Py_ssize_t)
    void sr_rows_double(const double*, Py_ssize_t, double*, Py_ssize_t)
    void sr_sum4_float(const vfloat*, float*)
    void sr_sum4_double(const vdouble*, double*)
    void prefetch "SR_PREFETCH"(const void*)
    int sr_simd_level()
    int sr_max_threads()


cdef enum:
    BLOCK = 64          # rows a block: four 64-byte float vectors wide, and 64 rows of 784 floats stay in a 1 MB L2
    TILE_ROWS = 4       # logits tile: 4 rows x 5 classes = 20 vector accumulators of AVX-512's 32 registers,
    TILE_CLASSES = 5    # ... 9 loads for 20 multiply-adds; 5 x 2 vectors in the other product
    GATHER_BELOW = 64   # features: below, a block of X is transposed into scratch, as dot products would be too short
    BLAS_CLASSES = 48   # classes of float32, half as many of float64: from here on BLAS is faster than the tiles
                        # (benchmarks/README.md has the measurement)
    MAX_PARTS = 16      # parts of the rows that may run at the same time
    WIDE = 64           # classes: from here on vectors run along a row; below, two or three of them wait too much
    AHEAD = 8           # nonzeros of a CSR row that the rows of W^T are fetched ahead


ctypedef fused floating:
    float
    double

ctypedef fused vec:
    vfloat
    vdouble

ctypedef fused index_t:
    int
    long long


# --- pointers and memory --------------------------------------------------------------------------------------------

ctypedef fused number:
    float
    double
    int
    long long
    Py_ssize_t


cdef number* _first(const number[:] x) noexcept:
    """Where a vector begins, NULL for None and for an empty one."""
    return NULL if x is None or x.shape[0] == 0 else <number*>&x[0]


cdef floating* _corner(const floating[:, :] x) noexcept:
    """Where a matrix begins, NULL for None and for an empty one."""
    return NULL if x is None or x.shape[0] == 0 or x.shape[1] == 0 else <floating*>&x[0, 0]


cdef void* _allocate(Py_ssize_t n, Py_ssize_t size) except NULL:
    """Room for n numbers of `size` bytes; the caller frees it."""
    cdef void* start = malloc(max(n, <Py_ssize_t>1) * size)
    if start == NULL:
        raise MemoryError(f"{n * size} bytes of scratch memory")
    return start


# --- leaves: a block of logits, class-major -------------------------------------------------------------------------
# T (K, ld) INOUT with BLOCK columns used; top, total, factor (BLOCK,): one number a row.


cdef inline sr_inline_void _transpose_narrow(
    const floating* A, Py_ssize_t count, Py_ssize_t K, floating* T, Py_ssize_t ld, bint back
) noexcept nogil:
    """Between A (count, K) and T (K, ld) where K is a small constant, for which compilers know good shuffles."""
    cdef Py_ssize_t i, k
    for i in range(count):
        for k in range(K):
            if back:
                (<floating*>A)[i * K + k] = T[k * ld + i]
            else:
                T[k * ld + i] = A[i * K + k]


cdef sr_void _transpose_rows(
    const floating** x, Py_ssize_t count, Py_ssize_t d, floating* T, Py_ssize_t ld
) noexcept nogil:
    """T (d, ld) OUT = `count` rows of x as columns, then zeros up to BLOCK; x points at readable rows up to BLOCK.

    In tiles of 8 x 4; the last 4 features may meet again what was done before.
    """
    cdef Py_ssize_t i, j, at
    if d < 4:
        for i in range(count):
            for j in range(d):
                T[j * ld + i] = x[i][j]
    else:
        for j in range(0, d, 4):
            at = j if j + 4 <= d else d - 4
            for i in range(0, count, 8):
                if floating is float:
                    sr_columns_float(x + i, at, T + at * ld + i, ld)
                else:
                    sr_columns_double(x + i, at, T + at * ld + i, ld)
    if count < BLOCK:
        for j in range(d):
            for i in range(count, BLOCK):
                T[j * ld + i] = 0


cdef sr_void _load_rows(const floating* Z, Py_ssize_t count, Py_ssize_t K, floating* T, Py_ssize_t ld) noexcept nogil:
    """T (K, ld) OUT = the transpose of `count` rows of Z (count, K); the columns that are left are zero."""
    cdef (const floating*)[BLOCK] x
    cdef Py_ssize_t i
    if count == BLOCK and K == 2:
        _transpose_narrow(Z, BLOCK, 2, T, ld, False)
    elif count == BLOCK and K == 3:
        _transpose_narrow(Z, BLOCK, 3, T, ld, False)
    else:
        for i in range(BLOCK):
            x[i] = Z + (i if i < count else count - 1) * K
        _transpose_rows(x, count, K, T, ld)


cdef sr_void _store_rows(const floating* T, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t K, floating* Z) noexcept nogil:
    """Z (count, K) OUT = the transpose of T, in tiles as above."""
    cdef Py_ssize_t i, k, at, whole = 0
    if count == BLOCK and K == 2:
        _transpose_narrow(Z, BLOCK, 2, <floating*>T, ld, True)
        return
    if count == BLOCK and K == 3:
        _transpose_narrow(Z, BLOCK, 3, <floating*>T, ld, True)
        return
    if K >= 4:
        whole = count // 8 * 8
        for i in range(0, whole, 8):
            for k in range(0, K, 4):
                at = k if k + 4 <= K else K - 4
                if floating is float:
                    sr_rows_float(T + at * ld + i, ld, Z + i * K + at, K)
                else:
                    sr_rows_double(T + at * ld + i, ld, Z + i * K + at, K)
    for i in range(whole, count):
        for k in range(K):
            Z[i * K + k] = T[k * ld + i]


cdef sr_void _top(const floating* T, Py_ssize_t ld, Py_ssize_t K, floating* top) noexcept nogil:
    """top OUT = max_k T."""
    cdef Py_ssize_t i, k
    cdef floating z
    cdef floating[BLOCK] most           # local, so that the compiler knows it apart from T
    for i in range(BLOCK):
        most[i] = T[i]
    for k in range(1, K):
        for i in range(BLOCK):
            z = T[k * ld + i]
            most[i] = z if z > most[i] else most[i]
    for i in range(BLOCK):
        top[i] = most[i]


cdef sr_void _exp(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* top, floating floor, floating* total
) noexcept nogil:
    """T = exp(T - top), zero below `floor`; total OUT = sum_k T, compensated (Kahan), as exact for K = 1000 as for 2.

    In strips of two vectors: what belongs to a row stays in registers, and one vector's chain hides behind the other's.
    """
    cdef Py_ssize_t i, k, strip, width = 32 if floating is float else 16
    cdef floating e, s
    cdef floating* z
    cdef floating[32] lost, kept, high
    strip = 0
    while strip < BLOCK:
        for i in range(width):
            kept[i] = 0
            lost[i] = 0
            high[i] = top[strip + i]
        for k in range(K):
            z = T + k * ld + strip
            for i in range(width):
                if floating is float:
                    e = sr_exp_float(z[i], high[i])
                else:
                    e = sr_exp_double(z[i], high[i])
                z[i] = e if e >= floor else 0
                e = e - lost[i]
                s = kept[i] + e
                lost[i] = (s - kept[i]) - e
                kept[i] = s
        for i in range(width):
            total[strip + i] = kept[i]
        strip += width


cdef inline sr_inline_void _fold(floating* lane, Py_ssize_t half, bint top) noexcept nogil:
    """lane (half,) = the larger one, or the sum, of its first `half` numbers, a constant, and of those that follow."""
    cdef Py_ssize_t i
    for i in range(half):
        if top:
            lane[i] = lane[i + half] if lane[i + half] > lane[i] else lane[i]
        else:
            lane[i] = lane[i] + lane[i + half]


cdef inline sr_inline_void _fold_all(floating* lane, bint top) noexcept nogil:
    """lane[0] = the largest one, or the sum, of 32 float or 16 double."""
    if floating is float:
        _fold(lane, 16, top)
    _fold(lane, 8, top)
    _fold(lane, 4, top)
    _fold(lane, 2, top)
    _fold(lane, 1, top)


cdef sr_void _softmax_rows(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, const floating* weight, floating* out,
    floating* top, floating* total
) noexcept nogil:
    """out (count, K) OUT = weight * softmax(Z), row-major with K >= 32, maybe in place; top and total (count,) OUT.

    Many classes fill vectors along the row, which then stays in the nearest cache and needs no transposition. The
    last vectors end with the row; `fresh` is zero for what the others hold, too, and they are written last.
    """
    cdef Py_ssize_t i, k, r, width = 32 if floating is float else 16, whole = (K - 1) // width * width
    cdef const floating* z
    cdef floating* out_row
    cdef floating[32] most, kept, lost, tail, fresh
    cdef floating high, factor, e, s
    for i in range(width):
        fresh[i] = K - width + i >= whole
    for r in range(count):
        z = Z + r * K
        out_row = out + r * K
        for i in range(width):
            most[i] = z[K - width + i]
        for k in range(whole // width):
            for i in range(width):
                most[i] = z[k * width + i] if z[k * width + i] > most[i] else most[i]
        _fold_all(most, True)
        high = most[0]
        for i in range(width):
            if floating is float:
                e = sr_exp_float(z[K - width + i], high)
            else:
                e = sr_exp_double(z[K - width + i], high)
            tail[i] = e
            kept[i] = e * fresh[i]
            lost[i] = 0
        for k in range(whole // width):
            for i in range(width):
                if floating is float:
                    e = sr_exp_float(z[k * width + i], high)
                else:
                    e = sr_exp_double(z[k * width + i], high)
                out_row[k * width + i] = e
                e = e - lost[i]
                s = kept[i] + e
                lost[i] = (s - kept[i]) - e
                kept[i] = s
        _fold_all(kept, False)
        top[r] = most[0]
        total[r] = kept[0]
        factor = (weight[r] if weight != NULL else <floating>1) / kept[0]
        for k in range(whole):
            out_row[k] = out_row[k] * factor
        for i in range(width):
            out_row[K - width + i] = tail[i] * factor


cdef sr_void _log(const floating* total, floating* out) noexcept nogil:
    """out OUT = log(total)."""
    cdef Py_ssize_t i
    for i in range(BLOCK):
        if floating is float:
            out[i] = sr_log_float(total[i])
        else:
            out[i] = sr_log_double(total[i])


cdef sr_void _scale(floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* factor) noexcept nogil:
    """T *= factor."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = T[k * ld + i] * factor[i]


cdef inline floating _shifted(floating z, floating top) noexcept nogil:
    """z - top; a difference that overflows stops at the lowest finite number."""
    cdef floating low, x = z - top
    if floating is float:
        low = -FLT_MAX
    else:
        low = -DBL_MAX
    return low if x < low else x


cdef sr_void _log_probabilities(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* top, const floating* log_total
) noexcept nogil:
    """T = (T - top) - log_total."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = _shifted(_shifted(T[k * ld + i], top[i]), log_total[i])


cdef sr_void _mean_shifted(
    const floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* top, floating* out
) noexcept nogil:
    """out OUT = mean_k (T - top), divided before it is summed so that it stays finite."""
    cdef Py_ssize_t i, k
    cdef floating share = <floating>1 / K
    for i in range(BLOCK):
        out[i] = 0
    for k in range(K):
        for i in range(BLOCK):
            out[i] = _shifted(out[i] + share * _shifted(T[k * ld + i], top[i]), 0)


cdef sr_void _smooth(floating* Y, Py_ssize_t ld, Py_ssize_t K, floating kept, floating uniform) noexcept nogil:
    """Y = kept Y + uniform."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            Y[k * ld + i] = kept * Y[k * ld + i] + uniform


cdef sr_void _dot_shifted(
    const floating* T, const floating* Y, Py_ssize_t ld, Py_ssize_t K, const floating* top, floating* out
) noexcept nogil:
    """out OUT = sum_k Y (T - top)."""
    cdef Py_ssize_t i, k
    for i in range(BLOCK):
        out[i] = 0
    for k in range(K):
        for i in range(BLOCK):
            out[i] = _shifted(out[i] + Y[k * ld + i] * _shifted(T[k * ld + i], top[i]), 0)


cdef sr_void _subtract(floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* shift) noexcept nogil:
    """T -= shift."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = T[k * ld + i] - shift[i]


cdef sr_void _subtract_scaled(
    floating* T, const floating* Y, Py_ssize_t ld, Py_ssize_t K, const floating* factor
) noexcept nogil:
    """T -= factor Y."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = T[k * ld + i] - factor[i] * Y[k * ld + i]


cdef sr_void _curve(floating* R, const floating* P, Py_ssize_t ld, Py_ssize_t K, const floating* s) noexcept nogil:
    """R = s (P*R - P sum_k P*R): the softmax Jacobian, which is its own transpose, times R."""
    cdef Py_ssize_t i, k
    cdef floating[BLOCK] dot
    for i in range(BLOCK):
        dot[i] = 0
    for k in range(K):
        for i in range(BLOCK):
            R[k * ld + i] = P[k * ld + i] * R[k * ld + i]
            dot[i] = dot[i] + R[k * ld + i]
    for k in range(K):
        for i in range(BLOCK):
            R[k * ld + i] = s[i] * (R[k * ld + i] - P[k * ld + i] * dot[i])


# --- leaves: products of rows of X ----------------------------------------------------------------------------------
# x: table of row pointers, `count` rows and TILE_ROWS more that are fetched ahead. A vector that would pass the end of
# a row is moved back to end with it; what it then meets twice has a zero on the other side, or is left out at the end.


cdef inline sr_inline_void _dot_tile(
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
            if floating is float:
                sr_sum4_float(<const vfloat*>&acc[k * TILE_ROWS], T + k * ld)
            else:
                sr_sum4_double(<const vdouble*>&acc[k * TILE_ROWS], T + k * ld)


cdef sr_void _logits_dot(
    const floating** x, Py_ssize_t count, const vec* W, Py_ssize_t dp, Py_ssize_t d, Py_ssize_t Kp,
    floating* T, Py_ssize_t ld,
) noexcept nogil:
    """T (Kp, ld) += W (Kp, dp) x^T, in place from rows of X; T has room for TILE_ROWS - 1 rows more than `count`."""
    cdef Py_ssize_t i = 0, k
    cdef const floating* w = <const floating*>W
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while i < count:
            _dot_tile(x + i, W, dp, d, True, T + i, ld)
            k = TILE_CLASSES
            while k < Kp:
                _dot_tile(x + i, <const vec*>(w + k * dp), dp, d, False, T + k * ld + i, ld)
                k += TILE_CLASSES
            i += TILE_ROWS


cdef sr_void _multiply(
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


cdef sr_void _add_row_sums(
    const floating* T, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t K, double* out
) noexcept nogil:
    """out (K,) += sums of T over its first `count` columns, in sixteen lanes of float64."""
    cdef Py_ssize_t i, k, q, whole = count // 16
    cdef double[16] lane
    for k in range(K):
        for q in range(16):
            lane[q] = 0
        for i in range(whole):
            for q in range(16):
                lane[q] = lane[q] + T[k * ld + i * 16 + q]
        for i in range(whole * 16, count):
            lane[0] = lane[0] + T[k * ld + i]
        for q in range(8):
            lane[q] = lane[q] + lane[q + 8]
        for q in range(4):
            lane[q] = lane[q] + lane[q + 4]
        out[k] += (lane[0] + lane[1]) + (lane[2] + lane[3])


cdef void _gemm(
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


# --- blocks: what happens between the two products ------------------------------------------------------------------


cdef sr_void _weights(
    const Py_ssize_t* rows, Py_ssize_t start, Py_ssize_t count, const floating* sample_weight, double scale,
    floating* weight
) noexcept nogil:
    """weight (BLOCK,) OUT = scale * s for `count` rows from `start` on, then zeros."""
    cdef Py_ssize_t i
    for i in range(BLOCK):
        weight[i] = <floating>scale
    if sample_weight != NULL:
        for i in range(count):
            weight[i] = <floating>(scale * sample_weight[rows[start + i] if rows != NULL else start + i])
    for i in range(count, BLOCK):
        weight[i] = 0


cdef sr_void _pick(
    const floating* T, Py_ssize_t ld, Py_ssize_t step, const Py_ssize_t* rows, Py_ssize_t start, Py_ssize_t count,
    const Py_ssize_t* codes, const floating* top, floating* out
) noexcept nogil:
    """out (BLOCK,) OUT = T - top at each row's class, then zeros; `ld` between classes of T, `step` between rows."""
    cdef Py_ssize_t i
    cdef floating[BLOCK] z
    for i in range(count):
        z[i] = T[codes[rows[start + i] if rows != NULL else start + i] * ld + i * step]
    for i in range(count, BLOCK):
        z[i] = top[i]
    for i in range(BLOCK):
        out[i] = _shifted(z[i], top[i])


cdef sr_void _deduct(
    floating* T, Py_ssize_t ld, Py_ssize_t step, const Py_ssize_t* rows, Py_ssize_t start, Py_ssize_t count,
    const Py_ssize_t* codes, const floating* amount, floating share
) noexcept nogil:
    """T at each row's class -= share * amount."""
    cdef Py_ssize_t i
    for i in range(count):
        T[codes[rows[start + i] if rows != NULL else start + i] * ld + i * step] -= share * amount[i]


cdef sr_void _losses(
    const floating* weight, const floating* log_total, const floating* fit, floating* out, double* total
) noexcept nogil:
    """out (BLOCK,) OUT = weight (log_total - fit), and nothing where the weight is zero; total (1,) += their sum."""
    cdef Py_ssize_t i, q
    cdef double loss
    cdef double[8] lane
    for q in range(8):
        lane[q] = 0
    for i in range(0, 64, 8):  # BLOCK, which range() wants as a literal
        for q in range(8):
            loss = <double>weight[i + q] * (<double>log_total[i + q] - <double>fit[i + q])
            loss = loss if weight[i + q] != 0 else 0
            lane[q] = lane[q] + loss
            out[i + q] = <floating>loss
    for q in range(4):
        lane[q] = lane[q] + lane[q + 4]
    total[0] += (lane[0] + lane[1]) + (lane[2] + lane[3])


cdef sr_void _reciprocal(const floating* total, const floating* weight, floating* out) noexcept nogil:
    """out OUT = weight / total, or 1 / total."""
    cdef Py_ssize_t i
    for i in range(BLOCK):
        out[i] = (weight[i] if weight != NULL else <floating>1) / total[i]


cdef double _cross_entropy_block(
    floating* T, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t K, floating* U, floating* lanes,
    const Py_ssize_t* rows, Py_ssize_t start, const Py_ssize_t* codes, const floating* targets,
    const floating* sample_weight, double label_smoothing, double scale, bint within_pass, floating* P, floating* losses,
) noexcept nogil:
    """From logits T to scale * s (P - Y) in place; return the summed loss. U (K, ld), lanes (5, BLOCK) are scratch.

    Within a pass over X tiny probabilities count as zero: products of theirs would be subnormal numbers, which are slow.
    """
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef floating* weight = lanes + 2 * BLOCK
    cdef floating* fit = lanes + 3 * BLOCK        # sum_k Y (Z - top)
    cdef floating* factor = lanes + 4 * BLOCK
    cdef floating kept = <floating>(1 - label_smoothing), uniform = <floating>(label_smoothing / K)
    cdef (const floating*)[BLOCK] y
    cdef double loss = 0
    cdef Py_ssize_t i, k
    cdef floating floor = 0
    if within_pass:
        floor = 1e-20 if floating is float else 1e-100
    _weights(rows, start, count, sample_weight, scale, weight)
    _top(T, ld, K, top)
    if codes != NULL:
        _pick(T, ld, 1, rows, start, count, codes, top, fit)
        if label_smoothing != 0:
            _mean_shifted(T, ld, K, top, factor)
            for i in range(BLOCK):
                fit[i] = kept * fit[i] + <floating>label_smoothing * factor[i]
    else:
        for i in range(BLOCK):
            k = min(start + i, start + count - 1)
            y[i] = targets + (rows[k] if rows != NULL else k) * K
        _transpose_rows(y, count, K, U, ld)
        if label_smoothing != 0:
            _smooth(U, ld, K, kept, uniform)
        _dot_shifted(T, U, ld, K, top, fit)
    _exp(T, ld, K, top, floor, total)
    _log(total, top)
    _losses(weight, top, fit, factor, &loss)
    if losses != NULL:
        memcpy(losses, factor, count * sizeof(floating))
    _reciprocal(total, <floating*>NULL if P != NULL else weight, factor)
    _scale(T, ld, K, factor)
    if P != NULL:
        _store_rows(T, ld, count, K, P)
        _scale(T, ld, K, weight)
    if codes == NULL:
        _subtract_scaled(T, U, ld, K, weight)
        return loss
    if label_smoothing != 0:
        for i in range(BLOCK):
            factor[i] = weight[i] * uniform
        _subtract(T, ld, K, factor)
    _deduct(T, ld, 1, rows, start, count, codes, weight, kept)
    return loss


cdef void _wide_block(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, floating* lanes, Py_ssize_t start, const Py_ssize_t* codes,
    const floating* sample_weight, floating* losses, floating* residual,
) noexcept nogil:
    """residual (count, K) OUT = s (P - Y), losses (count,) OUT or NULL, all row-major; lanes (5, BLOCK) is scratch."""
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef floating* weight = lanes + 2 * BLOCK
    cdef floating* fit = lanes + 3 * BLOCK
    cdef double loss = 0
    cdef Py_ssize_t i
    for i in range(count, BLOCK):
        top[i] = 0
        total[i] = 1
    _weights(NULL, start, count, sample_weight, 1, weight)
    _softmax_rows(Z, count, K, weight, residual, top, total)
    _pick(Z, 1, K, NULL, start, count, codes, top, fit)
    _deduct(residual, 1, K, NULL, start, count, codes, weight, <floating>1)
    if losses != NULL:
        _log(total, top)
        _losses(weight, top, fit, lanes + 4 * BLOCK, &loss)
        memcpy(losses, lanes + 4 * BLOCK, count * sizeof(floating))


cdef void _curve_block(
    floating* R, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t K, floating* U, floating* lanes,
    const Py_ssize_t* rows, Py_ssize_t start, const floating* P, const floating* sample_weight, double scale,
) noexcept nogil:
    """From R = X V^T to scale * s (P*R - P sum_k P*R) in place; P (count, K) belongs to these rows."""
    _weights(rows, start, count, sample_weight, scale, lanes)
    _load_rows(P, count, K, U, ld)
    _curve(R, U, ld, K, lanes)


# --- batches of logits ----------------------------------------------------------------------------------------------

cdef enum Batch:
    LOGSUMEXP
    SOFTMAX
    LOG_SOFTMAX
    SOFTMAX_VJP


cdef void _batch_block(
    Batch what, const floating* Z, const floating* other, Py_ssize_t count, Py_ssize_t K, floating* T, floating* U,
    floating* lanes, floating* out,
) noexcept nogil:
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef Py_ssize_t i
    if what == SOFTMAX and K >= WIDE:
        _softmax_rows(Z, count, K, NULL, out, top, total)
        return
    _load_rows(Z, count, K, T, BLOCK)
    _top(T, BLOCK, K, top)
    if what == LOG_SOFTMAX:
        memcpy(U, T, K * BLOCK * sizeof(floating))
        _exp(U, BLOCK, K, top, 0, total)
        _log(total, total)
        _log_probabilities(T, BLOCK, K, top, total)
    else:
        _exp(T, BLOCK, K, top, 0, total)
        if what == LOGSUMEXP:
            _log(total, total)
            for i in range(count):
                out[i] = top[i] + total[i]
            return
        for i in range(BLOCK):
            total[i] = 1 / total[i]
        _scale(T, BLOCK, K, total)
        if what == SOFTMAX_VJP:
            for i in range(BLOCK):
                lanes[i] = 1
            _load_rows(other, count, K, U, BLOCK)
            _curve(U, T, BLOCK, K, lanes)
            T = U
    _store_rows(T, BLOCK, count, K, out)


cdef int _batch(
    Batch what, const floating[:, ::1] Z, const floating* other, floating* out, int n_threads
) except -1:
    """Run `what` over the blocks of Z."""
    cdef Py_ssize_t n = Z.shape[0], K = Z.shape[1], block, start
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, width = 1 if what == LOGSUMEXP else K
    cdef Py_ssize_t parts = min(blocks, <Py_ssize_t>MAX_PARTS), part, size = (2 * K + 2) * BLOCK
    cdef floating* scratch
    cdef floating* T
    if n == 0 or K == 0:
        return 0
    scratch = <floating*>_allocate(parts * size, sizeof(floating))
    for part in prange(parts, nogil=True, num_threads=n_threads, schedule="static"):
        T = scratch + part * size
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            start = block * BLOCK
            _batch_block(
                what, &Z[start, 0], other + start * K if other != NULL else NULL, min(<Py_ssize_t>BLOCK, n - start), K,
                T, T + K * BLOCK, T + 2 * K * BLOCK, out + start * width,
            )
    free(scratch)
    return 0


def logsumexp(const floating[:, ::1] Z, floating[::1] out, int n_threads=1):
    """out (n,) OUT = log(sum_k exp(Z_k)), shifted by the row maximum so that nothing overflows."""
    _batch[floating](LOGSUMEXP, Z, NULL, _first[floating](out), n_threads)


def softmax(const floating[:, ::1] Z, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = exp(Z) / sum_k exp(Z_k)."""
    _batch[floating](SOFTMAX, Z, NULL, _corner[floating](out), n_threads)


def log_softmax(const floating[:, ::1] Z, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = Z - logsumexp(Z), never the log of a rounded probability."""
    _batch[floating](LOG_SOFTMAX, Z, NULL, _corner[floating](out), n_threads)


def softmax_vjp(const floating[:, ::1] Z, const floating[:, ::1] U, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = J^T U row by row with J = diag(p) - p p^T, that is t - (1^T t) p with t = p * u."""
    _batch[floating](SOFTMAX_VJP, Z, _corner[floating](U), _corner[floating](out), n_threads)


def cross_entropy(
    const floating[:, ::1] Z, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, floating[::1] losses, floating[:, ::1] residual,
    int n_threads=1,
):
    """losses (n,) OUT or None = s CE(y, p); residual (n, K) OUT or None = s (P - Y)."""
    cdef Py_ssize_t n = Z.shape[0], K = Z.shape[1], block, start, count
    cdef Py_ssize_t blocks = (n + BLOCK - 1) // BLOCK, parts = min(blocks, <Py_ssize_t>MAX_PARTS), part
    cdef Py_ssize_t size = (2 * K + 5) * BLOCK
    cdef const Py_ssize_t* y = _first[Py_ssize_t](codes)
    cdef const floating* Y = _corner[floating](targets)
    cdef const floating* s = _first[floating](sample_weight)
    cdef floating* loss = _first[floating](losses)
    cdef floating* out = _corner[floating](residual)
    cdef floating* scratch
    cdef floating* T
    if n == 0 or K == 0:
        return
    scratch = <floating*>_allocate(parts * size, sizeof(floating))
    for part in prange(parts, nogil=True, num_threads=n_threads, schedule="static"):
        T = scratch + part * size
        for block in range(part * blocks // parts, (part + 1) * blocks // parts):
            start = block * BLOCK
            count = min(<Py_ssize_t>BLOCK, n - start)
            if K >= WIDE and y != NULL and label_smoothing == 0 and out != NULL:
                _wide_block(
                    &Z[start, 0], count, K, T + 2 * K * BLOCK, start, y, s, loss + start if loss != NULL else NULL,
                    out + start * K,
                )
                continue
            _load_rows(&Z[start, 0], count, K, T, BLOCK)
            _cross_entropy_block(
                T, BLOCK, count, K, T + K * BLOCK, T + 2 * K * BLOCK, NULL, start, y, Y, s, label_smoothing, 1,
                False, NULL, loss + start if loss != NULL else NULL,
            )
            if out != NULL:
                _store_rows(T, BLOCK, count, K, out + start * K)
    free(scratch)


# --- dense rows -----------------------------------------------------------------------------------------------------


cdef struct Plan:
    Py_ssize_t m, d, p, K, Kp       # Kp: classes in whole tiles
    Py_ssize_t lanes, dp            # dp: features of a packed row of W, in whole vectors
    Py_ssize_t block                # rows that are taken at a time
    Py_ssize_t parts
    Py_ssize_t columns              # features in whole tiles: the row length of a part's gradient
    Py_ssize_t size                 # of a part's scratch
    Py_ssize_t stride               # between rows of X
    const Py_ssize_t* rows
    bint blas, transposed, padded, gathered, single


cdef Plan _plan(const floating[:, :] X, const Py_ssize_t[::1] rows, Py_ssize_t p, Py_ssize_t K) noexcept:
    cdef Plan plan
    cdef Py_ssize_t tile
    plan.d = X.shape[1]
    plan.p = p
    plan.K = K
    plan.rows = NULL if rows is None else _first[Py_ssize_t](rows)
    plan.m = X.shape[0] if rows is None else rows.shape[0]
    plan.stride = X.strides[0] // <Py_ssize_t>sizeof(floating)
    plan.single = floating is float
    plan.lanes = FLOAT_LANES if floating is float else DOUBLE_LANES
    tile = 2 * plan.lanes
    plan.blas = (K if plan.single else 2 * K) >= BLAS_CLASSES and plan.d >= GATHER_BELOW
    plan.transposed = plan.d < GATHER_BELOW
    plan.padded = plan.d < tile
    plan.gathered = plan.blas and (plan.rows != NULL or plan.stride < plan.d)   # BLAS wants rows one after the other
    plan.block = 4 * BLOCK if plan.blas else BLOCK
    plan.parts = min(<Py_ssize_t>MAX_PARTS, (plan.m + plan.block - 1) // plan.block)
    plan.Kp = (K + TILE_CLASSES - 1) // TILE_CLASSES * TILE_CLASSES
    plan.dp = plan.d if plan.transposed or plan.blas else (plan.d + plan.lanes - 1) // plan.lanes * plan.lanes
    plan.columns = (plan.d + tile - 1) // tile * tile
    plan.size = (
        plan.Kp * (plan.block + plan.columns) + K * plan.block + 5 * BLOCK
        + (plan.d * BLOCK if plan.transposed else 0)
        + (BLOCK * tile if plan.padded else 0)
        + (plan.block * plan.d if plan.gathered else 0)
    )
    return plan


cdef struct Scratch:
    void* T             # (Kp, block) logits
    void* U             # (K, block) probabilities or targets
    void* lanes         # (5, BLOCK) one number a row
    void* gradient      # (Kp, columns)
    void* features      # a transposed block of X, or a gathered one for BLAS
    void* padding       # rows of X shorter than a tile


cdef Scratch _scratch(const Plan* plan, floating* start) noexcept nogil:
    cdef Scratch at
    at.gradient = start
    at.T = start + plan.Kp * plan.columns
    at.U = <floating*>at.T + plan.Kp * plan.block
    at.lanes = <floating*>at.U + plan.K * plan.block
    at.features = <floating*>at.lanes + 5 * BLOCK
    at.padding = <floating*>at.features + (plan.d * BLOCK if plan.transposed else 0)
    return at


cdef inline Py_ssize_t _row(const Plan* plan, Py_ssize_t i) noexcept nogil:
    return plan.rows[i] if plan.rows != NULL else i


cdef void _point(
    const Plan* plan, const floating* X, Py_ssize_t start, Py_ssize_t count, const floating** x
) noexcept nogil:
    """x OUT = where `count` rows from `start` on stand; the table goes on for whole tiles, then for what comes next."""
    cdef Py_ssize_t i
    for i in range(BLOCK + TILE_ROWS):
        x[i] = X + _row(plan, min(start + i, plan.m - 1)) * plan.stride


cdef const floating* _thick(
    const Plan* plan, const floating* X, Py_ssize_t start, Py_ssize_t count, Scratch at, Py_ssize_t* lda
) noexcept nogil:
    """A block of X as BLAS wants it, in place if the rows follow each other."""
    cdef floating* block = <floating*>at.features
    cdef Py_ssize_t i
    if not plan.gathered:
        lda[0] = plan.stride
        return X + start * plan.stride
    for i in range(count):
        memcpy(block + i * plan.d, X + _row(plan, start + i) * plan.stride, plan.d * sizeof(floating))
    lda[0] = plan.d
    return block


cdef floating* _pack(const Plan* plan, const floating[:, ::1] W, floating** bias) except? NULL:
    """W in whole tiles, (Kp, dp) then the bias (Kp,): zeros fill up, and stand where a moved-back vector overlaps."""
    cdef floating* packed = <floating*>_allocate(plan.Kp * (plan.dp + 1), sizeof(floating))
    cdef Py_ssize_t k, whole = plan.d if plan.dp == plan.d else plan.d // plan.lanes * plan.lanes
    memset(packed, 0, plan.Kp * (plan.dp + 1) * sizeof(floating))
    bias[0] = packed + plan.Kp * plan.dp
    for k in range(plan.K):
        if plan.d > 0:
            memcpy(packed + k * plan.dp, &W[k, 0], whole * sizeof(floating))
        if whole < plan.d:
            memcpy(
                packed + (k + 1) * plan.dp - (plan.d - whole), &W[k, whole], (plan.d - whole) * sizeof(floating)
            )
        if plan.p > plan.d:
            bias[0][k] = W[k, plan.d]
    return packed


cdef void _forward(
    const Plan* plan, const floating* X, Py_ssize_t start, Py_ssize_t count, const floating* W, const floating* bias,
    Scratch at,
) noexcept nogil:
    """T = W x^T + b for rows start .. start + count."""
    cdef (const floating*)[BLOCK + TILE_ROWS] x
    cdef (const floating*)[GATHER_BELOW] columns
    cdef floating* T = <floating*>at.T
    cdef floating* XT = <floating*>at.features
    cdef Py_ssize_t i, j, k, lda
    for k in range(plan.Kp):
        for i in range(plan.block):
            T[k * plan.block + i] = bias[k]
    if plan.blas:
        X = _thick(plan, X, start, count, at, &lda)
        _gemm[floating](True, count, plan.K, plan.d, X, lda, W, plan.dp, 1, T, plan.block)
        return
    _point(plan, X, start, count, x)
    if plan.transposed:
        _transpose_rows(x, count, plan.d, XT, BLOCK)
        for j in range(plan.d):
            columns[j] = XT + j * BLOCK
        if floating is float:
            _multiply(W, plan.dp, plan.Kp, columns, plan.d, BLOCK, <vfloat*>T, BLOCK)
        else:
            _multiply(W, plan.dp, plan.Kp, columns, plan.d, BLOCK, <vdouble*>T, BLOCK)
    elif floating is float:
        _logits_dot(x, count, <const vfloat*>W, plan.dp, plan.d, plan.Kp, T, BLOCK)
    else:
        _logits_dot(x, count, <const vdouble*>W, plan.dp, plan.d, plan.Kp, T, BLOCK)


cdef void _backward(
    const Plan* plan, const floating* X, Py_ssize_t start, Py_ssize_t count, Scratch at, double* bias
) noexcept nogil:
    """gradient += T x, bias += row sums of T, for rows start .. start + count."""
    cdef (const floating*)[BLOCK + TILE_ROWS] x
    cdef floating* T = <floating*>at.T
    cdef floating* padding = <floating*>at.padding
    cdef Py_ssize_t i, lda, width = plan.d
    if plan.p > plan.d:
        _add_row_sums(T, plan.block, count, plan.K, bias)
    if plan.blas:
        X = _thick(plan, X, start, count, at, &lda)
        _gemm[floating](False, plan.d, plan.K, count, X, lda, T, plan.block, 1, <floating*>at.gradient, plan.columns)
        return
    _point(plan, X, start, count, x)
    if plan.padded:
        width = 2 * plan.lanes
        memset(padding, 0, count * width * sizeof(floating))
        for i in range(count):
            memcpy(padding + i * width, x[i], plan.d * sizeof(floating))
            x[i] = padding + i * width
    if floating is float:
        _multiply(T, BLOCK, plan.Kp, x, count, width, <vfloat*>at.gradient, plan.columns)
    else:
        _multiply(T, BLOCK, plan.Kp, x, count, width, <vdouble*>at.gradient, plan.columns)


cdef sr_void _add(floating* total, const floating* other, Py_ssize_t n) noexcept nogil:
    """total += other."""
    cdef Py_ssize_t i
    for i in range(n):
        total[i] = total[i] + other[i]


cdef void _collect(const Plan* plan, floating* scratch, double* bias, floating[:, ::1] out) noexcept nogil:
    """out (K, p) OUT = the parts' gradients, summed in order."""
    cdef Py_ssize_t k, part, n = plan.Kp * plan.columns
    cdef Py_ssize_t last = plan.columns - 2 * plan.lanes    # where the last tile begins, and which features it holds
    if plan.blas or plan.padded or plan.columns == plan.d:
        last = plan.d
    for part in range(1, plan.parts):
        _add(scratch, scratch + part * plan.size, n)
        for k in range(plan.K):
            bias[k] += bias[part * plan.Kp + k]
    for k in range(plan.K):
        memcpy(&out[k, 0], scratch + k * plan.columns, last * sizeof(floating))
        if last < plan.d:
            memcpy(
                &out[k, last], scratch + k * plan.columns + plan.columns - (plan.d - last),
                (plan.d - last) * sizeof(floating),
            )
        if plan.p > plan.d:
            out[k, plan.d] = <floating>bias[k]


cdef inline Py_ssize_t _part_start(const Plan* plan, Py_ssize_t part) noexcept nogil:
    """The first row of a part: whole blocks, as evenly as they go."""
    cdef Py_ssize_t blocks = (plan.m + plan.block - 1) // plan.block
    return min(plan.m, part * blocks // plan.parts * plan.block)


# The bodies of the four parallel loops below: what one part does with its rows, block by block.


cdef void _logits_part(
    const Plan* plan, Py_ssize_t part, floating* scratch, const floating* X, const floating* W, const floating* bias,
    floating* out,
) noexcept nogil:
    cdef Scratch at = _scratch(plan, scratch + part * plan.size)
    cdef Py_ssize_t start = _part_start(plan, part), stop = _part_start(plan, part + 1), count, strip
    while start < stop:
        count = min(plan.block, stop - start)
        _forward(plan, X, start, count, W, bias, at)
        for strip in range(0, count, 64):  # BLOCK, which range() wants as a literal
            _store_rows(
                <floating*>at.T + strip, plan.block, min(<Py_ssize_t>BLOCK, count - strip), plan.K,
                out + (start + strip) * plan.K,
            )
        start += count


cdef void _gradient_part(
    const Plan* plan, Py_ssize_t part, floating* scratch, const floating* X, const floating* G, double* sums,
) noexcept nogil:
    cdef Scratch at = _scratch(plan, scratch + part * plan.size)
    cdef Py_ssize_t start = _part_start(plan, part), stop = _part_start(plan, part + 1), count, strip
    _clear(plan, at, sums + part * plan.Kp)
    while start < stop:
        count = min(plan.block, stop - start)
        for strip in range(0, count, 64):  # BLOCK, which range() wants as a literal
            _load_rows(
                G + (start + strip) * plan.K, min(<Py_ssize_t>BLOCK, count - strip), plan.K,
                <floating*>at.T + strip, plan.block,
            )
        _backward(plan, X, start, count, at, sums + part * plan.Kp)
        start += count


cdef double _loss_part(
    const Plan* plan, Py_ssize_t part, floating* scratch, const floating* X, const floating* W, const floating* bias,
    const Py_ssize_t* codes, const floating* targets, const floating* sample_weight, double label_smoothing,
    double scale, floating* P, double* sums,
) noexcept nogil:
    cdef Scratch at = _scratch(plan, scratch + part * plan.size)
    cdef Py_ssize_t start = _part_start(plan, part), stop = _part_start(plan, part + 1), count, strip
    cdef double loss = 0
    _clear(plan, at, sums + part * plan.Kp)
    while start < stop:
        count = min(plan.block, stop - start)
        _forward(plan, X, start, count, W, bias, at)
        for strip in range(0, count, 64):  # BLOCK, which range() wants as a literal
            loss += _cross_entropy_block(
                <floating*>at.T + strip, plan.block, min(<Py_ssize_t>BLOCK, count - strip), plan.K,
                <floating*>at.U + strip, <floating*>at.lanes, plan.rows, start + strip, codes, targets, sample_weight,
                label_smoothing, scale, True,
                P + (start + strip) * plan.K if P != NULL else NULL, NULL,
            )
        _backward(plan, X, start, count, at, sums + part * plan.Kp)
        start += count
    return loss


cdef void _hessian_part(
    const Plan* plan, Py_ssize_t part, floating* scratch, const floating* X, const floating* V, const floating* bias,
    const floating* P, const floating* sample_weight, double scale, double* sums,
) noexcept nogil:
    cdef Scratch at = _scratch(plan, scratch + part * plan.size)
    cdef Py_ssize_t start = _part_start(plan, part), stop = _part_start(plan, part + 1), count, strip
    _clear(plan, at, sums + part * plan.Kp)
    while start < stop:
        count = min(plan.block, stop - start)
        _forward(plan, X, start, count, V, bias, at)
        for strip in range(0, count, 64):  # BLOCK, which range() wants as a literal
            _curve_block(
                <floating*>at.T + strip, plan.block, min(<Py_ssize_t>BLOCK, count - strip), plan.K,
                <floating*>at.U + strip, <floating*>at.lanes, plan.rows, start + strip,
                P + (start + strip) * plan.K, sample_weight, scale,
            )
        _backward(plan, X, start, count, at, sums + part * plan.Kp)
        start += count


cdef void _clear(const Plan* plan, Scratch at, double* sums) noexcept nogil:
    """Nothing is summed yet; classes that only fill up a tile stay zero."""
    cdef Py_ssize_t size = 4 if plan.single else 8
    memset(at.gradient, 0, plan.Kp * plan.columns * size)
    memset(at.T, 0, plan.Kp * plan.block * size)
    memset(sums, 0, plan.Kp * sizeof(double))


def dense_logits(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] W, floating[:, ::1] out,
    int n_threads=1,
):
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef Plan plan = _plan(X, rows, W.shape[1], W.shape[0])
    cdef const floating* x = _corner[floating](X)
    cdef floating* bias
    cdef floating* packed
    cdef floating* scratch
    cdef floating* Z = _corner[floating](out)
    cdef Py_ssize_t part
    if plan.m == 0 or plan.K == 0:
        return
    packed = _pack(&plan, W, &bias)
    scratch = <floating*>_allocate(plan.parts * plan.size, sizeof(floating))
    for part in prange(plan.parts, nogil=True, num_threads=n_threads, schedule="static"):
        _logits_part(&plan, part, scratch, x, packed, bias, Z)
    free(scratch)
    free(packed)


def dense_gradient(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] G, floating[:, ::1] out,
    int n_threads=1,
):
    """out (K, p) OUT = G^T [X[rows] 1], the X^T accumulation; G (m, K)."""
    cdef Plan plan = _plan(X, rows, out.shape[1], G.shape[1])
    cdef const floating* x = _corner[floating](X)
    cdef const floating* g = _corner[floating](G)
    cdef floating* scratch
    cdef double* sums
    cdef Py_ssize_t part
    if plan.m == 0 or plan.K == 0:
        out[:, :] = 0
        return
    scratch = <floating*>_allocate(plan.parts * plan.size, sizeof(floating))
    sums = <double*>_allocate(plan.parts * plan.Kp, sizeof(double))
    for part in prange(plan.parts, nogil=True, num_threads=n_threads, schedule="static"):
        _gradient_part(&plan, part, scratch, x, g, sums)
    _collect(&plan, scratch, sums, out)
    free(sums)
    free(scratch)


def dense_loss_gradient(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] W, const Py_ssize_t[::1] codes,
    const floating[:, ::1] targets, const floating[::1] sample_weight, double label_smoothing, double scale,
    floating[:, ::1] P, floating[:, ::1] grad, int n_threads=1,
):
    """Return scale * sum_i s_i CE_i over the rows; grad (K, p) OUT its derivative; P (m, K) OUT or None."""
    cdef Plan plan = _plan(X, rows, W.shape[1], W.shape[0])
    cdef const floating* x = _corner[floating](X)
    cdef const Py_ssize_t* y = _first[Py_ssize_t](codes)
    cdef const floating* Y = _corner[floating](targets)
    cdef const floating* s = _first[floating](sample_weight)
    cdef floating* probabilities = _corner[floating](P)
    cdef floating* bias
    cdef floating* packed
    cdef floating* scratch
    cdef double* sums
    cdef double[MAX_PARTS] losses
    cdef double loss = 0
    cdef Py_ssize_t part
    if plan.m == 0 or plan.K == 0:
        grad[:, :] = 0
        return 0.0
    packed = _pack(&plan, W, &bias)
    scratch = <floating*>_allocate(plan.parts * plan.size, sizeof(floating))
    sums = <double*>_allocate(plan.parts * plan.Kp, sizeof(double))
    for part in prange(plan.parts, nogil=True, num_threads=n_threads, schedule="static"):
        losses[part] = _loss_part(
            &plan, part, scratch, x, packed, bias, y, Y, s, label_smoothing, scale, probabilities, sums
        )
    _collect(&plan, scratch, sums, grad)
    for part in range(plan.parts):
        loss += losses[part]
    free(sums)
    free(scratch)
    free(packed)
    return loss


def dense_hessian_product(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] P,
    const floating[::1] sample_weight, double scale, const floating[:, ::1] V, floating[:, ::1] out, int n_threads=1,
):
    """out (K, p) OUT = the Gauss-Newton (here: exact) Hessian of the loss at probabilities P, times V."""
    cdef Plan plan = _plan(X, rows, V.shape[1], V.shape[0])
    cdef const floating* x = _corner[floating](X)
    cdef const floating* probabilities = _corner[floating](P)
    cdef const floating* s = _first[floating](sample_weight)
    cdef floating* bias
    cdef floating* packed
    cdef floating* scratch
    cdef double* sums
    cdef Py_ssize_t part
    if plan.m == 0 or plan.K == 0:
        out[:, :] = 0
        return
    packed = _pack(&plan, V, &bias)
    scratch = <floating*>_allocate(plan.parts * plan.size, sizeof(floating))
    sums = <double*>_allocate(plan.parts * plan.Kp, sizeof(double))
    for part in prange(plan.parts, nogil=True, num_threads=n_threads, schedule="static"):
        _hessian_part(&plan, part, scratch, x, packed, bias, probabilities, s, scale, sums)
    _collect(&plan, scratch, sums, out)
    free(sums)
    free(scratch)
    free(packed)


def input_gradient(const floating[:, ::1] G, const floating[:, ::1] W, floating[:, ::1] out, int n_threads=1):
    """out (n, d) OUT = G W, without the intercept column of W (K, p)."""
    cdef Py_ssize_t n = G.shape[0], K = G.shape[1], d = out.shape[1], part, first, last
    cdef Py_ssize_t parts = min(<Py_ssize_t>MAX_PARTS, (n + BLOCK - 1) // BLOCK)
    cdef const floating* g = _corner[floating](G)
    cdef const floating* w = _corner[floating](W)
    cdef floating* x = _corner[floating](out)
    if n == 0 or d == 0:
        return
    if K == 0:
        out[:, :] = 0
        return
    for part in prange(parts, nogil=True, num_threads=n_threads, schedule="static"):
        first = part * n // parts
        last = (part + 1) * n // parts
        _gemm[floating](False, d, last - first, K, w, W.shape[1], g + first * K, K, 0, x + first * d, d)


# --- CSR rows -------------------------------------------------------------------------------------------------------
# A nonzero of feature j meets row j of W^T (p, K): K contiguous numbers, both ways.


# So K numbers are held in up to four vectors, the last one moved back to end with the row: it holds some numbers
# twice, and computes the same for them twice. The features of a row are anywhere in the table, so they are fetched
# AHEAD.


cdef inline sr_inline_void _csr_forward_tile(
    const floating* data, const index_t* indices, Py_ssize_t count, const floating* Wt, Py_ssize_t K, Py_ssize_t width,
    const vec* unused, Py_ssize_t n, floating* z,
) noexcept nogil:
    """z (width,) += one row of X times `width` columns of Wt, in n vectors: a constant."""
    cdef vec[4] acc
    cdef Py_ssize_t[4] at
    cdef Py_ssize_t i, q, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef floating v
    cdef const floating* w
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        for i in range(n):
            at[i] = i * lanes if i < n - 1 else width - lanes
            acc[i] = (<const vec*>(z + at[i]))[0]
        for q in range(count):
            if q + AHEAD < count:
                w = Wt + indices[q + AHEAD] * K
                for i in range(n):
                    prefetch(w + at[i])
            v = data[q]
            w = Wt + indices[q] * K
            for i in range(n):
                acc[i] = acc[i] + v * (<const vec*>(w + at[i]))[0]
        for i in range(n):
            (<vec*>(z + at[i]))[0] = acc[i]


cdef inline sr_inline_void _csr_backward_tile(
    const floating* data, const index_t* indices, Py_ssize_t count, const floating* g, Py_ssize_t K, Py_ssize_t width,
    const vec* unused, Py_ssize_t n, floating* out,
) noexcept nogil:
    """`width` columns of out += one row of X times g, in n vectors: a constant."""
    cdef vec[4] row, sums
    cdef Py_ssize_t[4] at
    cdef Py_ssize_t i, q, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef floating v
    cdef floating* o
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        for i in range(n):
            at[i] = i * lanes if i < n - 1 else width - lanes
            row[i] = (<const vec*>(g + at[i]))[0]
        for q in range(count):
            if q + AHEAD < count:
                o = out + indices[q + AHEAD] * K
                for i in range(n):
                    prefetch(o + at[i])
            v = data[q]
            o = out + indices[q] * K
            for i in range(n):
                sums[i] = (<const vec*>(o + at[i]))[0] + v * row[i]
            for i in range(n):
                (<vec*>(o + at[i]))[0] = sums[i]


cdef inline sr_inline_void _csr_forward_row(
    const floating* data, const index_t* indices, Py_ssize_t count, const floating* Wt, Py_ssize_t K, const vec* unused,
    floating* z,
) noexcept nogil:
    """z (K,) += one row of X times Wt."""
    cdef Py_ssize_t k = 0, q, width, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef floating v
    cdef const floating* w
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while K - k >= lanes:
            width = min(K - k, 4 * lanes)
            if width <= lanes:
                _csr_forward_tile(data, indices, count, Wt + k, K, width, unused, 1, z + k)
            elif width <= 2 * lanes:
                _csr_forward_tile(data, indices, count, Wt + k, K, width, unused, 2, z + k)
            elif width <= 3 * lanes:
                _csr_forward_tile(data, indices, count, Wt + k, K, width, unused, 3, z + k)
            else:
                _csr_forward_tile(data, indices, count, Wt + k, K, width, unused, 4, z + k)
            k += width
        if k < K:
            for q in range(count):
                v = data[q]
                w = Wt + indices[q] * K
                for width in range(k, K):
                    z[width] = z[width] + v * w[width]


cdef inline sr_inline_void _csr_backward_row(
    const floating* data, const index_t* indices, Py_ssize_t count, const floating* g, Py_ssize_t K, const vec* unused,
    floating* out,
) noexcept nogil:
    """out += one row of X times g (K,)."""
    cdef Py_ssize_t k = 0, q, width, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef floating v
    cdef floating* o
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while K - k >= lanes:
            width = min(K - k, 4 * lanes)
            if width <= lanes:
                _csr_backward_tile(data, indices, count, g + k, K, width, unused, 1, out + k)
            elif width <= 2 * lanes:
                _csr_backward_tile(data, indices, count, g + k, K, width, unused, 2, out + k)
            elif width <= 3 * lanes:
                _csr_backward_tile(data, indices, count, g + k, K, width, unused, 3, out + k)
            else:
                _csr_backward_tile(data, indices, count, g + k, K, width, unused, 4, out + k)
            k += width
        if k < K:
            for q in range(count):
                v = data[q]
                o = out + indices[q] * K
                for width in range(k, K):
                    o[width] = o[width] + v * g[width]


cdef sr_void _csr_forward(
    const floating* data, const index_t* indices, const index_t* indptr, const Py_ssize_t* rows, Py_ssize_t start,
    Py_ssize_t count, const floating* Wt, const floating* bias, Py_ssize_t K, floating* Z,
) noexcept nogil:
    """Z (count, K) OUT = logits of rows start .. start + count."""
    cdef Py_ssize_t i, k, r, low
    cdef floating* z
    for i in range(count):
        r = rows[start + i] if rows != NULL else start + i
        low = indptr[r]
        z = Z + i * K
        for k in range(K):
            z[k] = bias[k] if bias != NULL else 0
        if floating is float:
            _csr_forward_row(data + low, indices + low, indptr[r + 1] - low, Wt, K, <vfloat*>NULL, z)
        else:
            _csr_forward_row(data + low, indices + low, indptr[r + 1] - low, Wt, K, <vdouble*>NULL, z)


cdef inline Py_ssize_t _csr_before(
    const index_t* indices, Py_ssize_t low, Py_ssize_t high, Py_ssize_t feature
) noexcept nogil:
    """Where the features of a row stop being smaller than `feature`."""
    cdef Py_ssize_t middle
    while low < high:
        middle = low + (high - low) // 2
        if indices[middle] < feature:
            low = middle + 1
        else:
            high = middle
    return low


cdef sr_void _csr_backward(
    const floating* data, const index_t* indices, const index_t* indptr, const Py_ssize_t* rows, Py_ssize_t m,
    const floating* G, Py_ssize_t K, Py_ssize_t first, Py_ssize_t last, Py_ssize_t n_features, floating* out,
) noexcept nogil:
    """out (p, K) += X^T G for the features first .. last alone: threads share features, so each sum has one order."""
    cdef Py_ssize_t i, r, low, high
    for i in range(m):
        r = rows[i] if rows != NULL else i
        low = indptr[r]
        high = indptr[r + 1]
        if first > 0:
            low = _csr_before(indices, low, high, first)
        if last < n_features:
            high = _csr_before(indices, low, high, last)
        if floating is float:
            _csr_backward_row(data + low, indices + low, high - low, G + i * K, K, <vfloat*>NULL, out)
        else:
            _csr_backward_row(data + low, indices + low, high - low, G + i * K, K, <vdouble*>NULL, out)


cdef void _csr_accumulate(
    const floating* data, const index_t* indices, const index_t* indptr, const Py_ssize_t* rows, Py_ssize_t m,
    Py_ssize_t n_features, const floating* G, floating[:, ::1] out, int n_threads,
) noexcept:
    """out (p, K) OUT = [X[rows] 1]^T G."""
    cdef Py_ssize_t K = out.shape[1], k, i, share, shares = max(1, n_threads)
    cdef Py_ssize_t first, last
    cdef floating* o = _corner[floating](out)
    memset(o, 0, out.shape[0] * K * sizeof(floating))
    for share in prange(shares, nogil=True, num_threads=n_threads, schedule="static"):
        first = share * n_features // shares
        last = (share + 1) * n_features // shares
        _csr_backward(data, indices, indptr, rows, m, G, K, first, last, n_features, o)
    if out.shape[0] > n_features:
        o = o + n_features * K
        for i in range(m):
            for k in range(K):
                o[k] += G[i * K + k]


def csr_logits(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] Wt, Py_ssize_t n_features, floating[:, ::1] out, int n_threads=1,
):
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef Py_ssize_t K = Wt.shape[1], m = out.shape[0], block, blocks = (m + BLOCK - 1) // BLOCK
    cdef const floating* v = _first[floating](data)
    cdef const index_t* j = _first[index_t](indices)
    cdef const index_t* ptr = _first[index_t](indptr)
    cdef const Py_ssize_t* r = _first[Py_ssize_t](rows)
    cdef const floating* w = _corner[floating](Wt)
    cdef const floating* bias = w + n_features * K if Wt.shape[0] > n_features else NULL
    cdef floating* Z = _corner[floating](out)
    for block in prange(blocks, nogil=True, num_threads=n_threads, schedule="static"):
        _csr_forward(
            v, j, ptr, r, block * BLOCK, min(<Py_ssize_t>BLOCK, m - block * BLOCK), w, bias, K, Z + block * BLOCK * K
        )


def csr_gradient(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] G, Py_ssize_t n_features, floating[:, ::1] out, int n_threads=1,
):
    """out (p, K) OUT = [X[rows] 1]^T G."""
    _csr_accumulate(
        _first[floating](data), _first[index_t](indices), _first[index_t](indptr), _first[Py_ssize_t](rows),
        G.shape[0], n_features, _corner[floating](G), out, n_threads,
    )


def csr_loss_gradient(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] Wt, Py_ssize_t n_features, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, double scale, floating[:, ::1] P,
    floating[:, ::1] residual, floating[:, ::1] grad, int n_threads=1,
):
    """As `dense_loss_gradient`, grad (p, K) OUT; residual (m, K) OUT = scale * s (P - Y), which the kernel needs."""
    cdef Py_ssize_t K = Wt.shape[1], m = residual.shape[0], block, start, count, part
    cdef Py_ssize_t blocks = (m + BLOCK - 1) // BLOCK, parts = min(blocks, <Py_ssize_t>MAX_PARTS)
    cdef Py_ssize_t size = (2 * K + 5) * BLOCK
    cdef const floating* v = _first[floating](data)
    cdef const index_t* j = _first[index_t](indices)
    cdef const index_t* ptr = _first[index_t](indptr)
    cdef const Py_ssize_t* r = _first[Py_ssize_t](rows)
    cdef const floating* w = _corner[floating](Wt)
    cdef const floating* bias = w + n_features * K if Wt.shape[0] > n_features else NULL
    cdef const Py_ssize_t* y = _first[Py_ssize_t](codes)
    cdef const floating* Y = _corner[floating](targets)
    cdef const floating* s = _first[floating](sample_weight)
    cdef floating* probabilities = _corner[floating](P)
    cdef floating* Z = _corner[floating](residual)
    cdef floating* scratch
    cdef floating* T
    cdef double[MAX_PARTS] losses
    cdef double loss = 0
    if m > 0:
        scratch = <floating*>_allocate(parts * size, sizeof(floating))
        for part in prange(parts, nogil=True, num_threads=n_threads, schedule="static"):
            T = scratch + part * size
            losses[part] = 0
            for block in range(part * blocks // parts, (part + 1) * blocks // parts):
                start = block * BLOCK
                count = min(<Py_ssize_t>BLOCK, m - start)
                _csr_forward(v, j, ptr, r, start, count, w, bias, K, Z + start * K)
                _load_rows(Z + start * K, count, K, T, BLOCK)
                losses[part] = losses[part] + _cross_entropy_block(
                    T, BLOCK, count, K, T + K * BLOCK, T + 2 * K * BLOCK, r, start, y, Y, s, label_smoothing, scale,
                    True, probabilities + start * K if probabilities != NULL else NULL, NULL,
                )
                _store_rows(T, BLOCK, count, K, Z + start * K)
        free(scratch)
        for part in range(parts):
            loss += losses[part]
    _csr_accumulate(v, j, ptr, r, m, n_features, Z, grad, n_threads)
    return loss


def csr_hessian_product(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] P, const floating[::1] sample_weight, double scale, const floating[:, ::1] Vt,
    Py_ssize_t n_features, floating[:, ::1] curved, floating[:, ::1] out, int n_threads=1,
):
    """As `dense_hessian_product`, out (p, K) OUT; curved (m, K) OUT = scale * s (P*R - P sum(P*R)), R = X V^T."""
    cdef Py_ssize_t K = Vt.shape[1], m = curved.shape[0], block, start, count, part
    cdef Py_ssize_t blocks = (m + BLOCK - 1) // BLOCK, parts = min(blocks, <Py_ssize_t>MAX_PARTS)
    cdef Py_ssize_t size = (2 * K + 1) * BLOCK
    cdef const floating* v = _first[floating](data)
    cdef const index_t* j = _first[index_t](indices)
    cdef const index_t* ptr = _first[index_t](indptr)
    cdef const Py_ssize_t* r = _first[Py_ssize_t](rows)
    cdef const floating* w = _corner[floating](Vt)
    cdef const floating* bias = w + n_features * K if Vt.shape[0] > n_features else NULL
    cdef const floating* s = _first[floating](sample_weight)
    cdef const floating* probabilities = _corner[floating](P)
    cdef floating* R = _corner[floating](curved)
    cdef floating* scratch
    cdef floating* T
    if m > 0:
        scratch = <floating*>_allocate(parts * size, sizeof(floating))
        for part in prange(parts, nogil=True, num_threads=n_threads, schedule="static"):
            T = scratch + part * size
            for block in range(part * blocks // parts, (part + 1) * blocks // parts):
                start = block * BLOCK
                count = min(<Py_ssize_t>BLOCK, m - start)
                _csr_forward(v, j, ptr, r, start, count, w, bias, K, R + start * K)
                _load_rows(R + start * K, count, K, T, BLOCK)
                _curve_block(
                    T, BLOCK, count, K, T + K * BLOCK, T + 2 * K * BLOCK, r, start, probabilities + start * K, s, scale
                )
                _store_rows(T, BLOCK, count, K, R + start * K)
        free(scratch)
    _csr_accumulate(v, j, ptr, r, m, n_features, R, out, n_threads)


# --- what was built, and what runs ----------------------------------------------------------------------------------


def openmp_enabled():
    """Whether the kernels were built with OpenMP."""
    return OPENMP != 0


def simd_level():
    """The x86-64 level of the clones that run here: 4 (AVX-512), 3 (AVX2) or 0 (portable)."""
    return sr_simd_level()


def max_threads():
    """The threads that OpenMP would use: what OMP_NUM_THREADS and threadpoolctl allow."""
    return sr_max_threads()
