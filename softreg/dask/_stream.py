"""Streams: the chunks of a dask collection, learnt one after the other."""

import pickle
from copy import copy

import numpy as np
from dask import delayed
from distributed import wait

from softreg._callbacks import Callbacks, with_callbacks
from softreg._validation import restore_on_error
from softreg.dask._client import fit_client
from softreg.dask._input import are_soft, row_chunks

AHEAD = 2  # chunks that are loaded before they are needed


@with_callbacks
def stream(model, X, y, *, classes=None, sample_weight=None):
    """Learn the chunks of X in turn by `partial_fit`, each once, on the workers; return the model.

    The state of the stream goes from chunk to chunk: K d numbers, and d^2 for dense rows. At most three chunks are in
    memory at a time, so this needs no more memory for more rows. Callbacks see the model after each chunk, and can
    end the stream there.

    Parameters
    ----------
    model : softreg.SoftmaxRegression or softreg.dask.SoftmaxRegression
        Changed, as by `partial_fit`. A stream that began before goes on.
    X : dask array or dataframe of shape (n, d)
        Chunks of rows, dense or CSR.
    y : dask array, series or dataframe of shape (n,) or (n, K)
        Labels or target probabilities.
    classes : array of labels or int, optional
        All classes that will ever come. By default they are those of y, which is read once before if the model does
        not know its classes yet.
    sample_weight : dask array or series of shape (n,), optional
        Weights, not negative.

    Returns
    -------
    model : the same estimator
        It has learnt all rows.

    Raises
    ------
    ValueError
        As in `partial_fit`, or if the chunks of X, y and weights do not match.

    Examples
    --------
    >>> import dask.array as da
    >>> from softreg import SoftmaxRegression
    >>> from softreg.dask import stream
    >>> X, y = da.random.random((1000, 3), chunks=(100, 3)), da.random.randint(0, 2, 1000, chunks=100)
    >>> stream(SoftmaxRegression(), X, y).n_iter_  # doctest: +SKIP
    10
    """
    columns = row_chunks(X, y, sample_weight)
    blocks = list(zip(*columns, strict=True))
    callbacks = Callbacks(model, X, y, sample_weight, name="chunk", max_tasks=len(blocks))
    with fit_client() as client, restore_on_error(model):
        if classes is None and not hasattr(model, "classes_"):
            classes = _classes(client, y, columns[1])
        learner, loaded = client.submit(copy, _without_callbacks(model), pure=False), []
        callbacks.start(_fitted_attributes, model if hasattr(model, "classes_") else None)
        for number in range(len(blocks)):
            for block in blocks[number + len(loaded) : number + 1 + AHEAD]:
                loaded.append(client.compute(delayed(tuple)(block)))
            callbacks.begin()
            learner = client.submit(_learnt, learner, loaded.pop(0), classes, number, pure=False)
            wait(learner)
            if callbacks.root is not None and callbacks.end(learner.result()):
                break
        of_callbacks = {name: value for name, value in vars(model).items() if "callback" in name}
        learnt = vars(learner.result())
        vars(model).clear()
        vars(model).update(learnt | of_callbacks)
        callbacks.finish()
    return model


def _without_callbacks(model):
    """Return a copy of the model that goes to the workers."""
    model = copy(model)
    for name in [name for name in vars(model) if "callback" in name]:
        delattr(model, name)
    return model


def _fitted_attributes(learnt):
    """Return the attributes that make a copy of the model one that has learnt so far; `learnt` may be None."""
    return {} if learnt is None else {**vars(learnt), "coef_": learnt.coef_, "intercept_": learnt.intercept_}


def _learnt(model, block, classes, number):
    """Return a copy of the model that has learnt a block (X, y, weights)."""
    X, y, weight = block
    y, weight = np.asarray(y), None if weight is None else np.asarray(weight)
    model = pickle.loads(pickle.dumps(model))  # Dask may need the one before again
    try:
        return model.partial_fit(X, y, classes=classes, sample_weight=weight)
    except ValueError as error:
        raise ValueError(f"chunk {number}: {error}") from error


def _classes(client, y, blocks):
    """Return the classes of all chunks of y."""
    if are_soft(y):
        return y.shape[1]
    found = client.gather(client.compute([delayed(np.unique)(delayed(np.asarray)(block)) for block in blocks]))
    return np.unique(np.concatenate(found))
