"""Fits on Dask: one and two single-threaded worker processes, the overhead of a pass, and dask-ml on the same chunks.

README.md says how the numbers are taken, and has the model on paper for more workers.
"""

import argparse
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import problems
from distributed import Client, LocalCluster, wait
from scipy import sparse
from sklearn.linear_model import SGDClassifier

import softreg
from softreg.dask import SoftmaxRegression
from softreg.dask._kept_passes import KeptPasses
from softreg.dask._problem import checked_chunks, distributed_objective

CHUNKS = 8
SPECS = ("flights_carrier", "synthetic", "wide", "text")


def flights(_):
    """flights_carrier, four times over."""
    problem = problems.load("flights_carrier")
    return np.tile(problem.X(np.float32), (4, 1)), np.tile(problem.y_train, 4)


def synthetic(rows, d=60, K=10):
    """Rows from a softmax model: d features, correlated and in units of their own, K classes."""
    rng = np.random.default_rng(0)
    mix, W = rng.normal(size=(d, d)), rng.normal(size=(d, K)) / np.sqrt(d)
    X, y = np.empty((rows, d), np.float32), np.empty(rows, np.intp)
    scale = 10.0 ** rng.integers(-2, 3, size=d)
    for start in range(0, rows, 100_000):
        part = rng.normal(size=(min(100_000, rows - start), d)) @ mix / np.sqrt(d)
        y[start : start + 100_000] = (part @ W * 3 + rng.gumbel(size=(len(part), K))).argmax(axis=1)
        X[start : start + 100_000] = part * scale
    return X, y


def text(rows):
    """Sparse rows of 60 words from 40,000, 20 classes."""
    rng = np.random.default_rng(0)
    rows //= 10
    words = np.minimum(rng.zipf(1.3, size=(rows, 60)) - 1, 39_999)
    X = sparse.csr_array((np.ones(words.size, np.float32), words.ravel(), np.arange(0, words.size + 1, 60)))
    X.resize((rows, 40_000))
    X.sum_duplicates()
    X.data[:] = 1 / np.sqrt(60)
    y = (X @ rng.normal(size=(40_000, 20)) + rng.gumbel(size=(rows, 20)) / 2).argmax(axis=1)
    return X, y


DATA = {"flights_carrier": flights, "synthetic": synthetic, "wide": partial(synthetic, d=256, K=50), "text": text}


def load_rows(file, start, stop):
    """Return rows of a file, on a worker."""
    if file.endswith(".npy"):
        return np.array(np.load(file, mmap_mode="r")[start:stop])
    return sparse.csr_array(sparse.load_npz(file)[start:stop])


def lazy(folder, X, y):
    """Return X and y as dask arrays of CHUNKS chunks that workers read from files."""
    files = str(folder / ("X.npz" if sparse.issparse(X) else "X.npy")), str(folder / "y.npy")
    sparse.save_npz(files[0], X, compressed=False) if sparse.issparse(X) else np.save(files[0], X)
    np.save(files[1], y)
    edges = np.linspace(0, len(y), CHUNKS + 1).astype(int)
    meta = sparse.csr_array((0, X.shape[1]), dtype=X.dtype) if sparse.issparse(X) else None
    load = dask.delayed(load_rows)
    pairs = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    return (
        da.concatenate([
            da.from_delayed(load(files[0], a, b), (b - a, X.shape[1]), X.dtype, meta=meta) for a, b in pairs
        ]),
        da.concatenate([da.from_delayed(load(files[1], a, b), (b - a,), y.dtype) for a, b in pairs]),
    )  # fmt: skip


def timed(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result


def objective(X, y, coef, intercept, alpha):
    """Return F by NumPy and SciPy in float64, block by block."""
    total = 0.0
    if len(coef) == 1:
        coef, intercept = np.vstack([0 * coef, coef]), np.append(0.0, intercept)
    for start in range(0, len(y), 100_000):
        Z = X[start : start + 100_000] @ coef.T.astype(np.float64) + intercept
        Z -= Z.max(axis=1, keepdims=True)
        labels = y[start : start + 100_000]
        total += np.sum(np.log(np.exp(Z).sum(axis=1)) - Z[np.arange(len(labels)), labels])
    return total / len(y) + alpha / 2 * np.sum(coef.astype(np.float64) ** 2)


def overhead(client, chunks):
    """Return the seconds of a pass over chunks that hold next to nothing: the median of 30."""
    passes = KeptPasses(client, client.map(_tiny, range(chunks), pure=False))
    W = np.zeros((10, 61), np.float32)
    times = [timed(partial(passes.sum, _tiny_sum, passes.data, W=W))[0] for _ in range(31)][1:]
    passes.close()
    return float(np.median(times))


def _tiny(number):
    return number


def _tiny_sum(number, *, W):
    return (W,)


def pass_seconds(client, X, y, K):
    """Return the seconds of a Hessian product over the chunks, as a fit makes it: the median of 10."""
    model = SoftmaxRegression()
    passes, chunks = checked_chunks(model, client, X, y, None, True)
    F, _ = distributed_objective(model, passes, chunks, np.empty((0, X.shape[1]), X.dtype))
    at = F.linearize(F.zeros())
    V = F.zeros()
    V[...] = 1e-3
    times = [timed(partial(at.hessian_product, V))[0] for _ in range(11)][1:]
    passes.close()
    assert K == F.n_classes
    return float(np.median(times))


def race(spec, rows, alpha, repeats, peers):
    X, y = DATA[spec](rows)
    K = int(y.max()) + 1
    print(f"\n### {spec}: {X.shape[0]:,} x {X.shape[1]:,}, {K} classes, {CHUNKS} chunks\n")
    print("| fit | seconds | speed-up | passes | seconds a Hessian product | F | accuracy |")
    print("|---|---:|---:|---:|---:|---:|---:|")

    def line(name, seconds, model, base=None, passes="", product="", labels=y):
        F = objective(X, labels, model.coef_, model.intercept_, alpha)
        score = np.mean(np.asarray(model.predict(X)) == labels)
        gain = "" if base is None else f"{base / seconds:.2f}"
        print(f"| {name} | {seconds:.2f} | {gain} | {passes} | {product} | {F:.6f} | {score:.4f} |", flush=True)

    seconds, model = timed(lambda: softreg.SoftmaxRegression(
        alpha=alpha, random_state=0, n_jobs=1, solver="newton").fit(X, y))  # fmt: skip
    line("one machine, one thread, solver='newton'", seconds, model, passes=f"{model.history_['passes'][-1]:.0f}")
    base = None
    with tempfile.TemporaryDirectory() as folder:
        for workers in (1, 2):
            with (
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                dX, dy = dask.persist(*lazy(Path(folder), X, y))
                wait([dX, dy])
                fit = SoftmaxRegression(alpha=alpha, random_state=0).fit
                fits = [timed(partial(fit, dX, dy)) for _ in range(repeats)]
                seconds, model = sorted(fits, key=lambda pair: pair[0])[repeats // 2]
                base = base or seconds
                product = pass_seconds(client, dX, dy, K)
                passes = model.traffic_["passes"]
                line(f"Dask, {workers} worker(s)", seconds, model, base, passes, f"{product:.3f}")
                sent, received = (model.traffic_[f"bytes_{way}"] / passes for way in ("sent", "received"))
                print(f"| &nbsp; bytes a pass: {sent:,.0f} out, {received:,.0f} back | | | | | | |")
                print(f"| &nbsp; overhead of a pass of {CHUNKS} chunks: {1e3 * overhead(client, CHUNKS):.1f} ms "
                      f"| | | | | | |")  # fmt: skip
                if workers == 2 and peers:
                    for name, make in contenders(alpha):
                        try:
                            seconds, model = timed(partial(make, dX, dy, K))
                        except Exception as error:  # a peer's own affair
                            print(f"| {name}: {type(error).__name__}: {str(error)[:80]} | | | | | | |", flush=True)
                        else:
                            line(name, seconds, model, labels=y if len(model.coef_) > 1 else (y == 0).astype(int))


def contenders(alpha):
    """Yield names and functions (X, y, K) -> fitted model of dask-ml, on two workers."""

    def incremental(X, y, K, epochs):
        from dask_ml.wrappers import Incremental

        model = Incremental(SGDClassifier(loss="log_loss", alpha=alpha, random_state=0))
        for _ in range(epochs):
            model.partial_fit(X, y, classes=np.arange(K))
        return model.estimator_

    def logistic(X, y, K):
        from dask_ml.linear_model import LogisticRegression

        n = X.shape[0]
        return LogisticRegression(C=1 / (n * alpha), solver="lbfgs").fit(X, (y == 0).astype(np.int64))

    yield "dask_ml Incremental(SGDClassifier), 1 pass", partial(incremental, epochs=1)
    yield "dask_ml Incremental(SGDClassifier), 5 passes", partial(incremental, epochs=5)
    # dask-ml's LogisticRegression is for two classes: class 0 against the rest
    binary = SoftmaxRegression(alpha=alpha, random_state=0)
    yield "softreg.dask, class 0 against the rest", lambda X, y, K: binary.fit(X, (y == 0).astype(np.int64))
    yield "dask_ml LogisticRegression(solver='lbfgs'), the same", logistic


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    option("--problems", nargs="+", default=list(SPECS), help=f"of {', '.join(SPECS)}")
    option("--rows", type=int, default=2_000_000, help="of synthetic and wide; the text has a tenth")
    option("--repeats", type=int, default=3, help="fits, of which the median counts")
    option("--alpha", type=float, default=1e-5)
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave dask-ml out")
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for spec in args.problems:
        race(spec, args.rows, args.alpha, args.repeats, args.peers)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
