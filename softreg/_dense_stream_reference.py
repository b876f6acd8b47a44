"""NumPy twins of the compiled kernels in ``_dense_stream.pyx``: same names, same signatures."""

import numpy as np


def standardize(X, location, scale, out):
    """out (b, p) OUT = (X - location) / scale; where p = d + 1 the last column is 1.

    X (b, d) IN with unit stride along a row; location, scale (d,) IN float64; out has the dtype of X.
    """
    d = X.shape[1]
    out[:, :d] = (X - location) * (1.0 / scale)
    out[:, d:] = 1


def add_moments(Z, weight, sums, squares):
    """sums, squares (d,) INOUT float64 += sums over the rows of s z and s z^2; Z (b, p) IN with p >= d, weight (b,)."""
    d = len(sums)
    Z = Z[:, :d].astype(np.float64)
    s = np.ones(len(Z)) if weight is None else weight
    sums += s @ Z
    squares += s @ Z**2
