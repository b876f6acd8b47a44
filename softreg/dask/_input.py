"""Dask arrays and dataframes as chunks of rows: lists of Delayed, one entry a chunk, in the order of the rows."""

import math

import dask
import dask.array as da
import numpy as np
from dask import delayed, is_dask_collection
from dask.core import get_dependencies

LENGTHS = "call X.compute_chunk_sizes() and y.compute_chunk_sizes() first, or give both as dataframes of one graph"


def is_frame(x):
    """Return True for a dask dataframe or series."""
    return is_dask_collection(x) and hasattr(x, "npartitions") and not hasattr(x, "chunks")


def row_chunks(X, y=None, sample_weight=None):
    """Return three lists with an entry for each chunk of rows: of X, of y and of the weights, or of None.

    Chunks of columns are joined. Where lengths are known, y and weights get the chunks of X. Where they are not, the
    number of chunks has to be the same, and workers compare the lengths.
    """
    if not is_dask_collection(X):
        raise TypeError(f"X is {type(X).__name__}, but y or sample_weight is a dask collection: give X as one, too")
    blocks = _blocks(X)
    return blocks, *(_blocks_like(X, len(blocks), a, name) for a, name in ((y, "y"), (sample_weight, "sample_weight")))


class BlockGraph:
    """The tasks that make the data of a chunk, as one task runs them: rows are in memory no longer than it.

    Dask loads chunks ahead of the tasks that use them, more than there may be room for.
    """

    def __init__(self, graph, keys):
        self.graph, self.keys = graph, keys

    def compute(self):
        """Return X, y and the weights, or None, of the chunk."""
        return tuple(None if key is None else dask.get(self.graph, key) for key in self.keys)


def joined_blocks(columns, are_computed):
    """Return what makes the data of each chunk, a tuple of X, y and weights: a BlockGraph, or else a Delayed.

    It is a Delayed where chunks share tasks, which are then run once for all, or where data are computed already.
    """
    rows = list(zip(*columns, strict=True))
    if are_computed:
        return [delayed(tuple)(row) for row in rows]
    blocks = [block for row in rows for block in row if block is not None]
    graphs = {id(block.dask): dict(block.dask) for block in blocks}
    found = []
    for row in rows:
        there = [block for block in row if block is not None]
        graph = {}
        for block in there:
            graph |= _tasks_of(graphs[id(block.dask)], block.key)
        found.append(BlockGraph(graph, [None if block is None else block.key for block in row]))
    n_tasks = sum(len(block.graph) for block in found)
    if n_tasks > len(set().union(*(block.graph for block in found))):
        return [delayed(tuple)(row) for row in rows]
    return found


def _tasks_of(graph, key):
    """Return the part of a graph that a key needs."""
    found, left = {}, [key]
    while left:
        key = left.pop()
        if key not in found:
            found[key] = graph[key]
            left += get_dependencies(graph, key)
    return found


def _blocks(x):
    """Return the chunks of rows of an array or a frame."""
    if is_frame(x):
        return x.to_delayed()
    if not isinstance(x, da.Array):
        raise TypeError(f"{type(x).__name__} is not supported: give a dask array or a dask dataframe")
    if x.ndim == 2 and x.numblocks[1] > 1:
        x = x.rechunk({1: -1})
    return x.to_delayed().ravel().tolist()


def _blocks_like(X, n_blocks, a, name):
    """Return the chunks of `a` that belong to those of X."""
    if a is None:
        return [None] * n_blocks
    lengths = row_lengths(X)
    if not is_dask_collection(a):
        if lengths is None:
            raise ValueError(f"{name} is no dask collection, and the lengths of the chunks of X are unknown: {LENGTHS}")
        a = da.from_array(np.asarray(a), chunks=(lengths, *([-1] * (np.ndim(a) - 1))))
    if not is_frame(a) and lengths is not None and not any(map(math.isnan, a.chunks[0])):
        if a.shape[0] != sum(lengths):
            raise ValueError(f"X has {sum(lengths)} rows, {name} has {a.shape[0]}")
        a = a.rechunk({0: lengths})
    blocks = _blocks(a)
    if len(blocks) != n_blocks:
        counts = f"X has {n_blocks} chunks of rows, {name} has {len(blocks)}"
        raise ValueError(f"{counts}, and not all lengths are known: {LENGTHS}")
    return blocks


def row_lengths(X):
    """Return the rows of each chunk, or None where they are not known."""
    if is_frame(X) or any(map(math.isnan, X.chunks[0])):
        return None
    return X.chunks[0]


def are_soft(y):
    """Return True if y has several columns: its rows are then probabilities of the classes."""
    if not is_dask_collection(y):
        y = np.asarray(y)
    return y.ndim == 2 and (len(y.columns) if is_frame(y) else y.shape[1]) > 1


def float_dtype(X):
    """Return float32 if all numbers of X are that, else float64."""
    dtypes = set(X.dtypes) if is_frame(X) else {X.dtype}
    return np.dtype(np.float32) if dtypes == {np.dtype(np.float32)} else np.dtype(np.float64)


def known_bytes(X):
    """Return the bytes of a dense array of known size, else None."""
    if row_lengths(X) is None or not isinstance(X._meta, np.ndarray):
        return None
    return sum(row_lengths(X)) * X.shape[1] * float_dtype(X).itemsize
