"""The mathematics of softmax regression as validated functions over the compiled kernels.

Logits Z are one row (K,) or a batch (n, K), K >= 1; results have the same form. float32 and float64 are kept,
where two arrays differ the wider one wins, everything else becomes float64. Targets Y are integer codes or
distributions over the classes 0..K-1; they and sample weights follow the dtype of the logits. Inputs are not
modified. `out` receives the result and may be one of the inputs. A wrong shape or dtype, NaN or infinity, and
whatever else cannot be used raises a ValueError that names the argument.

References
----------
J. S. Bridle (1990), Probabilistic interpretation of feedforward classification network outputs, NATO ASI F68.
D. Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44.
C. Szegedy et al. (2016), Rethinking the Inception architecture for computer vision, CVPR.
P. Blanchard et al. (2021), Accurately computing the log-sum-exp and softmax functions, IMA J. Num. Anal. 41.
B. Fornberg (1988), Generation of finite difference formulas on arbitrarily spaced grids, Math. Comp. 51.
"""

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import assert_all_finite, check_array

from softreg import _core
from softreg._memory_layout import aligned, ensure_row_major
from softreg._threads import effective_n_threads, single_threaded_blas

__all__ = ["check_gradient", "cross_entropy", "cross_entropy_grad", "linear_cross_entropy_grad"]
__all__ += ["log_softmax", "logsumexp", "softmax", "softmax_jacobian", "softmax_vjp"]


def softmax(Z, *, out=None):
    """Probabilities ``p_k = exp(z_k) / sum_j exp(z_j)``, safe for all finite logits (Bridle 1990).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
    out : C-contiguous array of the shape and dtype of the result, optional

    Returns
    -------
    P : array like Z
        Every row sums to one.

    Raises
    ------
    ValueError
        If Z has another shape or a value that is not finite, or out does not fit.

    Examples
    --------
    >>> softmax([[0.0, 0.0], [1000.0, 0.0]])
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    return _run(_core.softmax, out, Z=_check_logits(Z))


def log_softmax(Z, *, out=None):
    """``z_k - logsumexp(z)``, exact where the probability rounds to zero (Blanchard et al. 2021).

    Takes, returns and raises what :func:`softmax` does. Results stop at the dtype's lowest finite number.

    Examples
    --------
    >>> log_softmax([0.0, -1000.0])
    array([    0., -1000.])
    """
    return _run(_core.log_softmax, out, Z=_check_logits(Z))


def logsumexp(Z):
    """``log(sum_k exp(z_k))``, shifted by the largest logit (Blanchard et al. 2021).

    Takes and raises what :func:`softmax` does, without `out`. Returns (n,) numbers, or a scalar for one row.

    Examples
    --------
    >>> float(logsumexp([1000.0, 0.0]))
    1000.0
    """
    Z = _check_logits(Z)
    out = np.empty(np.atleast_2d(Z).shape[0], Z.dtype)
    if not _core.logsumexp(np.atleast_2d(Z), out, effective_n_threads(None)):
        _raise_for_what_is_not_finite(Z=Z)
    return out if Z.ndim == 2 else out[0]


def softmax_jacobian(Z):
    """``J = diag(p) - p p^T`` (Bridle 1990; as the curvature of the likelihood, Böhning 1992).

    Takes and raises what :func:`softmax` does, without `out`. Returns J, (K, K) or (n, K, K): symmetric, its
    rows sum to zero, and ``J[..., i, j]`` is the derivative of ``p_i`` with respect to ``z_j``.

    Examples
    --------
    >>> softmax_jacobian([0.0, 0.0])
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    P = softmax(Z)
    J = -P[..., :, None] * P[..., None, :]
    i = np.arange(P.shape[-1])
    J[..., i, i] = 0
    # p (1 - p) as p times the other probabilities: it keeps its digits where p itself rounds to one
    J[..., i, i] = -J.sum(axis=-1)
    return J


def softmax_vjp(Z, U, *, out=None):
    """``J^T u = t - (1^T t) p`` with ``t = p * u``: a gradient in p carried back to the logits (Bridle 1990).

    Takes, returns and raises what :func:`softmax` does, and U, an array like Z: the gradient in p.

    Examples
    --------
    >>> softmax_vjp([0.0, 0.0], [1.0, 0.0])
    array([ 0.25, -0.25])
    """
    Z, U = _check_logits(Z), _check_floats(U, "U", finite=False)
    if U.shape != Z.shape:
        raise ValueError(f"U has shape {U.shape}, expected {Z.shape} as Z has")
    Z, U = _same_dtype(Z, U)
    return _run(_core.softmax_vjp, out, Z=Z, U=U)


def cross_entropy(Z, Y, *, sample_weight=None, label_smoothing=0.0, reduction="mean"):
    """``-sum_k y_k log softmax(z)_k`` of each row times its weight (Bridle 1990), averaged or summed.

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
    Y : integer codes of shape () for one row, else (n,), or distributions like Z
        A distribution is not negative and sums to one, up to the square root of its dtype's machine epsilon.
    sample_weight : array of shape (n,) or number, not negative; None stands for ones
    label_smoothing : float in [0, 1)
        Replaces ``y`` by ``(1 - label_smoothing) y + label_smoothing / K`` (Szegedy et al. 2016).
    reduction : {"mean", "sum", "none"}
        "mean" divides by the sum of the weights; "none" keeps the weighted losses of the rows.

    Returns
    -------
    loss : float, summed in float64; with "none" an (n,) array, or a scalar for one row, of the dtype of Z

    Raises
    ------
    ValueError
        If an argument is none of the above, or a mean is asked of weights that sum to zero.

    Examples
    --------
    >>> round(cross_entropy([[0.0, 0.0], [0.0, -1000.0]], [0, 1]), 3)
    500.347
    """
    return _cross_entropy(Z, Y, sample_weight, label_smoothing, reduction, False, None)[0]


def cross_entropy_grad(Z, Y, *, sample_weight=None, label_smoothing=0.0, reduction="mean", out=None):
    """:func:`cross_entropy` and its gradient ``s (p - y)``, divided by ``sum(s)`` for "mean" (Bridle 1990).

    Takes and raises what :func:`cross_entropy` does, and `out` for the gradient as :func:`softmax` does.

    Returns
    -------
    loss, G : as :func:`cross_entropy` returns it, and an array like Z
        G is the derivative of the loss; with "none", of the sum of the losses.

    Examples
    --------
    >>> loss, G = cross_entropy_grad([[0.0, 0.0]], [[0.25, 0.75]])
    >>> G
    array([[ 0.25, -0.25]])
    """
    return _cross_entropy(Z, Y, sample_weight, label_smoothing, reduction, True, out)


def linear_cross_entropy_grad(X, Y, W, b=None, *, sample_weight=None, label_smoothing=0.0):
    """Weighted mean cross-entropy of the logits ``X W^T + b``, and its gradients (Böhning 1992).

    With ``G = s (P - Y) / sum(s)`` they are ``G^T X`` in W, ``sum_i G_i`` in b and ``G W`` in X. Raises what
    :func:`cross_entropy` does, also where W or b does not match X, or the logits overflow.

    Parameters
    ----------
    X : array or sparse matrix of shape (n, d); a sparse one is used in CSR form
    Y : integer codes of shape (n,) or distributions of shape (n, K)
    W : array of shape (K, d)
    b : array of shape (K,); None stands for zeros
    sample_weight, label_smoothing : as in :func:`cross_entropy`

    Returns
    -------
    loss : float
    dW, db, dX : arrays of shape (K, d), (K,) and (n, d), dense

    Examples
    --------
    >>> loss, dW, db, dX = linear_cross_entropy_grad([[2.0], [0.0]], [0, 1], [[0.0], [0.0]])
    >>> dW
    array([[-0.5],
           [ 0.5]])
    """
    X = ensure_row_major(check_array(X, accept_sparse="csr", dtype=_FLOATS, input_name="X"))
    W = _check_floats(W, "W")
    if W.ndim != 2 or W.shape[0] == 0 or W.shape[1] != X.shape[1]:
        raise ValueError(f"W has shape {W.shape}, expected (K, {X.shape[1]}) with K >= 1 to match X")
    b = np.zeros(len(W), W.dtype) if b is None else _check_floats(b, "b")
    if b.shape != W.shape[:1]:
        raise ValueError(f"b has shape {b.shape}, expected {W.shape[:1]} to match W")
    X, W, b = _same_dtype(X, W, b)
    (n, d), K = X.shape, len(W)
    V, Z, dX = np.column_stack([W, b]), np.empty((n, K), X.dtype), np.empty((n, d), X.dtype)
    dV = np.empty(V.T.shape if issparse(X) else V.shape, X.dtype)
    n_threads = effective_n_threads(None)
    with single_threaded_blas():
        if issparse(X):
            csr = (X.data, X.indices, X.indptr, None)
            _core.csr_logits(*csr, np.ascontiguousarray(V.T), d, Z, n_threads)
        else:
            _core.dense_logits(X, None, V, Z, n_threads)
        assert_all_finite(Z, input_name="X W^T + b")
        loss, G = cross_entropy_grad(Z, Y, sample_weight=sample_weight, label_smoothing=label_smoothing)
        if issparse(X):
            _core.csr_gradient(*csr, G, d, dV, n_threads)
            dV = dV.T
        else:
            _core.dense_gradient(X, None, G, dV, n_threads)
        _core.input_gradient(G, W, dX, n_threads)
    return loss, dV[:, :d].copy(), dV[:, d].copy(), dX


def check_gradient(value_and_grad, x, *, eps=None):
    """Compare a gradient with central five-point differences (Fornberg 1988).

    ``f'(x) = (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h``, in one entry of x at a time. Errors are
    relative to the larger of the two derivatives; those under ``sqrt(e) |f| / h``, e the machine epsilon, are
    too small for differences to resolve and count as that large. So a right gradient stays under some ``6
    sqrt(e)`` (1e-7, and 2e-3 in float32); a wrong entry comes out far above that, up to 2. An argument that
    cannot be used, and a gradient of another shape than x, raises a ValueError.

    Parameters
    ----------
    value_and_grad : callable
        ``value_and_grad(x)`` returns a number and its gradient, an array like x.
    x : array of any shape, not empty; the function gets arrays of its shape and dtype (float32, else float64)
    eps : positive float, optional
        Step h for entries up to one in size; larger entries step in proportion. The default ``e**(1/5)``
        balances the truncation, of order ``h**4``, with the rounding, of order ``e / h``.

    Returns
    -------
    error, index : float and tuple of int
        The worst relative error, NaN if the function returned NaN, and where it stands in x.

    Examples
    --------
    >>> error, index = check_gradient(lambda x: ((x**2).sum(), 2 * x + [0, 0, 1]), [1.0, 2.0, 3.0])
    >>> round(error, 3), index
    (0.143, (2,))
    """
    x = _check_floats(x, "x")
    e = float(np.finfo(x.dtype).eps)
    eps = e**0.2 if eps is None else eps
    if not (eps > 0 and x.size):
        raise ValueError(f"eps must be positive and x not empty; got eps={eps!r} and x of shape {x.shape}")
    value, gradient = value_and_grad(x.copy())
    if np.shape(gradient) != x.shape:
        raise ValueError(f"value_and_grad returned a {np.shape(gradient)} gradient, expected {x.shape}")
    error = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        move, h = np.zeros_like(x), eps * max(1.0, abs(float(x[index])))
        move[index] = h
        values = [float(value_and_grad(x + step * move)[0]) for step in (-2, -1, 1, 2)]
        slope, given = np.dot([1, -8, 8, -1], values) / (12 * h), float(np.asarray(gradient)[index])
        floor = np.sqrt(e) * np.abs([value, *values]).max() / h + np.finfo(x.dtype).tiny
        error[index] = abs(slope - given) / max(abs(slope), abs(given), floor)
    worst = np.unravel_index(error.argmax(), x.shape)
    return float(error[worst]), tuple(int(i) for i in worst)


# --- validation, and calls of kernels ---------------------------------------------------------------------

_FLOATS = [np.float64, np.float32]


def _check_floats(x, name, dtype=_FLOATS, finite=True):
    """`x` as a C-contiguous, aligned array of any shape, copied only where it has to be.

    Without `finite` the caller looks for what is not finite: a kernel does so on its way.
    """
    if not finite and type(x) is np.ndarray and x.dtype in dtype and x.flags.c_contiguous and x.flags.aligned:
        return x  # check_array would say the same, in a time that counts beside small kernels
    any_shape = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "ensure_min_features": 0}
    return aligned(
        check_array(x, dtype=dtype, order="C", input_name=name, ensure_all_finite=finite, **any_shape)
    )


def _check_logits(Z):
    """`Z` as the kernels take it; they tell whether it is finite."""
    Z = _check_floats(Z, "Z", finite=False)
    if Z.ndim not in (1, 2) or Z.shape[-1] == 0:
        raise ValueError(f"Z has shape {Z.shape}, expected (K,) or (n, K) with K >= 1")
    return Z


def _raise_for_what_is_not_finite(**inputs):
    """Raise the error that names the input which a kernel found not to be finite."""
    for name, x in inputs.items():
        assert_all_finite(x, input_name=name)


def _check_targets(Y, shape, dtype):
    """Return what the kernels take, (codes, None) or (None, targets), for logits of `shape` (n, K) or (K,)."""
    K = shape[-1]
    if type(Y) is np.ndarray and Y.dtype == np.intp and Y.shape == shape[:-1] == Y.shape[:1] and Y.flags.carray:
        if Y.view(np.uintp).max(initial=0) < K:  # negative codes are large ones there
            return Y, None
    Y = _check_floats(Y, "Y", "numeric")
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
    _check_distributions(Y)
    return None, Y.astype(dtype, copy=False)


def _target_tolerance(dtype):
    """Return how far the sum of a distribution may be from one.

    Targets are often the output of another softmax: half of the digits of their own dtype have to be right.
    """
    return float(np.sqrt(np.finfo(dtype).eps)) if dtype.kind == "f" else 0.0


def _check_distributions(Y):
    """Raise the error that names the first entry or row of Y (n, K) that is not a distribution."""
    assert_all_finite(Y, input_name="Y")
    if (bad := Y < 0).any():
        i, k = np.argwhere(bad)[0]
        raise ValueError(f"Y has {Y[i, k]} at row {i}, column {k}: a probability cannot be negative")
    totals = Y.sum(axis=1, dtype=np.float64)
    if (bad := np.abs(totals - 1) > _target_tolerance(Y.dtype)).any():
        i = bad.argmax()
        raise ValueError(f"Y row {i} sums to {totals[i]:.10g}, expected 1")


def _check_weights(sample_weight, n, dtype):
    """Weights as an (n,) array, or None for ones; a number stands for n equal weights."""
    if sample_weight is None:
        return None
    s = _check_floats(sample_weight, "sample_weight", dtype)
    s = np.full(n, s) if s.ndim == 0 else s
    if s.shape != (n,):
        raise ValueError(f"sample_weight has shape {s.shape}, expected ({n},)")
    if (bad := s < 0).any():
        i = bad.argmax()
        raise ValueError(f"sample_weight[{i}] = {s[i]} is negative")
    return s


def _same_dtype(*arrays):
    dtype = np.result_type(*(a.dtype for a in arrays))
    return [a.astype(dtype, copy=False) for a in arrays]


def _run(kernel, out, **inputs):
    """`kernel` over rows or batches of one shape, into `out`."""
    out = _check_out(out, inputs["Z"])
    given = _apart(out, *inputs.values())
    if not kernel(*map(np.atleast_2d, given), np.atleast_2d(out), effective_n_threads(None)):
        _put_back(inputs.values(), given)
        _raise_for_what_is_not_finite(**inputs)
    return out


def _cross_entropy(Z, Y, sample_weight, label_smoothing, reduction, with_gradient, out):
    Z = _check_logits(Z)
    n = len(np.atleast_2d(Z))
    if type(Y) is np.ndarray and (Y.dtype, Y.shape) == (Z.dtype, Z.shape) and Y.flags.c_contiguous and Y.flags.aligned:
        # The kernel checks them on its way. It rounds their sums; what it refuses has to be wrong without that, too.
        codes, targets = None, np.atleast_2d(Y)
        tolerance = _target_tolerance(Y.dtype) + 4 * float(np.finfo(Y.dtype).eps)
    else:
        codes, targets = _check_targets(Y, Z.shape, Z.dtype)
        tolerance = 0.0
    s = _check_weights(sample_weight, n, Z.dtype)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing!r}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")
    scale = 1.0
    if reduction == "mean":
        total = float(n if s is None else s.sum(dtype=np.float64))
        if not total > 0:
            raise ValueError(f"sample_weight sums to {total:g} over {n} rows: the mean loss is undefined")
        scale = 1 / total
    losses = np.empty(n, Z.dtype) if reduction == "none" else None
    G = _check_out(out, Z) if with_gradient else None
    inputs = (np.atleast_2d(Z), codes, targets, s)
    given, residual = _apart(G, *inputs), None if G is None else np.atleast_2d(G)
    options = (float(label_smoothing), losses, residual, effective_n_threads(None), scale, tolerance)
    loss = _core.cross_entropy(*given, *options)
    if np.isnan(loss):
        _put_back(inputs, given)
        _raise_for_what_is_not_finite(Z=Z)
        _check_distributions(targets)  # logits are finite, so it is they
    if reduction == "none":
        return losses if Z.ndim == 2 else losses[0], G
    return loss, G


def _check_out(out, like):
    """`out`, or a new array where it is None, for a result like `like`."""
    if out is None:
        return np.empty_like(like)
    kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
    if (kind, np.shape(out)) != (like.dtype, like.shape):
        raise ValueError(f"out is {kind} of shape {np.shape(out)}, expected {like.dtype} of {like.shape}")
    if not out.flags.carray:
        raise ValueError(f"out must be C-contiguous, aligned and writeable; got strides {out.strides}")
    return out


def _apart(out, *inputs):
    """The inputs, as copies where `out` overlaps them: a kernel writes while it still reads."""
    return [x.copy() if x is not None and np.may_share_memory(x, out) else x for x in inputs]


def _put_back(inputs, copies):
    """Undo what a kernel did to inputs that `out` overlaps: a call that raises leaves them as they were."""
    for x, copy in zip(inputs, copies, strict=True):
        if copy is not x:
            x[...] = copy
