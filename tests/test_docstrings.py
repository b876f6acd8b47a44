"""What the public names promise: documented in numpydoc's sections, with examples that run, and annotated."""

import doctest
import importlib
import importlib.metadata
import inspect

import pytest
from sklearn.base import BaseEstimator

import softreg
from softreg import functional, inspection, metrics

ESTIMATORS = (softreg.SoftmaxRegression, softreg.SoftmaxRegressionCV)
DISPLAYS = [getattr(inspection, name) for name in inspection.__all__]
CLASSES = {f"softreg.{cls.__name__}": cls for cls in ESTIMATORS}
CLASSES |= {f"softreg.inspection.{cls.__name__}": cls for cls in DISPLAYS}
MODULES = (
    "_cv", "_estimator", "_path", "_prediction", "_show_versions", "functional", "inspection._coefficients",
    "inspection._loss_curve", "inspection._path", "metrics",
)

# numpydoc's checks that do not apply: layout (GL01 to GL03), an extended summary (ES01) and "See Also" (SA01, SA04)
# are not needed; RT02 does not know results that are named.
NOT_ASKED = {"GL01", "GL02", "GL03", "ES01", "SA01", "SA04", "RT02"}


def public_functions():
    """Return the public functions and methods by their full name; what scikit-learn itself defines is not ours."""
    found = {f"softreg.{name}": getattr(softreg, name) for name in ("softmax_path", "show_versions")}
    found |= {f"softreg.functional.{name}": getattr(functional, name) for name in functional.__all__}
    found["softreg.metrics.cross_entropy_loss"] = metrics.cross_entropy_loss
    for full_name, cls in CLASSES.items():
        for name, method in inspect.getmembers(cls, inspect.isroutine):
            if not name.startswith("_") and inspect.unwrap(method).__module__.startswith("softreg."):
                found[f"{full_name}.{name}"] = method
    return found


FUNCTIONS = public_functions()


def test_methods_are_found():
    ours = {name.rpartition(".")[2] for name in FUNCTIONS}
    assert {"fit", "partial_fit", "predict", "predict_proba", "score", "input_gradient"} <= ours
    assert "set_params" not in ours and hasattr(BaseEstimator, "set_params")


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    if module.startswith("inspection"):
        pytest.importorskip("matplotlib").use("agg")
    result = doctest.testmod(importlib.import_module(f"softreg.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_sections_are_complete(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    problems = {code: text for code, text in validate(name)["errors"] if code not in NOT_ASKED}
    if name.endswith(("get_metadata_routing", "set_callbacks")):
        problems.pop("EX01", None)  # scikit-learn calls the one, and the other is an error before scikit-learn 1.9
    assert problems == {}


METHODS = ("decision_function", "predict", "predict_proba", "predict_log_proba", "score", "partial_fit", "fit")
DASK = ["SoftmaxRegression", "stream", *(f"SoftmaxRegression.{name}" for name in METHODS)]


@pytest.mark.parametrize("name", DASK)
def test_sections_of_dask_are_complete(name):
    pytest.importorskip("distributed", reason="softreg.dask needs distributed")
    test_sections_are_complete(f"softreg.dask.{name}")


@pytest.mark.parametrize("module", ["_estimator", "_stream"])
def test_examples_of_dask_run(module):
    pytest.importorskip("distributed", reason="softreg.dask needs distributed")
    test_examples_run(f"dask.{module}")


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"{name}.__init__" for name in CLASSES)])
def test_signatures_are_annotated(name):
    function = FUNCTIONS.get(name) or CLASSES[name.rpartition(".")[0]].__init__
    signature = inspect.signature(function)
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
    assert bare == []
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_html_links_to_the_page_of_the_class(cls):
    site = dict(url.split(", ") for url in importlib.metadata.metadata("softreg").get_all("Project-URL"))
    page = f"{site['Documentation']}api/softreg.{cls.__name__}.html"
    assert cls()._get_doc_link() == page
    assert f'href="{page}"' in cls()._repr_html_()
