"""The number of threads of the kernels, and the limit of one thread for BLAS inside of them."""

import os
from collections import Counter
from contextlib import contextmanager
from functools import cache
from threading import Lock, get_ident

import joblib
from threadpoolctl import OpenBLASController, ThreadpoolController

from softreg import _core


def effective_n_threads(n_jobs):
    """Return the number of threads for `n_jobs`, counted as by scikit-learn's OpenMP estimators.

    None stands for as many as OMP_NUM_THREADS, threadpoolctl and joblib's limits on its workers allow, at most one a
    core. A positive number is taken as it is; -1 is all cores, -2 all but one.
    """
    if n_jobs is None:
        most = _core.max_threads()
        return most if most == 1 else max(1, min(most, _cpu_count()))
    if n_jobs == 0:
        raise ValueError("n_jobs=0 has no meaning; use None, a positive number, or -1 for all cores")
    return n_jobs if n_jobs > 0 else max(1, _cpu_count() + 1 + n_jobs)


@cache
def _cpu_count():
    return joblib.cpu_count()  # cached: joblib asks the system, which takes longer than a small kernel


class _BlasLimit:
    """A limit of one thread for BLAS, set by the first thread of Python that needs it and restored by the last.

    The limit belongs to the process. If every thread of Python set and restored its own, the last one to end would
    restore the limit that it found when it began, which was that of another thread.
    """

    def __init__(self):
        self._lock = Lock()
        self._uses = Counter()  # by the identity of the thread
        self._limiter = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._after_fork
            )

    @contextmanager
    def use(self):
        """Hold the limit while the context is open; contexts may nest."""
        me = get_ident()
        with self._lock:
            if not self._uses:
                self._set()
            self._uses[me] += 1
        try:
            yield
        finally:
            with self._lock:
                self._uses[me] -= 1
                self._uses += Counter()  # leaves out zeros
                if not self._uses:
                    self._restore()

    def _set(self):
        self._limiter = _blas().limit(limits=1)
        if any(library["num_threads"] != 1 for library in _blas().info()):
            self._limiter = None  # another thread's own limit is in force; since threadpoolctl 3.8 only it may set one

    def _restore(self):
        if self._limiter is not None:
            _clear_controlling_thread(force=True)  # the thread that set the limit may have ended
            self._limiter.restore_original_limits()
            _clear_controlling_thread()
            self._limiter = None

    def _after_fork(self):
        """Forget the threads of the parent, which do not exist in the child."""
        self._uses = +Counter({get_ident(): self._uses[get_ident()]})
        if not self._uses:
            self._restore()
        self._lock.release()


@cache
def _blas():
    return ThreadpoolController().select(user_api="blas")  # looking through the loaded libraries takes milliseconds


# Since threadpoolctl 3.8 a thread that has set OpenBLAS's limit is the only one that may, until this is called.
_clear_controlling_thread = getattr(OpenBLASController, "clear_controlling_thread", lambda force=False: None)

_blas_limit = _BlasLimit()


def single_threaded_blas():
    """Return a context in which BLAS uses one thread: the kernels call BLAS from threads of their own."""
    return _blas_limit.use()
