"""The diagonal of the Hessian in each class direction: for sparse X, and where d is large."""

import numpy as np

from softreg._class_directions import class_directions
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
        self.objective = objective

    def for_objective(self, objective):
        """Return a new one for an objective that differs in its penalties alone."""
        return Diagonal(objective)

    def refresh(self, linearization):
        U = class_directions(linearization.class_gram())
        D = linearization.curvature_diagonal(U)
        if not np.isfinite(D).all():
            raise FloatingPointError(OVERFLOW.format(self.objective.dtype))
        self.U, self.diagonal = U.astype(D.dtype), np.maximum(D, 1e-10 * D.max())

    def solve(self, G):
        V = ((G.T @ self.U) / self.diagonal) @ self.U.T
        return self.objective.design.arranged(V.T)
