"""Formulas as MathML, which browsers show themselves: no script, no font, nothing fetched.

The conversion is docutils'. It knows a part of LaTeX; what it does not know is a warning here, and
so an error in a build that wants none.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

# docutils sets the index of an accented letter as if it were the limit of a sum. In a group, with
# something empty beside it, the letter has its index where it belongs.
ACCENTED = re.compile(r"\\(hat|bar|tilde) ?(\w|\{[^{}]*\})")

logger = logging.getLogger(__name__)


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(convert(node, block=False))
    raise nodes.SkipNode


def display(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula with lines of its own, which may be wider than a phone."""
    translator.body.append(f'<div class="math">{convert(node, block=True)}</div>\n')
    raise nodes.SkipNode


def convert(node: nodes.Element, block: bool) -> str:
    """Return the MathML of a node's LaTeX."""
    latex = ACCENTED.sub(r"{{}\g<0>}", node.astext())
    try:
        return str(tex2mathml(latex, as_block=block))
    except MathError as error:
        logger.warning("formula: %s", error, location=node)
        return ""


def setup(app: Sphinx) -> dict[str, Any]:
    """Make this the way formulas are written."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
