"""Signature of the compiled kernel of dual coordinate ascent; `_reference.py` has what it computes."""

from softreg._core import Codes, Index, Matrix, Vector

# fmt: off
def csr_dual_epoch(
    data: Vector, indices: Index, indptr: Index, rows: Codes | None, order: Codes, Wt: Matrix, n_features: int,
    sample_weight: Vector | None, scale: float, constant: float, Q: Matrix,
) -> float: ...
