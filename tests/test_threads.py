"""Threads of Python around fits, the limit on BLAS, and children made by fork."""

import multiprocessing
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from time import sleep

import numpy as np
import pytest
from scipy import sparse
from threadpoolctl import ThreadpoolController, threadpool_limits

from softreg import SoftmaxRegression, _teams
from softreg import functional as F
from softreg._threads import _clear_controlling_thread, single_threaded_blas

N, D, K = 300, 70, 3


def data(form=np.asarray):
    rng = np.random.default_rng(0)
    return form(rng.normal(size=(N, D))), rng.integers(K, size=N)


def blas_threads():
    return [library["num_threads"] for library in ThreadpoolController().info() if library["user_api"] == "blas"]


@pytest.fixture
def two_blas_threads():
    """BLAS at two threads, so that a limit of one is seen to be lifted."""
    limit = threadpool_limits(2, user_api="blas")
    _clear_controlling_thread()  # else no other thread may limit BLAS until this one is done
    yield blas_threads()
    limit.restore_original_limits()
    _clear_controlling_thread()


@pytest.fixture
def threads_everywhere():
    """Kernels take the threads they are given, also where there is little to do or the machine is busy."""
    _teams.use_threads_everywhere(True)
    yield
    _teams.use_threads_everywhere(False)


# --- the limit on BLAS ----------------------------------------------------------------------------------------------


def test_many_threads_leave_blas_as_it_was(two_blas_threads):
    """A hundred calls from eight threads, some of which raise; inside of each BLAS is at one thread."""
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0, 2e-3, size=100)

    def call(i):
        with single_threaded_blas():
            sleep(seconds[i])
            assert set(blas_threads()) == {1}
            with single_threaded_blas():  # as a fit within the fit of a path
                sleep(seconds[-i])
            if i % 7 == 0:
                raise KeyError(i)
            return set(blas_threads()) == {1}

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, i) for i in range(100)]
    errors = [c.exception() for c in calls]
    assert all(isinstance(e, KeyError) if i % 7 == 0 else e is None for i, e in enumerate(errors))
    assert all(c.result() for c, e in zip(calls, errors, strict=True) if e is None)
    assert blas_threads() == two_blas_threads


def test_fits_in_many_threads_leave_blas_as_it_was(two_blas_threads):
    X, y = data()
    model = SoftmaxRegression().fit(X, y)
    calls = [lambda: SoftmaxRegression().fit(X, y).coef_, lambda: model.predict_proba(X), lambda: model.fit(X, y[:3])]
    want = [calls[0](), calls[1]()]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(calls[i % 3]) for i in range(99)]
    for i, done in enumerate(running):
        if i % 3 == 2:
            assert isinstance(done.exception(), ValueError)
        else:
            assert np.array_equal(done.result(), want[i % 3])
    assert blas_threads() == two_blas_threads


# --- fits, predictions and streams at once --------------------------------------------------------------------------


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_threads_that_fit_predict_and_stream_at_once(form, threads_everywhere):
    """All begin at the same time, and each gets the bits that it gets alone. Predictions share one model."""
    X, y = data(form)
    shared = SoftmaxRegression(n_jobs=2).fit(X, y)

    def fit():
        return SoftmaxRegression(n_jobs=2).fit(X, y).coef_

    def fit_l1():
        return SoftmaxRegression(alpha=1e-2, l1_ratio=0.5).fit(X, y).coef_

    def predict():
        return np.vstack([shared.predict_proba(X) for _ in range(20)])

    def stream():
        model = SoftmaxRegression(random_state=0, n_jobs=2)
        for start in range(0, N, 50):
            model.partial_fit(X[start : start + 50], y[start : start + 50], classes=K)
        return model.predict_proba(X)

    def gradient():
        return F.linear_cross_entropy_grad(X, y, shared.coef_)[1]

    calls = [fit, fit_l1, predict, stream, gradient]
    want, together = [call() for call in calls], Barrier(len(calls))

    def repeat(call):
        together.wait()
        return [call() for _ in range(3)]

    with ThreadPoolExecutor(len(calls)) as pool:
        for got, expected in zip(pool.map(repeat, calls), want, strict=True):
            assert all(np.array_equal(once, expected) for once in got)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the GIL")
def test_the_gil_stays_off():
    """An extension that does not say it can do without the GIL turns it on for the whole process."""
    code = """
import sys, sklearn.linear_model
print(sys._is_gil_enabled())
import softreg
print(sys._is_gil_enabled())
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after


# --- children made by fork ------------------------------------------------------------------------------------------


def in_child(f):
    """Return what f() returns in a child made by fork, or "nothing" if nothing comes back within a minute."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(f()))
    child.start()
    try:
        return ours.recv() if ours.poll(60) else "nothing"
    finally:
        child.kill()
        child.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: fork with threads around
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("n_jobs", [2, None])
def test_a_child_and_its_child_compute_the_same(form, n_jobs, threads_everywhere):
    X, y = data(form)
    W = np.random.default_rng(1).normal(size=(K, D))
    model = SoftmaxRegression(n_jobs=n_jobs)

    def work():
        model.fit(X, y)
        linear = F.linear_cross_entropy_grad(X, y, W)
        return [model.coef_, model.predict_proba(X), model.input_gradient(X, y), F.softmax(W), *linear]

    want = work()
    for got in (in_child(work), in_child(lambda: in_child(work)), work()):
        assert got != "nothing"
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_has_a_limit_of_its_own(two_blas_threads):
    """A child made while other threads limit BLAS, or the forking thread itself, lifts what is not needed there."""
    with ThreadPoolExecutor(1) as pool:
        entered, leave = Event(), Event()

        def elsewhere():
            with single_threaded_blas():
                entered.set()
                leave.wait()

        waiting = pool.submit(elsewhere)
        entered.wait()
        assert in_child(blas_threads) == two_blas_threads
        leave.set()
        waiting.result()
    with single_threaded_blas():
        assert set(in_child(blas_threads)) == {1}
    assert blas_threads() == two_blas_threads
