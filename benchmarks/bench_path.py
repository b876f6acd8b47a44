"""The choice of a penalty: SoftmaxRegressionCV beside LogisticRegressionCV, on the same grid and the same folds.

The grid is that of LogisticRegressionCV(Cs=10), the folds are five stratified ones, the score is the log loss of held
out rows. README.md says how the numbers are taken.
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
import problems
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from threadpoolctl import threadpool_limits

from softreg import SoftmaxRegression, SoftmaxRegressionCV

SCORING = "neg_log_loss"


def contenders(alphas, l1_ratios, n, folds, threads):
    """(name, estimator, what it found as (scores over the grid, alpha))."""
    shared = {"cv": folds, "scoring": SCORING}
    path = SoftmaxRegressionCV(alphas=alphas, l1_ratios=l1_ratios, random_state=0, **shared)
    yield "SoftmaxRegressionCV", path, lambda m: (m.scores_.mean(axis=0), m.alpha_)
    grid = {"alpha": alphas, "l1_ratio": l1_ratios}
    cold = GridSearchCV(SoftmaxRegression(random_state=0, n_jobs=threads), grid, **shared)
    yield "GridSearchCV", cold, lambda m: (m.cv_results_["mean_test_score"], m.best_params_["alpha"])
    solver = "saga" if any(l1_ratios) else "lbfgs"
    for max_iter in (100, 1000):
        peer = LogisticRegressionCV(
            Cs=1 / (n * alphas), l1_ratios=l1_ratios, solver=solver, max_iter=max_iter, random_state=0,
            use_legacy_attributes=False, **shared
        )  # fmt: skip
        yield f"LogisticRegressionCV, max_iter={max_iter}", peer, lambda m: (m.scores_.mean(axis=0), 1 / (n * m.C_))


def race(spec, l1_ratios, threads, chosen):
    problem = problems.load(spec)
    X, y = problem.X(np.float64), problem.y_train
    folds = list(StratifiedKFold(5).split(X, y))
    n = len(folds[0][0])  # a row more or less in the others
    alphas = 1 / (n * np.logspace(-4, 4, 10))
    for name, model, found in contenders(alphas, l1_ratios, n, folds, threads):
        if chosen not in name:
            continue
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(threads):
            warnings.simplefilter("always")
            wall, cpu = time.perf_counter(), time.process_time()
            model.fit(X, y)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        scores, alpha = found(model)
        warned = "yes" if any("converge" in str(w.message).lower() for w in caught) else "no"
        times = f"{wall:.3g} | {cpu:.3g}"
        print(f"| {spec} | {name} | {times} | {np.max(scores):.5f} | {alpha:.2g} | {warned} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    option("--problems", nargs="+", default=["digits", "digits_std"], help="NAME[_std][:ROWS]")
    option("--l1-ratios", nargs="+", type=float, default=[0.0], help="with l1 the peer is saga")
    option("--contenders", default="", help="those whose name contains this")
    option("--threads", type=int, default=1)
    args = parser.parse_args()
    print("| problem | contender | seconds | CPU seconds | best mean score | alpha | warned |")
    print("|---|---|---:|---:|---:|---:|---|")
    for spec in args.problems:
        race(spec, args.l1_ratios, args.threads, args.contenders)


if __name__ == "__main__":
    main()
