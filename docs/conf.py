"""Documentation: MyST pages, API pages from docstrings, and a gallery whose figures and formulas need no network."""

import os
import re
import sys
import unicodedata
from pathlib import Path

import plotly.io as pio
from docutils.utils.math import MathError, tex2unichar
from docutils.utils.math.latex2mathml import tex2mathml
from plotly.io.base_renderers import MimetypeRenderer
from plotly.offline import get_plotlyjs

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the package beside these pages, installed or not

import mechfeat  # noqa: E402 - after the path

os.environ.setdefault("TQDM_DISABLE", "1")

project = "mechfeat"
author = "the mechfeat contributors"
version = release = mechfeat.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "mechfeat"
html_copy_source = False

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cost", "Source"]
# "Attributes" repeats dataclass fields; as fields of the class they do not collide with what autodoc finds.
napoleon_use_ivar = True
napoleon_attr_annotations = False  # a shape such as "channel *space" would be read as markup; the signature above has it

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "image_scrapers": (),
    "capture_repr": ("_repr_html_",),
    "reset_modules": (),
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,  # that page loads its table from a network
    "remove_config_comments": True,
}


def _readable(app, what, name, obj, options, signature, returns):
    # Sphinx prints a signature as raw text where a default is no expression, as that of a dataclass field with a factory.
    return (signature or "").replace("<factory>", "...") or None, returns


# --- figures

_SCRIPT = "plotly.min.js"


class _Div(MimetypeRenderer):
    """A figure as a bare div: the script stands once in the static files, and is loaded by the pages that hold figures."""

    def to_mimebundle(self, fig_dict):
        return {
            "text/html": pio.to_html(fig_dict, include_plotlyjs=False, full_html=False, config={"responsive": True, "displaylogo": False})
        }


def _write_script(app):
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        (static / _SCRIPT).write_text(get_plotlyjs(), encoding="utf-8")


def _load_script(app, pagename, templatename, context, doctree):
    # In the head, since furo puts html_js_files at the end of the body, after the scripts of the figures.
    if pagename.startswith("gallery/") and app.builder.format == "html":
        context["metatags"] = (
            context.get("metatags", "") + f'<script src="{context["pathto"]("_static/" + _SCRIPT, resource=True)}"></script>'
        )


# --- formulas

# MathML, which browsers draw themselves: MathJax would be fetched from a network by every page, and images need a TeX installation.
html_math_renderer = "mathml"
# docutils reads a part of TeX: fences in pairs and no sizes.
_REWRITES = (
    (re.compile(r"\\[bB]igg?[lr]?\s*(\(|\[|\\\{|\\langle)"), r"\\left\1"),
    (re.compile(r"\\[bB]igg?[lr]?\s*(\)|\]|\\\}|\\rangle)"), r"\\right\1"),
    (re.compile(r"\\(?:textstyle|displaystyle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*"), ""),
    (re.compile(r"\\bar(?![a-zA-Z])"), r"\\overline "),  # the accent is missing from common fonts
    # The empty group keeps docutils from setting a subscript under the letter.
    (re.compile(r"\\(hat|overline)\s*([A-Za-z]|\\[a-z]+|\{[^{}]*\})"), r"{\\\1{\2}{}}"),
)
_COMMANDS = {
    character: f"\\{name} "
    for table in (tex2unichar.mathalpha, tex2unichar.mathbin, tex2unichar.mathop, tex2unichar.mathord, tex2unichar.mathrel)
    for name, character in table.items()
    if not character.isascii() and not unicodedata.name(character, "").startswith("GREEK")
}


def _mathml(node, *, block):
    text = node.astext()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = "".join(_COMMANDS.get(c, c) for c in text)
    if block and "\\\\" in text and "\\begin" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return tex2mathml(text, as_block=block)
    except MathError as error:
        raise ValueError(f"Formula {node.astext()!r} cannot be written as MathML: {error}") from error


def _inline(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(_mathml(node, block=False))
    raise SkipNode


def _block(translator, node):
    from docutils.nodes import SkipNode

    translator.body.append(f'<div class="math">{_mathml(node, block=True)}</div>')
    raise SkipNode


def setup(app):
    """Register what this file adds.

    Args:
        app: The Sphinx application.
    """
    pio.renderers["docs"] = _Div()
    pio.renderers.default = "docs"
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-signature", _readable)
    app.connect("builder-inited", _write_script)
    app.connect("html-page-context", _load_script)
