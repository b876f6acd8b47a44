"""Which rows stand for all of them."""

import numpy as np


def systematic_sample(score, order, size):
    """Return about `size` rows, as sorted positions, in proportion to their score, and 1 over the chance of each.

    The scores (n,) are not negative and not all zero; a row whose score is zero is never taken. Every `size`-th part of
    the total, along `order` (n,), takes the row that it falls on. A row that was taken t times counts t times.
    """
    chance = score / score.sum()
    steps = np.searchsorted(np.cumsum(chance[order]), (np.arange(size) + 0.5) / size)
    picked, times = np.unique(order[np.minimum(steps, len(order) - 1)], return_counts=True)
    return picked, times / chance[picked]
