"""The course of a fit or of a stream."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_matplotlib_support

from softreg.inspection._drawing import fitted, new_axes

X_LABELS = {"iteration": "iterations", "passes": "passes over the data", "time": "seconds", "rows": "rows"}
METRIC_LABELS = {
    "loss": "loss",
    "gap": "proven gap, as a share of the null model's loss",
    "gap_estimate": "estimated gap, as a share of the null model's loss",
    "validation_loss": "loss on held-out rows",
    "validation_score": "accuracy on held-out rows",
    "accuracy": "accuracy of each batch before it was learnt",
}


class LossCurveDisplay:
    """The course of a fit or of a stream: loss, gap or score of each iteration or batch.

    Draw several fits into one picture by giving `ax_` of the first display as `ax` of the others.

    Parameters
    ----------
    x : array of shape (n_points,)
        Iterations, passes, seconds or rows.
    values : array of shape (n_points,)
        What is drawn over them. Points that are not finite are left out.
    x_name : str, default="iteration"
        Name of x, for the label of the axis.
    metric : str, default="loss"
        Name of the values. "gap" and "gap_estimate" get a logarithmic axis.
    name : str, default=None
        Name of the curve in the legend; None stands for no legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure that has the axes.
    line_ : matplotlib Line2D
        The curve.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softreg import SoftmaxRegression
    >>> from softreg.inspection import LossCurveDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> fit = LossCurveDisplay.from_estimator(SoftmaxRegression().fit(X, y), name="newton")
    >>> sgd = SoftmaxRegression(solver="sgd", tol=0.1, random_state=0).fit(X, y)
    >>> both = LossCurveDisplay.from_estimator(sgd, name="sgd", ax=fit.ax_)
    >>> [text.get_text() for text in both.ax_.get_legend().get_texts()]
    ['newton', 'sgd']
    """

    def __init__(
        self, *, x: ArrayLike, values: ArrayLike, x_name: str = "iteration", metric: str = "loss",
        name: str | None = None,
    ) -> None:  # fmt: skip
        self.x = x
        self.values = values
        self.x_name = x_name
        self.metric = metric
        self.name = name

    @classmethod
    def from_estimator(
        cls, estimator: BaseEstimator, *, metric: str = "loss", x: str | None = None, name: str | None = None,
        ax: Any = None, **kwargs: Any,
    ) -> Self:  # fmt: skip
        """Draw the history of a fitted SoftmaxRegression.

        Parameters
        ----------
        estimator : SoftmaxRegression
            A fitted one.
        metric : str, default="loss"
            A key of `history_`: "loss", "gap", "gap_estimate", and after early stopping "validation_loss" or
            "validation_score". For x="rows" a key of `stream_history_`: "loss" or "accuracy".
        x : {"iteration", "passes", "time", "rows"}, default=None
            What to draw over. "rows" draws the batches of `partial_fit`. None is "rows" if the estimator has learnt
            batches, else "passes".
        name : str, default=None
            Name in the legend; None is the name of the solver, or "partial_fit".
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes new ones.
        **kwargs : dict
            Passed on to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LossCurveDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the estimator has no such history.

        Examples
        --------
        >>> from softreg import SoftmaxRegression
        >>> from softreg.inspection import LossCurveDisplay
        >>> model = SoftmaxRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"])
        >>> LossCurveDisplay.from_estimator(model, metric="gap", x="time").ax_.get_yscale()
        'log'
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        if x is None:
            x = "rows" if hasattr(estimator, "stream_history_") else "passes"
        if x not in X_LABELS:
            raise ValueError(f"x={x!r} must be one of {list(X_LABELS)}")
        history = fitted(estimator, "stream_history_" if x == "rows" else "history_")
        known = [key for key, entries in history.items() if key in METRIC_LABELS and np.isfinite(entries).any()]
        if metric not in known:
            raise ValueError(f"metric={metric!r} is not known of this fit over x={x!r}; it has {known}")
        values = history[metric]
        along = np.arange(1, len(values) + 1) if x == "iteration" else history[x]
        if name is None:
            name = "partial_fit" if x == "rows" else fitted(estimator, "solver_")
        return cls(x=along, values=values, x_name=x, metric=metric, name=name).plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes new ones.
        **kwargs : dict
            Passed on to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LossCurveDisplay
            The display itself.

        Examples
        --------
        >>> from softreg.inspection import LossCurveDisplay
        >>> LossCurveDisplay(x=[1, 2, 3], values=[1.1, 0.5, 0.4]).plot().ax_.get_xlabel()
        'iterations'
        """
        self.ax_, self.figure_ = new_axes(self, ax)
        values = np.asarray(self.values)
        known = np.isfinite(values)
        (self.line_,) = self.ax_.plot(
            np.asarray(self.x)[known], values[known], **{"label": self.name, "marker": ".", **kwargs}
        )
        if self.metric in ("gap", "gap_estimate"):
            self.ax_.set_yscale("log", nonpositive="mask")
        self.ax_.set(xlabel=X_LABELS.get(self.x_name, self.x_name), ylabel=METRIC_LABELS.get(self.metric, self.metric))
        if self.line_.get_label() and not self.line_.get_label().startswith("_"):
            self.ax_.legend()
        return self
