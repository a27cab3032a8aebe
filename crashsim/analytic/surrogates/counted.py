"""Laws of combinations of outputs from slopes by value: their gains are counted, not written out.

What bits move values by is the same for every combination, so it is looked at once
(``crashsim_theory.sums.word_steps``); a combination then costs a pass through its slopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from crashsim_theory import NORMAL, GainChunk
from crashsim_theory.sums.profile import Profile, profiles_of_chunks
from crashsim_theory.sums.word_steps import ListedWords, WordSteps, profile_of_words, word_steps
from numpy.typing import NDArray

from crashsim.arrays import Floats
from crashsim.injection.slopes import Values
from crashsim.working import worked

_TOGETHER = 2**17  # values of a chunk
_ALONE = 2**14  # coordinates up to which each is an entry of its own


class CountedGains:
    """The gains of some placements' coordinates, which are Bernoulli or normal.

    Args:
        values: what the coordinates of each placement move.
    """

    def __init__(self, values: Sequence[Values]) -> None:
        self._values = values
        self._striking = [i for i, v in enumerate(values) if v.placement.fault.law != NORMAL]

    def profile(self, slopes: Sequence[NDArray[np.float32] | None]) -> Profile:
        """Of a combination of an input's outputs, without shift.

        Args:
            slopes: for each placement, (size,); None where all are 0.
        """
        given = zip(self._values, slopes, strict=True)
        every = [np.zeros(v.size, np.float32) if s is None else s for v, s in given]
        noise = self._noise(every)
        if self._steps is None:
            return profiles_of_chunks(self._chunks(every), np.zeros(1), np.array([noise]))[0]
        each: list[Any] = [np.ascontiguousarray(every[i][part]) for i, part in self._parts()]
        return profile_of_words(self._steps, each, 0.0, noise)

    @cached_property
    def _steps(self) -> list[WordSteps] | None:
        """How bits move values; None where coordinates are few, or move them otherwise."""
        if sum(self._values[i].size * self._values[i].bits for i in self._striking) <= _ALONE:
            return None
        moved = (self._moved(i, part) for i, part in self._parts())
        return word_steps(moved, (self._rates(i, part) for i, part in self._parts()))

    def _moved(self, i: int, part: slice) -> Floats | ListedWords:
        """What the coordinates of some values move them by."""
        listed = self._values[i].listed(part)
        if listed is None:
            return self._values[i].displacements(part)
        words, step, moved = listed
        return ListedWords(words.astype(np.int64, copy=False), step, moved)

    def _parts(self) -> Iterator[tuple[int, slice]]:
        """Numbers of placements, and parts of their values."""
        for i in self._striking:
            for low in range(0, self._values[i].size, _TOGETHER):
                worked(0.0)
                yield i, slice(low, min(low + _TOGETHER, self._values[i].size))

    def _rates(self, i: int, part: slice) -> Floats:
        """() or (n, bits) of some values' coordinates."""
        v = self._values[i]
        p = np.asarray(v.placement.fault.rate, dtype=np.float64)
        return p if p.ndim == 0 else p.reshape(v.size, v.bits)[part]

    def _chunks(self, slopes: Sequence[NDArray[np.float32]]) -> Iterator[GainChunk]:
        for i, part in self._parts():
            of_rows: Any = slopes[i][None, part]
            yield GainChunk(of_rows, self._values[i].displacements(part), self._rates(i, part))

    def _noise(self, slopes: Sequence[NDArray[np.float32]]) -> float:
        """The variance that normal coordinates add."""
        total = 0.0
        for i, v in enumerate(self._values):
            if i in self._striking:
                continue
            variance = np.asarray(v.placement.fault.variance, dtype=np.float64)
            for low in range(0, v.size, _TOGETHER):
                part = slice(low, low + _TOGETHER)
                d = v.displacements(part)
                own = variance if variance.ndim == 0 else variance.reshape(v.size, v.bits)[part]
                total += float((own * d * d).sum(1) @ slopes[i][part].astype(np.float64) ** 2)
        return total
