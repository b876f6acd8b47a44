"""The diagonal of the Hessian in each class direction: for sparse X, and where d is large."""

import numpy as np

from softreg._class_directions import class_directions
from softreg._feature_blocks import feature_blocks
from softreg._validation import OVERFLOW


class Diagonal:
    """The diagonal of the Hessian over all rows, for each class direction.

    Attributes
    ----------
    U : class directions, (K, L)
    diagonal : of the Hessian along them, (p, L)
    """

    refresh_interval, is_exact_inverse = 1, False

    def __init__(self, objective):
        """Take the weighted mean squares of the columns, with the penalty, as their units."""
        self.objective = objective
        sizes, self.units = objective.column_sizes(), np.ones(objective.shape[1])
        unseen = np.flatnonzero(sizes**2 + objective.l2 == 0)
        if len(unseen) and objective.design.has_entries(unseen):  # no features of zeros: their squares vanish
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        self.units[: objective.n_features] = sizes**2 + objective.l2
        self.units[unseen] = 1.0

    def for_objective(self, objective):
        """Return a new one for an objective that differs in its penalties alone."""
        return Diagonal(objective)

    def refresh(self, linearization):
        self.diagonal = None  # it is as large as W
        U = class_directions(linearization.class_gram())
        D = linearization.curvature_diagonal(U)
        if not np.isfinite(D).all():
            raise FloatingPointError(OVERFLOW.format(self.objective.dtype))
        least = 1e-10 * np.max(D.max(axis=1) / self.units)  # of the curvature in units of the column
        self.U, self.diagonal = U.astype(D.dtype), np.maximum(D, (least * self.units).astype(D.dtype)[:, None], out=D)

    def solve(self, G):
        V = self.objective.empty()
        for block in feature_blocks(self.objective):
            along = G.T[block] @ self.U
            along /= self.diagonal[block]
            V.T[block] = along @ self.U.T
        return V
