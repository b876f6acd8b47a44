"""
Choose the penalty
==================

How strong should the penalty be? Cross-validation along a path of alphas, each fit starting from the last. Needs
matplotlib.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from softreg import SoftmaxRegression, SoftmaxRegressionCV, softmax_path
from softreg.inspection import PathDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)

# %%
# Ten alphas over eight decades, from one that the features' variance gives; the log loss of held-out rows decides.
model = SoftmaxRegressionCV(alphas=10, cv=3, scoring="neg_log_loss", random_state=0).fit(X_train, y_train)
print(f"{'alpha':>9} {'log loss':>9}")
for alpha, scores in zip(model.alphas_, model.scores_[:, 0].T, strict=True):
    print(f"{alpha:9.1e} {-scores.mean():9.4f}{'  <- chosen' if alpha == model.alpha_ else ''}")
print(f"on the test rows: {-model.score(X_test, y_test):.4f}, {np.mean(model.predict(X_test) == y_test):.1%} right\n")

PathDisplay.from_estimator(model, kind="scores")
plt.show()

# %%
# With an l1 penalty the path tells in which order features come in.
alphas, coefs, _, _ = softmax_path(
    X_train / 16, y_train, alphas=np.geomspace(0.1, 0.001, 13), l1_ratio=1.0, max_iter=1000
)
for alpha, coef in zip(alphas[::4], coefs[::4], strict=True):
    print(f"alpha={alpha:.3f}: {np.any(coef != 0, axis=0).sum():2d} of {coef.shape[1]} pixels are in use")

fig, (left, right) = plt.subplots(ncols=2, figsize=(11, 4.2), layout="constrained")
display = PathDisplay(alphas=alphas, coefs=coefs, class_names=model.classes_).plot(left)
display.plot(right, kind="nonzeros")
plt.show()

# %%
# A start of one's own: the solution for another penalty.
start = {"coef_init": model.coef_, "intercept_init": model.intercept_}
warm = SoftmaxRegression(alpha=model.alpha_ / 2, random_state=0).fit(X_train, y_train, **start)
cold = SoftmaxRegression(alpha=model.alpha_ / 2, random_state=0).fit(X_train, y_train)
print(f"\npasses over the data for half of alpha: {warm.history_['passes'][-1]:.0f} from there, "
      f"{cold.history_['passes'][-1]:.0f} from zero")
