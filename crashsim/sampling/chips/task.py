"""Chips as a task: each block of chips meets all examples, a few at a time.

What is in memory at once is a batch of examples under some chips, never all of either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import add
from typing import ClassVar

import numpy as np

from crashsim.arrays import Floats
from crashsim.campaign.identity import digest
from crashsim.campaign.tasks import Task
from crashsim.coordinates.points import Points
from crashsim.errors import ModelError
from crashsim.metrics import AskedMetrics
from crashsim.model.labelled import Labelled
from crashsim.sampling.chips.drawn import ChipSource, chosen, struck
from crashsim.sampling.chips.sums import ChipSums
from crashsim.sampling.identity import identity_of, identity_of_examples
from crashsim.space import FaultSpace

_SCALARS = 2**22  # numbers in flight in a batch of examples
_VALUES = 2**23  # outputs of chips and examples at once
_CHIPS_AT_ONCE = 32  # at least, for which a batch of examples is prepared


@dataclass(frozen=True)
class Chips(Task[ChipSums]):
    """The metrics of chips, block by block.

    Attributes:
        source: of the chips.
        examples: what they are judged on.
        asked: the metrics.
    """

    source: ChipSource
    examples: Labelled
    asked: AskedMetrics

    made_of: ClassVar = (ChipSums,)

    def identity(self) -> Mapping[str, str]:
        return {
            "work": "chips, judged on all examples",
            **identity_of(self.source.space),
            "examples": identity_of_examples(self.examples),
            "metrics": digest(self.asked),
            **self.source.identity(),
        }

    def is_whole(self, block: int) -> bool:
        return self.source.is_whole(block)

    def run(self, block: int) -> ChipSums:
        return reduce(add, self.parts(block))

    def parts(self, block: int) -> Iterator[ChipSums]:
        """Rows as they are done, and at the end the sums, which are those of whole chips alone."""
        points = self.source.points(block)
        own = chosen(points, struck(points))
        width, weights = sum(self.asked.widths), self.source.weights(block)
        of_chips, per_example, clean = np.zeros((own.count, width)), [], []
        for inputs, targets in self.examples.pieces(pieces_of(self.source.space)):
            space = self.source.space.at_examples(inputs)
            asked = self.asked.at(targets)
            clean.append(asked.columns(space.clean()[None], space.clean())[0])
            per_example.append(np.zeros((len(inputs), width)))
            for start, stop, outputs in outputs_of(space, own):
                found = asked.columns(outputs, space.clean())
                of_chips[start:stop] += found.sum(1)
                if weights is None:
                    per_example[-1] += found.sum(0)
                else:
                    with np.errstate(invalid="ignore"):  # of infinite losses
                        per_example[-1] += np.tensordot(weights[start:stop], found, 1)
                yield ChipSums(rows=(stop - start) * len(inputs))
        if not clean:
            raise ModelError("inputs: the data set gave no examples when it was read again")
        yield ChipSums(
            points.count, (of_chips,), np.concatenate(per_example), np.concatenate(clean)
        )


def pieces_of(space: FaultSpace) -> int:
    """How many examples are computed together: a function of the model and its faults alone."""
    in_flight = _SCALARS // max(space.scalars, 1)
    return max(1, min(in_flight, _VALUES // (_CHIPS_AT_ONCE * space.K)))


def outputs_of(space: FaultSpace, points: Points) -> Iterator[tuple[int, int, Floats]]:
    """The outputs of some points at a time, with their numbers."""
    most = max(1, _VALUES // (space.B * space.K))
    parts = -(-points.count // most)
    edges = [points.count * i // parts for i in range(parts + 1)] if parts else []
    for start, stop in pairwise(edges):
        yield start, stop, space.outcomes(points.part(start, stop))
