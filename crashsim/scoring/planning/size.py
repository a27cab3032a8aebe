"""How much work a space is: what is affordable unasked is decided on these counts.

Costs are counted in floating-point operations and numbers kept, not in seconds, so that the plan,
and with it the result, is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from crashsim.analytic import sampled_singles, sketch
from crashsim.analytic.gains import MEMORY, MOST_DENSE, are_dense, are_served, kept_bytes
from crashsim.analytic.surrogates import rivals
from crashsim.analytic.weighing import weighed_bytes
from crashsim.coordinates.placement import DEPENDENT
from crashsim.injection.flops import Operations
from crashsim.results.estimate import MOST_OUTPUTS
from crashsim.sampling.enumeration import can_enumerate
from crashsim.sampling.exact_strata import few_strike
from crashsim.space import NO_MEAN_POINT, FaultSpace

BUDGET = 5e11  # operations per method: about a minute of one core
EXTRA = 3e9  # operations of what refines first-order theory: a second or so
_ALONE, _SHARED = 3e6, 1e5  # operations that a sample's calls cost, by itself and with others
_CALL = 1e5  # the same of each call, where they are many
# What a core does in vectors costs less than an operation of its own: a multiplication or addition
# of a convolution or matrix product. To fetch a number, or to put it back, costs more.
_OF_PRODUCT, _MOVED = 1 / 12, 2.0
BACKWARDS = 3.0  # passes that one backwards takes, whose inputs come one by one
_BENT = 10.0  # operations for each number that an activation makes
_FEW = 0.5  # probability of two or more faults below which they alone are sampled
ENUMERATED = 16  # coordinates up to which the exact sum is computed unasked
_PROBED = BUDGET / 10  # operations for random sums of the outputs
_EACH = 1024  # outputs up to which a backward pass is made for each
_SKETCH = "mean-point-taylor takes random sums of them"
GRADIENT_VALUES = 2**27  # B x K x N gains kept: 1 GiB


@dataclass(frozen=True)
class Size:
    """A space and what it costs to run.

    Attributes:
        space: the model, its inputs and faults.
        memory: bytes that gains may take, about.
        budget: operations that all of a score may take; None: each method as its table says.
        named: outputs that were asked for by number.
        operations: what one sample's forward pass on all inputs costs, about, in operations of the
            exchange rate: those of products count a twelfth, numbers that are read or written two.
        operations_of_one: the same on a single input.
        arithmetic, arithmetic_of_one: floating-point operations of these passes, products' as all
            others: what is affordable unasked is decided on them, by numbers that were found by
            them.
        N, B, K: the numbers of coordinates, inputs and outputs.
        gains: B x K x N, the numbers of a gradient by every coordinate.
    """

    space: FaultSpace
    memory: int = MEMORY
    budget: float | None = None
    named: tuple[int, ...] = ()

    @cached_property
    def of_named(self) -> Size | None:
        """Of the named outputs alone, where all are too many for a surrogate of each; else None."""
        if not 0 < len(self.named) <= MOST_OUTPUTS < self.K:
            return None
        if no_surrogate(replace(self, budget=None)) is None:
            return None
        return Size(self.space.of_outputs(sorted(self.named)), self.memory, self.budget)

    @property
    def scale(self) -> float:
        """How much more than usual a method may cost."""
        return 1.0 if self.budget is None else self.budget / (2 * BUDGET)

    @property
    def N(self) -> int:
        return self.space.N

    @property
    def B(self) -> int:
        return self.space.B

    @property
    def K(self) -> int:
        return self.space.K

    @cached_property
    def operations(self) -> float:
        return self._cost(self.space.B)

    @cached_property
    def operations_of_one(self) -> float:
        return self._cost(1)

    @cached_property
    def operations_of_change(self) -> float:
        """Of all inputs with a single coordinate changed, which share what a call costs."""
        return self._cost(self.space.B, _SHARED)

    @cached_property
    def arithmetic(self) -> float:
        return self._arithmetic(self.space.B)

    @cached_property
    def arithmetic_of_one(self) -> float:
        return self._arithmetic(1)

    @cached_property
    def _pass(self) -> _Pass:
        return _counted(self.space)

    def _cost(self, inputs: int, shared: float | None = None) -> float:
        counted, alone = self._pass, max(_ALONE, _CALL * self._pass.calls)
        each = _OF_PRODUCT * counted.products + _MOVED * counted.moved + _BENT * counted.bent
        if self.space.runs_alone:
            return inputs * (each + _MOVED * counted.parameters) + alone
        return inputs * each + _MOVED * counted.parameters + self._calls(alone, shared)

    def _arithmetic(self, inputs: int) -> float:
        counted = self._pass
        return inputs * (counted.products + _BENT * counted.bent) + self._calls(_ALONE, None)

    def _calls(self, alone: float, shared: float | None) -> float:
        """What calls cost at all; samples with faulty parameters cannot always share one."""
        space = self.space
        if shared is not None and not space.runs_alone:
            return shared
        of_weights = any(p.site.kind == "parameter" for p in space.placements)
        return alone if space.runs_alone or of_weights else _SHARED

    @cached_property
    def strikes_are_few(self) -> bool:
        """Whether most samples would hold no strike or a single one, but not surely so."""
        return few_strike(self.space, _FEW)

    @property
    def gains(self) -> int:
        return self.N * self.B * self.K


@dataclass(frozen=True)
class _Pass:
    """What a forward pass does.

    Attributes:
        products: multiplications and additions of convolutions and matrix products, of an input.
        moved: numbers that are read and written, for each input.
        parameters: those that are read for all inputs together.
        bent: numbers at the sites of an input.
        calls: operations of torch.
    """

    products: float
    moved: float
    parameters: float
    bent: float
    calls: int


def _counted(space: FaultSpace) -> _Pass:
    one = space.examples.part(0, 1)
    counters = []
    for inputs in (one, one.repeat(2)):  # what both share is read once
        with torch.no_grad(), Operations() as counter:
            space.faulty_model.model.outputs(inputs.clone())
        counters.append(counter)
    first, both = counters
    every = first.read + first.written
    moved = min(max(both.read + both.written - every, 0), every)
    return _Pass(
        products=float(first.total),
        moved=float(moved),
        parameters=float(every - moved),
        bent=float(sum(s.size for s in space.available_sites if s.kind != "parameter")),
        calls=first.calls,
    )


def is_enumerated(size: Size) -> bool:
    """Whether the sum over all fault patterns is computed unasked."""
    return can_enumerate(size.space, ENUMERATED)


def is_sketched(size: Size) -> bool:
    """Whether first order takes random sums of the outputs, and not a backward pass for each."""
    space = size.space
    if size.K <= MOST_OUTPUTS or not space.has_derivatives or not are_served(space):
        return False
    # Whatever the budget: what a number is does not depend on what others cost.
    return size.K > _EACH or _too_many_gains(replace(size, budget=None)) is not None


def probes_of(size: Size) -> int:
    """How many random sums of the outputs are differentiated: fewer where a pass takes long."""
    affordable = int(_PROBED / (2 * size.arithmetic))
    return min(max(affordable, sketch.FEWEST), sketch.PROBES)


def too_many_gradients(size: Size) -> str | None:
    """Why gradients of every output by every coordinate are not computed unasked, or None."""
    space = size.space
    if not space.has_derivatives:
        return space.why_no_derivatives
    if is_sketched(size):
        return f"{size.K} outputs: as many backward passes; {_SKETCH}"
    return _too_many_gains(size)


def no_gradients(size: Size) -> str | None:
    """Why there are neither gradients nor random sums of them unasked, or None."""
    if not is_sketched(size):
        return too_many_gradients(size)
    values = size.space.slopes.size
    held = 4.0 * values + weighed_bytes(values)
    if held > size.memory:
        return (
            f"the slopes of one sum of outputs take {held:.2g} bytes, of {size.memory} that they "
            "may (memory=)"
        )
    return None


def too_many_differences(size: Size) -> str | None:
    """Why every coordinate is not changed alone unasked, or None."""
    if 2 * size.N * size.arithmetic > size.scale * BUDGET:
        return f"2 x {size.N} coordinates: as many forward passes cost too much"
    if is_sketched(size):
        return f"{size.K} outputs of {size.N} coordinates: {_SKETCH} instead"
    if 4 * size.gains > GRADIENT_VALUES:
        return f"{size.N} coordinates: their single-fault differences do not fit in memory"
    return None


UNDER_GUARDS = (
    "for faults that nothing guards: under a code or a vote a single one does nothing, and what "
    "two do is all there is"
)


def too_many_singles(size: Size) -> str | None:
    """Why not even a sample of the coordinates is changed alone unasked, or None."""
    if any(p.fault.is_guarded for p in size.space.placements):
        return UNDER_GUARDS
    reason = too_many_differences(size)
    if reason is None:
        return None
    space = size.space
    if space.counts or not all(p.fault.is_binary for p in space.placements):
        return reason
    if 2 * sampled_singles.FEWEST * size.arithmetic > BUDGET:
        return f"{reason}; {sampled_singles.FEWEST} of them, too"
    # The gradient says what single faults do, about: a sample is of what it misses.
    return no_surrogate(size) if space.has_derivatives else None


def singles_sampled(size: Size) -> int | None:
    """Of how many coordinates single faults are looked at; None for all."""
    if too_many_differences(size) is None:
        return None
    affordable = int(BUDGET / 8 / size.arithmetic)
    return min(max(affordable, sampled_singles.FEWEST), sampled_singles.SAMPLE)


def no_surrogate(size: Size) -> str | None:
    """Why no linear surrogate is made unasked, from gradients or else from differences, or None."""
    if size.space.counts:
        return DEPENDENT
    if size.space.strikes_words:
        return NO_MEAN_POINT
    if not size.space.has_derivatives and (reason := too_many_differences(size)):
        return f"{size.space.why_no_derivatives}; {reason}"
    if is_sketched(size):
        return (
            f"{size.K} outputs: needs the gradient of each, or names of some (outputs=); {_SKETCH}"
        )
    return _too_many_gains(size)


def no_margins(size: Size) -> str | None:
    """Why not even the margins of the nearest rivals are differentiated unasked, or None."""
    space = size.space
    if space.counts:
        return DEPENDENT
    if not space.has_derivatives:
        return space.why_no_derivatives
    if not are_served(space):
        return "for Bernoulli and normal faults"
    held = rivals.held_bytes(space)
    if held > size.memory:
        return (
            f"the slopes of the nearest rivals' margins take {held:.2g} bytes, of {size.memory} "
            "that they may (memory=)"
        )
    count = rivals.margins_at_most(space)
    if (cost := (2 + 2 * count) * size.arithmetic) > size.scale * BUDGET:
        return f"backward passes of the nearest rivals' margins take {cost:.1g} operations"
    return None


def operations_of_margins(size: Size) -> float:
    """Of a pass and one backwards for the margin of each nearest rival, and what is read."""
    count = rivals.margins_at_most(size.space)
    read = 20.0 * size.B * count * size.space.slopes.size
    return (2 + BACKWARDS * count) * size.operations + read


def _too_many_gains(size: Size) -> str | None:
    space = size.space
    if not are_served(space) and size.gains > MOST_DENSE:
        return f"{size.N} coordinates: gradients of {size.B} inputs do not fit in memory"
    # Of a single input at least, the slopes are held twice: as they are made, and read.
    held = 2 * kept_bytes(space, size.K) / size.B
    if not are_dense(space) and held > size.memory:
        return (
            f"{size.K} outputs: the slopes of one input take {held:.2g} bytes, of {size.memory} "
            "that they may (memory=)"
        )
    cost = 3 * size.K * size.arithmetic
    if cost > size.scale * BUDGET:
        return f"{size.K} outputs: as many backward passes take {cost:.1g} operations"
    return None
