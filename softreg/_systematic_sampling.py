"""Systematic sampling: a few rows that represent all of them."""

import numpy as np


def systematic_sample(score, order, size):
    """Return about `size` positions in proportion to their score, sorted, and 1 over the chance of each.

    The scores (n,) are not negative and not all zero; a position with score zero is never taken. The positions are laid
    side by side along `order` (n,), each as wide as its score. `size` points at equal distances then take the positions
    that they fall on. A position that is taken t times counts t times.
    """
    chance = score / score.sum()
    steps = np.searchsorted(np.cumsum(chance[order]), (np.arange(size) + 0.5) / size)
    picked, times = np.unique(order[np.minimum(steps, len(order) - 1)], return_counts=True)
    return picked, times / chance[picked]
