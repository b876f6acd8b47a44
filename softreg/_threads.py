"""How many threads the kernels may use, and BLAS held at one inside them."""

from functools import cache

import joblib
from threadpoolctl import ThreadpoolController

from softreg import _core


def effective_n_threads(n_jobs):
    """The threads for `n_jobs`, as scikit-learn's OpenMP estimators count them.

    None takes what OMP_NUM_THREADS, threadpoolctl and joblib's limits on its workers allow, at most one a core;
    a positive number is taken as it stands; -1 is all cores, -2 all but one.
    """
    if n_jobs is None:
        return max(1, min(_core.max_threads(), joblib.cpu_count()))
    if n_jobs == 0:
        raise ValueError("n_jobs=0 has no meaning; use None, a positive number, or -1 for all cores")
    return n_jobs if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + n_jobs)


@cache
def _controller():
    return ThreadpoolController()  # looking through the loaded libraries takes milliseconds


def single_threaded_blas():
    """A context in which BLAS keeps to the thread that calls it: the kernels call it from threads of their own."""
    return _controller().limit(limits=1, user_api="blas")
