"""The table of a study's cases while it runs: live in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from crashsim.cli.terminal import tell

_EVERY = 10.0  # seconds between lines
_OFTEN = 0.25  # seconds between tables


@contextmanager
def watching(name: str) -> Iterator[Callable[[Any], None]]:
    """What a study calls with its progress; shown on standard error."""
    from rich.live import Live

    from crashsim.report.studies import render_live

    terminal = Console(stderr=True)
    start, told = time.monotonic(), [-float("inf")]

    def is_time(seconds: float) -> bool:
        now = time.monotonic()
        if now - told[0] < seconds:
            return False
        told[0] = now
        return True

    def left(progress: Any) -> float | None:
        """Seconds to the end of what is planned, at the speed of so far."""
        if not progress.done:
            return None
        spent = time.monotonic() - start
        return float(spent * (progress.planned - progress.done) / progress.done)

    if not terminal.is_terminal:
        told[0] = start

        def say(progress: Any) -> None:
            if is_time(_EVERY):
                done = progress.done / progress.planned if progress.planned else 1.0
                tell(
                    f"{name}: {len(progress.cases)} of {progress.count} cases have chips, "
                    f"{100 * done:.0f}% of what is planned",
                    "dim",
                )

        yield say
        return
    with Live(console=terminal, transient=True, auto_refresh=False) as live:

        def show(progress: Any) -> None:
            if is_time(_OFTEN):
                rows = max(terminal.height - 6, 3)
                live.update(render_live(name, progress, left(progress), rows), refresh=True)

        yield show
