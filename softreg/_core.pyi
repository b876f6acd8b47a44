"""Signatures of the compiled kernels; `_reference.py` has what they compute.

All floating arrays of one call share a dtype, float32 or float64; all index arrays of a CSR matrix int32 or int64.
"""

from typing import Any, TypeAlias

import numpy as np

Floating: TypeAlias = np.dtype[np.float32] | np.dtype[np.float64]
FloatArray: TypeAlias = np.ndarray[Any, Floating]
FloatVector: TypeAlias = np.ndarray[tuple[int], Floating]
FloatMatrix: TypeAlias = np.ndarray[tuple[int, int], Floating]
Codes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.intp]]
Index: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int32] | np.dtype[np.int64]]

def logsumexp(
    Z: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def softmax(
    Z: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def log_softmax(
    Z: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def softmax_vjp(
    Z: FloatMatrix,
    U: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def cross_entropy(
    Z: FloatMatrix,
    codes: Codes | None,
    targets: FloatMatrix | None,
    sample_weight: FloatVector | None,
    label_smoothing: float,
    losses: FloatVector | None,
    residual: FloatMatrix | None,
    n_threads: int = 1,
) -> None: ...
def dense_logits(
    X: FloatMatrix,
    rows: Codes | None,
    W: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def dense_gradient(
    X: FloatMatrix,
    rows: Codes | None,
    G: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def dense_loss_gradient(
    X: FloatMatrix,
    rows: Codes | None,
    W: FloatMatrix,
    codes: Codes | None,
    targets: FloatMatrix | None,
    sample_weight: FloatVector | None,
    label_smoothing: float,
    scale: float,
    P: FloatMatrix | None,
    grad: FloatMatrix,
    n_threads: int = 1,
) -> float: ...
def dense_hessian_product(
    X: FloatMatrix,
    rows: Codes | None,
    P: FloatMatrix,
    sample_weight: FloatVector | None,
    scale: float,
    V: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def csr_logits(
    data: FloatVector,
    indices: Index,
    indptr: Index,
    rows: Codes | None,
    Wt: FloatMatrix,
    n_features: int,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def csr_gradient(
    data: FloatVector,
    indices: Index,
    indptr: Index,
    rows: Codes | None,
    G: FloatMatrix,
    n_features: int,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def csr_loss_gradient(
    data: FloatVector,
    indices: Index,
    indptr: Index,
    rows: Codes | None,
    Wt: FloatMatrix,
    n_features: int,
    codes: Codes | None,
    targets: FloatMatrix | None,
    sample_weight: FloatVector | None,
    label_smoothing: float,
    scale: float,
    P: FloatMatrix | None,
    residual: FloatMatrix,
    grad: FloatMatrix,
    n_threads: int = 1,
) -> float: ...
def csr_hessian_product(
    data: FloatVector,
    indices: Index,
    indptr: Index,
    rows: Codes | None,
    P: FloatMatrix,
    sample_weight: FloatVector | None,
    scale: float,
    Vt: FloatMatrix,
    n_features: int,
    curved: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def input_gradient(
    G: FloatMatrix,
    W: FloatMatrix,
    out: FloatArray,
    n_threads: int = 1,
) -> None: ...
def openmp_enabled() -> bool: ...
def simd_level() -> int: ...
def max_threads() -> int: ...
