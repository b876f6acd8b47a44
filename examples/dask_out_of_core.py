"""
Larger than memory, with Dask
=============================

Train on files that are ten times larger than the memory that is allowed: in one pass, and to the optimum. Small here.

`stream` learns the chunks one after the other, each once. `fit(persist=False)` reads them again in every pass, until it
has converged. Both hold a few chunks at a time. The system enforces the limit: reading all files at once fails.
"""

import resource
import tempfile
import time
from pathlib import Path

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from softreg.dask import SoftmaxRegression, stream

ROWS, CHUNK, FEATURES, CLASSES = 1_280_000, 16_000, 50, 4
ALLOWED = ROWS * FEATURES * 4 // 10  # bytes


def write(folder):
    """Write the chunks of X and y as .npy files, a few at a time."""
    rng = np.random.default_rng(0)
    W, scale = rng.normal(size=(FEATURES, CLASSES)), 10.0 ** rng.integers(0, 4, size=FEATURES)
    random = da.random.default_rng(0)
    X = random.normal(size=(ROWS, FEATURES), chunks=(CHUNK, FEATURES)) * scale
    da.to_npy_stack(f"{folder}/X", X.astype(np.float32))
    logits = da.from_npy_stack(f"{folder}/X") @ (W / scale[:, None])
    y = (logits + random.gumbel(size=logits.shape, chunks=logits.chunks)).argmax(axis=1)
    da.to_npy_stack(f"{folder}/y", y.astype(np.int8))


def read(folder):
    """Return X and y as dask arrays; a task maps the file of a chunk, and copies it, so that it counts as memory."""
    return tuple(da.from_npy_stack(f"{folder}/{name}", mmap_mode="r").map_blocks(np.array) for name in ("X", "y"))


def limit_memory():
    """Forbid this process to take more than ALLOWED bytes beside those that it has (Linux)."""
    with open("/proc/self/status") as file:
        kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, [1024 * kilobytes + ALLOWED] * 2)


def load_all(folder):
    """Load all rows of X, and return what happened."""
    try:
        return np.concatenate([np.load(file) for file in Path(folder, "X").glob("*.npy")]).shape
    except MemoryError as error:
        return type(error).__name__


def main():
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        write(folder)
        X, y = read(folder)
        trainers = {
            "stream, one pass": lambda X, y: stream(SoftmaxRegression(random_state=0), X, y),
            "fit, to the optimum": lambda X, y: SoftmaxRegression(random_state=0, persist=False, tol=1e-3).fit(X, y),
        }
        for train in trainers.values():
            train(X[:CHUNK], y[:CHUNK])  # loads the libraries, which are not counted
        client.run(limit_memory)
        print(f"X has {X.nbytes / 1e6:.0f} MB, and the worker may take {ALLOWED / 1e6:.0f} MB of memory for its rows")
        for name, train in trainers.items():
            start = time.perf_counter()
            model = train(X, y)
            seconds, score = time.perf_counter() - start, float(model.score(X, y))
            print(f"{name:20}: {score:.2%} right, {seconds:.1f} s")
        passes, gap = model.traffic_["passes"], min(model.optimality_gap_, model.gap_estimate_)
        print(f"the fit stopped on {model.stopped_on_!r} after {passes} passes over the chunks, gap {gap:.1e}")
        print("all rows at once:", *client.run(load_all, folder).values())


if __name__ == "__main__":  # worker processes import this file
    main()
