"""How Monte Carlo is to sample a space: how often, with which strata, with which control variate.

Decided on counts alone, so the samples are the same on every machine.
"""

from __future__ import annotations

from crashsim.analytic.gains import KEPT, are_dense, kept_bytes
from crashsim.sampling.chips.run import DEFAULT_CHIPS
from crashsim.sampling.dense import DENSE
from crashsim.sampling.monte_carlo import DEFAULT_SAMPLES
from crashsim.scoring.judging import Judging
from crashsim.scoring.planning.size import BUDGET, GRADIENT_VALUES, Size, no_surrogate

MIN_SAMPLES = 200  # unless they cost more than twice what a method may,
_FEWEST = 10  # and then this number
_OF_CONTROLLED = 0.3  # of what plain samples may cost, for those with a control variate
_CONTROL_VALUES = 2**26  # B x K x N gains of a control variate
_CHIPS = 0.2  # of a method's budget, for chips that meet all examples
_FORWARDS = 4  # passes that a derivative along a sample's faults takes, about
_CONTROL_COST = 4  # times a forward pass that it may cost


def chosen_samples(size: Size, samples: int | None, rel_width: float | None) -> int | None:
    """The number of samples; None where ``rel_width`` decides."""
    if samples is None and rel_width is None:
        fewest = min(MIN_SAMPLES, max(_FEWEST, 2 * BUDGET / size.operations))
        share = _OF_CONTROLLED if _has_control(size) else 1.0
        return int(min(DEFAULT_SAMPLES, max(fewest, share * BUDGET / size.operations)))
    return samples


def _has_control(size: Size) -> bool:
    """Whether there will be a control variate, with which a sample is worth many plain ones."""
    return no_surrogate(size) is None and is_controlled(size, None)


def chosen_chips(size: Size, judging: Judging) -> int | None:
    """The number of chips to judge; None where a width decides."""
    if judging.chips is None and not judging.widths:
        each = size.arithmetic_of_one if size.budget is None else size.operations_of_one
        chip = judging.examples.count * each
        fewest = MIN_SAMPLES if size.budget is None else _FEWEST
        return int(min(DEFAULT_CHIPS, max(fewest, _CHIPS * size.scale * BUDGET / chip)))
    return judging.chips


def is_stratified(size: Size, samples: int | None) -> bool:
    """Whether no fault and single ones are summed exactly, and two or more sampled."""
    if size.B * size.K > DENSE:
        return False
    enough = (samples or DEFAULT_SAMPLES) >= size.N
    return enough and size.gains <= GRADIENT_VALUES and size.strikes_are_few


def is_controlled(size: Size, samples: int | None) -> bool:
    """Whether Monte Carlo takes the linear surrogate, if there is one, for a control variate."""
    space = size.space
    struck = sum(p.size * p.fault.change_probability for p in space.placements)
    cost = 2 * struck * space.B * space.K  # of products
    if size.B * size.K > DENSE:
        return False
    if not are_dense(space) and kept_bytes(space, space.K) > KEPT * size.memory:
        if not space.slopes.has_forward_derivatives:
            return False
        cost = _FORWARDS * size.arithmetic
    if cost > _CONTROL_COST * size.arithmetic:
        return False
    if are_dense(space) and size.gains > _CONTROL_VALUES:
        return False
    # Where single faults are all that samples hold, they say too little of what it leaves over.
    return is_stratified(size, samples) or not size.strikes_are_few
