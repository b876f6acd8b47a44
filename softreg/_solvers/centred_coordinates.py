"""Coordinates in which proximal Newton works: weights of centred features, in float64."""

from functools import cached_property

import numpy as np
from scipy.special import entr, softmax

from softreg._duality import dual_point_along, move_along
from softreg._objective import Linearization
from softreg._validation import OVERFLOW

BLOCK_NUMBERS = 2**18  # numbers of scratch memory where rows are taken in blocks: 2 MB


class CentredCoordinates:
    """The solver's coordinates V (L, p): weights of centred features, float64, which the penalties do not see.

    Intercepts then hardly depend on the weights. Sparse features are not centred. Two classes have opposite weights at
    the optimum: V is the row of the second class alone, and stands for two.

    Attributes
    ----------
    n_rows, n_classes, n_features : int, L, K and d
    copies : int, rows of W that a row of V stands for
    shares : array (n,), weights of the rows that sum to one, float64
    strength : float, the l1 of models
    l1, l2 : arrays (p,), the penalties of each column of V in models
    curvature : array (L, p), the diagonal of the loss's Hessian at the null model
    null_intercepts : array (L, 1) or (L, 0), of the null model
    """

    def __init__(self, objective, mean=None):
        """Take another mean of the features than that of the rows, if it is given, and no curvature."""
        self.objective = objective
        self.n_classes, p = objective.shape
        self.n_features = d = objective.n_features
        self.is_binary = self.n_classes == 2
        self.copies, self.n_rows = (2, 1) if self.is_binary else (1, self.n_classes)
        self.shares = self._row_shares()
        self.l2 = np.where(np.arange(p) < d, objective.l2, 0.0)
        self.set_strength(objective.l1)
        if mean is not None:
            self.mean = mean
            return
        q = np.clip(objective.class_shares(), 1e-3 / objective.n_rows, 1 - 1e-3 / objective.n_rows)
        b = np.log(q) - np.log(q).mean()
        self.null_intercepts = self._rows(b[:, None])[:, : p - d]
        self.mean, second = self._moments()
        second = np.append(np.where(second > 0, second, 1.0), 1.0)[:p]
        self.curvature = self.copies * self._rows(q * (1 - q))[:, None] * second

    def set_strength(self, strength):
        """Set the l1 of models, which may be another than that of the objective."""
        self.strength = strength
        self.l1 = np.where(np.arange(self.objective.shape[1]) < self.n_features, strength, 0.0)

    def _rows(self, A):
        """Return the part of an array with a row for each class that V has."""
        return A[1:] if self.is_binary else A

    def _of_classes(self, V):
        """Return V with a row for each class."""
        return np.vstack([-V, V]) if self.is_binary else V

    def _moments(self):
        """Return the means of the features, or zeros, and their mean squares around these."""
        objective, design, d = self.objective, self.objective.design, self.n_features
        mean = np.zeros(d)
        sizes = objective.column_sizes()
        vanished = np.flatnonzero(sizes == 0)
        if not np.isfinite(sizes).all() or (len(vanished) and design.has_entries(vanished)):
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        if not design.can_center:
            return mean, sizes.astype(np.float64) ** 2
        if objective.fit_intercept:
            mean = self.means()
        return mean, self.mean_squares(mean)

    def _row_shares(self):
        return self.objective.shares().astype(np.float64)

    def means(self):
        """Return the weighted means of the features, (d,)."""
        return sum(self.shares[block] @ X for block, X in self._float64_blocks())

    def mean_squares(self, mean):
        """Return the weighted mean squares of the features around `mean`, (d,)."""
        return sum(self.shares[block] @ (X - mean) ** 2 for block, X in self._float64_blocks())

    def _float64_blocks(self):
        design = self.objective.design
        for block in design.row_blocks(max(64, BLOCK_NUMBERS // self.n_features)):
            yield block, design.float64_rows(block)

    # --- V, W and gradients ---------------------------------------------------------------------------------------

    def from_weights(self, W):
        """Return V, from weights and intercepts W (K, p)."""
        V = W.astype(np.float64)
        V = 0.5 * (V[1:] - V[:1]) if self.is_binary else V
        V[:, self.n_features :] += (V[:, : self.n_features] @ self.mean)[:, None]
        return V

    def to_weights(self, V):
        """Return W (K, p) of V, in the objective's dtype and memory order."""
        W = self.objective.empty()
        self._rows(W)[...] = V
        self._rows(W)[:, self.n_features :] -= (V[:, : self.n_features] @ self.mean)[:, None]
        if self.is_binary:
            W[0] = -W[1]
        return W

    def gradient(self, G):
        """Return the gradient in V, from that of the loss in W, (K, p) float64."""
        g = self._rows(G - G.sum(axis=0) / len(G))  # the sum over the classes is zero but for rounding
        if self.objective.fit_intercept:
            g[:, : self.n_features] -= g[:, self.n_features :] * self.mean
        return g

    def dual_point(self, V, step=None, long=()):
        """Return what `_duality.dual_point` does, at the probabilities that V has in float64.

        Any distributions make a bound: these are as near to the optimum as V is, whatever W is rounded to. With a step
        (L, p), they are the probabilities of V and their first-order change along it, zero where that is negative. G
        is then the gradient of the quadratic model at V + step. A step that minimises the model meets the optimality
        conditions there, so the bound is as sharp as the model. Sums of the features `long` are in long double.
        """
        objective, d = self.objective, self.n_features
        design = objective.design
        entropy, G = 0.0, np.zeros(objective.shape, order=design.order)
        long_sums = np.zeros((self.n_classes, len(long)), np.longdouble)
        full = self._of_classes(V)
        b = full[:, d:].sum(axis=1)
        for block in design.row_blocks(max(64, BLOCK_NUMBERS // d) if design.can_center else 2**16):
            X = design.copy_rows(block).astype(np.float64)
            if design.can_center:
                X -= self.mean
            P = softmax(X @ full[:, :d].T + b, axis=1)
            if step is not None:
                D = self._of_classes(step)
                move_along(P, X @ D[:, :d].T + D[:, d:].sum(axis=1))
            entropy += self.shares[block] @ entr(P).sum(axis=1)
            P -= objective.distributions(block)
            P *= self.shares[block, None]
            G[:, :d] += (X.T @ P).T
            G[:, d:] += P.sum(axis=0)[:, None]
            long_sums += design.select(block).accumulate_long(P, long)
        G[:, :d] += G[:, d:].sum(axis=1, keepdims=True) * self.mean
        G[:, long] = long_sums
        return entropy, G

    def dual_point_along(self, linearization, step, long=()):
        """Return what `_duality.dual_point_along` does, for a step (L, p) or None."""
        return dual_point_along(linearization, None if step is None else self.to_weights(step), long)

    def moved(self, linearization, step):
        """Return the linearisation with the probabilities moved along a step (L, p), as `dual_point_along` does it."""
        S, P = self.to_weights(step), linearization.probabilities(slice(None)).copy()
        move_along(P, self.objective.design.logits(S))
        return Linearization(self.objective, linearization.W + S, linearization.value, linearization.gradient, P)

    # --- rows and columns, for models -----------------------------------------------------------------------------

    def row_blocks(self, positions, size):
        """Yield the rows in blocks, all or those at `positions`, and the share of each row."""
        if positions is None:
            for block in self.objective.design.row_blocks(size):
                yield block, self.shares[block]
        else:
            total = self.shares[positions].sum()
            for start in range(0, len(positions), size):
                block = positions[start : start + size]
                yield block, self.shares[block] / total

    def probabilities(self, linearization, rows):
        """Return the probabilities of the classes that V has, (L, m), float64."""
        return np.ascontiguousarray(self._rows(_normalized(linearization.probabilities(rows)).T))

    def centred_columns(self, rows, features):
        """Return the centred features, and ones for the intercept, of the rows, (len(features), m)."""
        columns = features[features < self.n_features]
        X = self.objective.design.copy_rows(rows)
        Z = np.ones((len(features), X.shape[0]))
        if self.objective.design.can_center:
            Z[: len(columns)] = (X if len(columns) == X.shape[1] else X[:, columns]).T
            Z[: len(columns)] -= self.mean[columns, None]
        else:
            Z[: len(columns)] = X[:, columns].toarray().T
        return Z

    @cached_property
    def columns(self):
        """The rows of a sparse X as CSC."""
        return self.objective.design.copy_rows(slice(None)).tocsc()

    def column_product(self, features, weights):
        """Return [X 1] restricted to the features, times weights: (n,)."""
        is_column = features < self.n_features
        product = self.columns[:, features[is_column]] @ weights[is_column]
        return product + weights[~is_column].sum()


def _normalized(P):
    P = P.astype(np.float64)
    P /= P.sum(axis=1, keepdims=True)
    return P
