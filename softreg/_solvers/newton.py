"""Newton's method with full gradients and preconditioned Hessian products over a growing sample of the rows.

A step minimises the quadratic model by conjugate gradients. These stop at the boundary of a trust region, or once they
are as exact as the last model was (Eisenstat and Walker 1996). If the step overshoots, the minimum along it is taken.
The sample grows when steps on it decrease F less than predicted. The method ends on a proven gap of tol * F_null, or on
an estimate over all rows, see `Newton.confirm`. Large problems that start from zero begin with half a pass of SGD, if
that decreases F.
"""

import numpy as np

from softreg._duality import bound_of_gradient
from softreg._inner_products import inner
from softreg._preconditioners import Blocks, Exact, ScaledCorrelation, needs_no_rows, preconditioner
from softreg._solvers.newton_cholesky import FARTHEST, newton_cholesky
from softreg._solvers.result import Start, begin
from softreg._solvers.row_sampling import RowDamping, RowSample
from softreg._solvers.sgd import quick_start
from softreg._solvers.trust_region import (
    SPARE,
    adapted_radius,
    dual_norm,
    gap_of_gradient,
    trust_region_cg,
)
from softreg._validation import OVERFLOW

LONG_SOLVE = 8  # products of a solve above which `Blocks` may be built
COARSEST = 0.3  # the largest share of the gradient that a solve may leave as residual
FORGETTING = 30  # products after which a small eigenvalue counts half as small, see `Newton.note`
CAUTION = 10.0  # times the estimate of the gap where the next step changes a logit by more than `FARTHEST`
SUFFICIENT = 0.2  # share of the decrease predicted by the slope with which a step is accepted


def newton(objective, start, options, monitor):
    """Minimise the smooth objective from `start`; return the result.

    Parameters
    ----------
    objective : Objective
    start : Start
        If it has a result, that is continued. Its preconditioner may be that of a fit with another penalty.
    options : Options
    monitor : Monitor, called after each iteration

    Returns
    -------
    result : Result
        Stopped on "gap", "estimate", "precision" or "max_iter".

    Notes
    -----
    Order of calls in an iteration: `iterate` solves the model (`solve`), searches along the step
    (`line_search`), moves there (`move`), and checks for the end (`record`, which may `confirm` and `certify`).
    `adapt_model` then prepares the next iteration.

    Where the exact Hessian is affordable, `newton_cholesky` runs first. If it gives up, its result is continued.
    """
    if Exact.takes_all_rows(objective) and not RowSample.is_worthwhile(objective):
        result = newton_cholesky(objective, start, options, monitor)
        if result.stopped_on != "slow":
            return result
        start = Start(result.W, preconditioner=result.preconditioner, result=result)
    return Newton(objective, start, options).run(options.max_iter, monitor)


class Newton:
    """The state of Newton's method: the linearisation at W, the model of the curvature, and the trust region.

    Attributes
    ----------
    result : Result
    at : Linearization at the current W
    norm : of its gradient, in that of M^-1
    M : the preconditioner
    sample, damping : the RowSample and RowDamping of the model
    radius : of the trust region, in M's norm
    accuracy : share of the gradient that the next solve may leave as residual
    since_refresh : Hessian products since the preconditioner was built
    smallest : estimate of the smallest eigenvalue of M^-1 H, from earlier solves
    seen : products of the longest of these
    proves : True if a solve may end early for a proven gap: there is a penalty, and none has failed to bring one
    takes_gradient : True if solves work in the array of the gradient, as arrays like W may be large
    solution, step_size, decrease : of the last step; decrease is that of F
    norm_before, error, is_lower : of the last step: the norm before it, the error of the model as a share of that, and
        True if it decreased F
    """

    def __init__(self, objective, start, options):
        self.objective, self.eps = objective, np.finfo(objective.dtype).eps
        self.result = begin(objective, start, options, "newton")
        W = self.result.W
        self.set_up_sampling(options.random_state)
        starts_with_sgd = RowSample.is_worthwhile(objective) and not W.any()
        self.at = self.sgd_start(W, options.random_state) if starts_with_sgd else self.linearize(W)
        self.result.W = self.at.W
        given = start.preconditioner  # that of a fit with another penalty
        self.M = self.new_preconditioner() if given is None else given.for_objective(objective)
        self.M.refresh(self.at)
        self.norm = dual_norm(self.M, self.at.gradient)
        if not np.isfinite(self.norm):  # weights as large as that have no place in the dtype
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        self.radius, self.accuracy, self.since_refresh = 1.5 * self.norm, COARSEST, 0
        self.smallest, self.seen = np.inf, 0
        self.proves, self.error, self.norm_before = objective.l2 > 0, 0.0, self.norm
        self.takes_gradient = needs_no_rows(objective) and not objective.design.can_sample_rows

    def run(self, max_iter, monitor):
        """Iterate until the method or the monitor ends the fit; return the result."""
        result = self.result
        for _ in range(max_iter - len(result.history)):
            monitor.begin()
            self.iterate()
            if monitor(result.W, result.history[-1]) or result.converged:
                break
            if self.is_stuck():
                self.stop_on_precision()
                break
            self.adapt_model()
        return self.finish()

    def set_up_sampling(self, random_state):
        """Set the random order of the rows, and the first sample and damping."""
        self.order = random_state.permutation(self.objective.n_rows)
        self.sample, self.damping = RowSample.first(self.objective, self.order), RowDamping(self.objective)

    def new_preconditioner(self):
        """Return the preconditioner, to be refreshed before use."""
        return preconditioner(self.objective, self.order)

    def linearize(self, W):
        """Return the linearisation at W, and count the pass."""
        self.result.passes += 1
        return self.objective.linearize(W)

    def sgd_start(self, zero, random_state):
        """Return the linearisation after half a pass of SGD, or that at zero, where F is log K, if F is lower there."""
        self.result.passes += 0.5
        at = self.linearize(quick_start(self.objective, random_state))
        return at if at.value < np.log(self.objective.n_classes) else self.linearize(zero)

    # --- one iteration --------------------------------------------------------------------------------------------

    def iterate(self):
        """Solve the model, take the step, and record the iteration."""
        model = self.sample.of(self.damping.of(self.at))
        solution = self.solve(model, self.radius, self.accuracy)
        del model  # it has probabilities of its own: n K numbers are free before the next linearisation
        self.since_refresh += solution.products * self.sample.share
        new, step_size = self.line_search(solution)
        reached = dual_norm(self.M, new.gradient)
        self.move(new, step_size, reached, solution)
        del new
        self.record(step_size, reached)

    def solve(self, model, *limits):
        """Return the solution of a model, and note what it tells; `limits` are those of `trust_region_cg`, in order."""
        solution = trust_region_cg(
            model, self.M, *limits, smallest=self.smallest, takes_gradient=self.takes_gradient
        )
        if self.takes_gradient:
            model.gradient = self.at.gradient = None
        self.note(solution)
        return solution

    def note(self, solution):
        """Count the passes of a solve, and keep what it tells of the smallest eigenvalue of M^-1 H.

        A short solve overlooks small eigenvalues that are there. So one that was seen counts for later solves, too, and
        doubles for every `FORGETTING` products that do not see it.
        """
        self.result.passes += solution.products * self.sample.share
        sees_it = solution.smallest < self.smallest
        self.smallest = solution.smallest * (1.0 if sees_it else 2 ** (solution.products / FORGETTING))
        self.seen = solution.seen = max(self.seen, solution.products)

    def move(self, new, step_size, reached, solution):
        """Move to `new`, a Linearization, if F is lower there; set the trust region and the accuracy of the next solve.

        `reached` is the norm of the gradient at `new`, in that of M^-1.
        """
        self.solution, self.step_size, self.decrease = solution, step_size, self.at.value - new.value
        self.norm_before, self.is_lower = self.norm, self.decrease > 0
        self.radius = adapted_radius(self.radius, solution, self.decrease, step_size)
        self.error = abs(reached - solution.residual) / self.norm if self.norm > 0 else 0.0
        self.accuracy = min(COARSEST, max(1e-3 if self.M.is_exact_inverse else 0.05, self.error))
        self.accept(new)
        self.norm = reached if self.is_lower else dual_norm(self.M, self.at.gradient)

    def accept(self, new):
        """Move to `new`, a Linearization, if F is lower there; else compute the gradient again, if a solve took it."""
        if new.value < self.at.value:
            self.at, self.result.W = new, new.W
        elif self.at.gradient is None:
            self.at = self.linearize(self.at.W)

    def record(self, step_size, reached):
        """Add the iteration to the history; estimate, confirm and certify the gap if the method may end on it."""
        result, solution, objective = self.result, self.solution, self.objective
        entry = result.record(self.at.value)
        full_step = self.is_lower and step_size == 1
        if self.may_be_proven():
            self.certify()
        if not result.converged and self.sample.share == 1 and not self.damping.is_active:
            self.estimate(solution, reached if full_step else None)  # such a model gives an estimate by itself
        trusted = full_step and self.decrease >= 0.5 * solution.decrease
        if not result.converged and trusted and self.is_near(solution):
            self.confirm()
        if result.stopped_on == "estimate" and objective.l2:  # for the proven gap beside the estimate
            self.certify()
        entry["loss"] = self.at.value

    def is_near(self, solution):
        """Return True if the gap may be within the target, and it is worth an estimate.

        It is not where F itself may be within the target after the next step: that is a proof.
        """
        if self.at.value - self.decrease <= self.result.target:
            return False
        return solution.remaining(self.decrease, self.norm) <= self.result.target

    def line_search(self, solution):
        """Line search along the step of a solution: return the linearisation after it, and the step size.

        The step size is 1, or that of the minimum along the step if 1 overshoots. The row damping is updated. The
        solution loses its step, which is as large as W.
        """
        at, step, slope, t = self.at, solution.step, solution.slope, 1.0
        solution.step = None
        new = self.linearize(at.W + step)
        self.damping.update(at, new, new.value > at.value + SUFFICIENT * slope)
        for _ in range(8):
            if new.value <= at.value + SUFFICIENT * t * slope or slope >= -self.eps * abs(at.value):
                break
            del new  # its probabilities, before another one is made
            t = self.objective.line_minimum(at.W, step, 0.9 * t)
            self.result.passes += 1
            new = self.linearize(at.W + at.W.dtype.type(t) * step)
        return new, t

    # --- how far from the minimum ---------------------------------------------------------------------------------

    def estimate(self, solution, reached):
        """Note what a solve over all rows says of the gap, now that the point is where its step led.

        If a full step was taken, `reached` is the norm of the gradient in that of M^-1, else None. An estimate that
        would end the run is made again with the curvature at the point. It is `CAUTION` times as large if a step from
        there changes a logit by more than `FARTHEST`: then the curvature may be gone before the minimum is reached.
        """
        value = self.at.value
        gap = solution.gap(self.M, value, self.eps, reached)
        if gap <= self.result.target:
            self.smallest = min(self.smallest, self.M.smallest_eigenvalue())
            solution = solution.with_smallest(min(solution.smallest, self.smallest))
            step = self.M.solve(self.at.gradient)
            gap = solution.gap(self.M, value, self.eps, reached, self.flattening(solution, step))
            self.result.passes += 1
            if self.at.max_logit_change(step) > FARTHEST:
                gap *= CAUTION
        self.result.estimated(gap)

    def flattening(self, solution, step):
        """Return the smallest eigenvalue that the solve saw, over the curvature along the gradient at the point.

        Both are of M^-1 H; for the second, H is that of the point, and `step` is M^-1 times the gradient.
        """
        curvature, square = self.at.product(step).curvature, inner(self.at.gradient, step)
        self.result.passes += 1
        if not square > 0:  # no gradient is left
            return 1.0
        return solution.smallest * square / curvature if curvature > 0 else np.inf

    def may_be_proven(self):
        """Return True if F, or the duality gap without rounding and class totals, is within the target."""
        return self.at.value - bound_of_gradient(self.at) <= self.result.target

    def may_prove(self):
        """Return True if the next step may bring a proven gap, although the model of the curvature has an error.

        The error is a share of the gradient, in proportion to the length of the step.
        """
        if not self.proves:
            return False
        error = self.error * self.norm / self.norm_before if self.norm_before > 0 else 0.0
        return gap_of_gradient(self.objective, self.at.gradient) * error**2 <= SPARE * self.result.target

    def confirm(self):
        """Estimate the gap by a long solve, see `ModelSolution.gap`, and take its step if F decreases.

        The solve ends once its decrease and the estimated rest are within half of the target, or its residual is a
        tenth of the gradient; or early, once its residual promises a proven gap. If it is one over a sample of the
        rows, a product over all rows tells what the step achieves there, and the next sample is larger.
        """
        M, target = self.M, 0.5 * self.result.target
        if M.is_exact_inverse or self.since_refresh >= M.refresh_interval:
            M.refresh(self.at)
            self.since_refresh = 0
        model = self.sample.of(self.at)
        proves = self.may_prove()
        solution = self.solve(model, np.inf, 0.1, 300, M.min_products, target, proves)
        del model
        if self.sample.share < 1:
            solution = solution.on_all_rows(self.at, M)
            self.result.passes += 1
        before = self.at.value
        new, step_size = self.line_search(solution)
        self.accept(new)
        is_full_step = new.value < before and step_size == 1
        self.estimate(solution, dual_norm(M, new.gradient) if is_full_step else None)
        if proves and not self.result.converged:
            self.proves = self.may_be_proven() and self.certify()
        self.sample = self.sample.doubled()

    def certify(self):
        """Compute the proven gap at W, and note it in the result; return True if it is within tol."""
        return self.result.certify(self.at)

    def is_stuck(self):
        """Return True if the model of all rows predicts a decrease within rounding, and F did not decrease."""
        tiny = self.solution.decrease <= self.eps * abs(self.at.value)
        return not self.is_lower and self.sample.share == 1 and tiny

    def stop_on_precision(self):
        """Confirm and certify a last time; if that does not converge, stop on "precision"."""
        self.confirm()
        self.result.stopped_on = self.result.stopped_on if self.result.converged else "precision"
        self.certify()

    def finish(self):
        """Return the result, with the proven gap and the preconditioner for the next fit of a path."""
        if not np.isfinite(self.result.gap):
            self.certify()
        self.result.preconditioner = self.M
        return self.result

    # --- the model of the next iteration --------------------------------------------------------------------------

    def earns_blocks(self):
        """Return True if `Blocks` is to be built: solves are long, and passes so far took as long as a build takes.

        A fit that needs few passes never builds them.
        """
        if not isinstance(self.M, ScaledCorrelation) or not Blocks.is_applicable(self.objective):
            return False
        return self.solution.products > LONG_SOLVE and self.result.passes >= Blocks.cost(self.objective)

    def adapt_model(self):
        """Double the sample if the last step was worse than predicted; refresh the preconditioner if it is due."""
        solution = self.solution
        mispredicted = self.decrease < 0.25 * solution.decrease or self.step_size < 1
        if mispredicted or (not solution.truncated and self.norm > 0.8 * self.norm_before):
            self.sample = self.sample.doubled()
        if self.earns_blocks():
            self.M, self.since_refresh, self.smallest, self.seen = Blocks(self.M, self.order), np.inf, np.inf, 0
        if self.since_refresh >= self.M.refresh_interval and (self.is_lower or self.since_refresh == np.inf):
            self.M.refresh(self.damping.of(self.at))
            self.since_refresh = 0
            before, self.norm = self.norm, dual_norm(self.M, self.at.gradient)
            self.radius *= before / self.norm if self.norm > 0 else 1.0  # the same region in the new metric
