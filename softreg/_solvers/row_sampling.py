"""Models of the curvature over a sample of the rows, and with damped rows."""

import numpy as np

from softreg._systematic_sampling import systematic_sample

SAMPLE_WORK = 5e7  # n K p from which sampling rows saves time; below, a pass takes milliseconds


class RowSample:
    """The rows over which Hessian products are made: a random sample, in proportion to the sample weights.

    Parameters
    ----------
    objective : Objective
    order : random permutation of the rows, (n,)
    size : int, rows of the sample; n stands for all rows

    Attributes
    ----------
    share : float
        size / n. A product counts as this share of a pass.
    positions : sorted positions of the sampled rows, (m,), or None for all
    weight : weights of the sampled rows, (m,), or None for ones
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
        """Return a sample of twice as many rows, or of all."""
        return RowSample(self.objective, self.order, min(2 * self.size, self.objective.n_rows))

    @classmethod
    def first(cls, objective, order):
        """Return the first sample: a sixteenth of the rows, at least 10 a feature; or all rows if passes are short."""
        n, p = objective.n_rows, objective.shape[1]
        return cls(objective, order, min(n, max(n // 16, 10 * p)) if cls.is_worthwhile(objective) else n)

    @staticmethod
    def is_worthwhile(objective):
        """Return True if passes take long enough to begin with a sample of the rows, or with minibatches."""
        return objective.design.can_sample_rows and objective.n_rows * np.prod(objective.shape) > SAMPLE_WORK

    def of(self, linearization):
        """Return the linearisation with the curvature of the sampled rows."""
        return linearization if self.positions is None else linearization.select(self.positions, self.weight)


class RowDamping:
    """Row damping: after a step that overshot, the rows that it misjudged count as less certain in the next models.

    A row whose class is certain has no curvature, so a model does not notice how far a step changes its logits. If the
    step overshoots and changes the probabilities of such a row, the row gets curvature back. Shares halve with each
    step.

    Attributes
    ----------
    share : of the uniform distribution in each row's probabilities, (n,)
    """

    def __init__(self, objective):
        self.share = np.zeros(objective.n_rows, objective.dtype)

    @property
    def is_active(self):
        """True if a row is damped."""
        return self.share.any()

    def of(self, linearization):
        """Return the damped linearisation."""
        return linearization.damped(self.share)

    def update(self, before, trial, overshot):
        """Halve the shares, and damp rows if the step from `before` to `trial`, two linearisations, overshot.

        A row is damped if the sum of the changes of its probabilities is more than 1.
        """
        self.share *= self.share.dtype.type(0.5)
        self.share[self.share < 0.01] = 0
        if overshot:
            self.share[before.probability_changes(trial) > 1] = 0.1
