"""Checks of the data of a fit: return them as the kernels take them, or raise an error that names what is wrong."""

import numbers
from contextlib import contextmanager

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from softreg._array_checks import FLOATS, check_targets, check_weights
from softreg._memory_layout import ensure_row_major


def check_data(estimator, X, y, classes=None, first=True, min_rows=1):
    """Return X as the kernels take it, codes (n,) or None, targets (n, K) or None, and the classes (K,).

    Parameters
    ----------
    estimator : gets `n_features_in_` and `feature_names_in_` if `first`, else is compared with them
    X, y : as given to `fit` or `partial_fit`
    classes : as given to `partial_fit`, or None
    first : bool, False if the estimator has seen data before, and its `classes_` hold
    min_rows : int
    """
    if min_rows == 0 and np.shape(y)[:1] == (0,):
        y = []  # no rows, whatever the number of columns
    soft = are_distributions(y)
    X, y = validate_data(
        estimator, X, y, accept_sparse="csr", accept_large_sparse=True, dtype=FLOATS, multi_output=soft, reset=first,
        ensure_min_samples=min_rows,
    )  # fmt: skip
    X = ensure_row_major(X)
    if soft:
        try:
            _, targets = check_targets(np.asarray(y), y.shape, X.dtype)
        except ValueError as error:
            raise ValueError(f"y is 2-D, so its rows are read as probabilities of the classes: {error}") from error
        found = np.arange(y.shape[1])
        check_classes(found, classes)
        return X, None, np.ascontiguousarray(targets), found
    is_label = y.dtype.kind in "biuU"  # numbers of another kind may be those of a regression
    if len(y) and not is_label:
        check_classification_targets(y)
    known = estimator.classes_ if not first else None if classes is None else class_names(classes)
    y = y if len(y) else known[:0]  # NumPy takes an empty list for floats
    present, codes = np.unique(y, return_inverse=True)
    if is_label and 2 * len(present) > len(y):  # it warns of that
        check_classification_targets(y)
    known = present if known is None else known
    check_classes(known, classes)
    if known is not present and not np.isin(present, known).all():
        unknown = present[~np.isin(present, known)]
        raise ValueError(f"y has labels {unknown.tolist()} that are not in classes {known.tolist()}")
    if len(known) < 2:
        raise ValueError(f"SoftmaxRegression needs at least 2 classes; y has only one class: {known.tolist()[0]!r}")
    codes = np.searchsorted(known, present)[codes] if known is not present else codes
    return X, codes.astype(np.intp, copy=False), None, known


def are_distributions(y):
    """Return True if y has two dimensions and more than one column: its rows are then read as probabilities."""
    shape = np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def check_classes(known, classes):
    """Raise a ValueError if `classes` are given and differ from the known ones."""
    if classes is not None and not np.array_equal(class_names(classes), known):
        named = np.asarray(classes).tolist()
        raise ValueError(f"classes={named} differ from the {len(known)} classes {known.tolist()}")


def class_names(classes):
    """Return the classes as a sorted array; a number stands for 0 .. classes - 1."""
    return np.arange(classes) if isinstance(classes, numbers.Integral) else np.unique(classes)


def check_row_weights(sample_weight, class_weight, X, codes, classes):
    """Return sample weights times class weights in the dtype of X, (n,), or None for ones.

    Raise a ValueError if weights cannot be used, or no row has weight.
    """
    weight = None if sample_weight is None else check_weights(sample_weight, X.shape[0], X.dtype)
    if class_weight is not None:
        if codes is None:
            raise ValueError("class_weight needs labels in y; weight target probabilities by sample_weight")
        if class_weight == "balanced":
            total = np.bincount(codes, weights=weight, minlength=len(classes))
            if not total.all() and total.any():
                without = classes[total == 0].tolist()
                raise ValueError(
                    f"sample_weight is zero in every row of class {', '.join(map(repr, without))}: "
                    "class_weight='balanced' has nothing to balance there; leave these rows out"
                )
            # scikit-learn 1.6 takes no weights here; no weight at all is found below
            with np.errstate(invalid="ignore"):
                of_class = total.sum() / (len(classes) * total)
        else:
            of_class = compute_class_weight(class_weight, classes=classes, y=classes[codes])
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
    present = np.flatnonzero(np.bincount(codes[rows]) if targets is None else targets[rows].any(axis=0))
    if len(present) == 1:
        raise ValueError(
            f"sample_weight or class_weight leaves rows of one class only: {classes.tolist()[present[0]]!r}; "
            "SoftmaxRegression needs at least 2 classes"
        )


@contextmanager
def restore_on_error(estimator):
    """Restore the attributes of the estimator if an error is raised in the context."""
    before = vars(estimator).copy()
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@contextmanager
def finite_or_error(objective):
    """Silence NumPy's warnings of overflow in the context; factorisations that fail raise a FloatingPointError.

    `check_finite` then finds the overflow in the result.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except np.linalg.LinAlgError as error:
        raise FloatingPointError(OVERFLOW.format(objective.dtype)) from error


def check_finite(W, loss):
    """Raise a FloatingPointError that says what to do if a result is not finite."""
    if not (np.isfinite(W).all() and np.isfinite(loss)):
        raise FloatingPointError(OVERFLOW.format(W.dtype))


OVERFLOW = "the features of X are too large or too small for {}: their products overflow or vanish; scale them"
