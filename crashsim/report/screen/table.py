"""Tables that fit any terminal: no number is cut, and no interval is broken over two lines."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from crashsim.visible import visible

_GAP = 2  # characters between columns
_WHOLE, _NAME = 24, 12  # characters that a name keeps, and at least, in a terminal too narrow
_WORDS = 24  # characters that running text keeps


@dataclass(frozen=True)
class FittedTable:
    """Rows of text in columns that are as wide as their numbers.

    Where the columns do not fit, intervals go on the line below their values; then long names and
    running text are wrapped; and what still does not fit comes in further tables, below, with the
    names again.

    Attributes:
        titles: of the columns.
        rows: a cell for each column; an interval starts with `` [``.
        names: how many columns, the first, are names.
        words: which columns hold running text.
        title: of the table.
        styles: of rows, by number.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    words: Collection[int] = ()
    title: str = ""
    styles: dict[int, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = [[visible(cell, lines=True) for cell in row] for row in self.rows]
        every = list(range(len(self.titles)))
        below = [self._below(row) for row in shown]
        for rows in (shown, below):
            widths = self._widths(rows, every, options.max_width, _WHOLE)
            if widths is not None:
                yield self._table(rows, every, widths, self.title)
                return
        room, name = options.max_width, self._name(below, options.max_width)
        for i, part in enumerate(self._parts(below, room, name)):
            widths = self._widths(below, part, room, name) or self._least(below, part, name)
            if i > 0:
                yield Text()
            more = ", continued" if i > 0 and self.title else ""
            yield self._table(below, part, widths, self.title + more)

    def _below(self, row: list[str]) -> list[str]:
        """The row with its intervals on lines of their own."""
        numbers = (cell.replace(" [", "\n[") for cell in row[self.names :])
        return [*row[: self.names], *numbers]

    def _name(self, rows: list[list[str]], room: int) -> int:
        """Characters that a name keeps: all, where every other column has room beside it."""
        named = list(range(self.names))
        others = range(self.names, len(self.titles))
        fits = (self._widths(rows, [*named, column], room, _WHOLE) for column in others)
        return _WHOLE if all(widths is not None for widths in fits) else _NAME

    def _parts(self, rows: list[list[str]], room: int, name: int) -> list[list[int]]:
        """The columns of each table, where one cannot hold them all."""
        named = list(range(self.names))
        parts, current = [], named.copy()
        for column in range(self.names, len(self.titles)):
            if (
                len(current) > len(named)
                and self._widths(rows, [*current, column], room, name) is None
            ):
                parts.append(current)
                current = named.copy()
            current.append(column)
        return [*parts, current]

    def _natural(self, rows: list[list[str]], column: int) -> int:
        cells = [line for row in rows for line in row[column].split("\n")]
        words = visible(self.titles[column]).split()
        return max((cell_len(text) for text in (*cells, *words)), default=1)

    def _least(self, rows: list[list[str]], columns: list[int], name: int) -> list[int]:
        """The narrowest that each column may be."""
        found = []
        for column in columns:
            natural = self._natural(rows, column)
            most = _WORDS if column in self.words else name if column < self.names else natural
            found.append(min(natural, most))
        return found

    def _widths(
        self, rows: list[list[str]], columns: list[int], room: int, name: int
    ) -> list[int] | None:
        """The width of each column; None where they do not fit."""
        widths, spare = self._least(rows, columns, name), room - _GAP * (len(columns) - 1)
        spare -= sum(widths)
        if spare < 0:
            return None
        for i, column in enumerate(columns):
            more = min(self._natural(rows, column) - widths[i], spare)
            widths[i] += more
            spare -= more
        for i, column in enumerate(columns):  # what is left keeps titles on one line
            more = min(max(cell_len(visible(self.titles[column])) - widths[i], 0), spare)
            widths[i] += more
            spare -= more
        return widths

    def _table(
        self, rows: list[list[str]], columns: list[int], widths: list[int], title: str
    ) -> RenderableType:
        table = Table(box=None, pad_edge=False, title=title and Text(visible(title)),
                      title_justify="left", title_style="bold", header_style="bold")  # fmt: skip
        for column, width in zip(columns, widths, strict=True):
            is_text = column < self.names or column in self.words
            heading = textwrap.fill(visible(self.titles[column]), max(width, 1))
            table.add_column(
                Text(heading), justify="left" if is_text else "right", width=width,
                no_wrap=not is_text, overflow="fold",
            )  # fmt: skip
        for i, row in enumerate(rows):
            if any(row[column] for column in columns[self.names :]) or not self.names:
                cells = (Text(row[column]) for column in columns)
                table.add_row(*cells, style=self.styles.get(i))
        return table
