"""The Hessian of a sample of the rows, factored: for problems with few parameters."""

import numpy as np
from scipy.linalg import lapack

from softreg._preconditioners.factors import cholesky
from softreg._preconditioners.standardized_sample import StandardizedSample

EXACT_SIZE = 500  # K p up to which the Hessian is factored; a build costs K p / 8 products or more
EXACT_WORK = 1e8  # n (K p)^2 up to which the Hessian is built from all rows; above, from 4 rows a parameter
POWERS = 4  # steps of the power method; eight brought no more
FEW = 100  # K p up to which that may be ten times as much: a build costs the fewer products, the smaller K p is


class Exact(StandardizedSample):
    """The Hessian of a sample of `size` rows, factored by Cholesky.

    If the sample is all rows, solves are Newton steps.

    Attributes
    ----------
    factor : Cholesky factor of the Hessian in standardised coordinates
    damping : what was added to the diagonal of the Hessian before, (K, p) or (1, p)
    at_zero : True if that is the Hessian at W = 0, a block (p, p) that stands for every class
    is_exact_inverse : True if the sample is all rows, and the Hessian is not singular up to rounding
    """

    min_products = 5  # all eigenvalues of M^-1 H are near 1, so few products find those that are not

    def __init__(self, objective, order, size):
        super().__init__(objective, order, size)
        self.positions = slice(None) if self.all_rows else self.picked
        # what a build costs, in products with the Hessian: see EXACT_SIZE
        self.refresh_interval = max(4, len(self.picked) * np.prod(objective.shape) // (8 * objective.n_rows))
        self.is_exact_inverse = False

    @staticmethod
    def takes_all_rows(objective):
        """Return True if the Hessian of all rows is affordable."""
        size = np.prod(objective.shape)
        most = EXACT_WORK if size > FEW else 10 * EXACT_WORK
        return size <= EXACT_SIZE and objective.n_rows * size**2 <= most

    @classmethod
    def of_all_rows(cls, objective):
        """Return the preconditioner that takes all rows."""
        return cls(objective, None, objective.n_rows)

    def refresh(self, linearization):
        """Build the Hessian for the probabilities of the linearization, damp it, and factor it."""
        self.at_zero = not linearization.W.any()
        if self.at_zero:
            H = self._hessian_at_zero()
        else:
            H = self._hessian(linearization.probabilities(self.positions))
        diagonal = np.einsum("kjkj->kj", H).copy()
        largest = diagonal.max()
        # the damping of a sample covers its noise, that of all rows their rounding
        damping = np.finfo(self.objective.dtype).eps if self.all_rows else 1e-3
        self.damping = damping * diagonal + 1e-13 * largest
        np.einsum("kjkj->kj", H)[...] += self.penalty + self.damping
        if len(H) > 1:  # constant over the classes: no curvature there, and no step, see `solve`
            np.einsum("kjmj->jkm", H)[...] += (diagonal.max(axis=0) / len(H))[:, None, None]
        # H is a sum of numbers up to 1: if the classes are separated, its rounding may be larger than its curvature
        scale = diagonal.ravel() + 1e-8 * largest + 1e-14
        self.factor, shift = cholesky(H.reshape(scale.size, scale.size), scale)
        self.is_exact_inverse = self.all_rows and shift == 0

    def _hessian(self, P):
        """Return the Hessian of the loss for probabilities P (m, K): (K, p, K, p), or (1, p, 1, p) for two classes."""
        design, weight = self.objective.design, self.weight
        H = design.standardized_hessian(self.positions, P, weight, self.mean, self.deviation)
        return 2.0 * H[:1, :, :1] if len(H) == 2 else H  # along (1, -1) / sqrt(2), the direction of `solve`

    def _hessian_at_zero(self):
        """Return the Hessian of the loss at W = 0, where it is the same for each class, (1, p, 1, p).

        All probabilities are 1/K there. The Hessian is that of two classes times 2/K.
        """
        P = np.full((len(self.picked), 2), 0.5, self.objective.dtype)
        return self._hessian(P) * (2 / self.objective.n_classes)

    def smallest_eigenvalue(self):
        """Return an estimate of the smallest eigenvalue of M^-1 H.

        Along features that are nearly collinear, most of M may be damping, and little of it H. So it is 1 less the
        largest eigenvalue of M^-1 times the damping, by the power method: that is near 1, or all of them are small.
        """
        damping, largest = self.damping.ravel(), 0.0
        v = np.random.RandomState(0).standard_normal(damping.size)
        for _ in range(POWERS):
            damped = damping * v
            w = lapack.dpotrs(self.factor, damped, lower=1)[0]
            largest, v = (damped @ w) / (damped @ v), w / np.abs(w).max()
        return max(1.0 - largest, np.finfo(np.float64).eps)

    def solve(self, G):
        """Return the step for the gradient G (K, p); without a part that all classes share, which has no curvature."""
        G = self.to_standardized(G)
        if self.at_zero:
            V = lapack.dpotrs(self.factor, (G - G.mean(axis=0)).T, lower=1)[0].T
            return self.from_standardized(V)
        if len(G) == 2:  # both classes change by the same amount, in opposite directions
            v = lapack.dpotrs(self.factor, 0.5 * (G[0] - G[1]), lower=1)[0]
            return self.from_standardized(np.stack([v, -v]))
        V = lapack.dpotrs(self.factor, G.ravel(), lower=1)[0].reshape(G.shape)
        return self.from_standardized(V - V.sum(axis=0) / len(V))
