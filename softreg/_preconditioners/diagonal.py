"""The diagonal of the Hessian in each class direction: for sparse X, and where d is large."""

import numpy as np

from softreg._class_directions import class_directions
from softreg._feature_blocks import feature_blocks
from softreg._validation import OVERFLOW

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
        """Take the weighted mean squares of the columns, with the penalty, as their units."""
        self.objective, (_, p), d = objective, objective.shape, objective.n_features
        sizes, self.units, self.penalty = objective.column_sizes(), np.ones(p), np.zeros(p)
        self.penalty[:d] = objective.l2
        unseen = np.flatnonzero(sizes**2 + objective.l2 == 0)
        if len(unseen) and objective.design.has_entries(unseen):  # no features of zeros: their squares vanish
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        self.units[:d] = sizes**2 + objective.l2
        self.units[unseen] = 1.0

    def for_objective(self, objective):
        """Return a new one for an objective that differs in its penalties alone."""
        return Diagonal(objective)

    def refresh(self, linearization):
        """Compute class directions, and the factors of the diagonal, for the probabilities of the linearization."""
        U = class_directions(linearization.class_gram())
        columns, directions = linearization.curvature_sums(U)
        if not (np.isfinite(columns).all() and np.isfinite(directions).all()):
            raise FloatingPointError(OVERFLOW.format(self.objective.dtype))
        total, dtype = directions.sum(), self.objective.dtype
        directions = directions / total if total > 0 else directions
        largest = np.max((columns * directions.max() + self.penalty) / self.units)
        self.U, self.columns, self.directions = U.astype(dtype), columns.astype(dtype), directions.astype(dtype)
        self.least = (self.penalty + LEAST * largest * self.units).astype(dtype)

    def smallest_eigenvalue(self):
        """Return inf: the diagonal does not tell the smallest eigenvalue of M^-1 H."""
        return np.inf

    def diagonal(self, block):
        """Return the diagonal for the columns in `block`, (m, L)."""
        return np.multiply.outer(self.columns[block], self.directions) + self.least[block, None]

    def solve(self, G):
        V = self.objective.empty()
        for block in feature_blocks(self.objective):
            along = G.T[block] @ self.U
            along /= self.diagonal(block)
            V.T[block] = along @ self.U.T
        return V
