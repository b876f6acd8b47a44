"""Factors and inverses of symmetric positive definite matrices that rounding may have spoilt."""

import numpy as np
from scipy.linalg import lapack


def cholesky(A, scale=1.0):
    """Return the lower Cholesky factor of A, and the shift that it took.

    Where rounding made A indefinite, a share of `scale` is added to the diagonal: 1e-12 of it, and then ever more.
    """
    for shift in (0.0, *np.logspace(-12, 0, 7)):
        shifted = A.copy()
        shifted[np.diag_indices_from(A)] += shift * scale
        factor, info = lapack.dpotrf(shifted.T, lower=1, overwrite_a=1, clean=0)  # symmetric: .T is for Fortran's order
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
