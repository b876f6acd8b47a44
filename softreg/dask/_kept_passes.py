"""Passes over rows that stay in the memory of the workers: a direct call to the Station of each worker.

A worker that is lost takes with it what its Station kept. Dask computes its chunks again on other workers, and the
Stations there compute the rest from the recipes.
"""

import time
from collections import defaultdict
from weakref import finalize

from dask import config
from distributed import wait

from softreg.dask._passes import DIED, Column, Passes, _itself, array_bytes, clear_errors
from softreg.dask._station import ChunkIsElsewhereError, Order, Station

PATIENCE = 1.0  # seconds after which to look whether a Station that has not answered is there


class KeptPasses(Passes):
    """Dask keeps the rows, and a Station on each worker keeps what follows from them.

    Attributes
    ----------
    keeps_probabilities : bool, False if they are computed again in each pass
    """

    def __init__(self, client, blocks):
        super().__init__(client, blocks)
        self._of_dask.update(blocks)
        self.keeps_probabilities, self._is_balanced = True, False
        self._stations, self._places = {}, {}  # by address; address by key
        self._unused = []  # log of what came out of use: number of the recipe, True for its step and False for results

    def close(self):
        for station in self._stations.values():
            station.close()
        self._stations.clear()
        super().close()

    def _column(self, recipe, chunks, kind):
        if kind == "rows":
            return self._kept_by_dask(self._submit(self._tasks(recipe, chunks)), chunks)
        column = Column(recipe, chunks)
        if kind == "little" or self.keeps_probabilities:
            recipe.stays = True
            finalize(column.use, _end_use, recipe, self._unused)
        finalize(recipe, self._unused.append, (recipe.number, True))
        return column

    def _sums(self, recipe, chunks):
        return self._calls(recipe, chunks, adds=True)

    def _results(self, recipe, chunks):
        found = {}
        for results in self._calls(recipe, chunks, adds=False):
            found |= results
        return [found[chunk] for chunk in chunks]

    def _calls(self, recipe, chunks, adds):
        """Return what each Station has for its chunks; chunks of a worker that is lost are computed again elsewhere."""
        steps, sources = recipe.ingredients()
        returned, left, trials = [], chunks, 0
        while left:
            if trials > config.get("distributed.scheduler.allowed-failures"):
                raise RuntimeError(DIED)
            placed, left, trials = self._placed(left, sources), [], trials + 1
            for station, mine in placed:
                news = station.news(steps, self._unused)
                self.sent += array_bytes([recipe, *(steps[number] for number in news["new_steps"])])
                station.start(Order(recipe.step, mine, adds, **news))
            for station, mine in placed:
                try:
                    returned.append(station.result())
                except LostStationError:
                    self._stations = {a: other for a, other in self._stations.items() if other is not station}
                    left += self._without_places(mine)
                except ChunkIsElsewhereError:
                    left += self._without_places(mine)
        return returned

    def _without_places(self, chunks):
        """Return the numbers of chunks, and forget where their rows are."""
        for keys in chunks.values():
            for key in keys.values():
                self._places.pop(key, None)
        return list(chunks)

    def _placed(self, chunks, sources):
        """Return pairs of a Station and its chunks: the keys of what Dask keeps for each, by number of recipe.

        All that Dask keeps for a chunk follows from its rows, and so is where these are.
        """
        if not self._is_balanced:
            self._balance()
        futures = {chunk: {n: source.futures[chunk] for n, source in sources.items()} for chunk in chunks}
        self._locate([future for of_chunk in futures.values() for future in of_chunk.values()])
        placed = defaultdict(dict)
        for chunk, of_chunk in futures.items():
            keys = {n: future.key for n, future in of_chunk.items()}
            placed[self._places[next(iter(keys.values()))]][chunk] = keys
        for address in placed.keys() - self._stations.keys():
            self._stations[address] = StationHandle(self.client, address)
        return [(self._stations[address], mine) for address, mine in placed.items()]

    def _balance(self):
        """Move chunks away from workers that have more of them for each thread than is needed anywhere."""
        futures = self.data.recipe.futures
        self._locate(futures.values())  # before, there may be no worker
        threads = self.client.nthreads()
        rounds = -(-len(futures) // sum(threads.values()))
        free, surplus = {address: n * rounds for address, n in threads.items()}, []
        for chunk, future in futures.items():
            address = self._places[future.key]
            if free.get(address, 0) > 0:
                free[address] -= 1
            else:
                surplus.append(chunk)
        targets = [address for address, n in free.items() for _ in range(n)]
        for chunk, address in zip(surplus, targets, strict=False):
            place = {"workers": [address], "allow_other_workers": True}
            futures[chunk] = self.client.submit(_itself, futures[chunk], **place, pure=False)
            self._of_dask.add(futures[chunk])
        self._is_balanced = True

    def _locate(self, futures):
        """Find out which worker holds each of the futures, once they are computed."""
        futures = [future for future in futures if future.key not in self._places]
        while futures:
            with clear_errors():
                wait(futures)
                for future in futures:
                    if future.status != "finished":
                        future.result()  # raises its error
            held = self.client.who_has(futures)
            self._places |= {key: workers[0] for key, workers in held.items() if workers}
            futures = [future for future in futures if future.key not in self._places]
            time.sleep(0.05 if futures else 0)  # a worker has just died, and Dask is about to compute them again


class LostStationError(Exception):
    """The worker of a Station is lost."""


class StationHandle:
    """The Station of a worker, seen from the client.

    Parameters
    ----------
    client : Client
    address : str, of the worker; if it is lost at this moment, Dask takes another one
    """

    def __init__(self, client, address):
        place = {"workers": [address], "allow_other_workers": True}
        self.future = client.submit(Station, actor=True, **place, pure=False)
        self.actor = self.running = None
        self.known, self.n_read = set(), 0  # numbers of the recipes that it has; how much of the log it has read

    def news(self, steps, unused):
        """Return the arguments of an Order that bring the Station up to date; `unused` is the log."""
        log, self.n_read = unused[self.n_read :], len(unused)
        gone = {number for number, is_step in log if is_step} & self.known
        new = {number: (recipe.step, recipe.stays) for number, recipe in steps.items() if number not in self.known}
        results = [number for number, is_step in log if not is_step and number in self.known]
        self.known = (self.known - gone) | new.keys()
        return {"new_steps": new, "unused_results": results, "unused_steps": list(gone)}

    def start(self, order):
        """Start to carry out an order."""
        try:
            with clear_errors():
                self.actor = self.actor or self.future.result()
            self.running = self.actor.run(order)
        except (OSError, RuntimeError):
            self.running = None

    def result(self):
        """Return what the order gave, or raise the error of a chunk."""
        while self.running is not None and self.future.status == "finished":
            try:
                return self.running.result(timeout=PATIENCE)
            except TimeoutError:  # a call to a worker that was started anew may never be answered
                continue
            except OSError as error:
                raise LostStationError from error
        raise LostStationError

    def close(self):
        """Free what the Station keeps."""
        self.actor = self.running = None
        self.future.cancel()


def _end_use(recipe, unused):
    """Note that the results of a recipe are not used any more; its step is, where others need it."""
    recipe.stays = False
    unused.append((recipe.number, False))
