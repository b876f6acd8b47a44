"""Approximate inverses of the Hessian for conjugate gradients, each with one method: `solve(G)`.

The Hessian of the data term is  sum_i s_i (diag(p_i) - p_i p_i^T) (x) [x_i 1][x_i 1]^T / S.  Which part of it is kept
depends on the shape of the problem: all of it where (d+1) K is small, else one number for each class direction and
feature times the correlation of the features (late in a fit, where it pays, one block a direction), and the numbers
alone where d is large, or X sparse and not small.

Class directions, see `class_directions`, stand in for the classes themselves. Classes that rows confuse are coupled:
all of their weights can move together at little cost, which no block of one class knows of.

Dense ones work in standardised coordinates (x - mean) / deviation, so that offsets and units, however wild, neither
cost precision nor enter the correlation. X itself is never standardised, only a sample of its rows.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np
from scipy.linalg import lapack

from softreg._row_sampling import systematic_sample
from softreg._validation import OVERFLOW

SAMPLE_ROWS = 8192  # enough for a correlation of a thousand features once it is shrunk; 25 MB of float32 for d = 784
BLOCK_ROWS = 4096  # for a block a class direction, drawn by curvature; and at least 5 a feature
EXACT_SIZE = 500  # (d+1) K up to which the Hessian itself is factored: a build costs (d+1) K / 8 products or more
EXACT_WORK = 1e9  # n ((d+1) K)^2 up to which it is built from all rows, else from 4 rows a parameter
BLOCKS_SIZE = 1e7  # K (d+1)^2 up to which a block a class is affordable: 40 MB
CORRELATION_SIZE = 3000  # d up to which a d x d inverse is worth its memory and its d^3


def preconditioner(objective, order):
    """The kind that suits the problem, over as many of its rows as it needs, taken in the given random `order`.

    `refresh(P)` it with the probabilities of all rows before the first solve.
    """
    K, p = objective.shape
    if (objective.sparse and K * p > EXACT_SIZE) or p > CORRELATION_SIZE:
        return Diagonal(objective)
    if K * p <= EXACT_SIZE:
        exact = objective.n_rows * (K * p) ** 2 <= EXACT_WORK
        return Exact(objective, order, objective.n_rows if exact else 4 * K * p)
    return ScaledCorrelation(objective, order)


def row_lengths(objective):
    """The squared lengths of the rows in standardised units, over their mean; ones for sparse X.

    A feature that is zero but for a few rows has all of its curvature there: those rows are long. Means are weighted
    by the rows' weights, and rows of no weight have no length.
    """
    n, share = objective.n_rows, objective.shares()
    length = np.ones(n)
    if objective.sparse:
        return length
    weighted = np.flatnonzero(share)  # what rows of no weight hold must not matter, however large it is
    blocks = [weighted[start : start + 4096] for start in range(0, len(weighted), 4096)]
    of = blocks if objective.rows is None else [objective.rows[block] for block in blocks]
    first = share[blocks[0]]
    mean = first @ objective.X[of[0]] / first.sum() if objective.fit_intercept else np.zeros(1, objective.dtype)
    squares = np.zeros(objective.n_features)
    for block, rows in zip(blocks, of, strict=True):
        D = objective.X[rows] - mean
        squares += np.einsum("i,ij,ij->j", share[block], D, D)
    unit = np.sqrt(1 / np.where(squares > 0, squares, np.inf)).astype(objective.dtype)
    length[share == 0] = 0
    for block, rows in zip(blocks, of, strict=True):
        D = (objective.X[rows] - mean) * unit
        length[block] = np.einsum("ij,ij->i", D, D)
    average = float(share @ length)
    return length / average if average > 0 else np.ones(n)


class Standardised:
    """A sample of rows in standardised coordinates, and the way there and back for gradients and steps."""

    whole = False  # whether `solve` is the inverse but for rounding

    def __init__(self, objective, order, size):
        self.objective = objective
        if size >= objective.n_rows:
            self._sample(np.arange(objective.n_rows), np.ones(objective.n_rows))
        else:
            score = objective.shares() * (0.5 + 0.5 * self.length)
            self._sample(*systematic_sample(score, order, size), size)
        weight = self.weight / self.weight.sum()
        self.mean = np.zeros(objective.n_features)
        if objective.fit_intercept:
            self.mean = sum(weight[part] @ X for part, X in self._chunks())
        self.deviation = np.sqrt(sum(weight[part] @ (X - self.mean) ** 2 for part, X in self._chunks()))
        # a feature that is constant in the sample may not be so elsewhere: it keeps its size as its unit
        constant = self.deviation <= 1e-7 * np.abs(self.mean)
        self.deviation[constant] = np.abs(self.mean[constant])
        self.deviation[self.deviation == 0] = 1.0
        if not np.isfinite(self.deviation).all():
            raise FloatingPointError(OVERFLOW.format(objective.dtype))

    @cached_property
    def length(self):
        return row_lengths(self.objective)

    @property
    def penalty(self):
        """What l2 adds to the diagonal; along a path the objective's l2 changes."""
        penalty = self.objective.l2 / self.deviation**2
        return np.append(penalty, 0.0) if self.objective.fit_intercept else penalty

    def _sample(self, picked, importance, times=1):
        """Go over to these rows; they were drawn with replacement `times` times, or all taken once."""
        objective, self.picked = self.objective, picked
        self.rows = picked if objective.rows is None else objective.rows[picked]
        s = 1.0 if objective.sample_weight is None else objective.sample_weight[self.rows].astype(np.float64)
        self.weight = importance * s / (times * objective.total_weight)  # sums to 1, or is expected to

    def _chunks(self):
        """The rows in float64, a few at a time: a whole sample of that would take more room than it is worth."""
        for start in range(0, len(self.rows), 1024):
            part = slice(start, start + 1024)
            X = self.objective.X[self.rows[part]]
            yield part, (X.toarray() if self.objective.sparse else X).astype(np.float64)

    def standardised(self, dtype):
        """[(x - mean) / deviation, 1] for each row of the sample."""
        Z = np.ones((len(self.rows), self.objective.shape[1]), dtype)
        for part, X in self._chunks():
            Z[part, : X.shape[1]] = (X - self.mean) / self.deviation
        return Z

    def gradient(self, G):
        """A gradient in W as one in standardised coordinates."""
        d = self.objective.n_features
        G = G.astype(np.float64)
        if self.objective.fit_intercept:
            G[:, :d] -= G[:, d:] * self.mean
        G[:, :d] /= self.deviation
        return G

    def step(self, V):
        """A step in standardised coordinates as one in W."""
        d = self.objective.n_features
        V[:, :d] /= self.deviation
        if self.objective.fit_intercept:
            V[:, d] -= V[:, :d] @ self.mean
        return np.asarray(V, self.objective.dtype, order="F" if self.objective.sparse else "C")


class Exact(Standardised):
    """The Hessian of the sample, inverted by Cholesky: a Newton step up to sampling error."""

    def __init__(self, objective, order, size):
        super().__init__(objective, order, size)
        self.Z = self.standardised(np.float64)
        self.complete = len(self.picked) == objective.n_rows
        # Hessian products to serve before it is built again, which costs some n_sample (K p) / 8n of them
        self.patience = max(4, len(self.picked) * objective.shape[0] * objective.shape[1] // (16 * objective.n_rows))

    def refresh(self, P):
        K, p = self.objective.shape
        H = self._sum(P[self.picked]).reshape(K * p, K * p)
        diagonal = H.diagonal().reshape(K, p)
        # a sample knows directions only up to its noise; the rest is for rounding
        damping = np.finfo(P.dtype).eps if self.complete else 1e-3
        H[np.diag_indices_from(H)] += (self.penalty + damping * diagonal + 1e-13 * diagonal.max()).ravel()
        for j in range(p):  # what softmax leaves free, the same for all classes: no step goes there, see `solve`
            H[j::p, j::p] += diagonal[:, j].max() / K
        # sums of numbers up to 1 are behind it: rounding may weigh more than curvature where the classes are separated
        self.factor, shift = cholesky(H, diagonal.ravel() + 1e-8 * diagonal.max() + 1e-14)
        self.whole = self.complete and shift == 0

    def _sum(self, P):
        """sum_i weight_i (diag(p_i) - p_i p_i^T) (x) z_i z_i^T, (K, p, K, p).

        It has two symmetries: pairs of classes times pairs of features are a quarter of it, and one matrix product.
        """
        K, p = self.objective.shape
        (k, m), (i, j) = np.triu_indices(K), np.triu_indices(p)
        step = max(64, 2**17 // len(i))  # blocks of 1 MB
        sums, pairs, squares = np.zeros((len(k), len(i))), np.empty((len(k), step)), np.empty((len(i), step))
        for start in range(0, len(P), step):
            rows = slice(start, start + step)
            Z, Q, s = self.Z[rows].T.copy(), P[rows].T.astype(np.float64), self.weight[rows]
            Q /= Q.sum(axis=0)  # float32 rows that sum to 1 + 1e-7 would make H indefinite
            jacobians = products(Q, pairs[:, : Q.shape[1]])
            jacobians *= -s
            jacobians[k == m] += s * Q
            sums += jacobians @ products(Z, squares[:, : Z.shape[1]]).T
        half, H = np.empty((len(k), p, p)), np.empty((K, p, K, p))
        half[:, i, j] = half[:, j, i] = sums
        H[k, :, m] = H[m, :, k] = half
        return H

    def solve(self, G):
        V = lapack.dpotrs(self.factor, self.gradient(G).ravel(), lower=1)[0].reshape(G.shape)
        return self.step(V - V.mean(axis=0))


def products(A, out):
    """out OUT = A_i * A_j for the rows i <= j of A, in the order of `np.triu_indices`."""
    at = 0
    for i in range(len(A)):
        np.multiply(A[i], A[i:], out=out[at : at + len(A) - i])
        at += len(A) - i
    return out


def class_directions(P, weight):
    """Orthonormal directions U (K, K-1) in the space of the classes, and every row's curvature along them (m, K-1).

    U diagonalises the mean of the softmax Jacobians, sum_i weight_i (diag(p_i) - p_i p_i^T); the constant direction,
    which softmax does not see, is left out. The curvature of row i along u is weight_i u^T (diag(p_i) - p_i p_i^T) u.

    Blocks of these directions need fewer products than blocks of classes where classes are confused with each other,
    as pictures and texts are; where most are well apart, the mean is nearly degenerate, and classes can do better.
    """
    P = P.astype(np.float64)
    P /= P.sum(axis=1, keepdims=True)  # differences of these follow
    weighted = P * weight[:, None]
    total = weighted.sum(axis=0)
    constant = (2 * total.max() + np.finfo(float).tiny) / len(total)  # makes that direction's eigenvalue the largest
    U = np.linalg.eigh(np.diag(total) - weighted.T @ P + constant)[1][:, :-1]
    curvature = np.maximum(P @ U**2 - (P @ U) ** 2, 0) * weight[:, None]
    curvature[curvature < 1e-6 * curvature.max(axis=0)] = 0  # they do not matter, and subnormal numbers would be slow
    return U, curvature


class ScaledCorrelation(Standardised):
    """M = D^(1/2) C D^(1/2) for each class direction: D the diagonal of the Hessian, C the correlation of the features.

    C is inverted once; D follows the probabilities. It meets what changes on the way, how much each class still
    depends on each feature, and what does not, how features go together.
    """

    patience = 1
    shrinkage = 0.05  # towards uncorrelated features of average curvature: a sample's noise is not to be inverted

    def __init__(self, objective, order):
        super().__init__(objective, order, SAMPLE_ROWS)
        self.Z = self.standardised(np.float32)  # it only ever preconditions
        root = self.Z * np.sqrt(self.weight).astype(np.float32)[:, None]
        C = root.T @ root
        size = np.sqrt(np.maximum(C.diagonal(), 1e-12))
        C = (1 - self.shrinkage) * C.astype(np.float64) / np.outer(size, size)
        C[np.diag_indices_from(C)] = 1.0 + 1e-4
        self.inverse = mirrored(lapack.dpotri(cholesky(C)[0], lower=1, overwrite_c=1)[0]).astype(np.float32)

    def refresh(self, P):
        self.U, curvature = class_directions(P[self.picked], self.weight)
        D = curvature.T.astype(np.float32) @ (self.Z * self.Z)
        D += self.shrinkage * curvature.sum(axis=0)[:, None]
        self.scale = 1 / np.sqrt(D + self.penalty + 1e-10 * D.max())

    def solve(self, G):
        V = (self.U.T @ self.gradient(G) * self.scale).astype(np.float32) @ self.inverse
        return self.step(self.U @ (V * self.scale))


class Blocks(Standardised):
    """A block of the Hessian for each class direction: dearer than the correlation, and several times better late.

    Early on all directions see the same rows; once most rows are told apart, each has a few of its own that matter.
    Rows are drawn anew at each refresh, by curvature.
    """

    damping = 1e-2

    def __init__(self, base, order):
        self.objective, self.length = base.objective, base.length
        self.mean, self.deviation = base.mean, base.deviation
        self.order, p, n = order, self.objective.shape[1], self.objective.n_rows
        self.size = min(n, max(BLOCK_ROWS, 5 * p))
        # products to serve before it is built again: half of what a build costs, counted in multiplications
        self.patience = max(8, self.size * p // (4 * n))

    @staticmethod
    def affordable(objective):
        K, p = objective.shape
        return K * p * p <= BLOCKS_SIZE and not objective.sparse

    def refresh(self, P):
        uncertain = np.maximum(1 - np.einsum("ij,ij->i", P, P), 1e-6)
        score = self.objective.shares() * uncertain * (0.5 + 0.5 * self.length)
        self._sample(*systematic_sample(score, self.order, self.size), self.size)
        self.U, curvature = class_directions(P[self.picked], self.weight)
        Z = self.standardised(np.float32)
        with ThreadPoolExecutor(self.objective.n_threads) as pool:  # BLAS itself keeps to one thread, and to its bits
            self.inverses = np.array(list(pool.map(partial(self._inverse, Z), curvature.T.astype(np.float32))))

    def _inverse(self, Z, curvature):
        """The inverse of Z^T diag(curvature) Z."""
        root = Z * np.sqrt(curvature)[:, None]
        A = root.T @ root
        i = np.diag_indices_from(A)
        A[i] += self.penalty + self.damping * (A[i] + curvature.sum(dtype=np.float64)) + 1e-30
        factor, info = lapack.spotrf(A, lower=1, overwrite_a=1, clean=0)
        if info != 0:
            raise np.linalg.LinAlgError("a block of the preconditioner is not positive definite")
        return mirrored(lapack.spotri(factor, lower=1, overwrite_c=1)[0])

    def solve(self, G):
        V = (self.U.T @ self.gradient(G)).astype(np.float32)
        V = np.matmul(self.inverses, V[:, :, None])[:, :, 0]
        return self.step(self.U @ V)


class Diagonal:
    """The diagonal of the Hessian over all rows, for each class direction."""

    patience, whole = 1, False

    def __init__(self, objective):
        self.objective = objective
        self.weight = objective.shares().astype(np.float64)

    def refresh(self, P):
        objective = self.objective
        U, curvature = class_directions(P, self.weight)
        D = objective.squares_product(curvature.astype(P.dtype))
        D[: objective.n_features] += objective.l2
        if not np.isfinite(D).all():
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        self.U, self.diagonal = U.astype(P.dtype), np.maximum(D, 1e-10 * D.max())

    def solve(self, G):
        V = ((G.T @ self.U) / self.diagonal) @ self.U.T
        return np.asarray(V.T, order="F" if self.objective.sparse else "C")


def cholesky(A, scale=1.0):
    """The lower factor of a symmetric positive definite matrix, and what it took.

    Where rounding made it indefinite, a share of `scale` is added to the diagonal, 1e-12 of it and then ever more.
    """
    for shift in (0.0, *np.logspace(-12, 0, 7)):
        shifted = A.copy()
        shifted[np.diag_indices_from(A)] += shift * scale
        factor, info = lapack.dpotrf(shifted.T, lower=1, overwrite_a=1, clean=0)  # symmetric: .T is for Fortran's order
        if info == 0:
            return factor, shift
    raise np.linalg.LinAlgError("the preconditioner is not positive definite")


def mirrored(lower):
    """The symmetric matrix with this lower triangle."""
    full = np.tril(lower)
    diagonal = full.diagonal().copy()
    full += full.T
    full[np.diag_indices_from(full)] = diagonal
    return full
