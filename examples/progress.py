"""
Watch a fit
===========

Lines, the score of every epoch, a stop on demand, and scikit-learn's progress bar, while a fit reads its rows from a
file. Needs matplotlib, and scikit-learn 1.9 for the callbacks.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from softreg import SoftmaxRegression
from softreg.inspection import LossCurveDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.2, stratify=y, random_state=0)
X_train, X_valid, y_train, y_valid = train_test_split(X_train, y_train, test_size=0.2, stratify=y_train, random_state=0)

# %%
# A callback of one's own, which ends the fit.


class StopAt:
    """End the fit as soon as an accuracy is reached on rows that are not trained on."""

    def __init__(self, accuracy, X, y):
        self.accuracy, self.X, self.y = accuracy, X, y

    def setup(self, estimator, context):
        """Called before the fit."""

    def teardown(self, estimator, context):
        """Called after the fit, whatever its end."""

    def on_fit_task_begin(self, estimator, context):
        """Called before the fit and before each epoch."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        """Called after each epoch and after the fit; True ends it."""
        return fitted_estimator.score(self.X, self.y) >= self.accuracy


def progress_bar():
    """scikit-learn's needs the package rich: pip install "softreg[progress]"."""
    try:
        return [ProgressBar(max_propagation_depth=None)]
    except ImportError as error:
        print(f"No progress bar: {error}")
        return []


with tempfile.TemporaryDirectory() as folder:
    np.save(Path(folder) / "X.npy", X_train)
    X_file = np.load(Path(folder) / "X.npy", mmap_mode="r")  # rows are read as an epoch comes to them

    print("A line an epoch")
    scores = ScoringMonitor(scoring="accuracy")
    model = SoftmaxRegression(solver="sgd", max_iter=5, random_state=0, verbose=1)
    model.set_callbacks(scores, StopAt(0.965, X_valid, y_valid)).fit(X_file, y_train)
    print(f"\nended on {model.stopped_on_!r} after {model.n_iter_} epochs: {model.score(X_test, y_test):.1%} right")
    _, *epochs = scores.get_logs().data
    print("of the training rows, epoch by epoch:", *(f"{row['accuracy']:.1%}" for row in epochs))

    print("\nA search, with a bar for the whole and for each fit")
    search = GridSearchCV(SoftmaxRegression(), {"alpha": [1e-4, 1e-3, 1e-2]}, cv=3)
    search.set_callbacks(*progress_bar()).fit(X_file, y_train)
    print(f"best: {search.best_params_}, {search.score(X_test, y_test):.1%} right")

    del X_file  # Windows does not delete a file that is mapped

# %%
# The loss of each iteration, which a fitted estimator keeps.
LossCurveDisplay.from_estimator(search.best_estimator_)
plt.show()
