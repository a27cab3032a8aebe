"""What faults of a value weigh in first order: sums over its coordinates of moments times steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crashsim.arrays import Floats, Integers
from crashsim.coordinates.placement import moments_of
from crashsim.injection.slopes import Values
from crashsim.working import worked

BLOCK = 2**16  # values of which copies in double precision are alive at once
_HELD = 2**29  # bytes that they may take, beyond which they are found anew whenever they are read
_EACH = 40  # bytes of a value's


@dataclass(frozen=True)
class Weighing:
    """Of n values.

    Attributes:
        first: (n,) sum m d, of the means m and displacements d of a value's coordinates.
        second: (n,) sum k2 d^2.
        groups: of each group of coordinates, by the octave of their chance to vary: (n,) sums
            k2 d^2, k4 d^4 and (k2 d^2)^2.
    """

    first: Floats
    second: Floats
    groups: Mapping[float, tuple[Floats, Floats, Floats]]


@dataclass(frozen=True, eq=False)
class Weighings:
    """Of the values of several placements, a block at a time.

    Attributes:
        values: what the coordinates of each placement move.
        octaves: of the chances to vary of all coordinates, ascending.
        are_held: whether all are held: they are few.
    """

    values: Sequence[Values]
    octaves: list[float]
    are_held: bool
    _held: dict[tuple[int, int], Weighing]

    @classmethod
    def of(cls, values: Sequence[Values]) -> Weighings:
        octaves = sorted({octave for v in values for octave in _octaves(v)})
        return cls(values, octaves, _are_held(sum(v.size for v in values)), {})

    def at(self, number: int, low: int) -> Weighing:
        """Of the block of a placement's values that begins with one.

        Args:
            number: of the placement.
            low: the first value.
        """
        if (found := self._held.get((number, low))) is None:
            worked(0.0)
            v = self.values[number]
            found = _weighing(v, slice(low, min(low + BLOCK, v.size)))
            if self.are_held:
                self._held[number, low] = found
        return found


def zeros_of(values: Sequence[Values]) -> list[NDArray[Any]]:
    """For each placement an array for a number of each value, in single precision of many."""
    kind = np.float64 if _are_held(sum(v.size for v in values)) else np.float32
    return [np.zeros(v.size, kind) for v in values]


def weighed_bytes(values: int) -> float:
    """What the contraction of the slopes of so many values holds, beside them."""
    return (_EACH + 16.0) * values if _are_held(values) else 8.0 * values


def _are_held(values: int) -> bool:
    return _EACH * values <= _HELD


def _octaves(v: Values) -> list[float]:
    k2, k4 = _moments(v, slice(None))[1:]
    found: list[float] = []
    for low in range(0, len(k2), BLOCK):
        part = slice(low, low + BLOCK)
        octave = _octave_of(k2[part], k4[part])
        found += np.unique(octave[np.isfinite(octave)]).tolist()
    return found


def _octave_of(k2: Floats, k4: Floats) -> Floats:
    # A coordinate that is off its usual value with a small probability q has k2^2 = q k4.
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.floor(np.log2(k2**2 / k4))
    return found


def _moments(v: Values, part: slice) -> tuple[Floats, Floats, Floats]:
    """Mean, k2 and k4 of some values' coordinates, (n, bits); (1, 1) where all are alike."""
    moments = moments_of(v.placement)
    each = (moments.mean, moments.k2, moments.k4)
    if all(k.strides == (0,) for k in each):
        mean, k2, k4 = (k[:1].reshape(1, 1) for k in each)
    else:
        mean, k2, k4 = (k.reshape(v.size, v.bits)[part] for k in each)
    return mean, k2, k4


def _weighing(v: Values, part: slice) -> Weighing:
    mean, k2, k4 = _moments(v, part)
    octave = _octave_of(k2, k4)
    if octave.size == 1 and (listed := v.listed(part)) is not None:
        groups = octave[np.isfinite(octave)].tolist()
        moments = float(mean[0, 0]), float(k2[0, 0]), float(k4[0, 0])
        return _of_words(listed, moments, groups)
    d = v.displacements(part)
    first = (mean * d).sum(1)
    d *= d
    second = (k2 * d).sum(1)
    found = {}
    for group in np.unique(octave[np.isfinite(octave)]).tolist():
        chosen = d if octave.size == 1 else np.where(octave == group, d, 0.0)
        terms = k2 * chosen
        found[group] = (terms.sum(1), (k4 * chosen * chosen).sum(1), (terms * terms).sum(1))
    return Weighing(first, second, found)


def _of_words(
    listed: tuple[Integers, Floats, Floats],
    moments: tuple[float, float, float],
    groups: Sequence[float],
) -> Weighing:
    """The same of values in few different words, of which all is looked up.

    Args:
        listed: words and steps (n,), and what the bits of each word move it by, (words, bits).
        moments: mean, k2 and k4 of every coordinate.
        groups: the octave of its chance to vary, if it does.
    """
    (words, step, d), (mean, k2, k4) = listed, moments
    square, fourth = step**2, step**4
    # Of each word first: words are few, and values many.
    sums = [mean * d.sum(1), k2 * (d**2).sum(1), k4 * (d**4).sum(1), k2**2 * (d**4).sum(1)]
    first, second, fourths, squares = (each[words] for each in sums)
    second = second * square
    of_group = second, fourths * fourth, squares * fourth
    return Weighing(first * step, second, dict.fromkeys(groups, of_group))


def seconds(values: Sequence[Values]) -> Iterator[tuple[int, slice, Floats]]:
    """What each value weighs in the variance, sum k2 d^2, a block at a time.

    Yields:
        the number of a placement, a part of its values, and (n,) of these.
    """
    for number, v in enumerate(values):
        for low in range(0, v.size, BLOCK):
            part = slice(low, min(low + BLOCK, v.size))
            yield number, part, _second(v, part)


def _second(v: Values, part: slice) -> Floats:
    """``second`` of the weighing alone, of which words are looked up."""
    k2 = _moments(v, part)[1]
    if k2.size == 1 and (listed := v.listed(part)) is not None:
        words, step, d = listed
        return np.asarray((float(k2[0, 0]) * (d**2).sum(1))[words] * step**2)
    return np.asarray((k2 * v.displacements(part) ** 2).sum(1))
