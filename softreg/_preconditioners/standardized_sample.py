"""A sample of rows in standardised coordinates, (x - mean) / deviation: the base of preconditioners of dense X.

In these coordinates the offsets and units of the features, however large, neither cost precision nor affect the
correlation. X itself is not standardised.
"""

from copy import copy
from functools import cached_property

import numpy as np

from softreg._class_directions import class_directions, directional_curvature, gram_of_moments, probability_moments
from softreg._inner_products import inner
from softreg._systematic_sampling import systematic_sample
from softreg._validation import OVERFLOW

CHUNK_ROWS = 512  # rows that are held in float64 at a time, and of which probabilities are: more, if they are short
CHUNK_NUMBERS = 2**15  # numbers of a chunk of short rows; larger arrays are slower
LEAST_DEVIATION = 1e-15  # in units of sqrt(l2), where deviation and penalty weigh the same


class StandardizedSample:
    """A sample of rows in standardised coordinates; gradients and steps can be converted to these and back.

    Parameters
    ----------
    objective : Objective
    order : random permutation of the rows, (n,)
    size : int, rows of the sample; if it is n or more, all rows are taken once

    Attributes
    ----------
    picked : positions of the sampled rows, sorted, (m,)
    all_rows : bool, True if these are all rows
    weight : weights of the sampled rows, (m,) float64, whose expected sum is 1
    mean, deviation : of the features, (d,) float64
    """

    def __init__(self, objective, order, size):
        self.objective = objective
        if size >= objective.n_rows:
            self._take(np.arange(objective.n_rows), np.ones(objective.n_rows))
        else:
            score = objective.shares() * (0.5 + 0.5 * self.row_lengths)
            self._take(*systematic_sample(score, order, size), size)
        self.mean, self.deviation = self._mean_and_deviation()
        # a feature that is constant in the sample may vary in other rows: its unit is its size
        constant = self.deviation <= 1e-7 * np.abs(self.mean)
        self.deviation[constant] = np.abs(self.mean[constant])
        self.deviation[self.deviation == 0] = 1.0
        # far below, only the penalty is left of the curvature, which would overflow in units of the deviation
        self.deviation = np.maximum(self.deviation, LEAST_DEVIATION * np.sqrt(objective.l2))
        if not np.isfinite(self.deviation).all():
            raise FloatingPointError(OVERFLOW.format(objective.dtype))

    def _mean_and_deviation(self):
        """Return the mean (zero without an intercept) and the deviation of each feature, float64, (d,) each.

        Both come from the distances to the mean of the first rows, in one pass. Squares are those of shares of the
        largest distance, so that they neither overflow nor vanish.
        """
        weight, first = self.weight / self.weight.sum(), None
        mean, size = np.zeros(self.objective.n_features), np.zeros(self.objective.n_features)
        for part, X in self._chunks():
            w = weight[part]
            if first is None:
                first = w @ X / w.sum() if self.objective.fit_intercept and w.any() else np.zeros_like(mean)
            D = np.ascontiguousarray(X.T)  # NumPy is slow along few features
            D -= first[:, None]
            largest = np.maximum(D.max(axis=1), -D.min(axis=1))
            largest[largest == 0] = 1.0
            D /= largest[:, None]
            mean += largest * (D @ w)
            size = np.hypot(size, largest * np.sqrt(np.square(D, out=D) @ w))
        if not self.objective.fit_intercept:
            return first, size
        distance = np.abs(mean)
        return first + mean, np.sqrt(np.maximum(size - distance, 0)) * np.sqrt(size + distance)

    def for_objective(self, objective):
        """Return a copy for an objective that differs in its penalties alone; refresh the copy before use."""
        other = copy(self)
        other.objective = objective
        return other

    def conjugate(self, D, R, square):
        """Make D the next direction of conjugate gradients, (new / square) D - M^-1 R; return new, R^T M^-1 R.

        D INOUT and R are arrays like W, the last direction and the residual; square is what the last call returned.
        """
        Z = self.solve(R)
        new = inner(R, Z)
        D *= D.dtype.type(new / square)
        D -= Z
        return new

    def smallest_eigenvalue(self):
        """Return an estimate of the smallest eigenvalue of M^-1 H; inf if M does not tell."""
        return np.inf

    @cached_property
    def row_lengths(self):
        """Squared lengths of all rows in standardised units, over their mean, (n,)."""
        return self.objective.design.standardized_row_lengths(self.objective.shares())

    @property
    def penalty(self):
        """Diagonal of the Hessian of the penalty in standardised coordinates, (p,)."""
        penalty = (np.sqrt(self.objective.l2) / self.deviation) ** 2
        return np.append(penalty, 0.0) if self.objective.fit_intercept else penalty

    def _take(self, picked, importance, times=1):
        """Set the sample to the positions `picked` (m,), and its weights.

        importance (m,) is 1 over the chance of each position, and `times` the number of draws; both are 1 if all rows
        are taken once.
        """
        self.picked, self.all_rows = picked, len(picked) == self.objective.n_rows
        s = self.objective.sample_weight
        s = 1.0 if s is None else s[picked].astype(np.float64)
        self.weight = importance * s / (times * self.objective.total_weight)

    def _chunks(self):
        """Yield slices of the sample, each with its rows in float64."""
        for chunk in self._chunk_slices():
            yield chunk, self.objective.design.float64_rows(chunk if self.all_rows else self.picked[chunk])

    def _chunk_slices(self):
        size = max(CHUNK_ROWS, CHUNK_NUMBERS // max(self.objective.shape))
        return (slice(start, start + size) for start in range(0, len(self.picked), size))

    def standardized(self, dtype):
        """Return [(x - mean) / deviation, 1] for each row of the sample, (m, p)."""
        Z = np.ones((len(self.picked), self.objective.shape[1]), dtype)
        for chunk, X in self._chunks():
            Z[chunk, : X.shape[1]] = (X - self.mean) / self.deviation
        return Z

    def class_directions(self, linearization):
        """Return the class directions (K, L) for the probabilities of the sample."""
        first = second = 0.0
        for rows in self._chunk_slices():
            moments = probability_moments(linearization.probabilities(self.picked[rows]), self.weight[rows])
            first, second = first + moments[0], second + moments[1]
        return class_directions(gram_of_moments(first, second))

    def curvatures(self, linearization, U):
        """Yield slices of the sample, each with the curvature of its rows along U (K, L), (L, m) float32."""
        for rows in self._chunk_slices():
            P = linearization.probabilities(self.picked[rows])
            yield rows, directional_curvature(P, self.weight[rows], U, np.float32)

    def to_standardized(self, G):
        """Return the gradient G (K, p) with respect to W as one in standardised coordinates, float64, (K, p)."""
        d = self.objective.n_features
        G = G.astype(np.float64)
        if self.objective.fit_intercept:
            G[:, :d] -= G[:, d:] * self.mean
        G[:, :d] /= self.deviation
        return G

    def from_standardized(self, V):
        """Return the step V (K, p) in standardised coordinates as a step in W; V is overwritten."""
        d = self.objective.n_features
        V[:, :d] /= self.deviation
        if self.objective.fit_intercept:
            V[:, d] -= V[:, :d] @ self.mean
        return self.objective.design.arranged(V)
