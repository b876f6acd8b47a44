"""Signatures of the coordinate descent; `_coordinate_descent_reference.py` has what it computes."""

from typing import Any, TypeAlias

import numpy as np

Doubles: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32] | np.dtype[np.float64]]
Index: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int32] | np.dtype[np.int64]]
Positions: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]

# fmt: off
def quadratic_descent(
    H: Doubles, l1: Doubles, g: Doubles, w: Doubles, tolerance: float, max_sweeps: int
) -> int: ...
def newton_step(H: Doubles, l1: Doubles, shared: Positions, g: Doubles, w: Doubles) -> None: ...
def shift_classes(shared: Positions, l1: Doubles, l2: Doubles, g: Doubles, w: Doubles) -> None: ...
def minimize_quadratic(
    H: Doubles, l1: Doubles, l2: Doubles, shared: Positions, g: Doubles, w: Doubles, tolerance: float, small: float,
    largest: int, max_rounds: int, max_sweeps: int, small_gain: float,
) -> float: ...
def column_descent(
    data: Floats, indices: Index, indptr: Index, columns: Positions, classes: Positions, P: Doubles, s: Doubles,
    damping: float, per_class: float, slopes: Doubles, l2: Doubles, l1: Doubles, w: Doubles, Z: Doubles,
    means: Doubles, g: Doubles, tolerance: float, max_sweeps: int,
) -> int: ...
