"""Sums of arrays that are exact, and rounded once at the end: their bits depend on no order.

So it does not matter which chunks lie on which worker, how many workers there are, or which one ends first.
"""

import math

import numpy as np

BLOCK = 2**13  # numbers that are added at a time: all arrays stay in the cache


class ExactSum:
    """The exact sum of arrays of one shape, as an expansion: a few float64 arrays, whose sum it is.

    A sum of two numbers and its rounding error are both float64 numbers, which six operations find (Knuth 1969). The
    error is added to the next component in the same way, and a new component takes what is left (Shewchuk 1997). Two
    components are enough where the numbers added are of similar size. Where a sum is not finite its error is dropped.

    Attributes
    ----------
    components : list of flat float64 arrays
    """

    def __init__(self, first):
        first = np.array(first, np.float64, order="K")
        self.shape, self.order = first.shape, "C" if first.flags.c_contiguous else "F"
        self.components = [first.reshape(-1, order=self.order)]

    @property
    def nbytes(self):
        """Bytes of the components."""
        return sum(component.nbytes for component in self.components)

    def add(self, numbers):
        """Add an array, or another ExactSum."""
        if isinstance(numbers, ExactSum):
            for component in numbers.components:
                self._add(component)
        else:
            self._add(np.asarray(numbers).reshape(-1, order=self.order))

    def _add(self, numbers):
        """Add a flat array, a block at a time; a component is appended where rounding errors are left."""
        scratch = np.empty((3, min(BLOCK, len(numbers))))
        with np.errstate(all="ignore"):  # where a sum is not finite
            for start in range(0, len(numbers), BLOCK):
                block = slice(start, start + BLOCK)
                rest, *free = scratch[:, : len(numbers[block])]
                rest[...] = numbers[block]
                if not any(_add_block(component[block], rest, *free) for component in self.components):
                    self.components.append(np.zeros_like(self.components[0]))
                    self.components[-1][block] = rest

    def rounded(self):
        """Return the sum, rounded to float64."""
        total = sum(self.components[1:3], self.components[0])  # of two numbers, the rounded sum
        if len(self.components) > 2:
            rows = np.stack(self.components, axis=1)
            for i in np.flatnonzero(rows[:, 2:].any(axis=1) & np.isfinite(total)):
                total[i] = math.fsum(rows[i])
        return total.reshape(self.shape, order=self.order)


def _add_block(component, rest, total, added):
    """Add `rest` to a component and put the rounding errors there, both in place; return True if there are none.

    The errors are (component - (total - added)) + (rest - added); `total` and `added` are free to be used.
    """
    np.add(component, rest, out=total)
    np.subtract(total, component, out=added)
    rest -= added
    np.subtract(total, added, out=added)
    np.subtract(component, added, out=added)
    rest += added
    component[...] = total
    if not rest.any():
        return True
    rest[~np.isfinite(rest)] = 0.0
    return not rest.any()


def exact_sums(parts):
    """Return the ExactSums of parts, each a tuple of numbers, arrays or ExactSums."""
    parts = iter(parts)
    sums = [first if isinstance(first, ExactSum) else ExactSum(first) for first in next(parts)]
    for part in parts:
        for total, numbers in zip(sums, part, strict=True):
            total.add(numbers)
    return tuple(sums)
