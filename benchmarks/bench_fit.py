"""The race: seconds until a fit stands within a share of the null model's loss, (F - F*) / F_null, of the optimum.

Every point of a curve is a whole cold fit, timed from the call to its return; README.md says how the numbers
are taken. Without arguments and without SOFTREG_DATA it runs on digits and takes less than a minute.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections import defaultdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import problems
from contenders import CONTENDERS
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

TARGETS = (1e-2, 1e-3, 1e-4, 1e-6)
FLOOR, CEILING = 1e-8, 30.0  # of the plot; below the floor F* itself and float64 sums are the noise


# --- running ------------------------------------------------------------------------------------------------


def timed_fit(contender, problem, level, threads):
    """One cold fit as a record; repeated to a median of three where it takes less than a second."""
    X, seconds = problem.X(contender.dtype), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while len(seconds) < 3 and (not seconds or seconds[0] < 1):
            start = time.perf_counter()
            coef, intercept = contender.fit(problem, X, level, threads)
            seconds.append(time.perf_counter() - start)
    return {
        "problem": problem.name,
        "contender": contender.name,
        "family": contender.family,
        "interpolate": contender.interpolate,
        "threads": threads,
        "level": level,
        "seconds": statistics.median(seconds),
        "repeats": len(seconds),
        "objective": problems.objective(problem, coef, intercept),
        "accuracy": problems.test_accuracy(problem, coef, intercept),
        "warned": any(issubclass(w.category, ConvergenceWarning) for w in caught),
    }


def run(contender, problem, optimum, threads, budget):
    """Fits of increasing level until the last target is met, the budget is spent, or nothing moves."""
    records, best, still = [], np.inf, 0
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Imports, thread pools and first calls are paid on 100 rows; a loop finds its rate.
        tiny = problems.load("iris")
        if hasattr(contender.fit, "prepare"):
            contender.fit.prepare(tiny, tiny.X(contender.dtype))
            contender.fit.prepare(problem, problem.X(contender.dtype))
        contender.fit(tiny, tiny.X(contender.dtype), contender.levels[0], threads)
    # Time is proportional to a budget; of a tolerance, the next digit is taken to cost as much again.
    growth = [b / a if contender.interpolate else 2 for a, b in pairwise(contender.levels)]
    for level, factor in zip(contender.levels, [*growth, np.inf], strict=True):
        record = timed_fit(contender, problem, level, threads)
        gap = (record["objective"] - optimum) / problem.null_loss
        records.append(record)
        if gap <= min(TARGETS) or factor * record["seconds"] > budget:
            break
        # Three budgets in a row that gain less than 2 %: it diverges, or has met the limits of its precision.
        still = 0 if gap < 0.98 * best or np.isnan(gap) or not contender.interpolate else still + 1
        best = np.fmin(best, gap)
        if still >= 3 and (gap < 1e-2 or record["seconds"] > budget / 4):
            break
    return records


def race(specs, contenders, threads, budget, exact=True):
    """All contenders on all problems: a list of records and the optimum of each problem.

    Where the optimum would take too long to compute (not `exact`), the lowest objective of this race stands for it.
    """
    records, optima = [], {}
    for spec in specs:
        problem = problems.load(spec)
        reference = problems.reference_optimum(problem) if exact else {"objective": np.nan}
        say(f"\n{spec}: {problem.X_train.shape}, K = {problem.n_classes}, F* = {reference['objective']:.12g}")
        first = len(records)
        for contender in contenders:
            reason = contender.refuses(problem)
            if reason:
                say(f"  {contender.name:20} not run: {reason}")
                continue
            try:
                with threadpool_limits(threads):
                    found = run(contender, problem, reference["objective"], threads, budget)
            except Exception as error:  # a contender that breaks must not end the race, only be seen
                say(f"  {contender.name:20} failed: {type(error).__name__}: {error}")
                continue
            records += found
            last = found[-1]
            gap = (last["objective"] - reference["objective"]) / problem.null_loss
            reached = f"{gap:9.1e}" if exact else f"F = {last['objective']:.8g}"
            say(f"  {contender.name:20} {last['seconds']:8.3f} s   {reached}   level {last['level']:g}")
        # F* is the best of all attempts.
        optima[spec] = np.nanmin([reference["objective"]] + [r["objective"] for r in records[first:]])
        for record in records[first:]:
            record["suboptimality"] = (record["objective"] - optima[spec]) / problem.null_loss
    return records, optima


def say(line):
    print(line, file=sys.stderr, flush=True)


# --- reading the records ------------------------------------------------------------------------------------


def time_to(target, curve):
    """(seconds, True) to the target along one contender's fits, or (its last time, False)."""
    curve = sorted(curve, key=lambda r: r["seconds"])
    for i, record in enumerate(curve):
        if record["suboptimality"] <= target:
            before = curve[i - 1]
            if i == 0 or not record["interpolate"] or not np.isfinite(before["suboptimality"]):
                return record["seconds"], True
            x = np.log([max(record["suboptimality"], FLOOR), before["suboptimality"]])
            t = np.log([record["seconds"], before["seconds"]])
            return float(np.exp(np.interp(np.log(target), x, t))), True
    return curve[-1]["seconds"], False


def arrivals(records):
    """{problem: {contender: {target: (seconds, arrived)}}}"""
    curves, out = defaultdict(list), defaultdict(dict)
    for r in records:
        curves[r["problem"], r["contender"]].append(r)
    for (problem, name), curve in curves.items():
        out[problem][name] = {t: time_to(t, curve) for t in TARGETS}
    return out


def fastest_peer(times, target, closest):
    """The first peer to arrive; where none does, the one that came closest, with its last time."""
    peers = {name: t[target] for name, t in times.items() if not name.startswith("softreg")}
    there = {name: seconds for name, (seconds, arrived) in peers.items() if arrived}
    if there:
        name = min(there, key=there.get)
    else:
        name = min(peers, key=lambda peer: closest[peer])
    return name, *peers[name]


def seconds_text(seconds, arrived):
    return f"{'' if arrived else '> '}{seconds:.3g}"


def markdown(records, optima, threads):
    """One table a problem, one table a target."""
    out = [f"Threads: {threads}. Times in seconds; `>`: never arrived, its last time."]
    reached = arrivals(records)
    best = defaultdict(dict)  # the fit of each contender that came closest
    for r in records:
        mine = best[r["problem"]].get(r["contender"])
        if mine is None or not mine["suboptimality"] <= r["suboptimality"]:
            best[r["problem"]][r["contender"]] = r
    heads = [f"to {t:.0e}" for t in TARGETS]
    heads = ["contender", *heads, "closest fit", "objective", "subopt.", "test acc.", "warned"]
    for problem, times in reached.items():
        out += ["", f"### {problem} (F* = {optima[problem]:.10g})", ""]
        out += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 2) + "|---|"]
        for name, t in sorted(times.items(), key=lambda item: [(not a, s) for s, a in item[1].values()]):
            r = best[problem][name]
            cells = [name, *(seconds_text(*t[target]) for target in TARGETS), f"{r['seconds']:.3g}"]
            cells += [f"{r['objective']:.8g}", f"{r['suboptimality']:.1e}", f"{r['accuracy']:.4f}"]
            out.append("| " + " | ".join([*cells, "yes" if r["warned"] else "no"]) + " |")
    if "softreg" not in {r["contender"] for r in records}:
        return "\n".join([*out, "", "softreg did not run: no comparison."])
    for target in TARGETS:
        out += ["", f"### To {target:.0e}: the fastest peer against softreg's default call", ""]
        out += ["| problem | fastest peer | peer | softreg | peer / softreg |", "|---|---|---:|---:|---:|"]
        ratios, missed = [], 0
        for problem, times in reached.items():
            closest = {name: r["suboptimality"] for name, r in best[problem].items()}
            if "softreg" not in times or all(name.startswith("softreg") for name in times):
                continue
            name, *peer = fastest_peer(times, target, closest)
            mine, ratio = times["softreg"][target], "missed"
            if mine[1]:
                ratios.append(peer[0] / mine[0])
                ratio = seconds_text(ratios[-1], peer[1])
            missed += not mine[1]
            out.append(f"| {problem} | {name} | {seconds_text(*peer)} | {seconds_text(*mine)} | {ratio} |")
        mean = f"{statistics.geometric_mean(ratios):.2f}" if ratios else "none"
        out.append(f"| geometric mean where softreg arrived; it missed {missed} | | | | **{mean}** |")
    return "\n".join(out)


# --- the picture --------------------------------------------------------------------------------------------

# Okabe and Ito's palette, safe for colour-blind readers; softreg is the thick vermilion line, the rest grey.
COLOURS = {
    "softreg": "#D55E00", "softreg sgd": "#D55E00", "Cyanure": "#0072B2", "lbfgs": "#009E73",
    "saga": "#CC79A7", "newton-cg": "#56B4E9", "newton-cholesky": "#E69F00", "torch SGD": "#000000",
}  # fmt: skip


def plot(records, path):
    """Time against suboptimality: one panel a problem, one curve a family, named in the margin.

    A curve joins the fits that improve on every faster one of its family, in float32 or float64; the others
    are faint dots, so that a fit which came out worse for trying harder is still seen.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = defaultdict(lambda: defaultdict(list))
    for r in records:
        if np.isfinite(r["suboptimality"]):
            gap = min(max(r["suboptimality"], FLOOR), CEILING)
            panels[r["problem"]][r["family"]].append((r["seconds"], gap))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = {"figsize": (6 * columns, 4.2 * rows + 0.3), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, **size)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, (problem, families) in zip(axes.flat, panels.items(), strict=False):
        ends = []
        for family, points in families.items():
            colour, ours = COLOURS.get(family, "#8a8a8a"), family == "softreg"
            front, rest = _front(points)
            style = {"lw": 3.2, "ms": 7, "zorder": 4} if ours else {"lw": 1.4, "ms": 3.5, "zorder": 3}
            ax.plot(*np.transpose(front), ":o" if family == "softreg sgd" else "-o", color=colour, **style)
            if rest:
                ax.plot(*np.transpose(rest), "o", color=colour, ms=2, alpha=0.35, zorder=2)
            ends.append((front[-1][1], front[-1][0], family, colour, ours))
        for target in TARGETS:
            ax.axhline(target, color="0.85", lw=0.8, zorder=0)
        ax.set(xscale="log", yscale="log", title=problem)
        _label_ends(ax, sorted(ends))
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("seconds of a whole cold fit")
    figure.supylabel("suboptimality (F - F*) / F_null")
    figure.savefig(path, dpi=130)


def _front(points):
    """The points that improve on every faster one, and the others; below the ceiling if any is."""
    points = sorted(points)
    points = [p for p in points if p[1] < CEILING] or points[:1]
    best = np.minimum.accumulate([np.inf] + [gap for _, gap in points])
    front = [p for i, p in enumerate(points) if p[1] < best[i]]
    return front, [p for i, p in enumerate(points) if not p[1] < best[i]]


def _label_ends(ax, ends, spacing=0.06):
    """Names in the right margin, in the order of the ends, at least a line apart, tied to them by a hair."""
    low, high = np.log(ax.get_ylim())
    places = [(np.log(gap) - low) / (high - low) for gap, *_ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + spacing)
    places[-1] = min(places[-1], 1.0)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - spacing)
    for place, (gap, seconds, name, colour, ours) in zip(places, ends, strict=True):
        ax.annotate(
            name, (seconds, gap), (1.04, place), textcoords="axes fraction", color=colour, va="center",
            fontsize=11 if ours else 9, fontweight="bold" if ours else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "alpha": 0.5, "relpos": (0, 0.5)},
        )  # fmt: skip


# --- the command --------------------------------------------------------------------------------------------


def environment(threads):
    packages = {}
    for name in ("softreg", "scikit-learn", "cyanure", "torch", "mlxtend", "numpy", "scipy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {"threads": threads, "machine": platform.platform(), "cpus": os.cpu_count(), "packages": packages}


def main():
    data = "SOFTREG_DATA" in os.environ
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    option = partial(parser.add_argument, metavar="")
    default = ["letter", "fashion_mnist", "news20_tfidf"] if data else ["digits"]
    option("--problems", nargs="+", default=default, help="NAME[_std][:ROWS][@ALPHA]")
    option("--contenders", nargs="+", default=[""], help="those whose name contains one of these words")
    option("--threads", type=int, default=1)
    option("--budget-seconds", type=float, default=30 if data else 0.4, help="begin no fit that takes longer")
    parser.add_argument("--rough", action="store_true", help="take the lowest objective of this race for the optimum")
    option("--json", help="write the raw records to this file")
    option("--plot", help="draw the curves to this PNG")
    option("--replay", nargs="+", help="run nothing: tables and plot from the JSON of earlier runs")
    args = parser.parse_args()
    if args.replay:
        runs = [json.loads(Path(path).read_text()) for path in args.replay]
        records = [record for earlier in runs for record in earlier["records"]]
        optima = {problem: F for earlier in runs for problem, F in earlier["optima"].items()}
        args.threads = runs[0]["environment"]["threads"]
    else:
        chosen = [c for c in CONTENDERS if any(word.lower() in c.name.lower() for word in args.contenders)]
        records, optima = race(args.problems, chosen, args.threads, args.budget_seconds, not args.rough)
    if args.json:
        raw = {"environment": environment(args.threads), "optima": optima, "records": records}
        Path(args.json).write_text(json.dumps(raw, indent=1))
    print(markdown(records, optima, args.threads))
    if args.plot:
        plot(records, args.plot)


if __name__ == "__main__":
    main()
