"""Models of the curvature on a part of the rows, and on rows that count as less certain than they are."""

import numpy as np

SAMPLE_WORK = 5e7  # n K p from which Hessian products over a sample of the rows pay: below, a pass takes milliseconds


class RowSample:
    """The first `size` rows in a random order, over which Hessian products are made.

    Attributes
    ----------
    share : float
        Of all rows; a product counts as this share of a pass.
    """

    def __init__(self, objective, order, size):
        self.n_rows, self.order, self.share = objective.n_rows, order, size / objective.n_rows
        self.positions = np.sort(order[:size]) if self.share < 1 else None

    @classmethod
    def first(cls, objective, order):
        """Return a sixteenth of the rows, and several a feature, where that is worthwhile; else all."""
        n, p = objective.n_rows, objective.shape[1]
        return cls(objective, order, min(n, max(n // 16, 10 * p)) if cls.is_worthwhile(objective) else n)

    @staticmethod
    def is_worthwhile(objective):
        """Return whether passes are long enough for work on a part of the rows, or on minibatches, to come first."""
        return objective.design.can_sample_rows and objective.n_rows * np.prod(objective.shape) > SAMPLE_WORK

    def of(self, linearization):
        """Return the linearisation with the curvature of the sampled rows."""
        return linearization if self.positions is None else linearization.select(self.positions)


class RowDamping:
    """Shares by which rows count as uncertain in the next models, after a step that overshot.

    A row whose class is certain has no curvature, and a model without it lets its logits go anywhere. Rows whose
    probabilities an overshooting step turned over count in the Hessian as if they were less certain. The shares halve
    with each step.
    """

    def __init__(self, objective):
        self.share = np.zeros(objective.n_rows, objective.dtype)

    def of(self, linearization):
        """Return the damped linearisation."""
        return linearization.damped(self.share)

    def update(self, before, trial, overshot):
        """Halve the shares; after a step from `before` to `trial` that overshot, damp the rows that it turned over."""
        self.share *= self.share.dtype.type(0.5)
        self.share[self.share < 0.01] = 0
        if overshot:
            self.share[before.probability_changes(trial) > 1] = 0.1
