# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Declarations for every compiled file: the types, what `_simd.h` declares, and pointers into arrays.

All functions of the .pxd files are inline: each extension that uses one compiles it for itself, with its own clones.
"""

from libc.float cimport DBL_MAX, FLT_MAX


cdef extern from "_simd.h" nogil:
    ctypedef void sr_void "SR_VOID"                 # the result of a function that is cloned per instruction set
    ctypedef void sr_inline_void "SR_INLINE_VOID"   # the result of a function that is always inlined
    ctypedef float vfloat "sr_vfloat"               # a wide vector
    ctypedef double vdouble "sr_vdouble"
    ctypedef float nfloat "sr_nfloat"               # a narrow one
    ctypedef double ndouble "sr_ndouble"
    bint is_wide "SR_IS_WIDE"()                     # which of them this machine takes
    int float_lanes "SR_FLOAT_LANES"()              # numbers of such a vector
    int double_lanes "SR_DOUBLE_LANES"()
    const int OPENMP "SR_OPENMP"
    # Macros for both types: they choose by the size of what is behind their last pointer, or of their first number.
    double sr_exp "SR_EXP"(double, double, double)
    double sr_log "SR_LOG"(double)
    void sr_columns "SR_COLUMNS"(const void*, Py_ssize_t, void*, Py_ssize_t)
    void sr_rows "SR_ROWS"(const void*, Py_ssize_t, void*, Py_ssize_t)
    void sr_sum4 "SR_SUM4"(const void*, void*)      # of wide vectors
    void sr_sum4_narrow "SR_SUM4_NARROW"(const void*, void*)
    void prefetch "SR_PREFETCH"(const void*)
    int sr_simd_level()
    int sr_max_threads()
    double sr_seconds()
    double sr_thread_seconds()
    double sr_load_shared(const double*)
    void sr_store_shared(double*, double)


cdef enum:
    TILE_ROWS = 4       # logits tile: 4 rows x 5 classes = 20 vector accumulators of AVX-512's 32 registers,
    TILE_CLASSES = 5    # ... 9 loads for 20 multiply-adds; 5 x 2 vectors in the other product


ctypedef fused floating:
    float
    double

ctypedef fused index_t:
    int
    long long

ctypedef fused number:
    float
    double
    int
    long long
    Py_ssize_t


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    """n, rounded up."""
    return (n + unit - 1) // unit * unit


cdef inline number* vector_pointer(const number[:] x) noexcept:
    """Return the address of a vector, NULL for None and for an empty one."""
    return NULL if x is None or x.shape[0] == 0 else <number*>&x[0]


cdef inline floating* matrix_pointer(const floating[:, :] x) noexcept:
    """Return the address of a matrix, NULL for None and for an empty one."""
    return NULL if x is None or x.shape[0] == 0 or x.shape[1] == 0 else <floating*>&x[0, 0]


cdef inline sr_inline_void halve(double* lane, Py_ssize_t half) noexcept nogil:
    """lane (half,) += the numbers that follow; half is a constant."""
    cdef Py_ssize_t i
    for i in range(half):
        lane[i] = lane[i] + lane[i + half]


cdef inline sr_inline_void sum_lanes(double* lane) noexcept nogil:
    """lane[0] = the sum of 16 numbers."""
    halve(lane, 8)
    halve(lane, 4)
    halve(lane, 2)
    halve(lane, 1)


cdef inline floating subtract_clipped(floating z, floating top) noexcept nogil:
    """z - top; a difference that overflows stops at the lowest finite number."""
    cdef floating low, x = z - top
    if floating is float:
        low = -FLT_MAX
    else:
        low = -DBL_MAX
    return low if x < low else x
