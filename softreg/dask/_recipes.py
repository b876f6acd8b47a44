"""Recipes: how the results of a column follow from the rows of their chunks, wherever these are.

A result on a worker may be lost, or not be kept at all. With its recipe it is computed again.
"""

from itertools import count
from typing import NamedTuple


class Step(NamedTuple):
    """A function, and its arguments for each chunk: the number of another recipe, or a dict with an entry a chunk."""

    function: object
    arguments: list
    shared: dict  # keyword arguments that are the same for all chunks

    def __call__(self, chunk, known):
        """Return the result for a chunk; `known` has the results of the arguments by number of recipe."""
        given = [known[a] if isinstance(a, int) else a[chunk] for a in self.arguments]
        return self.function(*given, **self.shared)


class Recipe:
    """How a column is computed, on the client.

    Attributes
    ----------
    number : int, its name on the workers
    step : Step
    needs : list of Recipe, those of the arguments
    futures : dict of Future by chunk, where Dask keeps the results, or of what makes the data; else None
    stays : bool, True if a Station keeps the results
    """

    _numbers = count()

    def __init__(self, function, arguments, shared, futures=None):
        self.number, self.futures, self.stays = next(Recipe._numbers), futures, False
        self.needs = [a for a in arguments if isinstance(a, Recipe)]
        numbers = [a.number if isinstance(a, Recipe) else a for a in arguments]
        self.step = Step(function, numbers, shared)

    def ingredients(self):
        """Return the recipes that lead from results of Dask's to this one, and those of the former; dicts by number."""
        steps, kept, left = {}, {}, list(self.needs)
        while left:
            recipe = left.pop()
            if recipe.futures is not None:
                kept[recipe.number] = recipe
            elif recipe.number not in steps:
                steps[recipe.number] = recipe
                left += recipe.needs
        return steps, kept


class Request:
    """A step with all steps that it needs, as a task gets it: one object, which Dask does not look into."""

    def __init__(self, step, steps):
        self.step, self.steps = step, steps

    def result(self, chunk, known):
        """Return the result for a chunk, from `known` results by number of recipe."""
        return result_for(chunk, self.step, self.steps, dict(known))


def result_for(chunk, step, steps, known):
    """Return the result of a step for a chunk, and add to `known` those of the steps that it needs, by number."""
    for number in step.arguments:
        if isinstance(number, int) and number not in known:
            known[number] = result_for(chunk, steps[number], steps, known)
    return step(chunk, known)
