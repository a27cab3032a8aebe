"""Numbers as people write them."""

from __future__ import annotations


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
