"""Newton's method over rows on Dask workers: what it samples and damps stays there, and its preconditioner is here.

The preconditioner is built on this machine, from some thousand rows that stand for all. Their probabilities are
computed here from W, so a refresh costs no pass.
"""

import numpy as np

from softreg._preconditioners import (
    EXACT_SIZE,
    Blocks,
    Diagonal,
    Exact,
    ScaledCorrelation,
    needs_no_rows,
    preconditioner,
)
from softreg._solvers.newton import LONG_SOLVE, Newton
from softreg._solvers.row_sampling import RowDamping, RowSample
from softreg._solvers.sgd import quick_start
from softreg.dask import _sums
from softreg.dask._objective import seeds

ROWS, FEWEST_ROWS, NUMBERS = 16384, 4096, 2**25  # that come to the client: rows, and numbers of them


def distributed_newton(objective, start, options, monitor):
    """Minimise a smooth DistributedObjective from `start`; return the result, see `newton`."""
    return DistributedNewton(objective, start, options).run(options.max_iter, monitor)


class DistributedNewton(Newton):
    """The state of Newton's method.

    Attributes
    ----------
    rows : Objective on this machine over some rows that stand for all, or None where none are needed
    """

    def set_up_sampling(self, random_state):
        objective = self.objective
        self.random_state, self.rows, worthwhile = random_state, None, RowSample.is_worthwhile(objective)
        if worthwhile or not needs_no_rows(objective):
            n_rows = min(ROWS, max(FEWEST_ROWS, NUMBERS // objective.n_features))
            self.rows = objective.rows_to_client(n_rows, random_state)
        n, p = objective.n_rows, objective.shape[1]
        first = min(1.0, max(1 / 16, 10 * p / n)) if worthwhile else 1.0
        self.sample, self.damping = ChunkSamples(objective, seeds(objective, random_state), first), ChunkDamping(self)

    def sgd_start(self, zero, random_state):
        """Return the linearisation after SGD on the rows that are here, or that at zero if F is lower there."""
        at = self.linearize(quick_start(self.rows, random_state))
        return at if at.value < np.log(self.objective.n_classes) else self.linearize(zero)

    def new_preconditioner(self):
        if needs_no_rows(self.objective):
            return Diagonal(self.objective)
        return RowsPreconditioner(self)

    def adapt_model(self):
        if self.solution.products > LONG_SOLVE and isinstance(self.M, RowsPreconditioner) and self.M.take_blocks():
            self.since_refresh, self.smallest, self.seen = np.inf, np.inf, 0
        super().adapt_model()


class RowsPreconditioner:
    """A preconditioner of one machine, over the rows that are here."""

    def __init__(self, newton):
        self.newton, self.has_blocks = newton, False
        rows, order = newton.rows, newton.random_state.permutation(newton.rows.n_rows)
        K, p = rows.shape
        self.has_all_rows = rows.n_rows == newton.objective.n_rows
        if K * p <= EXACT_SIZE and not self.has_all_rows:
            self.M = Exact(rows, order, min(4 * K * p, rows.n_rows - 1))  # fewer than all: it allows for their noise
        else:
            self.M = preconditioner(rows, order)

    @property
    def is_exact_inverse(self):
        return self.has_all_rows and self.M.is_exact_inverse

    @property
    def min_products(self):
        return self.M.min_products

    def conjugate(self, D, R, square):
        return self.M.conjugate(D, R, square)

    def smallest_eigenvalue(self):
        return self.M.smallest_eigenvalue()

    @property
    def refresh_interval(self):
        """Products over all rows between two refreshes. Blocks take rows anew, which costs a pass."""
        share = self.newton.rows.n_rows / self.newton.objective.n_rows
        return max(8, self.M.refresh_interval) if self.has_blocks else share * self.M.refresh_interval

    def take_blocks(self):
        """Change to `Blocks`, if these are not there yet and suit the problem; return whether they are new."""
        if self.has_blocks or not isinstance(self.M, ScaledCorrelation) or not Blocks.is_applicable(self.newton.rows):
            return False
        self.base, self.has_blocks = self.M, True
        return True

    def refresh(self, linearization):
        rows = self.newton.rows
        if self.has_blocks:
            self.M, rows = self._blocks(linearization)
        at = rows.linearize(linearization.W)
        self.M.refresh(at if self.has_blocks else self.newton.damping.of_rows_here(at))

    def _blocks(self, linearization):
        """Return Blocks and their rows: taken by their curvature, which comes from few rows late in a fit."""
        size, random_state = max(FEWEST_ROWS, 5 * self.newton.objective.shape[1]), self.newton.random_state
        rows = self.newton.objective.rows_to_client(size, random_state, linearization)
        base = self.base.for_objective(rows)
        base.row_lengths = np.ones(rows.n_rows)  # the lengths are in the weights
        return Blocks(base, random_state.permutation(rows.n_rows)), rows

    def solve(self, G):
        return self.M.solve(G)


class ChunkSamples:
    """The rows over which Hessian products are made: a RowSample of each chunk, which stands for the chunk.

    Attributes
    ----------
    share : float, the part of the rows that is sampled
    """

    def __init__(self, objective, seeds, share):
        self.objective, self.seeds, self.share, self.samples = objective, seeds, share, None
        if share < 1:
            self.samples = objective.passes.each(_sums.row_sample, objective.parts, seeds, kind="little", share=share)

    def doubled(self):
        return ChunkSamples(self.objective, self.seeds, min(2 * self.share, 1.0))

    def of(self, linearization):
        return linearization if self.samples is None else linearization.with_samples(self.samples)


class ChunkDamping:
    """Row damping: a RowDamping of each chunk, and one of the rows that are here.

    Attributes
    ----------
    is_active : bool, True if a row is damped
    """

    def __init__(self, newton):
        self.newton, self.is_active, self.chunks = newton, False, None
        self.here = None if newton.rows is None else RowDamping(newton.rows)

    def of(self, linearization):
        return linearization.with_damping(self.chunks) if self.is_active else linearization

    def of_rows_here(self, linearization):
        """Return the damped linearisation of the rows that are here."""
        return self.here.of(linearization)

    def update(self, before, trial, overshot):
        """Damp the rows, on the workers and here, that a step from `before` to `trial` misjudged, if it overshot."""
        if not overshot and not self.is_active:
            return
        objective, rows = self.newton.objective, self.newton.rows
        passes, parts = objective.passes, objective.parts
        if not self.is_active:
            self.chunks = passes.each(_sums.new_damping, parts, kind="little")
        columns = parts, self.chunks, before.chunks, trial.chunks
        self.chunks = passes.each(_sums.updated_damping, *columns, kind="little", overshot=overshot)
        self.is_active = passes.sum(_sums.count_damped, self.chunks)[0] > 0
        if rows is not None:
            self.here.update(rows.linearize(before.W), rows.linearize(trial.W), overshot)
