"""Proximal Newton: kernels against their twins, models against the objective, and optima that are proven to be such."""

import copy
import inspect
from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse
from scipy.special import entr
from sklearn.datasets import load_digits, load_iris, load_wine

from softreg import _coordinate_descent
from softreg import _coordinate_descent_reference as reference
from softreg._objective import Objective
from softreg._solvers import proximal_newton as solver
from softreg._solvers import quadratic_models
from softreg._solvers.centred_coordinates import CentredCoordinates
from softreg._solvers.proximal_newton import proximal_newton
from softreg._solvers.quadratic_models import ColumnModel, HessianModel
from softreg._solvers.result import Options, Start
from softreg._threads import single_threaded_blas

BOTH = pytest.mark.parametrize("kernels", [_coordinate_descent, reference], ids=["compiled", "reference"])

KINDS = {
    "plain": {},
    "elastic net": {"l2": 1e-3},
    "float32": {"dtype": np.float32},
    "weighted": {"weighted": True},
    "part": {"weighted": True, "part": True},
    "no intercept": {"fit_intercept": False},
    "smoothed": {"label_smoothing": 0.1},
    "soft": {"soft": True, "part": True},
    "binary": {"K": 2},
    "binary elastic net": {"K": 2, "l2": 1e-3},
    "many classes": {"K": 12},
    "wild scales": {"scales": True},
    "offset": {"offset": 1e6},
    "twins and constants": {"degenerate": True},
    "sparse": {"density": 0.2},
    "sparse elastic net": {"density": 0.2, "l2": 1e-3},
    "sparse float32": {"density": 0.2, "dtype": np.float32},
    "sparse binary": {"density": 0.2, "K": 2, "weighted": True},
    "sparse part": {"density": 0.2, "soft": True, "part": True},
    "sparse no intercept": {"density": 0.2, "fit_intercept": False},
    "sparse wild scales": {"density": 0.2, "scales": True},
    "sparse degenerate": {"density": 0.2, "degenerate": True},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def problem(
    n=200, d=12, K=4, dtype=np.float64, l1=5e-3, l2=0.0, density=None, scales=False, offset=0.0, degenerate=False,
    weighted=False, soft=False, part=False, **options,
):  # fmt: skip
    """Rows whose classes follow a softmax of a few features, correlated where they are dense."""
    rng = np.random.default_rng(0)
    if density is None:
        X = rng.normal(size=(n, d)) @ (np.eye(d) + 0.5 * rng.normal(size=(d, d)))
    else:
        X = sparse.random_array((n, d), density=density, rng=rng).toarray()
    codes = (X[:, :5] @ rng.normal(size=(5, K)) + rng.gumbel(size=(n, K))).argmax(axis=1)
    codes[:K] = np.arange(K)
    if scales:
        X *= np.logspace(-3, 3, d)
    if degenerate:
        X[:, 1], X[:, 2], X[:, 3] = X[:, 0], 3.0, 0.0
    X = np.ascontiguousarray(X + offset, dtype)
    targets = rng.dirichlet(np.ones(K), size=n).astype(dtype) if soft else None
    s = rng.integers(4, size=n).astype(dtype) if weighted else None
    X = X if density is None else sparse.csr_array(X)
    objective = Objective(X, None if soft else codes, targets, s, K, l2=l2, l1=l1, **options)
    return objective.select(np.arange(0, n, 2)) if part else objective


def classification(X, y, alpha, l1_ratio=1.0):
    """The objective of the estimator for labels y."""
    K = int(y.max()) + 1
    l2 = alpha * (1 - l1_ratio) * (2 if K == 2 else 1)
    return Objective(X, y.astype(np.intp), None, None, K, l2=l2, l1=alpha * l1_ratio)


class Silent:
    """A monitor that watches nothing, or ends the run after some iterations."""

    def __init__(self, end=np.inf):
        self.calls, self.end = 0, end

    def begin(self):
        pass

    def __call__(self, W, entry):
        self.calls += 1
        return self.calls >= self.end


def solve(objective, W=None, tol=1e-4, max_iter=100, monitor=None):
    start = Start(objective.zeros() if W is None else W)
    options = Options(max_iter=max_iter, tol=tol, random_state=np.random.RandomState(0))
    with single_threaded_blas():
        return proximal_newton(objective, start, options, monitor or Silent())


def float64(objective):
    """The same objective over a float64 copy of X: sums of float32 are no yardstick."""
    other = copy.copy(objective)
    X, (codes, targets, s) = objective.design.X.astype(np.float64), objective.labels_of_all
    other = Objective(
        X, codes, *(None if a is None else a.astype(np.float64) for a in (targets, s)), objective.n_classes,
        l2=objective.l2, l1=objective.l1, label_smoothing=objective.label_smoothing,
        fit_intercept=objective.fit_intercept,
    )  # fmt: skip
    return other if objective.design.rows is None else other.select(objective.design.rows)


def loss(objective, W):
    """F(W), in float64."""
    objective = float64(objective)
    W = objective.design.arranged(W)
    return objective.value(W) + objective.penalty_l1(W)


# --- kernels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["quadratic_descent", "column_descent", "newton_step", "shift_classes", "minimize_quadratic"]
)
def test_kernels_and_twins_have_the_same_parameters(name):
    ours, twin = (inspect.signature(getattr(module, name)) for module in (_coordinate_descent, reference))
    assert list(ours.parameters) == list(twin.parameters)


def quadratic(m=12, rank=30):
    rng = np.random.default_rng(1)
    A = rng.normal(size=(rank, m))
    l1 = np.full(m, 0.3)
    l1[-2:] = 0
    return A.T @ A / rank, l1, rng.normal(size=m), rng.normal(size=m) * (rng.random(m) < 0.5)


@BOTH
@pytest.mark.parametrize("rank", [30, 5], ids=["definite", "singular"])
def test_quadratic_descent_meets_the_optimality_conditions(kernels, rank):
    H, l1, first, start = quadratic(rank=rank)
    first[:] = H @ first  # in the range of H, or no minimum would exist without l1
    g, w = first.copy(), start.copy()
    assert kernels.quadratic_descent(H, l1, g, w, 1e-9, 10_000) < 10_000
    np.testing.assert_allclose(g, first + H @ (w - start), atol=1e-12)  # rounding of some thousand steps
    off = np.where(w == 0, np.maximum(np.abs(g) - l1, 0), np.abs(g + np.sign(w) * l1))
    assert off.max() <= 2e-9  # the tolerance holds before the last step of a coordinate
    assert (w == 0).any()


@pytest.mark.parametrize("sweeps", [1, 2, 3, 50])
def test_quadratic_descent_equals_its_twin(sweeps):
    H, l1, g, w = quadratic()
    H[3] = H[:, 3] = 0  # a coordinate that nothing but l1 holds
    l1[3] = 0.1
    outcomes = []
    for kernels in (_coordinate_descent, reference):
        outcomes.append((g.copy(), w.copy()))
        outcomes[-1] += (kernels.quadratic_descent(H, l1, *outcomes[-1], 1e-8, sweeps),)
    for ours, twin in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-13)  # rounding: BLAS adds in another order


@pytest.mark.parametrize("dtype, index", [(np.float32, np.int32), (np.float64, np.int64)])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("sweeps", [1, 2, 60])
def test_column_descent_equals_its_twin(dtype, index, damping, sweeps):
    rng = np.random.default_rng(2)
    n, d, K, m = 40, 9, 3, 11
    dense = sparse.random_array((n, d), density=0.3, rng=rng).toarray()
    dense[:, 8] = 0
    X = sparse.csc_array(dense.astype(dtype))
    arrays = X.data, X.indices.astype(index), X.indptr.astype(index)
    columns, classes = np.array([0, 2, 3, -1, 1, 2, -1, 0, 5, 8, -1]), np.repeat(np.arange(K), (4, 3, 4))
    l1, l2 = np.where(columns < 0, 0, 3e-3), np.where(columns < 0, 0, 2e-3)
    P, s = np.ascontiguousarray(rng.dirichlet(np.ones(K), size=n).T), rng.random(n) / n
    slopes, w = 0.02 * rng.normal(size=m), rng.normal(size=m)
    outcomes = []
    for kernels in (_coordinate_descent, reference):
        out = w.copy(), np.zeros((K, n)), np.zeros((2, n)), np.empty(m)
        given = *arrays, columns, classes, P, s, damping, 1 / K, slopes, l2, l1
        outcomes.append((*out, kernels.column_descent(*given, *out, 1e-7, sweeps)))
    for ours, twin in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-11)  # the intercepts' common shift is free: rounding moves it


def model_with_zeros(seed, K=3, q=4, l2=0.0):
    """H, l1, shared features, the gradient and coefficients for a step: q features in K classes, and intercepts."""
    rng = np.random.default_rng(seed)
    X, P = rng.normal(size=(40, q)) @ rng.normal(size=(q, q)), rng.dirichlet(np.ones(K), size=40)
    X = np.column_stack([X, np.ones(40)])
    J = np.einsum("nk,km->nkm", P, np.eye(K)) - P[:, :, None] * P[:, None, :]
    H = np.einsum("nkm,ni,nj->kimj", J, X, X).reshape(K * (q + 1), -1) / 40
    l1, l2 = (np.tile(np.append(np.full(q, penalty), 0), K) for penalty in (0.3, l2))
    shared = np.arange(K * (q + 1)).reshape(K, q + 1).T.copy()
    w = np.where((rng.random(K * (q + 1)) < 0.6) | (l1 == 0), rng.normal(size=K * (q + 1)), 0)
    return H + np.diag(l2), l1, shared, H @ rng.normal(size=len(w)) + l2 * w, w


def model_value(H, l1, g, w, v):
    """What a step from w, where the gradient is g, to v changes in the model."""
    return g @ (v - w) + 0.5 * (v - w) @ H @ (v - w) + l1 @ (np.abs(v) - np.abs(w))


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_newton_steps_minimise_along_the_step_or_project(kernels, seed):
    H, l1, shared, first, w = model_with_zeros(seed)
    H += 0.01 * np.eye(len(w))  # shifts of a feature in all classes are seen
    g, v = first.copy(), w.copy()
    kernels.newton_step(H, l1, shared[:0], g, v)
    np.testing.assert_allclose(g, first + H @ (v - w), atol=1e-11)  # rounding of numbers below 100
    S = (w != 0) | (l1 == 0)
    assert not v[~S].any()
    face = np.zeros_like(w)
    face[S] = np.linalg.solve(H[np.ix_(S, S)], -(first + np.sign(w) * l1)[S])  # the minimum, while no sign changes
    line = [model_value(H, l1, first, w, w + t * face) for t in np.linspace(0, 1, 1001)]
    assert model_value(H, l1, first, w, v) <= min(line) + 1e-12  # rounding


@BOTH
def test_newton_steps_reach_the_minimum_where_no_sign_changes(kernels):
    H, l1, shared, first, w = model_with_zeros(0)
    w = np.where(w != 0, 100 * np.sign(w), 0)  # far from zero
    g = first.copy()
    kernels.newton_step(H, l1, shared, g, w)
    S = w != 0
    slope = (g + np.sign(w) * l1)[S]
    inside = slope - H[np.ix_(S, S)] @ np.linalg.lstsq(H[np.ix_(S, S)], slope)[0]  # no step can change the rest
    np.testing.assert_allclose(slope, inside, atol=1e-9)  # the ridge of 1e-13 times steps of some 100


@pytest.mark.parametrize("seed", range(20))
def test_newton_steps_equal_their_twin(seed):
    H, l1, shared, g, w = model_with_zeros(seed)
    if seed % 3 == 1:  # some features have not all of their classes
        w[[0, 6]] = 0
    if seed % 3 == 2:
        w[l1 > 0] *= 1e-3  # most signs change
    outcomes = []
    for kernels in (_coordinate_descent, reference):
        outcomes.append((g.copy(), w.copy()))
        kernels.newton_step(H, l1, shared, *outcomes[-1])
    for ours, twin in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-9)  # rounding times the condition number
    np.testing.assert_array_equal(outcomes[0][1] == 0, outcomes[1][1] == 0)


@BOTH
def test_without_coordinates_a_newton_step_does_nothing(kernels):
    H, l1, shared, g, w = model_with_zeros(0)
    l1[:], w[:], before = 0.3, 0, g.copy()
    kernels.newton_step(H, l1, shared, g, w)
    np.testing.assert_array_equal(g, before)
    assert not w.any()


@BOTH
@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("K", [3, 4, 5])
def test_weights_of_a_feature_are_shifted_to_the_least_penalty(kernels, K, l2):
    rng = np.random.default_rng(6)
    q = 12
    shared = np.arange(K * (q + 1)).reshape(K, q + 1).T.copy()
    l1, l2s = (np.tile(np.append(np.full(q, penalty), 0.0), K) for penalty in (0.05, l2))
    w = rng.normal(size=K * (q + 1)) + 1
    w[shared[0]] = 0.7  # equal weights become zero
    g = l2s * w  # the loss has no slope along a shift
    before, shift = w.copy(), np.linspace(-4, 4, 8001)
    kernels.shift_classes(shared, l1, l2s, g, w)

    def penalty(v):
        return 0.05 * np.abs(v).sum(axis=0) + 0.5 * l2 * (v**2).sum(axis=0)

    for at in shared[:-1]:
        moved = w[at] - before[at]
        np.testing.assert_allclose(moved, moved[0], atol=1e-15)  # rounding of numbers near 1
        assert penalty(w[at]) <= penalty(before[at][:, None] + shift).min() + 1e-12  # rounding
    np.testing.assert_allclose(g, l2s * w, atol=1e-15)
    assert not w[shared[0]].any()
    np.testing.assert_array_equal(w[shared[-1]], before[shared[-1]])


@BOTH
@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(10))
def test_both_in_turn_reach_the_minimum_and_tell_the_decrease(kernels, seed, l2):
    H, l1, shared, first, w = model_with_zeros(seed, l2=l2)
    g, v = first.copy(), w.copy()
    l2s = np.where(l1 > 0, l2, 0.0)
    decrease = kernels.minimize_quadratic(H, l1, l2s, shared, g, v, 1e-10, np.inf, 100, 50, 20, 1e-2)
    np.testing.assert_allclose(g, first + H @ (v - w), atol=1e-11)  # rounding of numbers below 100
    off = np.where(v == 0, np.maximum(np.abs(g) - l1, 0), np.abs(g + np.sign(v) * l1))
    assert off.max() <= 1e-10
    np.testing.assert_allclose(decrease, -model_value(H, l1, first, w, v), rtol=1e-11)  # rounding


@pytest.mark.parametrize("limits", [(100, 50), (100, 1), (3, 50)], ids=["free", "one round", "large support"])
@pytest.mark.parametrize("small", [0.0, np.inf])
@pytest.mark.parametrize("seed", range(10))
def test_both_in_turn_equal_their_twin(seed, small, limits):
    H, l1, shared, g, w = model_with_zeros(seed)
    outcomes = []
    for kernels in (_coordinate_descent, reference):
        outcomes.append((g.copy(), w.copy()))
        given = H, l1, np.zeros_like(l1), shared, *outcomes[-1], 1e-6, small, *limits, 3, 1e-2
        outcomes[-1] += (kernels.minimize_quadratic(*given),)
    for ours, twin in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-9)  # rounding times the condition number


# --- models -------------------------------------------------------------------------------------------------------


def model_at(objective, Model, scale=0.3):
    """A model over all coefficients at a random point, and the point."""
    c = CentredCoordinates(objective)
    V = scale * np.random.default_rng(3).normal(size=c.curvature.shape) / np.sqrt(c.curvature)
    point = solver._Point(c, V)
    working = tuple(np.ascontiguousarray(part) for part in np.nonzero(np.ones_like(V)))
    return Model(c, point.linearization, working), point


@pytest.mark.parametrize("kind", ["plain", "weighted", "part", "no intercept", "soft", "binary", "offset"])
def test_hessian_is_the_derivative_of_the_gradient(kind):
    objective = problem(**KINDS[kind])
    model, at = model_at(objective, HessianModel)
    c, D = at.coordinates, np.random.default_rng(4).normal(size=at.V.shape) / np.sqrt(at.coordinates.curvature)
    h = 1e-3
    stencil = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    slope = sum(w * solver._Point(c, at.V + i * h * D).gradient for i, w in stencil.items()) / h
    # five points: h^4 = 1e-12 times the fifth derivative, and rounding of 1e-16 / h, the offset's 1e-10 / h
    bound = 1e-6 if kind == "offset" else 1e-9
    np.testing.assert_allclose(model.H @ D.ravel(), slope.ravel(), atol=bound)


@pytest.mark.parametrize("kind", ["plain", "weighted", "binary", "many classes"])
def test_damping_of_one_bounds_the_curvature(kind):
    model, _ = model_at(problem(**KINDS[kind]), HessianModel)
    B = model.B.matrix
    assert np.linalg.eigvalsh(B - model.H)[0] >= -1e-12 * np.abs(B).max()  # rounding of eigenvalues


@pytest.mark.parametrize("kind", ["sparse", "sparse elastic net", "sparse binary", "sparse no intercept"])
@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_both_models_have_the_same_minimum(kind, damping):
    objective = problem(**KINDS[kind])
    found = []
    for Model in (HessianModel, ColumnModel):
        model, at = model_at(objective, Model)
        V, decrease = model.minimize(at.V, at.gradient, damping, 1e-8 / model.precision, np.inf)
        found.append((decrease, V[:, : objective.n_features]))
    # violations of 1e-8 l1 leave 1e-16 of the decrease, and 1e-8 over the smallest curvature, some 1e-3, of the weights
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-9)
    if objective.l2 or objective.n_classes == 2:  # else some shifts over the classes are free
        np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "elastic net", "binary"])
def test_the_decrease_is_that_of_the_objective_for_short_steps(kind):
    objective = problem(**KINDS[kind])
    model, at = model_at(objective, HessianModel)
    c = at.coordinates
    near = solver._Point(c, c.from_weights(solve(objective, max_iter=3).W))
    V, decrease = HessianModel(c, near.linearization, model.working).minimize(near.V, near.gradient, 0.0, 1e-8, np.inf)
    assert 1e-9 < decrease < 1e-3
    # the third order of a step is the square root of what it gains, times that; a loss near 1 is rounded to 1e-16
    np.testing.assert_allclose(near.loss - solver._Point(c, V).loss, decrease, rtol=0.1)


@pytest.mark.parametrize("kind", ["plain", "weighted", "binary", "no intercept", "soft", "sparse", "offset"])
def test_the_dual_point_of_a_short_step_has_the_gradient_of_the_model(kind):
    model, at = model_at(problem(**KINDS[kind]), HessianModel)
    c = at.coordinates
    step = 1e-3 * np.random.default_rng(4).normal(size=at.V.shape) / np.sqrt(c.curvature)
    G = c.dual_point(at.V, step)[1]
    expected = c.gradient(c.dual_point(at.V)[1]) + (model.H @ step.ravel()).reshape(step.shape)
    bound = 1e-9 if kind == "offset" else 1e-13  # rounding of sums; an offset of 1e6 takes six digits
    np.testing.assert_allclose(c.gradient(G), expected, atol=bound)


@pytest.mark.parametrize("kind", ["plain", "elastic net", "binary", "many classes", "sparse"])
def test_a_model_proves_more_than_the_points_at_both_ends_of_its_step(kind):
    objective = problem(**KINDS[kind])
    run = solver.ProximalNewton(objective, objective.zeros(), Options(100, 1e-4, np.random.RandomState(0)))
    while run.decrease > 1e-3:
        at = run.at
        run.step()
    best = loss(objective, solve(objective, tol=1e-10).W)
    run.at, run.lower_bound = at, 0.0
    model, step = _model_and_step(run, at)
    new = solver._Point(run.coordinates, at.V + step)
    run.prove(new.loss, step, model, 1e-6)
    assert max(at.lower_bound, new.lower_bound) < run.lower_bound <= best + 1e-10  # the best is known to 1e-10 of F


def _model_and_step(run, at):
    """The model over all rows at a point, and its step without damping."""
    every = tuple(np.ascontiguousarray(part) for part in np.nonzero(np.ones_like(at.V)))
    model = HessianModel(run.coordinates, at.linearization, every)
    return model, model.minimize(at.V, at.gradient, 0.0, 1e-6, 0.0)[0] - at.V


def test_a_dual_point_that_misses_the_conditions_is_repaired(monkeypatch):
    """Probabilities stop at zero along a step: the model's dual point is then far off, and the next ones are not."""
    X, y = load_wine(return_X_y=True)
    objective, iterations = classification(X, y, 1e-3), []
    for repairs in (solver.REPAIRS, 1):
        monkeypatch.setattr(solver, "REPAIRS", repairs)
        result = solve(objective, tol=1e-3)
        assert result.stopped_on == "gap"
        iterations.append(len(result.history))
    assert iterations[0] < iterations[1]


@pytest.mark.parametrize("load", [load_iris, load_wine])
def test_proofs_with_hessians_of_their_own_come_earlier(load, monkeypatch):
    """The model at the point itself counts on curvature that rows have lost whose probabilities became zero."""
    X, y = load(return_X_y=True)
    objective, iterations = classification(X, y, 1e-4), []
    best = solve(objective, tol=1e-10)
    for renews in (True, False):
        if not renews:
            monkeypatch.setattr(solver, "SMALL_WORK", 0)
            monkeypatch.setattr(solver.ProximalNewton, "sample", lambda self, m: None)
        result = solve(objective, tol=1e-3)
        assert result.stopped_on == "gap"
        assert result.loss - best.loss <= result.gap * result.null_loss + 1e-12  # rounding
        iterations.append(len(result.history))
    assert iterations[0] < iterations[1]


@pytest.mark.parametrize("kind", ["plain", "weighted", "no intercept", "part", "soft", "binary", "elastic net"])
def test_moved_probabilities_have_the_dual_point_along_the_step(kind):
    objective = problem(**KINDS[kind])
    c = CentredCoordinates(objective)
    V, step = (0.3 * np.random.default_rng(i).normal(size=c.curvature.shape) / np.sqrt(c.curvature) for i in (3, 4))
    at = objective.linearize(c.to_weights(V))
    moved = c.moved(at, step)
    np.testing.assert_allclose(moved.W, c.to_weights(V + step), atol=1e-12)  # rounding
    for one, other in zip(c.dual_point_along(at, step), c.dual_point_along(moved, None), strict=True):
        # sums over the classes are made in another order; entries of G may cancel
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["plain", "weighted", "no intercept", "soft", "binary", "sparse", "offset"])
def test_all_ways_to_the_hessian_agree(kind):
    objective = problem(**KINDS[kind])
    c = CentredCoordinates(objective)
    random = np.random.default_rng(3).normal(size=c.curvature.shape)
    for V in (0 * random, 0.3 * random / np.sqrt(c.curvature)):
        V[:, objective.n_features :] = c.null_intercepts
        at = objective.linearize(c.to_weights(V))
        every = np.nonzero(np.ones_like(V))
        for part in (np.s_[:], np.s_[::2]):
            classes, features = (numbers[part] for numbers in every)
            used, column = quadratic_models._numbered(features)
            given = c, at, classes, used, column, None
            ways = [quadratic_models._hessian_by_blocks(*given)]
            if c.objective.design.can_center:
                ways.append(quadratic_models._dense_hessian(*given))
            if not V[:, : objective.n_features].any():
                ways.append(quadratic_models._hessian_of_null_model(*given))
            for H in ways[1:]:
                np.testing.assert_allclose(H, ways[0], atol=1e-9 if kind == "offset" else 1e-13)  # rounding


# --- the solver ---------------------------------------------------------------------------------------------------


@kinds
def test_the_gap_is_proven_and_true(kind):
    objective = problem(**kind)
    result = solve(objective)
    best = solve(float64(objective), tol=1e-10)
    unit = result.loss
    assert result.stopped_on == "gap"
    assert result.gap <= 1e-4
    off = loss(objective, result.W) - loss(objective, best.W)
    # F of float32 coefficients is known to its rounding; the best is at most 1e-6 above the minimum
    rounding = 1e-6 if objective.dtype == np.float32 else 1e-9
    assert off <= result.gap * result.null_loss + rounding * unit
    assert loss(objective, best.W) <= loss(objective, result.W) + rounding * unit


@kinds
def test_optimality_conditions_hold(kind):
    objective = float64(problem(**kind))
    result = solve(objective, tol=1e-8)
    at, d = objective.linearize(result.W), objective.n_features
    g, w = at.gradient[:, :d], result.W[:, :d]
    off = np.where(w == 0, np.maximum(np.abs(g) - objective.l1, 0), np.abs(g + np.sign(w) * objective.l1))
    mean, std = (getattr(objective.design.float64_rows(slice(None)), name)(axis=0) for name in ("mean", "std"))
    # a gap of 1e-8 F_null allows violations of some 1e-4 times the square root of the curvature; an offset of 1e6 and
    # weights near 1 leave 1e-10 of each logit to rounding, which the centred gradient sees as 1e-10 times the deviation
    bound = 3e-4 * (1 + std) + 1e-9 * np.abs(mean)
    assert (off <= bound).all()
    if objective.fit_intercept:
        assert np.abs(at.gradient[:, d]).max() <= 3e-4
    if objective.n_classes == 2:
        np.testing.assert_array_equal(result.W[0], -result.W[1])


@pytest.mark.parametrize("kind", ["plain", "elastic net", "wild scales", "many classes", "sparse", "binary"])
def test_the_support_is_that_of_a_far_more_precise_solution(kind):
    objective = problem(**KINDS[kind])
    coarse, fine = (objective.coef(solve(objective, tol=tol).W) for tol in (1e-4, 1e-10))
    assert 0 < np.count_nonzero(fine) < fine.size
    deviation = objective.design.float64_rows(slice(None)).std(axis=0)
    differ = (coarse != 0) != (fine != 0)
    # where both solutions agree to 1e-6 in standardised units, one of them may have what is zero in the other
    assert (np.abs((coarse - fine) * deviation)[differ] < 1e-6).all()


@pytest.mark.parametrize("density", [None, 0.3])
def test_from_the_largest_gradient_on_all_weights_are_zero(density):
    objective = problem(density=density)
    g = np.abs(objective.coef(objective.linearize(solve(objective.with_penalties(0.0, 1e3)).W).gradient)).max()
    above, below = (solve(objective.with_penalties(0.0, factor * g)) for factor in (1.0001, 0.95))
    assert not objective.coef(above.W).any()
    assert above.stopped_on == "gap"
    assert len(above.history) == 1
    assert objective.coef(below.W).any()


@pytest.mark.parametrize("density", [None, 0.3])
def test_without_intercepts_all_may_be_zero(density):
    result = solve(problem(density=density, fit_intercept=False, l1=1e3))
    assert not result.W.any()
    assert result.stopped_on == "gap"


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_float32_has_a_proof_as_sharp_as_float64(scale):
    """The dual point is that of coefficients before they are rounded to float32."""
    result = solve(problem(dtype=np.float32, l1=1e-3 * scale, scales=True))
    assert result.stopped_on == "gap"


has_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="long double is no longer than double here"
)


@has_long_double
@pytest.mark.parametrize("density", [None, 0.3], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_of_scales_twelve_orders_apart_have_a_proof(dtype, density):
    """Sums of the largest feature in float64 leave room for a gap of 3e-4: those of a dual point are in long double."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 20)) if density is None else sparse.random_array((2000, 20), density=density, rng=rng)
    logits = X @ rng.normal(size=(20, 4))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    X = (X if density is None else X.toarray()) * np.logspace(-6, 6, 20)
    X = X.astype(dtype) if density is None else sparse.csr_array(X.astype(dtype))
    objective = classification(X, y, 1e-4)
    result = solve(objective)
    assert result.stopped_on == "gap"
    best = solve(float64(objective), tol=0.0, max_iter=30)
    # F of float32 coefficients is known to its rounding
    assert loss(objective, result.W) - loss(objective, best.W) <= result.gap * result.null_loss + 1e-6


@has_long_double
@pytest.mark.parametrize("density", [None, 0.3], ids=["dense", "sparse"])
def test_sums_in_long_double_are_exact_but_for_the_last_bits(density):
    objective = problem(density=density, scales=True)
    X, residual = objective.design.dense_rows(slice(None)), np.random.default_rng(4).normal(size=(200, 4))
    sums = objective.design.accumulate_long(residual, [3, 11])
    for k in range(4):
        for total, j in zip(sums[k], (3, 11), strict=True):
            pairs = zip(residual[:, k].tolist(), X[:, j].tolist(), strict=True)
            products = [Fraction(r) * Fraction(x) for r, x in pairs]
            size = float(sum(abs(product) for product in products))
            # 200 roundings of long double, which has 64 bits or more, and one of the comparison in float64
            assert abs(float(total - np.longdouble(float(sum(products))))) <= (200 * 2.0**-64 + 2.0**-53) * size


@pytest.mark.parametrize("kind", ["plain", "weighted", "sparse", "binary", "offset"])
def test_long_sums_change_nothing_but_rounding(kind):
    objective = problem(**KINDS[kind])
    c = CentredCoordinates(objective)
    V, step = (0.1 * np.random.default_rng(i).normal(size=c.curvature.shape) / np.sqrt(c.curvature) for i in (3, 4))
    at = objective.linearize(c.to_weights(V))
    long, bound = np.array([2, 5]), 1e-8 if kind == "offset" else 1e-13  # rounding of sums; an offset of 1e6
    for given in ((V,), (V, step)):
        for one, other in zip(c.dual_point(*given), c.dual_point(*given, long=long), strict=True):
            np.testing.assert_allclose(one, other, atol=bound)
    for one, other in zip(c.dual_point_along(at, step), c.dual_point_along(at, step, long), strict=True):
        np.testing.assert_allclose(one, other, atol=bound)


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("load", [load_iris, load_wine, load_digits])
def test_raw_data_that_can_be_separated_converge(load, alpha, l1_ratio):
    X, y = load(return_X_y=True)
    assert solve(classification(X, y, alpha, l1_ratio)).stopped_on == "gap"


def test_heavy_tails_are_damped_and_converge():
    """Models without damping take steps that turn over rows far out: the objective goes up."""
    rng = np.random.default_rng(1)
    X = rng.standard_t(0.7, size=(2000, 9))
    logits = np.sign(X) * np.log1p(np.abs(X)) @ rng.normal(size=(9, 7)) - 2 * np.arange(7)
    result = solve(classification(X, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1), 1e-4))
    assert result.stopped_on == "gap"
    assert result.passes > len(result.history) + 1  # some step was taken back
    losses = [entry["loss"] for entry in result.history]
    assert np.all(np.diff(losses) <= 1e-12)  # noise of a loss near 1


def test_a_solve_that_fails_leads_nowhere(monkeypatch):
    """Where rounding is all that is left of the curvature, a solve may go uphill: a loss of 1e-7 became 1e8."""
    objective = problem()

    def uphill(self, V, *rest):
        return V + np.arange(V.size).reshape(V.shape), -10.0

    monkeypatch.setattr(solver.HessianModel, "minimize", uphill)
    result = solve(objective, max_iter=20)
    np.testing.assert_allclose(result.loss, entr(np.bincount(objective.codes) / objective.n_rows).sum(), rtol=1e-12)
    assert result.stopped_on == "precision"
    assert result.passes <= 60  # it gives up, not only after 20 iterations of 6 trials


def test_a_path_is_cheaper_with_warm_starts():
    X, y = load_digits(return_X_y=True)
    W, warm, cold = None, 0, 0
    for alpha in np.geomspace(0.5, 1e-3, 6):
        objective = classification(X, y, alpha)
        result = solve(objective, W)
        assert result.stopped_on == "gap"
        W, warm, cold = result.W, warm + result.passes, cold + solve(objective).passes
    assert warm < cold
    assert len(solve(objective, W).history) == 1


@pytest.mark.parametrize("density", [None, 0.1])
def test_small_working_sets_lead_to_the_same_optimum(density, monkeypatch):
    objective = problem(d=60, density=density, l1=2e-3)
    large = solve(objective, tol=1e-8)
    monkeypatch.setattr(solver, "MANY", objective.zeros().size - 1)
    monkeypatch.setattr(solver, "ROOM", 5)
    sizes, original = [], solver.ProximalNewton.working_set
    monkeypatch.setattr(
        solver.ProximalNewton, "working_set", lambda self, at: sizes.append(original(self, at)) or sizes[-1]
    )
    small = solve(objective, tol=1e-8)
    assert len(sizes[0][0]) == 4 + 5
    assert small.stopped_on == large.stopped_on == "gap"
    assert abs(loss(objective, small.W) - loss(objective, large.W)) <= 1e-8 * large.loss


def test_hessians_of_a_sample_of_the_rows_lead_to_the_same_optimum(monkeypatch):
    objective = problem(n=2000, l1=2e-3)
    exact = solve(objective)
    monkeypatch.setattr(solver, "SMALL_WORK", 0)
    samples, original = [], solver.ProximalNewton.sample
    monkeypatch.setattr(
        solver.ProximalNewton, "sample", lambda self, m: samples.append(original(self, m)) or samples[-1]
    )
    sampled = solve(objective)
    assert len(samples[0]) == 250
    assert samples[-1] is None
    assert sampled.stopped_on == "gap"
    assert abs(loss(objective, sampled.W) - loss(objective, exact.W)) <= 1e-4 * exact.loss


@pytest.mark.parametrize("density", [None, 0.3], ids=["dense", "sparse"])
def test_dual_points_of_float32_are_made_in_float64(density):
    """The room for rounding in a bound is that of float64, also at a point that itself is not precise."""
    objective = problem(dtype=np.float32, density=density)
    c = CentredCoordinates(objective)
    V, step = (0.1 * np.random.default_rng(i).normal(size=c.curvature.shape) / np.sqrt(c.curvature) for i in (3, 4))
    point = solver._Point(c, V, precise=False)
    for one, other in zip(point.dual_along(step), c.dual_point(V, step), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sample_of_the_rows_that_misleads_is_not_the_end_of_precision(monkeypatch):
    """The Hessian of two rows promises what no damping keeps: more rows have to be taken."""
    monkeypatch.setattr(solver, "SMALL_WORK", 0)
    monkeypatch.setattr(solver, "ROWS_EACH", 0)
    monkeypatch.setattr(solver, "FIRST_SAMPLE", 1000)
    assert solve(problem(n=2000, l1=2e-3)).stopped_on == "gap"


def test_penalties_that_get_weaker_lead_to_the_same_optimum_through_smaller_supports(monkeypatch):
    X, y = load_digits(return_X_y=True)
    objective = classification(X, y, 1e-3)
    strengths, nonzeros, original = [], [], solver.ProximalNewton.step

    def step(self):
        original(self)
        strengths.append(self.coordinates.strength)
        nonzeros.append(np.count_nonzero(self.at.V))

    monkeypatch.setattr(solver.ProximalNewton, "step", step)
    monkeypatch.setattr(solver, "MANY", np.inf)
    at_once = solve(objective)
    largest = max(nonzeros)
    assert set(strengths) == {objective.l1}
    strengths.clear()
    nonzeros.clear()
    monkeypatch.setattr(solver, "MANY", 0)
    in_turn = solve(objective)
    assert strengths[0] > 100 * objective.l1
    assert strengths[-1] == objective.l1
    assert np.all(np.diff(strengths) <= 0)
    assert max(nonzeros) < largest
    assert in_turn.stopped_on == at_once.stopped_on == "gap"
    assert abs(loss(objective, in_turn.W) - loss(objective, at_once.W)) <= 1e-4 * objective.null_loss
    assert len(solve(objective, in_turn.W).history) == 1  # a start near the optimum begins with its own penalty


def test_a_penalty_stays_while_models_fail_or_large_ones_are_far_from_its_optimum(monkeypatch):
    X, y = load_digits(return_X_y=True)
    objective = classification(X, y, 1e-3)
    strengths, original = [], solver.ProximalNewton.step
    monkeypatch.setattr(
        solver.ProximalNewton, "step", lambda self: original(self) or strengths.append(self.coordinates.strength)
    )
    at_once = solve(objective)
    n_strengths = len(strengths)
    strengths.clear()
    monkeypatch.setattr(solver, "LARGE", 0)
    monkeypatch.setattr(solver, "UNSETTLED", 1.5)
    patient = solve(objective)
    assert len(strengths) > n_strengths
    assert (np.diff(strengths)[:-1] == 0).any()  # beside the last ones, which are that of the objective
    assert strengths[-1] == objective.l1
    assert patient.stopped_on == at_once.stopped_on == "gap"
    run = solver.ProximalNewton(objective, objective.zeros(), Options(100, 1e-4, np.random.RandomState(0)))
    original(run)
    for run.is_exact, run.gained, expected in ((False, -1.0, True), (True, -1.0, False)):
        assert run.is_waiting == expected


def test_nothing_that_is_given_changes():
    objective = problem(weighted=True, soft=True)
    W = objective.zeros() + 0.1
    given = [W, objective.design.X, objective.targets, objective.sample_weight]
    before = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    solve(objective, W)
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_coefficients_are_those_whose_loss_is_recorded(monkeypatch):
    """Also where no step leads anywhere: a run from zero begins at the intercepts of the null model."""
    objective = problem()
    monkeypatch.setattr(solver.HessianModel, "minimize", lambda self, V, *rest: (V.copy(), 1.0))
    result = solve(objective, max_iter=1)
    np.testing.assert_allclose(result.loss, loss(objective, result.W), rtol=1e-12)  # rounding
    np.testing.assert_allclose(result.loss, entr(np.bincount(objective.codes) / objective.n_rows).sum(), rtol=1e-12)


def test_iterations_end_where_they_are_told_to():
    objective = problem()
    assert solve(objective, max_iter=2).stopped_on == "max_iter"
    assert len(solve(objective, max_iter=2).history) == 2
    watched = solve(objective, monitor=Silent(end=1))
    assert len(watched.history) == 1
    assert watched.stopped_on == "max_iter"


def test_the_end_of_precision_is_told():
    result = solve(problem(), tol=0.0)
    assert result.stopped_on == "precision"
    assert result.gap < 1e-10  # what rounding of numbers near 1 leaves, with room for sums of 200


def test_more_threads_change_nothing():
    found = [solve(problem(n_threads=n)).W for n in (1, 2)]
    np.testing.assert_array_equal(*found)
