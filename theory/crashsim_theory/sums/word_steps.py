"""Profiles of millions of bits from one slope for each value: bits are worth powers of two.

What a flip changes a value by is, but for the sign, a power of two times the step of its word. So
the entry in which a bit's gain falls is that of the value's slope, moved: values are counted once,
by entry and by the signs of their bits, and all bits follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from crashsim_theory.arrays import Array
from crashsim_theory.sums.profile import Integers, Profile

Bools: TypeAlias = npt.NDArray[np.bool_]

_TOGETHER = 2**22  # values counted together
_FINE = 7  # bits of a gain's mantissa that tell entries apart: 0.8% of it
_DROPPED = 52 - _FINE
_RANGE = 20 << _FINE  # entries below the largest gain; smaller ones share the last
_COLUMNS = 8  # bits of which the signs are counted together
_SIGNS = 512  # different rows of signs


@dataclass(frozen=True, eq=False)
class WordSteps:
    """What coordinates move values by, of values that are alike in bits and rate.

    Coordinate (i, b) moves value i by ``signs[kind[i], b] * size[i] * 2 ** exponents[b]``.

    Attributes:
        chunks: the numbers of the chunks whose values these are, one chunk after the other.
        size: (n,) of the steps.
        kind: (n,) the row of signs.
        signs: (kinds, bits) of -1, 0 and 1.
        exponents: (bits,).
        p: the rate of all.
    """

    chunks: tuple[int, ...]
    size: Array
    kind: npt.NDArray[np.int16]
    signs: Array
    exponents: Integers
    p: float

    def entries(self, slopes: Sequence[Array]) -> list[Array]:
        """Gains, low, high and counts of the entries, given each chunk's slopes (n,)."""
        blocks = list(self._blocks(slopes))
        most = max((float(gain.max(initial=0.0)) for gain, _, _ in blocks), default=0.0)
        if not most:
            return [np.zeros(0)] * 4
        last = int(np.asarray(most).view(np.int64)) >> _DROPPED
        base = max(last - _RANGE, 0)
        kinds, keys = len(self.signs), last - base + 1
        found = np.zeros((2, 2 * keys * kinds))  # number and total
        for gain, is_down, kind in blocks:
            key = np.maximum((gain.view(np.int64) >> _DROPPED) - base, 0)
            # Slopes upwards and downwards; the signs of bits turn some over.
            key += keys * is_down
            key *= kinds
            key += kind
            found[0] += np.bincount(key, None, found.shape[1])
            found[1] += np.bincount(key, gain, found.shape[1])
        up = (self.signs > 0).astype(np.float64)
        down = (self.signs < 0).astype(np.float64)
        least = int(self.exponents.min())
        room = int(self.exponents.max()) - least << _FINE
        sums = np.zeros((2, 2, keys + room))  # number and total, of gains upwards and downwards
        worth = np.ones(len(self.exponents)), 2.0**self.exponents
        for into, one, each in zip(sums, found, worth, strict=True):
            plus, minus = one.reshape(2, keys, kinds)
            ways = plus @ up + minus @ down, plus @ down + minus @ up
            for of_way, way in zip(into, ways, strict=True):
                for b, exponent in enumerate(self.exponents.tolist()):
                    start = exponent - least << _FINE
                    of_way[start : start + keys] += each[b] * way[:, b]
        return self._told(sums, base + (least << _FINE), base)

    def _blocks(
        self, slopes: Sequence[Array]
    ) -> Iterator[tuple[Array, Bools, npt.NDArray[np.int16]]]:
        """Gains per step, whether they are downwards, and rows of signs, of some values each."""
        waiting: list[Array] = []
        start = stop = 0
        for number, c in enumerate(self.chunks):
            waiting.append(slopes[c])
            stop += len(slopes[c])
            if stop - start >= _TOGETHER or number == len(self.chunks) - 1:
                slope, part = np.concatenate(waiting), slice(start, stop)
                yield np.abs(slope) * self.size[part], slope < 0, self.kind[part]
                waiting, start = [], stop

    def _told(self, sums: Array, base: int, first: int) -> list[Array]:
        """Gains, low, high and counts of entries from their sums."""
        columns: list[list[Array]] = [[], [], [], []]
        shared = first + (self.exponents << _FINE)  # those that hold all smaller gains, too
        for sign, count, total in zip((1.0, -1.0), *sums, strict=True):
            at = np.flatnonzero(total > 0)
            inner, outer = (((at + base + i) << _DROPPED).view(np.float64) for i in (0, 1))
            inner = np.where(np.isin(at + base, shared), 0.0, inner)
            mean = np.clip(total[at] / count[at], inner, outer)
            low, high = (inner, outer) if sign > 0 else (-outer, -inner)
            for into, column in zip(columns, (sign * mean, low, high, count[at]), strict=True):
                into.append(column)
        return [np.concatenate(column) for column in columns]


@dataclass(frozen=True, eq=False)
class ListedWords:
    """Displacements of values in few different words: of every word once, and which each value is.

    Attributes:
        words: (n,) that of each value.
        step: (n,) what its displacements are multiplied with.
        moved: (words, bits) the displacements of all words.
    """

    words: Integers
    step: Array
    moved: Array


def word_steps(
    displacements: Iterable[Array | ListedWords], rates: Iterable[Array]
) -> list[WordSteps] | None:
    """The steps of chunks of values; None where they are no powers of two, or rates differ.

    Args:
        displacements: of each chunk, (n, bits) what each coordinate moves its value by.
        rates: of each chunk.
    """
    groups: dict[tuple[float, tuple[int, ...], int], list[tuple[int, Array, Integers]]] = {}
    for c, (moved, p) in enumerate(zip(displacements, rates, strict=True)):
        if np.ndim(p) and np.ptp(p):
            return None
        rate = float(np.ravel(p)[0])
        every = moved.moved if isinstance(moved, ListedWords) else moved
        for start in range(0, every.shape[1], _COLUMNS):
            part = every[:, start : start + _COLUMNS]
            found = _powers(part)
            if found is None:
                return None
            exponents, size = found
            code = _code_of(part)
            if isinstance(moved, ListedWords):
                size, code = size[moved.words] * moved.step, code[moved.words]
            key = rate, tuple(exponents.tolist()), start
            groups.setdefault(key, []).append((c, size, code))
    steps = []
    for (rate, powers, _), members in groups.items():
        code = np.concatenate([member[2] for member in members])
        known = np.flatnonzero(np.bincount(code))
        if len(known) > _SIGNS:
            return None
        kind = np.zeros(known[-1] + 1, np.int16)
        kind[known] = np.arange(len(known))
        signs = known[:, np.newaxis] // 3 ** np.arange(len(powers)) % 3 - 1.0
        size = np.concatenate([member[1] for member in members])
        chunks = tuple(member[0] for member in members)
        steps.append(WordSteps(chunks, size, kind[code], signs, np.array(powers), rate))
    return steps


def _code_of(moved: Array) -> Integers:
    """(n,) a number for each row of signs."""
    weights = 3 ** np.arange(moved.shape[1])
    found = (np.sign(moved) @ weights).astype(np.int32) + int(weights.sum())
    return np.asarray(found)


def _powers(moved: Array) -> tuple[Integers, Array] | None:
    """The exponents (bits,) and each value's step (n,); None where bits are no powers of two."""
    size = np.abs(moved)
    largest = size.max(0, initial=0.0)
    if not largest.all():
        return None
    mantissa, exponents = np.frexp(largest / largest[0])
    if np.any(mantissa != 0.5):
        return None
    powers = exponents.astype(np.int64) - 1
    scaled = np.ldexp(size, -powers)
    step = scaled.max(1)
    if np.any((scaled != 0) & (scaled != step[:, np.newaxis])):
        return None
    return powers, step


def profile_of_words(
    steps: Sequence[WordSteps], slopes: Sequence[Array], shift: float, normal_variance: float = 0.0
) -> Profile:
    """The profile of a surrogate whose coordinates move values by such steps.

    Args:
        steps: as ``word_steps`` returns them.
        slopes: of each chunk, (n,) the change of the surrogate per unit of each value.
        shift: of the surrogate.
        normal_variance: that normal coordinates add.
    """
    each = [step.entries(slopes) for step in steps]
    p = np.concatenate([np.full(len(e[0]), s.p) for e, s in zip(each, steps, strict=True)])
    gains, low, high, counts = (np.concatenate([e[i] for e in each]) for i in range(4))
    return Profile(shift, gains, low, high, counts, p, normal_variance)
