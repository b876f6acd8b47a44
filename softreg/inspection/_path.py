"""Paths of penalties."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils._optional_dependencies import check_matplotlib_support

from softreg.inspection._drawing import distinct_colours, fitted, new_axes

KINDS = ("coefficients", "nonzeros", "scores")


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
        coefs = fitted(estimator, "coefs_paths_")
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
        self.ax_, self.figure_ = new_axes(self, ax)
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
        colours, self.lines_ = distinct_colours(coefs.shape[1]), []
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
