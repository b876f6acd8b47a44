"""What comes in, as the kernels take it, or an error that names what is wrong with it."""

import numbers
from contextlib import contextmanager

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from softreg._memory_layout import ensure_row_major
from softreg.functional import _check_targets, _check_weights

FLOATS = (np.float64, np.float32)


def check_data(estimator, X, y, classes=None, first=True, min_rows=1):
    """X as the kernels take it, codes or targets, and the classes."""
    if min_rows == 0 and np.shape(y)[:1] == (0,):
        y = []  # whatever the width of no targets
    soft = are_distributions(y)
    X, y = validate_data(
        estimator, X, y, accept_sparse="csr", accept_large_sparse=True, dtype=FLOATS, multi_output=soft, reset=first,
        ensure_min_samples=min_rows,
    )  # fmt: skip
    X = ensure_row_major(X)
    if soft:
        try:
            _, targets = _check_targets(np.asarray(y), y.shape, X.dtype)
        except ValueError as error:
            raise ValueError(f"y is 2-D, so its rows are read as probabilities of the classes: {error}") from error
        found = np.arange(y.shape[1])
        check_classes(found, classes)
        return X, None, np.ascontiguousarray(targets), found
    y = column_or_1d(y, warn=True)
    if len(y):
        check_classification_targets(y)
    known = estimator.classes_ if not first else None if classes is None else class_names(classes)
    y = y if len(y) else known[:0]  # an empty list is a list of floats
    present, codes = np.unique(y, return_inverse=True)
    known = present if known is None else known
    check_classes(known, classes)
    if not np.isin(present, known).all():
        unknown = present[~np.isin(present, known)]
        raise ValueError(f"y has labels {unknown.tolist()} that are not in classes {known.tolist()}")
    if len(known) < 2:
        raise ValueError(f"SoftmaxRegression needs at least 2 classes; y has only one class: {known.tolist()[0]!r}")
    codes = np.searchsorted(known, present)[codes] if known is not present else codes
    return X, codes.astype(np.intp, copy=False), None, known


def are_distributions(y):
    """Whether y has two dimensions and more than one column: its rows are then read as probabilities."""
    shape = np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def check_classes(known, classes):
    """`classes`, if given, are those that are known."""
    if classes is not None and not np.array_equal(class_names(classes), known):
        named = np.asarray(classes).tolist()
        raise ValueError(f"classes={named} differ from the {len(known)} classes {known.tolist()}")


def class_names(classes):
    """Sorted; a number stands for 0 .. classes - 1."""
    return np.arange(classes) if isinstance(classes, numbers.Integral) else np.unique(classes)


def check_row_weights(sample_weight, class_weight, X, codes, classes):
    """Return sample weights times class weights in the dtype of X, (n,), or None for ones."""
    weight = None if sample_weight is None else _check_weights(sample_weight, X.shape[0], X.dtype)
    if class_weight is not None:
        if codes is None:
            raise ValueError("class_weight needs labels in y; weight target probabilities by sample_weight")
        if class_weight == "balanced" and weight is not None:
            total = np.bincount(codes, weights=weight, minlength=len(classes))
            if not total.all() and total.any():
                without = classes[total == 0].tolist()
                raise ValueError(
                    f"sample_weight is zero in every row of class {', '.join(map(repr, without))}: "
                    "class_weight='balanced' has nothing to balance there; leave these rows out"
                )
        of_class = compute_class_weight(class_weight, classes=classes, y=classes[codes], sample_weight=weight)
        some = of_class[codes].any() or not len(codes)
        if not (np.isfinite(of_class).all() and (of_class >= 0).all() and some):
            raise ValueError(f"class_weight must be finite, not negative and not all zero; got {class_weight}")
        of_row = of_class[codes].astype(X.dtype)
        weight = of_row if weight is None else weight * of_row
    if weight is not None and len(weight) and not weight.sum(dtype=np.float64) > 0:
        raise ValueError("sample_weight sums to zero: nothing is left to fit")
    return weight


def check_two_classes(objective, classes):
    """Raise a ValueError if all rows that have weight are of one class: nothing is to be told apart."""
    rows = slice(None) if objective.sample_weight is None else objective.sample_weight > 0
    codes, targets = objective.codes, objective.targets
    present = np.unique(codes[rows]) if targets is None else np.flatnonzero(targets[rows].any(axis=0))
    if len(present) == 1:
        raise ValueError(
            f"sample_weight or class_weight leaves rows of one class only: {classes.tolist()[present[0]]!r}; "
            "SoftmaxRegression needs at least 2 classes"
        )


@contextmanager
def restore_on_error(estimator):
    """Leave the estimator as it was where an error is raised."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@contextmanager
def finite_or_error(objective):
    """Overflow ends in a FloatingPointError that says what to do, not in a warning of NumPy."""
    try:
        with np.errstate(all="ignore"):
            yield
    except np.linalg.LinAlgError as error:
        raise FloatingPointError(OVERFLOW.format(objective.dtype)) from error


def check_finite(W, loss):
    if not (np.isfinite(W).all() and np.isfinite(loss)):
        raise FloatingPointError(OVERFLOW.format(W.dtype))


OVERFLOW = "the features of X are too large or too small for {}: their products overflow or vanish; scale them"
