"""Who watches a fit: prints its progress, calls the estimator's callbacks, and stops it early."""

import time

import numpy as np


class Callbacks:
    """The callbacks set on an estimator (`sklearn.callback`): a fit is a task, each iteration a task within it.

    They get X, y and weights as they were given, and the estimator as it is where an iteration begins and ends.
    Without any callback all methods do nothing.
    """

    def __init__(self, estimator=None, X=None, y=None, sample_weight=None, name="", max_tasks=0):
        self.name, self.root, self.task = name, None, None
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self.common = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        if hasattr(estimator, "_skl_callbacks"):
            self.root = estimator._init_callback_context(max_subtasks=max_tasks)

    def start(self, fitted=None, W=None):
        """The data are valid, the fit begins at W; `fitted(W)` are the attributes of an estimator fitted to W."""
        self.fitted, self.W = fitted, W
        if self.root is not None:
            self.root.call_on_fit_task_begin(**self.common)

    def begin(self):
        """An iteration begins, unless one is under way."""
        if self.root is not None and self.task is None:
            self.task = self.root.subcontext(task_name=self.name)
            self.task.call_on_fit_task_begin(**self.common, reconstruction_attributes=lambda: self.fitted(self.W))

    def end(self, W):
        """An iteration ends at W; whether a callback asks for the end of the fit."""
        if self.root is None:
            return False
        self.begin()
        task, self.task, self.W = self.task, None, W
        return task.call_on_fit_task_end(**self.common, reconstruction_attributes=lambda: self.fitted(W))

    def finish(self):
        """The estimator is fitted."""
        if self.root is None:
            return
        if self.task is not None:  # a line search that led nowhere
            self.task.call_on_fit_task_end(**self.common)
        self.root.call_on_fit_task_end(**self.common, reconstruction_attributes={})


class Monitor:
    """Called after each iteration: prints, calls callbacks, and watches the held-out rows for early stopping."""

    def __init__(self, estimator, train, held_out=None, callbacks=None):
        self.verbose, self.tol, self.patience = estimator.verbose, estimator.tol, estimator.n_iter_no_change
        self.unit, self.max_iter = estimator._unit(), estimator.max_iter
        self.n_rows, self.held_out, self.callbacks = train.n_rows, held_out, callbacks or Callbacks()
        self.best, self.best_loss, self.waited, self.stopped_on = None, np.inf, 0, None
        self.calls, self.seconds = 0, 0.0  # spent on watching; rows a second are those of the solver alone

    def begin(self):
        """Called where an iteration begins."""
        self.callbacks.begin()

    def __call__(self, W, record):
        called = time.perf_counter()
        self.calls += 1
        if self.held_out is not None:
            P = self.held_out.probabilities()
            penalised, _ = self.held_out.value_and_gradient(W, P)
            loss = penalised - 0.5 * self.held_out.l2 * float((self.held_out.coef(W) ** 2).sum())
            record["validation_loss"] = loss
            record["validation_score"] = self._accuracy(P)
            self.waited = self.waited + 1 if loss > self.best_loss - self.tol * abs(self.best_loss) else 0
            if loss < self.best_loss:
                self.best, self.best_loss = W.copy(order="K"), loss
            if self.waited >= self.patience:
                self.stopped_on = "early_stopping"
        if self.verbose:
            print(self._line(record), flush=True)
        if self.callbacks.end(W if self.best is None else self.best):
            self.stopped_on = self.stopped_on or "callback"
        self.seconds += time.perf_counter() - called
        return self.stopped_on is not None

    def _line(self, record):
        done = self.calls
        left = record["time"] / done * (self.max_iter - done)
        busy = max(record["time"] - self.seconds, 1e-9)  # a coarse clock may stand still
        gaps = ((record["gap"], "proven"), (record["gap_estimate"], "estimated"))
        gap = min((f for f in gaps if np.isfinite(f[0])), default=None)
        columns = [
            f"{self.unit} {done:{len(str(self.max_iter))}}/{self.max_iter}",
            f"loss {record['loss']:<11.6g}",
            f"gap {'{:.1e} {}'.format(*gap) if gap else '-':17}",
            f"{record['passes'] * self.n_rows / busy:13,.0f} rows/s",
            f"at most {duration(left):>8} left",
        ]
        if "validation_score" in record:
            columns.insert(3, f"held-out accuracy {record['validation_score']:6.1%}")
        return "  ".join(columns)

    def _accuracy(self, P):
        part = self.held_out
        targets = part.codes if part.targets is None else part.targets.argmax(axis=1)
        return float(np.mean(P.argmax(axis=1) == targets[part.rows]))


def duration(seconds):
    """As a reader counts it: 9.5 s, 2.1 min, 3.0 h."""
    unit, size = next((u, s) for u, s in (("s", 1), ("min", 60), ("h", 3600)) if seconds < 100 * s or u == "h")
    return f"{seconds / size:.1f} {unit}"
