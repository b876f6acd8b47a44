"""What a solver hands back, and the diary it keeps on the way."""

import time
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Run:
    """Where a solver has come, and how it got there."""

    W: np.ndarray
    solver: str  # that is at work, or was the last to be
    stopped_on: str = "max_iter"
    bound: float = -np.inf  # the best proven lower bound on min F so far
    gap: float = np.inf  # proven bound on F - min F
    estimate: float = np.nan  # the same by the Newton decrement, not proven
    passes: float = 0.0  # over the data, for a gradient or a Hessian product
    M: object = None  # the preconditioner at the end, for the next fit of a path
    records: list = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def converged(self):
        return self.stopped_on in ("gap", "estimate")

    def record(self, loss):
        seconds = time.perf_counter() - self.started
        entry = {"loss": loss, "gap": np.nan, "gap_estimate": np.nan, "passes": self.passes, "time": seconds}
        self.records.append(entry)
        return entry

    def certify(self, objective, value, gradient, P, tol):
        """Compute the proven gap from F, its gradient and the probabilities at W; whether it is within tol."""
        self.records[-1].update(loss=value + objective.penalty_l1(self.W), passes=self.passes)
        return self.bounded(objective, objective.lower_bound(self.W, P, gradient), tol)

    def bounded(self, objective, bound, tol):
        """Note the gap to the best proven lower bound on min F, this one or an earlier; whether it is within tol."""
        bound -= rounding_allowance(objective.n_rows, objective.dtype)
        self.bound, loss = max(self.bound, bound), self.records[-1]["loss"]
        self.gap = self.records[-1]["gap"] = max(loss - self.bound, 0.0)
        if self.gap <= tol * abs(loss):
            self.stopped_on = "gap"
        return self.converged

    def estimated(self, gap, loss, tol):
        """Note an estimate of the gap in the last record, if there is one, and whether it is within tol."""
        if np.isfinite(gap):
            self.estimate = self.records[-1]["gap_estimate"] = gap
            if gap <= tol * abs(loss):
                self.stopped_on = "estimate"


def rounding_allowance(n_rows, dtype):
    """Return what a bound on min F, made from sums over n_rows rows, leaves for their rounding.

    Losses and entropies come from probabilities near 1, rounded by eps; their means are off by less than 0.1 eps.
    """
    return 0.1 * float(np.finfo(dtype).eps)
