# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""The whole Hessian of the loss, for problems with few parameters. `_reference.py` says what is computed.

It is a sum over the pairs of classes, sum_i w_i sum_{k<m} p_ik p_im (e_k - e_m)(e_k - e_m)^T (x) z_i z_i^T: blocks of
rows of the products p_k p_m, times the products z_i z_j, i <= j. That matrix product runs on BLAS. It is slow where a
matrix has few columns. So if the pairs are few, each has a product of its own: the rows scaled by p_k p_m, times the
rows.
"""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from softreg cimport _narrow_leaves, _wide_leaves
from softreg._product_leaves cimport add_vector, gemm
from softreg._simd cimport TILE_CLASSES, TILE_ROWS, floating, is_wide, matrix_pointer, ndouble, round_up, sr_void
from softreg._simd cimport vdouble, vector_pointer
from softreg._softmax_leaves cimport BLOCK
from softreg._teams cimport MAX_PARTS, WORK, Team, begin_region, end_region, part_begins, part_ends


cdef enum:
    HESSIAN_NUMBERS = 32768     # products of columns that are made at a time: they stay in the second cache
    FEW_PAIRS = 28              # pairs of classes up to which each has a product of its own
    FEW_ROWS = 264              # rows at a time then; no power of two, so that columns do not share the sets of a cache
    LANES = 8                   # numbers of a wide vector: blocks are multiples


cdef struct HessianArguments:   # void is float or double
    const void* X
    const void* P               # (m, K)
    const Py_ssize_t* rows      # (m,) numbers of the rows; NULL: all of them
    const double* weight        # (m,)
    const double* mean          # (d,)
    const double* deviation     # (d,)
    Py_ssize_t m, K, d, p, stride
    Py_ssize_t pairs, squares   # pairs of classes k < m, and of columns i <= j
    bint few                    # the pairs are few: each has sums (height, width), of which i <= j < p count
    Py_ssize_t height, width    # p, rounded up to whole tiles
    Py_ssize_t sums             # numbers of all sums
    Py_ssize_t block, parts, size


cdef sr_void _load_standardized(
    const HessianArguments* args, Py_ssize_t start, Py_ssize_t count, const floating* like, double* Z, double* P,
    double* wP
) noexcept nogil:
    """Z (p, block), P and wP (K, block) OUT = z, p and w p of `count` rows from `start` on, in float64.

    `like` is NULL and tells the dtype.
    """
    cdef const floating* X = <const floating*>args.X
    cdef const floating* probabilities = <const floating*>args.P + start * args.K
    cdef const floating* x
    cdef Py_ssize_t i, j, k, block = args.block
    for i in range(count):
        x = X + (args.rows[start + i] if args.rows != NULL else start + i) * args.stride
        for j in range(args.d):
            Z[j * block + i] = x[j]
        for k in range(args.K):
            P[k * block + i] = probabilities[i * args.K + k]
    for j in range(args.d):
        for i in range(count):
            Z[j * block + i] = (Z[j * block + i] - args.mean[j]) / args.deviation[j]
    if args.p > args.d:
        for i in range(count):
            Z[args.d * block + i] = 1
    for k in range(args.K):
        for i in range(count):
            wP[k * block + i] = args.weight[start + i] * P[k * block + i]


cdef sr_void _pair_products(
    const double* A, const double* B, Py_ssize_t n, Py_ssize_t shift, Py_ssize_t count, Py_ssize_t block, double* out
) noexcept nogil:
    """out (pairs, block) OUT = A_i * B_j for the rows j >= i + shift of A and B (n, block), `count` columns of them."""
    cdef Py_ssize_t i, j, r
    cdef const double* a
    cdef const double* b
    for i in range(n):
        a = A + i * block
        for j in range(i + shift, n):
            b = B + j * block
            for r in range(count):
                out[r] = a[r] * b[r]
            out += block


cdef sr_void _scale_columns(
    const double* A, const double* factor, Py_ssize_t n, Py_ssize_t block, double* out
) noexcept nogil:
    """out (n, block) OUT = A (n, block) * factor (block,)."""
    cdef Py_ssize_t i, r
    for i in range(n):
        for r in range(block):
            out[i * block + r] = A[i * block + r] * factor[r]


cdef void _add_few_pairs(
    const HessianArguments* args, const double* Z, double* classes, Py_ssize_t count, double* scaled, double* sums
) noexcept nogil:
    """sums += those of `count` rows, pair by pair. What follows these rows in Z is finite, and does not count."""
    cdef Py_ssize_t i
    cdef const double** rows = <const double**>(scaled + args.height * args.block)
    for i in range(args.width):
        rows[i] = Z + i * args.block
    for _ in range(args.pairs):
        memset(classes + count, 0, (args.block - count) * sizeof(double))
        _scale_columns(Z, classes, args.p, args.block, scaled)
        if is_wide():
            _wide_leaves.add_upper_products(
                rows, <const vdouble*>scaled, args.height, args.width, args.block, sums
            )
        else:
            _narrow_leaves.add_upper_products(
                rows, <const ndouble*>scaled, args.height, args.width, args.block, sums
            )
        classes += args.block
        sums += args.height * args.width


cdef void _hessian_part(
    const HessianArguments* args, Py_ssize_t part, const floating* like, double* sums
) noexcept nogil:
    """sums OUT = those of a part of the rows. Scratch follows, and is zero where rounding up to tiles adds columns."""
    cdef Py_ssize_t start = part * args.m // args.parts, stop = (part + 1) * args.m // args.parts, count
    cdef double* Z = sums + args.sums
    cdef double* P = Z + args.width * args.block
    cdef double* wP = P + args.K * args.block
    cdef double* classes = wP + args.K * args.block
    cdef double* columns = classes + args.pairs * args.block
    memset(sums, 0, args.size * sizeof(double))
    while start < stop:
        count = min(args.block, stop - start)
        _load_standardized(args, start, count, like, Z, P, wP)
        _pair_products(P, wP, args.K, 1, count, args.block, classes)
        if args.few:
            _add_few_pairs(args, Z, classes, count, columns, sums)
        else:
            _pair_products(Z, Z, args.p, 0, count, args.block, columns)
            gemm[double](
                True, args.squares, args.pairs, count, columns, args.block, classes, args.block, 1, sums, args.squares
            )
        start += count


cdef void _spread_pairs(const HessianArguments* args, const double* sums, double* H) noexcept nogil:
    """H (K, p, K, p) OUT from the sums of the pairs: minus them beside the diagonal, their sums over m on it."""
    cdef Py_ssize_t k, m, i, j, K = args.K, p = args.p, n = K * p
    cdef double v
    memset(H, 0, n * n * sizeof(double))
    for k in range(K):
        for m in range(k + 1, K):
            for i in range(p):
                for j in range(i, p):
                    v = sums[j if args.few else j - i]
                    H[(k * p + i) * n + k * p + j] += v
                    H[(m * p + i) * n + m * p + j] += v
                    H[(k * p + i) * n + m * p + j] = H[(m * p + i) * n + k * p + j] = -v
                    H[(k * p + j) * n + m * p + i] = H[(m * p + j) * n + k * p + i] = -v
                sums += args.width if args.few else p - i
            if args.few:
                sums += (args.height - p) * args.width
    for k in range(K):
        for i in range(p):
            for j in range(i):
                H[(k * p + i) * n + k * p + j] = H[(k * p + j) * n + k * p + i]


def dense_hessian(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] P, const double[::1] weight,
    const double[::1] mean, const double[::1] deviation, double[:, :, :, ::1] out, int n_threads=1,
):
    """out (K, p, K, p) OUT = sum_i w_i (diag(p_i) - p_i p_i^T) (x) z_i z_i^T, in float64.

    z_i = [(x_i - mean) / deviation, 1] are the rows of X in standardised coordinates, p_i those of P (m, K). Where p_i
    does not sum to one, diag(p_i) is multiplied by the sum, so that the matrix has no negative eigenvalues.
    """
    cdef HessianArguments args
    cdef Py_ssize_t part, columns
    cdef double* sums
    cdef double work
    cdef floating* like = NULL
    cdef Team team
    args.X, args.P = matrix_pointer[floating](X), matrix_pointer[floating](P)
    args.rows, args.weight = vector_pointer[Py_ssize_t](rows), vector_pointer[double](weight)
    args.mean, args.deviation = vector_pointer[double](mean), vector_pointer[double](deviation)
    args.stride = X.strides[0] // <Py_ssize_t>sizeof(floating)
    args.m, args.K, args.d, args.p = P.shape[0], P.shape[1], X.shape[1], out.shape[1]
    args.pairs, args.squares = args.K * (args.K - 1) // 2, args.p * (args.p + 1) // 2
    args.few = args.pairs <= FEW_PAIRS
    args.height, args.width = round_up(args.p, TILE_CLASSES), round_up(args.p, TILE_ROWS)
    args.sums = args.pairs * (args.height * args.width if args.few else args.squares)
    if args.pairs * args.squares == 0:
        out[:] = 0
        return
    work = <double>args.m * args.pairs * args.squares
    if args.few:
        args.block = max(<Py_ssize_t>LANES, min(<Py_ssize_t>FEW_ROWS, round_up(args.m, LANES)))
        columns = args.height + round_up(args.width, args.block) // args.block  # and pointers to rows
    else:
        args.block = max(<Py_ssize_t>BLOCK, min(<Py_ssize_t>4 * BLOCK, HESSIAN_NUMBERS // args.squares // 8 * 8))
        columns = args.squares
    args.parts = max(<Py_ssize_t>1, min(<Py_ssize_t>MAX_PARTS, min(args.m // (8 * BLOCK), <Py_ssize_t>(work / WORK))))
    args.size = round_up(args.sums + args.block * (args.width + 2 * args.K + args.pairs + columns), LANES)
    sums = <double*>malloc(args.parts * args.size * sizeof(double))
    if sums == NULL:
        raise MemoryError(f"{args.parts * args.size * sizeof(double)} bytes of scratch memory")
    team = begin_region(n_threads, work, args.parts)
    for part in prange(args.parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        part_begins(&team, part)
        _hessian_part(&args, part, like, sums + part * args.size)
        part_ends(&team, part)
    end_region(&team, args.parts)
    for part in range(1, args.parts):
        add_vector(sums, sums + part * args.size, args.sums)
    _spread_pairs(&args, sums, &out[0, 0, 0, 0])
    free(sums)
