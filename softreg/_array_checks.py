"""Checks of array arguments: return the array as the kernels take it, or raise an error that names it."""

import numpy as np
from sklearn.utils import assert_all_finite, check_array

from softreg._memory_layout import aligned

FLOATS = (np.float64, np.float32)


def check_floats(x, name, dtype=FLOATS, finite=True):
    """Return `x` as a C-contiguous, aligned array of any shape; copied only where it is not one already.

    With finite=False NaN and infinity pass: the caller's kernel looks for them while it reads.
    """
    if not finite and type(x) is np.ndarray and x.dtype in dtype and x.flags.c_contiguous and x.flags.aligned:
        return x  # check_array would say the same, in a time that counts beside small kernels
    any_shape = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "ensure_min_features": 0}
    return aligned(
        check_array(x, dtype=dtype, order="C", input_name=name, ensure_all_finite=finite, **any_shape)
    )


def check_targets(Y, shape, dtype):
    """Return the targets as the kernels take them, for logits of `shape` (n, K) or (K,).

    That is (codes, None) with codes (n,) intp, or (None, targets) with targets (n, K) of the given dtype.
    """
    K = shape[-1]
    if type(Y) is np.ndarray and Y.dtype == np.intp and Y.shape == shape[:-1] == Y.shape[:1] and Y.flags.carray:
        if Y.view(np.uintp).max(initial=0) < K:  # negative codes are large ones there
            return Y, None
    Y = check_floats(Y, "Y", "numeric")
    if Y.shape == shape[:-1]:
        if Y.dtype.kind not in "iu":
            raise ValueError(f"Y has dtype {Y.dtype}, expected integer codes or distributions of {shape}")
        Y = np.atleast_1d(Y)
        if (bad := (Y < 0) | (Y >= K)).any():
            i = bad.argmax()
            raise ValueError(f"Y has {Y[i]} at index {i}, outside 0..K-1 with K={K}")
        return Y.astype(np.intp, copy=False), None
    if Y.shape != shape:
        raise ValueError(f"Y has shape {Y.shape}, expected codes of {shape[:-1]} or distributions of {shape}")
    Y = np.atleast_2d(Y)
    check_distributions(Y)
    return None, Y.astype(dtype, copy=False)


def target_tolerance(dtype):
    """Return how far the sum of a distribution may be from one.

    Targets are often the output of another softmax: half of the digits of their own dtype have to be right.
    """
    return float(np.sqrt(np.finfo(dtype).eps)) if dtype.kind == "f" else 0.0


def check_distributions(Y):
    """Raise a ValueError that names the first entry or row of Y (n, K) that is not a distribution."""
    assert_all_finite(Y, input_name="Y")
    if (bad := Y < 0).any():
        i, k = np.argwhere(bad)[0]
        raise ValueError(f"Y has {Y[i, k]} at row {i}, column {k}: a probability cannot be negative")
    totals = Y.sum(axis=1, dtype=np.float64)
    if (bad := np.abs(totals - 1) > target_tolerance(Y.dtype)).any():
        i = bad.argmax()
        raise ValueError(f"Y row {i} sums to {totals[i]:.10g}, expected 1")


def check_weights(sample_weight, n, dtype):
    """Return the weights as an (n,) array, or None for ones; a number stands for n equal weights."""
    if sample_weight is None:
        return None
    s = check_floats(sample_weight, "sample_weight", dtype)
    s = np.full(n, s) if s.ndim == 0 else s
    if s.shape != (n,):
        raise ValueError(f"sample_weight has shape {s.shape}, expected ({n},)")
    if (bad := s < 0).any():
        i = bad.argmax()
        raise ValueError(f"sample_weight[{i}] = {s[i]} is negative")
    return s
