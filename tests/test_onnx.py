"""Converted to ONNX, classifiers give the labels and probabilities that they give here."""

import doctest

import numpy as np
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softreg import SoftmaxRegression, SoftmaxRegressionCV

pytest.importorskip("skl2onnx", reason='pip install "softreg[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason="it runs the graphs")
to_onnx = pytest.importorskip("skl2onnx").to_onnx
softreg_onnx = pytest.importorskip("softreg.onnx")

LOADERS = [load_breast_cancer, load_iris, load_wine]  # two classes and three, features of any size
LABELS = {"int": [0, 1, 2], "negative": [-7, 0, 7], "str": ["a", "", "ç"], "object": np.array(["x", "y", "z"], object)}
loaders = pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)


def data(load, labels=LABELS["int"]):
    X, y = load(return_X_y=True)
    return X, np.sort(np.asarray(labels))[y]


def run(model, X, zipmap=False, **options):
    """Return what onnxruntime computes: labels and scores."""
    graph = to_onnx(model, X[:1], options={id(model): {"zipmap": zipmap, **options}})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"X": X} if isinstance(X, np.ndarray) else {name: X[[name]].to_numpy() for name in X}
    return session.run(None, given)


def check(model, X):
    """Labels are the same, probabilities to 1e-6: the bound that the module promises, wide for sums of float32."""
    labels, P = run(model, X)
    want = model.predict_proba(X)
    assert P.dtype == want.dtype and P.shape == want.shape
    assert np.abs(P - want).max() < 1e-6
    assert labels.tolist() == model.predict(X).tolist()


@loaders
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_raw_features_in_float64(load, labels):
    X, y = data(load, labels)
    check(SoftmaxRegression().fit(X, y), X)


@loaders
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_a_pipeline_in_float32(load, labels):
    X, y = data(load, labels)
    X = X.astype(np.float32)
    check(make_pipeline(StandardScaler(), SoftmaxRegression(alpha=1e-3)).fit(X, y), X)


@loaders
@pytest.mark.parametrize(
    "estimator",
    [
        SoftmaxRegression(fit_intercept=False),
        SoftmaxRegression(alpha=1e-2, l1_ratio=0.5),
        SoftmaxRegressionCV(alphas=[1e-1, 1e-3], cv=3),
    ],
    ids=["no intercept", "elastic net", "cv"],
)
def test_other_estimators(load, estimator):
    X, y = data(load)
    check(estimator.fit(StandardScaler().fit_transform(X), y), StandardScaler().fit_transform(X))


def test_a_stream_and_sparse_coefficients():
    X, y = data(load_wine)
    check(SoftmaxRegression().partial_fit(X, y, classes=3), X)
    check(SoftmaxRegression().fit(X, y).sparsify(), X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_categories_and_numbers_in_one_pipeline(dtype):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"color": ["red", "blue", "red", "green"] * 5, "x": np.arange(20, dtype=dtype)})
    columns = make_column_transformer((OneHotEncoder(), ["color"]), (StandardScaler(), ["x"]))
    model = make_pipeline(columns, SoftmaxRegression(alpha=1e-2)).fit(frame, ["fox", "sea", "sea", "fox"] * 5)
    labels, P = run(model, frame)
    assert np.abs(P - model.predict_proba(frame)).max() < 1e-6  # skl2onnx's categories are float32
    assert labels.tolist() == model.predict(frame).tolist()


@loaders
def test_scores_without_a_softmax(load):
    X, y = data(load)
    model = SoftmaxRegression(alpha=1e-2).fit(X, y)
    _, Z = run(model, X, raw_scores=True)
    want = model.decision_function(X)
    want = np.column_stack([-want, want]) if want.ndim == 1 else want
    np.testing.assert_allclose(Z, want, rtol=1e-9, atol=1e-9)  # sums of products up to 100, in another order


def test_options_of_skl2onnx():
    X, y = data(load_iris, LABELS["str"])
    X = X.astype(np.float32)
    model = SoftmaxRegression().fit(X, y)
    P = model.predict_proba(X)
    numbers, _ = run(model, X, nocl=True)
    assert numbers.tolist() == P.argmax(axis=1).tolist()
    *_, classes = run(model, X, output_class_labels=True)
    assert classes.tolist() == model.classes_.tolist()
    _, mapped = run(model, X, zipmap=True)
    assert list(mapped[0]) == model.classes_.tolist()
    assert np.abs([list(row.values()) for row in mapped] - P).max() < 1e-5  # float32: logits up to some 30
    assert len(run(model, X, zipmap="columns")) == 1 + len(model.classes_)


def test_whole_numbers_as_features():
    X, y = data(load_iris)
    X = np.rint(X).astype(np.int64)
    model = SoftmaxRegression(alpha=1e-2).fit(X, y)
    labels, P = run(model, X)
    assert np.abs(P - model.predict_proba(X)).max() < 1e-6  # ONNX computes them in float32
    assert labels.tolist() == model.predict(X).tolist()


def test_example_of_the_module():
    result = doctest.testmod(softreg_onnx)
    assert result.attempted > 0 and result.failed == 0
