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

import os

from cython.parallel cimport prange
from libc.float cimport DBL_MAX, FLT_MAX
from libc.math cimport log
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
    # Macros for both types: they choose by the size of what is behind their last pointer, or of their first number.
    double sr_exp "SR_EXP"(double, double, double)
    double sr_log "SR_LOG"(double)
    void sr_columns "SR_COLUMNS"(const void*, Py_ssize_t, void*, Py_ssize_t)
    void sr_rows "SR_ROWS"(const void*, Py_ssize_t, void*, Py_ssize_t)
    void sr_sum4 "SR_SUM4"(const void*, void*)
    void prefetch "SR_PREFETCH"(const void*)
    int sr_simd_level()
    int sr_max_threads()
    double sr_seconds()
    double sr_thread_seconds()


cdef enum:
    BLOCK = 64          # rows a block: four 64-byte float vectors wide, and 64 rows of 784 floats stay in a 1 MB L2
    TILE_ROWS = 4       # logits tile: 4 rows x 5 classes = 20 vector accumulators of AVX-512's 32 registers,
    TILE_CLASSES = 5    # ... 9 loads for 20 multiply-adds; 5 x 2 vectors in the other product
    GATHER_BELOW = 64   # features: below, a block of X is transposed into scratch, as dot products would be too short
    BLAS_CLASSES = 48   # classes of float32, half as many of float64: from here on BLAS wins (benchmarks/README.md)
    MAX_PARTS = 16      # parts of the rows that may run at the same time
    WIDE = 44           # classes: from here on vectors run along a row
    AHEAD = 8           # nonzeros of a CSR row that the rows of W^T are fetched ahead
    WORK = 1000000      # multiply-adds that a thread must have for itself: some 50 microseconds
    EXP_WORK = 16       # multiply-adds that take as long as what else is done with a logit


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


# --- threads ----------------------------------------------------------------------------------------------------------
# Every parallel region asks `_team` how many threads it gets, whatever its caller wants.

cdef bint forked = False        # this process is the child of a fork: the threads of OpenMP stayed with its parent
cdef double alone_until = 0     # when threads are tried again, after they have cost more time than they saved
cdef bint everywhere = False    # threads also for regions with little work, or on a busy machine: for tests of bits


def _after_fork():
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _use_threads_everywhere(bint on):
    global everywhere
    everywhere = on


cdef struct Team:               # the threads of a parallel region, and what they do
    int size
    double started
    double[MAX_PARTS] seconds   # of a processor, part by part


cdef Team _team(int wanted, double work, Py_ssize_t parts) noexcept nogil:
    """At most `wanted` threads, but one where `work`, in multiply-adds, is little or another process needs the cores."""
    cdef Team team
    cdef Py_ssize_t most = min(<Py_ssize_t>wanted, parts)
    if not everywhere:
        most = <Py_ssize_t>min(<double>most, work / WORK)
    team.size = 1
    if most >= 2 and not forked:
        team.started = sr_seconds()
        if everywhere or team.started >= alone_until:
            team.size = <int>most
    return team


cdef inline void _part_begins(Team* team, Py_ssize_t part) noexcept nogil:
    if team.size > 1:
        team.seconds[part] = sr_thread_seconds()


cdef inline void _part_ends(Team* team, Py_ssize_t part) noexcept nogil:
    if team.size > 1:
        team.seconds[part] = sr_thread_seconds() - team.seconds[part]


cdef void _dismiss(Team* team, Py_ssize_t parts) noexcept nogil:
    """After a region: where one thread would have been faster, there is one for ten times as long as was lost.

    A thread whose core is taken by another process keeps all others waiting, for milliseconds.
    """
    global alone_until
    cdef double now, lost
    cdef Py_ssize_t part
    if team.size > 1:
        now = sr_seconds()
        lost = now - team.started
        for part in range(parts):
            lost -= team.seconds[part]
        if lost > 0:
            alone_until = now + 10 * lost


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
                sr_columns(x + i, at, T + at * ld + i, ld)
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
                sr_rows(T + at * ld + i, ld, Z + i * K + at, K)
    for i in range(whole, count):
        for k in range(K):
            Z[i * K + k] = T[k * ld + i]


cdef sr_void _top(const floating* T, Py_ssize_t ld, Py_ssize_t K, floating* top, double* check) noexcept nogil:
    """top OUT = max_k T; check (1,) += 0, or NaN where a number is not finite."""
    cdef Py_ssize_t i, k
    cdef floating z
    cdef floating[BLOCK] most, zero     # local, so that the compiler knows them apart from T
    for i in range(BLOCK):
        most[i] = T[i]
        zero[i] = T[i] * 0
    for k in range(1, K):
        for i in range(BLOCK):
            z = T[k * ld + i]
            most[i] = z if z > most[i] else most[i]
            zero[i] = zero[i] + z * 0
    for i in range(BLOCK):
        top[i] = most[i]
    for i in range(32):
        zero[i] = zero[i] + zero[i + 32]
    for i in range(32):
        check[0] += zero[i]


cdef sr_void _exp(floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* top, floating lowest) noexcept nogil:
    """T = exp(T - top), zero where T - top < lowest."""
    cdef Py_ssize_t i, k
    cdef floating[BLOCK] high           # local, as above
    for i in range(BLOCK):
        high[i] = top[i]
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = sr_exp(T[k * ld + i], high[i], lowest)


cdef sr_void _sum(const floating* T, Py_ssize_t ld, Py_ssize_t K, floating* total) noexcept nogil:
    """total OUT = sum_k T, compensated (Kahan), as exact for K = 1000 as for 2; in strips that fit into registers."""
    cdef Py_ssize_t i, k, strip
    cdef floating e, s
    cdef floating[32] kept, lost
    for strip in range(0, 64, 32):      # BLOCK, which range() wants as a literal
        for i in range(32):
            kept[i] = 0
            lost[i] = 0
        for k in range(K):
            for i in range(32):
                e = T[k * ld + strip + i] - lost[i]
                s = kept[i] + e
                lost[i] = (s - kept[i]) - e
                kept[i] = s
        for i in range(32):
            total[strip + i] = kept[i]


cdef inline sr_inline_void _halve(double* lane, Py_ssize_t half) noexcept nogil:
    """lane (half,) += the numbers that follow; half is a constant."""
    cdef Py_ssize_t i
    for i in range(half):
        lane[i] = lane[i] + lane[i + half]


cdef inline sr_inline_void _fold(double* lane) noexcept nogil:
    """lane[0] = the sum of 16 numbers."""
    _halve(lane, 8)
    _halve(lane, 4)
    _halve(lane, 2)
    _halve(lane, 1)


cdef sr_void _row_tops(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, floating* tops, double* check
) noexcept nogil:
    """tops (count, 32) OUT = the largest numbers of each row of Z (count, K >= 32), lane by lane; check as above.

    Loops of 32: gcc unrolls shorter ones to scalars before it could make vectors of them.
    """
    cdef Py_ssize_t i, k, r
    cdef const floating* z
    cdef floating[32] most, zero        # local, as above
    for i in range(32):
        zero[i] = 0
    for r in range(count):
        z = Z + r * K
        for i in range(32):
            most[i] = z[K - 32 + i]
            zero[i] = zero[i] + z[K - 32 + i] * 0
        for k in range((K - 1) // 32):
            for i in range(32):
                most[i] = z[k * 32 + i] if z[k * 32 + i] > most[i] else most[i]
                zero[i] = zero[i] + z[k * 32 + i] * 0
        for i in range(32):
            tops[r * 32 + i] = most[i]
    for i in range(32):
        check[0] += zero[i]


cdef sr_void _row_exps(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, const floating* top, floating lowest, floating* out
) noexcept nogil:
    """out (count, K >= 16) OUT = exp(Z - top), maybe in place; the last vector ends with the row, written last."""
    cdef Py_ssize_t i, k, r, lanes = 16 if floating is float else 8
    cdef const floating* z
    cdef floating* to
    cdef floating[16] tail
    cdef floating high
    for r in range(count):
        z = Z + r * K
        to = out + r * K
        high = top[r]
        for i in range(lanes):
            tail[i] = sr_exp(z[K - lanes + i], high, lowest)
        for k in range((K - 1) // lanes * lanes):
            to[k] = sr_exp(z[k], high, lowest)
        for i in range(lanes):
            to[K - lanes + i] = tail[i]


cdef sr_void _row_sums(const floating* E, Py_ssize_t count, Py_ssize_t K, floating* sums) noexcept nogil:
    """sums (count, 32) OUT = the sums of each row of E (count, K >= 32), lane by lane (Kahan).

    The last lanes end with the row; `fresh` is zero for what the others hold, too. Not in the loop above: a vector
    across two that were just written waits for both.
    """
    cdef Py_ssize_t i, k, r
    cdef floating[32] fresh, kept, lost
    cdef floating e, s
    for i in range(32):
        fresh[i] = K - 32 + i >= (K - 1) // 32 * 32
    for r in range(count):
        for i in range(32):
            kept[i] = E[r * K + K - 32 + i] * fresh[i]
            lost[i] = 0
        for k in range((K - 1) // 32):
            for i in range(32):
                e = E[r * K + k * 32 + i] - lost[i]
                s = kept[i] + e
                lost[i] = (s - kept[i]) - e
                kept[i] = s
        for i in range(32):
            sums[r * 32 + i] = kept[i]


cdef sr_void _row_scale(
    floating* out, Py_ssize_t count, Py_ssize_t K, const floating* times, const floating* over, const floating* label
) noexcept nogil:
    """out (count, K) *= times / over, row by row; then the entry of each row's class -= times, unless label is NULL."""
    cdef Py_ssize_t i, k, r
    cdef floating[BLOCK] factor
    cdef floating f
    for i in range(BLOCK):
        factor[i] = times[i] / over[i]
    for r in range(count):
        f = factor[r]
        for k in range(K):
            out[r * K + k] = out[r * K + k] * f
        if label != NULL:
            out[r * K + <Py_ssize_t>label[r]] -= times[r]


cdef sr_void _log(const floating* total, floating* out) noexcept nogil:
    """out OUT = log(total)."""
    cdef Py_ssize_t i
    for i in range(BLOCK):
        out[i] = sr_log(total[i])


cdef sr_void _scale(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* times, const floating* over
) noexcept nogil:
    """T *= times / over; NULL stands for ones."""
    cdef Py_ssize_t i, k
    cdef floating[BLOCK] factor
    for i in range(BLOCK):
        factor[i] = times[i] if times != NULL else 1
    if over != NULL:
        for i in range(BLOCK):
            factor[i] = factor[i] / over[i]
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


cdef sr_void _add_fit(
    const floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* Y, Py_ssize_t ldy, floating kept, floating uniform,
    const floating* top, floating* fit
) noexcept nogil:
    """fit += sum_k (kept Y + uniform) (T - top), always finite."""
    cdef Py_ssize_t i, k
    cdef floating[BLOCK] sums           # local, as above
    for i in range(BLOCK):
        sums[i] = fit[i]
    for k in range(K):
        for i in range(BLOCK):
            sums[i] = _shifted(sums[i] + (kept * Y[k * ldy + i] + uniform) * _shifted(T[k * ld + i], top[i]), 0)
    for i in range(BLOCK):
        fit[i] = sums[i]


cdef sr_void _subtract(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* Y, Py_ssize_t ldy, floating kept, floating uniform,
    const floating* factor
) noexcept nogil:
    """T -= factor (kept Y + uniform)."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = T[k * ld + i] - factor[i] * (kept * Y[k * ldy + i] + uniform)


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
            sr_sum4(&acc[k * TILE_ROWS], T + k * ld)


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
    """out (K,) += sums of T over its first `count` columns and the zeros that follow, in sixteen lanes of float64."""
    cdef Py_ssize_t i, k, q
    cdef double[16] lane
    for k in range(K):
        for q in range(16):
            lane[q] = 0
        for i in range(0, count, 16):
            for q in range(16):
                lane[q] = lane[q] + T[k * ld + i + q]
        _fold(lane)
        out[k] += lane[0]


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


# --- jobs -----------------------------------------------------------------------------------------------------------

cdef enum Step:     # what becomes of a block of logits
    NOTHING, LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, SOFTMAX_VJP
    LOSS            # scale * s (P - Y)
    CURVE           # scale * s (P*R - P sum_k P*R), where R = X V^T stands for the logits


cdef struct Job:    # what Python asked for; void is float or double
    Step step
    Py_ssize_t m, K
    const void* logits          # (m, K) IN; NULL: they are X W^T
    void* out                   # (m, K) OUT what became of them, or NULL
    void* each                  # (m,) OUT losses, or the sums of LOGSUMEXP, or NULL
    void* P                     # (m, K) OUT or NULL for LOSS; IN for CURVE, and for SOFTMAX_VJP what it multiplies
    const Py_ssize_t* rows      # (m,) IN rows of X, codes, targets and sample_weight; NULL: all of them
    const Py_ssize_t* codes
    const void* targets
    const void* sample_weight
    double label_smoothing, scale, l2
    double lowest               # where exp becomes zero: in a pass, before products with it are subnormal, and slow
    # the products with X (m, d), if there are any
    const void* X
    const void* W               # (K, dp), packed but for BLAS; NULL: `logits` are given
    const void* bias            # (Kp,)
    Py_ssize_t d, p
    Py_ssize_t stride, lda      # between rows of X, and of what BLAS is given
    Py_ssize_t Kp               # classes in whole tiles
    Py_ssize_t lanes, dp        # dp: between rows of W; packed ones are whole vectors
    Py_ssize_t columns          # features in whole tiles: the row length of a part's gradient
    Py_ssize_t block, blocks    # rows that are taken at a time, and how often
    Py_ssize_t parts, size      # size: of a part's scratch
    bint backward, blas, transposed, padded, gathered
    bint strict                 # the loss becomes NaN where an input is not finite


cdef Job _job(Step step, Py_ssize_t m, Py_ssize_t K) noexcept:
    """A job without X."""
    cdef Job job
    memset(&job, 0, sizeof(Job))
    job.step, job.m, job.K, job.Kp, job.block, job.scale = step, m, K, K, BLOCK, 1
    return job


cdef Job _dense_job(Step step, const floating[:, :] X, const Py_ssize_t[::1] rows, Py_ssize_t p, Py_ssize_t K) noexcept:
    cdef Job job = _job(step, X.shape[0] if rows is None else rows.shape[0], K)
    cdef Py_ssize_t d = X.shape[1], lanes = FLOAT_LANES if floating is float else DOUBLE_LANES
    job.X, job.d, job.p = _corner[floating](X), d, p
    job.rows = _first[Py_ssize_t](rows)
    job.stride = X.strides[0] // <Py_ssize_t>sizeof(floating)
    job.blas = K * sizeof(floating) >= BLAS_CLASSES * sizeof(float) and d >= GATHER_BELOW
    job.gathered = job.blas and (job.rows != NULL or job.stride < d)    # BLAS wants rows one after the other
    job.transposed = d < GATHER_BELOW
    job.padded = d < 2 * lanes
    job.lda = d if job.gathered else job.stride
    job.lanes = lanes
    if job.blas:    # thick operands; but a minibatch has to be several parts, for several threads
        job.block = 4 * BLOCK if job.m >= 8 * BLOCK else 2 * BLOCK
    job.Kp = _whole(K, TILE_CLASSES)
    job.dp = p if job.blas else d if job.transposed else _whole(d, lanes)
    job.columns = _whole(d, 2 * lanes)
    return job


cdef inline Py_ssize_t _whole(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    """n, rounded up."""
    return (n + unit - 1) // unit * unit


cdef void _aim(
    Job* job, const Py_ssize_t[::1] codes, const floating[:, ::1] targets, const floating[::1] sample_weight,
    double label_smoothing, double scale, bint within_pass
) noexcept:
    """What a LOSS is about."""
    job.codes = _first[Py_ssize_t](codes)
    job.targets = _corner[floating](targets)
    job.sample_weight = _first[floating](sample_weight)
    job.label_smoothing, job.scale = label_smoothing, scale
    if within_pass:
        job.lowest = log(1e-20) if floating is float else log(1e-100)


# --- blocks: what becomes of the logits -----------------------------------------------------------------------------

cdef sr_void _weights(const Job* job, Py_ssize_t start, Py_ssize_t count, floating* weight) noexcept nogil:
    """weight (BLOCK,) OUT = scale * s for `count` rows from `start` on, then zeros."""
    cdef const floating* s = <const floating*>job.sample_weight
    cdef Py_ssize_t i
    for i in range(BLOCK):
        weight[i] = <floating>job.scale
    if s != NULL:
        for i in range(count):
            weight[i] = <floating>(job.scale * s[job.rows[start + i] if job.rows != NULL else start + i])
    for i in range(count, BLOCK):
        weight[i] = 0


cdef sr_void _labels(const Job* job, Py_ssize_t start, Py_ssize_t count, floating* label) noexcept nogil:
    """label (BLOCK,) OUT = the class of `count` rows from `start` on, then -1: floats, as what they choose from."""
    cdef Py_ssize_t i
    for i in range(count):
        label[i] = <floating>job.codes[job.rows[start + i] if job.rows != NULL else start + i]
    for i in range(count, BLOCK):
        label[i] = -1


cdef sr_void _row_pick(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, const floating* label, const floating* top, floating* out
) noexcept nogil:
    """out (count,) OUT = Z - top at each row's class."""
    cdef Py_ssize_t r
    for r in range(count):
        out[r] = _shifted(Z[r * K + <Py_ssize_t>label[r]], top[r])


cdef sr_void _pick(
    const floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* label, const floating* top, floating share,
    floating* out
) noexcept nogil:
    """out (BLOCK,) OUT = share * (T - top) at each row's class, then zeros."""
    cdef Py_ssize_t i, k, strip
    cdef floating[32] z, own
    for strip in range(0, 64, 32):      # BLOCK, as above
        for i in range(32):
            own[i] = label[strip + i]
            z[i] = top[strip + i]
        for k in range(K):
            for i in range(32):
                z[i] = T[k * ld + strip + i] if own[i] == <floating>k else z[i]
        for i in range(32):
            out[strip + i] = share * _shifted(z[i], top[strip + i])


cdef sr_void _scale_deduct(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* times, const floating* over, const floating* label,
    floating share
) noexcept nogil:
    """T *= times / over, NULL stands for ones; then T at each row's class -= share * times."""
    cdef Py_ssize_t i, k
    cdef floating[BLOCK] own, less, factor
    for i in range(BLOCK):
        own[i] = label[i]
        less[i] = share * times[i]
        factor[i] = times[i] / over[i] if over != NULL else times[i]
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = T[k * ld + i] * factor[i] - (less[i] if own[i] == <floating>k else 0)


cdef sr_void _losses(
    const floating* weight, const floating* log_total, const floating* fit, floating* out, double* total
) noexcept nogil:
    """out (BLOCK,) OUT = weight (log_total - fit), and nothing where the weight is zero; total (1,) += their sum."""
    cdef Py_ssize_t i, q
    cdef double loss
    cdef double[16] lane
    for q in range(16):
        lane[q] = 0
    for i in range(0, 64, 16):  # BLOCK, which range() wants as a literal
        for q in range(16):
            loss = <double>weight[i + q] * (<double>log_total[i + q] - <double>fit[i + q])
            loss = loss if weight[i + q] != 0 else 0
            lane[q] = lane[q] + loss
            out[i + q] = <floating>loss
    _fold(lane)
    total[0] += lane[0]


cdef double _loss_block(
    const Job* job, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes
) noexcept nogil:
    """From logits T to scale * s (P - Y) in place; return the summed loss. U and lanes are scratch."""
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef floating* weight = lanes + 2 * BLOCK
    cdef floating* fit = lanes + 3 * BLOCK        # sum_k Y (Z - top)
    cdef floating* loss_of_row = lanes + 4 * BLOCK
    cdef floating* label = lanes + 5 * BLOCK
    cdef floating* P = <floating*>job.P
    cdef floating kept = <floating>(1 - job.label_smoothing), uniform = <floating>(job.label_smoothing / job.K)
    cdef (const floating*)[BLOCK] y
    cdef double loss = 0, check = 0
    cdef Py_ssize_t i, k, ld = job.block, ldy = ld if job.codes == NULL else 0, K = job.K
    cdef bint everywhere = job.codes == NULL or uniform != 0    # Y is more than one class
    if job.codes == NULL:
        for i in range(BLOCK):
            k = start + min(i, count - 1)
            y[i] = <const floating*>job.targets + (job.rows[k] if job.rows != NULL else k) * K
        _transpose_rows(y, count, K, U, ld)
    elif everywhere:
        memset(U, 0, BLOCK * sizeof(floating))      # read for every class
    _weights(job, start, count, weight)
    _top(T, ld, K, top, &check)
    if job.codes == NULL:
        memset(fit, 0, BLOCK * sizeof(floating))
    else:
        _labels(job, start, count, label)
        _pick(T, ld, K, label, top, kept, fit)
    if everywhere:
        _add_fit(T, ld, K, U, ldy, kept, uniform, top, fit)
    _exp(T, ld, K, top, <floating>job.lowest)
    _sum(T, ld, K, total)
    _log(total, top)
    _losses(weight, top, fit, loss_of_row, &loss)
    if job.each != NULL:
        memcpy(<floating*>job.each + start, loss_of_row, count * sizeof(floating))
    if P != NULL:
        _scale[floating](T, ld, K, NULL, total)
        _store_rows(T, ld, count, K, P + start * K)
        total = NULL
    if job.codes != NULL:
        _scale_deduct(T, ld, K, weight, total, label, kept)
    else:
        _scale(T, ld, K, weight, total)
    if everywhere:
        _subtract(T, ld, K, U, ldy, kept, uniform, weight)
    return loss + check if job.strict else loss


cdef double _wide_block(
    const Job* job, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes
) noexcept nogil:
    """SOFTMAX, or a LOSS of codes, from row-major logits to row-major `out`; return the summed loss.

    Many classes fill vectors along the row. T and U hold what is left of each row, 32 lanes that are then folded.
    """
    cdef const floating* Z = <const floating*>job.logits + start * job.K
    cdef floating* out = <floating*>job.out + start * job.K
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef floating* weight = lanes + 2 * BLOCK
    cdef floating* fit = lanes + 3 * BLOCK
    cdef floating* label = lanes + 5 * BLOCK if job.step == LOSS else NULL
    cdef double loss = 0, check = 0
    _row_tops(Z, count, job.K, U, &check)
    _load_rows(U, count, 32, T, BLOCK)
    _top(T, BLOCK, 32, top, &check)
    _weights(job, start, count, weight)
    if label != NULL:
        _labels(job, start, count, label)
        _row_pick(Z, count, job.K, label, top, fit)     # before `out` may take its place
    _row_exps(Z, count, job.K, top, <floating>job.lowest, out)
    _row_sums(out, count, job.K, U)
    _load_rows(U, count, 32, T, BLOCK)
    _sum(T, BLOCK, 32, total)
    _row_scale(out, count, job.K, weight, total, label)
    if label != NULL:
        _log(total, top)    # beyond `count` it is anything: the weights there are zero
        _losses(weight, top, fit, lanes + 4 * BLOCK, &loss)
    if job.each != NULL:
        memcpy(<floating*>job.each + start, lanes + 4 * BLOCK, count * sizeof(floating))
    return loss + check if job.strict else loss


cdef floating* _softmax_block(
    const Job* job, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes, double* check
) noexcept nogil:
    """The steps that are named after the softmax, from logits T; return where the result is: T or U.

    check (1,) += 0, or NaN where an input is not finite.
    """
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef Py_ssize_t i, K = job.K
    _top(T, BLOCK, K, top, check)
    if job.step == LOG_SOFTMAX:
        memcpy(U, T, K * BLOCK * sizeof(floating))
        _exp(U, BLOCK, K, top, <floating>job.lowest)
        _sum(U, BLOCK, K, total)
        _log(total, total)
        _log_probabilities(T, BLOCK, K, top, total)
        return T
    _exp(T, BLOCK, K, top, <floating>job.lowest)
    _sum(T, BLOCK, K, total)
    if job.step == LOGSUMEXP:
        _log(total, total)
        for i in range(count):
            (<floating*>job.each)[start + i] = top[i] + total[i]
        return T
    _scale[floating](T, BLOCK, K, NULL, total)
    if job.step == SOFTMAX:
        return T
    _weights(job, start, count, lanes)
    _load_rows(<floating*>job.P + start * K, count, K, U, BLOCK)
    _top(U, BLOCK, K, total, check)
    _curve(U, T, BLOCK, K, lanes)
    return U


cdef double _block(
    const Job* job, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes
) noexcept nogil:
    """The job's step for `count` rows from `start` on, from `logits` or T to `out` or T; return the summed loss."""
    cdef Py_ssize_t K = job.K
    cdef double loss = 0
    if job.logits != NULL:
        if K >= WIDE and job.out != NULL and (
            job.step == SOFTMAX
            or job.step == LOSS and job.codes != NULL and job.label_smoothing == 0 and job.P == NULL
        ):
            return _wide_block(job, start, count, T, U, lanes)
        _load_rows(<const floating*>job.logits + start * K, count, K, T, job.block)
    if job.step == LOSS:
        loss = _loss_block(job, start, count, T, U, lanes)
    elif job.step == CURVE:
        _weights(job, start, count, lanes)
        _load_rows(<floating*>job.P + start * K, count, K, U, job.block)
        _curve(T, U, job.block, K, lanes)
    elif job.step != NOTHING:
        T = _softmax_block(job, start, count, T, U, lanes, &loss)
    if job.out != NULL:
        _store_rows(T, job.block, count, K, <floating*>job.out + start * K)
    return loss


# --- dense rows: the products before and after ----------------------------------------------------------------------

cdef void _pack(Job* job, const floating[:, ::1] W, floating* packed) noexcept:
    """The bias (Kp,), then W in whole tiles (Kp, dp): zeros fill up, and stand where a moved-back vector overlaps."""
    cdef Py_ssize_t k, d = job.d, whole = d if job.dp == d else d // job.lanes * job.lanes
    job.bias = packed
    memset(packed, 0, job.Kp * sizeof(floating))
    for k in range(job.K if job.p > d else 0):
        packed[k] = W[k, d]
    if job.blas:
        job.W = _corner[floating](W)
        return
    packed += job.Kp
    job.W = packed
    memset(packed, 0, job.Kp * job.dp * sizeof(floating))
    for k in range(job.K if d > 0 else 0):
        memcpy(packed + k * job.dp, &W[k, 0], whole * sizeof(floating))
        if whole < d:
            memcpy(packed + (k + 1) * job.dp - (d - whole), &W[k, whole], (d - whole) * sizeof(floating))


cdef void _point(
    const Job* job, Py_ssize_t start, Py_ssize_t count, floating* features, const floating** x
) noexcept nogil:
    """x OUT = where `count` rows from `start` on stand; the table goes on for whole tiles, then for what comes next."""
    cdef const floating* X = <const floating*>job.X
    cdef Py_ssize_t i, k
    for i in range(count if job.gathered else BLOCK + TILE_ROWS):
        k = min(start + i, job.m - 1)
        k = (job.rows[k] if job.rows != NULL else k) * job.stride
        if job.gathered:
            memcpy(features + i * job.d, X + k, job.d * sizeof(floating))
        else:
            x[i] = X + k
    if job.gathered:
        x[0] = features


cdef void _forward(
    const Job* job, const floating** x, Py_ssize_t count, floating* T, floating* features
) noexcept nogil:
    """T = W x^T + b for `count` rows."""
    cdef (const floating*)[GATHER_BELOW] columns
    cdef const floating* W = <const floating*>job.W
    cdef const floating* bias = <const floating*>job.bias
    cdef Py_ssize_t i, k
    for k in range(job.Kp):
        for i in range(job.block):
            T[k * job.block + i] = bias[k]
    if job.blas:
        _gemm[floating](True, count, job.K, job.d, x[0], job.lda, W, job.dp, 1, T, job.block)
    elif job.transposed:
        _transpose_rows(x, count, job.d, features, BLOCK)
        for i in range(job.d):
            columns[i] = features + i * BLOCK
        if floating is float:
            _multiply(W, job.dp, job.Kp, columns, job.d, BLOCK, <vfloat*>T, BLOCK)
        else:
            _multiply(W, job.dp, job.Kp, columns, job.d, BLOCK, <vdouble*>T, BLOCK)
    elif floating is float:
        _logits_dot(x, count, <const vfloat*>W, job.dp, job.d, job.Kp, T, BLOCK)
    else:
        _logits_dot(x, count, <const vdouble*>W, job.dp, job.d, job.Kp, T, BLOCK)


cdef void _backward(
    const Job* job, const floating** x, Py_ssize_t count, const floating* T, floating* features, floating* gradient,
    double* bias
) noexcept nogil:
    """gradient += T x, bias += row sums of T, for `count` rows; x is lost."""
    cdef Py_ssize_t i, width = job.d
    if job.p > job.d:
        _add_row_sums(T, job.block, count, job.K, bias)
    if job.blas:
        _gemm[floating](False, job.d, job.K, count, x[0], job.lda, T, job.block, 1, gradient, job.columns)
        return
    if job.padded:
        width = job.columns
        memset(features, 0, count * width * sizeof(floating))
        for i in range(count):
            memcpy(features + i * width, x[i], job.d * sizeof(floating))
            x[i] = features + i * width
    if floating is float:
        _multiply(T, BLOCK, job.Kp, x, count, width, <vfloat*>gradient, job.columns)
    else:
        _multiply(T, BLOCK, job.Kp, x, count, width, <vdouble*>gradient, job.columns)


cdef sr_void _add(floating* total, const floating* other, Py_ssize_t n) noexcept nogil:
    """total += other."""
    cdef Py_ssize_t i
    for i in range(n):
        total[i] = total[i] + other[i]


cdef sr_void _add_penalty(
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
    _fold(lane)
    squares[0] += lane[0]


cdef double _collect(
    const Job* job, floating* scratch, double* bias, const floating[:, ::1] W, floating[:, ::1] out
) noexcept nogil:
    """out (K, p) OUT = the parts' gradients, summed in order, and l2 W; return ||W||^2 if there is l2."""
    cdef double squares = 0
    cdef Py_ssize_t k, part, n = job.Kp * job.columns, d = job.d
    cdef Py_ssize_t last = job.columns - 2 * job.lanes  # where the last tile begins, and which features it holds
    if job.blas or job.padded or job.columns == d:
        last = d
    for part in range(1, job.parts):
        _add(scratch, scratch + part * job.size, n)
        for k in range(job.K):
            bias[k] += bias[part * job.Kp + k]
    for k in range(job.K):
        memcpy(&out[k, 0], scratch + k * job.columns, last * sizeof(floating))
        if last < d:
            memcpy(&out[k, last], scratch + (k + 1) * job.columns - (d - last), (d - last) * sizeof(floating))
        if job.l2 != 0 and d > 0:
            _add_penalty(&W[k, 0], d, job.l2, &out[k, 0], &squares)
        if job.p > d:
            out[k, d] = <floating>bias[k]
    return squares


# --- the one driver -------------------------------------------------------------------------------------------------

cdef double _part(const Job* job, Py_ssize_t part, floating* scratch, double* sums) noexcept nogil:
    """Do a part of the job, block by block; return its loss."""
    cdef floating* gradient = scratch + part * job.size     # (Kp, columns)
    cdef floating* T = gradient + job.Kp * job.columns      # (Kp, block) logits
    cdef floating* U = T + job.Kp * job.block               # (K, block) probabilities or targets
    cdef floating* lanes = U + job.K * job.block            # (6, BLOCK) one number a row
    cdef floating* features = lanes + 6 * BLOCK             # a block of X: transposed, padded or gathered
    cdef (const floating*)[BLOCK + TILE_ROWS] x
    cdef Py_ssize_t start = part * job.blocks // job.parts * job.block, count, strip
    cdef Py_ssize_t stop = min(job.m, (part + 1) * job.blocks // job.parts * job.block)
    cdef double loss = 0
    if job.backward:                                        # classes that only fill up a tile stay zero
        memset(gradient, 0, job.Kp * (job.columns + job.block) * sizeof(floating))
        memset(sums + part * job.Kp, 0, job.Kp * sizeof(double))
    while start < stop:
        count = min(job.block, stop - start)
        if job.p > 0:
            _point(job, start, count, features, x)
        if job.W != NULL:
            _forward(job, x, count, T, features)
        for strip in range(0, count, 64):  # BLOCK, which range() wants as a literal
            loss += _block(job, start + strip, min(<Py_ssize_t>BLOCK, count - strip), T + strip, U + strip, lanes)
        if job.backward:
            _backward(job, x, count, T, features, gradient, sums + part * job.Kp)
        start += count
    return loss


cdef double _run(Job* job, const floating[:, ::1] W, floating[:, ::1] gradient, int n_threads) except? -1:
    """Do a job, return its loss; W, to multiply X by, and gradient (K, p) OUT = T [X 1] may be None."""
    cdef Py_ssize_t part, n_sums, n, n_packed
    cdef void* memory
    cdef double* sums
    cdef floating* scratch
    cdef double[MAX_PARTS] losses
    cdef double loss = 0, work
    cdef Team team
    if job.K == 0:
        return 0
    job.backward = gradient is not None
    if job.lowest == 0:
        job.lowest = -104.7 if floating is float else -746.0    # half of the smallest subnormal number
    job.blocks = (job.m + job.block - 1) // job.block
    job.parts = max(1, min(<Py_ssize_t>MAX_PARTS, job.blocks))
    job.size = job.Kp * (job.columns + job.block) + job.K * job.block + 6 * BLOCK
    if job.gathered or job.transposed:
        job.size += job.block * max(job.d, job.columns if job.padded else 0)
    n_sums = _whole(job.parts * job.Kp, 8) if job.backward else 0
    n = job.parts * job.size
    n_packed = job.Kp * (1 if job.blas else job.dp + 1)
    memory = malloc(64 + n_sums * sizeof(double) + (n + n_packed) * sizeof(floating))
    if memory == NULL:
        raise MemoryError(f"{n * sizeof(floating)} bytes of scratch memory")
    sums = <double*>((<size_t>memory + 63) // 64 * 64)      # where cache lines begin, and whole lines from there
    scratch = <floating*>(sums + n_sums)
    if W is not None:
        _pack(job, W, scratch + n)
    work = <double>job.m * job.K * (EXP_WORK + job.d * ((W is not None) + job.backward))
    team = _team(n_threads, work, job.parts)
    for part in prange(job.parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        _part_begins(&team, part)
        losses[part] = _part(job, part, scratch, sums)
        _part_ends(&team, part)
    _dismiss(&team, job.parts)
    if job.backward:
        loss = 0.5 * job.l2 * _collect(job, scratch, sums, W, gradient)
    for part in range(job.parts):
        loss += losses[part]
    free(memory)
    return loss


# --- batches of logits ----------------------------------------------------------------------------------------------

cdef bint _batch(
    Step step, const floating[:, ::1] Z, const floating[:, ::1] U, floating[::1] each, floating[:, ::1] out,
    int n_threads,
) except -1:
    """Do a step for logits Z; return whether all inputs are finite."""
    cdef Job job = _job(step, Z.shape[0], Z.shape[1])
    job.logits, job.P = _corner[floating](Z), _corner[floating](U)
    job.each, job.out = _first[floating](each), _corner[floating](out)
    job.strict = True
    return _run[floating](&job, None, None, n_threads) == 0


def logsumexp(const floating[:, ::1] Z, floating[::1] out, int n_threads=1):
    """out (n,) OUT = log(sum_k exp(Z_k)), shifted by the row maximum so that nothing overflows."""
    return _batch[floating](LOGSUMEXP, Z, None, out, None, n_threads)


def softmax(const floating[:, ::1] Z, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = exp(Z) / sum_k exp(Z_k)."""
    return _batch[floating](SOFTMAX, Z, None, None, out, n_threads)


def log_softmax(const floating[:, ::1] Z, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = Z - logsumexp(Z), never the log of a rounded probability."""
    return _batch[floating](LOG_SOFTMAX, Z, None, None, out, n_threads)


def softmax_vjp(const floating[:, ::1] Z, const floating[:, ::1] U, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = J^T U row by row with J = diag(p) - p p^T, that is t - (1^T t) p with t = p * u."""
    return _batch[floating](SOFTMAX_VJP, Z, U, None, out, n_threads)


def cross_entropy(
    const floating[:, ::1] Z, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, floating[::1] losses, floating[:, ::1] residual,
    int n_threads=1, double scale=1,
):
    """losses (n,) OUT or None = scale * s CE(y, p); residual (n, K) OUT or None = scale * s (P - Y).

    Return the sum of the losses, made in float64; NaN if a logit is not finite.
    """
    cdef Job job = _job(LOSS, Z.shape[0], Z.shape[1])
    _aim(&job, codes, targets, sample_weight, label_smoothing, scale, False)
    job.logits, job.each, job.out = _corner[floating](Z), _first[floating](losses), _corner[floating](residual)
    job.strict = True
    return _run[floating](&job, None, None, n_threads)


# --- dense rows -----------------------------------------------------------------------------------------------------

def dense_logits(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] W, floating[:, ::1] out,
    int n_threads=1,
):
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef Job job = _dense_job(NOTHING, X, rows, W.shape[1], W.shape[0])
    job.out = _corner[floating](out)
    _run[floating](&job, W, None, n_threads)


def dense_gradient(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] G, floating[:, ::1] out,
    int n_threads=1,
):
    """out (K, p) OUT = G^T [X[rows] 1], the X^T accumulation; G (m, K)."""
    cdef Job job = _dense_job(NOTHING, X, rows, out.shape[1], G.shape[1])
    job.logits = _corner[floating](G)
    _run[floating](&job, None, out, n_threads)


def dense_loss_gradient(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] W, const Py_ssize_t[::1] codes,
    const floating[:, ::1] targets, const floating[::1] sample_weight, double label_smoothing, double scale, double l2,
    floating[:, ::1] P, floating[:, ::1] grad, int n_threads=1,
):
    """Return scale * sum_i s_i CE_i + l2/2 ||W||^2; grad (K, p) OUT its derivative; P (m, K) OUT or None."""
    cdef Job job = _dense_job(LOSS, X, rows, W.shape[1], W.shape[0])
    _aim(&job, codes, targets, sample_weight, label_smoothing, scale, True)
    job.P, job.l2 = _corner[floating](P), l2
    return _run[floating](&job, W, grad, n_threads)


def dense_hessian_product(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] P,
    const floating[::1] sample_weight, double scale, double l2, const floating[:, ::1] V, floating[:, ::1] out,
    int n_threads=1,
):
    """out (K, p) OUT = the Gauss-Newton (here: exact) Hessian of `dense_loss_gradient` at probabilities P, times V."""
    cdef Job job = _dense_job(CURVE, X, rows, V.shape[1], V.shape[0])
    job.P, job.sample_weight = _corner[floating](P), _first[floating](sample_weight)
    job.scale, job.l2 = scale, l2
    _run[floating](&job, V, out, n_threads)


def input_gradient(const floating[:, ::1] G, const floating[:, ::1] W, floating[:, ::1] out, int n_threads=1):
    """out (n, d) OUT = G W, without the intercept column of W (K, p)."""
    cdef Py_ssize_t n = G.shape[0], K = G.shape[1], d = out.shape[1], part, first, last
    cdef Py_ssize_t parts = min(<Py_ssize_t>MAX_PARTS, (n + BLOCK - 1) // BLOCK)
    cdef const floating* g = _corner[floating](G)
    cdef const floating* w = _corner[floating](W)
    cdef floating* x = _corner[floating](out)
    cdef Team team
    if n == 0 or d == 0:
        return
    if K == 0:
        out[:, :] = 0
        return
    team = _team(n_threads, <double>n * K * d, parts)
    for part in prange(parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        first = part * n // parts
        last = (part + 1) * n // parts
        _gemm[floating](False, d, last - first, K, w, W.shape[1], g + first * K, K, 0, x + first * d, d)


# --- CSR rows -------------------------------------------------------------------------------------------------------
# A nonzero of feature j meets row j of a table (p, K), W^T or the gradient: K contiguous numbers.
# So K numbers are held in up to four vectors, the last one moved back to end with the row: it holds some numbers
# twice, and computes the same for them twice. The features of a row are anywhere in the table, so they are fetched
# AHEAD.


cdef inline sr_inline_void _csr_tile(
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


cdef inline sr_inline_void _csr_row(
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
                _csr_tile(data, indices, count, table + k, K, width, 1, back, <vec*>(z + k))
            elif width <= 2 * lanes:
                _csr_tile(data, indices, count, table + k, K, width, 2, back, <vec*>(z + k))
            elif width <= 3 * lanes:
                _csr_tile(data, indices, count, table + k, K, width, 3, back, <vec*>(z + k))
            else:
                _csr_tile(data, indices, count, table + k, K, width, 4, back, <vec*>(z + k))
            k += width
        for q in range(count if k < K else 0):
            v = data[q]
            w = table + indices[q] * K + k
            for i in range(K - k):
                if back:
                    w[i] = w[i] + v * z[k + i]
                else:
                    z[k + i] = z[k + i] + v * w[i]


cdef sr_void _csr_forward(
    const floating* data, const index_t* indices, const index_t* indptr, const Py_ssize_t* rows, Py_ssize_t start,
    Py_ssize_t stop, const floating* Wt, const floating* bias, Py_ssize_t K, floating* Z,
) noexcept nogil:
    """Rows start .. stop of Z (m, K) OUT = their logits."""
    cdef Py_ssize_t i, k, r, low
    cdef floating* z
    for i in range(start, stop):
        r = rows[i] if rows != NULL else i
        low = indptr[r]
        z = Z + i * K
        for k in range(K):
            z[k] = bias[k] if bias != NULL else 0
        if floating is float:
            _csr_row(data + low, indices + low, indptr[r + 1] - low, <float*>Wt, K, False, <vfloat*>z)
        else:
            _csr_row(data + low, indices + low, indptr[r + 1] - low, <double*>Wt, K, False, <vdouble*>z)


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
            _csr_row(data + low, indices + low, high - low, out, K, True, <vfloat*>(G + i * K))
        else:
            _csr_row(data + low, indices + low, high - low, out, K, True, <vdouble*>(G + i * K))


cdef inline double _csr_work(Py_ssize_t stored, Py_ssize_t n, Py_ssize_t m, Py_ssize_t K) noexcept nogil:
    """The multiply-adds of a product with m of the n rows of a CSR matrix."""
    return <double>stored * m / max(<Py_ssize_t>1, n) * K


cdef sr_void _add_column_sums(const floating* G, Py_ssize_t m, Py_ssize_t K, floating* out) noexcept nogil:
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


cpdef csr_logits(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] Wt, Py_ssize_t n_features, floating[:, ::1] out, int n_threads=1,
):
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef Py_ssize_t K = Wt.shape[1], m = out.shape[0], part, parts = min(<Py_ssize_t>MAX_PARTS, m)
    cdef const floating* v = _first[floating](data)
    cdef const index_t* j = _first[index_t](indices)
    cdef const index_t* ptr = _first[index_t](indptr)
    cdef const Py_ssize_t* r = _first[Py_ssize_t](rows)
    cdef const floating* w = _corner[floating](Wt)
    cdef const floating* bias = w + n_features * K if Wt.shape[0] > n_features else NULL
    cdef floating* Z = _corner[floating](out)
    cdef Team team = _team(n_threads, _csr_work(data.shape[0], indptr.shape[0] - 1, m, K), parts)
    for part in prange(parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        _part_begins(&team, part)
        _csr_forward(v, j, ptr, r, part * m // parts, (part + 1) * m // parts, w, bias, K, Z)
        _part_ends(&team, part)
    _dismiss(&team, parts)


cdef double _begin_part(
    const floating* Wt, Py_ssize_t start, Py_ssize_t stop, double l2, floating* out
) noexcept nogil:
    """out[start:stop] OUT = l2 W^T, in pieces that stay in the nearest cache; return ||W||^2 if there is l2."""
    cdef Py_ssize_t count
    cdef double squares = 0
    while start < stop:
        count = min(<Py_ssize_t>2048, stop - start) if l2 != 0 else stop - start
        memset(out + start, 0, count * sizeof(floating))
        if l2 != 0:
            _add_penalty(Wt + start, count, l2, out + start, &squares)
        start += count
    return squares


cdef double _begin(
    const floating[:, ::1] Wt, Py_ssize_t n_features, double l2, floating[:, ::1] out, int n_threads
) noexcept:
    """out (p, K) OUT = l2 W^T, and zero for the intercepts; return l2/2 ||W||^2."""
    cdef Py_ssize_t n = n_features * out.shape[1], part, parts = MAX_PARTS
    cdef const floating* w = _corner[floating](Wt)
    cdef floating* o = _corner[floating](out)
    cdef double[MAX_PARTS] squares
    cdef double total = 0
    cdef Team team = _team(n_threads, n, parts)
    memset(o + n, 0, (out.shape[0] * out.shape[1] - n) * sizeof(floating))
    for part in prange(parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        squares[part] = _begin_part(w, part * n // parts, (part + 1) * n // parts, l2, o)
    for part in range(parts):
        total += squares[part]
    return 0.5 * l2 * total


cdef void _csr_accumulate(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] G, Py_ssize_t n_features, floating[:, ::1] out, int n_threads,
) noexcept:
    """out (p, K) += [X[rows] 1]^T G."""
    cdef Py_ssize_t K = out.shape[1], m = G.shape[0], share, shares
    cdef const floating* v = _first[floating](data)
    cdef const index_t* j = _first[index_t](indices)
    cdef const index_t* ptr = _first[index_t](indptr)
    cdef const Py_ssize_t* r = _first[Py_ssize_t](rows)
    cdef const floating* g = _corner[floating](G)
    cdef floating* o = _corner[floating](out)
    cdef Team team = _team(n_threads, _csr_work(data.shape[0], indptr.shape[0] - 1, m, K), MAX_PARTS)
    shares = team.size
    for share in prange(shares, nogil=True, num_threads=team.size, schedule="static"):
        _part_begins(&team, share)
        _csr_backward(
            v, j, ptr, r, m, g, K, share * n_features // shares, (share + 1) * n_features // shares, n_features, o
        )
        _part_ends(&team, share)
    _dismiss(&team, shares)
    if out.shape[0] > n_features:
        _add_column_sums(g, m, K, o + n_features * K)


def csr_gradient(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] G, Py_ssize_t n_features, floating[:, ::1] out, int n_threads=1,
):
    """out (p, K) OUT = [X[rows] 1]^T G."""
    _begin[floating](None, n_features, 0, out, n_threads)
    _csr_accumulate[floating, index_t](data, indices, indptr, rows, G, n_features, out, n_threads)


def csr_loss_gradient(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] Wt, Py_ssize_t n_features, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, double scale, double l2, floating[:, ::1] P,
    floating[:, ::1] residual, floating[:, ::1] grad, int n_threads=1,
):
    """As `dense_loss_gradient`, grad (p, K) OUT; residual (m, K) OUT = scale * s (P - Y), which the kernel needs."""
    cdef Job job = _job(LOSS, residual.shape[0], Wt.shape[1])
    cdef double loss
    _aim(&job, codes, targets, sample_weight, label_smoothing, scale, True)
    job.rows, job.P, job.out = _first[Py_ssize_t](rows), _corner[floating](P), _corner[floating](residual)
    job.logits = job.out
    csr_logits[floating, index_t](data, indices, indptr, rows, Wt, n_features, residual, n_threads)
    loss = _run[floating](&job, None, None, n_threads)
    loss += _begin(Wt, n_features, l2, grad, n_threads)
    _csr_accumulate[floating, index_t](data, indices, indptr, rows, residual, n_features, grad, n_threads)
    return loss


def csr_hessian_product(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] P, const floating[::1] sample_weight, double scale, double l2,
    const floating[:, ::1] Vt, Py_ssize_t n_features, floating[:, ::1] curved, floating[:, ::1] out, int n_threads=1,
):
    """As `dense_hessian_product`, out (p, K) OUT; curved (m, K) OUT = scale * s (P*R - P sum(P*R)), R = X V^T."""
    cdef Job job = _job(CURVE, curved.shape[0], Vt.shape[1])
    job.rows, job.P, job.out = _first[Py_ssize_t](rows), _corner[floating](P), _corner[floating](curved)
    job.sample_weight, job.scale, job.logits = _first[floating](sample_weight), scale, job.out
    csr_logits[floating, index_t](data, indices, indptr, rows, Vt, n_features, curved, n_threads)
    _run[floating](&job, None, None, n_threads)
    _begin(Vt, n_features, l2, out, n_threads)
    _csr_accumulate[floating, index_t](data, indices, indptr, rows, curved, n_features, out, n_threads)


# --- a step of momentum ---------------------------------------------------------------------------------------------

cdef sr_void _momentum_columns(
    floating* W, floating* velocity, const floating* gradient, const floating* rate, Py_ssize_t n, floating momentum,
    bint nesterov
) noexcept nogil:
    """The update of `momentum_step` for n numbers, each with a rate of its own."""
    cdef Py_ssize_t i
    cdef floating v
    if nesterov:
        for i in range(n):
            v = momentum * velocity[i] + gradient[i]
            velocity[i] = v
            W[i] = W[i] - rate[i] * (gradient[i] + momentum * v)
    else:
        for i in range(n):
            v = momentum * velocity[i] + gradient[i]
            velocity[i] = v
            W[i] = W[i] - rate[i] * v


cdef sr_void _momentum_rows(
    vec* W, floating* velocity, const floating* gradient, const floating* rate, Py_ssize_t n, Py_ssize_t K,
    floating momentum, bint nesterov
) noexcept nogil:
    """The same for n times K numbers; K of them share a rate. The last vector of them is read before any is written."""
    cdef Py_ssize_t i, k, c, at, last, lanes = FLOAT_LANES if vec is vfloat else DOUBLE_LANES
    cdef vec w, v, g, w_last, v_last, g_last
    cdef floating r, u
    cdef floating* x = <floating*>W
    if (floating is float and vec is vfloat) or (floating is double and vec is vdouble):
        if K < lanes:
            for i in range(n):
                r = rate[i]
                for k in range(i * K, i * K + K):
                    u = momentum * velocity[k] + gradient[k]
                    velocity[k] = u
                    x[k] = x[k] - r * (gradient[k] + momentum * u if nesterov else u)
            return
        for i in range(n):
            r = rate[i]
            last = i * K + K - lanes
            w_last = (<vec*>(x + last))[0]
            v_last = (<vec*>(velocity + last))[0]
            g_last = (<vec*>(gradient + last))[0]
            for c in range((K - 1) // lanes):
                at = i * K + c * lanes
                g = (<vec*>(gradient + at))[0]
                v = momentum * (<vec*>(velocity + at))[0] + g
                w = g + momentum * v if nesterov else v
                (<vec*>(velocity + at))[0] = v
                (<vec*>(x + at))[0] = (<vec*>(x + at))[0] - r * w
            v_last = momentum * v_last + g_last
            w = g_last + momentum * v_last if nesterov else v_last
            (<vec*>(velocity + last))[0] = v_last
            (<vec*>(x + last))[0] = w_last - r * w


def momentum_step(
    floating[:, :] W, floating[:, :] velocity, const floating[:, :] gradient, const floating[::1] rate, double momentum,
    bint nesterov,
):
    """velocity <- momentum velocity + gradient;  W <- W - rate velocity, or W - rate (gradient + momentum velocity)."""
    cdef Py_ssize_t K = W.shape[0], p = W.shape[1], i
    cdef floating m = momentum
    cdef floating* w = _corner[floating](W)
    cdef floating* v = _corner[floating](velocity)
    cdef const floating* g = _corner[floating](gradient)
    cdef const floating* r = _first[floating](rate)
    if W.strides[1] == sizeof(floating):
        for i in range(0, K * p, max(p, 1)):
            _momentum_columns(w + i, v + i, g + i, r, p, m, nesterov)
    elif floating is float:
        _momentum_rows(<vfloat*>w, v, g, r, p, K, m, nesterov)
    else:
        _momentum_rows(<vdouble*>w, v, g, r, p, K, m, nesterov)


# --- dual coordinate ascent -----------------------------------------------------------------------------------------

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
        terms[Kp + k] = x * (sr_log(over) + _shifted(z[k], high))
    sums[0] = sums[1] = 0
    _add_row_sums(terms, Kp, Kp, 2, sums)
    over = <floating>(1 / sums[0])
    kl = log(sums[0]) - sums[1]
    for k in range(Kp):
        e = move[k] * over - q[k]
        move[k] = e
        terms[k] = e if e > 0 else -e
        terms[Kp + k] = e * e
    sums[0] = sums[1] = 0
    _add_row_sums(terms, Kp, Kp, 2, sums)
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
    _add_row_sums(terms, Kp, Kp, 1, entropy)


cdef sr_void _dual_rows(
    const floating* data, const index_t* indices, const index_t* indptr, const Py_ssize_t* rows,
    const Py_ssize_t* order, Py_ssize_t count, floating* Wt, floating* bias, Py_ssize_t K, const floating* weight,
    double scale, double constant, floating* Q, Py_ssize_t Kp, floating* scratch, double* total
) noexcept nogil:
    """One row after the other; scratch (5, Kp). A row of X is still in the nearest cache when it comes back."""
    cdef Py_ssize_t i, k, at, r, low, length
    cdef double entropy, s, squares
    cdef floating* z = scratch
    cdef floating* q = scratch + Kp
    cdef floating* move = scratch + 2 * Kp
    cdef floating factor, floor, lowest = -FLT_MAX if floating is float else -DBL_MAX
    floor = <floating>(log(1e-20) if floating is float else log(1e-100))
    for k in range(K, Kp):
        z[k] = lowest
        q[k] = 0
    for i in range(count):
        at = order[i]
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
        if floating is float:
            _csr_row(data + low, indices + low, length, <float*>Wt, K, False, <vfloat*>z)
        else:
            _csr_row(data + low, indices + low, length, <double*>Wt, K, False, <vdouble*>z)
        _dual_step(z, Kp, <floating>(scale * s * squares), floor, q, move, scratch + 3 * Kp, &entropy)
        total[0] += s * entropy
        factor = <floating>(-scale * s)
        for k in range(K):
            Q[at * K + k] = q[k]
            move[k] = factor * move[k]
        if floating is float:
            _csr_row(data + low, indices + low, length, <float*>Wt, K, True, <vfloat*>move)
        else:
            _csr_row(data + low, indices + low, length, <double*>Wt, K, True, <vdouble*>move)
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
    cdef Py_ssize_t K = Q.shape[1], Kp = _whole(K, 16)
    cdef floating* w = _corner[floating](Wt)
    cdef floating* bias = w + n_features * K if Wt.shape[0] > n_features else NULL
    cdef floating* scratch = <floating*>malloc(5 * Kp * sizeof(floating))
    cdef const floating* v = _first[floating](data)
    cdef const index_t* j = _first[index_t](indices)
    cdef const index_t* ptr = _first[index_t](indptr)
    cdef const Py_ssize_t* r = _first[Py_ssize_t](rows)
    cdef const Py_ssize_t* visits = _first[Py_ssize_t](order)
    cdef const floating* s = _first[floating](sample_weight)
    cdef floating* q = _corner[floating](Q)
    cdef Py_ssize_t count = order.shape[0]
    cdef double total = 0
    if scratch == NULL:
        raise MemoryError(f"{5 * Kp * sizeof(floating)} bytes of scratch memory")
    with nogil:
        _dual_rows(v, j, ptr, r, visits, count, w, bias, K, s, scale, constant, q, Kp, scratch, &total)
    free(scratch)
    return total


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
