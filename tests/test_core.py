"""Every compiled kernel against its NumPy twin, and softmax against mpmath.

`check` runs a kernel in its own dtype and the twin in float64 on the same numbers, and holds the difference
against `bounds`, a first-order error analysis. The inputs it passes are read-only and must come out
unchanged; the outputs start as NaN, so that an entry nobody wrote is noticed.
"""

import inspect

import mpmath
import numpy as np
import pytest
from scipy import sparse
from shared import both_dtypes

from softreg import _core, _dual_ascent, _hessian, _reference, _teams

# Which outputs a kernel has, and their shapes: m rows visited, K classes, d features, p = d or d + 1 columns.
OUTPUTS = {
    "logsumexp": {"out": "m"},
    "softmax": {"out": "mK"},
    "log_softmax": {"out": "mK"},
    "softmax_vjp": {"out": "mK"},
    "cross_entropy": {"losses": "m", "residual": "mK"},
    "input_gradient": {"out": "md"},
    "dense_logits": {"out": "mK"},
    "dense_gradient": {"out": "Kp"},
    "dense_loss_gradient": {"P": "mK", "grad": "Kp"},
    "dense_hessian_product": {"out": "Kp"},
    "csr_logits": {"out": "mK"},
    "csr_gradient": {"out": "pK"},
    "csr_loss_gradient": {"P": "mK", "residual": "mK", "grad": "pK"},
    "csr_curve": {"curved": "mK"},
}
INOUT = {"csr_gradient"}  # kernels that add to their outputs
BATCH = list(OUTPUTS)[:5]
LINEAR = list(OUTPUTS)[6:]
LOSSES = ["cross_entropy", "dense_loss_gradient", "csr_loss_gradient"]

CLASSES = [1, 2, 3, 5, 7, 10, 16, 17, 26, 33, 64, 100, 1000]
FEATURES = [1, 2, 4, 15, 16, 17, 31, 33, 54, 63, 64, 65, 100, 130]
# Each number of features meets two numbers of classes and the other way round, 28 of the 182 pairs: every
# width of vector and tile, with a remainder and without one; narrow and wide X, few and many classes.
PAIRS = [(d, CLASSES[(i + shift) % 13]) for shift in (0, 8) for i, d in enumerate(FEATURES)]

# Each number of features and each of classes in float32 and in float64, but not each pair.
TYPED_PAIRS = [(d, K, (np.float32, np.float64)[(i + i // 14) % 2]) for i, (d, K) in enumerate(PAIRS)]



# --- helpers ----------------------------------------------------------------------------------------------


def problem(
    n, d, K, dtype, *, intercept=True, rows=None, soft=False, weighted=True, smoothing=0.0, index=np.int32
):
    """A value for every input that a kernel may ask for, by the name it has in the twins."""
    rng = np.random.default_rng([n, d, K])
    p, m = d + intercept, n if rows is None else len(rows)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    # a third of the entries; the first feature and every fifth row are empty
    S = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.3)
    S[:, 0], S[::5] = 0, 0
    S = sparse.csr_array(S.astype(dtype))
    W, V, U = normal(K, p), normal(K, p), normal(m, K)
    targets = rng.dirichlet(np.ones(K), size=n).astype(dtype)
    weights = rng.exponential(size=n).astype(dtype)
    weights[::7] = 0
    return {
        "X": normal(n, d),
        "data": S.data, "indices": S.indices.astype(index), "indptr": S.indptr.astype(index), "n_features": d,
        "rows": rows,
        "W": W, "V": V, "Wt": W.T.copy(), "Vt": V.T.copy(),
        "Z": 4 * normal(m, K), "U": U, "G": U, "P": rng.dirichlet(np.ones(K), size=m).astype(dtype),
        "codes": None if soft else rng.integers(K, size=n, dtype=np.intp),
        "targets": targets if soft else None,
        "sample_weight": weights if weighted else None, "label_smoothing": smoothing, "scale": 1 / 7, "l2": 0.3,
        "target_tolerance": 1e-3, "within_pass": False,
    }  # fmt: skip


def floating_type(given):
    return next(a.dtype for a in given.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f")


def outputs(name, given, dtype):
    p = given["V"].shape[1] if "V" in given else 0
    sizes = {"m": len(given["Z"]), "K": given["Z"].shape[1], "d": given.get("n_features"), "p": p}
    before = 0.5 if name in INOUT else np.nan
    return {out: np.full([sizes[c] for c in shape], before, dtype) for out, shape in OUTPUTS[name].items()}


def call(module, name, given, out, n_threads=1):
    """Call by position, in the order of the twin's signature: the kernels have to have the very same."""
    values = {**given, **out, "n_threads": n_threads}
    order = inspect.signature(getattr(_reference, name)).parameters
    return getattr(module, name)(*(values[argument] for argument in order))


def in_float64(given):
    floats = {k: a for k, a in given.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"}
    return {**given, **{k: a.astype(np.float64) for k, a in floats.items()}}


def read_only(given):
    views = {k: a.view() for k, a in given.items() if isinstance(a, np.ndarray)}
    for a in views.values():
        a.flags.writeable = False
    return {**given, **views}


def check(name, given):
    """Hold one kernel against its twin on one problem."""
    dtype = floating_type(given)
    wide, before = in_float64(given), {k: a.copy() for k, a in given.items() if isinstance(a, np.ndarray)}
    got, want = outputs(name, given, dtype), outputs(name, given, np.float64)
    got["loss"] = call(_core, name, read_only(given), got)
    want["loss"] = call(_reference, name, wide, want)
    for out, bound in bounds(name, wide, dtype).items():
        error = np.abs(got[out] - want[out])
        worst = np.max(error - bound, initial=0.0)  # NaN stays NaN, and fails
        assert worst <= 0, f"{out}: off by {np.max(error)}, {worst} beyond the bound"
    for k, a in before.items():
        assert np.array_equal(given[k], a), f"{k} was modified"


# --- how far a kernel may be from its twin ----------------------------------------------------------------
# First order in eps, the machine epsilon of the dtype, and doubled: in float64 the twin errs as much.
# - A sum of q products, in any order, is off by at most (q + 2) eps times the sum of their magnitudes.
# - exp and log are good for 2 ulp; the rounding of z - max(z) is a relative error eps |z - max(z)| in exp.
# - An error dZ in the logits is at most 2 max_k dZ of every probability, and that much in its logarithm.
# - Results that underflow may be off by the smallest normal number.


def product(A, B, eps):
    """The error of a computed A B."""
    return 2 * (A.shape[1] + 2) * eps * (abs(A) @ abs(B))


def softmax_and_errors(Z, eps, dZ=0.0):
    """P and log P in float64, and the errors of a kernel in them."""
    shifted = Z - Z.max(axis=1, keepdims=True)
    logP = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    P, K = np.exp(logP), Z.shape[1]
    dlogP = 2 * eps * (K + 8 + abs(logP)) + 2 * dZ
    return P, logP, P * dlogP, dlogP


def cross_entropy_errors(given, Z, eps, dZ=0.0):
    """The errors of a kernel in the losses and the residual s (P - Y), and the size of that residual."""
    n, rows = Z.shape[0], given["rows"]
    rows = np.arange(n) if rows is None else rows
    Y = (given["codes"], given["targets"], given["label_smoothing"], Z.shape[1], float, rows)
    Y = _reference._smoothed(*Y)
    s = np.ones((n, 1)) if given["sample_weight"] is None else given["sample_weight"][rows, None]
    P, logP, dP, dlogP = softmax_and_errors(Z, eps, dZ)
    dlosses = (s * Y * (dlogP + 2 * (Z.shape[1] + 4) * eps * abs(logP))).sum(axis=1)
    return dlosses, s * (dP + 8 * eps * (P + Y)), s * (P + Y)


def batch_bounds(name, given, eps):
    Z, K = given["Z"], given["Z"].shape[1]
    P, _, dP, dlogP = softmax_and_errors(Z, eps)
    if name == "logsumexp":
        return {"out": 2 * eps * (K + 8 + abs(Z).max(axis=1))}
    if name == "softmax_vjp":
        U = abs(given["U"])
        dot = (P * U).sum(axis=1, keepdims=True)
        ddot = (dP * U).sum(axis=1, keepdims=True) + 2 * (K + 2) * eps * dot
        return {"out": (dP + 4 * eps * P) * (U + dot) + P * ddot}
    if name == "cross_entropy":
        dlosses, dG, _ = cross_entropy_errors(given, Z, eps)
        found = {"losses": dlosses, "residual": dG, "loss": dlosses.sum()}
        return {out: given["scale"] * error for out, error in found.items()}
    return {"out": dP if name == "softmax" else dlogP}


def linear_bounds(name, given, eps):
    """For the kernels over X; the CSR ones transpose what they share with the dense ones."""
    kind, what = name.split("_", 1)
    csr = (given["data"], given["indices"], given["indptr"])
    X = given["X"] if kind == "dense" else _reference._csr(*csr, given["n_features"])
    A, scale = _reference._design(X, given["rows"], given["W"].shape[1]), given["scale"]

    def penalty(W):
        """One more term of each sum, wherever in it."""
        coef = np.arange(W.shape[1]) < given["n_features"]
        return 2 * (A.shape[0] + 3) * eps * given["l2"] * abs(W) * coef

    if what == "logits":
        return {"out": product(A, given["W"].T, eps)}
    if what == "gradient":
        grad = product(given["G"].T, A, eps)
        return {"out": grad if kind == "dense" else grad.T + 2 * eps}  # and the 0.5 that was there
    if what in ("hessian_product", "curve"):
        R, dR = abs(A) @ abs(given["V"]).T, product(A, given["V"].T, eps)
        s = 1.0 if given["sample_weight"] is None else given["sample_weight"]
        s = np.broadcast_to(s, len(X if kind == "dense" else given["indptr"][1:]))
        s = (s if given["rows"] is None else s[given["rows"]])[:, None] * scale
        P, K = given["P"], R.shape[1]
        Q = s * P * (R + (P * R).sum(axis=1, keepdims=True))
        dQ = s * P * (dR + (P * dR).sum(axis=1, keepdims=True)) + 2 * (K + 6) * eps * Q
        if kind == "csr":
            return {"curved": dQ, "loss": (R * dQ + dR * Q).sum() + 2 * (K + 2) * eps * (R * Q).sum()}
        return {"out": dQ.T @ abs(A) + product(Q.T, A, eps) + penalty(given["V"])}
    dZ = product(A, given["W"].T, eps).max(axis=1, keepdims=True, initial=0.0)
    Z = A @ given["W"].T
    dlosses, dG, G = cross_entropy_errors(given, Z, eps, dZ)
    grad = scale * (dG.T @ abs(A) + product(G.T, A, eps)) + penalty(given["W"])
    # the losses are summed in float64, whose rounding vanishes in the bound of the losses themselves; so is ||W||^2
    square = given["l2"] * np.sum(given["W"] ** 2)
    dloss = scale * dlosses.sum() + (given["W"].size + 3) * np.finfo(float).eps * square
    common = {"loss": dloss, "P": softmax_and_errors(Z, eps, dZ)[2]}
    return {**common, "grad": grad} if kind == "dense" else {**common, "residual": scale * dG, "grad": grad.T}


def bounds(name, given, dtype):
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    if name in BATCH:
        found = batch_bounds(name, given, eps)
    elif name == "input_gradient":
        found = {"out": product(given["G"], given["W"][:, : given["n_features"]], eps)}
    else:
        found = linear_bounds(name, given, eps)
    # passes over X may take a probability for zero that their twin, in other rounding, keeps
    dropped = (1e-20 if dtype == np.float32 else 1e-100) if name in LINEAR else 0
    return {out: bound + tiny + dropped * (out in ("P", "residual")) for out, bound in found.items()}


# --- kernels against twins --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("K", CLASSES)
@both_dtypes
def test_batches_equal_their_twins(name, K, dtype):
    for n in (0, 1, 67, 300):
        check(name, problem(n, 1, K, dtype))


@pytest.mark.parametrize("name", ["input_gradient", *LINEAR])
@pytest.mark.parametrize(("d", "K", "dtype"), TYPED_PAIRS)
def test_products_equal_their_twins(name, d, K, dtype):
    for n, intercept in ((0, True), (1, False), (67, True), (67, False), (300, True)):
        check(name, problem(n, d, K, dtype, intercept=intercept))


@pytest.mark.parametrize("K", [1, 3, 10, 33, 63, 64, 65, 96, 100])
@both_dtypes
def test_softmax_in_place(K, dtype):
    """Logits may be overwritten by their probabilities, where vectors overlap too; -1e30 is exactly nothing."""
    Z = problem(67, 1, K, dtype)["Z"]
    Z[::3, 0] = 1e30 if K == 1 else -1e30
    want = np.empty_like(Z)
    _core.softmax(Z, want)
    _core.softmax(Z, Z)
    assert np.array_equal(Z, want)
    assert K == 1 or not want[::3, 0].any()


@pytest.mark.parametrize("K", [2, 3, 43, 44, 100])
@both_dtypes
def test_softmax_within_a_pass_has_no_tiny_numbers(K, dtype):
    """Probabilities far below 1e-20 (float64: 1e-100) are zero there, in the kernel and in its twin, and only there.
    The others are right to the bounds of the plain softmax."""
    given = problem(67, 1, K, dtype)
    given["Z"][::3, 0] = -70 if dtype == np.float32 else -300
    want, got, plain = (np.empty_like(given["Z"]) for _ in range(3))
    _reference.softmax(given["Z"], want, 1, True)
    _core.softmax(given["Z"], got, 1, True)
    _core.softmax(given["Z"], plain)
    assert not want[::3, 0].any() and not got[::3, 0].any() and plain[::3, 0].all()
    assert np.all(np.abs(got - want) <= bounds("softmax", given, dtype)["out"])


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("K", CLASSES)
@both_dtypes
def test_batches_tell_of_numbers_that_are_not_finite(name, K, dtype):
    """Wherever one stands, and also where it changes no result: minus infinity is a probability of zero."""
    given = problem(130, 1, K, dtype)
    places = [(0, 0), (63, K - 1), (64, K // 2), (129, K - 1)]
    for argument in ("Z", "U") if name == "softmax_vjp" else ("Z",):
        for value in (np.nan, np.inf, -np.inf, np.finfo(dtype).max):
            for place in places:
                bad = given[argument].copy()
                bad[place] = value
                for module in (_core, _reference):
                    with np.errstate(all="ignore"):
                        told = call(module, name, {**given, argument: bad}, outputs(name, given, dtype))
                    finite = told if name != "cross_entropy" else not np.isnan(told)
                    assert finite == np.isfinite(value)


@pytest.mark.parametrize("K", [2, 3, 10, 64, 100])
@both_dtypes
def test_cross_entropy_tells_of_targets_that_are_no_distributions(K, dtype):
    """Wherever they stand, also in rows without weight; without a tolerance nothing is checked."""
    given = problem(130, 1, K, dtype, soft=True)

    def told(module, targets, tolerance):
        bad = {**given, "targets": targets, "target_tolerance": tolerance}
        with np.errstate(invalid="ignore"):
            return np.isnan(call(module, "cross_entropy", bad, outputs("cross_entropy", given, dtype)))

    for i, k in ((0, 0), (63, K - 1), (64, K // 2), (129, K - 1)):
        for bad in ("sum", "sign", np.nan, np.inf, -np.inf):
            targets = given["targets"].copy()
            if bad == "sum":
                targets[i] *= dtype(1.02)
            elif bad == "sign":  # the sum stays
                targets[i, k - 1] += targets[i, k] + dtype(0.01)
                targets[i, k] = -0.01
            else:
                targets[i, k] = bad
            for module in (_core, _reference):
                assert told(module, targets, 0.01)
                assert isinstance(bad, float) or not told(module, targets, 0)
    for module in (_core, _reference):  # good ones sum to one up to the rounding of K numbers and of their sum
        assert not told(module, given["targets"], K * np.finfo(dtype).eps)


def test_every_kernel_is_tested():
    twins = {n for n, f in vars(_reference).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert twins == {*OUTPUTS, "csr_dual_epoch", "dense_hessian"}
    assert all(any(hasattr(module, name) for module in (_core, _hessian, _dual_ascent)) for name in twins)


@pytest.mark.parametrize(("index", "intercept"), [(np.int32, True), (np.int64, False)])
@pytest.mark.parametrize("K", CLASSES)
@both_dtypes
def test_csr_dual_epoch(K, index, intercept, dtype):
    rows = np.random.default_rng(0).permutation(30)[:20]
    given = problem(30, 12, K, dtype, rows=rows, intercept=intercept, index=index)
    csr = [given[name] for name in ("data", "indices", "indptr")]
    order = np.random.default_rng(1).permutation(20)[:15]
    Wt, Q = [0.1 * given["Wt"] for _ in range(2)], [given["P"].copy() for _ in range(2)]
    args, entropy = (12, given["sample_weight"], 0.2, 0.5), []
    for module, W, q in zip((_dual_ascent, _reference), Wt, Q, strict=True):
        entropy.append(module.csr_dual_epoch(*csr, rows, order, W, *args, q))
    # fifteen steps, each the sum of a dozen products and its softmax; errors of a step are carried on
    tolerance = 500 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(*Wt, rtol=0, atol=tolerance)
    np.testing.assert_allclose(*Q, rtol=0, atol=tolerance)
    assert entropy[0] == pytest.approx(float(entropy[1]), rel=tolerance, abs=tolerance)
    unvisited = np.setdiff1d(np.arange(20), order)
    assert np.array_equal(Q[0][unvisited], given["P"][unvisited])
    if K > 1:
        assert not np.array_equal(Q[0][order], given["P"][order])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@both_dtypes
def test_targets_weights_and_smoothing(name, soft, weighted, smoothing, dtype):
    for d, K in ((17, 1), (17, 5), (70, 26), (70, 64)):
        check(name, problem(150, d, K, dtype, soft=soft, weighted=weighted, smoothing=smoothing))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(("d", "K"), [(5, 3), (33, 7), (70, 10), (100, 64)])
@both_dtypes
def test_rows(name, d, K, dtype):
    """Rows in any order, some of them twice, one, or none; codes, targets and weights come with them."""
    rng = np.random.default_rng(0)
    for rows in (rng.integers(150, size=299), rng.permutation(150), np.array([149]), np.array([], int)):
        for soft in (False, True):
            check(name, problem(150, d, K, dtype, rows=rows.astype(np.intp), soft=soft))


@pytest.mark.parametrize("name", [name for name in LINEAR if name.startswith("dense")])
@pytest.mark.parametrize(("d", "K"), [(1, 3), (17, 5), (70, 10), (100, 64)])
@both_dtypes
def test_row_strides(name, d, K, dtype):
    """Any stride between rows: parts of a larger array, backwards, one row repeated, overlapping windows."""
    n, rng = 150, np.random.default_rng(0)
    large = rng.normal(size=(2 * n, d + 9)).astype(dtype)
    again = np.broadcast_to(large[0, :d], (n, d))
    windows = np.lib.stride_tricks.sliding_window_view(large.ravel(), d)[:n]
    for X in (large[:n, 3 : 3 + d], large[::2, :d], large[n - 1 :: -1, :d], again, windows):
        for rows in (None, rng.integers(n, size=n).astype(np.intp)):
            check(name, {**problem(n, d, K, dtype, rows=rows), "X": X})


@pytest.mark.parametrize("name", [name for name in LINEAR if name.startswith("csr")])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@both_dtypes
def test_index_types(name, index, dtype):
    for d, K in ((1, 2), (33, 7), (100, 64)):
        check(name, problem(150, d, K, dtype, index=index))
        check(name, problem(150, d, K, dtype, index=index, rows=np.arange(0, 150, 3, dtype=np.intp)))


@pytest.mark.parametrize("name", LOSSES)
@both_dtypes
def test_outputs_that_are_not_wanted(name, dtype):
    """None for an optional output leaves the others as they are, up to rounding."""
    given = problem(150, 33, 7, dtype)
    everything = outputs(name, given, dtype)
    loss = call(_core, name, given, everything)
    for left_out in set(everything) - {"grad"} - ({"residual"} if name.startswith("csr") else set()):
        some = {**outputs(name, given, dtype), left_out: None}
        other = call(_core, name, given, some)
        assert loss is None or np.allclose(loss, other, rtol=4 * np.finfo(dtype).eps)
        # the residual may be rounded once more where P is written too: 4 ulp of the terms that an entry of
        # the gradient sums, 150 of them and at most 10 in size
        for out in set(everything) - {left_out}:
            assert np.allclose(everything[out], some[out], rtol=0, atol=150 * 10 * 4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", LOSSES)
@both_dtypes
def test_zero_weights_count_nothing(name, dtype):
    """Rows of weight zero give exactly what no rows give, even where their loss is as large as can be."""
    given = problem(150, 33, 7, dtype)
    given["sample_weight"], given["l2"] = np.zeros(150, dtype), 0.0
    given["Z"][::2, 0] = np.finfo(dtype).max
    out = outputs(name, given, dtype)
    assert call(_core, name, given, out) == 0
    assert all(not out[o].any() for o in out if o != "P")


# --- one result, whatever the threads ---------------------------------------------------------------------


@pytest.fixture
def threads_everywhere():
    """Kernels take the threads they are given, also where there is little to do or the machine is busy."""
    _teams.use_threads_everywhere(True)
    yield
    _teams.use_threads_everywhere(False)


@pytest.mark.usefixtures("threads_everywhere")
@pytest.mark.parametrize("name", list(OUTPUTS))
@pytest.mark.parametrize(("d", "K"), [(17, 3), (70, 20), (70, 64)])
@both_dtypes
def test_threads_do_not_change_a_bit(name, d, K, dtype):
    """5000 rows are many blocks. Thread count 1 comes twice: a repeated call gives the same bits too."""
    rows = None if name in BATCH else np.random.default_rng(0).integers(5000, size=5000).astype(np.intp)
    given = problem(5000, d, K, dtype, rows=rows, smoothing=0.1)
    first = outputs(name, given, dtype)
    loss = call(_core, name, given, first)
    for n_threads in (1, 2, 3, 8):
        again = outputs(name, given, dtype)
        assert call(_core, name, given, again, n_threads) == loss
        for out in first:
            assert np.array_equal(first[out], again[out]), f"{out} with {n_threads} threads"


# --- softmax where it is hard -----------------------------------------------------------------------------


def hard_rows(K, dtype):
    """Logits up to 1e4 in size: spread out, close to the largest one, all equal, two of opposite sign."""
    rng = np.random.default_rng(K)
    rows = [size * rng.uniform(-1, 1, size=K) for size in (10, 50, 100, 1e3, 1e4)]
    rows += [1e4 - rng.exponential(20, size=K), -1e4 + rng.exponential(20, size=K), np.full(K, -1e4)]
    rows += [np.where(np.arange(K) == K // 2, 40.7, -40.3), np.where(np.arange(K) % 2, 1e4, -1e4)]
    return np.array(rows).astype(dtype)


def exact(Z):
    """Softmax and log-softmax of each row to 40 digits."""
    P, logP = [], []
    with mpmath.workdps(40):
        for z in Z.tolist():
            top = mpmath.mpf(max(z))
            terms = [mpmath.exp(mpmath.mpf(x) - top) for x in z]
            total = mpmath.fsum(terms)
            P.append([t / total for t in terms])
            logP.append([mpmath.mpf(x) - top - mpmath.log(total) for x in z])
    return P, logP


def distance(computed, true):
    """|computed - true| in float64: the subtraction itself is done in 40 digits."""
    with mpmath.workdps(40):
        rows = [zip(*row, strict=True) for row in zip(computed.tolist(), true, strict=True)]
        return np.array([[float(abs(mpmath.mpf(c) - t)) for c, t in row] for row in rows])


@pytest.mark.parametrize("K", [1, 2, 3, 10, 100, 1000])
@both_dtypes
def test_softmax_is_within_4_ulp(K, dtype):
    """The promise of the package: 4 units in the last place of every probability, subnormal ones included."""
    Z = hard_rows(K, dtype)
    P, computed = exact(Z)[0], np.empty_like(Z)
    _core.softmax(Z, computed)
    ulp = np.spacing(np.array(P, dtype=np.float64).astype(dtype)).astype(np.float64)
    error = distance(computed, P) / ulp
    assert error.max() <= 4, f"{error.max():.1f} ulp in row {error.max(axis=1).argmax()}"


@pytest.mark.parametrize("K", [1, 2, 3, 10, 100, 1000])
@both_dtypes
def test_log_probabilities_are_exact_where_probabilities_underflow(K, dtype):
    """4 ulp of log p, or of one where log p is smaller, since log(sum) is a rounded number up to log K."""
    Z = hard_rows(K, dtype)
    logP, computed, top = exact(Z)[1], np.empty_like(Z), np.empty(len(Z), dtype)
    _core.log_softmax(Z, computed)
    size = np.maximum(1, abs(np.array(logP, dtype=np.float64)))
    assert (distance(computed, logP) <= 4 * np.spacing(size.astype(dtype))).all()
    assert (computed < np.log(np.finfo(dtype).smallest_subnormal)).any() or K == 1  # it was about underflow

    # logsumexp is max(z) + log(sum), rounded once more; the loss of a class is minus its log-probability
    _core.logsumexp(Z, top)
    lse = [[mpmath.mpf(z[0]) - row[0]] for z, row in zip(Z.tolist(), logP, strict=True)]
    size = np.maximum(1, abs(np.array(lse, dtype=np.float64)))
    assert (distance(top[:, None], lse) <= 4 * np.spacing(size.astype(dtype))).all()
    _core.cross_entropy(Z, np.full(len(Z), K - 1), None, None, 0.0, top, None)
    losses = [[-row[-1]] for row in logP]
    size = np.maximum(1, np.array(losses, dtype=np.float64))
    assert (distance(top[:, None], losses) <= 4 * np.spacing(size.astype(dtype))).all()


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@both_dtypes
def test_no_finite_logit_gives_nan_or_infinity(name, smoothing, soft, dtype):
    """Up to the largest number there is, where a difference of two logits overflows."""
    rng, K, most = np.random.default_rng(0), 6, float(np.finfo(dtype).max)
    Z = [size * rng.choice([-1.0, 0.0, 0.5, 1.0], size=(50, K)) for size in (1e3, 1e4, 1e30, most)]
    Z = np.concatenate([*Z, np.full((1, K), most), np.full((1, K), -most)]).astype(dtype)
    given = {**problem(len(Z), 1, K, dtype, soft=soft, weighted=False, smoothing=smoothing), "Z": Z}
    got = outputs(name, given, dtype)
    call(_core, name, given, got)
    assert all(np.isfinite(values).all() for values in got.values())
    # In the same dtype, as overflowing differences stop at its lowest number. The logits are equal or far
    # apart, so what is left is the rounding of sums of K terms.
    want, close = outputs(name, given, dtype), 4 * K * np.finfo(dtype).eps
    with np.errstate(over="ignore"):
        call(_reference, name, given, want)
    for out in got:
        assert np.allclose(got[out], want[out], rtol=close, atol=close)


@both_dtypes
def test_extreme_logits_through_the_linear_map(dtype):
    """Weights of 1e4 make logits of +-1e6: losses of that size, probabilities of 0 and 1, nothing else."""
    for name in ("dense_loss_gradient", "csr_loss_gradient"):
        given = problem(150, 33, 7, dtype)
        given["W"], given["Wt"] = 1e4 * given["W"], 1e4 * given["Wt"]
        got = outputs(name, given, dtype)
        assert np.isfinite(call(_core, name, given, got))
        assert all(np.isfinite(values).all() for values in got.values())
        assert np.allclose(got["P"].sum(axis=1), 1, rtol=0, atol=7 * np.finfo(dtype).eps)  # 7 rounded terms


def hessian_problem(n, d, K, dtype, intercept, rows):
    """Arguments of `dense_hessian` but for the result; columns of mixed units, with offsets."""
    given = problem(n, d, K, dtype, intercept=intercept, rows=rows)
    rng = np.random.default_rng(2)
    unit = 10.0 ** rng.uniform(-5, 5, size=d)
    X = ((given["X"] + 3) * unit).astype(dtype)
    weight = rng.exponential(size=len(given["P"])) / 7
    weight[::5] = 0
    return X, rows, given["P"], weight, 3 * unit, 2 * unit


@pytest.mark.parametrize(("d", "K", "dtype"), [pair for pair in TYPED_PAIRS if pair[0] * pair[1] <= 600])
def test_dense_hessian_equals_its_twin(d, K, dtype):
    for n, intercept, rows in ((0, True, None), (1, False, None), (67, False, None), (1500, True, None),
                               (90, True, np.random.default_rng(1).permutation(90)[:70])):  # fmt: skip
        given = hessian_problem(n, d, K, dtype, intercept, rows)
        before, shape = [np.copy(a) for a in given if a is not None], 2 * (K, d + intercept)
        got, want = np.full(shape, np.nan), np.empty(shape)
        _hessian.dense_hessian(*given, got)
        _reference.dense_hessian(*given, want)
        # both are sums over n rows of products of six numbers in float64; the diagonal is a sum over K of these sums
        largest = np.max(np.abs(want), initial=0.0)
        assert np.max(np.abs(got - want), initial=0.0) <= 2 * (n + K + 8) * np.finfo(float).eps * max(largest, 1e-300)
        assert np.array_equal(got, got.transpose(2, 3, 0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(before, [a for a in given if a is not None], strict=True))


def test_dense_hessian_is_the_same_for_every_number_of_threads(threads_everywhere):
    given = hessian_problem(3000, 9, 4, np.float32, True, None)  # rows for five parts
    results = [np.empty(2 * (4, 10)) for _ in range(4)]
    for n_threads, out in enumerate(results, 1):
        _hessian.dense_hessian(*given, out, n_threads)
    assert all(np.array_equal(results[0], out) for out in results[1:])


def test_dense_hessian_has_no_negative_eigenvalues():
    """Also where probabilities of float32 sum to more than one, or are zeros and ones."""
    X, rows, P, weight, mean, deviation = hessian_problem(200, 3, 4, np.float32, True, None)
    P = (P * np.float32(1 + 1e-6)).astype(np.float32)
    P[::2] = np.eye(4, dtype=np.float32)[np.arange(100) % 4]
    H = np.empty((4, 4, 4, 4))
    _hessian.dense_hessian(X, rows, P, weight, mean, deviation, H)
    values = np.linalg.eigvalsh(H.reshape(16, 16))
    # the four changes that are the same in all classes have no curvature; rounding leaves some eps of the largest
    assert values[0] >= -100 * np.finfo(float).eps * values[-1]
    np.testing.assert_allclose(values[:4], 0, atol=100 * np.finfo(float).eps * values[-1])
