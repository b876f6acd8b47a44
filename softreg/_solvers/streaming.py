"""Streams of batches, of which none comes twice: one interface to the optimisers of dense and of sparse rows.

A `Stream` chooses the optimiser by the first batch, brings later batches into its form, and keeps the record of
progressive validation: every row is predicted before it is learnt. `sgd` goes over the same stream for several epochs.
"""

import numpy as np
from scipy.sparse import csr_array

from softreg._coefficients import fitted_coefficients
from softreg._solvers.dense_stream import KroneckerPreconditionedSGD
from softreg._solvers.sparse_stream import SparseStream

FORMAT = 1  # of the state
OPTIONAL_SETTINGS = {"precondition": True, "has_l1": False, "planned_rows": None}  # where a state has none
TRIAL_ROWS = 1000  # that tell the strengths of sparse features, where a stream begins at coefficients
NARROW = 256  # features up to which sparse rows are learnt as dense ones: a covariance is worth more than zeros
GATHERED_NUMBERS = 2**20  # of dense rows that are copied at a time, where they are visited in a random order


def new_stream(objective, precondition, planned_rows=None):
    """Return the stream that fits the rows of an objective.

    Parameters
    ----------
    objective : Objective
    precondition : bool
        Whether dense rows keep the covariance of their features, d^2 numbers.
    planned_rows : int or None
        Rows of all epochs together, where the end is known.
    """
    settings = {
        "kind": "dense" if objective.design.can_center or objective.n_features <= NARROW else "csr",
        "n_classes": objective.n_classes,
        "n_features": objective.n_features, "fit_intercept": bool(objective.fit_intercept),
        "dtype": objective.dtype.name, "precondition": bool(precondition), "has_l1": objective.l1 > 0,
        "planned_rows": planned_rows,
    }  # fmt: skip
    return Stream(settings)


class Stream:
    """An optimiser that learns batch by batch, and what it scored on each before it learnt it.

    Attributes
    ----------
    settings : dict of numbers and strings, fixed at the first batch
    calls, rows : int, batches and rows so far
    history : dict of lists with an entry for each batch: rows so far, and loss and accuracy of the batch
    """

    def __init__(self, settings):
        self.settings, self.calls, self.rows = settings, 0, 0
        self.history = {"rows": [], "loss": [], "accuracy": []}
        K, d, dtype = settings["n_classes"], settings["n_features"], np.dtype(settings["dtype"])
        if settings["kind"] == "csr":
            self.optimizer = SparseStream(d, K, settings["fit_intercept"], dtype)
        else:
            self.optimizer = KroneckerPreconditionedSGD(
                K, d, l2=0.0, l1=float(settings["has_l1"]), fit_intercept=settings["fit_intercept"], dtype=dtype,
                precondition=settings["precondition"], planned_rows=settings["planned_rows"],
            )  # fmt: skip

    # --- learning -------------------------------------------------------------------------------------------------

    def learn_batch(self, objective, order):
        """Learn the rows of a batch in the given order, and add the batch to the history."""
        weight = objective.total_weight
        loss, correct = self.learn(objective, order)
        self.calls += 1
        self.rows += objective.n_rows
        entry = {"rows": self.rows, "loss": loss / weight, "accuracy": correct / weight}
        for name, number in entry.items():
            self.history[name].append(number)
        return entry

    def learn(self, objective, order):
        """Learn the rows at positions `order`; return the weighted sums of losses and of correct predictions before."""
        penalties = {"l2": objective.l2, "l1": objective.l1, "label_smoothing": objective.label_smoothing}
        if self.settings["kind"] == "csr":
            return self._learn_sparse(objective, order, penalties)
        vars(self.optimizer).update(penalties)
        size = max(1, GATHERED_NUMBERS // max(objective.n_features, 1))
        loss = correct = 0.0
        for start in range(0, len(order), size):
            at = _as_slice(order[start : start + size])
            X, labels = objective.design.dense_rows(at), objective.labels(at)
            part_loss, part_correct = self.optimizer.learn(*_in_dtype(self.optimizer.dtype, X, *labels))
            loss, correct = loss + part_loss, correct + part_correct
        return loss, correct

    def _learn_sparse(self, objective, order, penalties):
        dtype = self.optimizer.theta.dtype
        if objective.design.can_center:  # a dense batch of a sparse stream
            X = csr_array(objective.design.dense_rows(order))
            return self.optimizer.learn(*_in_dtype(dtype, X, *objective.labels(order)), **penalties)
        arrays = _in_dtype(dtype, objective.design.X, *objective.labels_of_all)
        return self.optimizer.learn(*arrays, rows=objective.design.row_numbers(order), **penalties)

    def begin_epoch(self, epoch, n_epochs):
        """Begin epoch 0, 1, ... of a fit of `n_epochs`."""
        self.optimizer.begin_epoch(epoch, n_epochs)

    def end_epoch(self):
        """End an epoch of a fit."""
        if self.settings["kind"] == "dense":
            self.optimizer.end_epoch()

    def finish(self):
        """End a fit: learn the rows that wait for a step."""
        if self.settings["kind"] == "dense":
            self.optimizer.finish()

    # --- coefficients ---------------------------------------------------------------------------------------------

    def coefficients(self, design):
        """Return W (K, p), to predict with, as an array like W of this design; O(K p)."""
        return design.arranged(self._centred_coefficients())

    def fitted_coefficients(self):
        """Return `coef_` and `intercept_`; O(K p)."""
        W = self._centred_coefficients().astype(self.settings["dtype"], copy=False)
        return fitted_coefficients(W, self.settings["fit_intercept"])

    def _centred_coefficients(self):
        """Return W (K, p) with the mean over the classes taken off: softmax does not see it, an l2 penalty does.

        With l1 the zeros of W are worth more.
        """
        W = self.optimizer.coefficients()
        return W if self.settings["has_l1"] else W - W.mean(axis=0)

    def start_from(self, W, fitted_rows, objective):
        """Begin at W (K, p) that was fitted to so many rows; the objective's rows tell strengths of sparse features."""
        if self.settings["kind"] == "dense":
            self.optimizer.start_from(W, fitted_rows)
            return
        trial = Stream(self.settings)
        trial.learn(objective, np.arange(min(objective.n_rows, TRIAL_ROWS)))
        self.optimizer = trial.optimizer
        self.optimizer.start_from(W, fitted_rows)

    # --- state ----------------------------------------------------------------------------------------------------

    def get_state(self):
        """Return all of it as a dict of plain arrays, numbers and strings."""
        state = {"format": FORMAT, "settings": self.settings, "calls": self.calls, "rows": self.rows}
        state["history"] = {name: np.array(numbers) for name, numbers in self.history.items()}
        return state | {"optimizer": self.optimizer.get_state()}

    @classmethod
    def from_state(cls, state):
        """Return the stream that `get_state` described; it goes on bit for bit."""
        if state.get("format") != FORMAT:
            raise ValueError(f"the stream has format {state.get('format')}; this version of softreg reads {FORMAT}")
        try:
            stream = cls(OPTIONAL_SETTINGS | state["settings"])
            stream.calls, stream.rows = state["calls"], state["rows"]
            stream.history = {name: numbers.tolist() for name, numbers in state["history"].items()}
            stream.optimizer.set_state(state["optimizer"])
        except KeyError as missing:
            raise ValueError(f"the state of the stream has no {missing}: it is not complete") from missing
        return stream


def _as_slice(positions):
    """Return consecutive positions as a slice, which reads rows where they stand; others as they are."""
    first, count = positions[0], len(positions)
    if positions[-1] - first == count - 1 and np.array_equal(positions, np.arange(first, first + count)):
        return slice(int(first), int(first) + count)
    return positions


def _in_dtype(dtype, X, codes, targets, weight):
    """Return the arrays with all floats in this dtype: that of the first batch of a stream."""
    targets, weight = (None if a is None else a.astype(dtype, copy=False) for a in (targets, weight))
    return X.astype(dtype, copy=False), codes, targets, weight
