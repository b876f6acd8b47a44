"""Lazy prediction: methods of a fitted estimator of one machine, as tasks of a Dask graph, one a chunk of rows."""

import dask.array as da
import numpy as np
from dask import delayed

from softreg._validation import are_distributions
from softreg.dask._input import row_chunks, row_lengths


def predicted(model, method, X, dtype, columns):
    """Return what a method of the model says of the rows of X, as a dask array.

    Parameters
    ----------
    model : fitted estimator of one machine
    method : str, the name of the method
    X : dask array or dataframe
    dtype : of the result
    columns : tuple, the shape of the result of one row
    """
    blocks, *_ = row_chunks(X)
    lengths = row_lengths(X) or [np.nan] * len(blocks)
    model, run = delayed(model), delayed(_predict_chunk)
    arrays = [
        da.from_delayed(run(model, method, block, dtype, columns), (n, *columns), dtype=dtype)
        for block, n in zip(blocks, lengths, strict=True)
    ]
    return da.concatenate(arrays, allow_unknown_chunksizes=True)


def accuracy(model, X, y, sample_weight):
    """Return the accuracy as a dask array of no dimension."""
    run, model = delayed(_score_chunk), delayed(model)
    chunks = [run(model, *blocks) for blocks in zip(*row_chunks(X, y, sample_weight), strict=True)]
    return da.from_delayed(delayed(_mean)(chunks), (), dtype=np.float64)


def _predict_chunk(model, method, X, dtype, columns):
    if X.shape[0] == 0:
        return np.empty((0, *columns), dtype)
    return getattr(model, method)(X)


def _score_chunk(model, X, y, weight):
    """Return the sum of the weights of the rows that are predicted right, and that of all."""
    if X.shape[0] == 0:
        return 0.0, 0.0
    total = float(X.shape[0] if weight is None else np.sum(weight, dtype=np.float64))
    y = np.asarray(y)
    y = y if are_distributions(y) else y.ravel()
    weight = None if weight is None else np.asarray(weight)
    return (model.score(X, y, weight) * total if total else 0.0), total


def _mean(chunks):
    right, total = np.sum(chunks, axis=0)
    return np.float64(right / total)
