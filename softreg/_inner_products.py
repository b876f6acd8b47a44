"""Inner products and sums of arrays like W. These may be large, so no temporary array has their size."""

import numpy as np
from scipy.linalg import blas


def squared_norm(A):
    """Return sum(A^2): sums over contiguous numbers in the dtype of A, and the sum of these in float64."""
    A = A.T if A.strides[0] < A.strides[1] else A
    return float(np.einsum("ij,ij->i", A, A).sum(dtype=np.float64))


def inner(A, B):
    """Return sum(A B) of two arrays in the same memory order.

    BLAS adds in blocks, so the rounding of float32 stays small.
    """
    return float(np.dot(A.ravel(order="K"), B.ravel(order="K")))


def add_scaled(A, scale, B):
    """Add scale * B to A, in place and without a temporary array; both have the same dtype and memory order."""
    axpy = blas.saxpy if A.dtype == np.float32 else blas.daxpy
    axpy(B.ravel(order="K"), A.ravel(order="K"), a=scale)
