"""Newton's method: full gradients, Hessian products over a growing sample of the rows, preconditioned.

A step minimises the quadratic model by conjugate gradients, stopped at the boundary of a trust region or where they
are as exact as the model was (Eisenstat and Walker 1996). Where the step overshoots, the minimum along it is found
instead. The sample grows when steps on it do not pay. The run ends on a proven gap of tol * F, or on an estimate over
all rows, see `_Newton.confirm`. Large problems that begin at zero begin with a little SGD, where that goes down at all.
"""

import numpy as np

from softreg._objective import inner
from softreg._preconditioners import Blocks, ScaledCorrelation, preconditioner
from softreg._solvers.result import Result
from softreg._solvers.row_sampling import RowDamping, RowSample
from softreg._solvers.sgd import quick_start
from softreg._solvers.trust_region import adapted_radius, dual_norm, min_products, trust_region_cg
from softreg._validation import OVERFLOW

LONG_SOLVE = 8  # products of a solve after which blocks that cost some 15 to build are worth it
COARSEST = 0.3  # a solve ends where its residual is this share of the gradient, at the latest
SUFFICIENT = 0.2  # share of the decrease that the slope promises, with which a step is taken as it is


def newton(objective, start, options, monitor):
    """Minimise the smooth objective from `start`; return the result.

    Parameters
    ----------
    objective : Objective
    start : Start
        Its result, if there is one, is gone on with; its preconditioner may be one for another penalty.
    options : Options
    monitor : Monitor, called after each iteration

    Returns
    -------
    result : Result
        Stopped on "gap", "estimate", "precision" or "max_iter".
    """
    run = _Newton(objective, start, options)
    result = run.result
    for _ in range(options.max_iter - len(result.history)):
        monitor.begin()
        run.step()
        if monitor(result.W, result.history[-1]) or result.converged:
            break
        if run.is_stuck():
            run.stop_on_precision()
            break
        run.adapt_model()
    return run.finish()


class _Newton:
    """The state of a run: the point, the model of the curvature around it, and the trust region.

    Attributes
    ----------
    at : Linearization at the point
    norm : of its gradient, in that of M^-1
    M : the preconditioner
    sample, damping : the RowSample and RowDamping of the model
    radius : of the trust region, in M's norm
    accuracy : share of the gradient that the next solve may leave
    since_refresh : Hessian products since the preconditioner was built
    """

    def __init__(self, objective, start, options):
        self.objective, self.tol, self.eps = objective, options.tol, np.finfo(objective.dtype).eps
        W = start.W.copy(order="K")
        if objective.l2:  # the optimum sums to zero over the classes, and preconditioners leave that sum as it is
            objective.coef(W)[...] -= objective.coef(W).mean(axis=0)
        self.result = start.result or Result(W)
        self.result.solver, self.result.stopped_on = "newton", "max_iter"
        self.order = options.random_state.permutation(objective.n_rows)
        quickly = RowSample.is_worthwhile(objective) and not W.any()
        self.at = self.sgd_start(W, options.random_state) if quickly else self.linearize(W)
        self.result.W = self.at.W
        given = start.preconditioner  # of a fit with another penalty
        self.M = preconditioner(objective, self.order) if given is None else given.for_objective(objective)
        self.M.refresh(self.at)
        self.sample, self.damping = RowSample.first(objective, self.order), RowDamping(objective)
        self.norm = dual_norm(self.M, self.at.gradient)
        if not np.isfinite(self.norm):  # weights as large as that have no place in the dtype
            raise FloatingPointError(OVERFLOW.format(objective.dtype))
        self.radius, self.accuracy, self.since_refresh = 1.5 * self.norm, COARSEST, 0

    def linearize(self, W):
        """Return the linearisation at W, and count the pass."""
        self.result.passes += 1
        return self.objective.linearize(W)

    def sgd_start(self, zero, random_state):
        """Return the linearisation where two epochs of SGD lead, or at zero, where F is log K, if that is lower."""
        self.result.passes += 2
        at = self.linearize(quick_start(self.objective, random_state, epochs=2))
        return at if at.value < np.log(self.objective.n_classes) else self.linearize(zero)

    # --- one iteration --------------------------------------------------------------------------------------------

    def step(self):
        """Solve the model, follow its step, and see how far from the minimum that is."""
        model = self.sample.of(self.damping.of(self.at))
        solution = trust_region_cg(model, self.M, self.radius, self.accuracy)
        self.result.passes += solution.products * self.sample.share
        self.since_refresh += solution.products * self.sample.share
        new, step_size = self.line_search(solution.step)
        reached = dual_norm(self.M, new.gradient)
        self.follow(new, step_size, reached, solution)
        self.judge(step_size, reached)

    def follow(self, new, step_size, reached, solution):
        """Go to the new point if it is lower; set the trust region and the accuracy of the next solve."""
        self.solution, self.step_size, self.decrease = solution, step_size, self.at.value - new.value
        self.norm_before, self.is_lower = self.norm, self.decrease > 0
        self.radius = adapted_radius(self.radius, solution, self.decrease, step_size)
        missed = abs(reached - solution.residual) / self.norm if self.norm > 0 else 0.0
        self.accuracy = min(COARSEST, max(1e-3 if self.M.is_exact_inverse else 0.05, missed))
        if self.is_lower:
            self.at, self.result.W = new, new.W
        self.norm = reached if self.is_lower else dual_norm(self.M, self.at.gradient)

    def judge(self, step_size, reached):
        """Record the iteration; estimate, confirm and certify the gap where that may end the run."""
        result, solution, objective = self.result, self.solution, self.objective
        entry = result.record(self.at.value)
        whole = self.is_lower and step_size == 1
        if self.sample.share == 1 and not self.damping.share.any():  # the solve may already be what `confirm` would do
            self.estimate(solution, reached if whole else None)
        trusted = whole and self.decrease >= 0.5 * solution.decrease
        target = self.tol * abs(self.at.value)
        if not result.converged and trusted and solution.remaining(self.decrease, self.norm) <= target:
            self.confirm()
        if objective.l2 and (result.converged or solution.decrease <= 10 * self.tol * abs(self.at.value)):
            self.certify()
        entry["loss"] = self.at.value

    def line_search(self, step):
        """Return the linearisation along a step where F goes down enough for it, and the step size.

        The step size is 1, or that of the minimum along the step where 1 overshoots.
        """
        at, slope, t = self.at, inner(self.at.gradient, step), 1.0
        new = self.linearize(at.W + step)
        self.damping.update(at, new, new.value > at.value + SUFFICIENT * slope)
        for _ in range(8):
            if new.value <= at.value + SUFFICIENT * t * slope or slope >= -self.eps * abs(at.value):
                break
            t = self.objective.line_minimum(at.W, step, 0.9 * t)
            self.result.passes += 1
            new = self.linearize(at.W + at.W.dtype.type(t) * step)
        return new, t

    # --- how far from the minimum ---------------------------------------------------------------------------------

    def estimate(self, solution, reached):
        """Note what a solve over all rows says of the gap, now that the point is where its step led.

        Where a whole step was taken, `reached` is the norm of the gradient in that of M^-1, else None. An estimate that
        would end the run is made again with the curvature at the point.
        """
        value = self.at.value
        gap = solution.gap(self.M, value, self.eps, reached)
        if gap <= self.tol * abs(value):
            gap = solution.gap(self.M, value, self.eps, reached, self.flattening(solution))
        self.result.estimated(gap, value, self.tol)

    def flattening(self, solution):
        """Return the smallest eigenvalue that the solve saw, over the curvature along the gradient at the point.

        Both are of M^-1 H; for the second, H is that of the point.
        """
        step = self.M.solve(self.at.gradient)
        curvature, square = inner(step, self.at.hessian_product(step)), inner(self.at.gradient, step)
        self.result.passes += 1
        if not square > 0:  # no gradient is left
            return 1.0
        return solution.smallest * square / curvature if curvature > 0 else np.inf

    def confirm(self):
        """Estimate the gap by a solve over all rows, see `ModelSolution.gap`, and go where that leads.

        The solve goes on until what it found and what it may have missed are together within half of tol * F, or 1 %
        of the whole. From here on models take all rows.
        """
        at, M = self.at, self.M
        M.refresh(at)
        target = 0.5 * self.tol * abs(at.value)
        solution = trust_region_cg(at, M, np.inf, 0.1, 300, min_products=min_products(M), target_gap=target)
        self.result.passes += solution.products
        new, step_size = self.line_search(solution.step)
        whole = new.value < at.value and step_size == 1
        self.at = new if new.value < at.value else at
        self.result.W = self.at.W
        self.estimate(solution, dual_norm(M, new.gradient) if whole else None)
        self.sample = RowSample(self.objective, self.order, self.objective.n_rows)

    def certify(self):
        """Compute the proven gap."""
        self.result.certify(self.at, self.tol)

    def is_stuck(self):
        """Return whether the model over all rows promises no more than rounding, and F did not go down."""
        tiny = self.solution.decrease <= self.eps * abs(self.at.value)
        return not self.is_lower and self.sample.share == 1 and tiny

    def stop_on_precision(self):
        """Confirm and certify a last time."""
        self.confirm()
        self.result.stopped_on = self.result.stopped_on if self.result.converged else "precision"
        self.certify()

    def finish(self):
        """Return the result."""
        if not np.isfinite(self.result.gap):
            self.certify()
        self.result.preconditioner = self.M
        return self.result

    # --- the model of the next iteration --------------------------------------------------------------------------

    def adapt_model(self):
        """Take more rows where steps do not pay, and refresh the preconditioner where it is due."""
        solution = self.solution
        unpredicted = self.decrease < 0.25 * solution.decrease or self.step_size < 1
        if unpredicted or (not solution.truncated and self.norm > 0.8 * self.norm_before):
            self.sample = self.sample.doubled()
        is_long = solution.products > LONG_SOLVE
        if isinstance(self.M, ScaledCorrelation) and is_long and Blocks.is_applicable(self.objective):
            self.M, self.since_refresh = Blocks(self.M, self.order), np.inf
        if self.since_refresh >= self.M.refresh_interval and (self.is_lower or self.since_refresh == np.inf):
            self.M.refresh(self.damping.of(self.at))
            self.since_refresh = 0
            before, self.norm = self.norm, dual_norm(self.M, self.at.gradient)
            self.radius *= before / self.norm if self.norm > 0 else 1.0  # the same region in the new metric
