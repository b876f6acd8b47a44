"""The mathematics of softmax regression as validated functions over the compiled kernels.

Logits Z are one row (K,) or a batch (n, K), K >= 1; results have the same form. float32 and float64 are kept. Where
two arrays differ, the wider dtype is used; everything else becomes float64. Targets Y are class codes or
distributions over the classes 0..K-1; they and sample weights follow the dtype of the logits. Inputs are not
modified. `out` receives the result and may be one of the inputs. An argument that cannot be used (a wrong shape or
dtype, NaN, infinity) raises a ValueError that names it.

References
----------
- J. S. Bridle (1990), Probabilistic interpretation of feedforward classification network outputs, NATO ASI F68.
- D. Böhning (1992), Multinomial logistic regression algorithm, Ann. Inst. Statist. Math. 44.
- C. Szegedy et al. (2016), Rethinking the Inception architecture for computer vision, CVPR.
- P. Blanchard et al. (2021), Accurately computing the log-sum-exp and softmax functions, IMA J. Num. Anal. 41.
- B. Fornberg (1988), Generation of finite difference formulas on arbitrarily spaced grids, Math. Comp. 51.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import assert_all_finite, check_array

from softreg import _core
from softreg._array_checks import (
    FLOATS,
    check_distributions,
    check_floats,
    check_targets,
    check_weights,
    target_tolerance,
)
from softreg._design_matrix import design_matrix
from softreg._memory_layout import ensure_row_major
from softreg._threads import effective_n_threads, single_threaded_blas
from softreg._typing import Floats, MatrixLike

__all__ = ["check_gradient", "cross_entropy", "cross_entropy_grad", "linear_cross_entropy_grad"]
__all__ += ["log_softmax", "logsumexp", "softmax", "softmax_jacobian", "softmax_vjp"]


def softmax(Z: ArrayLike, *, out: Floats | None = None) -> Floats:
    """Return the probabilities ``p_k = exp(z_k) / sum_j exp(z_j)``, safe for all finite logits (Bridle 1990).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.
    out : array of the shape and dtype of the result, optional
        C-contiguous array that receives the result; it may be Z itself.

    Returns
    -------
    P : array of the shape of Z
        The probabilities: every row sums to one.

    Raises
    ------
    ValueError
        If Z has another shape or a value that is not finite, or `out` does not fit.

    Examples
    --------
    >>> softmax([[0.0, 0.0], [1000.0, 0.0]])
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    return _run(_core.softmax, out, Z=_check_logits(Z))


def log_softmax(Z: ArrayLike, *, out: Floats | None = None) -> Floats:
    """Return ``z_k - logsumexp(z)``, exact where the probability rounds to zero (Blanchard et al. 2021).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.
    out : array of the shape and dtype of the result, optional
        C-contiguous array that receives the result; it may be Z itself.

    Returns
    -------
    log_P : array of the shape of Z
        The logarithms of the probabilities, at least the lowest finite number of the dtype.

    Raises
    ------
    ValueError
        If Z has another shape or a value that is not finite, or `out` does not fit.

    Examples
    --------
    >>> log_softmax([0.0, -1000.0])
    array([    0., -1000.])
    """
    return _run(_core.log_softmax, out, Z=_check_logits(Z))


def logsumexp(Z: ArrayLike) -> Any:
    """Return ``log(sum_k exp(z_k))``, shifted by the largest logit (Blanchard et al. 2021).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.

    Returns
    -------
    values : array of shape (n,), or scalar for one row
        One number for each row.

    Raises
    ------
    ValueError
        If Z has another shape or a value that is not finite.

    Examples
    --------
    >>> float(logsumexp([1000.0, 0.0]))
    1000.0
    """
    Z = _check_logits(Z)
    out = np.empty(np.atleast_2d(Z).shape[0], Z.dtype)
    if not _core.logsumexp(np.atleast_2d(Z), out, effective_n_threads(None)):
        _raise_not_finite(Z=Z)
    return out if Z.ndim == 2 else out[0]


def softmax_jacobian(Z: ArrayLike) -> Floats:
    """Return ``J = diag(p) - p p^T`` (Bridle 1990; as the curvature of the likelihood, Böhning 1992).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.

    Returns
    -------
    J : array of shape (K, K) or (n, K, K)
        ``J[..., i, j]`` is the derivative of ``p_i`` with respect to ``z_j``. J is symmetric, and its rows sum to zero.

    Raises
    ------
    ValueError
        If Z has another shape or a value that is not finite.

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


def softmax_vjp(Z: ArrayLike, U: ArrayLike, *, out: Floats | None = None) -> Floats:
    """Carry a gradient in p back to the logits: ``J^T u = t - (1^T t) p`` with ``t = p * u`` (Bridle 1990).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.
    U : array of the shape of Z
        The gradient with respect to the probabilities.
    out : array of the shape and dtype of the result, optional
        C-contiguous array that receives the result; it may be Z or U itself.

    Returns
    -------
    V : array of the shape of Z
        The gradient with respect to the logits.

    Raises
    ------
    ValueError
        If Z or U has another shape or a value that is not finite, or `out` does not fit.

    Examples
    --------
    >>> softmax_vjp([0.0, 0.0], [1.0, 0.0])
    array([ 0.25, -0.25])
    """
    Z, U = _check_logits(Z), check_floats(U, "U", finite=False)
    if U.shape != Z.shape:
        raise ValueError(f"U has shape {U.shape}, expected {Z.shape} as Z has")
    Z, U = _same_dtype(Z, U)
    return _run(_core.softmax_vjp, out, Z=Z, U=U)


def cross_entropy(
    Z: ArrayLike, Y: ArrayLike, *, sample_weight: ArrayLike | None = None, label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    """Return the cross-entropy ``-sum_k y_k log softmax(z)_k`` of the rows times their weights (Bridle 1990).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.
    Y : array of shape (n,) or (n, K)
        Class codes, int, or target distributions; for one row of logits of shape () or (K,). A distribution is not
        negative and sums to one, up to the square root of its dtype's machine epsilon.
    sample_weight : array of shape (n,) or float, default=None
        Weights of the rows, not negative; None stands for ones.
    label_smoothing : float, default=0.0
        Replaces ``y`` by ``(1 - label_smoothing) y + label_smoothing / K`` (Szegedy et al. 2016); in [0, 1).
    reduction : {"mean", "sum", "none"}, default="mean"
        "mean" divides by the sum of the weights; "none" keeps the weighted losses of the rows.

    Returns
    -------
    loss : float, or array of shape (n,) for reduction="none"
        The mean or the sum, computed in float64; or the losses in the dtype of Z, a scalar for one row.

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


def cross_entropy_grad(
    Z: ArrayLike, Y: ArrayLike, *, sample_weight: ArrayLike | None = None, label_smoothing: float = 0.0,
    reduction: str = "mean", out: Floats | None = None,
) -> tuple[Any, Floats]:  # fmt: skip
    """Return :func:`cross_entropy` and its gradient ``s (p - y)``, divided by ``sum(s)`` for "mean" (Bridle 1990).

    Parameters
    ----------
    Z : array of shape (K,) or (n, K)
        Logits: one row, or a batch of n rows.
    Y : array of shape (n,) or (n, K)
        Class codes, int, or target distributions; for one row of logits of shape () or (K,). A distribution is not
        negative and sums to one, up to the square root of its dtype's machine epsilon.
    sample_weight : array of shape (n,) or float, default=None
        Weights of the rows, not negative; None stands for ones.
    label_smoothing : float, default=0.0
        Replaces ``y`` by ``(1 - label_smoothing) y + label_smoothing / K`` (Szegedy et al. 2016); in [0, 1).
    reduction : {"mean", "sum", "none"}, default="mean"
        "mean" divides by the sum of the weights; "none" keeps the weighted losses of the rows.
    out : array of the shape and dtype of the result, optional
        C-contiguous array that receives the gradient; it may be Z itself.

    Returns
    -------
    loss : float, or array of shape (n,) for reduction="none"
        As :func:`cross_entropy` returns it.
    G : array of the shape of Z
        The derivative of the loss with respect to Z; with "none", of the sum of the losses.

    Raises
    ------
    ValueError
        If an argument is none of the above, or a mean is asked of weights that sum to zero.

    Examples
    --------
    >>> loss, G = cross_entropy_grad([[0.0, 0.0]], [[0.25, 0.75]])
    >>> G
    array([[ 0.25, -0.25]])
    """
    return _cross_entropy(Z, Y, sample_weight, label_smoothing, reduction, True, out)


def linear_cross_entropy_grad(
    X: MatrixLike, Y: ArrayLike, W: ArrayLike, b: ArrayLike | None = None, *,
    sample_weight: ArrayLike | None = None, label_smoothing: float = 0.0,
) -> tuple[float, Floats, Floats, Floats]:  # fmt: skip
    """Return the weighted mean cross-entropy of the logits ``X W^T + b``, and its gradients (Böhning 1992).

    With ``G = s (P - Y) / sum(s)`` they are ``G^T X`` in W, ``sum_i G_i`` in b and ``G W`` in X.

    Parameters
    ----------
    X : array or sparse matrix of shape (n, d)
        Features; a sparse X is used in CSR form.
    Y : array of shape (n,) or (n, K)
        Class codes, int, or target distributions, as :func:`cross_entropy` takes them.
    W : array of shape (K, d)
        Coefficients.
    b : array of shape (K,), default=None
        Intercepts; None stands for zeros.
    sample_weight : array of shape (n,) or float, default=None
        Weights of the rows, not negative; None stands for ones.
    label_smoothing : float, default=0.0
        Replaces ``y`` by ``(1 - label_smoothing) y + label_smoothing / K`` (Szegedy et al. 2016); in [0, 1).

    Returns
    -------
    loss : float
        The mean cross-entropy.
    dW : array of shape (K, d)
        Its gradient with respect to W.
    db : array of shape (K,)
        Its gradient with respect to b.
    dX : array of shape (n, d)
        Its gradient with respect to X, dense.

    Raises
    ------
    ValueError
        If an argument is none of the above, W or b does not match X, the weights sum to zero, or the logits overflow.

    Examples
    --------
    >>> loss, dW, db, dX = linear_cross_entropy_grad([[2.0], [0.0]], [0, 1], [[0.0], [0.0]])
    >>> dW
    array([[-0.5],
           [ 0.5]])
    """
    X = ensure_row_major(check_array(X, accept_sparse="csr", dtype=FLOATS, input_name="X"))
    W = check_floats(W, "W")
    if W.ndim != 2 or W.shape[0] == 0 or W.shape[1] != X.shape[1]:
        raise ValueError(f"W has shape {W.shape}, expected (K, {X.shape[1]}) with K >= 1 to match X")
    b = np.zeros(len(W), W.dtype) if b is None else check_floats(b, "b")
    if b.shape != W.shape[:1]:
        raise ValueError(f"b has shape {b.shape}, expected {W.shape[:1]} to match W")
    X, W, b = _same_dtype(X, W, b)
    design, dX = design_matrix(X, n_threads=effective_n_threads(None)), np.empty(X.shape, X.dtype)
    with single_threaded_blas():
        Z = design.logits(design.arranged(np.column_stack([W, b])))
        assert_all_finite(Z, input_name="X W^T + b")
        loss, G = cross_entropy_grad(Z, Y, sample_weight=sample_weight, label_smoothing=label_smoothing)
        dV = design.accumulate(G)
        _core.input_gradient(G, W, dX, design.n_threads)
    return loss, np.array(design.coef(dV), order="C"), dV[:, -1].copy(), dX


def check_gradient(
    value_and_grad: Callable[[Any], tuple[Any, Any]], x: ArrayLike, *, eps: float | None = None
) -> tuple[float, tuple[int, ...]]:
    """Compare a gradient with central five-point differences (Fornberg 1988).

    They are ``f'(x) = (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h``, in one entry of x at a time. Errors are
    relative to the larger of the two derivatives. A derivative under ``sqrt(e) |f| / h``, e the machine epsilon, is
    too small for differences to resolve and counts as that large. So a right gradient stays under some ``6 sqrt(e)``
    (1e-7, and 2e-3 in float32); a wrong entry comes out far above that, up to 2.

    Parameters
    ----------
    value_and_grad : callable
        ``value_and_grad(x)`` returns a number and its gradient, an array like x.
    x : array of any shape, not empty
        The point to compare at. The function gets arrays of its shape and dtype (float32, else float64).
    eps : float, optional
        Step h for entries up to one in size, positive; larger entries step in proportion. The default ``e**(1/5)``
        balances the truncation, of order ``h**4``, with the rounding, of order ``e / h``.

    Returns
    -------
    error : float
        The largest relative error, NaN if the function returned NaN.
    index : tuple of int
        Where it stands in x.

    Raises
    ------
    ValueError
        If x or eps cannot be used, or the gradient has another shape than x.

    Examples
    --------
    >>> error, index = check_gradient(lambda x: ((x**2).sum(), 2 * x + [0, 0, 1]), [1.0, 2.0, 3.0])
    >>> round(error, 3), index
    (0.143, (2,))
    """
    x = check_floats(x, "x")
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

def _check_logits(Z):
    """Return `Z` as the kernels take it, (K,) or (n, K); the kernels tell whether it is finite."""
    Z = check_floats(Z, "Z", finite=False)
    if Z.ndim not in (1, 2) or Z.shape[-1] == 0:
        raise ValueError(f"Z has shape {Z.shape}, expected (K,) or (n, K) with K >= 1")
    return Z


def _raise_not_finite(**inputs):
    """Raise the ValueError that names the first of the inputs which is not finite."""
    for name, x in inputs.items():
        assert_all_finite(x, input_name=name)


def _same_dtype(*arrays):
    """Return the arrays in the widest of their dtypes; copied only where they have another."""
    dtype = np.result_type(*(a.dtype for a in arrays))
    return [a.astype(dtype, copy=False) for a in arrays]


def _run(kernel, out, **inputs):
    """Run a kernel on inputs of one shape, (K,) or (n, K); return `out`, or a new array, with the result."""
    out = _check_out(out, inputs["Z"])
    given = _apart(out, *inputs.values())
    if not kernel(*map(np.atleast_2d, given), np.atleast_2d(out), effective_n_threads(None)):
        _put_back(inputs.values(), given)
        _raise_not_finite(**inputs)
    return out


def _cross_entropy(Z, Y, sample_weight, label_smoothing, reduction, with_gradient, out):
    """Return the loss and, with_gradient, its gradient in `out` or a new array; otherwise None."""
    Z = _check_logits(Z)
    n = len(np.atleast_2d(Z))
    if type(Y) is np.ndarray and (Y.dtype, Y.shape) == (Z.dtype, Z.shape) and Y.flags.c_contiguous and Y.flags.aligned:
        # The kernel checks them on its way. It rounds their sums; what it refuses has to be wrong without that, too.
        codes, targets = None, np.atleast_2d(Y)
        tolerance = target_tolerance(Y.dtype) + 4 * float(np.finfo(Y.dtype).eps)
    else:
        codes, targets = check_targets(Y, Z.shape, Z.dtype)
        tolerance = 0.0
    s = check_weights(sample_weight, n, Z.dtype)
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
        _raise_not_finite(Z=Z)
        check_distributions(targets)  # logits are finite, so it is they
    if reduction == "none":
        return losses if Z.ndim == 2 else losses[0], G
    return loss, G


def _check_out(out, like):
    """Return `out`, checked to fit a result like `like`; a new array where it is None."""
    if out is None:
        return np.empty_like(like)
    kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
    if (kind, np.shape(out)) != (like.dtype, like.shape):
        raise ValueError(f"out is {kind} of shape {np.shape(out)}, expected {like.dtype} of {like.shape}")
    if not out.flags.carray:
        raise ValueError(f"out must be C-contiguous, aligned and writeable; got strides {out.strides}")
    return out


def _apart(out, *inputs):
    """Return the inputs, as copies where `out` overlaps them: a kernel writes while it still reads."""
    return [x.copy() if x is not None and np.may_share_memory(x, out) else x for x in inputs]


def _put_back(inputs, copies):
    """Restore inputs that `out` overlaps from their copies: a call that raises leaves its inputs as they were."""
    for x, copy in zip(inputs, copies, strict=True):
        if copy is not x:
            x[...] = copy
