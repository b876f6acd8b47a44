"""softreg.dask: the fit of one machine, over rows that lie on workers; real worker processes on the loopback."""

import gc
import math
import multiprocessing
import os
import signal
import time
import warnings
import weakref

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

import softreg
from softreg._objective import Linearization

dask = pytest.importorskip("dask", reason="softreg.dask needs dask")
distributed = pytest.importorskip("distributed", reason="softreg.dask needs distributed")
da = pytest.importorskip("dask.array", reason="softreg.dask needs dask.array")

from shared import null_loss, softmax_data, unfinished  # noqa: E402

from softreg.dask import SoftmaxRegression, stream  # noqa: E402
from softreg.dask import _client as client_module  # noqa: E402
from softreg.dask import _newton as newton_module  # noqa: E402
from softreg.dask import _proximal_newton as proximal_module  # noqa: E402
from softreg.dask import _worker as worker_module  # noqa: E402
from softreg.dask._exact_sum import ExactSum, exact_sums  # noqa: E402
from softreg.dask._input import BlockGraph, joined_blocks, row_chunks  # noqa: E402
from softreg.dask._kept_passes import KeptPasses, StationHandle  # noqa: E402
from softreg.dask._recipes import Recipe, result_for  # noqa: E402
from softreg.dask._station import Station  # noqa: E402

N, D, K, ROWS = 2000, 6, 3, 700  # chunks of 700 rows: the last one is shorter
# Dask and its dependencies warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("default")


def cluster(n_workers, processes=False, **options):
    """Return a local cluster; workers in this process start at once, and speak to each other as others do."""
    options |= {"host": "127.0.0.1"} if processes else {}
    return distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, processes=processes, dashboard_address=":0", **options
    )


@pytest.fixture(scope="module")
def client():
    with cluster(2) as two, distributed.Client(two) as client:
        yield client


@pytest.fixture(scope="module")
def processes():
    """A cluster of two processes, which start soon where a server that has loaded what they need can be forked."""
    options = {}
    if "forkserver" in multiprocessing.get_all_start_methods():
        options = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(options):
        if options:
            distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "softreg.dask"])
        with cluster(2, processes=True) as two:
            yield two


@pytest.fixture(scope="module")
def data():
    return softmax_data(N, D, K)


def chunked(*arrays, rows=ROWS):
    return tuple(da.from_array(a, chunks=(rows, *a.shape[1:])) for a in arrays)


def one_machine(**parameters):
    return softreg.SoftmaxRegression(random_state=0, tol=1e-9, **parameters)


def on_dask(**parameters):
    return SoftmaxRegression(random_state=0, tol=1e-9, **parameters)


def assert_same_fit(model, reference):
    """Both are within tol=1e-9 of the minimum, so far nearer to each other than what is asked here."""
    assert model.stopped_on_ in ("gap", "estimate")
    assert abs(model.history_["loss"][-1] - reference.history_["loss"][-1]) < 1e-6
    # a gap of 1e-9 F over the least curvature, alpha = 1e-4, allows for sqrt(2e-5) at the very most
    assert_allclose(model.coef_, reference.coef_, atol=5e-3)
    assert_allclose(model.intercept_, reference.intercept_, atol=5e-3)
    assert_array_equal(model.classes_, reference.classes_)


def results_on_workers(client):
    """Return how many results and Stations the workers hold, once they have had the time to let go."""
    for _ in range(50):
        gc.collect()
        held = sum(client.run(lambda dask_worker: len(dask_worker.data) + len(dask_worker.state.actors)).values())
        if not held:
            break
        time.sleep(0.05)
    return held


# --- the same model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "persist"), [(np.float32, True), (np.float64, True), (np.float64, False)])
def test_fit_equals_that_of_one_machine(client, data, dtype, persist):
    X, y = data[0].astype(dtype), data[1]
    tol = 1e-9 if dtype == np.float64 else 1e-5  # float32 has no digits for more
    model = on_dask(persist=persist).set_params(tol=tol).fit(*chunked(X, y))
    reference = one_machine().set_params(tol=tol).fit(X, y)
    assert model.coef_.dtype == dtype
    # tol=1e-5 leaves 1e-5 of a loss below 1
    assert abs(model.history_["loss"][-1] - reference.history_["loss"][-1]) < max(1e-6, tol)
    assert model.optimality_gap_ < 1e-2


def test_bits_do_not_depend_on_the_number_of_workers(data):
    X, y = chunked(*data, rows=110)  # 19 chunks: sums of sums
    fits = []
    for n_workers in (1, 2, 4):
        with cluster(n_workers) as local, distributed.Client(local):
            fits.append(SoftmaxRegression(random_state=0).fit(X, y))
    for other in fits[1:]:
        assert_array_equal(other.coef_, fits[0].coef_)
        assert_array_equal(other.history_["loss"], fits[0].history_["loss"])


@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_are_exact_in_any_order(order):
    rng = np.random.default_rng(0)
    parts = [
        np.asarray(rng.normal(size=(40, 500)) * 10.0 ** rng.integers(-30, 30, size=(40, 500)), dtype, order=order)
        for dtype in [np.float32] * 6 + [np.float64] * 6
    ]  # more numbers than are added at a time; they need several components
    parts.append(-parts[0])  # digits cancel
    expected = np.reshape([math.fsum(numbers) for numbers in zip(*(p.ravel() for p in parts), strict=True)], (40, 500))
    for _ in range(3):
        rng.shuffle(parts)
        (left,), (right,) = exact_sums([(p,) for p in parts[:4]]), exact_sums([(p,) for p in parts[4:]])
        ((total,), (number,)) = exact_sums([(left,), (right,)]), exact_sums([(1.5,), (2,)])
        assert len(total.components) > 2
        assert_array_equal(total.rounded(), expected)
        assert float(number.rounded()) == 3.5
    assert_array_equal(exact_sums([([1.0, np.inf],), ([np.nan, 1.0],), ([1.0, 1.0],)])[0].rounded(), [np.nan, np.inf])


def test_sums_of_chunks_of_one_size_need_two_components():
    total = ExactSum(np.zeros(1000))
    for part in np.random.default_rng(0).normal(size=(50, 1000)):
        total.add(part)
    assert len(total.components) == 2


@pytest.mark.parametrize("case", ["weights", "strings", "soft", "balanced", "class weights", "two classes", "smoothing",
                                  "no intercept"])  # fmt: skip
def test_labels_weights_and_targets(client, data, case):
    X, y = data
    rng, weight, parameters = np.random.default_rng(0), None, {}
    if case == "weights":
        weight = rng.random(N)
        weight[:ROWS] = 0  # a chunk without weight
    elif case == "strings":
        y = np.array(["some", "other", "third"], object)[y]
    elif case == "soft":
        y = rng.dirichlet(np.ones(K), N)
    elif case == "balanced":
        parameters, weight = {"class_weight": "balanced"}, rng.random(N)
    elif case == "class weights":
        parameters = {"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}}
    elif case == "two classes":
        y = y > 0
    elif case == "smoothing":
        parameters = {"label_smoothing": 0.1}
    elif case == "no intercept":
        parameters = {"fit_intercept": False}
    lazy = chunked(X, y) if weight is None else chunked(X, y, weight)
    assert_same_fit(on_dask(**parameters).fit(*lazy), one_machine(**parameters).fit(X, y, weight))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_l1(client, data, form, monkeypatch):
    X, y = form(np.hstack([data[0], np.random.default_rng(0).normal(size=(N, 5))])), data[1]  # five features of noise
    parts = [dask.delayed(X[start : start + ROWS]) for start in range(0, N, ROWS)]
    lazy = da.concatenate([
        da.from_delayed(part, (min(ROWS, N - start), D + 5), X.dtype, meta=form(np.empty((0, D + 5))))
        for part, start in zip(parts, range(0, N, ROWS), strict=True)
    ])  # fmt: skip
    parameters = {"alpha": 1e-2, "l1_ratio": 0.8}
    reference = one_machine(**parameters).fit(X, y)
    model = on_dask(**parameters).fit(lazy, da.from_array(y, chunks=ROWS))
    assert model.solver_ == "proximal_newton"
    assert_same_fit(model, reference)
    assert_array_equal(model.coef_ == 0, reference.coef_ == 0)
    monkeypatch.setattr("softreg._solvers.proximal_newton.SMALL_WORK", 0.0)  # Hessians of samples
    assert_same_fit(on_dask(**parameters).fit(lazy, da.from_array(y, chunks=ROWS)), reference)
    monkeypatch.setattr(proximal_module, "LARGEST", 5)
    with pytest.raises(ValueError, match="at most 5 coefficients"):
        on_dask(**parameters).fit(lazy, da.from_array(y, chunks=ROWS))


def test_csr_chunks(client):
    X = sparse.random_array((1000, 300), density=0.02, format="csr", rng=np.random.default_rng(0))
    y = softmax_data(1000, 5, K)[1]
    parts = [X[start : start + 250] for start in range(0, 1000, 250)]
    lazy = da.concatenate([
        da.from_delayed(dask.delayed(part), part.shape, X.dtype, meta=sparse.csr_array((0, 300))) for part in parts
    ])  # fmt: skip
    model = on_dask(alpha=1e-2).fit(lazy, da.from_array(y, chunks=250))
    reference = one_machine(alpha=1e-2).fit(X, y)
    assert_same_fit(model, reference)
    assert_array_equal(model.predict(lazy).compute(), reference.predict(X))


def test_dataframes(client, data):
    dd = pytest.importorskip("dask.dataframe", reason="needs dask.dataframe")
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame(data[0], columns=list("abcdef"))
    lazy = dd.from_pandas(frame.assign(label=data[1]), npartitions=3)
    X, y = lazy[list("abcdef")], lazy["label"]
    model, reference = on_dask().fit(X, y), one_machine().fit(frame, data[1])
    assert_same_fit(model, reference)
    assert_array_equal(model.feature_names_in_, reference.feature_names_in_)
    assert_array_equal(model.predict(X).compute(), reference.predict(frame))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X[list("abcdf")]).compute()


def test_samples_damping_and_blocks(client, monkeypatch):
    """Newton's method of large problems: SGD, samples of the rows, row damping, and rows taken anew for `Blocks`."""
    rng = np.random.default_rng(0)
    n, d, classes = 4000, 60, 9
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.05) * 1000  # rows of very different lengths
    y = (X @ rng.normal(size=(d, classes)) / 400 + rng.gumbel(size=(n, classes))).argmax(axis=1)
    monkeypatch.setattr("softreg._solvers.row_sampling.SAMPLE_WORK", 1.0)
    monkeypatch.setattr(newton_module, "ROWS", 1000)
    monkeypatch.setattr(newton_module, "FEWEST_ROWS", 1000)
    monkeypatch.setattr(newton_module, "LONG_SOLVE", 1)
    used = set()
    for owner, name in ((newton_module.RowsPreconditioner, "_blocks"), (newton_module.ChunkSamples, "of"),
                        (newton_module.DistributedNewton, "sgd_start")):  # fmt: skip
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, m=method, name=name: used.add(name) or m(*a))
    damped = []
    update = newton_module.ChunkDamping.update
    monkeypatch.setattr(newton_module.ChunkDamping, "update",
                        lambda self, *a: update(self, *a) or damped.append(self.is_active))  # fmt: skip
    weight = rng.random(n)
    model = on_dask().set_params(tol=1e-6).fit(*chunked(X, y, weight, rows=2000))
    assert used == {"_blocks", "of", "sgd_start"} and any(damped)
    monkeypatch.undo()
    reference = one_machine().set_params(tol=1e-6).fit(X, y, weight)
    assert abs(model.history_["loss"][-1] - reference.history_["loss"][-1]) < 1e-6


@unfinished
def test_warm_start_and_early_stopping(client, data):
    X, y = chunked(*data)
    model = on_dask(warm_start=True).fit(X, y)
    assert model.fit(X, y).n_iter_ <= 2
    model = SoftmaxRegression(early_stopping=True, random_state=0, tol=1e-3).fit(X, y)
    reference = softreg.SoftmaxRegression(early_stopping=True, random_state=0, tol=1e-3).fit(*data)
    # other rows are held out, 200 of them: a standard deviation of their accuracy is .03
    assert abs(model.history_["validation_score"][-1] - reference.history_["validation_score"][-1]) < 0.15


# --- shapes of the input --------------------------------------------------------------------------------------------


@unfinished
@pytest.mark.parametrize("persist", [True, False])
def test_held_out_rows_and_damping_leave_nothing_behind(client, data, persist, monkeypatch):
    monkeypatch.setattr("softreg._solvers.row_sampling.SAMPLE_WORK", 1.0)
    X, y = chunked(100 * data[0], data[1])
    model = SoftmaxRegression(early_stopping=True, random_state=0, persist=persist, max_iter=5).fit(X, y)
    assert len(model.history_["validation_loss"]) == model.n_iter_
    assert results_on_workers(client) == 0


def test_chunks_are_brought_into_line(client, data):
    X, y = data
    reference = one_machine().fit(X, y)
    lazy = da.from_array(X, chunks=(500, 2))
    assert_same_fit(on_dask().fit(lazy, da.from_array(y, chunks=700)), reference)  # columns in chunks, other rows in y
    assert_same_fit(on_dask().fit(lazy, y), reference)
    unknown = da.from_array(X, chunks=(500, 2))[da.ones(N, dtype=bool, chunks=500)]
    labels = da.from_array(y, chunks=500)
    assert_same_fit(on_dask().fit(unknown, labels), reference)
    with pytest.raises(ValueError, match=r"compute_chunk_sizes"):
        on_dask().fit(unknown, labels.rechunk(400))
    with pytest.raises(ValueError, match=r"compute_chunk_sizes"):
        on_dask().fit(unknown, y)
    with pytest.raises(ValueError, match=r"chunk 0: X has 500 rows, y 400"):
        on_dask().fit(unknown, da.from_array(y, chunks=((400, 600, 500, 500),)))


def test_empty_chunks_are_left_out(client, data):
    X, y = chunked(*data, rows=500)
    keep = da.from_array(np.arange(N) >= 500, chunks=500)
    assert_same_fit(on_dask().fit(X[keep], y[keep]), one_machine().fit(data[0][500:], data[1][500:]))


def test_bad_input_is_named(client, data):
    X, y = data
    broken = X.copy()
    broken[700, 2] = np.nan
    with pytest.raises(ValueError, match=r"chunk 1: Input X contains NaN"):
        on_dask().fit(*chunked(broken, y))
    with pytest.raises(ValueError, match=r"only one class: 1"):
        on_dask().fit(*chunked(X, np.ones(N, int)))
    with pytest.raises(ValueError, match=r"sums to zero"):
        on_dask().fit(*chunked(X, y, np.zeros(N)))
    with pytest.raises(ValueError, match=r"X has 2000 rows, y has 1999"):
        on_dask().fit(da.from_array(X, chunks=(300, D)), da.from_array(y[1:], chunks=300))
    with pytest.raises(TypeError, match=r"X is ndarray"):
        on_dask().fit(X, chunked(y)[0])
    with pytest.raises(ValueError, match=r"solver='dual' needs all rows"):
        on_dask(solver="dual").fit(*chunked(X, y))


def test_rows_that_do_not_fit_are_read_again_with_a_warning(client, data, monkeypatch):
    X, y = chunked(*data)
    reference = SoftmaxRegression(random_state=0).fit(X, y)
    monkeypatch.setattr(worker_module, "memory_limit", lambda dask_worker: 50_000)  # each of two; X has 96,000 bytes
    with pytest.warns(UserWarning, match=r"X takes 93.75 kiB.* computed again in every pass"):
        model = SoftmaxRegression(random_state=0).fit(X, y)
    assert_array_equal(model.coef_, reference.coef_)


def test_probabilities_that_do_not_fit_are_computed_again_with_a_warning(client, data, monkeypatch):
    X, y = chunked(*data)
    reference = SoftmaxRegression(random_state=0).fit(X, y)
    # each of two; X and y take 112,000 bytes, and the probabilities of three linearisations 144,000
    monkeypatch.setattr(worker_module, "memory_limit", lambda dask_worker: 200_000)
    with pytest.warns(UserWarning, match=r"probabilities of 2,000 rows and 3 classes take 140.62 kiB beside") as caught:
        model = SoftmaxRegression(random_state=0).fit(X, y)
    assert caught[0].filename == __file__
    assert_array_equal(model.coef_, reference.coef_)
    monkeypatch.setattr(worker_module, "memory_limit", lambda dask_worker: 300_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        SoftmaxRegression(random_state=0).fit(X, y)


def test_a_worker_keeps_no_probabilities_that_do_not_fit(client, data, monkeypatch):
    monkeypatch.setattr(worker_module, "memory_limit", lambda dask_worker: 200_000)
    run_chunk, kept = Station._run_chunk, set()

    def watched(self, *args):
        run_chunk(self, *args)
        kept.update(type(result) for results in self.results.values() for result in results.values())

    monkeypatch.setattr(Station, "_run_chunk", watched)
    with pytest.warns(UserWarning, match="probabilities"):
        SoftmaxRegression(random_state=0).fit(*chunked(*data))
    assert Linearization not in kept
    SoftmaxRegression(random_state=0, persist=True).fit(*chunked(*data))
    assert Linearization in kept


def test_rows_are_in_memory_no_longer_than_their_task():
    """Else rows that are read anew in each pass pile up until Python looks for cycles."""
    gc.disable()
    try:
        block = np.ones(10)
        alive, data = weakref.ref(block), Recipe(None, [], {}, {0: None})
        rows = Recipe(np.asarray, [data], {})
        assert result_for(0, Recipe(len, [rows], {}).step, {rows.number: rows.step}, {data.number: block}) == 10
        del block
        assert alive() is None
    finally:
        gc.enable()


def test_a_task_makes_the_data_of_a_chunk_where_no_task_is_shared(client, data):
    X, y = chunked(*data)
    graphs = joined_blocks(row_chunks(X, y), are_computed=False)
    assert all(isinstance(graph, BlockGraph) for graph in graphs)
    found = graphs[1].compute()
    assert_array_equal(found[0], data[0][ROWS : 2 * ROWS])
    assert_array_equal(found[1], data[1][ROWS : 2 * ROWS])
    assert found[2] is None
    shared = da.concatenate([X, X]).rechunk({0: 900})  # a chunk of X is needed by several
    assert not any(isinstance(b, BlockGraph) for b in joined_blocks(row_chunks(shared), are_computed=False))
    model = SoftmaxRegression(random_state=0, persist=False).fit(shared, da.concatenate([y, y]))
    reference = SoftmaxRegression(random_state=0).fit(shared, da.concatenate([y, y]))
    assert_array_equal(model.coef_, reference.coef_)


# --- prediction ---------------------------------------------------------------------------------------------------


def test_prediction_is_lazy_on_dask_and_eager_on_numpy(client, data):
    X, y = data
    lazy, labels = chunked(X, y)
    model = on_dask().fit(lazy, labels)
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        found, eager = getattr(model, name)(lazy), getattr(model, name)(X)
        assert isinstance(found, da.Array) and isinstance(eager, np.ndarray)
        assert found.shape == eager.shape and found.dtype == eager.dtype
        assert_array_equal(found.compute(), eager)
    score = model.score(lazy, labels)
    assert isinstance(score, da.Array) and isinstance(model.score(X, y), float)
    # chunks' scores are added up: rounding
    assert float(score) == pytest.approx(model.score(X, y), rel=1e-12)
    weight = np.random.default_rng(0).random(N)
    found = float(model.score(lazy, labels, chunked(weight)[0]))
    assert found == pytest.approx(model.score(X, y, weight), rel=1e-12)
    before = model.predict(lazy)
    expected = model.predict(X)
    model.fit(lazy, 2 - labels)  # what is lazy keeps the model of its time
    assert_array_equal(before.compute(), expected)


# --- streams ------------------------------------------------------------------------------------------------------


def test_stream_equals_partial_fit_chunk_by_chunk(client, data):
    X, y = data
    by_hand = softreg.SoftmaxRegression(random_state=0)
    for start in range(0, N, ROWS):
        by_hand.partial_fit(X[start : start + ROWS], y[start : start + ROWS], classes=range(K))
    for model in (softreg.SoftmaxRegression(random_state=0), SoftmaxRegression(random_state=0)):
        assert stream(model, *chunked(X, y)) is model
        assert_array_equal(model.coef_, by_hand.coef_)
        assert_array_equal(model.stream_history_["loss"], by_hand.stream_history_["loss"])
    model = SoftmaxRegression(random_state=0).partial_fit(*chunked(X, y))
    assert_array_equal(model.coef_, by_hand.coef_)
    assert model.partial_fit(*chunked(X, y)).n_iter_ == 6  # goes on
    assert results_on_workers(client) == 0


def test_stream_errors_name_the_chunk_and_leave_the_model(client, data):
    X, y = data
    broken = X.copy()
    broken[700, 2] = np.inf
    model = softreg.SoftmaxRegression()
    with pytest.raises(ValueError, match="chunk 1: Input X contains infinity"):
        stream(model, *chunked(broken, y))
    assert not hasattr(model, "classes_")


class Recorder:
    """A callback that scores the model at the end of each task within the fit, and stops at the `last` one."""

    def __init__(self, X, y, last):
        self.X, self.y, self.last, self.scores, self.hooks = X, y, last, [], []

    def setup(self, estimator, context):
        self.hooks.append("setup")

    def teardown(self, estimator, context):
        self.hooks.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.hooks.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.hooks.append(f"end {context.task_name}")
        if context.parent is not None:
            self.scores.append(float(fitted_estimator.score(self.X, self.y)))
        return len(self.scores) == self.last


@pytest.mark.parametrize("make", [softreg.SoftmaxRegression, SoftmaxRegression])
def test_callbacks_see_and_end_a_stream(client, data, make):
    pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9")
    X, y = data
    recorder = Recorder(X, y, last=2)
    model = make(random_state=0).set_callbacks(recorder)
    stream(model, *chunked(X, y))
    by_hand, scores = softreg.SoftmaxRegression(random_state=0), []
    for start in (0, ROWS):  # and not the last chunk
        by_hand.partial_fit(X[start : start + ROWS], y[start : start + ROWS], classes=range(K))
        scores.append(by_hand.score(X, y))
    assert recorder.scores == scores
    assert recorder.hooks == ["setup", "begin fit", *["begin chunk", "end chunk"] * 2, "end fit", "teardown"]
    assert_array_equal(model.coef_, by_hand.coef_)
    assert model.n_iter_ == 2
    recorder.hooks.clear()
    broken = X.copy()
    broken[-1] = np.nan
    with pytest.raises(ValueError, match="chunk 2"):
        stream(model, *chunked(broken, y))
    assert recorder.hooks[0] == "setup" and recorder.hooks[-1] == "teardown"
    assert_array_equal(model.coef_, by_hand.coef_)


def test_arrays_that_are_large_go_out_in_each_pass(client):
    """W takes more than 100 kB: from there on `Client.map` gives an argument a task with the argument's name as key."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 5000))
    y = (X[:, :K] + rng.gumbel(size=(120, K))).argmax(axis=1)
    parameters = {"alpha": 1.0, "random_state": 0}
    ours = SoftmaxRegression(**parameters).fit(*chunked(X, y, rows=50))
    theirs = softreg.SoftmaxRegression(**parameters).fit(X, y)
    assert ours.coef_.nbytes > 1e5
    assert ours.stopped_on_ in ("gap", "estimate")
    # each fit is within tol of the minimum
    assert abs(ours.history_["loss"][-1] - theirs.history_["loss"][-1]) <= 1e-4 * null_loss(y)


# --- progress -----------------------------------------------------------------------------------------------------


def test_verbose_and_callbacks(client, data, capsys):
    pytest.importorskip("sklearn.callback", reason="callbacks need scikit-learn 1.9")
    X, y = chunked(*data)
    recorder = Recorder(X, y, last=2)
    model = SoftmaxRegression(verbose=1, tol=0.0).set_callbacks(recorder).fit(X, y)
    assert model.stopped_on_ == "callback" and model.n_iter_ == len(recorder.scores) == 2
    assert capsys.readouterr().out.count("  loss ") == 2  # a line an iteration
    assert recorder.scores[-1] == float(model.score(X, y))


# --- clients and faults -------------------------------------------------------------------------------------------


def test_without_a_client_a_local_one_is_announced(client, data, monkeypatch):
    def none():
        raise ValueError("No global client found and no address provided")

    monkeypatch.setattr(client_module, "get_client", none)
    with pytest.warns(UserWarning, match=r"no dask.distributed client") as caught:
        model = on_dask().fit(*chunked(*data))
    assert caught[0].filename == __file__
    assert_same_fit(model, one_machine().fit(*data))


@pytest.mark.parametrize("persist", [True, False])
def test_workers_are_freed_after_a_fit_an_error_and_an_interrupt(client, data, monkeypatch, persist):
    X, y = chunked(*data)
    on_dask(persist=persist).fit(X, y)
    assert results_on_workers(client) == 0
    with pytest.raises(ValueError, match="chunk 1") as caught:  # in a chunk, before the first pass
        on_dask(persist=persist).fit(*chunked(np.where(np.arange(N)[:, None] == ROWS, np.nan, data[0]), data[1]))
    assert results_on_workers(client) == 0, caught  # which still refers to the frames of the fit

    def broken(linearization):
        raise ValueError("in a chunk")

    monkeypatch.setattr("softreg.dask._sums.value_and_gradient", broken)
    with pytest.raises(ValueError, match="in a chunk") as caught:  # in a pass
        on_dask(persist=persist).fit(X, y)
    assert results_on_workers(client) == 0, caught
    monkeypatch.undo()

    def interrupt(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(newton_module.DistributedNewton, "iterate", interrupt)
    model = on_dask(persist=persist)
    with pytest.raises(KeyboardInterrupt) as caught:
        model.fit(X, y)
    assert results_on_workers(client) == 0, caught
    assert not hasattr(model, "coef_")


def kill(client, address):
    """Kill the worker process at an address; Dask starts another one in its place."""
    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)


@pytest.mark.parametrize("persist", [True, False])
def test_a_killed_worker_costs_time_and_not_the_model(processes, data, monkeypatch, persist):
    X, y = chunked(*data)
    with distributed.Client(processes) as client:
        client.wait_for_workers(2)
        reference = SoftmaxRegression(random_state=0).fit(X, y)
        owner, name = (StationHandle, "start") if persist else (newton_module.DistributedNewton, "iterate")
        method, killed = getattr(owner, name), []

        def kill_once(self, *args):
            method(self, *args)
            if name == "iterate" or "hessian_product" in str(args):  # the chunks are being computed
                if not killed:
                    killed.append(self.actor._address if persist else min(client.nthreads()))
                    kill(client, killed[0])

        monkeypatch.setattr(owner, name, kill_once)
        model = SoftmaxRegression(random_state=0, persist=persist).fit(X, y)
        assert killed
        assert results_on_workers(client) == 0
    assert_array_equal(model.coef_, reference.coef_)


def test_a_worker_is_not_retired_during_a_fit(data, monkeypatch):
    X, y = chunked(*data)
    with cluster(2) as local, distributed.Client(local) as client:
        reference = SoftmaxRegression(random_state=0).fit(X, y)
        iterate, retired = newton_module.DistributedNewton.iterate, []

        def retire_once(self):
            if not retired:
                retired.append(min(client.nthreads()))
                client.retire_workers(retired)
            iterate(self)

        monkeypatch.setattr(newton_module.DistributedNewton, "iterate", retire_once)
        model = SoftmaxRegression(random_state=0).fit(X, y)
        assert_array_equal(model.coef_, reference.coef_)
        assert results_on_workers(client) == 0
        assert client.retire_workers(retired)  # now it goes


def test_chunks_that_dask_moves_are_found_again(client, data, monkeypatch):
    X, y = chunked(*data)
    reference = SoftmaxRegression(random_state=0).fit(X, y)
    iterate, asked = newton_module.DistributedNewton.iterate, []

    def confused(self):
        passes, addresses = self.objective.passes, sorted(client.nthreads())
        if not asked:  # as if every chunk had been on the other worker when the client asked
            asked.extend(passes._places)
            passes._places = {k: addresses[a == addresses[0]] for k, a in passes._places.items()}
        iterate(self)

    monkeypatch.setattr(newton_module.DistributedNewton, "iterate", confused)
    model = SoftmaxRegression(random_state=0).fit(X, y)
    assert asked
    assert_array_equal(model.coef_, reference.coef_)


def test_chunks_are_spread_over_the_workers(client, data):
    parts = [(x, label) for x, label in zip(np.array_split(data[0], 4), np.array_split(data[1], 4), strict=True)]
    futures = client.scatter(parts, workers=[min(client.nthreads())], hash=False)
    passes = KeptPasses(client, futures)
    assert passes.gather(lambda part: len(part[0]), passes.data) == [N // 4] * 4
    placed = passes._placed(passes.data.chunks, {passes.data.recipe.number: passes.data.recipe})
    assert [len(chunks) for _, chunks in placed] == [2, 2]
    passes.close()


@pytest.fixture
def one_death(processes):
    """A client of two processes, and no chunk may kill more than one."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), distributed.Client(processes) as client:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        client.wait_for_workers(2)
        yield client
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 3))


def test_a_chunk_that_kills_its_workers_is_an_error(one_death, data):
    def deadly(x):
        os.kill(os.getpid(), signal.SIGKILL)

    X, y = chunked(*data)
    with pytest.raises(RuntimeError, match="workers died again and again"):
        SoftmaxRegression().fit(X.map_blocks(deadly, dtype=X.dtype, meta=X._meta), y)
    assert results_on_workers(one_death) == 0


def test_a_pass_that_kills_its_workers_is_an_error(one_death):
    def deadly(number):
        return (os.kill(os.getpid(), signal.SIGKILL) if number == 1 else 1.0,)

    passes = KeptPasses(one_death, one_death.map(int, range(4), pure=False))
    with pytest.raises(RuntimeError, match="workers died again and again"):
        passes.sum(deadly, passes.data)
    passes.close()
    assert results_on_workers(one_death) == 0


def test_scattered_rows_that_are_lost_are_an_error(processes, data, monkeypatch):
    X, y = data
    with distributed.Client(processes) as client:
        client.wait_for_workers(2)
        parts = client.scatter(np.array_split(X, 4), hash=False)
        lazy = da.concatenate([da.from_delayed(part, (N // 4, D), X.dtype) for part in parts])
        iterate = newton_module.DistributedNewton.iterate

        def kill_first(self):
            kill(client, min(client.nthreads()))
            iterate(self)

        monkeypatch.setattr(newton_module.DistributedNewton, "iterate", kill_first)
        with pytest.raises(RuntimeError, match=r"data were scattered.*give X and y as arrays that Dask can compute"):
            SoftmaxRegression(random_state=0).fit(lazy, y)
        del parts, lazy
        assert results_on_workers(client) == 0


def test_another_version_of_softreg_is_refused_by_name(processes, data):
    with distributed.Client(processes) as client:
        worker = next(iter(client.run(os.getpid)))
        client.run(lambda: setattr(__import__("softreg"), "__version__", "0.0.1"), workers=[worker])
        with pytest.raises(RuntimeError, match=rf"{worker} has 0\.0\.1"):
            on_dask().fit(*chunked(*data))


def test_what_travels_does_not_grow_with_the_rows(client, data):
    X, y = data
    traffic = []
    for times in (1, 4):
        lazy = chunked(np.tile(X, (times, 1)), np.tile(y, times), rows=ROWS * times)
        model = on_dask().set_params(tol=1e-3).fit(*lazy)
        assert model.traffic_.pop("bytes_of_rows") == (X.nbytes + y.nbytes + 8 * N) * times  # so few rows all come
        traffic.append(model.traffic_)
    assert traffic[0]["passes"] == traffic[1]["passes"] and traffic[0]["bytes_sent"] == traffic[1]["bytes_sent"]
    # W or V goes out to two workers, and from each come sums: K (d + 1) numbers and a loss, with their rounding errors
    numbers = K * (D + 1) + 1
    for counted in traffic:
        assert counted["bytes_received"] <= 2 * 2 * counted["passes"] * 8 * numbers
