"""The objective over a prepared problem, and its linearisation at a point.

    F(W) = (1/S) sum_i s_i CE(Y_i, softmax(W [x_i 1])) + l2/2 ||W||_2^2 + l1 ||W||_1,    S = sum_i s_i

W has shape (K, p), p = d + 1 with the intercepts in the last column, or p = d without; intercepts are not penalised.
All methods but `penalty_l1` compute the smooth part of F, without l1.

`Objective.linearize(W)` returns a `Linearization`: the value and the gradient at W, and methods for sums over the
curvature there, such as Hessian products. Solvers, preconditioners and certificates use these and no kernel.
"""

from copy import copy
from functools import partial

import numpy as np
from scipy.special import entr

from softreg import _core
from softreg._class_directions import directional_curvature, gram_of_moments, probability_moments
from softreg._design_matrix import CACHED_NUMBERS, design_matrix
from softreg._hessian_product import ArrayProduct
from softreg._inner_products import inner, squared_norm

# The most memory for the probabilities of all rows. A fit holds up to 2.5 arrays of this size, so it stays within 1 GB.
# The limit does not follow the memory of the machine, or coefficients would depend on the machine.
STORED_BYTES = 400_000_000
BLOCK_NUMBERS = 2**21  # probabilities of a block of rows where a computation needs much less memory than for all rows
KEPT_NUMBERS = 2**22  # logits that a line search keeps between its trials, twice: 32 MB of float32
LOOK_AHEAD = 3  # trials of a line search that share a pass over X where logits are not kept


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
        rows = positions if self.design.rows is None else self.design.rows[positions]
        return tuple(None if a is None else a[rows] for a in self.labels_of_all)

    def shares(self):
        """Return s / S of the rows, (n,)."""
        weight = self.sample_weight
        if weight is None:
            return np.full(self.n_rows, self.dtype.type(1 / self.total_weight))
        return weight / self.dtype.type(self.total_weight)

    def class_shares(self):
        """Return q, the weighted mean of Y, float64, (K,); computed once."""
        if "class_shares" not in self._cache:
            shares, codes = self.shares().astype(np.float64), self.codes
            if codes is None:
                blocks = self.design.row_blocks()
                q = sum(shares[block] @ self.distributions(block).astype(np.float64) for block in blocks)
            else:
                q = np.bincount(codes, shares, self.n_classes)
                q += self.label_smoothing * (1 / self.n_classes - q)
            self._cache["class_shares"] = q / q.sum()
        return self._cache["class_shares"]

    @property
    def null_loss(self):
        """F_null = -sum_k q_k log q_k, the loss of the model that knows the class shares alone: the unit of `tol`."""
        return float(entr(self.class_shares()).sum())

    def distributions(self, block=slice(None)):
        """Return Y, the smoothed target distributions of the rows in `block`, (m, K)."""
        codes, targets, _ = self.labels(block)
        if codes is not None:
            Y = np.zeros((len(codes), self.n_classes), self.dtype)
            Y[np.arange(len(codes)), codes] = 1
        else:
            Y = targets.astype(self.dtype)
        if self.label_smoothing:
            Y *= 1 - self.label_smoothing
            Y += self.label_smoothing / self.n_classes
        return Y

    # --- arrays like W --------------------------------------------------------------------------------------------

    def empty(self):
        """Return an uninitialised array like W, in the memory order of this problem."""
        return self.design.empty(self.n_classes)

    def zeros(self):
        """Return an array like W of zeros. The system gives it memory only where it is written to."""
        return np.zeros(self.shape, self.dtype, order=self.design.order)

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
        P = np.empty((self.n_rows, self.n_classes), self.dtype) if self.stores_probabilities else None
        value, gradient = self.value_and_gradient(W, P)
        return Linearization(self, W, value, gradient, P)

    @property
    def stores_probabilities(self):
        """True if the probabilities of all rows are few enough to be kept; see `Linearization`."""
        return self.n_rows * self.n_classes * self.dtype.itemsize <= STORED_BYTES

    def probabilities(self, W, positions):
        """Return the probabilities at W of the rows at `positions`, (m, K)."""
        Z = self.design.select(positions).logits(W)
        _core.softmax(Z, Z, self.n_threads, True)
        return Z

    def blocks(self, numbers=None):
        """Yield slices of the rows, each of about `numbers` probabilities; multiples of 256 rows, as kernels take."""
        numbers = BLOCK_NUMBERS if numbers is None else numbers
        return self.design.row_blocks(max(numbers // self.n_classes // 256, 1) * 256)

    def value(self, W):
        """Return F(W) without l1, for half the work of a gradient."""
        losses = np.empty(self.n_rows, self.dtype)
        for block in self.blocks():
            self._cross_entropy(self.design.select(block).logits(W), block, losses[block], None)
        return losses.sum(dtype=np.float64) / self.total_weight + 0.5 * self.l2 * squared_norm(self.coef(W))

    def _cross_entropy(self, Z, block, losses, residual):
        """Compute losses and residual, each OUT or None, from the logits of the rows in `block`."""
        _core.cross_entropy(Z, *self.labels(block), self.label_smoothing, losses, residual, self.n_threads)

    def line_minimum(self, W, step, longest, trials=20):
        """Return the t in (0, longest] that minimises F(W + t step), without l1, to a tenth of its size.

        t is a root of dF/dt, found by bisection. Along a line the logits are Z + t dZ: once Z and dZ are known, a trial
        of t costs a softmax and no pass over X. Where Z and dZ would be too large they are computed anew, block by
        block, and a pass looks at the next `LOOK_AHEAD` trials, whichever way they turn out. The result is the same.
        """
        logits = partial(self._logits_along, W, step)
        keeps = self.n_rows * self.n_classes <= KEPT_NUMBERS
        if keeps:
            kept = list(logits())
            logits = lambda: kept  # noqa: E731
        linear, square = (self.l2 * inner(self.coef(A), self.coef(step)) for A in (W, step))
        slopes, bracket = {}, (0.0, longest)
        for _ in range(trials):
            if (t := _next_trial(*bracket)) is None:
                break
            if t not in slopes:
                ahead = sorted(_trials_ahead(bracket, 1 if keeps else LOOK_AHEAD))
                slopes.update(zip(ahead, self._slopes(logits(), ahead), strict=True))
            slope = slopes[t] / self.total_weight + linear + t * square
            bracket = (t, bracket[1]) if slope < 0 else (bracket[0], t)
        return bracket[0] or bracket[1]

    def _logits_along(self, W, step):
        """Yield blocks of rows with their logits at W, and the change of these along the step."""
        for block in self.blocks(BLOCK_NUMBERS // 4):  # of which there are up to five arrays
            design = self.design.select(block)
            yield block, design.logits(W), design.logits(step)

    def _slopes(self, logits, trials):
        """Return S times the slope of the mean loss at each trial t, from `_logits_along`: a list."""
        slopes = [0.0] * len(trials)
        for block, Z, dZ in logits:
            G = np.empty_like(Z)
            for i, t in enumerate(trials):
                np.multiply(dZ, self.dtype.type(t), out=G)
                G += Z
                self._cross_entropy(G, block, None, G)
                slopes[i] += inner(G, dZ)
        return slopes

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
            squares = self.design.squares_product(self.shares())[: self.n_features]
            self._cache["sizes"] = np.sqrt(squares.astype(np.float64))
        return self._cache["sizes"]

    def class_moments(self):
        """Return (1/S) sum_i s_i Y_i [x_i 1]^T, (K, p), made in blocks of rows.

        For dense X it is in float64, and computed once. For sparse X it is in the dtype of X and not kept: arrays like
        W may then be large, and the means of features are small, so that sums of the moments do not cancel.
        """
        if "moments" in self._cache:
            return self._cache["moments"]
        dtype = np.float64 if self.design.can_center else self.dtype
        moments, shares = None, self.shares()
        for block in self.blocks():
            sums = self.design.select(block).accumulate(self.distributions(block) * shares[block, None])
            moments = sums.astype(dtype, copy=False) if moments is None else np.add(moments, sums, out=moments)
        if self.design.can_center:
            self._cache["moments"] = moments
        return moments


class Linearization:
    """F near W: its value and gradient, and sums over its curvature, which the probabilities determine.

    The probabilities of all rows are stored if they are few enough, see `Objective.stores_probabilities`. Otherwise
    they are recomputed from X and W, block by block, each time that they are needed. A Hessian product then takes three
    passes over X in place of two.

    Parameters
    ----------
    objective : Objective
    W, value, gradient : see below
    P : array (n, K), the probabilities; None if they are recomputed
    row_damping : array (n,), the share by which probabilities are moved towards uniform; None for zeros

    Attributes
    ----------
    objective : Objective
    W : array of shape (K, p)
    value : float
        F(W) without l1.
    gradient : array like W
        The gradient of `value`.
    """

    def __init__(self, objective, W, value, gradient, P=None, row_damping=None):
        self.objective, self.W, self.value, self.gradient = objective, W, value, gradient
        self._P, self._row_damping, self._entropy = P, row_damping, None

    def probabilities(self, positions):
        """Return the probabilities of the rows at `positions`, (m, K); for a slice maybe a view, not to be changed."""
        P = self.objective.probabilities(self.W, positions) if self._P is None else self._P[positions]
        if self._row_damping is None:
            return P
        is_view = self._P is not None and np.may_share_memory(P, self._P)
        return _damp(P.copy() if is_view else P, self._row_damping[positions])

    def _blocks(self, numbers=CACHED_NUMBERS):
        """Yield blocks of rows with their probabilities; blocks are larger where these are recomputed, by kernels."""
        for block in self.objective.blocks(numbers if self._P is not None else BLOCK_NUMBERS):
            yield block, self.probabilities(block)

    # --- sums over the rows ---------------------------------------------------------------------------------------

    def hessian_product(self, V):
        """Return the Hessian of F at W, times V: an array like W."""
        objective, design = self.objective, self.objective.design
        if self._P is not None:
            return design.hessian_product(*self._product_arguments(), V)
        weight, scale = objective.labels_of_all[2], 1.0 / objective.total_weight
        product = objective.zeros()
        objective.coef(product)[...] = objective.dtype.type(objective.l2) * objective.coef(V)
        for block, P in self._blocks():
            product += design.select(block).hessian_product(P, weight, scale, 0.0, V)
        return product

    def product(self, V):
        """Return the product of `hessian_product` in the form of `_hessian_product`, for conjugate gradients."""
        if self._P is None:
            return ArrayProduct(V, self.hessian_product(V))
        return self.objective.design.product(*self._product_arguments(), V)

    def _product_arguments(self):
        """Return what products of the design take: the (damped) probabilities, the weights, their scale, and l2."""
        if self._row_damping is not None:  # the product of a model is asked for many times
            self._P, self._row_damping = self.probabilities(slice(None)), None
        objective = self.objective
        return self._P, objective.labels_of_all[2], 1.0 / objective.total_weight, objective.l2

    def max_logit_change(self, step):
        """Return the largest change of a logit over the rows with weight, if `step`, an array like W, is taken.

        Changes count less their mean under the probabilities of the row: what all logits of a row share is no change.
        """
        objective, largest = self.objective, 0.0
        weight = objective.sample_weight
        for block, P in self._blocks():
            change = np.asfortranarray(objective.design.select(block).logits(step))  # NumPy is slow along few classes
            change -= np.einsum("ij,ij->i", P, change)[:, None]
            if weight is not None:
                change[weight[block] == 0] = 0
            largest = max(largest, float(np.abs(change).max(initial=0.0)))
        return largest

    def uncertainty(self):
        """Return 1 - sum_k p_k^2 of each row, (n,): zero where the class is certain."""
        return 1 - np.concatenate([np.einsum("ij,ij->i", P, P) for _, P in self._blocks()])

    def class_gram(self):
        """Return the mean softmax Jacobian, sum_i s_i/S (diag(p_i) - p_i p_i^T), float64, (K, K); see `class_gram`."""
        shares, moments = self._shares64(), (0.0, 0.0)
        for block, P in self._blocks(BLOCK_NUMBERS):
            moments = [sum(pair) for pair in zip(moments, probability_moments(P, shares[block]), strict=True)]
        return gram_of_moments(*moments)

    def curvature_sums(self, U):
        """Return sums of the diagonal of the Hessian of the loss along class directions U (K, L), float64.

        Two arrays: for each column of W the sum over the directions, (p,); for each direction the sum over the columns,
        (L,).
        """
        objective, shares = self.objective, self._shares64()
        of_columns, of_directions = np.zeros(objective.shape[1]), np.zeros(U.shape[1])
        for block, P in self._blocks(BLOCK_NUMBERS):
            design = objective.design.select(block)
            curvature = directional_curvature(P, shares[block], U, objective.dtype)
            of_columns += design.squares_product(curvature.sum(axis=0))
            of_directions += curvature @ (design.row_squared_norms().astype(np.float64) + objective.fit_intercept)
        return of_columns, of_directions

    def entropy(self):
        """Return the mean entropy of the probabilities, (1/S) sum_i s_i H(p_i); computed once."""
        if self._entropy is None:
            self._entropy = self._mean_entropy()
        return self._entropy

    def _mean_entropy(self):
        weight, total = self.objective.sample_weight, 0.0
        for block, P in self._blocks():
            entropies = np.einsum("ij,ij->i", P, np.log(np.maximum(P, np.finfo(P.dtype).tiny)))
            total -= float(np.sum(entropies if weight is None else entropies * weight[block], dtype=np.float64))
        return total / self.objective.total_weight

    def accuracy(self):
        """Return the weighted share of the rows whose most probable class is that of their label or target."""
        is_right = []
        for block, P in self._blocks(BLOCK_NUMBERS):
            codes, targets, _ = self.objective.labels(block)
            codes = targets.argmax(axis=1) if codes is None else codes
            is_right.append(P.argmax(axis=1) == codes)
        return float(np.average(np.concatenate(is_right), weights=self.objective.sample_weight))

    def _shares64(self):
        return self.objective.shares().astype(np.float64)

    # --- other models of the curvature at the same point ----------------------------------------------------------

    def select(self, positions, weight=None):
        """Return the linearisation with the curvature of the rows at `positions` alone; value and gradient stay.

        A `weight`, one number for each of these rows, replaces their sample weights.
        """
        selected = self.objective.select(positions, weight)
        if selected.stores_probabilities:
            return Linearization(selected, self.W, self.value, self.gradient, self.probabilities(positions))
        damping = None if self._row_damping is None else self._row_damping[positions]
        return Linearization(selected, self.W, self.value, self.gradient, None, damping)

    def damped(self, row_damping):
        """Return the linearisation with the probabilities moved towards uniform, by the share row_damping (n,).

        A row whose class is certain has no curvature. Damped, it has some.
        """
        if not row_damping.any():
            return self
        return Linearization(self.objective, self.W, self.value, self.gradient, self._P, row_damping)

    def probability_changes(self, other):
        """Return sum_k |p_k - q_k| of each row, (n,), q the probabilities of the linearisation `other`."""
        return np.concatenate([np.abs(other.probabilities(block) - P).sum(axis=1) for block, P in self._blocks()])


def _damp(P, row_damping):
    """Move P (m, K) towards uniform by the share row_damping (m,), in place and in blocks of rows; return it."""
    damped, size = np.flatnonzero(row_damping), max(CACHED_NUMBERS // P.shape[1], 1)
    for start in range(0, len(damped), size):
        rows = damped[start : start + size]
        P[rows] += row_damping[rows, None] * (P.dtype.type(1 / P.shape[1]) - P[rows])
    return P


def _next_trial(low, high):
    """Return where a bisection looks next, or None if the bracket is a tenth of its upper end."""
    if high - low <= 0.1 * high:
        return None
    return 0.5 * (low + high) if low else 0.3 * high


def _trials_ahead(bracket, levels):
    """Return the set of the trials that a bisection may come to in its next `levels` steps."""
    if not levels or (t := _next_trial(*bracket)) is None:
        return set()
    low, high = bracket
    return {t} | _trials_ahead((low, t), levels - 1) | _trials_ahead((t, high), levels - 1)
