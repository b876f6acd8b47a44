"""Models of the curvature on a part of the rows, and on rows that count as less certain than they are."""

import numpy as np

from softreg._systematic_sampling import systematic_sample

SAMPLE_WORK = 5e7  # n K p from which Hessian products over a sample of the rows pay: below, a pass takes milliseconds


class RowSample:
    """Rows over which Hessian products are made: the first of a random order, or in proportion to their weights.

    Attributes
    ----------
    share : float
        Of all rows; a product counts as this share of a pass.
    """

    def __init__(self, objective, order, size):
        self.objective, self.order, self.size, self.share = objective, order, size, size / objective.n_rows
        self.positions = self.weight = None
        if self.share == 1:
            return
        if objective.sample_weight is None:
            self.positions = np.sort(order[:size])
        else:
            shares = objective.shares()
            self.positions, importance = systematic_sample(shares, order, size)
            self.weight = shares[self.positions] * importance

    def doubled(self):
        """Return a sample of twice the rows, or of all."""
        return RowSample(self.objective, self.order, min(2 * self.size, self.objective.n_rows))

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
        return linearization if self.positions is None else linearization.select(self.positions, self.weight)


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
