# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""The hot path: softmax of batches of logits, p - y, the two products with X, and the driver that runs them.

`_reference.py` says what each kernel computes, and what its arguments are. Here is how.

Rows are taken in blocks of `BLOCK`. A block of logits is held class-major, T[k * ld + i] for class k of row i, so that
max, exp, sum and scaling run over rows: vectors stay full for every number of classes. Each operation is one leaf
function, compiled once for each instruction set: `_softmax_leaves.pxd`, `_product_leaves.pxd`.

The two matrix products, logits and X^T accumulation, read rows of X where they stand, through a row pointer table.
Small K runs on register tiles. From `BLAS_CLASSES` classes on, where the operands are thick enough, it runs on BLAS.

Rows are split into parts by the shape of the problem alone, never by the number of threads. Each part adds into
buffers of its own, which are then summed in order. So results do not depend on the number of threads, not even in the
last bit.
"""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from softreg._kernel_arguments cimport CURVE, GATHER_BELOW, LOG_SOFTMAX, LOGSUMEXP, LOSS, NOTHING, SOFTMAX
from softreg._kernel_arguments cimport SOFTMAX_VJP, KernelArguments, Step, batch_arguments, dense_arguments
from softreg._kernel_arguments cimport pass_lowest, set_targets
from softreg._product_leaves cimport CSRRows, add_column_sums, add_dot_products
from softreg._product_leaves cimport add_penalty, add_product, add_row_sums, add_vector, csr_accumulate, csr_forward
from softreg._product_leaves cimport csr_rows, gemm
from softreg._simd cimport OPENMP, floating, index_t, matrix_pointer, round_up
from softreg._simd cimport TILE_ROWS, sr_max_threads, sr_simd_level, sr_void, vector_pointer
from softreg._softmax_leaves cimport BLOCK, add_target_logits, apply_jacobian, block_dot, block_exp, block_log
from softreg._softmax_leaves cimport block_log_softmax, block_losses, block_max, block_scale, block_sum, check_targets
from softreg._softmax_leaves cimport load_rows, pick_class_logits, scale_subtract_class, store_rows, subtract_targets
from softreg._softmax_leaves cimport transpose_rows, wide_exp, wide_max, wide_pick, wide_scale, wide_sum
from softreg._teams cimport MAX_PARTS, Team, begin_region, end_region, part_begins, part_ends


cdef enum:
    SUM_ROWS = 4096     # rows whose sum is made apart where there are many more: errors grow with the longest sum
    WIDE = 44           # classes: from here on vectors run along a row
    EXP_WORK = 16       # multiply-adds that take as long as what else is done with a logit


# --- a block of logits ----------------------------------------------------------------------------------------------

cdef sr_void _load_weights(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* weight
) noexcept nogil:
    """weight (BLOCK,) OUT = scale * s for `count` rows from `start` on, then zeros."""
    cdef const floating* s = <const floating*>args.sample_weight
    cdef Py_ssize_t i
    for i in range(BLOCK):
        weight[i] = <floating>args.scale
    if s != NULL:
        for i in range(count):
            weight[i] = <floating>(args.scale * s[args.rows[start + i] if args.rows != NULL else start + i])
    for i in range(count, BLOCK):
        weight[i] = 0


cdef sr_void _load_labels(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* label
) noexcept nogil:
    """label (BLOCK,) OUT = the class of `count` rows from `start` on, then -1: floats, to be compared beside logits."""
    cdef Py_ssize_t i
    for i in range(count):
        label[i] = <floating>args.codes[args.rows[start + i] if args.rows != NULL else start + i]
    for i in range(count, BLOCK):
        label[i] = -1


cdef double _loss_block(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes
) noexcept nogil:
    """T = scale * s (P - Y) for logits T; return the summed loss. U and lanes are scratch."""
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef floating* weight = lanes + 2 * BLOCK
    cdef floating* fit = lanes + 3 * BLOCK        # sum_k Y (Z - top)
    cdef floating* loss_of_row = lanes + 4 * BLOCK
    cdef floating* label = lanes + 5 * BLOCK
    cdef floating* P = <floating*>args.P
    cdef floating kept = <floating>(1 - args.label_smoothing), uniform = <floating>(args.label_smoothing / args.K)
    cdef (const floating*)[BLOCK] y
    cdef double loss = 0, check = 0
    cdef Py_ssize_t i, k, ld = args.block, ldy = ld if args.codes == NULL else 0, K = args.K
    cdef bint mixed = args.codes == NULL or uniform != 0    # Y has more than one class
    if args.codes == NULL:
        for i in range(BLOCK):
            k = start + min(i, count - 1)
            y[i] = <const floating*>args.targets + (args.rows[k] if args.rows != NULL else k) * K
        transpose_rows(y, count, K, U, ld)
        if args.target_tolerance > 0:
            block_sum(U, ld, K, total)
            check_targets(U, ld, K, count, total, <floating>args.target_tolerance, &check)
    elif mixed:
        memset(U, 0, BLOCK * sizeof(floating))      # read for every class
    _load_weights(args, start, count, weight)
    block_max(T, ld, K, top, &check)
    if args.codes == NULL:
        memset(fit, 0, BLOCK * sizeof(floating))
    else:
        _load_labels(args, start, count, label)
        pick_class_logits(T, ld, K, label, top, kept, fit)
    if mixed:
        add_target_logits(T, ld, K, U, ldy, kept, uniform, top, fit)
    block_exp(T, ld, K, top, <floating>args.lowest)
    block_sum(T, ld, K, total)
    block_log(total, top)
    block_losses(weight, top, fit, loss_of_row, &loss)
    if args.each != NULL:
        memcpy(<floating*>args.each + start, loss_of_row, count * sizeof(floating))
    if P != NULL:
        block_scale[floating](T, ld, K, NULL, total)
        store_rows(T, ld, count, K, P + start * K)
        total = NULL
    if args.codes != NULL:
        scale_subtract_class(T, ld, K, weight, total, label, kept)
    else:
        block_scale(T, ld, K, weight, total)
    if mixed:
        subtract_targets(T, ld, K, U, ldy, kept, uniform, weight)
    return loss + check if args.strict else loss


cdef double _wide_block(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes
) noexcept nogil:
    """SOFTMAX, or a LOSS of codes, from row-major logits to row-major `out`; return the summed loss.

    Many classes fill vectors along the row. T and U hold 32 lanes of each row, from which its maximum and sum are made.
    """
    cdef const floating* Z = <const floating*>args.logits + start * args.K
    cdef floating* out = <floating*>args.out + start * args.K
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef floating* weight = lanes + 2 * BLOCK
    cdef floating* fit = lanes + 3 * BLOCK
    cdef floating* label = lanes + 5 * BLOCK if args.step == LOSS else NULL
    cdef double loss = 0, check = 0
    wide_max(Z, count, args.K, U, &check)
    load_rows(U, count, 32, T, BLOCK)
    block_max(T, BLOCK, 32, top, &check)
    _load_weights(args, start, count, weight)
    if label != NULL:
        _load_labels(args, start, count, label)
        wide_pick(Z, count, args.K, label, top, fit)     # before `out` may take its place
    wide_exp(Z, count, args.K, top, <floating>args.lowest, out)
    wide_sum(out, count, args.K, U)
    load_rows(U, count, 32, T, BLOCK)
    block_sum(T, BLOCK, 32, total)
    wide_scale(out, count, args.K, weight, total, label)
    if label != NULL:
        block_log(total, top)    # beyond `count` it is anything: the weights there are zero
        block_losses(weight, top, fit, lanes + 4 * BLOCK, &loss)
    if args.each != NULL:
        memcpy(<floating*>args.each + start, lanes + 4 * BLOCK, count * sizeof(floating))
    return loss + check if args.strict else loss


cdef floating* _softmax_block(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes,
    double* check
) noexcept nogil:
    """LOGSUMEXP, SOFTMAX, LOG_SOFTMAX or SOFTMAX_VJP of logits T; return where the result is: T or U.

    check (1,) += 0, or NaN where an input is not finite.
    """
    cdef floating* top = lanes
    cdef floating* total = lanes + BLOCK
    cdef Py_ssize_t i, K = args.K
    block_max(T, BLOCK, K, top, check)
    if args.step == LOG_SOFTMAX:
        memcpy(U, T, K * BLOCK * sizeof(floating))
        block_exp(U, BLOCK, K, top, <floating>args.lowest)
        block_sum(U, BLOCK, K, total)
        block_log(total, total)
        block_log_softmax(T, BLOCK, K, top, total)
        return T
    block_exp(T, BLOCK, K, top, <floating>args.lowest)
    block_sum(T, BLOCK, K, total)
    if args.step == LOGSUMEXP:
        block_log(total, total)
        for i in range(count):
            (<floating*>args.each)[start + i] = top[i] + total[i]
        return T
    block_scale[floating](T, BLOCK, K, NULL, total)
    if args.step == SOFTMAX:
        return T
    _load_weights(args, start, count, lanes)
    load_rows(<floating*>args.P + start * K, count, K, U, BLOCK)
    block_max(U, BLOCK, K, total, check)
    apply_jacobian(U, T, BLOCK, K, lanes)
    return U


cdef double _process_block(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* T, floating* U, floating* lanes
) noexcept nogil:
    """Run the step for `count` rows from `start` on, from `logits` or T to `out` or T; return the summed loss.

    CURVE of `logits` returns their inner product with what it makes.
    """
    cdef Py_ssize_t i, K = args.K
    cdef double loss = 0
    if args.logits != NULL:
        if K >= WIDE and args.out != NULL and (
            args.step == SOFTMAX
            or args.step == LOSS and args.codes != NULL and args.label_smoothing == 0 and args.P == NULL
        ):
            return _wide_block(args, start, count, T, U, lanes)
        load_rows(<const floating*>args.logits + start * K, count, K, T, args.block)
    if args.step == LOSS:
        loss = _loss_block(args, start, count, T, U, lanes)
    elif args.step == CURVE:
        _load_weights(args, start, count, lanes)
        load_rows(<floating*>args.P + start * K, count, K, U, args.block)
        apply_jacobian(T, U, args.block, K, lanes)
        if args.logits != NULL:
            load_rows(<const floating*>args.logits + start * K, count, K, U, args.block)
            block_dot(T, U, args.block, K, lanes)
            for i in range(count):
                loss += lanes[i]
    elif args.step != NOTHING:
        T = _softmax_block(args, start, count, T, U, lanes, &loss)
    if args.out != NULL:
        store_rows(T, args.block, count, K, <floating*>args.out + start * K)
    return loss


# --- dense rows: the products before and after ----------------------------------------------------------------------

cdef void _pack_weights(KernelArguments* args, const floating[:, ::1] W, floating* packed) noexcept:
    """The bias (Kp,), then W in whole tiles (Kp, dp): zeros fill up, and stand where a moved-back vector overlaps."""
    cdef Py_ssize_t k, d = args.d, whole = d if args.dp == d else d // args.lanes * args.lanes
    args.bias = packed
    memset(packed, 0, args.Kp * sizeof(floating))
    for k in range(args.K if args.p > d else 0):
        packed[k] = W[k, d]
    if args.blas:
        args.W = matrix_pointer[floating](W)
        return
    packed += args.Kp
    args.W = packed
    memset(packed, 0, args.Kp * args.dp * sizeof(floating))
    for k in range(args.K if d > 0 else 0):
        memcpy(packed + k * args.dp, &W[k, 0], whole * sizeof(floating))
        if whole < d:
            memcpy(packed + (k + 1) * args.dp - (d - whole), &W[k, whole], (d - whole) * sizeof(floating))


cdef void _fill_row_pointers(
    const KernelArguments* args, Py_ssize_t start, Py_ssize_t count, floating* features, const floating** x
) noexcept nogil:
    """x (BLOCK + TILE_ROWS,) OUT = pointers to the rows from `start` on; beyond the last row they repeat it.

    Where rows are gathered, they are copied to `features` (count, d), and x[0] points there.
    """
    cdef const floating* X = <const floating*>args.X
    cdef Py_ssize_t i, k
    for i in range(count if args.gathered else BLOCK + TILE_ROWS):
        k = min(start + i, args.m - 1)
        k = (args.rows[k] if args.rows != NULL else k) * args.stride
        if args.gathered:
            memcpy(features + i * args.d, X + k, args.d * sizeof(floating))
        else:
            x[i] = X + k
    if args.gathered:
        x[0] = features


cdef void _forward(
    const KernelArguments* args, const floating** x, Py_ssize_t count, floating* T, floating* features
) noexcept nogil:
    """T = W x^T + b for `count` rows."""
    cdef (const floating*)[GATHER_BELOW] columns
    cdef const floating* W = <const floating*>args.W
    cdef const floating* bias = <const floating*>args.bias
    cdef Py_ssize_t i, k
    for k in range(args.Kp):
        for i in range(args.block):
            T[k * args.block + i] = bias[k]
    if args.blas:
        gemm[floating](True, count, args.K, args.d, x[0], args.lda, W, args.dp, 1, T, args.block)
    elif args.transposed:
        transpose_rows(x, count, args.d, features, BLOCK)
        for i in range(args.d):
            columns[i] = features + i * BLOCK
        add_product(W, args.dp, args.Kp, columns, args.d, BLOCK, T, BLOCK)
    else:
        add_dot_products(x, count, W, args.dp, args.d, args.Kp, T, BLOCK)


cdef void _backward(
    const KernelArguments* args, const floating** x, Py_ssize_t count, const floating* T, floating* features,
    floating* gradient, double* bias
) noexcept nogil:
    """gradient += T x, bias += row sums of T, for `count` rows; x is overwritten."""
    cdef Py_ssize_t i, width = args.d
    if args.p > args.d:
        add_row_sums(T, args.block, count, args.K, bias)
    if args.blas:
        gemm[floating](False, args.d, args.K, count, x[0], args.lda, T, args.block, 1, gradient, args.columns)
        return
    if args.padded:
        width = args.columns
        memset(features, 0, count * width * sizeof(floating))
        for i in range(count):
            memcpy(features + i * width, x[i], args.d * sizeof(floating))
            x[i] = features + i * width
    add_product(T, BLOCK, args.Kp, x, count, width, gradient, args.columns)


cdef double _sum_parts(
    const KernelArguments* args, floating* scratch, double* bias, const floating[:, ::1] W, floating[:, ::1] out
) noexcept nogil:
    """out (K, p) OUT = the parts' gradients, summed in order, and l2 W; return ||W||^2 if there is l2."""
    cdef double squares = 0
    cdef Py_ssize_t k, part, n = args.Kp * args.columns, d = args.d
    cdef Py_ssize_t last = args.columns - 2 * args.lanes  # where the last tile begins, and which features it holds
    if args.blas or args.padded or args.columns == d:
        last = d
    for part in range(1, args.parts):
        add_vector(scratch, scratch + part * args.size, n)
        for k in range(args.K):
            bias[k] += bias[part * args.Kp + k]
    for k in range(args.K):
        memcpy(&out[k, 0], scratch + k * args.columns, last * sizeof(floating))
        if last < d:
            memcpy(&out[k, last], scratch + (k + 1) * args.columns - (d - last), (d - last) * sizeof(floating))
        if args.l2 != 0 and d > 0:
            add_penalty(&W[k, 0], d, args.l2, &out[k, 0], &squares)
        if args.p > d:
            out[k, d] = <floating>bias[k]
    return squares


# --- the one driver -------------------------------------------------------------------------------------------------

cdef double _run_part(
    const KernelArguments* args, Py_ssize_t part, floating* scratch, double* sums
) noexcept nogil:
    """Run a part of the rows, block by block; return its loss."""
    cdef floating* gradient = scratch + part * args.size     # (Kp, columns)
    cdef floating* recent = gradient + args.Kp * args.columns if args.nested else gradient
    cdef floating* T = recent + args.Kp * args.columns      # (Kp, block) logits
    cdef floating* U = T + args.Kp * args.block               # (K, block) probabilities or targets
    cdef floating* lanes = U + args.K * args.block            # (6, BLOCK) one number a row
    cdef floating* features = lanes + 6 * BLOCK             # a block of X: transposed, padded or gathered
    cdef (const floating*)[BLOCK + TILE_ROWS] x
    cdef Py_ssize_t start = part * args.blocks // args.parts * args.block, count, strip, rows
    cdef Py_ssize_t stop = min(args.m, (part + 1) * args.blocks // args.parts * args.block)
    cdef double loss = 0
    if args.backward:                                        # classes that only fill up a tile stay zero
        memset(gradient, 0, (T - gradient + args.Kp * args.block) * sizeof(floating))
        memset(sums + part * args.Kp, 0, args.Kp * sizeof(double))
    while start < stop:
        count = min(args.block, stop - start)
        if args.p > 0:
            _fill_row_pointers(args, start, count, features, x)
        if args.W != NULL:
            _forward(args, x, count, T, features)
        for strip in range(0, count, 64):  # BLOCK, which range() wants as a literal
            rows = min(<Py_ssize_t>BLOCK, count - strip)
            loss += _process_block(args, start + strip, rows, T + strip, U + strip, lanes)
        if args.backward:
            _backward(args, x, count, T, features, recent, sums + part * args.Kp)
        start += count
        if args.nested and (start % SUM_ROWS == 0 or start == stop):
            add_vector(gradient, recent, args.Kp * args.columns)
            memset(recent, 0, args.Kp * args.columns * sizeof(floating))
    return loss


cdef double _run(KernelArguments* args, const floating[:, ::1] W, floating[:, ::1] gradient, int n_threads) except? -1:
    """Run a kernel on all rows and return the summed loss.

    W (K, p), by which X is multiplied, and gradient (K, p) OUT = T [X 1] may be None.
    """
    cdef Py_ssize_t part, n_sums, n, n_packed
    cdef void* memory
    cdef double* sums
    cdef floating* scratch
    cdef double[MAX_PARTS] losses
    cdef double loss = 0, work
    cdef Team team
    if args.K == 0:
        return 0
    args.backward = gradient is not None
    if args.lowest == 0:
        args.lowest = -104.7 if floating is float else -746.0    # half of the smallest subnormal number
    args.blocks = (args.m + args.block - 1) // args.block
    args.parts = max(1, min(<Py_ssize_t>MAX_PARTS, args.blocks))
    args.nested = args.backward and args.m > MAX_PARTS * SUM_ROWS
    args.size = args.Kp * (args.columns + args.block) + args.K * args.block + 6 * BLOCK
    if args.nested:
        args.size += args.Kp * args.columns
    if args.gathered or args.transposed:
        args.size += args.block * max(args.d, args.columns if args.padded else 0)
    n_sums = round_up(args.parts * args.Kp, 8) if args.backward else 0
    n = args.parts * args.size
    n_packed = args.Kp * (1 if args.blas else args.dp + 1)
    memory = malloc(64 + n_sums * sizeof(double) + (n + n_packed) * sizeof(floating))
    if memory == NULL:
        raise MemoryError(f"{n * sizeof(floating)} bytes of scratch memory")
    sums = <double*>((<size_t>memory + 63) // 64 * 64)      # where cache lines begin, and whole lines from there
    scratch = <floating*>(sums + n_sums)
    if W is not None:
        _pack_weights(args, W, scratch + n)
    work = <double>args.m * args.K * (EXP_WORK + args.d * ((W is not None) + args.backward))
    team = begin_region(n_threads, work, args.parts)
    for part in prange(args.parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        part_begins(&team, part)
        losses[part] = _run_part(args, part, scratch, sums)
        part_ends(&team, part)
    end_region(&team, args.parts)
    if args.backward:
        loss = 0.5 * args.l2 * _sum_parts(args, scratch, sums, W, gradient)
    for part in range(args.parts):
        loss += losses[part]
    free(memory)
    return loss


# --- batches of logits ----------------------------------------------------------------------------------------------

cdef bint _batch(
    Step step, const floating[:, ::1] Z, const floating[:, ::1] U, floating[::1] each, floating[:, ::1] out,
    int n_threads, bint within_pass=False,
) except -1:
    """Run a step for logits Z; return whether all inputs are finite."""
    cdef KernelArguments args = batch_arguments(step, Z.shape[0], Z.shape[1])
    args.logits, args.P = matrix_pointer[floating](Z), matrix_pointer[floating](U)
    args.each, args.out = vector_pointer[floating](each), matrix_pointer[floating](out)
    args.strict = True
    if within_pass:
        args.lowest = pass_lowest(sizeof(floating))
    return _run[floating](&args, None, None, n_threads) == 0


def logsumexp(const floating[:, ::1] Z, floating[::1] out, int n_threads=1):
    """out (n,) OUT = log(sum_k exp(Z_k)), shifted by the row maximum so that nothing overflows."""
    return _batch[floating](LOGSUMEXP, Z, None, out, None, n_threads)


def softmax(const floating[:, ::1] Z, floating[:, ::1] out, int n_threads=1, bint within_pass=False):
    """out (n, K) OUT = exp(Z) / sum_k exp(Z_k); out may be Z. Within a pass over X the tiniest numbers are zero."""
    return _batch[floating](SOFTMAX, Z, None, None, out, n_threads, within_pass)


def log_softmax(const floating[:, ::1] Z, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = Z - logsumexp(Z), never the log of a rounded probability."""
    return _batch[floating](LOG_SOFTMAX, Z, None, None, out, n_threads)


def softmax_vjp(const floating[:, ::1] Z, const floating[:, ::1] U, floating[:, ::1] out, int n_threads=1):
    """out (n, K) OUT = J^T U row by row with J = diag(p) - p p^T, that is t - (1^T t) p with t = p * u."""
    return _batch[floating](SOFTMAX_VJP, Z, U, None, out, n_threads)


def cross_entropy(
    const floating[:, ::1] Z, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, floating[::1] losses, floating[:, ::1] residual,
    int n_threads=1, double scale=1, double target_tolerance=0,
):
    """losses (n,) OUT or None = scale * s CE(y, p); residual (n, K) OUT or None = scale * s (P - Y).

    Return the sum of the losses, made in float64; NaN if a logit is not finite. With a target_tolerance, NaN too if
    a target is negative or not finite, or the targets of a row do not sum to one up to that tolerance.
    """
    cdef KernelArguments args = batch_arguments(LOSS, Z.shape[0], Z.shape[1])
    set_targets(&args, codes, targets, sample_weight, label_smoothing, scale, False)
    args.logits, args.out = matrix_pointer[floating](Z), matrix_pointer[floating](residual)
    args.each = vector_pointer[floating](losses)
    args.strict, args.target_tolerance = True, target_tolerance
    return _run[floating](&args, None, None, n_threads)


# --- dense rows -----------------------------------------------------------------------------------------------------

def dense_logits(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] W, floating[:, ::1] out,
    int n_threads=1,
):
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef KernelArguments args = dense_arguments(NOTHING, X, rows, W.shape[1], W.shape[0])
    args.out = matrix_pointer[floating](out)
    _run[floating](&args, W, None, n_threads)


def dense_gradient(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] G, floating[:, ::1] out,
    int n_threads=1,
):
    """out (K, p) OUT = G^T [X[rows] 1], the X^T accumulation; G (m, K)."""
    cdef KernelArguments args = dense_arguments(NOTHING, X, rows, out.shape[1], G.shape[1])
    args.logits = matrix_pointer[floating](G)
    _run[floating](&args, None, out, n_threads)


def dense_loss_gradient(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] W, const Py_ssize_t[::1] codes,
    const floating[:, ::1] targets, const floating[::1] sample_weight, double label_smoothing, double scale, double l2,
    floating[:, ::1] P, floating[:, ::1] grad, int n_threads=1,
):
    """Return scale * sum_i s_i CE_i + l2/2 ||W||^2; grad (K, p) OUT its derivative; P (m, K) OUT or None."""
    cdef KernelArguments args = dense_arguments(LOSS, X, rows, W.shape[1], W.shape[0])
    set_targets(&args, codes, targets, sample_weight, label_smoothing, scale, True)
    args.P, args.l2 = matrix_pointer[floating](P), l2
    return _run[floating](&args, W, grad, n_threads)


def dense_hessian_product(
    const floating[:, :] X, const Py_ssize_t[::1] rows, const floating[:, ::1] P,
    const floating[::1] sample_weight, double scale, double l2, const floating[:, ::1] V, floating[:, ::1] out,
    int n_threads=1,
):
    """out (K, p) OUT = the Gauss-Newton (here: exact) Hessian of `dense_loss_gradient` at probabilities P, times V."""
    cdef KernelArguments args = dense_arguments(CURVE, X, rows, V.shape[1], V.shape[0])
    args.P, args.sample_weight = matrix_pointer[floating](P), vector_pointer[floating](sample_weight)
    args.scale, args.l2 = scale, l2
    _run[floating](&args, V, out, n_threads)


def input_gradient(const floating[:, ::1] G, const floating[:, ::1] W, floating[:, ::1] out, int n_threads=1):
    """out (n, d) OUT = G W, without the intercept column of W (K, p)."""
    cdef Py_ssize_t n = G.shape[0], K = G.shape[1], d = out.shape[1], part, first, last
    cdef Py_ssize_t parts = min(<Py_ssize_t>MAX_PARTS, (n + BLOCK - 1) // BLOCK)
    cdef const floating* g = matrix_pointer[floating](G)
    cdef const floating* w = matrix_pointer[floating](W)
    cdef floating* x = matrix_pointer[floating](out)
    cdef Team team
    if n == 0 or d == 0:
        return
    if K == 0:
        out[:, :] = 0
        return
    team = begin_region(n_threads, <double>n * K * d, parts)
    for part in prange(parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        first = part * n // parts
        last = (part + 1) * n // parts
        gemm[floating](False, d, last - first, K, w, W.shape[1], g + first * K, K, 0, x + first * d, d)


# --- CSR rows -------------------------------------------------------------------------------------------------------

cdef inline double _csr_work(const CSRRows* X, Py_ssize_t K) noexcept nogil:
    """Return the multiply-adds of a product with K numbers for each row, from the mean number of nonzeros."""
    return <double>X.stored * X.m / max(<Py_ssize_t>1, X.n) * K


cdef inline Py_ssize_t _csr_sum_rows(const CSRRows* X) noexcept nogil:
    """Return how many rows are summed apart: those that have 16 nonzeros for each feature, at least SUM_ROWS."""
    cdef double wanted = 16.0 * X.n_features * X.n / max(<Py_ssize_t>1, X.stored)
    return max(<Py_ssize_t>SUM_ROWS, <Py_ssize_t>min(wanted, <double>X.m))


cdef void _csr_logits(
    const CSRRows* X, const index_t* indices, const floating[:, ::1] Wt, floating[:, ::1] out, int n_threads
) noexcept:
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef Py_ssize_t K = Wt.shape[1], m = X.m, part, parts = min(<Py_ssize_t>MAX_PARTS, m)
    cdef const floating* w = matrix_pointer[floating](Wt)
    cdef const floating* bias = w + X.n_features * K if Wt.shape[0] > X.n_features else NULL
    cdef floating* Z = matrix_pointer[floating](out)
    cdef Team team = begin_region(n_threads, _csr_work(X, K), parts)
    for part in prange(parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        part_begins(&team, part)
        csr_forward(X, indices, part * m // parts, (part + 1) * m // parts, w, bias, K, Z)
        part_ends(&team, part)
    end_region(&team, parts)


def csr_logits(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] Wt, Py_ssize_t n_features, floating[:, ::1] out, int n_threads=1,
):
    """out (m, K) OUT = X[rows] W^T + b."""
    cdef CSRRows X = csr_rows(data, indptr, rows, n_features)
    _csr_logits(&X, vector_pointer[index_t](indices), Wt, out, n_threads)


cdef double _start_gradient_part(
    const floating* Wt, Py_ssize_t start, Py_ssize_t stop, double l2, floating* out
) noexcept nogil:
    """out[start:stop] OUT = l2 W^T, in pieces that stay in the nearest cache; return ||W||^2 if there is l2."""
    cdef Py_ssize_t count
    cdef double squares = 0
    while start < stop:
        count = min(<Py_ssize_t>2048, stop - start) if l2 != 0 else stop - start
        memset(out + start, 0, count * sizeof(floating))
        if l2 != 0:
            add_penalty(Wt + start, count, l2, out + start, &squares)
        start += count
    return squares


cdef double _start_gradient(
    const floating[:, ::1] Wt, Py_ssize_t n_features, double l2, floating[:, ::1] out, int n_threads
) noexcept:
    """out (p, K) OUT = l2 W^T, and zero for the intercepts; return l2/2 ||W||^2."""
    cdef Py_ssize_t n = n_features * out.shape[1], part, parts = MAX_PARTS
    cdef const floating* w = matrix_pointer[floating](Wt)
    cdef floating* o = matrix_pointer[floating](out)
    cdef double[MAX_PARTS] squares
    cdef double total = 0
    cdef Team team = begin_region(n_threads, n, parts)
    memset(o + n, 0, (out.shape[0] * out.shape[1] - n) * sizeof(floating))
    for part in prange(parts, nogil=True, num_threads=team.size, schedule="dynamic"):
        squares[part] = _start_gradient_part(w, part * n // parts, (part + 1) * n // parts, l2, o)
    for part in range(parts):
        total += squares[part]
    return 0.5 * l2 * total


cdef int _csr_accumulate(
    const CSRRows* X, const index_t* indices, const floating[:, ::1] G, floating[:, ::1] out, int n_threads
) except -1:
    """out (p, K) += [X[rows] 1]^T G.

    Sums of many rows are sums of sums over SUM_ROWS rows, or over more, so that adding them up costs little.
    """
    cdef Py_ssize_t K = out.shape[1], d = X.n_features, share, shares, group = _csr_sum_rows(X)
    cdef floating* recent = NULL
    cdef const floating* g = matrix_pointer[floating](G)
    cdef floating* o = matrix_pointer[floating](out)
    cdef Team team
    if group < X.m and d * K > 0:
        recent = <floating*>malloc(d * K * sizeof(floating))
        if recent == NULL:
            raise MemoryError(f"{d * K * sizeof(floating)} bytes of scratch memory")
    team = begin_region(n_threads, _csr_work(X, K), MAX_PARTS)
    shares = team.size
    for share in prange(shares, nogil=True, num_threads=team.size, schedule="static"):
        part_begins(&team, share)
        csr_accumulate(X, indices, group, g, K, share * d // shares, (share + 1) * d // shares, recent, o)
        part_ends(&team, share)
    end_region(&team, shares)
    free(recent)
    if out.shape[0] > d:
        add_column_sums(g, X.m, K, o + d * K)


def csr_gradient(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] G, Py_ssize_t n_features, floating[:, ::1] out, int n_threads=1,
):
    """out (p, K) INOUT += [X[rows] 1]^T G."""
    cdef CSRRows X = csr_rows(data, indptr, rows, n_features)
    _csr_accumulate(&X, vector_pointer[index_t](indices), G, out, n_threads)


def csr_loss_gradient(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] Wt, Py_ssize_t n_features, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, double scale, double l2, floating[:, ::1] P,
    floating[:, ::1] residual, floating[:, ::1] grad, int n_threads=1,
):
    """As `dense_loss_gradient`, grad (p, K) OUT; residual (m, K) OUT = scale * s (P - Y), which the kernel needs."""
    cdef CSRRows X = csr_rows(data, indptr, rows, n_features)
    cdef const index_t* j = vector_pointer[index_t](indices)
    cdef KernelArguments args = batch_arguments(LOSS, X.m, Wt.shape[1])
    cdef double loss
    set_targets(&args, codes, targets, sample_weight, label_smoothing, scale, True)
    args.rows, args.P = vector_pointer[Py_ssize_t](rows), matrix_pointer[floating](P)
    args.logits = args.out = matrix_pointer[floating](residual)
    _csr_logits(&X, j, Wt, residual, n_threads)
    loss = _run[floating](&args, None, None, n_threads)
    loss += _start_gradient(Wt, n_features, l2, grad, n_threads)
    _csr_accumulate(&X, j, residual, grad, n_threads)
    return loss


def csr_curve(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] rows,
    const floating[:, ::1] P, const floating[::1] sample_weight, double scale, const floating[:, ::1] Vt,
    Py_ssize_t n_features, floating[:, ::1] curved, int n_threads=1,
):
    """curved (m, K) OUT = scale * s (P*R - P sum(P*R)), R = X V^T; return sum(R * curved).

    The Hessian of the loss, times V, is [X[rows] 1]^T curved, and the sum is the curvature of the loss along V.
    """
    cdef CSRRows X = csr_rows(data, indptr, rows, n_features)
    cdef KernelArguments args = batch_arguments(CURVE, X.m, Vt.shape[1])
    args.rows, args.P = vector_pointer[Py_ssize_t](rows), matrix_pointer[floating](P)
    args.sample_weight, args.scale = vector_pointer[floating](sample_weight), scale
    args.logits = args.out = matrix_pointer[floating](curved)
    _csr_logits(&X, vector_pointer[index_t](indices), Vt, curved, n_threads)
    return _run[floating](&args, None, None, n_threads)


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
