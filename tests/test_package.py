"""What pip delivers: metadata, the files of wheel and sdist, kernels that match their stubs and twins."""

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

import softreg
from softreg import _coordinate_descent, _core, _dual_ascent, _hessian, _reference, functional, inspection, metrics

DISTRIBUTION = importlib.metadata.distribution("softreg")
ROOT = Path(__file__).resolve().parents[1]

# What `_core` says about itself; everything else in it is a kernel.
QUERIES = {"openmp_enabled", "simd_level", "max_threads"}


def functions(module):
    """Public callables that a module defines itself, by name."""
    own = {name: obj for name, obj in vars(module).items() if callable(obj) and not name.startswith("_")}
    return {name: obj for name, obj in own.items() if obj.__module__ == module.__name__}


EXTENSIONS = (_core, _hessian, _dual_ascent, _coordinate_descent)
COMPILED = functions(_core) | functions(_hessian) | functions(_dual_ascent)
KERNELS = sorted((COMPILED.keys() | functions(_reference).keys()) - QUERIES)


def parameters(function):
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_a_twin_with_the_same_parameters(name):
    assert parameters(COMPILED[name]) == parameters(getattr(_reference, name))


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_stub_lists_what_the_extension_has(extension):
    name = extension.__name__.rpartition(".")[2]
    stub = ast.parse(Path(extension.__file__).with_name(name + ".pyi").read_text(encoding="utf-8"))
    declared = {node.name: node.args.args for node in stub.body if isinstance(node, ast.FunctionDef)}
    public = {name: declared[name] for name in declared if not name.startswith("_")}
    assert public.keys() == functions(extension).keys()
    for name in public.keys() - QUERIES:
        assert [arg.arg for arg in public[name]] == [name for name, _ in parameters(getattr(extension, name))]


def test_version_is_that_of_the_metadata():
    assert DISTRIBUTION.version == softreg.__version__


def test_run_time_dependencies_are_what_is_imported():
    needed = [line for line in DISTRIBUTION.requires if "extra ==" not in line]
    declared = {re.match(r"[\w.-]+", line)[0] for line in needed}
    imported = set()
    for path in Path(softreg.__file__).parent.glob("*.py"):
        if path.name == "onnx.py":
            continue  # its imports are the extra of its name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"softreg", "matplotlib"}  # displays import it when they draw
    assert declared == {"scikit-learn" if name == "sklearn" else name for name in others}


def test_public_names_are_documented():
    public = {name: getattr(softreg, name) for name in softreg.__all__}
    public |= functions(functional) | functions(metrics)
    public |= {name: getattr(inspection, name) for name in inspection.__all__}
    assert [name for name, obj in public.items() if not obj.__doc__] == []


def test_import_is_light():
    """Nothing heavy comes in beyond what scikit-learn imports by itself (pandas, where it is installed)."""
    heavy = {"torch", "pandas", "polars", "matplotlib", "mpmath", "pytest"}
    code = f"""
import sys, sklearn.base
before = set(sys.modules)
import softreg
print(sorted({heavy} & (sys.modules.keys() - before)))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_callbacks():
    """Before scikit-learn 1.9 fits run as they do now, and `set_callbacks` says what it needs."""
    code = """
import sys
import sklearn.linear_model, sklearn.model_selection
there = sys.modules.get("sklearn.callback")
sys.modules["sklearn.callback"] = None  # as if it were not there
from softreg import SoftmaxRegression
sys.modules["sklearn.callback"] = there  # for scikit-learn itself
model = SoftmaxRegression(verbose=1).fit([[0.0], [1.0]], [0, 1]).partial_fit([[2.0]], [1])
try:
    model.set_callbacks()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "set_callbacks needs scikit-learn 1.9 or newer, and" in done.stdout


def test_the_extra_that_onnx_needs_is_named():
    code = """
import sys
sys.modules["skl2onnx"] = None
try:
    import softreg.onnx
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "softreg[onnx]"' in done.stdout


def test_wheel_holds_what_runs_and_nothing_else():
    """pip unpacked a wheel, and its record says what was in it."""
    origin = json.loads(DISTRIBUTION.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("an editable install leaves the package where its sources are")
    besides = {"__pycache__", "softreg.libs", ".dylibs"}  # the last two have the OpenMP of a wheel for any machine
    files = [file for file in DISTRIBUTION.files if not besides.intersection(file.parts)]
    assert {file.parts[0] for file in files} == {"softreg", f"softreg-{softreg.__version__}.dist-info"}
    others = {file.name for file in files if file.parts[0] == "softreg" and file.suffix != ".py"}
    endings = (sysconfig.get_config_var("EXT_SUFFIX"), ".pyi")
    kernels = ("_core", "_hessian", "_dual_ascent", "_dense_stream", "_sparse_stream", "_coordinate_descent")
    assert others == {name + end for name in ("_teams", *kernels) for end in endings} | {"py.typed"}


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the tests stand apart from the sources")
def test_sdist_holds_every_source_and_nothing_generated(tmp_path):
    for package in ("setuptools", "Cython"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"building without isolation needs {package}")
    tree = tmp_path / "tree"
    generated = (".*", "build", "dist", "*.egg-info", "__pycache__", "_build", "api", "gallery")  # the last by Sphinx
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*generated))
    built = {".so", ".pyd"}  # of an editable install
    sources = {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_file() and p.suffix not in built}
    assert not any(name.endswith(".c") for name in sources)
    (tree / "softreg" / "_core.c").touch()  # as `cython softreg/_core.pyx` would leave it

    code = "import setuptools.build_meta, sys; setuptools.build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-P", "-c", code, tmp_path], cwd=tree, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {member.name.partition("/")[2] for member in tar if member.isfile()}
    added = {name for name in held - sources if ".egg-info/" not in name}
    assert added == {"PKG-INFO", "setup.cfg"}  # both are setuptools' own
    assert sources <= held
