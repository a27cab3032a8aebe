"""Numbers as people write them."""

from __future__ import annotations

CORE = 1e10  # operations a second: the rate at which operations that were counted become time
RATE_NAME = f"{CORE:.0e} operations a second".replace("e+", "e")


def percent(value: float) -> str:
    """A probability as people write it: 3.2%, or 1.3e-06 where percent would hide it."""
    return f"{value:.2g}" if 0 < value < 1e-4 else f"{100 * value:.3g}%"


def interval_numbers(value: float, low: float, high: float) -> tuple[str, str, str]:
    """A value and its interval with as many digits as tell the ends apart: three to six."""
    for digits in range(3, 7):
        texts = [f"{x:.{digits}g}" for x in (value, low, high)]
        if texts[1] != texts[2] or low == high:
            break
    return texts[0], texts[1], texts[2]


def words_of_time(seconds: float) -> str:
    """A time in the unit that suits it, to two digits."""
    if seconds < 0.95:
        return "under 1 s"
    units = (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
    unit, length = next((u, n) for u, n in units if seconds >= 1.5 * n or n == 1)
    count = seconds / length
    return f"{count:.0f} {unit}" if 99.5 <= count < 1e6 else f"{count:.2g} {unit}"
