"""Signatures of the compiled kernels of the hot path; `_reference.py` has what they compute.

All floating arrays of one call share a dtype, float32 or float64; all index arrays of a CSR matrix int32 or int64.
"""

from typing import Any, TypeAlias

import numpy as np

Floating: TypeAlias = np.dtype[np.float32] | np.dtype[np.float64]
Floats: TypeAlias = np.ndarray[Any, Floating]
Vector: TypeAlias = np.ndarray[tuple[int], Floating]
Matrix: TypeAlias = np.ndarray[tuple[int, int], Floating]
Codes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.intp]]
Index: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int32] | np.dtype[np.int64]]

# fmt: off
def logsumexp(Z: Matrix, out: Floats, n_threads: int = 1) -> bool: ...
def softmax(Z: Matrix, out: Floats, n_threads: int = 1, within_pass: bool = False) -> bool: ...
def log_softmax(Z: Matrix, out: Floats, n_threads: int = 1) -> bool: ...
def softmax_vjp(Z: Matrix, U: Matrix, out: Floats, n_threads: int = 1) -> bool: ...
def cross_entropy(
    Z: Matrix, codes: Codes | None, targets: Matrix | None, sample_weight: Vector | None, label_smoothing: float,
    losses: Vector | None, residual: Matrix | None, n_threads: int = 1, scale: float = 1,
    target_tolerance: float = 0,
) -> float: ...
def dense_logits(X: Matrix, rows: Codes | None, W: Matrix, out: Floats, n_threads: int = 1) -> None: ...
def dense_gradient(X: Matrix, rows: Codes | None, G: Matrix, out: Floats, n_threads: int = 1) -> None: ...
def dense_loss_gradient(
    X: Matrix, rows: Codes | None, W: Matrix, codes: Codes | None, targets: Matrix | None,
    sample_weight: Vector | None, label_smoothing: float, scale: float, l2: float, P: Matrix | None,
    grad: Matrix, n_threads: int = 1,
) -> float: ...
def dense_hessian_product(
    X: Matrix, rows: Codes | None, P: Matrix, sample_weight: Vector | None, scale: float, l2: float, V: Matrix,
    out: Floats, n_threads: int = 1,
) -> None: ...
def input_gradient(G: Matrix, W: Matrix, out: Floats, n_threads: int = 1) -> None: ...
def csr_logits(
    data: Vector, indices: Index, indptr: Index, rows: Codes | None, Wt: Matrix, n_features: int, out: Floats,
    n_threads: int = 1,
) -> None: ...
def csr_gradient(
    data: Vector, indices: Index, indptr: Index, rows: Codes | None, G: Matrix, n_features: int, out: Floats,
    n_threads: int = 1,
) -> None: ...
def csr_loss_gradient(
    data: Vector, indices: Index, indptr: Index, rows: Codes | None, Wt: Matrix, n_features: int,
    codes: Codes | None, targets: Matrix | None, sample_weight: Vector | None, label_smoothing: float, scale: float,
    l2: float, P: Matrix | None, residual: Matrix, grad: Matrix, n_threads: int = 1,
) -> float: ...
def csr_curve(
    data: Vector, indices: Index, indptr: Index, rows: Codes | None, P: Matrix, sample_weight: Vector | None,
    scale: float, Vt: Matrix, n_features: int, curved: Matrix, n_threads: int = 1,
) -> float: ...
def openmp_enabled() -> bool: ...
def simd_level() -> int: ...
def max_threads() -> int: ...
