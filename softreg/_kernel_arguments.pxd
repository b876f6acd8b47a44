# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The arguments of a kernel as one struct, and how the work on rows of a dense X is laid out."""

from libc.math cimport log
from libc.string cimport memset

from softreg._simd cimport TILE_CLASSES, double_lanes, float_lanes, floating, matrix_pointer, round_up, vector_pointer
from softreg._softmax_leaves cimport BLOCK


cdef enum:
    GATHER_BELOW = 64   # features: below, a block of X is transposed into scratch, as dot products would be too short
    BLAS_CLASSES = 48   # classes of float32, half as many of float64: from here on BLAS wins (benchmarks/README.md)


cdef enum Step:     # what is computed from a block of logits
    NOTHING, LOGSUMEXP, SOFTMAX, LOG_SOFTMAX, SOFTMAX_VJP
    LOSS            # scale * s (P - Y), and the losses
    CURVE           # scale * s (P*R - P sum_k P*R), with R = X V^T in place of the logits


cdef struct KernelArguments:    # the arguments of a kernel, and how its work is laid out; void is float or double
    Step step
    Py_ssize_t m, K
    const void* logits          # (m, K) IN; NULL: they are X W^T
    void* out                   # (m, K) OUT the result of the step, or NULL
    void* each                  # (m,) OUT losses, or the sums of LOGSUMEXP, or NULL
    void* P                     # (m, K) OUT or NULL for LOSS; IN for CURVE, and for SOFTMAX_VJP what it multiplies
    const Py_ssize_t* rows      # (m,) IN rows of X, codes, targets and sample_weight; NULL: all of them
    const Py_ssize_t* codes
    const void* targets
    const void* sample_weight
    double label_smoothing, scale, l2
    double lowest               # exp is zero below: in passes over X, before its products are subnormal, and slow
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
    bint nested                 # gradients are sums of sums over SUM_ROWS rows
    bint strict                 # the loss becomes NaN where an input is not finite
    double target_tolerance     # ... or a row of `targets` has no such sum of one, or negative numbers; 0: not checked


cdef inline KernelArguments batch_arguments(Step step, Py_ssize_t m, Py_ssize_t K) noexcept:
    """Return the arguments of a kernel without X."""
    cdef KernelArguments args
    memset(&args, 0, sizeof(KernelArguments))
    args.step, args.m, args.K, args.Kp, args.block, args.scale = step, m, K, K, BLOCK, 1
    return args


cdef inline KernelArguments dense_arguments(
    Step step, const floating[:, :] X, const Py_ssize_t[::1] rows, Py_ssize_t p, Py_ssize_t K
) noexcept:
    """Return the arguments of a kernel over rows of a dense X, with W or the gradient (K, p)."""
    cdef KernelArguments args = batch_arguments(step, X.shape[0] if rows is None else rows.shape[0], K)
    cdef Py_ssize_t d = X.shape[1], lanes = float_lanes() if floating is float else double_lanes()
    args.X, args.d, args.p = matrix_pointer[floating](X), d, p
    args.rows = vector_pointer[Py_ssize_t](rows)
    args.stride = X.strides[0] // <Py_ssize_t>sizeof(floating)
    args.blas = K * sizeof(floating) >= BLAS_CLASSES * sizeof(float) and d >= GATHER_BELOW
    args.gathered = args.blas and (args.rows != NULL or args.stride < d)    # BLAS wants rows one after the other
    args.transposed = d < GATHER_BELOW
    args.padded = d < 2 * lanes
    args.lda = d if args.gathered else args.stride
    args.lanes = lanes
    if args.blas:    # thick operands; but a minibatch has to be several parts, for several threads
        args.block = 4 * BLOCK if args.m >= 8 * BLOCK else 2 * BLOCK
    args.Kp = round_up(K, TILE_CLASSES)
    args.dp = p if args.blas else d if args.transposed else round_up(d, lanes)
    args.columns = round_up(d, 2 * lanes)
    return args


cdef inline double pass_lowest(size_t itemsize) noexcept:
    """Return `lowest` of a pass over X, for float32 or float64."""
    return log(1e-20) if itemsize == sizeof(float) else log(1e-100)


cdef inline void set_targets(
    KernelArguments* args, const Py_ssize_t[::1] codes, const floating[:, ::1] targets,
    const floating[::1] sample_weight, double label_smoothing, double scale, bint within_pass
) noexcept:
    """Set the targets and the weights of a LOSS."""
    args.codes = vector_pointer[Py_ssize_t](codes)
    args.targets = matrix_pointer[floating](targets)
    args.sample_weight = vector_pointer[floating](sample_weight)
    args.label_smoothing, args.scale = label_smoothing, scale
    if within_pass:
        args.lowest = pass_lowest(sizeof(floating))
