"""partial_fit over batches of any size and scale; data on disk that do not fit in memory."""

import copy
import io
import pickle
import subprocess
import sys
import tracemalloc

import joblib
import numpy as np
import pytest
from scipy import sparse
from shared import forms, softmax_data
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from softreg import SoftmaxRegression

K, D, N = 3, 5, 240


def data(classes=K):
    return softmax_data(N, D, classes)


def streamed(model, X, y, sizes, **options):
    """The rows in order, in batches of these sizes."""
    for part in np.split(np.arange(X.shape[0]), np.cumsum(sizes)[:-1]):
        model.partial_fit(X[part], y[part], classes=np.arange(max(y) + 1), **options)
    return model


def same(a, b, rtol=0.0):
    np.testing.assert_allclose(a.coef_, b.coef_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(a.intercept_, b.intercept_, rtol=rtol, atol=rtol)


# --- what is kept between calls -----------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("soft", [False, True])
def test_how_a_stream_is_cut_does_not_matter(form, soft):
    """Steps depend on the rows alone: one call, one row a call and anything between are the same to the last bit."""
    X, y = data()
    y = np.eye(K)[y] * 0.8 + 0.2 / K if soft else y
    models = []
    for sizes in ([N], [8, 16, 216], [1] * N):
        model = SoftmaxRegression(shuffle=False)
        for part in np.split(np.arange(N), np.cumsum(sizes)[:-1]):
            model.partial_fit(form(X[part]), y[part], classes=np.arange(K))
        models.append(model)
    same(models[0], models[1])
    same(models[0], models[2])
    assert [model.n_iter_ for model in models] == [1, 3, N]


def through_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


def through_skops(model):
    """The one type that skops asks to trust is the estimator's own."""
    skops_io = pytest.importorskip("skops.io")
    data = skops_io.dumps(model)
    assert skops_io.get_untrusted_types(data=data) == ["softreg._estimator.SoftmaxRegression"]
    return skops_io.loads(data, trusted=["softreg._estimator.SoftmaxRegression"])


@forms
@pytest.mark.parametrize(
    "copied", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy, through_joblib, through_skops]
)
def test_goes_on_bit_for_bit(form, copied):
    X, y = data()
    model = SoftmaxRegression(random_state=0)
    model.partial_fit(form(X[:100]), y[:100], classes=np.arange(K))
    other = copied(model)
    same(model.partial_fit(form(X[100:]), y[100:]), other.partial_fit(form(X[100:]), y[100:]))
    assert np.array_equal(model.stream_history_["loss"], other.stream_history_["loss"])
    assert not hasattr(clone(model), "coef_")


@forms
def test_the_state_in_a_pickle_is_plain(form):
    """Arrays, numbers and strings, which a later version can read whatever its classes are called."""

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        return value is None or isinstance(value, (bool, int, float, str, np.ndarray, np.number))

    X, y = data()
    state = SoftmaxRegression().partial_fit(form(X), y, classes=np.arange(K)).__getstate__()
    assert plain(state["_stream"])


@forms
def test_a_state_of_another_format_is_refused(form):
    X, y = data()
    state = SoftmaxRegression().partial_fit(form(X), y, classes=np.arange(K)).__getstate__()
    state["_stream"]["format"] = 99
    with pytest.raises(ValueError, match="format 99"):
        SoftmaxRegression().__setstate__(state)


@forms
def test_a_state_without_a_setting(form):
    """A setting that came later has a default; without one that is needed, the error names it."""
    X, y = data()
    model = SoftmaxRegression(random_state=0).partial_fit(form(X), y, classes=np.arange(K))
    older, broken, empty = (pickle.loads(pickle.dumps(model.__getstate__())) for _ in range(3))
    for name in ("precondition", "has_l1", "planned_rows"):
        del older["_stream"]["settings"][name]
    other = SoftmaxRegression()
    other.__setstate__(older)
    same(model.partial_fit(form(X), y), other.partial_fit(form(X), y))
    del broken["_stream"]["settings"]["n_classes"]
    with pytest.raises(ValueError, match="no 'n_classes'"):
        SoftmaxRegression().__setstate__(broken)
    for part in ("format", "optimizer"):
        del empty["_stream"][part]
        with pytest.raises(ValueError, match="format None"):
            SoftmaxRegression().__setstate__(empty)


@forms
def test_parameters_set_in_between_count(form):
    X, y = data()
    model = SoftmaxRegression(random_state=0).partial_fit(form(X), y, classes=np.arange(K))
    copies = [copy.deepcopy(model) for _ in range(3)]
    for other, change in zip(copies, [{}, {"alpha": 0.1}, {"label_smoothing": 0.3}], strict=True):
        other.set_params(**change).partial_fit(form(X), y)
    assert len({other.coef_.tobytes() for other in copies}) == 3
    with pytest.raises(ValueError, match="fit_intercept=False differs"):
        model.set_params(fit_intercept=False).partial_fit(form(X), y)


@forms
def test_a_stream_goes_on_from_a_fit(form):
    """A few rows do not undo what a fit has learnt: the loss stays within 5 % of the optimum's."""
    X, y = data()
    model = SoftmaxRegression(alpha=1e-2, random_state=0).fit(form(X), y)
    before = log_loss(y, model.predict_proba(form(X)))
    model.partial_fit(form(X[:20]), y[:20])
    assert log_loss(y, model.predict_proba(form(X))) < 1.05 * before
    assert not hasattr(model.fit(form(X), y), "stream_history_")


@forms
def test_coefficients_are_computed_when_they_are_read(form):
    """They are d K numbers, and a batch of sparse rows far fewer."""
    X, y = data()
    model = SoftmaxRegression().partial_fit(form(X[:100]), y[:100], classes=np.arange(K))
    model.partial_fit(form(X[100:]), y[100:])
    assert not {"coef_", "intercept_", "stream_history_"} & vars(model).keys()
    assert model.coef_.shape == (K, D) and "coef_" in vars(model)
    with pytest.raises(AttributeError, match="no attribute 'coefs_'"):
        _ = model.coefs_


# --- progressive validation ---------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("weighted", [False, True])
def test_history_is_what_was_predicted_before(form, weighted):
    """One row a call: its loss and accuracy are those of the model as it stood. Sums of 5 products, in another order:
    some roundings."""
    X, y = data()
    s = np.random.default_rng(1).integers(1, 4, N).astype(float) if weighted else None
    model, losses, right = SoftmaxRegression(), [], []
    for i in range(60):
        row, label = form(X[i : i + 1]), y[i : i + 1]
        model.partial_fit(row[:0], label[:0], classes=np.arange(K))
        losses.append(log_loss(label, model.predict_proba(row), labels=np.arange(K)))
        right.append(model.predict(row)[0] == label[0])
        model.partial_fit(row, label, sample_weight=None if s is None else s[i : i + 1])
    history = model.stream_history_
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-9, atol=1e-12)
    assert np.array_equal(history["accuracy"][1:], right[1:])  # the first row meets a tie
    assert np.array_equal(history["rows"], np.arange(1, 61))


def test_history_is_weighted_by_rows():
    X, y = data()
    s = np.zeros(N)
    s[:40] = 1
    model = SoftmaxRegression(shuffle=False).partial_fit(X[:40], y[:40], classes=np.arange(K))
    weighted = SoftmaxRegression(shuffle=False).partial_fit(X, y, classes=np.arange(K), sample_weight=s)
    assert weighted.stream_history_["loss"] == pytest.approx(model.stream_history_["loss"], rel=1e-12)  # 40 additions
    assert weighted.stream_history_["accuracy"] == pytest.approx(model.stream_history_["accuracy"], rel=1e-12)


def test_verbose_prints_a_line_a_batch(capsys):
    X, y = data()
    streamed(SoftmaxRegression(verbose=1), X, y, [100, 140])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("batch 2  rows 240  loss") and "accuracy" in lines[1]


# --- batches of every kind ----------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("classes", [2, K])
def test_empty_batches(form, classes):
    """First, in between and last: nothing changes."""
    X, y = data(classes)
    model, other = (SoftmaxRegression(random_state=0) for _ in range(2))
    nothing = form(np.zeros((0, D)))
    other.partial_fit(nothing, [], classes=np.arange(classes))
    assert other.n_iter_ == 0
    assert np.array_equal(other.predict_proba(X[:2]), np.full((2, classes), 1 / classes))
    for part in np.array_split(np.arange(N), 3):
        model.partial_fit(form(X[part]), y[part], classes=np.arange(classes))
        other.partial_fit(form(X[part]), y[part])
        other.partial_fit(nothing, y[:0], sample_weight=[])
        other.partial_fit(nothing, np.zeros((0, classes)))
    same(model, other)
    assert other.n_iter_ == 3


def test_empty_batches_are_checked():
    model = SoftmaxRegression()
    with pytest.raises(ValueError, match="classes must be given"):
        model.partial_fit(np.zeros((0, D)), [])
    model.partial_fit(np.zeros((0, D)), [], classes=["oak", "ash"])
    assert model.classes_.tolist() == ["ash", "oak"]
    with pytest.raises(ValueError, match="X has 4 features, but SoftmaxRegression is expecting 5"):
        model.partial_fit(np.zeros((0, 4)), [])
    with pytest.raises(ValueError, match=r"\['ash', 'elm'\] differ .*\['ash', 'oak'\]"):
        model.partial_fit(np.zeros((0, D)), [], classes=["ash", "elm"])
    with pytest.raises(ValueError, match="sample_weight"):
        model.partial_fit(np.zeros((0, D)), [], sample_weight=[1.0])
    with pytest.raises(ValueError, match=r"\['elm'\].*classes \['ash', 'oak'\]"):
        model.partial_fit(np.ones((1, D)), ["elm"])
    with pytest.raises(ValueError, match="0 sample"):
        model.fit(np.zeros((0, D)), [])
    with pytest.raises(NotFittedError):
        SoftmaxRegression().predict(np.zeros((1, D)))


def test_classes_in_any_order():
    X, y = data()
    names = np.array(["ash", "birch", "oak"])[y]
    a = SoftmaxRegression(random_state=0).partial_fit(X, names, classes=["oak", "ash", "birch"])
    b = SoftmaxRegression(random_state=0).partial_fit(X, names, classes=["ash", "birch", "oak"])
    same(a, b)
    assert a.classes_.tolist() == ["ash", "birch", "oak"]
    same(a, SoftmaxRegression(random_state=0).partial_fit(X, y, classes=K))  # a number stands for 0 .. K - 1


def test_sparse_and_dense_batches_in_one_stream():
    X, y = data()
    dense, mixed = (SoftmaxRegression(random_state=0) for _ in range(2))
    for i, part in enumerate(np.array_split(np.arange(N), 6)):
        dense.partial_fit(X[part], y[part], classes=np.arange(K))
        mixed.partial_fit(sparse.csr_array(X[part]) if i % 2 else X[part], y[part], classes=np.arange(K))
    same(dense, mixed)
    first, mixed = (SoftmaxRegression(random_state=0) for _ in range(2))
    for i, part in enumerate(np.array_split(np.arange(N), 6)):
        first.partial_fit(sparse.csr_array(X[part]), y[part], classes=np.arange(K))
        mixed.partial_fit(X[part] if i % 2 else sparse.csr_array(X[part]), y[part], classes=np.arange(K))
    same(first, mixed)


@forms
@pytest.mark.parametrize("first", [np.float32, np.float64])
def test_the_first_batch_decides_the_dtype(form, first):
    X, y = data()
    model = SoftmaxRegression(random_state=0).partial_fit(form(X.astype(first)), y, classes=np.arange(K))
    for dtype in (np.float32, np.float64):
        model.partial_fit(form(X.astype(dtype)), y)
    assert model.coef_.dtype == first


# --- how well a stream learns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("first", [1, 5])
def test_a_first_batch_that_is_like_no_other(scale, first):
    """A few rows of another scale come first. A rate chosen for small ones alone would be 1e6 times too high, and
    what they taught would stand for long. Warnings are errors here."""
    X, y = data()
    X = np.vstack([scale * X[:first], X, X])
    y = np.r_[y[:first], y, y]
    model = streamed(SoftmaxRegression(random_state=0), X, y, [first, *[20] * (2 * N // 20)])
    assert np.isfinite(model.coef_).all()
    if scale < 1:  # a first batch 1e3 times too large leaves rates that are too low for what comes, for good
        assert log_loss(y, model.predict_proba(X)) < np.log(K)


@pytest.mark.parametrize("size", [10, 50, 200])
@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
def test_streams_learn_in_batches_of_any_size(load, size):
    """One pass over standardised rows gets the log loss of held-out rows under that of scikit-learn's SGDClassifier in
    the same batches, or within 0.25 where a stream of 124 rows is a single batch or three."""
    X, y = load(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0, stratify=y)
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    losses = []
    for model in (SoftmaxRegression(random_state=0), SGDClassifier(loss="log_loss", random_state=0)):
        for start in range(0, len(X), size):
            model.partial_fit(X[start : start + size], y[start : start + size], classes=np.unique(y))
        losses.append(log_loss(y_test, model.predict_proba(X_test)))
    assert losses[0] < (losses[1] if len(X) > 200 else 0.6)


def test_a_long_stream_of_small_batches_goes_on_learning():
    """2,000 calls of 5 rows and 50 calls of 200 are the same rows, and about as good in the end: what counts for the
    rate is rows. A rate that fell with the calls would be 1 / sqrt(2000) in the end, not 1 / sqrt(10)."""
    rng = np.random.default_rng(0)
    X, W = rng.normal(size=(10_000, D)), rng.normal(size=(D, K))
    y = (X @ W + rng.gumbel(size=(10_000, K))).argmax(axis=1)
    losses = []
    for size in (5, 200):
        model = streamed(SoftmaxRegression(random_state=0), X, y, [size] * (10_000 // size))
        losses.append(log_loss(y, model.predict_proba(X)))
    best = log_loss(y, SoftmaxRegression().fit(X, y).predict_proba(X))
    assert max(losses) < 1.1 * best


SPOILT = {
    "mixed units": lambda X: X * np.logspace(-6, 6, X.shape[1]),
    "shifted": lambda X: X + 1e6,
    "constant": lambda X: np.column_stack([X, np.full(len(X), 7.3)]),
    "duplicated": lambda X: np.hstack([X, X]),
    "collinear": lambda X: np.column_stack([X, X @ np.arange(1.0, X.shape[1] + 1)]),
}


@forms
@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("name", SPOILT)
def test_raw_features_of_any_kind(form, precondition, name):
    """One pass over 1,600 rows: within .03 of the accuracy of a whole fit on the 400 others."""
    X, y = softmax_data(2000, D, K)
    X = SPOILT[name](X)
    model = SoftmaxRegression(precondition=precondition, random_state=0)
    for start in range(0, 1600, 100):
        model.partial_fit(form(X[start : start + 100]), y[start : start + 100], classes=K)
    fit = SoftmaxRegression().fit(X[:1600], y[:1600])
    assert model.score(form(X[1600:]), y[1600:]) > fit.score(X[1600:], y[1600:]) - 0.03


@pytest.mark.parametrize(
    ("load", "size"), [(load_digits, 10), (load_digits, 100), (load_wine, 1), (load_wine, 10), (load_wine, 100)]
)
def test_one_pass_over_raw_rows(load, size):
    """Within .03 of the whole fit and not below SGDClassifier on the same batches: the mean of three splits."""
    X, y = load(return_X_y=True)
    scores = []
    for seed in range(3):
        A, B, a, b = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
        models = SoftmaxRegression(random_state=0), SGDClassifier(loss="log_loss", random_state=0)
        for start in range(0, len(A), size):
            for model in models:
                model.partial_fit(A[start : start + size], a[start : start + size], classes=np.unique(y))
        scores.append([model.score(B, b) for model in (*models, SoftmaxRegression().fit(A, a))])
    ours, sgd, fit = np.mean(scores, axis=0)
    assert ours > fit - 0.03
    assert ours >= sgd


@pytest.mark.parametrize("load", [load_digits, load_wine])
def test_one_class_after_the_other(load):
    """A sorted stream, whose first batches have one class: finite, and better than the most frequent class."""
    X, y = load(return_X_y=True)
    order = np.argsort(y, kind="stable")
    model = streamed(SoftmaxRegression(random_state=0), X[order], y[order], [50] * (len(y) // 50) + [len(y) % 50])
    assert np.isfinite(model.coef_).all()
    assert model.score(X, y) > 1.5 * np.bincount(y).max() / len(y)


@forms
def test_a_class_of_a_thousandth(form):
    """10 rows of 10,000, four standard deviations away: most of them are found, and few others with them."""
    rng = np.random.default_rng(0)
    y = np.zeros(10_000, int)
    y[rng.choice(10_000, 10, replace=False)] = 1
    X = rng.normal(size=(10_000, 3)) + 4.0 * y[:, None]
    model = streamed(SoftmaxRegression(random_state=0), form(X), y, [100] * 100)
    found = model.predict(form(X))
    assert found[y == 1].mean() > 0.5 and found[y == 0].mean() < 0.001


def test_sparse_batches_touch_their_features_alone():
    """d = 2^20: rows of theta whose features do not come stay as they are, and learning takes less memory than a byte
    a feature; an array of size d has 8."""
    d = 2**20
    rng = np.random.default_rng(0)
    columns = np.sort(rng.choice(d, size=(100, 8)), axis=1).ravel()
    X = sparse.csr_array((rng.normal(size=800), columns, np.arange(0, 801, 8)), shape=(100, d))
    y = rng.integers(K, size=100)
    model = SoftmaxRegression(random_state=0).partial_fit(X[:50], y[:50], classes=K)
    before = model._stream.optimizer.theta.copy()
    tracemalloc.start()
    model.partial_fit(X[50:], y[50:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < d
    changed = np.flatnonzero((model._stream.optimizer.theta != before).any(axis=1))
    assert len(changed) > 100
    assert np.isin(changed, [*columns[400:], d]).all()  # d is the intercept


# --- larger than memory -------------------------------------------------------------------------------------

# RLIMIT_DATA counts private memory and no shared mapping of a file: what X, mapped from disk, does not need.
LIMITED = """
import resource, sys, warnings
import numpy as np
from softreg import SoftmaxRegression
warnings.simplefilter("ignore")
X = np.memmap(sys.argv[1], dtype=np.float32, mode="r").reshape(-1, 100)
y = (X[:, 0] > 0).astype(np.int8) + (X[:, 1] > 0)
small = X[:1000]
for solver in ("auto", "sgd"):  # buffers of BLAS and of threads
    SoftmaxRegression(max_iter=2).fit(small, y[:1000])
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
limit = used + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if sys.argv[2] == "a copy":
    X.copy()
elif sys.argv[2] == "partial_fit":
    model = SoftmaxRegression()
    for start in range(0, len(X), 100_000):
        model.partial_fit(X[start:start + 100_000], y[start:start + 100_000], classes=[0, 1, 2])
    model.predict(small)
else:
    SoftmaxRegression(solver=sys.argv[2], max_iter=3).fit(X, y).predict(small)
print("done")
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """400 MB of float32, a million rows of 100; most of them are holes in the file, which read as zeros."""
    path = tmp_path_factory.mktemp("large") / "X"
    X = np.memmap(path, dtype=np.float32, mode="w+", shape=(1_000_000, 100))
    X[::5000] = np.random.default_rng(0).normal(size=(200, 100))
    X.flush()
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mappings on Linux alone")
@pytest.mark.parametrize("how", ["auto", "sgd", "partial_fit", "a copy"])
def test_within_a_limit_on_memory(large_file, how):
    """200 MB are half of X. Beside X a fit needs some numbers a row for each class, and samples and blocks of rows. A
    copy of X fails, or the limit would be none."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LIMITED, large_file, how, str(200 * 2**20)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if how == "a copy":
        assert "MemoryError" in done.stderr
    else:
        assert done.stdout == "done\n", done.stderr
