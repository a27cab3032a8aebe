"""Formulas as MathML, made when the site is built: pages need no script, and load nothing."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def inline(writer: Any, node: nodes.Node) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed(writer: Any, node: nodes.Node) -> None:
    """A formula on its own lines; a wide one scrolls within them."""
    latex = node.astext().strip()
    writer.body.append(f'<div class="formula">{convert(latex, display="block")}</div>')
    raise nodes.SkipNode
