"""Pictures of fitted estimators, as scikit-learn's Display objects.

A display holds the numbers that it draws. Make one with `from_estimator`, or from arrays. `plot` draws it into `ax` or
into new axes, and sets `ax_` and `figure_`. Drawing needs matplotlib: ``pip install "softreg[plot]"``.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

__all__ = ["CoefficientDisplay", "LossCurveDisplay", "PathDisplay"]

X_LABELS = {"iteration": "iterations", "passes": "passes over the data", "time": "seconds", "rows": "rows"}
METRIC_LABELS = {
    "loss": "loss",
    "gap": "proven gap, as a share of the null model's loss",
    "gap_estimate": "estimated gap, as a share of the null model's loss",
    "validation_loss": "loss on held-out rows",
    "validation_score": "accuracy on held-out rows",
    "accuracy": "accuracy of each batch before it was learnt",
}
KINDS = ("coefficients", "nonzeros", "scores")


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
        history = _fitted(estimator, "stream_history_" if x == "rows" else "history_")
        known = [key for key, entries in history.items() if key in METRIC_LABELS and np.isfinite(entries).any()]
        if metric not in known:
            raise ValueError(f"metric={metric!r} is not known of this fit over x={x!r}; it has {known}")
        values = history[metric]
        along = np.arange(1, len(values) + 1) if x == "iteration" else history[x]
        if name is None:
            name = "partial_fit" if x == "rows" else _fitted(estimator, "solver_")
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
        self.ax_, self.figure_ = _axes(self, ax)
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


class PathDisplay:
    """A path of penalties, from strong to weak: coefficients, their number that is not zero, or scores.

    Parameters
    ----------
    alphas : array of shape (n_alphas,)
        Strengths of the penalty.
    coefs : array of shape (n_alphas, n_rows, n_features), or (n_folds, n_alphas, n_rows, n_features)
        Coefficients for each alpha, as `softmax_path` returns them, without intercepts. n_rows is the number of
        classes, or 1 for two classes.
    scores : array of shape (n_folds, n_alphas), default=None
        Scores on held-out rows.
    alpha : float, default=None
        The alpha that was chosen, to be marked.
    class_names : array of shape (n_rows,), default=None
        Names for the legend; None stands for 0, 1, and so on.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the path.
    figure_ : matplotlib Figure
        Figure that has the axes.
    lines_ : list of matplotlib Line2D
        The curves, without the mark of the chosen alpha.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softreg import softmax_path
    >>> from softreg.inspection import PathDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> alphas, coefs, _, _ = softmax_path(X, y, alphas=[1e-3, 1e-2, 1e-1])
    >>> len(PathDisplay(alphas=alphas, coefs=coefs).plot().lines_)  # 3 classes, 4 features
    12
    """

    def __init__(
        self, *, alphas: ArrayLike, coefs: ArrayLike, scores: ArrayLike | None = None, alpha: float | None = None,
        class_names: ArrayLike | None = None,
    ) -> None:  # fmt: skip
        self.alphas = alphas
        self.coefs = coefs
        self.scores = scores
        self.alpha = alpha
        self.class_names = class_names

    @classmethod
    def from_estimator(
        cls, estimator: BaseEstimator, *, kind: str = "coefficients", l1_ratio: float | None = None, ax: Any = None,
        **kwargs: Any,
    ) -> Self:  # fmt: skip
        """Draw the paths of a fitted SoftmaxRegressionCV, with the chosen alpha marked.

        Parameters
        ----------
        estimator : SoftmaxRegressionCV
            A fitted one.
        kind : {"coefficients", "nonzeros", "scores"}, default="coefficients"
            What to draw, see `plot`.
        l1_ratio : float, default=None
            The path to draw is that of the nearest of the `l1_ratios_`; None is the chosen one.
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes new ones.
        **kwargs : dict
            Passed on to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : PathDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the estimator has no path.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from softreg import SoftmaxRegressionCV
        >>> from softreg.inspection import PathDisplay
        >>> model = SoftmaxRegressionCV(alphas=[1e-3, 1e-2, 1e-1]).fit(*load_iris(return_X_y=True))
        >>> PathDisplay.from_estimator(model, kind="scores").ax_.get_ylabel()
        'score on held-out rows'
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        coefs = _fitted(estimator, "coefs_paths_")
        chosen = estimator.l1_ratio_ if l1_ratio is None else l1_ratio
        path = np.abs(np.subtract(estimator.l1_ratios_, chosen)).argmin()
        coefs = coefs[:, path, :, :, : estimator.n_features_in_]
        display = cls(
            alphas=estimator.alphas_, coefs=coefs, scores=estimator.scores_[:, path], alpha=estimator.alpha_,
            class_names=estimator.classes_[-coefs.shape[-2] :],
        )  # fmt: skip
        return display.plot(ax, kind=kind, **kwargs)

    def plot(self, ax: Any = None, *, kind: str = "coefficients", **kwargs: Any) -> Self:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw into; None makes new ones.
        kind : {"coefficients", "nonzeros", "scores"}, default="coefficients"
            "coefficients" draws a line for each coefficient that is not always zero, in the colour of its class;
            "nonzeros" the number of coefficients that are not zero; "scores" the scores. Folds are averaged; for
            "nonzeros" and "scores" a band shows the standard deviation over the folds.
        **kwargs : dict
            Passed on to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : PathDisplay
            The display itself.

        Raises
        ------
        ValueError
            If kind is another one, or "scores" and there are none.

        Examples
        --------
        >>> from softreg.inspection import PathDisplay
        >>> display = PathDisplay(alphas=[1.0, 0.1], coefs=[[[0.0, 0.0]], [[0.0, 2.0]]])
        >>> display.plot(kind="nonzeros").lines_[0].get_ydata().tolist()
        [0.0, 1.0]
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} must be one of {list(KINDS)}")
        if kind == "scores" and self.scores is None:
            raise ValueError("kind='scores' needs scores; a path that was not cross-validated has none")
        self.ax_, self.figure_ = _axes(self, ax)
        alphas, coefs = np.asarray(self.alphas), np.asarray(self.coefs)
        coefs = coefs.reshape(-1, *coefs.shape[-3:])  # (n_folds, n_alphas, n_rows, n_features)
        if kind == "coefficients":
            self._plot_coefficients(alphas, coefs.mean(axis=0), kwargs)
        elif kind == "nonzeros":
            self._plot_band(alphas, np.count_nonzero(coefs, axis=(2, 3)), "coefficients that are not zero", kwargs)
        else:
            self._plot_band(alphas, np.atleast_2d(np.asarray(self.scores)), "score on held-out rows", kwargs)
        self._scale_axis(alphas)
        if self.alpha is not None:
            self.ax_.axvline(self.alpha, color="black", linestyle="--", linewidth=1, label=f"chosen: {self.alpha:.2g}")
        if self.ax_.get_legend_handles_labels()[0]:
            self.ax_.legend(fontsize="small", ncols=2)
        return self

    def _plot_coefficients(self, alphas, coefs, kwargs):
        """Draw a line for each coefficient of coefs (n_alphas, n_rows, n_features) that is not always zero."""
        colours, self.lines_ = _colours(coefs.shape[1]), []
        names = np.arange(coefs.shape[1]) if self.class_names is None else self.class_names
        for name, colour, of_class in zip(names, colours, coefs.swapaxes(0, 1), strict=True):
            used = of_class[:, of_class.any(axis=0)]
            lines = self.ax_.plot(alphas, used, **{"color": colour, "linewidth": 0.8, **kwargs})
            if lines and len(coefs[0]) > 1:
                lines[0].set_label(name)
            self.lines_ += lines
        self.ax_.axhline(0, color="grey", linewidth=0.5)
        self.ax_.set_ylabel("coefficient")

    def _plot_band(self, alphas, values, label, kwargs):
        """Draw the mean of values (n_folds, n_alphas) over the folds, and their standard deviation as a band."""
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        self.lines_ = self.ax_.plot(alphas, mean, **{"marker": ".", **kwargs})
        if len(values) > 1:
            colour = self.lines_[0].get_color()
            self.ax_.fill_between(alphas, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)
        self.ax_.set_ylabel(label)

    def _scale_axis(self, alphas):
        """Make the axis of alphas logarithmic, from strong to weak; an alpha of zero has a place, too."""
        if (alphas > 0).all():
            self.ax_.set_xscale("log")
            if alphas.max() >= 100 * alphas.min():  # on an inverted axis matplotlib labels what is between, too
                self.ax_.xaxis.set_minor_formatter("")
        elif (alphas > 0).any():
            self.ax_.set_xscale("symlog", linthresh=alphas[alphas > 0].min())
        self.ax_.xaxis.set_inverted(True)
        self.ax_.set_xlabel("alpha, from strong to weak")


class CoefficientDisplay:
    """The coefficients of each class: those of its most telling features as bars, or all of them as images.

    Parameters
    ----------
    coef : array of shape (n_rows, n_features)
        Coefficients, a row for each panel.
    feature_names : array of shape (n_features,), default=None
        Names for the bars; None stands for x0, x1, and so on.
    class_names : array of shape (n_rows,), default=None
        Titles of the panels; None stands for 0, 1, and so on.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes in whose place the panels stand.
    axes_ : list of matplotlib Axes
        The panels, one a class.
    figure_ : matplotlib Figure
        Figure that has the panels.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from softreg import SoftmaxRegression
    >>> from softreg.inspection import CoefficientDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> model = SoftmaxRegression(alpha=1e-2).fit(X, y)
    >>> len(CoefficientDisplay.from_estimator(model, image_shape=(8, 8)).axes_)
    10
    """

    def __init__(
        self, *, coef: ArrayLike, feature_names: ArrayLike | None = None, class_names: ArrayLike | None = None
    ) -> None:
        self.coef = coef
        self.feature_names = feature_names
        self.class_names = class_names

    @classmethod
    def from_estimator(
        cls, estimator: BaseEstimator, *, feature_names: ArrayLike | None = None, classes: ArrayLike | None = None,
        scale: ArrayLike | None = None, n_features: int = 10, image_shape: tuple[int, int] | None = None,
        ax: Any = None, **kwargs: Any,
    ) -> Self:  # fmt: skip
        """Draw the coefficients of a fitted SoftmaxRegression or SoftmaxRegressionCV.

        Parameters
        ----------
        estimator : SoftmaxRegression or SoftmaxRegressionCV
            A fitted one.
        feature_names : array of shape (n_features,), default=None
            Names of the features; None is `feature_names_in_` if there is one, else x0, x1, and so on.
        classes : array of labels, default=None
            The classes to draw; None is all of them. Two classes have one row of coefficients, which speaks for the
            second class.
        scale : array of shape (n_features,), default=None
            Numbers that multiply the coefficients. With ``X.std(axis=0)``, coefficients of features in different units
            can be compared.
        n_features : int, default=10
            The most bars in a panel.
        image_shape : tuple (height, width), default=None
            Shape of the images where the features are pixels; None draws bars.
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; None makes a new figure.
        **kwargs : dict
            Passed on to `matplotlib.axes.Axes.barh` or `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : CoefficientDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If names, classes, scale or image_shape do not match the estimator.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from softreg import SoftmaxRegression
        >>> from softreg.inspection import CoefficientDisplay
        >>> X, y = load_iris(return_X_y=True, as_frame=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> display = CoefficientDisplay.from_estimator(model, scale=X.std(), n_features=2, classes=[2])
        >>> [label.get_text() for label in display.axes_[0].get_yticklabels()]
        ['petal width (cm)', 'petal length (cm)']
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        coef: Any = _fitted(estimator, "coef_")
        coef = coef.toarray() if hasattr(coef, "toarray") else np.asarray(coef)  # sparse after `sparsify`
        labels = np.asarray(estimator.classes_)[-len(coef) :]
        if scale is not None:
            coef = coef * _of_length(scale, coef.shape[1], "scale")
        if feature_names is None:
            feature_names = getattr(estimator, "feature_names_in_", None)
        if classes is not None:
            rows = [np.flatnonzero(labels == label) for label in np.asarray(classes)]
            if not all(len(found) for found in rows):
                raise ValueError(f"classes={classes!r} must be among those with coefficients: {labels.tolist()}")
            coef, labels = coef[np.concatenate(rows)], labels[np.concatenate(rows)]
        display = cls(coef=coef, feature_names=feature_names, class_names=labels)
        return display.plot(ax, n_features=n_features, image_shape=image_shape, **kwargs)

    def plot(
        self, ax: Any = None, *, n_features: int = 10, image_shape: tuple[int, int] | None = None, **kwargs: Any
    ) -> Self:
        """Draw the panels.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes whose place the panels take; None makes a new figure.
        n_features : int, default=10
            The most bars in a panel: those of the largest coefficients that are not zero, the largest on top.
        image_shape : tuple (height, width), default=None
            Shape of the images where the features are pixels; None draws bars. All images have one scale of colours.
        **kwargs : dict
            Passed on to `matplotlib.axes.Axes.barh` or `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : CoefficientDisplay
            The display itself.

        Raises
        ------
        ValueError
            If `feature_names` or `image_shape` do not match the coefficients.

        Examples
        --------
        >>> from softreg.inspection import CoefficientDisplay
        >>> display = CoefficientDisplay(coef=[[0.0, -1.0, 2.0]], feature_names=["a", "b", "c"]).plot()
        >>> [label.get_text() for label in display.axes_[0].get_yticklabels()]
        ['b', 'c']
        """
        coef = np.atleast_2d(self.coef)
        if image_shape is not None and np.prod(image_shape) != coef.shape[1]:
            raise ValueError(f"image_shape={image_shape} does not match {coef.shape[1]} features")
        names = [f"x{j}" for j in range(coef.shape[1])] if self.feature_names is None else self.feature_names
        names = _of_length(names, coef.shape[1], "feature_names")
        titles = np.arange(len(coef)) if self.class_names is None else np.asarray(self.class_names)
        columns = min(len(coef), 5 if image_shape else 3)
        rows = -(-len(coef) // columns)
        height = 1.8 if image_shape else 0.6 + 0.25 * min(n_features, coef.shape[1])
        size = (1.8 * columns + 0.8 if image_shape else 4.2 * columns, height * rows)
        self.ax_, self.figure_ = _axes(self, ax, figsize=size, layout="constrained")
        self.ax_.set_axis_off()
        grid = self.ax_.get_subplotspec().subgridspec(rows, columns)
        self.axes_ = [self.figure_.add_subplot(grid[divmod(k, columns)], title=str(t)) for k, t in enumerate(titles)]
        if image_shape:
            self._plot_images(coef.reshape(-1, *image_shape), kwargs)
        else:
            self._plot_bars(coef, names, n_features, kwargs)
        return self

    def _plot_images(self, images, kwargs):
        """Draw images (n_rows, height, width) on one scale of colours, white for zero."""
        limit = np.abs(images).max() or 1.0
        for panel, image in zip(self.axes_, images, strict=True):
            drawn = panel.imshow(image, **{"cmap": "RdBu", "vmin": -limit, "vmax": limit, **kwargs})
            panel.set(xticks=[], yticks=[])
        self.figure_.colorbar(drawn, ax=self.axes_, label="coefficient", shrink=0.8)

    def _plot_bars(self, coef, names, n_features, kwargs):
        """Draw the largest coefficients of each row as bars, the largest on top."""
        negative, positive = _colours(2, "RdBu", 0.15)
        for panel, row in zip(self.axes_, coef, strict=True):
            largest = np.argsort(np.abs(row), kind="stable")[-n_features:]
            largest = largest[row[largest] != 0]
            colours = [positive if value > 0 else negative for value in row[largest]]
            panel.barh(np.arange(len(largest)), row[largest], **{"color": colours, **kwargs})
            panel.set_yticks(np.arange(len(largest)), names[largest])
            panel.axvline(0, color="black", linewidth=0.5)


def _fitted(estimator, attribute):
    """Return a fitted attribute; raise an error that says what to do if the estimator has none of that name."""
    if not hasattr(estimator, attribute):
        check_is_fitted(estimator)
        hint = "; give the last step of a Pipeline, pipeline[-1]" if hasattr(estimator, "steps") else ""
        raise ValueError(f"estimator, a {type(estimator).__name__}, has no {attribute}{hint}")
    return getattr(estimator, attribute)


def _of_length(values, length, name):
    """Return values as an array, or raise a ValueError if their number is not that of the features."""
    values = np.asarray(values)
    if values.shape != (length,):
        raise ValueError(f"{name} has shape {values.shape}; {length} features need ({length},)")
    return values


def _axes(display, ax, **options):
    """Return axes and figure to draw into: those given, or new ones with these options of a figure."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(**options)
    return ax, ax.figure


def _colours(number, name=None, margin=0.0):
    """Return as many colours: of a colour map, `margin` away from its ends, or by default ones that differ clearly."""
    import matplotlib as mpl

    name = name or ("tab10" if number <= 10 else "turbo")
    if name == "tab10":
        return mpl.colormaps[name](np.arange(number))
    return mpl.colormaps[name](np.linspace(margin, 1 - margin, number))
