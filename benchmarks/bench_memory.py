"""Memory of a fit beyond X: the largest resident size in a fresh process, less that before the fit. Linux only.

README.md says what is wanted. Every problem runs in a process of its own, which generates its data.
"""

import argparse
import ctypes
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from softreg import SoftmaxRegression

MB = 1e6
# name: (kind, n, d, K), parameters of the fit, wanted numbers of float32 in units of n K and of d K, wanted MB beside
PROBLEMS = {
    "dense": (("dense", 40_000, 64, 1000), {"tol": 1e-3}, (2.5, 0), 64),
    "dense_wide": (("dense", 60_000, 512, 1000), {"tol": 1e-2}, (2.5, 0), 128),
    "dense_recomputed": (("dense", 200_000, 64, 1000), {"tol": 1e-2}, (0, 0), 1000),
    "dense_million": (("dense", 1_000_000, 64, 1000), {"tol": 1e-2}, (0, 0), 1000),
    "csr": (("csr", 60_000, 2**20, 50), {"alpha": 1e-5}, (2, 4), 64),
    "csr_newton": (("csr", 60_000, 2**20, 50), {"alpha": 1e-5, "solver": "newton"}, (2, 4), 64),
}


def dense(n, d, K, rng):
    """Labels drawn from a softmax model over correlated features with an offset; made in blocks, float32."""
    mixing, W = rng.normal(size=(d, d)) / np.sqrt(d), rng.normal(size=(d, K))
    X, y = np.empty((n, d), np.float32), np.empty(n, np.intp)
    for start in range(0, n, 4096):
        block = rng.normal(size=(min(4096, n - start), d)) @ mixing
        X[start : start + 4096] = block + 1
        y[start : start + 4096] = (0.7 * block @ W + rng.gumbel(size=(len(block), K))).argmax(axis=1)
    return X, y


def csr(n, d, K, rng, nonzeros=60):
    """Rows of unit length with common and rare features, as texts have, and labels that follow from the common ones."""
    columns = (d * rng.random((n, nonzeros)) ** 4).astype(np.int32)
    data = rng.random(n * nonzeros).astype(np.float32) + np.float32(0.1)
    X = sparse.csr_array((data, columns.ravel(), np.arange(0, n * nonzeros + 1, nonzeros)), shape=(n, d))
    X.sum_duplicates()
    X.data /= np.sqrt(np.repeat(np.add.reduceat(X.data**2, X.indptr[:-1]), np.diff(X.indptr)))
    scores = X[:, :5000] @ rng.normal(size=(5000, K)).astype(np.float32)
    return X, (6 * scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


def resident(name):
    """Return VmRSS, the resident size, or VmHWM, the largest so far, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def measure(name, threads):
    """Fit the problem in this process; print its line of the table."""
    (kind, n, d, K), params, (of_nk, of_dk), beside = PROBLEMS[name]
    X, y = {"dense": dense, "csr": csr}[kind](n, d, K, np.random.default_rng(0))
    model = SoftmaxRegression(random_state=0, n_jobs=threads, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        SoftmaxRegression(max_iter=1).fit(X[:200], y[:200] % 3)  # what is imported and allocated once
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        before, started = resident("VmRSS"), time.perf_counter()
        model.fit(X, y)
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
    wanted = 4 * (of_nk * n * K + of_dk * d * K) + beside * MB
    units = f"{peak / (4 * n * K):.2f} | {peak / (4 * d * K):.2f}"
    columns = [name, f"{n} x {d}, K {K}", model.solver_, f"{wanted / MB:.0f}", f"{peak / MB:.0f}", units]
    print("|", " | ".join([*columns, f"{seconds:.3g}", f"{model.n_iter_}", model.stopped_on_]), "|", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    option("--problems", nargs="+", default=["dense", "csr"], help=" ".join(PROBLEMS))
    option("--threads", type=int, default=1)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        measure(args.here, args.threads)
        return
    print("| problem | size | solver | wanted MB | reached MB | in n K | in d K | seconds | iterations | stopped on |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    for name in args.problems:
        subprocess.run([sys.executable, __file__, "--here", name, "--threads", str(args.threads)], check=True)


if __name__ == "__main__":
    main()
