"""The solvers, and their registry `SOLVERS`.

A solver is a function (objective, start, options, monitor) -> Result in a file of its own. It copies arrays before it
changes them, calls the monitor after each iteration, and sets `Result.stopped_on`. To add one, write its file and add
its row to `SOLVERS`. The other files hold parts of solvers: `result` their input and output, `newton_cholesky`,
`trust_region` and `row_sampling` those of Newton's method, `quadratic_models` and `centred_coordinates` those of
proximal Newton. `streaming` is what `partial_fit` and `sgd` learn rows with; its optimisers are `dense_stream` (with
`dense_stream_metrics`, `dense_stream_newton` and `row_buffer`) and `sparse_stream`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from softreg._solvers import dual_ascent as dual
from softreg._solvers import proximal_newton as proximal
from softreg._solvers.newton import newton
from softreg._solvers.result import Options, Result, Start
from softreg._solvers.sgd import sgd

__all__ = ["SOLVERS", "Options", "Result", "Start", "check_solver", "solve", "solver_names", "warning_text"]

MORE_ITERATIONS = "Increase max_iter, standardise the features, or raise alpha or tol."
MORE_DIGITS = "The digits of {dtype} are used up: scale the features, or give X as float64."


@dataclass(frozen=True)
class Solver:
    """A row of the registry: the parameters that a solver reads, and the problems that it can minimise.

    Attributes
    ----------
    solve : function (objective, start, options, monitor) -> Result
    reads : names of the parameters of the estimator that it reads, beside tol, max_iter and random_state
    advice : advice to the user for each `stopped_on` that is no success
    iteration : name of an iteration
    can_l1 : True if it can do l1_ratio > 0
    obstacle : function (objective) -> reason why the solver cannot minimise it, or None
    """

    solve: Callable
    reads: tuple = ()
    advice: dict = field(default_factory=dict)
    iteration: str = "iteration"
    can_l1: bool = False
    obstacle: Callable = lambda objective: None


SOLVERS = {
    "newton": Solver(newton, advice={"max_iter": MORE_ITERATIONS, "precision": MORE_DIGITS}),
    "dual": Solver(
        dual.dual_ascent, advice={"max_iter": MORE_ITERATIONS}, iteration="epoch", obstacle=dual.obstacle
    ),
    "proximal_newton": Solver(
        proximal.proximal_newton,
        advice={"max_iter": MORE_ITERATIONS, "precision": MORE_DIGITS},
        can_l1=True,
        obstacle=proximal.obstacle,
    ),
    "sgd": Solver(
        sgd,
        reads=("precondition", "shuffle", "n_iter_no_change"),
        advice={"max_iter": MORE_ITERATIONS},
        iteration="epoch",
        can_l1=True,
    ),
}  # fmt: skip


def solver_names(solver, has_l1, objective=None):
    """Return the names of the solvers that a name stands for, in the order in which they are tried.

    With l1, "auto" is a solver that can do l1. Otherwise it is Newton's method, after dual ascent if that is promising
    for the objective.
    """
    if solver != "auto":
        return [solver]
    if has_l1:
        return ["proximal_newton"]
    return ["dual", "newton"] if objective is not None and dual.is_promising(objective) else ["newton"]


def check_solver(solver, l1_ratio, objective):
    """Raise a ValueError if the solver cannot minimise the objective."""
    if solver == "auto":
        return
    if l1_ratio > 0 and not SOLVERS[solver].can_l1:
        able = ", ".join(repr(name) for name, row in SOLVERS.items() if row.can_l1)
        raise ValueError(f"solver={solver!r} needs l1_ratio=0; l1_ratio={l1_ratio} needs solver='auto', {able}")
    if (obstacle := SOLVERS[solver].obstacle(objective)) is not None:
        raise ValueError(f"solver={solver!r} {obstacle}")


def solve(solver, objective, start, options, monitor):
    """Minimise the objective by the solver of that name; return the result.

    If `solver` stands for several, each but the last may give up because it is slow; the next one goes on from there.
    """
    names = solver_names(solver, objective.l1 > 0, objective)
    for name, follower in zip(names, [*names[1:], None], strict=True):
        options = replace(options, may_give_up=follower is not None)
        result = SOLVERS[name].solve(objective, start, options, monitor)
        if result.stopped_on != "slow":
            break
        start = Start(None, result=result)  # W is as large as the features are many: no copy of it stays behind
    return monitor.conclude(result)


def warning_text(result):
    """Return the text of the warning of a fit that did not converge: the gap that it reached, and advice."""
    reached = []
    if np.isfinite(result.gap):
        reached.append(f"proven to be within {result.gap:.2g}")
    if np.isfinite(result.estimate):
        reached.append(f"estimated to be within {result.estimate:.2g}")
    known = f"{' and '.join(reached)} of its minimum, as a share of the null model's loss {result.null_loss:.4g}"
    distance = known if reached else "and its distance from the minimum is not known"
    row = SOLVERS[result.solver]
    return (
        f"SoftmaxRegression stopped after {len(result.history)} iterations before it converged: the objective is "
        f"{result.loss:.6g}, {distance}; tol asks for {result.tol:.2g}. "
        f"{row.advice[result.stopped_on].format(dtype=result.W.dtype)}"
    )
