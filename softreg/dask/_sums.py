"""Mathematics of a chunk of rows on a worker: what `DistributedObjective` adds up, by the objective of one machine.

Each function takes the Objective of the chunk first. A Linearization is kept without it: rows are held once.
"""

from copy import copy
from functools import wraps

import numpy as np

from softreg import _core
from softreg._inner_products import inner
from softreg._solvers import quadratic_models as models
from softreg._solvers.centred_coordinates import CentredCoordinates
from softreg._solvers.row_sampling import RowDamping, RowSample
from softreg._systematic_sampling import systematic_sample
from softreg._threads import single_threaded_blas

CANDIDATES = 16  # rows that are looked at for each row that is sent


def numeric(function):
    """Make a function hold BLAS at one thread and warn of no overflow: the client looks at the sums."""

    @wraps(function)
    def run(*args, **kwargs):
        with single_threaded_blas(), np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return run


# --- the objective ------------------------------------------------------------------------------------------------


@numeric
def value(objective, *, W):
    return (objective.value(W),)


@numeric
def linearize(objective, *, W):
    """Return the linearisation at W."""
    at = objective.linearize(W)
    at.objective = None
    return at


@numeric
def slopes(objective, *, W, step, sizes):
    """Return the derivative of the loss along a step from W, after each of the step sizes."""
    found = np.zeros(len(sizes))
    for block in objective.design.row_blocks():
        design, labels = objective.design.select(block), objective.labels(block)
        Z, dZ = design.logits(W), design.logits(step)
        G = np.empty_like(Z)
        for i, t in enumerate(sizes):
            Zt = Z + objective.dtype.type(t) * dZ
            _core.cross_entropy(Zt, *labels, objective.label_smoothing, None, G, objective.n_threads)
            found[i] += inner(G, dZ)
    return (found / objective.total_weight,)


@numeric
def squares(objective):
    return (objective.column_sizes() ** 2,)


@numeric
def class_moments(objective):
    return (objective.class_moments(),)


@numeric
def class_shares(objective):
    """Return the sum of shares times Y_i, (K,)."""
    return (objective.class_shares() * (objective.own_weight / objective.total_weight),)


@numeric
def has_entries(objective, *, columns):
    return (float(objective.design.has_entries(columns)),)


# --- a linearisation ----------------------------------------------------------------------------------------------


def _at(objective, linearization):
    """Return the linearisation with its objective."""
    at = copy(linearization)
    at.objective = objective
    return at


def value_and_gradient(linearization):
    return linearization.value, linearization.gradient


@numeric
def hessian_product(objective, linearization, *, V):
    return (_at(objective, linearization).hessian_product(V),)


@numeric
def sampled_hessian_product(objective, linearization, sample, *, V):
    """Return the product of the Hessian over the sampled rows, which stand for the whole chunk."""
    at = sample.of(_at(objective, linearization))
    if at.objective is not objective:
        at.objective.total_weight *= objective.total_weight / objective.own_weight
    return (at.hessian_product(V),)


@numeric
def class_gram(objective, linearization):
    return (_at(objective, linearization).class_gram(),)


@numeric
def curvature_sums(objective, linearization, *, U):
    return _at(objective, linearization).curvature_sums(U)


@numeric
def max_logit_change(objective, linearization, *, step):
    return _at(objective, linearization).max_logit_change(step)


@numeric
def entropy(objective, linearization):
    return (_at(objective, linearization).entropy(),)


@numeric
def correct(objective, linearization):
    """Return the share of all rows that are in this chunk and predicted right."""
    accuracy = _at(objective, linearization).accuracy()
    return (accuracy * objective.own_weight / objective.total_weight,)


# --- models over some of the rows, with damped rows, and rows that travel -------------------------------------------


def row_sample(objective, seed, *, share):
    """Return the RowSample of a share of the rows of the chunk, without the objective."""
    order = np.random.RandomState(seed).permutation(objective.n_rows)
    sample = RowSample(objective, order, min(objective.n_rows, max(1, round(share * objective.n_rows))))
    sample.objective = sample.order = None
    return sample


def new_damping(objective):
    return RowDamping(objective)


@numeric
def updated_damping(objective, damping, before, trial, *, overshot):
    """Return the RowDamping after a step."""
    damping = copy(damping)
    damping.share = damping.share.copy()
    damping.update(_at(objective, before), _at(objective, trial), overshot)
    return damping


def count_damped(damping):
    return (float(np.count_nonzero(damping.share)),)


@numeric
def damped(objective, linearization, damping):
    """Return the damped linearisation."""
    at = copy(damping.of(_at(objective, linearization)))
    at.objective = None
    return at


@numeric
def rows_to_send(objective, linearization, seed, *, wanted):
    """Return X, codes, targets and weights of some rows that stand for the chunk, or of all rows.

    `wanted` is the number of rows from all chunks, or None for all. Rows are taken in proportion to weight, length in
    standardised units and, where there is a linearisation, how uncertain their class is: from a larger sample in
    proportion to weight alone, as the last two cost a pass.
    """
    picked, weight = np.arange(objective.n_rows), objective.shares()
    if wanted is not None:
        size = max(1, round(wanted * objective.own_weight / objective.total_weight))
        random_state = np.random.RandomState(seed)
        if CANDIDATES * size < objective.n_rows:
            picked, weight = _sample(weight, random_state, CANDIDATES * size, weight)
        candidates = objective.select(picked, weight)
        score = weight * (0.5 + 0.5 * candidates.design.standardized_row_lengths(weight / weight.sum()))
        if linearization is not None:
            score = score * np.maximum(_at(objective, linearization).select(picked, weight).uncertainty(), 1e-6)
        chosen, weight = _sample(score, random_state, size, weight)
        picked = picked[chosen]
    codes, targets, _ = objective.labels(picked)
    return objective.design.copy_rows(picked), codes, targets, weight


def _sample(score, random_state, size, weight):
    """Return positions that are sampled in proportion to the score, and their weights, which stand for all."""
    picked, importance = systematic_sample(score, random_state.permutation(len(score)), size)
    return picked, (weight[picked] * importance / size).astype(weight.dtype)


# --- proximal Newton ----------------------------------------------------------------------------------------------


@numeric
def feature_means(objective):
    return (CentredCoordinates(objective, np.zeros(objective.n_features)).means(),)


@numeric
def feature_squares(objective, *, mean):
    return (CentredCoordinates(objective, mean).mean_squares(mean),)


@numeric
def dual_point(objective, *, V, mean):
    return CentredCoordinates(objective, mean).dual_point(V)


@numeric
def hessian_and_scatter(objective, linearization, seed, *, mean, classes, features, share):
    """Return the Hessian over some coefficients and the scatter of its `Bound`, from a share of the chunk's rows.

    The share stands for the chunk.
    """
    coordinates, positions, scale = CentredCoordinates(objective, mean), None, 1.0
    if share < 1:
        order = np.random.RandomState(seed).permutation(np.flatnonzero(coordinates.shares))
        positions = np.sort(order[: max(1, round(share * len(order)))])
        scale = objective.own_weight / objective.total_weight  # of rows at positions, a mean comes back
    H, B = models.hessian_and_bound(coordinates, _at(objective, linearization), classes, features, positions)
    return scale * H, scale * B.scatter()
