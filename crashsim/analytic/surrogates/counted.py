"""Laws of combinations of outputs from slopes by value: their gains are counted, not written out.

What bits move values by is the same for every combination, so it is looked at once
(``crashsim_theory.sums.word_steps``); a combination then costs a pass through its slopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from crashsim_theory import NORMAL, Contributions, GainChunk
from crashsim_theory.sums.profile import Profile, profiles_of_chunks
from crashsim_theory.sums.word_steps import ListedWords, WordSteps, profile_of_words, word_steps

from crashsim.analytic.gains import InputSlopes
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

    def profiles(self, slopes: InputSlopes) -> list[Profile]:
        """Of R combinations of an input's outputs, without shift.

        Args:
            slopes: for each placement, (size, R).
        """
        rows = slopes[0].shape[1]
        noise = self._noise(slopes, rows)
        if self._steps is None:
            return profiles_of_chunks(self.chunks(slopes), np.zeros(rows), noise)
        found = []
        for r in range(rows):
            each: list[Any] = [
                np.ascontiguousarray(slopes[i][part, r]) for i, part in self._parts()
            ]
            found.append(profile_of_words(self._steps, each, 0.0, float(noise[r])))
            worked(0.0)
        return found

    def contributions(self, slopes: InputSlopes, shift: Floats) -> Contributions | None:
        """What R combinations of an input's outputs are made of, for draws of them together.

        None where normal coordinates add to them: these are not drawn.

        Args:
            slopes: for each placement, (size, R).
            shift: (R,) of the combinations without faults.
        """
        if self._noise(slopes, len(shift)).any():
            return None
        return Contributions(_ReadAgain(self, slopes), shift)

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

    def chunks(self, slopes: InputSlopes) -> Iterator[GainChunk]:
        """The Bernoulli coordinates of R combinations of an input's outputs, part by part."""
        for i, part in self._parts():
            of_rows: Any = np.ascontiguousarray(slopes[i][part].T)
            yield GainChunk(of_rows, self._values[i].displacements(part), self._rates(i, part))

    def _noise(self, slopes: InputSlopes, rows: int) -> Floats:
        """(R,) variances that normal coordinates add."""
        total = np.zeros(rows)
        for i, v in enumerate(self._values):
            if i in self._striking:
                continue
            variance = np.asarray(v.placement.fault.variance, dtype=np.float64)
            for low in range(0, v.size, _TOGETHER):
                part = slice(low, low + _TOGETHER)
                d = v.displacements(part)
                own = variance if variance.ndim == 0 else variance.reshape(v.size, v.bits)[part]
                total += (own * d * d).sum(1) @ slopes[i][part].astype(np.float64) ** 2
        return total


@dataclass(frozen=True, eq=False)
class _ReadAgain:
    """Chunks that are made whenever they are read: all of them at once take too much memory."""

    gains: CountedGains
    slopes: InputSlopes

    def __iter__(self) -> Iterator[GainChunk]:
        return self.gains.chunks(self.slopes)
