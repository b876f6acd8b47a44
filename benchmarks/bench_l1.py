"""l1 and elastic net: seconds until a fit is within 1e-3 of the null model's loss from the optimum.

softreg, LogisticRegression(solver="saga") and Cyanure fit raw features from a cold start; README.md says how the
numbers are taken. Without SOFTREG_DATA it runs on the data sets of scikit-learn.
"""

import argparse
import logging
import os
import statistics
import time
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import problems
from bench_fit import seconds_text, time_to
from scipy.special import entr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from softreg import SoftmaxRegression

try:
    from cyanure.estimators import Classifier

    logging.getLogger("INFO").setLevel(logging.WARNING)  # the name of Cyanure's logger
except ImportError:
    Classifier = None

TARGET = 1e-3  # of the null model's loss
REPEATS = 3  # of fits under a second


def objective(problem, l1_ratio, W, b):
    """F(W, b) in float64; nan where a contender diverged."""
    size = l1_ratio * np.abs(W).sum(dtype=float) + (1 - l1_ratio) / 2 * np.square(W, dtype=float).sum()
    return problems.objective(replace(problem, alpha=0.0), W, b) + problem.alpha * size


# --- contenders: (problem, X, l1_ratio, level) -> (coef, intercept) ------------------------------------------------


def softreg(problem, X, l1_ratio, tol):
    """The default call with a tolerance."""
    model = SoftmaxRegression(alpha=problem.alpha, l1_ratio=l1_ratio, tol=tol, random_state=0, n_jobs=1)
    model.fit(X, problem.y_train)
    return model.coef_, model.intercept_


def saga(problem, X, l1_ratio, passes):
    C = 1 / (X.shape[0] * problem.alpha)
    model = LogisticRegression(solver="saga", C=C, l1_ratio=l1_ratio, tol=1e-12, max_iter=passes, random_state=0)
    model.fit(X, problem.y_train)
    return model.coef_, model.intercept_


def cyanure(problem, X, l1_ratio, passes):
    """Its elastic net is lambda_1 ||W||_1 + lambda_2/2 ||W||_2^2."""
    loss = "multiclass-logistic" if problem.n_classes > 2 else "logistic"
    penalty = {"penalty": "l1", "lambda_1": problem.alpha * l1_ratio}
    if l1_ratio < 1:
        penalty = {**penalty, "penalty": "elasticnet", "lambda_2": problem.alpha * (1 - l1_ratio)}
    model = Classifier(
        loss=loss, solver="auto", fit_intercept=True, tol=1e-12, max_iter=passes, n_threads=1, verbose=False, **penalty
    )
    model.fit(X, problem.y_train)
    return model.coef_.T, model.intercept_.ravel()


# --- the race -----------------------------------------------------------------------------------------------------


def timed(fit, problem, X, l1_ratio, level):
    """A cold fit as a record for `time_to`: the median of its seconds, its objective, and whether it warned."""
    seconds = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while len(seconds) < REPEATS and (not seconds or seconds[0] < 1):
            start = time.perf_counter()
            W, b = fit(problem, X, l1_ratio, level)
            seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "objective": objective(problem, l1_ratio, W, b),
        "nonzeros": np.count_nonzero(W),
        "warned": any(issubclass(w.category, ConvergenceWarning) for w in caught),
        "interpolate": fit is not softreg,
    }


def curve(fit, problem, X, l1_ratio, optimum, null, budget):
    """Fits with doubled budgets, until one arrives or the next would take too long."""
    records, passes = [], 1
    while True:
        records.append(timed(fit, problem, X, l1_ratio, passes))
        arrived = records[-1]["objective"] - optimum <= TARGET * null
        if arrived or 2 * records[-1]["seconds"] > budget or passes >= 2**16:
            return records
        passes *= 2


def race(spec, l1_ratio, dtype, budget):
    """Print a row for each contender; return how many times faster softreg was than the fastest peer.

    The ratio comes with whether a peer arrived; if none did, it is that of the peer that tried for longest. None stands
    for a fit of softreg that did not arrive.
    """
    problem = problems.load(spec)
    X = problem.X(dtype)
    null = entr(np.bincount(problem.y_train) / len(problem.y_train)).sum()
    softreg(problem, X, l1_ratio, TARGET)  # imports and first calls
    # the optimum is that of a fit in float64 whose proven gap is far below the target, or what a peer finds below it
    optimum = objective(problem, l1_ratio, *softreg(problem, problem.X(np.float64), l1_ratio, 1e-7))
    curves = {"softreg": [timed(softreg, problem, X, l1_ratio, TARGET)]}
    for fit in (saga, *((cyanure,) if Classifier else ())):
        curves[fit.__name__] = curve(fit, problem, X, l1_ratio, optimum, null, budget)
    optimum = min(optimum, *(r["objective"] for records in curves.values() for r in records if r["objective"] > 0))
    times = {}
    for name, records in curves.items():
        for record in records:
            record["suboptimality"] = (record["objective"] - optimum) / null
        times[name], best = time_to(TARGET, records), min(records, key=lambda r: r["suboptimality"])
        cells = [spec, l1_ratio, dtype, name, seconds_text(*times[name]), f"{best['objective']:.6f}"]
        cells += [f"{best['suboptimality']:.1e}", best["nonzeros"], "yes" if best["warned"] else "no"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    mine = times.pop("softreg")
    there = [seconds for seconds, arrived in times.values() if arrived]
    peer = min(there) if there else max(seconds for seconds, _ in times.values())
    return (peer / mine[0], bool(there)) if mine[1] else None


def main():
    data = "SOFTREG_DATA" in os.environ
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    names = ["iris", "wine", "breast_cancer", "digits"] + (["letter", "satimage", "shuttle"] if data else [])
    default = [f"{name}@{alpha}" for name in names for alpha in ("1e-3", "1e-4")]
    option("--problems", nargs="+", default=default, help="NAME[_std][:ROWS]@ALPHA")
    option("--l1-ratios", nargs="+", type=float, default=[1.0])
    option("--dtype", default="float64", help="float32 or float64, of everyone")
    option("--budget-seconds", type=float, default=3, help="begin no fit that takes longer")
    args = parser.parse_args()
    print("| problem | l1_ratio | dtype | contender | seconds | objective | (F - F*) / F_null | nonzeros | warned |")
    print("|---|---:|---|---|---:|---:|---:|---:|---|")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ratios = {
            (spec, r): race(spec, r, args.dtype, args.budget_seconds) for spec in args.problems for r in args.l1_ratios
        }
    print("\n| problem | l1_ratio | fastest peer / softreg |\n|---|---:|---:|")
    for (spec, l1_ratio), ratio in ratios.items():
        print(f"| {spec} | {l1_ratio} | {seconds_text(*ratio) if ratio else 'missed'} |")
    arrived = [ratio[0] for ratio in ratios.values() if ratio]
    mean = statistics.geometric_mean(arrived) if arrived else np.nan
    print(f"| geometric mean where softreg arrived; it missed {len(ratios) - len(arrived)} | | **{mean:.2f}** |")


if __name__ == "__main__":
    main()
