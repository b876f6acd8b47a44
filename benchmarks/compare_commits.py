"""Compares the speed of two commits on this machine, so that a slowdown is seen:

    python benchmarks/compare_commits.py v0.1.0           # that commit against HEAD
    python benchmarks/compare_commits.py main my-branch   # any two

Each commit is built into a temporary folder, with the packages of the environment that runs this script; the extra
`test` has all that a build needs. A process for each commit then takes turns with the other: the same fits, on the same
data, on one thread, at parameters that all versions know, mostly the defaults. Times are those of the processor, which
other programs hardly disturb. Beside them stands the loss that was reached.

A case counts as slower if the median over the rounds of the ratio of the two times, and the ratio of the two fastest
times, are both above --limit: a neighbour on the machine moves one of them, seldom both. The exit code is then 1.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

ROOT = Path(__file__).resolve().parents[1]


# --- in the process of one commit: the cases --------------------------------------------------------------------------


def make_cases(small):
    """Return the cases by name: functions without arguments that return the mean log loss of what they fitted."""
    import numpy as np
    from scipy import sparse
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss

    from softreg import SoftmaxRegression

    rng, size = np.random.default_rng(0), 1 if small else 10

    def labels(X, K):
        return (X @ rng.normal(size=(X.shape[1], K)) + rng.gumbel(size=(X.shape[0], K))).argmax(axis=1)

    scaled = rng.normal(size=(2000 * size, 20))
    raw = scaled * np.geomspace(1e-2, 1e2, 20) + 5
    embedding = rng.normal(size=(500 * size, 16)) @ rng.normal(size=(16, 256)) + rng.normal(size=(500 * size, 256))
    embedding = embedding.astype(np.float32)
    text = sparse.random(1000 * size, 5000, density=0.01, format="csr", random_state=0)
    data = {
        "raw": (raw, labels(scaled, 5)), "embedding": (embedding, labels(embedding / 16, 50)),
        "text": (text, labels(text, 10)), "digits": load_digits(return_X_y=True),
    }  # fmt: skip

    def fit(name, **options):
        X, y = data[name]
        return log_loss(y, SoftmaxRegression(random_state=0, n_jobs=1, **options).fit(X, y).predict_proba(X))

    def stream(name):
        (X, y), model = data[name], SoftmaxRegression(random_state=0, n_jobs=1)
        for start in range(0, X.shape[0], 500):
            model.partial_fit(X[start : start + 500], y[start : start + 500], classes=np.unique(y))
        return log_loss(y, model.predict_proba(X))

    cases = {f"fit, {name}": lambda name=name: fit(name) for name in data}
    cases["fit with l1, digits"] = lambda: fit("digits", alpha=1e-3, l1_ratio=1.0)
    return cases | {f"one pass, {name}": lambda name=name: stream(name) for name in ("raw", "text")}


def worker(small):
    """Print the names of the cases, then run each case whose name is read; print seconds of the processor and loss."""
    import warnings

    warnings.simplefilter("ignore")  # what a fit warns of does not matter for its speed
    cases = make_cases(small)
    print("\t".join(cases), flush=True)
    for line in sys.stdin:
        start = process_time()
        loss = cases[line.rstrip("\n")]()
        print(process_time() - start, loss, flush=True)


# --- in the process that compares -------------------------------------------------------------------------------------


def build(commit, folder):
    """Build a commit into the folder; return the folder to import it from."""
    sources, target = folder / "sources", folder / "installed"
    sources.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", sources], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([*pip, sources], check=True)
    return target


class Worker:
    """A process that runs the cases with one build of softreg."""

    def __init__(self, target, small):
        command = [sys.executable, "-P", __file__, "--worker", *(["--small"] if small else [])]
        environment = os.environ | {"PYTHONPATH": str(target)}
        self.process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.cases = self._answer().split("\t")

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process that runs the cases has ended; its error stands above")
        return line.rstrip("\n")

    def run(self, case):
        """Return the seconds of the processor that the case took, and its loss."""
        print(case, file=self.process.stdin, flush=True)
        return tuple(map(float, self._answer().split()))


def compare(base, head, rounds):
    """Yield for each case: name, times of both (rounds,), losses of both."""
    for case in base.cases:
        times, losses = ([], []), [0.0, 0.0]
        for i in range(-1, rounds):  # the first is for warm caches alone
            for side in (0, 1) if i % 2 else (1, 0):
                seconds, losses[side] = (base, head)[side].run(case)
                if i >= 0:
                    times[side].append(seconds)
        yield case, times, losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="the commit to compare with")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.2, help="ratio of times from which on a case is slower")
    parser.add_argument("--small", action="store_true", help="a tenth of the rows")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.small)
    if args.base is None:
        parser.error("name the commit to compare with")
    with tempfile.TemporaryDirectory() as folder:
        builds = [build(commit, Path(folder, side)) for side, commit in (("base", args.base), ("head", args.head))]
        base, head = (Worker(target, args.small) for target in builds)
        print(f"{'':24} {args.base[:12]:>12} {args.head[:12]:>12}  median  fastest   loss, loss")
        slower = []
        for case, (before, after), losses in compare(base, head, args.rounds):
            ratios = median(b / a for a, b in zip(before, after, strict=True)), min(after) / min(before)
            slower += [case] if min(ratios) > args.limit else []
            mark = "  SLOWER" if min(ratios) > args.limit else ""
            print(
                f"{case:24} {1e3 * median(before):9.1f} ms {1e3 * median(after):9.1f} ms  {ratios[0]:6.2f}  "
                f"{ratios[1]:7.2f}   {losses[0]:.4f}, {losses[1]:.4f}{mark}", flush=True,
            )  # fmt: skip
        for process in (base.process, head.process):
            process.communicate()
    print(f"slower than {args.limit} times: {', '.join(slower)}" if slower else "no case is slower")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
