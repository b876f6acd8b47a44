"""The objective over a prepared problem: its value, gradient, Hessian products and certificate.

    F(W) = (1/S) sum_i s_i CE(Y_i, softmax(W [x_i 1])) + l2/2 ||W||_2^2 + l1 ||W||_1,    S = sum_i s_i

W has shape (K, p), p = d + 1 with the intercepts in the last column, or p = d without; intercepts are not penalised.
Everything here but `penalty_l1` is the smooth part; the solvers meet l1 with a proximal step.

In memory W is C-ordered where X is dense and Fortran-ordered where X is sparse: a nonzero of X then meets the numbers
of all classes side by side.
"""

from copy import copy

import numpy as np
from scipy.sparse import issparse

from softreg import _core


class Objective:
    """F over the rows of X, or over some of them.

    Parameters
    ----------
    X : ndarray with unit stride along its rows, or CSR with sorted indices, of shape (n, d)
    codes : intp array of shape (n,), or None where `targets` is given
    targets : array of shape (n, K), or None
    sample_weight : array of shape (n,), or None for ones
    n_classes : int, K
    l2, l1 : float, the penalties
    label_smoothing : float
    fit_intercept : bool
    n_threads : int
    """

    def __init__(
        self, X, codes, targets, sample_weight, n_classes, *, l2, l1=0.0, label_smoothing=0.0,
        fit_intercept=True, n_threads=1,
    ):  # fmt: skip
        self.X, self.codes, self.targets, self.sample_weight = X, codes, targets, sample_weight
        self.l2, self.l1, self.label_smoothing = l2, l1, label_smoothing
        self.fit_intercept, self.n_threads = fit_intercept, n_threads
        self.n_features, self.n_classes = X.shape[1], n_classes
        self.shape = (n_classes, self.n_features + bool(fit_intercept))
        self.dtype = X.dtype
        self.sparse = issparse(X)
        self._over(None)

    def sample(self, rows, weight=None):
        """The same objective as a mean over `rows` alone, with other weights if given; nothing of X is copied."""
        part = copy(self)
        if weight is not None:
            part.sample_weight = np.zeros(self.X.shape[0], self.dtype)
            part.sample_weight[rows] = weight
        part._over(rows)
        return part

    def _over(self, rows):
        weight = self.sample_weight
        if rows is not None and weight is not None:
            weight = weight[rows]
        self.rows = rows
        self.n_rows = self.X.shape[0] if rows is None else len(rows)
        self._moments = None
        self.total_weight = float(self.n_rows if weight is None else weight.sum(dtype=np.float64))

    def _of_rows(self):
        """Codes, targets and weights of the rows; what there is not is None."""
        rows = slice(None) if self.rows is None else self.rows
        return tuple(None if a is None else a[rows] for a in (self.codes, self.targets, self.sample_weight))

    # --- arrays -------------------------------------------------------------------------------------------------

    def empty(self):
        """An array like W, in the memory order of this problem."""
        return np.empty(self.shape, self.dtype, order="F" if self.sparse else "C")

    def zeros(self):
        W = self.empty()
        W[...] = 0
        return W

    def probabilities(self):
        """Room for the probabilities of every row."""
        return np.empty((self.n_rows, self.n_classes), self.dtype)

    # --- the mathematics ----------------------------------------------------------------------------------------

    def value_and_gradient(self, W, P=None):
        """F(W) and its gradient; the probabilities go to P where it is given."""
        return self._evaluate(W, self.rows, 1.0 / self.total_weight, P)

    def batch_value_and_gradient(self, W, batch):
        """Unbiased estimates of F(W) and its gradient from a few of the rows: `batch` are positions among them."""
        rows = batch if self.rows is None else self.rows[batch]
        return self._evaluate(W, rows, self.n_rows / (self.total_weight * len(batch)), None)

    def _evaluate(self, W, rows, scale, P):
        gradient = self.empty()
        targets = (self.codes, self.targets, self.sample_weight, self.label_smoothing, scale, self.l2, P)
        if self.sparse:
            residual = np.empty((self.n_rows if rows is None else len(rows), self.n_classes), self.dtype)
            args = (rows, W.T, self.n_features, *targets, residual, gradient.T, self.n_threads)
            value = _core.csr_loss_gradient(self.X.data, self.X.indices, self.X.indptr, *args)
        else:
            value = _core.dense_loss_gradient(self.X, rows, W, *targets, gradient, self.n_threads)
        return value, gradient

    def hessian_product(self, P, V):
        """The Hessian of F at probabilities P, times V."""
        out = self.empty()
        args = (self.rows, P, self.sample_weight, 1.0 / self.total_weight, self.l2)
        if self.sparse:
            args = (*args, V.T, self.n_features, np.empty_like(P), out.T, self.n_threads)
            _core.csr_hessian_product(self.X.data, self.X.indices, self.X.indptr, *args)
        else:
            _core.dense_hessian_product(self.X, *args, V, out, self.n_threads)
        return out

    def squares_product(self, C):
        """sum_i [x_i^2 1] c_i^T over the rows, (p, L) for C (n, L)."""
        out = np.zeros((self.shape[1], C.shape[1]), self.dtype)
        for start in range(0, self.n_rows, 4096):  # by blocks: the squares of X are never held whole
            part = slice(start, start + 4096)
            X = self.X[part if self.rows is None else self.rows[part]]
            if self.sparse:
                block = np.empty_like(out)
                args = (X.data * X.data, X.indices, X.indptr, None, C[part], self.n_features, block)
                _core.csr_gradient(*args, self.n_threads)
                out += block
            else:
                out[: self.n_features] += (X * X).T @ C[part]
        if self.fit_intercept:
            out[-1] = C.sum(axis=0)
        return out

    def logits(self, W):
        """X W^T + b over the rows, (n, K)."""
        Z = np.empty((self.n_rows, self.n_classes), self.dtype)
        if self.sparse:
            args = (self.rows, W.T, self.n_features, Z, self.n_threads)
            _core.csr_logits(self.X.data, self.X.indices, self.X.indptr, *args)
        else:
            _core.dense_logits(self.X, self.rows, W, Z, self.n_threads)
        return Z

    def line_minimum(self, W, step, longest, trials=20):
        """t in (0, longest] with the least F(W + t step), but for l1, to a tenth of its size: the root of dF/dt."""
        of_rows = self._of_rows()
        Z, dZ = self.logits(W), self.logits(step)
        linear, square = (self.l2 * inner(self.coef(A), self.coef(step)) for A in (W, step))
        G = np.empty_like(Z)

        def slope(t):
            at = Z + self.dtype.type(t) * dZ
            _core.cross_entropy(at, *of_rows, self.label_smoothing, None, G, self.n_threads)
            return inner(G, dZ) / self.total_weight + linear + t * square

        low, high = 0.0, longest
        for _ in range(trials):
            if high - low <= 0.1 * high:
                break
            t = 0.5 * (low + high) if low else 0.3 * high
            low, high = (t, high) if slope(t) < 0 else (low, t)
        return low or high

    def value(self, W):
        """F(W), but for l1: half the work of a gradient."""
        losses = np.empty(self.n_rows, self.dtype)
        args = (*self._of_rows(), self.label_smoothing, losses, None, self.n_threads)
        _core.cross_entropy(self.logits(W), *args)
        return losses.sum(dtype=np.float64) / self.total_weight + 0.5 * self.l2 * squared_norm(self.coef(W))

    def dual_epoch(self, W, Q, order, constant):
        """An epoch of dual coordinate ascent on W and Q, both in place, for sparse X; see `_dual.py`.

        Return (1/S) sum_i s_i H(Q_i).
        """
        scale = 1 / (self.l2 * self.total_weight)
        args = (self.rows, order, W.T, self.n_features, self.sample_weight, scale, constant, Q)
        return _core.csr_dual_epoch(self.X.data, self.X.indices, self.X.indptr, *args) / self.total_weight

    def penalty_l1(self, W):
        """l1 ||W||_1, the part that has no gradient."""
        return self.l1 * float(np.abs(self.coef(W)).sum(dtype=np.float64)) if self.l1 else 0.0

    def lower_bound(self, W, P, gradient):
        """A proven lower bound on min F, from the probabilities and the gradient at W; -inf without any penalty.

        At the optimum of a smooth objective it is min F itself. F(W) does not enter: where that is large, rounding
        would eat what is left of a difference. The gradient of the penalty has to be taken off, and its rounding is
        added to what remains, which lowers the bound.
        """
        if not self.l2 and not self.l1:
            return -np.inf
        entropy, G = self.dual_point(W, P, gradient)
        rounding = float(np.finfo(self.dtype).eps) * self.l2 * np.abs(self.coef(W).astype(np.float64))
        self.coef(G)[...] += np.copysign(rounding, self.coef(G))
        return self.dual_bound(entropy, G)

    def dual_point(self, W, P, gradient):
        """The mean entropy of the probabilities at W, and G of them, float64: what `dual_bound` is made from."""
        G = np.array(gradient, np.float64)
        self.coef(G)[...] -= self.l2 * self.coef(W).astype(np.float64)
        return self.mean_entropy(P), G

    def mean_entropy(self, P):
        """(1/S) sum_i s_i H(P_i)."""
        weight, total = self._of_rows()[2], 0.0
        for start in range(0, self.n_rows, 4096):  # by blocks: they stay in the cache
            part = slice(start, start + 4096)
            Q = P[part]
            entropies = np.einsum("ij,ij->i", Q, np.log(np.maximum(Q, np.finfo(Q.dtype).tiny)))
            total -= float(np.sum(entropies if weight is None else entropies * weight[part], dtype=np.float64))
        return total / self.total_weight

    def dual_bound(self, entropy, G):
        """A proven lower bound on min F, from distributions Q by their mean entropy (1/S) sum_i s_i H(Q_i) and G(Q).

        With the gradient part G(Q) = (1/S) sum_i s_i (Q_i - Y_i) [x_i 1]^T, of shape (K, p) and overwritten, and any
        distributions Q whose class totals equal those of Y (only then is an unpenalised intercept optimal),

            min F >= D(Q) = (1/S) sum_i s_i H(Q_i) - 1/(2 l2) sum max(|G(Q)| - l1, 0)^2,     intercepts left out.

        Q meets the condition only where the intercept's column g of G is zero, so instead of Q itself
        u ((1 - t) Q + t r) + (1 - u) Y: a share t of the constant distribution r = y - g (1 - t) / t, the smallest
        that keeps r >= 0, repairs the totals y; and u <= 1 scales G down to what is best (l2 > 0) or allowed (l2 = 0).
        H is concave, so that has at least the entropy u ((1 - t) H(Q) + t H(r)).
        """
        if self.fit_intercept:
            g = G[:, -1] - G[:, -1].mean()  # they sum to zero but for rounding
            M = self._class_moments()
            totals = M[:, -1]
            with np.errstate(divide="ignore", invalid="ignore"):
                t = np.max(np.where(g > 0, g / (totals + g), 0.0), initial=0.0)
            if t > 0:
                r = np.maximum(totals - g * ((1 - t) / t), 0)
                r /= r.sum()
                entropy = (1 - t) * entropy - t * np.sum(r * np.log(np.where(r > 0, r, 1)))
                G *= 1 - t
                G += t * (r[:, None] * M.sum(axis=0) - M)
        G, entropy = self.coef(G), max(entropy, 0.0)
        if self.l2:
            charge = squared_norm(np.maximum(np.abs(G) - self.l1, 0)) / (2 * self.l2)
            u = min(1.0, entropy / (2 * charge)) if charge > 0 else 1.0
            return u * entropy - u * u * charge
        largest = np.abs(G).max(initial=0.0)
        return entropy * min(1.0, self.l1 / largest) if largest > 0 else entropy

    def _class_moments(self):
        """(1/S) sum_i s_i Y_i [x_i 1]^T, float64; computed once."""
        if self._moments is None:
            self._moments = self.moments(self.distributions()).astype(np.float64)
        return self._moments

    def distributions(self):
        """Y, the target distributions of the rows, (n, K)."""
        codes, targets, _ = self._of_rows()
        if targets is None:
            Y = np.zeros((self.n_rows, self.n_classes), self.dtype)
            Y[np.arange(self.n_rows), codes] = 1
        else:
            Y = targets.astype(self.dtype)
        Y *= 1 - self.label_smoothing
        Y += self.label_smoothing / self.n_classes
        return Y

    def shares(self):
        """s / S of the rows, (n,)."""
        weight = self._of_rows()[2]
        if weight is None:
            return np.full(self.n_rows, self.dtype.type(1 / self.total_weight))
        return weight / self.dtype.type(self.total_weight)

    def moments(self, C):
        """(1/S) sum_i s_i c_i [x_i 1]^T for C (n, K), which is overwritten; an array like W."""
        C *= self.shares()[:, None]
        out = self.empty()
        if self.sparse:
            args = (self.rows, C, self.n_features, out.T, self.n_threads)
            _core.csr_gradient(self.X.data, self.X.indices, self.X.indptr, *args)
        else:
            _core.dense_gradient(self.X, self.rows, C, out, self.n_threads)
        return out

    def coef(self, W):
        """The part of W that is penalised."""
        return W[:, : self.n_features]


def squared_norm(A):
    """sum(A^2), in float64 where it matters: over the sums of what lies side by side."""
    A = A.T if A.strides[0] < A.strides[1] else A
    return float(np.einsum("ij,ij->i", A, A).sum(dtype=np.float64))


def inner(A, B):
    """sum(A B) of two arrays in the same memory order; BLAS adds in blocks, which keeps float32 exact enough."""
    return float(np.dot(A.ravel(order="K"), B.ravel(order="K")))
