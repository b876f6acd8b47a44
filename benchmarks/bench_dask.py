"""Fits on Dask: one and two single-threaded worker processes, the overhead of a pass, and dask-ml on the same chunks.

README.md says how the numbers are taken, and has the model on paper for more workers.
"""

import argparse
import os
import tempfile
import time
import warnings
from functools import partial
from itertools import pairwise
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


def synthetic(number, rows, d, K):
    """Return X and y of a chunk from a softmax model: d features, correlated and in units of their own, K classes."""
    rng = np.random.default_rng(0)
    mix, W = rng.normal(size=(d, d)).astype(np.float32) / np.sqrt(d), rng.normal(size=(d, K)).astype(np.float32)
    scale = (10.0 ** rng.integers(-2, 3, size=d)).astype(np.float32)
    rng = np.random.default_rng([1, number])
    X = rng.standard_normal(size=(rows, d), dtype=np.float32) @ mix
    y = (X @ W * (3 / np.sqrt(d)) + rng.gumbel(size=(rows, K))).argmax(axis=1)
    X *= scale
    return X, y


def load(files, start, stop):
    """Return rows of files, on a worker."""
    if files[0].endswith(".npy"):
        X = np.array(np.load(files[0], mmap_mode="r")[start:stop])
    else:
        X = sparse.csr_array(sparse.load_npz(files[0])[start:stop])
    return X, np.load(files[1])[start:stop]


FILES = {"flights_carrier": flights, "text": text}
MADE = {"synthetic": {"d": 60, "K": 10}, "wide": {"d": 256, "K": 50}}


def lazy(spec, rows, folder):
    """Return X and y as dask arrays of CHUNKS chunks, which workers make, or read from files in a folder."""
    if spec in MADE:
        d, lengths = MADE[spec]["d"], [rows // CHUNKS] * CHUNKS
        make, dtypes, meta = dask.delayed(synthetic, nout=2), (np.float32, np.intp), None
        chunks = [make(number, lengths[0], **MADE[spec]) for number in range(CHUNKS)]
    else:
        X, y = FILES[spec](rows)
        d, dtypes = X.shape[1], (X.dtype, y.dtype)
        files = str(folder / ("X.npz" if sparse.issparse(X) else "X.npy")), str(folder / "y.npy")
        sparse.save_npz(files[0], X, compressed=False) if sparse.issparse(X) else np.save(files[0], X)
        np.save(files[1], y)
        meta = sparse.csr_array((0, d), dtype=X.dtype) if sparse.issparse(X) else None
        edges = np.linspace(0, len(y), CHUNKS + 1).astype(int).tolist()
        lengths, read = np.diff(edges).tolist(), dask.delayed(load, nout=2)
        chunks = [read(files, start, stop) for start, stop in pairwise(edges)]
    pairs = list(zip(chunks, lengths, strict=True))
    return (
        da.concatenate([da.from_delayed(X, (n, d), dtypes[0], meta=meta) for (X, _), n in pairs]),
        da.concatenate([da.from_delayed(y, (n,), dtypes[1]) for (_, y), n in pairs]),
    )


def timed(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result


def loss_and_hits(X, y, coef, intercept):
    """Return the sum of the losses over some rows by NumPy in float64, and how many are predicted right."""
    total = hits = 0
    for start in range(0, len(y), 50_000):
        Z = X[start : start + 50_000] @ coef.T.astype(np.float64) + intercept
        Z = np.column_stack([0 * Z, Z]) if Z.shape[1] == 1 else Z
        Z -= Z.max(axis=1, keepdims=True)
        labels = y[start : start + 50_000]
        of_label = Z[np.arange(len(labels)), labels]
        total += np.sum(np.log(np.exp(Z).sum(axis=1)) - of_label)
        hits += np.count_nonzero(of_label == 0)
    return np.array([total, hits])


def scores(X, y, model, alpha):
    """Return F and the accuracy of a model over dask arrays, or others."""
    given = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if isinstance(X, da.Array):
        run = dask.delayed(loss_and_hits)
        blocks = zip(X.to_delayed().ravel(), y.to_delayed().ravel(), strict=True)
        sums = sum(dask.compute(*[run(*block, *given) for block in blocks]))
    else:
        sums = loss_and_hits(X, y, *given)
    loss, accuracy = sums / X.shape[0]
    return loss + alpha / 2 * np.sum(given[0].astype(np.float64) ** 2), accuracy


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


def pass_seconds(client, X, y):
    """Return the seconds of a Hessian product over the chunks, as a fit makes it: the median of 10."""
    model = SoftmaxRegression()
    passes, chunks = checked_chunks(model, client, X, y, None, True)
    F, _ = distributed_objective(model, passes, chunks, np.empty((0, X.shape[1]), X.dtype))
    at = F.linearize(F.zeros())
    V = F.zeros()
    V[...] = 1e-3
    times = [timed(partial(at.hessian_product, V))[0] for _ in range(11)][1:]
    passes.close()
    return float(np.median(times))


def cpu_seconds(client):
    """Return the seconds of a processor that the workers have taken, and those of this process with the scheduler."""
    return np.array([sum(client.run(time.process_time).values()), time.process_time()])


def race(spec, rows, alpha, repeats, peers):
    with tempfile.TemporaryDirectory() as folder:
        X, y = lazy(spec, rows, Path(folder))
        print(f"\n### {spec}: {X.shape[0]:,} x {X.shape[1]:,}, {CHUNKS} chunks\n")
        print("| fit | seconds | speed-up | CPU of workers | CPU here | passes | a Hessian product | F | accuracy |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        one_machine(X, y, alpha)
        base = None
        for workers in (1, 2):
            with (
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
                Client(cluster) as client,
            ):
                kept = dask.persist(X, y)
                wait(kept)
                seconds = on_workers(client, workers, *kept, alpha, repeats, base)
                base = base or seconds
                if workers == 2 and peers:
                    contenders(*kept, alpha)


def line(name, seconds, F, accuracy, *more):
    more = [*more, *[""] * (5 - len(more))]
    print(f"| {name} | {seconds:.2f} | {' | '.join(more)} | {F:.6f} | {accuracy:.4f} |", flush=True)


def one_machine(X, y, alpha):
    """Race the estimator of one machine, on one thread."""
    X, y = dask.compute(X, y, scheduler="synchronous")
    make = softreg.SoftmaxRegression(alpha=alpha, random_state=0, n_jobs=1, solver="newton").fit
    seconds, model = timed(partial(make, X, y))
    line("one machine, one thread", seconds, *scores(X, y, model, alpha))


def on_workers(client, workers, X, y, alpha, repeats, base):
    """Race the fits on a cluster, and return the median of their seconds."""
    fits = []
    for _ in range(repeats):
        before = cpu_seconds(client)
        seconds, model = timed(partial(SoftmaxRegression(alpha=alpha, random_state=0).fit, X, y))
        fits.append((seconds, *(cpu_seconds(client) - before)))
    seconds, of_workers, here = sorted(fits)[repeats // 2]
    passes, product = model.traffic_["passes"], 1e3 * pass_seconds(client, X, y)
    gain = "" if base is None else f"{base / seconds:.2f}"
    name = f"Dask, {workers} worker{'s' * (workers > 1)}"
    more = gain, f"{of_workers:.2f}", f"{here:.2f}", str(passes), f"{product:.0f} ms"
    line(name, seconds, *scores(X, y, model, alpha), *more)
    sent, received = (model.traffic_[f"bytes_{way}"] / passes for way in ("sent", "received"))
    empty = ", ".join(f"{1e3 * overhead(client, n):.1f} ms for {n} chunks" for n in (CHUNKS, 64))
    print(f"| &nbsp; a pass: {sent:,.0f} bytes out, {received:,.0f} back; empty {empty} {'| ' * 9}", flush=True)
    return seconds


def contenders(X, y, alpha):
    """Race dask-ml on two workers, on standardised features, which it needs."""
    from dask_ml.linear_model import LogisticRegression
    from dask_ml.wrappers import Incremental

    Z = dask.persist(((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float32))[0]
    of_class_0 = dask.persist((y == 0).astype(np.int64))[0]
    wait([Z, of_class_0])
    n, classes = X.shape[0], da.unique(y).compute()

    def race(name, labels, make):
        seconds, model = timed(make)
        line(name, seconds, *scores(Z, labels, model, alpha))

    def incremental(epochs):
        model = Incremental(SGDClassifier(loss="log_loss", alpha=alpha, random_state=0))
        for _ in range(epochs):
            model.partial_fit(Z, y, classes=classes)
        return model.estimator_

    make = SoftmaxRegression(alpha=alpha, random_state=0)
    race("standardised: softreg.dask", y, lambda: make.fit(Z, y))
    for epochs in (1, 5):
        race(f"standardised: dask-ml Incremental(SGDClassifier), {epochs} passes", y, partial(incremental, epochs))
    # dask-ml's LogisticRegression is for two classes: class 0 against the rest
    race("class 0 or not: softreg.dask", of_class_0, lambda: make.fit(Z, of_class_0))
    for solver, max_iter in (("newton", 5), ("lbfgs", 10), ("lbfgs", 30)):  # Newton's method has no penalty there
        logistic = LogisticRegression(C=1 / (n * alpha), solver=solver, max_iter=max_iter)
        name = f"class 0 or not: dask-ml LogisticRegression({solver!r}, max_iter={max_iter})"
        race(name, of_class_0, partial(logistic.fit, Z, of_class_0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    option("--problems", nargs="+", default=list(SPECS), help=f"of {', '.join(SPECS)}")
    option("--rows", type=int, default=2_000_000, help="of synthetic and wide; the text has a tenth")
    option("--repeats", type=int, default=3, help="fits, of which the median counts")
    option("--alpha", type=float, default=1e-5)
    parser.add_argument("--peers", action="store_true", help="race dask-ml, too")
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for spec in args.problems:
        race(spec, args.rows, args.alpha, args.repeats, args.peers)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
