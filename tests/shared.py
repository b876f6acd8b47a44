"""What several test files use: marks, data, and a monitor that watches nothing."""

import numpy as np
import pytest
import sklearn
from packaging.version import Version
from scipy import sparse
from scipy.special import entr

BEFORE_1_8 = Version(sklearn.__version__) < Version("1.8")  # of scikit-learn
forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "csr"])
both_classes = pytest.mark.parametrize("classes", [2, 3])
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# For fits that are short on purpose, whose warning is not what is tested.
unfinished = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def softmax_data(n, d, classes, seed=0):
    """Labels drawn from a softmax model, so that no W separates them; a third of X is zero."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.7)
    return X, (X @ rng.normal(size=(d, classes)) + rng.gumbel(size=(n, classes))).argmax(axis=1)


def null_loss(y, s=None):
    """Return F_null, the entropy of the class shares of labels y with weights s: the unit of `tol`."""
    totals = np.bincount(np.unique(y, return_inverse=True)[1], s)
    return float(entr(totals / totals.sum()).sum())


def like(objective, W):
    """Return a plain array as a W of this objective, in its dtype and memory order."""
    out = objective.empty()
    out[...] = np.reshape(W, objective.shape)
    return out


class QuietMonitor:
    """Watches nothing and stops nothing."""

    def begin(self):
        pass

    def __call__(self, W, entry):
        return False
