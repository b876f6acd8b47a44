"""Sphinx's configuration of the documentation. `sphinx-build -W docs docs/_build/html` builds it, with no network."""

import warnings
from pathlib import Path

import softreg

HERE = Path(__file__).parent

project = "softreg"
author = "softreg developers"
copyright = "softreg developers, BSD-3-Clause"
release = version = softreg.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.mermaid",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "performance/*.md"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # single backticks: a link if the name is documented here, else code
    ("py:.*", r"(sklearn|numpy|scipy|matplotlib)\..*"),  # links only if there is a network
]
default_role = "py:obj"

# --- pages ----------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
mathjax_path = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"  # the same for every Sphinx
myst_fence_as_directive = ["mermaid"]
mermaid_height, mermaid_fullscreen = "auto", False

# --- API reference --------------------------------------------------------------------------------------------------

autodoc_typehints = "none"  # the docstrings say it in words
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the template lists them
numpydoc_attributes_as_param_list = True


def is_from_scikit_learn(app, what, name, obj, skip, options):
    """Leave out the methods that estimators inherit from scikit-learn."""
    return skip or str(getattr(obj, "__module__", "")).startswith("sklearn.")


# An inventory that cannot be fetched is replaced by an empty one: names of other projects are then no links.
intersphinx_mapping = {
    name: (url, (None, str(HERE / "_static" / "empty.inv")))
    for name, url in {
        "python": "https://docs.python.org/3",
        "numpy": "https://numpy.org/doc/stable",
        "scipy": "https://docs.scipy.org/doc/scipy",
        "sklearn": "https://scikit-learn.org/stable",
        "matplotlib": "https://matplotlib.org/stable",
    }.items()
}
intersphinx_timeout = 5

# --- gallery --------------------------------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(?!dask_)[^/]*\.py$",  # those of Dask start processes that import them; shown, not run
    "within_subsection_order": "ExampleTitleSortKey",
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 0,
    "doc_module": ("softreg",),
    "write_computation_times": False,
    "backreferences_dir": None,
    "reference_url": {"softreg": None},
}
# scripts that draw end with plt.show(), and there is no window here
warnings.filterwarnings("ignore", message=".*non-interactive", category=UserWarning)

# --- HTML -----------------------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"softreg {release}"
html_static_path = ["_static"]
html_css_files = ["softreg.css"]
html_theme_options = {
    "logo": {"text": "softreg"},
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
SINGLE_PAGES = ("start", "migration", "performance", "mathematics", "architecture", "contributing", "changelog")
html_sidebars = {page: [] for page in SINGLE_PAGES}
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output are not copied


def link_from_docs(app, path, page, content):
    """Make links of the Markdown files in the root lead to the same files from here."""
    content[0] = content[0].replace("](ARCHITECTURE.md)", "](architecture.md)").replace("](softreg/", "](../softreg/")


def setup(app):
    """Connect the hooks; Sphinx calls this."""
    app.connect("autodoc-skip-member", is_from_scikit_learn)
    app.connect("include-read", link_from_docs)
