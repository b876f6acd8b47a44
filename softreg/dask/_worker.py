"""Preparation of a chunk of rows on a worker: from what Dask holds to checked rows, and to their objective.

A chunk's `Objective` is that of one machine, without penalties. Its total weight is that of all chunks, so its value
and its gradient are its parts of the mean over all rows: parts are added, and nothing else.
"""

from copy import copy
from typing import NamedTuple

import numpy as np
from dask.sizeof import sizeof
from scipy.sparse import issparse
from sklearn.utils import check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

import softreg
from softreg._array_checks import check_targets, check_weights
from softreg._memory_layout import ensure_row_major
from softreg._objective import Linearization, Objective
from softreg._threads import effective_n_threads
from softreg.dask._input import BlockGraph


class Chunk:
    """Checked rows: X, and either labels (n,) or targets (n, K), and weights or None."""

    def __init__(self, X, labels, targets, weight):
        self.X, self.labels, self.targets, self.weight = X, labels, targets, weight


class ChunkFacts(NamedTuple):
    """Facts of a chunk that the client needs: `labels` are those that occur, or the number of target columns."""

    n_rows: int
    n_bytes: int
    labels: np.ndarray | int | None
    is_sparse: bool


@sizeof.register(Chunk)
@sizeof.register(Objective)
@sizeof.register(Linearization)
def array_bytes(thing):
    """Return the bytes of the arrays of an object: Dask then knows what it would move or spill."""
    arrays = list(vars(thing).values())
    if isinstance(thing, Objective):
        arrays = [thing.design.X, *thing.labels_of_all]
    return sum(a.data.nbytes + a.indices.nbytes if issparse(a) else getattr(a, "nbytes", 0) for a in arrays)


def version():
    """Return the version of softreg in this process."""
    return softreg.__version__


def memory_limit(dask_worker):
    """Return the memory that the worker may use, in bytes, or infinity."""
    return dask_worker.memory_manager.memory_limit or np.inf


# --- data ---------------------------------------------------------------------------------------------------------


def check_chunk(block, number, *, dtype, is_soft, version):
    """Return the Chunk of checked rows, or None if there are none; raise a ValueError that names the chunk's number.

    `block` is a tuple of X, y and weights, or a BlockGraph.
    """
    X, y, weight = block.compute() if isinstance(block, BlockGraph) else block
    if softreg.__version__ != version:
        raise RuntimeError(f"a worker has softreg {softreg.__version__}, the client {version}: install one version")
    rows = X.shape[0]
    if len(y) != rows or (weight is not None and len(weight) != rows):
        lengths = f"X has {rows} rows, y {len(y)}" + ("" if weight is None else f", sample_weight {len(weight)}")
        raise ValueError(f"chunk {number}: {lengths}; give them the same chunks, by X.rechunk or repartition")
    if rows == 0:
        return None
    try:
        X, y = check_X_y(X, y, accept_sparse="csr", accept_large_sparse=True, dtype=dtype, multi_output=is_soft)
        X = ensure_row_major(X)
        weight = None if weight is None else check_weights(np.asarray(weight), rows, X.dtype)
        if is_soft:
            return Chunk(X, None, check_targets(np.asarray(y), y.shape, X.dtype)[1], weight)
        y = column_or_1d(y)
        check_classification_targets(y)
    except ValueError as error:
        raise ValueError(f"chunk {number}: {error}") from error
    return Chunk(X, y, None, weight)


def describe(chunk):
    """Return the ChunkFacts."""
    if chunk is None:
        return ChunkFacts(0, 0, None, False)
    labels = chunk.targets.shape[1] if chunk.labels is None else np.unique(chunk.labels)
    return ChunkFacts(chunk.X.shape[0], array_bytes(chunk), labels, issparse(chunk.X))


def class_totals(chunk, classes):
    """Return the sum of weights of each class, float64, (K,)."""
    weight = np.ones(chunk.X.shape[0]) if chunk.weight is None else chunk.weight.astype(np.float64)
    if chunk.targets is not None:
        return (weight @ chunk.targets.astype(np.float64),)
    return (np.bincount(np.searchsorted(classes, chunk.labels), weights=weight, minlength=len(classes)),)


def chunk_objective(chunk, *, classes, class_weight, n_jobs, total, **settings):
    """Return the Objective over a chunk; `class_weight` (K,) or None multiplies the weights of its rows."""
    codes, weight = None, chunk.weight
    if chunk.targets is None:
        codes = np.searchsorted(classes, chunk.labels).astype(np.intp)
    if class_weight is not None:
        of_row = class_weight[codes].astype(chunk.X.dtype)
        weight = of_row if weight is None else weight * of_row
    n_threads = 1 if n_jobs is None else effective_n_threads(n_jobs)  # Dask runs several chunks side by side
    objective = Objective(
        chunk.X, codes, chunk.targets, weight, len(classes), l2=0.0, n_threads=n_threads, **settings
    )  # fmt: skip
    return as_part(objective, total)


def as_part(objective, total):
    """Return the objective as a part of the mean over rows of that total weight."""
    part = copy(objective)
    part._cache = {}
    part.own_weight, part.total_weight = objective.total_weight, total
    return part


def held_out_positions(objective, seed, *, fraction):
    """Return the positions of a random share of the rows with weight, and those of the other rows with weight."""
    rows = np.flatnonzero(objective.shares())
    order = np.random.RandomState(seed).permutation(rows)
    size = round(fraction * len(rows))
    return np.sort(order[:size]), np.sort(order[size:])


def selected_weight(objective, positions, *, which):
    """Return the total weight of the rows at positions[which]."""
    return (objective.select(positions[which]).total_weight,)


def selected_part(objective, positions, *, which, total):
    """Return the rows at positions[which] as a part of the mean over rows of that total weight."""
    return as_part(objective.select(positions[which]), total)


def part_facts(objective):
    """Return the number of rows, their total weight, and the longest sum of the kernels."""
    return objective.n_rows, objective.own_weight, objective.design.longest_sum
