"""Sphinx: the pages of this folder as they are, and the reference from the docstrings.

`sphinx-build -n -W --keep-going -b html docs build/docs`, with torch, JAX, foolbox, ART and Lightning there.
Neither the build nor the pages fetch anything.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import numpy.typing as npt
from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

Scalar = TypeVar("Scalar")


class NDArray(Generic[Scalar]):
    """What annotations show in place of NumPy's own, which is spelled out."""


NDArray.__module__ = "numpy.typing"
npt.NDArray = NDArray

import lpfamily  # noqa: E402 (its annotations have that one)

project = "lpfamily"
release = version = lpfamily.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
default_role = "obj"  # what docstrings have in backticks: names of objects, which become links, and code

html_theme = "furo"
html_math_renderer = "mathml"  # browsers know it, so that pages load nothing from elsewhere
html_title = f"lpfamily {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
pygments_dark_style = "github-dark"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Array": "Array", "A": "Array"}
maximum_signature_line_length = 88
python_use_unqualified_type_names = True

nitpick_ignore = [
    ("py:class", "Array"),  # any array library's, an alias of Any
    ("py:class", "DataclassInstance"),  # any dataclass's
    ("py:class", "lpfamily.training.networks.Named"),  # a type variable
    ("py:class", "lpfamily.training.progress.Tick"),  # tick(done, of, what)
]
nitpick_ignore_regex = [
    # other projects'
    (
        "py:.*",
        r"(_pytest|art|collections|contextlib|eagerpy|foolbox|jax|lightning|numpy|pathlib|sklearn|torch)\b.*",
    ),
]

ALIAS = re.compile(r"~?TypeAliasForwardRef\('(\w+)'\)")
CODE_OR_MARK = re.compile(
    r"(?<=::\n\n)(?P<indent> +).*(?:\n+(?P=indent).*)*|>>> .*|`[^`]*`(?=(?P<after>\w)?)|[|*]"
)


def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep |g| and p* from being markup: docstrings have backticks, and code after `::` and `>>>`."""

    def escaped(match: re.Match[str]) -> str:
        text = match[0]
        if text in "|*":
            return "\\" + text
        return text + "\\ " if match["after"] else text

    lines[:] = CODE_OR_MARK.sub(escaped, "\n".join(lines)).split("\n")
    if what in ("attribute", "data", "property"):
        lines.insert(0, "\\ ")  # napoleon takes what is before a colon in the first line for a type


def as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show aliases in signatures by their names, and an array of any library as one."""
    shown = (text and ALIAS.sub(r"\1", text) for text in (signature, returns))
    return tuple(text and text.replace("float | ~typing.Any", "float | Array") for text in shown)


def without_link(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Show what is in backticks and names no object as code."""
    return content if node["reftype"] == "obj" else None


def inline_math(translator: Any, node: Any) -> None:
    """Write MathML."""
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def displayed_math(translator: Any, node: Any) -> None:
    """Write MathML in a line of its own."""
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Connect them."""
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", as_written)
    app.connect("missing-reference", without_link)
