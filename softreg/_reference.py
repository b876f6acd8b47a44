"""NumPy twins of the compiled kernels in ``_core.pyx`` and ``_dual_ascent.pyx``: same names, same signatures.

They specify the kernels: the tests run both and compare.

Conventions, for all of these files:

    X               (n, d)    IN   float32 or float64, unit stride along a row, any stride between rows
    data, indices, indptr     IN   the same matrix in CSR form; int32 or int64 indices, sorted within a row
    rows            (m,)      IN   intp: which rows of X to visit, in that order; None visits all of them
    W, V            (K, p)    IN   p = d, or p = d + 1 where the last column is the intercept
    Wt, Vt          (p, K)    IN   the CSR kernels hold them transposed: a nonzero then meets K contiguous numbers
    codes           (n,)      IN   intp class of each row of X, or None where `targets` is given
    targets         (n, K)    IN   target distributions, or None where `codes` is given
    sample_weight   (n,)      IN   or None for ones
    scale           float     IN   a factor on the loss and on every derivative (1/S makes them weighted means)
    l2              float     IN   a penalty l2/2 ||W||^2 on all but the intercepts
    n_threads       int       IN   never changes a result, not even in the last bit

Everything tagged OUT is allocated by the caller and overwritten. Every floating array of one call has the same dtype.
"""

import numpy as np
from scipy.sparse import csr_array

# --- softmax of a batch of logits Z (n, K) ------------------------------------------------------------------------
# They return True if all input is finite; if not, their output is not defined.


def logsumexp(Z, out, n_threads=1):
    """out (n,) OUT = log(sum_k exp(Z_k)), shifted by the row maximum so that nothing overflows."""
    finite, top = _finite(Z), Z.max(axis=1)
    out[:] = top + np.log(np.exp(Z - top[:, None]).sum(axis=1))
    return finite


def softmax(Z, out, n_threads=1, within_pass=False):
    """out (n, K) OUT = exp(Z) / sum_k exp(Z_k); out may be Z. Within a pass over X the tiniest numbers are zero."""
    finite = _finite(Z)
    np.exp(Z - Z.max(axis=1, keepdims=True), out=out)
    if within_pass:
        out[out < _pass_least(out.dtype)] = 0
    out /= out.sum(axis=1, keepdims=True)
    return finite


def log_softmax(Z, out, n_threads=1):
    """out (n, K) OUT = Z - logsumexp(Z), never the log of a rounded probability."""
    finite = _finite(Z)
    shifted = np.maximum(Z - Z.max(axis=1, keepdims=True), np.finfo(Z.dtype).min)
    np.subtract(shifted, np.log(np.exp(shifted).sum(axis=1, keepdims=True)), out=out)
    return finite


def softmax_vjp(Z, U, out, n_threads=1):
    """out (n, K) OUT = J^T U row by row with J = diag(p) - p p^T, that is t - (1^T t) p with t = p * u."""
    P = np.empty_like(Z)
    softmax(Z, P)
    T, finite = P * U, _finite(Z, U)
    np.subtract(T, T.sum(axis=1, keepdims=True) * P, out=out)
    return finite


def cross_entropy(
    Z, codes, targets, sample_weight, label_smoothing, losses, residual, n_threads=1, scale=1.0, target_tolerance=0.0
):
    """losses (n,) OUT or None = scale * s CE(y, p); residual (n, K) OUT or None = scale * s (P - Y).

    Return the sum of the losses, made in float64; NaN if a logit is not finite. With a target_tolerance, NaN too if
    a target is negative or not finite, or the targets of a row do not sum to one up to that tolerance.
    """
    n, K = Z.shape
    Y = _smoothed(codes, targets, label_smoothing, K, Z.dtype, slice(None))
    s = scale * (np.ones(n, Z.dtype) if sample_weight is None else sample_weight)
    logP = np.empty_like(Z)
    log_softmax(Z, logP)
    loss_of_row = -s * np.where(Y > 0, Y * logP, 0).sum(axis=1)
    if losses is not None:
        losses[:] = loss_of_row
    if residual is not None:
        P = np.empty_like(Z)
        softmax(Z, P)
        np.multiply(s[:, None], P - Y, out=residual)
    usable = _finite(Z) and (not target_tolerance or targets is None or _are_distributions(targets, target_tolerance))
    return loss_of_row.sum(dtype=np.float64) if usable else np.nan


def _finite(*arrays):
    return all(bool(np.isfinite(a).all()) for a in arrays)


def _are_distributions(Y, tolerance):
    return bool((Y >= 0).all() and (np.abs(Y.sum(axis=1) - 1) <= tolerance).all())


def _smoothed(codes, targets, label_smoothing, K, dtype, rows):
    """The target distributions of `rows`, mixed with `label_smoothing` parts of the uniform one."""
    Y = np.eye(K, dtype=dtype)[codes[rows]] if targets is None else targets[rows]
    return ((1 - label_smoothing) * Y + label_smoothing / K).astype(dtype)


# --- the linear map on top of it ------------------------------------------------------------------------------------


def dense_logits(X, rows, W, out, n_threads=1):
    """out (m, K) OUT = X[rows] W^T + b."""
    out[:] = _design(X, rows, W.shape[1]) @ W.T


def dense_gradient(X, rows, G, out, n_threads=1):
    """out (K, p) OUT = G^T [X[rows] 1], the X^T accumulation; G (m, K)."""
    out[:] = G.T @ _design(X, rows, out.shape[1])


def dense_loss_gradient(
    X, rows, W, codes, targets, sample_weight, label_smoothing, scale, l2, P, grad, n_threads=1
):
    """Return scale * sum_i s_i CE_i + l2/2 ||W||^2; grad (K, p) OUT its derivative; P (m, K) OUT or None."""
    A = _design(X, rows, W.shape[1])
    loss = _loss_gradient(A, rows, W, codes, targets, sample_weight, label_smoothing, scale, P, grad)
    return loss + _penalty(l2, W, X.shape[1], grad)


def dense_hessian_product(X, rows, P, sample_weight, scale, l2, V, out, n_threads=1):
    """out (K, p) OUT = the Gauss-Newton (here: exact) Hessian of `dense_loss_gradient` at probabilities P, times V."""
    A = _design(X, rows, V.shape[1])
    out[:] = _curved(A @ V.T, rows, P, sample_weight, scale).T @ A
    _penalty(l2, V, X.shape[1], out)


def dense_hessian(X, rows, P, weight, mean, deviation, out, n_threads=1):
    """out (K, p, K, p) OUT = sum_i w_i (diag(p_i) - p_i p_i^T) (x) z_i z_i^T, in float64.

    z_i = [(x_i - mean) / deviation, 1] are the rows of X in standardised coordinates, p_i those of P (m, K). Where p_i
    does not sum to one, diag(p_i) is multiplied by the sum, so that the matrix has no negative eigenvalues.
    """
    Z = np.ones((len(P), out.shape[1]))
    Z[:, : X.shape[1]] = ((X if rows is None else X[rows]) - mean) / deviation
    P = P.astype(np.float64)
    J = -weight[:, None, None] * P[:, :, None] * P[:, None, :]
    for k in range(P.shape[1]):
        J[:, k, k] -= J[:, k].sum(axis=1)
    out[:] = np.einsum("nkm,ni,nj->kimj", J, Z, Z, optimize=True)


def csr_logits(data, indices, indptr, rows, Wt, n_features, out, n_threads=1):
    """out (m, K) OUT = X[rows] W^T + b."""
    dense_logits(_csr(data, indices, indptr, n_features), rows, Wt.T, out)


def csr_gradient(data, indices, indptr, rows, G, n_features, out, n_threads=1):
    """out (p, K) INOUT += [X[rows] 1]^T G."""
    out += _design(_csr(data, indices, indptr, n_features), rows, len(out)).T @ G


def csr_loss_gradient(
    data, indices, indptr, rows, Wt, n_features, codes, targets, sample_weight, label_smoothing, scale, l2,
    P, residual, grad, n_threads=1,
):
    """As `dense_loss_gradient`, grad (p, K) OUT; residual (m, K) OUT = scale * s (P - Y), which the kernel needs."""
    A = _design(_csr(data, indices, indptr, n_features), rows, Wt.shape[0])
    args = (rows, Wt.T, codes, targets, sample_weight, label_smoothing, scale, P, grad.T, residual)
    return _loss_gradient(A, *args) + _penalty(l2, Wt.T, n_features, grad.T)


def csr_curve(data, indices, indptr, rows, P, sample_weight, scale, Vt, n_features, curved, n_threads=1):
    """curved (m, K) OUT = scale * s (P*R - P sum(P*R)), R = X V^T; return sum(R * curved).

    The Hessian of the loss, times V, is [X[rows] 1]^T curved, and the sum is the curvature of the loss along V.
    """
    R = _design(_csr(data, indices, indptr, n_features), rows, len(Vt)) @ Vt
    curved[:] = _curved(R, rows, P, sample_weight, scale)
    return (R * curved).sum(dtype=np.float64)


def csr_dual_epoch(data, indices, indptr, rows, order, Wt, n_features, sample_weight, scale, constant, Q):
    """Visit positions `order` among the rows: move q, a row of Q (m, K) INOUT, towards p = softmax(W [x 1]), by

        q <- q + t (p - q),     t = min(1, (KL(q||p) + |p - q|_1^2 / 2) / (|p - q|_1^2 + c |p - q|_2^2)),

    Wt (p, K) INOUT -= scale * s * change of q * [x constant], c = scale * s * (||x||^2 + constant).
    Return sum_i s_i H(Q_i) over the positions, H the entropy, each as it was left.
    """
    A, total = _csr(data, indices, indptr, n_features), 0.0
    for i in order:
        row = i if rows is None else rows[i]
        x = _design(A, [row], Wt.shape[0])[0]
        s = 1.0 if sample_weight is None else sample_weight[row]
        q, logp = Q[i], np.empty((1, Wt.shape[1]), Wt.dtype)
        log_softmax((x @ Wt)[None], logp)
        move = np.exp(logp[0]) - q
        kl = np.sum(q * (np.log(np.where(q > 0, q, 1)) - logp[0]))
        x[n_features:] = constant
        far, c = np.abs(move).sum() ** 2, scale * s * (x[:n_features] @ x[:n_features] + x[n_features:].sum())
        t = (max(kl, far / 2) + far / 2) / (far + c * (move @ move)) if far > 0 else 1.0
        move *= min(1.0, t)
        Q[i] = np.maximum(q + move, 0)
        Wt -= scale * s * np.outer(x, move)
        total += s * -np.sum(Q[i] * np.log(np.where(Q[i] > 0, Q[i], 1)))
    return total


def input_gradient(G, W, out, n_threads=1):
    """out (n, d) OUT = G W, without the intercept column of W (K, p)."""
    np.matmul(G, W[:, : out.shape[1]], out=out)


def _design(X, rows, p):
    """[X[rows] 1] as float arrays NumPy can multiply; the column of ones only where p asks for it."""
    A = X if rows is None else X[rows]
    A = A.toarray() if hasattr(A, "toarray") else A
    return A if p == A.shape[1] else np.column_stack([A, np.ones(A.shape[0], A.dtype)])


def _csr(data, indices, indptr, n_features):
    return csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_features))


def _loss_gradient(
    A, rows, W, codes, targets, sample_weight, label_smoothing, scale, P, grad, residual=None
):
    """Return scale * sum_i s_i CE_i over the rows of A = [X[rows] 1]; P, grad and residual OUT as in the kernels."""
    rows = np.arange(A.shape[0]) if rows is None else rows
    Z = A @ W.T
    Y = _smoothed(codes, targets, label_smoothing, W.shape[0], Z.dtype, rows)
    s = np.ones(len(rows), Z.dtype) if sample_weight is None else sample_weight[rows]
    losses, G = np.empty(len(rows), Z.dtype), np.empty_like(Z)
    cross_entropy(Z, None, Y, s, 0.0, losses, G)
    if P is not None:
        softmax(Z, P)
        P[P < _pass_least(P.dtype)] = 0
    G *= Z.dtype.type(scale)
    if residual is not None:
        residual[:] = G
    grad[:] = G.T @ A
    return scale * losses.sum(dtype=np.float64)


def _curved(R, rows, P, sample_weight, scale):
    """Return scale * s (P*R - P sum(P*R)), the softmax Jacobian of each row, times R (m, K)."""
    rows = np.arange(len(R)) if rows is None else rows
    s = np.ones(len(rows), R.dtype) if sample_weight is None else sample_weight[rows]
    T = P * R
    return (T - P * T.sum(axis=1, keepdims=True)) * (R.dtype.type(scale) * s)[:, None]


def _penalty(l2, W, n_features, gradient):
    """l2/2 ||W||^2 without the intercepts; its derivative is added to the gradient."""
    gradient[:, :n_features] += W.dtype.type(l2) * W[:, :n_features]
    return 0.5 * l2 * np.sum(W[:, :n_features] ** 2, dtype=np.float64)


def _pass_least(dtype):
    """The least probability in a pass over X: the kernels avoid subnormal numbers."""
    return 1e-20 if dtype == np.float32 else 1e-100
