"""Directions in the space of the classes along which the softmax curvature of a problem is diagonal.

Classes that are confused with each other are coupled: their weights can move together at little cost, and a block of
one class does not show that. Class directions, the eigenvectors of the mean softmax Jacobian, take the place of the
classes. If classes are confused, as those of images and texts are, conjugate gradients need fewer iterations with
them. If most classes are well apart, the mean is nearly degenerate, and the classes themselves can be better.
"""

import numpy as np


def class_gram(P, weight):
    """Return the mean softmax Jacobian with its constant direction made the largest, float64, (K, K).

    The matrix is sum_i weight_i (diag(p_i) - p_i p_i^T) + c 1 1^T for P (m, K) and weight (m,). Softmax does not depend
    on the constant direction, so any c keeps the other eigenvectors; this c puts the constant one last.
    """
    P, weighted = _normalized(P, weight)
    total = weighted.sum(axis=0)
    constant = (2 * total.max() + np.finfo(float).tiny) / len(total)
    return np.diag(total) - weighted.T @ P + constant


def class_directions(gram):
    """Return the orthonormal eigenvectors of a `class_gram` without the constant one, U (K, K-1)."""
    return np.linalg.eigh(gram)[1][:, :-1]


def directional_curvature(P, weight, U):
    """Return weight_i u^T (diag(p_i) - p_i p_i^T) u for each row i of P and each column u of U: (m, L)."""
    P, _ = _normalized(P, weight)
    curvature = np.maximum(P @ U**2 - (P @ U) ** 2, 0) * weight[:, None]
    curvature[curvature < 1e-6 * curvature.max(axis=0)] = 0  # negligible, and subnormal numbers would be slow
    return curvature


def _normalized(P, weight):
    """Return P (m, K) in float64, with rows that sum to one in float64, and the same times weight (m,)."""
    P = P.astype(np.float64)
    P /= P.sum(axis=1, keepdims=True)
    return P, P * weight[:, None]
