"""What is kept of chips: sums over examples for each chip, and over chips for each example."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crashsim.arrays import Floats
from crashsim.errors import ModelError


@dataclass(frozen=True)
class ChipSums:
    """Sums of D numbers, which add up chip after chip.

    Attributes:
        chips: number of chips, those without a fault among them.
        pieces: (n, D) sums over the examples of each chip that was struck, in order.
        per_example: (B, D) sums over those chips; None where no chip is complete.
        clean: (B, D) of the chip without faults; None as well.
        rows: forward passes of one example so far.
    """

    chips: int = 0
    pieces: tuple[Floats, ...] = ()
    per_example: Floats | None = None
    clean: Floats | None = None
    rows: int = 0

    @property
    def struck(self) -> int:
        """The number of chips with a fault."""
        return sum(len(piece) for piece in self.pieces)

    @cached_property
    def of_chips(self) -> Floats:
        """(n, D) the pieces together."""
        return np.concatenate(self.pieces) if self.pieces else np.zeros((0, 0))

    def __add__(self, other: ChipSums) -> ChipSums:
        """Raises ModelError where the chip without faults is another: data that change."""
        clean, per_example = self.clean, self.per_example
        if clean is None or per_example is None:
            clean, per_example = other.clean, other.per_example
        elif other.clean is not None and other.per_example is not None:
            if clean.shape != other.clean.shape or not np.allclose(
                clean, other.clean, rtol=1e-3, atol=1e-6, equal_nan=True
            ):
                raise ModelError(
                    "inputs: the data set gave other examples when it was read again; take random "
                    "augmentation and shuffling out of it"
                )
            per_example = per_example + other.per_example
        return ChipSums(
            self.chips + other.chips,
            self.pieces + other.pieces,
            per_example,
            clean,
            self.rows + other.rows,
        )
