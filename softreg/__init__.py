"""Softmax regression (multinomial logistic regression) with compiled kernels, behind scikit-learn's interface."""

from softreg import functional, metrics
from softreg._cv import SoftmaxRegressionCV
from softreg._estimator import SoftmaxRegression
from softreg._path import softmax_path
from softreg._show_versions import show_versions

__version__ = "0.1.0"
__all__ = ["SoftmaxRegression", "SoftmaxRegressionCV", "functional", "metrics", "show_versions", "softmax_path"]
