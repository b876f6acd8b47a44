"""The code on the pages: README.md and docs/ run as they stand, and the pages name pages that are there."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the tests stand apart from the sources")


def page_name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in PAGES if BLOCK.search(p.read_text(encoding="utf-8"))], ids=page_name)
def test_code_runs(path):
    """The blocks of a page run one after the other; those with prompts print what the page says."""
    text = path.read_text(encoding="utf-8")
    if "softreg.inspection" in text:
        pytest.importorskip("matplotlib").use("agg")
    if "sklearn.callback" in text:
        pytest.importorskip("sklearn.callback")  # new in scikit-learn 1.9
    names, runner = {}, doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for language, code in BLOCK.findall(text):
        if language == "python":
            exec(compile(code, path.name, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, path.name, str(path), 0)
            runner.run(test, clear_globs=False)
            names |= test.globs
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_between_files_lead_somewhere(path):
    """Links of Markdown to files; those of Sphinx, and to headings, are checked when the documentation is built."""
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
