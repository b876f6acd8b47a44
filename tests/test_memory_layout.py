"""Arrays that NumPy and SciPy accept and the kernels cannot walk as they stand: copied, or an error that names X."""

import numpy as np
import pytest
from scipy import sparse
from shared import both_dtypes

from softreg import SoftmaxRegression
from softreg import functional as F
from softreg._memory_layout import ensure_row_major

N, D, K = 60, 5, 3



def data(dtype=np.float64):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)).astype(dtype)
    return X, rng.integers(K, size=N)


def fields_of_records(X):
    """Rows that are fields of packed records: their stride is no multiple of the size of a number."""
    records = np.zeros(len(X), np.dtype([("x", X.dtype, X.shape[1]), ("y", "i2")]))
    records["x"] = X
    return records["x"]


def one_byte_off(a):
    """The same numbers where none of them is aligned; contiguous."""
    memory = np.zeros(a.nbytes + 1, np.uint8)
    moved = memory[1:].view(a.dtype).reshape(a.shape)
    moved[...] = a
    return moved


def backwards(X):
    return X[::-1].copy()[::-1]


def windows(X):
    """Overlapping rows: the stride is a single number."""
    return np.lib.stride_tricks.sliding_window_view(X.ravel(), D)[:N]


def one_row_repeated(X):
    return np.broadcast_to(X[3], X.shape)


FORMS = [fields_of_records, one_byte_off, backwards, windows, one_row_repeated]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # three iterations are few
@pytest.mark.parametrize("form", FORMS)
@both_dtypes
def test_any_rows_give_what_a_plain_copy_gives(form, dtype):
    X, y = data(dtype)
    given = form(X)
    plain = given.copy(order="C")
    models = [SoftmaxRegression(solver=s, max_iter=3, random_state=0) for s in ("newton", "sgd")]
    for model in models:
        coef = model.fit(given, y).coef_
        assert np.array_equal(model.predict_proba(given), model.predict_proba(plain))
        assert np.array_equal(model.input_gradient(given, y), model.input_gradient(plain, y))
        assert np.array_equal(coef, model.fit(plain, y).coef_)
    W = np.random.default_rng(1).normal(size=(K, D)).astype(dtype)
    for a, b in zip(F.linear_cross_entropy_grad(given, y, W), F.linear_cross_entropy_grad(plain, y, W), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(F.softmax(given), F.softmax(plain))


@pytest.mark.parametrize("form", FORMS)
def test_copies_only_what_kernels_cannot_walk(form):
    given = form(data()[0])
    walkable = form not in (fields_of_records, one_byte_off)
    assert (ensure_row_major(given) is given) == walkable
    ready = ensure_row_major(given)
    assert ready.flags.aligned
    assert ready.strides[0] % ready.itemsize == 0
    assert np.array_equal(ready, given)


def test_unaligned_logits_targets_weights_and_codes():
    X, y = data()
    P = F.softmax(X)
    s = np.arange(N, dtype=float)
    for Y in (P, y):
        want = F.cross_entropy_grad(X, Y, sample_weight=s)
        got = F.cross_entropy_grad(*map(one_byte_off, (X, Y)), sample_weight=one_byte_off(s))
        assert want[0] == got[0]
        assert np.array_equal(want[1], got[1])


# --- CSR ------------------------------------------------------------------------------------------------------------


def strided_data(S):
    S.data = np.repeat(S.data, 2)[::2]
    return S


def two_kinds_of_indices(S):
    S.indices = S.indices.astype(np.int64)
    return S


def unaligned_parts(S):
    S.data, S.indices, S.indptr = map(one_byte_off, (S.data, S.indices, S.indptr))
    return S


@pytest.mark.parametrize("form", [strided_data, two_kinds_of_indices, unaligned_parts])
def test_parts_of_csr_in_any_layout(form):
    X, y = data()
    X[X < 0.3] = 0
    S, W = form(sparse.csr_array(X)), np.ones((K, D))
    for a, b in zip(F.linear_cross_entropy_grad(S, y, W), F.linear_cross_entropy_grad(X, y, W), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-14)  # sums of 60 numbers below 1/60 in size, in another order
    model = SoftmaxRegression().fit(S, y)
    assert np.array_equal(model.predict_proba(S), model.predict_proba(sparse.csr_array(X)))


def column_too_large(S):
    S.indices[4] = 100_000


def column_is_d(S):
    S.indices[-1] = D


def column_negative(S):
    S.indices[2] = -1


def rows_overlap(S):
    S.indptr[3] = S.indptr[5] + 1


def starts_late(S):
    S.indptr[0] = 1


def ends_after_the_data(S):
    S.indptr[-1] += 1000


def fewer_indices_than_data(S):
    S.indices = S.indices[:-1].copy()


def one_row_too_few(S):
    S.indptr = S.indptr[:-1].copy()


BROKEN = {
    column_too_large: r"X has the column index 100000, but 5 columns",
    column_is_d: r"X has the column index 5, but 5 columns",
    column_negative: r"X has the column index -1, but 5 columns",
    rows_overlap: r"X.indptr falls after row 3",
    starts_late: r"X.indptr goes from 1 to 300, expected 0 to at most 300",
    ends_after_the_data: r"X.indptr goes from 0 to 1300, expected 0 to at most 300",
    fewer_indices_than_data: r"X.indptr goes from 0 to 300, expected 0 to at most 299",
    one_row_too_few: r"X.indptr has 60 entries, expected 61 for 60 rows",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_csr_with_a_broken_structure_is_an_error(broken, index):
    X, y = data()
    S = sparse.csr_array(X)
    S.indices, S.indptr = S.indices.astype(index), S.indptr.astype(index)
    model = SoftmaxRegression().fit(S, y)
    broken(S)
    calls = [
        lambda: SoftmaxRegression().fit(S, y),
        lambda: SoftmaxRegression().partial_fit(S, y, classes=K),
        lambda: model.predict_proba(S),
        lambda: model.input_gradient(S, y),
        lambda: F.linear_cross_entropy_grad(S, y, np.ones((K, D))),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=BROKEN[broken]):
            call()


def test_what_stands_behind_the_last_row_is_not_looked_at():
    """Room that SciPy leaves at the end of indices and data belongs to no row."""
    X, y = data()
    S = sparse.csr_array(X)
    W = np.ones((K, D))
    want = F.linear_cross_entropy_grad(S, y, W)
    S.data, S.indices = np.append(S.data, 1.0), np.append(S.indices, 77).astype(np.int32)
    for a, b in zip(F.linear_cross_entropy_grad(S, y, W), want, strict=True):
        assert np.array_equal(a, b)
