"""A block of the Hessian for each class direction: late in a fit, solves with it take several times fewer products."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from scipy.linalg import lapack

from softreg._preconditioners.factors import mirrored
from softreg._preconditioners.standardized_sample import StandardizedSample
from softreg._systematic_sampling import systematic_sample

BLOCK_ROWS = 4096  # rows of the sample, and at least 5 a feature
BLOCKS_SIZE = 1e7  # K p^2 up to which a block a class direction is affordable: 40 MB
POOL_WORK = 2e8  # multiplications from which threads save more time than it takes to start them
DAMPING = 1e-2  # share of the diagonal that is added to it, or the noise of the sample would be inverted


class Blocks(StandardizedSample):
    """A block of the Hessian for each class direction, over rows that are sampled by their curvature.

    Early in a fit all rows have curvature in all directions. Later the classes of most rows are certain, and the
    curvature of a direction comes from a few rows. So each refresh samples anew, unless all rows are taken.
    """

    is_exact_inverse, min_products = False, 20

    def __init__(self, base, order):
        """Take the mean and the deviation of the features from `base`, a StandardizedSample; `order` (n,) is random."""
        self.objective, self.row_lengths = base.objective, base.row_lengths
        self.mean, self.deviation, self.order = base.mean, base.deviation, order
        self.size = self._size(self.objective)
        self.refresh_interval = max(8, int(self.cost(self.objective)))
        if self.size == self.objective.n_rows:
            self._take(np.arange(self.size), np.ones(self.size))
            self.Z = self.standardized(np.float32)

    @staticmethod
    def is_applicable(objective):
        """Return True if the blocks fit into memory and X is dense."""
        K, p = objective.shape
        return K * p * p <= BLOCKS_SIZE and objective.design.can_center

    @staticmethod
    def _size(objective):
        """Return the number of rows of the sample."""
        return min(objective.n_rows, max(BLOCK_ROWS, 5 * objective.shape[1]))

    @classmethod
    def cost(cls, objective):
        """Return what a build costs, in products with the Hessian: the ratio of their multiplications."""
        return cls._size(objective) * objective.shape[1] / (2 * objective.n_rows)

    def refresh(self, linearization):
        """Invert the block of each class direction; of many rows, those are sampled that have curvature."""
        if self.size < self.objective.n_rows:
            self._sample(linearization)
        self.U = self.class_directions(linearization)
        curvature = np.concatenate([c for _, c in self.curvatures(linearization, self.U)], axis=1)
        self.inverses = np.empty((len(curvature), *2 * self.Z.shape[1:]), np.float32)
        if self.objective.n_threads == 1 or curvature.size * self.Z.shape[1] ** 2 < POOL_WORK:
            self._fill(map(partial(self._inverse, self.Z), curvature))
        else:  # BLAS itself keeps to one thread, and to its bits
            with ThreadPoolExecutor(self.objective.n_threads) as pool:
                self._fill(pool.map(partial(self._inverse, self.Z), curvature))

    def _fill(self, inverses):
        """Copy inverses (p, p), one after the other, to where they stay."""
        for place, inverse in zip(self.inverses, inverses, strict=True):
            place[...] = inverse

    def _sample(self, linearization):
        """Sample rows by their curvature at the linearization."""
        uncertain = np.maximum(linearization.uncertainty(), 1e-6)
        score = self.objective.shares() * uncertain * (0.5 + 0.5 * self.row_lengths)
        self._take(*systematic_sample(score, self.order, self.size), self.size)
        self.Z = self.standardized(np.float32)

    def _inverse(self, Z, curvature):
        """Return the inverse of Z^T diag(curvature) Z, penalised and damped, (p, p) float32."""
        root = Z * np.sqrt(curvature)[:, None]
        A = root.T @ root
        i = np.diag_indices_from(A)
        A[i] += self.penalty + DAMPING * (A[i] + curvature.sum(dtype=np.float64)) + 1e-30
        factor, info = lapack.spotrf(A, lower=1, overwrite_a=1, clean=0)
        if info != 0:
            raise np.linalg.LinAlgError("a block of the preconditioner is not positive definite")
        return mirrored(lapack.spotri(factor, lower=1, overwrite_c=1)[0])

    def solve(self, G):
        V = (self.U.T @ self.to_standardized(G)).astype(np.float32)
        V = np.matmul(self.inverses, V[:, :, None])[:, :, 0]
        return self.from_standardized(self.U @ V)
