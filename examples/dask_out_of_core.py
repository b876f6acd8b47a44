"""
Larger than memory, with Dask
=============================

Train on a file ten times larger than the memory its rows may take: in one pass, and to the optimum. Small here.

`stream` learns the chunks one after the other, each once. `fit(persist=False)` reads them again in every pass, until it
has converged. Both hold a few chunks at a time; the worker's peak of memory is printed.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import softreg
from softreg.dask import SoftmaxRegression, stream

ROWS, CHUNK, FEATURES, CLASSES = 960_000, 16_000, 50, 4
ALLOWED = ROWS * FEATURES * 4 // 10  # bytes


def write(folder):
    """Write X and y in parts, never all at once."""
    rng = np.random.default_rng(0)
    W, scale = rng.normal(size=(FEATURES, CLASSES)), 10.0 ** rng.integers(0, 4, size=FEATURES)
    with open(folder / "X.f4", "wb") as X, open(folder / "y.i1", "wb") as y:
        for _ in range(0, ROWS, CHUNK):
            part = rng.normal(size=(CHUNK, FEATURES))
            (part * scale).astype(np.float32).tofile(X)
            (part @ W + rng.gumbel(size=(CHUNK, CLASSES))).argmax(axis=1).astype(np.int8).tofile(y)


def read(file, dtype, start, columns):
    """Return CHUNK rows of a file from row `start` on."""
    offset = start * max(columns, 1) * np.dtype(dtype).itemsize
    numbers = np.fromfile(file, dtype, CHUNK * max(columns, 1), offset=offset)
    return numbers.reshape(CHUNK, columns) if columns else numbers


def lazy(file, dtype, columns):
    """Return a file as a dask array; `da.from_zarr` and `dask.dataframe.read_parquet` do the same for their formats."""
    load, shape = dask.delayed(read, pure=True), (CHUNK, columns) if columns else (CHUNK,)
    chunks = [load(str(file), dtype, start, columns) for start in range(0, ROWS, CHUNK)]
    return da.concatenate([da.from_delayed(chunk, shape, dtype) for chunk in chunks])


def peak_bytes():
    """Return the most memory that this process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        folder = Path(folder)
        write(folder)
        X, y = lazy(folder / "X.f4", np.float32, FEATURES), lazy(folder / "y.i1", np.int8, 0)
        print(f"X has {X.nbytes / 1e6:.0f} MB; its rows may take {ALLOWED / 1e6:.0f} MB of the worker's memory")
        first = 2 * CHUNK  # what the libraries take is counted before
        stream(softreg.SoftmaxRegression(), X[:first], y[:first])
        SoftmaxRegression(persist=False, max_iter=50, tol=1e-2).fit(X[:first], y[:first])
        before = max(client.run(peak_bytes).values())
        for name, train in (
            ("stream, one pass", lambda: stream(SoftmaxRegression(random_state=0), X, y)),
            ("fit, to the optimum", lambda: SoftmaxRegression(random_state=0, persist=False, tol=1e-3).fit(X, y)),
        ):
            start = time.perf_counter()
            model = train()
            seconds, score = time.perf_counter() - start, float(model.score(X, y))
            grown = max(client.run(peak_bytes).values()) - before
            print(f"{name:20}: {score:.2%} right, {seconds:.1f} s, peak memory {grown / 1e6:.0f} MB above that before")
            assert grown < ALLOWED
        passes, gap = model.traffic_["passes"], min(model.optimality_gap_, model.gap_estimate_)
        print(f"the fit stopped on {model.stopped_on_!r} after {passes} passes over the chunks, gap {gap:.1e}")


if __name__ == "__main__":  # worker processes import this file
    main()
