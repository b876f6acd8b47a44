"""Softmax regression (multinomial logistic regression) with compiled kernels, behind scikit-learn's interface.

The public names stand here. Modules with an underscore are private. From top to bottom: estimators (`_estimator`,
`_path`, `_cv`, `_prediction`), solvers (`_solvers`), preconditioners (`_preconditioners`) and the certificate
(`_duality`, `_rounding`), the objective (`_objective`), the design matrix (`_design_matrix`), and the kernels (`_core`,
with their NumPy twins in `_reference`). ARCHITECTURE.md, in the sources, has the picture.
"""

from softreg import functional, inspection, metrics
from softreg._cv import SoftmaxRegressionCV
from softreg._estimator import SoftmaxRegression
from softreg._path import softmax_path
from softreg._show_versions import show_versions

__version__ = "0.1.0"
__all__ = ["SoftmaxRegression", "SoftmaxRegressionCV", "functional", "inspection", "metrics"]
__all__ += ["show_versions", "softmax_path"]
