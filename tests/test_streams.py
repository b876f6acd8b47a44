"""partial_fit over batches of any size and scale; data on disk that do not fit in memory."""

import pickle
import subprocess
import sys

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
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("learning_rate", ["constant", "invscaling", "auto"])
def test_calls_do_not_matter_but_rows(form, average, learning_rate):
    """One call with minibatches of 8 in order, and calls of 8, 16 and 216 rows, are the same steps: velocity, mean
    and schedule go on. The intercepts are centred in each call, some roundings that no gradient sees."""
    X, y = data()
    options = {"average": average, "learning_rate": learning_rate, "eta0": 0.1, "batch_size": 8}
    model = SoftmaxRegression(**options, shuffle=False)
    whole = streamed(clone(model), form(X), y, [N])
    parts = streamed(clone(model), form(X), y, [8, 16, 216])
    same(whole, parts, rtol=1e-9)  # centred intercepts, and roundings that 30 steps carry on
    assert (whole.n_iter_, parts.n_iter_) == (1, 3)


def test_rate_falls_with_the_rows():
    """By 1 / sqrt(1 + rows / 1000): a first row moves W by eta0 times the gradient, and the same row after
    3,000 rows of no weight in the loss (X = 0, no intercept, no penalty) by half of that."""
    model = SoftmaxRegression(solver="sgd", momentum=0.0, eta0=0.1, alpha=0, fit_intercept=False)
    row, label = np.array([[1.0]]), np.array([1])
    first = clone(model).partial_fit(row, label, classes=[0, 1]).coef_
    late = clone(model).partial_fit(np.zeros((3000, 1)), np.ones(3000, int), classes=[0, 1])
    np.testing.assert_allclose(late.partial_fit(row, label).coef_, first / 2, rtol=1e-12)


@pytest.mark.parametrize("average", [False, True])
def test_pickled_in_between(average):
    X, y = data()
    model = SoftmaxRegression(average=average, random_state=0)
    model.partial_fit(X[:100], y[:100], classes=np.arange(K))
    copied = pickle.loads(pickle.dumps(model))
    same(model.partial_fit(X[100:], y[100:]), copied.partial_fit(X[100:], y[100:]))
    assert not hasattr(clone(model), "coef_")


def test_parameters_set_in_between_count():
    X, y = data()
    model = SoftmaxRegression(solver="sgd", eta0=0.1, random_state=0).partial_fit(X, y, classes=np.arange(K))
    copies = [pickle.loads(pickle.dumps(model)) for _ in range(4)]
    for other, change in zip(copies, [{}, {"eta0": 0.01}, {"momentum": 0.0}, {"nesterov": False}], strict=True):
        other.set_params(**change).partial_fit(X, y).partial_fit(X, y)  # the first has no velocity, of whichever kind
    assert len({other.coef_.tobytes() for other in copies}) == 4


def test_averages_the_iterates_of_all_calls():
    """One row a call: the mean of W over the calls is the mean of what the same stream without average goes through."""
    X, y = data()
    options = {"solver": "sgd", "eta0": 0.1}
    last, met = SoftmaxRegression(**options), []
    mean = SoftmaxRegression(**options, average=True)
    for i in range(40):
        met.append(last.partial_fit(X[i : i + 1], y[i : i + 1], classes=np.arange(K)).coef_)
        mean.partial_fit(X[i : i + 1], y[i : i + 1], classes=np.arange(K))
    np.testing.assert_allclose(mean.coef_, np.mean(met, axis=0), rtol=1e-12, atol=1e-13)  # 40 roundings
    # without it the stream goes on from the mean, the only coefficients there are
    assert np.isfinite(mean.set_params(average=False).partial_fit(X, y).coef_).all()


# --- batches of every kind ----------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("classes", [2, K])
def test_empty_batches(solver, form, classes):
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
    same(dense, mixed, rtol=1e-7)  # sums in another order


@pytest.mark.parametrize("average", [False, True])
def test_float32_after_float64(average):
    X, y = data()
    model = SoftmaxRegression(average=average, random_state=0).partial_fit(X, y, classes=np.arange(K))
    model.partial_fit(X.astype(np.float32), y)
    assert model.coef_.dtype == np.float32


# --- automatic rates ----------------------------------------------------------------------------------------


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
