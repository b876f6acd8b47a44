"""What a fit says of itself is true: no claim of convergence, and no bound, that a far better optimum contradicts.

Random problems over wild scales, offsets, weights and penalties; the ends of the range of the dtypes; features of
zeros. The truth is F in extended precision, and the best that any solver and L-BFGS-B, in standardised coordinates,
find.
"""

import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import entr, log_softmax
from sklearn.exceptions import ConvergenceWarning

from softreg import SoftmaxRegression, _preconditioners
from softreg._duality import lower_bound
from softreg._objective import Objective
from softreg._preconditioners import exact
from softreg._solvers import dual_ascent
from softreg._threads import single_threaded_blas

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
SOLVERS = ("auto", "newton", "dual", "proximal_newton", "sgd")
MAX_ITER = {"newton": 60, "auto": 60, "dual": 40, "proximal_newton": 40, "sgd": 15}


# --- problems and their truth -------------------------------------------------------------------------------


def problem(seed, rows=(4, 80)):
    """X, y, sample weights and parameters of a small random problem."""
    rng = np.random.default_rng(seed)
    n, d, K = rng.integers(*rows), rng.integers(1, 6), rng.integers(2, 5)
    dtype = (np.float64, np.float32)[rng.integers(2)]
    kind = rng.choice(["normal", "sparse", "twins", "offset", "heavy", "rounded"])
    X = rng.standard_t(1.2, size=(n, d)) if kind == "heavy" else rng.normal(size=(n, d))
    if kind == "sparse":
        X[rng.random(X.shape) < 0.7] = 0
    elif kind == "twins":
        X[:, -1] = X[:, 0]
    elif kind == "offset":  # float32 holds no digits of what varies beside a larger one
        X += 10.0 ** rng.uniform(-1, 4 if dtype == np.float64 else 2, d)
    elif kind == "rounded":
        X = X.round()
    noise = rng.choice([0, 1, 10])  # none: the classes are separable
    Z = (X - X.mean(axis=0)) @ rng.normal(size=(d, K)) * 10 ** rng.uniform(-1, 1)
    y = (Z + noise * rng.gumbel(size=Z.shape)).argmax(axis=1)
    y[:2] = 0, 1
    X *= 10 ** rng.choice([0, 1, 1]) if rng.random() < 0.3 else 10.0 ** rng.uniform(-6, 6, rng.choice([1, d]))
    weight = rng.choice([None, "uniform", "wild", "zeros"])
    s = {None: None, "uniform": rng.random(n), "wild": 10.0 ** rng.uniform(-6, 6, n), "zeros": rng.integers(3, size=n)}
    s = s[weight]
    if s is not None:
        s[:2] = 1
    parameters = {
        "alpha": rng.choice([0.0, 10 ** rng.uniform(-12, 2)]) if rng.random() < 0.3 else 10 ** rng.uniform(-6, 1),
        "l1_ratio": rng.choice([0.0, 0.0, 0.0, 1.0, rng.random()]),
        "tol": 10 ** rng.uniform(-6, -2),
        "fit_intercept": bool(rng.random() < 0.8),
    }
    return X.astype(dtype), np.unique(y, return_inverse=True)[1], s, parameters


class Truth:
    """F of a problem, from `coef_` and `intercept_`, and its minimum."""

    def __init__(self, X, y, s, parameters):
        s = np.ones(len(y)) if s is None else s.astype(X.dtype)
        self.X, self.Y = X.astype(np.longdouble), np.eye(y.max() + 1)[y]
        self.s = s.astype(np.longdouble) / s.sum(dtype=np.longdouble)
        self.null_loss = float(entr((self.s @ self.Y).astype(float)).sum())
        self.fit_intercept = parameters["fit_intercept"]
        self.l2 = parameters["alpha"] * (1 - parameters["l1_ratio"])
        self.l1 = parameters["alpha"] * parameters["l1_ratio"]

    def value(self, coef, intercept):
        Z = self.X @ coef.T.astype(np.longdouble) + intercept
        Z = np.hstack([np.zeros_like(Z), Z]) if Z.shape[1] == 1 else Z
        Z = Z - Z.max(axis=1, keepdims=True)
        losses = np.log(np.exp(Z).sum(axis=1)) - (self.Y * Z).sum(axis=1)
        coef = coef.astype(np.longdouble)
        return float(self.s @ losses + self.l2 / 2 * (coef**2).sum() + self.l1 * np.abs(coef).sum())

    def minimum(self, coef, intercept):
        """Return the least F that L-BFGS-B finds from zero and from a fit, features in units of their curvature."""
        (R, d), K = coef.shape, self.Y.shape[1]
        mean = self.s @ self.X if self.fit_intercept else np.zeros(d)
        unit = np.sqrt(self.s @ (self.X - mean) ** 2 + 4 * self.l2)
        unit[unit == 0] = 1
        A = ((self.X - mean) / unit).astype(float)
        A = np.column_stack([A, np.ones(len(A))]) if self.fit_intercept else A
        s, p = self.s.astype(float), A.shape[1]
        l2, l1 = (np.r_[np.asarray(a, float), np.zeros(p - d)] for a in (self.l2 / unit**2, self.l1 / unit))

        def value_and_gradient(v):  # of positive and negative parts: |w| = u + v at the optimum
            U, V = v.reshape(2, R, p)
            W = U - V
            Z = A @ W.T
            logp = log_softmax(np.hstack([np.zeros_like(Z), Z]) if R == 1 else Z, axis=1)
            G = ((np.exp(logp) - self.Y) * s[:, None])[:, K - R :].T @ A + W * l2
            F = -(s @ (self.Y * logp).sum(axis=1)) + 0.5 * (W**2 @ l2).sum() + ((U + V) @ l1).sum()
            return F, np.stack([G + l1, l1 - G]).ravel()

        start = np.zeros((R, p))
        start[:, :d] = coef * unit
        if self.fit_intercept:
            start[:, d] = intercept + coef @ mean
        found = []
        for W in (start, 0 * start):
            parts = np.stack([np.maximum(W, 0), np.maximum(-W, 0)]).ravel()
            v = minimize(
                value_and_gradient, parts, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(parts),
                options={"maxiter": 300, "ftol": 1e-15, "gtol": 1e-12},
            ).x.reshape(2, R, p)  # fmt: skip
            W = v[0] - v[1]
            coef = W[:, :d] / unit
            found.append(self.value(coef, W[:, d] - coef @ mean if self.fit_intercept else np.zeros(R)))
        return min(found)


def fits_of(X, y, s, parameters, seed):
    """Return the fits of all solvers that can do the problem, dense and CSR in turn."""
    fits = []
    for i, solver in enumerate(SOLVERS):
        form = sparse.csr_array if solver == "dual" or (i + seed) % 2 else np.asarray
        model = SoftmaxRegression(solver=solver, max_iter=MAX_ITER[solver], random_state=0, n_jobs=1, **parameters)
        try:
            fits.append(model.fit(form(X), y, sample_weight=s))
        except ValueError as error:  # what a solver cannot do
            assert "needs" in str(error)
        except FloatingPointError as error:
            assert "scale" in str(error)
    return fits


def check_claims(X, y, s, parameters, seed):
    truth, fits = Truth(X, y, s, parameters), fits_of(X, y, s, parameters, seed)
    values = [truth.value(model.coef_, model.intercept_) for model in fits]
    best = fits[int(np.argmin(values))]
    with single_threaded_blas():  # whose threads wait for each other in products as small as these
        minimum = min(*values, truth.minimum(best.coef_.astype(float), best.intercept_.astype(float)))
    for model, F in zip(fits, values, strict=True):
        # F is rounded in the dtype, and its logits are: sums of terms x w
        logits = np.abs(X.astype(float)) @ np.abs(model.coef_.T.astype(float))
        rounding = np.finfo(X.dtype).eps * (20 * max(F, 1) + 2 * logits.max(axis=1).mean())
        assert F - minimum <= model.optimality_gap_ * truth.null_loss + rounding
        if model.stopped_on_ == "gap":
            assert F - minimum <= model.tol * truth.null_loss + rounding
        elif model.stopped_on_ == "estimate":  # it is not proven, and rows of very different lengths mislead it
            assert F - minimum <= 10 * model.tol * truth.null_loss + rounding


@pytest.mark.parametrize("seeds", [range(i, i + 10) for i in range(0, 80, 10)], ids=str)
def test_no_claim_that_a_better_optimum_contradicts(seeds):
    for seed in seeds:
        check_claims(*problem(seed), seed)


@pytest.mark.parametrize("seeds", [range(100, 110), range(110, 120)], ids=str)
def test_no_claim_with_the_means_of_large_problems(seeds, monkeypatch):
    """The preconditioners of large problems, and dual ascent before Newton's method, on small ones."""
    for module in (_preconditioners, exact, dual_ascent):
        monkeypatch.setattr(module, "EXACT_SIZE", 0)
    for seed in seeds:
        check_claims(*problem(seed), seed)


@pytest.mark.parametrize("seeds", [range(10), range(2435, 2445), range(4580, 4590)], ids=str)
def test_no_claim_with_the_hessian_of_a_sample(seeds, monkeypatch):
    """Seed 4587 claimed a gap 3,900 times too small: the damping of the sample hid collinear features."""
    monkeypatch.setattr(exact, "EXACT_WORK", 0)
    for seed in seeds:
        X, y, s, parameters = problem(seed, rows=(200, 1000))
        check_claims(X, y, s, {**parameters, "l1_ratio": 0.0}, seed)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("alpha", [1e-4, 1.0])
def test_no_proof_from_digits_that_cancelled(scale, alpha):
    """With RMSprop on X * 1e-12 the loss was 1e22; a bound made as loss less gap was wrong by 1e6, and was kept."""
    X = np.random.default_rng(0).normal(size=(40, 5))
    y = (X[:, 0] > 0) + 1 * (X[:, 1] > 0)
    parameters = {"alpha": alpha, "l1_ratio": 0.0, "tol": 1e-4, "fit_intercept": True}
    for seed in (0, 1):
        check_claims(X * scale, y, None, parameters, seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@forms
def test_a_lower_bound_far_from_the_optimum_is_low(form, dtype):
    """F is 1e22 there, whose digits end at 1e6; the minimum is below log 3."""
    X = np.random.default_rng(0).normal(size=(40, 5))
    y = (X[:, 0] > 0) + 1 * (X[:, 1] > 0)
    objective = Objective(form((X * 1e-6).astype(dtype)), y, None, None, 3, l2=1.0)
    for size in (1e3, 1e6, 1e11):
        W = objective.zeros()
        objective.coef(W)[...] = size * np.random.default_rng(1).normal(size=(3, 5))
        assert lower_bound(objective.linearize(W)) <= np.log(3)


@pytest.mark.parametrize("seed", [25, 29, 72, 78])
def test_rows_of_very_different_lengths_do_not_mislead_the_estimate(seed):
    """At W = 0 a few long rows have all of the curvature. After a step they are certain, and little of it is left."""
    rng = np.random.default_rng(seed)
    X = rng.standard_t(1.2, size=(25, 1 + seed % 3))
    y = (X @ rng.normal(size=(X.shape[1], 3)) * 0.1 + rng.gumbel(size=(25, 3))).argmax(axis=1)
    y[:3] = 0, 1, 2
    parameters = {"alpha": 1e-9, "l1_ratio": 0.0, "fit_intercept": False}
    truth = Truth(X, y, None, parameters)
    fits = [SoftmaxRegression(solver="newton", tol=tol, **parameters).fit(X, y) for tol in (1e-2, 1e-9)]
    F, least = (truth.value(model.coef_, model.intercept_) for model in fits)
    assert fits[0].stopped_on_ in ("gap", "estimate")
    assert F - least <= 1e-2 * F


# --- the ends of the range ----------------------------------------------------------------------------------

ENDS = [(np.float64, size) for size in (1e-300, 1e-160, 1e-100, 1e100, 1e160, 1e300)]
ENDS += [(np.float32, size) for size in (1e-44, 1e-38, 1e-20, 1e25, 1e37)]


def raw(n, d, K):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    return X, (X @ rng.normal(size=(d, K)) + rng.gumbel(size=(n, K))).argmax(axis=1)


def fit_at_the_ends(model, X, y, solver):
    """Fit, or learn ten times from a batch; return whether it was possible."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ConvergenceWarning)
            if solver == "partial_fit":
                for _ in range(10):
                    model.partial_fit(X, y, classes=3)
            else:
                model.set_params(solver=solver).fit(X, y)
    except (FloatingPointError, ValueError) as error:
        if "needs" in str(error) or "features of X are too large or too small" in str(error):
            return False
        raise
    return True


@forms
@pytest.mark.parametrize("solver", [*SOLVERS, "partial_fit"])
@pytest.mark.parametrize(("dtype", "size"), ENDS)
@pytest.mark.parametrize("large", [False, True], ids=["exact", "means of large problems"])
def test_ends_of_the_range(form, solver, dtype, size, large, monkeypatch, capfd):
    """The scale of X does not matter without a penalty: the accuracy is that of X itself, or an error names X.

    With a penalty the same, or, where the penalty keeps the coefficients of small features at nothing, F is that of
    the class shares."""
    if large:
        for module in (_preconditioners, exact, dual_ascent):
            monkeypatch.setattr(module, "EXACT_SIZE", 0)
    X, y = raw(60, 4, 3)
    for alpha in (0.0, 1e-4):
        l1_ratio = 1.0 if solver == "proximal_newton" else 0.0
        model = SoftmaxRegression(alpha=alpha, l1_ratio=l1_ratio, random_state=0)
        if not fit_at_the_ends(model, form((X * size).astype(dtype)), y, solver):
            continue
        if alpha == 0:
            assert model.score(form((X * size).astype(dtype)), y) >= 0.7  # 0.8 for X itself; 0.38 for no model
        else:
            loss = -model.predict_log_proba(form((X * size).astype(dtype)))[np.arange(60), y].mean()
            shares = np.bincount(y) / 60
            null = -(shares * np.log(shares)).sum()
            # dual ascent says that it did not arrive where ||x||^2 / alpha is vast; else no worse than no model,
            # within tol, or 1 % for a stream
            assert loss <= 1.01 * null or model.stopped_on_ == "max_iter"
    assert capfd.readouterr().out == ""  # LAPACK prints what it does not like


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e100, 1e160, 1e300])
@forms
def test_newton_at_the_ends_of_the_range(size, form):
    """Numbers are squared nowhere but in units of the feature: the answer is that of X itself, over the size."""
    X, y = raw(60, 4, 3)
    options = {"alpha": 0.0, "tol": 1e-10, "solver": "newton"}
    expected = SoftmaxRegression(**options).fit(X, y)
    model = SoftmaxRegression(**options).fit(form(X * size), y)
    assert model.stopped_on_ == "estimate"
    # gaps of 1e-10 F move coefficients by the square root, over curvatures of some 0.01
    np.testing.assert_allclose(model.coef_ * size, expected.coef_, rtol=0, atol=3e-4)


def test_small_features_beside_large_ones_are_not_forgotten(monkeypatch):
    """The diagonal had a floor in units of the largest: the features under 1e-5 of it cost ever more passes, until a
    loss of 1.27 was estimated to be within 1e-4 of its minimum of 0.78."""
    for module in (_preconditioners, exact):
        monkeypatch.setattr(module, "EXACT_SIZE", 0)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 40))
    y = (X @ rng.normal(size=(40, 5)) * 0.3 + rng.gumbel(size=(600, 5))).argmax(axis=1)
    options = {"alpha": 0.0, "tol": 1e-4, "solver": "newton"}
    passes = []
    for small in (1.0, 1e-6, 1e-12):
        units = np.where(np.arange(40) % 2, 1.0, small)
        history = SoftmaxRegression(**options).fit(sparse.csr_array(X * units), y).history_
        assert history["loss"][-1] <= 0.78452 * 1.0001 + 1e-5
        passes.append(history["passes"][-1])
    assert passes[0] == passes[1] == passes[2]


# --- features of zeros --------------------------------------------------------------------------------------


@forms
@pytest.mark.parametrize("alpha", [0.0, 1e-2])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5])
@pytest.mark.parametrize("solver", [*SOLVERS, "partial_fit"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_of_zeros_without_an_intercept(solver, form, alpha, l1_ratio, dtype):
    X, y = form(np.zeros((20, 3), dtype)), np.arange(20) % 3
    if l1_ratio and solver in ("newton", "dual"):
        pytest.skip("no such solver")
    if solver == "proximal_newton" and not alpha * l1_ratio:
        pytest.skip("no such solver")
    if solver == "dual" and (alpha == 0 or form is np.asarray):
        pytest.skip("no such solver")
    model = SoftmaxRegression(alpha=alpha, l1_ratio=l1_ratio, fit_intercept=False, random_state=0)
    if solver == "partial_fit":
        model.partial_fit(X, y, classes=3).partial_fit(X, y)
    else:
        model.set_params(solver=solver).fit(X, y)
    assert not model.coef_.any()
    assert np.array_equal(model.predict_proba(X), np.full((20, 3), dtype(1) / 3))


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "sgd"])
def test_accuracy_of_held_out_rows_is_weighted(solver):
    """Rows of weight 1,000 in one half of the plane, where the model is right, and of weight 1 where it is not."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = np.where(X[:, 1] > 0, X[:, 0] > 0, rng.integers(2, size=300)).astype(int)
    s = np.where(X[:, 1] > 0, 1000.0, 1.0)
    model = SoftmaxRegression(solver=solver, early_stopping=True, validation_fraction=0.5, random_state=0)
    history = model.fit(X, y, sample_weight=s).history_
    assert history["validation_score"].max() > 0.9  # 0.75 where all rows count the same
