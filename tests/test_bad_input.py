"""What cannot be used raises an error that names the argument and shows the offending value."""

import re

import numpy as np
import pytest
from scipy import sparse

from softreg import functional as F

# --- functional -------------------------------------------------------------------------------------------

Z = np.zeros((5, 4))
CODES = np.array([0, 1, 2, 3, 0])
Y = np.full((5, 4), 0.25)
X, W = np.ones((5, 3)), np.zeros((4, 3))


def changed(a, index, value):
    a = np.array(a)
    a[index] = value
    return a


ON_LOGITS = [
    (np.zeros((2, 3, 4)), "Z has shape (2, 3, 4)"),
    (0.0, "Z has shape ()"),
    (np.zeros((5, 0)), "Z has shape (5, 0), expected (K,) or (n, K) with K >= 1"),
    (np.zeros(0), "Z has shape (0,)"),
    (changed(Z, (3, 1), np.nan), "Input Z contains NaN"),
    (changed(Z, (3, 1), np.inf), "Input Z contains infinity"),
    ([["a", "b"]], "could not convert string to float: 'a'"),
    (Z + 1j, "Complex data not supported"),
    ([[1.0, 2.0], [3.0]], "inhomogeneous"),
]


@pytest.mark.parametrize(("logits", "message"), ON_LOGITS)
@pytest.mark.parametrize(
    "function",
    [
        F.softmax,
        F.log_softmax,
        F.logsumexp,
        F.softmax_jacobian,
        lambda Z: F.softmax_vjp(Z, Z),
        lambda Z: F.cross_entropy(Z, CODES),
        lambda Z: F.cross_entropy_grad(Z, CODES),
    ],
)
def test_logits(function, logits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        function(logits)


@pytest.mark.parametrize(
    ("U", "message"),
    [
        (np.zeros((4, 5)), "U has shape (4, 5), expected (5, 4) as Z has"),
        (np.zeros(4), "U has shape (4,), expected (5, 4)"),
        (changed(Z, (0, 0), np.nan), "Input U contains NaN"),
    ],
)
def test_vectors(U, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        F.softmax_vjp(Z, U)


ON_TARGETS = [
    (changed(CODES, 3, 12), "Y has 12 at index 3, outside 0..K-1 with K=4"),
    (changed(CODES, 2, -1), "Y has -1 at index 2, outside 0..K-1 with K=4"),
    (changed(CODES, 1, 4).astype(np.uint64), "Y has 4 at index 1"),
    (np.full(5, 2**64 - 1, np.uint64), "Y has 18446744073709551615 at index 0"),
    (CODES.astype(float), "Y has dtype float64, expected integer codes or distributions of (5, 4)"),
    (CODES > 0, "Y has dtype bool"),
    (CODES[:4], "Y has shape (4,), expected codes of (5,) or distributions of (5, 4)"),
    (Y[:, :3], "Y has shape (5, 3)"),
    (Y.T, "Y has shape (4, 5)"),
    (0, "Y has shape ()"),
    (changed(Y, (2, 1), -0.25), "Y has -0.25 at row 2, column 1: a probability cannot be negative"),
    (changed(Y, (4, 0), 0.05), "Y row 4 sums to 0.8, expected 1"),
    (0 * Y, "Y row 0 sums to 0, expected 1"),
    (np.eye(5, 4, dtype=int), "Y row 4 sums to 0, expected 1"),
    (changed(Y, (1, 1), 0.25 + 1e-7), "Y row 1 sums to 1.0000001, expected 1"),
    (changed(Y, (1, 1), np.nan), "Input Y contains NaN"),
    (changed(Y, (1, 1), np.inf), "Input Y contains infinity"),
    (["a", "b", "c", "d", "e"], "not compatible with arrays of bytes/strings"),
]

ON_WEIGHTS = [
    (changed(np.ones(5), 3, -1.0), "sample_weight[3] = -1.0 is negative"),
    (-2, "sample_weight[0] = -2.0 is negative"),
    (np.ones(4), "sample_weight has shape (4,), expected (5,)"),
    (np.ones((5, 1)), "sample_weight has shape (5, 1), expected (5,)"),
    (changed(np.ones(5), 3, np.nan), "Input sample_weight contains NaN"),
    (np.zeros(5), "sample_weight sums to 0 over 5 rows: the mean loss is undefined"),
]

OFF_RANGE = (-0.1, 1.0, 2, float("inf"), float("nan"))
ON_SMOOTHING = [(v, f"label_smoothing must be in [0, 1); got {v!r}") for v in OFF_RANGE]


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        *((targets, {}, message) for targets, message in ON_TARGETS),
        *((CODES, {"sample_weight": s}, message) for s, message in ON_WEIGHTS),
        *((CODES, {"label_smoothing": v}, message) for v, message in ON_SMOOTHING),
    ],
)
def test_targets_weights_and_smoothing(targets, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        F.cross_entropy(Z, targets, **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        F.cross_entropy_grad(Z, targets, **options)
    for form in (np.asarray, sparse.csr_array):
        with pytest.raises(ValueError, match=re.escape(message)):
            F.linear_cross_entropy_grad(form(X), targets, W, **options)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (4, "Y has 4 at index 0, outside 0..K-1 with K=4"),
        (1.0, "Y has dtype float64, expected integer codes or distributions of (4,)"),
        ([1], "Y has shape (1,), expected codes of () or distributions of (4,)"),
        ([0.5, 0.5, 0.5, 0.5], "Y row 0 sums to 2, expected 1"),
    ],
)
def test_targets_of_one_row(targets, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        F.cross_entropy(Z[0], targets)


def test_targets_may_be_as_inexact_as_their_own_dtype():
    """Half of the digits: a float32 softmax is a good target for float64 logits, and the other way round."""
    rows = np.random.default_rng(0).dirichlet(np.ones(1000), size=5)
    rows[:, 0] += 1e-8  # within the 1.5e-8 of float64
    for logits in (np.zeros((5, 1000)), np.zeros((5, 1000), np.float32)):
        for dtype in (np.float32, np.float64):
            # every distribution costs log(1000) here, by as many digits as float32 has
            assert F.cross_entropy(logits, rows.astype(dtype)) == pytest.approx(np.log(1000), rel=1e-5)


@pytest.mark.parametrize("reduction", ["average", None, 1])
def test_reduction(reduction):
    with pytest.raises(ValueError, match=f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}"):
        F.cross_entropy(Z, CODES, reduction=reduction)


def test_a_mean_of_nothing():
    with pytest.raises(ValueError, match="sums to 0 over 0 rows"):
        F.cross_entropy(np.zeros((0, 4)), np.zeros(0, int))
    assert F.cross_entropy(Z, CODES, sample_weight=np.zeros(5), reduction="sum") == 0


def frozen(a):
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((4, 5)), "out is float64 of shape (4, 5), expected float64 of (5, 4)"),
        (np.zeros(20), "out is float64 of shape (20,)"),
        (np.zeros((5, 4), np.float32), "out is float32 of shape (5, 4), expected float64 of (5, 4)"),
        (np.zeros((5, 4)).tolist(), "out is list of shape (5, 4)"),
        (np.zeros((4, 5)).T, "out must be C-contiguous, aligned and writeable; got strides (8, 40)"),
        (np.zeros((5, 8))[:, ::2], "out must be C-contiguous, aligned and writeable; got strides (64, 16)"),
        (frozen(np.zeros((5, 4))), "out must be C-contiguous, aligned and writeable"),
    ],
)
def test_out(out, message):
    for call in (
        lambda: F.softmax(Z, out=out),
        lambda: F.log_softmax(Z, out=out),
        lambda: F.softmax_vjp(Z, Z, out=out),
        lambda: F.cross_entropy_grad(Z, CODES, out=out),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.ones((5, 2))}, "W has shape (4, 3), expected (K, 2) with K >= 1 to match X"),
        ({"X": changed(X, (0, 0), np.nan)}, "Input X contains NaN"),
        ({"X": np.ones((0, 3))}, "0 sample(s)"),
        ({"W": np.zeros(3)}, "W has shape (3,)"),
        ({"W": np.zeros((0, 3))}, "W has shape (0, 3), expected (K, 3) with K >= 1 to match X"),
        ({"W": changed(W, (0, 0), np.inf)}, "Input W contains infinity"),
        ({"b": np.zeros(3)}, "b has shape (3,), expected (4,) to match W"),
        ({"b": np.zeros((4, 1))}, "b has shape (4, 1), expected (4,) to match W"),
        ({"b": changed(np.zeros(4), 2, np.nan)}, "Input b contains NaN"),
        ({"X": 1e200 * X, "W": W + 1e200}, "Input X W^T + b contains infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # where the test itself multiplies
def test_linear(form, change, message):
    given = {"X": X, "W": W, "b": None, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        F.linear_cross_entropy_grad(form(given["X"]), CODES, given["W"], given["b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda x: (0.0, x[:1]), np.ones(3)), "value_and_grad returned a (1,) gradient, expected (3,)"),
        ((lambda x: (0.0, x), np.ones(0)), "x not empty; got eps="),
        ((lambda x: (0.0, x), [1.0, np.nan]), "Input x contains NaN"),
        ((lambda x: (0.0, x), np.ones(3), 0.0), "eps must be positive and x not empty; got eps=0.0"),
        ((lambda x: (0.0, x), np.ones(3), -1.0), "eps=-1.0"),
        ((lambda x: (0.0, x), np.ones(3), np.nan), "eps=nan"),
    ],
)
def test_check_gradient(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        F.check_gradient(*arguments[:2], eps=arguments[2] if len(arguments) == 3 else None)
