"""The objective over a prepared problem, and its linearisation at a point.

    F(W) = (1/S) sum_i s_i CE(Y_i, softmax(W [x_i 1])) + l2/2 ||W||_2^2 + l1 ||W||_1,    S = sum_i s_i

W has shape (K, p), p = d + 1 with the intercepts in the last column, or p = d without; intercepts are not penalised.
All methods but `penalty_l1` compute the smooth part of F, without l1.

`Objective.linearize(W)` returns a `Linearization`: the value and the gradient at W, and methods for sums over the
curvature there, such as Hessian products. Solvers, preconditioners and certificates use these and no kernel.
"""

from copy import copy

import numpy as np

from softreg import _core
from softreg._class_directions import class_gram, directional_curvature
from softreg._design_matrix import design_matrix

ENTROPY_NUMBERS = 2**16  # probabilities at a time; temporaries much larger are mapped anew by the system, which is slow


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
        # codes, targets and weights of all rows of X; the kernels take them with the numbers of the design's rows
        self.labels_of_all = codes, targets, sample_weight
        self.l2, self.l1, self.label_smoothing, self.n_classes = l2, l1, label_smoothing, n_classes
        self._set_design(design_matrix(X, fit_intercept=fit_intercept, n_threads=n_threads))

    def _set_design(self, design):
        """Set the rows of this objective to those of the design, and the attributes that follow from it."""
        self.design, self._cache = design, {}  # the cache is shared by objectives that differ in penalties alone
        self.n_rows, self.n_features, self.dtype = design.n_rows, design.n_features, design.dtype
        self.fit_intercept, self.n_threads = design.fit_intercept, design.n_threads
        self.shape = (self.n_classes, design.n_columns)
        weight = self.sample_weight
        self.total_weight = float(self.n_rows if weight is None else weight.sum(dtype=np.float64))

    def select(self, positions, weight=None):
        """Return the same objective over the rows at `positions` alone, a weighted mean; nothing of X is copied.

        A `weight`, one number for each of these rows, replaces their sample weights.
        """
        selected = copy(self)
        if weight is not None:
            of_all = np.zeros(self.design.X.shape[0], self.dtype)
            of_all[self.design.row_numbers(positions)] = weight
            selected.labels_of_all = (*self.labels_of_all[:2], of_all)
        selected._set_design(self.design.select(positions))
        return selected

    def with_penalties(self, l2, l1):
        """Return the same objective with other penalties."""
        other = copy(self)
        other.l2, other.l1 = l2, l1
        return other

    # --- rows -----------------------------------------------------------------------------------------------------

    @property
    def codes(self):
        """Class codes of the rows, (n,), or None."""
        return self.design.of_rows(self.labels_of_all[0])

    @property
    def targets(self):
        """Target distributions of the rows, (n, K), or None."""
        return self.design.of_rows(self.labels_of_all[1])

    @property
    def sample_weight(self):
        """Weights s of the rows, (n,), or None."""
        return self.design.of_rows(self.labels_of_all[2])

    def labels(self, positions):
        """Return codes, targets and weights of the rows at `positions`; what there is not is None."""
        return tuple(None if a is None else a[positions] for a in (self.codes, self.targets, self.sample_weight))

    def shares(self):
        """Return s / S of the rows, (n,)."""
        weight = self.sample_weight
        if weight is None:
            return np.full(self.n_rows, self.dtype.type(1 / self.total_weight))
        return weight / self.dtype.type(self.total_weight)

    def distributions(self, block=slice(None)):
        """Return Y, the smoothed target distributions of the rows in `block`, (m, K)."""
        if (codes := self.codes) is not None:
            codes = codes[block]
            Y = np.zeros((len(codes), self.n_classes), self.dtype)
            Y[np.arange(len(codes)), codes] = 1
        else:
            Y = self.targets[block].astype(self.dtype)
        Y *= 1 - self.label_smoothing
        Y += self.label_smoothing / self.n_classes
        return Y

    # --- arrays like W --------------------------------------------------------------------------------------------

    def empty(self):
        """Return an uninitialised array like W, in the memory order of this problem."""
        return self.design.empty(self.n_classes)

    def zeros(self):
        """Return an array like W of zeros."""
        W = self.empty()
        W[...] = 0
        return W

    def coef(self, W):
        """Return a view of W without the intercepts: the coefficients, which are penalised."""
        return self.design.coef(W)

    # --- the mathematics ------------------------------------------------------------------------------------------

    def value_and_gradient(self, W, P=None):
        """Return F(W) without l1, and its gradient; the probabilities go to P (n, K) where it is given."""
        return self.design.loss_gradient(
            W, *self.labels_of_all, self.label_smoothing, 1.0 / self.total_weight, self.l2, P
        )

    def linearize(self, W):
        """Return the linearisation at W."""
        P = np.empty((self.n_rows, self.n_classes), self.dtype)
        value, gradient = self.value_and_gradient(W, P)
        return Linearization(self, W, value, gradient, P)

    def value(self, W):
        """Return F(W) without l1, for half the work of a gradient."""
        losses = np.empty(self.n_rows, self.dtype)
        self._cross_entropy(self.design.logits(W), losses, None)
        return losses.sum(dtype=np.float64) / self.total_weight + 0.5 * self.l2 * squared_norm(self.coef(W))

    def _cross_entropy(self, Z, losses, residual):
        labels = self.codes, self.targets, self.sample_weight
        _core.cross_entropy(Z, *labels, self.label_smoothing, losses, residual, self.n_threads)

    def line_minimum(self, W, step, longest, trials=20):
        """Return the t in (0, longest] that minimises F(W + t step), without l1, to a tenth of its size.

        t is a root of dF/dt, found by bisection. Along a line the logits are Z + t dZ: once Z and dZ are known, a trial
        of t costs a softmax and no pass over X.
        """
        Z, dZ = self.design.logits(W), self.design.logits(step)
        linear, square = (self.l2 * inner(self.coef(A), self.coef(step)) for A in (W, step))
        G = np.empty_like(Z)

        def slope(t):
            self._cross_entropy(Z + self.dtype.type(t) * dZ, None, G)
            return inner(G, dZ) / self.total_weight + linear + t * square

        low, high = 0.0, longest
        for _ in range(trials):
            if high - low <= 0.1 * high:
                break
            t = 0.5 * (low + high) if low else 0.3 * high
            low, high = (t, high) if slope(t) < 0 else (low, t)
        return low or high

    def penalty_l1(self, W):
        """Return l1 ||W||_1, the term of F that has no gradient."""
        return self.l1 * float(np.abs(self.coef(W)).sum(dtype=np.float64)) if self.l1 else 0.0

    def moments(self, C):
        """Return (1/S) sum_i s_i c_i [x_i 1]^T, an array like W, for C (n, K), which is overwritten."""
        C *= self.shares()[:, None]
        return self.design.accumulate(C)

    def dual_epoch(self, W, Q, order, constant):
        """Run an epoch of dual coordinate ascent on W and Q, both in place; see `_solvers/dual_ascent.py`.

        Return (1/S) sum_i s_i H(Q_i).
        """
        scale = 1 / (self.l2 * self.total_weight)
        return self.design.dual_epoch(order, W, self.labels_of_all[2], scale, constant, Q) / self.total_weight

    def column_sizes(self):
        """Return the weighted root mean square of each feature, (d,) float64; computed once."""
        if "sizes" not in self._cache:
            squares = self.design.squares_product(self.shares()[:, None].copy())[: self.n_features, 0]
            self._cache["sizes"] = np.sqrt(squares.astype(np.float64))
        return self._cache["sizes"]

    def class_moments(self):
        """Return (1/S) sum_i s_i Y_i [x_i 1]^T, float64, (K, p); computed once, in blocks of rows."""
        if "moments" not in self._cache:
            moments, shares = np.zeros(self.shape), self.shares()
            for block in self.design.row_blocks():
                Y = self.distributions(block) * shares[block, None]
                moments += self.design.select(block).accumulate(Y)
            self._cache["moments"] = moments
        return self._cache["moments"]


class Linearization:
    """F near W: its value and gradient, and sums over its curvature, which the probabilities determine.

    Attributes
    ----------
    objective : Objective
    W : array of shape (K, p)
    value : float
        F(W) without l1.
    gradient : array like W
        The gradient of `value`.
    """

    def __init__(self, objective, W, value, gradient, P):
        self.objective, self.W, self.value, self.gradient, self._P = objective, W, value, gradient, P

    def hessian_product(self, V):
        """Return the Hessian of F at W, times V: an array like W."""
        objective = self.objective
        scale = 1.0 / objective.total_weight
        return objective.design.hessian_product(self._P, objective.labels_of_all[2], scale, objective.l2, V)

    def probabilities(self, positions):
        """Return the probabilities of the rows at `positions`, (m, K)."""
        return self._P[positions]

    def uncertainty(self):
        """Return 1 - sum_k p_k^2 of each row, (n,): zero where the class is certain."""
        return 1 - np.einsum("ij,ij->i", self._P, self._P)

    def class_gram(self):
        """Return the mean softmax Jacobian, sum_i s_i/S (diag(p_i) - p_i p_i^T), float64, (K, K)."""
        return class_gram(self._P, self._shares64())

    def curvature_diagonal(self, U):
        """Return the diagonal of the Hessian along class directions U (K, L): an array (p, L)."""
        objective = self.objective
        curvature = directional_curvature(self._P, self._shares64(), U)
        D = objective.design.squares_product(curvature.astype(self._P.dtype))
        D[: objective.n_features] += objective.l2
        return D

    def entropy(self):
        """Return the mean entropy of the probabilities, (1/S) sum_i s_i H(p_i)."""
        objective, total = self.objective, 0.0
        weight = objective.sample_weight
        for block in objective.design.row_blocks(max(ENTROPY_NUMBERS // self._P.shape[1], 1)):
            P = self._P[block]
            entropies = np.einsum("ij,ij->i", P, np.log(np.maximum(P, np.finfo(P.dtype).tiny)))
            total -= float(np.sum(entropies if weight is None else entropies * weight[block], dtype=np.float64))
        return total / objective.total_weight

    def accuracy(self):
        """Return the weighted share of the rows whose most probable class is that of their label or target."""
        codes, P = self.objective.codes, self.probabilities(slice(None))
        codes = self.objective.targets.argmax(axis=1) if codes is None else codes
        return float(np.average(P.argmax(axis=1) == codes, weights=self.objective.sample_weight))

    def _shares64(self):
        return self.objective.shares().astype(np.float64)

    # --- other models of the curvature at the same point ----------------------------------------------------------

    def select(self, positions, weight=None):
        """Return the linearisation with the curvature of the rows at `positions` alone; value and gradient stay.

        A `weight`, one number for each of these rows, replaces their sample weights.
        """
        selected = self.objective.select(positions, weight)
        return Linearization(selected, self.W, self.value, self.gradient, self._P[positions])

    def damped(self, row_damping):
        """Return the linearisation with the probabilities moved towards uniform, by the share row_damping (n,).

        A row whose class is certain has no curvature. Damped, it has some.
        """
        if not row_damping.any():
            return self
        P = self._P + row_damping[:, None] * (self._P.dtype.type(1 / self._P.shape[1]) - self._P)
        return Linearization(self.objective, self.W, self.value, self.gradient, P)

    def probability_changes(self, other):
        """Return sum_k |p_k - q_k| of each row, (n,), q the probabilities of the linearisation `other`."""
        return np.abs(other._P - self._P).sum(axis=1)


def squared_norm(A):
    """Return sum(A^2): sums over contiguous numbers in the dtype of A, and the sum of these in float64."""
    A = A.T if A.strides[0] < A.strides[1] else A
    return float(np.einsum("ij,ij->i", A, A).sum(dtype=np.float64))


def inner(A, B):
    """Return sum(A B) of two arrays in the same memory order.

    BLAS adds in blocks, so the rounding of float32 stays small.
    """
    return float(np.dot(A.ravel(order="K"), B.ravel(order="K")))
