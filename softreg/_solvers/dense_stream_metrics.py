"""Metrics of the minibatch steps: what is known of the curvature, over the features and over the classes.

A metric of the features approximates A, (p, p), from the blocks that it observes, and applies A^-1 from the right:

    observe(Z, weight, total, rows)   add a block Z (b, p) of weight `total`; `rows` have come by now
    move(shift, factor)               the coordinates become (z - shift) / factor, (d,) each
    refresh(penalty, rows)            factor A + diag(penalty) for the steps to come
    apply(S)                          S A^-1 for S (K, p)
    rate(b)                           the largest sensible rate of a step over b rows
    refresh_ratio                     refresh when this many times as many rows have come

Where p is at most `FULL_FEATURES`, A is the covariance of all rows (`Covariance`), above it that of a sample of rows
(`SampledCovariance`), and without preconditioning the identity times the largest eigenvalue (`LargestEigenvalue`).
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, lapack, solve_triangular

from softreg._solvers.dense_stream_newton import hessian

FULL_FEATURES = 3000
SAMPLE = 256  # rows of `SampledCovariance`
SHRINKAGE = 1e-3  # towards the identity, on top of p / (p + rows)
RECENT = 256  # rows of which `Covariance` takes the products together
EVERY_ROW, EVERY_NTH = 3, 8  # a covariance takes all blocks for 3 p rows, then one of 8

FULL_CLASSES = 256  # up to here the class curvature is a (K, K) matrix, above it its diagonal
HESSIAN_RECENCY, HESSIAN_DAMPING = 4.0, 1e-2
MEMORY = 0.97  # what a step keeps of the running class curvature
DAMPING, REPLAY_DAMPING = 1.0, 0.25  # of steps over a minibatch, and over all rows so far


def feature_metric(n_features, fit_intercept, dtype, precondition):
    """Choose the metric of the features."""
    if not precondition:
        return LargestEigenvalue(n_features, fit_intercept, dtype)
    kind = Covariance if n_features <= FULL_FEATURES else SampledCovariance
    return kind(n_features, fit_intercept, dtype)


class Metric:
    """Base of the three metrics: settings and plain state."""

    STATE: tuple[str, ...] = ()

    def __init__(self, n_features, fit_intercept, dtype):
        self.d, self.p, self.dtype = n_features, n_features + bool(fit_intercept), dtype
        self.fit_intercept = fit_intercept
        self.rows = 0  # that the metric has used
        self.refresh_ratio = 1.3 if self.p <= 128 else 2.0  # a factor costs p^3

    def rate(self, b):
        """The noise of a whitened gradient is p / b times its size."""
        return 1.0 / (1.0 + self.p / b)

    def shrinkage(self):
        return min(1.0, self.p / (self.p + self.rows) + SHRINKAGE)

    def get_state(self):
        """Return the state as a dict of arrays (copies) and numbers."""
        return {name: np.copy(v) if np.ndim(v := getattr(self, name)) else v for name in ("rows", *self.STATE)}

    def set_state(self, state):
        for name, value in state.items():
            setattr(self, name, np.copy(value) if np.ndim(value) else value)


class Covariance(Metric):
    """The covariance of all features. State: p^2 numbers of float64, p^2 of `dtype`, and `RECENT` rows.

    Recent rows wait and are added up together: a large product costs less a row, and while only they are there a move
    of the coordinates touches no p^2 numbers.
    """

    STATE = ("second", "weight", "blocks", "inverse", "recent", "waiting")

    def __init__(self, *settings):
        super().__init__(*settings)
        self.second, self.weight, self.blocks = np.zeros((self.p, self.p)), 0.0, 0  # sum of s z z^T, of s
        self.recent, self.waiting = np.zeros((RECENT, self.p), self.dtype), 0  # rows sqrt(s) z not yet in `second`
        self.inverse = np.ones(self.p, self.dtype)  # (p,) while A is diagonal, then (p, p)

    def observe(self, Z, weight, total, rows):
        """Add the rows Z to the second moments; late in a stream, only every few blocks."""
        left_out = rows > EVERY_ROW * self.p and self.blocks % EVERY_NTH
        self.blocks += 1
        if left_out:
            return
        for start in range(0, len(Z), RECENT):
            part = slice(start, start + RECENT)
            self._add(Z[part] if weight is None else Z[part] * np.sqrt(weight[part])[:, None])
        self.weight += total
        self.rows += len(Z)

    def _add(self, Zs):
        """Let rows Zs, at most `RECENT` of them, wait."""
        if self.waiting + len(Zs) > RECENT:
            self._add_up()
        self.recent[self.waiting : self.waiting + len(Zs)] = Zs
        self.waiting += len(Zs)

    def _add_up(self):
        """Add the recent rows to the second moments."""
        Zs = self.recent[: self.waiting]
        self.second += Zs.T @ Zs  # NumPy sees the symmetry and calls syrk
        self.waiting = 0

    def move(self, shift, factor):
        """Write the second moments and the waiting rows in the new standardised columns."""
        _move_rows(self.recent[: self.waiting], shift, factor)
        M, d = self.second, self.d
        if self.rows == self.waiting:  # M is zero
            return
        if shift.any():
            M[:d] -= shift[:, None] * M[-1]
            M[:, :d] -= M[:, -1:] * shift
        M[:d] /= factor[:, None]
        M[:, :d] /= factor

    def refresh(self, penalty, rows):
        if self.rows < self.p / 2 and self.p > 128:  # too few rows for what a factor costs
            self.inverse = (1.0 / (1.0 + penalty)).astype(self.dtype)
            return
        A = self.covariance()
        variance = np.maximum(np.diag(A), 1.0)  # 1 but for features that were constant, or have grown
        A *= 1.0 - self.shrinkage()
        A[np.diag_indices(self.p)] = variance + penalty
        self.inverse = _inverse(A, self.dtype)

    def covariance(self):
        """Return the covariance of the features, (p, p); the row and column of the intercept are zero."""
        self._add_up()
        A = self.second / self.weight
        if self.fit_intercept:
            A -= np.outer(A[-1], A[-1])
        return A

    def apply(self, S):
        return S * self.inverse if self.inverse.ndim == 1 else S @ self.inverse


class SampledCovariance(Metric):
    """The covariance of a sample of rows, by the identity of Woodbury. State: twice `SAMPLE` rows of p numbers.

    A = D + U^T U with the rows of the sample, scaled, as U (m, p), and D diagonal: what shrinkage and penalty add.
    """

    STATE = ("sample", "next", "diagonal", "root")

    def __init__(self, *settings):
        super().__init__(*settings)
        self.sample, self.next = np.zeros((SAMPLE, self.p), self.dtype), 0
        self.diagonal, self.root = np.ones(self.p, self.dtype), np.zeros((0, self.p), self.dtype)

    def observe(self, Z, weight, total, rows):
        """Take a share of the block, oldest rows out first, so that the sample stays spread over the stream."""
        take = min(len(Z), max(1, len(Z) * SAMPLE // rows))
        at = (self.next + np.arange(take)) % SAMPLE
        scale = 1.0 if weight is None else np.sqrt(weight[:take] * (len(Z) / total))[:, None]
        self.sample[at] = Z[:take] * scale
        self.next = (self.next + take) % SAMPLE
        self.rows = min(SAMPLE, self.rows + take)

    def move(self, shift, factor):
        _move_rows(self.sample[: self.rows], shift, factor)

    def refresh(self, penalty, rows):
        """Factor the inverse of A anew, from the sampled rows and the penalty."""
        rho = self.shrinkage()
        U = self.sample[: self.rows].astype(np.float64) * np.sqrt((1.0 - rho) / self.rows)
        diagonal = rho + penalty
        if self.fit_intercept:
            U[:, -1], diagonal[-1] = 0.0, 1.0
        scaled = U / diagonal
        lower = cholesky(np.eye(len(U)) + scaled @ U.T, lower=True)
        self.diagonal = (1.0 / diagonal).astype(self.dtype)
        self.root = solve_triangular(lower, scaled, lower=True).astype(self.dtype)

    def apply(self, S):
        return S * self.diagonal - (S @ self.root.T) @ self.root


class LargestEigenvalue(Metric):
    """The identity times the mean of the largest eigenvalues of the blocks' Z^T Z / b. State: 2 p numbers.

    The mean is at least the largest eigenvalue of A, and counts the noise of small blocks too.
    """

    STATE = ("eigenvalue", "weight", "penalty", "inverse")
    POWER_ITERATIONS = 8

    def __init__(self, *settings):
        super().__init__(*settings)
        self.eigenvalue, self.weight, self.penalty = 0.0, 0.0, np.zeros(self.p)
        self.inverse = np.ones(self.p, self.dtype)

    def rate(self, b):
        return 1.0

    def observe(self, Z, weight, total, rows):
        self.weight += total
        self.eigenvalue += (self._largest(Z, weight, total) - self.eigenvalue) * total / self.weight
        self._invert()

    def _largest(self, Z, weight, total):
        """Return the largest eigenvalue of Z^T diag(weight) Z / total, from below, by the power method."""
        Zs = Z if weight is None else Z * np.sqrt(weight)[:, None]
        v = Zs[np.argmax(np.einsum("ij,ij->i", Zs, Zs))]
        for _ in range(self.POWER_ITERATIONS):
            size = np.linalg.norm(v)
            if size == 0:
                return 0.0
            v = (Zs @ (v / size)) @ Zs
        return float(np.linalg.norm(v)) / total

    def move(self, shift, factor):
        pass

    def refresh(self, penalty, rows):
        self.penalty = penalty
        self._invert()

    def _invert(self):
        self.inverse = (1.0 / np.maximum(self.eigenvalue + self.penalty, 1e-12)).astype(self.dtype)

    def apply(self, S):
        return S * self.inverse


class ClassCurvature:
    """The running mean C of diag(p) - p p^T over rows, and its damped inverse. State: twice K^2 numbers, or twice K.

    `separable` asks for a diagonal C, and so do more than `FULL_CLASSES` classes. It is twice the diagonal of the
    matrix, which bounds the matrix from above.
    """

    def __init__(self, n_classes, separable=False):
        K = self.n_classes = n_classes
        self.full = K <= FULL_CLASSES and not separable
        self.mean = (np.eye(K) - 1.0 / K) / K if self.full else np.full(K, (1.0 - 1.0 / K) / K)
        self.steps = 0
        self.every = -(-K // 32) if self.full else 1  # an inverse costs K^3
        self._invert()

    def observe(self, P, weight, unit):
        """Add a block of probabilities P (b, K), of weights (b,) or None, which sum to about `unit`."""
        self.mean += (1.0 - MEMORY) * (self._of(P, weight) / unit - self.mean)
        self.steps += 1
        if self.steps % self.every == 0:
            self._invert()

    def replace(self, P, weight, unit):
        """Take the curvature of these rows alone in place of the running mean."""
        self.mean = self._of(P, weight) / unit
        self._invert(REPLAY_DAMPING)

    def _of(self, P, weight):
        """Return the sum over rows of s (diag(p) - p p^T), or of its diagonal."""
        Ps = (P if weight is None else P * weight[:, None]).astype(np.float64)
        return np.diag(Ps.sum(axis=0)) - Ps.T @ P if self.full else (Ps * (1.0 - P)).sum(axis=0)

    def _invert(self, damping=DAMPING):
        if self.full:
            damped = self.mean + np.diag(damping * (np.diag(self.mean) + 1.0 / self.n_classes))
            self.inverse = np.linalg.inv(damped)
        else:
            self.inverse = 1.0 / (2.0 * self.mean + damping / self.n_classes)

    def apply(self, S):
        """Return C^-1 S for S (K, p)."""
        return self.inverse @ S if self.full else self.inverse[:, None] * S

    def get_state(self):
        return {"mean": self.mean.copy(), "inverse": self.inverse.copy(), "steps": self.steps}

    def set_state(self, state):
        self.mean, self.inverse, self.steps = state["mean"].copy(), state["inverse"].copy(), state["steps"]


class FullHessian:
    """The running mean H, (K, p, K, p), of the Hessian over rows. For small K p. State: (K p)^2 numbers.

    It weighs late rows more, as their probabilities are nearer to those at the end. Damping mixes in what the
    Kronecker form has for equal probabilities.
    """

    def __init__(self, shape):
        self.shape = shape
        self.mean, self.rows = np.zeros((*shape, *shape)), 0

    def observe(self, Z, P, weight, unit):
        """Add a block: sum_i s_i (diag(p_i) - p_i p_i^T) x z_i z_i^T, divided by `unit`."""
        H = hessian(Z.astype(np.float64), P.astype(np.float64), weight).reshape(self.mean.shape)
        b = len(Z)
        self.rows += b
        self.mean += min(1.0, HESSIAN_RECENCY * b / self.rows) * (H / unit - self.mean)

    def move(self, shift, factor):
        d, H = len(shift), self.mean
        if d < self.shape[1]:
            H[:, :d] -= shift[:, None, None] * H[:, d:]
            H[..., :d] -= H[..., d:] * shift
        H[:, :d] /= factor[:, None, None]
        H[..., :d] /= factor

    def solve(self, S, penalty, A):
        """Return (H + damping + penalty)^-1 S for S (K, p); penalty (p,), A (p, p) the covariance of the features."""
        K, p = self.shape
        rho = p / (p + self.rows) + HESSIAN_DAMPING
        M = (1.0 - rho) * self.mean
        for k in range(K):
            M[k, :, k] += 0.5 * rho / K * (A + np.eye(p)) + np.diag(penalty)
        return cho_solve(cho_factor(M.reshape(K * p, K * p), lower=True), S.ravel()).reshape(self.shape)

    def get_state(self):
        return {"mean": self.mean.copy(), "rows": self.rows}

    def set_state(self, state):
        self.mean, self.rows = state["mean"].copy(), state["rows"]


def _move_rows(Zs, shift, factor):
    """Express rows Zs, of sqrt(s) z with sqrt(s) in the last column if there is an intercept, in new coordinates."""
    d = len(shift)
    if d < Zs.shape[1]:
        Zs[:, :d] -= (Zs[:, d:] * shift).astype(Zs.dtype)
    Zs[:, :d] /= factor.astype(Zs.dtype)


def _inverse(A, dtype):
    """Return the inverse of a positive definite A in `dtype`, or made in float64 where that has too few digits."""
    for precision in (dtype, np.float64):
        potrf, potri = lapack.get_lapack_funcs(("potrf", "potri"), dtype=precision)
        factor, failed = potrf(A.astype(precision), lower=True, overwrite_a=True)
        if not failed:
            inverse = potri(factor, lower=True, overwrite_c=True)[0]
            full = inverse.T.astype(dtype)  # row by row is contiguous
            for j in range(1, len(full)):
                full[j, :j] = full[:j, j]
            return full
    raise np.linalg.LinAlgError("the covariance of the features is not finite")
