"""Helpers of the displays: fitted attributes, axes and colours. matplotlib is imported where something is drawn."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted


def fitted(estimator, attribute):
    """Return a fitted attribute; raise an error that says what to do if the estimator has none of that name."""
    if not hasattr(estimator, attribute):
        check_is_fitted(estimator)
        hint = "; give the last step of a Pipeline, pipeline[-1]" if hasattr(estimator, "steps") else ""
        raise ValueError(f"estimator, a {type(estimator).__name__}, has no {attribute}{hint}")
    return getattr(estimator, attribute)


def of_length(values, length, name):
    """Return values as an array, or raise a ValueError if their number is not that of the features."""
    values = np.asarray(values)
    if values.shape != (length,):
        raise ValueError(f"{name} has shape {values.shape}; {length} features need ({length},)")
    return values


def new_axes(display, ax, **options):
    """Return axes and figure to draw into: those given, or new ones with these options of a figure."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(**options)
    return ax, ax.figure


def distinct_colours(number, name=None, margin=0.0):
    """Return as many colours: of a colour map, `margin` away from its ends, or by default ones that differ clearly."""
    import matplotlib as mpl

    name = name or ("tab10" if number <= 10 else "turbo")
    if name == "tab10":
        return mpl.colormaps[name](np.arange(number))
    return mpl.colormaps[name](np.linspace(margin, 1 - margin, number))
