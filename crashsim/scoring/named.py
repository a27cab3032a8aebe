"""Named outputs of very many: what is asked of each by itself is computed of these alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from crashsim.results.estimate import Estimate
from crashsim.results.estimates import EstimateArray, Estimates


def of_named(found: Iterable[Estimate], outputs: Sequence[int]) -> Estimates:
    """Estimates of the named outputs alone, with the numbers that these have in the model.

    What is of all outputs together (a sum of variances, a class change) is left out: of some
    outputs alone it is another number.

    Args:
        found: of a space that reads these outputs, numbered from 0.
        outputs: their numbers in the model, ascending.
    """
    numbers = np.asarray(outputs, np.int64)
    kept: list[EstimateArray | Estimate] = []
    for part in (Estimates() + found).parts:
        if isinstance(part, EstimateArray):
            if part.each_output:
                kept.append(replace(part, outputs=numbers[part.columns]))
        elif isinstance(part.output, int):
            kept.append(replace(part, output=int(numbers[part.output])))
    return Estimates(kept)
