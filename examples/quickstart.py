"""
Quickstart
==========

Train softreg on the digits that ship with scikit-learn, next to LogisticRegression, in a few seconds.
"""

import importlib.util
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softreg import SoftmaxRegression

alpha = 1e-3
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
C = 1 / (len(X_train) * alpha)  # the same objective in LogisticRegression's terms

# %%
# On raw pixels, as they come.
model = SoftmaxRegression(alpha=alpha).fit(X_train, y_train)
model

# %%
# In a pipeline, like any classifier.
pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(alpha=alpha)).fit(X_train, y_train)
print(f"a pipeline with StandardScaler: {pipeline.score(X_test, y_test):.1%} of the test digits right\n")

# %%
# The same objective, by both libraries. It is the mean cross-entropy and alpha / 2 times the squared coefficients.


def compare(name, model):
    """Fit on raw pixels, and print accuracy, objective and time."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        start = time.perf_counter()
        model.fit(X_train, y_train)
        seconds = time.perf_counter() - start
    objective = log_loss(y_train, model.predict_proba(X_train)) + alpha / 2 * np.sum(model.coef_**2)
    accuracy = model.score(X_test, y_test)
    print(f"{name:34} {accuracy:8.1%} {objective:11.7f} {seconds:8.3f}  {'no' if caught else 'yes'}")


print(f"{'raw pixels':34} {'accuracy':>8} {'objective':>11} {'seconds':>8}  converged")
compare("SoftmaxRegression", SoftmaxRegression(alpha=alpha))
compare("SoftmaxRegression, tol=1e-8", SoftmaxRegression(alpha=alpha, tol=1e-8))
compare("LogisticRegression", LogisticRegression(C=C))
compare("LogisticRegression, max_iter=10000", LogisticRegression(C=C, max_iter=10_000))

# %%
# The end of the fit.
print(f"\nThe first fit ended on its {model.stopped_on_!r}, after {model.n_iter_} iterations.")
print(f"What is proven: at most {model.optimality_gap_:.1e} of the null model's loss is left to gain.")

# %%
# The coefficients as images, a panel for each digit. This needs matplotlib: ``pip install "softreg[plot]"``.
if importlib.util.find_spec("matplotlib"):
    import matplotlib.pyplot as plt

    from softreg.inspection import CoefficientDisplay

    CoefficientDisplay.from_estimator(model, image_shape=(8, 8))
    plt.show()
