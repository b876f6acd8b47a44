"""Preconditioners: approximate inverses of the Hessian for conjugate gradients, and the choice among them.

The Hessian of the data term is  sum_i s_i (diag(p_i) - p_i p_i^T) (x) [x_i 1][x_i 1]^T / S.  The shape of the problem
decides how much of it a preconditioner keeps:

    Exact               all of it, if K p is small
    ScaledCorrelation   a number for each class direction and feature, times the correlation of the features
    Blocks              a block for each class direction; Newton's method takes it late in a fit, if solves are long
    Diagonal            a number for each class direction, times one for each feature, if d is large, or X is sparse and
                        K p not small

Each has `refresh(linearization)`, which builds it for the probabilities there and has to come before the first solve;
`solve(G)`, which returns the step that belongs to a gradient G (K, p), as a new array like W;
`conjugate(D, R, square)`, the next direction of conjugate gradients; and
`for_objective(objective)`, the same preconditioner for other penalties, to be refreshed before use. `refresh_interval`
is the number of products between two refreshes, `is_exact_inverse` tells whether `solve` is a Newton step, and
`min_products` is the fewest products of a solve of conjugate gradients that estimates the gap to the minimum.
`smallest_eigenvalue()` is an estimate of that of M^-1 H, where M tells more than conjugate gradients may see. A
preconditioner reads probabilities from the linearization and rows from the design, and modifies neither.
"""

from softreg._preconditioners.blocks import Blocks
from softreg._preconditioners.correlation import ScaledCorrelation
from softreg._preconditioners.diagonal import Diagonal
from softreg._preconditioners.exact import EXACT_SIZE, Exact

__all__ = ["EXACT_SIZE", "Blocks", "Diagonal", "Exact", "ScaledCorrelation", "needs_no_rows", "preconditioner"]

CORRELATION_SIZE = 3000  # d up to which a d x d inverse is affordable: 36 MB, and d^3 operations


def needs_no_rows(objective):
    """Return True if the shape of the problem asks for the diagonal, which takes sums over all rows alone."""
    K, p = objective.shape
    return (not objective.design.can_center and K * p > EXACT_SIZE) or p > CORRELATION_SIZE


def preconditioner(objective, order):
    """Return the preconditioner for the shape of the problem; its rows are sampled along the random `order` (n,)."""
    K, p = objective.shape
    if needs_no_rows(objective):
        return Diagonal(objective)
    if K * p <= EXACT_SIZE:
        return Exact(objective, order, objective.n_rows if Exact.takes_all_rows(objective) else 4 * K * p)
    return ScaledCorrelation(objective, order)
