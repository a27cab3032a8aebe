"""Double precision, in which small probabilities do not drown in rounding."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch

from crashsim.model.checks import rounding_slack
from crashsim.model.sites.layer_kinds import is_quantised
from crashsim.space import FaultSpace


def double_precision(space: FaultSpace) -> FaultSpace:
    """The space in float64, where small probabilities do not drown in rounding.

    Where bits are struck whose changes do not add up, it is the space itself: what overflows in the
    model's own precision is an outcome. A model that fixes its own type (a constant float32 tensor
    in its forward pass, say) keeps it, and so does one that computes something else in float64
    (with autocast inside, say). Torch's quantised layers take float32 alone.
    """
    if space.strikes_words or any(is_quantised(module) for module in space.model.modules()):
        return space
    if space not in _KNOWN:
        _KNOWN[space] = _widened(space)
    return _KNOWN[space] or space


# Of each space that lives; None where it keeps its own type. A pass in double precision may take as
# long as ten others.
_KNOWN: WeakKeyDictionary[FaultSpace, FaultSpace | None] = WeakKeyDictionary()


def _widened(space: FaultSpace) -> FaultSpace | None:
    """It in float64, None where that is another model or fails."""
    try:
        wide = space.with_dtype(torch.float64)
        if wide is space:
            return None
        one = wide.examples.part(0, 1)
        wide.slopes.outputs(one, wide.slopes.moved([0.0] * len(wide.placements)))
    except (RuntimeError, TypeError):
        return None
    off, largest = np.abs(wide.clean() - space.clean()).max(), np.abs(space.clean()).max()
    return wide if off <= 2 * rounding_slack(space.dtype) * largest else None
