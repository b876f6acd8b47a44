"""What cannot be used raises an error that names the argument and shows the offending value."""

import re
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_classifiers_one_label_sample_weights
from sklearn.utils.validation import check_is_fitted

from softreg import SoftmaxRegression, SoftmaxRegressionCV, softmax_path
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
def test_logits(logits, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        F.softmax(logits)


@pytest.mark.parametrize(("logits", "message"), [ON_LOGITS[0], ON_LOGITS[4]])
@pytest.mark.parametrize(
    "function",
    [
        F.log_softmax,
        F.logsumexp,
        F.softmax_jacobian,
        lambda Z: F.softmax_vjp(Z, Z),
        lambda Z: F.cross_entropy(Z, CODES),
        lambda Z: F.cross_entropy_grad(Z, CODES),
    ],
)
def test_every_function_checks_its_logits(function, logits, message):
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


# --- estimator --------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(30, 4))
LABELS = np.arange(30) % 3
SOFT = np.full((30, 3), 1 / 3)
SGD = {"solver": "sgd", "max_iter": 2, "random_state": 0}

BAD_DATA = {
    "NaN": (changed(ROWS, (3, 1), np.nan), LABELS, "Input X contains NaN"),
    "inf": (changed(ROWS, (3, 1), np.inf), LABELS, "Input X contains infinity"),
    "NaN in float32": (changed(ROWS, (3, 1), np.nan).astype(np.float32), LABELS, "Input X contains NaN"),
    "one row of X": (ROWS[0], LABELS, "Expected 2D array, got 1D array"),
    "three axes": (ROWS[None], LABELS, "Found array with dim 3"),
    "no rows": (ROWS[:0], LABELS[:0], "Found array with 0 sample(s) (shape=(0, 4))"),
    "no features": (ROWS[:, :0], LABELS, "Found array with 0 feature(s) (shape=(30, 0))"),
    "words": ([["a"], ["b"]], [0, 1], "could not convert string to float: 'a'"),
    "complex": (ROWS + 1j, LABELS, "Complex data not supported"),
    "fewer labels": (ROWS, LABELS[:20], "inconsistent numbers of samples: [30, 20]"),
    "fewer targets": (ROWS, SOFT[:20], "inconsistent numbers of samples: [30, 20]"),
    "no labels": (ROWS, None, "requires y to be passed, but the target y is None"),
    "NaN in labels": (ROWS, changed(LABELS.astype(float), 3, np.nan), "Input y contains NaN"),
    "measurements": (ROWS, ROWS[:, 0], "Unknown label type: continuous"),
    "one class": (ROWS, np.full(30, 7), r"class: 7"),
    "one named class": (ROWS, np.full(30, "oak"), r"class: 'oak'"),
    "negative target": (ROWS, changed(SOFT, (2, 1), -0.25), "y has -0.25 at row 2, column 1"),
    "targets under one": (ROWS, changed(SOFT, 4, [0.3, 0.3, 0.2]), "y row 4 sums to 0.8, expected 1"),
    "two labels a row": (ROWS, np.ones((30, 2), int), "y is 2-D, so its rows are read as probabilities of the classes: "
                         "Y row 0 sums to 2, expected 1"),
    "NaN in targets": (ROWS, changed(SOFT, (2, 1), np.nan), "Input y contains NaN"),
    "inf in targets": (ROWS, changed(SOFT, (2, 1), np.inf), "Input y contains infinity"),
    "targets of three axes": (ROWS, SOFT[:, :, None], "y"),
    "words as targets": (ROWS, np.full((30, 3), "oak"), "y"),
    "sparse targets": (ROWS, sparse.csr_array(SOFT), "y"),
}


@pytest.mark.parametrize("name", BAD_DATA)
@pytest.mark.parametrize("solver", ["auto", "sgd"])
def test_estimator_data(name, solver):
    X, y, message = BAD_DATA[name]
    model = SoftmaxRegression(solver=solver)
    with pytest.raises((ValueError, TypeError), match=f"(?i){re.escape(message)}"):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    with pytest.raises(NotFittedError):
        model.predict(ROWS)
    if "class" not in name and name != "no rows":  # batches of one class and empty ones are good batches
        classes = np.shape(y)[1] if np.ndim(y) == 2 else [0, 1, 2]
        with pytest.raises((ValueError, TypeError), match=f"(?i){re.escape(message)}"):
            model.partial_fit(X, y, classes=classes)


def test_sparse_data():
    X = sparse.csr_array(ROWS)
    X.data[5] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        SoftmaxRegression().fit(X, LABELS)


BAD_WEIGHTS = {
    "negative": (changed(np.ones(30), 3, -1.0), "-1.0"),
    "NaN": (changed(np.ones(30), 3, np.nan), "NaN"),
    "inf": (changed(np.ones(30), 3, np.inf), "infinity"),
    "fewer": (np.ones(20), "(20,)"),
    "a column": (np.ones((30, 1)), "(30, 1)|1D|2D"),
    "zeros": (np.zeros(30), "zero"),
    "zero": (0, "zero"),
    "words": (np.full(30, "heavy"), "heavy"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_estimator_weights(name, call):
    s, value = BAD_WEIGHTS[name]
    options = {} if call == "fit" else {"classes": [0, 1, 2]}
    with pytest.raises(ValueError) as caught:
        getattr(SoftmaxRegression(**SGD), call)(ROWS, LABELS, sample_weight=s, **options)
    message = str(caught.value)
    assert any(re.search(re.escape(v), message, re.IGNORECASE) for v in value.split("|"))
    if name not in ("a column", "words"):  # NumPy and scikit-learn do not say whose those are
        assert re.search("sample.weight", message, re.IGNORECASE)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: 1.0, 7: 2.0}, "class_weight"),
        ({0: -1.0, 1: 1.0, 2: 1.0}, "class_weight.*-1"),
        ({0: np.nan, 1: 1.0, 2: 1.0}, "class_weight.*nan"),
        ({0: np.inf, 1: 1.0, 2: 1.0}, "class_weight.*inf"),
        ({0: 0.0, 1: 0.0, 2: 0.0}, "class_weight"),
        ({0: "heavy", 1: 1.0, 2: 1.0}, "heavy"),
    ],
)
def test_class_weights(class_weight, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(class_weight=class_weight).fit(ROWS, LABELS)


def test_class_weights_need_classes():
    with pytest.raises(ValueError, match="class_weight needs labels in y"):
        SoftmaxRegression(class_weight={0: 1.0, 1: 1.0, 2: 1.0}).fit(ROWS, SOFT)


@pytest.mark.parametrize("labels", [[0, 1, 2], ["ash", "birch", "oak"]])
def test_a_class_without_weight_cannot_be_balanced(labels):
    """The error is about the weights, and scikit-learn's division by zero is not heard of."""
    named = re.escape(repr(labels[1]))
    message = f"sample_weight is zero in every row of class {named}: class_weight='balanced'"
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(class_weight="balanced").fit(ROWS, np.array(labels)[LABELS], sample_weight=LABELS != 1)
    check_classifiers_one_label_sample_weights("SoftmaxRegression", SoftmaxRegression(class_weight="balanced"))


@pytest.mark.parametrize("labels", [[0, 1], ["ash", "birch"]])
@pytest.mark.parametrize("weighted_by", ["sample_weight", "class_weight"])
def test_weights_must_not_leave_one_class(labels, weighted_by):
    """The loss of one class has no minimum, and nothing to explain."""
    codes = (LABELS == 1).astype(int)
    y, message = np.array(labels)[codes], f"leaves rows of one class only: {labels[1]!r}"
    if weighted_by == "sample_weight":
        model, weight = SoftmaxRegression(), codes
    else:
        model, weight = SoftmaxRegression(class_weight={labels[0]: 0.0, labels[1]: 1.0}), None
    with pytest.raises(ValueError, match=message):
        model.fit(ROWS, y, sample_weight=weight)
    check_classifiers_one_label_sample_weights("SoftmaxRegression", SoftmaxRegression())


def test_targets_must_not_leave_one_class():
    with pytest.raises(ValueError, match="one class only: 2"):
        SoftmaxRegression().fit(ROWS, np.eye(3)[np.full(len(ROWS), 2)])
    stream = SoftmaxRegression().partial_fit(ROWS, np.ones(len(ROWS)), classes=2)  # a batch may have one class
    assert stream.predict(ROWS).all()


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (30, {"validation_fraction": 0.01}),
        (30, {"validation_fraction": 0.99}),
        (4, {}),
        (3, {}),
    ],
)
def test_early_stopping_with_too_few_rows(rows, options):
    model = SoftmaxRegression(early_stopping=True, **options)
    message = f"early_stopping=True cannot hold out validation_fraction={model.validation_fraction} of {rows} rows"
    with pytest.raises(ValueError, match=message):
        model.fit(ROWS[:rows], np.arange(rows) % 2)


BAD_PARAMETERS = [
    *(("alpha", v) for v in (-1e-9, np.inf, np.nan, "small", None)),
    *(("l1_ratio", v) for v in (-0.1, 1.1, np.nan, None)),
    *(("fit_intercept", v) for v in ("yes", None)),
    *(("solver", v) for v in ("adamw", "SGD", None)),
    *(("max_iter", v) for v in (0, -1, 1.5, None)),
    *(("tol", v) for v in (-1e-9, np.nan, None)),
    *(("precondition", v) for v in ("yes", None)),
    *(("shuffle", v) for v in ("yes", None)),
    *(("class_weight", v) for v in ("even", [1, 1, 1])),
    *(("label_smoothing", v) for v in (-0.1, 1.0, np.nan, None)),
    *(("early_stopping", v) for v in ("yes", None)),
    *(("validation_fraction", v) for v in (0.0, 1.0, 5, None)),
    *(("n_iter_no_change", v) for v in (0, 1.5, None)),
    *(("warm_start", v) for v in ("yes", None)),
    *(("random_state", v) for v in ("seed", -1)),
    *(("n_jobs", v) for v in (0, 1.5, "all")),
    *(("verbose", v) for v in (-1, "loud")),
]


CALLS = [
    *((name, value, "fit") for name, value in BAD_PARAMETERS),
    *((name, value, "partial_fit") for name, value in dict(reversed(BAD_PARAMETERS)).items()),  # one value of each
]


@pytest.mark.parametrize(("name", "value", "call"), CALLS)
def test_parameters(name, value, call):
    """The error says which parameter it was, and what it was."""
    model = SoftmaxRegression(**{"solver": "sgd", name: value})
    options = {} if call == "fit" else {"classes": [0, 1, 2]}
    with pytest.raises(ValueError) as caught:
        getattr(model, call)(ROWS, LABELS, **options)
    assert re.search(rf"\b{name}\b", str(caught.value))
    assert str(value) in str(caught.value)
    assert not hasattr(model, "coef_")


def test_no_such_parameter():
    with pytest.raises(TypeError, match="'C'"):
        SoftmaxRegression(C=1.0)
    with pytest.raises(TypeError, match="positional"):
        SoftmaxRegression(1e-4)
    with pytest.raises(ValueError, match="Invalid parameter 'C'"):
        SoftmaxRegression().set_params(C=1.0)


@pytest.mark.parametrize("solver", ["auto", "newton", "proximal_newton"])
@pytest.mark.parametrize(("name", "value"), [("precondition", False), ("shuffle", False), ("n_iter_no_change", 2)])
def test_parameters_of_another_solver_are_ignored(solver, name, value):
    """Grids over `solver` are then no error; as everywhere in scikit-learn."""
    l1_ratio = 0.5 if solver == "proximal_newton" else 0.0
    model = SoftmaxRegression(solver=solver, l1_ratio=l1_ratio)
    other = SoftmaxRegression(solver=solver, l1_ratio=l1_ratio, **{name: value})
    assert np.array_equal(model.fit(ROWS, LABELS).coef_, other.fit(ROWS, LABELS).coef_)


def test_a_subclass_with_parameters_of_its_own():
    """Its signature need not name those of the base class."""

    class Strong(SoftmaxRegression):
        def __init__(self, strength=1.0):
            super().__init__(alpha=strength, shuffle=False)
            self.strength = strength

    strong = Strong().fit(ROWS, LABELS)
    assert np.array_equal(strong.coef_, SoftmaxRegression(alpha=1.0).fit(ROWS, LABELS).coef_)


SPARSE = sparse.csr_array(ROWS)


@pytest.mark.parametrize(
    ("solver", "X", "params", "message"),
    [
        ("newton", ROWS, {"l1_ratio": 0.5}, "solver='newton' needs l1_ratio=0; l1_ratio=0.5 needs solver='auto'"),
        ("dual", SPARSE, {"l1_ratio": 0.5}, "solver='dual' needs l1_ratio=0; l1_ratio=0.5 needs solver='auto'"),
        ("dual", SPARSE, {"alpha": 0}, "solver='dual' needs alpha > 0; for alpha=0"),
        ("dual", ROWS, {}, "solver='dual' needs a sparse X"),
    ],
)
def test_solvers_refuse_what_they_cannot_do(solver, X, params, message):
    """Another solver in its place would be another solver than was asked for."""
    with pytest.raises(ValueError, match=re.escape(message)):
        SoftmaxRegression(solver=solver, **params).fit(X, LABELS)
    alphas = [params.pop("alpha", 1e-3), 1.0]
    ratio = params.pop("l1_ratio", 0.0)
    with pytest.raises(ValueError, match=re.escape(message)):
        softmax_path(X, LABELS, alphas=alphas, l1_ratio=ratio, solver=solver)
    with pytest.raises(ValueError, match=re.escape(message)):
        SoftmaxRegressionCV(alphas=alphas, l1_ratios=[0.0, ratio], solver=solver).fit(X, LABELS)


# --- streams ----------------------------------------------------------------------------------------------


def test_a_stream_needs_classes():
    model = SoftmaxRegression(**SGD)
    with pytest.raises(ValueError, match="classes must be given in the first call"):
        model.partial_fit(ROWS, LABELS)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit(ROWS, LABELS, classes=[7])
    with pytest.raises(ValueError, match=r"\[2\].*classes \[0, 1\]"):
        model.partial_fit(ROWS, LABELS, classes=[0, 1])
    model.partial_fit(ROWS, LABELS, classes=[0, 1, 2])  # and none of that stands in its way


BAD_STREAMS = {
    "unseen class": ((ROWS, LABELS + 1), {}, r"\[3\].*classes \[0, 1, 2\]"),
    "other type of class": ((ROWS, LABELS.astype(str)), {}, "y|label|class"),
    "other classes": ((ROWS, LABELS), {"classes": [0, 1, 2, 3]}, r"classes.*\[0, 1, 2, 3\]"),
    "fewer classes": ((ROWS, LABELS), {"classes": [0, 1]}, r"classes.*\[0, 1\]"),
    "fewer features": ((ROWS[:, :3], LABELS), {}, "X has 3 features, but SoftmaxRegression is expecting 4"),
    "other targets": ((ROWS, np.full((30, 4), 0.25)), {}, r"4.*3|3.*4"),
    "NaN": ((changed(ROWS, 0, np.nan), LABELS), {}, "Input X contains NaN"),
    "weights": ((ROWS, LABELS), {"sample_weight": -np.ones(30)}, "sample_weight"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_streams_stay_as_they_began(name):
    data, options, message = BAD_STREAMS[name]
    model = SoftmaxRegression(**SGD).partial_fit(ROWS, LABELS, classes=[0, 1, 2])
    other = SoftmaxRegression(**SGD).partial_fit(ROWS, LABELS, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=message):
        model.partial_fit(*data, **options)
    # the next good batch finds everything as it was, velocity included
    assert np.array_equal(model.partial_fit(ROWS, LABELS).coef_, other.partial_fit(ROWS, LABELS).coef_)
    assert model.n_iter_ == other.n_iter_ == 2


def test_a_stream_of_targets_has_as_many_classes_as_were_said():
    with pytest.raises(ValueError, match=r"classes.*4|4.*classes"):
        SoftmaxRegression(**SGD).partial_fit(ROWS, SOFT, classes=4)


def test_streams_do_not_stop_early():
    with pytest.raises(ValueError, match="early_stopping=True"):
        SoftmaxRegression(**SGD, early_stopping=True).partial_fit(ROWS, LABELS, classes=[0, 1, 2])


def test_streams_cannot_balance_classes():
    """The shares of the classes are those of all rows, which a stream does not know; the batch in hand may lack one."""
    with pytest.raises(ValueError, match=r"class_weight.*balanced"):
        SoftmaxRegression(**SGD, class_weight="balanced").partial_fit(ROWS, LABELS, classes=[0, 1, 2])


# --- warm starts, prediction ------------------------------------------------------------------------------


@pytest.fixture
def model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return SoftmaxRegression(**SGD, warm_start=True).fit(ROWS, LABELS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((ROWS[:, :3], LABELS), "4 features.* 3 features|3 features.* 4"),
        ((ROWS, LABELS % 2), "3 classes.* 2 classes"),
        ((ROWS, LABELS + 1), "classes"),
        ((ROWS, np.full((30, 4), 0.25)), "3 classes.* 4 classes"),
    ],
)
def test_warm_starts_need_the_same_shape(model, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(*data)
    assert "warm_start" in str(caught.value)


@pytest.mark.parametrize("call", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (ROWS[:, :3], "X has 3 features, but SoftmaxRegression is expecting 4 features"),
        (ROWS[0], "Expected 2D array, got 1D array"),
        (changed(ROWS, (0, 0), np.nan), "Input X contains NaN"),
        (changed(ROWS, (0, 0), np.inf), "Input X contains infinity"),
        (ROWS[:0], "0 sample(s)"),
    ],
)
def test_prediction(model, call, X, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(model, call)(X)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (changed(LABELS, 4, 9), "label 9"),
        (changed(LABELS, 4, -1), "label -1"),
        (LABELS[:20], "20"),
        (np.r_[LABELS, LABELS], "60"),
        (SOFT[:, :2], r"\(30, 2\)"),
        (SOFT[:20], r"\(20, 3\)"),
        (changed(SOFT, (1, 0), 0.5), "row 1 sums to 1.1666"),
        (changed(SOFT, (1, 0), -0.5), "-0.5 at row 1"),
        (LABELS.astype(str), "label"),
    ],
)
def test_input_gradient(model, y, message):
    with pytest.raises(ValueError, match=message):
        model.input_gradient(ROWS, y)


# --- what an error leaves behind --------------------------------------------------------------------------


def state(model):
    return {name: np.copy(value) for name, value in vars(model).items() if name.endswith("_")}


ERRORS = {
    "NaN": ({}, (changed(ROWS, 0, np.nan), LABELS), {}),
    "one class": ({}, (ROWS, 0 * LABELS), {}),
    "one class of other rows": ({}, (ROWS[:, :3], 0 * LABELS), {}),
    "targets of other rows": ({}, (ROWS[:, :3], 2 * SOFT), {}),
    "weights": ({}, (ROWS, LABELS), {"sample_weight": -np.ones(30)}),
    "weights of other rows": ({}, (ROWS[:, :3], LABELS), {"sample_weight": np.zeros(30)}),
    "n_jobs": ({"n_jobs": 0}, (ROWS, LABELS), {}),
    "class_weight": ({"class_weight": {9: 1}}, (ROWS[:, :3], LABELS), {}),
    "overflow": ({"solver": "proximal_newton", "l1_ratio": 0.5}, (ROWS[:, :3] * 1e200, LABELS), {}),
    "nothing to hold out": ({"early_stopping": True, "validation_fraction": 0.01}, (ROWS[:, :3], LABELS), {}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_leaves_the_estimator_as_it_was(name):
    parameters, data, options = ERRORS[name]
    model = SoftmaxRegression(alpha=0.1, max_iter=1000).fit(ROWS, LABELS)
    before, expected = state(model), model.predict_proba(ROWS)
    model.set_params(**parameters)
    with pytest.raises((ValueError, FloatingPointError)):
        model.fit(*data, **options)
    after = state(model)
    assert before.keys() == after.keys()
    for attribute in before:
        assert np.array_equal(before[attribute], after[attribute]), attribute
    model.set_params(n_jobs=None)
    assert np.array_equal(model.predict_proba(ROWS), expected)


# --- finite, but far out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "proximal_newton", "sgd"])
@pytest.mark.parametrize("size", [1e-300, 1e-30, 1e18, 1e30, 1e150, 1e300])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_far_out_is_an_error_or_an_answer(solver, size, form):
    """Squares of such numbers overflow or vanish. A fit may say that; it may not return NaN, nor anything that is
    worse than no model at all, and a RuntimeWarning of NumPy is no way to say it."""
    dtype = np.float32 if 1e-37 < size < 1e37 else np.float64  # the narrowest that has such numbers
    X = (ROWS * size).astype(dtype)
    l1_ratio = 0.5 if solver == "proximal_newton" else 0.0
    model = SoftmaxRegression(solver=solver, l1_ratio=l1_ratio, max_iter=20, random_state=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(form(X), LABELS)
    except (ValueError, FloatingPointError) as error:
        assert re.search(r"X|scale|features", str(error))  # it names what is too large
        return
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.intercept_).all()
    assert np.isfinite(model.predict_log_proba(form(X))).all()
    mean = -model.predict_log_proba(form(X))[np.arange(30), LABELS].mean(dtype=float)
    # no model at all may be the optimum: then within tol of it, or the rounding of a mean of logarithms; the intercepts
    # of sgd are a mean over 600 noisy steps
    allowed = 2e-3 if solver == "sgd" else model.tol if model.stopped_on_ == "gap" else 1e-6
    assert mean <= np.log(3) * (1 + allowed)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("solver", ["auto", "proximal_newton", "sgd", "partial_fit"])
@pytest.mark.parametrize(("dtype", "size"), [(np.float64, 1e160), (np.float32, 1e25), (np.float32, 1e-20)])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
def test_far_out_is_the_right_answer_or_names_the_features(solver, dtype, size, form):
    """Squares of the features overflow or vanish. What a model can learn here is the first column's sign, where the
    features are large, and the shares of the classes, where they are small."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = (X[:, 0] > 0.7).astype(int)
    X = form((X * size).astype(dtype))
    try:
        if solver == "partial_fit":
            model = SoftmaxRegression(random_state=0).partial_fit(X, y, classes=[0, 1])
        else:
            l1_ratio = 0.5 if solver == "proximal_newton" else 0.0
            model = SoftmaxRegression(solver=solver, l1_ratio=l1_ratio, random_state=0).fit(X, y)
    except FloatingPointError as error:
        assert "features of X are too large or too small" in str(error)
        return
    loss = -model.predict_log_proba(X)[np.arange(200), y].mean(dtype=float)
    shares = np.bincount(y) / 200
    null = -(shares * np.log(shares)).sum()
    # one pass of a stream, or tol = 1e-4 and the rounding of float32
    assert loss < (0.9 * null if size > 1 else 1.01 * null if solver == "partial_fit" else null * (1 + 1e-3))
