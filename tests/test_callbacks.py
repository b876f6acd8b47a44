"""What a fit tells those who watch it: scikit-learn's callbacks, their stop, and the lines of verbose=1."""

import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from shared import both_classes, unfinished
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softreg import SoftmaxRegression
from softreg._callbacks import duration

ProgressBar, ScoringMonitor = (
    getattr(pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9"), name)
    for name in ("ProgressBar", "ScoringMonitor")
)

# All solvers; max_iter so that none has converged before the third record.
SOLVERS = {
    "auto": {},
    "newton": {"solver": "newton"},
    "sgd": {"solver": "sgd", "max_iter": 20},
    "proximal": {"l1_ratio": 0.5},
}
solvers = pytest.mark.parametrize("options", SOLVERS.values(), ids=SOLVERS)
jobs = pytest.mark.parametrize("n_jobs", [1, 2])


def data(classes=3, n=90, d=5):
    """Labels drawn from a softmax model, so that no W separates them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    return X, (X @ rng.normal(size=(d, classes)) + rng.gumbel(size=(n, classes))).argmax(axis=1)


def model(**options):
    return SoftmaxRegression(**{"alpha": 1e-3, "tol": 1e-10, "random_state": 0, **options})


class Diary:
    """A callback that notes what it is told; it stops a fit after `stop` iterations, or fails in a hook."""

    def __init__(self, stop=None, fail=None):
        self.stop, self.fail, self.entries = stop, fail, []

    def note(self, hook, context, **told):
        self.entries.append({"hook": hook, "task": context.task_name, "context": context, **told})
        if self.fail == (hook, context.task_name):
            raise RuntimeError("the callback failed")

    def setup(self, estimator, context):
        self.note("setup", context)

    def on_fit_task_begin(self, estimator, context, *, fitted_estimator=None):
        self.note("begin", context, fitted=fitted_estimator)

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None):
        self.note("end", context, X=X, y=y, metadata=metadata, fitted=fitted_estimator)
        return context.parent is not None and context.task_id + 1 == self.stop

    def teardown(self, estimator, context):
        self.note("teardown", context)

    def of(self, hook):
        return [entry for entry in self.entries if entry["hook"] == hook]


class Everywhere(Diary):
    """One that meta-estimators hand on."""

    max_propagation_depth = None


# --- tasks --------------------------------------------------------------------------------------------------


@unfinished
@solvers
def test_a_fit_is_a_task_and_each_iteration_one_in_it(options):
    diary = Diary()
    fitted = model(**options).set_callbacks(diary).fit(*data())
    unit = "epoch" if options.get("solver") == "sgd" else "iteration"
    told = [(entry["hook"], entry["task"]) for entry in diary.entries]
    middle = [("begin", unit), ("end", unit)] * fitted.n_iter_
    assert fitted.n_iter_ > 2
    assert told == [("setup", "fit"), ("begin", "fit"), *middle, ("end", "fit"), ("teardown", "fit")]
    assert diary.entries[0]["context"].max_subtasks == fitted.max_iter
    assert not [name for name in vars(fitted) if "callback" in name and name != "_skl_callbacks"]


@unfinished
@solvers
def test_callbacks_change_nothing(options):
    watched = model(**options).set_callbacks(Diary()).fit(*data())
    alone = model(**options).fit(*data())
    assert np.array_equal(watched.coef_, alone.coef_)
    assert np.array_equal(watched.intercept_, alone.intercept_)


def test_a_callback_gets_the_data_as_they_were_given():
    X, y = data()
    X, weight = pd.DataFrame(X).rename(columns=str), np.ones(len(y))
    diary = Diary()
    model(early_stopping=True, solver="sgd").set_callbacks(diary).fit(X, y, sample_weight=weight)
    for entry in diary.of("end"):
        assert entry["X"] is X and entry["y"] is y and entry["metadata"]["sample_weight"] is weight


# --- the fit ends where a callback says so --------------------------------------------------------------------


@solvers
@both_classes
@pytest.mark.parametrize("early_stopping", [False, True])
def test_what_a_callback_sees_is_what_it_gets_if_it_stops_there(options, classes, early_stopping):
    X, y = data(classes)
    options = {**options, "early_stopping": early_stopping}
    diary = Diary(stop=3)
    stopped = model(**options).set_callbacks(diary).fit(X, y)  # and no ConvergenceWarning: it was asked for
    assert stopped.stopped_on_ == "callback"
    assert stopped.n_iter_ == 3
    assert {len(column) for column in stopped.history_.values()} == {3}
    *iterations, last = (entry["fitted"] for entry in diary.of("end"))
    assert stopped.coef_.shape == (1 if classes == 2 else 3, X.shape[1])
    for seen in (iterations[2], last):
        for name in ("coef_", "intercept_", "classes_"):
            assert np.array_equal(getattr(seen, name), getattr(stopped, name))
        assert np.array_equal(seen.predict_proba(X), stopped.predict_proba(X))
    if not early_stopping:  # which may have found the first best
        assert not np.array_equal(iterations[0].coef_, iterations[2].coef_)  # copies, not views of what goes on


@unfinished
@solvers
@both_classes
@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_iteration_begins_where_the_last_one_ended(options, classes, early_stopping):
    """As in LogisticRegression: `fitted_estimator` is None where the fit begins, then the state so far."""
    X, y = data(classes)
    rng, rows = np.random.default_rng(1), 1 if classes == 2 else classes
    start = rng.normal(size=(rows, X.shape[1])), rng.normal(size=rows)
    if classes > 2:  # softmax does not see what all classes share, and a solver may take it away
        start = tuple(values - values.mean(axis=0) for values in start)
    diary = Diary()
    fitted = model(**options, early_stopping=early_stopping).set_callbacks(diary)
    fitted.fit(X, y, coef_init=start[0], intercept_init=start[1])
    root, *begun = (entry["fitted"] for entry in diary.of("begin"))
    *ended, _ = (entry["fitted"] for entry in diary.of("end"))
    assert root is None
    assert len(begun) == len(ended) > 2
    for seen, given in zip((begun[0].coef_, begun[0].intercept_), start, strict=True):
        np.testing.assert_allclose(seen, given, rtol=1e-12, atol=1e-15)  # less a mean of zero, which rounding is in
    for before, after in zip(ended, begun[1:], strict=False):
        assert np.array_equal(before.coef_, after.coef_)
        assert np.array_equal(before.intercept_, after.intercept_)
    assert np.array_equal(begun[1].predict_proba(X), ended[0].predict_proba(X))


@jobs
def test_a_callback_stops_the_fits_of_a_search(n_jobs):
    class Stop:  # local, so that it reaches the workers by value
        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...
        def on_fit_task_end(self, estimator, context):
            return context.task_id == 1

    search = GridSearchCV(model().set_callbacks(Stop()), {"alpha": [1e-3, 1e-2]}, cv=2, n_jobs=n_jobs)
    best = search.fit(*data()).best_estimator_  # a fit in a worker that went on would warn there, not here
    assert (best.stopped_on_, best.n_iter_) == ("callback", 2)


# --- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", [("setup", "fit"), ("begin", "fit"), ("begin", "iteration"), ("end", "iteration"),
                                  ("end", "fit")])  # fmt: skip
@pytest.mark.parametrize("before", [False, True])
def test_an_error_in_a_callback_leaves_the_estimator_as_it_was(hook, before):
    estimator = model(alpha=1e-2, tol=1e-3)
    if before:
        estimator.fit(*data(2))
    diary = Diary(fail=hook)
    state = vars(estimator.set_callbacks(diary)).copy()
    with pytest.raises(RuntimeError, match="the callback failed"):
        estimator.fit(*data())
    assert vars(estimator).keys() == state.keys()
    assert all(vars(estimator)[name] is value for name, value in state.items())
    assert len(diary.of("teardown")) == 1


def test_bad_data_tear_callbacks_down():
    diary = Diary()
    estimator = model().set_callbacks(diary)
    state = vars(estimator).copy()
    with pytest.raises(ValueError, match="inconsistent"):
        estimator.fit(data()[0], [0, 1])
    assert [entry["hook"] for entry in diary.entries] == ["setup", "teardown"]
    assert vars(estimator) == state


def test_only_callbacks_can_be_set():
    with pytest.raises(TypeError, match="FitCallback"):
        SoftmaxRegression().set_callbacks(print)


# --- scikit-learn's own, alone and in meta-estimators -----------------------------------------------------------


def test_scoring_monitor_scores_every_iteration():
    """An iteration of Newton's method does not know max_iter, so fits that end sooner are what it must have seen."""
    X, y = data()
    monitor = ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    fitted = model(solver="newton").set_callbacks(monitor).fit(X, y)
    root, *rows = monitor.get_logs().data
    assert len(rows) == fitted.n_iter_
    assert root["accuracy"] == fitted.score(X, y)
    for row in rows[:3]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            sooner = model(solver="newton", max_iter=row["task_id"] + 1).fit(X, y)
        assert row["accuracy"] == sooner.score(X, y)


@unfinished
def test_scoring_monitor_takes_data_frames_and_weights():
    X, y = data(2)
    monitor = ScoringMonitor(scoring="accuracy")
    X = pd.DataFrame(X, columns=list("abcde"))  # as an array, its rows would be scored with a warning
    fitted = model(max_iter=2).set_callbacks(monitor).fit(X, y, sample_weight=np.arange(1.0, len(y) + 1))
    assert monitor.get_logs().data[0]["accuracy"] == fitted.score(X, y, np.arange(1.0, len(y) + 1))


@unfinished
@jobs
@pytest.mark.parametrize("pipeline", [False, True])
def test_scoring_monitor_in_cross_validation(n_jobs, pipeline):
    X, y = data()
    monitor = ScoringMonitor(scoring="accuracy")
    estimator = model(solver="sgd", max_iter=3).set_callbacks(monitor)
    estimator = make_pipeline(StandardScaler(), estimator) if pipeline else estimator
    cross_val_score(estimator, X, y, cv=2, n_jobs=n_jobs)
    assert [row["task_name"] for log in monitor.get_logs(select="all") for row in log.data].count("epoch") == 2 * 3

    monitor = ScoringMonitor(scoring="accuracy")
    search = GridSearchCV(model(solver="sgd", max_iter=3).set_callbacks(monitor), {"alpha": [0.1, 1.0]}, cv=2,
                          n_jobs=n_jobs).fit(X, y)  # fmt: skip
    rows = monitor.get_logs().data
    assert [row["task_name"] for row in rows].count("epoch") == (2 * 2 + 1) * 3
    (refit,) = (row for row in rows if row["task_id_path"] == (0, 1))
    assert refit["accuracy"] == search.score(X, y)


@unfinished
@pytest.mark.parametrize("meta", [lambda m: make_pipeline(StandardScaler(), m), lambda m: GridSearchCV(m, {}, cv=2)])
def test_callbacks_come_down_from_meta_estimators(meta):
    diary = Everywhere()
    outer = meta(model(solver="sgd", max_iter=3)).set_callbacks(diary).fit(*data())
    fits = 3 if isinstance(outer, GridSearchCV) else 1
    assert [entry["task"] for entry in diary.of("end")].count("epoch") == 3 * fits
    assert len(diary.of("setup")) == len(diary.of("teardown")) == 1


@pytest.mark.parametrize("options", [{}, {"solver": "sgd", "max_iter": 3}])
@unfinished
def test_progress_bar(options, capsys):
    pytest.importorskip("rich")
    bar = ProgressBar()
    model(**options).set_callbacks(bar).fit(*data())
    GridSearchCV(model(**options), {"alpha": [0.1]}, cv=2).set_callbacks(ProgressBar(None)).fit(*data())
    out = capsys.readouterr().out
    assert len(re.findall(r"SoftmaxRegression - fit", out)) == 1 + 3
    assert not re.findall(r"\b\d?\d%", out)  # also where the fit ended before max_iter, the bar is full


def test_clone_and_pickle():
    X, y = data()
    monitor = ScoringMonitor(scoring="accuracy")
    estimator = model().set_callbacks(monitor)
    assert clone(estimator)._skl_callbacks == [monitor]
    again = pickle.loads(pickle.dumps(estimator.fit(X, y)))
    assert np.array_equal(again.predict_proba(X), estimator.predict_proba(X))
    (copied,) = again.fit(X, y)._skl_callbacks
    assert len(copied.get_logs(select="all")) == 2  # it went on from the first fit's
    assert not hasattr(clone(estimator.set_callbacks()), "_skl_callbacks")


# --- streams ----------------------------------------------------------------------------------------------------


def test_each_call_of_partial_fit_is_a_task():
    X, y = data()
    diary = Diary()
    stream = model().set_callbacks(diary)
    for rows in np.array_split(np.arange(len(y)), 3):
        stream.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
        last = diary.of("end")[-1]
        assert len(last["X"]) == len(rows)
        assert np.array_equal(last["fitted"].coef_, stream.coef_)
    assert [entry["hook"] for entry in diary.entries] == ["setup", "begin", "end", "teardown"] * 3

    state = vars(stream.set_callbacks(Diary(fail=("end", "fit")))).copy()
    with pytest.raises(RuntimeError, match="the callback failed"):
        stream.partial_fit(X, y)
    assert vars(stream).keys() == state.keys()
    assert all(vars(stream)[name] is value for name, value in state.items())


# --- verbose ----------------------------------------------------------------------------------------------------

LINE = re.compile(
    r"(?P<unit>\w+) +(?P<done>\d+)/(?P<of>\d+)  loss (?P<loss>\S+) +"
    r"gap (?P<gap>\S+)(?: of the null loss, (?P<source>\w+))? +"
    r"(?:held-out accuracy +(?P<accuracy>\S+)% +)?(?P<rate>[\d,]+) rows/s  at most +(?P<left>\S+) (?:s|min|h) left"
)


@unfinished
@solvers
@pytest.mark.parametrize("early_stopping", [False, True])
def test_lines(options, early_stopping, capsys):
    fitted = model(verbose=1, early_stopping=early_stopping, **options).fit(*data())
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == fitted.n_iter_
    assert len({len(line) for line in printed}) == 1  # aligned
    lines = [LINE.fullmatch(line) for line in printed]
    history = fitted.history_
    for i, line in enumerate(lines):
        assert line["unit"] == ("epoch" if options.get("solver") == "sgd" else "iteration")
        assert int(line["done"]) == i + 1
        assert int(line["of"]) == fitted.max_iter
        assert line["loss"] == f"{history['loss'][i]:.6g}"
        gaps = {"proven": history["gap"][i], "estimated": history["gap_estimate"][i]}
        stopped = i == len(lines) - 1 and fitted.stopped_on_ == "early_stopping"  # the certificate comes after the line
        if np.isfinite(list(gaps.values())).any() and not (stopped and line["gap"] == "-"):
            assert line["gap"] == f"{gaps[line['source']]:.1e}"
            assert gaps[line["source"]] == np.nanmin(list(gaps.values()))
        else:
            assert line["gap"] == "-"
        # to half of the last digit that is printed
        assert not early_stopping or float(line["accuracy"]) == pytest.approx(
            100 * history["validation_score"][i], abs=0.05 + 1e-9
        )
        rows = (81 if early_stopping else 90) * history["passes"][i]
        rate = int(line["rate"].replace(",", ""))
        assert rate >= rows / history["time"][i] - 0.5  # more, as the time for printing does not count
        assert i or rate == pytest.approx(rows / history["time"][i], abs=0.5)
    assert float(lines[-1]["left"]) == 0 or fitted.n_iter_ < fitted.max_iter


@unfinished
def test_a_gap_that_is_not_there_is_a_dash(capsys):
    model(solver="sgd", alpha=0, max_iter=3, verbose=1).fit(*data())
    assert capsys.readouterr().out.count("gap - ") == 2  # at the end the loss itself is one


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.46, "9.5 s"), (99, "99.0 s"), (150, "2.5 min"), (5400, "90.0 min"), (9000, "2.5 h"),
     (1e6, "277.8 h")],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text
