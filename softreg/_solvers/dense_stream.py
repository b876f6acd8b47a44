"""Minibatch steps with curvature over dense rows, for a stream (one pass) or a fit of a few epochs.

Rows are seen in standardised coordinates z = [(x - location) / scale, 1]. A step over a block of b rows is

    V <- V - rate C^-1 (G^T Z + penalty) A^-1

    G   (b, K)   residual P - Y, divided by b
    A   (p, p)   covariance of z over the rows so far, shrunk towards the identity, plus the l2 penalty
    C   (K, K)   running mean of diag(p) - p p^T, damped: the curvature of each direction of the classes

The Kronecker product of C and A approximates the Hessian (Martens and Grosse 2015); for a linear layer this is a
natural gradient. The model that predicts is a mean of the iterates V in which late ones weigh more (Polyak and
Juditsky 1992; Shamir and Zhang 2013).

The first rows are kept and replayed: steps over all of them, with a line search. Streams of a few hundred rows then end
where a fit would. From then on each row is used once.

Rows are learnt in blocks whose sizes follow from the number of rows seen. Rows that do not fill a block wait for the
next call. So the steps do not depend on how the caller cuts the stream into batches.

A fit of several epochs with few coefficients learns the first epoch so, and goes on as `dense_stream_newton` says.

This module is policy alone: no estimator, no validation. Array arguments are as in `_reference.py`. It runs in the
caller's thread and expects BLAS to be held at one thread, which makes its results the same everywhere.
"""

import numpy as np

from softreg import _core, _dense_stream
from softreg._solvers.dense_stream_metrics import ClassCurvature, FullHessian, feature_metric
from softreg._solvers.dense_stream_newton import CAUTION, LocalModel
from softreg._solvers.row_buffer import RowBuffer
from softreg._validation import OVERFLOW

SMALLEST_BLOCK, LARGEST_BLOCK = 32, 256  # rows of a step, once enough rows have come: a step costs K p^2
RAMP = 16  # until then a block is 1/16 of the rows seen: the first rows are learnt at once, in many small steps
RATE_EXPONENT = 0.6  # of the falling rate; in (1/2, 1], as averaging needs it
MAX_CHANGE = 4.0  # the largest step: root mean square over a block's rows of the largest change of a logit
PRIOR = 0.01  # a ridge on V, times p / rows: few rows for many features give modest probabilities
REPLAYED = 1024  # first rows that are kept where V has no more numbers; replayed when REPLAY_GROWTH times as many
REPLAY_STEPS, REPLAY_GROWTH = 3, 1.05
FULL_HESSIAN = 256  # numbers in V up to which a fit of planned epochs takes the whole Hessian, in large blocks
NEWTON = 700  # numbers in V up to which later epochs of a fit take Newton's steps: an epoch costs n (K p)^2
GROWTH = 4.0  # a feature whose mean square has grown by this factor gets a new scale at once
LARGEST_PENALTY = 1e15  # in units of curvature: beyond it a coefficient is zero anyway, and float32 would overflow
SMALLEST_SCALE = 1e-290  # its inverse is finite


class KroneckerPreconditionedSGD:
    """Averaged minibatch steps, preconditioned by the covariance of features and the curvature of classes.

    Parameters
    ----------
    n_classes, n_features : int, K and d
    l2, l1 : float, penalties as in `Objective`
    fit_intercept : bool
    label_smoothing : float
    dtype : float32 or float64
        The dtype of X and of products with it. V and all statistics are float64.
    precondition : bool
        Whether to keep the covariance of the features: d^2 numbers of float64 and d^2 of `dtype`, or some hundred
        rows where d is large. False keeps a few times K d numbers and divides by the largest eigenvalue instead.
        l1 > 0 implies False, as the proximal step of l1 needs a diagonal metric. Zeros of a mean of iterates are rare.
    planned_rows : int or None
        The rows of all epochs together, where the end is known. The rate then falls to zero, and where V has few
        numbers, steps take the Hessian itself in place of its Kronecker form. `begin_epoch` tells the epochs apart.
    """

    NUMBERS = ("rows", "fitted_rows", "steps", "standardized_at", "replayed_at", "weight")
    ARRAYS = ("location", "scale", "sums", "squares", "V", "mean")
    PARTS = ("metric", "curvature", "waiting", "kept")

    def __init__(
        self, n_classes, n_features, *, l2, l1=0.0, fit_intercept=True, label_smoothing=0.0, dtype=np.float64,
        precondition=True, planned_rows=None,
    ):  # fmt: skip
        self.l2, self.l1, self.label_smoothing = l2, l1, label_smoothing
        self.fit_intercept, self.dtype, self.planned_rows = fit_intercept, np.dtype(dtype), planned_rows
        self.n_features = d = n_features
        shape = n_classes, d + bool(fit_intercept)
        self.rows, self.steps, self.standardized_at, self.replayed_at = 0, 0, 0, 0
        self.fitted_rows = 0  # of an earlier fit, whose coefficients the stream began at
        self.weight = 0.0  # of all rows learnt
        self.location, self.scale = np.zeros(d), np.ones(d)
        self.sums, self.squares = np.zeros(d), np.zeros(d)  # of z, weighted
        self.V, self.mean = np.zeros(shape), np.zeros(shape)
        self.metric = feature_metric(d, fit_intercept, self.dtype, precondition and not l1)
        self.curvature = ClassCurvature(n_classes, separable=bool(l1))
        least = SMALLEST_BLOCK if planned_rows is None else 2 * SMALLEST_BLOCK
        self.block = max(least, min(LARGEST_BLOCK, d // 4))
        self.hessian = None
        if planned_rows and precondition and not l1 and self.V.size <= FULL_HESSIAN:
            self.hessian, self.block = FullHessian(shape), LARGEST_BLOCK
            self.PARTS = (*self.PARTS, "hessian")
        self.takes_newton = bool(planned_rows and precondition and not l1 and self.V.size <= NEWTON)
        self.model = self.best = None  # of an epoch of Newton's, and that with the least F so far
        self.caution = 1.0
        self.time_scale = 50 * self.block + 20 * d  # rows after which the rate begins to fall
        self.waiting = RowBuffer(self.block, d, n_classes, self.dtype)
        kept = REPLAYED if self.V.size <= REPLAYED else 0
        self.kept = RowBuffer(kept, d, n_classes, self.dtype)

    # --- for the caller -----------------------------------------------------------------------------------------

    def learn(self, X, codes, targets, sample_weight):
        """Learn rows of X (n, d). Return the weighted sums of loss and of correct predictions, made before learning.

        codes (n,) intp or None, targets (n, K) or None, sample_weight (n,) or None. A row is predicted by the model
        that stood before its block was learnt. Rows of weight zero are left out. X is read by blocks.
        """
        if self.model:
            return self._learn_newton(X, codes, targets, sample_weight)
        used = None if sample_weight is None or np.all(sample_weight > 0) else np.flatnonzero(sample_weight > 0)
        total = X.shape[0] if used is None else len(used)
        loss, correct, start = 0.0, 0.0, 0
        while start < total:
            stop = min(total, start + self._block_rows() - self.waiting.count)
            rows = slice(start, stop) if used is None else used[start:stop]
            part = (None if a is None else a[rows] for a in (X, codes, targets, sample_weight))
            part_loss, part_correct = self._learn_part(*part)
            loss, correct, start = loss + part_loss, correct + part_correct, stop
        return loss, correct

    def begin_epoch(self, epoch, n_epochs):
        """Begin epoch 0, 1, ... of a fit of `n_epochs`. Where V has few numbers, Newton takes all but the first."""
        if not self.takes_newton:
            return
        if epoch == 0:
            self.planned_rows //= n_epochs
            return
        self.planned_rows = self.rows  # these have come
        self.model = LocalModel(self.mean, self._penalty(), self.label_smoothing)

    def end_epoch(self):
        """End an epoch after which others come, or the last one."""
        if self.takes_newton:
            self.finish()

    def finish(self):
        """Learn the rows that wait for a step: the end of a fit."""
        if self.model:
            self._finish_newton()
            return
        if self.waiting.count:
            self._step(*self.waiting.take())
        if self.replayed_at < self.kept.count:
            self._replay()

    def coefficients(self):
        """Return W (K, p) in float64, the intercept last: the averaged model, which predicts."""
        W = self.mean.copy()
        W[:, : self.n_features] /= self.scale
        if self.fit_intercept:
            W[:, -1] -= W[:, :-1] @ self.location
        return W

    def start_from(self, W, fitted_rows=0):
        """Begin at coefficients W (K, p), the intercept last, in place of zeros; before the first row.

        Steps and averages then go on as if `fitted_rows` rows had come before.
        """
        self.V[:] = W
        self.mean[:] = W
        self.fitted_rows, self.steps = fitted_rows, fitted_rows // self.block

    def get_state(self):
        """Return what was learnt as a flat dict of arrays (copies) and numbers."""
        state = {name: getattr(self, name) for name in self.NUMBERS}
        state |= {name: getattr(self, name).copy() for name in self.ARRAYS}
        for part in self.PARTS:
            state |= {f"{part}.{name}": value for name, value in getattr(self, part).get_state().items()}
        return state

    def set_state(self, state):
        """Go on from what `get_state` returned; this object has the same shapes and settings."""
        for name in self.NUMBERS:
            setattr(self, name, state[name])
        for name in self.ARRAYS:
            setattr(self, name, state[name].copy())
        for part in self.PARTS:
            prefix = f"{part}."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            getattr(self, part).set_state(own)

    # --- blocks -------------------------------------------------------------------------------------------------

    def _block_rows(self):
        """Rows of the block that is being filled."""
        return max(1, min(self.block, self._seen() // RAMP))

    def _seen(self):
        """Return how many rows V stands for."""
        return self.rows + self.fitted_rows

    def _learn_part(self, X, codes, targets, weight):
        """Predict rows that belong to one block. Learn them if they complete it, else let them wait."""
        if self.rows == self.waiting.count == 0:
            self._place(X)
        Z = self._standardize(X)
        assessed = self._assess(Z, codes, targets, weight)
        if self.waiting.count == 0 and len(X) == self._block_rows():
            self._step(X, codes, targets, weight, Z)
        else:
            self.waiting.add(X, codes, targets, weight)
            if self.waiting.count == self._block_rows():
                self._step(*self.waiting.take())
        return assessed

    def _assess(self, Z, codes, targets, weight):
        """Return the weighted sums of loss and of correct predictions of the averaged model."""
        logits, losses = Z @ self.mean.astype(self.dtype).T, np.empty(len(Z), self.dtype)
        _core.cross_entropy(logits, codes, targets, weight, 0.0, losses, None)
        right = logits.argmax(axis=1) == (targets.argmax(axis=1) if codes is None else codes)
        correct = np.count_nonzero(right) if weight is None else weight[right].sum(dtype=np.float64)
        return float(losses.sum(dtype=np.float64)), float(correct)

    # --- an epoch of Newton's method ----------------------------------------------------------------------------

    def _learn_newton(self, X, codes, targets, weight):
        """Add rows to the model of this epoch; return what `learn` does."""
        loss, correct = 0.0, 0.0
        for start in range(0, len(X), LARGEST_BLOCK):
            rows = slice(start, start + LARGEST_BLOCK)
            block = [None if a is None else a[rows] for a in (X, codes, targets, weight)]
            Z = self._standardize(block[0])
            part_loss, part_correct = self._assess(Z, *block[1:])
            loss, correct = loss + part_loss, correct + part_correct
            leverage = np.sqrt(np.sum(Z * self.metric.apply(Z), axis=1, dtype=np.float64))
            Y = np.eye(len(self.V))[block[1]] if targets is None else block[2].astype(np.float64)
            s = np.ones(len(Z)) if weight is None else block[3].astype(np.float64)
            self.model.add(Z.astype(np.float64), Y, s, leverage)
        return loss, correct

    def _finish_newton(self):
        """Move to the minimum of the model, or of an earlier one if F has grown since."""
        model, self.model = self.model, None
        if self.best is None or model.value() <= self.best.value():
            self.best, self.caution = model, max(1.0, self.caution / CAUTION)
        else:
            self.caution *= CAUTION
        self.V = self.best.minimize(self.caution)
        self.mean[:] = self.V

    # --- coordinates --------------------------------------------------------------------------------------------

    def _standardize(self, X):
        """Return Z (b, p) of rows X (b, d), with a last column of ones for the intercept."""
        Z = np.empty((len(X), self.V.shape[1]), self.dtype)
        _dense_stream.standardize(X, self.location, self.scale, Z)
        return Z

    def _place(self, X):
        """Choose coordinates for the first rows: centred at the first row, in units of its entries."""
        first = X[0].astype(np.float64)
        scale = np.maximum(np.where(first == 0, 1.0, np.abs(first)), SMALLEST_SCALE)
        self._move(first if self.fit_intercept else self.location, scale)

    def _observe(self, X, Z, weight):
        """Add a block to all statistics, and refresh the coordinates if it is time; return Z in the coordinates now."""
        total = float(len(X)) if weight is None else weight.sum(dtype=np.float64)
        sums, squares = np.zeros((2, self.n_features))
        _dense_stream.add_moments(Z, weight, sums, squares)
        mean_squares = (self.squares + squares) / (self.weight + total)
        if not np.all(mean_squares <= GROWTH):
            self._lengthen(X, mean_squares)
            return self._observe(X, self._standardize(X), weight)
        self.rows += len(X)
        self.weight += total
        self.sums += sums
        self.squares += squares
        self.metric.observe(Z, weight, total, self.rows)
        if self.rows >= self.standardized_at * self.metric.refresh_ratio:
            self._restandardize()
            return self._standardize(X)
        return Z

    def _restandardize(self):
        """Move to the mean and the standard deviation of all rows so far, and factor the covariance anew."""
        mean = self.sums / self.weight if self.fit_intercept else np.zeros(self.n_features)
        variance = self.squares / self.weight - mean**2
        constant = variance <= 1e-14 * self.squares / self.weight  # but for rounding
        deviation = np.sqrt(np.where(constant, 1.0, variance))
        scale = self.scale * deviation
        if np.any(scale < 10 / np.finfo(self.dtype).max):  # coefficients in units of the feature would overflow
            raise FloatingPointError(OVERFLOW.format(self.dtype))
        self._move(self.location + mean * self.scale, scale)
        self.metric.refresh(self._penalty(), self.rows)
        self.standardized_at = self.rows

    def _lengthen(self, X, mean_squares):
        """Give a longer scale to features that turn out to be much larger than they were.

        V stays, so their coefficients shrink (Ross, Mineiro and Langford 2013): else what was learnt from small entries
        would decide every prediction. Coefficients of an earlier fit knew the scale, and stay.
        """
        grown = ~(mean_squares <= GROWTH)
        factor = np.where(np.isfinite(mean_squares), np.sqrt(np.where(grown, mean_squares, 1.0)), 1.0)
        beyond = np.flatnonzero(~np.isfinite(mean_squares))  # squares overflow: the largest entry sets the scale
        if len(beyond):
            factor[beyond] = np.abs(X[:, beyond].astype(np.float64) - self.location[beyond]).max(axis=0)
            factor[beyond] /= self.scale[beyond]
        V, mean = self.V.copy(), self.mean.copy()
        self._move(self.location, self.scale * factor)
        if not self.fitted_rows:
            self.V, self.mean = V, mean

    def _move(self, location, scale):
        """Express V, its mean and the statistics in new coordinates; predictions stay the same."""
        factor, shift = scale / self.scale, (location - self.location) / self.scale
        for V in (self.V, self.mean):
            if self.fit_intercept:
                V[:, -1] += V[:, :-1] @ shift
            V[:, : self.n_features] *= factor
        if self.rows:
            self.squares = (self.squares + shift * (self.weight * shift - 2 * self.sums)) / factor / factor
            self.sums = (self.sums - self.weight * shift) / factor
            self.metric.move(shift, factor)
            if self.hessian:
                self.hessian.move(shift, factor)
        self.location, self.scale = location, scale

    # --- a step -------------------------------------------------------------------------------------------------

    def _step(self, X, codes, targets, weight, Z=None):
        """Learn one block: statistics, gradient, step, mean of the iterates."""
        progress = self._progress()
        Z = self._observe(X, self._standardize(X) if Z is None else Z, weight)
        if self._seen() <= self.kept.capacity and not self.fitted_rows:
            self.kept.add(X, codes, targets, weight)
            if self.rows >= self.replayed_at * REPLAY_GROWTH:
                self._replay()
            return
        self.kept.clear()
        unit = len(X) * (1.0 if weight is None else self.weight / self.rows)  # the weight of as many mean rows
        P, G = self._residual(Z, codes, targets, weight)
        self.curvature.observe(P, weight, unit)
        gradient, step = self._direction(Z, G, unit)
        if self.hessian:
            self.hessian.observe(Z, P, weight, unit)
            step = self.hessian.solve(gradient, self._penalty(), self.metric.covariance()).astype(self.dtype)
        rate = progress * self.metric.rate(len(X))
        rate *= min(1.0, MAX_CHANGE / max(rate * _change(Z, step), MAX_CHANGE))
        self.V -= rate * step
        if self.l1:
            self._shrink(rate)
        self._average()

    def _replay(self):
        """Take some steps over all rows so far."""
        X, codes, targets, weight = self.kept.view()
        Z, rate = self._standardize(X), 1.0
        for _ in range(REPLAY_STEPS):
            P, G = self._residual(Z, codes, targets, weight)
            self.curvature.replace(P, weight, self.weight)
            gradient, step = self._direction(Z, G, self.weight)
            rate = self._line_search(Z, codes, targets, weight, step, np.sum(gradient * step), min(1.0, 2 * rate))
            self.V -= rate * step
            if self.l1:
                self._shrink(rate)
        self.mean[:] = self.V
        self.replayed_at = self.rows
        self.steps = self.rows // self.block

    def _direction(self, Z, G, unit):
        """Return the gradient of the mean loss and penalty, float64, and the step C^-1 gradient A^-1; both (K, p)."""
        gradient = (G.T @ Z).astype(np.float64) / unit + self._penalty() * self.V
        return gradient, self.metric.apply(self.curvature.apply(gradient).astype(self.dtype))

    def _line_search(self, Z, codes, targets, weight, step, slope, rate):
        """Halve the rate until V - rate step lowers the loss of rows Z by a tenth of what its slope promises."""
        logits, change = Z @ self.V.astype(self.dtype).T, Z @ step.T
        penalty, losses = self._penalty(), np.empty(len(Z), self.dtype)

        def objective(rate):
            moved = logits - self.dtype.type(rate) * change
            _core.cross_entropy(moved, codes, targets, weight, self.label_smoothing, losses, None)
            return losses.sum(dtype=np.float64) / self.weight + 0.5 * np.sum(penalty * (self.V - rate * step) ** 2)

        start = objective(0.0)
        while rate > 1e-3 and not objective(rate) <= start - 0.1 * rate * slope:
            rate /= 2
        return rate

    def _residual(self, Z, codes, targets, weight):
        """Return the probabilities P and the weighted residual s (P - Y) of rows Z, both (b, K)."""
        logits = Z @ self.V.astype(self.dtype).T
        P, G = np.empty_like(logits), np.empty_like(logits)
        _core.softmax(logits, P)
        _core.cross_entropy(logits, codes, targets, weight, self.label_smoothing, None, G)
        return P, G

    def _remaining(self):
        """Return the share of the planned rows that is still to come; 1 where the end is not known."""
        return 1.0 if self.planned_rows is None else max(0.0, 1.0 - self.rows / self.planned_rows)

    def _progress(self):
        """Return the factor by which the rate has fallen."""
        return self._remaining() * (1.0 + self._seen() / self.time_scale) ** -RATE_EXPONENT

    def _penalty(self):
        """Return the l2 penalty of each column of V, (p,): that of the objective, and the prior of the first rows."""
        penalty = np.zeros(self.V.shape[1])
        with np.errstate(over="ignore"):  # a tiny scale
            own = self.l2 / self.scale**2 if self.l2 else 0.0
        prior = PRIOR * self.V.shape[1] * self._remaining() / self._seen()
        penalty[: self.n_features] = np.minimum(own + prior, LARGEST_PENALTY)
        return penalty

    def _shrink(self, rate):
        """Take the proximal step of l1 in the diagonal metric."""
        V = self.V[:, : self.n_features]
        steps = rate * self.metric.apply(self.curvature.apply(np.ones(self.V.shape)))[:, : self.n_features]
        V[:] = np.sign(V) * np.maximum(np.abs(V) - steps * (self.l1 / self.scale), 0.0)

    def _average(self):
        """Add the iterate to the mean: late iterates weigh more, and the more so the fewer rows there were."""
        self.steps += 1
        power = 1.0 + 3.0 * self.time_scale / (self.time_scale + self._seen())
        self.mean += (power + 1.0) / (self.steps + power) * (self.V - self.mean)


def _change(Z, step):
    """Return the root mean square over the rows of the largest change of a logit by a step of rate 1."""
    largest = np.abs(Z @ step.T).max(axis=1).astype(np.float64)
    return np.sqrt(np.mean(largest**2))
