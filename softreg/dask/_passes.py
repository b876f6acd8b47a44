"""Passes over chunks of rows on a Dask cluster: a function for each chunk, and the sum of its results.

Sums are exact and rounded once, see `ExactSum`. So their bits do not depend on how many workers there are.

Whatever workers keep can be computed again: rows by Dask, from the data; what follows from them by recipes.
"""

from contextlib import contextmanager
from weakref import WeakSet

import numpy as np
from dask import delayed
from distributed import KilledWorker
from distributed.client import CancelledError

from softreg.dask._exact_sum import exact_sums
from softreg.dask._recipes import Recipe, Request

FAN_IN = 16  # sums that one task adds
DIED = (
    "workers died again and again while they computed a chunk of rows, maybe for want of memory: use smaller chunks, "
    "or workers with more memory"
)
LOST = (
    "chunks of rows are lost and cannot be computed again: their data were scattered, or the client or the scheduler "
    "is gone; give X and y as arrays that Dask can compute"
)


class Column:
    """Results of a recipe, one a chunk.

    Attributes
    ----------
    recipe : Recipe
    chunks : list of int, the numbers of the chunks
    use : object of which the end is that of the column, and of others over some of its chunks
    """

    def __init__(self, recipe, chunks, use=None):
        self.recipe, self.chunks, self.use = recipe, chunks, Use() if use is None else use

    def __len__(self):
        return len(self.chunks)

    def where(self, is_taken):
        """Return the column over some of its chunks; `is_taken` has an entry a chunk."""
        return Column(self.recipe, [c for c, taken in zip(self.chunks, is_taken, strict=True) if taken], self.use)


class Use:
    """The use of a column: results stay on the workers as long as it lives."""


class Passes:
    """Runs functions over chunks.

    Columns that go into a function are `Column`, or lists with an entry a chunk; the first is a `Column`.

    Parameters
    ----------
    client : Client
    blocks : list of Future, Delayed or BlockGraph, the data of each chunk

    Attributes
    ----------
    data : Column of these
    sent, received : int, bytes of arguments that went out to the workers, and of sums that came back
    row_bytes : int, bytes of rows that came to the client
    count : int, passes so far
    """

    def __init__(self, client, blocks):
        self.client, self._of_dask = client, WeakSet()
        self.sent = self.received = self.row_bytes = self.count = 0
        self.data = self._kept_by_dask(blocks, list(range(len(blocks))))

    def each(self, function, *columns, kind="probabilities", **shared):
        """Return the column of a function's results, which stay on the workers or are computed when they are needed.

        `kind` is what they hold: "rows", "probabilities", or "little": at most a number a row.
        """
        return self._column(self._recipe(function, columns, shared), columns[0].chunks, kind)

    def sum(self, function, *columns, **shared):
        """Return the sums of the tuples that the function returns, as float64 arrays."""
        sums = self._sums(self._recipe(function, columns, shared), columns[0].chunks)
        self.count += 1
        self.received += sum(total.nbytes for part in sums for total in part)
        return tuple(total.rounded() for total in exact_sums(sums))

    def gather(self, function, *columns, **shared):
        """Return the list of the function's results."""
        return self._results(self._recipe(function, columns, shared), columns[0].chunks)

    def close(self):
        """Free what is left on the workers; what they have not begun to compute is dropped."""
        for future in list(self._of_dask):
            future.release()
        self._of_dask.clear()

    def _recipe(self, function, columns, shared):
        chunks = columns[0].chunks
        arguments = [c.recipe if isinstance(c, Column) else dict(zip(chunks, c, strict=True)) for c in columns]
        return Recipe(function, arguments, shared)

    def _kept_by_dask(self, blocks, chunks):
        """Return the column of results that Dask keeps."""
        return Column(Recipe(None, [], {}, dict(zip(chunks, blocks, strict=True))), chunks)

    def _submit(self, tasks):
        """Return futures of Delayed tasks."""
        futures = self.client.compute(tasks)
        self._of_dask.update(futures)
        return futures

    def _tasks(self, recipe, chunks):
        """Return a task a chunk for the results of a recipe. The recipe goes out once, by a task of its own."""
        steps, sources = recipe.ingredients()
        request = self.client.submit(_itself, Request(recipe.step, {n: r.step for n, r in steps.items()}), pure=False)
        self._of_dask.add(request)
        self.sent += array_bytes([recipe, *steps.values()])
        run = delayed(Request.result, pure=False)
        return [
            run(request, chunk, {number: source.futures[chunk] for number, source in sources.items()})
            for chunk in chunks
        ]

    def _gathered(self, tasks):
        """Return the results of tasks, or raise an error that says what happened to them."""
        with clear_errors():
            return self.client.gather(self._submit(tasks))


class RereadPasses(Passes):
    """Rows are computed again in each pass, with all that follows from them, by a task a chunk; Dask keeps the rest."""

    def _column(self, recipe, chunks, kind):
        if kind == "little":
            return self._kept_by_dask(self._submit(self._tasks(recipe, chunks)), chunks)
        return Column(recipe, chunks)

    def _results(self, recipe, chunks):
        return self._gathered(self._tasks(recipe, chunks))

    def _sums(self, recipe, chunks):
        parts, add = self._tasks(recipe, chunks), delayed(exact_sums, pure=False)
        while len(parts) > 1:
            parts = [add(parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
        return [exact_sums(self._gathered(parts))]


@contextmanager
def clear_errors():
    """Raise errors that say what to do where workers died, or rows are lost."""
    try:
        yield
    except KilledWorker as error:
        raise RuntimeError(DIED) from error
    except CancelledError as error:
        raise RuntimeError(LOST) from error


def array_bytes(recipes):
    """Return the bytes of the arrays that go out with recipes."""
    return sum(a.nbytes for recipe in recipes for a in recipe.step.shared.values() if isinstance(a, np.ndarray))


def _itself(value):
    return value
