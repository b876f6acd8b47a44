"""Who watches a fit: prints its progress, and stops it early."""

import numpy as np


class Monitor:
    """Called after each epoch: prints, and watches the held-out rows for early stopping."""

    def __init__(self, estimator, held_out=None):
        self.verbose, self.tol, self.patience = estimator.verbose, estimator.tol, estimator.n_iter_no_change
        self.held_out = held_out
        self.best, self.best_loss, self.waited, self.stopped = None, np.inf, 0, False

    def __call__(self, W, record):
        if self.held_out is not None:
            P = self.held_out.probabilities()
            penalised, _ = self.held_out.value_and_gradient(W, P)
            loss = penalised - 0.5 * self.held_out.l2 * float((self.held_out.coef(W) ** 2).sum())
            record["validation_loss"] = loss
            record["validation_score"] = self._accuracy(P)
            self.waited = self.waited + 1 if loss > self.best_loss - self.tol * abs(self.best_loss) else 0
            if loss < self.best_loss:
                self.best, self.best_loss = W.copy(order="K"), loss
            self.stopped = self.waited >= self.patience
        if self.verbose:
            print("  ".join(f"{name} {value:.6g}" for name, value in record.items()))
        return self.stopped

    def _accuracy(self, P):
        part = self.held_out
        targets = part.codes if part.targets is None else part.targets.argmax(axis=1)
        return float(np.mean(P.argmax(axis=1) == targets[part.rows]))
