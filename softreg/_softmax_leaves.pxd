# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Leaf functions on a block of logits: maximum, exp, sum, softmax, its Jacobian, targets.

A leaf function allocates nothing, calls no Python and decides nothing. Blocks are class-major: T (K, ld), BLOCK columns
of which are used, one for each row of the batch. `top`, `total`, `fit`, `factor`, `label` (BLOCK,) hold one number for
each of these rows. The `wide_` functions take logits row-major, (count, K), where K is large enough to fill vectors.
"""

from libc.math cimport NAN

from softreg._simd cimport floating, sr_columns, sr_exp, sr_inline_void, sr_log, sr_rows, sr_void
from softreg._simd cimport subtract_clipped, sum_lanes


cdef enum:
    BLOCK = 64          # rows of a block: four 64-byte float vectors, and 64 rows of 784 floats stay in a 1 MB L2 cache


cdef inline sr_inline_void transpose_narrow(
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


cdef inline sr_void transpose_rows(
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


cdef inline sr_void load_rows(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, floating* T, Py_ssize_t ld
) noexcept nogil:
    """T (K, ld) OUT = the transpose of `count` rows of Z (count, K); the columns that are left are zero."""
    cdef (const floating*)[BLOCK] x
    cdef Py_ssize_t i
    if count == BLOCK and K == 2:
        transpose_narrow(Z, BLOCK, 2, T, ld, False)
    elif count == BLOCK and K == 3:
        transpose_narrow(Z, BLOCK, 3, T, ld, False)
    else:
        for i in range(BLOCK):
            x[i] = Z + (i if i < count else count - 1) * K
        transpose_rows(x, count, K, T, ld)


cdef inline sr_void store_rows(
    const floating* T, Py_ssize_t ld, Py_ssize_t count, Py_ssize_t K, floating* Z
) noexcept nogil:
    """Z (count, K) OUT = the transpose of T, in tiles as above."""
    cdef Py_ssize_t i, k, at, whole = 0
    if count == BLOCK and K == 2:
        transpose_narrow(Z, BLOCK, 2, <floating*>T, ld, True)
        return
    if count == BLOCK and K == 3:
        transpose_narrow(Z, BLOCK, 3, <floating*>T, ld, True)
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


cdef inline sr_void block_max(
    const floating* T, Py_ssize_t ld, Py_ssize_t K, floating* top, double* check
) noexcept nogil:
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


cdef inline sr_void block_exp(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* top, floating lowest
) noexcept nogil:
    """T = exp(T - top), zero where T - top < lowest."""
    cdef Py_ssize_t i, k
    cdef floating[BLOCK] high           # local, as above
    for i in range(BLOCK):
        high[i] = top[i]
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = sr_exp(T[k * ld + i], high[i], lowest)


cdef inline sr_void block_sum(const floating* T, Py_ssize_t ld, Py_ssize_t K, floating* total) noexcept nogil:
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


cdef inline sr_void block_dot(
    const floating* T, const floating* U, Py_ssize_t ld, Py_ssize_t K, floating* total
) noexcept nogil:
    """total OUT = sum_k T U."""
    cdef Py_ssize_t i, k
    for i in range(BLOCK):
        total[i] = 0
    for k in range(K):
        for i in range(BLOCK):
            total[i] = total[i] + T[k * ld + i] * U[k * ld + i]


cdef inline sr_void block_log(const floating* total, floating* out) noexcept nogil:
    """out OUT = log(total)."""
    cdef Py_ssize_t i
    for i in range(BLOCK):
        out[i] = sr_log(total[i])


cdef inline sr_void block_scale(
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


cdef inline sr_void block_log_softmax(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* top, const floating* log_total
) noexcept nogil:
    """T = (T - top) - log_total."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = subtract_clipped(subtract_clipped(T[k * ld + i], top[i]), log_total[i])


cdef inline sr_void check_targets(
    const floating* Y, Py_ssize_t ld, Py_ssize_t K, Py_ssize_t count, const floating* total, floating tolerance,
    double* check
) noexcept nogil:
    """check (1,) = NaN unless the first `count` columns of Y are distributions, with sums `total`.

    Numbers that are not finite make the sum not finite.
    """
    cdef Py_ssize_t i, k
    cdef floating y, off
    cdef floating[BLOCK] least, wrong   # local, as above
    for i in range(BLOCK):
        least[i] = Y[i]
    for k in range(1, K):
        for i in range(BLOCK):
            y = Y[k * ld + i]
            least[i] = y if y < least[i] else least[i]
    for i in range(BLOCK):
        off = total[i] - 1
        off = tolerance - (off if off > 0 else -off)
        y = least[i] if least[i] < off else off     # not NaN unless `off` is
        wrong[i] = 0 if y >= 0 else 1
    for i in range(count, BLOCK):
        wrong[i] = 0
    for i in range(32):
        wrong[i] = wrong[i] + wrong[i + 32]
    for i in range(16):
        wrong[i] = wrong[i] + wrong[i + 16]
    for i in range(1, 16):
        wrong[0] += wrong[i]
    if wrong[0] > 0:
        check[0] = NAN


cdef inline sr_void add_target_logits(
    const floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* Y, Py_ssize_t ldy, floating kept, floating uniform,
    const floating* top, floating* fit
) noexcept nogil:
    """fit += sum_k (kept Y + uniform) (T - top), always finite."""
    cdef Py_ssize_t i, k
    cdef floating y
    cdef floating[BLOCK] sums           # local, as above
    for i in range(BLOCK):
        sums[i] = fit[i]
    for k in range(K):
        for i in range(BLOCK):
            y = kept * Y[k * ldy + i] + uniform
            sums[i] = subtract_clipped(sums[i] + y * subtract_clipped(T[k * ld + i], top[i]), 0)
    for i in range(BLOCK):
        fit[i] = sums[i]


cdef inline sr_void subtract_targets(
    floating* T, Py_ssize_t ld, Py_ssize_t K, const floating* Y, Py_ssize_t ldy, floating kept, floating uniform,
    const floating* factor
) noexcept nogil:
    """T -= factor (kept Y + uniform)."""
    cdef Py_ssize_t i, k
    for k in range(K):
        for i in range(BLOCK):
            T[k * ld + i] = T[k * ld + i] - factor[i] * (kept * Y[k * ldy + i] + uniform)


cdef inline sr_void apply_jacobian(
    floating* R, const floating* P, Py_ssize_t ld, Py_ssize_t K, const floating* s
) noexcept nogil:
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


cdef inline sr_void pick_class_logits(
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
            out[strip + i] = share * subtract_clipped(z[i], top[strip + i])


cdef inline sr_void scale_subtract_class(
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


cdef inline sr_void block_losses(
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
    sum_lanes(lane)
    total[0] += lane[0]


cdef inline sr_void wide_max(
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


cdef inline sr_void wide_exp(
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


cdef inline sr_void wide_sum(const floating* E, Py_ssize_t count, Py_ssize_t K, floating* sums) noexcept nogil:
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


cdef inline sr_void wide_scale(
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


cdef inline sr_void wide_pick(
    const floating* Z, Py_ssize_t count, Py_ssize_t K, const floating* label, const floating* top, floating* out
) noexcept nogil:
    """out (count,) OUT = Z - top at each row's class."""
    cdef Py_ssize_t r
    for r in range(count):
        out[r] = subtract_clipped(Z[r * K + <Py_ssize_t>label[r]], top[r])
