"""Pictures of fitted estimators, as scikit-learn's Display objects.

A display holds the numbers that it draws. Make one with `from_estimator`, or from arrays. `plot` draws it into `ax` or
into new axes, and sets `ax_` and `figure_`. Drawing needs matplotlib: ``pip install "softreg[plot]"``.
"""

from softreg.inspection._coefficients import CoefficientDisplay
from softreg.inspection._loss_curve import LossCurveDisplay
from softreg.inspection._path import PathDisplay

__all__ = ["CoefficientDisplay", "LossCurveDisplay", "PathDisplay"]
