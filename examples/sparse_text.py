"""
Sparse text
===========

Which part of scikit-learn does a docstring come from? CSR in, CSR all the way, also as a stream. Needs matplotlib.
"""

import inspect
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.utils.discovery import all_estimators, all_functions

from softreg import SoftmaxRegression
from softreg.inspection import CoefficientDisplay


def paragraphs():
    """Paragraphs of public docstrings, and the subpackages they stand in."""
    for name, thing in [*all_estimators(), *all_functions()]:
        members = [thing, *(vars(thing).values() if inspect.isclass(thing) else ())]
        for text in filter(None, (inspect.getdoc(m) for m in members if callable(m))):
            for paragraph in text.replace(name, "").split("\n\n"):
                if len(paragraph) > 80:
                    yield paragraph, thing.__module__.split(".")[1]


texts, labels = map(np.array, zip(*sorted(set(paragraphs())), strict=True))
names, counts = np.unique(labels, return_counts=True)
keep = np.isin(labels, names[counts >= 100])
texts, labels = texts[keep], labels[keep]
train, test, y_train, y_test = train_test_split(texts, labels, stratify=labels, random_state=0)

vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
X_train, X_test = vectorizer.fit_transform(train), vectorizer.transform(test)
density = X_train.nnz / np.prod(X_train.shape)
print(f"{X_train.shape[0]} paragraphs, {X_train.shape[1]} words, {density:.2%} filled, {len(set(labels))} subpackages")

start = time.perf_counter()
model = SoftmaxRegression(alpha=1e-4).fit(X_train, y_train)
seconds = time.perf_counter() - start
print(f"fit: {model.score(X_test, y_test):.1%} right after {seconds:.2f} s, coef_ is {model.coef_.dtype}")

# %%
# The same rows as a stream, 500 at a time, each learnt once.
stream = SoftmaxRegression(alpha=1e-4, random_state=0)
for start in range(0, X_train.shape[0], 500):
    stream.partial_fit(X_train[start : start + 500], y_train[start : start + 500], classes=model.classes_)
print(f"partial_fit, one pass: {stream.score(X_test, y_test):.1%} right")

# %%
# With l1_ratio=1 most coefficients are exactly zero.
sparse = SoftmaxRegression(alpha=2e-4, l1_ratio=1.0, tol=2e-2, max_iter=1000).fit(X_train, y_train).sparsify()
print(f"l1: {sparse.score(X_test, y_test):.1%} right with {sparse.coef_.nnz} of {model.coef_.size} coefficients")

# %%
# The words that tell most about each of the six largest subpackages.
largest = model.classes_[np.argsort(-np.unique(y_train, return_counts=True)[1])[:6]]
words = vectorizer.get_feature_names_out()
CoefficientDisplay.from_estimator(model, feature_names=words, classes=largest)
plt.show()
