"""Newton's steps for planned fits with few coefficients: one step an epoch, exact for the rows that bend the loss most.

A pass at fixed coefficients V0 replaces the loss of most rows by its second Taylor polynomial. The few rows far from
the others, those with large residuals first, are kept, and enter the model with their loss itself:

    M(V) = g . (V - V0) + c/2 (V - V0) . H (V - V0) + sum of the losses of kept rows + penalty

These rows decide how far a step may go; on data with heavy tails or tiny classes Newton's method alone needs many
passes for them. M is minimised without another look at the rest. If the next pass finds that F has grown, V0 is taken
again with a larger c.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from softreg import _core

KEPT = 1024  # rows with their loss itself
RESIDUAL_FLOOR = 0.05  # added to the norm of a residual: a far row that is right today may be wrong after the step
INNER_STEPS, INNER_TOL = 15, 1e-5  # of the minimum of M; the tolerance is of the decrease, relative to F
SHORTEST = 1e-12  # rate of an inner step: rows that are wrong and certain have a gradient, but no curvature
CAUTION = 8.0  # factor of c where F has grown
RIDGE = 1e-9  # on H, for directions without curvature; features have variance 1


class LocalModel:
    """The model of F at V0 (K, p), made from blocks of rows and then minimised.

    Parameters
    ----------
    V : ndarray of shape (K, p)
    penalty : ndarray of shape (p,)
        l2 of each column.
    label_smoothing : float
    """

    def __init__(self, V, penalty, label_smoothing):
        self.V, self.penalty, self.label_smoothing = V.copy(), penalty, label_smoothing
        self.gradient, self.hessian = np.zeros(V.size), np.zeros((V.size, V.size))
        self.loss, self.weight = 0.0, 0.0
        self.rows, self.scores = [], []  # of kept rows: pairs (Z, targets, weight), and what ranks them

    def add(self, Z, targets, weight, leverage):
        """Add rows Z (b, p) with targets (b, K), weights (b,) and leverages (b,), the norms of z in the metric."""
        losses, _, G = self._residual(self.V, Z, targets, weight)
        self.loss += losses
        self.weight += weight.sum()
        self.rows.append((Z, targets, weight))
        self.scores.append(leverage * (np.linalg.norm(G, axis=1) + RESIDUAL_FLOOR))
        if sum(map(len, self.scores)) >= 2 * KEPT:
            self._select()

    def _select(self):
        """Keep the rows of the highest scores; the others go into the Taylor polynomial."""
        scores = np.concatenate(self.scores)
        rows = tuple(map(np.concatenate, zip(*self.rows, strict=True)))
        order = np.argsort(-scores, kind="stable")
        kept, rest = np.sort(order[:KEPT]), np.sort(order[KEPT:])
        self.rows, self.scores = [tuple(a[kept] for a in rows)], [scores[kept]]
        if len(rest):
            gradient, hessian = self._derivatives(self.V, *(a[rest] for a in rows))
            self.gradient += gradient
            self.hessian += hessian

    def value(self):
        """Return F at V0."""
        return self.loss / self.weight + self._penalty_of(self.V)

    def minimize(self, caution):
        """Return V (K, p), about where M is least, with c = `caution`."""
        self._select()
        rows, V, S = self.rows[0], self.V, self.weight
        penalty = np.tile(self.penalty, len(V))
        value, tol = self._model(V, rows, caution), INNER_TOL * self.value()
        for _ in range(INNER_STEPS):
            gradient, hessian = self._derivatives(V, *rows)
            curvature = (caution * self.hessian + hessian) / S
            gradient = (self.gradient + caution * self.hessian @ (V - self.V).ravel() + gradient) / S
            gradient += penalty * V.ravel()
            curvature[np.diag_indices_from(curvature)] += penalty + RIDGE
            step = cho_solve(cho_factor(curvature, lower=True), gradient)
            slope, rate, step = gradient @ step, 1.0, step.reshape(V.shape)
            while not (lower := self._model(V - rate * step, rows, caution)) <= value - 0.1 * rate * slope:
                rate /= 2
                if rate < SHORTEST:
                    return V
            V, value = V - rate * step, lower
            if slope <= tol:
                break
        return V

    def _model(self, V, rows, caution):
        change = (V - self.V).ravel()
        rest = change @ (self.gradient + 0.5 * caution * (self.hessian @ change))
        return (rest + self._residual(V, *rows)[0]) / self.weight + self._penalty_of(V)

    def _penalty_of(self, V):
        return 0.5 * np.sum(self.penalty * V**2)

    def _residual(self, V, Z, targets, weight):
        """Return the sum of the losses, the probabilities and the weighted residual of rows at V."""
        logits, losses = Z @ V.T, np.empty(len(Z))
        P, G = np.empty_like(logits), np.empty_like(logits)
        _core.softmax(logits, P)
        _core.cross_entropy(logits, None, targets, weight, self.label_smoothing, losses, G)
        return losses.sum(), P, G

    def _derivatives(self, V, Z, targets, weight):
        """Return the gradient (K p,) and the Hessian (K p, K p) of the sum of the losses at V."""
        _, P, G = self._residual(V, Z, targets, weight)
        return (G.T @ Z).ravel(), hessian(Z, P, weight)


def hessian(Z, P, weight):
    """Return sum_i s_i (diag(p_i) - p_i p_i^T) x z_i z_i^T, (K p, K p), for Z (n, p), P (n, K) and weights or None."""
    (n, p), K = Z.shape, P.shape[1]
    Zs = Z if weight is None else Z * np.sqrt(weight)[:, None]
    outer = (P[:, :, None] * Zs[:, None, :]).reshape(n, K * p)
    H = -(outer.T @ outer)
    for k in range(K):
        H[k * p : (k + 1) * p, k * p : (k + 1) * p] += (Zs * P[:, k, None]).T @ Zs
    return H
