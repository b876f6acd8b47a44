"""The NumPy twin of `_sparse_stream.pyx`: same name, same signature. The tests hold the kernel against it."""

import numpy as np


def csr_stream(
    data, indices, indptr, rows, codes, targets, sample_weight, label_smoothing, l2, l1, rate, band, limit, damping,
    n_features, theta, features, totals, score,
):  # fmt: skip
    """Learn the rows in turn, each after it was predicted. Return how many were learnt.

    The arrays that describe rows are those of `_reference.py`. What is kept between calls:

        theta      (p, K)   INOUT   p = n_features, or one more where the last row is the intercepts'
        features   (p, 2)   INOUT   float64: the strength h of each feature, and its largest |x|
        totals     (5,)     INOUT   float64: l2 and l1 so far, the sum of log|x|, nonzeros, rows; all weighted
        score      (2,)     INOUT   float64: += the cross-entropy and the correct predictions, weighted

    The coefficients after some rows minimise the sum, over these rows, of the linearised loss, of the penalty, and of
    half a squared distance from the coefficients at that row, times the growth of h at that row (FTRL-Proximal, McMahan
    2011). The minimum is

        W_j = shrink(theta_j, total l1) / (h_j + total l2),     shrink(a, b) = sign(a) max(|a| - b, 0).

    A feature that a row does not have keeps theta_j and h_j, and its W_j changes by the totals alone: as the minimum
    with the penalty of that row added, which is what a step on all features would have computed. So the penalties are
    exact whenever the feature is next met, and cost nothing. A row with weight s, nonzeros x and residual r = y - p
    makes the step

        h_j     <-  h'_j = sqrt(h_j^2 + s (x_j u_j |r|)^2)
        theta_j <-  theta_j + (h'_j - h_j) W_j + t x_j r,     t = s / (sqrt(1 + (c |r| / limit)^2) + damping c),
        where       c = s sum_j x_j^2 / (h'_j + total l2).

    The root is AdaGrad's. The unit u_j makes the step free of units: sqrt(1 + mean nonzeros of a row) / rate times the
    geometric mean of all |x|, or times the end of [largest / band, largest * band] that is nearest to it, where largest
    is that of feature j. Features within a factor of `band` of one another keep the scale they were given, which is
    information in tf-idf; others get their own. A step of length s would change the row's own logits by c r: t holds
    that below `limit` in norm, and `damping` shortens all steps of rows with a large c, as an implicit step does. A
    feature that grows by more than `band` at once has learnt with a unit that was wrong: h_j times the square of the
    growth makes W_j as small as it should have been (Ross, Mineiro and Langford 2013).

    A row of weight 0 and an entry of 0 change nothing. The pass ends before a row whose numbers overflow:
    what was learnt before it is kept, and all numbers are finite.
    """
    rows = np.arange(len(indptr) - 1) if rows is None else rows
    intercept, K = len(theta) > n_features, theta.shape[1]
    for done, row in enumerate(rows):
        s = 1.0 if sample_weight is None else float(sample_weight[row])
        if s == 0:
            continue
        entries = slice(indptr[row], indptr[row + 1])
        x, j = data[entries].astype(np.float64), indices[entries]
        x, j = x[x != 0], j[x != 0]
        if not measure(abs(x), j, s, band, features, totals):
            return done

        _, _, logs, nonzeros, seen = totals
        spread = np.sqrt(1 + nonzeros / seen) / rate
        mean = np.exp(logs / nonzeros) if nonzeros > 0 else 1.0
        largest = features[j, 1]
        unit = spread * np.clip(mean, largest / band, largest * band)
        penalised = np.ones(len(j))
        if intercept:
            x, j = np.append(x, 1), np.append(j, n_features)
            unit, penalised = np.append(unit, spread), np.append(penalised, 0)

        h = features[j, 0]
        W = coefficients_of(theta[j], h, penalised * totals[0], penalised * totals[1])
        z = x @ W
        y = np.eye(K)[codes[row]] if targets is None else targets[row].astype(np.float64)
        correct = z.argmax() == y.argmax()
        y = (1 - label_smoothing) * y + label_smoothing / K
        logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
        loss = -np.sum(np.where(y > 0, y * logp, 0))
        r = y - np.exp(logp)

        grown = np.sqrt(h**2 + s * (x * unit) ** 2 * (r @ r))
        size = grown + penalised * (totals[0] + s * l2)
        change = np.sum(x * (x / np.where(size > 0, size, np.inf)))
        if not np.isfinite([loss, change, *grown]).all():
            return done
        score += s * loss, s * correct
        c = s * change
        t = s / (np.sqrt(1 + (c * np.sqrt(r @ r) / limit) ** 2) + damping * c)
        theta[j] += (grown - h)[:, None] * W + t * np.outer(x, r)
        features[j, 0] = grown
        totals[:2] += s * l2, s * l1
    return len(rows)


def measure(size, j, s, band, features, totals):
    """Follow the magnitudes `size` of the features j of a row of weight s. Return whether the strengths stay finite."""
    h, largest = features[j].T
    growth = size / np.where(largest > 0, largest, size)
    forgiven = np.where(growth > band, h * growth * growth, h)
    if not np.isfinite(forgiven).all():
        return False
    features[j, 0] = forgiven
    features[j, 1] = np.maximum(size, largest)
    totals[2:] += s * np.log(size).sum(), s * len(j), s
    return True


def coefficients_of(theta, h, l2, l1):
    """W (p, K) of `csr_stream`; h, l2, l1 (p,)."""
    size = (h + l2)[:, None]
    shrunk = np.sign(theta) * np.maximum(np.abs(theta) - l1[:, None], 0)
    return np.divide(shrunk, size, out=np.zeros_like(shrunk), where=size > 0)
