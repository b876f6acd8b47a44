"""Directions in the space of the classes along which the softmax curvature of a problem is diagonal.

Classes that rows confuse with each other are coupled: all of their weights can move together at little cost, which no
block of one class knows. Class directions, the eigenvectors of the mean softmax Jacobian, stand in for the classes.
Conjugate gradients need fewer iterations with them where classes are confused, as pictures and texts are. Where most
classes are well apart, the mean is nearly degenerate, and the classes themselves can do better.
"""

import numpy as np


def class_gram(P, weight):
    """Return the mean softmax Jacobian with its constant direction made the largest, float64, (K, K).

    That is sum_i weight_i (diag(p_i) - p_i p_i^T) + c 1 1^T for P (m, K) and weight (m,). Softmax does not see the
    constant direction, so any c keeps the other eigenvectors; this c puts the constant one last.
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
    curvature[curvature < 1e-6 * curvature.max(axis=0)] = 0  # they do not matter, and subnormal numbers would be slow
    return curvature


def _normalized(P, weight):
    """Return P in float64 with rows that sum to one, as differences of them follow; and the same times weight."""
    P = P.astype(np.float64)
    P /= P.sum(axis=1, keepdims=True)
    return P, P * weight[:, None]
