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

    Gaps and estimates are shares of the null model's loss, F_null, as `tol` is.

    Attributes
    ----------
    W : array of shape (K, p)
    null_loss, tol : F_null, and the gap in units of F_null that ends the run
    solver : name of the solver that finished
    stopped_on : reason for the end, see `SoftmaxRegression.stopped_on_`
    lower_bound : the best proven lower bound on min F so far; zero at first, as F >= 0
    gap : proven bound on (F - min F) / F_null
    estimate : estimate of (F - min F) / F_null by the Newton decrement, not proven; NaN where there is none
    passes : over the data, for a gradient or a Hessian product
    preconditioner : at the end, for the next fit of a path
    history : list of dicts, one an iteration
    started : time at which the solver began, for the history
    """

    W: np.ndarray
    null_loss: float
    tol: float
    solver: str = ""
    stopped_on: str = "max_iter"
    lower_bound: float = 0.0
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
    def target(self):
        """The F - min F that ends the run."""
        return self.tol * self.null_loss

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

    def certify(self, linearization):
        """Compute the proven gap at W, note it in the last entry, and stop on "gap" if it is within tol.

        Return True if the solver has converged.
        """
        loss = linearization.value + linearization.objective.penalty_l1(self.W)
        self.history[-1].update(loss=loss, passes=self.passes)
        return self.bound(_duality.lower_bound(linearization))

    def bound(self, lower_bound):
        """Note the gap to the best proven lower bound so far in the last entry, and stop on "gap" if it is within tol.

        Return True if the solver has converged.
        """
        self.lower_bound = max(self.lower_bound, lower_bound)
        self.gap = self.history[-1]["gap"] = float(max(self.loss - self.lower_bound, 0.0) / self.null_loss)
        if self.gap <= self.tol:
            self.stopped_on = "gap"
        return self.converged

    def estimated(self, gap):
        """Note an estimate of F - min F in the last entry, if it is finite; stop on "estimate" if it is within tol."""
        if np.isfinite(gap):
            self.estimate = self.history[-1]["gap_estimate"] = float(gap / self.null_loss)
            if self.estimate <= self.tol:
                self.stopped_on = "estimate"


def begin(objective, start, options, solver):
    """Return the Result for a smooth solver to fill: that of the start, to be continued, or a new one.

    With a penalty the coefficients of its W sum to zero over the classes, as those of the optimum do; steps do not
    change that sum. Its W may be the one to start from, so solvers do not change it. A W of zeros takes no memory until
    something is written to it.
    """
    result = start.result or Result(start.W, objective.null_loss, options.tol)
    if objective.l2 and result.W.any():
        result.W = result.W.copy(order="K")
        coef = objective.coef(result.W)
        coef -= coef.mean(axis=0)
    result.solver, result.stopped_on = solver, "max_iter"
    return result
