"""The Station of a worker: it runs passes over the chunks that lie there, at the client's direct call.

A call takes a millisecond or two, where a task takes ten, and a task a chunk more. Rows stay with Dask, which may spill
them to disk, move them, or compute them again elsewhere. The results that a Station keeps follow from them by recipes.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

from distributed import get_worker

from softreg.dask._exact_sum import exact_sums
from softreg.dask._recipes import Step, result_for


class Order(NamedTuple):
    """What the client asks of a Station."""

    step: Step
    chunks: dict  # by chunk: the keys of what Dask keeps, by number of recipe
    adds: bool  # True for the sums of the results, False for a dict of them by chunk
    new_steps: dict  # by number of recipe: a Step, and whether its results stay here
    unused_results: list  # numbers of recipes
    unused_steps: list


class ChunkIsElsewhereError(Exception):
    """Dask has moved a chunk away from the worker since the client asked where it is."""


class Station:
    """Results of the chunks on a worker, and threads to compute them; an actor of Dask.

    Attributes
    ----------
    steps : dict of Step by number of recipe
    kept : set, numbers of the recipes of which results stay here
    results : dict of dicts, by chunk and number of recipe
    """

    def __init__(self):
        self.worker = get_worker()
        self.threads = ThreadPoolExecutor(self.worker.state.nthreads, thread_name_prefix="softreg")
        self.steps, self.kept, self.results = {}, set(), {}

    async def run(self, order):
        """Return the sums of the results of an order, or a dict of the results."""
        self._update(order)
        loop, collected = asyncio.get_running_loop(), Sums() if order.adds else {}
        running = [
            loop.run_in_executor(self.threads, self._run_chunk, order, chunk, collected) for chunk in order.chunks
        ]
        try:
            await asyncio.gather(*running)
        finally:  # after an error, leave out the chunks that were not begun
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return collected.sums if order.adds else collected

    def _update(self, order):
        """Take the new steps of an order, and forget what is not used any more."""
        self.kept.difference_update(order.unused_results)
        for number in order.unused_steps:
            self.steps.pop(number, None)
        for number, (step, is_kept) in order.new_steps.items():
            self.steps[number] = step
            if is_kept:
                self.kept.add(number)
        for results in self.results.values():
            for number in results.keys() - self.kept:
                del results[number]

    def _run_chunk(self, order, chunk, collected):
        """Compute the result for a chunk, and collect it."""
        try:
            known = {number: self.worker.data[key] for number, key in order.chunks[chunk].items()}
        except KeyError as error:
            raise ChunkIsElsewhereError(chunk) from error
        known |= self.results.get(chunk, {})
        result = result_for(chunk, order.step, self.steps, known)
        self.results[chunk] = {number: known[number] for number in known.keys() & self.kept}
        if order.adds:
            collected.add(result)
        else:
            collected[chunk] = result


class Sums:
    """Sums of the results of chunks, which several threads add.

    Attributes
    ----------
    sums : tuple of ExactSum, or None
    """

    def __init__(self):
        self.sums, self._lock = None, Lock()

    def add(self, result):
        """Add the result of a chunk."""
        with self._lock:
            self.sums = exact_sums([result] if self.sums is None else [self.sums, result])
