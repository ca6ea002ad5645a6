"""How Sphinx builds the documentation; `python -m sphinx -W -b html docs BUILD`, and `-b doctest` runs its examples.

Nothing is fetched, neither to build the pages nor to read them: formulas are MathML, which browsers draw themselves.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

os.environ["KERAS_BACKEND"] = "torch"  # of fastrnn.keras

import fastrnn

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "examples"))  # pages draw with the programs' own functions

project = "fastrnn"
copyright = "the fastrnn authors"
version = release = fastrnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "numpydoc",
    "matplotlib.sphinxext.plot_directive",
]
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_linkify_fuzzy_links = False

default_role = "py:obj"  # `lstm_forward` in a docstring is a link where it names something
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # dtype=np.float32, not its repr
autodoc_typehints = "none"  # numpydoc's sections have them in words
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

doctest_global_setup = """
def found(name):  # None leaves its examples out
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError:
        return None

torch, onnx, jax, keras = map(found, ("torch", "onnx", "jax", "keras"))
"""

plot_formats = ["svg"]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False
plot_basedir = str(DOCS)

html_theme = "furo"
html_title = "fastrnn"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"


def inline_formula(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def formula(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
