"""Newton's method with the exact Hessian, and where it hands over to Newton-CG."""

from importlib import import_module

import numpy as np
import pytest
from shared import QuietMonitor
from test_newton import EPS, kinds, optimum, options, problem

from softreg import SoftmaxRegression
from softreg._duality import lower_bound
from softreg._objective import Objective
from softreg._preconditioners import Exact
from softreg._solvers import Start
from softreg._solvers.newton import newton
from softreg._solvers.newton_cholesky import _NewtonCholesky, newton_cholesky

module = import_module("softreg._solvers.newton_cholesky")


def solve(objective, start=None, **given):
    W = objective.zeros() if start is None else start
    return newton_cholesky(objective, Start(W), options(**given), QuietMonitor())


def eps_of(objective):
    return float(np.finfo(objective.dtype).eps)


@kinds
@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_it_ends_within_the_tolerance(kind, tol):
    objective, W = problem(**kind)
    lowest = optimum(objective, W)[1]
    result = solve(objective, tol=tol)
    assert result.stopped_on in ("gap", "estimate")
    reached = objective.value(result.W) - lowest
    rounding = 20 * eps_of(objective) * lowest  # of two values of F, sums of 300 rows
    assert reached <= tol * objective.null_loss + rounding
    for bound in (result.gap, result.estimate):
        assert np.isnan(bound) or reached <= bound * objective.null_loss + rounding


def test_estimates_hold_on_hard_small_problems():
    """Few rows, weak penalties, features of very different sizes, and three rows up to 1000 times as long as others.

    With estimates from the decrement alone, 6 of these claim to have converged and have not.
    """
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(150):
        n, d, K = rng.integers(20, 80), rng.integers(1, 6), rng.integers(2, 5)
        objective, W = problem(n=n, d=d, K=K, spread=rng.uniform(0, 3), l2=10.0 ** rng.uniform(-7, -1))
        objective.design.X[rng.integers(n, size=3)] *= 10.0 ** rng.uniform(0, 3)
        result = solve(objective, tol=1e-3, max_iter=200)
        lowest = min(optimum(objective, result.W)[1], optimum(objective, W)[1])
        if result.converged:
            finished += 1
            # F - min F is known to the rounding of F, a sum over up to 80 rows
            assert objective.value(result.W) - lowest <= 1e-3 * objective.null_loss + 20 * EPS
    assert finished >= 120


def gap_of_point(objective, result):
    """The gap that the probabilities at the end prove, in units of F_null."""
    return (result.loss - lower_bound(objective.linearize(result.W))) / result.null_loss


@kinds
def test_a_step_proves_the_gap(kind):
    """The probabilities that its model has at its minimum do; those at its end are much farther from a proof."""
    objective, W = problem(**{**kind, "l2": 1e-6})
    lowest = optimum(objective, W)[1]
    result = solve(objective, tol=1e-5)
    assert result.stopped_on == "gap"
    # a float32 F has the rounding of a sum over 300 rows
    assert result.lower_bound <= lowest * (1 + 20 * eps_of(objective))
    assert result.gap <= min(1e-5, 0.5 * gap_of_point(objective, result))


def test_where_no_step_brings_a_proof_an_estimate_ends_the_fit(monkeypatch):
    """One more step is taken, and its bound stands beside the estimate."""
    objective, W = problem()
    monkeypatch.setattr(module, "bound_of_distributions", lambda *given: 0.0)
    result = solve(objective, tol=1e-4)
    assert result.stopped_on == "estimate"
    assert result.estimate <= 1e-4 < result.gap
    assert objective.value(result.W) - optimum(objective, W)[1] <= 1e-4 * objective.null_loss
    assert result.loss == pytest.approx(objective.value(result.W), rel=10 * EPS)  # both add the rows, in another order


def test_a_factor_serves_for_a_second_step(monkeypatch):
    """From near the optimum a step gets far, and the Hessian stays nearly the same."""
    objective, W = problem()
    best = optimum(objective, W)[0]
    built, refresh = [], Exact.refresh

    def counted(self, linearization):
        built.append(linearization.W)
        refresh(self, linearization)

    monkeypatch.setattr(Exact, "refresh", counted)
    start = best + 0.01 * np.abs(best) * np.cos(np.arange(best.size)).reshape(best.shape)
    result = solve(objective, start=start, tol=1e-12)
    assert result.converged
    assert 1 <= len(built) < len(result.history)
    built.clear()
    monkeypatch.setattr(module, "KEPT", 0.0)
    assert solve(objective, tol=1e-12).converged
    assert len(built) >= 3  # else each step has a factor of its own


@pytest.mark.parametrize(("constant", "value"), [("STEEP", np.inf), ("TOO_FAR", -1.0)])
def test_steps_are_longer_where_classes_are_nearly_separable(constant, value, monkeypatch):
    """There the loss falls off exponentially, and full steps go the same short way each time."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    objective = Objective(X, (X @ rng.normal(size=(3, 3))).argmax(axis=1), None, None, 3, l2=1e-6)
    result = solve(objective, tol=1e-6)
    monkeypatch.setattr(module, constant, value)  # no longer step is tried, or each has gone too far
    full_steps = solve(objective, tol=1e-6)
    assert result.converged and full_steps.converged
    assert len(result.history) <= 0.8 * len(full_steps.history)
    # both are within 1e-6 F_null of the minimum
    assert result.loss == pytest.approx(full_steps.loss, abs=1e-6 * objective.null_loss)
    losses = [entry["loss"] for entry in result.history]
    assert losses == sorted(losses, reverse=True)


def test_where_steps_are_cut_short_newton_cg_goes_on(monkeypatch):
    """The history goes on, and the fit ends within the tolerance."""
    objective, W = problem()
    monkeypatch.setattr(module, "SHORTEST", np.inf)
    first = solve(objective)
    assert (first.stopped_on, len(first.history)) == ("slow", 1)
    result = newton(objective, Start(objective.zeros()), options(), QuietMonitor())
    assert result.converged
    assert result.history[0]["loss"] == first.history[0]["loss"]
    assert np.all(np.diff([entry["passes"] for entry in result.history]) > 0)
    assert objective.value(result.W) - optimum(objective, W)[1] <= 1e-3 * objective.null_loss


def test_where_the_hessian_is_singular_newton_cg_begins(monkeypatch):
    objective, W = problem()
    refresh = Exact.refresh

    def shifted(self, linearization):
        refresh(self, linearization)
        self.is_exact_inverse = False

    monkeypatch.setattr(Exact, "refresh", shifted)
    assert solve(objective).stopped_on == "slow"
    result = newton(objective, Start(objective.zeros()), options(), QuietMonitor())
    assert result.converged
    assert objective.value(result.W) - optimum(objective, W)[1] <= 1e-3 * objective.null_loss


def test_a_step_that_does_not_decrease_f_with_an_old_factor_is_taken_anew():
    objective, W = problem()
    state = _NewtonCholesky(objective, Start(W), options())
    state.result.record(state.at.value)
    before, state.age, state.direction = state.at, 1, -state.direction
    state.iterate()
    assert state.at is before and state.result.stopped_on == "max_iter"
    state.choose_step()
    assert state.age == 0
    state.iterate()
    assert state.at.value < before.value


@pytest.mark.parametrize("kind", [{}, {"dtype": np.float32}, {"K": 2}], ids=["float64", "float32", "binary"])
def test_all_digits_can_be_asked_for(kind):
    """With tol=0 a fit ends where no step decreases F, far before max_iter, and F is right to its rounding."""
    objective, W = problem(**kind)
    result = solve(objective, tol=0.0)
    assert len(result.history) < 20
    lowest = optimum(objective, W)[1]
    assert objective.value(result.W) - lowest <= 20 * eps_of(objective) * lowest  # sums of 300 rows


def test_iterations_are_counted_and_recorded():
    objective, _ = problem()
    result = solve(objective, max_iter=2, tol=1e-12)
    assert (result.stopped_on, len(result.history)) == ("max_iter", 2)
    assert np.isfinite(result.gap)
    assert [entry["loss"] for entry in result.history] == sorted((e["loss"] for e in result.history), reverse=True)


def test_the_factor_goes_from_fit_to_fit_of_a_path():
    objective, _ = problem()
    first = solve(objective)
    weaker = objective.with_penalties(1e-4, 0.0)
    start = Start(first.W, preconditioner=first.preconditioner)
    again = newton_cholesky(weaker, start, options(tol=1e-8), QuietMonitor())
    cold = solve(weaker, tol=1e-8)
    assert again.converged
    assert again.loss == pytest.approx(cold.loss, rel=1e-7)  # both are within 1e-8 of the same minimum


@pytest.mark.parametrize("classes", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(classes):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(3000, 10)), rng.integers(classes, size=3000)
    one, two = (SoftmaxRegression(n_jobs=n_jobs).fit(X, y) for n_jobs in (1, 2))
    assert np.array_equal(one.coef_, two.coef_) and np.array_equal(one.intercept_, two.intercept_)


@pytest.mark.parametrize("far", [False, True])
def test_no_estimate_where_the_next_step_goes_far(far, monkeypatch):
    objective, _ = problem()
    state = _NewtonCholesky(objective, Start(objective.zeros()), options())
    state.result.record(state.at.value)
    monkeypatch.setattr(module, "FARTHEST", -1.0 if far else np.inf)
    state.note(0.3 * state.result.target)
    assert np.isnan(state.result.estimate) == far
    assert state.result.stopped_on == ("max_iter" if far else "estimate")


@kinds
def test_the_largest_change_of_a_logit(kind):
    """Rows without weight do not count, nor does what all logits of a row share."""
    objective, W = problem(**kind)
    at, step = objective.linearize(W), objective.zeros()
    step[...] = np.random.default_rng(1).normal(size=step.shape)
    P, change = at.probabilities(slice(None)).astype(float), objective.design.logits(step).astype(float)
    change -= (P * change).sum(axis=1, keepdims=True)
    change[objective.shares() == 0] = 0
    want = np.abs(change).max()
    # sums over the classes of numbers no larger than the result, a few times
    assert at.max_logit_change(step) == pytest.approx(want, rel=20 * eps_of(objective))
    step += 3
    assert at.max_logit_change(step) == pytest.approx(want, rel=1e4 * eps_of(objective))  # logits are larger now
