"""Learning rates: schedules, and what eta0="auto" means, a rate for each column of W that does not overshoot."""

from dataclasses import dataclass

import numpy as np
from sklearn.utils.extmath import row_norms

from softreg._systematic_sampling import systematic_sample
from softreg._validation import OVERFLOW

SAMPLE = 4096  # rows that tell the curvature of all; fewer where they are wide
SAMPLE_NUMBERS = 2**21  # numbers in that sample at most


def schedule(name, progress, power=0.5):
    """Return the factor on eta0 after `progress` epochs of a fit, progress = (epochs done, epochs planned).

    constant    1
    adaptive    1, of a rate that the solver lowers by itself
    linear      1 - t / T
    cosine      (1 + cos(pi t / T)) / 2                (Loshchilov and Hutter 2017)
    invscaling  (1 + t)^-power                         (Robbins and Monro 1951)
    """
    done, total = progress
    if name in ("constant", "adaptive"):
        return 1.0
    if name == "linear":
        return max(0.0, 1.0 - done / total)
    if name == "cosine":
        return 0.5 * (1.0 + np.cos(np.pi * min(1.0, done / total)))
    if name == "invscaling":
        return (1.0 + done) ** -power
    raise ValueError(f"unknown schedule {name!r}")


@dataclass
class Rates:
    """The rate at each row of one pass over them: eta0 times the schedule, which counts rows, in `unit`s."""

    eta0: float | np.ndarray
    name: str
    rows: int  # seen before the pass
    unit: int
    total: int | None = None  # units that are planned

    def __call__(self, done):
        return self.eta0 * float(schedule(self.name, ((self.rows + done) / self.unit, self.total)))


def automatic_rate(objective, batch_size, momentum_gain):
    """Return the rate of each column, (p,), for minibatches of all rows."""
    sizes = column_sizes(objective.design.column_totals(weights(objective)))
    return rates_of(objective, sizes, max_curvature(objective, sizes, batch_size, momentum_gain))


def weights(objective):
    """Return the sample weights of the rows, (n,) float64."""
    weight = objective.sample_weight
    return np.ones(objective.n_rows) if weight is None else weight.astype(np.float64)


def column_sizes(totals):
    """Return the root mean square of the entries that are not zero: rare words are as large as common ones."""
    squares, counts = totals
    return np.sqrt(squares) / np.sqrt(np.where(counts > 0, counts, 1))  # not zero where squares are subnormal


def units(objective, sizes):
    """Return the step of each column that counts as one, so that rates do not depend on the units of the features.

    The normalisation is that of Ross, Mineiro and Langford (2013). A gradient grows with the feature, and the step
    has to shrink with it: 1 / size^2. Twice l2 in it keeps the penalty of a tiny feature from being what limits all
    rates.
    """
    sizes = np.where(sizes > 0, sizes, 1)
    return 1 / (sizes**2 + 2 * objective.l2)


def rates_of(objective, sizes, curvature):
    """Return 1 / L in units of the columns, (p,).

    Raises
    ------
    FloatingPointError
        If the dtype has no such number.
    """
    with np.errstate(all="ignore"):
        rates = (units(objective, sizes) / curvature).astype(objective.dtype)
    if not (np.isfinite(rates).all() and rates.min(initial=1) >= np.finfo(rates.dtype).tiny):
        raise FloatingPointError(OVERFLOW.format(rates.dtype))
    return rates


def max_curvature(objective, sizes, batch_size, momentum_gain, n_rows=None):
    """Return L for minibatches out of `n_rows` rows, in units of the columns.

    The Hessian of one row is at most (1/2) [x 1][x 1]^T in every direction of the classes (Böhning 1992), so
    L <= 1/2 lambda_max for the whole, L_i <= 1/2 n s_i/S ||[x_i 1]||^2 for a single row, and for batches the
    mean of both that Gower et al. (2019) derive; momentum adds up `momentum_gain` steps of the noise of single rows.
    Of the L_i their mean weighted by themselves is taken, not the largest: gradients of softmax are bounded, and a rare
    long row makes a long step, not a divergence. lambda_max comes from power iterations on a sample of the rows.
    """
    design, offset = objective.design, objective.fit_intercept
    count = min(SAMPLE, max(SAMPLE_NUMBERS // objective.n_features, 64)) if design.can_center else SAMPLE
    if objective.sample_weight is None:
        positions = np.unique(np.linspace(0, objective.n_rows - 1, count).astype(np.intp))
        importance = np.ones(len(positions))
    else:
        order = np.arange(objective.n_rows)
        positions, importance = systematic_sample(objective.shares(), order, min(count, objective.n_rows))
    unit = units(objective, sizes)[: objective.n_features]
    X = design.scaled_rows(positions, np.sqrt(unit).astype(objective.dtype))
    s = weights(objective)[positions]
    share = s * importance
    share /= share.sum()
    n = n_rows or max(objective.n_rows, 2)
    batch = min(batch_size, n)
    alone = (row_norms(X, squared=True) + offset) * s * (objective.n_rows / objective.total_weight)
    single = float(importance @ alone**2 / (importance @ alone or 1))
    noise = (1 - batch / n) / (batch * (1 - 1 / n))
    whole = largest_eigenvalue(X, share, offset) if noise < 1 else 0.0
    L = 0.5 * ((1 - noise) * whole + noise * single * momentum_gain) + objective.l2 * unit.max()
    return max(float(L), float(np.finfo(objective.dtype).tiny))


def largest_eigenvalue(X, share, offset, iterations=20):
    """Return that of A^T diag(share) A, where A is X or [X 1], by power iterations."""
    v, largest = np.random.default_rng(0).standard_normal(X.shape[1] + bool(offset)), 0.0
    for _ in range(iterations):
        v /= np.linalg.norm(v) or 1.0
        z = share * (X @ v[: X.shape[1]].astype(X.dtype) + (v[-1] if offset else 0.0))
        v = np.append(X.T @ z.astype(X.dtype), z.sum()) if offset else (X.T @ z.astype(X.dtype)).astype(np.float64)
        largest = np.linalg.norm(v)
    return largest
