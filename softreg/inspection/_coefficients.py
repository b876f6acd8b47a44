"""The coefficients of each class."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_matplotlib_support

from softreg.inspection._drawing import distinct_colours, fitted, new_axes, of_length


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
        coef: Any = fitted(estimator, "coef_")
        coef = coef.toarray() if hasattr(coef, "toarray") else np.asarray(coef)  # sparse after `sparsify`
        labels = np.asarray(estimator.classes_)[-len(coef) :]
        if scale is not None:
            coef = coef * of_length(scale, coef.shape[1], "scale")
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
        names = of_length(names, coef.shape[1], "feature_names")
        titles = np.arange(len(coef)) if self.class_names is None else np.asarray(self.class_names)
        columns = min(len(coef), 5 if image_shape else 3)
        rows = -(-len(coef) // columns)
        height = 1.8 if image_shape else 0.6 + 0.25 * min(n_features, coef.shape[1])
        size = (1.8 * columns + 0.8 if image_shape else 4.2 * columns, height * rows)
        self.ax_, self.figure_ = new_axes(self, ax, figsize=size, layout="constrained")
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
        negative, positive = distinct_colours(2, "RdBu", 0.15)
        for panel, row in zip(self.axes_, coef, strict=True):
            largest = np.argsort(np.abs(row), kind="stable")[-n_features:]
            largest = largest[row[largest] != 0]
            colours = [positive if value > 0 else negative for value in row[largest]]
            panel.barh(np.arange(len(largest)), row[largest], **{"color": colours, **kwargs})
            panel.set_yticks(np.arange(len(largest)), names[largest])
            panel.axvline(0, color="black", linewidth=0.5)
