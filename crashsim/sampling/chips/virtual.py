"""Virtual chips: chips that the linear surrogate of the outputs judges, without any inference.

The outputs of a chip are, to first order around the mean point, those at that point plus the gains
of what was struck. A sparse product judges a chip on all examples, so there may be very many.
Nothing here needs the surrogate to be right: see ``crashsim.sampling.chips.two_levels``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crashsim.analytic.gains import KEPT, MEMORY, Gains, kept_bytes
from crashsim.arrays import Floats
from crashsim.coordinates.points import Points
from crashsim.errors import NotApplicableError
from crashsim.metrics import AskedMetrics
from crashsim.model.labelled import Labelled
from crashsim.sampling.chips.drawn import DrawnChips, chosen, struck
from crashsim.sampling.chips.task import pieces_of
from crashsim.space import FaultSpace

_PRODUCTS = 2**24  # gathered gains at once, about


@dataclass(frozen=True)
class VirtualChips:
    """What the surrogate says of chips that it alone judges, and of those that inference judges.

    Attributes:
        alone: (N, D) sums over the examples of each virtual chip that was struck.
        paired: (n, D) of each real chip that was struck, in the order of their numbers.
        count: number of virtual chips, those without a fault among them.
    """

    alone: Floats
    paired: Floats
    count: int


def judge_by_surrogate(
    real: DrawnChips,
    virtual: DrawnChips,
    examples: Labelled,
    asked: AskedMetrics,
    memory: int | None = None,
) -> VirtualChips:
    """Judges virtual chips, and for comparison the real ones, by the surrogate alone.

    Args:
        real: chips that inference judges as well.
        virtual: those that it does not.
        examples: all are judged on.
        asked: the metrics.
        memory: bytes that gains may take, about, by default 2 GiB; examples are read as many at a
            time as it holds.

    Raises:
        NotApplicableError: the outputs have no derivative by the faults, an exact number of faults
            is asked for, or the gains of a single example do not fit.
    """
    space, memory = real.space, MEMORY if memory is None else memory
    if why := why_none(space, memory):
        raise NotApplicableError(f"virtual chips: {why}")
    fits = fitting(space, memory)
    width = sum(asked.widths)
    sums = [np.zeros((0, width)), np.zeros((0, width))]
    for inputs, targets in examples.pieces(min(pieces_of(space), fits)):
        surrogate = Surrogate.of(space.at_examples(inputs), asked.at(targets), memory)
        for level, source in enumerate((virtual, real)):
            none = np.zeros((0, width))
            found = np.concatenate([none, *(each.sum(1) for each in surrogate.judged(source))])
            sums[level] = sums[level] + found if len(sums[level]) else found
    return VirtualChips(sums[0], sums[1], virtual.chips)


def why_none(space: FaultSpace, memory: int) -> str | None:
    """Why there are no virtual chips of this space; None: there are."""
    if not space.has_derivatives:
        return space.why_no_derivatives
    if space.counts:
        return "for faults that strike independently, not an exact number of them (count=)"
    return None if fitting(space, memory) else "the gains of one example do not fit the memory"


def fitting(space: FaultSpace, memory: int) -> int:
    """Of how many examples the gains fit."""
    return int(KEPT * memory * space.B / max(kept_bytes(space, space.K), 1))


@dataclass(frozen=True)
class Surrogate:
    """The outputs of some examples, linear in the faults.

    Attributes:
        gains: of all outputs, around the mean point.
        there: (B, K) the outputs at that point.
        clean: (B, K) without faults.
        asked: the metrics, of these examples.
    """

    gains: Gains
    there: Floats
    clean: Floats
    asked: AskedMetrics

    @classmethod
    def of(cls, space: FaultSpace, asked: AskedMetrics, memory: int) -> Surrogate:
        gains, clean = Gains.of(space, "mean", memory), space.clean()
        return cls(gains, clean + gains.shift_of_outputs, clean, asked)

    @property
    def clean_columns(self) -> Floats:
        """(B, D) what the metrics are made of, without faults."""
        found: Floats = self.asked.columns(self.clean[None], self.clean)[0]
        return found

    def judged(self, source: DrawnChips) -> Iterator[Floats]:
        """(n, B, D) what the metrics are made of, of a few chips that are struck at a time."""
        for block in range(source.blocks):
            points = source.points(block)
            for part in _parts(chosen(points, struck(points)), self.there.size):
                yield self.asked.columns(self.there + self.gains.along(part), self.clean)


def _parts(points: Points, outputs: int) -> Iterator[Points]:
    """Few enough points at a time that what is gathered for them fits."""
    each = outputs * (1 + len(points.columns) / max(points.count, 1))
    size = max(1, int(_PRODUCTS / each))
    for start in range(0, points.count, size):
        yield points.part(start, min(start + size, points.count))
