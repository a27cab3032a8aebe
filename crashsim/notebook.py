"""Results as notebooks show them: a verdict and a table, as HTML that stands alone; progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import Any

from crashsim.visible import visible

_FRAME = (
    "border:1px solid #8886;border-radius:6px;padding:0.6em 0.9em;margin:0.3em 0;"
    "max-width:60em;overflow-x:auto"
)
_CELL = "padding:0.15em 0.8em 0.15em 0;white-space:nowrap;text-align:"
_ROWS = 12  # of a table


def fragment(
    title: str,
    verdict: str,
    titles: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
    names: int = 1,
    picture: str = "",
) -> str:
    """A piece of HTML for ``_repr_html_``: no script, no request, colours of the page around it.

    Args:
        title: of the whole, as text.
        verdict: in a few sentences.
        titles: of the table's columns.
        rows: of the table; the first dozen is shown.
        notes: in small print.
        names: how many columns, the first, hold names.
        picture: markup that is shown as it is, such as SVG.
    """
    parts = [f"<strong>{_text(title)}</strong>", f"<p style='margin:0.4em 0'>{_text(verdict)}</p>"]
    if rows:
        head = "".join(
            f"<th style='{_CELL}{_side(i, names)}'>{_text(t)}</th>" for i, t in enumerate(titles)
        )
        lines = [
            "<tr>"
            + "".join(
                f"<td style='{_CELL}{_side(i, names)}'>{_text(cell)}</td>"
                for i, cell in enumerate(row)
            )
            + "</tr>"
            for row in rows[:_ROWS]
        ]
        parts.append(
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        )
    if picture:
        parts.append(f"<div style='max-width:40em'>{picture}</div>")
    more = [f"{len(rows) - _ROWS} more rows"] if len(rows) > _ROWS else []
    parts += [f"<div style='opacity:0.75'><small>{_text(n)}</small></div>" for n in (*more, *notes)]
    return f"<div style='{_FRAME}'>{''.join(parts)}</div>"


def _text(words: str) -> str:
    return escape(visible(words, lines=True))


def _side(column: int, names: int) -> str:
    return "left" if column < names else "right"


class ProgressLine:
    """Progress as one line: below the cell of a notebook, or on standard error.

    Give it as ``progress=`` of ``score``, ``sweep`` and the others; it needs nothing but IPython in
    a notebook.

    Args:
        every: seconds between two looks.
    """

    def __init__(self, every: float = 0.2) -> None:
        self._every = every
        self._told = -float("inf")
        self._shown: Any = None

    def __call__(self, step: str, done: int, total: int) -> None:
        """Tells that ``done`` of ``total`` parts of a step are done."""
        is_over = done >= total
        now = time.monotonic()
        if not is_over and now - self._told < self._every:
            return
        self._told = now
        self._show(f"{visible(step)}: {done / total if total else 1.0:4.0%}", is_over)

    def _show(self, line: str, is_over: bool) -> None:
        if not _is_notebook():
            print(f"\r{line:60}", end="\n" if is_over else "", file=sys.stderr, flush=True)
            return
        notebook: Any = import_module("IPython.display")  # which a notebook has loaded
        shown = notebook.HTML(f"<code>{escape(line)}</code>")
        if self._shown is None:
            self._shown = notebook.display(shown, display_id=True)
        else:
            self._shown.update(shown)


def _is_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, without importing anything."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
