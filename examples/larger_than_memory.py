"""
Larger than memory
==================

Train on a file that is mapped, not read: as a stream of slices, and in epochs of minibatches. The file is small here.
Needs matplotlib.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from softreg import SoftmaxRegression
from softreg.inspection import LossCurveDisplay

n, d, K = 60_000, 50, 4
rng = np.random.default_rng(0)
W = rng.normal(size=(d, K))
scale = 10.0 ** rng.integers(0, 4, size=d)  # features come in units of their own

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "X.npy"
    X = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(n, d))
    y = np.empty(n, np.int8)
    for start in range(0, n, 10_000):  # written as it is read later: never all at once
        part = rng.normal(size=(10_000, d))
        X[start : start + 10_000] = part * scale
        y[start : start + 10_000] = (part @ W + rng.gumbel(size=(10_000, K))).argmax(axis=1)
    del X

    X = np.load(file, mmap_mode="r")
    held_out = slice(n - 10_000, n)
    last = n - 10_000

    stream = SoftmaxRegression(random_state=0)
    for start in range(0, last, 2000):
        rows = slice(start, start + 2000)
        stream.partial_fit(X[rows], y[rows], classes=range(K))
    print(f"partial_fit, one pass: {stream.score(X[held_out], y[held_out]):.1%} of the held-out rows right")

    # Minibatches of shuffled rows, until rows that are held out say that it is enough.
    model = SoftmaxRegression(solver="sgd", early_stopping=True, n_iter_no_change=3, tol=1e-3, random_state=0)
    model.fit(X[:last], y[:last])
    print(f"solver='sgd', {model.n_iter_} epochs: {model.score(X[held_out], y[held_out]):.1%}")
    del X  # Windows does not delete a file that is mapped

# %%
# Each slice of the stream was predicted before it was learnt.
LossCurveDisplay.from_estimator(stream, metric="accuracy")
plt.show()
