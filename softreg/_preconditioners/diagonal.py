"""The diagonal of the Hessian in each class direction: for sparse X, and where d is large."""

import numpy as np

from softreg._class_directions import class_directions
from softreg._feature_blocks import FeatureBlocks, feature_blocks
from softreg._validation import OVERFLOW

KEPT_NUMBERS = 2**23  # numbers of a solve that are stored rather than computed twice: 32 MB of float32
LEAST = 1e-10  # of the largest curvature, in units of the column: the least that is taken for curvature


class Diagonal:
    """The diagonal of the Hessian over all rows, for each class direction.

    The curvature of the loss is taken as the product of a number for each column and one for each direction. Its sums
    over the columns and over the directions are exact. All K p numbers would be as large as W, and save no products.

    Attributes
    ----------
    U : class directions, (K, L)
    columns, directions : the two factors of the curvature of the loss, (p,) and (L,)
    least : what is added to their product: the penalty, and a little curvature where there is none, (p,)
    """

    refresh_interval, is_exact_inverse, min_products = 1, False, 20

    def __init__(self, objective):
        self.objective = objective
        unseen = np.flatnonzero(objective.column_sizes().astype(np.float64) ** 2 + objective.l2 == 0)
        if len(unseen) and objective.design.has_entries(unseen):  # no features of zeros: their squares vanish
            raise FloatingPointError(OVERFLOW.format(objective.dtype))

    def penalty(self, block):
        """Return the diagonal of the Hessian of the penalty in the columns in `block`, all of features or of none."""
        return self.objective.l2 if block.start < self.objective.n_features else 0.0

    def units(self, block):
        """Return the weighted mean squares of the columns in `block`, with the penalty; 1 where both are zero."""
        if block.start >= self.objective.n_features:
            return 1.0
        squares = self.objective.column_sizes()[block].astype(np.float64) ** 2 + self.objective.l2
        return np.where(squares == 0, 1.0, squares)

    def for_objective(self, objective):
        """Return a new one for an objective that differs in its penalties alone."""
        return Diagonal(objective)

    def refresh(self, linearization):
        """Compute class directions, and the factors of the diagonal, for the probabilities of the linearization."""
        U = class_directions(linearization.class_gram())
        columns, directions = linearization.curvature_sums(U)
        if not (np.isfinite(columns).all() and np.isfinite(directions).all()):
            raise FloatingPointError(OVERFLOW.format(self.objective.dtype))
        total, dtype, blocks = directions.sum(), self.objective.dtype, list(feature_blocks(self.objective))
        directions = directions / total if total > 0 else directions
        sizes = ((columns[b] * directions.max() + self.penalty(b)) / self.units(b) for b in blocks)
        least = LEAST * max(np.max(size) for size in sizes)
        self.U, self.columns, self.directions = U.astype(dtype), columns.astype(dtype), directions.astype(dtype)
        self.least = np.empty_like(self.columns)
        for block in blocks:
            self.least[block] = self.penalty(block) + least * self.units(block)

    def smallest_eigenvalue(self):
        """Return inf: the diagonal does not tell the smallest eigenvalue of M^-1 H."""
        return np.inf

    def diagonal(self, block):
        """Return the diagonal for the columns in `block`, (m, L)."""
        return np.multiply.outer(self.columns[block], self.directions) + self.least[block, None]

    def solve(self, G):
        V = self.objective.empty()
        for block in feature_blocks(self.objective):
            V.T[block] = self._solve_block(G, block)
        return V

    def _solve_block(self, G, block):
        """Return what `solve` does in the columns in `block`, (m, K)."""
        along = G.T[block] @ self.U
        along /= self.diagonal(block)
        return along @ self.U.T

    def conjugate(self, D, R, square):
        """Do what `StandardizedSample.conjugate` does. Of large arrays, M^-1 R is computed twice and not stored."""
        kept = self.solve(R) if R.size <= KEPT_NUMBERS else None
        blocks = FeatureBlocks(lambda block: self._solve_block(R, block) if kept is None else kept.T[block])
        new = sum(float(np.vdot(R.T[block], blocks[:, block])) for block in feature_blocks(self.objective))
        D *= D.dtype.type(new / square)
        for block in feature_blocks(self.objective):
            D.T[block] -= blocks[:, block]
        return new
