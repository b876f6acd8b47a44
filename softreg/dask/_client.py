"""The Dask client of a fit: the current one, or a local one that is announced."""

import sys
import warnings
from contextlib import contextmanager

from distributed import Client, get_client

import softreg
from softreg.dask._worker import version


@contextmanager
def fit_client():
    """Return a context with the client, whose workers have this version of softreg."""
    own = None
    try:
        client = get_client()
    except ValueError:
        warn(
            "there is no dask.distributed client: this call starts a local one in this process, and closes it at the "
            "end. Call distributed.Client() before to choose, and to keep the data in memory between calls"
        )
        client = own = Client(processes=False, dashboard_address=None, set_as_default=False)
    try:
        check_versions(client)
        yield client
    finally:
        if own is not None:
            own.close()


def warn(message):
    """Warn, at the line outside of softreg that called it."""
    frame, level = sys._getframe(), 1
    while frame.f_globals["__name__"].partition(".")[0] in ("softreg", "sklearn", "contextlib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def check_versions(client):
    """Raise a RuntimeError that names the workers whose version of softreg is not that of this process."""
    found = client.run(version, on_error="return")
    other = {worker: v for worker, v in found.items() if v != softreg.__version__}
    if other:
        named = "; ".join(f"{worker} has {v if isinstance(v, str) else repr(v)}" for worker, v in sorted(other.items()))
        raise RuntimeError(
            f"all workers need softreg {softreg.__version__}, the version of the client: {named}. Install that there"
        )
