"""Where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager


@contextmanager
def timing(seconds: MutableMapping[str, float], name: str) -> Iterator[None]:
    """Adds the seconds that the block takes to those of this name."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
