"""Signature of the compiled pass; `_sparse_stream_reference.py` has what it computes."""

from softreg._core import Codes, Index, Matrix, Vector

# fmt: off
def csr_stream(
    data: Vector, indices: Index, indptr: Index, rows: Codes | None, codes: Codes | None, targets: Matrix | None,
    sample_weight: Vector | None, label_smoothing: float, l2: float, l1: float, rate: float, band: float, limit: float,
    damping: float, n_features: int, theta: Matrix, features: Matrix, totals: Vector, score: Vector,
) -> int: ...
