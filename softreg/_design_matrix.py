"""The design matrix: X, a selection of its rows, and the memory order of arrays like W.

`DenseDesign` and `CSRDesign` have the same methods. No other file asks whether X is sparse. A design refers to X and
does not copy it. Its columns are the features and, with an intercept, a last column of ones: [X 1] has p = d + 1
columns, or p = d without an intercept. Arrays like W have shape (K, p).

Dense designs hold W in C order. CSR designs hold W in Fortran order: a nonzero of X then meets the numbers of all
classes side by side.
"""

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.extmath import row_norms

from softreg import _core, _dual_ascent, _hessian
from softreg._hessian_product import ArrayProduct, SparseProduct
from softreg._inner_products import add_scaled

BLOCK_ROWS = 4096  # rows of X that are copied at a time, where a computation needs a copy
COPIED_NUMBERS = 2**19  # ... or rows with so many nonzeros, if sparse rows are more: a block costs a pass over W, too
CACHED_NUMBERS = 2**16  # numbers of a block where NumPy makes temporaries; much larger ones are mapped anew: slow
PARTS, SUM_ROWS = 16, 4096  # the kernels sum rows in parts, and SUM_ROWS rows of a part apart


def design_matrix(X, *, fit_intercept=True, n_threads=1):
    """Return the design of X, a row-major ndarray or a CSR matrix with sorted indices."""
    return (CSRDesign if issparse(X) else DenseDesign)(X, fit_intercept, n_threads)


class _Design:
    """Base of both kinds: the selection of rows, and the allocation of arrays like W.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, d), as `ensure_row_major` returns it
    fit_intercept : bool
    n_threads : int
    rows : intp array of shape (m,), the selected rows of X, or None for all of them

    Attributes
    ----------
    n_rows, n_features, n_columns : int
        Selected rows, d and p.
    dtype : dtype of X, of W and of all results
    order : {"C", "F"}
        Memory order of arrays like W.
    can_center : bool
        True if centred copies of a few rows cost no more memory than the rows themselves.
    can_sample_rows : bool
        True if a sample of the rows has nonzeros of every feature. Most features of sparse rows are rare.
    has_dual_epoch : bool
        True if the method `dual_epoch` exists.
    longest_sum : int
        The most numbers that the kernels add one after the other in a sum over the rows.
    """

    def __init__(self, X, fit_intercept, n_threads, rows=None):
        self.X, self.fit_intercept, self.n_threads, self.rows = X, fit_intercept, n_threads, rows
        self.n_features, self.n_columns = X.shape[1], X.shape[1] + bool(fit_intercept)
        self.n_rows = X.shape[0] if rows is None else len(rows)
        self.dtype = X.dtype

    # --- rows -----------------------------------------------------------------------------------------------------

    def row_numbers(self, positions):
        """Return the numbers in X of the rows at `positions` (an index array or a slice) of the selection."""
        if self.rows is not None:
            return self.rows[positions]
        return np.arange(*positions.indices(self.n_rows)) if isinstance(positions, slice) else positions

    def select(self, positions):
        """Return the design over the rows at `positions`; nothing of X is copied. A slice of all rows is the design."""
        if isinstance(positions, slice) and positions.indices(self.n_rows) == (0, self.n_rows, 1):
            return self
        return type(self)(self.X, self.fit_intercept, self.n_threads, self.row_numbers(positions))

    def of_rows(self, values):
        """Return the entries of the selected rows, from an array with one entry for each row of X, or from None."""
        return values if values is None or self.rows is None else values[self.rows]

    def copy_rows(self, positions):
        """Return the rows at `positions`: an array or CSR matrix, which may share memory with X for a slice."""
        return self.X[positions if self.rows is None else self.rows[positions]]

    def row_blocks(self, size=BLOCK_ROWS):
        """Yield slices that split the selection into blocks of `size` rows."""
        for start in range(0, self.n_rows, size):
            yield slice(start, min(start + size, self.n_rows))

    def dense_rows(self, positions):
        """Return the rows at `positions` as an ndarray, which may share memory with X for a slice."""
        X = self.copy_rows(positions)
        return X.toarray() if issparse(X) else X

    def float64_rows(self, positions):
        """Return the rows at `positions` as a dense float64 copy."""
        return self.dense_rows(positions).astype(np.float64, order="C")

    def has_entries(self, columns):
        """Return whether the rows have numbers other than zero in these columns."""
        return any((self.copy_rows(block)[:, columns] != 0).sum() > 0 for block in self.row_blocks())

    def row_squared_norms(self):
        """Return ||x_i||^2 of the selected rows, (n,)."""
        return np.concatenate([row_norms(self.copy_rows(block), squared=True) for block in self.row_blocks()])

    def accumulate_float64(self, G):
        """Return G^T [X 1], (K, p), with sums in float64, for a float64 G (n, K) in any memory order."""
        if self.dtype == np.float64:
            return self.accumulate(np.ascontiguousarray(G))
        product = (self.copy_rows(slice(None)).astype(np.float64).T @ G).T
        return np.hstack([product, G.sum(axis=0)[:, None]]) if self.fit_intercept else product

    def accumulate_long(self, G, features):
        """Return G^T X for some features, (K, m), with sums in long double, for G (n, K)."""
        if not len(features):
            return np.empty((G.shape[1], 0), np.longdouble)
        X = self.copy_rows(slice(None))[:, features]
        X = X.toarray() if issparse(X) else X
        return G.T.astype(np.longdouble) @ X.astype(np.longdouble)

    # --- arrays like W --------------------------------------------------------------------------------------------

    def empty(self, n_classes):
        """Return an uninitialised array like W, (n_classes, p), in this design's memory order."""
        return np.empty((n_classes, self.n_columns), self.dtype, order=self.order)

    def arranged(self, W):
        """Return W in the dtype and the memory order of this design; copied only where it has another."""
        return np.asarray(W, self.dtype, order=self.order)

    def coef(self, W):
        """Return a view of W without the intercepts: the part that is penalised."""
        return W[:, : self.n_features]

    def intercepts(self, W):
        """Return a view of the last column of W, or of no column where there are no intercepts."""
        return W[:, self.n_features :]


class DenseDesign(_Design):
    """Rows of an ndarray with unit stride along a row. Results have the dtype of X unless a method says float64."""

    order = "C"
    can_center = can_sample_rows = True
    has_dual_epoch = False

    @property
    def longest_sum(self):
        of_part = max(self.n_rows // PARTS, 256)  # whole blocks, 256 rows at most
        return min(of_part, SUM_ROWS) + of_part // SUM_ROWS + PARTS

    def logits(self, W):
        """Return X W^T + b, (n, K)."""
        Z = np.empty((self.n_rows, len(W)), self.dtype)
        _core.dense_logits(self.X, self.rows, W, Z, self.n_threads)
        return Z

    def accumulate(self, G):
        """Return G^T [X 1], an array like W, for G (n, K)."""
        out = self.empty(G.shape[1])
        _core.dense_gradient(self.X, self.rows, G, out, self.n_threads)
        return out

    def loss_gradient(self, W, codes, targets, sample_weight, label_smoothing, scale, l2, P=None):
        """Return scale * sum_i s_i CE_i + l2/2 ||W||^2 and its gradient; P (n, K) OUT, or None.

        Codes, targets and weights have one entry for each row of X, whichever rows are selected.
        """
        gradient = self.empty(len(W))
        given = (codes, targets, sample_weight, label_smoothing, scale, l2, P)
        return _core.dense_loss_gradient(self.X, self.rows, W, *given, gradient, self.n_threads), gradient

    def hessian_product(self, P, sample_weight, scale, l2, V):
        """Return the Hessian of `loss_gradient` at probabilities P (n, K), times V: an array like W."""
        out = self.empty(len(V))
        _core.dense_hessian_product(self.X, self.rows, P, sample_weight, scale, l2, V, out, self.n_threads)
        return out

    def product(self, P, sample_weight, scale, l2, V):
        """Return what `hessian_product` does, in the form of `_hessian_product`."""
        return ArrayProduct(V, self.hessian_product(P, sample_weight, scale, l2, V))

    def squares_product(self, c):
        """Return sum_i c_i [x_i^2 1], (p,), for c (n,)."""
        out = np.zeros(self.n_columns, self.dtype)
        for block in self.row_blocks():
            X = self.copy_rows(block)
            out[: self.n_features] += c[block] @ (X * X)
        if self.fit_intercept:
            out[-1] = c.sum()
        return out

    def standardized_hessian(self, positions, P, weight, mean, deviation):
        """Return the Hessian of the loss over the rows at `positions` in standardised coordinates, float64.

        That is sum_i w_i (diag(p_i) - p_i p_i^T) (x) z_i z_i^T, (K, p, K, p), with z_i = [(x_i - mean) / deviation, 1].

        Parameters
        ----------
        positions : index array of shape (m,), or slice(None) for all rows
        P : array of shape (m, K), probabilities p_i
        weight : float64 array of shape (m,)
        mean, deviation : float64 arrays of shape (d,)
        """
        rows = self.rows if isinstance(positions, slice) else self.row_numbers(positions)
        H = np.empty(2 * (P.shape[1], self.n_columns))
        _hessian.dense_hessian(self.X, rows, P, weight, mean, deviation, H, self.n_threads)
        return H

    def standardized_row_lengths(self, share):
        """Return the squared lengths of the rows in standardised units over their mean, (n,), for weights share (n,).

        A feature that is zero but for a few rows has all of its curvature in them: those rows are long. The
        means of the features are weighted means over a part of the rows. Rows without weight have length zero.
        """
        size = max(CACHED_NUMBERS // self.n_features, 1)
        blocks = list(self.row_blocks(size))
        if not share.all():  # the entries of rows without weight must not matter, however large they are
            weighted = np.flatnonzero(share)
            blocks = [weighted[start : start + size] for start in range(0, len(weighted), size)]
        mean, squares, ones = 0, np.zeros(self.n_features), np.ones(self.n_features, self.dtype)
        if self.fit_intercept:
            some = blocks[:: max(len(blocks) // 8, 1)]
            mean = sum(share[block] @ self.copy_rows(block) for block in some)
            mean /= sum(share[block].sum() for block in some)
        for block in blocks:
            D = self.copy_rows(block) - mean
            squares += share[block] @ np.square(D, out=D)
        unit = (1 / np.sqrt(np.where(squares > 0, squares, np.inf))).astype(self.dtype)
        length = np.zeros(self.n_rows)
        for block in blocks:
            D = self.copy_rows(block) - mean
            D *= unit
            length[block] = np.square(D, out=D) @ ones
        average = float(share @ length)
        return length / average if average > 0 else np.ones(self.n_rows)


class CSRDesign(_Design):
    """Rows of a CSR matrix with sorted indices, 32 or 64 bits wide. The methods are those of `DenseDesign`."""

    order = "F"
    can_center = can_sample_rows = False
    has_dual_epoch = True

    @property
    def longest_sum(self):
        group = max(SUM_ROWS, 16 * self.n_features * self.X.shape[0] // max(self.X.nnz, 1))
        return min(self.n_rows, group) + self.n_rows // group

    @property
    def _arrays(self):
        return self.X.data, self.X.indices, self.X.indptr, self.rows

    def logits(self, W):
        Z = np.empty((self.n_rows, len(W)), self.dtype)
        _core.csr_logits(*self._arrays, W.T, self.n_features, Z, self.n_threads)
        return Z

    def accumulate(self, G):
        out = self.empty(G.shape[1])
        out[...] = 0
        self.add_accumulated(G, out)
        return out

    def add_accumulated(self, G, out):
        """Add the sums of `accumulate` to out, an array like W, in place."""
        _core.csr_gradient(*self._arrays, G, self.n_features, out.T, self.n_threads)

    def loss_gradient(self, W, codes, targets, sample_weight, label_smoothing, scale, l2, P=None):
        gradient, residual = self.empty(len(W)), np.empty((self.n_rows, len(W)), self.dtype)
        given = (codes, targets, sample_weight, label_smoothing, scale, l2, P, residual, gradient.T)
        return _core.csr_loss_gradient(*self._arrays, W.T, self.n_features, *given, self.n_threads), gradient

    def hessian_product(self, P, sample_weight, scale, l2, V):
        out = self.accumulate(self.curve(P, sample_weight, scale, V)[1])
        if l2:
            add_scaled(self.coef(out), l2, self.coef(V))
        return out

    def product(self, P, sample_weight, scale, l2, V):
        return SparseProduct(self, P, sample_weight, scale, l2, V)

    def curve(self, P, sample_weight, scale, V):
        """Return the curvature of the loss along V, and the (n, K) numbers of which `accumulate` makes H V."""
        curved = np.empty_like(P)
        given = (P, sample_weight, scale, V.T, self.n_features, curved)
        return _core.csr_curve(*self._arrays, *given, self.n_threads), curved

    def squares_product(self, c):
        """Return sum_i c_i [x_i^2 1], (p,), for c (n,)."""
        out = np.zeros((self.n_columns, 1), self.dtype)
        for block in self.row_blocks(max(BLOCK_ROWS, COPIED_NUMBERS * self.X.shape[0] // max(self.X.nnz, 1))):
            X, sums = self.copy_rows(block), np.zeros_like(out)
            arrays = (X.data * X.data, X.indices, X.indptr, None)
            _core.csr_gradient(*arrays, np.ascontiguousarray(c[block])[:, None], self.n_features, sums, self.n_threads)
            out += sums
        if self.fit_intercept:
            out[-1] = c.sum()
        return out[:, 0]

    def standardized_hessian(self, positions, P, weight, mean, deviation):
        """Return the Hessian of `DenseDesign.standardized_hessian`, from dense copies of a few rows at a time."""
        total, numbers = 0.0, np.arange(self.n_rows)[positions]
        for start in range(0, len(numbers), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            rows = DenseDesign(self.dense_rows(numbers[block]), self.fit_intercept, self.n_threads)
            total += rows.standardized_hessian(slice(None), P[block], weight[block], mean, deviation)
        return total

    def standardized_row_lengths(self, share):
        """Return ones: standardised rows would be dense."""
        return np.ones(self.n_rows)

    def mean_squared_norm(self):
        """Return the mean of ||x_i||^2 over all rows of X."""
        return float(self.X.data @ self.X.data) / self.X.shape[0]

    def dual_epoch(self, order, W, sample_weight, scale, constant, Q):
        """Visit the rows in `order` by dual coordinate ascent on W and Q, both in place; see the kernel's twin."""
        given = (order, W.T, self.n_features, sample_weight, scale, constant, Q)
        return _dual_ascent.csr_dual_epoch(*self._arrays, *given)
