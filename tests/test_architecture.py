"""What ARCHITECTURE.md promises: who imports whom, where sparse X is known, and that the files it names are there."""

import ast
import re
from pathlib import Path

import pytest

import softreg

PACKAGE = Path(softreg.__file__).parent
PAGE = Path(__file__).resolve().parents[1] / "ARCHITECTURE.md"

# From the bottom to the top; a file imports from its own layer and those below. Compiled modules are at the bottom, and
# Python files that are not named here at the top.
LAYERS = [
    {"_reference", "_dense_stream_reference", "_sparse_stream_reference", "_coordinate_descent_reference"},
    {"_memory_layout", "_array_checks", "_threads", "_systematic_sampling", "_class_directions", "_typing"},
    {"_inner_products"},
    {"_hessian_product"},
    {"_design_matrix"},
    {"functional", "_validation"},
    {"_objective"},
    {"_feature_blocks", "_rounding", "_duality", "_preconditioners"},
    {"_coefficients"},
    {"_solvers"},
    {"_callbacks"},
]


def layer(module):
    """Return the number of the layer of a module below softreg, such as "_solvers.newton"."""
    first = module.partition(".")[0]
    if not (PACKAGE / first).is_dir() and not (PACKAGE / f"{first}.py").exists():
        return 0  # compiled
    return next((number for number, names in enumerate(LAYERS) if first in names), len(LAYERS))


def modules():
    """Return the modules of the package with the names that they import from it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = path.relative_to(PACKAGE).with_suffix("").parts
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "softreg":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("softreg."):
                imported.add(node.module.removeprefix("softreg."))
        found[".".join(names).removesuffix(".__init__")] = imported
    return found


def test_files_import_from_their_own_layer_and_below():
    uphill = {(name, other) for name, others in modules().items() for other in others if layer(other) > layer(name)}
    assert uphill == set()


@pytest.mark.parametrize("package", ["_preconditioners", "_solvers"])
def test_training_does_not_ask_whether_x_is_sparse(package):
    for path in (PACKAGE / package).glob("*.py"):
        assert "issparse" not in path.read_text(encoding="utf-8"), path.name
    assert "issparse" not in (PACKAGE / "_objective.py").read_text(encoding="utf-8")


@pytest.mark.skipif(not PAGE.exists(), reason="the tests stand apart from the sources")
def test_the_page_names_files_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.(?:pyx|pyi|py|h|sh|md)\b", text))
    assert "_objective.py" in named and "tests/test_core.py" in named
    sources = PAGE.parent / "softreg"  # an installed package has no .pyx
    folders = [PAGE.parent, sources, sources / "_solvers"]
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []
