"""The Hessian of a sample of the rows, factored: for problems with few parameters."""

import numpy as np
from scipy.linalg import lapack

from softreg._preconditioners.factors import cholesky
from softreg._preconditioners.standardized_sample import StandardizedSample

EXACT_SIZE = 500  # K p up to which the Hessian is factored; a build costs K p / 8 products or more
EXACT_WORK = 1e9  # n (K p)^2 up to which the Hessian is built from all rows; above, from 4 rows a parameter


class Exact(StandardizedSample):
    """The Hessian of a sample of `size` rows, factored by Cholesky.

    If the sample is all rows, solves are Newton steps.
    """

    def __init__(self, objective, order, size):
        super().__init__(objective, order, size)
        self.Z = self.standardized(np.float64)
        self.all_rows = len(self.picked) == objective.n_rows
        # half of the cost of a build, which is some n_sample (K p) / 8n products with the Hessian
        K, p = objective.shape
        self.refresh_interval = max(4, len(self.picked) * K * p // (16 * objective.n_rows))
        self.is_exact_inverse = False

    def refresh(self, linearization):
        """Build the Hessian for the probabilities of the linearization, damp it, and factor it."""
        P = linearization.probabilities(self.picked)
        K, p = self.objective.shape
        H = self._data_term(P).reshape(K * p, K * p)
        diagonal = H.diagonal().reshape(K, p)
        # the damping of a sample covers its noise, that of all rows their rounding
        damping = np.finfo(P.dtype).eps if self.all_rows else 1e-3
        H[np.diag_indices_from(H)] += (self.penalty + damping * diagonal + 1e-13 * diagonal.max()).ravel()
        for j in range(p):  # constant over the classes: no curvature there, and no step, see `solve`
            H[j::p, j::p] += diagonal[:, j].max() / K
        # H is a sum of numbers up to 1: if the classes are separated, its rounding may be larger than its curvature
        self.factor, shift = cholesky(H, diagonal.ravel() + 1e-8 * diagonal.max() + 1e-14)
        self.is_exact_inverse = self.all_rows and shift == 0

    def _data_term(self, P):
        """Return sum_i weight_i (diag(p_i) - p_i p_i^T) (x) z_i z_i^T, (K, p, K, p).

        The matrix is symmetric in the classes and in the features. So only pairs k <= m of classes and pairs i <= j of
        features are computed, a quarter of the numbers, by one matrix product for a block of rows.
        """
        K, p = self.objective.shape
        (k, m), (i, j) = np.triu_indices(K), np.triu_indices(p)
        step = max(64, 2**17 // len(i))  # blocks of 1 MB
        sums, pairs, squares = np.zeros((len(k), len(i))), np.empty((len(k), step)), np.empty((len(i), step))
        for start in range(0, len(P), step):
            rows = slice(start, start + step)
            Z, Q, s = self.Z[rows].T.copy(), P[rows].T.astype(np.float64), self.weight[rows]
            Q /= Q.sum(axis=0)  # float32 rows that sum to 1 + 1e-7 would make H indefinite
            jacobians = pair_products(Q, pairs[:, : Q.shape[1]])
            jacobians *= -s
            jacobians[k == m] += s * Q
            sums += jacobians @ pair_products(Z, squares[:, : Z.shape[1]]).T
        half, H = np.empty((len(k), p, p)), np.empty((K, p, K, p))
        half[:, i, j] = half[:, j, i] = sums
        H[k, :, m] = H[m, :, k] = half
        return H

    def solve(self, G):
        V = lapack.dpotrs(self.factor, self.to_standardized(G).ravel(), lower=1)[0].reshape(G.shape)
        return self.from_standardized(V - V.mean(axis=0))


def pair_products(A, out):
    """Fill out with A_i * A_j for the rows i <= j of A (r, m), in the order of `np.triu_indices`; return it.

    out has shape (r (r + 1) / 2, m).
    """
    start = 0
    for i in range(len(A)):
        np.multiply(A[i], A[i:], out=out[start : start + len(A) - i])
        start += len(A) - i
    return out
