"""Proximal Newton for l1 and elastic net: quadratic models of the loss, minimised together with the penalty.

A model covers a working set of coefficients: those that are not zero, and those whose optimality conditions are
violated most (Lee, Sun and Saunders 2014; Yuan, Ho and Lin 2012; Johnson and Guestrin 2015). A model that the objective
does not follow is damped (Levenberg 1944; Marquardt 1963). The run ends on a proven duality gap.

There are no screening rules beside the working sets. The gap-safe sphere (Ndiaye et al. 2017) was measured on eight
data sets: before the last iteration, it discards at most a tenth of the coefficients in 19 of 23 fits, as the gap is
still large. The sequential strong rule (Tibshirani et al. 2012) discards nothing where alpha falls by half or more from
one fit to the next, as on a grid of ten.
"""

from functools import cached_property

import numpy as np

from softreg import _rounding
from softreg._duality import bound_of_distributions, lower_bound
from softreg._solvers.centred_coordinates import CentredCoordinates
from softreg._solvers.quadratic_models import ColumnModel, HessianModel
from softreg._solvers.result import Result

NOISY = 1e-3  # share of tol below which a step may be judged by the gap
NOTHING = 1e-6  # share of tol that is not worth an iteration, where it does not bring a proof nearer
FIRST_SAMPLE, ROWS_EACH = 8, 4  # the first Hessians take one row in 8, and at least 4 for each coefficient
LARGE = 1500  # coefficients from which a row counts for several
SMALL_WORK = 1e8  # n m^2 up to which a Hessian over m coefficients takes all rows, and a proof has Hessians of its own
SLOW = 0.5  # the sample doubles where a step promises more than this share of what the last one did
LATE = 10  # where a step promises less than this multiple of tol, Hessians take all rows
WARM = 300  # at a start within this multiple of tol, too
HOPEFUL = 2.0  # a proof is tried below this multiple of tol
AGAIN = 0.6  # ... and after one that failed, below this share of what the step promised then
REPAIRS, NEARER = 6, 0.9  # dual points that are tried for a proof, each within this share of the gap before
OVERSHOT = 0.25  # a step that gains less than this share of its promise is shortened
STEEP = 0.1  # a step may be doubled where this share of the slope along it is left at its end
FARTHER = 0.1  # ... and is where that gains this share of what the step did
TRIALS = 6  # of damping before a step is given up
FIRST_DAMPING, LEAST_DAMPING = 0.01, 1e-4  # below the least a model is not damped
MORE, LESS, MUCH_LESS = 4.0, 3.0, 5.0  # factors of the damping after steps that went badly, well and as predicted
ROOM = 100  # coefficients that a working set may take beyond those that are not zero; or as many as these, or half
MANY = 500  # coefficients from which models have working sets, and the first ones a stronger l1
UNSETTLED = 6.0  # violation after a step, as a share of l1, above which the penalty of large models stays
WEAKER = 0.3  # l1 of a model over the largest gradient, while that is larger than l1
NEAR = 0.1  # share of l1 from which a zero coefficient may join a working set
FORCING = 0.01  # a model is solved until violations are down to this share, or to what the gap asks for
SPARE, COARSEST = 0.3, 0.1  # share of tol that violations of optimality conditions may take, and the most they may be


def proximal_newton(objective, start, options, monitor):
    """Minimise an objective with l1 > 0 from `start`; return the result.

    Parameters
    ----------
    objective : Objective
    start : Start
    options : Options
    monitor : Monitor, called after each iteration

    Returns
    -------
    result : Result
        Stopped on "gap", "precision" or "max_iter".
    """
    return ProximalNewton(objective, start.W, options).run(options.max_iter, monitor)


def obstacle(objective):
    """Return the reason why proximal Newton cannot minimise the objective, or None."""
    return None if objective.l1 else "needs alpha > 0 and l1_ratio > 0; solver='auto' does not"


class ProximalNewton:
    """The state of a run.

    Attributes
    ----------
    at : _Point, the best so far
    damping : of the next model
    decrease, noise : what the last model promised, and how well losses are known
    n_sampled : rows of the next Hessian, at least
    lower_bound : the best that was proven
    hopeful : a model that promises at most this is asked for a proof
    renews_models : whether proofs are repaired with Hessians of their own
    gained : by what the last step decreased the objective
    is_exact : whether the last Hessian was that of all rows
    idle : iterations in a row that could gain next to nothing, and brought the gap no nearer
    """

    def __init__(self, objective, W, options):
        self.objective, self.at = objective, None
        self.set_up_sampling(options.random_state)
        self.result = Result(W, objective.null_loss, options.tol, solver="proximal_newton")
        self.coordinates = self.new_coordinates()
        self.coordinates.set_strength(np.inf)
        V = self.coordinates.from_weights(W)
        if not W.any():
            V[:, objective.n_features :] = self.coordinates.null_intercepts
        self.damping, self.last_damping, self.decrease, self.idle = 0.0, FIRST_DAMPING, np.inf, 0
        is_dense = objective.design.can_center and objective.dtype == np.float64
        self.renews_models = is_dense and objective.n_rows * V.size**2 <= SMALL_WORK
        self.lower_bound, self.hopeful = -np.inf, HOPEFUL * self.target
        self.at = self.evaluate(V)
        is_near = W.any() and self.at.gap <= WARM * self.target
        self.n_sampled = objective.n_rows // (1 if is_near else FIRST_SAMPLE)
        self.result.W = self.at.W

    def run(self, max_iter, monitor):
        """Iterate until the method or the monitor ends the fit; return the result."""
        for _ in range(max_iter):
            monitor.begin()
            self.step()
            self.judge()
            if monitor(self.result.W, self.result.history[-1]) or self.result.converged or self.is_stuck():
                break
        if not self.result.converged:
            self.result.bound(self.at.lower_bound)
        return self.result

    def set_up_sampling(self, random_state):
        """Set the random order of the rows."""
        self.order = random_state.permutation(self.objective.n_rows)

    def new_coordinates(self):
        """Return the coordinates of the run."""
        return CentredCoordinates(self.objective)

    @property
    def target(self):
        """The gap that ends the run."""
        return self.result.target

    def evaluate(self, V):
        """Return the point at V, and count the pass."""
        self.result.passes += 1
        return _Point(self.coordinates, V, self.at is None or self.decrease <= LATE * self.target)

    def step(self):
        """Solve models with more and more damping, until the objective follows one; go there."""
        at, objective = self.at, self.objective
        self.choose_penalty()
        model = self.model(at)
        noise = 2 * np.finfo(objective.dtype).eps * abs(at.loss)
        # the gap is at most the entropy times the violation; the entropy is the loss at the optimum
        allowed = SPARE * self.target / max(at.loss, self.target, np.finfo(float).tiny)
        accuracy = min(max(allowed, FORCING * at.violation), COARSEST)
        for _ in range(TRIALS):
            V, decrease = model.minimize(at.V, at.gradient, self.damping, accuracy, self.target)
            new = self.evaluate(V)
            ratio = (at.value - new.value + noise) / (decrease + noise) if decrease >= 0 else -1.0  # a failed solve
            if 0 <= decrease < NOISY * self.target and new.gap < at.gap:
                ratio = max(ratio, 1.0)  # rounding of the losses hides it, but the step was good
            self.adapt_damping(ratio)
            if 0 <= decrease < max(noise, NOISY * self.target):
                break
            if decrease > 0:
                new = self.line_search(new, V - at.V, decrease)
                if at.value - new.value > 0.05 * decrease:
                    break
        self.gained, self.noise, self.is_exact = at.value - new.value, noise, model.is_exact
        self.adapt_sample(decrease)
        self.decrease = np.inf if self.is_early else decrease
        if model.is_exact and 0 <= self.decrease <= self.hopeful:
            self.prove(new.loss, V - at.V, model, accuracy)
            if new.loss - self.lower_bound <= self.target:
                new = self.settle(new, model)
            else:
                self.hopeful = AGAIN * decrease
        if ratio > 0.05 or new.value < at.value:
            self.at, self.result.W = new, new.W

    @property
    def is_early(self):
        """True while the penalty of the models is stronger than that of the objective."""
        return self.coordinates.strength > self.objective.l1

    def choose_penalty(self):
        """Choose the l1 of the next model: where coefficients are many, below the largest gradient and the last choice.

        Far from the minimum, models with a weak penalty would have nearly all coefficients, and not those that the
        minimum has. With a penalty that gets weaker step by step, few more become nonzero in each step.
        """
        c, strength = self.coordinates, 0.0
        was_early = self.is_early and np.isfinite(c.strength)  # infinite before the first choice
        if was_early and self.is_waiting:
            return
        if self.at.V.size > MANY and self.objective.design.can_center:
            strength = WEAKER * min(c.strength, np.abs(self.at.gradient[:, : c.n_features]).max(initial=0.0))
        c.set_strength(max(strength, self.objective.l1))
        if was_early and not self.is_early:  # few more steps will follow, and all have many coefficients
            self.n_sampled = self.objective.n_rows

    @property
    def is_waiting(self):
        """True if the next model keeps the penalty: the last one failed, or large models shall not get larger yet."""
        if self.gained <= 0:
            return not self.is_exact
        return self.at.V.size > LARGE and self.gained > self.target and self.at.violation > UNSETTLED

    def line_search(self, new, step, decrease):
        """Return the best point found along a step from `self.at` to `new`, for which a model promised the decrease.

        A step that overshoots is shortened to the minimum of a parabola through both losses. Another one is doubled as
        long as that gains much: where classes are nearly separable, the loss falls off exponentially, and the curvature
        with it, so that models end their steps far too early.
        """
        at, size = self.at, 1.0
        gained = at.value - new.value
        if gained < OVERSHOT * decrease:
            size = 0.5 * decrease / (decrease - gained)
            shorter = self.evaluate(at.V + max(size, 0.05) * step)
            return shorter if shorter.value < new.value else new
        if decrease > self.target:
            steep = STEEP * at.slope(step)
            while new.slope(step) < steep:
                size *= 2
                farther = self.evaluate(at.V + size * step)
                if not new.value - farther.value >= FARTHER * gained:
                    break
                new = farther
        return new

    def settle(self, last, model):
        """Return the point after one more step from the last one, with the Hessian of the last step, if F is lower.

        It costs little, and settles which of the coefficients are zero.
        """
        V, _ = model.minimize(last.V, last.gradient, 0.0, FORCING * last.violation, 0.0)
        new = self.evaluate(V)
        return new if new.loss < last.loss else last

    def prove(self, loss, step, model, accuracy):
        """Bound the minimum by the dual point that the model at `self.at` has at its own minimum, a step away.

        Its probabilities change in proportion to the step, but do not fall below zero. So they may miss the optimality
        conditions, which the model's minimum meets. A model is then minimised again, from the gradient that they have,
        as long as that brings them nearer. Where a Hessian costs little, it is that at the new probabilities.
        """
        c, V, along, before = self.coordinates, self.at.V, self.at.linearization, np.inf
        long = _rounding.long_features(self.objective, max(self.at.loss, 1.0), SPARE * self.target)
        for _ in range(REPAIRS):
            if self.renews_models:
                along = c.moved(along, step)
                entropy, G = c.dual_point_along(along, None, long)
            else:
                entropy, G = self.at.dual_along(V + step - self.at.V, long)
            gap = loss - _scaled(self.objective, entropy, G)
            if gap <= HOPEFUL * self.target:  # for rounding: they may be as far from Y as distributions can be
                bound = bound_of_distributions(self.objective, entropy, G, max(self.at.loss, 1.0), np.float64, long)
                self.lower_bound = max(self.lower_bound, bound)
            if loss - self.lower_bound <= self.target or gap > NEARER * before:
                break
            V, before = V + step, gap
            if self.renews_models:
                model = HessianModel(c, along, model.working)
            step = model.minimize(V, c.gradient(G), 0.0, accuracy, self.target)[0] - V

    def adapt_damping(self, ratio):
        """Set the damping by how much of its promise the last model kept."""
        if ratio < 0.25:
            self.damping = min(MORE * self.damping, 1.0) if self.damping else self.last_damping
        elif ratio > 0.75:
            self.last_damping = self.damping or self.last_damping
            self.damping /= MUCH_LESS if ratio > 0.9 else LESS
            self.damping *= self.damping >= LEAST_DAMPING

    def adapt_sample(self, decrease):
        """Take more rows for the next Hessian where steps stop to shrink, and all rows near the end."""
        if decrease <= LATE * self.target and not self.is_early:
            self.n_sampled = self.objective.n_rows
        elif decrease > SLOW * self.decrease or self.gained < OVERSHOT * decrease:
            self.n_sampled *= 2
            if not self.is_exact and self.gained <= 0:  # no damping helped; another sample needs less, or none does
                self.damping = min(self.damping, FIRST_DAMPING)

    def judge(self):
        """Record the iteration, and bound the gap."""
        result, before = self.result, self.result.gap
        result.record(self.at.loss)
        nothing = max(self.noise, NOTHING * self.target)
        # a model over all rows whose damping is 1 lies above the objective
        hopeless = not self.is_early and (self.decrease <= nothing or (self.damping == 1 and self.is_exact))
        is_late = self.decrease <= LATE * self.target
        is_open = self.at.loss - self.lower_bound > self.target
        if hopeless or (is_open and is_late and self.at.gap_estimate <= HOPEFUL * self.target):
            self.lower_bound = max(self.at.lower_bound, self.lower_bound)
        result.bound(self.lower_bound)
        is_idle = hopeless and self.gained <= nothing and result.gap > 0.7 * before
        self.idle = self.idle + 1 if is_idle else 0

    def is_stuck(self):
        """Return whether rounding hides what is left to gain; say so in the result."""
        if self.idle >= 3:
            self.result.stopped_on = "precision"
        return self.idle >= 3

    def model(self, at):
        """Return the model at a point, over its working set."""
        working = self.working_set(at)
        if not self.objective.design.can_center:
            return ColumnModel(self.coordinates, at.linearization, working)
        return HessianModel(self.coordinates, at.linearization, working, self.sample(len(working[0])))

    def sample(self, m):
        """Return the positions of the rows for a Hessian over m coefficients; None for all."""
        size = self.sample_size(m)
        return None if size == self.objective.n_rows else np.sort(self.order[:size])

    def sample_size(self, m):
        """Return the number of rows for a Hessian over m coefficients."""
        n = self.objective.n_rows
        # a row knows of several classes; small models can afford more rows
        a_row = max(self.objective.n_classes // 4, 1) if m > LARGE else 1
        size = max(self.n_sampled, ROWS_EACH * max(m // a_row, self.objective.n_features))
        return n if n * m**2 <= SMALL_WORK else min(size, n)

    @cached_property
    def every(self):
        """The rows of V and the features of all coefficients."""
        return _positions(np.ones(self.at.V.shape, bool))

    def working_set(self, at):
        """Return the rows of V and the features of the coefficients that the next model covers, in C order.

        Few coefficients are all there. Of many, there are the intercepts, the coefficients that are not zero, and of
        the others those that promise most: by the decrease that each could bring alone, then by how near they are to
        a violation.
        """
        if at.V.size <= MANY:
            return self.every
        c = self.coordinates
        chosen = at.V != 0
        chosen[:, c.n_features :] = True
        excess = np.abs(at.gradient)
        excess -= c.l1
        candidates = np.nonzero((excess > -NEAR * c.l1) & ~chosen)
        room = max(ROOM, np.count_nonzero(chosen) // (2 if chosen.size > LARGE else 1))
        if len(candidates[0]) > room:
            excess = excess[candidates]
            promise = np.where(excess > 0, excess * np.abs(excess) / c.curvature[candidates], excess)
            best = np.argpartition(-promise, room)[:room]
            candidates = tuple(part[best] for part in candidates)
        chosen[candidates] = True
        return _positions(chosen)


class _Point:
    """The objective at coefficients V in the solver's coordinates.

    `precise` asks for a dual point that float32 rounds in no way, where X is that.
    """

    def __init__(self, coordinates, V, precise=True):
        objective = coordinates.objective
        # centring would leave nothing of float32 sums where features have large offsets
        self.precise = objective.dtype == np.float32 and (precise or objective.design.can_center)
        self.coordinates, self.V, self.W = coordinates, V, coordinates.to_weights(V)
        self.linearization = coordinates.objective.linearize(self.W)
        self.penalty = coordinates.objective.penalty_l1(self.W)
        self.loss = self.linearization.value + self.penalty

    @property
    def value(self):
        """F with the l1 of the models."""
        return self.loss + (self.coordinates.strength / self.coordinates.objective.l1 - 1) * self.penalty

    @cached_property
    def dual(self):
        """Mean entropy and G of the probabilities that V has in float64, as `dual_bound` takes them."""
        return self.coordinates.dual_point(self.V)

    @cached_property
    def G(self):
        """The gradient of the loss in W, without that of l2, (K, p) float64."""
        if self.precise:
            return self.dual[1]
        objective, G = self.coordinates.objective, np.array(self.linearization.gradient, np.float64)
        if objective.l2:
            objective.coef(G)[...] -= objective.l2 * objective.coef(self.W).astype(np.float64)
        return G

    @cached_property
    def gradient(self):
        """The gradient of the loss in V, (L, p)."""
        return self.coordinates.gradient(self.G)

    @property
    def violation(self):
        """The largest violation of an optimality condition, as a share of the l1 of the models."""
        c, g = self.coordinates, self.gradient + self.coordinates.l2 * self.V
        off = np.where(self.V == 0, np.maximum(np.abs(g) - c.l1, 0), np.abs(g + np.sign(self.V) * c.l1))
        return off.max() / c.strength

    def slope(self, step):
        """Return the slope of `value` along a step (L, p)."""
        c, V = self.coordinates, self.V
        of_penalty = c.l1 * np.where(V == 0, np.abs(step), np.sign(V) * step)
        return np.sum((self.gradient + c.l2 * V) * step + of_penalty)

    def dual_along(self, step, long=()):
        """Return what `dual` is, for the first-order change of the probabilities along a step (L, p).

        Sums of the features `long` are in long double. The linearisation serves where its probabilities are float64.
        """
        if self.coordinates.objective.dtype == np.float32:
            return self.coordinates.dual_point(self.V, step, long)
        return self.coordinates.dual_point_along(self.linearization, step, long)

    @property
    def gap_estimate(self):
        """About what `gap` is, at a fraction of the cost: the entropy of the probabilities is L - <G, W>."""
        objective, W = self.coordinates.objective, self.W.astype(np.float64)
        ridge = 0.5 * objective.l2 * np.sum(objective.coef(W) ** 2)
        return self.loss - _scaled(objective, self.linearization.value - ridge - np.sum(self.G * W), self.G)

    @cached_property
    def lower_bound(self):
        """A proven lower bound on min F."""
        if not self.precise:
            return lower_bound(self.linearization)
        return bound_of_distributions(self.coordinates.objective, *self.dual, self.loss, np.float64)

    @property
    def gap(self):
        """A bound on F - min F."""
        return self.loss - self.lower_bound


def _positions(chosen):
    """Return the rows and the columns of what is True, in C order."""
    return tuple(np.ascontiguousarray(part) for part in np.nonzero(chosen))


def _scaled(objective, entropy, G):
    """Return about what bound distributions give, from their mean entropy and G; intercepts are taken to be optimal."""
    sizes, l1, l2 = np.abs(objective.coef(G)), objective.l1, objective.l2
    bound = entropy * min(1.0, l1 / max(sizes.max(initial=0.0), l1))
    return max(bound, entropy - np.sum(np.maximum(sizes - l1, 0) ** 2) / (2 * l2)) if l2 else bound
