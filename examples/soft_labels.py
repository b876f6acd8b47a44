"""
Soft labels
===========

A teacher that has seen much labels rows for a student: probabilities say more than the best guess. Needs matplotlib.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split

from softreg import SoftmaxRegression
from softreg.inspection import CoefficientDisplay
from softreg.metrics import cross_entropy_scorer

X, y = load_digits(return_X_y=True)
X = X / 16
X_teacher, X_rest, y_teacher, y_rest = train_test_split(X, y, train_size=0.5, stratify=y, random_state=0)
X_student, X_test, _, y_test = train_test_split(X_rest, y_rest, train_size=60, stratify=y_rest, random_state=0)

teacher = SoftmaxRegression(alpha=1e-3).fit(X_teacher, y_teacher)
soft = teacher.predict_proba(X_student)  # (60, 10): the targets, one distribution a row
hard = teacher.predict(X_student)  # (60,): the best guess of the same teacher

students = {
    "teacher": teacher,
    "student, soft labels": SoftmaxRegression(alpha=1e-4).fit(X_student, soft),
    "student, hard labels": SoftmaxRegression(alpha=1e-4).fit(X_student, hard),
    "student, smoothed labels": SoftmaxRegression(alpha=1e-4, label_smoothing=0.1).fit(X_student, hard),
}
print(f"{'60 rows for each student':26} {'accuracy':>8} {'log loss':>9}")
for name, model in students.items():
    print(f"{name:26} {model.score(X_test, y_test):8.1%} {log_loss(y_test, model.predict_proba(X_test)):9.4f}")

# %%
# The coefficients of three digits, of the teacher and of two students.
names = ["teacher", "student, soft labels", "student, hard labels"]
fig = plt.figure(figsize=(7, 6.5), layout="constrained")
for name, part in zip(names, fig.subfigures(nrows=3), strict=True):
    part.suptitle(name)
    CoefficientDisplay.from_estimator(students[name], classes=[0, 3, 8], image_shape=(8, 8), ax=part.subplots())
plt.show()

# %%
# Cross-validation of the penalty against the teacher's probabilities: no label is needed.
search = GridSearchCV(SoftmaxRegression(), {"alpha": [1e-5, 1e-4, 1e-3, 1e-2]}, scoring=cross_entropy_scorer, cv=3)
search.fit(X_student, soft)
print(f"\nchosen by cross-entropy: alpha={search.best_params_['alpha']:g}, "
      f"{-search.best_score_:.4f} on held-out rows, where no student can be below the teacher's own entropy, "
      f"{-cross_entropy_scorer(teacher, X_student, soft):.4f}")

# %%
# The gradient of the loss with respect to X: a layer below would learn from it.
gradient = students["student, soft labels"].input_gradient(X_student, soft)
print(f"\ngradient with respect to X: shape {gradient.shape}, norm {np.linalg.norm(gradient):.2e}")
