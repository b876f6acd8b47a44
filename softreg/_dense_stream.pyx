# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""Compiled kernels of the minibatch steps on dense rows. `_dense_stream_reference.py` says what each one computes.

Both walk a block once, row by row. A block of rows stays in the second-level cache from one kernel to the next.
"""

from libc.stdlib cimport free, malloc


ctypedef fused floating:
    float
    double


def standardize(const floating[:, :] X, const double[::1] location, const double[::1] scale, floating[:, ::1] out):
    cdef Py_ssize_t i, j, n = X.shape[0], d = X.shape[1], p = out.shape[1]
    cdef const floating *x
    cdef floating *z
    cdef double *inverse
    if n == 0:
        return
    inverse = <double*>malloc((d + 1) * sizeof(double))
    if inverse == NULL:
        raise MemoryError("no memory for the inverse of the scale")
    with nogil:
        for j in range(d):
            inverse[j] = 1.0 / scale[j]
        for i in range(n):
            x, z = &X[i, 0] if d > 0 else NULL, &out[i, 0]
            for j in range(d):
                z[j] = <floating>((x[j] - location[j]) * inverse[j])
            for j in range(d, p):
                z[j] = 1
        free(inverse)


def add_moments(const floating[:, ::1] Z, const floating[:] weight, double[::1] sums, double[::1] squares):
    cdef Py_ssize_t i, j, n = Z.shape[0], d = sums.shape[0]
    cdef const floating *z
    cdef double s = 1.0, v
    if n == 0 or d == 0:
        return
    with nogil:
        for i in range(n):
            z = &Z[i, 0]
            if weight is not None:
                s = weight[i]
            for j in range(d):
                v = s * z[j]
                sums[j] += v
                squares[j] += v * z[j]
