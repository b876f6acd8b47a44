"""From dask collections to a `DistributedObjective`: checks on the workers, classes, weights and held-out rows."""

import numpy as np
from dask import delayed
from dask.utils import format_bytes
from distributed import futures_of
from scipy.sparse import csr_array
from sklearn.utils import compute_class_weight
from sklearn.utils.validation import _check_feature_names

import softreg
from softreg._coefficients import penalties
from softreg._objective import STORED_BYTES
from softreg.dask import _worker
from softreg.dask._client import warn
from softreg.dask._input import are_soft, float_dtype, is_frame, joined_blocks, known_bytes, row_chunks
from softreg.dask._kept_passes import KeptPasses
from softreg.dask._objective import DistributedObjective, Rows, seeds
from softreg.dask._passes import RereadPasses

ROOM = 0.5  # share of the workers' memory that a fit may take: Dask spills to disk from 0.6 on
LINEARIZATIONS = 3  # whose probabilities are kept: at the current W, at a trial, and damped


def distributed_objective(estimator, passes, chunks, like):
    """Return the DistributedObjective of a fit, and the classes (K,).

    Parameters
    ----------
    estimator : gives the parameters
    passes : Passes
    chunks : column of Chunk, or None for chunks without rows
    like : ndarray or CSR matrix (0, d), of the kind and the dtype of X
    """
    found = passes.gather(_worker.describe, chunks)
    chunks = chunks.where([facts.n_rows for facts in found])
    found = [facts for facts in found if facts.n_rows]
    if not found:
        raise ValueError("X has no rows")
    if len({facts.is_sparse for facts in found}) > 1:
        raise ValueError("some chunks of X are dense and some sparse: give all in one form")
    classes = _classes(found)
    is_soft = np.isscalar(found[0].labels)
    totals = passes.sum(_worker.class_totals, chunks, classes=classes)[0]
    class_weight = _class_weight(estimator.class_weight, classes, totals, is_soft)
    weighted = totals if class_weight is None else totals * class_weight
    if not weighted.sum() > 0:
        raise ValueError("sample_weight sums to zero: nothing is left to fit")
    if np.count_nonzero(weighted) < 2:
        raise ValueError(
            f"all rows with weight are of one class: {classes.tolist()[np.argmax(weighted)]!r}; "
            "SoftmaxRegression needs at least 2 classes"
        )
    if estimator.persist == "auto" and isinstance(passes, KeptPasses):
        passes.keeps_probabilities = _has_room_for_probabilities(passes, found, len(classes), like.dtype)
    settings = {"label_smoothing": estimator.label_smoothing, "fit_intercept": estimator.fit_intercept}
    total = float(weighted.sum())
    parts = passes.each(
        _worker.chunk_objective, chunks, classes=classes, class_weight=class_weight, n_jobs=estimator.n_jobs,
        total=total, kind="rows", **settings,
    )  # fmt: skip
    parts, rows = _with_weight(passes, parts, total)
    l2, l1 = penalties(estimator.alpha, estimator.l1_ratio, len(classes))
    like = csr_array(like) if found[0].is_sparse else like
    return DistributedObjective(passes, parts, rows, like, len(classes), l2=l2, l1=l1, **settings), classes


def checked_chunks(estimator, client, X, y, sample_weight, persist):
    """Return the Passes over the chunks of X, and the column of checked chunks.

    With persist "auto" the rows stay on the workers if there is room for them.
    """
    columns = row_chunks(X, y, sample_weight)
    estimator.n_features_in_ = len(X.columns) if is_frame(X) else X.shape[1]
    _check_feature_names(estimator, X._meta, reset=True)
    settings = {"dtype": float_dtype(X), "is_soft": are_soft(y), "version": softreg.__version__}
    blocks = joined_blocks(columns, are_computed=bool(futures_of([X, y, sample_weight])))
    check = delayed(_worker.check_chunk, pure=False)
    chunks = [check(block, number, **settings) for number, block in enumerate(blocks)]
    if persist == "auto":
        persist = bool(futures_of(X)) or _has_room(client, X, chunks)
    if not persist:
        passes = RereadPasses(client, blocks)
        return passes, passes.each(_worker.check_chunk, passes.data, list(range(len(blocks))), kind="rows", **settings)
    passes = KeptPasses(client, client.compute(chunks))
    return passes, passes.data


def _has_room(client, X, chunks):
    """Return whether the workers have memory for the rows; warn if not."""
    memory = _memory(client)
    needed = known_bytes(X)
    if needed is None and np.isfinite(memory):  # as many bytes in each chunk as in the first
        needed = len(chunks) * client.gather(client.compute(delayed(_worker.describe)(chunks[0]))).n_bytes
    if not memory or not needed or needed <= ROOM * memory:
        return True
    warn(
        f"X takes {format_bytes(int(needed))}, and the workers may use {format_bytes(int(memory))} of memory: its "
        "chunks are computed again in every pass, some 20 to 100 times. Give the workers more memory, or learn the "
        "rows in one pass by softreg.dask.stream. persist=True keeps the rows in any case: Dask spills them to disk"
    )
    return False


def _has_room_for_probabilities(passes, found, n_classes, dtype):
    """Return whether the workers have memory for the probabilities beside the rows; warn if not."""
    memory, n_rows = _memory(passes.client), sum(facts.n_rows for facts in found)
    rows = sum(facts.n_bytes for facts in found)
    of_chunks = [facts.n_rows * n_classes * dtype.itemsize for facts in found]
    probabilities = LINEARIZATIONS * sum(size for size in of_chunks if size <= STORED_BYTES)
    if rows + probabilities <= ROOM * memory:
        return True
    warn(
        f"the probabilities of {n_rows:,} rows and {n_classes:,} classes take {format_bytes(probabilities)} beside "
        f"{format_bytes(rows)} of rows, and the workers may use {format_bytes(int(memory))} of memory: they are "
        "computed again from the rows in every pass, which then takes two times as long or more. Give the workers more "
        "memory. persist=True keeps the probabilities in any case: a worker that runs out of memory is killed"
    )
    return False


def _memory(client):
    """Return the bytes that the workers may use, or infinity."""
    return sum(client.run(_worker.memory_limit).values())


def _classes(found):
    """Return the classes of all chunks, (K,)."""
    if np.isscalar(found[0].labels):
        return np.arange(found[0].labels)
    classes = np.unique(np.concatenate([facts.labels for facts in found]))
    if len(classes) < 2:
        raise ValueError(
            f"SoftmaxRegression needs at least 2 classes; y has only one class: {classes.tolist()[0]!r}"
        )
    return classes


def _class_weight(class_weight, classes, totals, is_soft):
    """Return the weight of each class, (K,), or None for ones; `totals` (K,) are the weights of its rows."""
    if class_weight is None:
        return None
    if is_soft:
        raise ValueError("class_weight needs labels in y; weight target probabilities by sample_weight")
    if class_weight == "balanced":
        if not totals.all():
            without = ", ".join(map(repr, classes[totals == 0].tolist()))
            raise ValueError(f"sample_weight is zero in every row of class {without}; leave these rows out")
        return totals.sum() / (len(classes) * totals)
    of_class = compute_class_weight(class_weight, classes=classes, y=classes)
    if not (np.isfinite(of_class).all() and (of_class >= 0).all() and of_class.any()):
        raise ValueError(f"class_weight must be finite, not negative and not all zero; got {class_weight}")
    return of_class


def _with_weight(passes, parts, total):
    """Return the parts of chunks that have weight, and the Rows of all these."""
    facts = passes.gather(_worker.part_facts, parts)
    parts = parts.where([weight > 0 for _, weight, _ in facts])
    facts = [(n, longest) for n, weight, longest in facts if weight > 0]
    if not len(parts):
        raise ValueError("no row with weight is left to train on, or to hold out")
    return parts, Rows(sum(n for n, _ in facts), total, max(longest for _, longest in facts))


def hold_out(objective, fraction, random_state):
    """Return the objectives over the rows to train on and over those held out: a random share of each chunk."""
    passes, column = objective.passes, seeds(objective, random_state)
    split = passes.each(_worker.held_out_positions, objective.parts, column, kind="little", fraction=fraction)

    def part(which):
        weight = float(passes.sum(_worker.selected_weight, objective.parts, split, which=which)[0])
        parts = passes.each(_worker.selected_part, objective.parts, split, kind="rows", which=which, total=weight)
        return objective.over(*_with_weight(passes, parts, weight))

    return part(1), part(0)
