"""Factors of symmetric positive definite matrices that rounding may have made indefinite."""

import numpy as np
from scipy.linalg import lapack

SHIFTS = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0)


def cholesky(A, scale=1.0):
    """Return the lower Cholesky factor of A + shift * diag(scale), and the shift.

    The shift is the first of `SHIFTS` with which the sum is positive definite: 0 if A is.

    Raises
    ------
    LinAlgError
        If not even the shift 1 suffices.
    """
    for shift in SHIFTS:
        shifted = A.copy()
        shifted.ravel()[:: len(A) + 1] += shift * scale
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
