"""The objective over rows that lie on Dask workers: `DistributedObjective` and `DistributedLinearization`.

They have the methods of `Objective` and `Linearization` that are sums over the rows. W goes out to the workers, each
chunk's own Objective computes its part, and a sum comes back. Penalties are added here.
"""

from copy import copy
from typing import NamedTuple

import numpy as np
from scipy.sparse import issparse, vstack

from softreg._design_matrix import design_matrix
from softreg._hessian_product import ArrayProduct
from softreg._inner_products import inner, squared_norm
from softreg._objective import Linearization, Objective
from softreg._threads import effective_n_threads
from softreg.dask import _sums
from softreg.dask._worker import array_bytes


class Rows(NamedTuple):
    """Counts of the rows of all chunks."""

    n_rows: int
    total_weight: float
    longest_sum: int  # of the kernels, in any chunk


class DistributedDesign:
    """The design of X without its rows: shapes, dtype, and the memory order of arrays like W.

    The attributes and methods are those of `DenseDesign` and `CSRDesign` that need no rows here.
    """

    has_dual_epoch = False

    def __init__(self, objective, X, fit_intercept, rows):
        """Take the number of features, the dtype and the kind of X from an X without rows."""
        empty = design_matrix(X, fit_intercept=fit_intercept)
        for name in ("n_features", "n_columns", "dtype", "order", "can_center", "can_sample_rows", "fit_intercept"):
            setattr(self, name, getattr(empty, name))
        for name in ("empty", "arranged", "coef", "intercepts"):
            setattr(self, name, getattr(empty, name))
        # a sum of the kernels, and the rounding of the whole to the dtype; chunks are added in float64
        self.n_rows, self.longest_sum, self.n_threads = rows.n_rows, rows.longest_sum + 1, 1
        self._objective = objective

    def has_entries(self, columns):
        """Return whether the rows have numbers other than zero in these columns."""
        return self._objective.sum(_sums.has_entries, columns=columns)[0] > 0


class DistributedObjective(Objective):
    """F over the rows of all chunks. Methods of single rows do not exist: no row is here.

    Parameters
    ----------
    passes : Passes
    parts : column of Objective, one a chunk, each a part of the mean over all rows
    rows : Rows
    like : ndarray or CSR matrix (0, d), of the kind and the dtype of X
    n_classes, l2, l1, label_smoothing, fit_intercept : as in `Objective`
    """

    def __init__(self, passes, parts, rows, like, n_classes, *, l2, l1, label_smoothing, fit_intercept):
        self.passes, self.like, self.n_classes = passes, like, n_classes
        self.l2, self.l1, self.label_smoothing, self.fit_intercept = l2, l1, label_smoothing, fit_intercept
        self.n_features, self.dtype, self.n_threads = like.shape[1], like.dtype, 1
        self._set_rows(parts, rows)

    @property
    def stores_probabilities(self):
        """True: the Objective of each chunk decides for itself."""
        return True

    def _set_rows(self, parts, rows):
        self.parts, self.n_rows, self.total_weight, self._cache = parts, rows.n_rows, rows.total_weight, {}
        self.design = DistributedDesign(self, self.like, self.fit_intercept, rows)
        self.shape = (self.n_classes, self.design.n_columns)

    def over(self, parts, rows):
        """Return the same objective over other parts, of other rows."""
        other = copy(self)
        other._set_rows(parts, rows)
        return other

    def sum(self, function, *columns, **shared):
        """Return the sums of a function of `_sums` over the chunks."""
        return self.passes.sum(function, self.parts, *columns, **shared)

    def value(self, W):
        return float(self.sum(_sums.value, W=W)[0]) + self._penalty(W)

    def value_and_gradient(self, W, P=None):
        at = self.linearize(W)
        return at.value, at.gradient

    def linearize(self, W):
        """Return the linearisation at W; the probabilities stay on the workers."""
        chunks = self.passes.each(_sums.linearize, self.parts, W=W)
        value, gradient = self.passes.sum(_sums.value_and_gradient, chunks)
        self.coef(gradient)[...] += self.l2 * self.coef(W).astype(np.float64)
        gradient = self.design.arranged(gradient)
        return DistributedLinearization(self, W, float(value) + self._penalty(W), gradient, chunks)

    def line_minimum(self, W, step, longest, trials=16):
        """Return the t in (0, longest] that minimises F(W + t step), without l1, to a tenth of its size.

        Two passes: the first finds it to a factor of two, the second between.
        """
        linear, square = (self.l2 * inner(self.coef(A), self.coef(step)) for A in (W, step))

        def rising(sizes):
            """Return the number of the first step size after which F rises; the last one counts in any case."""
            slopes = self.sum(_sums.slopes, W=W, step=step, sizes=sizes)[0] + linear + sizes * square
            return int(np.argmax(np.append(slopes[:-1] >= 0, True)))

        sizes = longest * 0.5 ** np.arange(trials, -1.0, -1.0)
        first = rising(sizes)
        low, high = (sizes[first - 1] if first else 0.0), sizes[first]
        sizes = np.linspace(low, high, trials)[1:]
        return float(sizes[max(rising(sizes) - 1, 0)])

    def column_sizes(self):
        if "sizes" not in self._cache:
            self._cache["sizes"] = np.sqrt(self.sum(_sums.squares)[0])
        return self._cache["sizes"]

    def class_moments(self):
        if "moments" not in self._cache:
            self._cache["moments"] = self.sum(_sums.class_moments)[0]
        return self._cache["moments"]

    def class_shares(self):
        """Return the weighted mean of Y, float64, (K,); computed once."""
        if "class_shares" not in self._cache:
            self._cache["class_shares"] = self.sum(_sums.class_shares)[0]
        return self._cache["class_shares"]

    def rows_to_client(self, n_rows, random_state, linearization=None):
        """Return the Objective of some rows on this machine, which stand for all; all rows where they are few.

        Rows are taken in proportion to their weight, and to the uncertainty of their class at a linearisation.
        """
        chunks = [None] * len(self.parts) if linearization is None else linearization.chunks
        wanted = n_rows if n_rows < self.n_rows else None
        pieces = self.passes.gather(_sums.rows_to_send, self.parts, chunks, seeds(self, random_state), wanted=wanted)
        X, codes, targets, weight = zip(*pieces, strict=True)
        rows = Objective(
            vstack(X, format="csr") if issparse(X[0]) else np.concatenate(X),
            None if codes[0] is None else np.concatenate(codes),
            None if targets[0] is None else np.concatenate(targets),
            np.concatenate(weight), self.n_classes, l2=self.l2, l1=self.l1, label_smoothing=self.label_smoothing,
            fit_intercept=self.fit_intercept, n_threads=effective_n_threads(None),
        )  # fmt: skip
        self.passes.row_bytes += array_bytes(rows)
        return rows

    def _penalty(self, W):
        return 0.5 * self.l2 * squared_norm(self.coef(W))


def seeds(objective, random_state):
    """Return a column of seeds, one a chunk."""
    return random_state.randint(2**31, size=len(objective.parts)).tolist()


class DistributedLinearization(Linearization):
    """F near W, with the probabilities on the workers.

    Attributes
    ----------
    chunks : column of Linearization, one a chunk, of which each lacks its objective
    samples : column of RowSample, or None where curvature is that of all rows
    """

    def __init__(self, objective, W, value, gradient, chunks, samples=None):
        self.objective, self.W, self.value, self.gradient = objective, W, value, gradient
        self.chunks, self.samples = chunks, samples

    def hessian_product(self, V):
        objective = self.objective
        if self.samples is None:
            product = objective.sum(_sums.hessian_product, self.chunks, V=V)[0]
        else:
            product = objective.sum(_sums.sampled_hessian_product, self.chunks, self.samples, V=V)[0]
        objective.coef(product)[...] += objective.l2 * objective.coef(V).astype(np.float64)
        return objective.design.arranged(product)

    def product(self, V):
        return ArrayProduct(V, self.hessian_product(V))

    def class_gram(self):
        return self.objective.sum(_sums.class_gram, self.chunks)[0]

    def curvature_sums(self, U):
        return self.objective.sum(_sums.curvature_sums, self.chunks, U=U)

    def max_logit_change(self, step):
        return max(self.objective.passes.gather(_sums.max_logit_change, self.objective.parts, self.chunks, step=step))

    def entropy(self):
        return float(self.objective.sum(_sums.entropy, self.chunks)[0])

    def accuracy(self):
        """Return the weighted share of the rows that are predicted right."""
        return float(self.objective.sum(_sums.correct, self.chunks)[0])

    def with_samples(self, samples):
        """Return the linearisation with the curvature of sampled rows alone."""
        return DistributedLinearization(self.objective, self.W, self.value, self.gradient, self.chunks, samples)

    def with_damping(self, damping):
        """Return the linearisation with the damped probabilities of a column of RowDamping."""
        chunks = self.objective.passes.each(_sums.damped, self.objective.parts, self.chunks, damping)
        return DistributedLinearization(self.objective, self.W, self.value, self.gradient, chunks)
