"""What eta0="auto" means: a rate for each column of W, as high as it can be without overshooting."""

import numpy as np

from softreg._row_sampling import systematic_sample
from softreg._validation import OVERFLOW

SAMPLE = 4096  # rows that tell the curvature of all; fewer where they are wide
NUMBERS = 2**21  # of a dense sample or block at most: X may be larger than memory, and copies of it may not


def automatic_rate(objective, batch_size, optimizer):
    """The rate of each column, as an array of shape (p,), for minibatches of all rows."""
    sizes = column_sizes(column_totals(objective))
    return rate_of(objective, sizes, steepness(objective, optimizer, sizes, batch_size))


def column_totals(objective):
    """sum_i s_i x_ij^2 and sum_i s_i [x_ij != 0] of each column, shape (2, p); X is read block by block."""
    totals, d = np.ones((2, objective.shape[1])), objective.n_features
    totals[:, :d] = 0
    step = 2**16 if objective.sparse else max(NUMBERS // d, 1)
    for start in range(0, objective.n_rows, step):
        rows = np.arange(start, min(start + step, objective.n_rows))
        rows = rows if objective.rows is None else objective.rows[rows]
        s = np.ones(len(rows)) if objective.sample_weight is None else objective.sample_weight[rows].astype(np.float64)
        X = objective.X[rows].astype(np.float64)
        totals[1, :d] += s @ (X != 0)
        totals[0, :d] += s @ (X.multiply(X) if objective.sparse else np.multiply(X, X, out=X))
    return totals


def column_sizes(totals):
    """The root mean square of the entries that are not zero: rare words are as large as common ones."""
    squares, counts = totals
    return np.sqrt(squares / np.where(counts > 0, counts, 1))


def units(objective, sizes):
    """The step of each column that counts as one, so that rates do not depend on the units that features come in.

    The normalisation is that of Ross, Mineiro and Langford (2013). A gradient grows with the feature, and the step
    has to shrink with it: 1 / size^2. Twice l2 in it keeps the penalty of a tiny feature from being what limits all
    rates.
    """
    sizes = np.where(sizes > 0, sizes, 1)
    return 1 / np.maximum(sizes**2 + 2 * objective.l2, np.finfo(float).tiny)


def rate_of(objective, sizes, steepness):
    """Return 1 / L in units of the columns; raise FloatingPointError where the dtype has no such number."""
    with np.errstate(all="ignore"):
        rate = (units(objective, sizes) / steepness).astype(objective.dtype)
    if not (np.isfinite(rate).all() and rate.min(initial=1) >= np.finfo(rate.dtype).tiny):
        raise FloatingPointError(OVERFLOW.format(rate.dtype))
    return rate


def steepness(objective, optimizer, sizes, batch_size, n_rows=None):
    """L for minibatches out of `n_rows` rows, in units of the columns.

    The Hessian of one row is at most (1/2) [x 1][x 1]^T in every direction of the classes (Böhning 1992), so
    L <= 1/2 lambda_max for the whole, L_i <= 1/2 n s_i/S ||[x_i 1]||^2 for a single row, and for batches the
    mean of both that Gower et al. (2019) derive; momentum adds up `lag` steps of the noise of single rows. Of the L_i
    their mean weighted by themselves is taken, not the largest: gradients of softmax are bounded, and a rare steep row
    makes a long step, not a divergence. lambda_max comes from power iterations on a sample of the rows.
    """
    count = SAMPLE if objective.sparse else min(SAMPLE, max(NUMBERS // objective.n_features, 64))
    if objective.sample_weight is None:
        rows = np.unique(np.linspace(0, objective.n_rows - 1, count).astype(np.intp))
        importance = np.ones(len(rows))
    else:
        order = np.arange(objective.n_rows)
        rows, importance = systematic_sample(objective.shares(), order, min(count, objective.n_rows))
    rows = rows if objective.rows is None else objective.rows[rows]
    X, offset = objective.X[rows], objective.fit_intercept  # a copy
    unit = units(objective, sizes)[: objective.n_features]
    scale = np.sqrt(unit).astype(X.dtype)
    if objective.sparse:
        X.data *= scale[X.indices]
    else:
        X *= scale
    s = np.ones(len(rows)) if objective.sample_weight is None else objective.sample_weight[rows].astype(np.float64)
    share = s * importance
    share /= share.sum()
    squares = np.asarray(X.multiply(X).sum(axis=1)).ravel() if objective.sparse else np.einsum("ij,ij->i", X, X)
    n = n_rows or max(objective.n_rows, 2)
    batch = min(batch_size, n)
    alone = (squares + offset) * s * (objective.n_rows / objective.total_weight)
    single = float(importance @ alone**2 / (importance @ alone or 1))
    noise = (1 - batch / n) / (batch * (1 - 1 / n))
    whole = largest_eigenvalue(X, share, offset) if noise < 1 else 0.0
    L = 0.5 * ((1 - noise) * whole + noise * single * optimizer.lag) + objective.l2 * unit.max()
    return max(float(L), float(np.finfo(objective.dtype).tiny))


def largest_eigenvalue(X, share, offset, iterations=20):
    """Of A^T diag(share) A, where A is X or [X 1], by power iterations."""
    v, largest = np.random.default_rng(0).standard_normal(X.shape[1] + bool(offset)), 0.0
    for _ in range(iterations):
        v /= np.linalg.norm(v) or 1.0
        z = share * (X @ v[: X.shape[1]].astype(X.dtype) + (v[-1] if offset else 0.0))
        v = np.append(X.T @ z.astype(X.dtype), z.sum()) if offset else (X.T @ z.astype(X.dtype)).astype(np.float64)
        largest = np.linalg.norm(v)
    return largest
