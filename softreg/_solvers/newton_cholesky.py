"""Newton's method for problems with few parameters: the exact Hessian over all rows, and its Cholesky factor.

A step is a solve with the factor. A step that gets far leaves the Hessian nearly as it was: then the factor serves for
the next step, too, which costs a gradient alone (Shamanskii 1967). If a step overshoots, the minimum along it is taken.
If it stops short of that minimum by far, a longer one is tried: where classes are nearly separable the loss falls off
exponentially, and a full step goes the same short way each time. It gives up where steps have to be cut short, or where
the Hessian is singular up to rounding: `newton` goes on from there.

The method ends on a proven gap. With a penalty, the quadratic model of a step gives a lower bound on min F, if the step
is short: see `_duality.dual_point_along`. Where rounding or a missing penalty leaves no such bound, it ends on an
estimate of the gap from the Newton decrement.

Where rows are of very different lengths, the decrement may be small far from the minimum. Then the step moves the
logits of a long row by much. If no logit moves by more than one, the curvature stays near what it is, and the model
holds (Bach 2010). Elsewhere there is no estimate. One that is ten times as large was tried: it was false in 24 of 3,500
problems with a few rows up to a thousand times as long as the others.
"""

import numpy as np

from softreg import _rounding
from softreg._duality import bound_of_distributions, dual_point_along
from softreg._inner_products import inner
from softreg._preconditioners import Exact
from softreg._solvers.result import begin
from softreg._validation import OVERFLOW

SUFFICIENT = 0.2  # share of the decrease predicted by the slope with which a full step is accepted
SHORTEST = 0.1  # share of a step below which the model has nothing to say about where the step leads
FARTHEST = 1.0  # largest change of a logit in the next step with which the model gives an estimate of the gap
STEEP = 0.25  # share of the slope that is left after a full step, from which a longer one is tried
LONGER = 3.0  # size of that
TOO_FAR = 0.1  # share of the slope, of the other sign, with which the longer step went too far
CLOSE = 5.0  # largest change of a logit in a step of which the model is tried for a proof; 10 brought few more
KEPT = 0.03  # decrement after a step, over that before it, up to which the factor serves for one more step


def newton_cholesky(objective, start, options, monitor):
    """Minimise the smooth objective from `start`; return the result.

    Parameters
    ----------
    objective : Objective
    start : Start
        Its preconditioner, of a fit with another penalty, is used again.
    options : Options
    monitor : Monitor, called after each iteration

    Returns
    -------
    result : Result
        Stopped on "gap", "estimate", "precision", "max_iter", or "slow" if it gave up.
    """
    state = _NewtonCholesky(objective, start, options)
    result = state.result
    for _ in range(options.max_iter - len(result.history)):
        if not state.M.is_exact_inverse:
            result.stopped_on = "slow"
            break
        monitor.begin()
        state.iterate()
        if monitor(result.W, result.history[-1]) or result.stopped_on != "max_iter":
            break
        state.choose_step()
    return state.finish()


class _NewtonCholesky:
    """The state of the method: the linearisation at W, the factor, and the next step.

    Attributes
    ----------
    result : Result
    at : Linearization at the current W
    M : the factor of the Hessian, at W or where it was `age` steps ago
    direction : M^-1 g, for the gradient g at W; the next step is minus that
    square : g^T M^-1 g, twice the Newton decrement if age is 0
    shrinking : square over that before the last step, with the same factor
    """

    def __init__(self, objective, start, options):
        given = start.preconditioner
        self.M = Exact.of_all_rows(objective) if given is None else given.for_objective(objective)
        self.objective, self.eps = objective, np.finfo(objective.dtype).eps
        self.result = begin(objective, start, options, "newton")
        self.at = self.linearize(self.result.W)
        self.refresh()

    def linearize(self, W):
        """Return the linearisation at W, and count the pass."""
        self.result.passes += 1
        return self.objective.linearize(W)

    def refresh(self):
        """Build the Hessian at W and factor it."""
        self.M.refresh(self.at)
        self.age, self.shrinking = 0, np.inf
        self.direction, self.square = self.solve(self.at)
        if not np.isfinite(self.square):  # weights as large as that have no place in the dtype
            raise FloatingPointError(OVERFLOW.format(self.objective.dtype))

    def solve(self, at):
        """Return M^-1 g for the gradient g at a linearisation, and g^T M^-1 g."""
        direction = self.M.solve(at.gradient)
        return direction, max(inner(at.gradient, direction), 0.0)

    # --- one iteration --------------------------------------------------------------------------------------------

    def iterate(self):
        """Take the step if F decreases, record the iteration, and check for the end."""
        at, step, model_holds = self.at, -self.direction, self.age == 0
        new, step_size = self.line_search(step)
        if not new.value < at.value:
            self.result.record(at.value)
            self.stay()
            return
        error = abs(at.value - new.value - 0.5 * self.square)
        direction, square = self.solve(new)
        self.shrinking = square / self.square
        self.at, self.result.W, self.direction, self.square = new, new.W, direction, square
        self.age += 1
        self.result.record(new.value)
        if model_holds and step_size == 1 and self.may_prove(at, step, error):
            self.prove(at, step)
        if not self.result.converged:
            self.estimate()
        if self.result.stopped_on == "estimate" and self.objective.l2:
            self.confirm()
        elif new.value <= self.result.target:  # F >= 0 is a bound by itself
            self.certify()
        elif step_size < SHORTEST:
            self.result.stopped_on = "slow"

    def line_search(self, step):
        """Return the linearisation after the step, and the step size.

        It is 1; or that of the minimum along the step if 1 overshoots; or more than 1, see `lengthen`.
        """
        at, step_size = self.at, 1.0
        new = self.linearize(at.W + step)
        overshot = not new.value <= at.value - SUFFICIENT * self.square
        if overshot and self.square > self.eps * abs(at.value):
            step_size = self.objective.line_minimum(at.W, step, 0.9)
            self.result.passes += 1
            new = self.linearize(at.W + at.W.dtype.type(step_size) * step)
        return (new, step_size) if step_size < 1 else self.lengthen(step, new)

    def lengthen(self, step, new):
        """Return the linearisation after a longer step and its size, if F falls steeply after 1; else `new` and 1.

        `new` is the linearisation after the full step. A longer step beyond the minimum along it is not taken: Newton's
        method gets on worse from there, even where F is lower.
        """
        at, slope = self.at, -self.square
        if inner(new.gradient, step) > STEEP * slope:
            return new, 1.0
        longer = self.linearize(at.W + at.W.dtype.type(LONGER) * step)
        takes_it = longer.value < new.value and inner(longer.gradient, step) <= -TOO_FAR * slope
        return (longer, LONGER) if takes_it else (new, 1.0)

    def stay(self):
        """Find out why F did not decrease: an old factor, the last digits of F, or a model that is no use."""
        if self.age > 0:
            self.shrinking = np.inf  # the next step gets a new factor
        elif self.square <= 2 * self.eps * abs(self.at.value):
            self.result.stopped_on = "precision"
            self.note(self.square)
            self.certify()
        else:
            self.result.stopped_on = "slow"

    def choose_step(self):
        """Factor the Hessian anew, unless the factor serves for one more step."""
        if self.age > 0 and self.shrinking > KEPT:
            self.refresh()

    # --- how far from the minimum ---------------------------------------------------------------------------------

    def estimate(self):
        """Note an estimate of the gap at W; with an old factor a rough one, as a step may take the curvature to 1 / e.

        Where that is near the target, the Hessian is built anew. Twice the decrement is then the estimate: a loss that
        falls off exponentially, as for nearly separable classes, has a gap of twice its decrement.
        """
        if self.square <= self.result.target:
            self.refresh()
        self.note(3.0**self.age * self.square)

    def note(self, gap):
        """Note the estimate of the gap, unless the quadratic model that it comes from may be far from F.

        That is so where the next step changes a logit by much, and with it the curvature. It is also so where the
        Hessian is singular, or F is so tiny that more than 1 % of its curvature is rounding.
        """
        if not self.M.is_exact_inverse or abs(self.at.value) < 100 * self.eps:
            return
        if gap <= self.result.target and self.at.max_logit_change(self.direction) > FARTHEST:
            return
        self.result.estimated(gap)

    def may_prove(self, at, step, error):
        """Return True if the model at the linearisation `at` may prove the gap after its step.

        That takes a penalty, a decrease of F that the model predicted up to an error within the target, and a step that
        changes no logit by more than `CLOSE`.
        """
        return self.objective.l2 > 0 and error <= self.result.target and at.max_logit_change(step) <= CLOSE

    def prove(self, at, step):
        """Bound min F by the model at the linearisation `at`, of which the step to the present point is the minimum.

        The bound is in float64, so the rounding of F counts, too.
        """
        objective, now = self.objective, self.at
        bound = bound_of_distributions(objective, *dual_point_along(at, step), max(at.value, 1.0), np.float64)
        self.result.bound(bound - _rounding.of_loss(objective, now.W, now.value))

    def confirm(self):
        """Take the next step, if F does not increase, and prove the gap that was estimated before it."""
        at, step = self.at, -self.direction
        new = self.linearize(at.W + step)
        if new.value <= at.value:
            self.at, self.result.W = new, new.W
            self.result.history[-1].update(loss=new.value, passes=self.result.passes)
        self.prove(at, step)

    def certify(self):
        """Compute the proven gap at W, and note it in the result."""
        self.result.certify(self.at)

    def finish(self):
        """Return the result, with the proven gap and the factor for the next fit of a path."""
        if self.result.stopped_on != "slow" and not np.isfinite(self.result.gap):
            self.certify()
        self.result.preconditioner = self.M
        return self.result
