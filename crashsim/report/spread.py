"""The spread of a score over initialisations: an architecture is not one draw of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from crashsim.report.tables import columns, number
from crashsim.results.record import Record
from crashsim.results.verdict import best


def spread_over(scores: Sequence[Record]) -> Table:
    """A table of each pooled quantity over several initialisations of one architecture."""
    table = Table(
        title=f"Over {len(scores)} initialisations",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    for title in ("quantity", "median", "smallest", "largest", "std / mean"):
        table.add_column(title, justify="left" if title == "quantity" else "right")
    for column in columns(scores[0]):
        if column.output != "all" and column.quantity != "tail":
            continue  # one output means something else under other weights
        found = [best(s, column.quantity, column.output) for s in scores]
        values = np.array([e.value for e in found if e is not None])
        if len(values) == len(scores):
            mean = values.mean()
            relative = "" if mean == 0 else f"{values.std(ddof=1) / mean:.0%}"
            table.add_row(
                column.title,
                *(number(float(x)) for x in (np.median(values), values.min(), values.max())),
                relative,
            )
    return table
