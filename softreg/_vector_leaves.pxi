# Leaf functions that are made of vectors of any length: `_wide_leaves.pxd` and `_narrow_leaves.pxd` include this text,
# after they have said what vfloat, vdouble, sr_sum4 and MANY_REGISTERS are.
#
# Dense rows come as a row pointer table x: `count` pointers and TILE_ROWS more, whose rows are fetched ahead. A vector
# that would pass the end of a row is moved back to end with it. The numbers that it then covers a second time meet a
# zero on the other side, or are left out at the end.
#
# In CSR, a nonzero of feature j meets row j of a table (p, K): W^T, the gradient, or theta of a stream. The K numbers
# are held in up to four vectors. The last vector is moved back to end with the row: it computes some numbers twice,
# with the same result.

cdef enum:
    AHEAD = 8           # nonzeros of a CSR row that the rows of the table are fetched ahead


ctypedef fused vec:
    vfloat
    vdouble


cdef inline sr_inline_void dot_group(
    const floating** x, const vec* W, Py_ssize_t dp, Py_ssize_t d, Py_ssize_t n, bint ahead, floating* T, Py_ssize_t ld
) noexcept nogil:
    """T += (n, TILE_ROWS) dot products of rows of W and rows of x; n is a constant."""
    cdef vec[TILE_CLASSES * TILE_ROWS] acc
    cdef vec[TILE_ROWS] v
    cdef vec w
    cdef Py_ssize_t j, c, k, i
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(floating)
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        for k in range(n * TILE_ROWS):
            memset(&acc[k], 0, sizeof(vec))
        for c in range(dp // lanes):
            j = c * lanes if c * lanes + lanes <= d else d - lanes
            for i in range(TILE_ROWS):
                v[i] = (<const vec*>(x[i] + j))[0]
                if ahead:
                    prefetch(x[i + TILE_ROWS] + j)
            for k in range(n):
                w = (<const vec*>(<const floating*>W + k * dp + c * lanes))[0]
                for i in range(TILE_ROWS):
                    acc[k * TILE_ROWS + i] = acc[k * TILE_ROWS + i] + v[i] * w
        for k in range(n):
            sr_sum4(&acc[k * TILE_ROWS], T + k * ld)


cdef inline sr_inline_void dot_tile(
    const floating** x, const vec* W, Py_ssize_t dp, Py_ssize_t d, bint ahead, floating* T, Py_ssize_t ld
) noexcept nogil:
    """T += (TILE_CLASSES, TILE_ROWS) dot products of rows of W and rows of x, as many at a time as registers hold."""
    cdef const floating* w = <const floating*>W
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        if MANY_REGISTERS:
            dot_group(x, W, dp, d, TILE_CLASSES, ahead, T, ld)
        else:
            dot_group(x, W, dp, d, 2, ahead, T, ld)
            dot_group(x, <const vec*>(w + 2 * dp), dp, d, 2, False, T + 2 * ld, ld)
            dot_group(x, <const vec*>(w + 4 * dp), dp, d, 1, False, T + 4 * ld, ld)


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
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(floating)
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


cdef inline sr_inline_void csr_tile(
    const floating* data, const index_t* indices, Py_ssize_t count, floating* table, Py_ssize_t K, Py_ssize_t width,
    Py_ssize_t n, bint back, vec* row
) noexcept nogil:
    """row (width,) += one row of X times `width` columns of the table, or `back`, in n vectors: both constants."""
    cdef vec[4] own, sums
    cdef Py_ssize_t[4] at
    cdef Py_ssize_t i, q, lanes = sizeof(vec) // sizeof(floating)
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
    cdef Py_ssize_t k = 0, q, i, width, lanes = sizeof(vec) // sizeof(floating)
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


cdef inline sr_inline_void stream_tile(
    const floating* times, const floating* plus, const index_t* indices, Py_ssize_t count, floating* theta,
    Py_ssize_t K, Py_ssize_t width, Py_ssize_t n, bint back, vec* row
) noexcept nogil:
    """row (width,) += sum_j times_j theta_j; `back`, theta_j = times_j theta_j + plus_j row. In n vectors."""
    cdef vec[4] own, sums
    cdef Py_ssize_t[4] at
    cdef Py_ssize_t i, q, lanes = sizeof(vec) // sizeof(floating)
    cdef floating f, g
    cdef floating* w
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        for i in range(n):
            at[i] = i * lanes if i < n - 1 else width - lanes
            own[i] = (<vec*>(<floating*>row + at[i]))[0]
        for q in range(count):
            f = times[q]
            w = theta + indices[q] * K
            if back:
                g = plus[q]
                for i in range(n):
                    sums[i] = f * (<vec*>(w + at[i]))[0] + g * own[i]
                for i in range(n):
                    (<vec*>(w + at[i]))[0] = sums[i]
            else:
                for i in range(n):
                    own[i] = own[i] + f * (<vec*>(w + at[i]))[0]
        if not back:
            for i in range(n):
                (<vec*>(<floating*>row + at[i]))[0] = own[i]


cdef inline sr_inline_void stream_row(
    const floating* times, const floating* plus, const index_t* indices, Py_ssize_t count, floating* theta,
    Py_ssize_t K, bint back, vec* row
) noexcept nogil:
    """The same for all K classes."""
    cdef Py_ssize_t k = 0, q, i, width, lanes = sizeof(vec) // sizeof(floating)
    cdef floating f, g
    cdef floating* z = <floating*>row
    cdef floating* w
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        while K - k >= lanes:
            width = min(K - k, 4 * lanes)
            if width <= lanes:
                stream_tile(times, plus, indices, count, theta + k, K, width, 1, back, <vec*>(z + k))
            elif width <= 2 * lanes:
                stream_tile(times, plus, indices, count, theta + k, K, width, 2, back, <vec*>(z + k))
            elif width <= 3 * lanes:
                stream_tile(times, plus, indices, count, theta + k, K, width, 3, back, <vec*>(z + k))
            else:
                stream_tile(times, plus, indices, count, theta + k, K, width, 4, back, <vec*>(z + k))
            k += width
        for q in range(count if k < K else 0):
            f = times[q]
            w = theta + indices[q] * K + k
            if back:
                g = plus[q]
                for i in range(K - k):
                    w[i] = f * w[i] + g * z[k + i]
            else:
                for i in range(K - k):
                    z[k + i] = z[k + i] + f * w[i]


cdef inline sr_void add_upper_products(
    const double** Z, const vdouble* A, Py_ssize_t height, Py_ssize_t width, Py_ssize_t block, double* sums
) noexcept nogil:
    """sums (height, width) += A Z^T on the diagonal and right of it, for A (height, block) and the rows of Z (width,).

    height is a multiple of TILE_CLASSES, width of TILE_ROWS, and block of the numbers of any vector.
    """
    cdef Py_ssize_t i, k = 0
    cdef const double* a = <const double*>A
    while k < height:
        i = k // TILE_ROWS * TILE_ROWS
        while i < width:
            dot_tile(Z + i, <const vdouble*>(a + k * block), block, block, False, sums + k * width + i, width)
            i += TILE_ROWS
        k += TILE_CLASSES
