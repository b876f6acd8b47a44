"""Softreg's kernels beside their peers, medians of one run as Markdown; README.md says how they are taken."""

import argparse
import statistics
import time
import warnings
from functools import partial

import numpy as np
import problems
from contenders import BATCH, MOMENTUM, numpy_gradient, numpy_minibatch, torch_minibatch
from scipy import sparse
from sklearn._loss import HalfMultinomialLoss
from sklearn.linear_model import LogisticRegression, SGDClassifier
from threadpoolctl import threadpool_limits

from softreg import _core, _reference

try:
    import torch
except ImportError:
    torch = None
try:
    from softreg import SoftmaxRegression
except ImportError:
    SoftmaxRegression = None

quick = False
BOTH = {"f32": np.float32, "f64": np.float64}
DENSE = [(60000, 784, 10), (581012, 54, 7), (60000, 784, 100)]


# --- the stop watch -----------------------------------------------------------------------------------------


def medians(contest, repeats=15, least=0.02):
    """Median seconds of each function. The repeats alternate, so that whatever else runs meets all alike.

    A sample is as many calls as fill `least` seconds; a first call, not counted, warms caches and pools up.
    """
    repeats, counts, samples = 3 if quick else repeats, {}, {name: [] for name in contest}
    for name, call in contest.items():
        call()
        start = time.perf_counter()
        call()
        counts[name] = int(least / (time.perf_counter() - start)) + 1
    for _ in range(repeats):
        for name, call in contest.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            samples[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def table(title, results):
    """Print {row: {column: cell}} as Markdown; a row may lack columns that others have."""
    heads = list(dict.fromkeys(head for row in results.values() for head in row))
    print(f"\n### {title}\n\n|  | " + " | ".join(heads) + " |\n|---" + "|---:" * len(heads) + "|")
    for name, row in results.items():
        cells = [row.get(head, "") for head in heads]
        print(f"| {name} | " + " | ".join(f"{c:.3g}" if isinstance(c, float) else c for c in cells) + " |")


def against(times, unit="ms", per=1e-3):
    """A row: the times, then how many times longer than softreg each of the others takes."""
    ratios = {f"{name} ratio": t / times["softreg"] for name, t in times.items() if name != "softreg"}
    return {f"{name} {unit}": t / per for name, t in times.items()} | ratios


# --- the work -----------------------------------------------------------------------------------------------


def random_dense(n, d, K, dtype=np.float32):
    """Gaussian rows under the labels of a planted linear model."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n // 10 if quick else n, d), np.float32)
    y = (X @ rng.standard_normal((d, K), np.float32)).argmax(axis=1)
    return X.astype(dtype), y


def text(dtype=np.float32):
    """The rows of news20_tfidf, or random ones of the same shape and density."""
    try:
        news = problems.load("news20_tfidf")
        X, y = sparse.vstack([news.X_train, news.X_test], format="csr"), np.append(news.y_train, news.y_test)
    except SystemExit:
        rng = np.random.default_rng(0)
        X = sparse.random_array((18821, 42254), density=0.003, format="csr", dtype=np.float32, rng=rng)
        y = rng.integers(20, size=18821)
    return sparse.csr_array(X.astype(dtype)), y


def cases():
    """The problems of sections 3, 5 and 6, float32."""
    problems = [(*random_dense(*shape), shape[-1]) for shape in DENSE] + [(*text(), 20)]
    return {f"{X.shape[0]} x {X.shape[1]}, K = {K}": (X, y, K) for X, y, K in problems}


class Bound:
    """The kernels bound to one problem and to buffers allocated once, as the library's loops have them."""

    def __init__(self, X, y, K):
        (self.n, self.d), self.K, self.X, self.y = X.shape, K, X, y.astype(np.intp)
        self.csr = sparse.issparse(X)
        shape = (self.d + 1, K) if self.csr else (K, self.d + 1)
        self.W = (np.random.default_rng(0).standard_normal(shape) / np.sqrt(self.d)).astype(X.dtype)
        self.grad, self.velocity = np.empty_like(self.W), np.zeros_like(self.W)
        self.P, self.G = np.empty((self.n, K), X.dtype), np.empty((self.n, K), X.dtype)
        self.matrix = (X.data, X.indices, X.indptr) if self.csr else (X,)
        self.loss_gradient()  # fills P and G

    def loss_gradient(self, rows=None, P=True, threads=1):
        m = self.n if rows is None else len(rows)
        P, labels = self.P[:m] if P else None, (self.y, None, None, 0.0, 1 / m, 0.0)
        if self.csr:
            G = self.G[:m]
            _core.csr_loss_gradient(*self.matrix, rows, self.W, self.d, *labels, P, G, self.grad, threads)
        else:
            _core.dense_loss_gradient(self.X, rows, self.W, *labels, P, self.grad, threads)

    def hessian_product(self, threads=1):
        head = (*self.matrix, None, self.P, None, 1 / self.n)
        if self.csr:
            _core.csr_curve(*head, self.W, self.d, self.G, threads)
            self.grad[...] = 0
            _core.csr_gradient(*self.matrix, None, self.G, self.d, self.grad, threads)
        else:
            _core.dense_hessian_product(*head, 0.0, self.W, self.grad, threads)

    def logits(self, threads=1):
        _core.dense_logits(self.X, None, self.W, self.G, threads)

    def gradient(self, threads=1):
        _core.dense_gradient(self.X, None, self.P, self.grad, threads)

    def epoch(self, threads=1, rate=1e-3):
        """Shuffled batches read in place, heavy-ball steps: `numpy_minibatch` with a kernel in its middle."""
        order = np.random.default_rng(0).permutation(self.n)
        for start in range(0, self.n, BATCH):
            self.loss_gradient(order[start : start + BATCH], P=False, threads=threads)
            self.velocity *= MOMENTUM
            self.velocity += self.grad
            self.W -= np.multiply(self.velocity, rate, out=self.grad)


def softreg_epoch(X, y):
    """One epoch as a user gets it: the estimator, with its validation, curvature and closing objective."""
    SoftmaxRegression(solver="sgd", max_iter=1, tol=0.0, n_jobs=1).fit(X, y)


def sgd_classifier_epoch(X, y):
    SGDClassifier(loss="log_loss", max_iter=1, tol=None, n_jobs=1).fit(X, y)


# --- the sections -------------------------------------------------------------------------------------------


def cross_entropy():
    """1. Softmax + cross-entropy + residual, ns per logit"""
    results = {}
    for bits, dtype in BOTH.items():
        for K in (3, 10, 100, 1000):
            for n in (4000 if K == 1000 else 20000, BATCH):
                times = medians(cross_entropy_contest(n, K, dtype))
                results[f"{n} x {K} {bits}"] = against(times, "ns", 1e-9 * n * K)
    table(cross_entropy.__doc__, results)


def cross_entropy_contest(n, K, dtype):
    rng = np.random.default_rng(0)
    Z, codes = (3 * rng.standard_normal((n, K))).astype(dtype), rng.integers(K, size=n)
    losses, residual, y = np.empty(n, dtype), np.empty((n, K), dtype), codes.astype(dtype)
    args = (Z, codes, None, None, 0.0, losses, residual, 1)
    contest = {
        "softreg": lambda: _core.cross_entropy(*args),
        "sklearn": lambda: HalfMultinomialLoss(n_classes=K).loss_gradient(y, Z, None, losses, residual, 1),
    }
    if torch:
        leaf, target = torch.tensor(Z, requires_grad=True), torch.tensor(codes)

        def forward_backward():
            leaf.grad = None
            torch.nn.functional.cross_entropy(leaf, target).backward()

        contest["torch"] = forward_backward
    return contest | {"NumPy twin": lambda: _reference.cross_entropy(*args)}


def predict_proba():
    """2. predict_proba of fitted models"""
    results = {}
    for bits, dtype in BOTH.items():
        for X, y in (random_dense(60000, 784, 10, dtype), random_dense(20000, 16, 26, dtype), text(dtype)):
            few = np.append(np.unique(y, return_index=True)[1], np.arange(200))  # every class occurs
            peer = LogisticRegression(max_iter=2).fit(X[few], y[few])
            mine = SoftmaxRegression(max_iter=2, n_jobs=1).fit(X[few], y[few])
            mine.coef_, mine.intercept_ = peer.coef_, peer.intercept_  # what was learnt does not matter
            np.testing.assert_allclose(mine.predict_proba(X), peer.predict_proba(X), atol=1e-4)
            contest = {"softreg": partial(mine.predict_proba, X), "sklearn": partial(peer.predict_proba, X)}
            name = f"{X.shape[0]} x {X.shape[1]}, K = {len(peer.classes_)} {bits}"
            results[name] = against(medians(contest, repeats=7))
    table(predict_proba.__doc__, results)


def epoch():
    """3. One epoch of shuffled minibatches of 256, float32"""
    results = {}
    for name, (X, y, K) in cases().items():
        contest = {"softreg": Bound(X, y, K).epoch}
        if SoftmaxRegression:
            contest["softreg fit"] = partial(softreg_epoch, X, y)
        loop = {"alpha": 1e-4, "epochs": 1, "rate": 1e-3}
        contest["NumPy"] = partial(numpy_minibatch, X, y, K, **loop)
        if torch:
            contest["torch"] = partial(torch_minibatch, X, y, K, **loop)
        if sparse.issparse(X):
            contest["SGDClassifier"] = partial(sgd_classifier_epoch, X, y)
        results[name] = against(medians(contest, repeats=5))
    table(epoch.__doc__, results)


def machine(dtype):
    """(bytes/s, flops/s) of one thread: the fastest of four ways to read, the best gemm of two sizes."""
    x, y = np.ones((2, (1 << 28) // np.dtype(dtype).itemsize), dtype)  # 256 MB each
    reads = {"sum": x.sum, "max": x.max, "dot": lambda: x @ x, "dot of two": lambda: x @ y}
    seconds = medians(reads, repeats=5)
    seconds["dot of two"] /= 2
    A = np.ones((2048, 2048), dtype)
    gemm = medians({m: partial(np.matmul, A[:m, :m], A[:m, :m]) for m in (1024, 2048)}, repeats=5)
    return x.nbytes / min(seconds.values()), max(2 * m**3 / t for m, t in gemm.items())


def roofline():
    """4. Fraction of max(bytes / bandwidth, flops / peak) that is reached, 60000 x 784, one thread"""
    results = {}
    for bits, dtype in BOTH.items():
        bandwidth, peak = machine(dtype)
        results[f"the machine, {bits}"] = {"GB/s": bandwidth / 1e9, "GF/s": peak / 1e9}
        for K in (10, 100):
            work = Bound(*random_dense(60000, 784, K, dtype), K)
            Z, out, losses = work.G, work.P.copy(), np.empty(work.n, dtype)
            X, flops = work.X.nbytes, 4 * work.X.size * K
            kernels = {  # bytes that must pass at least once, multiplications and additions
                "logits": (work.logits, X + Z.nbytes, flops / 2),
                "gradient": (work.gradient, X + Z.nbytes, flops / 2),
                "loss + gradient": (work.loss_gradient, X + Z.nbytes, flops),
                "Hessian product": (work.hessian_product, X + Z.nbytes, flops),
                "epoch": (work.epoch, X, flops),
                "softmax": (partial(_core.softmax, Z, out), 2 * Z.nbytes, 0),
                "cross-entropy": (
                    partial(_core.cross_entropy, Z, work.y, None, None, 0.0, losses, out), 2 * Z.nbytes, 0
                ),
            }  # fmt: skip
            times = medians({name: call for name, (call, *_) in kernels.items()}, repeats=5)
            for name, (_, nbytes, flops) in kernels.items():
                t, bound = times[name], max(nbytes / bandwidth, flops / peak)
                row = {"ms": 1e3 * t, "bound ms": 1e3 * bound, "fraction": bound / t}
                row |= {"GB/s": nbytes / t / 1e9, "GF/s": flops / t / 1e9}
                results[f"{name}, K = {K} {bits}"] = row
    table(roofline.__doc__, results)


def threads():
    """5. Two threads against one, float32, and whether the bits agree"""
    results = {}
    for name, (X, y, K) in cases().items():
        for kernel in ("loss_gradient", "hessian_product", "epoch"):
            work, bits = Bound(X, y, K), {}
            call, start = getattr(work, kernel), work.W.copy()
            for t in (1, 2):
                work.W[:], work.velocity[:] = start, 0
                call(threads=t)
                bits[t] = work.grad.tobytes() + work.W.tobytes()
            one, two = medians({t: partial(call, threads=t) for t in (1, 2)}, repeats=7).values()
            row = {"1 thread ms": 1e3 * one, "2 threads ms": 1e3 * two, "speed-up": one / two}
            results[f"{kernel}, {name}"] = row | {"same bits": "yes" if bits[1] == bits[2] else "NO"}
    table(threads.__doc__, results)


def hessian():
    """6. Hessian-vector product against loss and gradient, float32"""
    results = {}
    for name, (X, y, K) in cases().items():
        work = Bound(X, y, K)
        t = medians({"pass": work.loss_gradient, "product": work.hessian_product}, repeats=7)
        row = {"loss + gradient ms": 1e3 * t["pass"], "product ms": 1e3 * t["product"]}
        results[name] = row | {"ratio": t["product"] / t["pass"]}
    table(hessian.__doc__, results)


def grid():
    """7. Loss and gradient, float32: ps per row x feature x class (GF/s; times faster than NumPy)"""
    results = {}
    for d in (4, 16, 54, 784, 4096):
        row = results[f"d = {d}"] = {}
        for K in (2, 3, 10, 26, 100, 1000):
            n = max(BATCH, min(100000, 2**23 // d, 2**28 // (d * K)))
            work = Bound(*random_dense(n, d, K), K)
            peer = partial(numpy_gradient, work.X, work.y, work.W[:, :-1], work.W[:, -1])
            t = medians({"softreg": partial(work.loss_gradient, P=False), "NumPy": peer}, repeats=7)
            unit = t["softreg"] / (work.n * d * K)
            row[f"K = {K}"] = f"{1e12 * unit:.0f} ({4e-9 / unit:.0f}; {t['NumPy'] / t['softreg']:.1f})"
    table(grid.__doc__, results)


SECTIONS = (cross_entropy, predict_proba, epoch, roofline, threads, hessian, grid)


def main():
    global quick
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, three repeats")
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("--section", nargs="+", choices=names, default=names, metavar="NAME", help=str(names))
    args = parser.parse_args()
    quick = args.quick
    warnings.simplefilter("ignore")  # fits of one epoch do not converge
    if torch:
        torch.set_num_threads(1)
    with threadpool_limits(1):  # the kernels take their threads as an argument, which this does not touch
        for section in SECTIONS:
            if section is predict_proba and SoftmaxRegression is None:
                print("\npredict_proba: softreg.SoftmaxRegression is not there.")
            elif section.__name__ in args.section:
                section()


if __name__ == "__main__":
    main()
