"""Formulas as MathML, made when the site is built: pages need no script, and load nothing."""

from __future__ import annotations

import re
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
    """A formula on its own lines, as many as it is written in; wide ones scroll."""
    made = (convert(line, display="block") for line in lines(node.astext()))
    writer.body.append(f'<div class="formula">{"".join(made)}</div>')
    raise nodes.SkipNode


def lines(latex: str) -> list[str]:
    """The lines of an ``aligned`` environment, which the converter takes for one."""
    found = re.search(r"\\begin\{aligned\}(.*)\\end\{aligned\}", latex, re.S)
    if found is None:
        return [latex.strip()]
    return [line.replace("&", "").strip() for line in found[1].split(r"\\") if line.strip()]
