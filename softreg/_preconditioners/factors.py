"""Factors of symmetric positive definite matrices that rounding may have made indefinite."""

import numpy as np
from scipy.linalg import lapack


def cholesky(A, scale=1.0):
    """Return the lower Cholesky factor of A + shift * diag(scale), and the shift.

    The shift is 0 if A is positive definite, else the smallest of 1e-12, 1e-10, ..., 1 with which the sum is.

    Raises
    ------
    LinAlgError
        If not even the shift 1 suffices.
    """
    for shift in (0.0, *np.logspace(-12, 0, 7)):
        shifted = A.copy()
        shifted[np.diag_indices_from(A)] += shift * scale
        factor, info = lapack.dpotrf(shifted.T, lower=1, overwrite_a=1, clean=0)  # .T of a symmetric A: Fortran order
        if info == 0:
            return factor, shift
    raise np.linalg.LinAlgError("the preconditioner is not positive definite")


def mirrored(lower):
    """Return the symmetric matrix with this lower triangle."""
    full = np.tril(lower)
    diagonal = full.diagonal().copy()
    full += full.T
    full[np.diag_indices_from(full)] = diagonal
    return full
