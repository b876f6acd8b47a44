"""Progress of a fit: printed lines, the estimator's callbacks, and early stopping on held-out rows."""

import time
from dataclasses import replace
from typing import Any, Self

import numpy as np
import sklearn
from sklearn.model_selection import train_test_split

from softreg._inner_products import squared_norm

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ModuleNotFoundError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in for scikit-learn's class, which says what callbacks need."""

        def set_callbacks(self, *callbacks: Any) -> Self:
            """Raise an ImportError, as callbacks need scikit-learn 1.9.

            Parameters
            ----------
            *callbacks : callback instances
                They are not looked at.

            Returns
            -------
            self : estimator
                Never.

            Raises
            ------
            ImportError
                Always.
            """
            raise ImportError(
                f"set_callbacks needs scikit-learn 1.9 or newer, and {sklearn.__version__} is installed; upgrade it, "
                "or take verbose=1, which prints the progress of a fit with any version"
            )

    def with_callbacks(method):
        """Return the method as it is: there are no callbacks to tear down."""
        return method


__all__ = ["CallbackSupportMixin", "Callbacks", "Monitor", "hold_out", "with_callbacks"]


class Callbacks:
    """The callbacks set on an estimator (`sklearn.callback`): a fit is a task, each iteration a task within it.

    Callbacks get X, y and weights as the user gave them, and the estimator's state at the begin and end of each
    iteration. Without any callback all methods do nothing.

    Parameters
    ----------
    estimator : estimator to watch, or None
    X, y, sample_weight : as given to `fit`
    name : str, the name of an iteration
    max_tasks : int, the most iterations
    """

    def __init__(self, estimator=None, X=None, y=None, sample_weight=None, name="", max_tasks=0):
        self.name, self.root, self.task = name, None, None
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self.common = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        if hasattr(estimator, "_skl_callbacks"):
            self.root = estimator._init_callback_context(max_subtasks=max_tasks)

    def start(self, fitted=None, W=None):
        """Begin the fit at W, with checked data; `fitted(W)` returns the attributes of an estimator fitted to W."""
        self.fitted, self.W = fitted, W
        if self.root is not None:
            self.root.call_on_fit_task_begin(**self.common)

    def begin(self):
        """Begin an iteration, unless one is under way."""
        if self.root is not None and self.task is None:
            self.task = self.root.subcontext(task_name=self.name)
            self.task.call_on_fit_task_begin(**self.common, reconstruction_attributes=lambda: self.fitted(self.W))

    def end(self, W):
        """End an iteration at W; return True if a callback asks for the end of the fit."""
        if self.root is None:
            return False
        self.begin()
        task, self.task, self.W = self.task, None, W
        return task.call_on_fit_task_end(**self.common, reconstruction_attributes=lambda: self.fitted(W))

    def finish(self):
        """End the fit: the estimator is fitted."""
        if self.root is None:
            return
        if self.task is not None:  # begun, but ended without a new W
            self.task.call_on_fit_task_end(**self.common)
        self.root.call_on_fit_task_end(**self.common, reconstruction_attributes={})


class Monitor:
    """Called after each iteration: prints, calls callbacks, and watches the held-out rows for early stopping.

    Parameters
    ----------
    estimator : gives `verbose`, `tol`, `n_iter_no_change` and `max_iter`
    objective : Objective over the rows to train on
    row : row of the registry of solvers, for the name of an iteration
    held_out : Objective over the held-out rows, or None
    callbacks : Callbacks, or None
    """

    def __init__(self, estimator, objective, row, held_out=None, callbacks=None):
        self.verbose, self.tol, self.n_iter_no_change = estimator.verbose, estimator.tol, estimator.n_iter_no_change
        self.unit, self.max_iter = row.iteration, estimator.max_iter
        self.objective, self.held_out, self.callbacks = objective, held_out, callbacks or Callbacks()
        self.best, self.best_loss, self.waited, self.stopped_on = None, np.inf, 0, None
        self.calls, self.seconds = 0, 0.0  # spent in here; rows a second are those of the solver alone

    def begin(self):
        """Note that an iteration begins."""
        self.callbacks.begin()

    def __call__(self, W, entry):
        """Note that an iteration ended at W with this entry of the history; return True if the fit has to end."""
        called = time.perf_counter()
        self.calls += 1
        if self.held_out is not None:
            self._validate(W, entry)
        if self.verbose:
            print(self._line(entry), flush=True)
        if self.callbacks.end(W if self.best is None else self.best):
            self.stopped_on = self.stopped_on or "callback"
        self.seconds += time.perf_counter() - called
        return self.stopped_on is not None

    def conclude(self, result):
        """Return the result with the best weights on the held-out rows, and the reason if the monitor ended the fit."""
        if self.best is not None and not np.array_equal(self.best, result.W):
            stopped_on = "early_stopping" if result.converged else result.stopped_on
            # gap and estimate of the last weights do not hold for the best ones
            result = replace(result, W=self.best, stopped_on=stopped_on, gap=np.inf, estimate=np.nan)
        return replace(result, stopped_on=self.stopped_on or result.stopped_on)

    def _validate(self, W, entry):
        """Note loss and accuracy on the held-out rows in the entry, keep the best W, and stop if the loss stays."""
        at = self.held_out.linearize(W)
        loss = at.value - 0.5 * self.held_out.l2 * squared_norm(self.held_out.coef(W))
        entry["validation_loss"] = loss
        entry["validation_score"] = at.accuracy()
        self.waited = self.waited + 1 if loss > self.best_loss - self.tol * self.objective.null_loss else 0
        if loss < self.best_loss:
            self.best, self.best_loss = W.copy(order="K"), loss
        if self.waited >= self.n_iter_no_change:
            self.stopped_on = "early_stopping"

    def _line(self, entry):
        """Return the line that is printed for an entry of the history."""
        done = self.calls
        left = entry["time"] / done * (self.max_iter - done)
        busy = max(entry["time"] - self.seconds, 1e-9)  # a coarse clock may stand still
        gaps = ((entry["gap"], "proven"), (entry["gap_estimate"], "estimated"))
        gap = min((f for f in gaps if np.isfinite(f[0])), default=None)
        columns = [
            f"{self.unit} {done:{len(str(self.max_iter))}}/{self.max_iter}",
            f"loss {entry['loss']:<11.6g}",
            f"gap {'{:.1e} of the null loss, {}'.format(*gap) if gap else '-':36}",
            f"{entry['passes'] * self.objective.n_rows / busy:13,.0f} rows/s",
            f"at most {duration(left):>8} left",
        ]
        if "validation_score" in entry:
            columns.insert(3, f"held-out accuracy {entry['validation_score']:6.1%}")
        return "  ".join(columns)


def storage_line(objective):
    """Return the line that is printed where the probabilities of all rows are too many to be kept."""
    size = objective.n_rows * objective.n_classes * objective.dtype.itemsize
    return (
        f"probabilities of {objective.n_rows:,} rows and {objective.n_classes:,} classes take {size / 1e9:.1f} GB: "
        "they are not kept, but recomputed block by block"
    )


def duration(seconds):
    """Return a duration in a unit that suits its length: 9.5 s, 2.1 min, 3.0 h."""
    unit, size = next((u, s) for u, s in (("s", 1), ("min", 60), ("h", 3600)) if seconds < 100 * s or u == "h")
    return f"{seconds / size:.1f} {unit}"


def hold_out(estimator, objective, random_state):
    """Split the rows for early stopping.

    Return the objective over the rows to train on, and that over the held-out rows, or None without early stopping.
    Rows without weight are in neither.
    """
    if not estimator.early_stopping:
        return objective, None
    rows = np.flatnonzero(objective.shares())
    try:
        train, held_out = train_test_split(
            rows, test_size=estimator.validation_fraction, random_state=random_state,
            stratify=None if objective.codes is None else objective.codes[rows],
        )  # fmt: skip
    except ValueError as error:  # scikit-learn's message names its own parameters, not ours
        raise ValueError(
            f"early_stopping=True cannot hold out validation_fraction={estimator.validation_fraction} of "
            f"{len(rows)} rows with weight, some of every class: {error}"
        ) from error
    return objective.select(np.sort(train)), objective.select(np.sort(held_out))
