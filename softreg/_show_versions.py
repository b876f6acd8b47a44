"""The versions and the hardware that a bug report has to name."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from threadpoolctl import threadpool_info

from softreg import _core
from softreg._threads import effective_n_threads

PACKAGES = ("softreg", "numpy", "scipy", "scikit-learn", "threadpoolctl", "joblib", "cython")
LEVELS = {4: "x86-64-v4 (AVX-512)", 3: "x86-64-v3 (AVX2, FMA)", 0: "portable"}


def show_versions() -> None:
    """Print versions, the SIMD level in use, OpenMP, BLAS and thread counts.

    Examples
    --------
    >>> import softreg
    >>> softreg.show_versions()  # doctest: +ELLIPSIS
    system ...
    """
    rows = {"system": platform.platform(), "machine": platform.machine(), "python": sys.version.replace("\n", " ")}
    for name in PACKAGES:
        try:
            rows[name] = version(name)
        except PackageNotFoundError:
            rows[name] = "not installed"
    rows["SIMD"] = LEVELS[_core.simd_level()]
    rows["OpenMP"] = "yes" if _core.openmp_enabled() else "no"
    rows["threads"] = f"{effective_n_threads(None)} by default, OpenMP allows {_core.max_threads()}"
    for number, library in enumerate(threadpool_info(), start=1):
        rows[f"library {number}"] = "{user_api}, {internal_api} {version}, {num_threads} threads".format(**library)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
