"""The displays: what they draw is what the estimators know, and what cannot be drawn is an error that says so."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from shared import softmax_data, unfinished
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from softreg import SoftmaxRegression, SoftmaxRegressionCV, softmax_path
from softreg.inspection import CoefficientDisplay, LossCurveDisplay, PathDisplay

plt = pytest.importorskip("matplotlib.pyplot")
plt.switch_backend("agg")

X, y = softmax_data(300, 6, 3)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cross_validated():
    return SoftmaxRegressionCV(alphas=[0.1, 0.01, 0.001], l1_ratios=[0.0, 1.0], cv=3, scoring="neg_log_loss").fit(X, y)


@pytest.fixture
def streamed():
    stream = SoftmaxRegression(random_state=0)
    for rows in np.array_split(np.arange(300), 5):
        stream.partial_fit(X[rows], y[rows], classes=range(3))
    return stream


def drawn(line):
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


# --- loss curves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", ["passes", "time", "iteration"])
def test_loss_curve_is_the_history(x):
    model = SoftmaxRegression(solver="sgd", tol=0.1, random_state=0).fit(X, y)
    display = LossCurveDisplay.from_estimator(model, x=x)
    along, values = drawn(display.line_)
    np.testing.assert_array_equal(values, model.history_["loss"])
    np.testing.assert_array_equal(along, np.arange(1, model.n_iter_ + 1) if x == "iteration" else model.history_[x])
    assert display.figure_ is display.ax_.figure
    assert display.ax_.get_legend().get_texts()[0].get_text() == "sgd"


def test_a_gap_has_a_logarithmic_axis_and_skips_what_is_not_known():
    model = SoftmaxRegression(tol=1e-8).fit(X, y)
    display = LossCurveDisplay.from_estimator(model, metric="gap_estimate")
    known = np.isfinite(model.history_["gap_estimate"])
    np.testing.assert_array_equal(drawn(display.line_)[1], model.history_["gap_estimate"][known])
    assert display.ax_.get_yscale() == "log"


@unfinished
def test_several_fits_share_axes_and_legend():
    first = LossCurveDisplay.from_estimator(SoftmaxRegression().fit(X, y), name="one", color="red")
    second = LossCurveDisplay.from_estimator(SoftmaxRegression(max_iter=1).fit(X, y), name="two", ax=first.ax_)
    assert second.ax_ is first.ax_ and len(first.ax_.lines) == 2
    assert [text.get_text() for text in first.ax_.get_legend().get_texts()] == ["one", "two"]
    assert first.line_.get_color() == "red"


def test_early_stopping_has_a_validation_curve():
    model = SoftmaxRegression(early_stopping=True, random_state=0).fit(X, y)
    display = LossCurveDisplay.from_estimator(model, metric="validation_score")
    np.testing.assert_array_equal(drawn(display.line_)[1], model.history_["validation_score"])


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_stream_is_drawn_over_rows(streamed, metric):
    display = LossCurveDisplay.from_estimator(streamed, metric=metric)
    np.testing.assert_array_equal(drawn(display.line_)[0], [60, 120, 180, 240, 300])
    np.testing.assert_array_equal(drawn(display.line_)[1], streamed.stream_history_[metric])
    assert display.ax_.get_xlabel() == "rows"


def test_a_stream_after_a_fit_has_both():
    model = SoftmaxRegression().fit(X, y)
    iterations = model.n_iter_
    model.partial_fit(X, y)
    assert len(drawn(LossCurveDisplay.from_estimator(model, x="passes").line_)[0]) == iterations
    assert len(drawn(LossCurveDisplay.from_estimator(model).line_)[0]) == 1


def test_what_loss_curves_refuse():
    model = SoftmaxRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"metric='validation_loss' is not known of this fit.*it has \['loss'"):
        LossCurveDisplay.from_estimator(model, metric="validation_loss")
    with pytest.raises(ValueError, match="x='epochs' must be one of"):
        LossCurveDisplay.from_estimator(model, x="epochs")
    with pytest.raises(ValueError, match="has no stream_history_"):
        LossCurveDisplay.from_estimator(model, x="rows")
    with pytest.raises(ValueError, match=r"a Pipeline, has no history_.*pipeline\[-1\]"):
        LossCurveDisplay.from_estimator(make_pipeline("passthrough", model))
    with pytest.raises(NotFittedError):
        LossCurveDisplay.from_estimator(SoftmaxRegression())


# --- paths ----------------------------------------------------------------------------------------------------------


def test_path_of_coefficients(cross_validated):
    display = PathDisplay.from_estimator(cross_validated, l1_ratio=0.0)
    means = cross_validated.coefs_paths_[:, 0, :, :, :6].mean(axis=0)
    assert len(display.lines_) == 18
    for line, values in zip(display.lines_, means.reshape(3, 18).T, strict=True):
        np.testing.assert_array_equal(drawn(line)[0], cross_validated.alphas_)
        np.testing.assert_array_equal(drawn(line)[1], values)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["0", "1", "2", f"chosen: {cross_validated.alpha_:.2g}"]
    assert display.ax_.xaxis.get_inverted() and display.ax_.get_xscale() == "log"
    assert display.plot(display.ax_).ax_.xaxis.get_inverted()  # a second time, too


def test_path_of_nonzeros_and_scores(cross_validated):
    coefs = cross_validated.coefs_paths_[:, 1, :, :, :6]
    nonzeros = PathDisplay.from_estimator(cross_validated, kind="nonzeros", l1_ratio=1.0)
    np.testing.assert_array_equal(drawn(nonzeros.lines_[0])[1], (coefs != 0).sum(axis=(2, 3)).mean(axis=0))
    scores = PathDisplay.from_estimator(cross_validated, kind="scores", l1_ratio=1.0)
    np.testing.assert_array_equal(drawn(scores.lines_[0])[1], cross_validated.scores_[:, 1].mean(axis=0))
    assert len(scores.ax_.collections) == 1  # the band


def test_the_chosen_l1_ratio_is_the_default(cross_validated):
    chosen = list(cross_validated.l1_ratios_).index(cross_validated.l1_ratio_)
    display = PathDisplay.from_estimator(cross_validated, kind="scores")
    np.testing.assert_array_equal(display.scores, cross_validated.scores_[:, chosen])


def test_path_from_softmax_path():
    alphas, coefs, _, _ = softmax_path(X, y == 1, alphas=[0.1, 0.01, 0.0])
    display = PathDisplay(alphas=alphas, coefs=coefs).plot()
    assert len(display.lines_) == 6 and display.ax_.get_legend() is None
    assert display.ax_.get_xscale() == "symlog"  # alpha=0 has a place


def test_features_that_never_come_in_are_no_lines():
    coefs = np.array([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    display = PathDisplay(alphas=[1.0, 0.1], coefs=coefs, class_names=["a", "b"]).plot()
    assert len(display.lines_) == 1
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["a"]


def test_what_paths_refuse(cross_validated):
    with pytest.raises(ValueError, match="kind='intercepts' must be one of"):
        PathDisplay.from_estimator(cross_validated, kind="intercepts")
    with pytest.raises(ValueError, match="kind='scores' needs scores"):
        PathDisplay(alphas=[1.0], coefs=np.ones((1, 1, 1))).plot(kind="scores")
    with pytest.raises(ValueError, match="a SoftmaxRegression, has no coefs_paths_"):
        PathDisplay.from_estimator(SoftmaxRegression().fit(X, y))


# --- coefficients ---------------------------------------------------------------------------------------------------


def bars(panel):
    """Return the names and lengths of the bars of a panel, from top to bottom."""
    names = [label.get_text() for label in panel.get_yticklabels()]
    return dict(reversed(list(zip(names, [bar.get_width() for bar in panel.patches], strict=True))))


def test_bars_are_the_largest_coefficients_with_their_names():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = SoftmaxRegression().fit(frame, np.array(["no", "yes", "maybe"])[y])
    display = CoefficientDisplay.from_estimator(model, n_features=2)
    assert [panel.get_title() for panel in display.axes_] == ["maybe", "no", "yes"]
    for panel, row in zip(display.axes_, model.coef_, strict=True):
        largest = np.argsort(-np.abs(row))[:2]
        assert list(bars(panel)) == ["abcdef"[j] for j in largest]
        assert list(bars(panel).values()) == row[largest].tolist()


def test_scale_makes_units_comparable():
    model = SoftmaxRegression(alpha=0).fit(X * [1, 1, 1, 1, 1, 1000], y)
    plain = CoefficientDisplay.from_estimator(model, n_features=6)
    scaled = CoefficientDisplay.from_estimator(model, n_features=6, scale=[1, 1, 1, 1, 1, 1000], classes=[2])
    assert all(list(bars(panel))[-1] == "x5" for panel in plain.axes_)
    (panel,) = scaled.axes_
    assert bars(panel) == {f"x{j}": w for j, w in enumerate(model.coef_[2] * [1, 1, 1, 1, 1, 1000])}


def test_two_classes_have_one_panel_which_speaks_for_the_second():
    model = SoftmaxRegression().fit(X, np.where(y == 1, "yes", "no"))
    assert [panel.get_title() for panel in CoefficientDisplay.from_estimator(model).axes_] == ["yes"]
    with pytest.raises(ValueError, match=r"classes=\['no'\] must be among those with coefficients: \['yes'\]"):
        CoefficientDisplay.from_estimator(model, classes=["no"])


def test_zeros_have_no_bar_and_a_sparse_coef_is_drawn():
    model = SoftmaxRegression(alpha=0.05, l1_ratio=1.0).fit(X, y).sparsify()
    assert sparse.issparse(model.coef_) and model.coef_.nnz < 18
    display = CoefficientDisplay.from_estimator(model)
    assert sum(len(bars(panel)) for panel in display.axes_) == model.coef_.nnz


def test_images_have_one_scale():
    model = SoftmaxRegression().fit(X, y)
    display = CoefficientDisplay.from_estimator(model, image_shape=(2, 3))
    for panel, row in zip(display.axes_, model.coef_, strict=True):
        (image,) = panel.images
        np.testing.assert_array_equal(image.get_array(), row.reshape(2, 3))
        assert image.get_clim() == (-np.abs(model.coef_).max(), np.abs(model.coef_).max())


def test_panels_stand_in_the_place_of_given_axes():
    figure, (_, ax) = plt.subplots(ncols=2)
    display = CoefficientDisplay.from_estimator(SoftmaxRegression().fit(X, y), ax=ax)
    assert display.figure_ is figure and display.ax_ is ax
    assert all(panel.get_position().x0 >= ax.get_position().x0 - 1e-9 for panel in display.axes_)  # rounding


def test_what_coefficients_refuse():
    model = SoftmaxRegression().fit(X, y)
    with pytest.raises(ValueError, match=r"image_shape=\(2, 2\) does not match 6 features"):
        CoefficientDisplay.from_estimator(model, image_shape=(2, 2))
    with pytest.raises(ValueError, match=r"feature_names has shape \(1,\); 6 features need \(6,\)"):
        CoefficientDisplay.from_estimator(model, feature_names=["a"])
    with pytest.raises(ValueError, match=r"scale has shape \(2,\); 6 features need \(6,\)"):
        CoefficientDisplay.from_estimator(model, scale=[1.0, 2.0])
    with pytest.raises(NotFittedError):
        CoefficientDisplay.from_estimator(SoftmaxRegression())


# --- without matplotlib ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", ["LossCurveDisplay.from_estimator(model)", "LossCurveDisplay(x=[1], values=[1]).plot()",
             "PathDisplay.from_estimator(model)", "CoefficientDisplay.from_estimator(model)"],
)  # fmt: skip
def test_the_package_that_is_missing_is_named(call):
    code = f"""
import sys
sys.modules["matplotlib"] = None  # as if it were not there
from softreg import SoftmaxRegression
from softreg.inspection import *
model = SoftmaxRegression().fit([[0.0], [1.0]], [0, 1])
try:
    {call}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "requires matplotlib" in done.stdout
