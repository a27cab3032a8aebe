"""Numbers as people write them."""

from __future__ import annotations

import math

CORE = 1e10  # operations a second: the rate at which operations that were counted become time
RATE_NAME = f"{CORE:.0e} operations a second".replace("e+", "e")
_WIDE = 10.0  # times its lower end, above which an interval says little
_RARE = 0.01  # a probability that is small enough, even at the upper end of its interval


def percent(value: float) -> str:
    """A probability as people write it: 3.2%, or 1.3e-06 where percent would hide it.

    100% is for what is exactly so.
    """
    if 0 < value < 1e-4:
        return f"{value:.2g}"
    if 1 - 1e-4 < value < 1:
        return ">99.99%"
    text = f"{100 * value:.3g}%"
    return f"{100 * value:.4g}%" if text == "100%" and value < 1 else text


def share(value: float, digits: int = 0) -> str:
    """A share in percent with so many decimals; 0% and 100% are for what is exactly so."""
    text = f"{value:.{digits}%}"
    hides = float(text.removesuffix("%")) in (0.0, 100.0) and 0 < value < 1
    return percent(value) if hides else text


def percents(value: float, low: float, high: float) -> tuple[str, str, str]:
    """A probability and its interval in one unit, with the digits that tell the ends apart."""
    ends = (value, low, high)
    if high < 1e-4:
        return percent(value), percent(low), percent(high)
    for digits in range(3, 7):
        texts = [_text(x, digits) for x in ends]
        if texts[1] != texts[2] or low == high:
            break
    return texts[0], texts[1], texts[2]


def _text(value: float, digits: int) -> str:
    """As so many digits of percent; 0% and 100% are for what is exactly so."""
    if 0 < value < 1e-4:
        return "<0.01%"
    if 1 - 1e-4 < value < 1:
        return ">99.99%" if digits < 5 else f"{100 * value:.6g}%"
    text = f"{100 * value:.{digits}g}%"
    return f"{100 * value:.4g}%" if text == "100%" and value < 1 else text


def says_little(low: float, high: float, *, is_probability: bool = False) -> bool:
    """Whether the truth could be ten times as large at one end of an interval as at the other.

    A probability of at most 1% is known well enough, whatever the other end is.
    """
    if is_probability and high <= _RARE:
        return False
    return not (low > 0.0 and high <= _WIDE * low)


def samples_needed(count: int, value: float, low: float, high: float) -> int | None:
    """About how many samples would bring a number to a half of itself up and down.

    Of an event that was hardly seen, how many would bring its upper end to 1%. None where an
    interval has no end.
    """
    if not math.isfinite(high) or count < 1:
        return None
    if value <= min(_RARE, high / _WIDE):
        more = max(high / _RARE, 2.0)
    else:
        more = max(((high - low) / value) ** 2, 2.0)
    digits: int = 10 ** max(math.floor(math.log10(count * more)) - 1, 0)
    return math.ceil(count * more / digits) * digits


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
