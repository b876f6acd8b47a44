"""Conjugate gradients on the quadratic model within a trust region, and the estimate of the gap from a solve."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import lapack

from softreg._inner_products import add_scaled, inner, squared_norm

SPARE = 0.2  # share of a gap to be proven that the residual may take: the model's own error takes some, too


@dataclass
class ModelSolution:
    """The result of conjugate gradients.

    Attributes
    ----------
    step : array like W; None once it is taken
    decrease : of the quadratic model along the step
    decrement : estimate of 1/2 g^T H^-1 g, the gap of the model: the decrease, and an estimate of the rest
    slope : of F along the step at its start, g^T s
    length : of the step, in M's norm
    residual : its norm in that of M^-1
    smallest : estimate of the smallest eigenvalue of M^-1 H
    is_exact : True if the residual is zero up to rounding
    products : number of products with H
    truncated : True if the solve ended at the boundary, at `max_products`, or early because of rounding
    seen : number of products of the longest solve that `smallest` comes from, if that was an earlier one
    """

    step: np.ndarray | None
    decrease: float
    decrement: float
    slope: float
    length: float
    residual: float
    smallest: float
    is_exact: bool
    products: int
    truncated: bool
    seen: int = 0

    def gap(self, M, value, eps, reached=None, flattening=1.0):
        """Return an estimate of F - min F before the step, or the smaller one after it; inf if there is none.

        Before the step, the gap of the quadratic model is 1/2 g^T H^-1 g, the decrement. The estimate is twice that:
        a loss that falls off exponentially, as for nearly separable classes, has a gap of twice its decrement.
        The solve has to be complete, and this one or an earlier one has to have `M.min_products` or more: fewer may
        miss directions of small curvature.

        After a full step, `reached` is the norm of the new gradient in that of M^-1. M^-1 over the smallest eigenvalue
        of M^-1 H takes the place of H^-1. The estimate is six times 1/2 reached^2 / smallest, as such a loss has only
        1 / e of its curvature left there, and the gap is twice its decrement. Rows of very different lengths leave
        much less curvature: `flattening` is the smallest eigenvalue over the curvature that was found there.

        If the loss `value` is tiny, so are the curvatures p (1 - p), and more than 1 % of them is rounding (the eps of
        the dtype): there is no estimate.
        """
        complete = not self.truncated and (self.is_exact or max(self.products, self.seen) >= M.min_products)
        if not complete or abs(value) < 100 * eps:
            return np.inf
        before = 2 * self.decrement * max(1.0, flattening / 3)
        return before if reached is None else min(before, 3 * max(1.0, flattening) * reached**2 / self.smallest)

    def with_smallest(self, smallest):
        """Return the solution with another estimate of the smallest eigenvalue of M^-1 H."""
        return replace(self, smallest=smallest, decrement=self.decrease + 0.5 * self.residual**2 / smallest)

    def on_all_rows(self, linearization, M):
        """Return the solution as one of the model over all rows, if it is that of a model over a sample of them.

        Decrease and residual are those that the step has there. The rest, and whether the solve is complete, remain.
        """
        g, Hs = linearization.gradient, linearization.hessian_product(self.step)
        decrease = -inner(g, self.step) - 0.5 * inner(self.step, Hs)
        residual = dual_norm(M, g + Hs)
        decrement = decrease + 0.5 * residual**2 / self.smallest
        return replace(self, decrease=decrease, decrement=decrement, residual=residual)

    def remaining(self, decrease, norm):
        """Return a rough estimate of F - min F after a step with that decrease of F, and that norm of the new gradient.

        The smallest of three: the model's gap before the step; the decrement of the new gradient, with the
        preconditioner for the Hessian; the rest of the solve plus the error of the model.
        """
        error = abs(decrease - self.decrease)
        return min(self.decrement, 0.5 * norm**2 / self.smallest, self.decrement - self.decrease + error)


def trust_region_cg(
    linearization, M, radius, accuracy, max_products=100, min_products=1, target_gap=0.0, proves=False, *,
    smallest=np.inf, takes_gradient=False,
):  # fmt: skip
    """Minimise g^T s + 1/2 s^T H s within ||s||_M <= radius until ||residual|| <= accuracy ||g||, both in M^-1's norm.

    A step that would leave the region ends at its boundary (Steihaug 1983). The rest of the decrease, 1/2 r^T H^-1 r,
    is at most 1/2 r^T M^-1 r over the smallest eigenvalue of M^-1 H; the smallest Ritz value of the same iterations, or
    `smallest` if that is less, is the estimate of that. With a `target_gap` the solve also ends once decrease plus rest
    are within it; or, with `proves`, once the penalty's curvature bounds the rest by it, which needs no `min_products`.

    Parameters
    ----------
    linearization : Linearization, of which g and products with H are used
    M : preconditioner
    radius, accuracy : float
    max_products, min_products : int, of products with H
    target_gap : float
    proves : bool, needs l2 > 0
    smallest : float, what earlier solves tell of the smallest eigenvalue of M^-1 H
    takes_gradient : bool, True to work in the array of the gradient, of which nothing is left then

    Returns
    -------
    solution : ModelSolution
    """
    s, r = linearization.objective.zeros(), linearization.gradient
    r = r if takes_gradient else r.copy(order="K")
    d = M.solve(r)
    rz = first = inner(r, d)
    np.negative(d, out=d)
    target = accuracy**2 * first
    ss, sd, dd = 0.0, 0.0, rz
    decrease, slope, truncated, is_exact, diagonal, off = 0.0, 0.0, True, False, [], []
    ratio, step = 0.0, 1.0
    for _ in range(max_products):
        done = rz <= target or (
            target_gap and decrease + 0.5 * rz / min(smallest, smallest_ritz(diagonal, off)) <= target_gap
        )
        is_exact = rz <= 1e-8 * first  # further products may only add rounding
        if (done and (is_exact or len(diagonal) >= min_products)) or not rz > 0:
            truncated = False
            break
        if proves and diagonal and gap_of_gradient(linearization.objective, r) <= SPARE * target_gap:
            break
        product = linearization.product(d)
        curvature = product.curvature
        if not curvature > 0 or rz / curvature == 0:  # rounding: H has no negative curvature, and no step is left
            truncated, is_exact = not done, done
            break
        diagonal.append(curvature / rz + ratio / step)
        step = rz / curvature
        longer = ss + 2 * step * sd + step * step * dd
        if longer >= radius**2:
            step = (-sd + np.sqrt(max(sd * sd + dd * (radius**2 - ss), 0.0))) / dd
            add_scaled(s, step, d)
            decrease += step * rz - 0.5 * step * step * curvature
            slope -= step * rz
            ss = radius**2
            break
        add_scaled(s, step, d)
        product.add_to(r, step)
        del product  # arrays like W may be large: as few as can be at a time
        decrease += 0.5 * step * rz
        slope -= step * rz
        ss = longer
        before, rz = rz, M.conjugate(d, r, rz)
        ratio = rz / before
        off.append(np.sqrt(max(ratio, 0.0)) / step)
        sd, dd = ratio * (sd + step * dd), rz + ratio * ratio * dd
    smallest = min(smallest, smallest_ritz(diagonal, off))
    decrement, residual = decrease + 0.5 * rz / smallest, np.sqrt(max(rz, 0.0))
    products = len(diagonal)
    return ModelSolution(s, decrease, decrement, slope, np.sqrt(ss), residual, smallest, is_exact, products, truncated)


def gap_of_gradient(objective, gradient):
    """Return the bound on the gap that strong convexity gives, ||g||^2 / (2 l2); without intercepts and rounding."""
    return squared_norm(objective.coef(gradient)) / (2 * objective.l2) if objective.l2 else np.inf


def smallest_ritz(diagonal, off):
    """Return the smallest eigenvalue of the tridiagonal matrix of conjugate gradients; 1 before the first product."""
    if not diagonal:
        return 1.0
    if len(diagonal) == 1:  # LAPACK as older SciPy calls it (1.11 and before) refuses that
        return max(diagonal[0], np.finfo(float).tiny)
    # eigvalsh_tridiagonal calls this, too, and takes longer to get there than a small product with H
    eigenvalues = lapack.dstebz(diagonal, off[: len(diagonal) - 1], 2, 0.0, 0.0, 1, 1, 0.0, "E")[1]
    return max(eigenvalues[0], np.finfo(float).tiny)


def dual_norm(M, gradient):
    """Return the norm of a gradient (K, p) in that of M^-1."""
    return np.sqrt(max(inner(gradient, M.solve(gradient)), 0.0))


def adapted_radius(radius, solution, decrease, step_size):
    """Return the radius of the next trust region, from the decrease of F over that of the model."""
    if step_size < 1:
        return max(step_size, 0.3) * min(radius, solution.length)
    if solution.truncated and decrease > 0.75 * solution.decrease:
        return 2.5 * radius
    if decrease < 0.25 * solution.decrease:
        return 0.5 * min(radius, solution.length)
    return radius
