"""Where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager


@contextmanager
def timing(seconds: MutableMapping[str, float], name: str) -> Iterator[None]:
    """Adds the seconds that the block takes to those of this name.

    Without those that the block itself adds to other names, so that their sum is the whole.
    """
    start, before = time.perf_counter(), sum(seconds.values())
    try:
        yield
    finally:
        inside = sum(seconds.values()) - before
        own = max(time.perf_counter() - start - inside, 0.0)
        seconds[name] = seconds.get(name, 0.0) + own
