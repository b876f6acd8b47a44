"""Signatures of the compiled kernels; `_dense_stream_reference.py` has what they compute."""

from softreg._core import Matrix, Vector

# fmt: off
def standardize(X: Matrix, location: Vector, scale: Vector, out: Matrix) -> None: ...
def add_moments(Z: Matrix, weight: Vector | None, sums: Vector, squares: Vector) -> None: ...
