"""Approximate inverses of the Hessian for conjugate gradients, and the choice among them.

The Hessian of the data term is  sum_i s_i (diag(p_i) - p_i p_i^T) (x) [x_i 1][x_i 1]^T / S.  Which part of it is kept
depends on the shape of the problem: all of it where K p is small (`Exact`), else one number for each class direction
and feature times the correlation of the features (`ScaledCorrelation`), late in a fit, where it pays, one block for
each class direction (`Blocks`), and the numbers alone where d is large, or X is sparse and not small (`Diagonal`).

Each has `refresh(linearization)`, to be called before the first solve and where the probabilities have moved, and
`solve(G)`. A preconditioner asks the linearization for probabilities, and the design for rows; it keeps what it made
of them, and changes neither.
"""

from softreg._preconditioners.blocks import Blocks
from softreg._preconditioners.correlation import ScaledCorrelation
from softreg._preconditioners.diagonal import Diagonal
from softreg._preconditioners.exact import EXACT_SIZE, EXACT_WORK, Exact

__all__ = ["EXACT_SIZE", "Blocks", "Diagonal", "Exact", "ScaledCorrelation", "preconditioner"]

CORRELATION_SIZE = 3000  # d up to which a d x d inverse is worth its memory and its d^3


def preconditioner(objective, order):
    """Return the kind that fits the problem, over as many of its rows as it needs, taken in the random `order`."""
    K, p = objective.shape
    if (not objective.design.can_center and K * p > EXACT_SIZE) or p > CORRELATION_SIZE:
        return Diagonal(objective)
    if K * p <= EXACT_SIZE:
        all_rows = objective.n_rows * (K * p) ** 2 <= EXACT_WORK
        return Exact(objective, order, objective.n_rows if all_rows else 4 * K * p)
    return ScaledCorrelation(objective, order)
