"""Signature of the compiled kernel of the whole Hessian; `_reference.py` has what it computes."""

from typing import Any, TypeAlias

import numpy as np

Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32] | np.dtype[np.float64]]
Doubles: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Codes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.intp]]

# fmt: off
def dense_hessian(
    X: Matrix, rows: Codes | None, P: Matrix, weight: Doubles, mean: Doubles, deviation: Doubles, out: Doubles,
    n_threads: int = 1,
) -> None: ...
