"""Input and output of solvers: Start, Options, and Result with its iteration history."""

import time
from dataclasses import dataclass, field

import numpy as np

from softreg import _duality


@dataclass(frozen=True)
class Start:
    """The start of a solver; solvers copy W before they change it.

    Attributes
    ----------
    W : array of shape (K, p), or None where there is a result
    preconditioner : of a fit that ended at W, or None
    result : Result of another solver, to go on with from its W, or None; it changes, and its W too
    """

    W: np.ndarray | None
    preconditioner: object = None
    result: "Result | None" = None


@dataclass(frozen=True)
class Options:
    """Parameters of the estimator that solvers read; the registry says which solver reads which."""

    max_iter: int
    tol: float
    random_state: np.random.RandomState
    precondition: bool = True
    shuffle: bool = True
    n_iter_no_change: int = 5
    may_give_up: bool = False  # True if another solver follows one that is slow


@dataclass
class Result:
    """The result of a solver, which fills it while it runs.

    Attributes
    ----------
    W : array of shape (K, p)
    solver : name of the solver that finished
    stopped_on : reason for the end, see `SoftmaxRegression.stopped_on_`
    lower_bound : the best proven lower bound on min F so far
    gap : proven bound on F - min F
    estimate : estimate of F - min F by the Newton decrement, not proven; NaN where there is none
    passes : over the data, for a gradient or a Hessian product
    preconditioner : at the end, for the next fit of a path
    history : list of dicts, one an iteration
    started : time at which the solver began, for the history
    """

    W: np.ndarray
    solver: str = ""
    stopped_on: str = "max_iter"
    lower_bound: float = -np.inf
    gap: float = np.inf
    estimate: float = np.nan
    passes: float = 0.0
    preconditioner: object = None
    history: list = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def converged(self):
        return self.stopped_on in ("gap", "estimate")

    @property
    def loss(self):
        """The objective in the last entry of the history."""
        return self.history[-1]["loss"]

    def record(self, loss):
        """Append an entry with this loss to the history, and return the entry."""
        seconds = time.perf_counter() - self.started
        entry = {"loss": loss, "gap": np.nan, "gap_estimate": np.nan, "passes": self.passes, "time": seconds}
        self.history.append(entry)
        return entry

    def certify(self, linearization, tol):
        """Compute the proven gap at W, note it in the last entry, and stop on "gap" if it is within tol.

        Return True if the solver has converged.
        """
        loss = linearization.value + linearization.objective.penalty_l1(self.W)
        self.history[-1].update(loss=loss, passes=self.passes)
        return self.bound(_duality.lower_bound(linearization), tol)

    def bound(self, lower_bound, tol):
        """Note the gap to the best proven lower bound so far in the last entry, and stop on "gap" if it is within tol.

        Return True if the solver has converged.
        """
        self.lower_bound = max(self.lower_bound, lower_bound)
        self.gap = self.history[-1]["gap"] = max(self.loss - self.lower_bound, 0.0)
        if self.gap <= tol * abs(self.loss):
            self.stopped_on = "gap"
        return self.converged

    def estimated(self, gap, loss, tol):
        """Note an estimate of the gap in the last entry, if it is finite; stop on "estimate" if it is within tol."""
        if np.isfinite(gap):
            self.estimate = self.history[-1]["gap_estimate"] = gap
            if gap <= tol * abs(loss):
                self.stopped_on = "estimate"
