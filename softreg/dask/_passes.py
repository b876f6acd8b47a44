"""Passes over chunks of rows on a Dask cluster: a function for each chunk, and the sum of its results.

The sum is added by tasks on the workers, in a tree that depends on the number of chunks alone. So its bits do not
depend on the number of workers, and a pass brings one sum to the client.

What the workers keep are results of tasks. If a worker dies, Dask computes them again from the data.
"""

from weakref import WeakSet

import numpy as np
from dask import delayed
from distributed import KilledWorker, futures_of
from distributed.client import CancelledError

from softreg.dask._sums import added

FAN_IN = 16  # parts that one task adds
LARGE = 10_000  # bytes of an array from which it is an own task


def _itself(value):
    return value


class Passes:
    """Runs functions over chunks.

    A column is a list with one entry for each chunk: numbers, or what `each` returned.

    Attributes
    ----------
    sent, received : int, bytes of arguments that went out to the workers, and of sums that came back
    row_bytes : int, bytes of rows that came to the client
    count : int, passes so far
    """

    def __init__(self, client):
        self.client, self._kept = client, WeakSet()
        self.sent = self.received = self.row_bytes = self.count = 0

    def each(self, function, *columns, is_small=False, **shared):
        """Return a column of the function's results, which stay on the workers."""
        self._count_sent(shared)
        return self.hold(self._stored(self._map(function, columns, shared), is_small))

    def hold(self, column):
        """Return a column, of which `close` frees what is on the workers."""
        self._kept.update(futures_of(column))
        return column

    def sum(self, function, *columns, **shared):
        """Return the sums of the tuples that the function returns, as float64 arrays."""
        parts = self._map(function, columns, shared)
        while len(parts) > 1:
            groups = [parts[i : i + FAN_IN] for i in range(0, len(parts), FAN_IN)]
            parts = [self._submit(added, *group) if len(group) > 1 else group[0] for group in groups]
        total = added(self._result(parts)[0])
        self.count += 1
        self._count_sent(shared)
        self.received += sum(a.nbytes for a in total)
        return total

    def gather(self, function, *columns, **shared):
        """Return the list of the function's results."""
        return self._result(self._map(function, columns, shared))

    def close(self):
        """Free what is left on the workers; what they have not begun to compute is dropped."""
        for future in list(self._kept):
            future.release()
        self._kept.clear()

    def _count_sent(self, shared):
        self.sent += sum(a.nbytes for a in shared.values() if isinstance(a, np.ndarray))

    def _result(self, tasks):
        """Return the results of tasks, or raise an error that says what happened to them."""
        running = self._futures(tasks)
        self._kept.update(running)
        try:
            return self.client.gather(running)
        except KilledWorker as error:
            raise RuntimeError(
                "workers died again and again while they computed a chunk of rows, maybe for want of memory: use "
                "smaller chunks, or workers with more memory"
            ) from error
        except CancelledError as error:
            raise RuntimeError(
                "chunks of rows are lost and cannot be computed again: their data were scattered, or the client or "
                "the scheduler is gone; give X and y as arrays that Dask can compute"
            ) from error


class KeptPasses(Passes):
    """Results stay in the memory of the workers."""

    def _map(self, function, columns, shared):
        """Return the futures of a function over columns; large arrays go out once, by tasks with keys of their own.

        Without these, `Client.map` makes tasks whose keys are the names of the arguments, the same in every pass.
        """
        is_large = {name: isinstance(a, np.ndarray) and a.nbytes > LARGE for name, a in shared.items()}
        shared = {name: self._submit(_itself, a) if is_large[name] else a for name, a in shared.items()}
        return self.client.map(function, *columns, pure=False, **shared)

    def _submit(self, function, *arguments):
        return self.client.submit(function, *arguments, pure=False)

    def _stored(self, tasks, is_small):
        return tasks

    def _futures(self, tasks):
        return tasks


class RereadPasses(Passes):
    """Rows are computed again in each pass, with all that follows from them; only small results are kept.

    Columns hold recipes. A pass runs one task a chunk beside those that load it, whatever there is to compute.

    Parameters
    ----------
    client : Client
    blocks : list of Delayed, the data of each chunk
    """

    def __init__(self, client, blocks):
        super().__init__(client)
        self.blocks = blocks

    def _map(self, function, columns, shared):
        return [Recipe(function, entries, shared) for entries in zip(*columns, strict=True)]

    def _submit(self, function, *arguments):
        return delayed(function, pure=False)(*self._tasks(arguments))

    def _stored(self, recipes, is_small):
        """Return the column; small results are computed now, by tasks that stay."""
        if not is_small:
            return recipes
        stored = self.hold(self.client.compute(self._tasks(recipes)))
        return [Kept(future, recipe.number) for future, recipe in zip(stored, recipes, strict=True)]

    def _futures(self, tasks):
        return self.client.compute(self._tasks(tasks))

    def _tasks(self, tasks):
        """Return Delayed for the recipes among the tasks."""
        run = delayed(computed, pure=False)
        return [
            run(task, self.blocks[task.number], task.futures()) if isinstance(task, Recipe) else task for task in tasks
        ]


class Kept:
    """A result that a worker keeps, as an entry of a recipe; on the worker its key stands for it."""

    def __init__(self, future, number):
        self.future, self.key, self.number = future, future.key, number

    def __getstate__(self):
        return {"key": self.key, "number": self.number}


class Recipe:
    """A function and its arguments for one chunk, of which some are recipes, to be computed together.

    Attributes
    ----------
    number : int, of the chunk
    reads_data : bool, True if the function takes the number and the data of the chunk
    """

    def __init__(self, function, entries, shared):
        self.function, self.entries, self.shared = function, entries, shared
        of_chunk = [entry.number for entry in entries if isinstance(entry, Recipe | Kept)]
        self.reads_data, self.number = not of_chunk, of_chunk[0] if of_chunk else entries[0]

    def futures(self):
        """Return the futures of kept results by key."""
        found = {e.key: e.future for e in self.entries if isinstance(e, Kept)}
        for entry in self.entries:
            found |= entry.futures() if isinstance(entry, Recipe) else {}
        return found


def computed(recipe, block, kept, known=None):
    """Return the result of a recipe, from the data of its chunk and from kept results by key; each part once."""
    known = {} if known is None else known
    if id(recipe) not in known:
        entries = [
            computed(e, block, kept, known) if isinstance(e, Recipe) else kept[e.key] if isinstance(e, Kept) else e
            for e in recipe.entries
        ]
        data = block if recipe.reads_data else ()
        known[id(recipe)] = recipe.function(*entries, *data, **recipe.shared)
    return known[id(recipe)]
