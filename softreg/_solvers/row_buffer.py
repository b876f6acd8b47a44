"""A buffer of rows: those that wait for their block to be filled, and those that are kept to be replayed."""

import numpy as np


class RowBuffer:
    """Copies of a few rows with their codes or targets and weights.

    Codes stay codes until a row with targets comes; then all rows have targets.
    """

    def __init__(self, capacity, n_features, n_classes, dtype):
        self.count, self.weighted, self.soft = 0, False, False
        self.capacity, self.n_classes = capacity, n_classes
        self.X = np.zeros((capacity, n_features), dtype)
        self.codes = np.zeros(capacity, np.intp)
        self.weight = np.ones(capacity, dtype)
        self.targets = np.zeros((0, n_classes), dtype)

    def add(self, X, codes, targets, weight):
        """Append rows X (b, d) with codes or targets, and weights or None."""
        at = slice(self.count, self.count + len(X))
        if targets is not None and not self.soft:
            self._soften()
        self.X[at] = X
        self.weight[at] = 1.0 if weight is None else weight
        if not self.soft:
            self.codes[at] = codes
        else:
            self.targets[at] = np.eye(self.n_classes)[codes] if targets is None else targets
        self.weighted |= weight is not None
        self.count += len(X)

    def _soften(self):
        """Turn the codes that wait into targets."""
        self.soft, self.targets = True, np.zeros((self.capacity, self.n_classes), self.X.dtype)
        self.targets[np.arange(self.count), self.codes[: self.count]] = 1

    def take(self):
        """Return (X, codes, targets, weight) as views, valid until the next `add`, and forget them."""
        rows = self.view()
        self.count, self.soft, self.weighted = 0, False, False
        return rows

    def view(self):
        """Return (X, codes, targets, weight) as views."""
        n = self.count
        codes, targets = (None, self.targets[:n]) if self.soft else (self.codes[:n], None)
        return self.X[:n], codes, targets, self.weight[:n] if self.weighted else None

    def clear(self):
        """Forget the rows and give back their memory, for good."""
        if len(self.X):
            empty = RowBuffer(0, self.X.shape[1], self.n_classes, self.X.dtype)
            self.__dict__.update(empty.__dict__, capacity=self.capacity)

    def get_state(self):
        """Return copies of what the rows have, as a dict."""
        n = self.count
        state = {"X": self.X[:n].copy(), "weighted": self.weighted, "soft": self.soft, "weight": self.weight[:n].copy()}
        return state | {"codes": self.codes[:n].copy(), "targets": self.targets[: n if self.soft else 0].copy()}

    def set_state(self, state):
        """Hold the rows of a state and no others."""
        self.count = 0
        weight = state["weight"] if state["weighted"] else None
        codes, targets = (None, state["targets"]) if state["soft"] else (state["codes"], None)
        if len(state["X"]):
            self.add(state["X"], codes, targets, weight)
