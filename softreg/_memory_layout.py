"""Arrays as the kernels read them: aligned, each row contiguous; CSR with a valid structure."""

from scipy.sparse import issparse


def ensure_row_major(X):
    """Return X with rows that the kernels can read, copied only if they cannot.

    Dense: numbers are aligned and contiguous within a row. The stride between rows is any multiple of a number's size,
    also negative or zero. CSR: the structure is checked (ValueError), data, indices and indptr are contiguous, both
    kinds of indices have one dtype, and the columns of a row are sorted.
    """
    if issparse(X):
        return _ensure_sorted_csr(X)
    walkable = X.flags.aligned and X.strides[1] == X.itemsize and X.strides[0] % X.itemsize == 0
    return X if walkable else X.copy(order="C")


def aligned(a):
    """Return `a`, or a copy if its numbers are not aligned in memory."""
    return a if a.flags.aligned else a.copy()


def _ensure_sorted_csr(X):
    """Return the CSR matrix X, copied only if its arrays or the order of its columns are not as the kernels need."""
    _check_csr(X)
    are_plain = all(a.flags.c_contiguous and a.flags.aligned for a in (X.data, X.indices, X.indptr))
    if not are_plain or X.indices.dtype != X.indptr.dtype:
        X = X.copy()  # a copy by SciPy has contiguous arrays and one dtype of indices
    return X if X.has_sorted_indices else X.sorted_indices()


def _check_csr(X):
    """Raise a ValueError unless indptr and column indices stay inside of X; SciPy itself checks neither."""
    (n, d), stored = X.shape, min(len(X.data), len(X.indices))
    if len(X.indptr) != n + 1:
        raise ValueError(f"X.indptr has {len(X.indptr)} entries, expected {n + 1} for {n} rows")
    if X.indptr[0] != 0 or X.indptr[-1] > stored:
        raise ValueError(f"X.indptr goes from {X.indptr[0]} to {X.indptr[-1]}, expected 0 to at most {stored}")
    if (falls := X.indptr[1:] < X.indptr[:-1]).any():
        raise ValueError(f"X.indptr falls after row {falls.argmax()}: rows of a CSR matrix follow one another")
    columns = X.indices[: X.indptr[-1]]
    if len(columns) and not (columns.min() >= 0 and columns.max() < d):
        wrong = columns.max() if columns.min() >= 0 else columns.min()
        raise ValueError(f"X has the column index {wrong}, but {d} columns")
