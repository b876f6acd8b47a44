"""The correlation of the features, scaled by the diagonal of the Hessian in each class direction."""

import numpy as np
from scipy.linalg import lapack

from softreg._preconditioners.factors import cholesky, mirrored
from softreg._preconditioners.standardized_sample import StandardizedSample

SAMPLE_ROWS = 8192  # 25 MB of float32 for d = 784; with shrinkage, these rows suffice for a thousand features
SHRINKAGE = 0.05  # towards uncorrelated features of average curvature, or the noise of the sample would be inverted
CLASSES_COST = 300  # features with which a product costs what a refresh does for the classes alone


class ScaledCorrelation(StandardizedSample):
    """M = D^(1/2) C D^(1/2) for each class direction: D the diagonal of the Hessian, C the correlation of the features.

    C is inverted once: the correlation of the features does not change during a fit. D is computed at each refresh,
    from the probabilities.
    """

    is_exact_inverse, min_products = False, 20

    def __init__(self, objective, order):
        super().__init__(objective, order, SAMPLE_ROWS)
        # what a refresh costs, in products with the Hessian
        self.refresh_interval = len(self.picked) / objective.n_rows * (1 + CLASSES_COST / objective.shape[1])
        self.Z = self.standardized(np.float32)  # precise enough for a preconditioner
        root = self.Z * np.sqrt(self.weight).astype(np.float32)[:, None]
        C = root.T @ root
        size = np.sqrt(np.maximum(C.diagonal(), 1e-12))
        C = (1 - SHRINKAGE) * C.astype(np.float64) / np.outer(size, size)
        C[np.diag_indices_from(C)] = 1.0 + 1e-4
        self.inverse = mirrored(lapack.dpotri(cholesky(C)[0], lower=1, overwrite_c=1)[0]).astype(np.float32)

    def refresh(self, linearization):
        """Compute class directions and the diagonal of the Hessian for the probabilities of the linearization."""
        self.U = self.class_directions(linearization)
        D, total = np.zeros((self.U.shape[1], self.Z.shape[1]), np.float32), 0.0
        for rows, curvature in self.curvatures(linearization, self.U):
            D += curvature @ (self.Z[rows] * self.Z[rows])
            total += curvature.sum(axis=1, dtype=np.float64)
        D += SHRINKAGE * total[:, None]
        self.scale = 1 / np.sqrt(D + self.penalty + 1e-10 * D.max())

    def solve(self, G):
        V = (self.U.T @ self.to_standardized(G) * self.scale).astype(np.float32) @ self.inverse
        return self.from_standardized(self.U @ (V * self.scale))
