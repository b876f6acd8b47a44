"""One small adapter a contender: the same objective, the same penalty, an untouched intercept, a cold start.

An adapter is a function ``fit(problem, X, level, threads) -> (coef, intercept)``. `level` is how hard it
shall try: an iteration budget, or for softreg a tolerance. The race runs it over increasing levels, each a
whole cold fit. `X` is `problem.X_train` in the contender's dtype. The shapes are scikit-learn's: (1, d) for
K = 2. `CONTENDERS` lists what is installed.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import problems
from scipy import sparse
from sklearn.linear_model import LogisticRegression, SGDClassifier

DOUBLING = tuple(2**k for k in range(18))
GENTLE = tuple(sorted({round(1.3**k) for k in range(36)}))  # for Newton steps, of which every one counts
BATCH, MOMENTUM = 256, 0.9


@dataclass(frozen=True)
class Contender:
    """A name, an adapter, and what it can be asked.

    Attributes
    ----------
    family : str
        Contenders of one family share a colour in the plot.
    interpolate : bool
        Levels are budgets that a user would have to guess: the time to a target is then interpolated between
        the last fit that missed it and the first that did not, as if the guess were perfect.
    """

    name: str
    family: str
    fit: Callable
    levels: Sequence = DOUBLING
    dtype: str = "float32"
    interpolate: bool = True
    takes_sparse: bool = True
    forms_hessian: bool = False

    def refuses(self, problem):
        """Why this contender cannot run `problem`, or None."""
        if problem.is_sparse and not self.takes_sparse:
            return "no CSR"
        if self.forms_hessian and 8 * problem.n_coef**2 > 2e9:
            return f"its Hessian would take {8e-9 * problem.n_coef**2:,.0f} GB"


# --- scikit-learn -------------------------------------------------------------------------------------------


def sklearn_logistic(solver):
    def fit(problem, X, level, threads):
        # The tolerance is out of reach, so that the budget alone ends the fit. Threads: threadpoolctl's.
        C = 1 / (X.shape[0] * problem.alpha)
        model = LogisticRegression(solver=solver, C=C, tol=1e-12, max_iter=level, random_state=0)
        model.fit(X, problem.y_train)
        return model.coef_, model.intercept_

    return fit


def sklearn_sgd(problem, X, level, threads):
    """One-vs-rest, another objective: shown because people use it, F is computed all the same."""
    model = SGDClassifier(
        loss="log_loss", alpha=problem.alpha, max_iter=level, tol=None, n_jobs=threads, random_state=0
    )
    model.fit(X, problem.y_train)
    return model.coef_, model.intercept_


# --- Cyanure ------------------------------------------------------------------------------------------------


def cyanure(problem, X, level, threads):
    """lambda_1 is alpha and the intercept is free (held against scikit-learn's optimum to 1e-7)."""
    from cyanure.estimators import Classifier

    loss = "multiclass-logistic" if problem.n_classes > 2 else "logistic"
    # Its tolerance, a duality gap, is a loose bound: tol=1e-3 goes on to 1e-6. Budgets of passes favour it.
    model = Classifier(
        loss=loss, penalty="l2", lambda_1=problem.alpha, solver="auto", fit_intercept=True, tol=1e-12,
        max_iter=level, n_threads=threads, verbose=False,
    )  # fmt: skip
    model.fit(X, problem.y_train)
    return model.coef_.T, model.intercept_.ravel()


# --- minibatch SGD loops ------------------------------------------------------------------------------------


def two_row_alpha(problem):
    """The alpha of a two-row softmax whose optimum is the single row's: see `one_row`."""
    return problem.alpha * (2 if problem.n_classes == 2 else 1)


def one_row(W, b):
    """scikit-learn's shapes: for K = 2 the difference of the rows, which are each other's negative."""
    return (W[1:] - W[:1], b[1:] - b[:1]) if len(W) == 2 else (W, b)


def numpy_gradient(X, y, W, b):
    """Mean cross-entropy's gradient with BLAS products and as few temporaries as NumPy allows."""
    Z = X @ W.T
    Z += b
    Z -= Z.max(axis=1, keepdims=True)
    np.exp(Z, out=Z)
    Z /= Z.sum(axis=1, keepdims=True)
    Z[np.arange(len(y)), y] -= 1
    Z /= len(y)
    return Z.T @ X, Z.sum(axis=0)


def numpy_minibatch(X, y, K, alpha, epochs, rate, momentum=MOMENTUM):
    """What one writes by hand: gathered batches, heavy-ball momentum, linear decay."""
    rng, batches = np.random.default_rng(0), -(-len(y) // BATCH)
    W, b = np.zeros((K, X.shape[1]), X.dtype), np.zeros(K, X.dtype)
    dW, db = np.zeros_like(W), np.zeros_like(b)
    for epoch in range(epochs):
        for step, rows in enumerate(np.split(rng.permutation(len(y)), range(BATCH, len(y), BATCH))):
            grad_W, grad_b = numpy_gradient(X[rows], y[rows], W, b)
            grad_W += alpha * W
            now = rate * (1 - (epoch + step / batches) / epochs)
            dW *= momentum
            dW += grad_W
            W -= now * dW
            db *= momentum
            db += grad_b
            b -= now * db
    return W, b


def torch_minibatch(X, y, K, alpha, epochs, rate, momentum=MOMENTUM):
    """The usual loop: cross_entropy, weight decay on W only, torch.optim.SGD, linear decay.

    CSR rows go through embedding_bag, which is torch's sparse-times-dense with a gradient.
    """
    import torch
    from torch.nn.functional import cross_entropy, embedding_bag, linear

    torch.manual_seed(0)
    (n, d), csr, y = X.shape, sparse.issparse(X), torch.from_numpy(y)
    W = torch.zeros((d, K) if csr else (K, d), requires_grad=True)
    b = torch.zeros(K, requires_grad=True)
    X = X if csr else torch.from_numpy(X)
    groups = [{"params": [W], "weight_decay": alpha}, {"params": [b]}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    steps = epochs * -(-n // BATCH)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for rows in torch.randperm(n).split(BATCH):
            if csr:
                A = X[rows.numpy()]
                columns, starts, values = map(torch.from_numpy, (A.indices, A.indptr[:-1], A.data))
                Z = embedding_bag(columns, W, starts, mode="sum", per_sample_weights=values) + b
            else:
                Z = linear(X[rows], W, b)
            optimizer.zero_grad()
            cross_entropy(Z, y[rows]).backward()
            optimizer.step()
            decay.step()
    W = W.detach().numpy()
    return (W.T if csr else W), b.detach().numpy()


def mlxtend_minibatch(X, y, K, alpha, epochs, rate, momentum=None):
    from mlxtend.classifier import SoftmaxRegression as Mlxtend

    # Its gradients are sums over the batch, so the rate shrinks and the penalty grows by the batch size.
    batches = -(-len(y) // BATCH)
    rows = len(y) / batches
    model = Mlxtend(eta=rate / rows, l2=alpha * rows, epochs=epochs, minibatches=batches, random_seed=0)
    model.fit(X, y)
    return model.w_.T, model.b_


def tuned(loop, momentum=MOMENTUM):
    """An adapter for `loop` with the best of four rates, found on two epochs and not timed: a head start.

    The scale is the inverse of a bound on the curvature, half the mean ||x||^2.
    """
    rates = {}

    def run(problem, X, epochs, rate):
        y, K = problem.y_train, problem.n_classes
        return one_row(*loop(X, y, K, two_row_alpha(problem), epochs, rate, momentum))

    def fit(problem, X, level, threads):
        return run(problem, X, level, rates[problem.name])

    def prepare(problem, X):
        square = (X.multiply(X) if sparse.issparse(X) else X * X).sum(dtype=float) / X.shape[0]
        tried = [factor * 2 * (1 - (momentum or 0)) / (square + 1) for factor in (1, 5, 25, 125)]
        F = [problems.objective(problem, *run(problem, X, 2, rate)) for rate in tried]
        rates[problem.name] = tried[np.argmin(np.nan_to_num(F, nan=np.inf))]

    fit.prepare = prepare
    return fit


# --- softreg ------------------------------------------------------------------------------------------------


def softreg(problem, X, threads, **options):
    from softreg import SoftmaxRegression

    model = SoftmaxRegression(alpha=problem.alpha, n_jobs=threads, **options).fit(X, problem.y_train)
    return model.coef_, model.intercept_


def softreg_default(problem, X, level, threads):
    """The default call; only the promised gap varies, and 1e-4 is the default itself."""
    return softreg(problem, X, threads, tol=level)


def softreg_sgd(problem, X, level, threads):
    return softreg(problem, X, threads, solver="sgd", max_iter=level, tol=0.0, random_state=0)


# --- the list -----------------------------------------------------------------------------------------------


def _installed(module):
    return importlib.util.find_spec(module) is not None


def _contenders():
    if _installed("softreg"):
        tols = {"levels": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7), "interpolate": False}
        yield Contender("softreg", "softreg", softreg_default, **tols)
        yield Contender("softreg f64", "softreg", softreg_default, dtype="float64", **tols)
        yield Contender("softreg sgd", "softreg sgd", softreg_sgd)
    for solver in ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"):
        newton = solver == "newton-cholesky"
        options = {"levels": GENTLE if "newton" in solver else DOUBLING, "forms_hessian": newton}
        for dtype in ("float32", "float64") if solver != "sag" else ("float32",):
            name = f"{solver} f{dtype[-2:]}"
            yield Contender(name, solver, sklearn_logistic(solver), dtype=dtype, **options)
    yield Contender("SGDClassifier f32", "SGDClassifier", sklearn_sgd)
    if _installed("cyanure"):
        logging.getLogger("INFO").setLevel(logging.WARNING)  # the name of Cyanure's logger
        for dtype in ("float32", "float64"):
            yield Contender(f"Cyanure f{dtype[-2:]}", "Cyanure", cyanure, dtype=dtype)
    if _installed("torch"):
        yield Contender("torch SGD f32", "torch SGD", tuned(torch_minibatch))
    if _installed("mlxtend"):
        loop = tuned(mlxtend_minibatch, momentum=None)
        yield Contender("mlxtend f64", "mlxtend", loop, dtype="float64", takes_sparse=False)
    yield Contender("NumPy SGD f32", "NumPy SGD", tuned(numpy_minibatch))


CONTENDERS = tuple(_contenders())
