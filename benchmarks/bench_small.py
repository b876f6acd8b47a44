"""Small problems, where fixed costs count: SoftmaxRegression beside LogisticRegression(solver="newton-cholesky").

Both sides are fitted in turns in one process. softreg gets tol=1e-4. newton-cholesky gets the loosest tol with which
its objective is as near to the optimum: within 1e-4 of the null model's loss, and, in the last columns, as near as
softreg came. Times are medians of whole fits in milliseconds; gaps are F - min F in units of the null model's loss.
"""

import argparse
import statistics
import time
import warnings
from functools import partial

import numpy as np
import problems
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from softreg import SoftmaxRegression

TOL = 1e-4
PEER_TOLS = 10.0 ** -np.arange(0, 10.5, 0.5)
SAME = 1.001  # gaps are computed in float64 and differ in their last digits
GENERATED = {  # rows, features, classes, range of the columns' sizes: as the data sets vowel and vehicle
    "vowel_like": (990, 10, 11, (0.4, 2.7)),
    "vehicle_like": (846, 18, 4, (0.05, 150.0)),
}
DEFAULT = [
    f"{name}@{alpha}"
    for name in ("iris", "wine", "breast_cancer", *GENERATED, "digits", "digits_std")
    for alpha in ("1e-2", "1e-4")
]


def load(spec):
    """Return the problem; names of `GENERATED` are made here, all others are those of `problems`."""
    name, _, alpha = spec.partition("@")
    if name not in GENERATED:
        return problems.load(spec)
    n, d, K, sizes = GENERATED[name]
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(*np.log(sizes), d))
    mixing = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    y = rng.integers(K, size=n)
    X = (rng.normal(size=(n, d)) + 0.75 * rng.normal(size=(K, d))[y]) @ mixing * size + 3 * size * rng.normal(size=d)
    X = X.astype(np.float32)
    return problems.Problem(spec, X, y, X[:0], y[:0], float(alpha or 1e-4))


def race(spec, repeats, clock):
    """Print a row of the table; return how many times as long newton-cholesky took to a gap of TOL."""
    problem = load(spec)
    X, y = problem.X(np.float64), problem.y_train
    optimum = problems.reference_optimum(problem)["objective"]

    def ours():
        return SoftmaxRegression(alpha=problem.alpha, tol=TOL).fit(X, y)

    def peer(tol):
        C = 1 / (len(y) * problem.alpha)
        return LogisticRegression(C=C, solver="newton-cholesky", tol=tol, max_iter=1000).fit(X, y)

    def gap(model):
        return (problems.objective(problem, model.coef_, model.intercept_) - optimum) / problem.null_loss

    def loosest(wanted):
        return next((tol for tol in PEER_TOLS if gap(peer(tol)) <= wanted), PEER_TOLS[-1])

    reached = gap(ours())
    tols = [loosest(TOL), loosest(max(SAME * reached, 1e-11))]
    fits = [ours, *(partial(peer, tol) for tol in tols)]
    times = [[] for _ in fits]
    for _ in range(repeats):
        for fit, seconds in zip(fits, times, strict=True):
            start = clock()
            fit()
            seconds.append(clock() - start)
    ms = [1e3 * statistics.median(seconds) for seconds in times]
    columns = [f"{spec} | {ms[0]:.2f} | {reached:.1e}"]
    columns += [f"{t:.2f} | {gap(peer(tol)):.1e} | {t / ms[0]:.2f}" for t, tol in zip(ms[1:], tols, strict=True)]
    print(f"| {' | '.join(columns)} |", flush=True)
    return ms[1] / ms[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    option("--problems", nargs="+", default=DEFAULT, help=f"NAME[_std][:ROWS][@ALPHA], or {', '.join(GENERATED)}")
    option("--repeats", type=int, default=25)
    option("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="time of the processor, for a busy machine")
    args = parser.parse_args()
    print(f"| problem | softreg ms | gap | newton-cholesky to {TOL:g}, ms | gap | times as long ", end="")
    print("| newton-cholesky to the gap of softreg, ms | gap | times as long |\n|" + "---|" * 9)
    with threadpool_limits(args.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clock = time.process_time if args.cpu else time.perf_counter
        ratios = [race(spec, args.repeats, clock) for spec in args.problems]
    print(f"\nGeometric mean {np.exp(np.mean(np.log(ratios))):.2f}, least {min(ratios):.2f} times as long.")


if __name__ == "__main__":
    main()
