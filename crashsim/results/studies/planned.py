"""What a study would run: cases that share chips, and what those cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedCases:
    """Cases that are judged on the same chips.

    Attributes:
        cases: their names.
        first, first_operations: chips that they get in any case.
        most, most_operations: chips that they get at most.
    """

    cases: list[str]
    first: int
    first_operations: float
    most: int
    most_operations: float
