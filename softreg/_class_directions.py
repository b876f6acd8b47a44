"""Directions in the space of the classes along which the softmax curvature of a problem is diagonal.

Classes that are confused with each other are coupled: their weights can move together at little cost, and a block of
one class does not show that. Class directions, the eigenvectors of the mean softmax Jacobian, take the place of the
classes. If classes are confused, as those of images and texts are, conjugate gradients need fewer iterations with
them. If most classes are well apart, the mean is nearly degenerate, and the classes themselves can be better.

Arrays inside have a row for each class: numpy is twice as fast along the rows of the sample as along a few classes.
"""

import numpy as np

ROW_BLOCK = 512  # rows that are held in float64 at a time


def class_gram(P, weight):
    """Return the mean softmax Jacobian with its constant direction made the largest, float64, (K, K).

    The matrix is sum_i weight_i (diag(p_i) - p_i p_i^T) + c 1 1^T for P (m, K) and weight (m,). Softmax does not depend
    on the constant direction, so any c keeps the other eigenvectors; this c puts the constant one last.
    """
    return gram_of_moments(*probability_moments(P, weight))


def gram_of_moments(first, second):
    """Return the `class_gram` of the rows that have these `probability_moments`."""
    constant = (2 * first.max() + np.finfo(float).tiny) / len(first)
    return np.diag(first) - second + constant


def probability_moments(P, weight):
    """Return sum_i weight_i p_i (K,) and sum_i weight_i p_i p_i^T (K, K), float64, for P (m, K) and weight (m,)."""
    first, second = np.zeros(P.shape[1]), np.zeros((P.shape[1], P.shape[1]))
    for rows in _row_blocks(P):
        Q = _normalized(P[rows])
        first += Q @ weight[rows]
        second += (Q * weight[rows]) @ Q.T
    return first, second


def class_directions(gram):
    """Return the orthonormal eigenvectors of a `class_gram` without the constant one, U (K, K-1)."""
    return np.linalg.eigh(gram)[1][:, :-1]


def directional_curvature(P, weight, U, dtype=np.float64):
    """Return weight_i u^T (diag(p_i) - p_i p_i^T) u for each column u of U and each row i of P: (L, m) of the dtype."""
    curvature, squares = np.empty((U.shape[1], len(P)), dtype), U**2
    for rows in _row_blocks(P):
        Q = _normalized(P[rows])
        c = np.maximum(squares.T @ Q - (U.T @ Q) ** 2, 0) * weight[rows]
        c[c < 1e-6 * c.max(axis=1, keepdims=True)] = 0  # negligible, and subnormal numbers would be slow
        curvature[:, rows] = c
    return curvature


def _row_blocks(P):
    return (slice(start, start + ROW_BLOCK) for start in range(0, len(P), ROW_BLOCK))


def _normalized(P):
    """Return P (m, K) as (K, m) in float64, with columns that sum to one in float64."""
    Q = np.array(P.T, np.float64, order="C")
    Q /= Q.sum(axis=0)
    return Q
