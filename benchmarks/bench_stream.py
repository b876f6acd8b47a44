"""One pass over a stream, or a few: softreg's partial_fit beside SGDClassifier, river, torch and Vowpal Wabbit.

Rows come in random order, in batches. Every contender gets the same batches of raw features; nothing is tuned, but that
torch gets the best of three rates by test accuracy, which is a head start. Accuracy and log loss are those of the test
rows after the last pass; `seconds` are those of the contender's own calls. The whole fit is SoftmaxRegression().fit.

    python benchmarks/bench_stream.py --problems digits wine --batch 100 --passes 1 5 --plot stream.png
    SOFTREG_DATA=/path/to/npz python benchmarks/bench_stream.py --problems letter shuttle news20_tfidf

README.md says how the numbers are taken.
"""

import argparse
import importlib.util
import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import problems
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits

from softreg import SoftmaxRegression

TORCH_RATES = (1e-3, 1e-2, 1e-1)
TINY = 1e-15  # the least probability that counts in a log loss


class Softreg:
    """SoftmaxRegression().partial_fit at its defaults."""

    def __init__(self, problem, **options):
        self.classes, self.model = np.arange(problem.n_classes), SoftmaxRegression(random_state=0, **options)

    def learn(self, X, y):
        self.model.partial_fit(X, y, classes=self.classes)

    def probabilities(self, X):
        return self.model.predict_proba(X)


class ScikitLearn(Softreg):
    """SGDClassifier: one binary problem for each class, probabilities by normalised sigmoids."""

    def __init__(self, problem):
        self.classes, self.model = np.arange(problem.n_classes), SGDClassifier(loss="log_loss", random_state=0)


class River:
    """river's softmax regression behind its standard scaler, many rows a call where it can."""

    def __init__(self, problem):
        from river import linear_model, preprocessing

        self.K = problem.n_classes
        self.model = preprocessing.StandardScaler() | linear_model.SoftmaxRegression()

    def learn(self, X, y):
        for row, label in zip(X.tolist(), y.tolist(), strict=True):
            self.model.learn_one(dict(enumerate(row)), label)

    def probabilities(self, X):
        P = np.zeros((len(X), self.K))
        for i, row in enumerate(X.tolist()):
            for k, p in self.model.predict_proba_one(dict(enumerate(row))).items():
                P[i, k] = p
        return P


class Torch:
    """nn.Linear and CrossEntropyLoss, a step a batch."""

    def __init__(self, problem, optimizer, rate):
        import torch

        torch.manual_seed(0)
        self.torch, self.linear = torch, torch.nn.Linear(problem.X_train.shape[1], problem.n_classes)
        self.optimizer = getattr(torch.optim, optimizer)(self.linear.parameters(), lr=rate)

    def learn(self, X, y):
        self.optimizer.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.linear(self.torch.from_numpy(X)), self.torch.from_numpy(y))
        loss.backward()
        self.optimizer.step()

    def probabilities(self, X):
        with self.torch.no_grad():
            return self.linear(self.torch.from_numpy(X)).softmax(1).numpy()


class VowpalWabbit:
    """vw --oaa with logistic loss and probabilities, at its defaults (adaptive, normalised, invariant)."""

    def __init__(self, problem):
        from vowpalwabbit import Workspace

        self.K = problem.n_classes
        self.model = Workspace(f"--oaa {self.K} --loss_function=logistic --probabilities --quiet")

    @staticmethod
    def _text(X, i):
        if hasattr(X, "indptr"):
            at = slice(X.indptr[i], X.indptr[i + 1])
            return " ".join(f"{j}:{v:g}" for j, v in zip(X.indices[at], X.data[at], strict=True))
        return " ".join(f"{j}:{v:g}" for j, v in enumerate(X[i]) if v)

    def learn(self, X, y):
        for i in range(X.shape[0]):
            self.model.learn(f"{y[i] + 1} | {self._text(X, i)}")

    def probabilities(self, X):
        P = np.array([list(self.model.predict(f"| {self._text(X, i)}")) for i in range(X.shape[0])])
        return P / np.maximum(P.sum(axis=1, keepdims=True), TINY)


def contenders(problem):
    """Return (name, makers): the best of several makers counts."""
    found = [("softreg", [partial(Softreg, problem)]), ("SGDClassifier", [partial(ScikitLearn, problem)])]
    if _installed("river") and not problem.is_sparse:
        found.append(("river", [partial(River, problem)]))
    if _installed("torch") and not problem.is_sparse:
        for optimizer in ("SGD", "Adam"):
            makers = [partial(Torch, problem, optimizer, rate) for rate in TORCH_RATES]
            found.append((f"torch {optimizer}, best of 3", makers))
    if _installed("vowpalwabbit"):
        found.append(("Vowpal Wabbit", [partial(VowpalWabbit, problem)]))
    return found


def _installed(module):
    return importlib.util.find_spec(module) is not None


def run(make, problem, batch, passes, budget):
    """Return accuracy, log loss and seconds after `passes`, and progressive accuracy over the first pass."""
    X, y, n = problem.X_train, problem.y_train, len(problem.y_train)
    contender, seconds, curve, rng = make(), 0.0, [], np.random.default_rng(1)
    for epoch in range(passes):
        order = rng.permutation(n)
        for start in range(0, n, batch):
            rows = order[start : start + batch]
            part, labels = X[rows], y[rows]
            if epoch == 0 and start:
                curve.append((start, np.mean(contender.probabilities(part).argmax(axis=1) == labels), len(rows)))
            began = time.perf_counter()
            contender.learn(part, labels)
            seconds += time.perf_counter() - began
            if seconds > budget:
                return None
    P = np.clip(contender.probabilities(problem.X_test), TINY, 1)
    accuracy = np.mean(P.argmax(axis=1) == problem.y_test)
    loss = log_loss(problem.y_test, P / P.sum(axis=1, keepdims=True), labels=np.arange(problem.n_classes))
    return {"accuracy": accuracy, "log_loss": loss, "seconds": seconds, "rows_per_second": passes * n / seconds,
            "curve": curve}  # fmt: skip


def whole_fit(problem):
    """Return the same for SoftmaxRegression().fit."""
    began = time.perf_counter()
    model = SoftmaxRegression(random_state=0).fit(problem.X_train, problem.y_train)
    seconds = time.perf_counter() - began
    P = np.clip(model.predict_proba(problem.X_test), TINY, 1)
    loss = log_loss(problem.y_test, P / P.sum(axis=1, keepdims=True), labels=np.arange(problem.n_classes))
    accuracy = np.mean(P.argmax(axis=1) == problem.y_test)
    return {"accuracy": accuracy, "log_loss": loss, "seconds": seconds, "rows_per_second": np.nan, "curve": []}


def race(spec, batches, passes, budget, chosen):
    """Print a row for each contender; return all results."""
    problem, results = problems.load(spec), []

    def show(name, batch, count, result):
        row = {"problem": spec, "contender": name, "batch": batch, "passes": count, **result}
        results.append(row)
        print(
            f"| {spec} | {name} | {batch} | {count} | {result['accuracy']:.3f} | {result['log_loss']:.3f} | "
            f"{result['seconds']:.3g} | {result['rows_per_second']:.3g} |", flush=True,
        )  # fmt: skip

    show("whole fit", "-", "-", whole_fit(problem))
    for batch in batches:
        for count in passes:
            for name, makers in contenders(problem):
                if chosen and not any(word in name for word in chosen):
                    continue
                tried = [result for make in makers if (result := run(make, problem, batch, count, budget))]
                if tried:
                    show(name, batch, count, max(tried, key=lambda result: result["accuracy"]))
                else:
                    print(f"| {spec} | {name} | {batch} | {count} | over {budget:g} s | | | |", flush=True)
    return results


def plot(results, path):
    """Draw progressive accuracy against rows, a panel for each problem, from the largest batches of one pass."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in results))
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["contender"] for row in results))}
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.4), squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], names, strict=True):
        own = [row for row in results if row["problem"] == name]
        batch = max(row["batch"] for row in own if row["curve"])
        for row in own:
            if row["contender"] == "whole fit":
                ax.axhline(row["accuracy"], color="0.5", linestyle=":", label="whole fit, on test rows")
            elif row["batch"] == batch and row["passes"] == min(r["passes"] for r in own if r["curve"]):
                rows, accuracy, count = np.array(row["curve"], float).T
                smooth = np.cumsum(accuracy * count) / np.cumsum(count)
                width = 2.5 if row["contender"] == "softreg" else 1
                ax.plot(rows, smooth, label=row["contender"], color=colours[row["contender"]], linewidth=width)
        ax.set(title=f"{name}, batches of {batch}", xlabel="rows", xscale="log")
    axes[0][0].set_ylabel("accuracy so far, before learning")
    labels = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    option("--problems", nargs="+", default=["digits", "wine", "breast_cancer"], help="NAME[_std][:ROWS]")
    option("--batch", nargs="+", type=int, default=[100], help="rows a call")
    option("--passes", nargs="+", type=int, default=[1], help="passes over the rows")
    option("--contenders", nargs="+", default=[], help="words in the names of those that run; all without")
    option("--budget-seconds", type=float, default=120.0, help="for one contender")
    option("--json", type=Path, help="file for the results")
    option("--plot", type=Path, help="file for the picture of progressive validation")
    args = parser.parse_args()
    print("| problem | contender | batch | passes | accuracy | log loss | seconds | rows/s |")
    print("|---" * 8 + "|")
    results = []
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        for spec in args.problems:
            results += race(spec, args.batch, args.passes, args.budget_seconds, args.contenders)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, default=float))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
