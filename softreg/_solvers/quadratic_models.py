"""Quadratic models of the objective over a working set of coefficients, minimised together with the l1 penalty.

    g^T (v - w) + 1/2 (v - w)^T (H + damping B) (v - w) + sum_j l1_j |v_j|

H is the Hessian of the loss, and B = 1/2 (I - 1 1^T / K) (x) sum_i s_i x_i x_i^T bounds it wherever it is taken
(Böhning 1992): with damping 1 the model lies above the objective. B measures a step by the logits that it changes, so
the damping does not depend on the units of the features.

Coordinate descent finds which coefficients are zero, and slowly all the rest where features are correlated. A Newton
step on those that are not zero finds the rest at once. The two alternate.
"""

from functools import cached_property, partial

import numpy as np
from scipy.linalg import blas
from scipy.special import softmax

from softreg import _coordinate_descent
from softreg._design_matrix import BLOCK_ROWS, design_matrix
from softreg._solvers.centred_coordinates import BLOCK_NUMBERS

ROUNDS, SWEEPS = 50, 20  # of coordinate descent and a Newton step at most, and of coordinate descent in a round
ROUNDS_BEFORE_NEWTON = 5  # where the Hessian over the support has to be made for it
NARROW = 256  # features up to which it may be; the products of more do not fit the cache
NEARLY_FULL = 0.6  # share of the coefficients of its features above which the Hessian over these is made for all
SMALL_GAIN = 1e-2  # a round that gains less than this share of the whole ends an early solve


class Model:
    """Base of both kinds of models.

    Attributes
    ----------
    coordinates : CentredCoordinates
    working : tuple of arrays (m,), the row of V and the feature of each coefficient of the working set, in C order
    l1, l2 : arrays (m,), the penalties
    v, g : arrays (m,), the coefficients and the gradient of the quadratic part there
    is_exact : bool, False if the Hessian is that of a sample of the rows
    """

    def __init__(self, coordinates, working, is_exact=True):
        self.coordinates, self.working, self.is_exact = coordinates, working, is_exact
        self.l1, self.l2 = (penalty[working[1]] for penalty in (coordinates.l1, coordinates.l2))
        self.shared = _shared_features(working[1], coordinates.n_rows)

    def minimize(self, V, gradient, damping, accuracy, small):
        """Return V at the minimum, and the decrease that the model without damping promises.

        Parameters
        ----------
        V : array (L, p), where the model was made
        gradient : array (L, p), of the loss at V
        damping : float
        accuracy : float
            The solve ends where no optimality condition is violated by more than this share of l1.
        small : float
            A solve that gained more than this may also end where it gains little more.
        """
        if not len(self.l1):  # without intercepts, where all weights are to stay zero
            return V.copy(), 0.0
        w = V[self.working]
        slopes = gradient[self.working]
        self.v, self.g, self.damping = w.copy(), slopes + self.l2 * w, damping
        tolerance = self.precision * accuracy * self.coordinates.strength
        gain = self.solve(slopes, tolerance, small)
        new = V.copy()
        new[self.working] = self.v
        return new, self.coordinates.copies * (gain + self.damping_gain(w))


class HessianModel(Model):
    """The model with its Hessian as a matrix: for working sets of some hundreds or few thousands."""

    precision = 0.01  # Newton steps make solves precise at little cost, and the zeros with them
    largest_support = 4000  # of a Newton step

    def __init__(self, coordinates, linearization, working, positions=None):
        super().__init__(coordinates, working, positions is None)
        self.H, self.B = self.sums_over_rows(linearization, positions)
        if self.l2.any():
            self.H[np.diag_indices_from(self.H)] += self.l2

    def sums_over_rows(self, linearization, positions):
        """Return the Hessian of the loss and a `Bound` of it, from the rows at positions."""
        return hessian_and_bound(self.coordinates, linearization, *self.working, positions)

    def solve(self, slopes, tolerance, small):
        """Minimise the damped model from v; return its decrease."""
        A = self.H + self.damping * self.B.matrix if self.damping else self.H
        penalties = self.l1, self.l2, self.shared
        limits = self.largest_support, ROUNDS, SWEEPS, SMALL_GAIN
        return _coordinate_descent.minimize_quadratic(A, *penalties, self.g, self.v, tolerance, small, *limits)

    def damping_gain(self, w):
        return 0.5 * self.damping * (self.v - w) @ (self.B.matrix @ (self.v - w)) if self.damping else 0.0


class ColumnModel(Model):
    """The model by columns of a sparse X: for working sets of any size."""

    precision = 1.0
    largest_support = 1500

    def __init__(self, coordinates, linearization, working):
        super().__init__(coordinates, working)
        self.linearization = linearization
        self.P = coordinates.probabilities(linearization, slice(None))
        self.s = coordinates.copies * coordinates.shares
        classes, features = working
        X = coordinates.columns
        columns = np.where(features < coordinates.n_features, features, -1)
        self.arrays = X.data, X.indices, X.indptr, columns, classes, self.P, self.s

    def solve(self, slopes, tolerance, small):
        """Minimise the damped model from v, as `minimize_quadratic` does; return its decrease."""
        self.Z, self.means = np.zeros_like(self.P), np.zeros((2, self.P.shape[1]))
        given = (*self.arrays, self.damping, 1 / self.coordinates.n_classes, slopes, self.l2, self.l1)
        w, first, gain = self.v.copy(), self.g.copy(), 0.0
        for rounds in range(1, ROUNDS + 1):
            _coordinate_descent.column_descent(*given, self.v, self.Z, self.means, self.g, tolerance, SWEEPS)
            gained, gain = -gain, self.gain(w, first)
            gained += gain
            if self.violation() <= tolerance or (gain > small and gained <= SMALL_GAIN * gain):
                break
            if rounds % ROUNDS_BEFORE_NEWTON == 0:
                self.newton_step()
        return gain

    def gain(self, w, first):
        """Return the decrease of the damped model since w, where its gradient was `first`."""
        return -0.5 * (self.v - w) @ (self.g + first) - self.l1 @ (np.abs(self.v) - np.abs(w))

    def violation(self):
        """Return the largest violation of an optimality condition."""
        v, g, l1 = self.v, self.g, self.l1
        return np.where(v == 0, np.maximum(np.abs(g) - l1, 0), np.abs(g + np.sign(v) * l1)).max(initial=0)

    def newton_step(self):
        """Go towards the minimum over the coefficients that are not zero, and exact zeros on the way."""
        S = np.flatnonzero((self.v != 0) | (self.l1 == 0))
        if len(S) > self.largest_support:
            return
        H, B = hessian_and_bound(self.coordinates, self.linearization, *(part[S] for part in self.working))
        if self.damping:
            H += self.damping * B.matrix
        H[np.diag_indices_from(H)] += self.l2[S]
        v, g = self.v[S], self.g[S]  # the next descent computes the rest of g anew
        _coordinate_descent.newton_step(H, self.l1[S], self.shared_within(S), g, v)
        step, self.v[S], self.g[S] = v - self.v[S], v, g
        self.follow(S, step)
        _coordinate_descent.shift_classes(self.shared, self.l1, self.l2, self.g, self.v)

    def shared_within(self, S):
        """Return the positions in S of the features that S has for all classes, (q, K)."""
        at = np.full(len(self.v), -1)
        at[S] = np.arange(len(S))
        at = at[self.shared]
        return at[(at >= 0).all(axis=1)]

    def follow(self, S, step):
        """Add a step on the coefficients at S to the logits and their means."""
        classes, features = (part[S] for part in self.working)
        for k in np.unique(classes):
            of_class = classes == k
            self.Z[k] += self.coordinates.column_product(features[of_class], step[of_class])
        self.means[0] = np.einsum("ki,ki->i", self.P, self.Z)
        self.means[1] = self.Z.sum(axis=0) / self.coordinates.n_classes

    def damping_gain(self, w):
        spread = np.einsum("ki,ki->i", self.Z, self.Z) - self.coordinates.n_classes * self.means[1] ** 2
        return 0.25 * self.damping * (self.s @ spread)


def hessian_and_bound(coordinates, linearization, classes, features, positions=None):
    """Return the Hessian of the loss over the coefficients, (m, m), from the rows at positions, and a `Bound` of it.

    With x_c and p_c the feature and the probability of a coefficient's class, the Hessian is the mean of
    (p_c [same class] - p_c p_d) x_c x_d over the rows.
    """
    used, column = _numbered(features)
    is_full = len(used) <= NARROW and len(classes) > NEARLY_FULL * coordinates.n_rows * len(used)
    at = coordinates, linearization, classes, used, column, positions
    if not linearization.objective.coef(linearization.W).any():
        H = _hessian_of_null_model(*at)
    elif coordinates.objective.design.can_center and is_full:
        H = _dense_hessian(*at)
    else:
        H = _hessian_by_blocks(*at)
    return H, Bound(classes, features, partial(scatter, coordinates, used, positions), coordinates.n_classes)


def _hessian_of_null_model(coordinates, linearization, classes, used, column, positions):
    """Return the Hessian where all rows have the same probabilities: a Kronecker product, which costs little."""
    logits = coordinates.objective.design.intercepts(linearization.W).sum(axis=1, dtype=np.float64)
    p = softmax(logits)[-coordinates.n_rows :]
    J = np.diag(p) - np.outer(p, p)
    return J[classes].take(classes, axis=1) * scatter(coordinates, used, positions)[column].take(column, axis=1)


def _dense_hessian(coordinates, linearization, classes, used, column, positions):
    """Return the Hessian from that over all classes of the features `used`; columns are numbered among these."""
    c, design, columns = coordinates, coordinates.objective.design, used[used < coordinates.n_features]
    H, has_intercept, mean, unit = None, len(columns) < len(used), c.mean[columns], np.ones(len(columns))
    is_every = len(used) == design.n_columns
    for rows, share in c.row_blocks(positions, design.n_rows if is_every else BLOCK_ROWS):
        P, weight, X = linearization.probabilities(rows), c.copies * share, design
        if not is_every:
            X = design_matrix(np.ascontiguousarray(design.copy_rows(rows)[:, columns]), fit_intercept=has_intercept)
            rows = slice(None)
        part = X.standardized_hessian(rows, P, weight, mean, unit)
        H = part if H is None else np.add(H, part, out=H)
    if c.is_binary:
        return np.ascontiguousarray(H[1, :, 1])
    at = classes * len(used) + column
    H = H.reshape(c.n_classes * len(used), -1)
    return H if len(at) == len(H) else H[at].take(at, axis=1)


def _hessian_by_blocks(coordinates, linearization, classes, used, column, positions):
    """Return the Hessian from blocks of rows, for the coefficients alone; columns are numbered among `used`."""
    c, m = coordinates, len(classes)
    H = np.zeros((m, m), order="F")
    if not m:
        return H
    same_class = [slice(*np.searchsorted(classes, (k, k + 1))) for k in range(c.n_rows)]
    for rows, share in c.row_blocks(positions, max(64, BLOCK_NUMBERS // m)):
        X = c.centred_columns(rows, used)
        X *= np.sqrt(c.copies * share)
        X_c = X[column]
        Y_c = X_c * c.probabilities(linearization, rows)[classes]
        for block in same_class:
            H[block, block] += X_c[block] @ Y_c[block].T
        H = blas.dsyrk(-1.0, Y_c.T, beta=1.0, c=H, trans=1, overwrite_c=1)
    upper = np.triu(H)
    return upper + np.triu(upper, 1).T


def scatter(coordinates, features, positions=None):
    """Return the Gram matrix of centred features over the rows at positions, (q, q), for two classes twice that."""
    c, total = coordinates, np.zeros((len(features), len(features)))
    for rows, share in c.row_blocks(positions, max(64, BLOCK_NUMBERS // max(len(features), 1))):
        X = c.centred_columns(rows, features)
        X *= np.sqrt(c.copies * share)
        total += X @ X.T
    return total


class Bound:
    """The bound B of a Hessian over coefficients, from the Gram matrix of their features; made when it is needed.

    Parameters
    ----------
    classes, features : arrays (m,), the rows and columns of V of the coefficients
    scatter : function that returns the Gram matrix of the q features that occur, (q, q), in order
    n_classes : int, K
    """

    def __init__(self, classes, features, scatter, n_classes):
        self.classes, self.features, self.scatter, self.n_classes = classes, features, scatter, n_classes

    @cached_property
    def matrix(self):
        column = _numbered(self.features)[1]
        B = self.scatter()[column[:, None], column]
        B *= 0.5 * ((self.classes[:, None] == self.classes) - 1 / self.n_classes)
        return B


def _numbered(features):
    """Return the features that occur, in order, and for each entry the number of its feature among these."""
    occurs = np.bincount(features) > 0
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[features]


def _shared_features(features, n_rows):
    """Return the positions of each feature that is there for all of several rows, (q, n_rows)."""
    if n_rows == 1:
        return np.empty((0, 1), np.intp)
    order, counts = np.argsort(features, kind="stable"), np.bincount(features, minlength=1)
    return order[np.repeat(counts == n_rows, counts)].reshape(-1, n_rows)
