"""Which bits of a word a fault strikes, each alone or several together, as one says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from crashsim.arguments import is_whole, nearest, shown, whole
from crashsim.errors import ArgumentError
from crashsim.faults.words.formats import Stored

Upset = Literal["bit", "word", "row", "column"] | int
Bits = int | str | Sequence[int] | None
_FIELDS = ("sign", "exponent", "mantissa", "magnitude")


def is_field(bits: Any) -> bool:
    """Whether this names a part of a word."""
    return isinstance(bits, str) and bits in _FIELDS


def listed(fault: str, bits: Any) -> tuple[int, ...]:
    """Numbers of bits as they are given, in order, each once.

    Raises:
        ArgumentError: they are no list of whole numbers from 0 to 63.
    """
    try:
        if isinstance(bits, str | bytes):
            raise TypeError(bits)
        given = sorted({whole(f"{fault}: bits", bit, 0, 63) for bit in bits})
    except TypeError:
        given = []
    if not given:
        raise ArgumentError(
            f"{fault}: bits={shown(bits)}{nearest(bits, _FIELDS)}; give 'sign', 'exponent', "
            "'mantissa', or a list of numbers of bits"
        )
    return tuple(given)


def upset_given(fault: str, upset: Any) -> Upset:
    """What one fault strikes; a single neighbour is a bit.

    Raises:
        ArgumentError: there is no such upset.
    """
    if is_whole(upset) and 1 <= int(upset) <= 64:
        return int(upset) if int(upset) > 1 else "bit"
    if upset == "bit" or upset == "word" or upset == "row" or upset == "column":
        found: Upset = upset
        return found
    raise ArgumentError(
        f"{fault}: upset={shown(upset)}; give 'bit', a number of neighbouring bits, 'word', 'row' "
        "or 'column'"
    )


def chosen_bits(fault: str, bits: Bits, word: Stored) -> tuple[int, ...]:
    """The numbers of the bits of a word that can be struck.

    Raises:
        ArgumentError: the word has no such bits.
    """
    if bits is None or isinstance(bits, int):
        return tuple(range(word.bits))
    if isinstance(bits, str):
        found = word.fields.get(bits, ())
        if not found:
            known = [name for name, of_field in word.fields.items() if of_field]
            raise ArgumentError(
                f"{fault}: bits={shown(bits)}{nearest(bits, known)}"
                f": words of {word.name} have none; give "
                f"{', '.join(map(repr, known))}, or a list of numbers"
            )
        return found
    if any(bit >= word.bits for bit in bits):
        raise ArgumentError(
            f"{fault}: bits={list(bits)}: words of {word.name} have {word.bits} bits; give numbers "
            "below that"
        )
    return tuple(bits)


def masks_of(fault: str, chosen: Sequence[int], upset: Upset, word: Stored) -> tuple[int, ...]:
    """What each of a word's coordinates strikes, as a word with these bits set.

    Args:
        fault: its name, for errors.
        chosen: the bits that can be struck.
        upset: how many at a time.
        word: of which they are.

    Raises:
        ArgumentError: there are not so many neighbours.
    """
    if upset == "word":
        return (sum(1 << bit for bit in chosen),)
    if not isinstance(upset, int):
        return tuple(1 << bit for bit in chosen)
    runs = [tuple(range(bit, bit + upset)) for bit in chosen]
    found = tuple(sum(1 << bit for bit in run) for run in runs if set(run) <= set(chosen))
    if not found:
        raise ArgumentError(
            f"{fault}: upset={upset}: there are not so many neighbours among the bits "
            f"{list(chosen)} of words of {word.name}; give fewer"
        )
    return found
